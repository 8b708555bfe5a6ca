"""The records by which the processes of a job agree on one snapshot; see `ranks.py` for what they mean."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final

from ..errors import IntegrityError, NotFoundError, PerdureError, PreconditionError, UnavailableError, UnknownOutcomeError
from ..protocol import ABSENT, Condition, ETag
from .manifest import Component, Part

if TYPE_CHECKING:
    from .place import Place

ONCE: Final = "Start each rank exactly once; where one was started anew in the middle of a save, start all anew."
"""The hint where two processes have one rank."""

_OUTCOMES = 8  # how many are told, for those that are slow to look
_ATTEMPTS = 20
_PAUSE = 0.02, 1.0  # seconds between two looks: at first, and in the end
_log = logging.getLogger("perdure.snapshots")


class Records:
    """JSON under keys, which several processes change by compare-and-swap."""

    def __init__(self, place: Place) -> None:
        self._backend, self._prefix = place.records()

    def read(self, name: str) -> tuple[dict[str, Any], Condition]:
        """A record and its version; an empty one where there is none that makes sense."""
        try:
            blob = self._backend.get(self._prefix + name)
        except NotFoundError:
            return {}, ABSENT
        except IntegrityError:
            return {}, None
        try:
            record = json.loads(blob.data)
        except (ValueError, RecursionError):
            return {}, blob.etag
        return record if isinstance(record, dict) else {}, blob.etag

    def swap(self, name: str, record: Mapping[str, object], seen: Condition) -> ETag | None:
        """Put a record in place of what was seen, and return its version; `None` where somebody has changed it meanwhile."""
        data = json.dumps(record).encode()
        try:
            return self._backend.put(self._prefix + name, data, if_match=seen)
        except PreconditionError:
            return None
        except UnknownOutcomeError:
            blob = self._backend.get(self._prefix + name)
            if blob.data != data:  # and nobody else writes the same
                raise
            return blob.etag


class Answer:
    """What one of the others says to a call."""

    def __init__(
        self, records: Records, name: str, draft: str, components: Mapping[str, Component], parts: Sequence[Part]
    ) -> None:
        self.id = draft
        self.token = self._tried = ""  # of the call that is answered
        self._records, self._name = records, name
        self._content = {
            "components": {name: {"kind": told.kind, "parts": told.parts, "of": told.of} for name, told in components.items()},
            "parts": {part.name: {"size": part.size, "chunks": part.chunks, "homes": part.homes} for part in parts},
        }

    def give(self, token: str, seen: Condition) -> bool:
        """Answer, unless somebody has changed what was seen."""
        self._tried = token  # before it is: where this raises, the answer may be there all the same
        if self._put(token, "open", seen, self._content):
            self.token = token
        self._tried = self.token
        return self.token == token

    def dispute(self, seen: Condition) -> None:
        """Write down that the process whose answer was seen is not the only one."""
        self._put(self.token, "disputed", seen)

    def withdraw(self) -> bool:
        """Take it back; `False` where rank 0 has taken it, or that cannot be told."""
        try:
            for _ in range(_ATTEMPTS if self._tried else 0):
                there, seen = self._records.read(self._name)
                if there.get("id") != self.id:
                    return there.get("token") == self._tried  # what was taken is not replaced by an answer to the same call
                if there.get("state") != "open":
                    return there.get("state") != "taken"
                if self._put(self._tried, "withdrawn", seen):
                    return True
        except PerdureError as error:
            _log.warning("what this process has answered to rank 0 could not be taken back: %s", error)
        return not self._tried

    def _put(self, token: str, state: str, seen: Condition, content: Mapping[str, object] | None = None) -> bool:
        record = {"token": token, "id": self.id, "process": _process(), "state": state, **(content or {})}
        return self._records.swap(self._name, record, seen) is not None


class Call:
    """What rank 0 asks of the others. A thread renews it until its outcome is told."""

    def __init__(self, records: Records, beat: float) -> None:
        self.token = os.urandom(16).hex()
        self.replaced_by = ""
        self._records, self._beat = records, beat
        self._ended = Event()
        self._thread = Thread(target=self._renew, name="perdure-ranks", daemon=True)

    def begin(self, content: Mapping[str, object]) -> None:
        """Tell it, in place of any other."""

        def instead(there: dict[str, Any]) -> dict[str, Any]:
            outcomes = outcomes_of(there)
            if "token" in there:
                outcomes.setdefault(str(there["token"]), {"lost": True})
            return {**content, "token": self.token, "process": _process(), "outcomes": outcomes}

        self._change(instead)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads: the interpreter ends, or a limit
            _log.warning("the other ranks wait for this one no longer than their own time: %s", error)

    def end(self, outcome: dict[str, Any]) -> None:
        """Tell the outcome, whatever is called now."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._change(lambda there: {**there, "outcomes": outcomes_of(there) | {self.token: outcome}})

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        for _ in range(_ATTEMPTS):
            there, seen = self._records.read("call")
            record = change(there)
            record["outcomes"] = dict(list(outcomes_of(record).items())[-_OUTCOMES:])
            if self._records.swap("call", record, seen) is not None:
                return
        raise UnavailableError("other processes change ranks/call all the time", hint=ONCE)

    def _renew(self) -> None:
        while not self._ended.wait(self._beat) and not self.replaced_by:
            try:
                self._change(self._again)
            except PerdureError as error:  # the next time, perhaps; without it the others give up in the end
                _log.info("the other ranks could not be told that rank 0 is alive: %s", error)

    def _again(self, there: dict[str, Any]) -> dict[str, Any]:
        if there.get("token", self.token) != self.token:
            self.replaced_by = str(there.get("process"))
            return there
        return {**there, "beat": os.urandom(4).hex()}


class Looks:
    """When to look at the records again, until the time is over."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.begin()

    def begin(self, more: float = 0.0) -> None:
        """Let the time begin anew, with some more seconds."""
        self._end = time.monotonic() + self._timeout + more

    def __iter__(self) -> Iterator[None]:
        pause, longest = _PAUSE
        while True:
            yield
            left = self._end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, longest)


def outcomes_of(call: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How the last saves ended, by token; anybody may have written it."""
    told = call.get("outcomes")
    items = told.items() if isinstance(told, dict) else ()
    return {token: outcome for token, outcome in items if isinstance(outcome, dict)}


def _process() -> str:
    """Which process this is, for people."""
    return f"process {os.getpid()} on {platform.node()}"
