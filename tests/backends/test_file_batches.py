"""Many values at once in a folder: what holds for each single write holds for each of a batch, whoever else is there."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import PerdureError
from perdure.protocol import Backend, Buffer, Condition, ETag
from perdure.testing.crew import Threads, spawned, within
from perdure.testing.interrupts import Interrupts
from perdure.testing.kills import Kills
from perdure.testing.lifetime import Forks
from perdure.testing.races import Races
from perdure.testing.stateful import Model
from perdure.testing.values import Bulk
from perdure_backends import _file_batch, _file_folder, _file_writer, _flock
from perdure_backends._file_batch import Batch, Item
from perdure_backends._flock import LOCK_EX, LOCK_NB, LOCK_UN, close_lock, flock, open_lock
from perdure_backends.file import FileBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))
STUCK = 60.0


class Batched(FileBackend):
    """Makes a batch of every write that has no condition."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        if if_match is not None:
            return super().put(key, data, if_match=if_match)
        self._check(key, data)
        batch = Batch(self._own, self._layout)
        try:
            return batch.put_all([Item(key, self._spots[key], data)])[key]
        except (OSError, PerdureError) as error:
            self._fail(error, batch.key, "write")

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        if if_match is not None:
            super().delete(key, if_match=if_match)
            return
        self._check(key)
        batch = Batch(self._own, self._layout)
        try:
            batch.delete_all([Item(key, self._spots[key])])
        except (OSError, PerdureError) as error:
            self._fail(error, batch.key, "delete")


class TestBatches(Bulk, Forks, Interrupts, Kills, Races, Model):
    """A batch keeps the contract: races with writers of single values, histories, forks, Ctrl-C and kills."""

    longest_segment = 247
    pace = 0.5

    def open(self, where: Path) -> FileBackend:
        return Batched(where)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def backend(folder: Path) -> FileBackend:
    return FileBackend(folder)


def temporaries(folder: Path) -> list[str]:
    return os.listdir(folder / ".perdure" / "tmp")


def of_one_stripe(backend: FileBackend, count: int) -> list[str]:
    """Keys that share a lock."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if backend._spots[f"n{number}"].stripe == "07":
            found.append(f"n{number}")
        number += 1
    return found


# ------------------------------------------------------------------------------------------------------------ others write


def count_up(backend: Backend, key: str, times: int) -> None:
    for _ in range(times):
        while True:
            data, etag, _ = backend.get(key)
            try:
                backend.put(key, b"%d" % (int(data) + 1), if_match=etag)
                break
            except perdure.PreconditionError:
                continue


def put_again_and_again(backend: Backend, keys: list[str], times: int, name: str) -> None:
    for turn in range(times):
        backend.put_many({key: f"{name} {turn} ".encode() * 50 for key in keys})
        if turn % 3 == 2:
            backend.delete_many(keys[::2])


@pytest.mark.parametrize("who", ["threads", "processes"])
def test_counters_add_up_beside_batches_under_the_same_locks(folder: Path, backend: FileBackend, who: str) -> None:
    counters, keys = (found := of_one_stripe(backend, 40))[:2], found[2:] + [f"other/{n}" for n in range(30)]
    backend.put_many(dict.fromkeys(counters, b"0"))
    crew = spawned(4) if who == "processes" else Threads([FileBackend(folder) for _ in range(6)])
    try:
        if who == "processes":
            crew.open(partial(FileBackend, folder))  # type: ignore[attr-defined]
        counting = [partial(count_up, key=counters[n % 2], times=20 * ROUNDS) for n in range(crew.size - 2)]
        batches = [partial(put_again_and_again, keys=keys, times=6 * ROUNDS, name=name) for name in "ab"]
        assert crew.at_once([*counting, *batches]) == [None] * crew.size
    finally:
        if who == "processes":
            crew.open(None)  # type: ignore[attr-defined]
        else:
            crew.close()
    assert sum(int(backend.get(key).data) for key in counters) == 20 * ROUNDS * len(counting)
    for key in backend.keys():  # noqa: SIM118 - it is no dict
        if key not in counters:
            words = backend.get(key).data.split(b" ")
            assert words == words[:2] * 50 + [b""], key
    assert temporaries(folder) == []


def test_no_swap_wins_against_a_batch_that_came_in_between(folder: Path, backend: FileBackend) -> None:
    """The batch overwrites after a swapper has read: whoever swaps from what it read then has to lose."""
    sync = _file_batch.whole_sync
    others = [f"o{n}" for n in range(20)]
    old = backend.put("k", b"old")

    def meanwhile(fd: int) -> Callable[[], None] | None:
        really_sync = sync(fd)

        def sync_and_swap() -> None:
            if really_sync is not None:
                really_sync()
            etags.append(backend.put("k", b"swapped", if_match=old))  # the batch is not visible yet

        return sync_and_swap

    etags: list[ETag] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_file_batch, "whole_sync", meanwhile)
        new = backend.put_many(dict.fromkeys(["k", *others], b"batch"))["k"]
    assert backend.get("k")[:2] == (b"batch", new)
    for stale in (old, *etags):
        with pytest.raises(perdure.PreconditionError):
            backend.put("k", b"late", if_match=stale)


# ------------------------------------------------------------------------------------------------------------------- kills

KILLED = """
import random, sys
from perdure_backends.file import FileBackend

