"""Shelves in dbm files."""

from __future__ import annotations

import dbm
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from ...errors import BackendError, IntegrityError, UnavailableError, UsageError
from .source import Entry, Source, unpickle
from .tables import as_text

_ENDINGS = (".db", ".dat", ".dir", ".pag", ".bak")  # of the files that shelve.open makes for a name without any


def find_dbm(path: str) -> tuple[str, str] | None:
    """Tell the name that `shelve.open` takes for a file, and the module that reads it; `None` where there is no dbm file."""
    bare, ending = os.path.splitext(path)
    for name in (path, bare) if ending in _ENDINGS else (path,):
        try:
            module = dbm.whichdb(name)
        except (OSError, *dbm.error):
            continue
        if module:
            return name, module
    return None


class Shelf(Source):
    """A shelf in a dbm file, opened with flag "r".

    Args:
        path: As `shelve.open` takes it.
        module: What `dbm.whichdb` says, such as `"dbm.dumb"`.
        trusted: See `Source`.

    Raises:
        UsageError: This Python has no such module.
        UnavailableError: A program has it open to write.
        BackendError: It cannot be opened, or is damaged.
    """

    def __init__(self, path: str, module: str, trusted: bool) -> None:
        self.kind, self.place, self.trusted, self.expired, self.notes = "shelve", path, trusted, 0, []
        try:
            reader: Any = import_module(module)
        except ImportError as error:
            hint = "Use the Python that wrote it, or install the module: on Debian python3-gdbm for dbm.gnu."
            raise UsageError(f"this shelf needs {module}, which this Python lacks", place=path, hint=hint) from error
        try:
            self._db = reader.open(path, "r")
        except BlockingIOError as error:
            raise UnavailableError("a program has it open to write", place=path, hint="Wait for it, or stop it.") from error
        except (OSError, ValueError, SyntaxError, reader.error) as error:  # dbm.dumb reads its index as Python
            raise BackendError(f"this shelf cannot be opened: {error}", place=path, hint=_about(module)) from error
        self._errors = (OSError, ValueError, KeyError, reader.error)

    def _list(self) -> Iterator[Entry]:
        try:
            keys = list(self._db.keys())
        except self._errors as error:
            raise BackendError(f"this shelf cannot be listed: {error}", place=self.place) from error
        for key in keys:
            yield Entry(as_text(key), key)

    def _read(self, entry: Entry) -> Any:
        try:
            data = self._db[entry.ref]
        except self._errors as error:
            raise IntegrityError(f"it cannot be read: {error}") from error
        return unpickle(bytes(data))

    def close(self) -> None:
        self._db.close()


def _about(module: str) -> str | None:
    return "Its index, the file .dir, may be damaged; .bak is the one before." if module == "dbm.dumb" else None
