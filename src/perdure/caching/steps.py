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
    PerdureError,
    PolicyError,
    PreconditionError,
    UnknownOutcomeError,
)
from ..locks.clock import Watched
from ..protocol import ABSENT, NOT_KEPT, ETag
from .claim import Claim
from .entries import Entries, Found, Miss
from .failures import spell_failure
from .flights import Attempt, Outcome, further_out

__all__ = ["Computed", "Step", "Steps", "steps", "withdraw"]

T = TypeVar("T")

_log = logging.getLogger("perdure.caching")
_SHORTEST: Final = 0.001  # seconds between two looks at somebody else's claim
_LONGEST: Final = 1.0


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


def withdraw(entries: Entries, path: str, attempt: Attempt) -> None:
    """Remove the claim that a computation left behind which was struck between two steps. Trouble is logged."""
    if attempt.claim is not None:
        attempt.claim.abandon()
    for _ in range(2):  # a renewal may have been on its way
        try:
            found = entries.look(path)
            if found.entry is None or found.entry.token != attempt.token or not isinstance(found.etag, str):
                return
            if found.entry.value is None:
                entries.near.delete(path, if_match=found.etag)
            else:
                back = found.entry._replace(stored=found.stored, lease=0.0, token=b"", renewals=0)
                entries.near.put(path, write_entry(back), if_match=found.etag)
            return
        except PreconditionError:
            continue
        except PerdureError as error:
            _log.warning("%s: the claim of it stays for its lease: %s", path, error)
            return


def _call(entries: Entries, function: Callable[[], T]) -> Steps[T]:
    try:
        return (yield Step.CALL, function)  # type: ignore[no-any-return]
    except BackendError as error:
        entries.complain(error)
        raise _Unusable from error


def steps(entries: Entries, path: str, miss: Miss, anew: bool, attempt: Attempt) -> Steps[Outcome]:
    """From a key to what came out."""
    if miss is not Miss.FAILED and not entries.is_unreachable():
        try:
            return (yield from _find_or_compute(entries, path, miss, anew, attempt))
        except _Unusable:
            pass
    entries.counts.add("misses")
    computed: Computed = yield Step.COMPUTE, None
    return computed.outcome()


def _find_or_compute(entries: Entries, path: str, miss: Miss, anew: bool, attempt: Attempt) -> Steps[Outcome]:
    early = miss is Miss.EARLY
    policy = entries.policy
    patience = Watched()
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
        if claimed and any(outer.token == claimed for outer in further_out()):
            # By whoever waits for us, through another function or with other options.
            entries.counts.add("misses")
            computed: Computed = yield Step.COMPUTE, None
            return computed.outcome()._replace(failed=True)
        if claimed and policy.lock and found.entry is not None:
            # The clocks of others are not to be trusted: what counts is how long nothing has happened before our eyes.
            lease = policy.believable(found.entry.lease)
            silent, renewed = entries.silence(path, found), patience.seen(claimed.hex())
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
            return (yield from _compute(entries, path, found, None, attempt))
        claim = yield from _claim(entries, path, found, anew or early, attempt)
        if claim is not None:
            mine = None if claim is _NO_CLAIM else claim
            outcome = yield from _compute(entries, path, found, mine, attempt)
            attempt.token, attempt.claim = b"", None
            return outcome
        early = False  # somebody else was first, and we take what comes
        pause = _SHORTEST


_NO_CLAIM: Any = object()  # the place keeps nothing, so there is nothing to claim


def _claim(entries: Entries, path: str, found: Found, keep: bool, attempt: Attempt) -> Steps[Claim | None]:
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
        entry = old._replace(stored=found.stored, lease=entries.policy.lease, token=token, renewals=0)
    attempt.token = token
    try:
        etag: ETag = yield Step.CALL, partial(entries.far.put, path, write_entry(entry), if_match=found.etag)
    except PreconditionError:
        attempt.token = b""
        return None
    except UnknownOutcomeError:
        again = yield from _call(entries, partial(entries.look, path))
        if again.entry is None or again.entry.token != token or not isinstance(again.etag, str):
            attempt.token = b""
            return None
        etag = ETag(again.etag)
    except BackendError as error:
        attempt.token = b""
        entries.complain(error)
        raise _Unusable from error
    if etag == NOT_KEPT:
        attempt.token = b""
        no_claim: Claim = _NO_CLAIM
        return no_claim
    attempt.claim = Claim(entries.far, path, entry, etag)
    return attempt.claim


