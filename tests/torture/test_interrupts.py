"""Ctrl-C at random moments, thousands of times, and forks beside threads that write."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from ledger import PLACES, ROUNDS, STUCK, Stopwatch, lines, opened, seen, start, value

from perdure.errors import NotFoundError, PreconditionError
from perdure.protocol import ABSENT, Backend
from perdure.testing.crew import within

INTERRUPTS = 250 * ROUNDS


@contextlib.contextmanager
def other_process(kind: str, sync: str, where: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that puts one value for each line it is given."""
    child = start("put_on_command", kind, sync, where)
    try:
        yield child
    finally:
        assert child.stdin
        child.stdin.close()
        for line in lines(child):
            raise AssertionError(line)


@pytest.mark.parametrize(("kind", "sync"), PLACES)
def test_ctrl_c_at_random_moments(kind: str, sync: str, tmp_path: Path) -> None:
    where = tmp_path / "place"
    rng = random.Random(f"{kind} {sync}")
    clock = Stopwatch()
    open_before = 0
    armed = False
    interrupted: dict[str, int] = {}

    def strike(number: int, frame: FrameType | None) -> None:
        if armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with opened(kind, sync, where) as backend, other_process(kind, sync, where) as other:
            assert other.stdin and other.stdout
            version = 0
            due: set[int | None] = {None}
            for turn in range(INTERRUPTS):
                action = rng.choice(["put", "put", "create", "swap", "get", "delete"])
                version += 1
                data = value("k", version, rng.choice([10, 3000, 100_000]))
                after: set[int | None] = due if action == "get" else {None} if action == "delete" else {version}
                known, due = due, due | after
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, rng.choice([1e-5, 1e-4, 3e-4, 1e-3]) * (0.1 + rng.random()))
                    try:
                        done = _act(backend, action, data)
                        armed = False
                        due = after if done else known
                    finally:
                        armed = False
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted[action] = interrupted.get(action, 0) + 1
                armed = False
                now = within(STUCK, f"a get after Ctrl-C in {action}", seen, backend, "k")
                assert now in due, f"turn {turn}: version {now} after {action}, and one of {due} was due"
                due = {now}
                if turn % 10 == 0:
                    version += 1
                    with clock:
                        other.stdin.write(f"k {version}\n")
                        other.stdin.flush()
                        assert within(STUCK, "a put of another process", other.stdout.readline) == f"{version}\n"
                    due = {version}
                    assert seen(backend, "k") == version
                if turn == 20:
                    open_before = _descriptors()
            # Python drops what `os.open` returned when Ctrl-C came in meanwhile: one descriptor, and never a lock that is held.
            leaked = _descriptors() - open_before
            assert leaked <= 8 + sum(interrupted.values()), f"{leaked} descriptors are left open"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    about = f"{INTERRUPTS} turns, hit {interrupted}, {leaked} descriptors lost, longest wait {clock.worst * 1000:.0f} ms"
    print(f"{kind} {sync}: {about}")
    assert sum(interrupted.values()) > INTERRUPTS // 10


def _act(backend: Backend, action: str, data: bytes) -> bool:
    """Do it; tell whether it was done."""
    try:
        if action == "get":
            backend.get("k")
        elif action == "delete":
            backend.delete("k")
        else:
            condition = backend.head("k").etag if action == "swap" else ABSENT if action == "create" else None
            backend.put("k", data, if_match=condition)
    except (PreconditionError, NotFoundError):
        return False
    return True


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize(("kind", "sync"), PLACES)
def test_forks_in_the_middle_of_calls(kind: str, sync: str, tmp_path: Path) -> None:
    """Threads write without a pause while the main thread forks children that write, too, and end in either way."""
    where = tmp_path / "place"
    child = start("fork_again_and_again", kind, sync, where, 10 * ROUNDS)
    said = within(60 * max(1, ROUNDS), "a process that forks", lambda: list(lines(child)))
    assert child.returncode == 0
    with opened(kind, sync, where) as backend:
        acknowledged: dict[str, int] = {}
        for line in said:
            key, version = line.split()
            acknowledged[key] = int(version)
        for key, due in acknowledged.items():
            assert seen(backend, key) == due, key
        assert set(backend.keys()) == set(acknowledged)
    children = [key for key in acknowledged if key.startswith("child")]
    assert len(children) == 10 * ROUNDS
    print(f"{kind} {sync}: {len(children)} forks, {len(said)} writes acknowledged")


def test_a_fork_between_opening_and_noting_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child must not keep a copy of a lock that was opened just now, or it would hold what its parent locks next."""
    backend = opened("file", "normal", tmp_path / "place")
    backend.put("k", b"1")
    really_open = os.open
    opening, forked = threading.Event(), threading.Event()
    writer = threading.Thread(target=backend.put, args=("k", b"2"))

    def slow_open(path: str, *arguments: object, **options: object) -> int:
        fd: int = really_open(path, *arguments, **options)  # type: ignore[arg-type]
        if threading.current_thread() is writer and "locks" in path and not opening.is_set():
            opening.set()
            forked.wait(0.2)  # as long as a fork may take that need not wait for this
        return fd

    monkeypatch.setattr(os, "open", slow_open)
    writer.start()
    assert opening.wait(STUCK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        copies = [
            os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
        ]
        os._exit(any(name.startswith(f"{tmp_path}/place/.perdure/locks/") for name in copies))
    forked.set()
    _, status = os.waitpid(child, 0)
    writer.join(STUCK)
    assert os.waitstatus_to_exitcode(status) == 0, "the child kept a copy of a lock"
