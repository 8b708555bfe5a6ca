"""Where pamiq-core 0.6.0 loses or mixes up states, by its own names: each of these was seen to fail there."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from perdure.compat import pamiq_core
from perdure.compat.pamiq_core import state_persistence
from perdure.compat.pamiq_core.state_persistence import (
    LatestStatesKeeper,
    PeriodicSaveCondition,
    PersistentStateMixin,
    StatesKeeper,
    StateStore,
    load_pickle,
    save_pickle,
)


class Part(PersistentStateMixin):
    """A component as pamiq-core's own are: one pickle beside the path."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def save_state(self, path: Path) -> None:
        save_pickle(self.value, path.with_suffix(".pkl"))

    def load_state(self, path: Path) -> None:
        self.value = load_pickle(path.with_suffix(".pkl"))


class Failing(Part):
    def save_state(self, path: Path) -> None:
        super().save_state(path)
        raise OSError(28, "No space left on device")


def three(folder: Path) -> tuple[StateStore, list[Part]]:
    store = StateStore(folder)
    parts = [Part(1), Part(1), Part(1)]
    for name, part in zip("abc", parts, strict=True):
        store.register(name, part)
    return store, parts


def test_the_names_and_signatures_are_those_of_pamiq_core() -> None:
    assert pamiq_core.__all__ == state_persistence.__all__
    signatures = {
        "StateStore": ["states_dir", "state_name_format"],
        "StateStore.register": ["self", "name", "state"],
        "StateStore.save_state": ["self"],
        "StateStore.load_state": ["self", "state_path"],
        "PersistentStateMixin.save_state": ["self", "path"],
        "PersistentStateMixin.load_state": ["self", "path"],
        "PeriodicSaveCondition": ["interval"],
        "LatestStatesKeeper": ["states_dir", "max_keep", "state_name_pattern"],
        "StatesKeeper.append": ["self", "path"],
        "StatesKeeper.select_removal_states": ["self"],
        "StatesKeeper.cleanup": ["self"],
        "save_pickle": ["obj", "path"],
        "load_pickle": ["path"],
    }
    for name, wanted in signatures.items():
        thing: Any = state_persistence
        for step in name.split("."):
            thing = getattr(thing, step)
        parameters = list(inspect.signature(thing).parameters.values())
        assert [p.name for p in parameters[: len(wanted)]] == wanted, name
        assert all(p.default is not p.empty for p in parameters[len(wanted) :]), f"{name} asks for more"
    assert inspect.signature(StateStore).parameters["state_name_format"].default == "%Y-%m-%d_%H-%M-%S,%f.state"
    assert inspect.signature(LatestStatesKeeper).parameters["state_name_pattern"].default == "*.state"


def test_a_state_is_saved_and_loaded_by_its_path(tmp_path: Path) -> None:
    store, parts = three(tmp_path)
    path = store.save_state()
    assert path.parent == tmp_path
    assert path.suffix == ".state"
    assert sorted(p.name for p in path.glob("*.pkl")) == ["a.pkl", "b.pkl", "c.pkl"]
    for part in parts:
        part.value = 2
    store.load_state(str(path))
    assert [part.value for part in parts] == [1, 1, 1]
    with pytest.raises(KeyError):
        store.register("a", Part())
    with pytest.raises(FileNotFoundError):
        store.load_state(tmp_path / "none")


