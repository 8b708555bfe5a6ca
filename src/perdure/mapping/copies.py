"""Dicts that keep copies of another dict's values in a third: `MutableDictCached` and `AppendOnlyDictCached`.

For a bucket with copies in a folder there is `S3Dict`, or `perdure.wrappers.Cached` for any two backends. What is here takes
dicts that are there already, of any codec, and keeps values in them that others may look at.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self, TypeVar

from ..errors import CodecError, NotFoundError, PolicyError, UsageError
from ..keys import split_key
from ..protocol import Blob, ETag, Meta
from ..wrappers.cached import Cached
from .core import Key
from .dict import PersiDict
from .flags import ANY_ETAG, ITEM_NOT_AVAILABLE

V = TypeVar("V")

_REMEMBERED = 100_000


class _Link(NamedTuple):
    """Which version of the data cache is a copy of which version of the main dict."""

    etag: ETag
    version: Any
    modified: float


class _InDicts(Cached):
    """Copies as values of one dict and, where values change, their ETags as values of another.

    Two dicts cannot be changed together, so an ETag found in one says nothing about the value found in the other: whoever wrote
    it may have been killed in between. Which value belongs to which ETag is therefore kept in memory, and a new process
    asks once for each value.
    """

    def __init__(self, main: PersiDict[Any], data: PersiDict[Any], etags: PersiDict[Any] | None) -> None:
        self._main, self._data, self._etags = main, data, etags
        self._links: dict[str, _Link] = {}
        super().__init__(main.backend, data.backend, append_only=main.append_only)

    def _refuse_values_of_others(self) -> None:
        pass  # they are meant to be there

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        try:
            return super().get(key, if_none_match=if_none_match)
        except NotFoundError:
            if not self._append_only:
                self._drop(key)
            raise

    def head(self, key: str) -> Meta:
        try:
            return self._main.backend.head(key)
        except NotFoundError:
            if not self._append_only:
                self._drop(key)
            raise

    def _keep_written(self, key: str, data: bytes, etag: ETag) -> None:
        super()._keep_written(key, data, etag)
        if self._append_only:
            self._links.pop(key, None)  # the main dict knows the time; a value alone is answered from the copy all the same

    def _name(self, key: str) -> Key:
        return split_key(key[len(self._main._prefix) :])  # noqa: SLF001

    def _copy(self, key: str) -> Blob | None:
        link = self._links.get(key)
        if link is None:
            return None
        name = self._name(key)
        try:
            if self._etags is not None and self._etags.get(name) != link.etag:
                return None
            there = self._data.get_with_etag(name)
            if there.actual_etag != link.version:
                return None
            return Blob(self._main._spell(there.new_value, key), link.etag, link.modified)  # noqa: SLF001
        except CodecError:
            return None  # damaged, or not what the main dict holds
        except Exception as error:
            self._trouble(error)
            return None

    def _keep(self, key: str, blob: Blob) -> None:
        name = self._name(key)
        try:
            value = self._main._read(blob.data, key)  # noqa: SLF001
        except (CodecError, PolicyError):
            return  # the reader is told
        anyway: dict[str, Any] = {"condition": ANY_ETAG, "expected_etag": ITEM_NOT_AVAILABLE}
        try:
            if self._append_only:
                done = self._data.setdefault_if(name, default_value=value, **anyway)
                if not done.value_was_mutated:
                    return  # something is there already, and nobody knows that it is this version
            else:
                done = self._data.set_item_if(name, value=value, **anyway)
            if self._etags is not None:
                self._etags[name] = blob.etag
        except Exception as error:
            self._trouble(error)
            return
        if len(self._links) >= _REMEMBERED:
            self._links.clear()
        self._links[key] = _Link(blob.etag, done.resulting_etag, blob.modified)

    def _drop(self, *keys: str) -> None:
        for key in keys:
            self._links.pop(key, None)
            try:
                for copies in (self._data, self._etags):
                    if copies is not None and not copies.append_only:
                        copies.discard(self._name(key))
            except Exception as error:
                self._trouble(error)

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._etags is not None:
                self._etags.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _InDicts, (self._main, self._data, self._etags)


class _WithCopies(PersiDict[V]):
    """What the two have in common: they are made of other dicts, and a view of them of views of those."""

    _parts: dict[str, Any]

    def get_params(self) -> dict[str, Any]:
        return dict(self._parts)

    def _view(self, prefix: str) -> Self:
        view = super()._view(prefix)
        below = split_key(prefix[len(self._prefix) : -1]) if prefix != self._prefix else ()
        view.__dict__["_parts"] = {name: part.get_subdict(below) for name, part in self._parts.items()}
        return view


class MutableDictCached(_WithCopies[V]):
    """The main dict, read through copies: a value is fetched when it has changed, and else taken from the data cache.

    Every read asks the main dict whether the copy is current: one request without a body. Writes go to the main dict first.

    Args:
        main_dict: Where the values are.
        data_cache: Where copies of them are kept, under the same keys.
        etag_cache: Where the ETags of the copies are kept.

    Raises:
        PolicyError: One of them is no dict of ours.
        UsageError: One of them is append-only.
    """

    def __init__(self, *, main_dict: PersiDict[V], data_cache: PersiDict[V], etag_cache: PersiDict[Any]) -> None:
        self._parts = {"data_cache": data_cache, "etag_cache": etag_cache, "main_dict": main_dict}
        for name, part in _checked(self._parts):
            if part.append_only:
                raise UsageError(f"{name} is append-only", place=part.place, hint="Use AppendOnlyDictCached for such dicts.")
        self._stand_for(main_dict, _InDicts(main_dict, data_cache, etag_cache))


class AppendOnlyDictCached(_WithCopies[V]):
    """An append-only main dict with copies: a value that was read or written once is answered without asking again.

    Args:
        main_dict: Where the values are.
        data_cache: Where copies of them are kept, under the same keys; what is in it is believed.

    Raises:
        PolicyError: One of them is no dict of ours.
        UsageError: One of them is not append-only, or they hold values of different classes.
    """

    def __init__(self, *, main_dict: PersiDict[V], data_cache: PersiDict[V]) -> None:
        self._parts = {"data_cache": data_cache, "main_dict": main_dict}
        for name, part in _checked(self._parts):
            if not part.append_only:
                raise UsageError(f"{name} is not append-only", place=part.place, hint="Use MutableDictCached for such dicts.")
        if main_dict.base_class_for_values is not data_cache.base_class_for_values:
            raise UsageError("main_dict and data_cache differ in base_class_for_values", place=main_dict.place)
        self._stand_for(main_dict, _InDicts(main_dict, data_cache, None))

    def __getitem__(self, key: Key) -> V:
        try:
            return self._parts["data_cache"][key]  # type: ignore[no-any-return]
        except (NotFoundError, CodecError):
            return super().__getitem__(key)

    def get(self, key: Key, default: Any = None) -> Any:
        try:
            return self[key]
        except NotFoundError:
            return default

    def __contains__(self, key: object) -> bool:
        return key in self._parts["data_cache"] or super().__contains__(key)


def _checked(parts: dict[str, Any]) -> list[tuple[str, PersiDict[Any]]]:
    for name, part in parts.items():
        if not isinstance(part, PersiDict):
            raise PolicyError(f"{name} is a dict of perdure, not a {type(part).__name__}")
    return list(parts.items())
