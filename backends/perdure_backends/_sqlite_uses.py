"""When the values of a database were last read: a table of its own, which only `mark_used` makes and writes.

So a database of before is as valid as ever, older versions go on with one that has the table, and whoever never marks anything
pays nothing. A row counts as long as it is later than the time of writing, so that of a value that was rewritten is without
effect. That of a value that was deleted stays for a while: every call looks through some rows and removes such.

Marks become durable with the next durable write, and not by themselves (see `Calls._loosely`): to forget some in a power cut
harms nobody.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from typing import Any

from perdure.protocol import check_key

from ._sqlite_calls import Calls

_IS_THERE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'uses'"
_MAKE = "CREATE TABLE IF NOT EXISTS uses (key TEXT NOT NULL PRIMARY KEY, used REAL NOT NULL)"
_BELOW = "WHERE b.key > CAST(? AS TEXT) AND b.key < ? ORDER BY b.key LIMIT ?"
_WRITTEN = f"SELECT b.key, length(b.data), b.modified FROM blobs b {_BELOW}"
_USED = (
    "SELECT b.key, length(b.data), max(b.modified, coalesce(u.used, 0.0)) "
    f"FROM blobs b LEFT JOIN uses u ON u.key = b.key {_BELOW}"
)
_MARK = (
    "WITH marks (key, used) AS (VALUES {}) "
    "INSERT INTO uses SELECT m.key, m.used FROM marks m CROSS JOIN blobs b ON b.key = m.key WHERE m.used > b.modified "
    "ON CONFLICT (key) DO UPDATE SET used = excluded.used WHERE excluded.used > used"
)
_START = "SELECT coalesce(min(rowid) + ? * (max(rowid) - min(rowid)), 0) FROM uses"
_NEXT = (
    "SELECT u.rowid, b.key IS NULL FROM uses u LEFT JOIN blobs b ON b.key = u.key WHERE u.rowid > ? ORDER BY u.rowid LIMIT ?"
)
_FORGET = "DELETE FROM uses WHERE rowid IN ({}) AND NOT EXISTS (SELECT 1 FROM blobs b WHERE b.key = uses.key)"

_TOGETHER = 200  # rows that are written by one statement, so that others wait for no more than that


class Uses:
    """The marks in a database.

    Args:
        calls: Of this database.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._swept: int | None = None  # the last row that was looked at

    def listing(self) -> str:
        """The statement that lists keys, sizes and uses between two keys."""
        return _USED if self._is_there() else _WRITTEN

    def mark(self, times: Mapping[str, float]) -> None:
        """As `Backend.mark_used`."""
        marks = [(check_key(key), float(when)) for key, when in times.items()]
        self._calls.check_open()
        if not marks:
            return
        if not self._is_there():
            self._write(_MAKE, [])
        for start in range(0, len(marks), _TOGETHER):
            some = marks[start : start + _TOGETHER]
            self._write(_MARK.format(", ".join(["(?, ?)"] * len(some))), list(chain.from_iterable(some)))
        self._sweep(2 * len(marks) + 10)  # more than were added, so that those of deleted values never pile up

    def _is_there(self) -> bool:
        return bool(self._calls.read(_IS_THERE, (), None))

    def _sweep(self, count: int) -> None:
        """Look at so many rows, on from where the last call stopped, and remove those of values that are no more."""
        read = self._calls.read
        if self._swept is None:
            share = int.from_bytes(os.urandom(4), "big") / 2**32  # somewhere, as many processes may live for one call only
            found = read(_START, (share,), None)
            self._swept = int(found[0][0]) if found else 0
        rows = read(_NEXT, (self._swept, count), None)
        self._swept = rows[-1][0] if len(rows) == count else 0
        gone = [row for row, is_gone in rows if is_gone]
        for start in range(0, len(gone), _TOGETHER):
            some = gone[start : start + _TOGETHER]
            self._write(_FORGET.format(",".join("?" * len(some))), some)

    def _write(self, sql: str, values: list[Any]) -> None:
        self._calls.write(None, sql, values, creating=False, many=True, loosely=True)
