"""The short part that is also run against the installed wheel: no imports from beside this file, no source tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import perdure

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("url", ["{}/folder", "file:{}/folder?sync=normal", "sqlite:///{}/app.db", "memory:smoke"])
def test_a_dict_lasts(tmp_path: Path, url: str) -> None:
    url = url.format(tmp_path)
    with perdure.open(url) as d:
        d["settings", "theme"] = {"name": "dark", "sizes": (1, 2)}
        assert d.transform_item("hits", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1).new_value == 1
    with perdure.open(url) as d:
        assert d["settings", "theme"] == {"name": "dark", "sizes": (1, 2)}
        assert sorted(map(str, d)) == ["hits", "settings/theme"]


def test_null_keeps_nothing() -> None:
    with perdure.open("null:") as d:
        d["a"] = 1
        assert len(d) == 0


def test_another_process_sees_it(tmp_path: Path) -> None:
    perdure.open(tmp_path / "folder")["a"] = [1, 2.5, None]
    code = f"import perdure; print(perdure.open({str(tmp_path / 'folder')!r})['a'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "[1, 2.5, None]\n"


def test_the_command_line(tmp_path: Path) -> None:
    place = str(tmp_path / "folder")
    for arguments, answer in ((["set", place, "a/b", "5"], ""), (["get", place, "a/b"], "5"), (["ls", place], "a/b")):
        done = subprocess.run([sys.executable, "-m", "perdure", *arguments], capture_output=True, text=True, check=True)
        assert answer in done.stdout


def test_types_are_shipped() -> None:
    assert (Path(perdure.__file__).parent / "py.typed").exists()
