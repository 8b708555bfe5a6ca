"""One database file as SQLite sees it: is it ours, make it, open it, and what its errors mean.

Nothing here opens the database with `os.open`: closing such a descriptor would drop the POSIX locks that SQLite holds on
the same file for other connections of this process. SQLite knows about them, so all looking is done through SQLite.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from typing import Any
from urllib.parse import quote

from perdure.errors import BackendError, IntegrityError, PerdureError, UnavailableError, UnknownOutcomeError

from ._flock import open_lock
from ._system import sync_folder

APPLICATION_ID = 0x50455244  # "PERD", where `file` and other tools look for it
FORMAT = 1

# One script, run by one call into C, so that no signal handler finds it half done. Its first question fails (with "integer
# overflow") where another program has made tables meanwhile. The value stands last in its row: reading the rest then never
# touches the pages that a long value overflows into.
_CREATE = f"""
BEGIN IMMEDIATE;
SELECT abs(-9223372036854775808) FROM sqlite_master;
CREATE TABLE blobs (key TEXT NOT NULL PRIMARY KEY, etag TEXT NOT NULL, modified REAL NOT NULL, data BLOB NOT NULL);
CREATE TABLE settings (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
COMMIT;
"""


def connect(path: str, query: str, timeout: float) -> sqlite3.Connection:
    """Open `path`, which must exist, in autocommit mode. Threads may hand the connection to each other."""
    name = quote(os.fsencode(path)) if os.name != "nt" else "/" + quote(path.replace("\\", "/"), safe="/:")
    return sqlite3.connect(f"file:{name}?{query}", uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def examine(path: str, place: str) -> bool:
    """Tell whether there is a database of ours (True) or nothing yet (False), without leaving a trace.

    The header that tells it is in the main file before the file is ever switched to a write-ahead log. So it can be read
    with `immutable`: no locks, no log, no file made beside it.

    Raises:
        BackendError: Something else is there.
    """
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BackendError(f"it cannot be reached: {error.strerror}", place=place, errno=error.errno) from error
    if not stat.S_ISREG(info.st_mode):
        what = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        hint = "Name a file in it." if stat.S_ISDIR(info.st_mode) else "Choose another name."
        raise BackendError(f"this is {what}", place=place, hint=hint)
    if info.st_size == 0:
        if size_of(path + "-wal"):
            # The main file is complete before there is a log, so this one was cut; opening it would drop the log as well.
            raise BackendError(
                "the database is empty, but its write-ahead log is not: the file was cut",
                place=place,
                hint="Restore both from a backup, or remove both to start afresh.",
            )
        return False
    try:
        found = _identity(path)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            if _was_empty(path):
                return False
            raise BackendError(
                "this is not an SQLite database, or its first page is damaged; it was left alone",
                place=place,
                hint="Choose another file name, or restore the file from a backup.",
            ) from error
        raise failure(error, place=place, path=path) from error
    if found[0] != APPLICATION_ID:
        hint = "Choose another file name."
        raise BackendError("this file belongs to another program; it was left alone", place=place, hint=hint)
    if found[1] > FORMAT:
        raise BackendError(
            f"this database has format {found[1]}, and this version of perdure knows {FORMAT}; it was left alone",
            place=place,
            hint="Type: pip install --upgrade perdure",
        )
    return True


def _was_empty(path: str) -> bool:
    """Tell whether a rollback journal says that the file was empty: a power cut while it was made. SQLite will empty it."""
    try:
        with open(path + "-journal", "rb") as journal:
            head = journal.read(20)
    except FileNotFoundError:
        return False
    return head.startswith(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7") and head[16:] == bytes(4)  # magic ... pages before


def _identity(path: str) -> tuple[int, int]:
    peek = connect(path, "mode=ro&immutable=1", 0)
    try:
        # Or else it would miss pages that are in the log still, when the log is being merged into the file at this moment.
        peek.execute("PRAGMA writable_schema = ON")
        return identity(peek)
    finally:
        peek.close()


def identity(db: sqlite3.Connection | Still) -> tuple[int, int]:
    """The application id and the format version."""
    return db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]


def create(path: str, timeout: float) -> None:
    """Make the tables in an absent or empty file, durably. If somebody made some there meanwhile, they are left alone."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # SQLite's own 0644 would ignore the umask
    except FileExistsError:
        pass
    db = connect(path, "mode=rw", timeout)
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_CREATE)
        use_log(db, timeout)
    except sqlite3.OperationalError as error:
        if "integer overflow" not in str(error):
            raise
    finally:
        db.close()
    sync_folder(os.path.dirname(path))


