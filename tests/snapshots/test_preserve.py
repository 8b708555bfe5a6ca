"""What a long-running program meets: clocks, forks, other stores, Ctrl-C and its own end; every snapshot is preserved."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import perdure
import perdure_backends
from perdure.errors import PerdureError, UnavailableError
from perdure.snapshots import KeepLatest, PersistentStateMixin, Snapshot, StateStore
from perdure.snapshots import store as store_module
from perdure.snapshots.bucket import BackendPlace
from perdure.snapshots.bucket_keys import key_of
from perdure.snapshots.folder import FolderPlace
from perdure.snapshots.manifest import Component, Part, digest_of, write_manifest
from perdure.snapshots.names import MANIFEST
from perdure.testing.crew import within

STUCK = 30.0
"""Seconds after which something that does not come back counts as stuck for ever."""

_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(str(Path(package.__path__[0]).parent) for package in (perdure, perdure_backends)),
    "PYTHONDONTWRITEBYTECODE": "1",
}


def nothing() -> None:
    """Do it."""


class Files(PersistentStateMixin):
    """Writes a file by itself, and does something else before."""

    def __init__(self) -> None:
        self.step = 0
        self.before_saving: Callable[[], object] = nothing

    def save_state(self, path: Path) -> None:
        self.before_saving()
        path.with_suffix(".txt").write_text(str(self.step))

    def load_state(self, path: Path) -> None:
        self.step = int(path.with_suffix(".txt").read_text())


class Job:
    """A value with a file of its own, and a component that writes one by itself."""

    def __init__(self, url: str, **options: Any) -> None:
        self.store = StateStore(url, trusted=True, **options)
        self.array = self.store.register_value("array", np.zeros(50_000))
        self.files = Files()
        self.store.register("files", self.files)

    def be(self, step: int) -> None:
        self.array.value[:] = step
        self.files.step = step

    def save(self, step: int) -> Path:
        self.be(step)
        return self.store.save_state({"step": step})

    def check(self, step: int) -> None:
        assert (self.array.value == step).all() and self.files.step == step


def latest(url: str) -> int:
    """The step of the newest snapshot, as a fresh store finds it; all there are have to be whole."""
    with StateStore(url, trusted=True) as store:
        for snapshot in store.snapshots():
            assert store.verify(snapshot.name) == []
    job = Job(url)
    found = job.store.load_latest()
    assert found is not None
    job.check(found.metadata["step"])
    job.store.close()
    return int(found.metadata["step"])


def left(store: StateStore) -> list[str]:
    """What is in the place besides snapshots and a lock."""
    place = store._place
    if isinstance(place, FolderPlace):
        return [name for name in os.listdir(place.own) if name != "lock"]
    assert isinstance(place, BackendPlace)
    whole = {f"parts/{snapshot.id}" for snapshot in store.snapshots()}
    return [key for key in place.backend.keys() if not key.startswith(("snapshots/", *whole))]  # noqa: SIM118


@pytest.mark.parametrize("years", [-60, 500])
def test_a_clock_that_is_set_changes_no_order(url: str, years: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To before 1970, too; and the clock stays on the same microsecond for two saves."""
    moment = now = datetime.now(UTC)

    class Set(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moment if tz else moment.replace(tzinfo=None)

    monkeypatch.setattr(store_module, "datetime", Set)
    job = Job(url, keep=KeepLatest(4))
    for step, moment in enumerate(  # noqa: B007 - `now` looks at it
        [now, now, now + timedelta(days=365 * years), now - timedelta(hours=1), now], 1
    ):
        job.save(step)
    snapshots = job.store.snapshots()
    assert [snapshot.metadata["step"] for snapshot in snapshots] == [2, 3, 4, 5]
    assert len({snapshot.name for snapshot in snapshots}) == 4
    with StateStore(url) as fresh:
        assert fresh.snapshots() == snapshots
    assert latest(url) == 5


@pytest.fixture
def zone() -> Iterator[Callable[[str], None]]:
    """Sets the time zone of this process."""
    before = os.environ.get("TZ")

    def change(name: str) -> None:
        os.environ["TZ"] = name
        time.tzset()

    yield change
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system has no tzset")
def test_a_time_zone_that_changes_changes_no_order(url: str, zone: Callable[[str], None]) -> None:
    """Names go by local time, and so may go back; numbers do not, and `saved` is the moment."""
    job = Job(url)
    begun = datetime.now(UTC)
    zones = ["UTC+11", "UTC-13", "UTC+11", "America/New_York", "UTC-5:45"]
    for step, name in enumerate(zones, 1):
        zone(name)
        job.save(step)
    snapshots = job.store.snapshots()
    assert [snapshot.metadata["step"] for snapshot in snapshots] == [1, 2, 3, 4, 5]
    names = [snapshot.name for snapshot in snapshots]
    assert sorted(names) != names and len(set(names)) == 5
    moments = [snapshot.saved for snapshot in snapshots]
    assert moments == sorted(moments) and begun <= moments[0] and moments[-1] <= datetime.now(UTC)
    zone("UTC+3")
    with StateStore(url) as fresh:
        assert [snapshot.name for snapshot in fresh.snapshots()] == names
        assert [snapshot.saved for snapshot in fresh.snapshots()] == moments
    assert latest(url) == 5


def many(count: int) -> list[Snapshot]:
    """Manifests of 40 parts each, in order, whose names are in another."""
    rng = random.Random(7)
    names = [f"{number:04d}.state" for number in range(count)]
    rng.shuffle(names)
    parts = {}
    for number in range(40):
        name = "model.pkl" if not number else f"model/layer{number}.npy"
        parts[name] = Part(name, 1000 + number, (digest_of(name.encode()),))
    components = {"model": Component("state_dict", tuple(parts))}
    saved = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Snapshot(f"{rng.getrandbits(128):032x}", number, name, saved, {"step": number}, components, parts)
        for number, name in enumerate(names, 1)
    ]