def test_a_state_is_not_seen_before_it_is_complete(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Looks(Part):
        def save_state(self, path: Path) -> None:
            super().save_state(path)
            seen.append([p.name for p in tmp_path.glob("*.state")])

    store, _ = three(tmp_path)
    store.register("looks", Looks())
    store.save_state()
    assert seen == [[]]


def test_a_failed_save_leaves_nothing_that_looks_like_a_state(tmp_path: Path) -> None:
    store, _ = three(tmp_path)
    good = store.save_state()
    store.register("d", Failing())
    with pytest.raises(RuntimeError, match=r"'d' could not be saved.*No space left"):
        store.save_state()
    assert list(tmp_path.glob("*.state")) == [good]


def test_a_damaged_part_leaves_all_live_objects_as_they_are(tmp_path: Path) -> None:
    store, parts = three(tmp_path)
    path = store.save_state()
    for part in parts:
        part.value = 2
    data = bytearray((path / "b.pkl").read_bytes())
    data[len(data) // 2] ^= 255
    (path / "b.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"b\.pkl"):
        store.load_state(path)
    assert [part.value for part in parts] == [2, 2, 2]


def test_a_part_that_was_exchanged_is_noticed(tmp_path: Path) -> None:
    store, _ = three(tmp_path)
    path = store.save_state()
    (path / "a.pkl").unlink()
    save_pickle("another", path / "a.pkl")
    with pytest.raises(ValueError, match=r"a\.pkl"):
        store.load_state(path)


def test_a_torn_folder_never_costs_a_good_state(tmp_path: Path) -> None:
    store, _ = three(tmp_path)
    good = store.save_state()
    time.sleep(0.01)
    torn = tmp_path / "9999.state"
    torn.mkdir()
    (torn / "a.pkl").write_bytes(b"half")
    keeper = LatestStatesKeeper(tmp_path, 1)
    assert keeper.cleanup() == [torn]
    assert good.exists()


def test_a_note_in_an_old_state_does_not_make_it_the_newest(tmp_path: Path) -> None:
    store, _ = three(tmp_path)
    paths = [store.save_state() for _ in range(3)]
    time.sleep(0.01)
    (paths[0] / "note.txt").write_text("the best one so far")
    assert LatestStatesKeeper(tmp_path, 2).cleanup() == [paths[0]]


def test_load_latest_takes_the_newest_however_folders_are_listed(tmp_path: Path) -> None:
    store, parts = three(tmp_path)
    for step in range(20):
        parts[0].value = step
        store.save_state()
    store.load_latest()
    assert parts[0].value == 19


def test_what_cannot_be_removed_is_removed_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, _ = three(tmp_path)
    paths = [store.save_state() for _ in range(4)]
    keeper = LatestStatesKeeper(tmp_path, 1)
    reading = store._place.read(store.snapshots()[0])  # as if another process read it just now
    with caplog.at_level(logging.WARNING):
        assert keeper.cleanup() == paths[1:3]
    reading.close()
    assert keeper.cleanup() == paths[:1]
    assert keeper.cleanup() == []


def test_keepers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    store, _ = three(tmp_path)
    paths = [store.save_state() for _ in range(30)]
    keepers = [LatestStatesKeeper(tmp_path, 2) for _ in range(4)]
    removed: list[list[Path]] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def clean(keeper: LatestStatesKeeper) -> None:
        try:
            barrier.wait()
            removed.append(keeper.cleanup())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=clean, args=(keeper,)) for keeper in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    keepers[0].cleanup()
    assert sorted(tmp_path.glob("*.state")) == paths[-2:]


def test_a_path_that_is_appended_is_not_counted_twice(tmp_path: Path) -> None:
    store, _ = three(tmp_path)
    path = store.save_state()
    keeper = LatestStatesKeeper(tmp_path, 1)
    keeper.append(path)
    keeper.append(path)
    assert keeper.cleanup() == []
    assert path.exists()


def test_states_of_other_processes_are_counted(tmp_path: Path) -> None:
    keeper = LatestStatesKeeper(tmp_path, 1)
    paths = [three(tmp_path)[0].save_state() for _ in range(3)]
    assert keeper.cleanup() == paths[:2]


def test_files_and_links_that_match_the_pattern_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file.state").write_text("")
    (tmp_path / "dangling.state").symlink_to("nowhere")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "link.state").symlink_to(outside)
    store, _ = three(tmp_path)
    paths = [store.save_state() for _ in range(2)]
    assert LatestStatesKeeper(tmp_path, 1).cleanup() == paths[:1]
    assert outside.exists()
    assert len(list(tmp_path.iterdir())) == 6  # with the folder of our own


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b"])
def test_names_do_not_lead_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        StateStore(tmp_path).register(name, Part())


def test_a_format_of_one_second_makes_names_of_its_own(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "%Y-%m-%d_%H-%M-%S.state")
    store.register("a", Part(1))
    assert len({store.save_state() for _ in range(5)}) == 5
    assert len(list(tmp_path.glob("*.state"))) == 5


def test_a_clock_that_is_set_back_silences_no_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    condition = PeriodicSaveCondition(0.01)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    time.sleep(0.02)
    assert condition()
    assert not condition()


def test_a_failing_pickle_leaves_the_file_before(tmp_path: Path) -> None:
    save_pickle([1, 2], tmp_path / "x.pkl")
    with pytest.raises(pickle.PickleError):
        save_pickle([1, threading.Lock()], tmp_path / "x.pkl")
    assert load_pickle(tmp_path / "x.pkl") == [1, 2]
    assert os.listdir(tmp_path) == ["x.pkl"]


@pytest.mark.parametrize("content", [b"", b"\x80\x05", b"x", b"\x80\x05]q"])
def test_a_file_that_holds_no_pickle_is_a_pickle_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(pickle.PickleError):
        load_pickle(tmp_path / "x.pkl")
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / "none.pkl")


