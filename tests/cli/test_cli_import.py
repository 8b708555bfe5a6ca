"""import: everything of a shelf, a sqlitedict or a diskcache arrives, and these stay as they are, byte for byte."""

from __future__ import annotations

import base64
import dbm.dumb
import hashlib
import importlib
import io
import json
import os
import pickle
import shelve
import sqlite3
import subprocess
import sys
from collections import Counter, OrderedDict
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import UUID, uuid4

import diskcache
import numpy as np
import pytest
import sqlitedict

import perdure
from perdure import registry
from perdure.cli import places
from perdure.cli.keynames import name_of
from perdure.cli.sources import Entry, UnreadableKey, open_source
from perdure.errors import CodecError, InvalidKeyError, UntrustedError
from perdure.mapping.sameness import same
from perdure_backends.memory import MemoryBackend

TRUSTED = "--trusted"


class Point:
    """Equals itself only, and msgpack does not know it."""

    def __init__(self, x):
        self.x = x


def values(n=150):
    """Items of all kinds that msgpack holds, with keys that are legal everywhere."""
    kinds = [
        None, True, 0, -1, 2**63 - 1, 2**63, -(2**200), 1.5, -0.0, float("nan"), float("inf"), "", "é\r\nü\n\0", b"", b"\0\xff",
        [1, [2, (3,)]], (1, "a", None), {"a": {1: b"x"}, (1, 2): []}, {1, 2}, frozenset({"a"}), Decimal("1.10"), 1 + 2j,
        datetime(2020, 2, 29, 1, 2, 3, 4, tzinfo=UTC), date(1999, 1, 1), timedelta(days=-1), UUID(int=7),
        "x" * 40_000, b"\r\n" * 40_000, list(range(20_000)), "é\r\n" * 30_000,
    ]  # fmt: skip
    return {f"k{i}": kinds[i] if i < len(kinds) else {"n": i, "t": (i, str(i))} for i in range(n)}


def make_shelf(path, items):
    with closing(shelve.Shelf(dbm.dumb.open(path, "n"))) as shelf:
        shelf.update(items)
    return path


