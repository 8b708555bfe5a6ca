"""`f.cache`: what can be done with the values of a cached function besides calling it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import Any, Final

from ..codecs.entry import is_claim
from ..errors import BackendError
from .entries import PATIENCE, Entries, Miss, warn_without
from .keys.keying import Keys
from .opening import Place
from .policy import Policy
from .recording import Recorder
from .running import run
from .stats import Counts, Stats, Tier

__all__ = ["BoundCache", "Cache"]

_PAGE: Final = 1000  # keys removed in one call
_opening = threading.RLock()


def _after_fork() -> None:
    global _opening
    _opening = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Cache:
    """The values of one function. Arguments are those of a call: `f.cache.peek(1, b=2)` is about the value of `f(1, b=2)`.

    Args:
        function: What computes them.
        open_place: Opens where they are, at the first use.
        policy: When they are good.
        keys: How calls become keys.
        record_stats: Keep what is counted in the place as well.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        open_place: Callable[[], Place],
        policy: Policy,
        keys: Keys,
        *,
        record_stats: bool = True,
    ) -> None:
        self.function = function
        self._open_place = open_place
        self._policy = policy
        self._keys = keys
        self._record_stats = record_stats
        self._begin()

    def _begin(self) -> None:
        self._digest = self._keys.digest
        self._counts = Counts()
        self._entries: Entries | None = None
        self._recorder: Recorder | None = None
        self._place: Place | None = None
        self._start = ""
        self._nearest = ""
        self._asleep_until = -math.inf
        self._said = False

    # A function of a notebook goes to other processes as a whole, with its cache. What is open and what was counted stays here.

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("function", "_open_place", "_policy", "_keys", "_record_stats")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def name(self) -> str:
        """What all keys of this function begin with."""
        return self._keys.name

    @property
    def ignored(self) -> frozenset[str]:
        """The parameters and captured variables that do not count."""
        return self._keys.ignored

    @property
    def place(self) -> str:
        """Where the values are, as a URL without secrets."""
        return self.opened().far.place

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key of a call's value in its place, such as `"module.function()/0123456789abcdef0123456789abcdef"`.

        Raises:
            UsageTypeError: An argument cannot be told from others in all processes; the message says which, and what to do.
            TypeError: The function cannot be called so.
        """
        self.opened()
        return self._start + self._digest(args, kwargs)

    def peek(self, *args: Any, **kwargs: Any) -> Any:
        """The stored value if there is a good one, else None. Runs nothing, waits for nobody, counts nothing.

        Cost: one read. Raises as `key`, and `BackendError`.
        """
        value = self.opened().peek(self.key(*args, **kwargs))
        return None if isinstance(value, Miss) else value

    def contains(self, *args: Any, **kwargs: Any) -> bool:
        """Tell whether there is a good value. Cost: one read. Raises as `peek`."""
        return not isinstance(self.opened().peek(self.key(*args, **kwargs)), Miss)

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Forget the value of a call. Who is computing it just now, anywhere, gets its result and does not store it.

        With nearer places (`local`), other processes may answer their copy for up to `recheck`. Cost: one delete. Raises as
        `key`, and `BackendError`.
        """
        entries, key = self.opened(), self.key(*args, **kwargs)
        entries.flights.void(key)
        entries.near.delete(key)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the value of a call anew, store and return it. Others are answered what there was until then.

        Where somebody is computing it already, this waits for that one and computes then. Cost: as a miss. Raises as a call.
        """
        return run(self.opened(), self.key(*args, **kwargs), partial(self.function, *args, **kwargs), anew=True)

    def clear(self) -> int:
        """Forget all values of this function, in this version, and return how many there were.

        Cost: a listing, and a delete for each value or for a thousand, as the place can. Raises `BackendError`.
        """
        entries = self.opened()
        entries.flights.void_all(self._start)
        return _remove(entries, list(entries.far.keys(self._start)))

    def prune(self) -> int:
        """Remove the values of this function that have expired, and may not be answered any more; return how many.

        Cost: a listing, and deletes as `clear`. Raises `BackendError`.
        """
        entries = self.opened()
        now = time()
        last = now - self._policy.ttl - self._policy.stale
        old = {key: modified for key, modified in entries.far.times(self._start) if modified < last}
        # A claim is renewed for as long as somebody is at work; what is younger than a lease may be one.
        young = [key for key, modified in old.items() if modified >= now - self._policy.lease]
        claimed = {key for key, blob in entries.far.get_many(young).items() if is_claim(blob.data)}
        return _remove(entries, [key for key in old if key not in claimed])

    def stats(self) -> Stats:
        """What was counted in this process, exactly; `perdure cache URL` shows what all of them did."""
        bounded = None if self._place is None else self._place.bounded
        return self._counts.read(0 if bounded is None else bounded.evicted, self._tiers())

    def reset_stats(self) -> None:
        """Begin to count anew."""
        self._counts.reset()

    def write_stats(self) -> None:
        """Add what was counted to the records in the place now; this also happens once a minute and when the process ends."""
        if self._recorder is not None:
            self._recorder.write()

    def __repr__(self) -> str:
        where = f" in {self._place.far.place}" if self._place is not None else ""
        stats = self.stats()
        return f"<Cache of {self.name}{where}: {stats.hits} hits, {stats.misses} misses>"

    # What the function itself calls.

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a call, computed if need be."""
        entries = self._entries or self.try_to_open()
        if entries is None:
            return self.function(*args, **kwargs)
        path = self._start + self._digest(args, kwargs)
        value = entries.hit(path)
        if not isinstance(value, Miss):
            return value
        if self._recorder is not None:
            self._recorder.start()
        return run(entries, path, partial(self.function, *args, **kwargs), value)

    def try_to_open(self) -> Entries | None:
        """Open the place; None where it fails, and that is not to be raised."""
        if monotonic() < self._asleep_until:
            self._counts.add("misses")
            return None
        try:
            return self.opened()
        except BackendError as error:
            if self._policy.strict:
                raise
            self._asleep_until = monotonic() + PATIENCE
            self._counts.add("errors")
            self._counts.add("misses")
            if not self._said:
                self._said = True
                warn_without(self._label, error)
            return None

    @property
    def _label(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    def opened(self) -> Entries:
        entries = self._entries
        if entries is not None:
            return entries
        with _opening:
            if self._entries is None:
                place = self._open_place()
                self._start = f"{place.prefix}{self._keys.name}/"
                policy = self._policy._replace(lock=False) if place.fixed else self._policy
                made = Entries(
                    place.near, place.far, place.encode, place.decode, policy, self._counts, self._label, place.chain
                )
                self._place = place
                near: Any = place.near
                self._nearest = "" if near is place.far else near.local.place
                if self._record_stats and not place.far.place.startswith(("memory:", "null:")) and not place.fixed:
                    self._recorder = Recorder(place.far, place.prefix, self._keys.name, self._counts)
                self._entries = made
            return self._entries

    def _tiers(self) -> tuple[Tier, ...]:
        tiers = []
        near: Any = None if self._place is None else self._place.near
        while near is not None and near is not self._place.far:  # type: ignore[union-attr]
            tiers.append(Tier(near.local.place, near.hits, near.misses, near.troubles))
            near = near.remote
        return tuple(tiers)


def _remove(entries: Entries, keys: list[str]) -> int:
    for start in range(0, len(keys), _PAGE):
        entries.near.delete_many(keys[start : start + _PAGE])
    return len(keys)


class BoundCache:
    """The cache of a method, for one instance: `obj.method.cache.peek(1)` is about `obj.method(1)`."""

    def __init__(self, cache: Cache, instance: object) -> None:
        self._cache = cache
        self._instance = instance

    def key(self, *args: Any, **kwargs: Any) -> str:
        """As `Cache.key`."""
        return self._cache.key(self._instance, *args, **kwargs)

    def peek(self, *args: Any, **kwargs: Any) -> Any:
        """As `Cache.peek`."""
        return self._cache.peek(self._instance, *args, **kwargs)

    def contains(self, *args: Any, **kwargs: Any) -> Any:
        """As `Cache.contains`."""
        return self._cache.contains(self._instance, *args, **kwargs)

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        """As `Cache.invalidate`."""
        done: Any = self._cache.invalidate
        return done(self._instance, *args, **kwargs)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """As `Cache.refresh`."""
        return self._cache.refresh(self._instance, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # What is about all instances: clear, prune, stats, name, place.
        return getattr(self._cache, name)

    def __repr__(self) -> str:
        return repr(self._cache)
