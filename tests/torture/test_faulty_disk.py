"""A write that is killed before, or fails at, each of its system calls in turn, with strace as the hand of fate."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections import Counter
from pathlib import Path

import pytest
import strace
from children import BATCH
from ledger import PLACES, ROUNDS, STUCK, Ledger, opened, seen, value

from perdure.errors import BackendError
from perdure.protocol import Backend
from perdure.testing.crew import within
from perdure_backends.file import FileBackend

BATCHES = ["put", "put one by one", "delete"]
ACTIONS = ["first", "create", "overwrite", "swap", "delete"]
# Calls that a disk fails. (open: a folder that cannot be read any more; flock fails on network file systems only.)
DISK = {"openat", "write", "writev", "pwrite64", "ftruncate", "fallocate", "rename", "renameat", "renameat2", "link", "linkat"}
DISK |= {"unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "fsync", "fdatasync", "syncfs"}


def chosen(found: list[tuple[strace.Nth, str]], seed: str, some: int = 1) -> list[tuple[strace.Nth, str]]:
    """All of them in a long run, else some."""
    return found if ROUNDS >= 10 else sorted(random.Random(seed).sample(found, min(len(found), some * ROUNDS)))


class Laboratory:
    """The same place again and again, as it was before the write."""

    script = "one_step"

    def __init__(self, kind: str, sync: str, action: str, folder: Path) -> None:
        self._args = kind, sync
        self.action = action
        self._folder = folder
        self._model = folder / "model"
        self._model.mkdir()
        self.where = folder / "run" / "place"
        self._trace = folder / "trace"
        if action != "first":
            with opened(kind, sync, self._model / "place") as backend:
                self.furnish(backend)
        self.run()
        self.steps = [(nth, line) for nth, line in strace.steps(self._trace) if "write(1, " not in line]

    def furnish(self, backend: Backend) -> None:
        """Write what is there before."""
        backend.put("l", value("l", 1, 10))
        if self.action != "create":
            backend.put("k", value("k", 1, 9000))

    def run(self, at: strace.Nth | None = None, do: str = "") -> list[str]:
        """Do the action in a fresh copy of the place."""
        shutil.rmtree(self._folder / "run", ignore_errors=True)
        shutil.copytree(self._model, self._folder / "run")
        also = ",flock,close,fcntl" if do != "error=EIO" else ""
        return strace.run(self._trace, self.script, *self._args, self.where, self.action, at=at, do=do, also=also)

    def ledger(self) -> Ledger:
        """What was there before."""
        ledger = Ledger()
        if self.action != "first":
            ledger.due["l"] = {1}
            ledger.due["k"] = {None if self.action == "create" else 1}
        return ledger


@strace.needed
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("kind", "sync"), PLACES)
def test_killed_before_each_system_call(kind: str, sync: str, action: str, tmp_path: Path) -> None:
    laboratory = Laboratory(kind, sync, action, tmp_path)
    assert len(laboratory.steps) >= 4
    for nth, _ in chosen(laboratory.steps, f"{kind} {sync} {action}"):
        ledger = laboratory.ledger()
        for line in laboratory.run(nth, "signal=SIGKILL"):
            ledger.note(line)
        with opened(kind, sync, laboratory.where) as backend:
            ledger.check(backend)
            assert set(backend.keys()) <= {"k", "l"}
            if isinstance(backend, FileBackend):
                assert len(backend.leftovers()) <= 1, nth
            within(STUCK, f"the next writer, after {nth}", backend.put, "k", value("k", 9, 10))
            assert seen(backend, "k") == 9
            if isinstance(backend, FileBackend):
                assert os.listdir(laboratory.where / ".perdure" / "tmp") == [], nth
    print(f"{kind} {sync} {action}: {len(laboratory.steps)} calls")


@strace.needed
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("kind", "sync"), PLACES)
def test_each_system_call_fails(kind: str, sync: str, action: str, tmp_path: Path) -> None:
    """The error is ours and clear, the old value stays unless the outcome is said to be unknown, and the next try works."""
    laboratory = Laboratory(kind, sync, action, tmp_path)
    outcomes: Counter[str] = Counter()
    steps = [(nth, line) for nth, line in laboratory.steps if nth.name in DISK]
    for nth, _ in chosen(steps, f"{kind} {sync} {action}"):
        ledger = laboratory.ledger()
        before = ledger.due.get("k", {None})
        said = laboratory.run(nth, "error=EIO")
        unknown = False
        for line in said:
            if line.startswith("! "):
                _, name, _, key, _ = line.split(" ", 4)
                outcomes[name] += 1
                assert key == "k" and str(laboratory.where) in line, line
                assert name in ("BackendError", "UnknownOutcomeError"), line
                unknown = unknown or name == "UnknownOutcomeError"
                ledger.forget()
                if not unknown:
                    ledger.due["k"] = before  # nothing was changed
            elif line.startswith("? "):
                assert unknown or line == f"? {next(iter(before))}", f"{nth}: it was changed, though said not to be: {said}"
            else:
                ledger.note(line)
        refused = said[-1].startswith("= ")
        assert not refused or unknown, f"{nth}: a second try finds the key changed, though it was said not to be: {said}"
        with opened(kind, sync, laboratory.where) as backend:
            try:
                ledger.check(backend)
                if isinstance(backend, FileBackend):
                    backend.sweep()
                    assert backend.leftovers() == []
                within(STUCK, "the next writer", backend.put, "k", value("k", 9, 10))
            except Exception as error:
                raise AssertionError(f"{nth}: {said}: {error}") from error
    print(f"{kind} {sync} {action}: {len(steps)} calls, {dict(outcomes)}")


class Hospital(Laboratory):
    """The same for a batch of writes, before which every other key has a value."""

    script = "one_batch"

    def furnish(self, backend: Backend) -> None:
        backend.put("untouched", value("untouched", 1, 10))
        for key in BATCH[::2] if self.action != "delete" else BATCH:
            backend.put(key, value(key, 1, 10))

    def ledger(self) -> Ledger:
        ledger = Ledger()
        ledger.due["untouched"] = {1}
        for number, key in enumerate(BATCH):
            ledger.due[key] = {None if self.action != "delete" and number % 2 else 1}
        return ledger


@strace.needed
@pytest.mark.parametrize("action", BATCHES)
def test_a_batch_killed_before_each_system_call(action: str, tmp_path: Path) -> None:
    laboratory = Hospital("file", "full", action, tmp_path)
    names = {nth.name for nth, _ in laboratory.steps}
    assert names >= {"fsync"} and (action == "delete" or names & {"rename", "renameat", "renameat2"}), names
    for nth, _ in chosen(laboratory.steps, action, 8):
        ledger = laboratory.ledger()
        for line in laboratory.run(nth, "signal=SIGKILL"):
            ledger.note(line)
        with opened("file", "full", laboratory.where) as backend:
            assert isinstance(backend, FileBackend)
            ledger.check(backend)
            assert set(backend.keys()) <= {"untouched", *BATCH}
            assert len(backend.leftovers()) <= 1, nth
            within(STUCK, f"the next writer, after {nth}", backend.put, BATCH[0], value(BATCH[0], 9, 10))
            assert seen(backend, BATCH[0]) == 9
            assert os.listdir(laboratory.where / ".perdure" / "tmp") == [], nth
    print(f"{action}: {len(laboratory.steps)} calls")


@strace.needed
@pytest.mark.parametrize("action", BATCHES)
def test_each_system_call_of_a_batch_fails(action: str, tmp_path: Path) -> None:
    """The error is ours, says where, every value is old or new, nothing is left behind, and the next try works."""
    laboratory = Hospital("file", "full", action, tmp_path)
    outcomes: Counter[str] = Counter()
    steps = [(nth, line) for nth, line in laboratory.steps if nth.name in DISK]
    for nth, call in chosen(steps, action, 8):
        said = laboratory.run(nth, "error=EIO")
        ledger = laboratory.ledger()
        for line in said:
            if line.startswith("! "):
                _, name, _, key, _ = line.split(" ", 4)
                outcomes[name] += 1
                assert key in (*BATCH, "None") and str(laboratory.where) in line, line
                expected = ("BackendError",) if nth.name in ("syncfs", "rename") else ("BackendError", "UnknownOutcomeError")
                assert name in expected, f"{call}: {line}"
                ledger.forget()
            else:
                ledger.note(line)
        assert not ledger.pending, f"{call}: the second try failed, too: {said}"
        with opened("file", "full", laboratory.where) as backend:
            assert isinstance(backend, FileBackend)
            assert backend.leftovers() == [] or nth.name in ("unlink", "unlinkat", "rmdir") or "O_DIRECTORY" in call
            ledger.check(backend)
            within(STUCK, "the next writer", backend.put, "untouched", value("untouched", 9, 10))
            assert os.listdir(laboratory.where / ".perdure" / "tmp") == [], nth
    print(f"{action}: {len(steps)} calls, {dict(outcomes)}")


def test_a_file_whose_sync_failed_is_never_synced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports such a failure once; a second fsync of the same file would succeed, and tell nothing."""
    backend = FileBackend(tmp_path / "place")
    etag = backend.put("k", b"old")
    synced: list[int] = []
    fsync = os.fsync
    failing = True

    def fail(fd: int) -> None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            fsync(fd)
            return
        synced.append(info.st_ino)
        kept.append(os.dup(fd))  # so that the next file cannot get the same number
        if failing:
            raise OSError(errno.EIO, "Input/output error")

    kept: list[int] = []
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BackendError) as caught:
        backend.put("k", b"new", if_match=etag)
    assert caught.value.errno == errno.EIO and caught.value.key == "k" and type(caught.value) is BackendError
    assert os.listdir(tmp_path / "place" / ".perdure" / "tmp") == []
    assert backend.get("k")[:2] == (b"old", etag)
    failing = False
    backend.put("k", b"new", if_match=etag)
    assert len(synced) == len(set(synced)) == 2
    assert backend.get("k").data == b"new"
    for fd in kept:
        os.close(fd)
