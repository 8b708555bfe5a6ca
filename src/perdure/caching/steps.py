"""How a value comes about: look, claim, compute, store; or wait for somebody else who does. One step after the other, whoever
takes them: a thread (`running`) or a task (`awaiting`).
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Generator
from enum import Enum
from functools import partial
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from ..codecs.entry import Entry, write_entry
from ..errors import (
    BackendError,
    CodecError,
    PolicyError,
    PreconditionError,
    UnknownOutcomeError,
)
from ..locks.clock import Watched
from ..protocol import ABSENT, NOT_KEPT, ETag
from .claim import Claim
from .entries import Entries, Found, Miss
from .failures import spell_failure
from .flights import Outcome
from .policy import Policy

__all__ = ["Computed", "Step", "Steps", "steps"]

T = TypeVar("T")

_log = logging.getLogger("perdure.caching")
_SHORTEST: Final = 0.001  # seconds between two looks at somebody else's claim
_LONGEST: Final = 1.0
_AT_MOST: Final = 10  # of our own leases a claim of others is believed to last


class Step(Enum):
    """What whoever takes the steps has to do next."""

    CALL = "make a call that may take as long as a request"
    COMPUTE = "run the function"
    PAUSE = "wait for so many seconds"


Steps: TypeAlias = Generator[tuple[Step, Any], Any, T]


class _Unusable(Exception):
    """The place failed before anything was computed."""


class Computed(NamedTuple):
    """What the function did. A generator can neither be thrown a StopIteration nor raise one, so errors are handed around."""

    value: Any
    error: BaseException | None = None

    def outcome(self) -> Outcome:
        return Outcome(self.value) if self.error is None else Outcome(self.error, is_error=True, failed=True)


def _call(entries: Entries, function: Callable[[], T]) -> Steps[T]:
    try:
        return (yield Step.CALL, function)  # type: ignore[no-any-return]
    except BackendError as error:
        entries.complain(error)
        raise _Unusable from error


def steps(entries: Entries, path: str, miss: Miss, anew: bool) -> Steps[Outcome]:
    """From a key to what came out."""
    if miss is not Miss.FAILED and not entries.is_unreachable():
        try:
            return (yield from _find_or_compute(entries, path, miss, anew))
        except _Unusable:
            pass
    entries.counts.add("misses")
    computed: Computed = yield Step.COMPUTE, None
    return computed.outcome()


def _find_or_compute(entries: Entries, path: str, miss: Miss, anew: bool) -> Steps[Outcome]:
    early = miss is Miss.EARLY
    policy = entries.policy
    silence, patience = Watched(), Watched()
    found: Found | None = None
    pause = _SHORTEST
    waited = False
    while True:
        if found is None and miss is Miss.ABSENT:
            found = Found(ABSENT)  # as it was just now; whether it still is, the claim tells
        else:
            found = yield from _call(entries, partial(entries.look, path, found))
        claimed = found.entry.token if found.entry is not None else b""
        if not anew and (claimed or waited or not early):
            outcome = entries.answer(found, path)
            if outcome is not None:
                return outcome
        if claimed and policy.lock and found.entry is not None:
            # The clocks of others are not to be trusted: what counts is how long nothing has happened before our eyes.
            lease = _believable(found.entry.lease, policy)
            silent, renewed = silence.seen(str(found.etag)), patience.seen(claimed.hex())
            if silent < lease and renewed < policy.wait:
                if not waited:
                    entries.counts.add("waits")
                waited = True
                yield Step.PAUSE, min(pause * random.uniform(0.5, 1.0), max(lease - silent, _SHORTEST))
                pause = min(pause * 1.5, _LONGEST, max(lease / 4, _SHORTEST))
                continue
            why = "was silent for its lease" if silent >= lease else "takes longer than is waited for"
            _log.info("%s in %s: who claimed it %s, so it is computed here", path, entries.far.place, why)
        if not policy.lock:
            return (yield from _compute(entries, path, found, None))
        claim = yield from _claim(entries, path, found, anew or early)
        if claim is not None:
            return (yield from _compute(entries, path, found, None if claim is _NO_CLAIM else claim))
        early = False  # somebody else was first, and we take what comes
        pause = _SHORTEST


def _believable(lease: float, policy: Policy) -> float:
    """How long a claim is waited for that is not renewed. It says so itself, but anybody may have written it."""
    most = _AT_MOST * policy.lease
    return lease if 0 <= lease <= most else most


_NO_CLAIM: Any = object()  # the place keeps nothing, so there is nothing to claim


def _claim(entries: Entries, path: str, found: Found, keep: bool) -> Steps[Claim | None]:
    """Claim a key, None where somebody else was first. What others may be answered meanwhile stays in the claim."""
    if found.etag is None:
        # Damaged so that it has no version to swap. Whatever it was, it is of no use.
        yield from _call(entries, partial(entries.far.delete, path))
        found = Found(ABSENT)
    old = found.entry
    keep = old is not None and old.value is not None and bool(keep or entries.policy.stale)
    token = os.urandom(12)
    entry = Entry(None, lease=entries.policy.lease, token=token)
    if keep and old is not None:
        entry = old._replace(stored=found.stored, lease=entries.policy.lease, token=token)
    try:
        etag: ETag = yield Step.CALL, partial(entries.far.put, path, write_entry(entry), if_match=found.etag)
    except PreconditionError:
        return None
    except UnknownOutcomeError:
        again = yield from _call(entries, partial(entries.look, path))
        if again.entry is None or again.entry.token != token or not isinstance(again.etag, str):
            return None
        etag = ETag(again.etag)
    except BackendError as error:
        entries.complain(error)
        raise _Unusable from error
    return _NO_CLAIM if etag == NOT_KEPT else Claim(entries.far, path, entry, etag)


def _compute(entries: Entries, path: str, found: Found, claim: Claim | None) -> Steps[Outcome]:
    entries.counts.add("misses")
    began = perf_counter()
    computed: Computed = yield Step.COMPUTE, None
    cost = perf_counter() - began
    value, error = computed
    if error is not None:
        if not isinstance(error, entries.policy.errors):
            yield from _take_back(entries, path, found, claim)
            return computed.outcome()
        frame = spell_failure(entries.errors_chain, error, path)
        yield from _store(entries, path, found, claim, Entry(frame, is_error=True, cost=cost), plain=False)
        return Outcome(error, frame, is_error=True)
    keep: object = True
    try:
        keep = entries.policy.keep_if is None or entries.policy.keep_if(value)
        frame = entries.encode(value, path)
    except CodecError as trouble:
        yield from _take_back(entries, path, found, claim)
        if not keep:
            return Outcome(value)
        trouble.at(place=entries.far.place)
        trouble.hint = (
            f"{trouble.hint or ''} This is what {entries.name} returned. With codec='pkl' nearly everything can be stored, and "
            "with filters=perdure.Signed(key) that is safe in a shared place."
        ).strip()
        raise
    except BaseException:
        yield from _take_back(entries, path, found, claim)
        raise
    if keep:
        yield from _store(entries, path, found, claim, Entry(frame, cost=cost), plain=entries.policy.plain)
    else:
        yield from _take_back(entries, path, found, claim)
    return Outcome(value, frame)


def _store(entries: Entries, path: str, found: Found, claim: Claim | None, entry: Entry, *, plain: bool) -> Steps[None]:
    """Put what was computed in its place, unless that is not ours any more."""
    assert entry.value is not None
    data = entry.value if plain else write_entry(entry)
    store: Callable[[], object]
    if claim is not None:
        store = partial(claim.end, entries.near, data)
    else:
        store = partial(entries.near.put, path, data, if_match=found.etag)
    try:
        yield Step.CALL, store
    except PreconditionError:
        entries.counts.add("lost")
    except PolicyError as error:  # larger than the limit
        entries.counts.add("too_large")
        _log.info("%s is not stored: %s", path, error)
        yield from _take_back(entries, path, found, claim)
    except BackendError as error:
        entries.complain(error)
    else:
        entries.counts.add("bytes_written", len(data))


def _take_back(entries: Entries, path: str, found: Found, claim: Claim | None) -> Steps[None]:
    """Leave the key as it was before the claim."""
    if claim is None:
        return
    kept = claim.kept
    data = None if kept is None else write_entry(kept._replace(stored=found.stored))
    yield Step.CALL, partial(claim.give_up, entries.near, data)
