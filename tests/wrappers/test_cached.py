"""`Cached` costs what it says, and answers what the remote has or nothing, whatever stands in the local place."""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watching import Watched

import perdure
from perdure.errors import (
    BackendError,
    InvalidKeyError,
    NotFoundError,
    NotModified,
    PolicyError,
    PreconditionError,
    UnavailableError,
    UnknownOutcomeError,
    UsageError,
)
from perdure.mapping import PersiDict
from perdure.protocol import ABSENT, Backend, Blob, ETag
from perdure.testing.faults import Call, Hold, fail_after, fail_before, lose_answer
from perdure.testing.lifetime import in_child
from perdure.wrappers import Bounded, Cached
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend
from perdure_backends.sqlite import SQLiteBackend

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # nothing warns but where a test expects it


@pytest.fixture
def remote(tmp_path: Path) -> Watched:
    return Watched(FileBackend(tmp_path / "remote", sync="normal"))


@pytest.fixture
def local(tmp_path: Path) -> Watched:
    return Watched(FileBackend(tmp_path / "copies", sync="normal"))


@pytest.fixture
def cached(remote: Watched, local: Watched) -> Iterator[Cached]:
    cached = Cached(remote, local)
    local.take()
    yield cached
    cached.close()


@pytest.fixture
def eternal(remote: Watched, local: Watched) -> Iterator[Cached]:
    cached = Cached(remote, local, append_only=True)
    local.take()
    yield cached
    cached.close()


# ------------------------------------------------------------------------------------------------------------- what it costs


def test_a_repeated_get_is_one_request_without_a_body_and_writes_nothing(
    cached: Cached, remote: Watched, local: Watched
) -> None:
    etag = remote.backend.put("k", b"value")
    assert cached.get("k")[:2] == (b"value", etag)
    assert (remote.take(), remote.bodies) == (["get"], 1)
    assert local.take() == ["get", "get", "put"]  # the second one, before the first copy, whether these are two places
    remote.backend.put("another", b"value")
    cached.get("another")
    assert (remote.take(), remote.bodies) == (["get"], 2)
    assert local.take() == ["get", "put"]
    remote.bodies = 1
    for _ in range(3):
        assert cached.get("k") == remote.backend.get("k")
        assert (remote.take(), remote.bodies) == (["not modified"], 1)
        assert local.take() == ["get"]
    assert (cached.hits, cached.misses, cached.troubles) == (3, 2, 0)


def test_what_was_written_here_need_not_be_sent(cached: Cached, remote: Watched) -> None:
    etag = cached.put("k", b"value")
    cached.put_many({"a/b": b"1", "c": b"2"})
    assert remote.take() == ["put", "put_many"]
    assert cached.get("k")[:2] == (b"value", etag)
    assert cached.get_many(["a/b", "c"]).keys() == {"a/b", "c"}
    assert (remote.take(), remote.bodies) == (["not modified"] * 3, 0)


def test_a_change_elsewhere_is_answered_and_kept(cached: Cached, remote: Watched) -> None:
    cached.put("k", b"old")
    etag = remote.backend.put("k", b"new")
    assert cached.get("k")[:2] == (b"new", etag)
    assert cached.get("k")[:2] == (b"new", etag)
    assert remote.take() == ["put", "get", "not modified"]


def test_a_delete_elsewhere_is_answered_and_drops_the_copy(cached: Cached, remote: Watched, local: Watched) -> None:
    cached.put("k", b"old")
    remote.backend.delete("k")
    with pytest.raises(NotFoundError):
        cached.get("k")
    assert not local.backend.contains("k")
    assert remote.take() == ["put", "get"]


