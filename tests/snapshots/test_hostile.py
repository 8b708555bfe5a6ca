"""Snapshots that somebody else wrote, with a valid seal: nothing outside is touched, and every error is one of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from perdure.errors import BackendError, IntegrityError, PerdureError
from perdure.snapshots import KeepLatest, StateStore
from perdure.snapshots.bucket import BackendPlace

BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "id is a list": lambda m: m.update(id=[1]),
    "id leads out": lambda m: m.update(id="../../x"),
    "sequence is text": lambda m: m.update(sequence="x"),
    "sequence is null": lambda m: m.update(sequence=None),
    "sequence is true": lambda m: m.update(sequence=True),
    "sequence is huge": lambda m: m.update(sequence=10**30),
    "name leads out": lambda m: m.update(name="../x"),
    "name is a list": lambda m: m.update(name=["x"]),
    "metadata is a list": lambda m: m.update(metadata=[1]),
    "saved is a number": lambda m: m.update(saved=3),
    "saved is nonsense": lambda m: m.update(saved="yesterday"),
    "components is a list": lambda m: m.update(components=[]),
    "a component has no parts": lambda m: m["components"]["value"].update(parts=[]),
    "a component has a part that is nowhere": lambda m: m["components"]["value"].update(parts=["value.pkl", "value/x.npy"]),
    "the parts of a component are text": lambda m: m["components"]["value"].update(parts="value.pkl"),
    "the parts of a component are lists": lambda m: m["components"]["value"].update(parts=[["value.pkl"]]),
    "a component has the parts of another": lambda m: m["components"]["value"].update(parts=["other.pkl"]),
    "a rank is text": lambda m: m["components"]["value"].update(rank="1"),
    **{
        f"a part is called {name!r:.30}": lambda m, name=name: m["parts"].update({name: m["parts"]["value.pkl"]})
        for name in ("../x", "/etc/passwd", "a\0b", "a//b", "", "manifest.json", "\ud800", "a/../../b", "x/" * 3000 + "x")
    },
    **{
        f"a part has {size!r:.20} bytes": lambda m, size=size: m["parts"]["value.pkl"].update(size=size)
        for size in (-1, 5.0, True, "5", None, float("nan"), 10**25, -(1 << 70), 1 << 40)
    },
    "digests are a dict": lambda m: m["parts"]["value.pkl"].update(chunks={"a": 1}),
    "a digest is too short": lambda m: m["parts"]["value.pkl"].update(digest="00"),
    "homes lead out": lambda m: m["parts"]["value.pkl"].update(homes=["../../x"]),
}


def seal(content: dict[str, Any] | bytes) -> bytes:
    """The bytes of a manifest as anybody can make them."""
    if not isinstance(content, bytes):
        content.pop("seal", None)
        content = json.dumps(content, indent=1).encode().removesuffix(b"\n}")
    return content + b',\n "seal": "%s"\n}\n' % blake3(content).hexdigest().encode()


def forge(store: StateStore, change: Callable[[dict[str, Any]], object] | bytes) -> None:
    """Exchange the newest manifest."""
    place = store._place
    if isinstance(place, BackendPlace):
        key = max(place.backend.keys("snapshots/"))
        data = place.backend.get(key).data
    else:
        path = max(Path(place.root).glob("*.state")) / "manifest.json"
        data = path.read_bytes()
    if isinstance(change, bytes):
        forged = change
    else:
        content = json.loads(data)
        change(content)
        forged = seal(content)
    if isinstance(place, BackendPlace):
        place.backend.put(key, forged)
    else:
        path.unlink()
        path.write_bytes(forged)


def two(url: str) -> StateStore:
    store = StateStore(url)
    value = store.register_value("value", 1)
    store.register_value("other", 1)
    store.save_state()
    value.value = 2
    store.save_state()
    return store


@pytest.mark.parametrize("bad", [*BAD, "nested too deeply", "empty", "no json"])
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_manifest_that_says_what_cannot_be_is_passed_over(kind: str, bad: str, tmp_path: Path) -> None:
    url = f"memory:{tmp_path.name}-{abs(hash(bad))}" if kind == "memory" else str(tmp_path / "states")
    forge(
        two(url),
        {
            "nested too deeply": seal(b'{\n "format": "perdure snapshot 1",\n "x": ' + b"[" * 200_000),
            "empty": b"",
            "no json": seal(b'{\n "format": "perdure snapshot 1",\n "x": '),
        }[bad]
        if bad not in BAD
        else BAD[bad],
    )
    store = StateStore(url, keep=KeepLatest(1))
    value = store.register_value("value", 0)
    store.register_value("other", 0)
    assert [snapshot.sequence for snapshot in store.snapshots()] == [1]
    found = store.load_latest()
    assert found is not None
    assert value.value == 1
    store.save_state()
    store.cleanup()
    assert store.snapshots()[-1].sequence == (3 if kind == "memory" else 2)


def test_a_claim_of_very_much_is_not_believed(tmp_path: Path) -> None:
    store = two(f"memory:{tmp_path}")
    pieces = (1 << 38) // (16 << 20)

    def claim(manifest: dict[str, Any]) -> None:
        part = manifest["parts"]["value.pkl"]
        manifest["parts"]["value.pkl"] = {"size": 1 << 38, "chunks": [part["digest"]] * pieces}

    forge(store, claim)
    with pytest.raises(PerdureError):
        store.load_state(store.snapshots()[-1].name)


def test_a_very_long_manifest_is_not_read(tmp_path: Path) -> None:
    store = two(str(tmp_path))
    path = max(tmp_path.glob("*.state")) / "manifest.json"
    os.truncate(path, 8 << 40)
    with pytest.raises(IntegrityError, match="manifest has"):
        store.load_state(path.parent)
    assert len(store.snapshots()) == 1


def test_links_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    states = tmp_path / "states"
    store = two(str(states))
    first, second = sorted(states.glob("*.state"))
    os.rename(second, outside)
    second.symlink_to(outside)
    assert [snapshot.sequence for snapshot in StateStore(states).snapshots()] == [1]
    second.unlink()
    os.rename(outside, second)
    os.rename(second / "value.pkl", outside)
    (second / "value.pkl").symlink_to(outside)
    errors = store.verify(second)
    assert [error.key for error in errors] == [f"{second.name}/value.pkl"]
    (second / "manifest.json").rename(tmp_path / "manifest")
    (second / "manifest.json").symlink_to(tmp_path / "manifest")
    assert [snapshot.name for snapshot in StateStore(states).snapshots()] == [first.name]


def test_a_folder_of_parts_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    import numpy as np

    store = StateStore(tmp_path / "states")
    store.register_value("big", np.zeros(100_000))
    path = store.save_state()
    os.rename(path / "big", tmp_path / "outside")
    (path / "big").symlink_to(tmp_path / "outside")
    with pytest.raises(IntegrityError, match=r"big/value\.npy"):
        store.load_state(path)


def test_our_own_folder_planted_as_a_link_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "trash-mine").mkdir(parents=True)
    states = tmp_path / "states"
    store = two(str(states))
    names = [snapshot.name for snapshot in store.snapshots()]
    own = states / ".perdure-snapshots"
    (own / "lock").unlink()
    own.rmdir()
    own.symlink_to(outside)
    for call in (store.save_state, lambda: store.remove(names[0]), StateStore(states)._place.sweep):
        with pytest.raises(BackendError, match="is a link"):
            call()
    assert os.listdir(outside) == ["trash-mine"]
    assert len(store.snapshots()) == 2


def test_what_others_planted_among_drafts_disturbs_nobody(tmp_path: Path) -> None:
    store = two(str(tmp_path))
    own = tmp_path / ".perdure-snapshots"
    (own / "draft-file").write_text("")
    (own / "draft-link").symlink_to("/etc")
    (tmp_path / "closed").mkdir(mode=0)
    store.save_state()
    assert len(store.snapshots()) == 3


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "x/../../..", "parts": {}, "components": {}},
        {"id": "0" * 32, "parts": {"../outside": {"size": 1, "digest": "0" * 64}}, "components": {}},
        {"id": "0" * 32, "parts": {"rank-0/x": {"size": 1, "digest": "0" * 64}}, "components": {}},
        {"id": "0" * 32, "parts": [], "components": {}},
        {"id": "0" * 32},
    ],
)
def test_an_answer_of_a_rank_that_cannot_be_is_refused(tmp_path: Path, answer: dict[str, Any]) -> None:
    store = StateStore(tmp_path / "states", rank=0, world_size=2, rank_timeout=5)
    store.register_value("x", 1)
    (tmp_path / "outside").write_text("mine")
    ranks: Any = store._ranks
    read = ranks._records.read

    def planted(name: str) -> Any:
        return ({**answer, "state": "open", "token": read("call")[0]["token"]}, None) if name == "1" else read(name)

    ranks._records.read = planted
    with pytest.raises(IntegrityError, match="rank 1"):
        store.save_state()
    assert (tmp_path / "outside").read_text() == "mine"
    assert store.snapshots() == []


def test_a_planted_number_does_not_hide_what_is_saved(tmp_path: Path) -> None:
    store = two(f"memory:{tmp_path}")
    place = store._place
    assert isinstance(place, BackendPlace)
    place.backend.put("snapshots/999999999999999999", b"x")
    store.save_state()
    assert [snapshot.sequence for snapshot in store.snapshots()] == [1, 2, 3]
    place.backend.put("snapshots/999999999999999", b"x")
    with pytest.raises(BackendError, match="no higher number"):
        store.save_state()
