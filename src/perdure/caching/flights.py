"""One computation for each key in a process: who comes second waits for who came first, in threads and event loops alike."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from .claim import Claim
    from .policy import Policy

__all__ = ["Attempt", "Flight", "Flights", "Outcome", "further_out", "within"]

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


class Attempt:
    """Somebody's try to compute a key.

    Attributes:
        token: Of the claim that there is, or may be; empty where there is none. It has to be withdrawn when the try is not
            taken to its end.
        claim: The claim.
        closed: What came out is being stored. It may have been invalidated again by the time others of this process hear of
            it, so who comes now has to look at the place then.
        void: The key was invalidated in this process, so nothing is to be stored. Where there is a claim, that tells as well.
        over: It has ended.
        needs: Others that it cannot end before.
    """

    def __init__(self) -> None:
        self.token = b""
        self.claim: Claim | None = None
        self.closed = False
        self.void = False
        self.over = False
        self.needs: set[Attempt] = set()

    def leads_to(self, others: tuple[Attempt, ...]) -> bool:
        """Whether one of the others has to end before this can: then these must not wait for this."""
        met: set[Attempt] = set()
        todo: list[Attempt] = [self]
        while todo:
            each = todo.pop()
            if each.over or each in met:
                continue
            if each in others:
                return True
            met.add(each)
            todo += tuple(each.needs)
        return False


def further_out() -> tuple[Attempt, ...]:
    """What is being computed around this, the innermost last. Tasks inherit it, also from what has ended meanwhile."""
    return tuple(attempt for attempt in within.get() if not attempt.over)


within: Final[ContextVar[tuple[Attempt, ...]]] = ContextVar("perdure.caching.within", default=())
"""See `further_out`."""


class Flight:
    """Somebody computing, and who waits for it.

    Args:
        attempt: What is done.
        policy: When a value is good to who does it; others may be of another mind.
        loop: Where it is done, if a task does it.
    """

    def __init__(self, attempt: Attempt, policy: Policy, loop: AbstractEventLoop | None = None) -> None:
        self.attempt = attempt
        self.policy = policy
        self.outcome: Outcome | None = None
        self.landed = False
        # Held weakly: a loop that is forgotten takes its tasks with it, and their flights end.
        self._loop = None if loop is None else weakref.ref(loop)
        self._waiting: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def is_abandoned(self) -> bool:
        """Whether the task will never go on, as its event loop was closed. Somebody may hold on to it all the same."""
        loop = None if self._loop is None else self._loop()
        return loop is not None and loop.is_closed()

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

    def void(self, path: str) -> None:
        """Let nobody have what is being computed for this key, besides those who wait for it already."""
        flight = self._flights.get(path)
        if flight is not None:
            flight.attempt.void = flight.attempt.closed = True

    def void_all(self, start: str) -> None:
        """The same for all keys that begin so."""
        for path in list(self._flights):
            if path.startswith(start):
                self.void(path)

    def leave(self, path: str, mine: Flight, outcome: Outcome | None) -> None:
        """End a flight, if it has begun: the next who asks begins a new one, and who waits does so where this one failed."""
        if self._flights.get(path) is mine:
            del self._flights[path]
            mine.land(None if outcome is None or outcome.failed else outcome)
