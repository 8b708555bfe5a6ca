"""How much more may be written to a bounded place, and what is evicted for it. `bounded.py` says how the limit holds."""

from __future__ import annotations

import logging
import math
import threading
from _thread import get_ident
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Final, NamedTuple

from ..errors import CodecError, NotFoundError, PreconditionError
from ..protocol import ABSENT, Backend, Condition

__all__ = ["Room", "require"]

_BATCH: Final = 500  # values evicted by one call

_log = logging.getLogger("perdure.wrappers")


class _Old(NamedTuple):
    """What may be evicted."""

    used: float
    key: str
    size: int


class _Limit:
    """One of the two.

    Args:
        limit: Bytes or items; infinite where there is none.

    Attributes:
        limit: As given.
        top: How much of it there may be after a look, with what is about to be written.
        share: How much of that may be written until the next look.
    """

    __slots__ = ("limit", "share", "top")

    def __init__(self, limit: int | None) -> None:
        self.limit = math.inf if limit is None else limit
        self.top = math.inf if limit is None else limit - limit * 3 // 100
        self.share = math.inf if limit is None else limit // 100

    def wanted(self, coming: int) -> int:
        """How much of what is old to remember in a look; it is mostly more than has to be evicted."""
        return 0 if math.isinf(self.limit) else 4 * int(self.share) + coming + 1