def test_the_last_whole_state_stays_whatever_is_selected(tmp_path: Path) -> None:
    class All(StatesKeeper):
        def select_removal_states(self) -> list[Path]:
            return sorted(tmp_path.glob("*.state"))

    store, _ = three(tmp_path)
    paths = [store.save_state() for _ in range(3)]
    assert All().cleanup() == paths[:2]
    assert LatestStatesKeeper(tmp_path, 0).cleanup() == []
    with pytest.raises(ValueError, match="non-negative"):
        LatestStatesKeeper(tmp_path, -1)


def test_folders_without_a_manifest_are_removed_in_the_order_of_their_times(tmp_path: Path) -> None:
    """As pamiq-core itself does with the states that it wrote."""
    for n in range(4):
        (tmp_path / f"{n}.state").mkdir()
        os.utime(tmp_path / f"{n}.state", (n, n))
    keeper = LatestStatesKeeper(tmp_path, 2)
    assert keeper.cleanup() == [tmp_path / "0.state", tmp_path / "1.state"]
    (tmp_path / "new").mkdir()
    keeper.append(tmp_path / "new")
    assert keeper.cleanup() == [tmp_path / "2.state"]


def test_a_killed_clean_up_leaves_no_half_of_a_state(tmp_path: Path) -> None:
    store, _ = three(tmp_path)
    for _ in range(30):
        store.save_state()
    program = "import sys\nfrom perdure.compat.pamiq_core import LatestStatesKeeper\nprint('go', flush=True)\n"
    program += "LatestStatesKeeper(sys.argv[1], 1).cleanup()"
    rng = random.Random(1)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.random() * 0.02)
        child.kill()
        child.communicate()
        for path in tmp_path.glob("*.state"):
            assert store.verify(path) == []
    LatestStatesKeeper(tmp_path, 1).cleanup()
    store.save_state()
    assert os.listdir(tmp_path / ".perdure-snapshots") == ["lock"]
    shutil.rmtree(tmp_path)


def test_a_state_that_pamiq_core_wrote_can_be_adopted(tmp_path: Path) -> None:
    folder = tmp_path / "2025-01-01_00-00-00,000000.state"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(name))
    (folder / "c").mkdir()
    (folder / "c" / "inner.bin").write_bytes(b"x")
    store, parts = three(tmp_path)
    with pytest.raises(FileNotFoundError):
        store.load_state(folder)
    store.register("d", Part())
    with pytest.raises(ValueError, match=r"'d'"):
        store.adopt(folder)
    store.unregister("d")
    assert store.adopt(folder, {"step": 3}) == folder
    snapshot = store.load_latest()
    assert snapshot is not None
    assert (snapshot.metadata, sorted(snapshot.parts)) == ({"step": 3}, ["a.pkl", "b.pkl", "c.pkl", "c/inner.bin"])
    assert [part.value for part in parts] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="already"):
        store.adopt(folder)
    with pytest.raises(FileNotFoundError):
        store.adopt(tmp_path / "none")
    with pytest.raises(ValueError, match="only folders"):
        StateStore("memory:adopting").adopt("x")
