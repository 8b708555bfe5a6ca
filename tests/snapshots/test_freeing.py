"""What is not needed any more is freed: after killed saves, beside damaged manifests, and on file systems that lack things."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure.errors import SnapshotNotFoundError
from perdure.snapshots import KeepLatest, Snapshot, StateStore
from perdure.snapshots.bucket import BackendPlace
from perdure.snapshots.manifest import Broken

KILLED = """
import os, signal, sys, perdure
class Deadly:
    def state_dict(self): return {"x": b"y" * 300_000}
    def load_state_dict(self, state): pass
store = perdure.StateStore(sys.argv[1])
value = store.register_value("v", b"")
store.load_latest(strict=False)
store.register("deadly", Deadly())
from perdure.snapshots.bucket_draft import BackendDraft
BackendDraft.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # all pieces are there, and no manifest
store.save_state()
"""


def pieces(store: StateStore) -> int:
    assert isinstance(store._place, BackendPlace)
    return len(list(store._place.backend.keys("parts/")))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_save_does_not_keep_all_others_from_being_freed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/states.db"
    store = StateStore(url, keep=KeepLatest(2))
    value = store.register_value("v", b"")

    def save(number: int) -> None:
        value.value = os.urandom(100_000)
        store.save_state({"step": number})

    for number in range(3):
        save(number)
    before = pieces(store)
    done = subprocess.run([sys.executable, "-c", KILLED, url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(store._place.backend.keys("drafts/"))) == 1  # type: ignore[attr-defined]
    after = pieces(store)
    for number in range(20):
        save(number)
    # What the dead had sent, and what its base had had, stay for an hour; nothing else does.
    assert after <= pieces(store) <= after + before
    fresh = StateStore(url)
    fresh.register_value("v", b"")
    assert fresh.load_latest() is not None
    assert all(fresh.verify(snapshot.name) == [] for snapshot in fresh.snapshots())


def test_a_draft_of_another_version_keeps_everything(tmp_path: Path) -> None:
    """As nobody knows what it needs."""
    store = StateStore(f"sqlite:///{tmp_path}/states.db", keep=KeepLatest(1))
    value = store.register_value("v", b"")
    backend = store._place.backend  # type: ignore[attr-defined]
    backend.put(f"drafts/{'a' * 32}", json.dumps({"base": "b" * 32}).encode())
    for _ in range(4):
        value.value = os.urandom(100_000)
        store.save_state()
    assert pieces(store) == 4
    backend.delete(f"drafts/{'a' * 32}")
    store.save_state()
    assert pieces(store) == 1


def damage(store: StateStore, snapshot: Snapshot) -> str:
    """Damage its manifest, and tell under which name it is broken."""
    if snapshot.path is not None:
        (snapshot.path / "manifest.json").write_bytes(b"{}")
        return snapshot.name
    key = f"snapshots/{snapshot.sequence:010d}"
    store._place.backend.put(key, b"{}")  # type: ignore[attr-defined]
    return key


@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_what_has_a_damaged_manifest_can_be_removed(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"file:{tmp_path}/states" if kind == "folder" else f"sqlite:///{tmp_path}/states.db"
    store = StateStore(url)
    value = store.register_value("v", b"")
    for number in range(4):
        value.value = os.urandom(100_000)
        store.save_state({"step": number})
    name = damage(store, store.snapshots()[1])
    store.keep = KeepLatest(1)
    store.cleanup()
    if kind == "sqlite":
        assert pieces(store) == 4
        assert "nothing is freed" in caplog.text
        assert name in caplog.text
    place = StateStore(url)._place
    assert [entry.name for entry in place.entries() if isinstance(entry, Broken)] == [name]
    place.remove_broken(name)
    assert not [entry for entry in place.entries() if isinstance(entry, Broken)]
    with pytest.raises(SnapshotNotFoundError):
        place.remove_broken(name)
    with pytest.raises(SnapshotNotFoundError):
        place.remove_broken(store.snapshots()[0].name)
    value.value = b"new"
    store.save_state()
    if kind == "sqlite":
        assert pieces(store) == 1
    else:
        assert len(os.listdir(tmp_path / "states")) == 2
    assert [snapshot.size for snapshot in store.snapshots()] == [store.snapshots()[0].size]


def failing(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, number: int, *, folders: bool = False) -> None:
    """Let a system call say no, as file systems do that do not have it."""
    original = getattr(module, function)

    def refuse(*arguments: Any, **options: Any) -> Any:
        if folders and not os.path.isdir(f"/proc/self/fd/{arguments[0]}"):
            return original(*arguments, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, function, refuse)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize(
    ("function", "number"),
    [
        *(("flock", getattr(errno, name)) for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "EBADF")),
        *(("fsync", getattr(errno, name)) for name in ("EINVAL", "EBADF", "ENOSYS", "EOPNOTSUPP")),
        *(("link", getattr(errno, name)) for name in ("EPERM", "EMLINK", "EXDEV", "EINVAL", "ENOTTY", "ENOSYS", "EIO")),
    ],
)
def test_a_file_system_that_lacks_something_holds_snapshots_all_the_same(
    function: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.snapshots import disk

    held = set(disk._held)
    failing(monkeypatch, disk if function == "flock" else os, function, number, folders=function == "fsync")
    store = StateStore(tmp_path / "states", keep=KeepLatest(2))
    array = store.register_value("v", np.arange(100_000))
    for step in range(4):
        array.value[0] = step
        store.save_state({"step": step})
    store.save_async({"step": 4}).wait()
    fresh = StateStore(tmp_path / "states")
    loaded = fresh.register_value("v", np.zeros(1))
    snapshot = fresh.load_latest()
    assert snapshot is not None
    assert snapshot.metadata["step"] == 4
    assert loaded.value[0] == 3
    assert [each.metadata["step"] for each in fresh.snapshots()] == [3, 4]
    assert all(fresh.verify(each.path or "") == [] for each in fresh.snapshots())
    drafts = [name for name in os.listdir(tmp_path / "states" / ".perdure-snapshots") if name.startswith(("draft-", "trash-"))]
    assert drafts == []
    assert disk._held == held
