"""What is special to one SQLite file: whose it is, damage, a full or read-only disk, locks of other programs, settings."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import perdure
from perdure.errors import (
    BackendError,
    IntegrityError,
    InvalidKeyError,
    NotFoundError,
    PerdureError,
    PreconditionError,
    UnavailableError,
    UnknownOutcomeError,
    UsageError,
)
from perdure.protocol import ABSENT, ETag
from perdure.registry import open_backend
from perdure_backends import _sqlite_file
from perdure_backends.sqlite import SQLiteBackend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


def listing(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


def in_another_process(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# URLs, paths, settings.


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///x.db", "sqlite:x.db", f"sqlite:///{tmp_path}/x.db", f"sqlite:{tmp_path}/x.db"):
        backend = open_backend(url)
        assert isinstance(backend, SQLiteBackend)
        assert backend.path == str(tmp_path / "x.db")
        assert backend.place == f"sqlite:///{tmp_path}/x.db"
    for wrong in ("sqlite:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://x.db", "sqlite:x.db?sync=no"):
        with pytest.raises(UsageError):
            open_backend(wrong)
    with pytest.raises(UsageError):
        SQLiteBackend("x.db", timeout=-1)
    with pytest.raises(UsageError):
        SQLiteBackend("x\0.db")
    assert listing(tmp_path) == {}


def test_a_relative_path_survives_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SQLiteBackend("x.db") as backend:
        backend.put("a", b"1")
        monkeypatch.chdir("/")
        assert backend.get("a").data == b"1"
        backend.put("a", b"2")
    assert sorted(listing(tmp_path)) == ["x.db", "x.db-lock"]


def test_a_strange_file_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"a ?#%20&=\xff\xc3\xa4.db")
    with SQLiteBackend(tmp_path / name) as backend:
        backend.put("a", b"1")
        assert backend.get("a").data == b"1"
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}-lock"]


def test_nothing_is_created_before_the_first_write(path: Path) -> None:
    with SQLiteBackend(path) as backend:
        backend.record({"codec": "json"})
        assert backend.recorded() == {}
        assert not backend.contains("a")
        assert list(backend.scan()) == list(backend.keys("a/")) == []
        assert backend.get_many(["a", "b"]) == {}
        backend.delete("a")
        backend.delete_many(["a", "b"])
        backend.put_many({})
        for call in (lambda: backend.put("a", b"", if_match=ETag("0")), lambda: backend.delete("a", if_match=ETag("0"))):
            with pytest.raises(PreconditionError):
                call()
        assert os.listdir(path.parent) == []
        backend.put("a", b"1", if_match=ABSENT)
        assert backend.recorded() == {"codec": "json"}


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SQLiteBackend(tmp_path / "no" / "x.db")
    assert not backend.contains("a")
    with pytest.raises(BackendError, match=f"there is no folder {tmp_path}/no"):
        backend.put("a", b"1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=r"four slashes: sqlite:////usr/x\.db"):
        open_backend("sqlite:///usr/x.db").put("a", b"1")
    (tmp_path / "file").write_bytes(b"")
    under = SQLiteBackend(tmp_path / "file" / "x.db")
    assert not under.contains("a")
    with pytest.raises(BackendError, match="there is no folder"):
        under.put("a", b"1")


def test_the_umask_is_followed(path: Path) -> None:
    before = os.umask(0o002)
    try:
        with SQLiteBackend(path) as backend:
            backend.put("a", b"1")
            assert {oct(entry.stat().st_mode & 0o777) for entry in path.parent.iterdir()} == {"0o664"}
    finally:
        os.umask(before)


def test_settings_are_kept_and_compared(path: Path) -> None:
    first, second = SQLiteBackend(path), SQLiteBackend(path)
    first.record({"codec": "json"})
    second.record({"codec": "msgpack"})  # nothing is there yet to contradict it
    first.put("a", b"1")
    with pytest.raises(UsageError, match=r"codec 'json', not 'msgpack'"):
        second.put("a", b"2")
    with pytest.raises(UsageError):
        second.put_many({"a": b"2"})
    assert second.get("a").data == b"1"
    with pytest.raises(UsageError, match=r"codec 'json', not 'pkl'"):
        SQLiteBackend(path).record({"codec": "pkl"})
    first.record({"codec": "json", "more": "2"})
    first.put("a", b"3")
    assert SQLiteBackend(path).recorded() == {"codec": "json", "more": "2"}
    first.close()
    second.close()


def test_a_pickled_backend_is_a_handle_with_its_settings(path: Path) -> None:
    backend = SQLiteBackend(path, sync="normal", timeout=3)
    backend.record({"codec": "json"})
    again = pickle.loads(pickle.dumps(backend))
    again.put("a", b"1")
    assert (again.path, again._options) == (backend.path, {"sync": "normal", "timeout": 3})
    assert again.recorded() == {"codec": "json"}
    assert backend.get("a").data == b"1"
    backend.close()
    assert again.get("a").data == b"1"
    assert pickle.loads(pickle.dumps(backend)).get("a").data == b"1"
    again.close()


# Whose file it is.


def foreign_database(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE blobs (key TEXT PRIMARY KEY, etag, modified, data)")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("INSERT INTO blobs VALUES ('a', 'e', 1.0, x'00')")
    db.commit()
    db.close()


def newer_database(path: Path) -> None:
    with SQLiteBackend(path) as backend:
        backend.put("a", b"1")
    os.unlink(f"{path}-lock")
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")
    path.with_name("x.db-wal").write_bytes(b"something")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign_database, "belongs to another program"),
        (newer_database, "format 2.*pip install --upgrade"),
        (lambda path: path.write_bytes(b"x"), "belongs to another program"),
        (lambda path: path.write_bytes(b"some text of some length\n" * 400), "not an SQLite database"),
        (lambda path: path.write_bytes(bytes(8192)), "not an SQLite database"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (cut_to_nothing, "the file was cut"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(path: Path, make: Callable[[Path], object], message: str) -> None:
    make(path)
    before, names = listing(path.parent), sorted(os.listdir(path.parent))
    backend = SQLiteBackend(path)
    calls: list[Callable[[], object]] = [
        lambda: backend.get("a"),
        lambda: backend.contains("a"),
        lambda: list(backend.scan()),
        lambda: backend.put("a", b"1"),
        lambda: backend.put("a", b"1", if_match=ABSENT),
        lambda: backend.put_many({"a": b"1"}),
        lambda: backend.delete("a"),
        lambda: backend.record({"codec": "json"}),
    ]
    for call in calls:
        with pytest.raises(BackendError, match=message) as caught:
            call()
        assert caught.value.place == backend.place
    assert listing(path.parent) == before
    assert sorted(os.listdir(path.parent)) == names


TRY_TO_LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    db.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
"""