def test_a_thousand_snapshots_are_listed_in_order_and_no_part_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part is even there."""
    snapshots = many(1000)
    for snapshot in snapshots:
        (tmp_path / snapshot.name).mkdir()
        (tmp_path / snapshot.name / MANIFEST).write_bytes(write_manifest(snapshot))
    opened: list[str] = []
    there = os.open

    def note(path: Any, *args: Any, **options: Any) -> int:
        opened.append(os.path.basename(path))
        return there(path, *args, **options)

    monkeypatch.setattr(os, "open", note)
    store = StateStore(tmp_path)
    found = store.snapshots()
    assert opened == [MANIFEST] * 1000
    assert found == snapshots and all(len(snapshot.parts) == 40 for snapshot in found)
    assert store.snapshots() == snapshots
    assert len(opened) == 1000  # nothing is read twice
    job = Job(str(tmp_path))
    name = job.save(1001).name
    listed = StateStore(tmp_path).snapshots()
    assert len({snapshot.name for snapshot in listed}) == 1001
    assert (listed[-1].name, listed[-1].sequence) == (name, 1001)


def test_a_thousand_snapshots_in_a_database_are_listed_in_order(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/states.db?sync=normal"
    snapshots = many(1000)
    with StateStore(url) as store:
        assert isinstance(store._place, BackendPlace)
        store._place.backend.put_many({key_of(snapshot.sequence): write_manifest(snapshot) for snapshot in snapshots})
    with StateStore(url) as store:
        assert store.snapshots() == snapshots
        value = store.register_value("value", 1)
        name = store.save_state().name
        assert (store.snapshots()[-1].name, store.snapshots()[-1].sequence) == (name, 1001)
        assert value.value == 1


def test_names_are_unique_however_fast_they_are_given(url: str) -> None:
    """Two stores, each in two threads, with a format that knows only the year."""
    jobs = [Job(url, state_name_format="%Y.state") for _ in range(2)]
    errors: list[BaseException] = []

    def save(job: Job) -> None:
        try:
            for _ in range(4):
                job.store.save_state()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(job,)) for job in jobs for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        within(STUCK, "a saver", thread.join)
    assert not errors
    snapshots = jobs[0].store.snapshots()
    assert [snapshot.sequence for snapshot in snapshots] == list(range(1, 17))
    assert len({snapshot.name for snapshot in snapshots}) == 16
    for snapshot in snapshots:
        assert jobs[1].store.verify(snapshot.name) == []


def in_child(call: Callable[[], object]) -> str:
    """Fork, call it in the child, and return what went wrong there, or nothing."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        trouble = b""
        try:
            call()
        except BaseException as error:
            trouble = repr(error).encode() or b"?"
        try:
            os.write(into, trouble)
        finally:
            os._exit(0)
    os.close(into)
    try:
        with os.fdopen(out, "rb") as file:
            told = within(STUCK, "the child", file.read)
    except BaseException:
        os.kill(pid, 9)
        raise
    finally:
        os.waitpid(pid, 0)
    return str(told.decode())