def make_new_shelf(path, items):
    """As shelve does from Python 3.13 on, by dbm.sqlite3: in a write-ahead log."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = wal")
        db.execute("\n  CREATE TABLE IF NOT EXISTS Dict (\n    key BLOB UNIQUE NOT NULL,\n    value BLOB NOT NULL\n  )\n")
        for key, value in items.items():
            db.execute("REPLACE INTO Dict VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key.encode(), pickle.dumps(value)))
    return path


def make_sqlitedict(path, items, table="unnamed", **options):
    with sqlitedict.SqliteDict(path, tablename=table, **options) as store:
        store.update(items)
        store.commit()
    return path


def make_cache(path, items):
    with diskcache.Cache(path) as cache:
        for key, value in items.items():
            cache[key] = value
    return path


def make_fanout(path, items):
    with diskcache.FanoutCache(path, shards=4) as cache:
        for key, value in items.items():
            cache[key] = value
    return path


def make_index(path, items):
    index = diskcache.Index(path)
    index.update(items)
    index.cache.close()
    return path


MAKERS = [make_shelf, make_new_shelf, make_sqlitedict, make_cache, make_fanout, make_index]
for module in ("dbm.gnu", "dbm.ndbm", "dbm.sqlite3"):
    try:
        reader = importlib.import_module(module)
    except ImportError:
        continue

    def make_dbm(path, items, reader=reader):
        with closing(shelve.Shelf(reader.open(path, "n"))) as shelf:
            shelf.update(items)
        return path

    make_dbm.__name__ = f"make_{module}"
    MAKERS.append(make_dbm)


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def make(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.fixture
def take(run):
    """Run `perdure import`, and see to it that all files but those of the target are as before, and none came."""

    def take(source, target="file:new", *words, code=0):
        before = files()
        answer = run("import", source, target, *words, "--json", TRUSTED, code=code)
        assert files() == before
        return answer.json if answer.out else answer

    return take


def files():
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path().rglob("*"))
        if path.is_file() and not path.parts[0].startswith("new")
    }


def arrived(target="file:new", **options):
    with perdure.open(target, **options) as d:
        return {"/".join(key): value for key, value in d.items()}


def exactly(found, wanted):
    assert sorted(found) == sorted(wanted)
    for key, value in wanted.items():
        assert type(found[key]) is type(value)
        assert repr(found[key]) == repr(value), key
    return True


# Everything arrives


@pytest.mark.parametrize("target", ["file:new", "sqlite:///new.db"])
def test_everything_arrives_and_the_source_is_untouched(make, take, target):
    items = values()
    make("old", items)
    answer = take("old", target)
    assert (answer["imported"], answer["verified"], answer["identical"]) == (len(items), True, 0)
    assert exactly(arrived(target), items)
    answer = take("old", target)
    assert (answer["imported"], answer["identical"], answer["verified"]) == (0, len(items), True)


def test_help(run):
    assert "import  " in run("--help").out
    shown = " ".join(run("import", "--help").out.split())
    assert "runs whatever code it names" in shown
    assert "--keys [strict|replace|hash]" in shown


@pytest.mark.parametrize("ending", [".dat", ".dir", ".bak"])
def test_a_shelf_is_found_by_any_of_its_files(take, ending):
    make_shelf("old.v1", {"k": 1})
    take("old.v1" + ending)
    assert arrived() == {"k": 1}


def test_a_cache_is_found_by_its_database_and_a_shelf_beside_a_folder_of_its_name(take):
    make_cache("cache", {"k": "x" * 50_000})
    assert take("cache/cache.db")["imported"] == 1
    Path("shelf").mkdir()
    make_shelf("shelf", {"j": 1})
    assert take("shelf")["imported"] == 1


def test_a_shelf_with_writeback(take):
    with closing(shelve.Shelf(dbm.dumb.open("old", "c"), writeback=True)) as shelf:
        shelf["list"] = []
        shelf["list"].append(1)
    take("old")
    assert arrived() == {"list": [1]}


def test_empty_stores(make, take):
    make("old", {})
    answer = take("old")
    assert (answer["imported"], answer["verified"]) == (0, True)


def test_huge_text_keeps_its_line_ends_and_every_mode_of_diskcache_is_read(take):
    big = "line\r\nline\rline\n" * 10_000
    with diskcache.Cache("old") as cache:
        cache["text"], cache["bytes"], cache["pickle"] = big, big.encode(), [big]
        cache.set("stream", io.BytesIO(b"abc" * 50_000), read=True)
        cache.incr("count", 5)
        modes = {mode for (mode,) in cache._sql("SELECT mode FROM Cache")}
    assert modes == {1, 2, 3, 4}
    take("old")
    expected = {"text": big, "bytes": big.encode(), "pickle": [big], "stream": b"abc" * 50_000, "count": 5}
    assert exactly(arrived(), expected)


def test_expired_items_stay_behind_and_what_is_lost_is_said(run, take):
    with diskcache.Cache("old", cull_limit=0) as cache:
        cache.set("gone", 1, expire=-1)
        cache.set("later", 2, expire=1000)
        cache.set("tagged", 3, tag="t")
        cache["plain"] = 4
    answer = take("old")
    assert (answer["imported"], answer["expired"], answer["expiring"], answer["tagged"]) == (3, 1, 1, 1)
    assert arrived() == {"later": 2, "tagged": 3, "plain": 4}
    said = run("import", "old", "other", TRUSTED)
    assert "imported 3 values" in said.out
    assert "1 left out because expired" in said.out
    assert "1 value had an expiry time" in said.err
    assert "1 value had a tag" in said.err


def test_parts_of_a_fanout_cache_that_are_stores_of_their_own_are_named(take):
    with diskcache.FanoutCache("old", shards=3) as cache:
        cache["k"] = 1
        with cache.index("inner").cache as inner, cache.deque("queue").cache as queue:
            inner["j"] = 2
            queue.push(3)
    assert "deque, index" in take("old")["notes"][0]
    assert arrived() == {"k": 1}
    assert take("old/index/inner")["imported"] == 1
    for path in Path("old/001").iterdir():
        path.unlink()
    assert "000, 002" in take("old")["notes"][0]


# Trust


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled_before_somebody_says_so(make, run):
    make("old", {"k": Bomb()})
    answer = run("import", "old", "new", code=2)
    assert "run whatever code" in answer.err
    assert "--trusted" in answer.err
    assert not Path("exploded").exists()
    assert not Path("new").exists()
    with open_source("old") as source:
        with pytest.raises(UntrustedError):
            source.entries()
        with pytest.raises(UntrustedError):
            next(source.items())
    assert not Path("exploded").exists()
    run("import", "old", "new", TRUSTED)
    assert Path("exploded").exists()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_on_a_terminal_it_asks(tmp_path):
    make_sqlitedict(str(tmp_path / "old.db"), {"k": 1})
    for typed, code in (("n\n", 1), ("y\n", 0)):
        outside, inside = os.openpty()
        command = [sys.executable, "-m", "perdure", "import", "old.db", "new"]
        child = subprocess.Popen(command, cwd=tmp_path, stdin=inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(inside)
        os.write(outside, typed.encode())
        out, err = child.communicate()
        assert b"Do you trust everybody who could write to it?" in err
        assert (child.returncode, b"imported 1 value" in out) == (code, not code)
        assert (b"nothing was read" in err) is bool(code)
        os.close(outside)


# Keys


def test_keys_that_are_not_legal_are_listed_and_nothing_is_written(take):
    items = {f"user:{i}": i for i in range(12)} | {"fine": 1}
    make_sqlitedict("old.db", items)
    answer = take("old.db", code=2)
    assert "12 keys cannot be taken over" in answer.err
    assert answer.err.count("\n  'user:") == 10
    assert "... and 2 more" in answer.err
    assert "--keys replace or --keys hash" in answer.err
    assert not Path("new").exists()


def test_replaced_keys(take):
    keys = {
        "user:1": "user_1", "a/b": "a/b", "a b/c:d": "a_b/c_d", "/root//x": "_root__x", "http://x/y": "http___x_y",
        1: "1", -2: "-2", 1.5: "1.5", b"bytes/x": "bytes/x", b"\xff\x00": "ff00", ("t", 1, None): "t/1/None",
        ("f", ("g", True)): "f/g/True", "é": "_", "..x": "..x", "a/..": "a_..",
    }  # fmt: skip
    make_cache("old", {key: repr(key) for key in keys})
    take("old", "file:new", "--keys", "replace")
    assert arrived() == {name: repr(key) for key, name in keys.items()}


def test_tuples_of_legal_text_are_levels_without_being_asked_for(take):
    make_cache("old", {("a", "b"): 1, "c": 2})
    take("old")
    assert arrived() == {"a/b": 1, "c": 2}


@pytest.mark.parametrize("pair", [("a:b", "a b"), (1, "1"), (b"x", "x"), (("a", "b"), "a/b"), (1, 1.0)])
def test_two_keys_that_would_become_one_are_refused(take, pair):
    make_cache("old", {})
    with closing(sqlite3.connect("old/cache.db", isolation_level=None)) as db:  # as SQL: diskcache takes 1 for 1.0
        disk = diskcache.Disk("old", pickle_protocol=5)
        for key in pair:
            field, raw = disk.put(key)
            if not (pair == (1, 1.0) and key == 1.0 and type(key) is float):
                db.execute("INSERT INTO Cache (key, raw, mode, value) VALUES (?, ?, 1, 7)", (field, raw))
    if pair == (1, 1.0):
        assert take("old", "file:new", "--keys", "replace")["imported"] == 1
        return
    answer = take("old", "file:new", "--keys", "replace", code=2)
    assert "would both be" in answer.err
    assert not Path("new").exists()
    assert take("old", "file:new", "--keys", "hash")["imported"] == 2


@pytest.mark.parametrize("key", ["", ".", "..", "x" * 300, "A" * 200, (), frozenset({1}), date(2020, 1, 1)])
def test_a_hash_makes_any_key_legal_and_stays_the_same(take, key):
    make_cache("old", {key: 1, "fine": 2})
    if not isinstance(key, str) or key in ("", ".", ".."):
        assert not Path("new").exists()
        take("old", "file:new", "--keys", "replace", code=2)
    assert take("old", "file:new", "--keys", "hash")["imported"] == 2
    assert take("old", "file:new", "--keys", "hash")["identical"] == 2
    assert "fine" in arrived()


def test_names_by_hash_differ_where_keys_do():
    keys = ["a:b", "a b", 1, "1:", 1.0, True, None, b"1", (1,), ((1,),), (1, 2), ("1", "2:"), "x" * 300, "x" * 301, ""]
    names = [name_of(Entry(key, None), "hash") for key in keys]
    assert len(set(names)) == len(keys)
    assert names[0].startswith("a_b-")
    assert name_of(Entry("a:b", None), "hash") == names[0] == "a_b-" + hashlib.sha256(b"'a:b'").hexdigest()[:20]
    assert name_of(Entry(UnreadableKey("x"), None, b"12"), "hash").startswith("key-")
    with pytest.raises(InvalidKeyError, match="cannot be read"):
        name_of(Entry(UnreadableKey("x"), None, b"12"), "strict")
    assert name_of(Entry(10**5000, None), "hash").startswith("0x")


def test_a_key_too_long_for_the_target_is_found_before_anything_is_written(take, monkeypatch):
    monkeypatch.setattr(places, "BATCH_KEYS", 1)
    make_sqlitedict("old.db", {"a": 1, "x" * 250: 2})
    answer = take("old.db", code=2)
    assert "file name of" in answer.err
    assert not Path("new/a.perdure").exists()
    assert take("old.db", "sqlite:///new.db")["imported"] == 2


def test_keys_of_sqlitedict_in_pickles(take):
    keys = {"encode_key": sqlitedict.encode_key, "decode_key": sqlitedict.decode_key}
    make_sqlitedict("old.db", {(1, "a"): "x", 7: "y"}, **keys)
    take("old.db", "file:new", "--keys", "replace")
    assert arrived() == {"1/a": "x", "7": "y"}
    text = base64.b64encode(pickle.dumps(1)).decode()
    make_sqlitedict("text.db", {text: 1, "plain": 2})
    assert take("text.db", "file:new/text", "--keys", "replace", code=0)["imported"] == 2


# Values


def test_what_msgpack_cannot_hold_is_named_and_the_rest_arrives(run, take):
    items = {"point": Point(1), "fraction": [Fraction(1, 2)], "ordered": OrderedDict(a=1), "counter": Counter("aab"), "fine": 1}
    make_sqlitedict("old.db", items)
    answer = take("old.db", code=1)
    assert sorted(answer["refused"]) == ["counter", "fraction", "ordered", "point"]
    assert (answer["imported"], answer["verified"]) == (1, False)
    assert arrived() == {"fine": 1}
    said = run("import", "old.db", "new", TRUSTED, code=1)
    assert "4 values the codec cannot hold:\n  point: " in said.err
    assert "--codec pkl" in said.err
    answer = take("old.db", "sqlite:///new.db", "--codec", "pkl")
    assert answer["imported"] == 5
    found = arrived("sqlite:///new.db", codec="pkl")
    assert found["point"].x == 1
    assert found["counter"] == Counter("aab")
    assert take("old.db", "sqlite:///new.db", "--codec", "pkl")["identical"] == 5
    assert "--codec pkl" in run("import", "old.db", "sqlite:///new.db", TRUSTED, code=2).err  # recorded, not asked for


def test_a_codec_that_would_change_a_value_does_not_get_it(take, monkeypatch):
    from perdure.codecs.json import Json

    encode = Json.encode
    monkeypatch.setattr(Json, "encode", lambda self, value: b"[1]" if value == (1,) else encode(self, value))
    make_sqlitedict("old.db", {"tuple": (1,), "list": [1]})
    answer = take("old.db", "file:new", "--codec", "json", code=1)
    assert "another value" in answer["refused"]["tuple"]
    assert arrived() == {"list": [1]}


def test_arrays_and_deep_values(take):
    deep = []
    for _ in range(150):
        deep = [deep]
    items = {"c": np.arange(6).reshape(2, 3), "f": np.asfortranarray(np.ones((3, 2))), "o": np.float32(1.5), "deep": deep}
    make_cache("old", items)
    take("old", "file:new", "--codec", "pkl")
    found = arrived(codec="pkl")
    assert found["deep"] == deep
    for key in "cfo":
        assert found[key].dtype == items[key].dtype
        assert np.array_equal(found[key], items[key])


@pytest.mark.parametrize("maker", [make_shelf, make_new_shelf, make_sqlitedict, make_cache])
def test_pickles_that_cannot_be_restored_are_named_and_the_rest_arrives(take, monkeypatch, maker):
    class Lost:
        pass

    module = type(sys)("lost_module")
    module.Lost, Lost.__module__, Lost.__qualname__ = Lost, "lost_module", "Lost"
    monkeypatch.setitem(sys.modules, "lost_module", module)

    class Raises:
        def __reduce__(self):
            return int, ("no number",)

    maker("old", {"lost": Lost(), "raises": Raises(), "fine": 1, "also": [2]})
    monkeypatch.delitem(sys.modules, "lost_module")
    answer = take("old", code=1)
    assert sorted(answer["unreadable"]) == ["lost", "raises"]
    assert "lost_module" in answer["unreadable"]["lost"]
    assert "PYTHONPATH" in answer["unreadable"]["lost"]
    assert "ValueError" in answer["unreadable"]["raises"]
    assert arrived() == {"fine": 1, "also": [2]}


def test_a_key_that_cannot_be_restored(take):
    make_cache("old", {"fine": 1, (1, 2): 2})
    with closing(sqlite3.connect("old/cache.db", isolation_level=None)) as db:
        db.execute("UPDATE Cache SET key = x'8004' WHERE raw = 0")
    assert "a key that cannot be read" in take("old", "file:new", "--keys", "replace", code=2).err
    assert take("old", "file:new", "--keys", "hash")["imported"] == 2
    with open_source("old", trusted=True) as source, pytest.raises(CodecError, match="key cannot be read"):
        list(source.items())


# Conflicts, rehearsals, interruptions


def test_other_values_are_left_alone_unless_overwritten(run, take):
    make_sqlitedict("old.db", {"same": {1, 2, "x"}, "other": 1, "typed": True, "fresh": 4, "damaged": 5})
    with perdure.open("new") as d:
        d["same"], d["other"], d["typed"], d["own"], d["damaged"] = {"x", 2, 1}, 2, 1, "own", 5
    path = Path("new/damaged.perdure")
    path.write_bytes(path.read_bytes()[:-1])
    answer = take("old.db", code=1)
    assert (answer["conflicts"], answer["imported"], answer["identical"]) == (["damaged", "other", "typed"], 1, 1)
    with perdure.open("new") as d:
        assert (d["other"], d["typed"], d["fresh"]) == (2, 1, 4)
    said = run("import", "old.db", "new", TRUSTED, code=1)
    assert "3 keys in TARGET with another value" in said.err
    answer = take("old.db", "file:new", "--overwrite")
    assert (answer["conflicts"], answer["imported"], answer["replaced"], answer["identical"]) == ([], 3, 3, 2)
    expected = {"same": {1, 2, "x"}, "other": 1, "typed": True, "fresh": 4, "own": "own", "damaged": 5}
    found = arrived()
    assert found == expected
    assert found["typed"] is True


def test_an_equal_value_that_is_spelled_otherwise_is_there_already(take):
    make_sqlitedict("old.db", {"k": {"a": Decimal(1)}, "j": {"a": 1}})
    with perdure.open("new", codec="pkl") as d:
        d.backend.put("k", pickle.dumps({"a": Decimal(1)}, 2))
        d.backend.put("j", pickle.dumps({"a": True}, 2))
    answer = take("old.db", "file:new", "--codec", "pkl", code=1)
    assert (answer["identical"], answer["conflicts"]) == (1, ["j"])


def test_a_rehearsal_finds_everything_and_writes_nothing(make, run, take):
    make("old", values() | {"bad": Point(1)})
    answer = take("old", "file:new", "--dry-run", code=1)
    assert (answer["imported"], list(answer["refused"]), answer["verified"]) == (150, ["bad"], False)
    assert not Path("new").exists()
    assert take("old", "sqlite:///new.db", "--dry-run", code=1)["imported"] == 150
    assert not list(Path().glob("new*"))
    with perdure.open("new") as d:
        d["k5"] = "other"
    before = sorted(Path("new").rglob("*"))
    assert take("old", "file:new", "--dry-run", code=1)["conflicts"] == ["k5"]
    assert sorted(Path("new").rglob("*")) == before
    assert "would import 150 values" in run("import", "old", "new", TRUSTED, "--dry-run", "--overwrite", code=1).out
    assert arrived() == {"k5": "other"}


# A target that stops in the middle of the third batch, with part of it written, and waits there to be killed.
HALTING = """
import sys, threading
from perdure import registry
from perdure.cli import places
from perdure.cli.app import app
from perdure_backends.file import FileBackend