@pytest.mark.parametrize(
    ("copy", "theirs", "expected"),
    [
        (None, "now", NotModified),
        (None, "old", b"now"),
        ("now", "now", NotModified),
        ("now", "old", b"now"),
        ("old", "now", NotModified),
        ("old", "old", b"now"),
        ("old", "older", b"now"),
    ],
)
@pytest.mark.parametrize("append_only", [False, True])
def test_a_callers_own_etag_means_what_it_means_elsewhere(
    remote: Watched, local: Watched, copy: str | None, theirs: str, expected: Any, append_only: bool
) -> None:
    if append_only and copy == "old":
        pytest.skip("there is no old value")
    etags = {}
    for name in ("older", "old", "now"):
        etags[name] = remote.backend.put("k", name.encode())
        if name == copy:
            Cached(remote, local).get("k")
    remote.take()
    cached = Cached(remote, local, append_only=append_only)
    if expected is NotModified:
        with pytest.raises(NotModified) as caught:
            cached.get("k", if_none_match=etags[theirs])
        assert (caught.value.key, caught.value.place) == ("k", remote.place)
    else:
        assert cached.get("k", if_none_match=etags[theirs])[:2] == (expected, etags["now"])
    assert len(remote.take()) == (0 if append_only and copy else 1)
    assert cached.get("k")[:2] == (b"now", etags["now"])


def test_append_only_asks_nothing_about_what_it_has(eternal: Cached, remote: Watched, local: Watched) -> None:
    etag = eternal.put("a", b"1", if_match=ABSENT)
    remote.backend.put("b", b"22")
    b = eternal.get("b")
    assert remote.take() == ["put", "get"]
    local.take()
    for _ in range(3):
        assert eternal.get("a")[:2] == (b"1", etag)
        assert eternal.get("b") == b
        assert eternal.head("b") == ("b", b.etag, 2, b.modified) == remote.backend.head("b")
        assert eternal.contains("a")
        assert eternal.get("a", if_none_match=b.etag).data == b"1"
        with pytest.raises(NotModified):
            eternal.get("b", if_none_match=b.etag)
        assert eternal.get_many(["a", "b"])["b"] == b
    assert remote.take() == []
    assert set(local.take()) == {"get"}


def test_append_only_asks_about_what_it_has_not(eternal: Cached, remote: Watched) -> None:
    for _ in range(2):
        with pytest.raises(NotFoundError):
            eternal.get("k")
        with pytest.raises(NotFoundError):
            eternal.head("k")
        assert not eternal.contains("k")
    assert remote.take() == ["get", "head", "contains"] * 2
    remote.backend.put("k", b"1")
    assert eternal.contains("k")
    assert eternal.head("k").size == 1
    assert eternal.get("k").data == b"1"


def test_append_only_gets_what_is_missing_by_one_batch(eternal: Cached, remote: Watched) -> None:
    remote.backend.put_many({f"{n}": b"%d" % n for n in range(50)})
    eternal.get_many([f"{n}" for n in range(20)])
    assert (remote.take(), remote.bodies) == (["get_many"], 20)
    found = eternal.get_many(iter([f"{n}" for n in range(60)] * 2))
    assert {key: blob.data for key, blob in found.items()} == {f"{n}": b"%d" % n for n in range(50)}
    assert (remote.take(), remote.bodies) == (["get_many"], 50)
    assert len(eternal.get_many([f"{n}" for n in range(50)])) == 50
    assert remote.take() == []


def test_append_only_refuses_to_change_anything_before_any_request(eternal: Cached, remote: Watched, local: Watched) -> None:
    etag = eternal.put("k", b"1", if_match=ABSENT)
    remote.take()
    local.take()
    for change in (
        lambda: eternal.put("k", b"2"),
        lambda: eternal.put("k", b"2", if_match=etag),
        lambda: eternal.delete("k"),
        lambda: eternal.delete("k", if_match=etag),
        lambda: eternal.put_many({"k": b"2"}),
        lambda: eternal.delete_many(["k"]),
    ):
        with pytest.raises(PolicyError, match="append-only") as caught:
            change()
        assert caught.value.policy == "append-only"
        assert caught.value.place == remote.place
        assert caught.value.hint
    assert remote.take() == local.take() == []


def test_who_creates_second_never_reads_what_he_proposed(eternal: Cached, remote: Watched) -> None:
    remote.backend.put("k", b"theirs")
    with pytest.raises(PreconditionError):
        eternal.put("k", b"mine", if_match=ABSENT)
    assert eternal.get("k").data == b"theirs"


