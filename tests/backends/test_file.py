"""The file backend keeps the contract, in both layouts and both degrees of durability."""

from __future__ import annotations

from pathlib import Path

from perdure.testing import BackendContract
from perdure_backends.file import FileBackend


class TestFramed(BackendContract):
    longest_segment = 247  # a file name has 255 bytes, and `.perdure` takes 8

    def open(self, where: Path) -> FileBackend:
        return FileBackend(where, sync="normal")


class TestDurable(BackendContract):
    longest_segment = 247
    pace = 0.5  # two fsyncs a write

    def open(self, where: Path) -> FileBackend:
        return FileBackend(where)


class TestPlain(BackendContract):
    longest_segment = 246  # `_` and 4 characters of digest and `.pkl`

    def open(self, where: Path) -> FileBackend:
        return FileBackend(where, layout="plain", suffix=".pkl", digest_len=4, sync="normal")
