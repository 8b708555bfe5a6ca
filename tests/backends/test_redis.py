"""The Redis backend keeps the contract and minds its own keys only. What is lost on the way is in test_redis_faults.py."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import (
    BackendError,
    IntegrityError,
    InvalidKeyError,
    MissingExtraError,
    NotFoundError,
    PreconditionError,
    UsageError,
)
from perdure.protocol import ABSENT, Backend, ETag
from perdure.registry import open_backend
from perdure.testing import BackendContract, servers
from perdure.testing.servers import RedisServer
from perdure.wrappers import Cached

redis = pytest.importorskip("redis")
from perdure_backends.redis import RedisBackend  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        with servers.redis() as server:
            yield server
    except MissingExtraError as error:
        pytest.skip(str(error))


class TestRedis(BackendContract):
    url: str

    @pytest.fixture(autouse=True)
    def at_server(self, server: RedisServer) -> None:
        self.url = server.url  # on this object, which travels to other processes

    def open(self, where: Path) -> Backend:
        return open_backend(f"{self.url}/contract-{hashlib.md5(str(where).encode()).hexdigest()}")


@pytest.fixture(scope="module")
def own() -> Iterator[RedisServer]:
    """A server in which nobody else keeps anything, whatever server is given."""
    try:
        with servers.redis("--databases", "4") as server:
            yield server
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture
def raw(own: RedisServer) -> Iterator[Any]:
    """Its database, which is empty but for what another program keeps there."""
    with redis.Redis(port=own.port) as client:
        client.flushall()
        client.mset(dict.fromkeys(FOREIGN, "foreign"))
        client.hset("perdure:app/hash", "field", "foreign")
        client.set("perdure:app/string", "foreign")
        client.rpush("perdure:app/list/one", "foreign")
        yield client


FOREIGN = ("app/a", "a", "perdure:a", "perdure:apple/a", "perdure:app", "perdure:other/a", "xperdure:app/a")
OCCUPIED = ["hash", "string", "list/one"]


@pytest.fixture
def backend(own: RedisServer, raw: Any) -> Iterator[RedisBackend]:
    with RedisBackend("127.0.0.1", own.port, prefix="app") as backend:
        yield backend


def test_keys_of_others_are_left_alone(backend: RedisBackend, raw: Any) -> None:
    before = {name: raw.dump(name) for name in raw.scan_iter()}
    for listing in (backend.scan(), backend.keys(), backend.times(), backend.uses()):
        assert list(listing) == []
    backend.put_many({"a": b"1", "b/c": b"2"})
    assert set(backend.keys()) == {"a", "b/c"}
    assert set(backend.keys("b/")) == {"b/c"}
    backend.mark_used(dict.fromkeys(["a", *OCCUPIED], 1e10))
    backend.delete_many(["a", "b/c"])
    assert {name: raw.dump(name) for name in raw.scan_iter() if b"!" not in name} == before


def test_a_place_of_a_prefix_is_not_one_of_a_pattern(own: RedisServer, raw: Any) -> None:
    with (
        RedisBackend("127.0.0.1", own.port, prefix="a*[b-d]?\\e") as odd,
        RedisBackend("127.0.0.1", own.port, prefix="aaacde") as plain,
        RedisBackend("127.0.0.1", own.port, prefix="äé") as accents,
    ):
        for backend in (odd, plain, accents):
            backend.put("k", backend.place.encode())
        for backend in (odd, plain, accents):
            assert {meta.key: backend.get(meta.key).data for meta in backend.scan()} == {"k": backend.place.encode()}


@pytest.mark.parametrize("key", OCCUPIED)
def test_a_name_that_another_program_uses_is_refused(backend: RedisBackend, raw: Any, key: str) -> None:
    before = raw.dump(f"perdure:app/{key}")
    calls: list[Callable[[], object]] = [
        lambda: backend.put(key, b""),
        lambda: backend.put(key, b"", if_match=ABSENT),
        lambda: backend.put_many({"a": b"", key: b""}),
        lambda: backend.delete(key),
        lambda: backend.delete_many(["a", key]),
    ]
    if key != "hash":  # which lacks our fields, so a read finds nothing there
        calls += [
            lambda: backend.get(key),
            lambda: backend.get(key, if_none_match=ETag("0" * 16)),
            lambda: backend.head(key),
            lambda: backend.contains(key),
            lambda: backend.get_many(["a", key]),
        ]
    for call in calls:
        with pytest.raises(BackendError, match="use another prefix") as caught:
            call()
        assert type(caught.value) is BackendError
        assert "WRONGTYPE" in str(caught.value)
        assert caught.value.key == key
    assert raw.dump(f"perdure:app/{key}") == before
    assert not backend.contains("a")


@pytest.mark.parametrize(
    "written", ["", "x", "0123456789abcdef 1", "0123456789abcdef 9 1.0", "0123456789abcdeX 1 1.0", "é 1 1.0"]
)
def test_a_record_that_another_program_damaged_is_noticed(backend: RedisBackend, raw: Any, written: str) -> None:
    etag = backend.put("k", b"1")
    raw.hset("perdure:app/k", "m", written)
    with pytest.raises(IntegrityError):
        backend.get("k")
    with pytest.raises(IntegrityError):
        backend.get_many(["k"])
    if " 9 " not in written:  # where only the bytes are missing
        with pytest.raises(IntegrityError):
            backend.head("k")
        assert [(meta.key, meta.size) for meta in backend.scan()] == [("k", 0)]
    assert list(backend.keys()) == ["k"]
    with pytest.raises(PreconditionError):
        backend.put("k", b"2", if_match=etag)
    raw.hset("perdure:app/k", "u", "strange")
    assert [use.key for use in backend.uses()] == ["k"]
    backend.put("k", b"2")
    raw.hdel("perdure:app/k", "v")
    with pytest.raises(IntegrityError):
        backend.get("k")
    backend.delete("k")


def test_a_value_expires_by_itself(own: RedisServer, raw: Any) -> None:
    with RedisBackend("127.0.0.1", own.port, prefix="app", ttl="50 ms") as backend:
        backend.record({"codec": "json"})
        etag = backend.put("k", b"1")
        backend.put_many({"l": b"1"})
        give_up = time.monotonic() + 30
        while backend.contains("k") or backend.contains("l"):
            assert time.monotonic() < give_up
        assert list(backend.scan()) == []
        with pytest.raises(NotFoundError):
            backend.get("k", if_none_match=etag)
        backend.put("k", b"2", if_match=ABSENT)
        assert backend.recorded() == {"codec": "json"}


def test_every_write_begins_the_time_to_live_anew_and_nothing_else_does(own: RedisServer, raw: Any) -> None:
    with (
        RedisBackend.from_url(f"//127.0.0.1:{own.port}/0/app", ttl="1 h") as hour,
        RedisBackend("127.0.0.1", own.port, prefix="app", ttl=timedelta(days=1)) as day,
        RedisBackend("127.0.0.1", own.port, prefix="app") as stays,
    ):

        def left() -> float:
            return round(raw.pttl("perdure:app/k") / 3.6e6, 2)  # hours

        etag = hour.put("k", b"1")
        assert left() == 1
        raw.pexpire("perdure:app/k", 1_800_000)
        hour.mark_used({"k": time.time() + 10})
        hour.get("k")
        assert left() == 0.5
        etag = hour.put("k", b"2", if_match=etag)
        assert left() == 1
        day.put("k", b"3")
        assert left() == 24
        hour.put_many({"k": b"4"})
        assert left() == 1
        etag = stays.put("k", b"5")
        assert raw.pttl("perdure:app/k") == -1
        hour.put("k", b"5", if_match=etag)
        stays.put_many({"k": b"6"})
        assert raw.pttl("perdure:app/k") == -1
        assert "1 h" in hour.guarantees().durable
        assert "expire" not in stays.guarantees().durable


def test_uses_are_remembered(backend: RedisBackend) -> None:
    assert backend.remembers_use
    etag = backend.put("k", b"123")
    written = backend.head("k").modified
    assert list(backend.uses()) == [("k", 3, written)]
    backend.mark_used({"k": written + 50, "absent": written})
    assert list(backend.uses()) == [("k", 3, written + 50)]
    backend.mark_used({"k": written + 20})
    assert list(backend.uses()) == [("k", 3, written + 50)], "a use does not undo a later one"
    backend.mark_used({"k": written - 50})
    assert backend.head("k")[1:] == (etag, 3, written)
    assert not backend.contains("absent")
    backend.put_many({f"n/{number}": b"" for number in range(250)})
    backend.mark_used({f"n/{number}": 9e9 + number for number in range(250)})
    assert {use.used - 9e9 for use in backend.uses("n/")} == set(range(250))
    with pytest.raises(InvalidKeyError):
        backend.uses("n")
    with pytest.raises(InvalidKeyError):
        backend.mark_used({"n/": 1.0})


def test_a_write_is_a_use(backend: RedisBackend, raw: Any) -> None:
    backend.put("k", b"1")
    backend.mark_used({"k": 1000.0})
    assert next(backend.uses()).used == backend.head("k").modified


def test_times_are_those_of_the_server(backend: RedisBackend, raw: Any) -> None:
    before = Decimal("{}.{:06}".format(*raw.time()))
    backend.put("k", b"1")
    backend.put_many({"l": b"1"})
    after = Decimal("{}.{:06}".format(*raw.time()))
    assert all(float(before) <= meta.modified <= float(after) for meta in backend.scan())


def test_pages_are_whole_and_none_is_too_long(backend: RedisBackend) -> None:
    items = {f"{number}": b"%d" % number * (300_000 if number % 40 == 7 else 1) for number in range(333)}
    items["long"] = bytes(9 << 20)
    etags = backend.put_many(items)
    assert {key: (blob.data, blob.etag) for key, blob in backend.get_many(items).items()} == {
        key: (data, etags[key]) for key, data in items.items()
    }
    backend.delete_many(items)
    assert list(backend.keys()) == []


def test_a_value_that_no_server_takes_is_refused_before_it_is_sent(backend: RedisBackend) -> None:
    long = bytes((512 << 20) + 1)
    for call in (lambda: backend.put("k", long), lambda: backend.put_many({"a": b"", "k": long})):
        with pytest.raises(BackendError, match="512 MiB") as caught:
            call()
        assert caught.value.key == "k"
    assert list(backend.keys()) == []


def test_settings_that_the_server_lost_come_back_with_the_next_write(own: RedisServer, raw: Any) -> None:
    with RedisBackend("127.0.0.1", own.port, prefix="app") as backend:
        backend.record({"codec": "json"})
        backend.delete("k")
        assert backend.recorded() == {}
        for write in (lambda: backend.put("k", b""), lambda: backend.put_many({"k": b"", "l": b""})):
            raw.flushall()
            write()
            assert backend.recorded() == {"codec": "json"}
        raw.flushall()
        pickle.loads(pickle.dumps(backend)).put("k", b"")
        assert backend.recorded() == {"codec": "json"}
        raw.flushall()
        with RedisBackend("127.0.0.1", own.port, prefix="app") as other:
            other.record({"codec": "pickle"})
            other.put("k", b"")
        with pytest.raises(UsageError, match="codec"):
            backend.record({"codec": "json"})


def test_of_two_that_record_different_settings_at_once_the_second_is_refused(own: RedisServer, raw: Any) -> None:
    with (
        RedisBackend("127.0.0.1", own.port, prefix="app") as first,
        RedisBackend("127.0.0.1", own.port, prefix="app") as second,
    ):
        first.record({"codec": "json"})
        second.record({"codec": "pickle", "filters": "zstd"})
        first.put("k", b"first")
        with pytest.raises(UsageError, match="codec"):
            second.put("k", b"second")
        with pytest.raises(UsageError, match="codec"):
            second.put_many({"k": b"second"})
        assert first.recorded() == {"codec": "json"}
        assert first.get("k").data == b"first"
        first.record({"codec": "json", "filters": ""})
        first.put("l", b"")
        assert second.recorded() == {"codec": "json", "filters": ""}


def test_settings_of_a_later_perdure_are_refused(backend: RedisBackend, raw: Any) -> None:
    backend.record({"codec": "json"})
    backend.put("k", b"")
    raw.hset("perdure:app/!perdure", "!format", "2")
    for call in (backend.recorded, lambda: backend.record({"codec": "json"})):
        with pytest.raises(UsageError, match="Upgrade perdure"):
            call()


def test_it_says_that_it_is_shared_and_what_survives(backend: RedisBackend) -> None:
    assert backend.shared_by_machines
    assert "everysec" in backend.guarantees().durable
    assert "appendfsync always" in backend.guarantees().durable


def test_receipts_expire(backend: RedisBackend, raw: Any) -> None:
    backend.put("k", b"")
    (receipt,) = raw.keys("perdure:app/!*")
    assert 0 < raw.pttl(receipt) <= 600_000


def test_reading_leaves_nothing_in_the_database(backend: RedisBackend, raw: Any) -> None:
    before = set(raw.keys())
    assert backend.get_many(["a"]) == {}
    assert not backend.contains("a")
    assert [*backend.scan(), *backend.uses()] == []
    assert backend.recorded() == {}
    backend.record({"codec": "json"})
    backend.mark_used({"a": 1.0})
    assert set(raw.keys()) == before


def test_a_dict_lives_there(own: RedisServer, raw: Any) -> None:
    url = f"{own.url}/app?ttl=7d"
    d = perdure.open(url, codec="json")
    d["people", "ada"] = {"born": 1815}
    assert perdure.open(own.url + "/app")["people", "ada"] == {"born": 1815}, "the codec is recorded"
    assert d.pop(("people", "ada")) == {"born": 1815}
    assert not d
    d["a"] = 1
    d.transform_item("a", transformer=lambda old: old + 1)
    assert d["a"] == 2


def test_a_server_by_another_name_is_no_place_for_copies(own: RedisServer, raw: Any) -> None:
    for prefix in ("app", ""):
        remote = RedisBackend("127.0.0.1", own.port, prefix=prefix)
        cached = Cached(remote, RedisBackend("localhost", own.port, prefix=prefix), recheck=60)
        with pytest.raises(UsageError, match="overwrite"):
            cached.put("k", b"value")
        with pytest.raises(UsageError, match="overwrite"):
            cached.get("k")
        assert remote.get("k").data == b"value"
        cached.close()


def test_a_place_contains_those_inside_its_prefix(own: RedisServer, raw: Any) -> None:
    raw.flushall()
    outer, inner, beside = (perdure.open(f"{own.url}/{prefix}") for prefix in ("team", "team/app", "team2"))
    for d in (outer, inner, beside):
        d["k"] = 1
    assert sorted(map(str, outer)) == ["app/k", "k"]
    outer.clear()
    assert (len(outer), len(inner), len(beside)) == (0, 0, 1)


def test_the_command_line_knows_it(own: RedisServer, raw: Any) -> None:
    url = f"{own.url}/app"
    perdure.open(url, codec="json")["a"] = 1
    for command, said in ((["ls"], "a"), (["doctor"], "healthy"), (["doctor"], "receipts")):
        run = subprocess.run([sys.executable, "-m", "perdure", *command, url], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stdout + run.stderr
        assert said in run.stdout