def test_an_append_only_dict_works_over_it(eternal: Cached, remote: Watched) -> None:
    d: PersiDict[Any] = PersiDict(eternal, append_only=True)
    d["a"] = 1
    d.set_many({"b": 2, "c": 3})
    assert d.setdefault("d", 4) == d.setdefault("d", 5) == 4
    with pytest.raises(PolicyError):
        d["a"] = 2
    remote.take()
    assert [d["a"], d["b"], d["c"], d["d"], "a" in d] == [1, 2, 3, 4, True]
    assert remote.take() == []
    assert dict(d) == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_a_dict_works_over_it(cached: Cached) -> None:
    d: PersiDict[Any] = PersiDict(cached)
    d["a"] = 1
    d.transform_item("a", transformer=lambda n: n + 1)
    d.set_many({"b": 2, "c": 3})
    del d["b"]
    assert dict(d) == {"a": 2, "c": 3}


# -------------------------------------------------------------------------------------------------------------------- writing


def test_what_is_deleted_here_leaves_no_copy(cached: Cached, local: Watched) -> None:
    etags = cached.put_many({"a": b"1", "b": b"2", "c": b"3", "d": b"4"})
    cached.delete("a")
    cached.delete("b", if_match=etags["b"])
    cached.delete_many(iter(["c", "absent"]))
    assert list(local.backend.keys()) == ["d"]
    assert cached.get_many(["a", "b", "c", "d"]).keys() == {"d"}


def test_a_write_that_lost_leaves_nothing_of_what_it_proposed(cached: Cached, remote: Watched) -> None:
    old = cached.put("k", b"old")
    now = remote.backend.put("k", b"now")
    for condition in (ABSENT, old):
        with pytest.raises(PreconditionError):
            cached.put("k", b"mine", if_match=condition)
        assert cached.get("k")[:2] == (b"now", now)
    with pytest.raises(PreconditionError):
        cached.delete("k", if_match=old)
    assert cached.get("k")[:2] == (b"now", now)


@pytest.mark.parametrize("fault", [lose_answer(), fail_after(RuntimeError("a bug")), fail_before(UnknownOutcomeError)])
@pytest.mark.parametrize(
    "write",
    [
        lambda cached: cached.put("k", b"mine"),
        lambda cached: cached.put_many({"k": b"mine"}),
        lambda cached: cached.delete("k"),
        lambda cached: cached.delete_many(["k"]),
    ],
)
def test_a_write_of_unknown_outcome_drops_the_copy(
    cached: Cached, remote: Watched, local: Watched, fault: Any, write: Callable[[Cached], object]
) -> None:
    cached.put("k", b"old")
    remote.fault = fault
    with pytest.raises((UnknownOutcomeError, RuntimeError)):
        write(cached)
    remote.fault = None
    assert not local.backend.contains("k")
    assert cached.contains("k") is remote.backend.contains("k")
    if cached.contains("k"):
        assert cached.get("k") == remote.backend.get("k")


def test_a_write_that_never_left_keeps_the_copy(cached: Cached, remote: Watched) -> None:
    cached.put("k", b"old")
    remote.fault = fail_before(UnavailableError)
    for write in (lambda: cached.put("k", b"mine"), lambda: cached.delete("k")):
        with pytest.raises(UnavailableError):
            write()
    remote.fault = None
    remote.take()
    assert cached.get("k").data == b"old"
    assert remote.take() == ["not modified"]


def test_a_batch_that_fails_half_way_answers_what_was_written(cached: Cached, remote: Watched) -> None:
    cached.put_many({"a": b"old", "b": b"old"})
    put_many = remote.backend.put_many

    def half(call: Call, go: Callable[[], Any]) -> Any:
        if call.name != "put_many":
            return go()
        put_many({"a": b"new"})
        raise UnavailableError("the second half did not arrive")

    remote.fault = half
    with pytest.raises(UnavailableError):
        cached.put_many({"a": b"new", "b": b"new"})
    assert {key: blob.data for key, blob in cached.get_many(["a", "b"]).items()} == {"a": b"new", "b": b"old"}


def test_what_is_not_kept_is_not_copied(local: Watched) -> None:
    cached = Cached(NullBackend(), local)
    assert cached.put("k", b"1") == ""
    assert cached.put_many({"l": b"1"}) == {"l": ""}
    assert list(local.backend.keys()) == []