def _compute(entries: Entries, path: str, found: Found, claim: Claim | None, attempt: Attempt) -> Steps[Outcome]:
    entries.counts.add("misses")
    began = perf_counter()
    computed: Computed = yield Step.COMPUTE, None
    cost = perf_counter() - began
    attempt.closed = True
    value, error = computed
    if error is not None:
        if not isinstance(error, entries.policy.errors):
            yield from _take_back(entries, path, found, claim)
            return computed.outcome()
        frame = spell_failure(entries.errors_chain, error, path)
        if frame is None:  # it could not be raised again as it is
            yield from _take_back(entries, path, found, claim)
            return computed.outcome()
        entry = Entry(frame, is_error=True, cost=cost)
        current = yield from _store(entries, path, found, claim, entry, attempt, plain=False)
        return Outcome(error, frame, is_error=True, failed=not current)
    keep: object = True
    try:
        keep = entries.policy.keep_if is None or entries.policy.keep_if(value)
        frame = entries.encode(value, path)
    except CodecError as trouble:
        current = yield from _take_back(entries, path, found, claim)
        if not keep:
            return Outcome(value, failed=not current)
        trouble.at(place=entries.far.place)
        advice = trouble.hint or ""
        if "not even with codec" not in advice:
            advice += (
                " With codec='pkl' nearly everything can be stored, and with filters=perdure.Signed(key) that is safe in a "
            )
            advice += "shared place."
        trouble.hint = f"This is what {entries.name} returned. {advice.strip()}"
        raise
    except BaseException:
        yield from _take_back(entries, path, found, claim)
        raise
    if keep:
        entry = Entry(frame, cost=cost)
        current = yield from _store(entries, path, found, claim, entry, attempt, plain=entries.policy.plain)
    else:
        current = yield from _take_back(entries, path, found, claim)
    return Outcome(value, frame, failed=not current)


def _store(
    entries: Entries, path: str, found: Found, claim: Claim | None, entry: Entry, attempt: Attempt, *, plain: bool
) -> Steps[bool]:
    """Put what was computed in its place; False where that is not ours any more."""
    assert entry.value is not None
    data = entry.value if plain else write_entry(entry)
    store: Callable[[], object]
    if claim is not None:
        store = partial(claim.end, entries.near, data)
    elif attempt.void:  # without a claim the place cannot tell
        entries.counts.add("lost")
        return False
    else:
        store = partial(entries.near.put, path, data, if_match=found.etag)
    try:
        etag = yield Step.CALL, store
        if claim is None and attempt.void:  # by now
            yield Step.CALL, partial(entries.near.delete, path, if_match=etag)
            entries.counts.add("lost")
            return False
    except PreconditionError:
        entries.counts.add("lost")
        return False
    except PolicyError as error:  # larger than the limit
        entries.counts.add("too_large")
        _log.info("%s is not stored: %s", path, error)
        return (yield from _take_back(entries, path, found, claim))
    except BackendError as error:
        if not isinstance(error, UnknownOutcomeError):  # a full disk, say, where others need not wait for the lease to end
            yield from _take_back(entries, path, found, claim)
        entries.complain(error)
    else:
        entries.counts.add("bytes_written", len(data))
    return True


def _take_back(entries: Entries, path: str, found: Found, claim: Claim | None) -> Steps[bool]:
    """Leave the key as it was before the claim; False where it is not ours any more."""
    if claim is None:
        return True
    kept = claim.kept
    data = None if kept is None else write_entry(kept._replace(stored=found.stored))
    was_ours: bool = yield Step.CALL, partial(claim.give_up, entries.near, data)
    return was_ours
