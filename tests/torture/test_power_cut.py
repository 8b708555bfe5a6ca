"""The power is cut at every moment of a recorded run, and whatever was not synced is there or not, in many combinations.

The writer is a real process and its system calls are recorded with strace; `model_disk` says what they made safe. Each state
that a cut may leave is laid out as real files and opened with a real backend: everything acknowledged must be there, whole.
"""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import strace
from ledger import ROUNDS, Ledger, opened, seen, value
from model_disk import Call, Disk, State, calls, lay_out

from perdure.errors import IntegrityError, PerdureError
from perdure.protocol import Backend
from perdure_backends.file import FileBackend

pytestmark = pytest.mark.skipif(
    not shutil.which("strace"), reason="needs strace (Debian package strace) to record system calls"
)
MIXTURES = 2 * ROUNDS if ROUNDS > 1 else 1
PLACE = {"file": "new/folders/place", "plain": "place", "sqlite": "place"}  # a database's folder has to exist


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if there is one: thousands of states are laid out here, and what they survive is not decided here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="perdure-", dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def record(base: Path, script: str, *arguments: str, kill_at: strace.Nth | None = None) -> list[Call]:
    """Run a script of `children.py`, to the end or to a certain call, and return its system calls."""
    trace = base.with_name(f"{script}.trace")
    strace.run(trace, script, *arguments, at=kill_at, do="signal=SIGKILL" if kill_at else "")
    return list(calls(trace))


class Moment(NamedTuple):
    """Something has just happened to the disk, or was just acknowledged."""

    disk: Disk
    ledger: Ledger
    about: str


def moments(disk: Disk, ledger: Ledger, recorded: list[Call]) -> Iterator[Moment]:
    """Let the calls happen one after the other."""
    for number, call in enumerate(recorded):
        if call.name == "write" and call.words[0] == "1":
            for line in call.strings[0].decode().splitlines():
                ledger.note(line)
            yield Moment(disk, ledger, f"after {call.strings[0]!r}")
        elif disk.apply(call):
            yield Moment(disk, ledger, f"after call {number}, {call.name} {b' '.join(call.strings)[:80]!r}")


class Cuts:
    """Cuts the power.

    Attributes:
        states: How many different states were looked at.
    """

    def __init__(self, kind: str, scratch: Path, seed: str) -> None:
        self.states = 0
        self._kind = kind
        self._folder = scratch / "state"
        self._rng = random.Random(seed)
        self._done: set[int] = set()

    def backends(self, moment: Moment, mixtures: int) -> Iterator[tuple[str, Backend]]:
        """A backend on each state that a cut at this moment may leave, with words about it."""
        for about, state in moment.disk.states(self._rng, mixtures):
            state.pop("place-shm", None)  # memory, shared through a file
            if self._is_new(state, moment.ledger):
                lay_out(state, self._folder)
                with opened(self._kind, "full", self._folder / PLACE[self._kind]) as backend:
                    yield f"{about}; {moment.about}", backend
                shutil.rmtree(self._folder)

    def _is_new(self, state: State, ledger: Ledger) -> bool:
        mark = hash((frozenset(state.items()), frozenset((key, frozenset(due)) for key, due in ledger.due.items())))
        if mark in self._done:
            return False
        self._done.add(mark)
        self.states += 1
        return True


def survived(backend: Backend, ledger: Ledger) -> None:
    """All that was acknowledged is there, nothing is torn, and life goes on."""
    versions = ledger.check(backend)
    present = {key for key, version in versions.items() if version is not None}
    assert set(backend.keys()) == present
    assert {meta.key: meta.etag for meta in backend.scan()} == {key: backend.get(key).etag for key in present}
    if present:
        assert backend.recorded() == {"codec": "msgpack"}, "settings are kept no later than the first value"
    if backend.place.startswith("sqlite:"):
        assert len({versions.get(key) for key in ("m/x", "m/y", "m/z")}) == 1, "put_many is one transaction"
    for key in [*ledger.pending, "a", "other/new"]:
        backend.put(key, value(key, 5000, 10))
        assert seen(backend, key) == 5000
        backend.delete(key)
        assert seen(backend, key) is None
    if isinstance(backend, FileBackend):
        assert backend.leftovers() == []


