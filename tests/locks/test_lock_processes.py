"""Locks and counters among processes: killed ones, stopped ones, forked ones, and ones whose wall clocks are wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from locking import SHORT, stored, until

from perdure.errors import PreconditionError, UsageError
from perdure.locks import Counter, Semaphore, lock
from perdure.protocol import ABSENT, Backend
from perdure.registry import open_backend
from perdure.testing.crew import PATIENCE, spawned
from perdure_backends.file import FileBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@contextlib.contextmanager
def forked(run: Callable[[], object]) -> Iterator[int]:
    """A child that runs a function, and that is gone at the end, whatever it is at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(int(2 * PATIENCE))
            run()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Many at once. What the members of a crew do is pickled by name, so it is at the top of this module.


def count_in_a_file(path: str, times: int, backend: Backend) -> list[int]:
    lease = lock(backend, "it", timeout=PATIENCE)
    tokens = []
    for _ in range(times):
        with lease:
            count = int(Path(path).read_text())
            time.sleep(0.001)
            Path(path).write_text(str(count + 1))
            tokens.append(lease.token)
    return tokens


def test_processes_that_exclude_each_other_lose_no_count(url: str, tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    crew = spawned(4)
    crew.open(partial(open_backend, url))
    answers = crew.at_once([partial(count_in_a_file, str(path), 4 * ROUNDS)] * 4)
    crew.open(None)
    assert path.read_text() == str(16 * ROUNDS)
    tokens = [token for answer in answers for token in answer]
    assert sorted(tokens) == list(range(1, 16 * ROUNDS + 1))
    assert all(answer == sorted(answer) for answer in answers)


def enter_a_room(folder: str, times: int, backend: Backend) -> tuple[int, list[int]]:
    slot = Semaphore(backend, "it", 2, timeout=PATIENCE)
    most, tokens = 0, []
    for _ in range(times):
        with slot:
            chair = Path(folder) / str(slot.token)
            chair.touch()
            most = max(most, len(os.listdir(folder)))
            tokens.append(slot.token)
            time.sleep(0.001)
            chair.unlink()
    return most, tokens


def test_no_more_processes_than_may_are_in_a_semaphore(url: str, tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    crew = spawned(4)
    crew.open(partial(open_backend, url))
    answers = crew.at_once([partial(enter_a_room, str(room), 4 * ROUNDS)] * 4)
    crew.open(None)
    assert max(most for most, _ in answers) <= 2
    assert sorted(token for _, tokens in answers for token in tokens) == list(range(1, 16 * ROUNDS + 1))


def count(times: int, backend: Backend) -> list[int]:
    counter = Counter(backend, "n")
    return [counter.add() for _ in range(times)]


def test_a_counter_of_many_processes_adds_up(url: str) -> None:
    crew = spawned(4)
    crew.open(partial(open_backend, url))
    numbers = [number for answer in crew.at_once([partial(count, 20 * ROUNDS)] * 4) for number in answer]
    crew.open(None)
    assert sorted(numbers) == list(range(1, 80 * ROUNDS + 1))
    with open_backend(url) as backend:
        assert Counter(backend, "n").value == 80 * ROUNDS


@needs_fork
@pytest.mark.parametrize("scheme", ["file", "sqlite"])
def test_a_counter_of_eight_forked_processes_adds_up(tmp_path: Path, scheme: str) -> None:
    backend = open_backend(f"{scheme}:{tmp_path}/place?sync=normal")
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(forked(partial(count, 20 * ROUNDS, backend))) for _ in range(8)]
        assert [ended(child) for child in children] == [0] * 8
    assert Counter(backend, "n").value == 160 * ROUNDS


# Sudden death.


@needs_fork
def test_a_killed_holder_holds_others_up_for_its_ttl_and_not_longer(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path, sync="normal")
    lease = lock(backend, "it", ttl=SHORT)
    last = 0
    for _ in range(3 * ROUNDS):

        def hold() -> None:
            with lock(backend, "it", ttl=SHORT):
                time.sleep(PATIENCE)

        with forked(hold) as child:
            until(lambda: backend.contains("locks()/it") and stored(backend)["holders"])
            (holder,) = stored(backend)["holders"]
            assert holder["pid"] == child
            assert not lease.acquire(timeout=1.5 * SHORT)  # it lives
        assert lease.acquire(timeout=PATIENCE)
        assert last < holder["token"] < lease.token
        last = lease.token
        assert lease.release()


@needs_fork
def test_a_process_killed_at_any_moment_leaves_a_lock_that_others_get(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path, sync="normal")
    last = 0

    def churn() -> None:
        lease = lock(backend, "it", ttl=SHORT)
        while True:
            with lease:
                lease.renew()

    for turn in range(8 * ROUNDS):
        with forked(churn):
            enough = last + 4
            while not (backend.contains("locks()/it") and stored(backend)["token"] >= enough):
                time.sleep(0.001)
            time.sleep(0.0007 * turn)
        with lock(backend, "it", ttl=SHORT, timeout=PATIENCE) as lease:
            assert lease.token > last
            last = lease.token


@needs_fork
def test_the_slot_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path, sync="normal")
    living = Semaphore(backend, "it", 2, ttl=SHORT)
    living.acquire()

    def hold() -> None:
        with Semaphore(backend, "it", 2, ttl=SHORT):
            time.sleep(PATIENCE)

    for _ in range(2 * ROUNDS):
        with forked(hold):
            until(lambda: len(living.holders()) == 2)
        with Semaphore(backend, "it", 2, ttl=SHORT, timeout=PATIENCE):
            pass
    assert living.release()