places.BATCH_KEYS = 10

class Halting(FileBackend):
    batches = 0

    def put_many(self, items):
        type(self).batches += 1
        if self.batches < 3:
            return super().put_many(items)
        super().put_many(dict(list(items.items())[:5]))
        print("halted", flush=True)
        threading.Event().wait()

sys.modules["halting"] = sys.modules["__main__"]
registry.register("halting", "halting:Halting")
app(sys.argv[1:])
"""


def test_killed_in_the_middle_and_resumed(make, take, tmp_path):
    items = values(60)
    make("old", items)
    before = files()
    command = [sys.executable, "-c", HALTING, "import", "old", "halting:new", TRUSTED]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as importer:
        assert importer.stdout.readline() == b"halted\n"
        importer.kill()
    assert files() == before
    assert len(arrived()) == 25
    answer = take("old")
    assert (answer["identical"], answer["imported"], answer["verified"]) == (25, 35, True)
    assert exactly(arrived(), items)


def test_many_batches(take, monkeypatch):
    monkeypatch.setattr(places, "BATCH_KEYS", 7)
    monkeypatch.setattr(places, "BATCH_BYTES", 1000)
    items = {f"k{i}": bytes([i]) * (i * 40) for i in range(60)} | {f"bad{i}": Point(i) for i in range(20)}
    make_sqlitedict("old.db", items)
    assert take("old.db", code=1)["imported"] == 60
    assert arrived() == {key: value for key, value in items.items() if key.startswith("k")}


class Forgetful(MemoryBackend):
    """Writes one value wrongly, and says nothing."""

    def put_many(self, items):
        return super().put_many({key: bytes(data)[:-1] if key == "k7" else data for key, data in items.items()})


class Interrupted(MemoryBackend):
    def put_many(self, items):
        raise KeyboardInterrupt


def test_what_arrives_otherwise_is_noticed(run, take, monkeypatch):
    monkeypatch.setitem(registry._known, "forgetful", (f"{__name__}:Forgetful", ""))
    monkeypatch.setitem(registry._known, "interrupted", (f"{__name__}:Interrupted", ""))
    make_shelf("old", values(20))
    answer = take("old", f"forgetful:{uuid4()}", code=1)
    assert (answer["unequal"], answer["imported"], answer["verified"]) == (["k7"], 19, False)
    said = run("import", "old", f"interrupted:{uuid4()}", TRUSTED, code=130)
    assert "0 of 20 values imported; the same command goes on from there" in said.err


# Sources that are open, were left by a killed program, or are damaged


# A program that has a store open, with a change that is in its log only, and writes once more when told to.
HOLDING = """
import sqlite3, sys
path, first, second = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
for statement in (first, second):
    db.execute(statement)
    print("written", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("maker", "path", "change"),
    [
        (make_cache, "old/cache.db", "UPDATE Cache SET value = 2 WHERE key = 'k'"),
        (make_new_shelf, "old", "UPDATE Dict SET value = x'80054b022e'"),
    ],
)
def test_a_store_that_is_open_is_read_as_it_is_and_not_disturbed(run, take, maker, path, change):
    maker("old", {"k": 1})
    command = [sys.executable, "-c", HOLDING, path, change, change.replace("2 ", "3 ").replace("022e", "032e")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "written\n"
        assert Path(f"{path}-wal").stat().st_size
        take("old")
        assert arrived() == {"k": 2}
        with open_source("old", trusted=True) as source:
            (entry,) = source.entries()
            print(file=holder.stdin, flush=True)
            assert holder.stdout.readline() == "written\n"
            assert source.value(entry) == 2  # of the same moment as the key
        with open_source("old", trusted=True) as source:
            assert [value for _, value, _ in source.items()] == [3]
        print(file=holder.stdin, flush=True)
    assert holder.returncode == 0


KILLED = """
import os, pickle, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 5")
for statement in sys.argv[2:]:
    db.execute(statement)
os.kill(os.getpid(), 9)
"""


def kill_in(path, *statements):
    assert subprocess.run([sys.executable, "-c", KILLED, path, *statements], check=False).returncode == -9


@pytest.mark.parametrize("index", ["kept", "lost"])
def test_a_log_left_by_a_killed_program_is_read_and_left(take, index):
    items = values(40)
    make_cache("old", items)
    kill_in("old/cache.db", "UPDATE Cache SET value = 'changed', mode = 1 WHERE key = 'k2'")
    if index == "lost":
        Path("old/cache.db-shm").unlink()
    assert Path("old/cache.db-wal").stat().st_size
    take("old")
    assert exactly(arrived(), items | {"k2": "changed"})


def test_a_transaction_that_a_killed_program_left_is_not_taken(take):
    items = {f"k{i}": "x" * 1000 for i in range(100)}
    make_sqlitedict("old.db", items)
    kill_in("old.db", "BEGIN", "UPDATE unnamed SET value = zeroblob(1500)")
    assert Path("old.db-journal").exists()
    take("old.db")
    assert arrived() == items
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("perdure-import-*/copy.db"))