folder, life = sys.argv[1], int(sys.argv[2])
backend, version = FileBackend(folder), life * 1000
keys = [f"{n % 5}/new{life}/{n}" if n % 4 == 0 else f"{n % 7}/{n}" for n in range(150)]
while True:
    version += 1
    data = b"%d " % version
    print(">", version, flush=True)
    backend.put_many({key: data * random.choice([1, 100, 20_000 if key.endswith("7") else 10]) for key in keys})
    print("<", version, flush=True)
"""


def test_batches_killed_at_random_moments(folder: Path, backend: FileBackend) -> None:
    """Every value is whole and no older than what was acknowledged; nobody waits; the next batch clears up."""
    backend.put("beside", b"0")
    for life in range(1, 1 + 6 * ROUNDS):
        rng = random.Random(life)
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(life)], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        left, acknowledged, announced = rng.randrange(1, 6), 0, 0
        timer = threading.Timer(rng.random() * 0.08, child.kill)
        for line in child.stdout:
            mark, number = line.split()
            announced, acknowledged = (int(number), acknowledged) if mark == ">" else (announced, int(number))
            left -= 1
            if left == 0:
                timer.start()
        child.stdout.close()
        timer.join()
        assert child.wait(STUCK) == -9
        leftovers = backend.leftovers()
        assert len(leftovers) <= 1 and all(name.startswith("batch-") for name in temporaries(folder))
        keys = [f"{n % 5}/new{life}/{n}" if n % 4 == 0 else f"{n % 7}/{n}" for n in range(150)]
        for key in keys:
            try:
                data = backend.get(key).data
            except perdure.NotFoundError:
                assert not acknowledged, key
                continue
            first = data.partition(b" ")[0] + b" "
            assert data == first * (len(data) // len(first)), f"{key} is torn"
            assert acknowledged <= int(first) <= announced or (not acknowledged and int(first) < life * 1000), key
        within(STUCK, "a single write after a kill", backend.put, keys[life], b"1 ")
        # A handle that has been in use all the time, and so never looks for leftovers before a single write.
        within(STUCK, "a batch after a kill", backend.put_many, dict.fromkeys(keys, b"%d " % (life * 1000 + 999)))
        assert temporaries(folder) == []


def test_a_dead_batch_is_a_leftover_and_a_live_one_is_not(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.put("a", b"1")
    dead = folder / ".perdure" / "tmp" / "batch-00000000000000aa"
    dead.mkdir()
    for number in range(5):
        (dead / str(number)).write_bytes(b"half")
    (dead / "lock").touch()
    without_lock = dead.with_name("batch-00000000000000bb")  # a power cut keeps any of the names
    without_lock.mkdir()
    (without_lock / "3").write_bytes(b"half")
    told: list[Any] = []

    def in_another_process(fd: int) -> None:
        monkeypatch.undo()
        code = (
            f"from perdure_backends.file import FileBackend; b = FileBackend({str(folder)!r}); print(b.leftovers(), b.sweep())"
        )
        told.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        told.append(FileBackend(folder).put("first-write-sweeps", b""))

    (folder / ".perdure" / "tmp" / "batch-stranger").write_bytes(b"mine")
    assert sorted(backend.leftovers()) == [str(dead), str(without_lock)]
    assert sorted(backend.sweep()) == [str(dead), str(without_lock)]
    assert temporaries(folder) == ["batch-stranger"]
    monkeypatch.setattr(_file_batch, "whole_sync", in_another_process)
    etags = backend.put_many({f"k{n}": b"%d" % n for n in range(50)})
    assert told[0] == "[] []\n"
    assert {key: blob.etag for key, blob in backend.get_many(etags).items()} == etags


@pytest.mark.parametrize("moment", ["made", "opened", "almost locked"])
def test_a_sweep_between_making_and_locking_the_folder(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Nobody can tell it from a dead one then: it is swept, and the batch begins again."""
    backend.put("a", b"1")
    other = FileBackend(folder)
    swept: list[list[str]] = []
    really_make, really_open, really_lock = os.mkdir, _file_folder.open_lock, _file_batch.flock

    def sweep(path: str, when: str) -> None:
        if "batch-" in path and when == moment:
            monkeypatch.undo()
            swept.append(other.sweep())

    def make(path: str, *arguments: Any) -> None:
        really_make(path, *arguments)
        sweep(path, "made")

    def open_one(path: str) -> int:
        fd = really_open(path)
        sweep(path, "opened")
        return fd

    def lock(fd: int, operation: int) -> None:
        sweep("batch-", "almost locked")
        really_lock(fd, operation)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(_file_folder, "open_lock", open_one)
    monkeypatch.setattr(_file_batch, "flock", lock)
    etags = backend.put_many({f"k{n}": b"new" for n in range(20)})
    assert [len(found) for found in swept] == [1]
    assert {key: blob.etag for key, blob in backend.get_many(etags).items()} == etags
    assert temporaries(folder) == []


