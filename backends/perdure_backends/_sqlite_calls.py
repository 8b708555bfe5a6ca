"""Statements, run on the connection of the calling thread: reads at once, writes in turn, either also from a signal handler
in the middle of another."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from time import monotonic
from typing import Any, TypeVar

from perdure.errors import BackendError, PerdureError, UnavailableError
from perdure.protocol import ETag, check_key, require_settings

from . import _sqlite_file as file
from ._flock import LOCK_EX, LOCK_NB, LOCK_UN, flock
from ._sqlite_links import Link, Links, Seat, forked, inherited, struck

_IS = "SELECT 1 FROM blobs WHERE key = ? AND etag = ?"
_SETTINGS = "SELECT name, value FROM settings"
_RAISED = (sqlite3.Error, OSError, UnicodeError, OverflowError)  # by SQLite, by the lock file, by what cannot be a parameter
T = TypeVar("T")


def _amidst(what: str) -> BackendError:
    text = f"a signal handler or finalizer writes in the middle of {what}"
    return BackendError(text, errno=errno.EDEADLK, hint="Set a flag there, and write when the call has returned.")


def _nothing(sql: str, parameters: Any = ()) -> file.Rows:
    """What a database answers that does not exist yet."""
    return file.Rows([])


class Calls:
    """Everything between a statement and its rows. Threads, forked children, signal handlers and finalizers may call at once.

    Args:
        path: The file.
        place: For messages.
        sync: What is to be durable: `"full"` or `"normal"`.
        timeout: Seconds to wait for another program that keeps the database locked.
    """

    def __init__(self, path: str, place: str, sync: str, timeout: float) -> None:
        self._path = path
        self.place = place
        self._sync = sync
        self._timeout = timeout
        self._closed = False
        self.unrecorded: dict[str, str] = {}  # settings that the next write adds
        self._local = threading.local()
        self._links = Links()
        weakref.finalize(self, self._links.retire)  # also at exit: the last to close merges the log into the file

    def read(self, sql: str, parameters: Iterable[Any], key: str | None) -> list[Any]:
        """Return the rows of a statement that changes nothing; `key` is for messages."""
        try:
            link = self._local.link
        except AttributeError:
            link = self._take_seat()
        try:
            with link.lock:
                if link.busy:
                    return self._aside(self.read, sql, parameters, key)
                try:
                    link.busy = True
                    read = (link.read if link.look_again > monotonic() else None) or self._open(link)
                    # No name for the cursor: it must be gone, and the reading over, whatever interrupts this.
                    try:
                        rows: list[Any] = read(sql, parameters).fetchall()
                    except sqlite3.OperationalError as error:
                        if "decode to UTF-8" not in str(error):
                            raise
                        rows = file.read_odd(link.db, sql, parameters)
                finally:
                    link.busy = False
                    if self._closed:
                        link.shut()
        except _RAISED as error:
            raise self._failure(error, link, key, reading=True) from error
        return rows

    def write(
        self,
        key: str | None,
        sql: str,
        values: Any,
        swap: ETag | None = None,
        *,
        creating: bool = True,
        many: bool = False,
        loosely: bool = False,
    ) -> int:
        """Run one statement when our turn has come, or with `many` a transaction of those that stand with their values in
        `values`; return how many rows were changed. With `loosely` and `many` it is one statement, see `_loosely`."""
        try:
            link = self._local.link
        except AttributeError:
            link = self._take_seat()
        try:
            with link.lock:
                if link.busy:
                    return self._aside(self.write, key, sql, values, swap, creating=creating, many=many, loosely=loosely)
                try:
                    link.busy = True
                    while write := link.write or self._prepare(link, creating and swap is None):
                        fd = link.fd
                        try:  # Ctrl-C strikes after a call into C, never within: whatever it hits here, `finally` unlocks
                            try:
                                flock(fd, LOCK_EX | LOCK_NB)
                            except BlockingIOError:
                                self._wait(link)
                                # Who had to wait has often lost meanwhile, and sees that faster without SQLite's own lock.
                                if swap is not None and not write(_IS, (key, swap)).fetchone():
                                    return 0
                            if link.look_again > monotonic() or link.is_current():
                                if many:
                                    return self._loosely(link, sql, values) if loosely else self._transact(link, values)
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

    def _transact(self, link: Link, statements: list[tuple[str, Any]]) -> int:
        """Run a transaction, and return how many rows it changed."""
        db = link.db
        changed = 0
        try:
            link.alone = True
            db.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                changed += db.execute(sql, values).rowcount
            db.execute("COMMIT")
            return changed
        except BaseException:
            link.drop()  # which takes back what was not committed
            raise
        finally:
            link.alone = False

    def _loosely(self, link: Link, sql: str, values: Any) -> int:
        """Run a statement without waiting for the disk; a power cut may undo it until the next durable write.

        With a write-ahead log that is safe beside durable writes: the log keeps their order, and each of them syncs all of it.
        """
        db = link.db
        if self._sync == "normal":
            return int(db.execute(sql, values).rowcount)
        link.write = None  # whatever strikes from here on, nobody takes this connection for a durable one
        db.execute("PRAGMA synchronous = NORMAL")
        changed = int(db.execute(sql, values).rowcount)
        db.execute(f"PRAGMA synchronous = {self._sync}")
        link.write = db.execute
        if self.unrecorded:
            link.write = None  # settings came meanwhile, for the next write to pass through _prepare
        return changed

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
            with spare.lock:
                spare.shut()
            self._links.all.discard(spare)  # only now, as in `Links.retire`

    def settings(self) -> dict[str, str]:
        """What is recorded in the database."""
        return dict(self.read(_SETTINGS, (), None))

    def record(self, settings: Mapping[str, str]) -> None:
        """Add settings with the next write."""
        here = self.settings()
        require_settings(settings, here, self.place)
        missing = {name: value for name, value in settings.items() if name not in here}
        if missing:
            self.unrecorded = self.unrecorded | missing
            for link in list(self._links.all):
                link.write = None  # so that the next write of each thread passes through _prepare

    def close(self) -> None:
        """Close the connections of all threads when their calls have ended; amid a call of this thread, without waiting."""
        self._closed = True
        self._links.shut(blocking=not struck())

    def check_open(self) -> None:
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
            file.check_folder(path, self._path, self.place)
        link.drop()
        try:
            turn = self._take_turn(link, path)
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
                try:
                    db = file.open_live(path, self._sync, self._timeout)
                except sqlite3.OperationalError as error:
                    if turn or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                        raise
                    raise _amidst("a first write") from error  # which is locking the new file for a moment
            if isinstance(db, file.Still):
                db.close()
                raise file.read_only(self.place)
            link.adopt(db, inode)
            try:
                file.use_log(db, self._timeout)
                link.write = db.execute  # before we settle: more to settle may come meanwhile, and takes this away again
                self._settle(db)
            except BaseException:
                link.drop()
                raise
        finally:
            if link.fd >= 0:  # else this is a child forked just now, and the lock is its parent's
                flock(link.fd, LOCK_UN)
        return db.execute

    def _take_turn(self, link: Link, path: str) -> bool:
        """Lock the file that all lock who may make a database, or return False as `_wait` does."""
        while True:
            if link.fd < 0:
                link.fd = file.open_lock_beside(path, self.place)
            turn = True
            try:
                flock(link.fd, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                turn = self._wait(link)
            if not turn or file.is_lock_beside(link.fd, path):
                return turn
            link.shut()  # it was removed together with the database: a lock that nobody else will take

    def _find(self) -> str:
        self.check_open()
        path = os.path.realpath(self._path)
        if path in inherited:
            raise forked().at(place=self.place)
        return path

    def _settle(self, db: sqlite3.Connection) -> None:
        """Write down settings that wait for it. Each statement is a transaction of its own."""
        pending = self.unrecorded
        if not pending:
            return
        require_settings(pending, dict(db.execute(_SETTINGS).fetchall()), self.place)
        marks = ",".join(["(?, ?)"] * len(pending))
        values = list(chain.from_iterable(pending.items()))
        db.execute(f"INSERT INTO settings VALUES {marks} ON CONFLICT (name) DO NOTHING", values)
        require_settings(pending, dict(db.execute(_SETTINGS).fetchall()), self.place)
        if self.unrecorded is pending:
            self.unrecorded = {}

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
        return file.failure(error, key=key, place=self.place, reading=reading, path=os.path.realpath(self._path))
