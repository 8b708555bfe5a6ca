"""What is special about a folder: names, links, strangers' files, the marker, locks and leftovers, layouts."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.protocol import ABSENT
from perdure_backends._file_folder import STRIPES
from perdure_backends._file_names import PortableNames
from perdure_backends._file_plain import DigestNames
from perdure_backends._flock import LOCK_EX, LOCK_NB, LOCK_UN, close_lock, flock, open_lock
from perdure_backends.file import FileBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def backend(folder: Path) -> FileBackend:
    return FileBackend(folder, sync="normal")


def test_opening_and_reading_create_nothing(folder: Path, backend: FileBackend) -> None:
    assert list(backend.keys()) == list(backend.scan()) == []
    assert not backend.contains("a")
    with pytest.raises(perdure.NotFoundError):
        backend.get("a")
    backend.delete("a")
    with pytest.raises(perdure.PreconditionError):
        backend.delete("a", if_match=perdure.ETag("x"))
    assert not folder.exists()


def test_a_relative_path_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    backend = perdure.open_backend("data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    backend.put("a", b"1")
    assert (tmp_path / "data" / "a.perdure").exists()
    assert perdure.open_backend(f"file:{tmp_path}/data").get("a").data == b"1"
    assert perdure.open_backend(f"file://{tmp_path}/data").get("a").data == b"1"
    assert pickle.loads(pickle.dumps(backend)).get("a").data == b"1"


def test_a_removed_folder_is_empty_and_made_again(folder: Path, backend: FileBackend) -> None:
    backend.put("a/b", b"1")
    shutil.rmtree(folder)
    assert list(backend.keys()) == []
    assert not backend.contains("a/b")
    backend.put("a/b", b"2", if_match=ABSENT)
    shutil.rmtree(folder / "a")
    backend.put("a/b", b"3")
    assert FileBackend(folder).get("a/b").data == b"3"


class Paused(FileBackend):
    """Stops in the middle of its next write, with its temporary file half written."""

    def pause(self) -> tuple[threading.Event, threading.Event]:
        self.reached, self.go_on = threading.Event(), threading.Event()
        really_write = self._layout.write

        def write(fd: int, data: perdure.protocol.Buffer) -> perdure.ETag:
            self._layout.write = really_write  # type: ignore[method-assign]
            os.write(fd, b"half a value")
            self.reached.set()
            assert self.go_on.wait(60)
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            return really_write(fd, data)

        self._layout.write = write  # type: ignore[method-assign]
        return self.reached, self.go_on


@pytest.mark.parametrize("how", ["removed", "moved"])
@pytest.mark.parametrize("condition", ["none", "version"])
def test_a_writer_in_line_for_a_folder_that_is_gone_goes_to_the_new_one(folder: Path, how: str, condition: str) -> None:
    """With the lock of the old one it would write into what the holder of the same lock in the new one is writing."""
    first, late, fresh = (FileBackend(folder, sync="normal") for _ in range(3))
    old = first.put("k", b"old")
    late.put("other", b"")
    path = str(folder / ".perdure" / "locks" / first._spots["k"].stripe)
    before = open_lock(path)
    flock(before, LOCK_EX)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(late.put, "k", b"late", if_match=None if condition == "none" else old)
        while not _waits_for(path):
            pass
        if how == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(folder.with_name("moved"))
        busy = Paused(folder, sync="normal")
        reached, go_on = busy.pause()
        writing = pool.submit(busy.put, "k", b"new")
        assert reached.wait(60)
        flock(before, LOCK_UN)
        close_lock(before)
        if condition == "none":
            while not _waits_for(path):
                assert not waiting.done(), "it did not wait for the lock that counts"
        else:
            with pytest.raises(perdure.PreconditionError):
                waiting.result(60)
        assert not fresh.contains("k")
        go_on.set()
        version = writing.result(60)
        if condition == "none":
            version = waiting.result(60)
    assert fresh.get("k") == (b"new" if condition == "version" else b"late", version, fresh.head("k").modified)
    assert os.listdir(folder / ".perdure" / "tmp") == []


@pytest.mark.parametrize("how", ["removed", "moved"])
@pytest.mark.parametrize("act", ["swap", "put", "delete"])
def test_a_folder_replaced_in_the_middle_of_a_write(folder: Path, how: str, act: str) -> None:
    writer = Paused(folder, sync="normal")
    old = writer.put("k", b"old")
    reached, go_on = writer.pause()
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(writer.put, "k", b"interrupted", if_match=old if act == "swap" else None)
        assert reached.wait(60)
        if how == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(folder.with_name("moved"))
        other = FileBackend(folder, sync="normal")
        other.put("k", b"new", if_match=ABSENT)
        if act == "delete":
            other.delete("k")
        go_on.set()
        if act == "swap":
            with pytest.raises(perdure.PreconditionError):
                writing.result(60)
        else:
            writing.result(60)
    assert other.get("k").data == (b"new" if act == "swap" else b"interrupted")
    assert os.listdir(folder / ".perdure" / "tmp") == []


STORMY = """
import random, sys
from perdure.errors import NotFoundError, PreconditionError, UnknownOutcomeError
from perdure.protocol import ABSENT
from perdure_backends.file import FileBackend

