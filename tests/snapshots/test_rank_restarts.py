"""Ranks that are killed, started anew or started twice: nobody is told "saved" unless the snapshot holds what it brought."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from perdure.errors import NotFoundError
from perdure.snapshots import KeepLatest, Snapshot, StateStore, folder_draft
from perdure.snapshots.bucket_keys import DRAFTS, PARTS
from perdure.snapshots.place import open_place

KINDS = pytest.mark.parametrize("kind", ["folder", "sqlite"])

# Each process stops at the points it is told to, writes a file, and goes on when another file is there.
_PROGRAM = """
import os, sys, time
from pathlib import Path
import perdure
from perdure.snapshots import bucket_draft, folder_draft
from perdure.snapshots import StateStore
url, meeting, name, rank, size, text, steps, timeout, keep, *stops = sys.argv[1:]

def meet(point):
    Path(meeting, f"{name}.{point}").touch()
    while not Path(meeting, f"{name}.{point}.go").exists():
        time.sleep(0.01)

def stopping(kind, method, before, after):
    real = getattr(kind, method)
    def stop(self, *arguments):
        if before in stops:
            stops.remove(before)
            meet(before)
        result = real(self, *arguments)
        if after in stops:
            stops.remove(after)
            meet(after)
        return result
    setattr(kind, method, stop)

for kind in (folder_draft.FolderDraft, bucket_draft.BackendDraft):
    stopping(kind, "publish", "publish", "published")
    stopping(kind, "merge", "merge", "merged")
    stopping(kind, "commit", "commit", "committed")
keeper = perdure.KeepLatest(1) if keep else None
store = StateStore(url, rank=int(rank), world_size=int(size), rank_timeout=float(timeout), keep=keeper)
looked = 0
records = store._ranks._records
backend = getattr(records, "_backend", records)
get = backend.get
def looking(key, **options):
    global looked
    try:
        return get(key, **options)
    finally:
        if key.endswith("call"):
            looked += 1
            Path(meeting, f"{name}.looked-{min(looked, 3)}").touch()
backend.get = looking
value = store.register_value("value", None)
if "start" in stops:
    meet("start")
for step in map(int, steps.split(",")):
    value.value = f"{text} {step} " * 9
    try:
        store.save_state({"step": step})
        print("saved", step, text, flush=True)
    except Exception as error:
        print(type(error).__name__, step, getattr(error, "ranks", ()), error, flush=True)
"""


class Job:
    """Processes that save together, and the files by which they meet."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.url = {"folder": f"file:{folder}/states", "sqlite": f"sqlite:{folder}/states.db"}[kind]
        self.meeting = folder / "meeting"
        self.meeting.mkdir()
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._ranks: dict[str, int] = {}

    def start(
        self,
        name: str,
        rank: int,
        *stops: str,
        size: int = 2,
        steps: str = "1",
        timeout: float = 30,
        keep: bool = False,
    ) -> None:
        told = map(str, (self.url, self.meeting, name, rank, size, name, steps, timeout, "x" if keep else ""))
        self._running[name] = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *told, *stops], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._ranks[name] = rank

    def wait_for(self, name: str, point: str) -> None:
        wait_until((self.meeting / f"{name}.{point}").exists)

    def token(self) -> object:
        """Of the call of rank 0; `None` where it has not called."""
        record = self.record("call")
        return record and json.loads(record)["token"]

    def record(self, name: str) -> bytes | None:
        backend, prefix = open_place(self.url, sync=None, share=True).records()
        with backend:
            try:
                return backend.get(prefix + name).data
            except NotFoundError:
                return None

    def wait_for_answer(self, rank: int) -> None:
        wait_until(lambda: self.record(str(rank)) is not None)

    def go(self, name: str, point: str) -> None:
        (self.meeting / f"{name}.{point}.go").touch()

    def kill(self, name: str) -> None:
        self._running[name].kill()
        self._running.pop(name).communicate()

    def outputs(self) -> dict[str, list[str]]:
        """What they have said, when all have ended; those that were saved were saved whole."""
        told = {name: process.communicate(timeout=60)[0].splitlines() for name, process in self._running.items()}
        self.check(told)
        return told

    def check(self, told: Mapping[str, list[str]]) -> None:
        """What is there is whole, and what was acknowledged is there, with the parts of whoever was told so."""
        found = values_in(self.url)
        for name, lines in told.items():
            for line in lines:
                what, step, *_ = line.split()
                if what == "saved" and (int(step) in found or not found):
                    assert found[int(step)][self._ranks[name]] == f"{name} {step} " * 9, (told, found)

    def end(self) -> None:
        for process in self._running.values():
            process.kill()
            process.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(0.01)