def hold_commits(store: StateStore) -> tuple[threading.Event, threading.Event]:
    """Let the background save of this store stop before it completes, in this process only.

    Returns:
        When it has come so far; and what lets it go on.
    """
    arrived, go_on = threading.Event(), threading.Event()
    complete, process = store._complete, os.getpid()

    def completed(*args: Any) -> Path:
        if os.getpid() == process:
            arrived.set()
            assert go_on.wait(STUCK)
        return complete(*args)

    store._complete = completed  # type: ignore[method-assign]
    return arrived, go_on


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
SHARED = pytest.mark.parametrize("url", ["folder", "file", "sqlite"], indirect=True)  # where processes meet


@needs_fork
@SHARED
def test_a_child_saves_while_its_parent_saves_in_the_background(url: str) -> None:
    job = Job(url)
    job.save(1)
    arrived, go_on = hold_commits(job.store)
    job.be(2)
    saving = job.store.save_async({"step": 2})
    assert arrived.wait(STUCK)

    def child() -> None:
        job.store.wait()
        try:
            saving.wait()
        except UnavailableError:
            pass
        else:
            raise AssertionError("a save of another process was waited for")
        job.check(2)
        job.save(3)
        job.store.save_async({"step": 4}).wait()
        job.store.wait()
        job.be(-1)
        job.store.load_latest()
        job.check(3)  # what was saved as 4 is the same
        job.store.close()

    trouble = in_child(child)
    go_on.set()
    assert saving.wait(STUCK)
    assert trouble == ""
    job.check(2)
    assert [snapshot.metadata["step"] for snapshot in job.store.snapshots()] == [1, 3, 4, 2]  # in the order of completion
    job.save(5)
    assert latest(url) == 5
    assert [name for name in left(job.store) if not name.startswith("parts/")] == []
    job.store.close()


@needs_fork
@SHARED
def test_a_child_that_ends_at_any_moment_of_its_parents_save_takes_nothing_with_it(url: str) -> None:
    """It ends as programs do, with all that the interpreter does then."""
    job = Job(url)
    job.save(1)
    for step in range(2, 8):
        job.be(step)
        saving = job.store.save_async({"step": step})
        pid = os.fork()
        if pid == 0:
            try:
                job.store.wait()
                job.store.close()
                del job, saving
            finally:
                os._exit(0)
        within(STUCK, "the child", os.waitpid, pid, 0)
        saving.wait(STUCK)
        assert latest(url) == step
    job.store.close()


FORKING = """
import multiprocessing, os, sys
from pathlib import Path
import numpy as np
from perdure.snapshots import PersistentStateMixin, StateStore

class Files(PersistentStateMixin):
    def save_state(self, path: Path) -> None:
        path.with_suffix(".txt").write_text("7" * 3_000_000)
    def load_state(self, path: Path) -> None: ...

store = StateStore(sys.argv[1], trusted=True)
array = store.register_value("array", np.arange(3_000_000))
store.register("files", Files())

def child():
    if sys.argv[2] == "saves":
        store.save_state({"step": 2})
        store.save_async({"step": 3})

saving = store.save_async({"step": 1})
pid = os.fork()
if pid == 0:
    child()
    sys.exit()  # with all that an interpreter does then
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
codes = [process.exitcode, os.waitpid(pid, 0)[1]]
saving.wait()
print(codes)
"""