folder, stop, sync = sys.argv[1:]
backend, stopped, sizes = FileBackend(folder, sync=sync), FileBackend(stop), (1, 5000, 200_000)

def check(data):
    assert len(set(data)) == 1 and len(data) in sizes, (len(data), set(data))

while not stopped.contains("now"):
    key, value = random.choice(["k", "a/b", "c"]), random.choice([b"a", b"b", b"c"]) * random.choice(sizes)
    act = random.choice([backend.put, backend.delete, backend.scan, "swap"])
    try:
        if act == backend.put:
            act(key, value)
        elif act == "swap":
            try:
                seen = backend.get(key)
            except NotFoundError:
                backend.put(key, value, if_match=ABSENT)
            else:
                check(seen.data)
                backend.put(key, value, if_match=seen.etag)
        elif act == backend.delete:
            act(key)
        else:
            list(act())
    except PreconditionError:
        pass
    except UnknownOutcomeError:
        assert sync == "full"
backend.put("k", b"ccccc" * 1000)
check(backend.get("k").data)
"""


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_writers_under_whom_the_folder_is_removed_again_and_again(folder: Path, tmp_path: Path, sync: str) -> None:
    """Whole values only, and nobody fails: at most it cannot be told whether a write was there when it was to be durable."""
    stop = str(tmp_path / "stop")
    command = [sys.executable, "-c", STORMY, str(folder), stop, sync]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        removed = 0
        while removed < 60 * ROUNDS and all(writer.poll() is None for writer in writers):
            if (folder / "k.perdure").exists() or (folder / "c.perdure").exists():
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    finally:
        FileBackend(stop).put("now", b"")
        problems = [writer.communicate(timeout=60)[1] for writer in writers]
    assert problems == [""] * 3


def _waits_for(path: str) -> bool:
    """Tell whether somebody stands in line for this lock."""
    try:
        inode = os.stat(path).st_ino
    except FileNotFoundError:
        return False
    return any(f":{inode} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())


def test_files_of_others_are_neither_listed_nor_touched(folder: Path, backend: FileBackend) -> None:
    backend.put("item", b"1")
    strangers = [
        "item (1).perdure",
        "Notes.perdure",
        "notes.txt",
        "con.perdure",
        ".hidden.perdure",
        "a\nb.perdure",
        "x+.perdure",
    ]
    for name in strangers:
        (folder / name).write_bytes(b"mine")
    (folder / "Sub").mkdir()
    (folder / "Sub" / "x.perdure").write_bytes(b"mine")
    assert list(backend.keys()) == ["item"]
    assert [meta.key for meta in backend.scan()] == ["item"]
    backend.delete_many(list(backend.keys()))
    backend.sweep()
    assert all((folder / name).read_bytes() == b"mine" for name in [*strangers, "Sub/x.perdure"])


_ODD = ["con", "CON", "lpt1", ".x", "x.", "x.perdure", "A", "a b", "\u00e9", "a\nb", "item (1)", "a+", "+a", "a+1"]


@pytest.mark.parametrize("odd", _ODD, ids=ascii)
def test_a_file_that_no_key_is_spelled_as_is_not_listed(folder: Path, backend: FileBackend, odd: str) -> None:
    """One such name among many of ours must not slip through where whole listings are checked at once."""
    ours = [f"key{number}" for number in range(5)] + ["a.b", "x.perdur", "conx", "zcon.x"]
    backend.put_many(dict.fromkeys(ours, b""))
    (folder / f"{odd}.perdure").write_bytes(b"foreign")
    assert sorted(backend.keys()) == sorted(ours)
    assert sorted(meta.key for meta in backend.scan()) == sorted(ours)


@pytest.mark.parametrize("key", ["con", "CON.x", "lpt1.a", ".x", "x.", "x.perdure", ".perdure", "A", "..a"], ids=ascii)
def test_odd_keys_are_listed_as_they_are(backend: FileBackend, key: str) -> None:
    backend.put_many(dict.fromkeys([key, "plain", f"level/{key}", f"{key}/level"], b""))
    assert sorted(backend.keys()) == sorted([key, "plain", f"level/{key}", f"{key}/level"])
    assert sorted(backend.keys(f"{key}/")) == [f"{key}/level"]


def test_planted_links_lead_nowhere(tmp_path: Path, folder: Path, backend: FileBackend) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret.perdure"
    FileBackend(outside).put("secret", b"secret")
    before = secret.read_bytes()
    backend.put("real/key", b"1")
    (folder / "link.perdure").symlink_to(secret)
    (folder / "door").symlink_to(outside)
    assert sorted(backend.keys()) == ["real/key"]
    assert list(backend.keys("door/")) == []
    for key in ("link", "door/secret"):
        with pytest.raises(perdure.BackendError, match="link"):
            backend.get(key)
    for key in ("door/secret", "door/new"):
        for act in (lambda key=key: backend.put(key, b"2"), lambda key=key: backend.delete(key)):
            with pytest.raises(perdure.BackendError, match="link"):
                act()
    backend.put("link", b"2")  # replaces the link itself
    assert backend.get("link").data == b"2"
    # ... and after the folder was in use, and known
    shutil.rmtree(folder / "real")
    (folder / "real").symlink_to(outside)
    with pytest.raises(perdure.BackendError, match="link"):
        backend.put("real/key", b"2")
    assert secret.read_bytes() == before
    assert sorted(path.name for path in outside.iterdir()) == [".perdure", "secret.perdure"]


@pytest.mark.parametrize("spot", ["locks/{}", "tmp/{}"])
def test_planted_links_among_our_own_files(tmp_path: Path, folder: Path, backend: FileBackend, spot: str) -> None:
    backend.put("a", b"1")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for number in range(STRIPES):
        path = folder / ".perdure" / spot.format(f"{number:02d}")
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    try:
        backend.put("a", b"2")
    except perdure.BackendError as error:
        assert "link" in str(error)
    assert victim.read_bytes() == b"precious"


def test_a_pipe_or_a_folder_in_a_values_place_does_not_hang(folder: Path, backend: FileBackend) -> None:
    backend.put("a", b"1")
    os.mkfifo(folder / "pipe.perdure")
    (folder / "dir.perdure").mkdir()
    assert list(backend.keys()) == ["a"]
    for key in ("pipe", "dir"):
        with pytest.raises((perdure.BackendError, perdure.IntegrityError)):
            backend.get(key)
    with pytest.raises(perdure.BackendError):
        backend.put("dir", b"2")
    assert (folder / "dir.perdure").is_dir()
    backend.put("pipe", b"2")
    assert backend.get("pipe").data == b"2"


def test_names_differ_without_regard_to_case_and_come_back(folder: Path) -> None:
    names = PortableNames()
    segments = [
        "theme",
        "Theme",
        "THEME",
        "con",
        "Con",
        "nul.txt",
        "com1",
        "a.",
        "a..",
        ".a",
        ".perdure",
        "a.perdure",
        "-",
        "~",
        "A" * 200,
    ]
    files = [names.file(segment) for segment in segments]
    assert len({file.lower() for file in files}) == len(segments)
    assert list(names.segments(files)) == segments
    assert [names.folder_segment(names.folder(segment)) for segment in segments] == segments
    reserved = {"con", "nul", "com1"}
    assert not any(file.split(".")[0].lower() in reserved for file in files)
    backend = FileBackend(folder)
    for segment in segments:
        backend.put(f"{segment}/{segment}", segment.encode())
    assert sorted(backend.keys()) == sorted(f"{segment}/{segment}" for segment in segments)


def test_names_with_digests_are_those_that_persidict_writes() -> None:
    names = DigestNames(".pkl", 4)
    assert names.file("a") == "a_btax.pkl"
    # persidict takes the second of these for the first; here they are two keys
    assert names.file("a_btax") == "a_btax_" + names.file("a_btax")[7:] != names.file("a")
    assert list(names.segments(["a_btax.pkl", "plain.pkl", "a_btay.pkl", "a_btax.json"])) == ["a"]


@pytest.mark.parametrize("digest_len", [0, 4])
def test_plain_names_without_a_suffix_are_listed(folder: Path, digest_len: int) -> None:
    backend = FileBackend(folder, layout="plain", digest_len=digest_len)
    written = ["a", "b.txt", "level/a", "level/b.txt"]
    backend.put_many(dict.fromkeys(written, b"1"))
    assert sorted(backend.keys()) == sorted(meta.key for meta in backend.scan()) == written
    assert sorted(backend.keys("level/")) == written[2:]


def test_the_marker_makes_reopening_need_no_arguments_and_refuses_mixing(folder: Path) -> None:
    plain = FileBackend(folder, layout="plain", suffix=".bin", digest_len=0)
    plain.put("a", b"1")
    assert (folder / "a.bin").read_bytes() == b"1"
    assert FileBackend(folder).get("a").data == b"1"
    for options in ({"layout": "framed"}, {"layout": "plain", "suffix": ".bin", "digest_len": 4}):
        with pytest.raises(perdure.UsageError, match="written with"):
            FileBackend(folder, **options)
    with pytest.raises(perdure.UsageError, match=r"could not be told from"):  # a.bin would be a key of it
        FileBackend(folder, layout="plain", suffix="")


def test_values_of_several_formats_share_a_plain_folder_and_do_not_see_each_other(folder: Path) -> None:
    backends = {
        suffix: FileBackend(folder, layout="plain", suffix=suffix, digest_len=4) for suffix in (".pkl", ".json", ".a=b")
    }
    for suffix, backend in backends.items():
        backend.record({"codec": f"codec of {suffix}"})
        backend.put("a", suffix.encode())
        backend.put("b/c", suffix.encode())
    backends[".pkl"].delete("a")
    for suffix in backends:
        again = FileBackend(folder, layout="plain", suffix=suffix, digest_len=4)
        assert again.recorded() == {"codec": f"codec of {suffix}"}
        assert sorted(again.keys()) == (["b/c"] if suffix == ".pkl" else ["a", "b/c"])
        assert again.get("b/c").data == suffix.encode()
    with pytest.raises(perdure.UsageError, match=r"several formats share this folder: .a=b, .json, .pkl"):
        FileBackend(folder)
    assert FileBackend(folder, suffix=".json").get("a").data == b".json"


@pytest.mark.parametrize(("there", "asked"), [(4, 0), (4, 8), (8, 4), (26, 4)])
def test_a_digest_length_other_than_that_of_the_names_is_refused_where_no_marker_says_it(
    folder: Path, there: int, asked: int
) -> None:
    FileBackend(folder, layout="plain", suffix=".pkl", digest_len=there).put("some/key", b"1")
    FileBackend(folder, layout="plain", suffix=".pkl", digest_len=there).put("other", b"1")
    shutil.rmtree(folder / ".perdure")  # as persidict leaves a folder
    with pytest.raises(
        perdure.UsageError, match=rf"digests of {there} characters, not {asked}\. Open it with digest_len={there}"
    ):
        FileBackend(folder, layout="plain", suffix=".pkl", digest_len=asked)
    assert sorted(FileBackend(folder, layout="plain", suffix=".pkl", digest_len=there).keys()) == ["other", "some/key"]


def test_names_without_digests_are_pointed_out_where_digests_are_expected(folder: Path) -> None:
    FileBackend(folder, layout="plain", suffix=".pkl").put("plain", b"1")
    shutil.rmtree(folder / ".perdure")
    with pytest.warns(UserWarning, match="open it with digest_len=0"):
        backend = FileBackend(folder, layout="plain", suffix=".pkl", digest_len=4)
    assert list(backend.keys()) == []


def test_of_two_that_start_with_different_settings_the_second_is_refused(folder: Path) -> None:
    first, second = FileBackend(folder), FileBackend(folder)
    first.record({"codec": "msgpack"})
    second.record({"codec": "pkl"})
    first.put("a", b"1")
    for _ in range(2):  # and stays refused
        with pytest.raises(perdure.UsageError, match="codec 'msgpack', not 'pkl'"):
            second.put("a", b"2")
    assert first.recorded() == FileBackend(folder).recorded() == {"codec": "msgpack"}


def test_a_marker_of_a_newer_format_or_of_somebody_else_is_refused(folder: Path, backend: FileBackend) -> None:
    backend.put("a", b"1")
    marker = folder / ".perdure" / "marker"
    marker.write_text("perdure folder, format 2\n")
    with pytest.raises(perdure.UsageError, match="Upgrade"):
        FileBackend(folder)
    marker.write_text("something else\n")
    with pytest.raises(perdure.UsageError, match="not ours"):
        FileBackend(folder)


def test_leftovers_are_bounded_and_swept_but_a_live_writers_are_not(folder: Path, backend: FileBackend) -> None:
    backend.put("a", b"1")
    tmp = folder / ".perdure" / "tmp"
    for number in range(STRIPES):
        (tmp / f"{number:02d}-1f").write_bytes(b"half")
    (tmp / "stranger").write_bytes(b"mine")
    fd = open_lock(str(folder / ".perdure" / "locks" / "07"))
    flock(fd, LOCK_EX)
    try:
        assert len(backend.leftovers()) == STRIPES - 1
        FileBackend(folder).put("b", b"1")  # a new instance's first write sweeps
        assert sorted(path.name for path in tmp.iterdir()) == ["07-1f", "stranger"]
    finally:
        flock(fd, LOCK_UN)
        close_lock(fd)
    assert backend.sweep() == [str(tmp / "07-1f")]
    assert backend.leftovers() == []


def test_a_leftover_that_is_a_second_name_of_a_value_is_not_written_into(folder: Path, backend: FileBackend) -> None:
    """A writer killed between link and unlink leaves one."""
    backend.put("a", b"acknowledged", if_match=ABSENT)
    tmp = folder / ".perdure" / "tmp"
    for number in range(STRIPES):
        path = str(folder / ".perdure" / "locks" / f"{number:02d}")
        fd = open_lock(path)
        os.link(folder / "a.perdure", tmp / f"{number:02d}-{os.fstat(fd).st_ino:x}")
        close_lock(fd)
    for i in range(200):
        backend.put(f"k{i}", b"x" * 50)
    assert backend.get("a").data == b"acknowledged"
    assert not list(tmp.iterdir())


def test_a_child_forked_in_the_middle_does_not_keep_the_lock(folder: Path, backend: FileBackend) -> None:
    backend.put("a", b"1")
    path = str(folder / ".perdure" / "locks" / "05")
    fd = open_lock(path)
    flock(fd, LOCK_EX)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b".")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    os.close(fd)  # what the end of the parent would do: without LOCK_UN
    other = open_lock(path)
    try:
        flock(other, LOCK_EX | LOCK_NB)
    finally:
        os.write(go[1], b".")
        os.waitpid(child, 0)
        flock(other, LOCK_UN)
        close_lock(other)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(folder: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        FileBackend(folder).put("a/b", b"1")
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "a" / "b.perdure").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o777 & ~mask


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files are POSIX")
def test_what_keeps_a_listing_from_every_value_is_no_damage_of_each(backend: FileBackend) -> None:
    import resource

    backend.put_many({"a": b"1", "b": b"2", "c": b"3"})
    listing = backend.scan()
    next(listing)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(perdure.UnavailableError, match="Too many open files"):
            list(listing)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(list(backend.scan())) == 3


def test_a_damaged_file_is_named_listed_and_set_aside(folder: Path, backend: FileBackend) -> None:
    for key in ("good", "a/bad"):
        backend.put(key, b"value" * 10)
    path = folder / "a" / "bad.perdure"
    whole = path.read_bytes()
    for broken in (
        whole[:-1],
        whole[:20],
        b"",
        whole + b"x",
        *(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(44)),
    ):
        path.write_bytes(broken)
        with pytest.raises(perdure.IntegrityError, match="'a/bad'"):
            backend.get("a/bad")
        assert {meta.key for meta in backend.scan()} == {"good", "a/bad"}
        assert backend.get("good").data == b"value" * 10
    target = backend.set_aside("a/bad")
    assert Path(target).read_bytes() == broken
    assert list(backend.keys()) == ["good"]
    with pytest.raises(perdure.NotFoundError):
        backend.set_aside("a/bad")


def test_a_claim_of_many_gigabytes_is_not_believed(folder: Path, backend: FileBackend) -> None:
    from zlib import crc32

    backend.put("a", b"x" * 100_000)
    path = folder / "a.perdure"
    raw = path.read_bytes()
    head = raw[:8] + (1 << 40).to_bytes(8, "big") + raw[16:40]
    path.write_bytes(head + crc32(head).to_bytes(4, "big") + raw[44:])
    with pytest.raises(perdure.IntegrityError):
        backend.get("a")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "app.db").write_bytes(b"")
    with pytest.raises(perdure.BackendError, match="sqlite:///"):
        FileBackend(tmp_path / "app.db")


def test_many_keys_and_very_deep_ones(folder: Path, backend: FileBackend) -> None:
    count = 100_000 if int(os.environ.get("PERDURE_ROUNDS", "1")) > 1 else 5_000
    for i in range(count):
        backend.put(f"n/{i}", b"")
    deep = "/".join("d" * 1 for _ in range(300))  # deeper trees overwhelm shutil.rmtree
    backend.put(deep, b"deep")
    assert backend.get(deep).data == b"deep"
    assert sum(1 for _ in backend.keys("n/")) == count
    assert set(backend.keys()) == {f"n/{i}" for i in range(count)} | {deep}
    with pytest.raises(perdure.InvalidKeyError):
        backend.put("/".join("d" * 200 for _ in range(30)), b"")


def test_threads_that_make_the_same_folders(folder: Path) -> None:
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def write(n: int) -> None:
        try:
            backend = FileBackend(folder, sync="normal")
            barrier.wait()
            for i in range(20):
                backend.put(f"a/{i}/b/{n}", b"1")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(1 for _ in FileBackend(folder).keys("a/")) == 160


def test_importing_and_reading_load_nothing_heavy(folder: Path, backend: FileBackend) -> None:
    backend.put("a", b"1")
    code = f"import sys, perdure; perdure.open_backend({str(folder)!r}).get('a'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ctypes", "boto3", "inspect", "asyncio", "importlib.metadata", "hypothesis", "json"} & set(loaded)


def test_a_signal_handler_never_waits_for_the_write_it_struck(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread cannot wait for itself: a handler's write under another lock goes on, one under the same lock is refused."""
    backend.put("a", b"1")
    told: list[str] = []

    def handle(*_: object) -> None:
        backend.put("another", b"from the handler")
        try:
            backend.put("a", b"from the handler")
        except perdure.BackendError as error:
            told.append(str(error))

    def struck(*args: object) -> str:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGUSR1)
        return temporary(*args)

    temporary = backend._own.temporary
    monkeypatch.setattr(backend._own, "temporary", struck)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        backend.put("a", b"2")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert backend.get("a").data == b"2"
    assert backend.get("another").data == b"from the handler"
    (text,) = told
    assert "a signal handler or finalizer writes in the middle of a write" in text
    assert "set a flag" in text
    backend.put("a", b"3")


