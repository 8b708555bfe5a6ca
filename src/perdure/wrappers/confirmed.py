"""What the remote said about keys a moment ago, so that it need not be asked again at once.

What is kept must never take this process back in time: a slow answer that was true before another request began, or before a
write of ours, must not outlive either. So requests and what they told are numbered in one sequence. Whoever is about to ask
draws a number, and what he is told is kept only if nothing else about that key was kept or forgotten since. What is kept thus
comes from requests of which each began after the one before it had ended.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import count
from math import inf
from typing import Final, TypeAlias

from ..protocol import NOT_KEPT, ETag, check_key

# Where there is one that goes on while the machine sleeps: an hour's sleep is not to make an hour of "60 s".
now: Final = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic

REMEMBERED: Final = 100_000

Begun: TypeAlias = tuple[int, float]
"""The number and the time of a request, from before it was sent."""

_NOTHING: Final = NOT_KEPT  # the ETag of no copy


class Confirmed:
    """Which version of a key the remote confirmed, or that it is absent, and until when that is good. Safe for threads.

    Args:
        recheck: Seconds that a version is good for.
        absent_for: Seconds that an absence is good for. Where both are 0, nothing is kept.
        limit: How many keys are remembered; beyond that, the half that was heard of longest ago is forgotten.
    """

    def __init__(self, recheck: float = 0.0, absent_for: float = 0.0, *, limit: int = REMEMBERED) -> None:
        self.on = recheck > 0 or absent_for > 0
        self._recheck = recheck
        self._absent_for = absent_for
        self._limit = limit
        # ETag (`None`: absent), good until when, number. A forgotten key stays as well, for its number.
        self._said: dict[str, tuple[ETag | None, float, int]] = {}
        self._numbers = count(1)
        self._floor = 0  # the number of every key that is not remembered
        self._lock = threading.RLock()  # re-entrant for signal handlers and finalizers

    def has(self, key: str, etag: ETag | None) -> bool:
        """Tell whether `etag` (`None`: that there is nothing) was confirmed so lately that nobody need be asked."""
        said = self._said.get(key)
        return said is not None and said[0] == etag and now() < said[1]

    def begin(self, *written: str) -> Begun:
        """To be called before a request is sent. Keys that it may change are forgotten, whatever becomes of it."""
        if not self.on:
            return 0, 0.0
        self.forget(*map(check_key, written))
        return next(self._numbers), now()

    def settle(self, begun: Begun, key: str, etag: ETag | None) -> None:
        """Keep what a request told: the ETag of a key, or `None` where it is absent."""
        if self.on:
            number, since = begun
            self._keep(number, key, etag, since + (self._absent_for if etag is None else self._recheck))

    def forget(self, *keys: str) -> None:
        """Let keys be asked about, whatever was said before and whatever answers are on their way."""
        if self.on:
            for key in keys:
                self._keep(0, key, _NOTHING, -inf)

    def close(self) -> None:
        """Have nothing to say any more."""
        self.on = False
        self._said = {}

    def after_fork(self) -> None:
        """Begin anew in a child. Numbers go on, for a request in whose middle it was forked."""
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._floor = next(self._numbers)
        self._said = {}

    def _keep(self, number: int, key: str, etag: ETag | None, until: float) -> None:
        latest = next(self._numbers)
        told, doubt = (etag, until, latest), (_NOTHING, -inf, latest)
        said, lock = self._said, self._lock
        # No `with`: from Python 3.14 on Ctrl-C can strike on entering it. And no call between a look and the change that
        # depends on it: after calls come signal handlers, which may write.
        try:
            lock.acquire()
            if key in said:
                if number > said[key][2]:
                    said[key] = told
                elif etag == _NOTHING or said[key][0] != etag:
                    said[key] = doubt  # which of two that overlapped is the newer one, nobody can tell
            else:
                said[key] = told if number > self._floor else doubt
            if len(said) > self._limit:
                self._halve()
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # Ctrl-C struck before it was acquired

    def _halve(self) -> None:
        self._floor = next(self._numbers)
        there = self._said.copy()  # a single step; finalizers may come in between those of a loop
        middle = sorted(said[2] for said in there.values())[len(there) // 2]
        for key, said in there.items():
            if said[2] <= middle:
                self._said.pop(key, None)