def values_in(url: str) -> dict[int, dict[int, Any]]:
    """What each rank has in the snapshot of each step; all snapshots are verified."""
    store = StateStore(url)
    values: dict[int, dict[int, Any]] = {}
    for snapshot in store.snapshots():
        assert not store.verify(snapshot.path or snapshot.name)
        told = values.setdefault(snapshot.metadata["step"], {})
        for rank in {component.rank for component in snapshot.components.values()}:
            assert rank is not None
            reader = StateStore(url, rank=rank, world_size=9)
            value = reader.register_value("value", None)
            reader.load_state(snapshot.path or snapshot.name)
            told[rank] = value.value
    return values


@pytest.fixture
def job(kind: str, tmp_path: Path) -> Iterator[Job]:
    job = Job(kind, tmp_path)
    yield job
    job.end()


@KINDS
def test_who_is_started_anew_while_the_snapshot_is_completed_is_not_told_that_it_was_saved(job: Job) -> None:
    job.start("zero", 0, "commit", steps="1,2", keep=True)
    job.start("old", 1)
    job.wait_for("zero", "commit")
    job.kill("old")
    job.start("new", 1, steps="1,2")
    job.wait_for("new", "looked-3")  # so it has had time to answer the call
    job.go("zero", "commit")
    told = job.outputs()
    assert told["zero"] == ["saved 1 zero", "saved 2 zero"]
    assert told["new"][0].startswith("UnavailableError 1 ")
    assert "another process with rank 1" in told["new"][0]
    assert "exactly once" in told["new"][0]
    assert told["new"][1] == "saved 2 new"
    assert values_in(job.url) == {2: {0: "zero 2 " * 9, 1: "new 2 " * 9}}


@KINDS
def test_of_two_processes_with_one_rank_one_at_most_is_told_that_it_was_saved(job: Job) -> None:
    for name, rank in (("zero", 0), ("one", 1), ("other", 1)):
        job.start(name, rank, "start", steps="1,2,3,4", timeout=1.5)
    for name in ("zero", "one", "other"):
        job.wait_for(name, "start")
    for name in ("zero", "one", "other"):
        job.go(name, "start")
    told = job.outputs()
    for step in range(1, 5):
        assert not all(f"saved {step} {name}" in told[name] for name in ("one", "other"))


@KINDS
def test_two_live_answers_for_one_rank_are_refused_and_all_are_told_its_number(job: Job) -> None:
    job.start("zero", 0, size=3)
    job.start("one", 1, size=3)
    job.wait_for_answer(1)
    job.start("other", 1, size=3)
    wait_until(lambda: b'"disputed"' in (job.record("1") or b""))  # as the first has found its answer replaced
    job.start("two", 2, size=3)
    told = job.outputs()
    for name in ("zero", "one", "other", "two"):
        assert told[name][0].startswith("UnavailableError 1 ")
        assert "another process with rank 1" in told[name][0]
    assert not StateStore(job.url).snapshots()


