"""Conditional writes that know whether they won, even when the answer got lost on the way.

S3 decides a conditional PUT atomically. But when its answer is lost, the same request sent again fails *because the first
one won*; and a middle box may send even a first attempt twice. So each write draws a token, and each object carries in
its metadata the tokens of the last 32 writers, newest first, each with a fingerprint of the ETag it swapped from:

    x-amz-meta-perdure-writers: <token>-<fingerprint>.<token>-<fingerprint>...

A writer takes the list over from the version it swaps from. After a failed condition we look (one HEAD):

* Our token is in the list: we won, even if others have written since.
* Another writer swapped from the version we wanted to swap from: we lost, for certain. An ETag is left only once -- unless
  somebody writes the very same bytes again later, in which case S3 gives the same ETag again; who must notice every
  write puts something unique into the value, here as everywhere.
* Neither, and no answer of ours was lost: we lost. With a lost answer nobody can tell, and `UnknownOutcomeError` says so.

A conditional delete swaps in a tombstone, so that the same rules hold for it: S3's own conditional DELETE leaves nothing
behind by which a lost answer could be told from a lost race, and not every server has it. A tombstone counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Mapping
from typing import NamedTuple

from perdure.errors import BackendError, PreconditionError, UnavailableError, UnknownOutcomeError
from perdure.protocol import ABSENT, Condition, ETag

from ._s3_answers import moment
from ._s3_client import Client, unknown_outcome

WRITERS = "x-amz-meta-perdure-writers"
DELETED = "x-amz-meta-perdure-deleted"
# A listing shows no metadata, so whatever has the size of a tombstone is looked at there: the size is an unusual one.
TOMBSTONE = b"perdure: this value was deleted; what you see is left to be swept away, and counts as absent.\n".ljust(1021, b".")

_ENTRY = 16 + 1 + 12 + 1
_LONGEST = 32 * _ENTRY - 1
_CREATED = "0" * 12
_OVERWRITTEN = "-" * 12
_is_list = re.compile(rf"[0-9a-f.-]{{0,{_LONGEST}}}\Z").match
_is_etag = re.compile(r'"[!#-~]{1,200}"\Z').match


class Sight(NamedTuple):
    """What HEAD shows of an object.

    Attributes:
        etag: Its version.
        writers: The tokens it carries; empty when written by other software.
        is_tombstone: It counts as absent.
        size: In bytes.
        modified: In seconds since the epoch.
    """

    etag: ETag
    writers: str
    is_tombstone: bool
    size: int
    modified: float


class Swapper:
    """Writes with a condition, or without one, to one bucket. Thread-safe.

    Args:
        client: Of the bucket.
        looks: How often to send and look until a key that changes all the time is given up.
    """

    def __init__(self, client: Client, looks: int = 20) -> None:
        self.unquoted = False  # whether the server compares ETags without their quotes only
        self._client = client
        self._looks = looks
        self._known: dict[tuple[str, ETag], str] = {}
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a child: renew the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def remember(self, name: str, etag: ETag, writers: str) -> None:
        """Keep in mind who wrote a version, for a swap from it. Bounded; what was forgotten costs certainty only."""
        with self._lock:
            self._known.pop((name, etag), None)
            if not writers:
                return
            if len(self._known) >= 2048:
                del self._known[next(iter(self._known))]
            self._known[name, etag] = writers

    def look(self, name: str, key: str, attempts: int | None = None, give_up: float | None = None) -> Sight | None:
        """HEAD: what is there now, tombstones included."""
        answer = self._client.send("HEAD", name, key=key, attempts=attempts, give_up=give_up)
        if answer.status == 404:
            return None
        return sight(answer.headers, answer.headers.get("content-length", "0"), key, self._client.place)

    def overwrite(self, name: str, key: str, body: bytes | memoryview) -> ETag:
        """Put without a condition. Sent again when the answer is lost, but not if a look shows that it was carried out:
        others may have swapped from our version by then, and to send it again would undo what they did.
        """
        token = os.urandom(8).hex()
        # No list is taken over: nobody can say what this write comes after.
        writers = f"{token}-{_OVERWRITTEN}"
        found: Sight | None = None

        def arrived(give_up: float) -> bool:
            nonlocal found
            try:
                seen = self.look(name, key, 1, give_up)
            except BackendError:
                return False  # the server has bad minutes: go on as if we had not looked
            found = seen if seen and _has(seen.writers, token) else None
            return found is not None

        try:
            answer = self._client.send(
                "PUT", name, headers={WRITERS: writers}, body=body, key=key, token=token, arrived=arrived
            )
            etag = etag_of(answer.headers)
            if answer.status != 200:
                raise BackendError(f"a plain PUT was answered {answer.status}", key=key, place=self._client.place)
            if etag is None:
                raise unknown_outcome("the answer has no ETag", key, self._client.place, token)
        except UnknownOutcomeError as error:
            found = found or self._look_again(name, key, error)
            if found and _has(found.writers, token):
                return self._found(name, found, token, body)
            raise
        self.remember(name, etag, writers)
        return etag

    def swap(self, name: str, key: str, body: bytes | memoryview, expected: Condition, *, delete: bool = False) -> ETag:
        """Put if the object is what `expected` says: an ETag, or `ABSENT`. With `delete`, put a tombstone.

        Raises:
            PreconditionError: It is not, and nothing was changed.
            UnknownOutcomeError, UnavailableError, BackendError: As `Client.send`.
        """
        if expected is not ABSENT and not is_etag(expected):
            raise lost("another version by now", key, self._client.place)  # no ETag of ours, so of no version
        token = os.urandom(8).hex()
        source = _CREATED if expected is ABSENT else _fingerprint(expected)
        known = "" if expected is ABSENT else self._known.get((name, ETag(str(expected))), "")
        condition, before = expected, known
        doubt, phantoms = False, 0
        for _ in range(self._looks):
            writers = f"{token}-{source}.{before}"[:_LONGEST].rstrip(".")
            headers = {WRITERS: writers}
            if delete:
                headers[DELETED] = "1"
            if condition is ABSENT:
                headers["if-none-match"] = "*"
            else:
                headers["if-match"] = self.spelled(condition)
            gave_up: UnknownOutcomeError | None = None
            try:
                answer = self._client.send("PUT", name, headers=headers, body=body, key=key, token=token)
            except UnknownOutcomeError as error:
                gave_up, doubt = error, True
            except BackendError as error:
                if doubt:  # from an earlier turn
                    raise unknown_outcome(error.problem, key, self._client.place, token) from error
                raise
            else:
                etag = etag_of(answer.headers)
                if answer.status == 200 and etag is not None:
                    self.remember(name, etag, writers)
                    return etag
                doubt = doubt or answer.doubt or answer.status == 200
            unseen = "it was refused, perhaps because it had been carried out before, and a look at it failed"
            seen = self._look_again(name, key, gave_up or unknown_outcome(unseen, key, self._client.place, token))
            if seen and _has(seen.writers, token):
                return self._found(name, seen, token, body)
            if expected is ABSENT and (seen is None or seen.is_tombstone) and not (gave_up or (doubt and seen is None)):
                # Gone in the meantime, or deleted: try to create it, in place of the tombstone where there is one.
                condition, before = (ABSENT, "") if seen is None else (seen.etag, seen.writers)
                phantoms = phantoms + 1 if seen is None else 0
                if phantoms > 5:
                    break
                continue
            if gave_up is None and seen and not seen.is_tombstone and seen.etag == condition:
                continue  # it is again, or still, what we want to swap from
            if doubt and not (expected is not ABSENT and seen and _left_by_another(seen.writers, source, known)):
                raise gave_up or unknown_outcome("an answer was lost, then others wrote", key, self._client.place, token)
            if seen is None or seen.is_tombstone:
                raise lost("absent", key, self._client.place)
            raise lost("there already" if expected is ABSENT else "another version by now", key, self._client.place)
        if doubt:
            raise unknown_outcome("an answer was lost, and the key changes all the time", key, self._client.place, token)
        if phantoms > 5:
            hint = "Perhaps other keys lie below it, for which SeaweedFS refuses to create it: use another name."
            raise UnavailableError(
                "the server says it is there, but shows nothing", key=key, place=self._client.place, hint=hint
            )
        raise UnavailableError("the key changes all the time", key=key, place=self._client.place, hint="Try again later.")

    def spelled(self, etag: object) -> str:
        """An ETag as this server wants it in a condition."""
        return str(etag).strip('"') if self.unquoted else str(etag)

    def _look_again(self, name: str, key: str, unknown: UnknownOutcomeError) -> Sight | None:
        try:
            return self.look(name, key)
        except BackendError as error:
            raise unknown from unknown.__cause__ or error

    def _found(self, name: str, seen: Sight, token: str, body: bytes | memoryview) -> ETag:
        if seen.writers.startswith(token):
            self.remember(name, seen.etag, seen.writers)
            return seen.etag
        # Others have swapped since, so our ETag is history. Say what it was, or at least something that nothing else has.
        return ETag(f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')


def sight(headers: Mapping[str, str], size: int | str, key: str, place: str) -> Sight:
    """Read the headers of an answer to GET or HEAD."""
    etag = etag_of(headers)
    if isinstance(size, str):
        if not (size.isdecimal() and len(size) < 20):
            raise BackendError(f"the server gives the size as {size!r:.40}", key=key, place=place, hint="Check endpoint_url.")
        size = int(size)
    if etag is None:
        hint = "This does not seem to be S3: check endpoint_url."
        raise BackendError("the server gives no ETag", key=key, place=place, hint=hint)
    writers = headers.get(WRITERS, "")
    if not _is_list(writers):
        writers = ""  # somebody else's idea of it, which must not get into our requests
    return Sight(etag, writers, DELETED in headers, size, moment(headers.get("last-modified", "")))


def etag_of(headers: Mapping[str, str]) -> ETag | None:
    """The ETag of an answer, always with quotes around it: servers differ."""
    text = headers.get("etag")
    return normal_etag(text) if text else None


def normal_etag(text: str) -> ETag:
    """An ETag as we hand it out: in quotes, not weak."""
    return ETag(f'"{text.removeprefix("W/").strip(chr(34))}"')


def is_etag(etag: object) -> bool:
    """Tell whether `etag` may be one of ours. Others equal no version, and could smuggle a line into a request."""
    return isinstance(etag, str) and _is_etag(etag) is not None


def lost(state: str, key: str, place: str) -> PreconditionError:
    """The error for a condition that does not hold."""
    return PreconditionError(f"the value is {state}", key=key, place=place, hint="Read it again.")


def _has(writers: str, token: str) -> bool:
    return any(entry.startswith(token) for entry in writers.split("."))


def _left_by_another(writers: str, source: str, known: str) -> bool:
    """Tell whether a writer swapped from the fingerprint `source` after the version that had the list `known`."""
    newest_known = known.partition(".")[0]
    for entry in writers.split("."):
        if newest_known and entry == newest_known:
            return False
        if entry.endswith(f"-{source}"):
            return True
    return False


def _fingerprint(etag: object) -> str:
    return hashlib.sha256(str(etag).encode()).hexdigest()[:12]
