"""Places for the tests of the mapping; the same tests run over each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perdure.mapping import PersiDict
from perdure.protocol import Backend
from perdure.registry import open_backend

PLACES = ["memory", "file", "sqlite"]


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """A URL that names one and the same new place each time it is opened."""
    return {
        "memory": f"memory:{tmp_path.name}-{id(request)}",
        "file": f"file:{tmp_path}/folder?sync=normal",
        "sqlite": f"sqlite:{tmp_path}/file.db?sync=normal",
    }[request.param]


@pytest.fixture
def backend(url: str) -> Iterator[Backend]:
    with open_backend(url) as backend:
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
