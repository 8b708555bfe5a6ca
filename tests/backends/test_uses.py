"""When values were last used, as each place keeps it; what holds for all is in the contract (`perdure.testing.listing`)."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import BackendError, NotFoundError
from perdure.protocol import ETag
from perdure.testing.interrupts import _interrupted
from perdure.testing.lifetime import in_child
from perdure_backends import _file_uses
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend
from perdure_backends.sqlite import SQLiteBackend

LATER = 3e9


def uses(backend: Any) -> dict[str, float]:
    return {use.key: use.used for use in backend.uses()}


def test_which_places_remember() -> None:
    assert MemoryBackend.remembers_use
    assert SQLiteBackend.remembers_use
    assert FileBackend.remembers_use is (os.utime in os.supports_fd)
    assert not NullBackend.remembers_use


# --------------------------------------------------------------------------------------------------------------- memory


def test_in_memory_nothing_is_left_of_what_was_deleted() -> None:
    backend = MemoryBackend()
    for _ in range(3):
        etags = backend.put_many(dict.fromkeys("abcd", b"1"))
        backend.mark_used(dict.fromkeys("abcdx", LATER))
        assert len(backend._space.used) == 4
        backend.delete("a")
        backend.delete("b", if_match=etags["b"])
        backend.delete_many("cdx")
        assert not backend._space.used
        backend.put("a", b"1")
        assert uses(backend)["a"] < LATER


# --------------------------------------------------------------------------------------------------------------- sqlite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


def tables(path: Path) -> set[str]:
    db = sqlite3.connect(path)
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    db.close()
    return found


def rows(path: Path) -> set[str]:
    db = sqlite3.connect(path)
    found = {key for (key,) in db.execute("SELECT key FROM uses")}
    db.close()
    return found


def test_a_database_gets_its_table_by_the_first_mark(path: Path) -> None:
    with SQLiteBackend(path) as backend:
        backend.mark_used({"a": LATER})
        assert list(backend.uses()) == []
        assert not path.exists(), "marks alone make nothing"
        backend.put("a", b"1")
        list(backend.uses())
        backend.mark_used({})
        assert tables(path) == {"blobs", "settings"}
        backend.mark_used({"a": LATER, "absent": LATER})
        assert tables(path) == {"blobs", "settings", "uses"}
        assert rows(path) == {"a"}


def test_users_of_a_database_that_know_nothing_of_uses_go_on_and_their_changes_count(path: Path) -> None:
    with SQLiteBackend(path) as backend, SQLiteBackend(path) as other:
        backend.put_many(dict.fromkeys("abc", b"1"))
        other.put("d", b"1")
        listing = other.uses()  # begun before the table is there
        assert {use.key for use in other.uses()} == set("abcd")
        backend.mark_used(dict.fromkeys("abcd", 1e9))
        assert rows(path) == set(), "all were written later"
        backend.mark_used(dict.fromkeys("abcd", LATER))
        assert {use.key for use in listing} == set("abcd")
        db = sqlite3.connect(path)  # as an older version would
        with db:
            db.execute("DELETE FROM blobs WHERE key = 'a'")
            db.execute("UPDATE blobs SET modified = ? WHERE key = 'b'", (LATER + 9,))
            db.execute("INSERT INTO blobs VALUES ('e', 'x', 1.0, x'00')")
        db.close()
        assert uses(other) == {"b": LATER + 9, "c": LATER, "d": LATER, "e": 1.0}
        other.put("c", b"2")
        other.delete("d")
        assert uses(backend)["c"] == LATER, "a clock that is ahead stays ahead until the value goes"
        assert backend.head("c").modified < LATER


def test_rows_of_deleted_values_do_not_pile_up(path: Path) -> None:
    with SQLiteBackend(path, sync="normal") as backend:
        for turn in range(30):
            keys = [f"{turn}/{number}" for number in range(50)]
            backend.put_many(dict.fromkeys(keys, b"1"))
            backend.mark_used(dict.fromkeys(keys, LATER))
            assert len(rows(path)) <= 4 * 50
            backend.delete_many(keys)
        backend.put("last", b"1")
        for _ in range(30):
            backend.mark_used({"last": LATER})
        assert rows(path) == {"last"}
    for turn in range(60):  # by many processes, each of which marks once
        with SQLiteBackend(path, sync="normal") as backend:
            backend.put(f"{turn}", b"1")
            backend.mark_used({f"{turn}": LATER})
            backend.delete(f"{turn}")
    assert len(rows(path)) < 60


def traced(backend: SQLiteBackend, call: Callable[[], object]) -> list[str]:
    """What SQLite was told by this thread."""
    told: list[str] = []
    backend._calls._local.link.db.set_trace_callback(told.append)
    call()
    backend._calls._local.link.db.set_trace_callback(None)
    return told


def durability(backend: SQLiteBackend) -> int:
    """How the connection that the next write of this thread takes would write: 1 without waiting for the disk, 2 with."""
    backend.put("written", b"1")
    level: int = backend._calls._local.link.write("PRAGMA synchronous").fetchone()[0]
    return level


def test_a_mark_waits_for_no_disk_and_the_next_write_does(path: Path) -> None:
    with SQLiteBackend(path) as backend:
        backend.put("a", b"1")
        told = traced(backend, partial(backend.mark_used, {"a": LATER}))
        changes = [number for number, sql in enumerate(told) if sql.startswith(("CREATE", "WITH", "INSERT"))]
        assert changes
        for number in changes:
            assert told[number - 1] == "PRAGMA synchronous = NORMAL"
            assert told[number + 1] == "PRAGMA synchronous = full"
        assert durability(backend) == 2
    with SQLiteBackend(path, sync="normal") as backend:
        backend.put("a", b"1")
        assert not any("synchronous" in sql for sql in traced(backend, partial(backend.mark_used, {"a": LATER})))
        assert durability(backend) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_mark_leaves_no_connection_that_does_not_wait(path: Path) -> None:
    with SQLiteBackend(path) as backend:
        backend.put("a", b"1")
        mark = partial(backend.mark_used, {"a": LATER})
        mark()
        moments = _interrupted(mark, 0)
        assert moments > 10
        for strike in range(1, moments + 1):
            _interrupted(partial(backend.mark_used, {"a": LATER + strike}), strike)
            assert durability(backend) == 2, f"after an interrupt at moment {strike} of {moments}"
            assert uses(backend)["a"] >= LATER


def test_a_mark_that_fails_leaves_no_connection_that_does_not_wait(path: Path) -> None:
    with SQLiteBackend(path, timeout=0) as backend:
        backend.put("a", b"1")
        backend.mark_used({"a": LATER})
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendError, match="locked"):
            backend.mark_used({"a": LATER + 1})
        other.execute("COMMIT")
        other.close()
        assert durability(backend) == 2
        assert uses(backend)["a"] == LATER


def test_settings_that_come_during_a_mark_are_not_forgotten(path: Path) -> None:
    with SQLiteBackend(path) as backend:
        backend.put("a", b"1")
        link = backend._calls._local.link

        class Recording:
            """The connection, which a `record` of another thread strikes."""

            def __init__(self, db: Any) -> None:
                self.db = db

            def execute(self, sql: str, values: Any = ()) -> Any:
                if sql.startswith("CREATE"):
                    backend.record({"codec": "json"})
                return self.db.execute(sql, values)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.db, name)

        link.db = Recording(link.db)
        backend.mark_used({"a": LATER})
        backend.put("a", b"2")
        with SQLiteBackend(path) as again:
            assert again.recorded() == {"codec": "json"}


def test_a_database_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    where = tmp_path / "disk"
    where.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(where)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("not allowed to mount here")
    try:
        with SQLiteBackend(where / "app.db") as backend:
            backend.put_many({f"{number}": b"1" for number in range(200)})
            before = {key: blob.data for key, blob in backend.get_many(backend.keys()).items()}
            with pytest.raises(OSError) as caught, open(where / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(BackendError, match="full"):
                for turn in range(100):
                    backend.mark_used({f"{number}": LATER + turn for number in range(200)})
            assert {key: blob.data for key, blob in backend.get_many(backend.keys()).items()} == before
            (where / "filler").unlink()
            backend.mark_used({"1": LATER + 1000})
            assert uses(backend)["1"] == LATER + 1000
            assert durability(backend) == 2
        subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
        with SQLiteBackend(where / "app.db") as backend:
            with pytest.raises(BackendError, match="read-only"):
                backend.mark_used({"1": LATER + 2000})
            assert uses(backend)["1"] == LATER + 1000
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_threads_and_a_child_mark_while_others_write(path: Path) -> None:
    with SQLiteBackend(path, sync="normal") as backend:
        keys = [f"{number}" for number in range(300)]
        backend.put_many(dict.fromkeys(keys, b"1"))
        problems: list[BaseException] = []

        def work(member: int) -> None:
            try:
                for turn in range(10):
                    backend.mark_used(dict.fromkeys(keys[member::2], LATER + turn))
                    backend.put(f"own/{member}", b"%d" % turn)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(member,)) for member in range(4)]
        for thread in threads:
            thread.start()
        in_child(partial(backend.mark_used, {"0": LATER + 100}))
        for thread in threads:
            thread.join()
        assert not problems
        found = uses(backend)
        assert found["0"] == LATER + 100
        assert {found[key] for key in keys[1:]} == {LATER + 9}


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(params=["framed", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileBackend]:
    with FileBackend(tmp_path / "data", layout=request.param, sync="normal") as backend:
        yield backend


def file_of(folder: FileBackend, key: str) -> str:
    return folder._spots[key].path


def test_uses_of_a_folder_open_no_file_and_are_the_later_of_two_times(
    folder: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put_many({f"{number % 3}/{number}": bytes(number) for number in range(50)})
    modified = {meta.key: meta.modified for meta in folder.scan()}
    os.utime(file_of(folder, "0/0"), ns=(int(LATER * 1e9), os.stat(file_of(folder, "0/0")).st_mtime_ns))
    os.utime(file_of(folder, "1/1"), ns=(int(1e18), os.stat(file_of(folder, "1/1")).st_mtime_ns))

    def fail(*_: object, **__: object) -> int:
        raise AssertionError("opened")

    monkeypatch.setattr(os, "open", fail)
    found = {use.key: use for use in folder.uses()}
    assert found.keys() == modified.keys()
    assert all(use.size == int(use.key.split("/")[1]) for use in found.values())
    assert found["0/0"].used == LATER
    assert found["1/1"].used == modified["1/1"]
    assert {use.key for use in folder.uses("2/")} == {key for key in modified if key.startswith("2/")}


def test_a_mark_changes_nothing_but_the_time_of_access(folder: FileBackend) -> None:
    etag = folder.put("a/b", b"value")
    before = os.stat(file_of(folder, "a/b"))
    folder.mark_used({"a/b": LATER + 0.123456})
    after = os.stat(file_of(folder, "a/b"))
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (before.st_mtime_ns, before.st_ino, before.st_size)
    assert abs(after.st_atime_ns / 1e9 - LATER - 0.123456) < 1e-5
    assert folder.get("a/b")[:2] == (b"value", etag)
    folder.put("a/b", b"value", if_match=etag)
    assert uses(folder)["a/b"] < LATER


def test_a_value_that_is_replaced_during_a_mark_keeps_its_own_times(
    folder: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps of a mark."""
    real = {"open": os.open, "fstat": os.fstat, "utime": os.utime}
    for step in real:
        folder.put("a", b"old")
        os.utime(file_of(folder, "a"), (1e9, 1e9))
        written: list[tuple[ETag, float]] = []

        def strike(*args: Any, step: str = step, written: list[tuple[ETag, float]] = written, **options: Any) -> Any:
            monkeypatch.undo()
            written.append((folder.put("a", b"new"), folder.head("a").modified))
            return real[step](*args, **options)

        monkeypatch.setattr(_file_uses.os, step, strike)
        folder.mark_used({"a": LATER})
        assert written, step
        meta = folder.head("a")
        assert (meta.etag, meta.modified) == written[0], step
        assert dict(folder.times())["a"] == meta.modified, step


