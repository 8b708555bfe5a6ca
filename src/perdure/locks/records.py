"""What is stored: one small JSON object for each lock, semaphore or counter, and who holds it.

::

    locks()/nightly      {"perdure": "lock", "format": 1, "token": 7, "limit": 1, "holders": [{"nonce": "c0...", ...}], ...}
    counters()/visits    {"perdure": "counter", "format": 1, "value": 42, "changes": 40, "recent": ["8f...", ...], ...}

Every write carries a fresh nonce, so no two are equal: on S3 equal bytes would have equal ETags.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..codecs.entry import read_note, write_note
from ..errors import CodecError, IntegrityError, NotFoundError, UsageError, UsageTypeError
from ..keys import join_key
from ..protocol import ABSENT, NOT_KEPT, Backend, Condition, ETag
from ..registry import open_backend

_FORMAT = 1
_FAR = 1e11  # seconds: the year 5138, or a lease of 3000 years


class HasBackend(Protocol):
    """Such as a dict: the records are kept in its backend, among its keys."""

    @property
    def backend(self) -> Backend: ...


Where: TypeAlias = str | os.PathLike[str] | Backend | HasBackend
Name: TypeAlias = str | Sequence[str]


def _is_backend(where: object) -> bool:
    return Backend in type(where).__mro__  # `isinstance` refuses protocols


def nonce() -> str:
    """What nobody else writes, ever."""
    return os.urandom(16).hex()


class Records:
    """One record in one place.

    Attributes:
        backend: Where it is.
        key: The whole key there.
        owned: Whether the backend was opened here.
    """

    def __init__(self, kind: str, where: Where, name: Name) -> None:
        backend: Any = where
        prefix = ""
        self.owned = isinstance(where, (str, os.PathLike))
        if isinstance(where, (str, os.PathLike)):
            backend = open_backend(where)
            if backend.place == "memory:":
                hint = "Give it a name, such as memory:jobs, or open it once and pass the backend."
                raise UsageError("memory: is a new space each time it is opened, so nobody else is there", hint=hint)
        elif not _is_backend(where):
            inner = getattr(where, "sync", where)  # of a dict for asyncio
            backend, prefix = getattr(inner, "backend", None), getattr(inner, "_prefix", "")
            if not _is_backend(backend):
                hint = "Give a URL, a path, a backend or a dict of perdure."
                raise UsageTypeError(f"{type(where).__name__} is not a place", hint=hint)
        self.backend: Backend = backend
        self._kind = kind
        self.key = f"{prefix}{kind}s()/{join_key(name)}"
        why = self.backend.forgets(self.key)
        if why:
            self.close()
            hint = f"Give it a place of its own that keeps everything. Of a Bounded, let only= be false for {self.key!r:.300}."
            text = f"a {kind} without its record is free for anybody, and this place may lose it: {why}"
            raise UsageError(text, key=self.key, place=self.place, hint=hint)

    @property
    def place(self) -> str:
        """The backend's."""
        return self.backend.place

    def get(self, known: Condition = None) -> tuple[dict[str, Any], Condition]:
        """Read it; `{}` and `ABSENT` where there is none.

        Raises:
            NotModified: It still has the ETag `known`.
            IntegrityError: What is there is no such record.
            CodecError: It is one of a later format.
            BackendError: As the backend says.
        """
        try:
            blob = self.backend.get(self.key, if_none_match=None if known is ABSENT else known)
        except NotFoundError:
            return {}, ABSENT
        note = read_note(blob.data)
        if note is None:
            raise self.unfit("something else is there, or it is damaged")
        try:
            fields: Any = json.loads(note)
        except (ValueError, RecursionError) as error:
            raise self.unfit("it is not JSON") from error
        if not isinstance(fields, dict) or fields.get("perdure") != self._kind:
            raise self.unfit("something else is there")
        if fields.get("format") != _FORMAT:
            text = (
                f"this record of a {self._kind} has the format {fields.get('format')!r:.20}, and this version knows {_FORMAT}"
            )
            raise CodecError(text, key=self.key, place=self.place, hint="Install a newer perdure here, too.")
        return fields, blob.etag

    def put(self, fields: dict[str, Any], if_match: Condition) -> ETag:
        """Swap it. Raises as a put of the backend does, and `UsageError` where nothing is kept."""
        stored = {"perdure": self._kind, "format": _FORMAT, **fields, "write": nonce()}
        data = write_note(json.dumps(stored, separators=(",", ":")).encode())
        etag = self.backend.put(self.key, data, if_match=if_match)
        if etag == NOT_KEPT:
            raise UsageError(
                f"a {self._kind} cannot be kept here", place=self.place, hint="Use a place that keeps what is put."
            )
        return etag

    def unfit(self, why: str) -> IntegrityError:
        """The error for what is no such record."""
        hint = "Nothing was changed. Use another name; or find out who wrote it, and delete it when nobody needs it."
        text = f"this is not a readable record of a {self._kind}: {why}"
        return IntegrityError(text, key=self.key, place=self.place, hint=hint)

    def close(self) -> None:
        """Close the backend, if it was opened here."""
        if self.owned:
            self.backend.close()


