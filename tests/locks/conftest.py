"""Places for locks, and a clock that a test sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from locking import Clock

from perdure import pulse
from perdure.protocol import Backend
from perdure.registry import open_backend
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


@pytest.fixture(params=["memory", "file", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    url = {"memory": "memory:", "file": f"file:{tmp_path}/f?sync=normal", "sqlite": f"sqlite:{tmp_path}/s.db?sync=normal"}
    backend = open_backend(url[request.param])
    yield backend
    backend.close()


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)