def test_a_database_that_somebody_writes_to_is_told(run):
    make_sqlitedict("old.db", {"k": 1})
    with closing(sqlite3.connect("old.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        assert "a program is writing to it" in run("import", "old.db", "new", TRUSTED, code=3).err


def test_a_closed_cache_that_is_opened_while_it_is_read(run, take):
    make_cache("old", {"a": 1, "b": 2})
    with open_source("old", trusted=True) as source:
        first, _ = source.entries()
        with diskcache.Cache("old") as cache:
            cache["b"] = 3
            with pytest.raises(perdure.BackendError, match="changed while it was read"):
                source.value(first)


def test_damaged_values_are_named_and_the_rest_arrives(take):
    items = {f"k{i}": {"n": i} for i in range(50)} | {"big": "x" * 50_000, "gone": b"x" * 50_000, "pickle": [0] * 50_000}
    make_cache("old", items)
    with closing(sqlite3.connect("old/cache.db", isolation_level=None)) as db:
        db.execute("UPDATE Cache SET value = substr(value, 1, 10) WHERE key = 'k1'")
        db.execute("UPDATE Cache SET value = zeroblob(10) WHERE key = 'k2'")
        db.execute("UPDATE Cache SET mode = 9 WHERE key = 'k3'")
        db.execute("UPDATE Cache SET value = ? WHERE key = 'k4'", (pickle.dumps(4) + b"more",))
        names = dict(db.execute("SELECT key, filename FROM Cache WHERE filename IS NOT NULL"))
    (Path("old") / names["gone"]).unlink()
    (Path("old") / names["big"]).write_bytes(b"\xff\xff")
    (Path("old") / names["pickle"]).write_bytes(pickle.dumps([0] * 50_000)[:-1])
    answer = take("old", code=1)
    bad = ["big", "gone", "k1", "k2", "k3", "k4", "pickle"]
    assert sorted(answer["unreadable"]) == bad
    assert "cannot be read: No such file" in answer["unreadable"]["gone"]
    assert arrived() == {key: value for key, value in items.items() if key not in bad}


def test_a_cut_shelf(run, take):
    make_shelf("old", {f"k{i}": "x" * 100 for i in range(50)})
    data = Path("old.dat").read_bytes()
    Path("old.dat").write_bytes(data[: len(data) // 2])
    answer = take("old", code=1)
    assert 10 < answer["imported"] < 40
    assert len(answer["unreadable"]) == 50 - answer["imported"]
    Path("old.dir").write_text("'k1', (0, \n")
    assert "cannot be opened" in run("import", "old", "other", TRUSTED, code=3).err
    Path("old.dat").unlink()
    assert "there is nothing here" in run("import", "old", "other", TRUSTED, code=3).err


@pytest.mark.parametrize("cut", [100, 5000, 20_000])
def test_a_cut_database_is_an_error_of_one_line(run, cut):
    make_sqlitedict("old.db", {f"k{i}": "x" * 300 for i in range(200)})
    with open("old.db", "r+b") as file:
        file.truncate(cut)
    answer = run("import", "old.db", "new", TRUSTED, code=3)
    assert answer.err.startswith("perdure: ")
    assert answer.err.count("\n") == 1
    assert "damaged" in answer.err


def test_a_damaged_page_costs_only_what_is_on_it(take):
    items = {f"k{i}": bytes([i]) * 20_000 for i in range(20)}
    make_sqlitedict("old.db", items)
    data = bytearray(Path("old.db").read_bytes())
    at = data.index(bytes([7]) * 4092) - 4  # a page begins with the number of the next one
    assert at % 4096 == 0
    data[at : at + 4] = b"\xff\xff\xff\xff"
    Path("old.db").write_bytes(data)
    answer = take("old.db", code=1)
    assert answer["imported"] >= 18
    assert answer["unreadable"]
    assert arrived().items() <= items.items()


# What is refused


@pytest.mark.parametrize("encode", [json.dumps, lambda value: sqlite3.Binary(json.dumps(value).encode())])
def test_a_sqlitedict_with_an_encoding_of_its_own_is_refused(take, encode):
    make_sqlitedict("old.db", {"k": [1]}, encode=encode, decode=json.loads)
    assert "encode function of its own" in take("old.db", code=2).err


def test_tables_are_asked_for(take):
    make_sqlitedict("old.db", {"a": 1}, table="one")
    assert take("old.db")["imported"] == 1
    make_sqlitedict("old.db", {"b": 2}, table='t"w o')
    answer = take("old.db", code=2)
    assert "'one', 't\"w o'" in answer.err
    assert "--table NAME" in answer.err
    assert "no table 'three'" in take("old.db", "file:new", "--table", "three", code=2).err
    take("old.db", "file:new", "--table", 't"w o')
    assert arrived() == {"a": 1, "b": 2}


def test_a_deque_is_refused_and_an_index_of_numbers_is_not(take):
    deque = diskcache.Deque([1, 2], "deque")
    deque.appendleft(0)
    deque.cache.close()
    assert "Deque of diskcache" in take("deque", code=2).err
    make_index("index", {i: i for i in range(10)})
    assert take("index", "file:new", "--keys", "replace")["imported"] == 10


def test_other_disks_are_refused(take):
    with diskcache.Cache("old", disk=diskcache.JSONDisk) as cache:
        cache["k"] = [1]
    assert "JSONDisk" in take("old", code=2).err


def test_what_is_none_of_these(run):
    Path("text").write_text("hello, this is a text")
    Path("empty").touch()
    Path("folder").mkdir()
    with closing(sqlite3.connect("other.db")) as db:
        db.execute("CREATE TABLE t (a, b)")
    for path in ("text", "empty", "folder", "other.db"):
        assert "no store of shelve" in run("import", path, "new", TRUSTED, code=2).err
    assert "there is nothing here" in run("import", "nothing", "new", TRUSTED, code=3).err
    with perdure.open("ours") as d, perdure.open("sqlite:///ours.db") as e:
        d["k"] = e["k"] = 1
    for path in ("ours", "ours.db"):
        assert "place of perdure" in run("import", path, "new", TRUSTED, code=2).err
    os.mkdir("fake")
    with closing(sqlite3.connect("fake/cache.db")) as db:
        db.execute("CREATE TABLE t (a, b)")
    assert "not written by diskcache" in run("import", "fake", "new", TRUSTED, code=2).err
    assert not Path("new").exists()


def test_the_kind_that_was_asked_for(run):
    make_shelf("shelf", {"k": 1})
    make_sqlitedict("old.db", {"k": 1})
    make_cache("cache", {"k": 1})
    kinds = {"shelf": "shelve", "old.db": "sqlitedict", "cache": "diskcache"}
    for path, kind in kinds.items():
        for other in kinds.values():
            answer = run("import", path, f"to-{path}", "--from", other, TRUSTED, code=0 if other == kind else 2)
            assert other == kind or f"a store of {kind}, not of {other}" in answer.err
    assert "has no tables" in run("import", "cache", "new", "--table", "x", TRUSTED, code=2).err


def test_a_module_that_this_python_lacks_is_named(run, monkeypatch):
    monkeypatch.setattr(dbm, "whichdb", lambda name: "dbm.gnu")
    monkeypatch.setitem(sys.modules, "dbm.gnu", None)
    Path("old").write_bytes(b"\xce\x9a\x57\x13" + bytes(100))
    answer = run("import", "old", "new", TRUSTED, code=2)
    assert "needs dbm.gnu, which this Python lacks" in answer.err


@pytest.mark.parametrize("target", ["file:old", "old/below", "sqlite:///old/cache.db"])
def test_a_store_is_not_imported_into_itself(take, target):
    make_cache("old", {"k": 1})
    assert "the target lies inside" in take("old", target, code=2).err


# For programs


def test_items_for_programs(make):
    items = values(40)
    make("old", items)
    with open_source("old", trusted=True) as source:
        assert exactly({key: value for key, value, expires in source.items() if expires is None}, items)
    with open_source(Path("old"), source.kind, trusted=True) as source:
        assert source.kind in ("shelve", "sqlitedict", "diskcache")


# Sameness


def circle(x):
    knot = [x]
    knot.append(knot)
    return knot


ALIKE = [
    lambda: 1, lambda: float("nan"), lambda: [float("nan"), {"a": (1,)}], lambda: {1, "a", (1, 2)}, lambda: {float("nan"), 1},
    lambda: Point([1]), lambda: {Point(1)}, lambda: OrderedDict(a=Point(1)), lambda: circle(1), lambda: Decimal("1.0"),
    lambda: np.arange(3), lambda: np.array([Point(1)], dtype=object), lambda: ValueError("x"),
    lambda: [Point(i) for i in range(9)],
]  # fmt: skip
UNLIKE = [
    (1, True), (1, 1.0), (0.0, -0.0), ([1], (1,)), ({1}, {True}), ({1}, {2}), ({1}, {1, 2}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (Point(1), Point(2)), (Point(1), Point(True)), (circle(1), circle(2)), (OrderedDict(a=1), {"a": 1}), ({(1,)}, {(True,)}),
    (np.arange(3), np.arange(4)), (np.arange(3), np.arange(3.0)), (np.zeros((2, 1)), np.zeros((1, 2))),
    ([[1], [1]], [[1], [2]]),
    ({Point(1)}, {Point(2)}), (ValueError("x"), ValueError("y")), (b"a", bytearray(b"a")), (Counter("a"), Counter("b")),
]  # fmt: skip


@pytest.mark.parametrize("make_one", ALIKE)
def test_the_same(make_one):
    assert same(make_one(), make_one())


@pytest.mark.parametrize(("a", "b"), UNLIKE, ids=repr)
def test_not_the_same(a, b):
    assert not same(a, b)
    assert not same([a, 1], [b, 1])
    assert not same(b, a)
