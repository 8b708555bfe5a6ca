"""Stores of shelve, sqlitedict and diskcache, read without these libraries and without changing them.

::

    from perdure.cli.sources import open_source

    with open_source("old.db", trusted=True) as source:
        for key, value, expires in source.items():
            ...
"""

from __future__ import annotations

import os

from ...errors import BackendError, UsageError
from .caches import COLUMNS, NAME, DiskCache, find_shards
from .database import MAGIC, Database
from .shelf import Shelf, find_dbm
from .source import Entry, Source, UnreadableKey
from .tables import Table

__all__ = ["KINDS", "Entry", "Source", "UnreadableKey", "open_source"]

KINDS = ("shelve", "sqlitedict", "diskcache")
_PERDURE = {"blobs", "settings"}  # the tables of a SQLite file of ours


def open_source(
    path: str | os.PathLike[str], kind: str | None = None, *, table: str | None = None, trusted: bool = False
) -> Source:
    """Open a store of another library to read it. Looking at what it is restores no pickle.

    Args:
        path: A shelf, with or without the ending that dbm adds; a file of sqlitedict; a folder of diskcache (`Cache`,
            `FanoutCache` or `Index`).
        kind: One of `KINDS`; by default what the files show.
        table: Which table of a file of sqlitedict; needed where there are several.
        trusted: Restore the pickles in it, which runs whatever code they name. Without it nothing can be listed.

    Returns:
        The source; close it.

    Raises:
        UsageError: It is none of these, another kind than `kind`, or a table has to be named, or this Python lacks the module
            that reads this sort of dbm file.
        BackendError: There is nothing, it is damaged, or it may not be read.
        UnavailableError: A program has it open to write.

    Cost: opens one file, of a `FanoutCache` one for each shard; nothing is copied unless a killed program left a database to
    be mended. Threads: use what it returns in one only.
    """
    path = os.fspath(path)
    if kind not in (None, *KINDS):
        raise UsageError(f"there is no kind {kind!r}", hint=f"Known: {', '.join(KINDS)}.")
    source = _find(path, table, trusted)
    problem = None
    if kind not in (None, source.kind):
        problem = f"this is a store of {source.kind}, not of {kind}"
    elif table is not None and source.kind != "sqlitedict":
        problem = f"a store of {source.kind} has no tables to choose from"
    if problem is not None:
        source.close()
        raise UsageError(problem, place=path)
    return source


def _find(path: str, table: str | None, trusted: bool) -> Source:
    try:
        if os.path.isdir(path):
            shards = find_shards(path)
            if shards:
                return DiskCache(path, shards, trusted)
        elif os.path.isfile(path) and _is_sqlite(path):
            return _in_database(path, table, trusted)
    except OSError as error:
        if isinstance(error, BackendError):
            raise
        raise BackendError(f"cannot be read: {error.strerror}", place=path, errno=error.errno) from error
    found = find_dbm(path)
    if found is not None:
        return Shelf(*found, trusted)
    if not os.path.exists(path) and not os.path.exists(path + ".db"):  # that is how dbm.ndbm ends, which not every Python has
        raise BackendError("there is nothing here", place=path, hint="Check the spelling; nothing was created.")
    if os.path.exists(os.path.join(path, ".perdure")):
        raise UsageError("this is a place of perdure", place=path, hint="The command cp copies those.")
    raise _unknown(path)


def _is_sqlite(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _in_database(path: str, table: str | None, trusted: bool) -> Source:
    db = Database(path)
    try:
        tables = db.tables()
        if COLUMNS.issubset(name for name, _, _ in tables.get("Cache", ())) and os.path.basename(path) == NAME:
            db.close()
            folder = os.path.dirname(path) or "."
            return DiskCache(folder, [folder], trusted)
        if tables.get("Dict") == [("key", "BLOB", False), ("value", "BLOB", False)]:
            return Table(db, "Dict", "shelve", trusted)
        if _PERDURE.issubset(tables):
            raise UsageError("this is a place of perdure", place=path, hint=f"The command cp copies it: sqlite:///{path}.")
        mine = [name for name, columns in tables.items() if columns == [("key", "TEXT", True), ("value", "BLOB", False)]]
        if table is None and len(mine) == 1:
            table = mine[0]
        if table in mine:
            return Table(db, table, "sqlitedict", trusted)
        if not mine:
            raise _unknown(path)
        there = f"its tables are {', '.join(map(repr, mine))}"
        problem = there if table is None else f"there is no table {table!r}; {there}"
        raise UsageError(problem, place=path, hint="Choose one: --table NAME.")
    except BaseException:
        db.close()
        raise


def _unknown(path: str) -> UsageError:
    hint = "A shelf in a dbm format that this Python reads, a file of sqlitedict or a folder of diskcache is wanted."
    return UsageError("this is no store of shelve, sqlitedict or diskcache", place=path, hint=hint)