# Paused processes.


def write_fenced(backend: Backend, token: int, text: str) -> None:
    """Write a record, unless one with a larger token was written."""
    while True:
        try:
            blob = backend.get("result")
        except KeyError:
            known, etag = 0, ABSENT
        else:
            known, etag = json.loads(blob.data)["token"], blob.etag
        if known > token:
            raise PermissionError(f"token {token} is old: {known} was here")
        try:
            backend.put("result", json.dumps({"token": token, "text": text}).encode(), if_match=etag)
            return
        except PreconditionError:
            continue


@needs_fork
def test_a_process_that_was_stopped_for_longer_than_its_lease_learns_it_and_its_writes_are_refused(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path, sync="normal")
    here, there = os.pipe()

    def hold() -> None:
        lease = lock(backend, "it", ttl=SHORT)
        lease.acquire()
        write_fenced(backend, lease.token, "the first")
        os.write(there, b"1")
        while lease.held:  # it is stopped in here
            time.sleep(0.01)
        with contextlib.suppress(PreconditionError):
            lease.check()
            raise AssertionError("not lost")
        assert not lease.release()
        try:
            write_fenced(backend, lease.token, "the first again")
        except PermissionError:
            os.write(there, b"2")

    with forked(hold) as child:
        assert os.read(here, 1) == b"1"
        os.kill(child, signal.SIGSTOP)
        second = lock(backend, "it", ttl=SHORT)
        assert second.acquire(timeout=PATIENCE)
        write_fenced(backend, second.token, "the second")
        os.kill(child, signal.SIGCONT)
        assert os.read(here, 1) == b"2"
        assert ended(child) == 0
    assert second.held
    assert second.release()
    assert json.loads(backend.get("result").data) == {"token": 2, "text": "the second"}
    os.close(here)
    os.close(there)


# Forks.


@needs_fork
def test_a_forked_child_does_not_hold_what_its_parent_holds(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path, sync="normal")
    lease = lock(backend, "it", ttl=SHORT)
    lease.acquire()

    def child() -> None:
        assert not lease.held
        assert lease.expires_in == 0
        for call in (lease.check, lease.renew):
            with pytest.raises(PreconditionError, match="process that forked"):
                call()
        with pytest.warns(RuntimeWarning, match="goes on holding it"):
            assert not lease.release()
        with pytest.raises(UsageError, match="not held"):
            lease.release()
        assert not lease.acquire(timeout=2 * SHORT)

    with forked(child) as pid:
        assert ended(pid) == 0
    assert lease.held
    renewal = stored(backend)["holders"][0]["renewal"]
    until(lambda: stored(backend)["holders"][0]["renewal"] > renewal)
    assert lease.release()


@needs_fork
def test_a_child_forked_inside_a_with_block_leaves_it_in_peace(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path, sync="normal")
    with lock(backend, "it") as lease:

        def child() -> None:
            with pytest.warns(RuntimeWarning, match="Nothing was released"):
                lease.__exit__(None, None, None)

        with forked(child) as pid:
            assert ended(pid) == 0
        assert len(lease.holders()) == 1


@needs_fork
def test_children_forked_while_threads_acquire_and_release_can_use_the_same_objects(tmp_path: Path) -> None:
    import threading

    backend = FileBackend(tmp_path, sync="normal")
    leases = [lock(backend, f"it{number}", ttl=SHORT) for number in range(3)]
    stop = threading.Event()

    def churn(number: int) -> None:
        while not stop.is_set():
            with leases[number]:
                pass

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10 * ROUNDS):

            def child() -> None:
                for lease in leases:
                    assert not lease.held
                    assert lease.acquire(timeout=PATIENCE)
                    assert lease.release()

            with forked(child) as pid:
                assert ended(pid) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


# Wall clocks.


WRONG_CLOCK = """
import sys, time
shift = float(sys.argv[2])
right = time.time
time.time = lambda: right() + shift
from perdure.locks import lock
from perdure_backends.file import FileBackend
lease = lock(FileBackend(sys.argv[1], sync="normal"), "it", ttl=float(sys.argv[3]))
assert lease.acquire(timeout=60)
print(lease.token, flush=True)
sys.stdin.readline()
assert lease.held
lease.renew()
assert lease.release()
print("released", flush=True)
"""


@pytest.mark.parametrize("shift", [-86400.0, -60.0, 60.0, 86400.0])
def test_wall_clocks_may_say_what_they_like(tmp_path: Path, shift: float) -> None:
    command = [sys.executable, "-c", WRONG_CLOCK, str(tmp_path), str(shift), str(SHORT)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        lease = lock(FileBackend(tmp_path, sync="normal"), "it", ttl=SHORT)
        assert not lease.acquire(timeout=3 * SHORT)
        out, _ = child.communicate("\n", timeout=PATIENCE)
        assert out == "released\n"
        assert lease.acquire(timeout=PATIENCE)
        assert lease.token == 2
    finally:
        child.kill()
        child.wait()


def test_a_process_ends_while_it_holds_a_lease(tmp_path: Path) -> None:
    code = "import sys; from perdure.locks import lock; lock(sys.argv[1], 'it', ttl=0.3).acquire()"
    done: Any = subprocess.run([sys.executable, "-c", code, tmp_path], timeout=PATIENCE, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    with lock(tmp_path, "it", timeout=PATIENCE) as lease:
        assert lease.token == 2
