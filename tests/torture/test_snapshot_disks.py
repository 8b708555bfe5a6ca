"""Snapshots on a disk that is full, out of names, read-only, failing or gone: a clear error, no trace, older ones whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import strace
from ledger import ROUNDS, STUCK
from test_full_disk import Mount, fill, mount  # noqa: F401 - a fixture

from perdure.errors import BackendError, ComponentError, PerdureError, UnknownOutcomeError
from perdure.protocol import Backend
from perdure.registry import open_backend, register
from perdure.snapshots import PersistentStateMixin, Snapshot, StateStore, bucket
from perdure.snapshots.bucket import BackendPlace
from perdure.snapshots.folder import FolderPlace
from perdure.testing.crew import within

_SAVER = str(Path(__file__).with_name("saver.py"))
KINDS = ["folder", "framed", "sqlite"]
WAYS = ["sync", "async"]


@pytest.fixture(autouse=True, scope="module")
def framed() -> None:
    """A scheme for the backend of a folder, as a `file:` URL means snapshots that are directories."""
    register("framed", "perdure_backends.file:FileBackend")


def url_of(kind: str, root: Path) -> str:
    return {"folder": f"file:{root}/place", "framed": f"framed:{root}/place", "sqlite": f"sqlite:{root}/place.db"}[kind]


class Files(PersistentStateMixin):
    """Writes its own files, and at most all but some bytes by itself."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.step = 0
        self.before_saving = lambda: None

    def save_state(self, path: Path) -> None:
        self.before_saving()
        path.with_suffix(".txt").write_text(str(self.step))
        path.mkdir()
        (path / "more").write_bytes(bytes([self.step]) * self.size)

    def load_state(self, path: Path) -> None:
        self.step = int(path.with_suffix(".txt").read_text())
        assert (path / "more").read_bytes() == bytes([self.step]) * self.size


class Job:
    """Values, one of them large enough for a file and threads of its own, and files; or only one of both."""

    def __init__(self, url: str | Backend, what: str = "both", *, items: int = 36_000, files: int = 60_000) -> None:
        self.store = StateStore(url)
        self.files = Files(files)
        self.values: list[Any] = []
        if what in ("both", "files"):
            self.store.register("files", self.files)
        if what in ("both", "values"):
            self.values = [self.store.register_value(f"array{size}", np.zeros(size)) for size in (10, items)]

    def be(self, step: int) -> None:
        self.files.step = step
        for value in self.values:
            value.value[:] = step

    def save(self, step: int, way: str) -> Path:
        self.be(step)
        if way == "async":
            return within(STUCK, "a save", lambda: self.store.save_async({"step": step}).wait())
        return within(STUCK, "a save", self.store.save_state, {"step": step})

    def check(self, url: str, step: int, names: list[str] | None = None) -> None:
        """A fresh store finds the snapshot of this step as the latest, all that are there whole, and these only."""
        with StateStore(url) as fresh:
            for name, state in self.store.components.items():
                fresh.register(name, state)
            for value in self.values:
                value.value[:] = -1
            self.files.step = 255
            found = fresh.load_latest()
            assert found is not None and found.metadata["step"] == step
            for value in self.values:
                assert (value.value == step).all()
            assert self.files.step in (step, 255)
            listed = fresh.snapshots()
            assert names is None or [snapshot.name for snapshot in listed] == names
            for snapshot in listed:
                assert fresh.verify(snapshot.name) == []

    def keep_latest(self) -> list[Snapshot]:
        for snapshot in self.store.snapshots()[:-1]:
            self.store.remove(snapshot.name)
        return self.store.snapshots()


Contents: TypeAlias = dict[str, bytes | None]


def contents(store: StateStore) -> Contents:
    """All that is in the place, as files or under keys."""
    place = store._place
    if isinstance(place, BackendPlace):
        return {key: place.backend.get(key).data for key in place.backend.keys()}  # noqa: SIM118 - it is no dict
    assert isinstance(place, FolderPlace) and place.path is not None
    return {str(path.relative_to(place.path)): path.read_bytes() if path.is_file() else None for path in place.path.rglob("*")}


