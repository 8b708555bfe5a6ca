"""doctor: finds what is wrong, says nothing wrong of what is right, and loses nothing when it repairs."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import perdure
from perdure import open_backend, registry
from perdure.cli import selftest
from perdure.cli.damage import IntegrityCheck, Unreadable, set_aside
from perdure.errors import NotFoundError, PolicyError, PreconditionError
from perdure.protocol import ABSENT, Blob, ETag, Meta
from perdure.testing import servers
from perdure_backends.memory import MemoryBackend


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests look at something else than the races."""
    monkeypatch.setattr(selftest, "ROUNDS", 1)


def fill(url: str, codec: str = "msgpack", value: object = ("text", 1)) -> None:
    with perdure.open(url, codec=codec) as d:
        for key in ("a", ("b", "c"), "d"):
            d[key] = value


def flip(url: str, key: str, position: int) -> bytes:
    """Change one bit of a stored value, at a position from its end; returns its bytes as they are now."""
    with open_backend(url) as backend:
        data = bytearray(backend.get(key).data)
        data[position] ^= 0x10
        if url.startswith("file:"):
            path = Path(backend.path, f"{key}.perdure")
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) - len(data)] + data)
        else:
            with sqlite3.connect(backend.path) as database:
                database.execute("UPDATE blobs SET data = ? WHERE key = ?", (bytes(data), key))
            database.close()
    return bytes(data)


def keys(url: str) -> list[str]:
    with open_backend(url) as backend:
        return sorted(backend.keys())


@pytest.mark.smoke
def test_a_healthy_place(run, url):
    fill(url)
    answer = run("doctor", url, "--json").json
    assert answer["healthy"]
    assert (answer["values"], answer["unchecked"], answer["unreadable"], answer["leftovers"]) == (3, 0, [], [])
    assert len(answer["checks"]) == 9
    assert all(check["ok"] for check in answer["checks"])
    assert keys(url) == ["a", "b/c", "d"]  # its own keys are gone again
    assert "healthy" in run("doctor", url).out


def test_s3_memory_and_null(run):
    assert run("doctor", "memory:", "--json").json["healthy"]
    assert run("doctor", "null:", "--json").json["checks"][0]["ok"] is None
    with servers.stub() as server, server.environment():
        assert run("doctor", f"s3://bucket/x?create=true&endpoint_url={server.endpoint_url}", "--json").json["healthy"]


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, 6, -1, -4, -5])
@pytest.mark.parametrize("scheme", ["file:place", "sqlite:///place.db"])
def test_a_flipped_bit(run, scheme, position):
    fill(scheme)
    damaged = flip(scheme, "d", position)
    answer = run("doctor", scheme, "--json", code=1).json
    assert not answer["healthy"]
    assert [one["key"] for one in answer["unreadable"]] == ["d"]
    assert keys(scheme) == ["a", "b/c", "d"]  # looking changes nothing
    with open_backend(scheme) as backend:
        assert backend.get("d").data == damaged


@pytest.mark.parametrize("codec", ["msgpack", "pkl"])
def test_repair_sets_aside_and_loses_no_byte(run, url, codec):
    fill(url, codec)
    damaged = flip(url, "d", -3)
    assert run("doctor", url, "--repair", "--json").json["healthy"]
    assert keys(url) == ["a", "b/c"]
    if url.startswith("file:"):
        (aside,) = Path("place/.perdure/set-aside").iterdir()
        assert aside.read_bytes().endswith(damaged)
    else:
        assert run("ls", "perdure-set-aside", "--json").json == ["d"]
        with open_backend("perdure-set-aside") as place:
            assert place.get("d").data == damaged
    assert run("doctor", url, "--json").json["healthy"]
    with perdure.open(url, codec=codec) as d:
        assert dict(d.items()) == {"a": ("text", 1), ("b", "c"): ("text", 1)}


def test_set_aside_twice_keeps_both(run):
    url, kept = "sqlite:///place.db", []
    for bit in range(2):
        fill(url, value=[bit])
        kept.append(flip(url, "d", -3))
        assert run("doctor", url, "--repair", "--aside", "sqlite:///aside.db", "--json").json["healthy"]
    with open_backend("sqlite:///aside.db") as place:
        assert [place.get(key).data for key in ("d", "d~1")] == kept