class Room:
    """The room of one `Bounded` in a place. All threads may use it at once; `make` and `evict` only one of them at a time.

    Args:
        backend: The place.
        max_bytes: The limit in bytes, if there is one.
        max_items: The limit in values, if there is one.
        only: Tells whether a key counts; `None`: all do.
        on_evict: Told key and size of what was evicted.
        uncounted: The size of values that do not count.

    Attributes:
        flying: What was given to each thread, bytes and items, and may not be written yet. Each removes its own.
        evicted: How many values were evicted.
        evicted_bytes: How many bytes they had.
    """

    def __init__(
        self,
        backend: Backend,
        max_bytes: int | None,
        max_items: int | None,
        only: Callable[[str], bool] | None,
        on_evict: Callable[[str, int], object] | None,
        uncounted: int | None = None,
    ) -> None:
        self._backend = backend
        self._only = only
        self._uncounted = uncounted
        self._on_evict = on_evict
        self._bytes, self._items = _Limit(max_bytes), _Limit(max_items)
        self._lock = threading.RLock()  # re-entrant for signal handlers and finalizers
        # How much was given to writes, ever, and how much may be until the next look.
        self._given_bytes = self._given_items = 0
        self._until_bytes = self._until_items = -1.0
        self.flying: dict[int, tuple[int, int]] = {}
        self.evicted = 0
        self.evicted_bytes = 0

    @property
    def halves(self) -> tuple[float, float]:
        """How many bytes, and how many values, are half of what there may be."""
        return self._bytes.top / 2, self._items.top / 2

    def give(self, size: int, items: int) -> bool:
        """Give so much of our share to a write of this thread, if it is left; negative numbers are given back."""
        lock = self._lock
        try:  # no `with`: from Python 3.14 on Ctrl-C can strike on entering it
            lock.acquire()
            if self._given_bytes + size > self._until_bytes or self._given_items + items > self._until_items:
                return False
            self._given_bytes += size
            self._given_items += items
            if items > 0:
                self.flying[get_ident()] = size, items
            return True
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # Ctrl-C struck before it was acquired

    def _landed(self) -> tuple[int, int]:
        """How many bytes and items were given to writes that have ended by now, so that a look sees them."""
        lock = self._lock
        try:
            lock.acquire()
            flying = self.flying.copy().values()
            return self._given_bytes - sum(size for size, _ in flying), self._given_items - sum(items for _, items in flying)
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass

    def make(self, writing: Mapping[str, int], used: Mapping[str, float], holds: Callable[[], object] | None = None) -> None:
        """Make room for a write, and for a share to be given to others.

        Args:
            writing: The size of each value that the caller is about to write. What is there under these keys is not evicted.
            used: When values were read, as far as the place was not told.
            holds: Called before anything is evicted; nothing is when it raises.
        """
        landed_bytes, landed_items = self._landed()
        size, items = sum(writing.values()), len(writing)
        share_bytes, share_items = self._bytes.share, self._items.share
        free_bytes, free_items = self._bytes.top - size, self._items.top - items
        # A share more, so that not every look has to evict.
        left = self._evict(
            (free_bytes - share_bytes, free_items - share_items), (share_bytes, share_items), writing, used, holds
        )
        # Less than a share beside what is larger than all that there may be.
        self._until_bytes = landed_bytes + max(min(share_bytes, free_bytes - left[0]), 0)
        self._until_items = landed_items + max(min(share_items, free_items - left[1]), 0)

    def prune(self, used: Mapping[str, float]) -> None:
        """Evict what is more than the limits."""
        self._evict((self._bytes.limit, self._items.limit), (0, 0), {}, used)

    def _evict(
        self,
        goals: tuple[float, float],
        more: tuple[float, float],
        writing: Mapping[str, int],
        used: Mapping[str, float],
        holds: Callable[[], object] | None = None,
    ) -> tuple[int, int]:
        """Where there are more bytes or items than the goals, evict those and some more; return how many are left.

        What is under the keys that are about to be written is left alone and not counted.
        """
        wanted = [self._bytes.wanted(sum(writing.values())), self._items.wanted(len(writing))]
        while True:
            size, items, oldest = self._look(wanted[0], wanted[1], writing)
            if size <= goals[0] and items <= goals[1]:
                return size, items
            excess_bytes = size - goals[0] + more[0] if size > goals[0] else 0
            excess_items = items - goals[1] + more[1] if items > goals[1] else 0
            # What was read and not told yet is the last to go.
            oldest = sorted(_Old(max(when, used.get(key, 0.0)), key, length) for when, key, length in oldest)
            chosen: list[_Old] = []
            chosen_bytes = 0
            for old in oldest:
                if chosen_bytes >= excess_bytes and len(chosen) >= excess_items:
                    break
                chosen.append(old)
                chosen_bytes += old.size
            if (chosen_bytes >= excess_bytes and len(chosen) >= excess_items) or len(oldest) == items:
                break
            wanted = [max(wanted[0], math.ceil(excess_bytes)), max(wanted[1], math.ceil(excess_items))]
        if chosen and holds is not None:
            holds()
        for start in range(0, len(chosen), _BATCH):
            self._remove(chosen[start : start + _BATCH])
        return size - chosen_bytes, items - len(chosen)

    def _look(self, wanted_bytes: int, wanted_items: int, writing: Mapping[str, int]) -> tuple[int, int, list[_Old]]:
        """Look at the whole place.

        Returns:
            How many bytes and items there are, those about to be written aside, and the least recently used of them, as many as
            have the wanted bytes and are the wanted items.
        """
        only, uncounted, total, items, held = self._only, self._uncounted, 0, 0, 0
        heap: list[tuple[float, str, int]] = []  # its first is the one that was used last
        for key, size, used in self._backend.uses():
            if size == uncounted or key in writing or (only is not None and not only(key)):
                continue
            total += size
            items += 1
            if held < wanted_bytes or len(heap) < wanted_items or used < -heap[0][0]:
                heappush(heap, (-used, key, size))
                held += size
                while len(heap) > wanted_items and held - heap[0][2] >= wanted_bytes:
                    held -= heappop(heap)[2]
        return total, items, [_Old(-used, key, size) for used, key, size in heap]

    def _remove(self, values: list[_Old]) -> None:
        self._backend.delete_many([old.key for old in values])
        self.evicted += len(values)
        self.evicted_bytes += sum(old.size for old in values)
        if self._on_evict is not None:
            for old in values:
                try:
                    self._on_evict(old.key, old.size)
                except Exception:
                    _log.exception("on_evict failed for %r of %s", old.key, self._backend.place)

    def after_fork(self) -> None:
        """In a child, which has none of the other threads."""
        self._lock = threading.RLock()
        self.flying = {}


def require(backend: Backend, key: str, condition: Condition) -> None:
    """Raise `PreconditionError` where a write under this condition would, so that nothing is evicted for it."""
    if condition is None:
        return
    try:
        there = backend.head(key).etag
    except NotFoundError:
        there = None
    except CodecError:
        return  # of a damaged record only the place itself can tell
    if condition is ABSENT and there is not None:
        raise PreconditionError("the key exists already", key=key, place=backend.place)
    if condition is not ABSENT and there != condition:
        text = "the value is absent, or another version by now"
        raise PreconditionError(text, key=key, place=backend.place, hint="Read it again.")