class Holder(NamedTuple):
    """Who holds a lock, or one of the slots of a semaphore, as the record says.

    Attributes:
        nonce: Of this acquisition.
        token: Of this acquisition; larger than all before.
        renewal: The number of its last renewal.
        ttl: Seconds that it is held without a renewal.
        name: What the holder calls itself; the name of its program where it said nothing.
        host: The name of its machine.
        pid: Its process.
        since: When it was acquired, in seconds since the epoch by the wall clock of that machine. For people: nothing depends
            on it.
    """

    nonce: str
    token: int
    renewal: int
    ttl: float
    name: str
    host: str
    pid: int
    since: float

    @property
    def mark(self) -> str:
        """What each renewal changes."""
        return f"{self.nonce}:{self.renewal}"

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.since))
        return f"{self.name} (process {self.pid} on {self.host}, since {since} UTC by its clock)"


def this_process(nonce: str, token: int, ttl: float, name: str) -> Holder:
    """A holder that is this process."""
    host = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "unknown")
    name = name or os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    return Holder(nonce, token, 0, ttl, name[:200], host[:200], os.getpid(), round(time.time(), 3))


class State(NamedTuple):
    """What the record of a lock or a semaphore says.

    Attributes:
        token: The last one that was given out; 0 where none was.
        limit: How many may hold it at once; 0 where there is no record.
        holders: Those that hold it, or died holding it.
    """

    token: int
    limit: int
    holders: tuple[Holder, ...]

    def holder(self, nonce: str) -> Holder | None:
        """The one of that acquisition."""
        return next((holder for holder in self.holders if holder.nonce == nonce), None)

    def without(self, nonce: str) -> tuple[Holder, ...]:
        """The others."""
        return tuple(holder for holder in self.holders if holder.nonce != nonce)


NOBODY = State(0, 0, ())


def spell_state(state: State) -> dict[str, Any]:
    """A state as fields of a record."""
    return {"token": state.token, "limit": state.limit, "holders": [holder._asdict() for holder in state.holders]}


def read_state(records: Records, fields: dict[str, Any]) -> State:
    """The state that fields of a record say. Raises `IntegrityError`."""
    if not fields:
        return NOBODY
    token: Any = fields.get("token")
    limit: Any = fields.get("limit")
    holders: Any = fields.get("holders")
    if not (_is_count(token) and _is_count(limit) and limit and isinstance(holders, list)):
        raise records.unfit("its fields are not those of one")
    return State(token, limit, tuple(_read_holder(records, entry, token) for entry in holders))


def _read_holder(records: Records, entry: Any, newest: int) -> Holder:
    if isinstance(entry, dict):
        values: list[Any] = [entry.get(name) for name in Holder._fields]
        holder = Holder(*values)
        counts = all(map(_is_count, (holder.token, holder.renewal, holder.pid)))
        times = all(type(number) in (int, float) and 0 < number < _FAR for number in (holder.ttl, holder.since))
        texts = all(isinstance(text, str) for text in (holder.nonce, holder.name, holder.host))
        if counts and times and texts and holder.nonce and holder.token <= newest:
            return holder
    raise records.unfit("a holder in it is not one")


def _is_count(number: object) -> bool:
    return type(number) is int and number >= 0