def test_a_buffer_that_changes_during_the_write_is_copied_as_it_was_written(cached: Cached, remote: Watched) -> None:
    buffer = bytearray(b"before")

    def change(call: Call, go: Callable[[], Any]) -> Any:
        try:
            return go()
        finally:
            buffer[:] = b"after!"

    remote.fault = change
    cached.put("k", buffer)
    assert cached.get("k").data == remote.backend.get("k").data == b"before"
    buffer[:] = b"before"
    cached.put_many({"k": memoryview(buffer)})
    assert cached.get("k").data == remote.backend.get("k").data == b"before"


# ----------------------------------------------------------------------------------------------- what is in the local place


@pytest.fixture(params=[False, True], ids=["mutable", "append-only"])
def open_cached(request: pytest.FixtureRequest) -> Callable[[Backend, Backend], Cached]:
    return lambda remote, local: Cached(remote, local, append_only=request.param)


def bad_records(good: bytes, other_key: bytes, other_place: bytes) -> Iterator[bytes]:
    """What edits, crashes and strangers may leave in place of a record."""
    for place in range(len(good)):
        for bit in range(8):
            yield good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :]
        yield good[:place]  # cut
        yield good[:place] + bytes(len(good) - place)  # written, but never reached the disk
        yield bytes(place) + good[place:] if place else b""
        yield good[:place] + good[place + 1 :]
        yield good[:place] + b"x" + good[place:]
    for end in (b"\0", b"x", good, b"\0" * 4096):
        yield good + end
    yield from (other_key, other_place, b"\0" * 4, b"foreign", os.urandom(len(good)))


def test_a_record_that_was_changed_in_any_way_is_never_answered(
    remote: Watched, open_cached: Callable[[Backend, Backend], Cached]
) -> None:
    local = MemoryBackend()
    cached = open_cached(remote, local)
    blob = Blob(b"the value", remote.backend.put("k", b"the value"), remote.backend.head("k").modified)
    remote.backend.put("l", b"the value")
    elsewhere = MemoryBackend("elsewhere")
    elsewhere.put("k", b"not the value")
    cached.get("k")
    cached.get("l")
    good, other_key = local.get("k").data, local.get("l").data
    open_cached(elsewhere, local).get("k")
    other_place = local.get("k").data
    for bad in bad_records(good, other_key, other_place):
        if bad == good:
            continue
        local.put("k", bad)
        bodies = remote.bodies
        assert cached.get("k") == blob, bad
        assert remote.bodies == bodies + 1, "what is damaged must not be asked about by its ETag either"
        assert local.get("k").data == good, "the damaged record is still there"
        local.put("k", bad)
        assert cached.get_many(["k"]) == {"k": blob}
        local.put("k", bad)
        assert cached.head("k").etag == blob.etag
        assert cached.contains("k")


def test_a_file_that_was_changed_in_any_way_is_never_answered(
    tmp_path: Path, remote: Watched, open_cached: Callable[[Backend, Backend], Cached]
) -> None:
    """The same through the header of the file, by which the local place itself finds the record damaged."""
    cached = open_cached(remote, FileBackend(tmp_path / "copies", sync="normal"))
    etag = remote.backend.put("k", b"the value")
    cached.get("k")
    (path,) = (tmp_path / "copies").glob("k*")
    good = path.read_bytes()
    assert good.count(b"the value") == 1
    for bad in [*(good[:n] for n in range(len(good))), *(good[:n] + b"\xa5" + good[n + 1 :] for n in range(len(good)))]:
        path.write_bytes(bad)
        assert cached.get("k")[:2] == (b"the value", etag)
    assert cached.troubles == 0


def test_even_a_forged_record_of_nonsense_fails_no_read(remote: Watched) -> None:
    from zlib import crc32

    from perdure.wrappers.record import Records

    local = MemoryBackend()
    cached = Cached(remote, local)
    remote.backend.put("k", b"the value")
    head = Records(remote.place)._head
    for rest in (b"", b"\0" * 11, b"\0" * 8 + b"\x01\0\0\0\xff", b"\xff" * 12):
        body = head + rest
        local.put("k", body + crc32(body, crc32(b"k")).to_bytes(4, "little"))
        assert cached.get("k").data == b"the value"


