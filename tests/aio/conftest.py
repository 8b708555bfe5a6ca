"""Places for the tests of asyncio, and a backend that stops where a test wants it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from perdure.protocol import Blob, Buffer, Condition, ETag
from perdure_backends.memory import MemoryBackend


@pytest.fixture(scope="session")
def stub_endpoint() -> Iterator[str]:
    """A small S3 server in a process of its own, and credentials for it in this one."""
    pytest.importorskip("boto3")
    from perdure.testing import servers

    with servers.stub() as server, server.environment():
        yield server.endpoint_url


@pytest.fixture(params=["memory", "file", "sqlite", "s3"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Gives a URL for each name, of a place that is new."""
    unique = f"{tmp_path.parent.name}-{tmp_path.name}".lower().replace("_", "-")

    def url(name: str) -> str:
        if request.param == "s3":
            endpoint = quote(request.getfixturevalue("stub_endpoint"))
            return f"s3://asyncio/{unique}-{name}?create=yes&endpoint_url={endpoint}"
        return {
            "memory": f"memory:{unique}-{name}",
            "file": f"file:{tmp_path}/{name}?sync=normal",
            "sqlite": f"sqlite:{tmp_path}/{name}.db?sync=normal",
        }[request.param]

    return url


class Stopping(MemoryBackend):
    """Each get and put of the key `slow` says that it has begun, and waits until it may go on."""

    PATIENCE = 60

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.log: list[str] = []

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        self._stop("get", key)
        return super().get(key, if_none_match=if_none_match)

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._stop("put", key)
        return super().put(key, data, if_match=if_match)

    def close(self) -> None:
        self.log.append("closed")
        super().close()
        self.ended.set()

    def _stop(self, name: str, key: str) -> None:
        if key == "slow":
            self.begun.release()
            assert self.go_on.wait(self.PATIENCE)
        self.log.append(f"{name} {key}")


@pytest.fixture
def stopping() -> Iterator[Stopping]:
    backend = Stopping()
    yield backend
    backend.go_on.set()


@pytest.fixture
def threads_end() -> Callable[[], None]:
    """Checks that the threads of all dicts end that are made from now on."""
    before = set(threading.enumerate())

    def check() -> None:
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("perdure-aio"):
                thread.join(Stopping.PATIENCE)
                assert not thread.is_alive(), thread

    return check


class Synchronous:
    """An `AsyncPersiDict` behind the face of a `PersiDict`, so that one story can be told to both."""

    def __init__(self, twin: Any, wait: Callable[[Any], Any]) -> None:
        self._twin = twin
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._twin, name)
        return self._waiting(member) if callable(member) else member

    def _waiting(self, member: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = member(*args, **kwargs)
            if hasattr(answer, "__await__"):
                answer = self._wait(answer)
            elif hasattr(answer, "__aiter__") and not hasattr(answer, "sync"):

                async def all_of() -> list[Any]:
                    return [entry async for entry in answer]

                answer = iter(self._wait(all_of()))
            if isinstance(answer, dict):
                return {key: self._faced(value) for key, value in answer.items()}
            return self._faced(answer)

        return call

    def _faced(self, answer: Any) -> Any:
        return Synchronous(answer, self._wait) if hasattr(answer, "sync") else answer

    def __iter__(self) -> Iterator[Any]:
        async def all_of() -> list[Any]:
            return [key async for key in self._twin]

        return iter(self._wait(all_of()))

    def __bool__(self) -> bool:
        return not self._wait(self._twin.is_empty())


def _forward(name: str, to: str) -> None:
    setattr(Synchronous, name, lambda self, *args: self._waiting(getattr(self._twin, to))(*args))


_forward("__getitem__", "__getitem__")
_forward("__setitem__", "set")
_forward("__delitem__", "delete")
_forward("__contains__", "contains")
_forward("__len__", "count")
_forward("__eq__", "equals")


@pytest.fixture
def synchronous() -> type[Synchronous]:
    return Synchronous