def test_marks_and_writes_of_threads_leave_every_version_its_time(folder: FileBackend) -> None:
    ended = threading.Event()
    problems: list[BaseException] = []
    folder.put("a", b"0")

    def mark() -> None:
        try:
            while not ended.is_set():
                folder.mark_used({"a": time.time() + 100, "b": LATER})
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=mark)
    thread.start()
    try:
        last = 0.0
        for number in range(300):
            etag = folder.put("a", b"%d" % number)
            meta = folder.head("a")
            assert meta.etag == etag
            assert meta.modified >= last
            last = meta.modified
            if number % 50 == 0:
                folder.delete("a")
    finally:
        ended.set()
        thread.join()
    assert not problems


def test_links_and_pipes_in_place_of_a_value_are_not_marked(folder: FileBackend, tmp_path: Path) -> None:
    for key in ("a", "link", "pipe", "in/a", "folder"):
        folder.put(key, b"1")
    target = tmp_path / "target"
    target.write_bytes(b"somebody else's")
    os.utime(target, (1e9, 1e9))
    os.unlink(file_of(folder, "link"))
    os.symlink(target, file_of(folder, "link"))
    os.unlink(file_of(folder, "pipe"))
    os.mkfifo(file_of(folder, "pipe"))
    os.unlink(file_of(folder, "folder"))
    os.mkdir(file_of(folder, "folder"))
    inside = os.path.dirname(file_of(folder, "in/a"))
    os.rename(inside, tmp_path / "moved")
    os.symlink(tmp_path / "moved", inside)
    for key in ("link", "in/a"):
        with pytest.raises(BackendError):
            folder.mark_used({key: LATER})
    folder.mark_used({"pipe": LATER, "folder": LATER})
    with pytest.raises(BackendError, match="link"):
        folder.mark_used({"link": LATER, "a": LATER})
    assert uses(folder) == {"a": LATER}
    assert os.stat(target).st_atime == 1e9
    assert all(file.stat().st_atime < LATER for file in (tmp_path / "moved").iterdir())


