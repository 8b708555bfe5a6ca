"""SQLite files with a table of keys and values: what sqlitedict writes, and shelve from Python 3.13 on."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from ...errors import UsageError
from .database import Database, quoted
from .source import Entry, Source, looks_pickled, unpickle


class Table(Source):
    """One table `(key, value)`.

    Args:
        db: The file; closed with this.
        table: Its name.
        kind: `"sqlitedict"`, or `"shelve"`, whose keys are text as bytes.
        trusted: See `Source`.
    """

    def __init__(self, db: Database, table: str, kind: str, trusted: bool) -> None:
        self.kind, self.place, self.trusted, self.expired, self.notes = kind, db.path, trusted, 0, []
        self._db = db
        self._table = quoted(table)
        self._name = table

    def _list(self) -> Iterator[Entry]:
        if self.kind == "sqlitedict":
            self._require_pickles()
        pickled_keys = self._has_pickled_keys()
        for rowid, key in self._db.rows(f"SELECT rowid, key FROM {self._table} ORDER BY rowid"):
            if pickled_keys:
                data = base64.b64decode(key)
                yield Entry(unpickle_key(data), rowid, data)
            else:
                yield Entry(as_text(key) if self.kind == "shelve" else key, rowid)

    def _read(self, entry: Entry) -> Any:
        return unpickle(self._db.row(f"SELECT value FROM {self._table} WHERE rowid = ?", entry.ref)[0])

    def close(self) -> None:
        self._db.close()

    def _require_pickles(self) -> None:
        """Refuse a table of which not a single value is a pickle: it was opened with functions of the user's own."""
        pickle = "typeof(value) = 'blob' AND substr(value, 1, 1) = x'80'"
        some, pickles = next(self._db.rows(f"SELECT EXISTS({_any(self._table)}), EXISTS({_any(self._table)} WHERE {pickle})"))
        if some and not pickles:
            raise UsageError(
                f"no value in table {self._name!r} is a pickle, so it was written with an encode function of its own",
                place=self.place,
                hint="Read it in Python, with the same functions, and give it to the update method of a dict.",
            )

    def _has_pickled_keys(self) -> bool:
        """Whether every key is a pickle in base64, as sqlitedict's own encode_key spells keys that are no text."""
        if self.kind != "sqlitedict":
            return False
        keys = [key for (key,) in self._db.rows(f"SELECT key FROM {self._table} LIMIT 20")]
        if not keys or not all(map(_is_pickled_key, keys)):
            return False
        return all(_is_pickled_key(key) for (key,) in self._db.rows(f"SELECT key FROM {self._table}"))


def as_text(key: Any) -> Any:
    """The text that a shelf's key stands for; the bytes themselves where they are none."""
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError:
        return key


def unpickle_key(data: bytes) -> Any:
    """A key from its pickle, or what says why there is none."""
    from ...errors import CodecError
    from .source import UnreadableKey

    try:
        return unpickle(data)
    except CodecError as error:
        return UnreadableKey(error.problem)


def _any(table: str) -> str:
    return f"SELECT 1 FROM {table}"


def _is_pickled_key(key: Any) -> bool:
    try:
        return isinstance(key, str) and looks_pickled(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        return False
