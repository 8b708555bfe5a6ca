"""The contract over S3: all of it on an in-memory stub, semantics on moto and on a real SeaweedFS, and there races as well."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from perdure.errors import UnavailableError
from perdure.protocol import ABSENT, Backend
from perdure.testing import BackendContract, BackendMachine
from perdure.testing.lifetime import Lifetime
from perdure.testing.listing import Listing
from perdure.testing.names import Names
from perdure.testing.servers import S3Server
from perdure.testing.values import Bulk, Values
from perdure_backends.s3 import S3Backend

pytest.importorskip("botocore")

LONG = int(os.environ.get("PERDURE_ROUNDS", "1")) > 1


class OnServer:
    endpoint_url: str
    longest_key = 1024 - 40

    def open(self, where: Path) -> S3Backend:
        prefix = f"contract-{hashlib.md5(str(where).encode()).hexdigest()[:30]}"  # 39 characters and a slash
        return S3Backend("contract", prefix, endpoint_url=self.endpoint_url, create=True)

    @pytest.fixture(autouse=True)
    def at_server(self, server: S3Server) -> None:
        self.endpoint_url = server.endpoint_url  # on this object, which travels to other processes


class TestOnStub(OnServer, BackendContract):
    pace = 0.06

    @pytest.fixture
    def server(self, stub: S3Server) -> S3Server:
        return stub


class TestOnMoto(OnServer, Values, Bulk, Lifetime):
    pace = 0.02  # 5 ms a request
    processes = forks = False  # moto compares and writes without a lock

    @pytest.fixture
    def server(self, moto: S3Server) -> S3Server:
        return moto


@pytest.mark.s3
class TestOnSeaweedFS(OnServer, Values, Bulk, Names, Listing, Lifetime):
    pace = 0.1

    @pytest.fixture
    def server(self, seaweedfs: S3Server) -> S3Server:
        return seaweedfs

    def _fill(self, backend: Backend, count: int) -> set[str]:
        # Of a value and one below it that are put at the same moment, SeaweedFS now and then keeps the second only.
        keys = {f"{number % 7}/{number}" if number % 3 else f"{number}" for number in range(count)}
        for below in (False, True):
            backend.put_many({key: key.encode() for key in keys if ("/" in key) is below})
        return keys

    def test_a_key_and_keys_below_it_coexist(self, backend: Backend) -> None:
        keys = ["a", "a/b", "a/b/c", "a.b/c", "a-"]  # parents first ...
        for key in keys:
            backend.put(key, key.encode(), if_match=ABSENT)
        backend.delete("a")
        with pytest.raises(UnavailableError, match="other keys lie below it"):
            backend.put("a", b"", if_match=ABSENT)  # ... because SeaweedFS takes a folder for a value here
        assert {meta.key: backend.get(meta.key).data for meta in backend.scan()} == {key: key.encode() for key in keys[1:]}
        backend.put("a", b"a")
        assert backend.get("a/b").data == b"a/b"


class WithoutFolders(BackendMachine):
    """No key is a folder of another: SeaweedFS refuses to create a value where others lie below."""

    keys = ("a/b", "a.b/c", "a-", "ab", "A", "b/a/b", "b/a/B", ".a", "con", "a=")


@pytest.mark.s3
@pytest.mark.torture
@pytest.mark.skipif(not LONG, reason="takes SeaweedFS minutes: set PERDURE_ROUNDS")
class TestRacesOnSeaweedFS(TestOnSeaweedFS, BackendContract):
    pace = 0.02  # it takes a second or more to make up its mind about eight writers of one key
    machine = WithoutFolders
