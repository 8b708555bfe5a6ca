"""Everything in README and docs that looks as if it ran, runs.

Blocks of ```python are run in order, one namespace for a page, in a folder of its own; in ```console the lines that begin
with `$ perdure` are. A block after a comment `<!-- not run: why -->` is left out.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "backends" / "README.md"]
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\n+)?^```(?P<kind>python|console)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def runnable(page: Path) -> list[tuple[int, str, str]]:
    text = page.read_text()
    return [
        (text[: block.start("code")].count("\n"), block["kind"], block["code"])
        for block in BLOCK.finditer(text)
        if not block["skip"]
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists() and runnable(page)], ids=lambda page: page.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page_" + page.stem.replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses and pickle look their module up
    names = module.__dict__
    for line, kind, code in runnable(page):
        if kind == "python":
            exec(compile("\n" * line + code, str(page), "exec"), names)  # the line numbers of the page, in a traceback
            continue
        for command in code.splitlines():
            if command.startswith("$ perdure"):
                arguments = shlex.split(command[2:], comments=True)[1:]
                done = subprocess.run(
                    [sys.executable, "-m", "perdure", *arguments], capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}{done.stderr}"


def test_the_readme_stops() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