@pytest.mark.parametrize("moment", [1, 5, 19])
def test_a_sweep_that_is_late_takes_no_value_away(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """It found the lock free, just before it was taken, and removes the folder only now."""
    backend.put("a", b"1")
    calls: list[int] = []

    def is_current(lock: Any, really: Any = backend._own.is_current) -> bool:
        calls.append(1)
        if len(calls) == moment:
            _file_folder.remove_batch(str(folder / ".perdure" / "tmp" / temporaries(folder)[0]))
        return bool(really(lock))

    monkeypatch.setattr(backend._own, "is_current", is_current)
    etags = backend.put_many({f"k{n}": b"new" for n in range(20)})
    assert {key: blob.etag for key, blob in backend.get_many(etags).items()} == etags
    assert len(etags) == 20
    assert temporaries(folder) == []


SWEEPING = """
import sys
from perdure_backends.file import FileBackend
backend, stop = FileBackend(sys.argv[1]), FileBackend(sys.argv[2])
while not stop.contains("now"):
    backend.sweep()
    FileBackend(sys.argv[1]).put("swept", b"")
"""


def test_sweeps_of_other_processes_without_end(folder: Path, backend: FileBackend, tmp_path: Path) -> None:
    backend.put("a", b"1")
    sweepers = [subprocess.Popen([sys.executable, "-c", SWEEPING, folder, tmp_path / "stop"]) for _ in range(2)]
    try:
        for turn in range(40 * ROUNDS):
            etags = backend.put_many({f"{turn % 3}/k{n}": b"%d" % turn for n in range(5 if turn % 2 else 40)})
            assert {key: blob.etag for key, blob in backend.get_many(etags).items()} == etags
            assert all(sweeper.poll() is None for sweeper in sweepers)
    finally:
        FileBackend(tmp_path / "stop").put("now", b"")
        assert [sweeper.wait(STUCK) for sweeper in sweepers] == [0, 0]
    backend.sweep()
    assert temporaries(folder) == []


def test_a_planted_link_is_not_swept(tmp_path: Path, folder: Path, backend: FileBackend) -> None:
    backend.put("a", b"1")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "3").write_bytes(b"precious")
    (folder / ".perdure" / "tmp" / "batch-00000000000000aa").symlink_to(victim)
    assert backend.leftovers() == backend.sweep() == []
    backend.put_many(dict.fromkeys("bcdefghijk", b"1"))
    assert (victim / "3").read_bytes() == b"precious"
    assert os.listdir(victim) == ["3"]