def test_looking_at_a_file_does_not_drop_the_locks_this_process_has_on_it(path: Path) -> None:
    foreign_database(path)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendError):
        SQLiteBackend(path).get("a")
    assert in_another_process(TRY_TO_LOCK, path) == "database is locked"
    db.close()


OPEN_AND_CLOSE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT count(*) FROM blobs").fetchone()[0])
"""


def test_a_second_backend_on_the_file_does_not_expose_the_first(path: Path) -> None:
    first = SQLiteBackend(path)
    first.put("a", b"1")
    with SQLiteBackend(path) as second:
        second.put("b", b"2")
    assert in_another_process(OPEN_AND_CLOSE, path) == "2"
    first.put("c", b"3")  # without its locks, the other process would have removed the log this goes into
    assert in_another_process(OPEN_AND_CLOSE, path) == "3"
    first.close()


def test_an_empty_file_is_new(path: Path) -> None:
    path.touch()
    with SQLiteBackend(path) as backend:
        assert not backend.contains("a")
        backend.put("a", b"1")
        assert backend.get("a").data == b"1"


def test_an_unfinished_creation_is_taken_up(path: Path) -> None:
    # As a creator leaves it that is killed while the first page is there, and the journal that takes it back as well.
    with SQLiteBackend(path) as backend:
        backend.put("a", b"1")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096])
    magic = bytes.fromhex("d9d505f920a163d7")
    journal = (
        magic
        + (0).to_bytes(4, "big")
        + b"\1\2\3\4"
        + (0).to_bytes(4, "big")
        + (512).to_bytes(4, "big")
        + (4096).to_bytes(4, "big")
    )
    path.with_name("x.db-journal").write_bytes(journal.ljust(512, b"\0"))
    with SQLiteBackend(path) as backend:
        assert not backend.contains("a")
        backend.put("b", b"2")
        assert list(backend.keys()) == ["b"]


def test_a_link_to_the_file_is_followed_but_not_one_for_the_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "x.db").symlink_to(tmp_path / "real" / "y.db")
    with SQLiteBackend(tmp_path / "x.db") as backend:
        backend.put("a", b"1")
        assert "y.db-lock" in os.listdir(tmp_path / "real")
    assert os.listdir(tmp_path) == ["real", "x.db"] or os.listdir(tmp_path) == ["x.db", "real"]

    (tmp_path / "z.db-lock").symlink_to(tmp_path / "planted")
    with pytest.raises(BackendError, match="is a link"):
        SQLiteBackend(tmp_path / "z.db").put("a", b"1")
    assert not (tmp_path / "planted").exists()
    assert not (tmp_path / "z.db").exists()


# Damage.


@pytest.fixture
def filled(path: Path) -> Path:
    with SQLiteBackend(path, sync="normal") as backend:
        backend.put_many({f"k/{number:03}": b"%d" % number * (number * 7) for number in range(300)})
    return path


def use_all(path: Path) -> tuple[set[type], int]:
    """Use every call, let only our errors pass, and tell which they were and how many values could still be read."""
    raised: set[type] = set()
    values: dict[str, bytes] = {}
    backend = SQLiteBackend(path, sync="normal", timeout=0.1)
    calls: list[Callable[[], object]] = [
        *(lambda key=f"k/{number:03}": values.update({key: backend.get(key).data}) for number in range(0, 300, 7)),
        lambda: list(backend.scan()),
        lambda: list(backend.keys("k/")),
        lambda: backend.get_many([f"k/{number:03}" for number in range(300)]),
        backend.recorded,
        lambda: backend.put("k/007", b"new" * 3000),
        lambda: backend.put("other", b"new", if_match=ABSENT),
        lambda: backend.put_many({"x/1": b"1", "k/100": b"2"}),
        lambda: backend.delete("k/050"),
    ]
    for call in calls:
        try:
            call()
        except PerdureError as error:
            raised.add(type(error))
            assert error.place == backend.place
            assert "Error" not in error.problem
    backend.close()
    return raised, len(values)


def test_flipped_bits_raise_our_errors_only(filled: Path) -> None:
    whole = filled.read_bytes()
    seen: set[type] = set()
    dice = random.Random(5)
    for _ in range(25 * int(os.environ.get("PERDURE_ROUNDS", "1"))):
        damaged = bytearray(whole)
        page = dice.randrange(len(whole) // 4096) * 4096
        for _ in range(6):
            damaged[max(100, page + dice.choice([dice.randrange(64), dice.randrange(4096)]))] ^= 1 << dice.randrange(8)
        for extra in ("-wal", "-shm"):
            filled.with_name(filled.name + extra).unlink(missing_ok=True)
        filled.write_bytes(damaged)
        seen |= use_all(filled)[0]
    assert IntegrityError in seen
    assert seen <= {IntegrityError, BackendError, NotFoundError, UnavailableError}


def test_a_truncated_file_raises_our_errors_only(filled: Path) -> None:
    whole = filled.read_bytes()
    for size in (1, 99, 512, 4095, 4096, 8192, len(whole) // 2, len(whole) - 4096):
        filled.write_bytes(whole[:size])
        raised, readable = use_all(filled)
        assert raised, f"cut to {size} bytes"
        assert raised <= {IntegrityError, BackendError}
        if size < 100:
            assert readable == 0


def test_damage_names_the_key_and_leaves_other_keys(filled: Path) -> None:
    whole = bytearray(filled.read_bytes())
    last = len(whole) - 4096
    whole[last : last + 100] = b"\xff" * 100
    filled.write_bytes(whole)
    backend = SQLiteBackend(filled)
    good, bad = 0, []
    for number in range(300):
        try:
            assert backend.get(f"k/{number:03}").data == b"%d" % number * (number * 7)
            good += 1
        except IntegrityError as error:
            bad.append(error)
            assert error.key == f"k/{number:03}"
            assert isinstance(error.__cause__, sqlite3.Error)
    assert bad
    assert good > 200
    backend.close()


def test_a_failed_sync_is_an_unknown_outcome() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    assert type(_sqlite_file.failure(error, place="p")) is UnknownOutcomeError
    assert type(_sqlite_file.failure(error, place="p", reading=True)) is BackendError


def test_what_sqlite_cannot_take_is_refused(path: Path) -> None:
    with SQLiteBackend(path, sync="normal") as backend:
        backend.put("a", b"1")
        with pytest.raises(BackendError, match="larger than SQLite allows") as caught:
            backend.put("a", bytes(1_000_000_001))
        assert caught.value.errno == errno.EFBIG
        with pytest.raises(InvalidKeyError):
            backend.get("\ud800")
        with pytest.raises(InvalidKeyError):
            backend.get(1 << 70)  # type: ignore[arg-type]
        backend.put("5", b"five")
        with pytest.raises(InvalidKeyError):
            backend.get(5)  # type: ignore[arg-type]  # SQL would say that 5 equals '5'
        assert backend.get("a").data == b"1"


# Other programs.


def test_a_lock_of_another_program_is_waited_for_and_reported(path: Path) -> None:
    backend = SQLiteBackend(path, sync="normal", timeout=0.05)
    etag = backend.put("a", b"1")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    for call in (
        lambda: backend.put("a", b"2"),
        lambda: backend.put("a", b"2", if_match=etag),
        lambda: backend.put_many({"a": b"2"}),
        lambda: backend.delete("a"),
        lambda: SQLiteBackend(path, timeout=0.05).put("a", b"2"),
    ):
        with pytest.raises(UnavailableError, match="another program keeps the database locked"):
            call()
        assert backend.get("a").data == b"1"
    db.execute("ROLLBACK")
    db.close()
    backend.put("a", b"2", if_match=etag)
    backend.close()


def test_an_open_scan_holds_nobody_back(path: Path) -> None:
    backend = SQLiteBackend(path, sync="normal")
    backend.put_many({f"k/{number:05}": b"x" * 100 for number in range(3000)})
    listed = backend.scan()
    first = next(listed).key
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "a reader is still in the log"
    db.close()
    backend.delete_many([f"k/{number:05}" for number in range(1000, 2000)])
    backend.put("k/01500.5", b"")
    rest = [meta.key for meta in listed]
    assert len({first, *rest}) == 1 + len(rest)
    expected = {f"k/{number:05}" for number in (*range(1000), *range(2000, 3000))}
    assert expected | {"k/01500.5"} == {first, *rest}
    backend.close()


def test_a_removed_file_is_noticed(path: Path) -> None:
    ours, theirs = SQLiteBackend(path, sync="normal"), SQLiteBackend(path, sync="normal")
    for backend in (ours, theirs):
        backend.put("a", b"1")
    path.unlink()  # the others, `-wal` and `-shm`, are left behind
    for backend in (ours, theirs):
        for link in backend._calls._links.all:
            link.look_again = 0.0  # it is looked for only a few times a second
        assert not backend.contains("a")
    ours.put("b", b"2")
    assert theirs.get("b").data == b"2"
    assert in_another_process(OPEN_AND_CLOSE, path) == "1"
    theirs.put("c", b"3")
    shutil.rmtree(path.parent)
    for link in [*ours._calls._links.all, *theirs._calls._links.all]:
        link.look_again = 0.0
    with pytest.raises(BackendError, match="there is no folder"):
        ours.put("b", b"4")
    assert not theirs.contains("c")
    ours.close()
    theirs.close()


# Disks.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


@pytest.mark.parametrize("sync", ["normal", "full"])
def test_a_full_disk(disk: Path, sync: str) -> None:
    (disk / "ballast").write_bytes(bytes(100_000))
    backend = SQLiteBackend(disk / "x.db", sync=sync)
    backend.put("a", b"old")
    acknowledged: dict[str, bytes] = {}
    with pytest.raises(BackendError, match="the disk is full") as caught:
        for number in range(10_000):
            backend.put(f"n/{number}", b"%d" % number * 200)
            acknowledged[f"n/{number}"] = b"%d" % number * 200
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.key == f"n/{len(acknowledged)}"
    for call in (lambda: backend.put("a", bytes(200_000)), lambda: backend.put_many({"a": b"new", "b": bytes(200_000)})):
        with pytest.raises(BackendError, match="the disk is full"):
            call()
    assert backend.get("a").data == b"old"
    assert {key: blob.data for key, blob in backend.get_many(backend.keys("n/")).items()} == acknowledged
    (disk / "ballast").unlink()
    backend.put("a", b"new")
    assert backend.get("a").data == b"new"
    backend.close()


def test_creation_on_a_full_disk(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(4096))
    backend = SQLiteBackend(disk / "x.db")
    with pytest.raises(BackendError, match="the disk is full"):
        backend.put("a", b"1")
    assert not backend.contains("a")
    (disk / "ballast").unlink()
    backend.put("a", b"1")
    assert backend.get("a").data == b"1"
    backend.close()


KILLED_WRITER = """
import os, sys
from perdure_backends.sqlite import SQLiteBackend
backend = SQLiteBackend(sys.argv[1])
backend.put("a", b"1")
backend.put_many({f"n/{i}": b"x" * 50 for i in range(100)})
os._exit(0)
"""


@pytest.mark.parametrize("left", ["closed", "killed", "killed, no index"])
def test_a_read_only_disk(disk: Path, left: str) -> None:
    path = disk / "x.db"
    if left == "closed":
        with SQLiteBackend(path) as backend:
            backend.put("a", b"1")
            backend.put_many({f"n/{i}": b"x" * 50 for i in range(100)})
    else:
        in_another_process(KILLED_WRITER, path)
        assert (disk / "x.db-wal").stat().st_size > 0
        if left == "killed, no index":
            (disk / "x.db-shm").unlink()
    remount(disk, "ro")
    before = listing(disk)
    with SQLiteBackend(path) as backend:
        etag = backend.get("a").etag
        assert backend.get("a").data == b"1"
        assert len(list(backend.scan())) == 101
        assert backend.recorded() == {}
        for call in (
            lambda: backend.put("a", b"2"),
            lambda: backend.put("a", b"2", if_match=etag),
            lambda: backend.put_many({"a": b"2"}),
            lambda: backend.delete("a"),
        ):
            with pytest.raises(BackendError, match=r"read-only.*make the file and its folder writable") as caught:
                call()
            assert caught.value.errno == errno.EROFS
        assert backend.get("a").data == b"1"
        new = SQLiteBackend(disk / "new.db")
        assert not new.contains("a")
        with pytest.raises(BackendError, match="read-only"):
            new.put("a", b"1")
    assert listing(disk) == before
    remount(disk, "rw")
    with SQLiteBackend(path) as backend:
        backend.put("a", b"2", if_match=etag)


# Reads as a user who may not write, and says what it sees each time it is asked.
READER = """
import os, sys
from perdure_backends.sqlite import SQLiteBackend
from perdure.errors import BackendError
os.setuid(65534)
backend = SQLiteBackend(sys.argv[1])
for line in sys.stdin:
    print(backend.get("a").data.decode(), flush=True)
