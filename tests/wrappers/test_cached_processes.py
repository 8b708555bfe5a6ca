"""Threads and processes that share one folder of copies, some of them killed: every answer is what the remote had."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, cycle
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import pytest

from perdure.errors import NotFoundError, PreconditionError
from perdure.protocol import ABSENT, Backend, ETag
from perdure.testing.crew import PATIENCE, Move, Processes, Threads
from perdure.wrappers import Cached
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")


def pair(where: Path, *, append_only: bool = False) -> Cached:
    return Cached(
        FileBackend(where / "remote", sync="normal"), FileBackend(where / "copies", sync="normal"), append_only=append_only
    )


# ---------------------------------------------------------------------------------------------------------- many at once


KEYS = ["a", "b/c"]


def count_on(backend: Backend, key: str, times: int) -> list[tuple[ETag, bytes]]:
    """Write 1, 2, 3...; the number that is acknowledged by now stands in the environment of the test."""
    written = []
    for number in range(1, times + 1):
        data = b"%d %s" % (number, b"x" * (number * 37 % 500))
        if number % 7 == 0:
            backend.delete(key)
        if number % 2 == 0 or not backend.contains(key):
            etag = backend.put(key, data)
        else:
            etag = backend.put(key, data, if_match=backend.get(key).etag)
        written.append((etag, data))
        LATEST[key] = number
    DONE.append(key)
    return written


LATEST: dict[str, int] = {}
DONE: list[str] = []


def look_on(backend: Backend, many: bool) -> list[tuple[ETag, bytes]]:
    """Read until the writers are done, and fail where a read shows less than what was acknowledged before it began."""
    seen: dict[tuple[ETag, bytes], None] = {}
    last = False
    while not last:
        last = len(DONE) == len(KEYS)
        acknowledged = dict(LATEST)
        if many:
            found = backend.get_many(KEYS)
        else:
            found = {}
            for key in KEYS:
                try:
                    found[key] = backend.get(key)
                except NotFoundError:
                    continue
        for key, blob in found.items():
            number = int(blob.data.split()[0])
            assert number >= acknowledged.get(key, 0), f"{key} was {acknowledged[key]} before, and {number} was answered"
            seen[blob.etag, blob.data] = None
    return list(seen)


@pytest.mark.parametrize("where_remote", ["file", "memory"])
def test_no_reader_sees_a_value_that_is_older_or_under_another_etag(tmp_path: Path, where_remote: str) -> None:
    """One writer for each key, through one `Cached`; the readers go through another over the same folder, or the same one."""
    for turn in range(3 * ROUNDS):
        LATEST.clear()
        DONE.clear()

        def opened(turn: int = turn) -> Cached:
            name = f"{tmp_path}/remote-{turn}"
            remote = FileBackend(name, sync="normal") if where_remote == "file" else MemoryBackend(name)
            return Cached(remote, FileBackend(tmp_path / "copies", sync="normal"))

        one, two = opened(), opened()
        crew = Threads([one, two, one, two, one, two])
        moves: list[Move] = [partial(count_on, key=key, times=60) for key in KEYS]
        moves += [partial(look_on, many=number % 4 < 2) for number in range(4)]
        answers = crew.at_once(moves)
        crew.close()
        written = {pair for answer in answers[: len(KEYS)] for pair in answer}
        for answer in answers[len(KEYS) :]:
            assert set(answer) <= written
        one.close()
        two.close()


def create_and_read(backend: Backend, member: int, times: int) -> None:
    """In an append-only place several create one key; whoever lost reads what the winner wrote, and it never changes."""
    dice = random.Random(member)
    known: dict[str, tuple[bytes, ETag]] = {}
    for turn in range(times):
        key = f"k/{turn}"
        try:
            mine = b"%d by %d " % (turn, member) * dice.randrange(1, 2000)
            etag = backend.put(key, mine, if_match=ABSENT)
            known[key] = (mine, etag)
        except PreconditionError:
            known[key] = backend.get(key)[:2]
        for key in dice.sample(sorted(known), min(5, len(known))):
            assert backend.get(key)[:2] == known[key]
        found = backend.get_many(known)
        assert {key: blob[:2] for key, blob in found.items()} == known


def test_creators_of_one_key_all_read_what_the_winner_wrote(tmp_path: Path) -> None:
    crew = Processes(4, "fork", pair(tmp_path, append_only=True))
    times = 30 * ROUNDS
    crew.at_once([partial(create_and_read, member=number, times=times) for number in range(4)])
    crew.close()
    cached = pair(tmp_path, append_only=True)
    keys = [f"k/{turn}" for turn in range(times)]
    there = FileBackend(tmp_path / "remote").get_many(keys)
    found = cached.get_many(keys)
    assert cached.hits == times, "the copies of whoever lost must be the winner's"
    assert {key: blob[:2] for key, blob in found.items()} == {key: blob[:2] for key, blob in there.items()}


# ------------------------------------------------------------------------------------------------------------- killed


def body(key: str, number: int) -> bytes:
    return b"%s %d " % (key.encode(), number) + bytes([number % 251]) * (200_000 if number % 3 else 500)


def check(key: str, data: bytes) -> int:
    number = int(data[:60].split()[1])
    assert data == body(key, number), f"{key}: a value of {len(data)} bytes is torn, or another key's"
    return number


def write_for_ever(cached: Cached, seed: int, acknowledge: int) -> None:
    """Write and read values that tell by themselves whether they are whole."""
    dice = random.Random(seed)
    for number in count(seed * 1_000_000):
        key = f"k{dice.randrange(4)}"
        cached.put(key, body(key, number))
        os.write(acknowledge, b".")
        for other in ("k0", "k1", "k2", "k3"):
            try:
                check(other, cached.get(other).data)
            except NotFoundError:
                continue


def create_for_ever(cached: Cached, seed: int, acknowledge: int) -> None:
    """The same where values stay."""
    for number in cycle(range(30)):
        key = f"t{seed // 2}/{number}"
        try:
            cached.put(key, body(key, number), if_match=ABSENT)
        except PreconditionError:
            check(key, cached.get(key).data)
        os.write(acknowledge, b".")


@pytest.mark.parametrize("append_only", [False, True])
def test_processes_killed_while_they_store_copies_leave_none_that_is_wrong(tmp_path: Path, append_only: bool) -> None:
    remote = FileBackend(tmp_path / "remote", sync="normal")
    readers = [pair(tmp_path, append_only=append_only) for _ in range(2)]
    work = create_for_ever if append_only else write_for_ever
    dice = random.Random(3)
    answered = 0
    for turn in range(10 * ROUNDS):
        prefix = f"t{turn}/" if append_only else ""
        children = [forked(partial(work, pair(tmp_path, append_only=append_only), 2 * turn + n)) for n in (0, 1)]
        try:
            for _ in range(dice.randrange(1, 6)):
                for child in children:
                    child.hear()
                for cached in readers:
                    for key, blob in cached.get_many(list(remote.keys(prefix))).items():
                        check(key, blob.data)
                        answered += 1
            for _ in range(dice.randrange(30_000)):
                pass  # so that they die anywhere in their next calls
        finally:
            for child in children:
                child.kill()
        for cached in [*readers, pair(tmp_path, append_only=append_only)]:
            for key in remote.keys(prefix):
                there = remote.get(key)
                assert cached.get(key)[:2] == there[:2], "nobody writes now, so this is what is there"
                assert cached.get_many([key])[key][:2] == there[:2]
            assert cached.troubles == 0
    assert answered > 50


class Child(NamedTuple):
    """A child that works until it is killed, and what it says meanwhile: a dot for each write, or why it failed."""

    number: int
    pipe: int

    def hear(self) -> None:
        """Wait for its next write."""
        assert wait([self.pipe], PATIENCE), "the child is stuck"
        said = os.read(self.pipe, 1 << 16)
        assert said.strip(b".") == b"", said.decode()

    def kill(self) -> None:
        os.kill(self.number, signal.SIGKILL)
        os.waitpid(self.number, 0)
        with open(self.pipe, "rb") as pipe:
            said = pipe.read()
        assert said.strip(b".") == b"", said.decode()


def forked(work: Callable[[int], object]) -> Child:
    """Run `work` in a child; it is given the pipe to acknowledge to."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            work(theirs)
        except BaseException:
            os.write(theirs, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(theirs)
    return Child(child, ours)


def test_a_killed_writer_keeps_nobody_from_storing(tmp_path: Path) -> None:
    """Killed again and again in the middle of storing, its folder still takes the copies of others."""
    for turn in range(5 * ROUNDS):
        child = forked(partial(write_for_ever, pair(tmp_path), turn))
        child.hear()
        for _ in range(turn * 3000):
            pass
        child.kill()
        cached = pair(tmp_path)
        for number in range(4):
            cached.put(f"k{number}", body(f"k{number}", 1))
            cached.get(f"k{number}")
        assert (cached.hits, cached.troubles) == (4, 0)


# ---------------------------------------------------------------------------------------------------------- real disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not allowed to mount here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.parametrize("append_only", [False, True])
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_local_disk_that_takes_nothing_fails_nothing(tmp_path: Path, small_disk: Path, state: str, append_only: bool) -> None:
    remote = FileBackend(tmp_path / "remote", sync="normal")
    cached = Cached(remote, FileBackend(small_disk / "copies", sync="normal"), append_only=append_only)
    cached.put("before", b"1", if_match=ABSENT)
    if state == "full":
        with pytest.raises(OSError) as caught, open(small_disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        assert caught.value.errno == errno.ENOSPC
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.warns(UserWarning, match="full" if state == "full" else "read-only") as warned:
        for number in range(20):
            etag = cached.put(f"k{number}", bytes(50_000), if_match=ABSENT)
            assert cached.get(f"k{number}")[:2] == (bytes(50_000), etag)
        assert cached.get("before").data == b"1"
        if not append_only:
            remote.put("before", b"2")
            assert cached.get("before").data == b"2"
            cached.delete("before")
            assert not cached.contains("before")
    assert len(warned) == 1
    assert cached.troubles >= 20
    assert len(cached.get_many([f"k{number}" for number in range(20)])) == 20
    if state == "full":
        (small_disk / "filler").unlink()
        assert [cached.get("k0").data for _ in range(2)] == [bytes(50_000)] * 2
        assert cached.hits, "it works again as soon as there is room"
