"""`Cached` keeps the contract of whatever it stands before, though all places of a test share one folder of copies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from perdure.testing import BackendContract
from perdure.testing.lifetime import Forks, Lifetime
from perdure.testing.listing import Listing
from perdure.testing.names import Names
from perdure.testing.servers import S3Server
from perdure.testing.values import Bulk, Values
from perdure.wrappers import Cached
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend


def copies(where: Path) -> FileBackend:
    return FileBackend(where.with_name("copies"), sync="normal")


class TestOverFolder(BackendContract):
    longest_segment = 247
    pace = 0.5

    def open(self, where: Path) -> Cached:
        return Cached(FileBackend(where, sync="normal"), copies(where))


class TestChain(BackendContract):
    longest_segment = 247
    pace = 0.2

    def open(self, where: Path) -> Cached:
        middle = FileBackend(where.with_name("middle"), sync="normal")
        return Cached(Cached(FileBackend(where, sync="normal"), middle), copies(where))


class TestAnsweredUnasked(Values, Bulk, Names, Listing):
    """What does not look through one handle at what another one wrote."""

    longest_segment = 247
    pace = 0.5

    def open(self, where: Path) -> Cached:
        return Cached(FileBackend(where, sync="normal"), copies(where), recheck="1 h", absent_for="1 h")


class TestOverMemory(BackendContract):
    processes = False
    pace = 0.5

    def open(self, where: Path) -> Cached:
        return Cached(MemoryBackend(str(where)), copies(where))


class TestOverNull(BackendContract):
    keeps = False

    def open(self, where: Path) -> Cached:
        return Cached(NullBackend(), copies(where))


class TestOverStub(Values, Bulk, Listing, Lifetime, Forks):
    longest_key = 1024 - 40
    pace = 0.06

    @pytest.fixture(autouse=True)
    def at_server(self, stub: S3Server) -> None:
        self.endpoint_url = stub.endpoint_url  # on this object, which travels to other processes

    def open(self, where: Path) -> Cached:
        from perdure_backends.s3 import S3Backend

        prefix = f"contract-{hashlib.md5(str(where).encode()).hexdigest()[:30]}"
        return Cached(S3Backend("contract", prefix, endpoint_url=self.endpoint_url, create=True), copies(where))
