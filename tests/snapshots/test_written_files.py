"""Components that write files by themselves: links, empty folders, modes, and what is written later; and finding snapshots."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import PerdureError, UsageError, UsageTypeError
from perdure.snapshots import KeepLatest, LatestStatesKeeper, PersistentStateMixin, StateStore

SIZE = 20 << 20  # more than one piece


class Files(PersistentStateMixin):
    """Writes what it is told to."""

    def __init__(self, write: Callable[[Path], object] = lambda path: path.write_bytes(b"x" * SIZE)) -> None:
        self.write = write
        self.read: Callable[[Path], object] = lambda path: path.read_bytes()
        self.got: Any = None

    def save_state(self, path: Path) -> None:
        self.write(path)

    def load_state(self, path: Path) -> None:
        self.got = self.read(path)


@pytest.fixture(params=["folder", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file:{tmp_path}/states" if request.param == "folder" else f"sqlite:///{tmp_path}/states.db"


def left(store: StateStore) -> list[str]:
    """What there is besides snapshots."""
    own = Path(store.states_dir, ".perdure-snapshots")
    return [name for name in os.listdir(own) if name != "lock"] if own.is_dir() else []


@pytest.mark.parametrize("way", ["save_async", "save_state"])
def test_what_is_written_after_the_call_is_in_no_snapshot(url: str, way: str) -> None:
    """By a file that the component left open: the snapshot is as it was then, or there is none."""
    store, files, opened = StateStore(url), Files(), []

    def write(path: Path) -> None:
        opened.append(open(path, "wb", buffering=0))  # noqa: SIM115 - left open on purpose
        opened[-1].write(b"A" * SIZE)

    files.write = write
    store.register("f", files)
    for round_ in range(5):
        saving = getattr(store, way)()
        opened[-1].seek((round_ % 2) * (SIZE - 3))
        opened[-1].write(b"ZZZ")
        opened[-1].close()
        if way == "save_async":
            try:
                saving = saving.wait()
            except PerdureError as error:
                assert "'f' was written to after its component had saved it" in str(error)
                continue
            assert store.verify(saving) == []
            store.load_state(saving)
            assert files.got == b"A" * SIZE


def test_a_second_name_for_a_file_is_no_way_into_a_snapshot(url: str, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.write_bytes(b"A" * SIZE)
    live.chmod(0o640)
    store, files = StateStore(url), Files(lambda path: os.link(live, path))
    store.register("f", files)
    path = store.save_state()
    with open(live, "r+b") as file:
        file.write(b"ZZZ")
    assert store.verify(path) == []
    store.load_state(path)
    assert files.got == b"A" * SIZE
    assert stat.S_IMODE(live.stat().st_mode) == 0o640
    assert live.stat().st_nlink == 1


def test_files_of_a_component_cannot_be_opened_for_writing_by_mistake(tmp_path: Path) -> None:
    """As one that maps its file into memory does, which changed all snapshots that share it."""
    store = StateStore(tmp_path)
    store.register("f", Files(lambda path: path.write_bytes(b"same")))
    store.register_value("v", 1)
    first, second = store.save_state(), store.save_state()
    for path in (first, second):
        assert stat.S_IMODE((path / "f").stat().st_mode) & 0o222 == 0
    assert os.path.samefile(first / "f", second / "f")
    store.remove(first.name)
    assert store.verify(second.name) == []


def test_a_read_only_folder_of_a_component_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "file").write_text("x")
        path.chmod(0o555)

    rmtree = shutil.rmtree

    def as_somebody(path: str) -> None:  # root may remove what is in any folder
        for folder, _, files in os.walk(path):
            if files and not os.stat(folder).st_mode & 0o200:
                raise PermissionError(13, "Permission denied", folder)
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", as_somebody)
    store = StateStore(tmp_path, keep=KeepLatest(1))
    store.register("f", Files(make))
    for _ in range(3):
        store.save_state()
    assert len(store.snapshots()) == 1
    assert left(store) == []
    assert sorted(os.listdir(tmp_path)) == [".perdure-snapshots", store.snapshots()[0].name]


def make_folders(path: Path) -> None:
    """An empty one, one with an empty one in it, and files beside."""
    (path / "empty").mkdir(parents=True)
    (path / "full" / "inner").mkdir(parents=True)
    (path / "full" / "file").write_text("x")


def tree(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) + "/" * each.is_dir() for each in path.rglob("*"))


TREE = ["empty/", "full/", "full/file", "full/inner/"]


@pytest.mark.parametrize("way", ["save_async", "save_state"])
def test_empty_folders_are_there_again(url: str, way: str) -> None:
    store, files, bare = StateStore(url), Files(make_folders), Files(lambda path: path.mkdir())
    files.read = bare.read = tree
    store.register("f", files)
    store.register("bare", bare)
    for _ in range(2):  # the second time, all is there already
        getattr(store, way)()
        store.wait()
        fresh = StateStore(url)
        fresh.register("f", files)
        fresh.register("bare", bare)
        files.got = bare.got = None
        assert fresh.load_latest() is not None
        assert files.got == TREE
        assert bare.got == []
    assert left(store) == []
    snapshot = store.snapshots()[-1]
    assert [part.name for part in snapshot.parts.values() if part.is_folder] == ["f/empty/", "f/full/inner/", "bare/"]
    assert store.verify(snapshot.name) == []


def test_a_missing_empty_folder_is_noticed(tmp_path: Path) -> None:
    store, files = StateStore(tmp_path), Files(make_folders)
    store.register("f", files)
    path = store.save_state()
    (path / "f" / "empty").rmdir()
    (error,) = store.verify(path)
    assert "f/empty" in str(error)
    assert "missing" in str(error)
    (path / "f" / "empty").symlink_to(path / "f" / "full")
    assert len(StateStore(tmp_path).verify(path)) == 1


def test_empty_folders_are_restored_by_the_command_line(url: str, tmp_path: Path) -> None:
    store = StateStore(url)
    store.register("f", Files(make_folders))
    store.save_state()
    target = tmp_path / "restored"
    command = [sys.executable, "-m", "perdure", "restore", url, str(target), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert tree(target / "f") == TREE
    assert json.loads(done.stdout)["parts"] == 3
    again = subprocess.run(
        [sys.executable, "-m", "perdure", "diff", f"{target}", f"{target}", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode in (0, 2), again.stderr
    files = Files()
    files.read = tree
    loaded = StateStore(tmp_path / "elsewhere")
    loaded.register("f", files)
    loaded.load_state(target)
    assert files.got == TREE


def test_ranks_bring_their_empty_folders(url: str) -> None:
    import threading

    stores = [StateStore(url, rank=rank, world_size=2, rank_timeout=60) for rank in range(2)]
    for store in stores:
        store.register("f", Files(make_folders))
    threads = [threading.Thread(target=store.save_state, args=({"step": 1},)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (snapshot,) = stores[0].snapshots()
    assert len([part for part in snapshot.parts.values() if part.is_folder]) == 4
    assert stores[0].verify(snapshot.name) == []


def test_a_snapshot_is_found_by_a_link_by_itself_and_by_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StateStore(tmp_path / "states")
    value = store.register_value("v", 1)
    path = store.save_state()
    (tmp_path / "latest").symlink_to(path)
    (tmp_path / "states" / "newest").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    os.rename(store.save_state(), "copy")
    for which in (tmp_path / "latest", "latest", "./latest", "newest", "copy", "./copy", store.snapshots()[0], path.name):
        value.value = 2
        store.load_state(which)
        assert value.value == 1, which
    assert store.verify("latest") == []


def test_a_snapshot_that_we_may_not_look_into_is_no_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StateStore(tmp_path)
    store.register_value("v", 1)
    path = store.save_state()
    (tmp_path / "postgres").mkdir()
    lstat = os.lstat

    def refuse(name: Any, **options: Any) -> os.stat_result:  # as root, who may look anywhere, there is no other way
        if str(name) in (f"{path}/manifest.json", f"{tmp_path}/postgres/manifest.json"):
            raise PermissionError(13, "Permission denied", name)
        return lstat(name, **options)

    monkeypatch.setattr(os, "lstat", refuse)
    fresh = StateStore(tmp_path)
    fresh.register_value("v", 2)
    with pytest.raises(OSError, match="cannot look into it"):
        fresh.load_latest()
    assert fresh.snapshots() == []


@pytest.mark.parametrize("spelling", ["relative", "link", "text"])
def test_a_keeper_counts_a_snapshot_once_however_its_path_is_spelled(
    tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = StateStore(tmp_path / "states")
    store.register_value("v", 1)
    (tmp_path / "link").symlink_to("states")
    paths = [store.save_state() for _ in range(4)]
    keeper = LatestStatesKeeper("link" if spelling == "link" else "states", 2)
    paths.append(store.save_state())
    told: Any = {"relative": Path("states") / paths[-1].name, "link": paths[-1], "text": str(paths[-1])}[spelling]
    keeper.append(told)
    keeper.cleanup()
    assert [snapshot.path for snapshot in store.snapshots()] == paths[-2:]


def test_a_keeper_that_is_asked_at_each_step_reads_no_part_again_and_says_a_thing_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(tmp_path)
    store.register_value("v", 1)
    store.save_state()
    keeper = LatestStatesKeeper(tmp_path, 0)
    for _ in range(5):
        assert keeper.cleanup() == []
    assert caplog.text.count("no other snapshot is whole") == 1


def test_a_folder_of_another_place_counts_from_when_it_was_appended(tmp_path: Path) -> None:
    store, other = StateStore(tmp_path / "states"), StateStore(tmp_path / "other")
    for each in (store, other):
        each.register_value("v", 1)
    keeper = LatestStatesKeeper(tmp_path / "states", 2)
    first = store.save_state()
    elsewhere = other.save_state()
    other.save_state()
    keeper.append(elsewhere)
    second = store.save_state()
    assert keeper.cleanup() == [first]
    assert elsewhere.exists()
    assert second.exists()


@pytest.mark.parametrize("pattern", ["*/*.state", "/tmp/*.state"])
def test_a_pattern_for_paths_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="names in a folder"):
        LatestStatesKeeper(tmp_path, 1, pattern)


def test_places_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for odd in (None, 3, b"states"):
        with pytest.raises(UsageTypeError, match="a path, a URL or a backend"):
            StateStore(odd)  # type: ignore[arg-type]
    with pytest.raises(UsageTypeError, match="strftime"):
        StateStore(tmp_path, 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="for folders"):
        LatestStatesKeeper("sqlite:///x.db", 1)
    with pytest.raises(ValueError, match="whole"):
        LatestStatesKeeper(tmp_path, 1.5)  # type: ignore[arg-type]
    LatestStatesKeeper("~/states", 1)
    assert os.listdir(tmp_path) == ["home"]
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OSError, match="leads nowhere"):
        StateStore(tmp_path / "dangling")
