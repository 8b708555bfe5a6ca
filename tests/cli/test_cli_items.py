"""ls, get, set and rm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import pytest

import perdure
from perdure import registry
from perdure.cli.output import one_line, safe
from perdure.errors import BackendError
from perdure_backends.memory import MemoryBackend


@pytest.mark.smoke
def test_a_value_comes_back(run, url):
    run("set", url, "a/b", '{"x": [1, 2.5, null, "é"]}')
    assert json.loads(run("get", url, "a/b").out) == {"x": [1, 2.5, None, "é"]}
    with perdure.open(url) as d:
        assert d["a", "b"] == {"x": [1, 2.5, None, "é"]}


@pytest.mark.parametrize(("typed", "value"), [("1", 1), ("-1", -1), ("text", "text"), ('"1"', "1"), ("null", None), ("", "")])
def test_json_is_json_and_the_rest_is_text(run, url, typed, value):
    run("set", url, "k", typed)
    with perdure.open(url) as d:
        assert d["k"] == value
        assert type(d["k"]) is type(value)


def test_a_value_from_stdin(run, url):
    run("set", url, "text", "-", input="two\nlines")
    run("set", url, "bytes", "-", input=b"\xff\x00")
    with perdure.open(url) as d:
        assert d["text"] == "two\nlines"
        assert d["bytes"] == b"\xff\x00"


def test_text_with_a_text_codec_is_never_json(run, url):
    run("set", url, "k", "1", "--codec", "txt")
    assert run("get", url, "k", "--raw").out == "1"
    assert run("get", url, "k").out == "1\n"  # the codec is recorded


def test_bytes_and_raw_come_out_exactly(tmp_path):
    data = bytes(range(256))
    with perdure.open(tmp_path / "d") as d:
        d["k"] = data
        stored = d.backend.get("k").data
    command = [sys.executable, "-m", "perdure", "get", "d", "k"]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path, check=True).stdout == data
    assert subprocess.run([*command, "--raw"], capture_output=True, cwd=tmp_path, check=True).stdout == stored


def test_what_json_cannot_say_is_python(run, url):
    with perdure.open(url) as d:
        d["k"] = {"when": (1, 2), "what": {3}}
    assert run("get", url, "k").out == "{'what': {3}, 'when': (1, 2)}\n"
    assert run("get", url, "k", "--json").json == {"key": "k", "value": {"when": [1, 2], "what": [3]}, "type": "dict"}


def test_json_of_bytes_and_times(run, url):
    with perdure.open(url) as d:
        d["b"] = b"\xff"
        d["t"] = datetime(2030, 1, 2, tzinfo=UTC)
        d["n"] = float("nan")
    assert run("get", url, "b", "--json").json["value"] == {"base64": "/w=="}
    assert run("get", url, "t", "--json").json["value"] == "2030-01-02T00:00:00+00:00"
    assert run("get", url, "n", "--json").json["value"] == "nan"


def test_json_is_json_in_any_locale(process):
    process("set", "d", "k", '{"ä🎉": "ä🎉"}')
    for words in (["--json"], []):
        answer = process("get", "d", "k", *words, PYTHONIOENCODING="ascii").json
        assert answer.get("value", answer) == {"ä🎉": "ä🎉"}
    assert "ä🎉" in process("get", "d", "k", "--json", PYTHONIOENCODING="utf-8").out


def test_json_of_arrays_leaves_nothing_out(run, url):
    np = pytest.importorskip("numpy")
    with perdure.open(url) as d:
        d["a"] = {"grid": np.arange(6).reshape(2, 3), "one": np.int8(3), "wide": np.longdouble(1)}
        d["b"] = np.arange(5000)
    assert run("get", url, "a", "--json").json["value"] == {
        "grid": [[0, 1, 2], [3, 4, 5]],
        "one": 3,
        "wide": repr(np.longdouble(1)),
    }
    assert run("get", url, "b", "--json").json["value"] == list(range(5000))


def test_json_of_what_contains_itself_is_refused(run, url):
    loop = []
    loop.append(loop)
    with perdure.open(url, codec="pkl") as d:
        d["a"] = loop
    answer = run("get", url, "a", "--codec", "pkl", "--json", code=2)
    assert answer.out == ""
    assert "nested too deeply" in answer.err
    assert "Recursion" in run("get", url, "a", "--codec", "pkl").out


@pytest.mark.parametrize("value", [10**5000, [1, {"n": -(10**5000)}], {10**5000: 1}], ids=["int", "inside", "key"])
def test_an_integer_of_very_many_digits_is_one_line(run, url, value):
    with perdure.open(url) as d:
        d["n"] = value
    for words in ([], ["--json"]):
        answer = run("get", url, "n", *words, code=2)
        assert answer.out == ""
        assert answer.err.startswith("perdure: key 'n' in ")
        assert "4300 digits" in answer.err
        assert answer.err.count("\n") == 1


@pytest.mark.parametrize("typed", ["9" * 5000, f"[{'9' * 5000}]"])
def test_an_integer_of_very_many_digits_is_not_taken_for_text(run, url, typed):
    assert "4300 digits" in run("set", url, "n", typed, code=2).err
    assert run("ls", url, code=None).out == ""
    run("set", url, "n", typed, "--codec", "txt")
    assert run("get", url, "n").out == typed + "\n"


def test_raw_is_no_json(run, url):
    run("set", url, "a", "1")
    answer = run("get", url, "a", "--raw", "--json", code=2)
    assert answer.out == ""
    assert answer.err.count("\n") == 1


def test_several_missing_keys_are_named(run, url):
    run("set", url, "a", "1")
    answer = run("rm", url, "no", "a", "nor/this", code=1)
    assert "2 keys not found: no, nor/this" in answer.err
    assert run("ls", url).out == ""


def test_if_absent_creates_once(run, url):
    run("set", url, "k", "1", "--if-absent")
    answer = run("set", url, "k", "2", "--if-absent", code=1)
    assert answer.err.startswith("perdure: key 'k' in ")
    assert answer.err.count("\n") == 1
    assert run("get", url, "k").out == "1\n"


class Plain(MemoryBackend):
    """A server that knows no conditions, and counts what is asked of it."""

    asked: ClassVar[list[str]] = []

    def get(self, key, *, if_none_match=None):
        self.asked.append("get")
        return super().get(key, if_none_match=if_none_match)

    def head(self, key):
        self.asked.append("head")
        return super().head(key)

    def put(self, key, data, *, if_match=None):
        self.asked.append("put")
        if if_match is not None:
            raise BackendError("conditions are not implemented here", key=key, place=self.place)
        return super().put(key, data)


def test_set_is_one_put_without_a_condition(run, monkeypatch):
    monkeypatch.setitem(registry._known, "plain", (f"{__name__}:Plain", ""))
    Plain.asked.clear()
    url = f"plain:{uuid4()}"
    run("set", url, "k", "1")
    run("set", url, "k", "2")
    assert Plain.asked == ["put", "put"]
    assert "conditions" in run("set", url, "k", "3", "--if-absent", code=3).err


def test_what_a_codec_does_not_hold_names_key_and_place(run, url):
    answer = run("set", url, "a/b", "-", "--codec", "json", input=b"\xff", code=1)
    assert answer.err.startswith("perdure: key 'a/b' in ")
    assert answer.err.count("\n") == 1


def test_set_tells_the_etag(run, url):
    etag = run("set", url, "k", "1", "--json").json["etag"]
    with perdure.open(url) as d:
        assert d.backend.head("k").etag == etag


def test_a_code_running_codec_is_asked_for_by_name(run, url):
    run("set", url, "k", "[1]", "--codec", "pkl")
    answer = run("get", url, "k", code=2)
    assert "add --codec pkl" in answer.err
    assert answer.out == ""
    assert json.loads(run("get", url, "k", "--codec", "pkl").out) == [1]


def test_signed_values(run, url, monkeypatch):
    monkeypatch.setenv("SECRET", "s" * 32)
    run("set", url, "k", "[1]", "--filter", "lz4", "--filter", "signed=SECRET")
    assert run("get", url, "k", "--filter", "lz4", "--filter", "signed=SECRET", "--json").json["value"] == [1]
    run("get", url, "k", code=1)
    run("get", url, "k", "--filter", "sealed=SECRET", code=2)


def test_ls(run, url):
    for key in ("b", "a/1", "a/2", "ab"):
        run("set", url, key, "1")
    assert run("ls", url).out.splitlines() == ["a/1", "a/2", "ab", "b"]
    assert run("ls", url, "--prefix", "a").out == run("ls", url, "--prefix", "a/").out == "a/1\na/2\n"
    assert run("ls", url, "--json").json == ["a/1", "a/2", "ab", "b"]
    assert run("ls", url, "--json", "--prefix", "nothing").json == []
    (row,) = run("ls", url, "--long", "--prefix", "a", "--json").json[:1]
    assert row["key"] == "a/1"
    assert row["size"] > 0
    assert row["modified"].endswith("+00:00")
    _size, unit, day, clock, key = run("ls", "-l", url).out.splitlines()[0].split()
    assert (unit, key, len(day), len(clock)) == ("B", "a/1", 10, 8)


def test_ls_without_url_is_here(run, tmp_path):
    run("set", ".", "k", "1")
    assert run("ls").out == "k\n"


def test_a_misspelt_path_is_noticed_and_nothing_is_created(run, tmp_path):
    for words in (["ls"], ["get", "k"], ["rm", "k"], ["info"], ["doctor"], ["cp", "target"]):
        answer = run(words[0], "nothing", *words[1:], code=3)
        assert "there is nothing here" in answer.err
        assert answer.err.count("\n") == 1
        run(words[0], "sqlite:///nothing.db", *words[1:], code=3)
    assert os.listdir(tmp_path) == []


def test_options_without_a_scheme_are_noticed(run):
    run("set", "place", "a", "1")
    assert "file:place?sync=normal" in run("ls", "place?sync=normal", code=3).err
    assert run("ls", "file:place?sync=normal").out == "a\n"


def test_rm(run, url):
    for key in ("a/1", "a/2", "b", "c"):
        run("set", url, key, "1")
    run("rm", url, "b")
    assert run("ls", url, "--json").json == ["a/1", "a/2", "c"]
    answer = run("rm", url, "c", "zz", code=1)
    assert "zz" in answer.err
    assert run("ls", url, "--json").json == ["a/1", "a/2"]
    assert run("rm", url, "zz", "--json", code=1).json == {"removed": 0, "missing": ["zz"]}


def test_rm_of_a_prefix_asks(run, url):
    for key in ("a/1", "a/2", "ab"):
        run("set", url, key, "1")
    assert "--yes" in run("rm", url, "--prefix", "a", code=2).err
    assert run("rm", url, "--prefix", "a", "--yes", "--json").json == {"removed": 2, "missing": []}
    assert run("ls", url, "--json").json == ["ab"]
    run("rm", url, "--prefix", "", "-y")
    assert run("ls", url, "--json").json == []


def test_rm_wants_keys_or_a_prefix(run, url):
    run("set", url, "k", "1")
    run("rm", url, code=2)
    run("rm", url, "k", "--prefix", "a", code=2)
    run("rm", url, "k", "not legal", code=2)
    assert run("ls", url, "--json").json == ["k"]


@pytest.mark.parametrize("prefix", ["a b", "../a", "a//b", "/a"])
def test_an_illegal_prefix_says_what_is_wrong_with_it(run, url, prefix):
    run("set", url, "a", "1")
    expected = run("get", url, prefix, code=2).err
    assert run("ls", url, "--prefix", prefix, code=2).err == expected
    assert "followed by" not in expected


def test_absent_and_illegal_keys(run, url):
    run("set", url, "k", "1")
    assert "not found" in run("get", url, "zz", code=1).err
    assert "cannot stand in a key" in run("get", url, "a b", code=2).err
    run("set", url, "../x", "1", code=2)
    run("ls", url, "--prefix", "..", code=2)


def test_a_key_that_is_not_there_is_told_from_one_that_is_near(run, url):
    for key in ("apple", "deep/er/key", "deep/er/other"):
        run("set", url, key, "1")
    for words in (("aple",), ("aple", "--raw")):
        assert "not found. Did you mean 'apple'?" in run("get", url, *words, code=1).err
    assert "Did you mean 'deep/er/key'?" in run("get", url, "deep/er/kex", code=1).err
    assert "There are keys below it: " in run("get", url, "deep", code=1).err
    assert " shows what is there" in run("get", url, "zzz", code=1).err


def test_a_damaged_value(run, tmp_path):
    run("set", "d", "k", "1")
    path = Path("d/k.perdure")
    path.write_bytes(path.read_bytes()[:-1])
    answer = run("get", "d", "k", code=1)
    assert "'k'" in answer.err
    assert answer.out == ""


def test_null_takes_everything(run):
    run("set", "null:", "k", "1")
    assert run("set", "null:", "k", "1", "--json", "--if-absent").json == {"key": "k", "etag": None}
    run("get", "null:", "k", code=1)


def test_memory_would_be_gone_at_once(run):
    run("set", "d", "k", "1")
    for words in (["set", "memory:x", "k", "1"], ["cp", "d", "memory:x"]):
        answer = run(*words, code=2)
        assert answer.out == ""
        assert "in memory:x: memory: is the memory of this command, which ends at once" in answer.err
    with perdure.open_backend("sqlite:///s.db") as database:
        database.put("k", b"damaged")
    run("doctor", "sqlite:///s.db", "--codec", "msgpack", "--repair", "--aside", "memory:x", code=1)
    with perdure.open_backend("sqlite:///s.db") as database:
        assert database.get("k").data == b"damaged"


def test_what_a_terminal_would_obey_is_spelled_out():
    assert safe("a\x1b[31mb\x07\x9b\u202e\tc\n") == "a\\x1b[31mb\\x07\\x9b\\u202e\tc\n"
    assert one_line("a\n\x1b b") == "a \\x1b b"
    assert safe("é 漢 🙂") == "é 漢 🙂"
