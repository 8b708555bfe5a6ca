"""Snapshots over every kind of place: all or nothing, verified, shared, and never more than what was asked for."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from perdure.errors import (
    BackendError,
    CodecError,
    ComponentError,
    DuplicateNameError,
    IntegrityError,
    SnapshotNotFoundError,
    UntrustedError,
    UsageError,
    UsageTypeError,
)
from perdure.registry import open_backend
from perdure.snapshots import KeepLatest, PersistentStateMixin, Snapshot, StateStore
from perdure.snapshots.bucket import BackendPlace
from perdure.snapshots.manifest import CHUNK


class Files(PersistentStateMixin):
    """Saves a file, and a folder with one."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.loads = 0

    def save_state(self, path: Path) -> None:
        path.with_suffix(".txt").write_text(self.text)
        path.mkdir()
        (path / "inner.bin").write_bytes(self.text.encode() * 1000)

    def load_state(self, path: Path) -> None:
        self.loads += 1
        self.text = path.with_suffix(".txt").read_text()
        assert (path / "inner.bin").read_bytes() == self.text.encode() * 1000


class Model:
    """Has a state dict, as modules of PyTorch do."""

    def __init__(self, seed: int = 0) -> None:
        self.weights = np.random.default_rng(seed).normal(size=(300, 300))
        self.loads = 0

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "first": float(self.weights.flat[0])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loads += 1
        self.weights = state["weights"]


class Plain:
    def __init__(self, number: int) -> None:
        self.number = number
        self.names = ["a"]


class Slotted:
    __slots__ = ("gone", "here")


class Raises:
    def state_dict(self) -> dict[str, Any]:
        raise RuntimeError("the device is gone")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise RuntimeError("the shape does not fit")


def filled(url: str, **options: Any) -> tuple[StateStore, Files, Model]:
    files, model = Files("first"), Model(1)
    store = StateStore(url, **options)
    store.register("files", files)
    store.register("model", model)
    return store, files, model


def pieces_of(store: StateStore) -> list[str]:
    """All that is stored, but for what nobody sees."""
    place = store._place
    if isinstance(place, BackendPlace):
        return sorted(place.backend.keys())
    if not os.path.isdir(place.root):
        return []
    return sorted(
        os.path.relpath(os.path.join(folder, file), place.root)
        for folder, _, names in os.walk(place.root)
        for file in names
        if file != "lock"
    )


def test_what_is_saved_comes_back(url: str) -> None:
    store, files, model = filled(url)
    step = store.register_value("step", 7)
    path = store.save_state({"step": 7, "loss": np.float32(0.5), "config": {"layers": [1, 2]}})
    weights = model.weights.copy()
    files.text, model.weights, step.value = "changed", np.zeros(3), 0

    store.load_state(path)
    assert (files.text, step.value) == ("first", 7)
    assert np.array_equal(model.weights, weights)

    other, other_files, other_model = filled(url)
    other_step = other.register_value("step", 0)
    other_files.text = ""
    snapshot = other.load_latest()
    assert snapshot is not None
    assert snapshot.metadata == {"step": 7, "loss": 0.5, "config": {"layers": [1, 2]}}
    assert (snapshot.sequence, snapshot.name) == (1, path.name)
    assert (other_files.text, other_step.value) == ("first", 7)
    assert np.array_equal(other_model.weights, weights)


def test_without_a_snapshot_there_is_nothing_to_load(url: str) -> None:
    store, files, _ = filled(url)
    assert store.load_latest() is None
    assert store.snapshots() == []
    assert files.loads == 0
    with pytest.raises(SnapshotNotFoundError, match="no such snapshot"):
        store.load_state("2020.state")
    with pytest.raises(FileNotFoundError):
        store.load_state("2020.state")