@needs_fork
@SHARED
@pytest.mark.parametrize("way", ["does nothing", "saves"])
def test_children_that_end_as_programs_do_take_nothing_with_them(url: str, way: str) -> None:
    """Whatever they inherited from a save that was under way is not theirs to clear away."""
    if url.startswith("framed:"):
        url = f"sqlite:{url.removeprefix('framed:')}.db"  # durable, unlike the other one
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, url, way],
        env=_ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[0, 0]", "")
    with StateStore(url, trusted=True) as store:
        steps = sorted(snapshot.metadata["step"] for snapshot in store.snapshots())
        assert steps == ([1] if way == "does nothing" else [1, 2, 2, 3, 3])
        for snapshot in store.snapshots():
            assert store.verify(snapshot.name) == []
        assert left(store) == []


@needs_fork
@SHARED
def test_a_child_forked_while_another_thread_saves_is_not_stuck(url: str) -> None:
    """The lock of the store is held, by a thread which the child does not have."""
    job = Job(url)
    job.save(1)
    arrived, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def pause() -> None:
        if os.getpid() == parent:
            arrived.set()
            assert go_on.wait(STUCK)

    job.files.before_saving = pause
    thread = threading.Thread(target=job.save, args=(2,))
    thread.start()
    assert arrived.wait(STUCK)
    trouble = in_child(lambda: (job.save(3), job.store.load_latest(), job.check(3)))
    go_on.set()
    within(STUCK, "the thread", thread.join)
    assert trouble == ""
    assert {snapshot.metadata["step"] for snapshot in job.store.snapshots()} == {1, 2, 3}
    assert latest(url) in (2, 3)
    job.store.close()


def test_two_stores_in_one_process_on_one_place(url: str) -> None:
    """With saves under way in both, a keeper in each, and each loading what the other has saved."""
    one, other = Job(url, keep=KeepLatest(3)), Job(url, keep=KeepLatest(3))
    for step in range(1, 9, 2):
        one.be(step)
        saving = one.store.save_async({"step": step})
        other.save(step + 1)
        saving.wait()
        for job in (one, other):
            job.be(-1)
            found = job.store.load_latest()
            assert found is not None and found.metadata["step"] in (step, step + 1)
            job.check(found.metadata["step"])
    assert 3 <= len(one.store.snapshots()) <= 4
    for snapshot in one.store.snapshots():
        assert other.store.verify(snapshot.name) == []
    one.store.close()
    assert other.save(100)
    other.be(-1)
    other.store.load_latest()
    other.check(100)


def test_a_store_is_not_pickled(url: str) -> None:
    """Or the copy is a store of its own, which saves."""
    job = Job(url)
    job.save(1)
    try:
        data = pickle.dumps(job.store)
    except TypeError as error:
        assert "pickle" in str(error), error
    else:
        copy = pickle.loads(data)
        within(STUCK, "the copy", copy.save_state)
    assert job.save(2)


ENDING = """
import sys, threading
from pathlib import Path
import numpy as np
from perdure.snapshots import PersistentStateMixin, StateStore

class Files(PersistentStateMixin):
    def save_state(self, path: Path) -> None:
        path.with_suffix(".txt").write_text("7" * 100_000)
    def load_state(self, path: Path) -> None: ...

store = StateStore(sys.argv[1], trusted=True)
array = store.register_value("array", np.arange(3_000_000))
store.register("files", Files())
store.save_async({"step": 1})
array.value[:] = -1
if sys.argv[2] == "error": raise ValueError("the program itself")
if sys.argv[2] == "thread": threading.Thread(target=store.save_async, args=({"step": 2},)).start()
"""


