"""Everything in README and docs that looks as if it ran, runs.

Blocks of ```python are run in order, one namespace for a page, in a folder of its own; in ```console the lines that begin
with `$ perdure` are. A comment right before a block says what else to do with it:

* `<!-- not run: why -->`: it is left out.
* `<!-- file: NAME -->`: it is written to that file, whatever its language.
* `<!-- shell -->`: all lines that begin with `$` are run by a shell, and the rest is what they have to print, where `...`
  stands for anything; after `<!-- shell: why -->` it is not compared. What is exported stays so for the page.

`<!-- needs: fastapi, bucket -->` anywhere: the page is skipped where a module is missing; a bucket is `s3://team`.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import perdure
from perdure.errors import MissingExtraError
from perdure.testing import servers

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "backends" / "README.md"]
BLOCK = re.compile(
    r"(?:^<!-- (?P<do>not run|file|shell)(?:: (?P<about>[^>]+))? -->\n+)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NEEDS = re.compile(r"^<!-- needs: ([\w, ]+) -->$", re.MULTILINE)


class Block(NamedTuple):
    line: int
    do: str
    about: str
    code: str


def runnable(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(text[: block.start("code")].count("\n"), block["do"] or block["kind"], block["about"] or "", block["code"])
        for block in BLOCK.finditer(text)
        if block["do"] in ("file", "shell") or (block["do"] is None and block["kind"] in ("python", "console"))
    ]


def needs(page: Path) -> list[str]:
    return [name.strip() for names in NEEDS.findall(page.read_text()) for name in names.split(",")]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A server with a bucket `team`; its address, which is to stand in AWS_ENDPOINT_URL."""
    pytest.importorskip("botocore")
    with ExitStack() as running:
        try:
            server = running.enter_context(servers.seaweedfs())
        except MissingExtraError as error:
            pytest.skip(str(error))
        running.enter_context(server.environment())
        with perdure.open_backend("s3://team", endpoint_url=server.endpoint_url, create=True) as backend:
            backend.put("hello", b"")
            backend.delete("hello")
        yield server.endpoint_url


def with_marks(page: Path) -> Any:
    """A page as a parameter, named after its file."""
    return pytest.param(page, id=page.name, marks=[pytest.mark.s3] if "bucket" in needs(page) else [])


@pytest.mark.parametrize("page", [with_marks(page) for page in PAGES if page.exists() and runnable(page)])
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for needed in needs(page):
        if needed == "bucket":
            monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("bucket"))
        else:
            pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # for what is written to files
    module = ModuleType("page_" + page.stem.replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses and pickle look their module up
    for block in runnable(page):
        if block.do == "python":
            code = compile("\n" * block.line + block.code, str(page), "exec")  # the line numbers of the page, in a traceback
            exec(code, module.__dict__)
        elif block.do == "file":
            Path(block.about).write_text(block.code)
        elif block.do == "shell":
            run_in_shell(block, page, monkeypatch)
        else:
            run_perdure(block, page)


def run_perdure(block: Block, page: Path) -> None:
    for command in block.code.splitlines():
        if command.startswith("$ perdure"):
            arguments = shlex.split(command[2:], comments=True)[1:]
            done = subprocess.run([sys.executable, "-m", "perdure", *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}{done.stderr}"


def run_in_shell(block: Block, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = block.code.splitlines()
    script = "\n".join([line[2:] for line in lines if line.startswith("$ ")] + ["env -0 > .environment"])
    wanted = "\n".join(line for line in lines if not line.startswith("$ ")) + "\n"
    environment = os.environ | {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",  # what several print at once appears in the order in which they do
    }
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    where = f"{page.name}, line {block.line}"
    assert done.returncode == 0, f"{where}:\n{done.stdout}"
    if not block.about:
        matches = doctest.OutputChecker().check_output(wanted, done.stdout or "\n", doctest.ELLIPSIS)
        assert matches, f"{where} should have printed\n{wanted}\nand has printed\n{done.stdout}"
    for line in Path(".environment").read_text().split("\0"):
        name, _, value = line.partition("=")
        if name.isidentifier() and environment.get(name) != value and name not in ("_", "PWD", "OLDPWD", "SHLVL"):
            monkeypatch.setenv(name, value)


def test_the_readme_stops() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
