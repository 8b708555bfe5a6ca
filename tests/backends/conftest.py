"""S3 servers, one of each for a file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.testing import servers
from perdure.testing.proxy import FaultProxy
from perdure.testing.servers import S3Server


@pytest.fixture(scope="module")
def stub() -> Iterator[S3Server]:
    with servers.stub() as server, server.environment():
        yield server


@pytest.fixture(scope="module")
def seaweedfs() -> Iterator[S3Server]:
    with servers.seaweedfs() as server, server.environment():
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    pytest.importorskip("moto.server")
    with servers.moto() as server, server.environment():
        yield server


@pytest.fixture
def proxy(stub: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(stub.endpoint_url) as proxy:
        yield proxy