def test_places_that_share_a_folder_never_see_each_others_values(
    tmp_path: Path, local: Watched, open_cached: Callable[[Backend, Backend], Cached]
) -> None:
    names = ["one", "two", "one/below", "on"]
    remotes = {name: FileBackend(tmp_path / "remotes" / name.replace("/", "-"), sync="normal") for name in names}
    for name, backend in remotes.items():
        backend.put("k", name.encode())
    for _ in range(3):
        for name, backend in remotes.items():
            cached = open_cached(backend, local)
            assert cached.get("k").data == name.encode()
            assert cached.get("k").data == name.encode()
            assert cached.get_many(["k"])["k"].data == name.encode()
            assert cached.head("k").size == len(name)


def test_spaces_in_memory_that_share_a_folder_never_see_each_others_values(
    local: Watched, open_cached: Callable[[Backend, Backend], Cached]
) -> None:
    """They have one name and count their versions from 1, in every process anew."""
    spaces = [open_cached(MemoryBackend(), local) for _ in range(3)]
    for number, cached in enumerate(spaces):
        cached.put("k", b"%d" % number, if_match=ABSENT)
    for number, cached in enumerate(spaces):
        assert cached.get("k").data == b"%d" % number


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_childs_space_in_memory_is_another_one(local: Watched) -> None:
    space = MemoryBackend()
    cached = Cached(space, local)
    cached.put("k", b"0")
    etags: list[ETag] = []
    for _ in range(3):

        def child() -> None:
            cached.put("k", b"child")  # the parent's next version has the same number
            assert cached.get("k").data == b"child"

        in_child(child)
        etags.append(space.put("k", b"parent"))
        assert cached.get("k")[:2] == (b"parent", etags[-1])


def test_a_key_that_the_local_place_cannot_take_works_without_copies(cached: Cached, remote: Watched) -> None:
    remote.backend = MemoryBackend()
    key = "k" * 253
    cached.put(key, b"1")
    assert cached.get(key).data == cached.get_many([key])[key].data == b"1"
    cached.delete(key)
    assert not cached.contains(key)
    assert cached.troubles == 0
    for call in (cached.get, cached.contains, cached.head, cached.delete, lambda key: cached.put(key, b"")):
        with pytest.raises(InvalidKeyError):
            call("../k")
    assert cached.troubles == 0


def test_a_local_place_that_is_thrown_away_is_filled_again(tmp_path: Path, cached: Cached, remote: Watched) -> None:
    import shutil

    for number in range(3):
        cached.put("a/k", b"%d" % number)
        shutil.rmtree(tmp_path / "copies")
        assert cached.get("a/k").data == b"%d" % number
        remote.take()
        assert cached.get("a/k").data == b"%d" % number
        assert remote.take() == ["not modified"]
        shutil.rmtree(tmp_path / "copies")
    assert cached.troubles == 0


def test_the_remote_and_a_place_with_values_are_refused_as_local_places(tmp_path: Path) -> None:
    here = FileBackend(tmp_path / "here")
    for local in (here, FileBackend(tmp_path / "here")):
        with pytest.raises(UsageError, match="overwrite"):
            Cached(here, local)
    with perdure.open(tmp_path / "dict") as d:
        d["k"] = 1
    with pytest.raises(UsageError, match="holds the values of a dict"):
        Cached(here, FileBackend(tmp_path / "dict"))
    Cached(MemoryBackend(), MemoryBackend()).put("k", b"")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_link_to_the_remote_is_refused_as_local_place(tmp_path: Path, kind: str, fresh: bool) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")

    def opened(path: Path) -> Backend:
        return FileBackend(path / "x") if kind == "file" else SQLiteBackend(path / "x")

    if not fresh:
        opened(tmp_path / "real").put("k", b"value")
    for one, other in (("real", "alias"), ("alias", "real")):
        with pytest.raises(UsageError, match="overwrite"):
            Cached(opened(tmp_path / one), opened(tmp_path / other))
    if kind == "sqlite" and not fresh:
        (tmp_path / "link").symlink_to(tmp_path / "real" / "x")
        with pytest.raises(UsageError, match="overwrite"):
            Cached(opened(tmp_path / "real"), SQLiteBackend(tmp_path / "link"))
    Cached(opened(tmp_path / "real"), FileBackend(tmp_path / "y")).put("k", b"")


