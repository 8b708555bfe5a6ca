"""Whatever happens to any byte or part of a stored snapshot, it is noticed, named and never given to an object."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger import ROUNDS

from perdure.errors import CodecError, IntegrityError, PerdureError, SnapshotNotFoundError
from perdure.protocol import Backend
from perdure.registry import open_backend
from perdure.snapshots import PersistentStateMixin, StateStore
from perdure.snapshots.names import MANIFEST

NAMES = ["first.state", "second.state"]
SAMPLES = 12 * ROUNDS
"""Bytes of each part that are changed; all of them in a long run."""


class Counted:
    """Has a state dict, and counts how often it was touched."""

    def __init__(self) -> None:
        self.step = 0
        self.touched = 0

    def state_dict(self) -> dict[str, object]:
        return {"step": self.step, "text": f"state {self.step}"}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.touched += 1
        assert isinstance(state["step"], int) and state["text"] == f"state {state['step']}"
        self.step = state["step"]


class Files(PersistentStateMixin):
    """Saves two files, and counts how often it was touched."""

    def __init__(self) -> None:
        self.step = 0
        self.touched = 0

    def save_state(self, path: Path) -> None:
        path.with_suffix(".txt").write_text(f"file {self.step}")
        path.mkdir()
        (path / "inner").write_text(f"inner {self.step}" * 5)

    def load_state(self, path: Path) -> None:
        self.touched += 1
        self.step = int(path.with_suffix(".txt").read_text().split()[1])
        assert (path / "inner").read_text() == f"inner {self.step}" * 5


class Job:
    """A fresh store, which has looked at nothing yet."""

    def __init__(self, where: str | Backend, name: str = NAMES[0]) -> None:
        self.store = StateStore(where, name, share=False, trusted=True)
        self.objects = Counted(), Files()
        self.store.register("model", self.objects[0])
        self.store.register("files", self.objects[1])

    def save(self, step: int) -> None:
        for state in self.objects:
            state.step = step
        self.store.save_state({"step": step})

    @property
    def touched(self) -> int:
        return sum(state.touched for state in self.objects)


class Damaged:
    """What is stored, with two snapshots in it; each change is taken back when it was looked at.

    Attributes:
        parts: What is stored of the newer snapshot, by name, the manifest among it.
        others: What is stored of the older one in the same places.
    """

    def __init__(self, job: Callable[[str], Job], parts: dict[str, bytes], others: dict[str, bytes]) -> None:
        self.job = job
        self.parts = parts
        self.others = others

    def write(self, name: str, data: bytes) -> None:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        raise NotImplementedError

    def spell(self, name: str) -> tuple[str, ...]:
        """What a message may call the part."""
        raise NotImplementedError

    def check(self, name: str, data: bytes | None, what: str) -> None:
        """Change one part, look at it through fresh stores, and undo it."""
        assert data != self.parts[name], f"{what} is no change"
        if data is None:
            self.remove(name)
        else:
            self.write(name, data)
        try:
            self.look(name, what)
        finally:
            self.write(name, self.parts[name])

    def look(self, name: str, what: str) -> None:
        verifier, loader, latest = (self.job(NAMES[1]) for _ in range(3))
        try:
            found: list[PerdureError] = list(verifier.store.verify(NAMES[1]))
        except PerdureError as error:
            found = [error]
        assert found, f"{what} is not noticed"
        with pytest.raises(PerdureError) as caught:
            loader.store.load_state(NAMES[1])
        assert loader.touched == 0, f"{what} was given to an object"
        for error in (*found, caught.value):
            assert isinstance(error, CodecError | SnapshotNotFoundError) and error.hint and error.place, repr(error)
            # With a manifest from elsewhere it is the other parts that do not fit.
            spelled = (NAMES[1],) if what.endswith("of the snapshot before") else self.spell(name)
            assert any(word in str(error) for word in spelled), f"{what}: {error}"
        loaded = latest.store.load_latest()
        assert loaded is not None and loaded.metadata["step"] == 1, what
        assert [state.step for state in latest.objects] == [1, 1] and latest.touched == 2, what


class InFolder(Damaged):
    def __init__(self, root: Path) -> None:
        for step, name in enumerate(NAMES, 1):
            Job(f"file:{root}", name).save(step)
        self.root = root
        newer, older = (
            {str(path.relative_to(root / name)): path.read_bytes() for path in (root / name).rglob("*") if path.is_file()}
            for name in reversed(NAMES)
        )
        super().__init__(lambda name: Job(f"file:{root}", name), newer, older)

    def write(self, name: str, data: bytes) -> None:
        (self.root / NAMES[1] / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / NAMES[1] / name).unlink()

    def spell(self, name: str) -> tuple[str, ...]:
        return (f"{NAMES[1]}/{name}",) if name != MANIFEST else (f"{NAMES[1]}/{name}", f"{NAMES[1]!r}")


class InBackend(Damaged):
    def __init__(self, backend: Backend) -> None:
        job = Job(backend)
        job.save(1)
        first = {key: backend.get(key).data for key in backend.keys()}  # noqa: SIM118 - it is no dict
        Job(backend, NAMES[1]).save(2)
        both = {key: backend.get(key).data for key in backend.keys()}  # noqa: SIM118
        newer, older = job.store.snapshots()[1], job.store.snapshots()[0]
        places: dict[str, bytes] = {"snapshots/0000000002": first["snapshots/0000000001"]}
        self.names = {"snapshots/0000000002": NAMES[1]}
        for part in newer.parts.values():
            key = f"parts/{newer.id}/{part.chunks[0]}"
            self.names[key] = f"{NAMES[1]}/{part.name}"
            places[key] = first[f"parts/{older.id}/{older.parts[part.name].chunks[0]}"]
        self.backend = backend
        super().__init__(lambda name: Job(backend, name), {key: both[key] for key in places}, places)
        assert both.keys() == first.keys() | places.keys()

    def write(self, name: str, data: bytes) -> None:
        self.backend.put(name, data)

    def remove(self, name: str) -> None:
        self.backend.delete(name)

    def spell(self, name: str) -> tuple[str, ...]:
        return (self.names[name],)  # of a damaged manifest nobody knows what its snapshot was called: "no such snapshot"


@pytest.fixture(params=["folder", "sqlite", "memory"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Damaged]:
    if request.param == "folder":
        yield InFolder(tmp_path / "states")
        return
    url = f"sqlite:{tmp_path}/states.db?sync=normal" if request.param == "sqlite" else f"memory:{os.urandom(8).hex()}"
    with open_backend(url) as backend:
        yield InBackend(backend)


def sampled(data: bytes, seed: str) -> list[int]:
    """Places in some bytes: the first, the last and some others, or all."""
    if ROUNDS >= 10 or len(data) <= SAMPLES:
        return list(range(len(data)))
    return sorted({0, len(data) - 1, *random.Random(seed).sample(range(len(data)), SAMPLES)})


def test_every_byte_counts(damaged: Damaged) -> None:
    rng = random.Random(0)
    changes = 0
    for name, data in damaged.parts.items():
        for at in sampled(data, name[:10]):
            bit = bytes([data[at] ^ 1 << rng.randrange(8)])
            byte = bytes([(data[at] + rng.randrange(1, 256)) % 256])
            for new in {bit, byte} if ROUNDS > 1 else {rng.choice([bit, byte])}:
                damaged.check(name, data[:at] + new + data[at + 1 :], f"byte {at} of {name}: {data[at : at + 1]!r} to {new!r}")
                changes += 1
    assert changes >= 40
    print(f"{changes} changes")


def test_parts_that_are_cut_extended_zeroed_and_gone(damaged: Damaged) -> None:
    for name, data in damaged.parts.items():
        for length in (0, 1, len(data) - 1):
            damaged.check(name, data[:length], f"{name} cut to {length} bytes")
        for more in (b"\0", b" ", data, bytes(1 << 20)):
            damaged.check(name, data + more, f"{name} with {more[:10]!r} after it")
            damaged.check(name, more + data, f"{name} with {more[:10]!r} before it")
        damaged.check(name, bytes(len(data)), f"{name} zeroed")
        half = len(data) // 2
        damaged.check(name, data[:half] + bytes(len(data) - half), f"the second half of {name} zeroed")
        damaged.check(name, None, f"{name} removed")


def test_parts_in_the_place_of_others(damaged: Damaged) -> None:
    """Of the same snapshot, and of the one before, which has the very same names."""
    for name, data in damaged.parts.items():
        for other, its in damaged.parts.items():
            if other != name and its != data:
                damaged.check(name, its, f"{other} in the place of {name}")
        damaged.check(name, damaged.others[name], f"{name} of the snapshot before")


def test_two_parts_swapped(damaged: Damaged) -> None:
    names = sorted(damaged.parts)
    for one in names:
        for other in names:
            if one < other:
                damaged.write(one, damaged.parts[other])
                try:
                    _both_are_noticed(damaged, one, other)
                finally:
                    damaged.write(one, damaged.parts[one])
                    damaged.write(other, damaged.parts[other])


def _both_are_noticed(damaged: Damaged, one: str, other: str) -> None:
    damaged.write(other, damaged.parts[one])
    job = damaged.job(NAMES[1])
    try:
        found: list[PerdureError] = list(job.store.verify(NAMES[1]))
        assert len(found) == 2 and all(isinstance(error, IntegrityError) for error in found), found
    except (CodecError, SnapshotNotFoundError):
        pass  # one of them was the manifest
    with pytest.raises(PerdureError):
        job.store.load_state(NAMES[1])
    assert job.touched == 0
    latest = damaged.job(NAMES[1])
    loaded = latest.store.load_latest()
    assert loaded is not None and loaded.metadata["step"] == 1


def test_the_same_store_notices_too_what_it_knew_to_be_whole(damaged: Damaged) -> None:
    """That it has saved, loaded or verified a snapshot before is no reason to believe it."""
    job = damaged.job(NAMES[1])
    assert job.store.verify(NAMES[1]) == []
    job.store.load_state(NAMES[1])
    for name, data in damaged.parts.items():
        damaged.write(name, bytes(len(data) + 1))
        before = job.touched
        if name != MANIFEST and not name.startswith("snapshots/"):
            assert len(job.store.verify(NAMES[1])) == 1
        with pytest.raises(PerdureError):
            job.store.load_state(NAMES[1])
        assert job.touched == before
        loaded = job.store.load_latest()
        assert loaded is not None and loaded.metadata["step"] == 1
        damaged.write(name, data)
    assert job.store.verify(NAMES[1]) == []


def test_when_both_are_damaged_nothing_is_loaded(damaged: Damaged) -> None:
    job = damaged.job(NAMES[1])
    for snapshot in job.store.snapshots():
        if isinstance(damaged, InFolder):
            (damaged.root / snapshot.name / "model.pkl").write_bytes(b"x")
        else:
            assert isinstance(damaged, InBackend)
            damaged.backend.put(f"parts/{snapshot.id}/{snapshot.parts['model.pkl'].chunks[0]}", b"x")
    with pytest.raises(IntegrityError, match="none of 2 snapshots is whole"):
        job.store.load_latest()
    assert job.touched == 0


def test_a_snapshot_under_the_name_of_another_is_what_it_says(tmp_path: Path) -> None:
    """A whole folder in the place of another is a copy, and not damage; it stays in its own place in the order."""
    damaged = InFolder(tmp_path / "states")
    shutil.rmtree(damaged.root / NAMES[1])
    shutil.copytree(damaged.root / NAMES[0], damaged.root / NAMES[1])
    job = damaged.job(NAMES[1])
    assert job.store.verify(NAMES[1]) == []
    job.store.load_state(NAMES[1])
    assert [state.step for state in job.objects] == [1, 1]
