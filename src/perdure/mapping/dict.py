"""`PersiDict`: a dict whose items live in a backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from ..errors import CodecError, InvalidKeyError, NotFoundError, PreconditionError
from ..keys import SafeStrTuple, join_key, known_key
from ..protocol import ABSENT, Condition
from .core import VALUES_AT_ONCE, Key
from .flags import DELETE_CURRENT, KEEP_CURRENT, DeleteCurrentFlag, KeepCurrentFlag, NotAValue
from .many import ManyItems
from .times import Times
from .views import Items, Keys, Values

if TYPE_CHECKING:
    import weakref

V = TypeVar("V")
D = TypeVar("D")

_REQUIRED: Any = object()


class PersiDict(ManyItems[V], Times[V], MutableMapping[SafeStrTuple, V]):
    """A dict that lasts. Its items live in a backend and are read from there each time: what one process writes, all see.

    Keys are safe names (see `perdure.keys`) or tuples of them: `d["a"]`, `d["a", "b"]`; iterating gives `SafeStrTuple`,
    which equals and hashes like what was written. Values are what the codec can hold; each read gives a new object, so
    after changing one, write it back. Everything works on every backend, from any thread and process, and each operation on
    one key is atomic.

    Writing `KEEP_CURRENT` as a value changes nothing, writing `DELETE_CURRENT` deletes, in `d[key] = ...` and `update`.

    Args:
        backend: Where the items are. Usually `perdure.open(url)` makes both.
        chain: How values become bytes: a `Chain`, or the name of a codec; `None` is `"msgpack"`.
        append_only: Keys may be added, and neither overwritten nor deleted. Of several that add one key, one succeeds.
        base_class_for_values: A class that every value written or read must be an instance of.
        prefix: Only the keys under it, named relative to it: a view, as `get_subdict` makes.

    Raises (all methods):
        InvalidKeyError: The key can never be one; `in` and `get` raise it as well.
        CodecError: A value cannot be written (nothing was), or what is stored cannot be read (nothing was changed).
        PolicyError: `append_only` or `base_class_for_values` forbids it, or the value is a dict like this one or a flag.
        BackendError: The place failed.
    """

    _listing: tuple[weakref.ref[Iterator[str]], list[list[str]]] | None = None

    # ---------------------------------------------------------------- one item

    def __getitem__(self, key: Key) -> V:
        """The value of a key; `NotFoundError`, which is a `KeyError`, where it is absent. Cost: one read."""
        path = self._prefix + (known_key(key) if type(key) is str else join_key(key))
        try:
            value: Any = self._decode(self._get(path).data, path)
        except NotFoundError:
            raise self._missing(path) from None
        except CodecError as error:
            self._complete(error, path)
            raise
        if self.base_class_for_values is not None and not isinstance(value, self.base_class_for_values):
            raise self._wrong_class(value, path, "stored")
        return value  # type: ignore[no-any-return]

    def __setitem__(self, key: Key, value: V | KeepCurrentFlag | DeleteCurrentFlag) -> None:
        """Write a value, whole or not at all. Cost: one put."""
        path = self._prefix + (known_key(key) if type(key) is str else join_key(key))
        if self._any_value and not isinstance(value, NotAValue):
            try:
                data = self._encode(value, path)
            except CodecError as error:
                error.at(place=self.backend.place)
                raise
            self._put(path, data)
        elif value is DELETE_CURRENT:
            self._require_mutable(path)
            self.backend.delete(path)
        elif value is not KEEP_CURRENT:
            self._set(path, self._spell(value, path))

    def __delitem__(self, key: Key) -> None:
        """Delete a key; `NotFoundError` where it is absent. Cost: a look and a delete."""
        if not self.discard(key):
            raise self._missing(self._prefix + join_key(key))

    def __contains__(self, key: object) -> bool:
        """Tell whether a key is present. Cost: one look, without reading the value."""
        return self._contains(self._prefix + (known_key(key) if type(key) is str else join_key(key)))

    @overload
    def get(self, key: Key) -> V | None: ...
    @overload
    def get(self, key: Key, default: V | D) -> V | D: ...
    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or `default` where it is absent. A value that cannot be read raises all the same."""
        path = self._prefix + join_key(key)
        try:
            return self._read(self._get(path).data, path)
        except NotFoundError:
            return default

    def setdefault(self, key: Key, default: V = None) -> V:  # type: ignore[assignment]
        """The value of a key; where it is absent, `default` is written first. Of several that do so at once, one writes.

        Cost: one read, or a read and a put.

        Raises:
            PolicyError: `default` is a joker. Works in an append-only dict.
        """
        path = self._prefix + join_key(key)
        if isinstance(default, NotAValue):
            raise self._unfit(default, path)
        data = None
        turns = self._attempts(path)
        while True:
            next(turns)
            seen: Condition = ABSENT
            try:
                found, seen, _modified = self._get(path)
                return self._read(found, path)
            except NotFoundError:
                try:
                    data = self._spell(default, path) if data is None else data
                    self._put(path, data, if_match=seen)
                except PreconditionError:
                    continue
                return default

    @overload
    def pop(self, key: Key) -> V: ...
    @overload
    def pop(self, key: Key, default: V | D) -> V | D: ...
    def pop(self, key: Key, default: Any = _REQUIRED) -> Any:
        """Delete a key and return its value; where it is absent, `default` or `NotFoundError`.

        Of several that pop one key, one gets the value. A value that cannot be read is not deleted. Cost: a read and a delete.
        """
        path = self._prefix + join_key(key)
        self._require_mutable(path)
        turns = self._attempts(path)
        while True:
            next(turns)
            try:
                data, etag, _modified = self._get(path)
                value = self._read(data, path)
            except NotFoundError:
                if default is _REQUIRED:
                    raise self._missing(path) from None
                return default
            try:
                self.backend.delete(path, if_match=etag)
            except PreconditionError:
                continue
            return value

    def popitem(self) -> tuple[SafeStrTuple, V]:
        """Delete some key and return it with its value; `NotFoundError` where there is none."""
        self._require_mutable()
        for key in self:
            try:
                return key, self.pop(key)
            except NotFoundError:
                continue  # somebody else took it
        raise NotFoundError("the dict is empty", place=self.place)

    def delete_if_exists(self, key: Key) -> bool:
        """As `discard`."""
        return self.discard(key)

    def discard(self, key: Key) -> bool:
        """Delete a key if it is there, and tell whether it was. Of several that do so, one gets `True`.

        Cost: a look and a delete. `delete_many([key])` needs one request, and does not tell.
        """
        path = self._prefix + join_key(key)
        self._require_mutable(path)
        turns = self._attempts(path)
        while True:
            next(turns)
            try:
                self.backend.delete(path, if_match=self.backend.head(path).etag)
            except NotFoundError:
                return False
            except PreconditionError:
                continue
            return True

    # ---------------------------------------------------------------- all items

    def __iter__(self) -> Iterator[SafeStrTuple]:
        """The keys, in no particular order. Each that is there all the time comes exactly once."""
        paths = self._paths()
        cut, split = len(self._prefix), self._split
        return (split(path[cut:]) for path in paths) if cut else map(split, paths)

    def _paths(self) -> Iterator[str]:
        import weakref  # a millisecond that a program which only looks things up need not wait for

        counted: list[list[str]] = []
        paths = self._list(counted)
        self._listing = weakref.ref(paths), counted
        return paths

    def _list(self, counted: list[list[str]]) -> Iterator[str]:
        self._listing = None
        yield from counted.pop() if counted else self.backend.keys(self._prefix)

    def __len__(self) -> int:
        """The number of keys. Cost: a listing of names."""
        # list(d) asks for an iterator first and then for the length. A listing may be a minute of requests, so what is
        # counted here is handed to an iterator that has not begun.
        listing = self._listing
        if listing is not None and listing[0]() is not None:
            paths = list(self.backend.keys(self._prefix))
            listing[1][:] = [paths]
            self._listing = None
            return len(paths)
        return sum(1 for _ in self.backend.keys(self._prefix))

    def __bool__(self) -> bool:
        """Whether there is any key. Cost: the beginning of a listing."""
        return next(iter(self.backend.keys(self._prefix)), None) is not None

    def _repr_html_(self) -> str:
        """The first keys as a table, for notebooks. Reads no value."""
        from .html import table

        return table(self)

    def keys(self) -> Keys:
        """A live view of the keys, with set operations."""
        return Keys(self)

    def values(self) -> Values[V]:
        """A live view of the values; iterating fetches them in batches and leaves out what is deleted meanwhile."""
        return Values(self)

    def items(self) -> Items[V]:
        """A live view of the pairs; iterating fetches values in batches and leaves out what is deleted meanwhile."""
        return Items(self)

    def _items(self) -> Iterator[tuple[SafeStrTuple, V]]:
        return ((self._key(path), self._read(blob.data, path)) for path, blob in self._blobs(self._paths()))

    def __eq__(self, other: object) -> bool:
        """Whether both hold equal values under the same keys, whatever kind of mapping the other is."""
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        try:
            theirs = {join_key(key): key for key in other}
        except InvalidKeyError:
            return False
        cut = len(self._prefix)
        paths = list(self.backend.keys(self._prefix))
        if len(theirs) != len(paths) or theirs.keys() != {path[cut:] for path in paths}:
            return False
        for start in range(0, len(paths), VALUES_AT_ONCE):
            batch = paths[start : start + VALUES_AT_ONCE]
            wanted = [theirs[path[cut:]] for path in batch]
            found = other.get_many(wanted) if isinstance(other, PersiDict) else {key: other[key] for key in wanted}
            mine = self._values(batch)
            if len(mine) != len(batch) or len(found) != len(batch) or list(mine.values()) != list(found.values()):
                return False
        return True

    def __or__(self, other: Mapping[Any, D]) -> dict[SafeStrTuple, V | D]:
        """A built-in dict with the items of both, the other's where a key is in both."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return {**dict(self.items()), **{self._split(join_key(key)): value for key, value in other.items()}}

    def __ror__(self, other: Mapping[Any, D]) -> dict[SafeStrTuple, V | D]:
        if not isinstance(other, Mapping):
            return NotImplemented
        return {self._split(join_key(key)): value for key, value in other.items()} | dict(self.items())

    def __ior__(self, other: Mapping[Any, V]) -> Self:  # type: ignore[misc]  # in place it stays a PersiDict
        if not isinstance(other, Mapping):
            return NotImplemented
        self.set_many(other)
        return self

    # ---------------------------------------------------------------- views of a prefix

    def get_subdict(self, prefix: Key) -> Self:
        """A live view of the keys under a prefix, named relative to it. Costs nothing; nothing need be there yet.

        Args:
            prefix: Such as `"a"` or `("a", "b")`; an empty one is the whole dict. The key `"a"` itself is not in the view.
        """
        return self._view(self._prefix_of(prefix))

    def subdicts(self) -> dict[str, Self]:
        """A view for each first segment of the keys. Cost: a listing of names."""
        names = dict.fromkeys(key[0] for key in self)
        return {name: self._view(f"{self._prefix}{name}/") for name in names}
