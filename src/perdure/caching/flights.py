"""One computation for each key in a process: who comes second waits for who came first, in threads and event loops alike."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["Flight", "Flights", "Outcome"]

_all: weakref.WeakSet[Flights] = weakref.WeakSet()
_mine: ContextVar[frozenset[tuple[int, str]]] = ContextVar("perdure_flights", default=frozenset())


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
        failed: That is not a value of the cache, so somebody else may try.
    """

    value: Any
    data: bytes | None = None
    is_error: bool = False
    failed: bool = False


class Flight:
    """Somebody computing, and who waits for it."""

    def __init__(self) -> None:
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
    """The computations of this process that are on the way, by key."""

    def __init__(self) -> None:
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Forget all of them, and any lock that somebody holds."""
        self._lock = threading.RLock()
        self._flights: dict[str, Flight] = {}

    def join(self, path: str) -> tuple[Flight, bool]:
        """The flight of a key, and whether the caller is the one who computes."""
        with self._lock:
            flight = self._flights.get(path)
            if flight is not None:
                return flight, False
            flight = self._flights[path] = Flight()
            return flight, True

    def leave(self, path: str, flight: Flight, outcome: Outcome | None) -> None:
        """End a flight: the next who asks begins a new one, and at once where this one failed."""
        with self._lock:
            if self._flights.get(path) is flight:
                del self._flights[path]
        flight.land(None if outcome is None or outcome.failed else outcome)

    def is_mine(self, path: str) -> bool:
        """Tell whether the caller is, further up, computing this very key: it would wait for itself."""
        # A task that was started there and goes on when all is over, has this in its context still.
        return (id(self), path) in _mine.get() and path in self._flights

    def enter(self, path: str) -> Any:
        """Note that the caller is computing a key; returns what `exit` takes."""
        return _mine.set(_mine.get() | {(id(self), path)})

    def exit(self, token: Any) -> None:
        """Undo `enter`."""
        _mine.reset(token)