@pytest.mark.parametrize("kind", ["file", "plain", "sqlite"])
def test_full_survives_a_power_cut_at_any_moment(kind: str, tmp_path: Path, scratch: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    recorded = record(base, "first_script", kind, "full", str(base / PLACE[kind]))
    cuts = Cuts(kind, scratch, kind)
    for moment in moments(Disk(base), Ledger(), recorded):
        for about, backend in cuts.backends(moment, MIXTURES):
            _check(about, backend, moment.ledger)
    print(f"{kind}: {len(recorded)} calls, {cuts.states} states, {moment.ledger.acknowledged} writes")
    assert moment.ledger.acknowledged > 20 and cuts.states > 200


def _check(about: str, backend: Backend, ledger: Ledger) -> None:
    try:
        survived(backend, ledger)
    except Exception as error:
        raise AssertionError(f"{about}: {error!r}") from error


FAULTS = [
    ("file", "no fsync of folders"),
    ("file", "no fsync of files"),
    ("file", "fsync after the rename"),
    ("file", "no sync of many files"),
    ("sqlite", "no sync of the log"),
]


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_a_backend_that_forgets_to_sync_is_caught(kind: str, fault: str, tmp_path: Path, scratch: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    recorded = record(base, "first_script", kind, "full", str(base / PLACE[kind]), fault)
    cuts = Cuts(kind, scratch, fault)
    about = ""
    try:
        for moment in moments(Disk(base), Ledger(), recorded):
            for about, backend in cuts.backends(moment, MIXTURES):  # noqa: B007 - told below
                survived(backend, moment.ledger)
    except (AssertionError, PerdureError) as error:
        print(f"{fault}: caught after {cuts.states} states, {about}: {error}")
        return
    pytest.fail(f"{fault}: not noticed in {cuts.states} states")


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_what_normal_may_lose(kind: str, tmp_path: Path, scratch: Path) -> None:
    """`sync="normal"` promises to survive a kill. After a power cut SQLite has some earlier moment, whole; a folder may have
    any version of each value, and what is damaged there is noticed."""
    base = tmp_path / "base"
    base.mkdir()
    recorded = record(base, "first_script", kind, "normal", str(base / PLACE[kind]))
    cuts = Cuts(kind, scratch, f"{kind} normal")
    found: Counter[str] = Counter()
    history: list[dict[str, set[int | None]]] = [{}]
    for moment in moments(Disk(base), Ledger(), recorded):
        ledger = moment.ledger
        if history[-1] != ledger.due:
            history.append(copy.deepcopy(ledger.due))
        for about, backend in cuts.backends(moment, 2):
            if about.startswith("everything"):
                _check(about, backend, ledger)
                continue
            try:
                versions = {key: seen(backend, key) for key in ledger.due}
            except (IntegrityError, AssertionError):
                assert kind == "file", about
                found["damaged, and noticed"] += 1
                continue
            complete = all(version in ledger.due[key] for key, version in versions.items())
            found["complete" if complete else "some write lost"] += 1
            if kind == "sqlite":
                earlier = any(all(version in due.get(key, {None}) for key, version in versions.items()) for due in history)
                assert earlier, f"{about}: {versions} was never there together"
    print(f"{kind} normal: {cuts.states} states: {dict(found)}")


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_full_makes_up_for_what_a_killed_writer_had_no_time_to_sync(kind: str, tmp_path: Path, scratch: Path) -> None:
    """A writer is killed just before it syncs; another goes on from what it sees, and its acknowledged writes survive."""
    states = kills = 0
    syncs = _syncs(kind, tmp_path / "count" / "base")
    chosen = sorted(random.Random(kind).sample(syncs, min(len(syncs), 3 * ROUNDS)))
    for kill_at in chosen:
        folder = tmp_path / f"{kill_at.name} {kill_at.number}"
        base = folder / "base"
        base.mkdir(parents=True)
        place = str(base / PLACE[kind])
        disk, ledger = Disk(base), Ledger()
        for _ in moments(disk, ledger, record(base, "first_script", kind, "full", place, kill_at=kill_at)):
            pass
        ledger.forget()
        disk.forget_descriptors()
        cuts = Cuts(kind, scratch, kind)
        for moment in moments(disk, ledger, record(base, "second_script", kind, "full", place)):
            for about, backend in cuts.backends(moment, 1):
                _check(f"killed before {kill_at}; {about}", backend, ledger)
        states += cuts.states
        kills += 1
    print(f"{kind}: {kills} kills before a sync, {states} states")


def _syncs(kind: str, base: Path) -> list[strace.Nth]:
    base.mkdir(parents=True)
    counts: Counter[str] = Counter(call.name for call in record(base, "first_script", kind, "full", str(base / PLACE[kind])))
    return [strace.Nth(name, number + 1) for name in ("fsync", "fdatasync") for number in range(counts[name])]