def test_a_lock_is_the_same_by_whatever_path(folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put("a", b"1")
    folder.with_name("link").symlink_to(folder)
    other = FileBackend(folder.with_name("link"), sync="normal")
    other.put("b", b"1")
    told: list[perdure.BackendError] = []

    def struck(*args: Any) -> bool:
        monkeypatch.undo()
        with pytest.raises(perdure.BackendError, match="set a flag") as caught:
            other.put("a", b"from a finalizer")
        told.append(caught.value)
        return True

    monkeypatch.setattr(backend._own, "is_current", struck)
    backend.put("a", b"2")
    assert len(told) == 1
    assert other.get("a").data == b"2"


def test_a_child_forked_just_before_the_rename_leaves_it_to_its_parent(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = []

    def struck(lock: Any) -> bool:
        monkeypatch.undo()
        child = os.fork()
        if child:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return True

    monkeypatch.setattr(backend._own, "is_current", struck)
    me = os.getpid()
    try:
        version = backend.put("a", b"1", if_match=ABSENT)
    except perdure.BackendError as error:
        if os.getpid() != me:
            os._exit(7 if "forked in the middle" in str(error) else 1)
        raise
    if os.getpid() != me:
        os._exit(2)
    assert codes == [7]
    assert backend.get("a") == (b"1", version, backend.head("a").modified)


@pytest.mark.parametrize("act", ["put", "delete", "set_aside"])
def test_a_child_forked_amid_a_change_leaves_it_to_its_parent(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    backend.put("a", b"0")
    really_open, codes, me = os.open, [], os.getpid()

    def fork() -> None:
        monkeypatch.undo()
        child = os.fork()
        if child:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def open_and_fork(path: str, *arguments: int) -> int:
        fd = really_open(path, *arguments)
        if act == "put" and os.path.dirname(path).endswith("tmp"):
            fork()
        return fd

    def agree_and_fork(_: Any) -> bool:
        fork()
        return True

    monkeypatch.setattr(os, "open", open_and_fork)
    if act != "put":
        monkeypatch.setattr(backend._own, "is_current", agree_and_fork)
    try:
        getattr(backend, act)(*(("a", b"whole") if act == "put" else ("a",)))
    except perdure.BackendError as error:
        if os.getpid() != me:
            os._exit(7 if "forked in the middle" in str(error) else 1)
        raise
    if os.getpid() != me:
        os._exit(2)
    assert codes == [7]
    assert [blob.data for blob in backend.get_many(["a"]).values()] == ([b"whole"] if act == "put" else [])


def test_a_signal_handler_never_waits_for_a_sweep_it_struck(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.put("a", b"1")
    (folder / ".perdure" / "tmp" / f"{backend._spots['a'].stripe}-1f").write_bytes(b"half")
    told = []

    def struck(path: str) -> None:
        monkeypatch.undo()
        with pytest.raises(perdure.BackendError, match="set a flag"):
            backend.put("a", b"2")
        told.append(path)
        os.unlink(path)

    monkeypatch.setattr(os, "unlink", struck)
    assert backend.sweep() == told
    backend.put("a", b"3")


def test_an_error_on_the_way_to_a_lock_leaves_no_descriptor(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put("a", b"1")

    def fail(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend._own, "_is_new_here", fail)
    before = os.listdir("/proc/self/fd")
    for key in [f"b{i}" for i in range(20) if backend._spots[f"b{i}"].stripe not in backend._own._known]:
        with pytest.raises(KeyboardInterrupt):
            backend.put(key, b"1")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_what_is_said_where_no_folder_can_be(tmp_path: Path, folder: Path, backend: FileBackend) -> None:
    with pytest.raises(
        perdure.BackendError, match=r"key 'a' in file:/proc/perdure/x.*cannot be made.*Check /proc/perdure"
    ) as caught:
        FileBackend("/proc/perdure/x").put("a", b"1")
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(perdure.BackendError, match="a link to nothing"):
        FileBackend(tmp_path / "link")
    backend.put("a", b"1")
    (folder / ".perdure" / "tmp").rmdir()
    (folder / ".perdure" / "tmp").write_bytes(b"")
    with pytest.raises(perdure.BackendError, match="cannot sweep"):
        backend.sweep()


def test_a_signal_handler_never_waits_for_the_first_write_it_struck(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write of an instance takes a lock to agree on the settings, whatever its key."""
    backend = FileBackend(folder, sync="normal")
    told: list[str] = []

    def struck(*args: Any, **options: Any) -> None:
        monkeypatch.undo()
        try:
            FileBackend(folder, sync="normal").put("another", b"1")
        except perdure.BackendError as error:
            told.append(str(error))
        really_write(*args, **options)

    really_write = backend._own.marker.write
    monkeypatch.setattr(backend._own.marker, "write", struck)
    backend.put("a", b"2")
    assert backend.get("a").data == b"2"
    (text,) = told
    assert "set a flag" in text


def test_a_fork_while_a_lock_is_being_opened_copies_nothing(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy would hold the lock on as long as the child lives, even when we are killed."""
    backend.put("a", b"1")
    really_open, codes = os.open, []

    def open_and_fork(path: str, *arguments: int) -> int:
        fd = really_open(path, *arguments)
        if os.path.dirname(path).endswith("locks"):
            child = os.fork()
            if not child:
                try:
                    os.fstat(fd)
                except OSError:
                    os._exit(0)
                os._exit(1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return fd

    monkeypatch.setattr(os, "open", open_and_fork)
    backend.put("a", b"2")
    monkeypatch.undo()
    assert codes == [0]
    assert backend.get("a").data == b"2"
