"""Computing in a thread."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import Any

from .entries import Entries, Miss
from .failures import failure_in
from .flights import Attempt, Flight, Outcome, further_out, within
from .steps import Computed, Step, Steps, steps, withdraw

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
    flights, policy = entries.flights, entries.policy
    outside = further_out()
    needs = outside[-1].needs if outside else set()
    while True:
        attempt = Attempt()
        mine = Flight(attempt, policy)
        outcome: Outcome | None = None
        inside = None
        try:
            flight = flights.join(path, mine)
            late = flight.attempt.closed or flight.policy is not policy
            needs.add(flight.attempt)
            if flight is mine:
                inside = within.set((*outside, attempt))
                outcome = _take(steps(entries, path, miss, anew, attempt), factory)
        finally:
            if inside is not None:
                within.reset(inside)
            if attempt.token:
                withdraw(entries, path, attempt)  # something struck between two steps, such as Ctrl-C
            flights.leave(path, mine, outcome)
            attempt.over = True
            needs.discard(attempt)
        if outcome is not None:
            return entries.given(outcome)
        if outside and flight.attempt.leads_to(outside):
            needs.discard(flight.attempt)
            return factory()
        if flight.is_abandoned():
            withdraw(entries, path, flight.attempt)
            flights.leave(path, flight, None)
            flight.attempt.over = True
            continue
        if not anew and (meanwhile := entries.meanwhile(path)) is not None:
            needs.discard(flight.attempt)
            return entries.given(meanwhile)
        entries.counts.add("waits")
        landed = flight.wait(policy.wait)
        needs.discard(flight.attempt)
        if not landed:
            entries.counts.add("misses")
            return factory()
        if not (anew or late) and flight.outcome is not None:
            return own(entries, flight.outcome, path)
        miss = Miss.FAILED if miss is Miss.FAILED else Miss.MISS


def _take(todo: Steps[Outcome], factory: Callable[[], Any]) -> Outcome:
    try:
        step, what = next(todo)
        while True:
            result: Any
            try:
                if step is Step.CALL:
                    result = what()
                elif step is Step.COMPUTE:
                    try:  # here and not in a function of its own: those that call themselves would get less deep
                        result = Computed(factory())
                    except BaseException as error:
                        result = Computed(None, error)
                else:
                    result = sleep(what)  # type: ignore[func-returns-value]
            except BaseException as error:
                step, what = todo.throw(error)
            else:
                step, what = todo.send(result)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def own(entries: Entries, outcome: Outcome, path: str) -> Any:
    """What somebody else's computation has given, as an object of our own."""
    entries.counts.hit(len(outcome.data or b""), 0.0)
    if outcome.data is None:
        return entries.given(outcome)
    if not outcome.is_error:
        return entries.decode(outcome.data, path)
    raise failure_in(entries.errors_chain, outcome.data, path, entries.policy.errors) or outcome.value
