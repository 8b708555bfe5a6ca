"""Places for the tests of the mapping; the same tests run over each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from places import PLACES, url_of

from perdure.mapping import PersiDict
from perdure.protocol import Backend
from perdure.registry import open_backend


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A small S3 server in a process of its own, and credentials for it in this one."""
    pytest.importorskip("boto3")
    from perdure.testing import servers

    with servers.stub() as server, server.environment():
        yield server.endpoint_url


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(place: str, request: pytest.FixtureRequest, tmp_path: Any) -> str:
    return url_of(place, request, tmp_path)


@pytest.fixture(scope="session")
def s3_session(s3_endpoint: str) -> Any:
    """One session for all: making a client without it takes a fifth of a second."""
    import boto3

    return boto3.Session()


@pytest.fixture
def backend(place: str, url: str, request: pytest.FixtureRequest) -> Iterator[Backend]:
    options = {"session": request.getfixturevalue("s3_session")} if place == "s3" else {}
    with open_backend(url, **options) as backend:
        yield backend


@pytest.fixture
def d(backend: Backend) -> PersiDict[Any]:
    return PersiDict(backend)


class Requests:
    """Counts the calls a dict makes, which on S3 are requests (from one thread)."""

    def __init__(self, backend: Backend) -> None:
        self.calls: list[str] = []
        self.within = 0
        for name in ("get", "head", "put", "delete", "contains", "scan", "keys", "get_many", "put_many", "delete_many"):
            setattr(backend, name, self._counted(name, getattr(backend, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self.within:  # what a backend asks of itself is its own affair
                self.calls.append(name)
            self.within += 1
            try:
                return call(*args, **kwargs)
            finally:
                self.within -= 1

        return counted

    def take(self) -> list[str]:
        calls, self.calls[:] = list(self.calls), []
        return calls


@pytest.fixture
def requests_of() -> type[Requests]:
    return Requests