def check_folder(path: str, given: str, place: str) -> None:
    """Refuse to write where there is no folder for the file.

    Args:
        path: The file, links resolved.
        given: The file as it was named.
        place: For the message.
    """
    folder = os.path.dirname(path)
    if os.path.isdir(folder):
        return
    # sqlite:///tmp/x.db is relative, and easily taken for absolute.
    relative = os.path.relpath(given)
    slip = not relative.startswith("..") and os.path.isdir(os.path.dirname(os.sep + relative))
    hint = f"An absolute path takes four slashes: sqlite:////{relative}" if slip else "Make the folder first."
    raise BackendError(f"there is no folder {folder}", place=place, errno=errno.ENOENT, hint=hint)


def open_lock_beside(path: str, place: str) -> int:
    """Open the lock file that belongs to a database."""
    name = path + "-lock"
    try:
        return open_lock(name)
    except OSError as error:
        if error.errno == errno.ELOOP:
            hint = "Somebody planted it: remove it after a look at where it points."
            raise BackendError(f"the lock file {name} is a link", place=place, errno=errno.ELOOP, hint=hint) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise read_only(place, error.errno) from error
        raise


def is_lock_beside(fd: int, path: str) -> bool:
    """Tell whether a descriptor is of the lock file that stands there now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path + "-lock"))
    except FileNotFoundError:
        return False


def read_odd(db: sqlite3.Connection, sql: str, parameters: Any) -> list[Any]:
    """Read rows that hold text of another program which is no UTF-8; its odd bytes become halves of surrogate pairs."""
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        return db.execute(sql, parameters).fetchall()
    finally:
        db.text_factory = str


def open_live(path: str, sync: str, timeout: float) -> sqlite3.Connection | Still | None:
    """Open an examined database; `None` when its creation was never finished, a `Still` where nothing can be written."""
    db = connect(path, "mode=rw", timeout)  # SQLite itself falls back to reading where writing is not allowed
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute(f"PRAGMA synchronous = {sync}")
        db.execute("PRAGMA journal_size_limit = 67108864")
        if identity(db)[0] == APPLICATION_ID:  # this is the first look inside: it opens the log,
            return db
    except sqlite3.OperationalError as error:
        db.close()
        barred = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        # (A rollback journal with content says that the file itself must not be believed, and only writing can undo that.)
        if barred and not os.access(os.path.dirname(path), os.W_OK) and not size_of(path + "-journal"):
            return Still(path)
        raise
    except BaseException:
        db.close()
        raise
    db.close()  # ... or takes back what a killed creator left, and nothing remains
    return None


def use_log(db: sqlite3.Connection, timeout: float) -> None:
    """Switch a database to its write-ahead log, unless it is already. That needs a moment in which nobody reads it."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:  # here SQLite does not wait by itself
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            break
    if mode != "wal":
        raise BackendError("this file system cannot share memory, which SQLite needs here", hint="Use a local disk.")


