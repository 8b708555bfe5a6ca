"""What all tortures share: values that prove themselves, child processes, and what a killed one must have left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import perdure
import perdure_backends
from perdure.errors import NotFoundError
from perdure.protocol import Backend
from perdure_backends.file import FileBackend
from perdure_backends.sqlite import SQLiteBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))
PLACES = [("file", "full"), ("file", "normal"), ("sqlite", "full"), ("sqlite", "normal")]
STUCK = 30.0
"""Seconds after which something that does not come back counts as stuck for ever."""

_HERE = Path(__file__).parent
_CHILDREN = str(_HERE / "children.py")


def opened(kind: str, sync: str, where: str | os.PathLike[str]) -> Backend:
    """A handle on the place `where`: a `file` folder, a `plain` one (values without a header), or an `sqlite` database."""
    if kind == "file":
        return FileBackend(where, sync=sync)
    if kind == "plain":
        return FileBackend(where, sync=sync, layout="plain", suffix=".bin", digest_len=4)
    return SQLiteBackend(where, sync=sync)


def value(key: str, version: int, size: int) -> bytes:
    """A value that tells its key and version, and where every byte counts: about 30 bytes more than `size`."""
    head = f"{key} {version} {size} ".encode()
    block = blake2b(head).digest()
    whole = head + (block * (size // 64 + 1))[:size]
    return whole + blake2b(whole, digest_size=16).digest()


def version_of(key: str, data: bytes) -> int:
    """The version of a value; fails when it is torn, or another key's."""
    whole, digest = data[:-16], data[-16:]
    assert blake2b(whole, digest_size=16).digest() == digest, (
        f"what is under {key} is torn: {data[:40]!r}..., {len(data)} bytes"
    )
    name, version, _ = whole.split(b" ", 2)
    assert name.decode() == key, f"what is under {key} belongs to {name.decode()}"
    return int(version)


def seen(backend: Backend, key: str) -> int | None:
    """The version under a key, whole; `None` when it is absent."""
    try:
        return version_of(key, backend.get(key).data)
    except NotFoundError:
        return None


class Ledger:
    """What a writer announced (`>`), and what was acknowledged to it (`<`) or refused (`=`), key by key.

    Each line is `> key version`, with `-` for a delete. A writer does one thing at a time.

    Attributes:
        due: The versions each key may have: one, or two while the outcome of a write is unknown. Others are absent.
        pending: The writes that were announced and not answered yet.
        acknowledged: How many writes were.
        counted: The versions of the key `shared` that were acknowledged.
        uncounted: Those that may or may not have happened.
    """

    def __init__(self) -> None:
        self.due: dict[str, set[int | None]] = {}
        self.pending: dict[str, int | None] = {}
        self.acknowledged = 0
        self.counted: list[int] = []
        self.uncounted: list[int] = []
        self._before: dict[str, set[int | None]] = {}

    def note(self, line: str) -> None:
        """Take down one line."""
        mark, key, version = line.split()
        number = None if version == "-" else int(version)
        if mark == ">":
            assert key not in self.pending, f"{line}: it had not finished {self.pending}"
            self.pending[key] = number
            if key != "shared":
                self._before[key] = self.due.get(key, {None})
                self.due[key] = self._before[key] | {number}
            return
        assert mark in "<=" and self.pending.pop(key, "nothing") == number, f"a line out of place: {line}"
        self.acknowledged += mark == "<"
        if key != "shared":
            self.due[key] = {number} if mark == "<" else self._before[key]
        elif mark == "<":
            assert number is not None
            self.counted.append(number)

    def forget(self) -> str | None:
        """The writer was killed: it will not finish what it began. Return the key."""
        pending, self.pending = self.pending, {}
        self.uncounted += [number for key, number in pending.items() if key == "shared" and number is not None]
        return next(iter(pending), None)

    def check(self, backend: Backend) -> dict[str, int | None]:
        """Everything acknowledged is there, and what was not happened as a whole or not at all. Return the versions."""
        versions = {key: seen(backend, key) for key in self.due}
        for key, version in versions.items():
            assert version in self.due[key], f"{key} has version {version}, and one of {self.due[key]} was due"
        return versions

    def settle(self, backend: Backend) -> None:
        """Check, and take what is there for granted from now on."""
        self.due = {key: {version} for key, version in self.check(backend).items()}


def check_counter(backend: Backend, ledgers: Iterable[Ledger]) -> None:
    """The key `shared` has counted every acknowledged swap once, and nothing but what was announced."""
    counted = [number for ledger in ledgers for number in ledger.counted]
    uncounted = [number for ledger in ledgers for number in ledger.uncounted]
    assert len(set(counted)) == len(counted), "two swaps won from one version"
    final = seen(backend, "shared") or 0
    lost = set(range(1, final + 1)) - set(counted) - set(uncounted)
    assert not lost and final >= max(counted, default=0), (
        f"{final} swaps happened; {lost} were not announced; {max(counted)} was"
    )


def start(what: str, *args: object, before: Iterable[str] = (), site: bool = False) -> subprocess.Popen[str]:
    """Start a function of `children.py` in a process of its own, with its output in a pipe.

    Args:
        what: The name of the function.
        args: Its arguments, as strings.
        before: A command to run it under, such as strace.
        site: Whether it needs installed packages; without them it starts in half the time.
    """
    roots = [str(Path(package.__path__[0]).parent) for package in (perdure, perdure_backends)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*before, sys.executable, *([] if site else ["-S"]), _CHILDREN, what, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """What a child says, to the end; fails with its own words when it met an error of its own."""
    assert child.stdout is not None and child.stderr is not None
    for line in child.stdout:
        yield line.strip()
    child.wait(STUCK)
    trouble = child.stderr.read()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    assert not trouble, trouble


def side_by_side(count: int, steps: Callable[[int], Iterable[object]]) -> None:
    """Go through the steps of number 0 and so on, each in a thread, to the end or until one of them fails."""
    troubles: list[BaseException] = []

    def go(number: int) -> None:
        try:
            for _ in steps(number):
                if troubles:
                    return
        except BaseException as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if troubles:
        raise troubles[0]


def patience() -> float:
    """Seconds in which a writer must have got in: one, on a machine that has nothing else to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Stopwatch:
    """How long others had to wait.

    Attributes:
        worst: The longest time, in seconds.
    """

    def __init__(self) -> None:
        self.worst = 0.0

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self._since
        self.worst = max(self.worst, took)
        assert took < patience(), f"another writer had to wait for {took:.2f} s"
