"""The SQLite backend keeps the contract, in both degrees of durability. What is special to it is in test_sqlite_*.py."""

from __future__ import annotations

from pathlib import Path

from perdure.testing import BackendContract
from perdure_backends.sqlite import SQLiteBackend


class TestNormal(BackendContract):
    def open(self, where: Path) -> SQLiteBackend:
        return SQLiteBackend(where, sync="normal")


class TestFull(BackendContract):
    pace = 0.5  # an fsync a write

    def open(self, where: Path) -> SQLiteBackend:
        return SQLiteBackend(where)
