"""What a cache counts."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field, fields

__all__ = ["Counts", "Stats", "Tier"]


@dataclass(frozen=True)
class Tier:
    """What one place of a cache answered.

    Attributes:
        place: Where it is.
        hits: Values that were answered from there.
        misses: Values that had to be fetched from further away.
        troubles: Calls that the place failed.
    """

    place: str
    hits: int
    misses: int
    troubles: int


@dataclass(frozen=True)
class Stats:
    """What a cache has done in this process since it started, or since `reset`.

    Attributes:
        hits: Calls that were answered by a stored value.
        misses: Calls for which the function ran.
        stale: Hits whose value had expired, and which somebody else was computing anew (`stale_ok`).
        waits: Calls that waited for somebody else who was computing their value.
        errors: Stored values that could not be read, and calls that the place failed.
        lost: Computed values that were not stored, as the key was invalidated or taken over meanwhile.
        too_large: Computed values that were not stored, as they are larger than the limit.
        bytes_read: Bytes of the values that were answered.
        bytes_written: Bytes of the values that were stored.
        saved: Seconds that computing the values of the hits had taken when they were stored.
        evicted: Values that this process removed to keep the limit.
        tiers: The nearer places, nearest first.
    """

    hits: int = 0
    misses: int = 0
    stale: int = 0
    waits: int = 0
    errors: int = 0
    lost: int = 0
    too_large: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    saved: float = 0.0
    evicted: int = 0
    tiers: tuple[Tier, ...] = field(default=(), compare=False)

    @property
    def hit_rate(self) -> float:
        """Hits among all calls that were hit or miss, from 0 to 1; 0 where there were none."""
        return self.hits / (self.hits + self.misses) if self.hits or self.misses else 0.0


_counts: weakref.WeakSet[Counts] = weakref.WeakSet()


def _after_fork() -> None:
    for counts in list(_counts):
        counts.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_MOST = 4096  # hits that are noted before they are added up


class Counts:
    """The same while it is being counted. Exact also with threads; a forked child begins at nothing."""

    def __init__(self) -> None:
        self._numbers: dict[str, float]
        self._hits: deque[tuple[int, float]] = deque()
        self._note = self._hits.append  # a single step, so that a hit needs no lock
        self.renew()
        _counts.add(self)

    def renew(self) -> None:
        """Begin at nothing, with a lock that nobody holds."""
        self._lock = threading.RLock()  # re-entrant for signal handlers
        self._numbers = {item.name: item.default for item in fields(Stats) if item.name != "tiers"}  # type: ignore[misc]
        self._hits.clear()

    def hit(self, size: int, saved: float) -> None:
        """Count a hit: the size of its value in bytes, and the seconds that were saved."""
        self._note((size, saved))
        if len(self._hits) > _MOST:
            self._add_up()

    def _add_up(self) -> None:
        with self._lock:
            numbers = self._numbers
            try:
                while True:
                    size, saved = self._hits.popleft()
                    numbers["hits"] += 1
                    numbers["bytes_read"] += size
                    numbers["saved"] += saved
            except IndexError:
                pass  # that was the last one

    def add(self, name: str, amount: float = 1) -> None:
        """Count something else, by the name of its attribute in `Stats`."""
        with self._lock:
            self._numbers[name] += amount

    def read(self, evicted: int = 0, tiers: tuple[Tier, ...] = ()) -> Stats:
        """What was counted."""
        with self._lock:
            self._add_up()
            numbers = dict(self._numbers)
        whole = {name: number if name == "saved" else int(number) for name, number in numbers.items()}
        return Stats(**whole | {"evicted": evicted, "tiers": tiers})  # type: ignore[arg-type]

    def reset(self) -> None:
        """Begin at nothing."""
        with self._lock:
            self._hits.clear()
            for name in self._numbers:
                self._numbers[name] = 0
