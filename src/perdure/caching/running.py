"""Computing in a thread."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from time import sleep
from typing import Any

from .entries import Entries, Miss
from .flights import Flight, Outcome
from .steps import Attempt, Computed, Step, Steps, steps, withdraw

__all__ = ["own", "run"]


def run(entries: Entries, path: str, factory: Callable[[], Any], miss: Miss = Miss.MISS, *, anew: bool = False) -> Any:
    """Find or compute the value of a key in this thread.

    Args:
        entries: The cache.
        path: The key.
        factory: Computes the value.
        miss: What was found.
        anew: Compute it, whatever is there.
    """
    flights = entries.flights
    owner = get_ident()
    while True:
        mine = Flight(owner)
        outcome: Outcome | None = None
        attempt = Attempt(mine)
        try:
            flight = flights.join(path, mine)
            late = flight.closed
            if flight is mine:
                outcome = _take(steps(entries, path, miss, anew, attempt), factory)
        finally:
            if attempt.token:
                withdraw(entries, path, attempt)  # something struck between two steps, such as Ctrl-C
            flights.leave(path, mine, outcome)
        if outcome is not None:
            return entries.given(outcome)
        if flight.owner == owner:
            return factory()  # it calls itself: to wait for itself would be for ever
        if not anew and (meanwhile := entries.meanwhile(path)) is not None:
            return entries.given(meanwhile)
        entries.counts.add("waits")
        if not flight.wait(entries.policy.wait):
            entries.counts.add("misses")
            return factory()
        if not (anew or late) and flight.outcome is not None:
            return own(entries, flight.outcome, path)
        miss = Miss.FAILED if miss is Miss.FAILED else Miss.MISS


def _take(todo: Steps[Outcome], factory: Callable[[], Any]) -> Outcome:
    try:
        step, what = next(todo)
        while True:
            try:
                if step is Step.CALL:
                    result = what()
                elif step is Step.COMPUTE:
                    result = _compute(factory)
                else:
                    result = sleep(what)  # type: ignore[func-returns-value]
            except BaseException as error:
                step, what = todo.throw(error)
            else:
                step, what = todo.send(result)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def _compute(factory: Callable[[], Any]) -> Computed:
    try:
        return Computed(factory())
    except BaseException as error:
        return Computed(None, error)


def own(entries: Entries, outcome: Outcome, path: str) -> Any:
    """What somebody else's computation has given, as an object of our own."""
    entries.counts.hit(len(outcome.data or b""), 0.0)
    if outcome.data is None or outcome.is_error:
        return entries.given(outcome)
    return entries.decode(outcome.data, path)
