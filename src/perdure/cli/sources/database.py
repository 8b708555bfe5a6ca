"""SQLite files of others, read without changing a byte of them or leaving a file beside them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import BackendError, IntegrityError, PerdureError, UnavailableError

MAGIC = b"SQLite format 3\0"
_WAL = (2, 2)  # what a header says where the journal is a write-ahead log
_COPY_TO_MEND = ("SQLITE_READONLY", "SQLITE_CANTOPEN")
Row = tuple[Any, ...]


class Database:
    """One consistent view of a SQLite file, as it was when it was opened.

    SQLite itself writes when it opens a file read-only: it makes an index for the write-ahead log. Where somebody has the file
    open, theirs is used and only looked at. Where nobody has, and there is no log, none is needed. What a killed program left
    to be mended is mended in a copy.

    Programs that write to it meanwhile have to wait where its journal is not a write-ahead log.

    Args:
        path: Of the file.

    Raises:
        BackendError: It cannot be opened, or is no database.
        UnavailableError: A program is writing to it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._before: tuple[int, int] | None = None
        uri = Path(path).absolute().as_uri()
        try:
            with open(path, "rb") as file:
                header = file.read(20)
            if header[18:20] == bytes(_WAL) and not os.path.exists(f"{path}-wal"):
                self._before = self._state()
                self._db = _begin(f"{uri}?immutable=1")
                return
            self._db = _begin(f"{uri}?mode=ro&readonly_shm=1")
        except sqlite3.OperationalError as error:
            if not (error.sqlite_errorname or "").startswith(_COPY_TO_MEND) or not self._left_behind():
                raise self._say(error) from error
            self._open_copy()
        except sqlite3.Error as error:
            raise self._say(error) from error
        except OSError as error:
            raise BackendError(f"cannot be read: {error.strerror}", place=path, errno=error.errno) from error

    def _left_behind(self) -> list[str]:
        return [suffix for suffix in ("-wal", "-journal") if os.path.exists(self.path + suffix)]

    def _open_copy(self) -> None:
        self._copy = tempfile.TemporaryDirectory(prefix="perdure-import-")
        copied = os.path.join(self._copy.name, "copy.db")
        try:
            for suffix in ("", *self._left_behind()):
                shutil.copyfile(self.path + suffix, copied + suffix)
            self._db = _begin(Path(copied).absolute().as_uri())
        except (sqlite3.Error, OSError) as error:
            self._copy.cleanup()
            raise self._say(error) from error

    def _state(self) -> tuple[int, int]:
        state = os.stat(self.path)
        return state.st_size, state.st_mtime_ns

    def rows(self, sql: str, *values: object) -> Iterator[Row]:
        """The rows that a statement finds.

        Raises:
            BackendError: The file is damaged.
        """
        try:
            yield from self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._say(error) from error
        self._require_unchanged()

    def row(self, sql: str, *values: object) -> Row:
        """The one row that belongs to an entry.

        Raises:
            IntegrityError: It cannot be read; others may well be.
            BackendError: Somebody writes to the file.
        """
        try:
            row = self._db.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            raise IntegrityError(f"its row cannot be read: {error}") from error
        self._require_unchanged()
        if row is None:
            raise IntegrityError("its row is not there: the database is damaged")
        return tuple(row)

    def tables(self) -> dict[str, list[tuple[str, str, bool]]]:
        """All tables, and of each the columns: name, declared type, whether it is the primary key."""
        names = [str(name) for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        columns = "SELECT name, upper(type), pk FROM pragma_table_info(?) ORDER BY cid"
        return {table: [(name, kind, pk == 1) for name, kind, pk in self.rows(columns, table)] for table in names}

    def _require_unchanged(self) -> None:
        # Where nobody had the file open it is read without locks, so whoever opens it now has to be noticed.
        if self._before is not None and (self._left_behind() or self._state() != self._before):
            hint = "Let no program write to it, and start again."
            raise BackendError("it was changed while it was read", place=self.path, hint=hint)

    def close(self) -> None:
        """Close it, and remove the copy where there is one."""
        self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

    def _say(self, error: Exception) -> PerdureError:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return UnavailableError("a program is writing to it", place=self.path, hint="Wait for it, or stop it.")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            hint = "The tool sqlite3 saves what can be saved: its command .recover."
            return BackendError(f"this database is damaged: {error}", place=self.path, hint=hint)
        return BackendError(f"this database cannot be read: {error}", place=self.path)


def _begin(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the first look is what opens it
    except BaseException:
        db.close()
        raise
    return db


def quoted(name: str) -> str:
    """A table's name as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'
