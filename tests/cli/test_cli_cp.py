"""cp and info: everything arrives, once, whole, and whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

import perdure
from perdure import open_backend, registry
from perdure.testing import servers
from perdure_backends.memory import MemoryBackend


def fill(url: str, n: int = 20, **options: object) -> dict[str, bytes]:
    with perdure.open(url, **options) as d:
        d.update({("group", f"k{i}"): {"n": i, "text": "x" * i} for i in range(n)})
        d["single"] = [1, 2, 3]
    return contents(url)


def contents(url: str) -> dict[str, bytes]:
    with open_backend(url) as backend:
        return {key: backend.get(key).data for key in sorted(backend.keys())}


PLACES = ["file:one", "sqlite:///one.db", "file:two?sync=normal", "sqlite:///two.db?sync=normal"]


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in PLACES[:2] for b in PLACES[2:]])
def test_everything_arrives(run, source, target):
    stored = fill(source, codec="json")
    answer = run("cp", source, target, "--json").json
    assert (answer["copied"], answer["identical"], answer["verified"]) == (21, 0, True)
    assert answer["bytes"] == sum(map(len, stored.values()))
    assert contents(target) == stored
    with perdure.open(target) as d:  # the codec came along
        assert d["single"] == [1, 2, 3]
        assert d.chain.codec.name == "json"


def test_to_s3_and_back(run):
    stored = fill("file:one")
    with servers.stub() as server, server.environment():
        s3 = f"s3://bucket/prefix?create=true&endpoint_url={server.endpoint_url}"
        run("cp", "file:one", s3)
        assert run("ls", s3, "--json").json == sorted(stored)
        run("cp", s3, "sqlite:///two.db")
    assert contents("sqlite:///two.db") == stored


def test_the_second_time_nothing_is_left_to_do(run):
    fill("file:one")
    run("cp", "file:one", "file:two")
    answer = run("cp", "file:one", "file:two", "--json").json
    assert (answer["copied"], answer["identical"]) == (0, 21)


@pytest.mark.skipif(not hasattr(os, "sync"), reason="no such call")
@pytest.mark.parametrize(("first", "then"), [("file:two?sync=normal", "file:two"), ("sqlite:///b?sync=normal", "sqlite:///b")])
def test_what_was_there_already_is_durable_as_well(run, monkeypatch, first, then):
    synced = []
    monkeypatch.setattr(os, "sync", lambda: synced.append(len(contents(then))))
    fill("file:one")
    run("cp", "file:one", first, "--prefix", "group")
    assert synced == []
    run("cp", "file:one", then)
    assert synced == [21]  # once, and at the end
    run("cp", "file:one", then)
    assert synced == [21, 21]


def test_a_prefix(run):
    stored = fill("file:one")
    answer = run("cp", "file:one", "file:two", "--prefix", "group", "--json").json
    assert answer["copied"] == 20
    assert contents("file:two") == {key: data for key, data in stored.items() if key.startswith("group/")}


def test_many_batches_and_large_values(run, monkeypatch):
    from perdure.cli import places

    monkeypatch.setattr(places, "BATCH_KEYS", 7)
    monkeypatch.setattr(places, "BATCH_BYTES", 1000)
    with perdure.open("file:one?sync=normal", codec="raw") as d:
        d.update({f"k{i}": bytes([i]) * (i * 40) for i in range(60)})
    run("cp", "file:one", "sqlite:///two.db")
    assert contents("sqlite:///two.db") == contents("file:one")


@pytest.mark.parametrize("other", [b"another", b"09876543210"], ids=["other size", "same size"])
def test_conflicts_are_refused_before_anything_is_copied(run, other):
    with open_backend("file:one") as one, open_backend("file:two") as two:
        one.put_many({"a": b"01234567890", "b": b"2", "same": b"3"})
        two.put_many({"a": other, "own": b"4", "same": b"3"})
    answer = run("cp", "file:one", "file:two", code=1)
    assert "  a\n" in answer.err
    assert "--overwrite" in answer.err
    assert contents("file:two") == {"a": other, "own": b"4", "same": b"3"}
    answer = run("cp", "file:one", "file:two", "--json", code=1).json
    assert (answer["conflicts"], answer["copied"], answer["identical"]) == (["a"], 0, 1)
    answer = run("cp", "file:one", "file:two", "--overwrite", "--json").json
    assert (answer["conflicts"], answer["copied"], answer["replaced"], answer["identical"]) == ([], 2, 1, 1)
    assert contents("file:two") == {"a": b"01234567890", "b": b"2", "own": b"4", "same": b"3"}


@pytest.mark.parametrize("options", [["--prefix", "nothing"], [], ["--overwrite"]])
@pytest.mark.parametrize("own", ["own", "single"])
def test_another_codec_is_refused_before_anything_is_compared(run, url, options, own):
    fill("file:one", codec="json")
    with perdure.open(url) as d:
        d[own] = 1
    stored = contents(url)
    answer = run("cp", "file:one", url, *options, code=2)
    assert "the source was written with codec 'json', this target with codec 'msgpack'" in answer.err
    assert "goes on from there" not in answer.err  # it would be refused again
    assert answer.err.count("\n") == 1
    assert contents(url) == stored


@pytest.mark.parametrize("target", ["file:one", "./one", "file:one/below"])
def test_a_place_is_not_copied_into_itself(run, target):
    stored = fill("file:one")
    run("cp", "file:one", target, code=2)
    assert contents("file:one") == stored


def test_what_cannot_be_read_is_named_and_the_rest_arrives(run):
    stored = fill("file:one")
    path = Path("one/single.perdure")
    path.write_bytes(path.read_bytes()[:-1])
    answer = run("cp", "file:one", "file:two", code=1)
    assert "  single\n" in answer.err
    assert contents("file:two") == {key: data for key, data in stored.items() if key != "single"}
    again = run("cp", "file:one", "file:two", "--json", code=1).json
    assert list(again["unreadable"]) == ["single"]
    assert again["identical"] == 20


class Forgetful(MemoryBackend):
    """Writes one value wrongly, and says nothing."""

    def put_many(self, items):
        return super().put_many({key: bytes(data)[:-1] if key == "single" else data for key, data in items.items()})


def test_what_arrives_otherwise_is_noticed(run, monkeypatch):
    monkeypatch.setitem(registry._known, "forgetful", (f"{__name__}:Forgetful", ""))
    fill("file:one")
    answer = run("cp", "file:one", f"forgetful:{uuid4()}", "--json", code=1).json
    assert answer["unequal"] == ["single"]
    assert (answer["copied"], answer["verified"]) == (20, False)
    assert run("cp", "file:one", "null:", "--json", code=1).json["copied"] == 0


# A target that stops in the middle of the third batch, with part of it written, and waits there to be killed.
HALTING = """
import sys, threading
from perdure import registry
from perdure.cli import places
from perdure.cli.app import app
from perdure_backends.{scheme} import {cls}

