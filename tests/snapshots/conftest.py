"""Places for the tests of snapshots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

PLACES = ["folder", "file", "sqlite", "memory", "s3"]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A small S3 server in a process of its own, and credentials for it in this one."""
    pytest.importorskip("boto3")
    from perdure.testing import servers

    with servers.stub() as server, server.environment():
        yield server.endpoint_url


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new place for snapshots: an ordinary folder, or a backend of each kind."""
    name = hashlib.md5(str(tmp_path).encode()).hexdigest()
    if request.param == "s3":
        return f"s3://snapshots/{name}?create=yes&endpoint_url={quote(request.getfixturevalue('s3_endpoint'))}"
    return {
        "folder": f"file:{tmp_path}/states",
        "file": f"framed:{tmp_path}/framed",
        "sqlite": f"sqlite:{tmp_path}/states.db?sync=normal",
        "memory": f"memory:{name}",
    }[str(request.param)]


@pytest.fixture(autouse=True, scope="session")
def framed() -> None:
    """A scheme for the backend of a folder, as a `file:` URL means snapshots that are directories."""
    from perdure.registry import register

    register("framed", "perdure_backends.file:FileBackend")
