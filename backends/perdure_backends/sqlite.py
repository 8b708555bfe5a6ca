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

import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from time import monotonic, time
from typing import Any, NoReturn, Self, TypeVar

from perdure.errors import (
    BackendError,
    NotFoundError,
    NotModified,
    PerdureError,
    PreconditionError,
    UnavailableError,
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
    are_keys,
    check_key,
    check_prefix,
    is_key,
)

from . import _sqlite_file as file
from ._flock import LOCK_EX, LOCK_NB, LOCK_UN, flock
from ._sqlite_links import Link, Links, Seat, forked, inherited, struck

_GET = "SELECT data, etag, modified FROM blobs WHERE key = ?"
_GET_CHANGED = "SELECT CASE WHEN etag = ? THEN NULL ELSE data END, etag, modified FROM blobs WHERE key = ?"
_HEAD = "SELECT key, etag, length(data), modified FROM blobs WHERE key = ?"
_CONTAINS = "SELECT 1 FROM blobs WHERE key = ?"
_IS = "SELECT 1 FROM blobs WHERE key = ? AND etag = ?"
_SCAN = "SELECT key, etag, length(data), modified FROM blobs WHERE key > ? AND key < ? ORDER BY key LIMIT ?"
_KEYS = "SELECT key FROM blobs WHERE key > ? AND key < ? ORDER BY key LIMIT ?"
_ROW = "(?, ?, ?, ?)"
_CREATE = f"INSERT INTO blobs VALUES {_ROW} ON CONFLICT (key) DO NOTHING"
_PUT = (
    f"INSERT INTO blobs VALUES {_ROW} "
    "ON CONFLICT (key) DO UPDATE SET etag = excluded.etag, modified = excluded.modified, data = excluded.data"
)
_SWAP = "UPDATE blobs SET etag = ?, modified = ?, data = ? WHERE key = ? AND etag = ?"
_SETTINGS = "SELECT name, value FROM settings"
_DELETE = "DELETE FROM blobs WHERE key = ?"
_DELETE_IF = "DELETE FROM blobs WHERE key = ? AND etag = ?"

_MANY = 500  # keys in one SELECT
_TOGETHER = 200  # rows that are written by one statement, which no signal handler finds half done
_RAISED = (sqlite3.Error, OSError, UnicodeError, OverflowError)  # by SQLite, by the lock file, by what cannot be a parameter
T = TypeVar("T")
_blob = partial(tuple.__new__, Blob)


def _copied(data: Buffer) -> bytes:
    return bytes(memoryview(data))  # a copy, as another thread may change it; through memoryview, or bytes(5) would pass


def _amidst(what: str) -> BackendError:
    text = f"a signal handler or finalizer writes in the middle of {what}"
    return BackendError(text, errno=errno.EDEADLK, hint="Set a flag there, and write when the call has returned.")