def test_numbers_order_snapshots_and_not_the_clock(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.snapshots import store as module

    store, files, _ = filled(url)
    store.save_state()

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(module, "datetime", Earlier)
    files.text = "second"
    store.save_state()
    files.text = "third"
    store.save_state()  # with the very same name
    assert [snapshot.sequence for snapshot in store.snapshots()] == [1, 2, 3]
    assert len({snapshot.name for snapshot in store.snapshots()}) == 3
    files.text = ""
    store.load_latest()
    assert files.text == "third"


def test_unchanged_parts_are_stored_once(url: str) -> None:
    store = StateStore(url)
    arrays = {f"array{n}": np.random.default_rng(n).normal(size=50_000) for n in range(10)}
    store.register("arrays", _Dict(arrays))
    store.save_state()
    before = set(pieces_of(store))
    arrays["array3"][7] = 3
    store.save_state()
    place = store._place
    if isinstance(place, BackendPlace):
        new = [key for key in set(pieces_of(store)) - before if key.startswith("parts/")]
        assert len(new) == 1
        assert sum(place.backend.head(key).size for key in new) < 500_000
    else:
        first, second = (str(snapshot.path) for snapshot in store.snapshots())
        same = [n for n in range(10) if os.path.samefile(f"{first}/arrays/array{n}.npy", f"{second}/arrays/array{n}.npy")]
        assert same == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    arrays["array3"][:] = 0
    store.load_state(store.snapshots()[0].name)
    assert arrays["array3"][7] == np.random.default_rng(3).normal(size=50_000)[7]
    store.load_latest()
    assert arrays["array3"][7] == 3


class _Dict:
    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def state_dict(self) -> dict[str, Any]:
        return self.content

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.content.clear()
        self.content.update(state)


def test_a_store_that_only_loaded_shares_what_it_verified(url: str) -> None:
    store, _, _ = filled(url)
    store.save_state()
    again, _, _ = filled(url)
    again.load_latest()
    again.save_state()
    if isinstance(again._place, BackendPlace):
        assert {home for part in again.snapshots()[1].parts.values() for home in part.homes} == {store.snapshots()[0].id}
    else:
        paths = [str(snapshot.path) for snapshot in again.snapshots()]
        for name in ("files.txt", "files/inner.bin", "model.pkl", "model/weights.npy"):
            assert os.path.samefile(f"{paths[0]}/{name}", f"{paths[1]}/{name}"), name


def test_a_store_that_verified_nothing_shares_nothing(url: str) -> None:
    filled(url)[0].save_state()
    again, _, _ = filled(url)
    again.save_state()
    if isinstance(again._place, BackendPlace):
        assert not any(part.homes for part in again.snapshots()[1].parts.values())
    else:
        paths = [str(snapshot.path) for snapshot in again.snapshots()]
        assert not os.path.samefile(f"{paths[0]}/model/weights.npy", f"{paths[1]}/model/weights.npy")


def test_large_parts_come_in_pieces(url: str) -> None:
    store = StateStore(url)
    big = np.random.default_rng(0).integers(0, 256, 2 * CHUNK + 5, dtype=np.uint8)
    value = store.register_value("big", big)
    store.save_state()
    (snapshot,) = store.snapshots()
    assert len(snapshot.parts["big/array.npy" if "big/array.npy" in snapshot.parts else next(iter(snapshot.parts))].chunks) in (
        1,
        3,
    )
    saved = big.copy()
    big[:] = 0
    store.load_latest()
    assert value.value is big
    assert np.array_equal(big, saved)
    big[CHUNK + 9] ^= 1
    store.save_state()
    if isinstance(store._place, BackendPlace):
        homes = [home for part in store.snapshots()[1].parts.values() for home in part.homes]
        assert homes.count(store.snapshots()[1].id) == 1  # of all pieces, one is new


@pytest.mark.parametrize("victim", ["model/weights.npy", "files.txt", "model.pkl"])
def test_a_damaged_part_is_named_and_nothing_is_touched(url: str, victim: str, caplog: pytest.LogCaptureFixture) -> None:
    store, files, model = filled(url)
    store.save_state({"step": 1})
    files.text = "second"
    model.weights = model.weights + 1
    second = store.save_state({"step": 2})
    _flip(store, store.snapshots()[1], victim)

    fresh, fresh_files, fresh_model = filled(url)
    with pytest.raises(IntegrityError, match=f"{second.name}/{victim}"):
        fresh.load_state(second)
    assert fresh_files.loads == fresh_model.loads == 0
    assert [error.key for error in fresh.verify(second)] == [f"{second.name}/{victim}"]
    with caplog.at_level(logging.WARNING):
        snapshot = fresh.load_latest()
    assert snapshot is not None
    assert snapshot.metadata == {"step": 1}
    assert fresh_files.text == "first"
    assert victim in caplog.text


def _flip(store: StateStore, snapshot: Snapshot, part: str) -> None:
    """Change one bit of a part, behind the store's back."""
    place = store._place
    if isinstance(place, BackendPlace):
        from perdure.snapshots.bucket_keys import piece_key

        key = piece_key(snapshot, snapshot.parts[part], 0)
        data = bytearray(place.backend.get(key).data)
        data[len(data) // 2] ^= 4
        place.backend.put(key, data)
    else:
        path = Path(str(snapshot.path), part)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.unlink()
        path.write_bytes(data)


def _drop(store: StateStore, snapshot: Snapshot, part: str) -> None:
    place = store._place
    if isinstance(place, BackendPlace):
        from perdure.snapshots.bucket_keys import piece_key

        place.backend.delete(piece_key(snapshot, snapshot.parts[part], 0))
    else:
        Path(str(snapshot.path), part).unlink()


def test_a_missing_part_is_named(url: str) -> None:
    store, _, _ = filled(url)
    path = store.save_state()
    _drop(store, store.snapshots()[0], "model.pkl")
    with pytest.raises(IntegrityError, match=r"model\.pkl.*missing"):
        store.load_state(path)


def test_when_no_snapshot_is_whole_that_is_an_error_and_not_a_fresh_start(url: str) -> None:
    store, files, _ = filled(url)
    store.save_state()
    _flip(store, store.snapshots()[0], "model.pkl")
    with pytest.raises(IntegrityError, match="the only snapshot is not whole"):
        store.load_latest()
    assert files.loads == 0


def test_a_failing_component_is_named_and_leaves_no_trace(url: str) -> None:
    store, _, _ = filled(url)
    before = pieces_of(store)
    store.register("broken", Raises())
    with pytest.raises(ComponentError, match="'broken' could not be saved: RuntimeError: the device is gone") as caught:
        store.save_state()
    assert caught.value.component == "broken"
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert pieces_of(store) == before
    assert store.snapshots() == []
    store.unregister("broken")
    store.save_state()
    assert len(store.snapshots()) == 1


def test_what_cannot_be_pickled_is_named(url: str) -> None:
    store = StateStore(url)
    store.register_value("lock", {"deep": [threading.Lock()]})
    with pytest.raises(CodecError, match="lock"):
        store.save_state()
    assert store.snapshots() == []


def test_a_component_that_does_not_take_its_state_is_named_with_the_others(url: str) -> None:
    class Refuses(Model):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise RuntimeError("the shape does not fit")

    store = StateStore(url)
    first, last = Model(1), Model(2)
    store.register("a", first)
    store.register("b", Refuses())
    store.register("c", last)
    path = store.save_state()
    with pytest.raises(ComponentError, match=r"'b' did not take.*restored before it: 'a'; not touched: 'c'") as caught:
        store.load_state(path)
    assert (caught.value.loaded, caught.value.untouched) == (("a",), ("c",))
    assert (first.loads, last.loads) == (1, 0)


def test_other_components_are_an_error_that_lists_both_sides(url: str) -> None:
    store, files, _ = filled(url)
    path = store.save_state()
    store.unregister("model")
    store.register("head", Model())
    with pytest.raises(UsageError, match=r"holds 'files', 'model', and registered are 'files', 'head'; it lacks 'head'"):
        store.load_state(path)
    assert files.loads == 0
    store.load_state(path, strict=False)
    assert files.loads == 1
    with pytest.raises(UsageError, match="lacks"):
        store.load_latest()


def test_another_kind_of_component_is_an_error(url: str) -> None:
    store = StateStore(url)
    store.register("model", Model())
    path = store.save_state()
    store.unregister("model")
    store.register("model", Files())
    with pytest.raises(UsageError, match="'model' was saved as state_dict, and registered is files"):
        store.load_state(path)


def test_values_change_in_place_where_they_can(url: str) -> None:
    store = StateStore(url)
    objects: dict[str, Any] = {
        "list": [1, [2]],
        "dict": {"a": 1},
        "set": {1, 2},
        "deque": deque([1, 2], maxlen=5),
        "bytes": bytearray(b"abc"),
        "array": np.arange(5.0),
    }
    holders = {name: store.register_value(name, value) for name, value in objects.items()}
    number = store.register_value("number", 1)
    store.save_state()
    objects["list"].clear()
    objects["dict"]["b"] = 2
    objects["set"].add(3)
    objects["deque"].clear()
    objects["bytes"][:] = b""
    objects["array"][:] = -1
    number.value = 5
    store.load_latest()
    assert all(holders[name].value is objects[name] for name in objects)
    assert objects["list"] == [1, [2]]
    assert objects["dict"] == {"a": 1}
    assert objects["set"] == {1, 2}
    assert objects["deque"] == deque([1, 2])
    assert objects["bytes"] == bytearray(b"abc")
    assert objects["array"].tolist() == [0, 1, 2, 3, 4]
    assert number.value == 1


def test_objects_are_restored_in_place(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    plain, slotted = Plain(1), Slotted()
    slotted.here = 1
    store.register("plain", plain)
    store.register("slotted", slotted)
    store.save_state()
    plain.number, plain.extra = 2, True  # type: ignore[attr-defined]
    slotted.here, slotted.gone = 2, 3
    store.load_latest()
    assert plain.__dict__ == {"number": 1, "names": ["a"]}
    assert slotted.here == 1
    assert not hasattr(slotted, "gone")


@pytest.mark.parametrize("state", [3, "text", [1], {"a": 1}, None, Plain])
def test_what_cannot_be_restored_in_place_is_refused_when_it_is_registered(tmp_path: Path, state: object) -> None:
    with pytest.raises(UsageTypeError, match="register_value"):
        StateStore(tmp_path).register("x", state)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../evil", "/abs", "a\\b", ".hidden", "manifest", "Manifest.x", "a\0", "x" * 300, "c:"]
)
def test_names_that_cannot_be_files_are_refused(tmp_path: Path, name: str) -> None:
    store = StateStore(tmp_path / "states")
    with pytest.raises(UsageError):
        store.register(name, Model())
    assert store.components == {}


def test_names_that_would_write_the_same_files_are_refused(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.register("m.a", Model())
    with pytest.raises(UsageError, match=r"'m\.a' and 'm\.b' would write the same files"):
        store.register("m.b", Model())
    with pytest.raises(DuplicateNameError) as caught:
        store.register("m.a", Model())
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("form", ["%Y/%m.state", "..", "", ".%Y"])
def test_a_format_that_makes_no_name_is_refused_at_once(tmp_path: Path, form: str) -> None:
    with pytest.raises(UsageError, match="state_name_format"):
        StateStore(tmp_path, form)


def test_metadata_that_json_cannot_hold_is_named_and_nothing_is_saved(url: str) -> None:
    store, _, _ = filled(url)
    with pytest.raises(UsageError, match="'model'"):
        store.save_state({"step": 1, "model": object()})
    assert store.snapshots() == []


def test_nothing_changed_after_an_async_save_is_in_it(url: str) -> None:
    store, files, model = filled(url)
    values = store.register_value("values", list(range(1000)))
    weights = model.weights.copy()
    saving = store.save_async({"step": 1})
    model.weights[:] = 0
    values.value[:] = []
    files.text = "later"
    path = saving.wait()
    assert saving.done
    store.load_state(path)
    assert np.array_equal(model.weights, weights)
    assert values.value == list(range(1000))
    assert files.text == "first"


def test_async_saves_take_turns(url: str) -> None:
    store, _, model = filled(url)
    savings = []
    for n in range(4):
        model.weights[0] = n
        savings.append(store.save_async({"step": n}))
    assert [snapshot.metadata["step"] for snapshot in store.snapshots()] in ([0, 1, 2], [0, 1, 2, 3])
    paths = [saving.wait() for saving in savings]
    assert [path.name for path in paths] == [snapshot.name for snapshot in store.snapshots()]
    store.close()


def test_an_error_in_the_background_surfaces_once(tmp_path: Path) -> None:
    store, _, _ = filled(f"file:{tmp_path}/states")
    saving = store.save_async()
    saving.wait()
    store._place.own = f"{tmp_path}/file/below"  # type: ignore[attr-defined] - where no lock can be
    (tmp_path / "file").write_text("")
    store._place.begin = _Beginning(store)  # type: ignore[method-assign]
    store.save_async()
    with pytest.raises(BackendError):
        store.save_state()
    store.wait()
    failing = store.save_async()
    with pytest.raises(BackendError):
        failing.wait()
    store.wait()


class _Beginning:
    """Begins drafts where they can be, although they cannot be completed."""

    def __init__(self, store: StateStore) -> None:
        self._place: Any = store._place
        self._own = os.path.join(self._place.root, ".perdure-snapshots")
        self._there = self._place.begin

    def __call__(self, *, isolate: bool) -> Any:
        bad, self._place.own = self._place.own, self._own
        try:
            return self._there(isolate=isolate)
        finally:
            self._place.own = bad


def test_keeping_some_removes_the_rest_and_shared_parts_stay(url: str) -> None:
    store, files, model = filled(url, keep=KeepLatest(2))
    for n in range(6):
        files.text = str(n)
        store.save_state({"step": n})
    assert [snapshot.metadata["step"] for snapshot in store.snapshots()] == [4, 5]
    fresh, _, fresh_model = filled(url)
    assert not fresh.verify(fresh.snapshots()[0].name)
    assert not fresh.verify(fresh.snapshots()[1].name)
    fresh.load_latest()
    assert np.array_equal(fresh_model.weights, model.weights)
    if isinstance(store._place, BackendPlace):
        used = {key for snapshot in store.snapshots() for part in snapshot.parts.values() for key in part.chunks}
        assert {key.rpartition("/")[2] for key in pieces_of(store) if key.startswith("parts/")} == used


def test_the_last_whole_snapshot_is_never_removed(url: str) -> None:
    store, files, _ = filled(url)
    store.save_state({"step": 1})
    files.text = "second"
    store.save_state({"step": 2})
    _flip(store, store.snapshots()[1], "files.txt")
    cleaner = StateStore(url, keep=KeepLatest(1))
    cleaned = cleaner.cleanup()
    assert cleaned.removed == ()
    assert cleaned.spared is not None
    assert cleaned.spared.metadata == {"step": 1}
    assert len(cleaner.snapshots()) == 2
    assert StateStore(url, keep=KeepLatest(0)).cleanup().spared is not None


def test_a_dry_run_removes_nothing(url: str) -> None:
    store, _, _ = filled(url)
    for _ in range(3):
        store.save_state()
    store.keep = KeepLatest(1)
    assert len(store.cleanup(dry_run=True).removed) == 2
    assert len(store.snapshots()) == 3


def test_snapshots_are_removed_by_name(url: str) -> None:
    store, _, _ = filled(url)
    first, second = store.save_state(), store.save_state()
    store.remove(first)
    assert [snapshot.name for snapshot in store.snapshots()] == [second.name]
    assert not store.verify(second)
    with pytest.raises(SnapshotNotFoundError):
        store.remove(first)


def test_a_shared_place_runs_no_code(url: str) -> None:
    store = StateStore(url, trusted=False)
    store.register("plain", Plain(1))
    store.register_value("object", Plain(2))
    with pytest.raises(UntrustedError, match="Plain"):
        store.save_state()
    writer = StateStore(url, trusted=True)
    plain = Plain(1)
    writer.register_value("object", plain)
    writer.save_state()
    reader = StateStore(url, trusted=False)
    holder = reader.register_value("object", None)
    with pytest.raises(UntrustedError):
        reader.load_latest()
    assert holder.value is None
    writer.load_latest()


def test_reading_a_place_changes_nothing(tmp_path: Path) -> None:
    store, _, _ = filled(str(tmp_path / "states"))
    store.save_state()
    before = sorted(os.walk(tmp_path))
    reader, _, _ = filled(str(tmp_path / "states"))
    reader.load_latest()
    reader.verify(reader.snapshots()[0].name)
    assert sorted(os.walk(tmp_path)) == before


def test_a_foreign_folder_is_not_a_snapshot(tmp_path: Path) -> None:
    store, files, _ = filled(str(tmp_path))
    (tmp_path / "notes.state").mkdir()
    (tmp_path / "notes.state" / "files.pkl").write_text("x")
    (tmp_path / "file.state").write_text("x")
    (tmp_path / "link.state").symlink_to("nowhere")
    assert store.snapshots() == []
    assert store.load_latest() is None
    for name in ("notes.state", "file.state", "link.state"):
        with pytest.raises(SnapshotNotFoundError, match=r"no snapshot|no such snapshot"):
            store.load_state(tmp_path / name)
    store.save_state()
    assert len(store.snapshots()) == 1
    assert files.loads == 0


def test_a_snapshot_of_a_newer_format_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    store, _, _ = filled(str(tmp_path))
    path = store.save_state()
    _reseal(path / "manifest.json", "perdure snapshot 1", "perdure snapshot 2")
    for load in (store.load_latest, lambda: store.load_state(path)):
        with pytest.raises(CodecError, match=r"format 2.*Upgrade perdure") as caught:
            load()
        assert not isinstance(caught.value, IntegrityError)
    store.save_state()
    with pytest.raises(CodecError, match="format 2"):
        store.load_latest()


def _reseal(manifest: Path, old: str, new: str) -> None:
    """Change a manifest as whoever writes one can."""
    body, _, _ = manifest.read_bytes().replace(old.encode(), new.encode()).rpartition(b',\n "seal"')
    manifest.write_bytes(body + b',\n "seal": "%s"\n}\n' % blake3(body).hexdigest().encode())


def test_a_damaged_manifest_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, files, _ = filled(str(tmp_path))
    store.save_state()
    files.text = "second"
    path = store.save_state()
    data = bytearray((path / "manifest.json").read_bytes())
    data[100] ^= 1
    (path / "manifest.json").write_bytes(data)
    files.text = ""
    store.load_latest()
    assert files.text == "first"
    assert path.name in caplog.text


def test_a_snapshot_is_an_ordinary_folder(tmp_path: Path) -> None:
    store, _, model = filled(str(tmp_path))
    path = store.save_state()
    assert path.parent == tmp_path
    assert sorted(os.listdir(path)) == ["files", "files.txt", "manifest.json", "model", "model.pkl"]
    assert np.array_equal(np.load(path / "model" / "weights.npy"), model.weights)
    copy = tmp_path / "elsewhere" / "copied"
    shutil.copytree(path, copy)
    model.weights = np.zeros(1)
    store.load_state(copy)
    assert model.weights.shape == (300, 300)


def test_links_and_pipes_are_no_parts(tmp_path: Path) -> None:
    class Links(PersistentStateMixin):
        def save_state(self, path: Path) -> None:
            path.symlink_to("/etc/passwd")

    store = StateStore(tmp_path)
    store.register("links", Links())
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        store.save_state()
    assert store.snapshots() == []


def test_a_snapshot_that_is_being_read_is_not_removed(tmp_path: Path) -> None:
    store, _, _ = filled(str(tmp_path))
    path = store.save_state()
    store.save_state()
    reading = store._place.read(store.snapshots()[0])
    with pytest.raises(BackendError, match="reading"):
        store.remove(path)
    cleaner = StateStore(tmp_path, keep=KeepLatest(1))
    assert [reason for _, reason in cleaner.cleanup().failed] == ["somebody is reading it"]
    reading.close()
    assert len(cleaner.cleanup().removed) == 1


def test_backends_are_places_too(tmp_path: Path) -> None:
    backend = open_backend(f"sqlite:{tmp_path}/a.db")
    store = StateStore(backend)
    value = store.register_value("x", 1)
    store.save_state()
    value.value = 2
    store.load_latest()
    assert value.value == 1
    with pytest.raises(UsageError, match="sync="):
        StateStore(backend, sync="full")


def test_a_null_place_takes_everything_and_keeps_nothing() -> None:
    store, _, _ = filled("null:")
    store.save_state()
    assert store.load_latest() is None


def test_another_thread_waits_for_the_save_before(url: str) -> None:
    store, _, _ = filled(url)
    errors: list[BaseException] = []

    def save() -> None:
        try:
            for _ in range(3):
                store.save_state()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [snapshot.sequence for snapshot in store.snapshots()] == list(range(1, 13))


def test_it_can_be_looked_at(url: str) -> None:
    store, _, _ = filled(url)
    assert "'files', 'model'" in repr(store)
    saving = store.save_async({"step": 3})
    saving.wait()
    assert "stored as" in repr(saving)
    assert "step=3" in repr(store.snapshots()[0])
    with pytest.raises(UsageError, match="keeps all"):
        store.cleanup()


def test_progress_is_told_in_bytes(url: str) -> None:
    store, _, _ = filled(url)
    told: list[tuple[int, int | None]] = []
    path = store.save_state(progress=lambda done, total: told.append((done, total)))
    size = store.snapshots()[0].size
    assert told[-1] == (size, None)
    for work in (store.load_state, store.verify):
        told.clear()
        work(path, progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (size, size)
    pytest.importorskip("tqdm")
    store.save_state(progress=True)


def test_an_interrupt_between_two_calls_does_not_keep_who_clears_away_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.snapshots import work as work_module

    monkeypatch.setattr(work_module, "AT_ONCE", 1)

    class Interrupted(work_module.Work):
        def _make(self, call: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt  # as if it struck just before
            super()._make(call)

    work = Interrupted()
    work.submit(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        work.finish()
    stopping = threading.Thread(target=work.stop, daemon=True)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()