@SHARED
@pytest.mark.parametrize("way", ["end", "error", "thread"])
def test_an_interpreter_that_ends_waits_for_the_save(url: str, way: str) -> None:
    if url.startswith("framed:"):
        url = f"sqlite:{url.removeprefix('framed:')}.db"  # durable, unlike the other one
    done = subprocess.run(
        [sys.executable, "-c", ENDING, url, way], env=_ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (way == "error"), done.stderr
    assert ("the program itself" in done.stderr) if way == "error" else done.stderr == "", done.stderr
    with StateStore(url, trusted=True) as store:
        steps = [snapshot.metadata["step"] for snapshot in store.snapshots()]
        assert steps == ([1, 2] if way == "thread" else [1])
        array = store.register_value("array", np.zeros(3_000_000, dtype=int))
        first = store.snapshots()[0]
        assert store.verify(first.name) == []
        store.load_state(first.name, strict=False)
        assert (array.value == np.arange(3_000_000)).all()
        assert left(store) == []


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_save_that_is_interrupted_leaves_no_trace(url: str, way: str, error: type[BaseException]) -> None:
    """By Ctrl-C, or the end of the program, in the middle of a component; another one was saved already."""

    def raising() -> None:
        raise error

    job = Job(url)
    job.save(1)
    save: Callable[[], object] = job.store.save_state if way == "sync" else job.store.save_async
    job.files.before_saving = raising
    with pytest.raises(PerdureError if issubclass(error, Exception) else error):
        save()
    assert left(job.store) == [] and len(job.store.snapshots()) == 1
    with pytest.raises(PerdureError if issubclass(error, Exception) else error):
        save()
    job.files.before_saving = nothing
    within(STUCK, "the next save", job.save, 2)
    assert latest(url) == 2


@pytest.mark.parametrize("moment", ["before the thread begins", "once it has begun"])
def test_ctrl_c_while_a_background_save_begins_lets_the_next_one_in(
    url: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn is given back once: by who was interrupted, or by the thread, whose save is then whole."""
    job = Job(url)
    job.save(1)
    start, began = threading.Thread.start, moment == "once it has begun"

    def interrupted(thread: threading.Thread) -> None:
        if thread.name != "perdure-save":
            return start(thread)
        if began:
            start(thread)
        raise KeyboardInterrupt

    job.files.step = 2
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.store.save_async({"step": 2})
    monkeypatch.undo()
    within(STUCK, "the next save", job.save, 3)
    assert [snapshot.metadata["step"] for snapshot in job.store.snapshots()] == [1, *([2] if began else []), 3]
    assert left(job.store) == []


def test_a_save_that_is_interrupted_while_it_becomes_durable_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at every single fsync, and what is already visible then is either taken back or whole."""
    url = f"file:{tmp_path}/states"
    job = Job(url)
    job.save(1)
    fsync, countdown = os.fsync, 0

    def strike(fd: int) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise KeyboardInterrupt
        fsync(fd)

    monkeypatch.setattr(os, "fsync", strike)
    for nth in range(1, 50):
        countdown = nth
        try:
            job.save(nth + 1)
        except KeyboardInterrupt:
            assert left(job.store) == [], nth
            assert [snapshot.metadata["step"] for snapshot in StateStore(url).snapshots()] == [1]
            assert latest(url) == 1
        else:
            break
    assert nth > 4
    countdown = 0
    assert within(STUCK, "the next save", job.save, 100)
    assert latest(url) == 100


MEMORY = """
import sys, threading
from pathlib import Path
import numpy as np
from perdure.snapshots import StateStore

def peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10

store = StateStore(sys.argv[1], sync="normal")
small = store.register_value("small", np.zeros(100_000))
store.save_state()
array = store.register_value("array", np.ones(25_000_000))
before = peak()
saving = store.save_async()
returned = peak()
array.value[:] = 2
saving.wait()
print(returned - before, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of one program")
def test_to_save_in_the_background_into_a_folder_needs_no_copy(tmp_path: Path) -> None:
    """Of 200 MB. (`getrusage` would tell the peak of whoever started the program, too.)"""
    url = f"file:{tmp_path}/states"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, url], env=_ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True
    )
    returned, whole = map(int, done.stdout.split())
    print(f"{returned:,} bytes more when it returned, {whole:,} in the end")
    assert max(returned, whole) < 50_000_000
    store = StateStore(url)
    newest = store.snapshots()[-1]
    assert store.verify(newest.name) == []
    array = np.load(tmp_path / "states" / newest.name / "array" / "value.npy", mmap_mode="r")
    assert array.shape == (25_000_000,) and (array == 1).all()


def test_a_copy_of_a_manifest_reads_as_it_was(tmp_path: Path) -> None:
    """What the thousand above rest on."""
    (snapshot,) = many(1)
    (tmp_path / snapshot.name).mkdir()
    (tmp_path / snapshot.name / MANIFEST).write_bytes(write_manifest(snapshot))
    (found,) = StateStore(tmp_path).snapshots()
    assert dataclasses.replace(found, place="", path=None).parts == snapshot.parts
    assert found.sequence == 1 and found.metadata == {"step": 1}