def after_a(error: PerdureError, store: StateStore, before: Contents, *, spare: bool = False) -> Contents:
    """What is there after a save that failed.

    Args:
        spare: Whether to leave out what a database has no space to delete; of that
            there is a test of its own.
    """
    own = ("drafts/", "parts/", "sweeps/") if spare else ()
    return {key: data for key, data in contents(store).items() if key in before or not key.startswith(own)}


def told(error: BaseException, number: int, where: Path) -> None:
    """The error is ours, of the right number, and says where, why and what to do."""
    assert isinstance(error, (BackendError, ComponentError)), repr(error)
    cause = error if isinstance(error, BackendError) else error.__cause__
    assert isinstance(cause, OSError) and cause.errno == number, repr(error)
    assert error.hint and str(where) in str(error), str(error)
    if number == errno.ENOSPC:
        assert "full" in str(error).lower() or "free" in error.hint, str(error)


LEVELS = [0, 1, 2, 3, 5, 9, 15, 20, 40, 60, 80, 90, 140]
"""Pages that are free when a save begins."""


def levels(seed: str) -> list[int]:
    if ROUNDS > 1:
        return list(range(0, 141, max(1, 10 // ROUNDS)))
    return sorted({0, 140, *random.Random(seed).sample(LEVELS, 4)})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["values", "files", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_in_the_middle_of_a_save(kind: str, what: str, way: str, mount: Mount) -> None:  # noqa: F811
    root = mount("ext4" if kind == "sqlite" else "tmpfs")
    url = url_of(kind, root)
    sizes = {"items": 3_000, "files": 20_000} if kind == "sqlite" else {"files": 60_000 if what == "both" else 280_000}
    job = Job(url, what, **sizes)
    failed = 0
    job.save(1, way)
    wanted = levels(f"{kind} {what} {way}")
    for number, leave in enumerate(wanted, 2):
        (old,) = job.keep_latest()
        before, step = contents(job.store), old.metadata["step"]
        filler = fill(root, leave)
        try:
            job.save(number, way)
            step = number
        except PerdureError as error:
            told(error, errno.ENOSPC, root)
            failed += 1
            job.check(url, step, [old.name])  # while it is full
            assert after_a(error, job.store, before, spare=kind == "sqlite") == before, f"with {leave} pages"
        job.check(url, step)
        filler.unlink()
        sweep_later(job.store)
        job.keep_latest()
        job.save(number + 100, way)
        job.check(url, number + 100)
        if kind == "sqlite":  # its log alone may become as large as this disk; it is put into the file when that is closed
            job.store.close()
            job = Job(url, what, **sizes)
    assert 0 < failed < len(wanted)
    job.store.close()


def sweep_later(store: StateStore) -> None:
    """Remove what was left, as is done an hour later."""
    bucket.LEASE, lease = -1.0, bucket.LEASE
    try:
        store._place.sweep()
    finally:
        bucket.LEASE = lease


@pytest.mark.parametrize("kind", ["folder", "framed", "sqlite"])
def test_after_a_full_disk_the_next_save_and_its_cleaning_make_room_again(kind: str, mount: Mount) -> None:  # noqa: F811
    """A draft that could not be removed must not keep everything else from being removed."""
    root = mount("ext4" if kind == "sqlite" else "tmpfs")
    job = Job(url_of(kind, root), items=3_000, files=20_000)
    for step in (1, 2):
        job.save(step, "sync")
    for leave in (0, 2, 3, 5, 6, 9, 10):
        filler = fill(root, leave)
        try:
            job.save(3, "sync")
        except PerdureError as error:
            told(error, errno.ENOSPC, root)
        filler.unlink()
    job.save(4, "sync")
    job.keep_latest()
    if isinstance(job.store._place, BackendPlace):
        used = {key for snapshot in job.store.snapshots() for key in bucket.keys_of(snapshot)}
        assert {key for key in contents(job.store) if not key.startswith("snapshots/")} == used
    else:
        assert sorted(os.listdir(job.store._place.own)) == ["lock"]  # type: ignore[attr-defined]
    job.store.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_at_the_very_first_save(way: str, mount: Mount) -> None:  # noqa: F811
    root = mount("tmpfs")
    job = Job(url_of("folder", root))
    for leave in (0, 1, 2, 4, 30):
        filler = fill(root, leave)
        with pytest.raises(PerdureError) as caught:
            job.save(1, way)
        told(caught.value, errno.ENOSPC, root)
        assert job.store.snapshots() == [] and StateStore(url_of("folder", root)).load_latest() is None
        assert set(contents(job.store)) <= {".perdure-snapshots", ".perdure-snapshots/lock"}
        filler.unlink()
    job.save(2, way)
    job.check(url_of("folder", root), 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["folder", "framed"])
def test_every_small_number_of_free_inodes(kind: str, way: str, mount: Mount) -> None:  # noqa: F811
    root = mount("inodes")
    url = url_of(kind, root)
    failed = 0
    job = Job(url, files=10_000)
    job.save(1, way)
    for number in range(2, 18):
        (old,) = job.keep_latest()
        before, step = contents(job.store), old.metadata["step"]
        taken = []
        while os.statvfs(root).f_ffree > number - 2:
            taken.append(root / f"taken{len(taken)}")
            taken[-1].touch()
        try:
            job.save(number, way)
            step = number
        except PerdureError as error:
            told(error, errno.ENOSPC, root)
            failed += 1
            assert after_a(error, job.store, before) == before, f"with {number - 2} inodes"
        job.check(url, step)
        for path in taken:
            path.unlink()
        sweep_later(job.store)
        job.keep_latest()
        job.save(number + 100, way)
        job.check(url, number + 100)
    assert 0 < failed < 16


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_disk_is_read_and_not_written(kind: str, mount: Mount) -> None:  # noqa: F811
    root = mount("ext4")
    url = url_of(kind, root)
    job = Job(url)
    job.save(1, "sync")
    job.save(2, "async")
    job.store.close()
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
    try:
        job = Job(url)
        for way in WAYS:
            with pytest.raises(PerdureError) as caught:
                job.save(3, way)
            told(caught.value, errno.EROFS, root)
        job.check(url, 2)
        assert [snapshot.metadata["step"] for snapshot in job.store.snapshots()] == [1, 2]
        with pytest.raises(PerdureError) as caught:
            job.store.remove(job.store.snapshots()[0].name)
        told(caught.value, errno.EROFS, root)
        job.check(url, 2)
        job.store.close()
    finally:
        subprocess.run(["mount", "-o", "remount,rw", root], check=True)
    job = Job(url)
    job.save(4, "sync")
    job.check(url, 4)
    assert len(job.store.snapshots()) == 3
    job.store.close()


def remove_place(kind: str, root: Path) -> None:
    for path in root.glob("place*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_is_removed_between_two_saves(kind: str, way: str, tmp_path: Path) -> None:
    """The next save makes it again, or says what is wrong, and then the one after it in a new store works."""
    url = url_of(kind, tmp_path)
    job = Job(url)
    job.save(1, way)
    job.save(2, way)
    remove_place(kind, tmp_path)
    if kind == "sqlite":
        time.sleep(0.06)  # for so long it takes the file for the one that it has open
    try:
        job.save(3, way)
    except PerdureError as error:
        assert kind == "sqlite" and isinstance(error, BackendError) and error.hint, error
        job = Job(url)
        job.save(3, way)
    job.check(url, 3)
    assert len(StateStore(url).snapshots()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_place_that_is_removed_in_the_middle_of_a_save(way: str, tmp_path: Path) -> None:
    url = url_of("folder", tmp_path)
    job = Job(url)
    job.save(1, way)
    job.files.before_saving = lambda: remove_place("folder", tmp_path)
    with pytest.raises(PerdureError) as caught:
        job.save(2, way)
    told(caught.value, errno.ENOENT, tmp_path)
    job.files.before_saving = lambda: None
    job.save(3, way)
    job.check(url, 3)


def test_a_place_in_whose_stead_there_is_a_file_now(tmp_path: Path) -> None:
    job = Job(url_of("folder", tmp_path))
    job.save(1, "sync")
    remove_place("folder", tmp_path)
    (tmp_path / "place").write_text("mine")
    for way in WAYS:
        with pytest.raises(BackendError) as caught:
            job.save(2, way)
        assert caught.value.hint and str(tmp_path) in str(caught.value), caught.value
    with pytest.raises(BackendError):
        job.store.snapshots()
    assert (tmp_path / "place").read_text() == "mine"
    (tmp_path / "place").unlink()
    job.save(3, "sync")
    job.check(url_of("folder", tmp_path), 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["folder", "framed"])
def test_each_fsync_fails(kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(kind, tmp_path)
    job = Job(url)
    job.save(1, way)
    fsync, left = os.fsync, -1

    def fail(fd: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail)
    failed = 0
    for nth in range(1, 100):
        before = contents(job.store)
        left = nth
        try:
            job.save(nth + 1, way)
        except PerdureError as error:
            left = -1
            failed += 1
            unknown = isinstance(error, UnknownOutcomeError)
            assert isinstance(error, BackendError) and error.errno == errno.EIO and str(tmp_path) in str(error), error
            if not unknown:
                assert after_a(error, job.store, before) == before, f"after fsync {nth} failed"
                job.check(url, 1)
            else:
                for snapshot in job.store.snapshots():
                    assert job.store.verify(snapshot.name) == []
        if left > 0:
            break
        if left < -1:  # it was only logged, as the snapshot was there already
            job.check(url, nth + 1)
        left = -1
        for snapshot in job.store.snapshots()[1:]:
            job.store.remove(snapshot.name)
    assert failed >= 4
    left = -1
    job.save(200, way)
    job.check(url, 200)


@strace.needed
@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_fsync_fails_in_the_kernel(kind: str, tmp_path: Path) -> None:
    """As above, in a process of its own, and so in a database, too."""
    model, run, trace = tmp_path / "model", tmp_path / "run", tmp_path / "trace"
    model.mkdir()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, _SAVER, "few"]
    subprocess.run([*command, url_of(kind, model), "1"], check=True, env=environment, capture_output=True)

    def save(*inject: str) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(model, run)
        traced = ["strace", "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync", *inject, *command, url_of(kind, run), "1"]
        return subprocess.run(traced, check=False, env=environment, capture_output=True, text=True, timeout=60)

    done = save("--seccomp-bpf")
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if "fsync(" in line or "fdatasync(" in line]
    name = "fsync" if kind == "folder" else "fdatasync"
    count = sum(f"{name}(" in line for line in calls)
    assert count >= 2, calls
    numbers = range(1, count + 1)
    some = numbers if ROUNDS >= 10 else sorted(random.Random(kind).sample(numbers, min(count, ROUNDS)))
    for number in some:
        done = save("-e", f"inject={name}:error=EIO:when={number}")
        with StateStore(url_of(kind, run)) as store:
            listed = [snapshot.metadata["step"] for snapshot in store.snapshots()]
            saved = "< 2" in done.stdout
            if saved:
                assert done.returncode == 0 and listed == [1, 2], (number, done.stderr)
            else:
                assert "perdure.errors.BackendError" in done.stderr or "UnknownOutcomeError" in done.stderr, done.stderr
                assert listed == [1] or "UnknownOutcomeError" in done.stderr, (number, done.stderr)
            for snapshot in store.snapshots():
                assert store.verify(snapshot.name) == []
        subprocess.run([*command, url_of(kind, run), "1"], check=True, env=environment, capture_output=True)
    print(f"{kind}: {count} calls of {name}")


class Refusing:
    """A backend that refuses manifests: a disk is full, or whoever writes has no right to."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def put(self, key: str, data: Any, **options: Any) -> Any:
        if key.startswith("snapshots/"):
            self.refused += 1
            raise BackendError("the disk is full", key=key, place=self._backend.place, hint="Free space.", errno=errno.ENOSPC)
        return self._backend.put(key, data, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_manifest_that_is_refused_leaves_no_trace(way: str) -> None:
    with open_backend(f"memory:{os.urandom(8).hex()}") as backend:
        refusing: Any = Refusing(backend)
        job = Job(refusing)
        with pytest.raises(BackendError, match="full"):
            job.save(1, way)
        assert refusing.refused == 1
        assert list(backend.keys()) == []


def test_contents_sees_what_a_draft_leaves(tmp_path: Path) -> None:
    """The tests above look at the right places."""
    job = Job(url_of("folder", tmp_path))
    job.save(1, "sync")
    before = contents(job.store)
    draft = job.store._place.begin(isolate=False)
    assert contents(job.store) != before
    draft.abandon()
    assert contents(job.store) == before
    with open_backend(url_of("sqlite", tmp_path)) as backend:
        store = StateStore(backend)
        assert contents(store) == {}
        draft = store._place.begin(isolate=False)
        assert len(contents(store)) == 1
        draft.abandon()
        assert contents(store) == {}