# ------------------------------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("how", ["together", "one by one"])
def test_a_sync_that_fails_changes_nothing_and_is_never_done_again(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch, how: str, number: int
) -> None:
    old = backend.put_many({f"k{n}": b"old" for n in range(20)})
    synced: list[int] = []
    kept: list[int] = []

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    def fsync(fd: int, really: Any = os.fsync) -> None:
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode):
            synced.append(info.st_ino)
            kept.append(os.dup(fd))  # so that no other file gets the same number
            if len(synced) == 7 and how == "one by one":
                fail()
        really(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(_file_batch, "whole_sync", lambda fd: fail if how == "together" else None)
    with pytest.raises(perdure.BackendError) as caught:
        backend.put_many({f"k{n}": b"new" for n in range(30)})
    assert type(caught.value) is perdure.BackendError
    assert (caught.value.errno, caught.value.place) == (number, backend.place)
    assert (caught.value.key is None) == (how == "together")
    assert len(synced) == len(set(synced)) == (7 if how == "one by one" else 0)
    assert temporaries(folder) == []
    assert {meta.key: meta.etag for meta in backend.scan()} == old
    monkeypatch.setattr(_file_batch, "whole_sync", lambda fd: None)
    backend.put_many({f"k{n}": b"new" for n in range(30)})
    assert len(synced) == len(set(synced))
    assert {blob.data for blob in backend.get_many(f"k{n}" for n in range(30)).values()} == {b"new"}
    for fd in kept:
        os.close(fd)


@pytest.mark.parametrize("act", ["put", "delete"])
def test_a_folder_that_cannot_be_synced_leaves_the_outcome_unknown(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    keys = [f"{n % 3}/k{n}" for n in range(20)]
    if act == "delete":
        backend.put_many(dict.fromkeys(keys, b"old"))

    def fail(path: str, really: Any = _file_writer.sync_folder) -> None:
        if path == str(folder / "1"):
            raise OSError(errno.EIO, "Input/output error")
        really(path)

    monkeypatch.setattr(_file_writer, "sync_folder", fail)
    with pytest.raises(perdure.UnknownOutcomeError) as caught:
        if act == "put":
            backend.put_many(dict.fromkeys(keys, b"new"))
        else:
            backend.delete_many(keys)
    assert caught.value.errno == errno.EIO
    assert temporaries(folder) == []
    assert sorted(backend.keys()) == (sorted(keys) if act == "put" else [])


def test_each_folder_is_synced_once_for_a_batch(folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put("a", b"1")
    synced: list[str] = []
    files: list[int] = []

    def sync_folder(path: str, really: Any = _file_writer.sync_folder) -> None:
        synced.append(os.path.relpath(path, folder))
        really(path)

    for module in (_file_writer, _file_folder):
        monkeypatch.setattr(module, "sync_folder", sync_folder)
    monkeypatch.setattr(os, "fsync", lambda fd, really=os.fsync: (files.append(stat.S_ISREG(os.fstat(fd).st_mode)), really(fd)))
    keys = [f"{n % 3}/deep/{n % 2}/k{n}" for n in range(200)]
    monkeypatch.setattr(_file_batch, "whole_sync", lambda fd: lambda: files.append(-1))
    backend.put_many(dict.fromkeys(keys, b"1"))
    assert files.count(-1) == 1 and True not in files, "the values are made durable together"
    expected = [".", *(name for n in range(3) for name in (str(n), f"{n}/deep", f"{n}/deep/0", f"{n}/deep/1"))]
    assert sorted(synced) == sorted(expected)
    synced.clear()
    backend.put_many(dict.fromkeys(keys, b"2"))
    assert sorted(synced) == sorted(name for name in expected if name.count("/") == 2)
    synced.clear()
    backend.delete_many([*keys, "0/deep/0/absent", "gone/for/good"])
    assert sorted(synced) == sorted([*(name for name in expected if name.count("/") == 2), "0/deep/0", "gone/for"])
    assert list(backend.keys()) == ["a"]


def test_batches_are_bounded(folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int, int]] = []

    def look(fd: int) -> None:
        before.append(len(os.listdir("/proc/self/fd")))

    def publish(self: Batch, *arguments: Any, really: Any = Batch._under_locks) -> None:
        (batch,) = temporaries(folder)
        files = [path.stat().st_size for path in (folder / ".perdure" / "tmp" / batch).iterdir()]
        sizes.append((len(files) - 1, sum(files), len(os.listdir("/proc/self/fd"))))
        really(self, *arguments)

    before: list[int] = []
    backend.put("a", b"1")
    monkeypatch.setattr(_file_batch, "whole_sync", look)
    monkeypatch.setattr(Batch, "_under_locks", publish)
    large = {f"large/{n}": b"x" * (3 << 20) for n in range(12)} | {"larger": b"y" * (40 << 20)}
    small = {f"{n % 10}/{n}": b"%d" % n for n in range(600)}
    etags = backend.put_many(small | large)
    assert list(etags) == [*small, *large]
    assert {meta.key: (meta.etag, meta.size) for meta in backend.scan()} == {
        key: (etags[key], len(data)) for key, data in (small | large).items()
    } | {"a": (backend.head("a").etag, 1)}
    assert sum(count for count, _, _ in sizes) == 613
    assert max(count for count, _, _ in sizes) == 256
    assert all(size < (17 << 20) or count == 1 for count, size, _ in sizes)
    assert max(open_files for _, _, open_files in sizes) - before[0] <= 2
    monkeypatch.undo()
    backend.delete_many([*small, *large])
    assert list(backend.keys()) == ["a"]


def test_no_two_locks_of_values_are_held_at_once(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put("a", b"1")
    held: set[int] = set()
    most = 0

    def lock(fd: int, operation: int, really: Any = flock) -> None:
        nonlocal most
        if "/locks/" in os.readlink(f"/proc/self/fd/{fd}"):
            held.discard(fd) if operation == LOCK_UN else held.add(fd)
            most = max(most, len(held))
        really(fd, operation)

    monkeypatch.setattr(_file_batch, "flock", lock)
    keys = [f"{n}" for n in range(300)]
    backend.put_many(dict.fromkeys(keys, b"1"))
    backend.delete_many(keys)
    assert most == 1 and not held


# ------------------------------------------------------------------------------------------------- the folder goes and comes

STORMY = """
import random, sys
from perdure.errors import NotFoundError, PreconditionError, UnknownOutcomeError
from perdure_backends.file import FileBackend

folder, stop = sys.argv[1:]
backend, stopped, sizes = FileBackend(folder), FileBackend(stop), (1, 5000, 100_000)
keys = ["k", "c", *(f"{n % 4}/b/{n}" for n in range(20))]
while not stopped.contains("now"):
    some = random.sample(keys, random.choice([2, 5, 22]))
    value = random.choice([b"a", b"b", b"c"]) * random.choice(sizes)
    try:
        if random.random() < 0.3:
            backend.delete_many(some)
        else:
            backend.put_many(dict.fromkeys(some, value))
        for blob in backend.get_many(some).values():
            assert len(set(blob.data)) == 1 and len(blob.data) in sizes, (len(blob.data), set(blob.data))
    except UnknownOutcomeError:
        pass
"""


def test_writers_of_batches_under_whom_the_folder_is_removed_again_and_again(folder: Path, tmp_path: Path) -> None:
    stop = str(tmp_path / "stop")
    command = [sys.executable, "-c", STORMY, str(folder), stop]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        removed = 0
        while removed < 60 * ROUNDS and all(writer.poll() is None for writer in writers):
            if (folder / "k.perdure").exists() or (folder / "c.perdure").exists():
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    finally:
        FileBackend(stop).put("now", b"")
        problems = [writer.communicate(timeout=STUCK)[1] for writer in writers]
    assert problems == [""] * 3


@pytest.mark.parametrize("how", ["removed", "moved", "replaced by a copy", "replaced by an older copy"])
@pytest.mark.parametrize("when", ["writing", "publishing"])
def test_a_folder_replaced_in_the_middle_of_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str, when: str) -> None:
    """What stands there now gets all that was not published before, and none of the files of the old one."""
    backend = FileBackend(folder)
    backend.put_many({"k1": b"old", "a/b": b"old"})
    values = {f"k{n}": b"%d " % n * 10_000 for n in range(20)}
    looked_at: list[int] = []

    def strike() -> None:
        monkeypatch.undo()
        if how == "replaced by an older copy":
            shutil.rmtree(folder / ".perdure" / "tmp")
            (folder / ".perdure" / "tmp").mkdir()
        moved = folder.with_name("moved")
        if how == "removed":
            shutil.rmtree(folder)
            return
        folder.rename(moved)
        if "copy" in how:
            shutil.copytree(moved, folder)
            for file in (folder / ".perdure" / "tmp").rglob("[0-9]*"):
                os.truncate(file, 100)  # as if it had been copied half written
            for path in (folder / ".perdure" / "tmp").rglob("lock"):  # nobody can sweep the copy just now
                looked_at.append(open_lock(str(path)))
                flock(looked_at[0], LOCK_EX)

    if when == "writing":
        monkeypatch.setattr(_file_batch, "whole_sync", lambda fd: strike)
    else:
        calls: list[int] = []

        def is_current(lock: Any, really: Any = backend._own.is_current) -> bool:
            calls.append(1)
            if len(calls) == 8:
                strike()
            return bool(really(lock))

        monkeypatch.setattr(backend._own, "is_current", is_current)
    try:
        etags = backend.put_many(values)
    except perdure.UnknownOutcomeError:
        assert when == "publishing" and how in ("removed", "moved")
        etags = {}
    now = FileBackend(folder)
    found = {meta.key: meta.etag for meta in now.scan()}
    for key in found:
        assert now.get(key).data == (values[key] if key in etags else b"old" if key == "a/b" else now.get(key).data)
    published_before = 7 if when == "publishing" and etags else 0
    if "copy" in how or not published_before:
        assert etags.items() <= found.items()
    else:
        assert len(etags.items() - found.items()) == published_before
    for fd in looked_at:
        flock(fd, LOCK_UN)
        close_lock(fd)
    now.put("k0", b"and life goes on")
    assert temporaries(folder) == []


# --------------------------------------------------------------------------------------------------- signals, forks, refusals


def test_a_signal_handler_writes_in_the_middle_of_a_batch(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another lock than the one just held; under that one it is refused, since one thread cannot wait for itself."""
    keys = of_one_stripe(backend, 20)
    backend.put("a", b"1")
    told: list[str] = []

    def handle(*_: object) -> None:
        other = FileBackend(backend.path)
        other.put("single", b"from the handler")
        other.put_many({"m1": b"from the handler", "m2": b"from the handler"})
        other.delete_many(["a", "m2"])
        try:
            other.put_many({"m3": b"from the handler", keys[0]: b"from the handler", "m4": b"from the handler"})
        except perdure.BackendError as error:
            told.append(str(error))

    def struck(lock: Any, really: Any = backend._own.is_current) -> bool:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGUSR1)
        return bool(really(lock))

    monkeypatch.setattr(backend._own, "is_current", struck)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        backend.put_many(dict.fromkeys(keys, b"batch"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert {backend.get(key).data for key in keys} == {b"batch"}
    assert {backend.get(key).data for key in ("single", "m1")} == {b"from the handler"}
    assert not backend.contains("a") and not backend.contains("m2")
    (text,) = told
    assert "a signal handler or finalizer writes in the middle of a write" in text and repr(keys[0]) in text
    assert temporaries(Path(backend.path)) == []


@pytest.mark.parametrize("act", ["put_many", "delete_many"])
@pytest.mark.parametrize("when", ["writing", "opened", "written", "locking", "locked", "in the middle", "between locks"])
def test_a_child_forked_amid_a_batch_leaves_it_to_its_parent(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch, act: str, when: str
) -> None:
    keys = [f"k{n}" for n in range(40)]
    backend.put_many(dict.fromkeys(keys, b"old"))
    codes: list[int] = []
    before: list[dict[str, int]] = []
    me, count, held_before = os.getpid(), 0, len(_flock.held)
    etags: dict[str, ETag] = {}

    def fork() -> None:
        monkeypatch.undo()
        before.append(_inodes(folder))
        child = os.fork()
        if child:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def after(number: int, really: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal count
            answer = really(*arguments)
            count += 1
            if count == number:
                fork()
            return answer

        return call

    if act == "delete_many" and when in ("writing", "opened", "written"):
        pytest.skip("it writes nothing")
    if when == "writing":
        monkeypatch.setattr(_file_batch, "close_lock", after(9, _file_batch.close_lock))
    elif when == "opened":
        monkeypatch.setattr(os, "open", after(9, os.open))
    elif when == "written":
        monkeypatch.setattr(_file_batch, "whole_sync", lambda fd: fork)
    elif when == "locking":
        monkeypatch.setattr(backend._own, "open_lock", after(5, backend._own.open_lock))
    elif when == "locked":
        monkeypatch.setattr(_file_batch, "keep_alive", after(7, _file_batch.keep_alive))
    elif when == "in the middle":
        monkeypatch.setattr(backend._own, "is_current", after(10, backend._own.is_current))
    else:
        monkeypatch.setattr(_file_batch, "close_lock", after(49 if act == "put_many" else 9, _file_batch.close_lock))
    try:
        if act == "put_many":
            etags = backend.put_many(dict.fromkeys(keys, b"new"))
        else:
            backend.delete_many(keys)
    except perdure.BackendError as error:
        if os.getpid() != me:
            os._exit(7 if "forked in the middle" in str(error) and _inodes(folder) == before[0] else 1)
        raise
    except BaseException:
        if os.getpid() != me:
            os._exit(3)
        raise
    if os.getpid() != me:
        os._exit(2)
    assert codes == [7]
    if act == "put_many":
        assert {meta.key: meta.etag for meta in backend.scan()} == etags
    else:
        assert list(backend.keys()) == []
    assert temporaries(folder) == []
    assert len(_flock.held) == held_before, "a lock or a file is kept open"


def _inodes(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_ino for path in folder.rglob("*")}


def test_all_is_checked_before_anything_is_written(folder: Path, backend: FileBackend) -> None:
    backend.put("a", b"old")
    for key in ("x" * 248, "/".join(["x" * 200] * 25), "up/../there"):
        with pytest.raises(perdure.InvalidKeyError):
            backend.put_many({"a": b"new", "b": b"new", key: b"new"})
        with pytest.raises(perdure.InvalidKeyError):
            backend.delete_many(["a", key])
    with pytest.raises(TypeError):
        backend.put_many({"a": b"new", "b": "text"})  # type: ignore[dict-item]
    assert [(meta.key, backend.get(meta.key).data) for meta in backend.scan()] == [("a", b"old")]
    backend.close()
    for call in (lambda: backend.put_many({"a": b"", "b": b""}), lambda: backend.delete_many(["a", "b"])):
        with pytest.raises(perdure.BackendError, match="closed"):
            call()


def test_what_stands_in_the_way_of_one_value_is_named(folder: Path, backend: FileBackend, tmp_path: Path) -> None:
    backend.put_many(dict.fromkeys("abc", b"old"))
    (folder / "k7.perdure").mkdir()
    (folder / "door").symlink_to(tmp_path)
    for key in ("k7", "door/x"):
        values = {f"k{n}": b"new" for n in range(20) if n != 7} | {key: b"new"}
        with pytest.raises(perdure.BackendError) as caught:
            backend.put_many(values)
        assert caught.value.key == key and temporaries(folder) == []
        assert {backend.get(found).data for found in backend.keys()} <= {b"old", b"new"}  # noqa: SIM118
        with pytest.raises(perdure.BackendError) as caught:
            backend.delete_many(["a", key, "b"])
        assert caught.value.key == key
    assert (folder / "k7.perdure").is_dir() and not (tmp_path / "x.perdure").exists()


def test_many_keys_in_many_new_nested_folders(folder: Path, backend: FileBackend) -> None:
    items = {f"{n % 7}/{n % 11}/{n}/{n}": b"%d" % n for n in range(500)}
    barrier = threading.Barrier(3)
    troubles: list[BaseException] = []

    def write() -> None:
        try:
            mine = FileBackend(folder)
            barrier.wait()
            mine.put_many(items)
        except BaseException as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles
    assert {key: blob.data for key, blob in backend.get_many(items).items()} == items
    assert backend.leftovers() == []
    backend.delete_many(items)
    assert list(backend.keys()) == []


def test_deleting_absent_keys_makes_nothing(folder: Path, backend: FileBackend) -> None:
    backend.delete_many(["a", "b/c"])
    assert not folder.exists()


def test_a_batch_in_a_plain_folder(folder: Path) -> None:
    backend = FileBackend(folder, layout="plain", suffix=".bin", digest_len=4)
    etags = backend.put_many({f"{n % 3}/k{n}": b"%d" % n for n in range(40)})
    assert {key: blob.etag for key, blob in backend.get_many(etags).items()} == etags
    assert dict(backend.times()) == {meta.key: meta.modified for meta in backend.scan()}
    for key, etag in etags.items():
        backend.put(key, b"swapped", if_match=etag)


def test_another_users_dead_batch_does_not_keep_us_from_writing(tmp_path: Path) -> None:
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import os, sys; from perdure_backends.file import FileBackend; os.setgid(65534); os.setuid(65534);"
        "b = FileBackend(sys.argv[1]); b.put('b', b'1'); b.put_many({'c': b'1', 'd': b'1'}); print(b.sweep())"
    )
    with tempfile.TemporaryDirectory() as base:  # pytest's own are closed to others
        os.chmod(base, 0o755)
        folder = Path(base) / "data"
        FileBackend(folder).put("a", b"1")
        for path in [folder, *folder.rglob("*")]:
            os.chmod(path, 0o777 if path.is_dir() else 0o666)
        dead = folder / ".perdure" / "tmp" / "batch-00000000000000aa"
        dead.mkdir(mode=0o755)
        (dead / "0").touch()
        (dead / "lock").touch(mode=0o644)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")
        assert sorted(FileBackend(folder).keys()) == ["a", "b", "c", "d"]
        assert FileBackend(folder).sweep() == [str(dead)]
        fd = open_lock(str(folder / "free"))
        flock(fd, LOCK_EX | LOCK_NB)
        close_lock(fd)