def sync_log(path: str) -> None:
    """Make durable what was committed before. (Of the log, unlike the main file, a descriptor may be opened and closed.)"""
    try:
        fd = os.open(path + "-wal", os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except (FileNotFoundError, NotADirectoryError):
        return  # merged into the main file, durably; or there never was one
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Still:
    """Reads a database in a folder where nothing can be written, not even the index that readers of a log share.

    The files are read as they stand, without locks. Should somebody with more rights write to them after all, that shows
    in their sizes and times after a read, and the read is repeated.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._seen: tuple[object, ...] = ()

    def execute(self, sql: str, parameters: Any = ()) -> Rows:
        for _ in range(100):
            db = self._db or self._open()
            rows = Rows(db.execute(sql, parameters).fetchall())
            if self._look() == self._seen:
                return rows
            self.close()
        raise UnavailableError("it is written to all the time, in a folder that can only be read", hint="Try again.")

    def _open(self) -> sqlite3.Connection:
        self._seen = self._look()
        if size_of(self._path + "-wal"):
            # With a log and no way to share its index, SQLite keeps the index to itself when it takes the file exclusively,
            # which on a file system that cannot be written has to be without locks.
            db = connect(self._path, "mode=ro&vfs=unix-none", 0)
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
        else:
            db = connect(self._path, "mode=ro&immutable=1", 0)
        self._db = db
        return db

    def _look(self) -> tuple[object, ...]:
        found: list[object] = []
        for name in (self._path, self._path + "-wal"):
            try:
                info = os.stat(name)
            except FileNotFoundError:
                found.append(None)
            else:
                found.append((info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
        return tuple(found)

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()


class Rows:
    """What is left of a cursor when all rows have been read."""

    rowcount = 0

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[Any]:
        return self._rows


def size_of(path: str) -> int:
    """The size of a file; 0 when it is absent."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def failure(error: Exception, *, key: object = None, place: str, reading: bool = False, path: str = "") -> PerdureError:
    """Say in our words what SQLite or the operating system raised.

    Args:
        error: The exception.
        key: The key concerned, if one is.
        place: Where.
        reading: Whether damage means that a stored value is lost (`IntegrityError`), or that a write failed (`BackendError`).
        path: The file.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _disk_full(key, place)
    barred = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CANTOPEN
    lacking = _lacking_descriptors() if barred else isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if lacking:
        hint = "Raise the limit (ulimit -n), or close what is open. Each thread needs three or four."
        return UnavailableError("too many files are open", key=key, place=place, errno=errno.EMFILE, hint=hint)
    if isinstance(error, OSError):
        return BackendError(error.strerror or str(error), key=key, place=place, errno=error.errno)
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return BackendError(f"SQLite refused the call: {error}", key=key, place=place)
    if code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC) and not reading:
        # Nobody sees it now, but its bytes may be in the log already, and come back with the next recovery.
        text = "the disk failed while the write was made durable"
        return UnknownOutcomeError(text, key=key, place=place, hint="Check the disk, then read the key.")
    primary = code & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        hint = "Find the program that keeps it locked, or raise the option timeout."
        return UnavailableError("another program keeps the database locked", key=key, place=place, hint=hint)
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        hint = "Restore it from a backup, without -wal and -shm beside it, or save what can be read with: sqlite3 FILE .recover"
        damaged = IntegrityError if reading else BackendError
        return damaged(f"the database is damaged ({error})", key=key, place=place, hint=hint)
    if primary == sqlite3.SQLITE_TOOBIG:
        text = "the value is larger than SQLite allows, which is about 1,000,000,000 bytes"
        return BackendError(text, key=key, place=place, errno=errno.EFBIG, hint="Split it, or use a folder or s3:.")
    if primary == sqlite3.SQLITE_READONLY:
        return read_only(place).at(key)
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and _full(path)):
        return _disk_full(key, place)
    if primary == sqlite3.SQLITE_CANTOPEN:
        hint = "Check that file and folder are there, and their permissions."
        return BackendError(f"the database cannot be opened ({error})", key=key, place=place, hint=hint)
    name = getattr(error, "sqlite_errorname", "")
    return BackendError(f"SQLite failed: {error} ({name})", key=key, place=place)


def not_bytes(key: object, place: str) -> IntegrityError:
    """What a read gets where another program has put a value."""
    return IntegrityError("the stored value is not bytes", key=key, place=place, hint="Restore it from a backup, or delete it.")


def _disk_full(key: object, place: str) -> BackendError:
    hint = "Free some space, which SQLite needs even to delete; what was stored before is still there."
    return BackendError("the disk is full", key=key, place=place, errno=errno.ENOSPC, hint=hint)


def read_only(place: str, number: int | None = errno.EROFS) -> BackendError:
    """What a write gets where only reading is possible."""
    hint = "Reading works. To write, make the file and its folder writable, or use another place."
    return BackendError("the database is read-only", place=place, errno=number, hint=hint)


def _lacking_descriptors() -> bool:
    # SQLite does not tell why it could not open the three files that make a database.
    free: list[int] = []
    try:
        free.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(3))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    finally:
        for fd in free:
            os.close(fd)
    return False


def _full(path: str) -> bool:
    # Where the index of the log cannot grow, SQLite reports an input/output error and not a full disk.
    try:
        return hasattr(os, "statvfs") and os.statvfs(os.path.dirname(path)).f_bavail == 0
    except OSError:
        return False
