"""One computation for each key in a process: who comes second waits for who came first, in threads and event loops alike."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Flight", "Flights", "Outcome"]

_all: weakref.WeakSet[Flights] = weakref.WeakSet()


def _after_fork() -> None:
    for flights in list(_all):
        flights.renew()  # who was on the way in the parent never arrives here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Outcome(NamedTuple):
    """What came out.

    Attributes:
        value: The value, or the exception.
        data: Its bytes, of which each who waited makes an object of its own; None where it has none.
        is_error: It is an exception.
        failed: That is not a value of the cache, or was invalidated meanwhile, so somebody else may try.
    """

    value: Any
    data: bytes | None = None
    is_error: bool = False
    failed: bool = False


class Flight:
    """Somebody computing, and who waits for it.

    Args:
        owner: Who computes: a thread or a task.

    Attributes:
        closed: What came out is being stored. It may have been invalidated again by the time it lands, so who comes now has
            to look at the place then.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.closed = False
        self.outcome: Outcome | None = None
        self.landed = False
        self._waiting: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def land(self, outcome: Outcome | None) -> None:
        """Tell everybody who waits; None says that it failed, and that somebody else may try."""
        with self._lock:
            self.outcome = outcome
            self.landed = True
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def enlist(self, wake: Callable[[], object]) -> bool:
        """Have something called when it lands; False where it has landed already."""
        with self._lock:
            if not self.landed:
                self._waiting.append(wake)
            return not self.landed

    def wait(self, patience: float) -> bool:
        """Wait until it has landed; False where that takes longer than `patience` seconds."""
        bell = threading.Event()
        if self.enlist(bell.set):
            bell.wait(min(patience, threading.TIMEOUT_MAX))
        return self.landed


class Flights:
    """The computations of this process that are on the way, by key.

    No lock is held here: to take a key, and to give it back, is a single step each, which Ctrl-C cannot leave half done.
    """

    def __init__(self) -> None:
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Forget all of them."""
        self._flights: dict[str, Flight] = {}

    def join(self, path: str, mine: Flight) -> Flight:
        """The flight of a key: `mine`, and then the caller has to compute, unless there is one."""
        return self._flights.setdefault(path, mine)

    def leave(self, path: str, mine: Flight, outcome: Outcome | None) -> None:
        """End a flight, if it has begun: the next who asks begins a new one, and who waits does so where this one failed."""
        if self._flights.get(path) is mine:
            del self._flights[path]
            mine.land(None if outcome is None or outcome.failed else outcome)
