"""From what a user names to where the values are: `cached("s3://team/cache", local=["memory:", "~/.cache/app"])`."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..codecs.chain import Chain
from ..codecs.entry import BARE, is_claim
from ..durations import Duration, seconds
from ..errors import UsageError, UsageTypeError
from ..mapping.core import Core
from ..mapping.opening import open as open_dict
from ..protocol import Backend
from ..registry import open_backend, parse_url
from ..sizes import Size, size_in_bytes

if TYPE_CHECKING:
    from ..codecs import Codec, Filter
    from ..wrappers.bounded import Bounded

__all__ = ["Local", "Opening", "Place", "Where", "is_entry"]

Where: TypeAlias = "str | os.PathLike[str] | Backend | Core[Any]"
Local: TypeAlias = "str | os.PathLike[str] | Backend"

MEMORY: Final = 256 << 20
"""The most bytes that a nearer place in memory holds: nobody expects a cache to eat all memory."""

_entry = re.compile(r"[^/]+(\(\)(=[^/]*)?|~[0-9a-f]{16})/[0-9a-f]{32}\Z").match


def is_entry(key: str) -> bool:
    """Tell whether a key is one of a cached function: such as `"module.function()/0123456789abcdef0123456789abcdef"`."""
    return _entry(key) is not None


@dataclass(frozen=True, eq=False)
class Place:
    """Where the values of cached functions are. Those that name the same URL with the same options share one.

    Attributes:
        near: Where values are read and written.
        far: The place itself.
        prefix: What all keys begin with.
        encode: Turns a value into bytes.
        decode: Turns bytes into a value.
        chain: What exceptions are stored with.
        bounded: What keeps the limit, where there is one.
        fixed: Values can only be added.
    """

    near: Backend
    far: Backend
    prefix: str
    encode: Callable[[Any, str], bytes]
    decode: Callable[[bytes, str], Any]
    chain: Chain
    bounded: Bounded | None = None
    fixed: bool = False


_shared: weakref.WeakValueDictionary[Any, Place] = weakref.WeakValueDictionary()


class Opening:
    """What opens a place, and has checked what can be checked without a request. May be pickled if the backends may.

    Args:
        where, codec, filters, trusted, max_bytes, max_items, local, recheck, on_evict, options: As of `perdure.cached`.

    Raises:
        UsageError, UsageTypeError, MissingExtraError: As `perdure.open`.
    """

    def __init__(
        self,
        where: Any,
        *,
        codec: str | Codec | None,
        filters: str | Filter | Iterable[str | Filter],
        trusted: bool,
        max_bytes: Size | None,
        max_items: int | None,
        local: Local | Iterable[Local] | None,
        recheck: Duration,
        on_evict: Callable[[str, int], object] | None,
        options: dict[str, Any],
    ) -> None:
        if not isinstance(trusted, bool):
            raise UsageTypeError(f"trusted is True or False, not {trusted!r:.60}")
        if on_evict is not None and not callable(on_evict):
            raise UsageTypeError(f"on_evict is a function of key and size, not {on_evict!r:.60}")
        if isinstance(where, Core):
            if codec is not None or filters or trusted or options:
                hint = "Give them to perdure.open, or give a URL."
                raise UsageError("a dict that is open takes no codec, filters or options", place=where.place, hint=hint)
            self._source: Core[Any] | Backend = where
        else:
            if not isinstance(filters, str) and isinstance(filters, Iterable):
                filters = tuple(filters)
            Chain(codec or "msgpack", filters, trusted=trusted)  # complains now, and not at the first call
            self._source = _backend(where, options)
        self._values: dict[str, Any] = {"codec": codec, "filters": filters, "trusted": trusted}
        self._tiers = _tiers(local)
        self._recheck = seconds(recheck, "recheck")
        if max_bytes is not None:
            max_bytes = size_in_bytes(max_bytes, "max_bytes")
        if max_items is not None and (not isinstance(max_items, int) or isinstance(max_items, bool) or max_items < 1):
            raise UsageError(f"max_items is a whole number, 1 or more, not {max_items!r:.60}")
        self._limits = max_bytes, max_items, on_evict
        self._about: Any = None
        if isinstance(where, (str, os.PathLike)) and self._source.place != "memory:" and not self._tiers:
            self._about = (self._source.place, codec, filters, trusted, self._limits, repr(options))

    def __call__(self) -> Place:
        """Open it, or take what others have opened that name the same. Raises as `perdure.open`."""
        try:
            known = _shared.get(self._about)
        except TypeError:  # an option that no table takes
            self._about = known = None
        if known is None:
            source = self._source
            opened = source if isinstance(source, Core) else open_dict(source, **self._values)
            known = _place_of(opened, self._limits, self._tiers, self._recheck)
            if self._about is not None:
                _shared[self._about] = known
        return known


def _place_of(d: Core[Any], limits: Any, tiers: list[Backend], recheck: float) -> Place:
    prefix = d._prefix  # noqa: SLF001
    far: Backend = d.backend
    bounded = None
    max_bytes, max_items, on_evict = limits
    if max_bytes is not None or max_items is not None:
        bounded = far = _bound(far, prefix, max_bytes, max_items, on_evict)
    near = _with_copies(far, tiers, recheck)
    errors = Chain("msgpack", d.chain.filters)
    return Place(near, far, prefix, d._spell, d._reader, errors, bounded, d.append_only)  # noqa: SLF001


def _backend(where: Any, options: dict[str, Any]) -> Backend:
    if isinstance(where, (str, os.PathLike)):
        if "sync" not in options and _has_sync(where):
            options = options | {"sync": "normal"}  # what a power cut takes is computed again
        return open_backend(where, **options)
    if callable(where) or isinstance(where, (classmethod, staticmethod)):
        raise UsageTypeError("cached needs a place", hint='Such as @perdure.cached("sqlite:///cache.db").')
    if isinstance(where, dict):
        hint = 'Write "memory:" for values in memory: they are kept as bytes, each who reads one gets an object of its own.'
        raise UsageTypeError("a built-in dict is no place for a cache", hint=hint)
    if not hasattr(where, "recorded"):
        hint = 'Such as "sqlite:///cache.db", a path, a backend, or what perdure.open returns.'
        raise UsageTypeError(f"a cache is in a place, and {where!r:.60} is none", hint=hint)
    if options:
        text = f"{', '.join(options)}: a backend that is open takes no options"
        raise UsageError(text, place=where.place, hint="Give them to the backend, or give a URL.")
    backend: Backend = where
    return backend


def _has_sync(where: str | os.PathLike[str]) -> bool:
    scheme, _, query = parse_url(where)
    return scheme in ("file", "sqlite") and not any(name == "sync" for name, _ in query)


def _bound(
    backend: Backend,
    prefix: str,
    max_bytes: Size | None,
    max_items: int | None,
    on_evict: Callable[[str, int], object] | None,
) -> Bounded:
    from ..wrappers.bounded import Bounded

    cut = len(prefix)

    def ours(key: str) -> bool:
        return key.startswith(prefix) and is_entry(key[cut:])

    return Bounded(backend, max_bytes=max_bytes, max_items=max_items, only=ours, on_evict=on_evict, uncounted=BARE)


def _tiers(local: Any) -> list[Backend]:
    if local is None:
        return []
    given: Any = local
    if isinstance(local, (str, os.PathLike)) or hasattr(local, "recorded"):
        given = [local]
    elif not isinstance(local, Iterable):
        raise _no_tier(local)
    tiers: list[Backend] = []
    for tier in given:
        if isinstance(tier, (str, os.PathLike)):
            backend = open_backend(tier, **({"sync": "normal"} if _has_sync(tier) else {}))
            tiers.append(_limited(backend) if backend.place.startswith("memory:") else backend)
        elif hasattr(tier, "recorded"):
            tiers.append(tier)
        else:
            raise _no_tier(tier)
    return tiers


def _no_tier(what: object) -> UsageTypeError:
    hint = 'Such as local="memory:", or several, the nearest first.'
    return UsageTypeError(f"a nearer place is a path, a URL or a backend, not {what!r:.60}", hint=hint)


def _limited(backend: Backend) -> Backend:
    from ..wrappers.bounded import Bounded

    return Bounded(backend, max_bytes=MEMORY)


def _with_copies(far: Backend, tiers: list[Backend], recheck: float) -> Backend:
    if not tiers:
        return far
    from ..wrappers.cached import Cached

    near = far
    for number, tier in reversed(list(enumerate(tiers))):
        # Only the nearest answers unasked, or what each of them may be late would add up.
        near = Cached(near, tier, recheck=0.0 if number else recheck, worth=_is_worth_a_copy)
    return near


def _is_worth_a_copy(data: bytes) -> bool:
    return not is_claim(data)
