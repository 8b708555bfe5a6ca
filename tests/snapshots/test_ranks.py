"""Several processes, one snapshot: complete when all have brought their parts, and only then."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import IntegrityError, MissingRankError, UsageError
from perdure.snapshots import EverySteps, StateStore

_PROGRAM = """
import os, signal, sys, numpy as np
from perdure.snapshots import StateStore, PersistentStateMixin
url, (rank, size, steps, dies), timeout = sys.argv[1], map(int, sys.argv[2:6]), float(sys.argv[6])

class Files(PersistentStateMixin):
    def save_state(self, path):
        path.with_suffix(".txt").write_text(f"{rank} {array[0]}")
    def load_state(self, path):
        self.text = path.with_suffix(".txt").read_text()

store = StateStore(url, rank=rank, world_size=size, rank_timeout=timeout)
array = np.zeros(50_000)
files = Files()
value = store.register_value("array", array)
fixed = store.register_value("fixed", np.full(50_000, rank))
store.register("files", files)
found = store.load_latest()
if found is not None:
    assert (value.value == found.metadata["step"] * 10 + rank).all(), (value.value[0], found.metadata)
    assert files.text == f"{rank} {value.value[0]}"
print("from", found.metadata["step"] if found else 0, flush=True)
for step in range((found.metadata["step"] if found else 0) + 1, steps + 1):
    array[:] = step * 10 + rank
    if step == dies:  # in the middle of its save, when its parts are written
        store._ranks.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    try:
        store.save_state({"step": step})
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        sys.exit(3)
    print("saved", step, flush=True)
"""


def start(url: str, rank: int, size: int = 4, steps: int = 3, dies: int = 0, timeout: float = 60) -> subprocess.Popen[str]:
    arguments = [url, *map(str, (rank, size, steps, dies, timeout))]
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def place_of(kind: str, tmp_path: Path) -> str:
    return {"folder": f"file:{tmp_path}/states", "sqlite": f"sqlite:{tmp_path}/states.db"}[kind]


@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_four_processes_make_one_snapshot(kind: str, tmp_path: Path) -> None:
    url = place_of(kind, tmp_path)
    outputs = [process.communicate(timeout=100)[0] for process in [start(url, rank) for rank in range(4)]]
    assert outputs == ["from 0\nsaved 1\nsaved 2\nsaved 3\n"] * 4
    store = StateStore(url)
    assert [snapshot.metadata["step"] for snapshot in store.snapshots()] == [1, 2, 3]
    names = {f"rank-{rank}/{name}" for rank in range(4) for name in ("array", "fixed", "files")}
    assert all(set(snapshot.components) == names for snapshot in store.snapshots())
    assert not any(store.verify(snapshot.name) for snapshot in store.snapshots())
    # What was left of these processes is not taken for a part of what the next ones save.
    outputs = [process.communicate(timeout=100)[0] for process in [start(url, rank, steps=4) for rank in range(4)]]
    assert outputs == ["from 3\nsaved 4\n"] * 4


@pytest.mark.parametrize(("kind", "victim"), [("folder", 0), ("folder", 2), ("sqlite", 2)])
def test_without_one_of_them_there_is_no_snapshot(kind: str, victim: int, tmp_path: Path) -> None:
    url = place_of(kind, tmp_path)
    processes = [start(url, rank, steps=2, timeout=8, dies=2 if rank == victim else 0) for rank in range(4)]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert outputs[victim] == "from 0\nsaved 1\n"
    assert processes[victim].returncode == -signal.SIGKILL
    store = StateStore(url)
    assert [snapshot.metadata["step"] for snapshot in store.snapshots()] == [1]
    for rank in {0, 1, 2, 3} - {victim}:
        assert f"rank {victim} of 4 did not save in 8 s" in outputs[rank]
        assert "Error" in outputs[rank]
    again = [start(url, rank, steps=2) for rank in range(4)]
    assert [process.communicate(timeout=100)[0] for process in again] == ["from 1\nsaved 2\n"] * 4


def test_a_missing_rank_is_an_error_with_its_number(tmp_path: Path) -> None:
    store = StateStore(tmp_path, rank=0, world_size=3, rank_timeout=0.2)
    store.register_value("x", 1)
    with pytest.raises(MissingRankError, match="ranks 1, 2 of 3 did not save") as caught:
        store.save_state()
    assert caught.value.ranks == (1, 2)
    assert isinstance(caught.value, TimeoutError)
    assert store.snapshots() == []
    other = StateStore(tmp_path, rank=1, world_size=3, rank_timeout=0.2)
    with pytest.raises(MissingRankError, match="rank 0 of 3"):
        other.save_state({"step": 5})


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_cannot_be_is_refused(tmp_path: Path, rank: int, size: int) -> None:
    with pytest.raises(UsageError, match=r"rank|world_size"):
        StateStore(tmp_path, rank=rank, world_size=size)


def test_damage_in_one_part_keeps_all_from_the_snapshot(tmp_path: Path) -> None:
    for process in [start(str(tmp_path), rank, size=2, steps=2) for rank in range(2)]:
        assert process.communicate(timeout=100)[0].endswith("saved 2\n")
    store = StateStore(tmp_path)
    newest = store.snapshots()[-1]
    part = Path(str(newest.path), "rank-1/files.txt")
    part.write_text(part.read_text()[:-1] + "x")
    values: list[Any] = []
    for rank in range(2):
        reader = StateStore(tmp_path, rank=rank, world_size=2)
        values.append(reader.register_value("array", None))
        found = reader.load_latest(strict=False)
        assert found is not None
        assert found.metadata == {"step": 1}
        with pytest.raises(IntegrityError, match="rank-1/files"):
            reader.load_state(newest.name, strict=False)
    assert [int(value.value[0]) for value in values] == [10, 11]


def test_a_clock_of_their_own_is_refused_to_ranks(tmp_path: Path) -> None:
    store = StateStore(tmp_path, rank=0, world_size=2)
    for arguments in ({}, {"every": 60.0}):
        with pytest.raises(UsageError, match="EverySteps"):
            store.running(**arguments)
    assert store.running(condition=EverySteps(5)).requested is None
