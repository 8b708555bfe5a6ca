"""The example of "Write a backend" passes the kit, installs as a plug-in, and keeps what is said about it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.testing import BackendContract

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-backend.md"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the files of the page, and what installing it as a distribution would add."""
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)
    entry = re.search(r"^```toml\n\[project.entry-points.\"(.+)\"\]\n(\w+) = \"(.+)\"\n```$", PAGE.read_text(), re.MULTILINE)
    assert entry
    info = tmp_path / "perdure_onefile-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: perdure-onefile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2]} = {entry[3]}\n")
    return tmp_path


def run(files: Path, *command: str) -> str:
    path = os.pathsep.join([str(files), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=files,
        env=os.environ | {"PYTHONPATH": path, "PERDURE_ROUNDS": "1"},  # the kit is at stake here, not the example
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_passes_the_kit(files: Path) -> None:
    out = run(files, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={files / 'base'}", "test_onefile.py")
    assert re.search(r"^\d+ passed in", out, re.MULTILINE), out
    assert "skipped" not in out


def test_the_example_plugs_in(files: Path) -> None:
    code = "import perdure; d = perdure.open('onefile:state.json?indent=2'); d['a', 'b'] = [1, 2]; print(d['a', 'b'])"
    assert run(files, "-c", code) == "[1, 2]\n"
    assert '\n  "last": 1' in (files / "state.json").read_text()
    assert run(files, "-m", "perdure", "ls", "onefile:state.json").split()[0] == "a/b"


def test_the_page_lists_the_flags_as_they_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    flags = {name: getattr(BackendContract, name) for cls in BackendContract.__mro__ for name in inspect.get_annotations(cls)}
    assert {name: eval(value) for name, value in rows} == flags
