"""A disk that is full, out of names, read-only or not ours: a clear error, the old value as it was, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger import lines, opened, seen, start, value

from perdure.errors import BackendError
from perdure.protocol import ABSENT, Backend
from perdure_backends.file import FileBackend

KINDS = ["file", "sqlite"]
Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts small file systems of the kinds `tmpfs`, `inodes` (with few inodes) and `ext4`."""
    mounted: list[Path] = []

    def mount_one(kind: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root can mount a small disk")
        where = tmp_path / kind
        where.mkdir()
        if kind == "ext4":
            if not shutil.which("mkfs.ext4"):
                pytest.skip("needs mkfs.ext4")
            image = tmp_path / "image"
            image.write_bytes(bytes(4 << 20))
            subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
            command = ["mount", "-o", "loop", image, where]
        else:
            command = ["mount", "-t", "tmpfs", "-o", "nr_inodes=120" if kind == "inodes" else "size=1M", "none", where]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"not allowed to mount here: {done.stderr.strip()}")
        mounted.append(where)
        return where

    yield mount_one
    for where in mounted:
        subprocess.run(["umount", "-l", where], check=True)


def fill(where: Path, leave: int = 0) -> Path:
    """Take all space but some pages of 4096 bytes; return the file to remove when it is enough."""
    filler = where / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
        os.ftruncate(file.fileno(), max(0, os.fstat(file.fileno()).st_size // 4096 - leave) * 4096)
        os.fsync(file.fileno())
    return filler


def refused(number: int, backend: Backend, key: str, call: Callable[..., object], *args: object, **options: object) -> None:
    """The call says clearly that it failed, where, at what and why."""
    with pytest.raises(BackendError) as caught:
        call(*args, **options)
    error = caught.value
    assert (error.errno, error.key, error.place) == (number, key, backend.place), error
    assert repr(key) in str(error) and backend.place in str(error) and error.hint, error


def nothing_left(backend: Backend, where: Path) -> None:
    if isinstance(backend, FileBackend):
        assert os.listdir(where / ".perdure" / "tmp") == []
        assert backend.leftovers() == []


@pytest.mark.parametrize("disk", ["tmpfs", "ext4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(kind: str, disk: str, mount: Mount) -> None:
    root = mount(disk)
    where = root / "place"
    old, large = value("k", 1, 10_000), value("k", 2, 300_000)
    with opened(kind, "full", where) as backend, opened(kind, "full", where) as other:
        etag = backend.put("k", old)
        other.put("folder/l", b"l")
        filler = fill(root)
        for condition in (None, etag):
            refused(errno.ENOSPC, backend, "k", backend.put, "k", large, if_match=condition)
        for condition in (None, ABSENT):
            refused(errno.ENOSPC, backend, "new", backend.put, "new", large, if_match=condition)
        for handle in (backend, other):
            assert handle.get("k")[:2] == (old, etag)
            assert handle.head("k").etag == etag
            assert sorted(handle.keys()) == ["folder/l", "k"]
            assert not handle.contains("new")
        nothing_left(backend, where)
        if kind == "file":
            backend.delete("folder/l")  # making room is always possible
        filler.unlink()
        swapped = other.put("k", large, if_match=etag)
        assert backend.get("k")[:2] == (large, swapped)
        backend.put("new", large, if_match=ABSENT)
        nothing_left(backend, where)


@pytest.mark.parametrize("kind", KINDS)
def test_every_small_amount_of_free_space(kind: str, mount: Mount) -> None:
    root = mount("tmpfs")
    where = root / "place"
    failed = 0
    with opened(kind, "full", where) as backend:
        now = value("k", 0, 30_000)
        etag = backend.put("k", now)
        for leave in range(16):
            filler = fill(root, leave)
            new = value("k", leave, 30_000)
            try:
                etag, now = backend.put("k", new, if_match=etag), new
            except BackendError as error:
                assert error.errno == errno.ENOSPC, error
                failed += 1
            assert backend.get("k")[:2] == (now, etag)
            with opened(kind, "full", where) as other:
                assert other.get("k")[:2] == (now, etag)
            nothing_left(backend, where)
            filler.unlink()
    assert 0 < failed < 16


@pytest.mark.parametrize("disk", ["tmpfs", "ext4"])
def test_a_batch_that_a_disk_cannot_hold(disk: str, mount: Mount) -> None:
    """Every value stays as it was, and nothing is left behind."""
    root = mount(disk)
    keys = [f"{n % 3}/{n}" for n in range(40)]
    failed = 0
    with FileBackend(root / "place") as backend, FileBackend(root / "place") as other:
        other.put_many({key: value(key, 1, 100) for key in keys[:20]})
        for version in range(2, 10):
            filler = fill(root, leave=40 * (version - 2))
            failed += _try_a_batch(backend, other, keys, version, 30_000)
            filler.unlink()
        assert failed >= 2
        backend.put_many({key: value(key, 10, 100) for key in keys})
        backend.delete_many(keys)
        assert list(other.keys()) == []


def test_a_batch_and_every_small_number_of_free_inodes(mount: Mount) -> None:
    root = mount("inodes")
    keys = [f"{n}" for n in range(8)] + ["new/er"]
    failed = 0
    with FileBackend(root / "place") as backend, FileBackend(root / "place") as other:
        other.put_many({key: value(key, 0, 100) for key in keys[:4]})
        for version in range(1, 30):
            taken = []
            while os.statvfs(root).f_ffree > version:
                taken.append(root / f"taken{len(taken)}")
                taken[-1].touch()
            failed += _try_a_batch(backend, other, keys, version, 100)
            for path in taken:
                path.unlink()
        assert 2 <= failed < 29


def _try_a_batch(backend: FileBackend, other: FileBackend, keys: list[str], version: int, size: int) -> bool:
    """Tell whether it failed, for lack of room and in the way it should."""
    before = {key: seen(backend, key) for key in keys}
    failed = False
    try:
        backend.put_many({key: value(key, version, size) for key in keys})
    except BackendError as error:
        failed = True
        assert error.errno == errno.ENOSPC and error.place == backend.place and error.hint, error
        assert error.key in (*keys, None)
    after = {key: seen(other, key) for key in keys}
    for key in keys:
        assert after[key] in ((before[key], version) if failed else (version,)), key
    nothing_left(backend, Path(backend.path))
    return failed


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_write_finds_the_disk_full(kind: str, mount: Mount) -> None:
    root = mount("tmpfs")
    filler = fill(root)
    with opened(kind, "full", root / "place") as backend:
        refused(errno.ENOSPC, backend, "k", backend.put, "k", b"1")
        assert list(backend.keys()) == []
        filler.unlink()
        backend.put("k", b"2", if_match=ABSENT)
        assert backend.get("k").data == b"2"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
def test_no_inodes_left(kind: str, first: bool, mount: Mount) -> None:
    root = mount("inodes")
    where = root / "place"
    with opened(kind, "full", where) as backend:
        etag = None if first else backend.put("k", b"old")
        taken = []
        with pytest.raises(OSError, match="No space"):
            while True:
                taken.append(root / f"empty{len(taken)}")
                taken[-1].touch()
        if first or kind == "file":  # a database has all the files it needs by now
            refused(errno.ENOSPC, backend, "k", backend.put, "k", b"new")
            refused(errno.ENOSPC, backend, "folder/l", backend.put, "folder/l", b"new")
        if etag:
            assert backend.get("k")[:2] == (b"old", etag)
        assert list(backend.keys()) == ([] if first else ["k"])
        for name in taken[:20]:
            name.unlink()
        backend.put("k", b"newer", if_match=etag or ABSENT)
        assert backend.get("k").data == b"newer"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_a_read_only_disk(kind: str, killed: bool, mount: Mount) -> None:
    root = mount("ext4")
    where = root / "place"
    with opened(kind, "full", where) as backend:
        etag = backend.put("k", b"old")
        backend.put("folder/l", b"l")
    if killed:  # and what it left has to be read without being cleared up
        child = start("write", kind, "full", where, 1, 1)
        for number, _ in enumerate(lines(child)):
            if number == 20:
                child.send_signal(signal.SIGKILL)
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
    with opened(kind, "full", where) as backend:
        before = {key: backend.get(key) for key in backend.keys()}  # noqa: SIM118 - it is no dict
        assert before["k"][:2] == (b"old", etag)
        assert before["folder/l"].data == b"l"
        for key in ("k", "folder/l", "new", "new/er"):
            for condition in (None, ABSENT if key.startswith("new") else before[key].etag):
                refused(errno.EROFS, backend, key, backend.put, key, b"new", if_match=condition)
        refused(errno.EROFS, backend, "k", backend.delete, "k")
        assert {meta.key: meta.etag for meta in backend.scan()} == {key: blob.etag for key, blob in before.items()}
    with opened(kind, "full", root / "absent") as nothing:
        assert list(nothing.keys()) == []
        assert not nothing.contains("k")
        refused(errno.EROFS, nothing, "k", nothing.put, "k", b"new")
    subprocess.run(["mount", "-o", "remount,rw", root], check=True)
    with opened(kind, "full", where) as backend:
        backend.put("k", b"newer", if_match=etag)


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_of_another_user(kind: str) -> None:
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o755)
        where = Path(folder) / "place"
        with opened(kind, "full", where) as backend:
            backend.put("k", b"old")
            if kind == "file":
                backend.put("hidden/k", b"secret")
                os.chmod(where / "hidden", 0o700)
                backend.put("listed/k", b"secret")
                os.chmod(where / "listed", 0o744)  # others may read names, and nothing else
        said = dict(line.split(": ", 1) for line in lines(start("unprivileged", kind, where)))
        assert said.pop("get") == "old"
        # What cannot be looked at is not "absent".
        hidden = {name: said.pop(name) for name in ("contains hidden", "get hidden")}
        names, scanned = said.pop("names only"), said.pop("scan names only")
        if kind == "file":
            assert scanned.startswith(f"errno {errno.EACCES}: key 'listed/k' in {backend.place}: "), scanned
            assert names == "['listed/k']"
            assert said.pop("keys").startswith(f"errno {errno.EACCES}: ")
            assert all(text.startswith(f"errno {errno.EACCES}: ") and "'hidden/k'" in text for text in hidden.values()), hidden
        else:
            assert said.pop("keys") == "['k']"
        assert set(said) == {"put", "create", "delete"}
        barred = errno.EACCES if kind == "file" else errno.EROFS  # SQLite only tells that it cannot write
        for name, text in said.items():
            assert text.startswith(f"errno {barred}: key '{'l' if name == 'create' else 'k'}' in {backend.place}: "), text
        with opened(kind, "full", where) as backend:
            assert backend.get("k").data == b"old"
            assert not backend.contains("l")