@KINDS
def test_all_are_told_who_is_missing(job: Job) -> None:
    names = ["zero", "one", "two"]
    for rank, name in enumerate(names):
        job.start(name, rank, "start", size=5, timeout=1.5)
    for name in names:
        job.wait_for(name, "start")
    for name in names:
        job.go(name, "start")
    for lines in job.outputs().values():
        assert lines[0].startswith("MissingRankError 1 (3, 4) ")
        assert "ranks 3, 4 of 5 did not save in 1.5 s" in lines[0]


@KINDS
def test_to_complete_may_take_longer_than_to_come(job: Job) -> None:
    job.start("zero", 0, "commit", timeout=0.8)
    job.start("one", 1, timeout=0.8)
    job.wait_for("zero", "commit")
    time.sleep(2.5)  # the others hear that rank 0 is alive
    job.go("zero", "commit")
    assert job.outputs() == {"zero": ["saved 1 zero"], "one": ["saved 1 one"]}


@KINDS
@pytest.mark.parametrize("point", ["merge", "merged", "commit", "committed"])
def test_where_rank_0_is_killed_after_it_took_the_parts_nobody_claims_to_know(job: Job, point: str) -> None:
    job.start("zero", 0, point, timeout=1)
    job.start("one", 1, timeout=1)
    job.wait_for("zero", point)
    job.kill("zero")
    told = job.outputs()
    assert told["one"][0].startswith("UnknownOutcomeError 1 ")
    assert "unknown whether" in told["one"][0]
    assert "no snapshot" not in told["one"][0]
    # If it was completed, it is whole: who gave up has not removed what is in it.
    assert list(values_in(job.url)) == ([1] if point == "committed" else [])


@KINDS
def test_where_rank_0_is_killed_before_it_took_the_parts_they_are_removed(job: Job) -> None:
    job.start("zero", 0, size=3, timeout=1)
    job.start("one", 1, size=3, timeout=1)
    job.wait_for_answer(1)
    job.kill("zero")
    told = job.outputs()
    assert told["one"][0].startswith("MissingRankError 1 (0,) ")
    place = open_place(job.url, sync=None, share=True)
    if place.path is not None:
        (left,) = place.path.glob(".perdure-snapshots/draft-*")
        assert not (left / "rank-1").exists()
    else:
        backend, _ = place.records()
        (draft,) = backend.keys(DRAFTS)
        assert {key.split("/")[1] for key in backend.keys(PARTS)} == {draft.removeprefix(DRAFTS)}


@KINDS
def test_a_call_of_a_dead_job_of_another_size_is_not_heeded(job: Job) -> None:
    job.start("dead", 0, size=3)
    wait_until(lambda: job.token() is not None)
    job.kill("dead")
    job.start("one", 1, size=2)
    job.wait_for("one", "looked-1")
    job.start("zero", 0, size=2)
    assert job.outputs() == {"one": ["saved 1 one"], "zero": ["saved 1 zero"]}


@KINDS
def test_a_live_call_of_another_size_is_an_error(job: Job) -> None:
    job.start("zero", 0, size=3, timeout=3)
    job.start("one", 1, size=2, timeout=3)
    told = job.outputs()
    assert "rank 0 saves with 3 processes, and rank 1 with 2" in told["one"][0]
    assert told["zero"][0].startswith("MissingRankError 1 (1, 2) ")


@KINDS
def test_who_is_started_anew_in_time_takes_part(job: Job) -> None:
    job.start("zero", 0, size=3, steps="1,2")
    job.start("old", 1, size=3)
    job.wait_for_answer(1)
    job.kill("old")
    job.start("new", 1, "published", size=3, steps="1,2")
    job.wait_for("new", "published")
    job.go("new", "published")
    job.wait_for("new", "looked-3")
    job.start("two", 2, size=3, steps="1,2")
    assert job.outputs() == {name: [f"saved 1 {name}", f"saved 2 {name}"] for name in ("zero", "new", "two")}