class Alias(MemoryBackend):
    """A space under another name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.place = f"alias:{name}"


@pytest.mark.parametrize("worth", [None, lambda data: False])
@pytest.mark.parametrize("append_only", [False, True])
def test_the_remote_by_another_name_loses_no_value(tmp_path: Path, append_only: bool, worth: Any) -> None:
    """As the same server by another name, which nothing tells beforehand."""
    real = MemoryBackend(str(tmp_path))
    real.put("old", b"value")

    def cached() -> Cached:
        return Cached(real, Alias(str(tmp_path)), append_only=append_only, worth=worth)

    calls: list[Callable[[Cached], object]] = [
        lambda cached: cached.get("old"),
        lambda cached: cached.get_many(["old"]),
        lambda cached: cached.put("new", b"value", if_match=ABSENT),
    ]
    if not append_only:
        calls += [lambda cached: cached.put("newer", b"value"), lambda cached: cached.put_many({"a": b"value", "b": b"value"})]
    for call in calls:
        with pytest.raises(UsageError, match="overwrite"):
            call(cached())
    there = list(real.keys())
    assert sorted(there) == (["new", "old"] if append_only else ["a", "b", "new", "newer", "old"])
    assert {real.get(key).data for key in there} == {b"value"}


def test_what_is_too_large_for_a_bounded_local_place_is_no_trouble(remote: Watched, tmp_path: Path) -> None:
    local = Bounded(FileBackend(tmp_path / "copies", sync="normal"), max_bytes=1000)
    cached = Cached(remote, local, recheck="1 h")
    cached.put("k", b"small")
    assert local.contains("k")
    remote.take()
    for _ in range(2):
        cached.put("k", bytes(2000))
        assert not local.contains("k")  # which is of an older value, and of no use
        assert cached.get("k").data == bytes(2000)
        assert cached.get_many(["k"])["k"].data == bytes(2000)
        assert remote.take() == ["put", "get", "get_many"]
    cached.put("k", b"small")
    assert cached.get("k").data == b"small"
    assert remote.take() == ["put"]
    assert cached.troubles == 0
    cached.close()


# -------------------------------------------------------------------------------------------------------------------- trouble


def values(found: dict[str, Blob]) -> dict[str, tuple[bytes, ETag]]:
    return {key: blob[:2] for key, blob in found.items()}


def exercise(cached: Cached, remote: Backend) -> None:
    """Every call, judged by what the remote has."""
    for number in range(3):
        etag = cached.put("k", b"%d" % number)
        assert cached.get("k")[:2] == remote.get("k")[:2] == (b"%d" % number, etag)
        with pytest.raises(NotModified):
            cached.get("k", if_none_match=etag)
        cached.put_many({"a/b": b"1", "c": b"2"})
        assert values(cached.get_many(["k", "a/b", "c", "x"])) == values(remote.get_many(["k", "a/b", "c"]))
        remote.put("c", b"3")
        assert cached.get("c").data == b"3"
        cached.delete("c")
        with pytest.raises(NotFoundError):
            cached.get("c")
        remote.delete("a/b")
        with pytest.raises(NotFoundError):
            cached.get("a/b")
        cached.delete_many(["a/b", "k"])
        assert list(remote.keys()) == []


@pytest.mark.parametrize(
    "error", [BackendError("the disk is full"), UnavailableError("busy"), MemoryError(), RuntimeError("bug")]
)
@pytest.mark.parametrize("names", [{"get"}, {"put"}, {"delete"}, {"get", "put", "delete", "recorded"}], ids="+".join)
@pytest.mark.parametrize("how", [fail_before, fail_after])
def test_trouble_with_the_local_place_fails_nothing_and_is_told_once(
    remote: Watched, local: Watched, error: Exception, names: set[str], how: Callable[[Exception], Any]
) -> None:
    fault = how(error)
    local.fault = lambda call, go: fault(call, go) if call.name in names else go()
    with pytest.warns(UserWarning) as caught:
        cached = Cached(remote, local)
        exercise(cached, remote.backend)
    (warning,) = caught
    assert warning.category is UserWarning
    for part in (local.place, remote.place, str(error) or type(error).__name__, "Repair that place, or give another"):
        assert part in str(warning.message)
    assert cached.troubles > 3


def test_trouble_is_told_once_by_many_threads(remote: Watched, local: Watched) -> None:
    local.fault = fail_before(BackendError)
    remote.backend.put_many({f"{n}": b"" for n in range(100)})
    with pytest.warns(UserWarning):
        Cached(remote, local, append_only=True)  # another instance, which has its own say
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cached = Cached(remote, local)
        line = threading.Barrier(8)

        def read() -> None:
            line.wait(60)
            cached.get_many([f"{n}" for n in range(100)])

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caught) == 1
    assert cached.troubles == 1 + 8 * 200


def test_a_local_place_that_somebody_closed_fails_nothing(cached: Cached, remote: Watched, local: Watched) -> None:
    local.backend.close()
    with pytest.warns(UserWarning, match="was closed"):
        exercise(cached, remote.backend)


def test_a_file_in_place_of_the_folder_fails_nothing(tmp_path: Path, cached: Cached, remote: Watched) -> None:
    (tmp_path / "copies").write_text("not a folder")
    with pytest.warns(UserWarning, match=r"fails to keep copies"):
        exercise(cached, remote.backend)


def test_trouble_with_the_remote_is_raised_though_there_is_a_copy(cached: Cached, remote: Watched) -> None:
    cached.put_many({"k": b"1", "l": b"2", "m": b"3"})
    remote.fault = fail_before(UnavailableError)
    for call in (
        lambda: cached.get("k"),
        lambda: cached.get("k", if_none_match=ETag("x")),
        lambda: cached.head("k"),
        lambda: cached.contains("k"),
        lambda: cached.get_many(["k"]),
        lambda: cached.get_many(["k", "l", "m", "n"]),
        lambda: list(cached.keys()),
        lambda: list(cached.scan()),
        cached.recorded,
    ):
        with pytest.raises(UnavailableError):
            call()
    remote.fault = None
    assert len(cached.get_many(["k", "l", "m", "n"])) == 3


# ---------------------------------------------------------------------------------------------------------------------- races


@pytest.mark.parametrize("then", ["put", "delete", "delete and put"])
def test_a_slow_reader_that_keeps_an_old_copy_costs_a_request_and_no_wrong_answer(
    tmp_path: Path, cached: Cached, remote: Watched, then: str
) -> None:
    remote.backend.put("k", b"old")
    hold = Hold(after=True)
    slow = Cached(Watched(FileBackend(tmp_path / "remote"), hold), FileBackend(tmp_path / "copies", sync="normal"))
    thread = threading.Thread(target=slow.get, args=("k",))
    thread.start()
    assert hold.reached.wait(60)
    if "delete" in then:
        cached.delete("k")
    if "put" in then:
        cached.put("k", b"new")
    hold.release.set()
    thread.join()
    remote.take()
    for _ in range(2):
        if then == "delete":
            with pytest.raises(NotFoundError):
                cached.get("k")
        else:
            assert cached.get("k").data == b"new"
    assert remote.take() == (["get", "get"] if then == "delete" else ["get", "not modified"])


# ------------------------------------------------------------------------------------------------------------------------ many


def crew_of(cached: Cached) -> set[threading.Thread]:
    pool = cached._crew._pool.get("pool")
    return set() if pool is None else set(pool._threads)


def test_several_copies_are_asked_about_at_the_same_time(cached: Cached, remote: Watched) -> None:
    keys = [f"{n}" for n in range(8)]
    cached.put_many(dict.fromkeys(keys, b"1"))
    together = threading.Barrier(9)

    def meet(call: Call, go: Callable[[], Any]) -> Any:
        together.wait(60)
        return go()

    remote.take()
    remote.fault = meet
    assert set(cached.get_many([*keys, "absent", "absent-too"])) == set(keys)
    assert sorted(remote.take()) == ["get_many"] + ["not modified"] * 8
    assert len(crew_of(cached)) >= 9


def test_one_key_or_nothing_to_ask_about_starts_no_thread(cached: Cached, remote: Watched) -> None:
    cached.put("k", b"1")
    remote.backend.put_many({"a": b"1", "b": b"2"})
    asked_by: set[int] = set()

    def note(call: Call, go: Callable[[], Any]) -> Any:
        asked_by.add(threading.get_ident())
        return go()

    remote.fault = note
    cached.get_many(["k"])
    cached.get_many(["a", "b"])
    cached.get_many([])
    assert asked_by == {threading.get_ident()}
    assert crew_of(cached) == set()


def test_the_threads_end_when_it_is_closed(cached: Cached) -> None:
    cached.put_many({"a": b"1", "b": b"2"})
    cached.get_many(["a", "b"])
    threads = crew_of(cached)
    assert threads
    cached.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_many_keys_can_be_asked_about_in_a_forked_child(cached: Cached, remote: Watched) -> None:
    keys = [f"{n}" for n in range(64)]
    cached.put_many(dict.fromkeys(keys, b"1"))
    together = threading.Barrier(32)

    def meet(call: Call, go: Callable[[], Any]) -> Any:
        together.wait(60)  # so that all threads are there before the fork, and none is started after it
        return go()

    remote.fault = meet
    assert len(cached.get_many(keys)) == 64
    remote.fault = None

    def child() -> None:
        assert len(cached.get_many(keys)) == 64
        in_child(lambda: cached.get_many(keys))
        cached.close()

    for _ in range(3):
        in_child(child)
        assert len(cached.get_many(keys)) == 64


def test_closing_in_the_middle_of_many_ends_well(remote: Watched, local: Watched) -> None:
    keys = [f"{n}" for n in range(100)]
    Cached(remote, local).put_many(dict.fromkeys(keys, b"1"))
    for _ in range(10):
        cached = Cached(FileBackend(remote.place[5:]), FileBackend(local.place[5:], sync="normal"))
        problems: list[Exception] = []
        begun = threading.Event()

        def read(cached: Cached = cached, problems: list[Exception] = problems, begun: threading.Event = begun) -> None:
            try:
                while True:
                    assert len(cached.get_many(keys)) == 100
                    begun.set()
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        cached.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert [type(problem) for problem in problems] == [BackendError] * 3, problems
        assert cached.troubles == 0


# -------------------------------------------------------------------------------------------------------------------- handles


def test_every_method_of_a_backend_is_forwarded_by_name() -> None:
    public = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert public <= set(vars(Cached))
    assert not hasattr(Cached, "__getattr__")


def test_it_is_the_remote_in_all_but_its_reads(cached: Cached, remote: Watched) -> None:
    assert cached.place == remote.place
    assert cached.shared_by_machines is remote.shared_by_machines
    cached.record({"codec": "raw"})
    cached.put("k", b"1")
    assert cached.recorded() == remote.backend.recorded() == {"codec": "raw"}
    assert list(cached.scan()) == list(remote.backend.scan())
    assert cached.guarantees().durable == remote.guarantees().durable
    assert cached._local.place in cached.guarantees().shared


def test_closing_closes_both_though_one_fails_and_may_be_repeated(tmp_path: Path) -> None:
    class Stubborn(FileBackend):
        def close(self) -> None:
            super().close()
            raise BackendError("cannot close", place=self.place)

    for append_only in (False, True):
        remote, local = FileBackend(tmp_path / "remote"), Stubborn(tmp_path / "copies", sync="normal")
        cached = Cached(remote, local, append_only=append_only)
        cached.put(f"{append_only}", b"1", if_match=ABSENT)
        for _ in range(2):
            with pytest.raises(BackendError, match="cannot close"):
                cached.close()
        for call in (
            lambda cached: cached.get("True"),
            lambda cached: cached.get_many(["k"]),
            lambda cached: cached.put("k", b""),
            lambda cached: cached.put("k", b"", if_match=ABSENT),
            lambda cached: cached.put_many({"k": b""}),
            lambda cached: cached.delete("k"),
            lambda cached: cached.delete_many(["k"]),
            lambda cached: cached.head("True"),
            lambda cached: cached.contains("True"),
            lambda cached: cached.scan(),
        ):
            with pytest.raises(BackendError, match="was closed"):
                call(cached)
        with pytest.raises(BackendError, match="was closed"):
            remote.get("k")
        assert cached.troubles == 0


def test_a_pickled_one_is_a_handle_on_both_places(tmp_path: Path, eternal: Cached) -> None:
    again = pickle.loads(pickle.dumps(eternal))
    again.put("k", b"1", if_match=ABSENT)
    with pytest.raises(PolicyError):
        again.delete("k")
    assert eternal.get("k").data == b"1"
    assert eternal.hits == 1
    with pytest.raises(PolicyError, match="cannot be pickled"):
        pickle.dumps(Cached(MemoryBackend(), FileBackend(tmp_path / "copies")))