def test_what_was_written_anew_since_it_was_found_stays(run, url):
    fill(url)
    flip(url, "d", -3)
    with perdure.open(url) as d:
        d["d"] = "anew"  # found damaged, and now it is whole
        assert set_aside(d.backend, "d", "perdure-set-aside", IntegrityCheck(d.backend, "msgpack")) == ""
        assert d["d"] == "anew"
    flip(url, "d", -3)
    with perdure.open(url) as d:
        writer = threading.Thread(target=d.__setitem__, args=("d", "anew again"))

        def examine(keys: list[str]) -> list[Unreadable]:
            """Find it damaged still, and let somebody write it anew before the answer is heard."""
            writer.start()
            writer.join(0.2)  # on a folder it cannot get in, and writes when the damaged file is out of the way
            return [Unreadable(key, "damaged") for key in keys]

        try:
            set_aside(d.backend, "d", "perdure-set-aside", examine)
        except PreconditionError:
            assert not url.startswith("file:")
        writer.join()
        assert d["d"] == "anew again"


def test_what_cannot_be_set_aside_stays(run):
    fill("sqlite:///place.db")
    damaged = flip("sqlite:///place.db", "d", -3)
    Path("occupied").write_text("x")
    answer = run("doctor", "sqlite:///place.db", "--repair", "--aside", "./occupied", "--json", code=1).json
    assert "could not be set aside" in answer["unreadable"][0]["problem"]
    with open_backend("sqlite:///place.db") as backend:
        assert backend.get("d").data == damaged


@pytest.fixture
def folder(run) -> Iterator[Path]:
    """A folder for somebody who is not root, to whom no file is closed; during the test we are that somebody."""
    fill("file:known")  # all that is imported at first use: another user may not even read Python's own folder
    run("doctor", "file:known")
    run("cp", "file:known", "file:copied")
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to others
        root = os.geteuid() == 0
        if root:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name, "place")
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
def test_one_value_that_may_not_be_read_does_not_keep_us_from_the_others(run, folder):
    fill(f"file:{folder}")
    (folder / "d.perdure").chmod(0)
    found = run("doctor", f"file:{folder}", "--json", code=1).json
    (one,) = found["unreadable"]
    assert (one["key"], one["closed"]) == ("d", True)
    assert "Check the owner and mode" in one["problem"]
    assert found["values"] == 3
    assert "--repair" not in run("doctor", f"file:{folder}", code=1).out
    (one,) = run("doctor", f"file:{folder}", "--repair", "--json", code=1).json["unreadable"]
    assert (one["key"], one["aside"]) == ("d", "")
    assert (folder / "d.perdure").exists(), "a mode is not mended by setting the value aside"
    assert {item["key"] for item in run("ls", f"file:{folder}", "--long", "--json").json} == {"a", "b/c", "d"}
    copied = run("cp", f"file:{folder}", f"file:{folder}-copy", "--json", code=1).json
    assert copied["copied"] == 2
    assert list(copied["unreadable"]) == ["d"]


def test_a_file_cut_short_is_set_aside_although_nobody_can_read_it(run):
    fill("file:place")
    path = Path("place/d.perdure")
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    answer = run("doctor", "file:place", code=1)
    assert "d: " in answer.out
    assert "--repair" in answer.out
    run("doctor", "file:place", "--repair")
    (aside,) = Path("place/.perdure/set-aside").iterdir()
    assert aside.read_bytes() == whole[:20]
    assert keys("file:place") == ["a", "b/c"]