def _nothing(sql: str, parameters: Any = ()) -> file.Rows:
    """What a database answers that does not exist yet."""
    return file.Rows([])


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

    def __init__(self, path: str | os.PathLike[str], *, sync: str = "full", timeout: float = 30.0) -> None:
        if "\0" in os.fspath(path):
            raise UsageError(f"a file name cannot hold a NUL: {os.fspath(path)!r}")
        self.path = os.path.abspath(path)
        self.place = f"sqlite:///{self.path}"
        if sync not in ("full", "normal"):
            raise UsageError(f"sync is 'full' or 'normal', not {sync!r}", place=self.place)
        if not 0 <= timeout <= 1e6:
            raise UsageError(f"timeout is a number of seconds, not {timeout!r}", place=self.place)
        self._sync = sync
        self._timeout = timeout
        self._closed = False
        self._unrecorded: dict[str, str] = {}
        self._local = threading.local()
        self._links = Links()
        weakref.finalize(self, self._links.retire)  # also at exit: the last to close merges the log into the file

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
        try:
            link = self._local.link
        except AttributeError:
            link = self._take_seat()
        try:
            with link.lock:
                if link.busy:
                    return self._aside(self.get, key, if_none_match=if_none_match)
                try:
                    link.busy = True
                    read = (link.read if link.look_again > monotonic() else None) or self._open(link)
                    # No name for the cursor: it must be gone, and the reading over, whatever interrupts this.
                    if if_none_match is None:
                        row = read(_GET, (key,)).fetchone()
                    else:
                        row = read(_GET_CHANGED, (if_none_match, key)).fetchone()
                finally:
                    link.busy = False
                    if self._closed:
                        link.shut()
        except _RAISED as error:
            raise self._failure(error, link, key, reading=True) from error
        if row is None or type(key) is not str:
            check_key(key)
            if row is None:
                raise NotFoundError(key=key, place=self.place)
        if type(row[0]) is not bytes:
            if row[0] is None:
                raise NotModified(key=key, place=self.place)
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

    def _pages(self, sql: str, prefix: str) -> Iterator[list[Any]]:
        check_prefix(prefix)
        self._check_open()
        # "0" follows "/", and no key has a character above "~".
        return self._turn_pages(sql, prefix, prefix[:-1] + "0" if prefix else "\x7f")

    def _turn_pages(self, sql: str, after: str, before: str) -> Iterator[list[Any]]:
        size = 64
        while True:
            page = self._read(sql, (after, before, size), None)
            # Another program may have put anything in the table; what is no key is nobody's value.
            yield page if are_keys([row[0] for row in page]) else [row for row in page if is_key(row[0])]
            if len(page) < size:
                return
            after = page[-1][0]
            size = min(size * 4, 2048)

    def _read(self, sql: str, parameters: Iterable[Any], key: str | None) -> list[Any]:
        try:
            link = self._local.link
        except AttributeError:
            link = self._take_seat()
        try:
            with link.lock:
                if link.busy:
                    return self._aside(self._read, sql, parameters, key)
                try:
                    link.busy = True
                    read = (link.read if link.look_again > monotonic() else None) or self._open(link)
                    rows: list[Any] = read(sql, parameters).fetchall()
                finally:
                    link.busy = False
                    if self._closed:
                        link.shut()
        except _RAISED as error:
            raise self._failure(error, link, key, reading=True) from error
        return rows

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
        if len(rows) > _TOGETHER:
            self._write(None, _PUT, rows, many=True)
        elif rows:
            self._write(None, _PUT.replace(_ROW, ", ".join([_ROW] * len(rows))), list(chain.from_iterable(rows)))
        return {key: ETag(etag) for key, etag, _, _ in rows}

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove several values in one transaction: all of them or, when this raises, none."""
        wanted = [check_key(key) for key in keys]
        if len(wanted) > _TOGETHER:
            self._write(None, _DELETE, [(key,) for key in wanted], creating=False, many=True)
        elif wanted:
            marks = ",".join("?" * len(wanted))
            self._erase(None, f"DELETE FROM blobs WHERE key IN ({marks})", wanted)

    def _erase(self, key: str | None, sql: str, values: Any) -> None:
        if not self._write(key, sql, values, creating=False) and self._sync == "full":
            # Absent already; but whoever removed it may have been killed before that was durable, and this call may not say so.
            try:
                file.sync_log(os.path.realpath(self.path))
            except OSError as error:
                raise file.failure(error, key=key, place=self.place) from error

    def _lost(self, key: str) -> NoReturn:
        raise PreconditionError(
            "the value is absent, or another version by now", key=key, place=self.place, hint="Read it again."
        )

    def _write(
        self, key: str | None, sql: str, values: Any, swap: ETag | None = None, *, creating: bool = True, many: bool = False
    ) -> int:
        """Run one statement, or one transaction of `many`, when our turn has come; return how many rows it changed."""
        try:
            link = self._local.link
        except AttributeError:
            link = self._take_seat()
        try:
            with link.lock:
                if link.busy:
                    return self._aside(self._write, key, sql, values, swap, creating=creating, many=many)
                try:
                    link.busy = True
                    while write := link.write or self._prepare(link, creating and swap is None):
                        fd = link.fd
                        try:  # Ctrl-C strikes after a call into C, never within: whatever it hits here, `finally` unlocks
                            try:
                                flock(fd, LOCK_EX | LOCK_NB)
                            except BlockingIOError:
                                self._wait(link)
                                # Who had to wait has often lost meanwhile, and finds that out faster without SQLite's own
                                # lock.
                                if swap is not None and not write(_IS, (key, swap)).fetchone():
                                    return 0
                            if link.look_again > monotonic() or link.is_current():
                                if many:
                                    self._transact(link, sql, values)
                                    return len(values)
                                return int(write(sql, values).rowcount)
                        finally:
                            if link.fd == fd:  # else this is a child forked just now, and the lock is its parent's
                                flock(fd, LOCK_UN)
                        link.shut()  # the file was removed or replaced: what goes into the old one, nobody would ever see
                finally:
                    link.busy = False
                    if self._closed:
                        link.shut()
        except _RAISED as error:
            raise self._failure(error, link, key) from error
        return 0

    def _wait(self, link: Link) -> bool:
        """Wait for our turn. Do without, and say so with False, where a call of this very thread that was struck by a signal
        handler or finalizer may have it."""
        for other in struck():
            if other is not link and other.fd >= 0 and os.path.samestat(os.fstat(other.fd), os.fstat(link.fd)):
                if other.alone:
                    raise _amidst("a write of several values")
                return False  # between its statements the database is free, and turns are for fairness only
        flock(link.fd, LOCK_EX)
        return True

    def _transact(self, link: Link, sql: str, rows: list[Any]) -> None:
        """Run a transaction."""
        db = link.db
        try:
            link.alone = True
            db.execute("BEGIN IMMEDIATE")
            db.executemany(sql, rows)
            db.execute("COMMIT")
        except BaseException:
            link.drop()  # which takes back what was not committed
            raise
        finally:
            link.alone = False

    def _aside(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Make a call that strikes in the middle of another one of this thread, with a connection of its own."""
        link = self._local.link
        spare = Link()
        try:
            self._links.all.add(spare)
            self._local.link = spare
            return call(*args, **options)
        finally:
            self._local.link = link
            self._links.all.discard(spare)
            spare.shut()

    # Settings.

    def recorded(self) -> dict[str, str]:
        return dict(self._read(_SETTINGS, (), None))

    def record(self, settings: Mapping[str, str]) -> None:
        """Keep settings with the place; they are written together with the first value. As `Backend.record`."""
        here = self.recorded()
        self._compare(settings, here)
        missing = {name: value for name, value in settings.items() if name not in here}
        if missing:
            self._unrecorded = self._unrecorded | missing
            for link in list(self._links.all):
                link.write = None  # so that the next write of each thread passes through _prepare

    def _compare(self, settings: Mapping[str, str], here: Mapping[str, str]) -> None:
        for name, value in settings.items():
            if here.get(name, value) != value:
                raise UsageError(
                    f"this database was written with {name} {here[name]!r}, not {value!r}",
                    place=self.place,
                    hint=f"Open it with {name}={here[name]!r}, or choose another file.",
                )

    # Connections.

    def close(self) -> None:
        """Close the connections of all threads; calls that are on their way finish first.

        In a signal handler or finalizer that strikes a call it waits for none: each of them closes its own when it ends.
        """
        self._closed = True
        self._links.shut(blocking=not struck())

    def guarantees(self) -> Guarantees:
        survives = "a power cut" if self._sync == "full" else "the end of the process; a power cut may undo the latest writes"
        return Guarantees(
            durable=f"an acknowledged write survives {survives}",
            shared="threads and processes of this machine; not over a network file system",
            swap="one SQL statement; writers take turns with flock",
            limits="keys of 253 characters a segment; values of 1,000,000,000 bytes less a little",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(type(self), sync=self._sync, timeout=self._timeout)
        return again, (self.path,), {"_unrecorded": self._unrecorded}

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this backend was closed", place=self.place, hint="Open it again.")

    def _take_seat(self) -> Link:
        link = self._links.take()
        self._local.seat = Seat(self._links, link)
        self._local.link = link
        return link

    def _open(self, link: Link) -> Callable[..., Any]:
        """Connect a link for reading; where there is no database, return what answers every question with no rows."""
        if link.read is not None and link.is_current():
            return link.read
        link.drop()
        path = self._find()
        if not file.examine(path, self.place):
            return _nothing
        inode = os.stat(path).st_ino
        link.path = path
        db = file.open_live(path, self._sync, self._timeout)
        if db is None:
            return _nothing
        link.adopt(db, inode)
        return db.execute

    def _prepare(self, link: Link, creating: bool) -> Callable[..., Any] | None:
        """Connect a link for writing; return None when there is no database and none is to be made."""
        path = self._find()
        if not file.examine(path, self.place):  # before anything is made beside a file that is not ours
            if not creating:
                return None
            file.check_folder(path, self.path, self.place)
        if link.fd < 0:
            link.fd = file.open_lock_beside(path, self.place)
        fd = link.fd
        link.drop()
        try:
            turn = True
            try:
                flock(fd, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                turn = self._wait(link)
            link.path = path
            db, inode = None, 0
            while db is None:
                if not file.examine(path, self.place):
                    if not turn:
                        raise _amidst("a first write")
                    for leftover in (path + "-wal", path + "-shm"):
                        # Of a file that was removed alone; whoever still has that one open must not share an index with the
                        # new one.
                        try:
                            os.unlink(leftover)
                        except FileNotFoundError:
                            pass
                    file.create(path, self._timeout)
                inode = os.stat(path).st_ino
                db = file.open_live(path, self._sync, self._timeout)
            if isinstance(db, file.Still):
                db.close()
                raise file.read_only(self.place)
            link.adopt(db, inode)
            try:
                file.use_log(db, self._timeout)
                self._settle(db)
            except BaseException:
                link.drop()
                raise
        finally:
            if link.fd == fd:
                flock(fd, LOCK_UN)
        link.write = db.execute
        return db.execute

    def _find(self) -> str:
        self._check_open()
        path = os.path.realpath(self.path)
        if path in inherited:
            raise forked().at(place=self.place)
        return path

    def _settle(self, db: sqlite3.Connection) -> None:
        """Write down settings that wait for it. We have the lock, and each statement is a transaction of its own."""
        pending = self._unrecorded
        if not pending:
            return
        self._compare(pending, dict(db.execute(_SETTINGS).fetchall()))
        marks = ",".join(["(?, ?)"] * len(pending))
        values = list(chain.from_iterable(pending.items()))
        db.execute(f"INSERT INTO settings VALUES {marks} ON CONFLICT (name) DO NOTHING", values)
        self._compare(pending, dict(db.execute(_SETTINGS).fetchall()))
        if self._unrecorded is pending:
            self._unrecorded = {}

    def _failure(self, error: Exception, link: Link, key: str | None, *, reading: bool = False) -> PerdureError:
        if isinstance(error, PerdureError):
            raise error.at(key, self.place)
        if key is not None:
            check_key(key)  # what is no key is often no parameter for SQLite either
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH:
            return forked().at(key, self.place)
        with link.lock:
            link.drop()  # after a failure a new connection is the safest one
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            hint = "Call again."
            return UnavailableError(f"interrupted by a fork or a close ({error})", key=key, place=self.place, hint=hint)
        return file.failure(error, key=key, place=self.place, reading=reading, path=os.path.realpath(self.path))
