"""The power is cut at every moment of a run that saves snapshots in a folder: what was acknowledged is there, and nothing torn.

As in `test_power_cut`: a real process is recorded with strace, `model_disk` says what its calls made safe, and each state that
a cut may leave is laid out as real files and folders, with real hard links. There a job resumes, saves and cleans up.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

import pytest
import saver
import strace
from ledger import ROUNDS
from model_disk import Call, Disk, State, calls, lay_out

from perdure.errors import PerdureError
from perdure.snapshots import KeepLatest
from perdure.snapshots.manifest import Snapshot

pytestmark = strace.needed
PLACE = "new/states"
KEPT = 2
SIZES = [10, 33_000, 40_000]  # items: as in `saver`, but thousands of states are laid out
MIXTURES = 2 * ROUNDS
SHARE = 1.0 if ROUNDS > 1 else 0.3  # of the moments; those where names that count have changed are all looked at

# Statements that let the saver forget one of its syncs, and the rename which that should have come before, or right after.
_SETUP = """
import os, types
from perdure.snapshots import disk, folder, folder_draft
was, nothing = disk.sync_folder, lambda path: None

def skip(of):
    folder_draft.sync_folder = lambda path: None if of(path, os.path.dirname(path)) else was(path)

"""
FAULTS = {
    "parts": ("folder_draft.sync_file = nothing", ".state"),
    "names in folders of parts": ("skip(lambda path, above: 'draft-' in above)", ".state"),
    "names of parts": ("skip(lambda path, above: 'draft-' in path and 'draft-' not in above)", ".state"),
    "the manifest": ("folder_draft.os = types.SimpleNamespace(**{**vars(os), 'fsync': nothing})", ".state"),
    "the name of the snapshot": ("skip(lambda path, above: 'draft-' not in path)", ".state"),
    "new folders": ("disk.sync_folder = nothing", ".state"),
    "what is removed": ("folder.sync_folder = nothing", "trash-"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "SIZES", SIZES)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if there is one: what a state survives is not decided by the disk below it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="perdure-", dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def record(base: Path, steps: int, *, fault: str = "", kill_at: strace.Nth | None = None) -> list[Call]:
    """Let a saver make some steps, to the end or to a certain call, and return its system calls."""
    trace = base.with_name("saver.trace")
    command = ["strace", "-f", "-xx", "-s", "9999999", "-o", str(trace), "-e", f"trace={strace.CALLS}"]
    command += ["-e", f"inject={kill_at.name}:signal=SIGKILL:when={kill_at.number}"] if kill_at else ["--seccomp-bpf"]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import saver; saver.SIZES[:] = {SIZES}\n{fault}\n"
    command += [sys.executable, "-c", f"{code}\nsaver.few({str(base / PLACE)!r}, {steps})"]
    # Threads of numpy would confuse the order of calls; bytecode that is written has nothing to do with it.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == (-9 if kill_at else 0), done.stderr
    return list(calls(trace))


class Moment:
    """What has just happened to the disk.

    Attributes:
        disk: It.
        begun: The step that was last announced (`>`).
        acknowledged: The one that was last acknowledged (`<`).
        about: What happened.
        matters: Whether it was a rename or a sync, or was said.
        renamed: The last path that something was renamed to.
    """

    def __init__(self, disk: Disk, begun: int = 0, acknowledged: int = 0) -> None:
        self.disk = disk
        self.begun = begun
        self.acknowledged = acknowledged
        self.about = "before anything"
        self.renamed = ""
        self.matters = False

    def pass_through(self, recorded: list[Call]) -> Iterator[Moment]:
        """Let the calls happen one after the other."""
        for number, call in enumerate(recorded):
            if call.name == "write" and call.words[0] == "1":
                mark, step = call.strings[0].decode().split()
                if mark == ">":
                    self.begun = int(step)
                else:
                    self.acknowledged = int(step)
                self.about = f"after {mark} {step}"
                self.matters = True
                yield self
            elif self.disk.apply(call):
                if call.name == "rename":
                    self.renamed = call.strings[1].decode()
                self.about = f"after call {number}, {call.name} {b' '.join(call.strings)[-90:]!r}"
                self.matters = call.name in ("rename", "fsync")
                yield self


class Cuts:
    """Cuts the power, and resumes.

    Attributes:
        states: How many different states were looked at.
        found: How often which snapshots were there.
    """

    def __init__(self, scratch: Path, seed: str) -> None:
        self.states = 0
        self.found: Counter[str] = Counter()
        self._folder = scratch / "state"
        self._rng = random.Random(seed)
        self._done: set[int] = set()

    def check(self, moment: Moment, share: float = 1.0) -> None:
        """Look at states that a cut at this moment may leave; at a share of those moments that matter less."""
        if not moment.matters and self._rng.random() >= share:
            return
        for about, state in moment.disk.states(self._rng, MIXTURES):
            if not self._is_new(state, moment):
                continue
            lay_out(state, self._folder, links=True)
            try:
                self._survives(moment)
            except (AssertionError, PerdureError, OSError) as error:
                raise AssertionError(f"{about}; {moment.about}: {error!r}") from error
            finally:
                shutil.rmtree(self._folder)

    def _is_new(self, state: State, moment: Moment) -> bool:
        mark = hash((frozenset(state.items()), moment.begun, moment.acknowledged))
        if mark in self._done:
            return False
        self._done.add(mark)
        self.states += 1
        return True

    def _survives(self, moment: Moment) -> None:
        job = saver.Job(str(self._folder / PLACE), keep=KeepLatest(KEPT))
        steps = whole(job)
        newest = max(steps, default=0)
        assert moment.acknowledged <= newest <= moment.begun, f"of {moment.acknowledged} to {moment.begun} there is {newest}"
        kept = set(range(max(1, newest - KEPT + 1), newest + 1))
        assert kept <= set(steps), f"the keeper keeps {kept}, and there is {steps}"
        if moment.begun == moment.acknowledged:
            assert set(steps) == kept, f"the keeper keeps {kept}, and there is {steps}"
        self.found[f"{len(steps)} of {newest - moment.acknowledged:+}"] += 1
        found = job.store.load_latest()
        assert (found.metadata["step"] if found else 0) == newest
        job.check(newest)
        job.be(newest + 1)
        job.store.save_state({"step": newest + 1})
        assert whole(job) == [*range(max(1, newest - KEPT + 2), newest + 2)], "the next save cleans up"
        assert os.listdir(self._folder / PLACE / ".perdure-snapshots") == ["lock"], "and sweeps"
        again = saver.Job(str(self._folder / PLACE))
        again.store.load_latest()
        again.check(newest + 1)


def whole(job: saver.Job) -> list[int]:
    """The steps of all snapshots, in order; each is whole, and there is nothing else that could be taken for one."""
    place = job.store._place
    path = place.path
    assert path is not None
    entries = place.entries()
    names = {name for name in os.listdir(path) if name[0] != "."} if path.is_dir() else set[str]()
    assert names == {entry.name for entry in entries if isinstance(entry, Snapshot)}, f"{names} are there, listed are {entries}"
    for name in names:
        assert job.store.verify(name) == [], name
    return [snapshot.metadata["step"] for snapshot in job.store.snapshots()]


def test_snapshots_survive_a_power_cut_at_any_moment(tmp_path: Path, scratch: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    recorded = record(base, 4)
    files = sorted((base / PLACE).glob("*/fixed/value.npy"))
    assert len(files) == KEPT
    assert files[0].samefile(files[1]), "what never changes is one file"
    cuts = Cuts(scratch, "any moment")
    moment = Moment(Disk(base))
    for _ in moment.pass_through(recorded):
        cuts.check(moment, SHARE)
    print(f"{len(recorded)} calls, {cuts.states} states: {dict(cuts.found)}")
    assert moment.acknowledged == 4
    assert cuts.states > 150


@pytest.mark.parametrize("fault", FAULTS)
def test_a_saver_that_forgets_to_sync_is_caught(fault: str, tmp_path: Path, scratch: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    code, begin = FAULTS[fault]
    recorded = record(base, 3, fault=_SETUP + code)
    cuts = Cuts(scratch, fault)
    with pytest.raises(AssertionError) as caught:
        for moment in dropwhile(lambda moment: begin not in moment.renamed, Moment(Disk(base)).pass_through(recorded)):
            cuts.check(moment)
    print(f"{fault}: caught after {cuts.states} states: {caught.value}")


def kill_and_go_on(kill_at: strace.Nth, folder: Path, scratch: Path) -> int:
    """A saver is killed just before it syncs; another goes on from what it sees, and its acknowledged snapshots survive.

    Returns:
        How many states were looked at.
    """
    base = folder / str(kill_at.number) / "base"
    base.mkdir(parents=True)
    moment = Moment(Disk(base))
    for _ in moment.pass_through(record(base, 3, kill_at=kill_at)):
        pass
    moment.disk.forget_descriptors()
    cuts = Cuts(scratch, str(kill_at))
    try:
        for _ in moment.pass_through(record(base, 2)):
            cuts.check(moment, SHARE / 4)
    except AssertionError as error:
        raise AssertionError(f"killed before {kill_at}; {error}") from error
    return cuts.states


def test_what_a_killed_saver_had_no_time_to_sync_is_made_up_for(tmp_path: Path, scratch: Path) -> None:
    base = tmp_path / "count" / "base"
    base.mkdir(parents=True)
    syncs = [strace.Nth("fsync", n + 1) for n in range(sum(call.name == "fsync" for call in record(base, 3)))][2:]
    chosen = sorted(random.Random("killed").sample(syncs, min(len(syncs), 1 + ROUNDS)))
    states = sum(kill_and_go_on(kill_at, tmp_path, scratch) for kill_at in chosen)
    print(f"{len(chosen)} kills before a sync, {states} states")


@pytest.mark.parametrize("number", [1, 2])
def test_folders_that_a_killed_saver_had_no_time_to_sync_are_made_up_for(number: int, tmp_path: Path, scratch: Path) -> None:
    kill_and_go_on(strace.Nth("fsync", number), tmp_path, scratch)