@pytest.mark.parametrize(
    ("codec", "value", "damage", "found"),
    [
        ("json", [1, 2], b"[1,", True),
        ("json", [1, 2], b"\xff\xfe", True),
        ("json", [1, 2], b'{"py/reduce": 1}', False),  # whole; whether to trust it is another question
        ("txt", "text", b"\xff", True),
        ("txt", "text", b"other text", False),
        ("pkl", [1, 2], b"\x04\x22\x4d\x18 cut", True),
        ("raw", b"bytes", b"\xc1 anything", False),
        ("msgpack", [1], b"not a frame", True),
        ("msgpack", [1], b"", True),
    ],
)
def test_values_of_each_codec(run, codec, value, damage, found):
    fill("sqlite:///place.db", codec, value)
    with open_backend("sqlite:///place.db") as backend:
        backend.put("d", damage)
    answer = run("doctor", "sqlite:///place.db", "--json", code=1 if found else 0).json
    assert [one["key"] for one in answer["unreadable"]] == (["d"] if found else [])


def test_a_pickle_is_checked_without_being_run(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    with perdure.open("file:place", codec="pkl") as d:
        d["bomb"] = Bomb()
        d.backend.put("plain", b"\x80\x05N.")
    assert run("doctor", "file:place", "--json").json["unchecked"] == 1
    assert not (tmp_path / "it ran").exists()


def test_values_of_unknown_origin_are_not_called_damaged(run):
    with open_backend("file:place") as backend:
        backend.put("anything", b"1")
    answer = run("doctor", "file:place", "--repair", "--json").json
    assert (answer["unchecked"], answer["unreadable"]) == (1, [])
    assert "--codec" in run("doctor", "file:place").out
    answer = run("doctor", "file:place", "--codec", "msgpack", "--json", code=1).json
    assert [one["key"] for one in answer["unreadable"]] == ["anything"]


def test_nothing_is_written_into_a_folder_of_others(run):
    Path("folder").mkdir()
    Path("folder/a_btax.pkl").write_bytes(b"theirs")
    answer = run("doctor", "folder", "--json").json
    assert answer["checks"][0]["ok"] is None
    assert os.listdir("folder") == ["a_btax.pkl"]
    Path("empty").mkdir()
    assert len(run("doctor", "empty", "--json").json["checks"]) == 9


def test_leftovers(run):
    fill("file:place")
    Path("place/.perdure/tmp/07-1f").write_bytes(b"half a val")
    assert "leftover" in run("doctor", "file:place").out
    Path("place/.perdure/tmp/07-1f").write_bytes(b"half a val")
    answer = run("doctor", "file:place", "--repair", "--json").json
    assert answer["leftovers"]
    assert os.listdir("place/.perdure/tmp") == []


@pytest.mark.parametrize("query", ["", "?layout=plain&suffix=.msgpack"])
def test_a_folder_is_left_as_it_was(run, query):
    fill(f"file:place{query}")
    before = sorted(str(path) for path in Path("place").rglob("*") if ".perdure" not in path.parts)
    run("doctor", f"file:place{query}")
    assert sorted(str(path) for path in Path("place").rglob("*") if ".perdure" not in path.parts) == before


def test_what_a_killed_doctor_left_behind(run, monkeypatch):
    fill("memory:doctored")
    with open_backend("memory:doctored") as backend:
        backend.put("perdure-doctor-0123/first", b"first")
    assert run("doctor", "memory:doctored", "--json").json["leftovers"] == []  # may belong to one that is running
    monkeypatch.setattr("perdure.cli.doctor._HOUR", -1.0)
    assert run("doctor", "memory:doctored", "--json").json["leftovers"] == ["perdure-doctor-0123/first"]
    assert run("doctor", "memory:doctored", "--repair", "--json").json["values"] == 3
    assert keys("memory:doctored") == ["a", "b/c", "d"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_we_may_not_write(run):
    fill("file:place")
    for folder in ("place", "place/.perdure", "place/.perdure/locks", "place/.perdure/tmp"):
        Path(folder).chmod(0o555)
    try:
        answer = run("doctor", "file:place", "--json").json
    finally:
        for folder in ("place", "place/.perdure", "place/.perdure/locks", "place/.perdure/tmp"):
            Path(folder).chmod(0o755)
    assert answer["checks"][0]["ok"] is None
    assert answer["values"] == 3


class Lying(MemoryBackend):
    """Ignores every condition."""

    def put(self, key, data, *, if_match=None):
        return super().put(key, data)

    def delete(self, key, *, if_match=None):
        return super().delete(key)


class Racing(MemoryBackend):
    """Compares, and then writes, without a lock around both."""

    def put(self, key, data, *, if_match=None):
        if if_match is ABSENT:
            if self.contains(key):
                return super().put(key, data, if_match=ABSENT)
        elif if_match is not None and self.get(key).etag != if_match:
            return super().put(key, data, if_match=if_match)
        selftest.threading.Event().wait(0.001)  # what every slow medium has between the two
        return super().put(key, data)


class Sized(MemoryBackend):
    """Takes the size for a version."""

    def put(self, key, data, *, if_match=None):
        super().put(key, data)
        return ETag(str(len(data)))

    def get(self, key, *, if_none_match=None):
        blob = super().get(key)
        return Blob(blob.data, ETag(str(len(blob.data))), blob.modified)


class Neighbourly(MemoryBackend):
    """Lists whatever begins like the prefix."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        return filter(lambda key: key.startswith(prefix.rstrip("/")), super().keys())


class Undying(MemoryBackend):
    """Deletes nothing."""

    def delete(self, key, *, if_match=None):
        pass


@pytest.mark.parametrize(
    ("broken", "noticed"),
    [
        (Lying, {"creates only once", "refuses a stale swap", "refuses a stale delete"}),
        (Racing, {"8 threads create, one wins", "8 threads swap, one wins"}),
        (Sized, {"reads back what was written"}),
        (Neighbourly, {"lists a prefix exactly"}),
        (Undying, {"reads back what was written", "8 threads delete, one wins"}),
    ],
)
def test_a_backend_that_breaks_its_promises(run, monkeypatch, broken, noticed):
    monkeypatch.setattr(selftest, "ROUNDS", 5)
    monkeypatch.setitem(registry._known, "broken", (f"{__name__}:{broken.__name__}", ""))
    answer = run("doctor", f"broken:{uuid4()}", "--json", code=1).json
    assert noticed <= {check["name"] for check in answer["checks"] if check["ok"] is False}
    assert "BAD" in run("doctor", f"broken:{uuid4()}", code=1).out


class ReadOnly(MemoryBackend):
    def put(self, key, data, *, if_match=None):
        raise PolicyError("this place is read-only", key=key, place=self.place)


class Full(MemoryBackend):
    def put(self, key, data, *, if_match=None):
        raise perdure.BackendError("the disk is full", key=key, place=self.place, errno=28)


def test_a_place_that_cannot_be_written(run, monkeypatch):
    monkeypatch.setitem(registry._known, "readonly", (f"{__name__}:ReadOnly", ""))
    monkeypatch.setitem(registry._known, "full", (f"{__name__}:Full", ""))
    assert run("doctor", f"readonly:{uuid4()}", "--json").json["checks"][0]["ok"] is None
    assert run("doctor", f"full:{uuid4()}", "--json", code=1).json["checks"][0]["ok"] is False


class Vanishing(MemoryBackend):
    """Lists a key that is gone when it is read."""

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        yield from super().scan(prefix)
        yield Meta("gone", ETag("x"), 3, 0.0)

    def get(self, key, *, if_none_match=None):
        if key == "gone":
            raise NotFoundError(key=key)
        return super().get(key, if_none_match=if_none_match)


def test_keys_that_are_deleted_meanwhile_are_no_damage(run, monkeypatch):
    monkeypatch.setitem(registry._known, "vanishing", (f"{__name__}:Vanishing", ""))
    assert run("doctor", f"vanishing:{uuid4()}", "--json").json["healthy"]


def test_a_row_of_another_program_is_damage(run):
    fill("sqlite:///x.db")
    with sqlite3.connect("x.db") as db:
        db.execute("INSERT INTO blobs VALUES ('text', 'e', 0, 'text'), ('a b', 'e', 0, x'00')")
    db.close()
    answer = run("doctor", "sqlite:///x.db", code=1)
    assert "text" in answer.out
    assert "not bytes" in answer.out
    assert "a b" not in answer.out
    assert "text" in run("cp", "sqlite:///x.db", "file:copy", code=1).err
    assert "text" not in run("ls", "file:copy").out
