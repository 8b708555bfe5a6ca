"""How commands are run: in this process where that is enough, as real processes where signals, pipes and kills matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from perdure.cli.app import app


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path, input: str | bytes | None = None, code: int | None = 0) -> Answer:
        result = CliRunner().invoke(app, [str(word) for word in words], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code is None or result.exit_code == code, result.output
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Run:
    """Run `python -m perdure ...` in an empty folder."""

    def process(*words: str | Path, input: bytes | None = None, code: int | None = 0, **env: str) -> Answer:
        command = [sys.executable, "-m", "perdure", *map(str, words)]
        done = subprocess.run(command, input=input, capture_output=True, cwd=tmp_path, env=os.environ | env, check=False)
        answer = Answer(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert code is None or answer.code == code, answer
        return answer

    return process


@pytest.fixture(params=["file", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that does not exist yet."""
    return f"file:{tmp_path}/place" if request.param == "file" else f"sqlite:///{tmp_path}/place.db"
