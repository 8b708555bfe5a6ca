"""Type checkers see the methods of `AsyncPersiDict`, which are derived, with the types of what they are derived from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_mypy_knows_the_types_of_every_call() -> None:
    pytest.importorskip("mypy")
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("needs the settings of the project")
    command = [sys.executable, "-m", "mypy", "--strict", str(Path(__file__).with_name("typed_twin.py"))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    own = [line for line in done.stdout.splitlines() if "typed_twin" in line or "perdure/aio" in line]
    assert own == [], done.stdout  # what is wrong elsewhere is for others to say
    assert done.returncode in (0, 1), done.stderr