@KINDS
def test_the_answer_of_the_dead_stands_while_its_parts_do(job: Job, kind: str) -> None:
    job.start("zero", 0, "merge", size=2)
    job.start("old", 1)
    job.wait_for("zero", "merge")
    job.kill("old")
    job.start("new", 1, "publish")  # in a folder, this sweeps away what the old one has written
    job.wait_for("new", "publish")
    job.go("zero", "merge")
    if kind == "sqlite":
        wait_until(lambda: bool(StateStore(job.url).snapshots()))
    job.go("new", "publish")
    if kind == "sqlite":  # the snapshot has what the old one brought; the new one waits for a call that does not come
        job.kill("new")
        assert job.outputs()["zero"] == ["saved 1 zero"]
        assert values_in(job.url)[1][1] == "old 1 " * 9
    else:
        assert job.outputs() == {"zero": ["saved 1 zero"], "new": ["saved 1 new"]}


@KINDS
def test_the_others_answer_a_rank_0_that_is_started_anew(job: Job) -> None:
    job.start("old", 0, size=3)
    job.start("one", 1, size=3)
    job.wait_for_answer(1)
    job.kill("old")
    job.start("zero", 0, size=3)
    job.start("two", 2, size=3)
    assert job.outputs() == {name: [f"saved 1 {name}"] for name in ("zero", "one", "two")}


@KINDS
def test_what_a_dead_rank_0_has_taken_is_not_given_to_the_next(job: Job) -> None:
    job.start("old", 0, "commit")
    job.start("one", 1)
    job.wait_for("old", "commit")
    job.kill("old")
    job.start("zero", 0, timeout=1)
    told = job.outputs()
    assert told["one"][0].startswith("UnknownOutcomeError 1 ")
    assert "rank 0 was started anew" in told["one"][0]
    assert told["zero"][0].startswith("MissingRankError 1 (1,) ")


@KINDS
def test_of_two_processes_with_rank_0_one_gives_up(job: Job) -> None:
    job.start("zero", 0, size=3)
    job.start("one", 1, size=3)
    job.wait_for_answer(1)
    token = job.token()
    job.start("other", 0, size=3)
    wait_until(lambda: job.token() != token)
    job.start("two", 2, size=3)
    told = job.outputs()
    assert "another process with rank 0" in told["zero"][0]
    assert {name: told[name] for name in ("other", "one", "two")} == {
        name: [f"saved 1 {name}"] for name in ("other", "one", "two")
    }


@contextmanager
def damaging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change what rank 1 has written, on its way into the snapshot."""
    real = folder_draft.FolderDraft.merge

    def merge(draft: folder_draft.FolderDraft, other: str, parts: Any) -> None:
        for part in parts:
            path = Path(draft.folder().parent, f"draft-{other}", part.name)
            data = path.read_bytes()
            path.unlink()  # else the snapshot before would be changed, too
            path.write_bytes(data[:-1] + b"\0")
        real(draft, other, parts)

    with monkeypatch.context() as patched:
        patched.setattr(folder_draft.FolderDraft, "merge", merge)
        yield


def save_together(stores: list[StateStore], step: int) -> None:
    threads = [Thread(target=store.save_state, args=({"step": step},)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_what_others_brought_is_read_before_an_older_snapshot_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [StateStore(tmp_path, rank=rank, world_size=2, keep=KeepLatest(1)) for rank in range(2)]
    for rank, store in enumerate(stores):
        store.register_value("value", f"of rank {rank}")
    save_together(stores, 1)
    with damaging(monkeypatch):
        save_together(stores, 2)

    def steps() -> list[int]:
        return [snapshot.metadata["step"] for snapshot in snapshots]

    snapshots: list[Snapshot] = stores[0].snapshots()
    assert steps() == [1, 2]
    save_together(stores, 3)  # and nobody links to a file that it has not written
    snapshots = stores[0].snapshots()
    assert steps() == [3]
    assert not stores[0].verify(os.fspath(snapshots[0]))
