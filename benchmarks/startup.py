"""A new process that opens what is there and reads one value, beside a new process that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import perdure

from . import contestants
from .contestants import VALUE
from .harness import Effort, Goal, Row, race

_NOTHING = "python -c pass"


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure in new folders below `where`."""
    notes: list[str] = []
    with ExitStack() as stack:
        root = stack.enter_context(contestants.folder(where))
        scripts = {_NOTHING: "pass", "import perdure": "import perdure"}
        for name, url in (("perdure, file", f"{root}/file"), ("perdure, sqlite", f"sqlite:///{root}/sqlite.db")):
            with perdure.open(url) as d:
                d["a"] = VALUE
            scripts[name] = f"import perdure; perdure.open({url!r})['a']"
        if (theirs := contestants.diskcache(stack, f"{root}/diskcache", notes)) is not None:
            theirs["a"] = VALUE
            scripts["diskcache"] = f"import diskcache; diskcache.Cache({root + '/diskcache'!r})['a']"
        if (theirs := contestants.persidict(f"{root}/persidict", notes)) is not None:
            theirs["a"] = VALUE
            scripts["persidict"] = f"import persidict; persidict.FileDirDict(base_dir={root + '/persidict'!r})['a']"
        # As after an installation: compiled once, wherever this environment keeps or does not keep that.
        variables = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
        variables["PYTHONPYCACHEPREFIX"] = f"{root}/compiled"
        racing: dict[str, Any] = {n: lambda _, script=script: _start(script, variables) for n, script in scripts.items()}
        goals = [Goal(name, of=_NOTHING, plus=30) for name in ("perdure, file", "perdure, sqlite")]
        return [race("startup", "new process: import, open, get", racing, [None], effort, goals=goals, unit="ms", notes=notes)]


def _start(script: str, variables: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", script], check=True, env=variables)