try:
    backend.put("a", b"mine")
except BackendError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs a second user")
def test_a_reader_without_write_permission_sees_what_others_write() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = folder / "x.db"
        with SQLiteBackend(path) as backend:
            backend.put("a", b"0")
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        for number in range(30):
            reader.stdin.write("?\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == f"{number}\n"
            with SQLiteBackend(path) as backend:  # opened anew, so that the log comes and goes
                backend.put("a", b"%d" % (number + 1))
                if number % 3:
                    continue  # closed: the log is merged into the file
                backend.put("a", b"...")
                backend.put("a", b"%d" % (number + 1))
        reader.stdin.close()
        assert "read-only" in reader.stdout.read()
        reader.stdout.close()
        assert reader.wait() == 0
    finally:
        shutil.rmtree(folder)


def test_rows_that_are_no_values_of_ours_are_not_listed(path: Path) -> None:
    """Another program may have put them into the table."""
    backend = SQLiteBackend(path)
    backend.put_many({f"k{i}": b"1" for i in range(300)} | {"a/b": b"2"})
    with sqlite3.connect(path) as db:
        for key in ("a b", "a//b", "a/../b", ".", "a/", "/a", "a\nb", "é", "x" * 254, "", b"blob"):
            db.execute("INSERT INTO blobs VALUES (?, 'e', 0, x'00')", (key,))
        for number in range(100):  # no UTF-8, among the others and as the last of a page
            db.execute(f"INSERT INTO blobs VALUES (CAST(x'6b31{number:02x}ff' AS TEXT), 'e', 0, x'00')")
    db.close()
    wanted = sorted([f"k{i}" for i in range(300)] + ["a/b"])
    assert list(backend.keys()) == [meta.key for meta in backend.scan()] == wanted
    assert list(backend.keys("a/")) == ["a/b"]
    with perdure.open(backend, codec="raw") as d:
        assert len(list(d.items())) == 301
        d.clear()
        assert list(d) == []


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_deleting_what_is_absent_makes_its_absence_durable(path: Path, monkeypatch: pytest.MonkeyPatch, sync: str) -> None:
    """Whoever deleted it first may have done so without, or may have been killed before."""
    backend, other = SQLiteBackend(path, sync=sync), SQLiteBackend(path, sync="normal")
    backend.delete("k")  # no database yet
    assert not path.exists()
    really_sync, synced = os.fsync, []

    def sync_and_note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").resolve().name)
        really_sync(fd)

    backend.put("k", b"1")
    other.delete("k")
    monkeypatch.setattr(os, "fsync", sync_and_note)
    many = ["k", *(f"l{number}" for number in range(500))]  # more than one statement removes
    for delete in (lambda: backend.delete("k"), lambda: backend.delete_many(["k", "l"]), lambda: backend.delete_many(many)):
        delete()
        assert synced == ["x.db-wal"] * (sync == "full")
        synced.clear()


def test_without_descriptors_it_is_said(path: Path) -> None:
    code = (
        "import os, resource, sys\n"
        "from perdure.errors import UnavailableError\n"
        "from perdure_backends.sqlite import SQLiteBackend\n"
        "backend = SQLiteBackend(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
        "fds = []\n"
        "try:\n"
        "    while True: fds.append(os.dup(0))\n"
        "except OSError: pass\n"
        "for free in range(6):\n"
        "    try: backend.put('a', b'1')\n"
        "    except UnavailableError as error: print(error.errno, error)\n"
        "    else: break\n"
        "    os.close(fds.pop())\n"
        "else: raise SystemExit('never')\n"
    )
    lines = in_another_process(code, path).splitlines()
    assert lines
    for line in lines:
        assert line.startswith(f"{errno.EMFILE} key 'a'")
        assert "ulimit -n" in line


def test_a_value_that_another_program_put_there_as_text(path: Path) -> None:
    backend = SQLiteBackend(path)
    backend.put("fine", b"1")
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO blobs VALUES ('text', 'e', 0, 'text'), ('worse', 'e', 0, CAST(x'ff' AS TEXT))")
    db.close()
    for key in ("text", "worse"):
        for read in (backend.get, lambda key: backend.get_many(["fine", key])):
            with pytest.raises(IntegrityError, match=f"key '{key}' .* not bytes"):
                read(key)
    assert backend.get("fine").data == b"1"
    backend.delete_many(["text", "worse"])
    assert list(backend.get_many(["fine", "text", "worse"])) == ["fine"]


def test_nothing_is_deleted_where_there_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    backend = SQLiteBackend(tmp_path / "file" / "x.db")
    backend.delete("k")
    backend.delete_many(["k", "l"])
