"""A small S3 server for a file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.testing import servers
from perdure.testing.servers import S3Server


@pytest.fixture(scope="module")
def stub() -> Iterator[S3Server]:
    pytest.importorskip("botocore")
    with servers.stub() as server, server.environment():
        yield server
