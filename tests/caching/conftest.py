"""Places for caches, and a way to run Python in other processes that use them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(params=["file", "sqlite", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that threads share."""
    return {"file": str(tmp_path / "cache"), "sqlite": f"sqlite:///{tmp_path}/cache.db", "memory": f"memory:{tmp_path}"}[
        request.param
    ]


@pytest.fixture(params=["file", "sqlite"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that processes share."""
    return {"file": str(tmp_path / "cache"), "sqlite": f"sqlite:///{tmp_path}/cache.db"}[request.param]


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a Python process that runs some lines; they may import what is in this folder."""
    children: list[subprocess.Popen[str]] = []

    def begin(lines: str, *arguments: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(lines), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def finish() -> Callable[..., str]:
    """Wait for a process to end well, and tell what it printed."""

    def wait(child: subprocess.Popen[str]) -> str:
        output, _ = child.communicate(timeout=120)
        assert child.returncode == 0, output
        return output

    return wait
