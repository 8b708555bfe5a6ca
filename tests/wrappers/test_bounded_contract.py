"""`Bounded` keeps the contract of whatever it stands before, as long as nothing has to go."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from perdure.testing import BackendContract
from perdure.testing.lifetime import Forks, Lifetime
from perdure.testing.listing import Listing
from perdure.testing.servers import S3Server
from perdure.testing.values import Bulk, Values
from perdure.wrappers import Bounded
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend
from perdure_backends.sqlite import SQLiteBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))  # the more of them, the more values there are that have to have room


def counts(key: str) -> bool:
    return key != "a"


class TestOverFolder(BackendContract):
    """With so small a share that values are written with and without a look at the place before."""

    longest_segment = 247
    pace = 0.5

    def open(self, where: Path) -> Bounded:
        return Bounded(FileBackend(where, sync="normal"), max_bytes="20 MB")


class TestOverDatabase(BackendContract):
    pace = 0.5

    def open(self, where: Path) -> Bounded:
        return Bounded(SQLiteBackend(where, sync="normal"), max_items=2000 * ROUNDS, only=counts)


class TestOverMemory(BackendContract):
    processes = False
    pace = 0.5

    def open(self, where: Path) -> Bounded:
        return Bounded(MemoryBackend(str(where)), max_bytes="10 MB", max_items=1000 * ROUNDS)


class TestOverNull(BackendContract):
    keeps = False

    def open(self, where: Path) -> Bounded:
        return Bounded(NullBackend(), max_items=1)


class TestOverStub(Values, Bulk, Listing, Lifetime, Forks):
    longest_key = 1024 - 40
    pace = 0.06

    @pytest.fixture(autouse=True)
    def at_server(self, stub: S3Server) -> None:
        self.endpoint_url = stub.endpoint_url  # on this object, which travels to other processes

    def open(self, where: Path) -> Bounded:
        from perdure_backends.s3 import S3Backend

        prefix = f"contract-{hashlib.md5(str(where).encode()).hexdigest()[:30]}"
        return Bounded(S3Backend("contract", prefix, endpoint_url=self.endpoint_url, create=True), max_bytes="1 GB")
