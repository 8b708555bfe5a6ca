"""Run a function of `children.py` under strace: recorded, killed at a certain system call, or with a call that fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from ledger import lines, start


def _works() -> bool:
    if not shutil.which("strace"):
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


needed = pytest.mark.skipif(not _works(), reason="needs strace (Debian package strace), and to be allowed to use it")

# What changes a disk or a lock; `?`: not every machine has it.
CALLS = (
    "openat,?creat,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,?rename,?renameat,renameat2,?link,linkat,"
    "?symlink,symlinkat,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,fsync,fdatasync,sync,syncfs,sync_file_range,msync"
)


class Nth(NamedTuple):
    """The `number`th call of this name in the life of a process, counted from 1."""

    name: str
    number: int


def run(trace: Path, what: str, *arguments: object, at: Nth | None = None, do: str = "", also: str = "") -> list[str]:
    """Run a function and return what it said.

    Args:
        trace: Where to write down its calls.
        what: The name of the function.
        arguments: Of the function.
        at: The call that something happens to.
        do: What happens, as strace calls it: `signal=SIGKILL` (before the call) or `error=EIO` (instead of the call).
        also: More calls to watch, each with a comma in front.
    """
    command = ["strace", "-f", "-xx", "-s", "9999999", "-o", str(trace), "-e", f"trace={CALLS}{also}"]
    # Faster, but then nothing happens to any call.
    command += ["-e", f"inject={at.name}:{do}:when={at.number}"] if at else ["--seccomp-bpf"]
    child = start(what, *arguments, before=command)
    said = list(lines(child))
    assert child.returncode == (-9 if do == "signal=SIGKILL" else 0), f"{at}: the child ended otherwise than planned"
    return said


def steps(trace: Path) -> list[tuple[Nth, str]]:
    """The calls of a recorded process, failed ones included, after its first line of output; with the whole line."""
    found, counts, begun = [], Counter[str](), False
    for line in trace.read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if call is None:
            continue
        name = call[1]
        counts[name] += 1
        if " write(1, " in line:
            begun = True
        elif begun:
            found.append((Nth(name, counts[name]), line))
    return found