def test_what_cannot_be_marked_is_said_when_all_else_is(folder: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put_many(dict.fromkeys("abc", b"1"))
    real = os.utime
    calls: list[int] = []

    def refuse(fd: int, **options: Any) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(fd, **options)

    monkeypatch.setattr(os, "utime", refuse)
    with pytest.raises(BackendError, match=r"key 'a' in .*cannot note when it was used") as caught:
        folder.mark_used(dict.fromkeys("abc", LATER))
    assert caught.value.errno == errno.EPERM
    found = uses(folder)
    assert found["a"] < LATER
    assert (found["b"], found["c"]) == (LATER, LATER)


def test_marks_of_absent_values_make_nothing(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "data")
    backend.mark_used({"a": LATER})
    assert list(backend.uses()) == []
    assert not (tmp_path / "data").exists()
    backend.put("a", b"1")
    backend.delete("a")
    backend.mark_used({"a": LATER})
    with pytest.raises(NotFoundError):
        backend.get("a")


def test_where_times_cannot_be_set_by_descriptor_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows."""
    monkeypatch.setattr("perdure_backends.file.KEEPS_TIMES", False)
    backend = FileBackend(tmp_path / "data")
    backend.put("a", b"1")
    backend.mark_used({"a": LATER})
    assert uses(backend)["a"] < LATER