places.BATCH_KEYS = 10

class Halting({cls}):
    batches = 0

    def put_many(self, items):
        type(self).batches += 1
        if self.batches < 3:
            return super().put_many(items)
        some = dict(list(items.items())[:5])
        super().put_many(some)
        print("halted", flush=True)
        threading.Event().wait()

sys.modules["halting"] = sys.modules["__main__"]
registry.register("halting", "halting:Halting")
app(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("scheme", "cls", "url"), [("file", "FileBackend", "file:two"), ("sqlite", "SQLiteBackend", "sqlite:///two.db")]
)
def test_killed_in_the_middle_and_resumed(run, tmp_path, scheme, cls, url):
    stored = fill("file:one", 60)
    program = HALTING.format(scheme=scheme, cls=cls)
    halting = f"halting:{url.partition(':')[2]}"
    copier = subprocess.Popen([sys.executable, "-c", program, "cp", "file:one", halting], cwd=tmp_path, stdout=subprocess.PIPE)
    with copier:
        assert copier.stdout.readline() == b"halted\n"
        copier.kill()
    arrived = contents(url)
    assert len(arrived) == 25
    assert arrived.items() <= stored.items()
    answer = run("cp", "file:one", url, "--json").json
    assert (answer["identical"], answer["copied"], answer["verified"]) == (25, 36, True)
    assert contents(url) == stored
    with perdure.open(url) as d:
        assert d["single"] == [1, 2, 3]


def test_interrupted_says_how_to_go_on(run, monkeypatch):
    class Interrupted(MemoryBackend):
        def put_many(self, items):
            raise KeyboardInterrupt

    monkeypatch.setitem(globals(), "Interrupted", Interrupted)
    monkeypatch.setitem(registry._known, "interrupted", (f"{__name__}:Interrupted", ""))
    fill("file:one")
    answer = run("cp", "file:one", f"interrupted:{uuid4()}", code=130)
    assert "0 of 21 values copied; the same command goes on from there" in answer.err


def test_info(run, url):
    stored = fill(url)
    answer = run("info", url, "--json").json
    assert answer["values"] == 21
    assert answer["bytes"] == sum(map(len, stored.values()))
    assert answer["largest"]["key"] == "group/k19"
    assert answer["settings"]["codec"] == "msgpack"
    assert set(answer["guarantees"]) == {"durable", "shared", "swap", "limits"}
    assert answer["oldest"]["modified"] <= answer["newest"]["modified"]
    shown = run("info", url, "--prefix", "group").out
    assert "20 values" in shown
    assert "msgpack" in shown
    assert run("info", url, "--prefix", "nothing", "--json").json["largest"] is None
