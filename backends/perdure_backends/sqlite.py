"""One SQLite database file, one row for each value: for millions of small values, shared by threads and processes.

Every put and delete is one statement of its own, so SQLite makes it atomic, and readers never wait. Three things SQLite
does not do well by itself are done here:

* *Turns.* Its writers wait by polling, and under load some hardly ever get a turn. Here they queue with `flock` on a file
  beside the database (`app.db-lock`), and the kernel wakes them one after the other. This is for fairness only: that
  two writes exclude each other is still SQLite's own doing, also against programs that know nothing of our lock.
* *Forks.* SQLite keeps its locks in a table for each process, and a forked child inherits that table, but not the locks: a
  connection the child opens believes it is protected, and the parent's last close deletes the log under it, with every
  write in it. So all connections are closed before a fork, and both sides open new ones when they need them.
* *Threads.* Each has a connection and a lock descriptor of its own. When it ends, the next new thread takes them over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from time import time
from typing import Any, NoReturn, Self, TypeVar

from perdure.errors import (
    NotFoundError,
    NotModified,
    PreconditionError,
    UnknownOutcomeError,
    UsageError,
)
from perdure.protocol import (
    ABSENT,
    Backend,
    Blob,
    Buffer,
    Condition,
    ETag,
    Guarantees,
    Meta,
    Use,
    are_keys,
    check_key,
    check_prefix,
    is_key,
)

from . import _sqlite_file as file
from ._sqlite_calls import Calls
from ._sqlite_uses import Uses

_GET = "SELECT data, etag, modified FROM blobs WHERE key = ?"
_GET_CHANGED = "SELECT CASE WHEN etag = ? THEN NULL ELSE data END, etag, modified FROM blobs WHERE key = ?"
_HEAD = "SELECT key, etag, length(data), modified FROM blobs WHERE key = ?"
_CONTAINS = "SELECT 1 FROM blobs WHERE key = ?"
_SCAN = "SELECT key, etag, length(data), modified FROM blobs WHERE key > CAST(? AS TEXT) AND key < ? ORDER BY key LIMIT ?"
_KEYS = "SELECT key FROM blobs WHERE key > CAST(? AS TEXT) AND key < ? ORDER BY key LIMIT ?"
_TIMES = "SELECT key, modified FROM blobs WHERE key > CAST(? AS TEXT) AND key < ? ORDER BY key LIMIT ?"
_ROW = "(?, ?, ?, ?)"
_CREATE = f"INSERT INTO blobs VALUES {_ROW} ON CONFLICT (key) DO NOTHING"
_PUT = (
    f"INSERT INTO blobs VALUES {_ROW} "
    "ON CONFLICT (key) DO UPDATE SET etag = excluded.etag, modified = excluded.modified, data = excluded.data"
)
_SWAP = "UPDATE blobs SET etag = ?, modified = ?, data = ? WHERE key = ? AND etag = ?"
_DELETE = "DELETE FROM blobs WHERE key = ?"
_DELETE_IF = "DELETE FROM blobs WHERE key = ? AND etag = ?"

_MANY = 500  # keys in one SELECT
_TOGETHER = 200  # rows that are written by one statement, which no signal handler finds half done
_blob = partial(tuple.__new__, Blob)
T = TypeVar("T")


def _copied(data: Buffer) -> bytes:
    return bytes(memoryview(data))  # a copy, as another thread may change it; through memoryview, or bytes(5) would pass


def _together(rows: list[T]) -> list[list[T]]:
    return [rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER)]


class SQLiteBackend(Backend):
    """Values in the rows of one SQLite file. Threads, processes and forked children may use it at once.

    Nothing is created before the first write; until then everything is absent. The folder has to exist. Beside the file
    there will be `-wal` and `-shm` (SQLite's, while in use) and `-lock` (ours, empty). Do not copy or remove the file while
    it is in use (a removal is noticed, but only within a twentieth of a second). A fork waits until calls of other threads
    are done.

    Each thread that uses it holds three or four descriptors. A signal handler may call it in the middle of a call; only in the
    middle of a write of more than 200 values, or of the very first one, it may not write.

    Args:
        path: The file. A relative path is taken from the folder that is current now.
        sync: `"full"`: an acknowledged write survives a power cut. `"normal"`: it survives the end of the process, however
            violent; a power cut or a crash of the system may undo the latest writes, namely those since SQLite last moved its
            log into the database (about every 4 MB), in reverse order; what remains is whole.
        timeout: How many seconds to wait for *another* program that keeps the database locked.

    Raises:
        UsageError: An option has a value it cannot have.
    """

    remembers_use = True

    def __init__(self, path: str | os.PathLike[str], *, sync: str = "full", timeout: float = 30.0) -> None:
        if "\0" in os.fspath(path):
            raise UsageError(f"a file name cannot hold a NUL: {os.fspath(path)!r}")
        self.path = os.path.abspath(path)
        self.place = f"sqlite:///{self.path}"
        if sync not in ("full", "normal"):
            raise UsageError(f"sync is 'full' or 'normal', not {sync!r}", place=self.place)
        if not 0 <= timeout <= 1e6:
            raise UsageError(f"timeout is a number of seconds, not {timeout!r}", place=self.place)
        self._options: dict[str, Any] = {"sync": sync, "timeout": timeout}
        self._calls = Calls(self.path, self.place, sync, timeout)
        self._read, self._write = self._calls.read, self._calls.write
        self._uses = Uses(self._calls)

    @classmethod
    def from_url(cls, location: str, *, sync: str = "full", timeout: float = 30.0) -> Self:
        """Open `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:relative.db` or `sqlite:/absolute.db`.

        `~/` in front means the home folder.

        Raises:
            UsageError: No file is named, or a host is.
        """
        path = location
        if location.startswith("//"):
            host, slash, path = location[2:].partition("/")
            if host:
                hint = (
                    f"For a file write sqlite:///{host}{slash}{path} (relative) or sqlite:////{host}{slash}{path} (absolute)."
                )
                raise UsageError("SQLite has no hosts", place=f"sqlite:{location}", hint=hint)
        if path in ("", "/", ":memory:"):
            hint = "Write sqlite:///app.db, or memory: for a store that is gone with the process."
            raise UsageError("no file is named", place=f"sqlite:{location}", hint=hint)
        return cls(os.path.expanduser(path) if path.startswith("~/") else path, sync=sync, timeout=timeout)

    # Reading.

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        rows = self._read(_GET, (key,), key) if if_none_match is None else self._read(_GET_CHANGED, (if_none_match, key), key)
        if not rows or type(key) is not str:
            check_key(key)
            if not rows:
                raise NotFoundError(key=key, place=self.place)
        row = rows[0]
        if type(row[0]) is not bytes:
            if row[0] is None:
                raise NotModified(key=key, place=self.place, modified=row[2])
            raise file.not_bytes(key, self.place)
        return _blob(row)

    def head(self, key: str) -> Meta:
        rows = self._read(_HEAD, (check_key(key),), key)
        if not rows:
            raise NotFoundError(key=key, place=self.place)
        return Meta._make(rows[0])

    def contains(self, key: str) -> bool:
        return bool(self._read(_CONTAINS, (check_key(key),), key))

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        wanted = [check_key(key) for key in keys]
        found: dict[str, Blob] = {}
        for start in range(0, len(wanted), _MANY):
            some = wanted[start : start + _MANY]
            marks = ",".join("?" * len(some))
            sql = f"SELECT key, data, etag, modified FROM blobs WHERE key IN ({marks})"
            for row in self._read(sql, some, None):
                if type(row[1]) is not bytes:
                    raise file.not_bytes(row[0], self.place)
                found[row[0]] = _blob(row[1:])
        return found

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        """As `Backend.scan`, in the order of the keys. Read page by page, so it never holds back other users."""
        return chain.from_iterable(map(Meta._make, page) for page in self._pages(_SCAN, prefix))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """As `scan`, but names only, out of the index."""
        return chain.from_iterable([row[0] for row in page] for page in self._pages(_KEYS, prefix))

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        """As `scan`, but names and times only."""
        return chain.from_iterable(self._pages(_TIMES, prefix))

    def uses(self, prefix: str = "") -> Iterator[Use]:
        """As `Backend.uses`, page by page."""
        check_prefix(prefix)
        return chain.from_iterable(map(Use._make, page) for page in self._pages(self._uses.listing(), prefix))

    def mark_used(self, times: Mapping[str, float]) -> None:
        """As `Backend.mark_used`, 200 values at once; a power cut may undo it."""
        self._uses.mark(times)

    def _pages(self, sql: str, prefix: str) -> Iterator[list[Any]]:
        check_prefix(prefix)
        self._calls.check_open()
        # "0" follows "/", and no key has a character above "~".
        return self._turn_pages(sql, prefix, prefix[:-1] + "0" if prefix else "\x7f")

    def _turn_pages(self, sql: str, after: str | bytes, before: str) -> Iterator[list[Any]]:
        size = 64
        while True:
            page = self._read(sql, (after, before, size), None)
            # Another program may have put anything in the table; what is no key is nobody's value.
            yield page if are_keys([row[0] for row in page]) else [row for row in page if is_key(row[0])]
            if len(page) < size:
                return
            after = page[-1][0].encode("utf-8", "surrogateescape")  # which may be no UTF-8 either
            size = min(size * 4, 2048)

    # Writing.

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        check_key(key)
        if type(data) is not bytes:
            data = _copied(data)
        etag = ETag(os.urandom(8).hex())  # never used before, in no copy of this database either
        try:
            if if_match is None:
                self._write(key, _PUT, (key, etag, time(), data))
            elif if_match is ABSENT:
                if not self._write(key, _CREATE, (key, etag, time(), data)):
                    raise PreconditionError("the key exists already", key=key, place=self.place)
            elif not self._write(key, _SWAP, (etag, time(), data, key, if_match), if_match):
                self._lost(key)
        except UnknownOutcomeError as error:
            error.token = etag
            raise
        return etag

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        check_key(key)
        if if_match is None:
            self._erase(key, _DELETE, (key,))
        elif not self._write(key, _DELETE_IF, (key, if_match), if_match):
            self._lost(key)

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        """Overwrite several values in one transaction: all of them or, when this raises, none."""
        now = time()
        random = os.urandom(8 * len(items)).hex()
        rows = [
            (check_key(key), random[i * 16 : i * 16 + 16], now, data if type(data) is bytes else _copied(data))
            for i, (key, data) in enumerate(items.items())
        ]
        # Two thirds of the time that a statement for each row would take.
        puts = [
            (_PUT.replace(_ROW, ", ".join([_ROW] * len(some))), list(chain.from_iterable(some))) for some in _together(rows)
        ]
        if len(puts) > 1:
            self._write(None, "", puts, many=True)
        elif puts:
            self._write(None, *puts[0])
        return {key: ETag(etag) for key, etag, _, _ in rows}

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove several values in one transaction: all of them or, when this raises, none."""
        wanted = [check_key(key) for key in keys]
        deletes = [(f"DELETE FROM blobs WHERE key IN ({','.join('?' * len(some))})", some) for some in _together(wanted)]
        if len(deletes) > 1:
            self._erase(None, "", deletes, many=True)
        elif deletes:
            self._erase(None, *deletes[0])

    def _erase(self, key: str | None, sql: str, values: Any, *, many: bool = False) -> None:
        if not self._write(key, sql, values, creating=False, many=many) and self._options["sync"] == "full":
            # Absent already; but whoever removed it may have been killed before that was durable, and this call may not say so.
            try:
                file.sync_log(os.path.realpath(self.path))
            except OSError as error:
                raise file.failure(error, key=key, place=self.place) from error

    def _lost(self, key: str) -> NoReturn:
        raise PreconditionError(
            "the value is absent, or another version by now", key=key, place=self.place, hint="Read it again."
        )

    # Settings.

    def recorded(self) -> dict[str, str]:
        return self._calls.settings()

    def record(self, settings: Mapping[str, str]) -> None:
        """Keep settings with the place; they are written together with the first value. As `Backend.record`."""
        self._calls.record(settings)

    def close(self) -> None:
        """Close the connections of all threads; calls that are on their way finish first.

        In a signal handler or finalizer that strikes a call it waits for none: each of them closes its own when it ends.
        """
        self._calls.close()

    def guarantees(self) -> Guarantees:
        survives = (
            "a power cut"
            if self._options["sync"] == "full"
            else "the end of the process; a power cut may undo the latest writes"
        )
        return Guarantees(
            durable=f"an acknowledged write survives {survives}",
            shared="threads and processes of this machine; not over a network file system",
            swap="one SQL statement; writers take turns with flock",
            limits="keys of 253 characters a segment; values of 1,000,000,000 bytes less a little",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.path, self._options, self._calls.unrecorded)


def _reopen(cls: type[SQLiteBackend], path: str, options: dict[str, Any], unrecorded: dict[str, str]) -> SQLiteBackend:
    backend = cls(path, **options)
    backend._calls.unrecorded = dict(unrecorded)
    return backend
