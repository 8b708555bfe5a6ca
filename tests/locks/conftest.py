"""Places for locks, and a clock that a test sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from locking import Clock

from perdure import pulse
from perdure.errors import MissingExtraError
from perdure.protocol import Backend
from perdure.registry import open_backend
from perdure.testing import servers
from perdure.testing.servers import RedisServer, S3Server
from perdure_backends.memory import MemoryBackend


@pytest.fixture(autouse=True)
def end_of_all_renewals() -> Iterator[None]:
    """No lease that a test has left held is renewed during the next one."""
    yield
    for beat in pulse._pulse.beats.copy().values():
        beat.stop()


@pytest.fixture
def memory() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    try:
        with servers.redis() as server:
            yield server
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture
def redis_url(redis: RedisServer, tmp_path: Path) -> str:
    return f"{redis.url}/locks-{hashlib.md5(str(tmp_path).encode()).hexdigest()}"


@pytest.fixture(params=["memory", "file", "sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    url = {"memory": "memory:", "file": f"file:{tmp_path}/f?sync=normal", "sqlite": f"sqlite:{tmp_path}/s.db?sync=normal"}
    backend = open_backend(url.get(request.param) or request.getfixturevalue("redis_url"))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def seaweedfs() -> Iterator[S3Server]:
    with servers.seaweedfs() as server, server.environment():
        yield server


@pytest.fixture(params=["file", "sqlite", "redis", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("seaweedfs")
        return f"s3://locks/{tmp_path.name}?create=yes&endpoint_url={server.endpoint_url}"
    if request.param == "redis":
        found: str = request.getfixturevalue("redis_url")
        return found
    return {"file": f"file:{tmp_path}/f?sync=normal", "sqlite": f"sqlite:{tmp_path}/s.db?sync=normal"}[request.param]


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)
