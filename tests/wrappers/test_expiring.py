"""`Expiring` keeps the contract, and from its end of life on a value is absent to everybody, whatever they ask."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from watching import Watched

from perdure.errors import (
    IntegrityError,
    InvalidKeyError,
    NotFoundError,
    NotModified,
    PerdureError,
    PreconditionError,
    UnavailableError,
    UsageError,
)
from perdure.mapping import PersiDict
from perdure.protocol import ABSENT, Backend, ETag
from perdure.testing import BackendContract
from perdure.testing.crew import Threads
from perdure.testing.faults import Call, fail_before
from perdure.testing.lifetime import Forks, Lifetime
from perdure.testing.listing import Listing
from perdure.testing.servers import S3Server
from perdure.testing.values import Bulk, Values
from perdure.wrappers import Cached, Expiring
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend

HOUR = 3600.0
DAY = 24 * HOUR


class TestOverFolder(BackendContract):
    longest_segment = 247
    pace = 0.5

    def open(self, where: Path) -> Expiring:
        return Expiring(FileBackend(where, sync="normal"), "1 h")


class TestOverMemory(BackendContract):
    processes = False
    pace = 0.5

    def open(self, where: Path) -> Expiring:
        return Expiring(MemoryBackend(str(where)), "1 h")


class TestOverNull(BackendContract):
    keeps = False

    def open(self, where: Path) -> Expiring:
        return Expiring(NullBackend(), "1 h")


class TestOverStub(Values, Bulk, Listing, Lifetime, Forks):
    longest_key = 1024 - 40
    pace = 0.06

    @pytest.fixture(autouse=True)
    def at_server(self, stub: S3Server) -> None:
        self.endpoint_url = stub.endpoint_url  # on this object, which travels to other processes

    def open(self, where: Path) -> Expiring:
        from perdure_backends.s3 import S3Backend

        prefix = f"contract-{hashlib.md5(str(where).encode()).hexdigest()[:30]}"
        return Expiring(S3Backend("contract", prefix, endpoint_url=self.endpoint_url, create=True), "1 h")


class Clock:
    """A clock that tests put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Watched:
    return Watched(FileBackend(tmp_path / "place", sync="normal") if request.param == "file" else MemoryBackend())


@pytest.fixture
def expiring(place: Watched, clock: Clock) -> Iterator[Expiring]:
    with Expiring(place, "1 h", clock=clock) as expiring:
        yield expiring


# ----------------------------------------------------------------------------------------------------------------- reading


def shows(backend: Backend, key: str) -> bool:
    """Whether there is anything under a key, on which all reads have to agree."""
    folder = key.rpartition("/")[0] + "/" if "/" in key else ""
    answers = {
        backend.contains(key),
        key in backend.get_many([key, "other"]),
        key in set(backend.keys()),
        key in set(backend.keys(folder)),
        key in dict(backend.times(folder)),
        key in {meta.key for meta in backend.scan(folder)},
    }
    for read in (backend.get, backend.head, partial(backend.get, if_none_match=ETag("x"))):
        try:
            read(key)
            answers.add(True)
        except NotFoundError as error:
            assert (error.key, error.place) == (key, backend.place)
            answers.add(False)
    assert len(answers) == 1, "some show it, and some do not"
    return answers.pop()


def test_from_its_end_on_nobody_sees_a_value(expiring: Expiring, place: Watched, clock: Clock) -> None:
    etag = expiring.put("a/b", b"1")
    clock.ahead = HOUR - 10
    assert shows(expiring, "a/b")
    clock.ahead = HOUR
    assert not shows(expiring, "a/b")
    with pytest.raises(NotFoundError):
        expiring.get("a/b", if_none_match=etag)
    assert shows(place, "a/b"), "reading removes nothing"
    expiring.put("a/b", b"2")
    clock.ahead = 0
    assert expiring.get("a/b").data == b"2"


def test_the_end_is_exact() -> None:
    now = 0.0
    place = MemoryBackend()
    expiring = Expiring(place, 0.5, clock=lambda: now)
    place.put("k", b"1")
    for later, there in ((0, True), (0.499, True), (0.5, False), (1e9, False)):
        now = place.head("k").modified + later
        assert shows(expiring, "k") is there


def test_a_value_from_the_near_future_lives_and_one_from_the_far_future_is_not_shown() -> None:
    now = 0.0
    place = MemoryBackend()
    expiring = Expiring(place, "1 h", clock=lambda: now)
    place.put("k", b"1")
    modified = place.head("k").modified
    now = modified - DAY + 1
    assert shows(expiring, "k")
    now = modified - DAY - 1
    assert not shows(expiring, "k")
    assert expiring.prune() == 0
    assert place.contains("k"), "it may be our clock that is wrong"
    expiring.put("k", b"2", if_match=ABSENT)
    assert place.get("k").data == b"2"


def test_for_ever_is_for_ever(place: Watched) -> None:
    expiring = Expiring(place, math.inf, clock=lambda: 1e15)
    expiring.put("k", b"1")
    assert shows(expiring, "k")
    assert expiring.prune() == 0


def test_of_what_is_not_modified_the_time_counts(expiring: Expiring, place: Watched, clock: Clock) -> None:
    """Also where the place does not tell it along, as S3 need not."""

    def silent(call: Call, go: Callable[[], Any]) -> Any:
        try:
            return go()
        except NotModified as error:
            raise NotModified(key=error.key, place=error.place) from None

    etag = expiring.put("k", b"1")
    for place.fault in (None, silent):
        clock.ahead = 0
        with pytest.raises(NotModified):
            expiring.get("k", if_none_match=etag)
        clock.ahead = HOUR
        with pytest.raises(NotFoundError):
            expiring.get("k", if_none_match=etag)
    place.fault = None

    def replaced(call: Call, go: Callable[[], Any]) -> Any:
        place.fault = None
        try:
            return silent(call, go)
        finally:
            place.backend.put("k", b"2")

    place.fault = replaced
    clock.ahead = 0
    assert expiring.get("k", if_none_match=etag).data == b"2"


def test_a_read_costs_one_request(expiring: Expiring, place: Watched, clock: Clock) -> None:
    etag = expiring.put("k", b"1")
    place.take()
    for clock.ahead in (0, HOUR):
        for read in (
            lambda: expiring.get("k"),
            lambda: expiring.get("k", if_none_match=etag),
            lambda: expiring.head("k"),
            lambda: expiring.contains("k"),
            lambda: expiring.get_many(["k"]),
        ):
            try:
                read()
            except (NotFoundError, NotModified):
                pass
            assert len(place.take()) == 1


# ----------------------------------------------------------------------------------------------------------------- writing


def test_a_condition_sees_what_a_reader_sees(expiring: Expiring, place: Watched, clock: Clock) -> None:
    old = expiring.put("k", b"old")
    with pytest.raises(PreconditionError):
        expiring.put("k", b"new", if_match=ABSENT)
    clock.ahead = HOUR
    for call in (lambda: expiring.put("k", b"new", if_match=old), lambda: expiring.delete("k", if_match=old)):
        with pytest.raises(PreconditionError) as caught:
            call()
        assert (caught.value.key, caught.value.place) == ("k", place.place)
        assert place.backend.get("k")[:2] == (b"old", old), "nothing was changed"
    new = expiring.put("k", b"new", if_match=ABSENT)
    assert place.backend.get("k")[:2] == (b"new", new)
    expiring.delete("k")
    assert not place.backend.contains("k")


def test_deleting_what_is_expired_is_fine(expiring: Expiring, place: Watched, clock: Clock) -> None:
    expiring.put_many({"a": b"1", "b": b"2"})
    clock.ahead = HOUR
    expiring.delete("a")
    expiring.delete_many(["b"])
    assert list(place.backend.keys()) == []


TIME = slice(16, 24)  # of a file's header


def age(backend: Backend, key: str, seconds: float) -> None:
    """Make a value older than it is."""
    if isinstance(backend, Watched):
        backend = backend.backend
    if isinstance(backend, FileBackend):
        path = Path(backend.path) / f"{key}.perdure"
        raw = path.read_bytes()
        then = int.from_bytes(raw[TIME], "big") - int(seconds * 1e9)
        head = raw[: TIME.start] + then.to_bytes(8, "big") + raw[TIME.stop : 40]
        path.write_bytes(head + crc32(head).to_bytes(4, "big") + raw[44:])
        os.utime(path, ns=(then, then))
    elif isinstance(backend, MemoryBackend):
        blob = backend._blobs[key]
        backend._blobs[key] = blob._replace(modified=blob.modified - seconds)


def test_one_of_many_creators_over_an_expired_value_wins(place: Watched) -> None:
    crew = Threads([Expiring(place.backend, "1 h") for _ in range(8)])
    for turn in range(40):
        old = place.backend.put("k", b"old %d" % turn)
        age(place, "k", HOUR)
        moves = [methodcaller("put", "k", b"%d by %d" % (turn, number), if_match=ABSENT) for number in range(7)]
        others = [methodcaller("prune"), methodcaller("put", "k", b"", if_match=old), methodcaller("contains", "k")]
        answers = crew.at_once([*moves, others[turn % 3]])
        winners = [number for number, answer in enumerate(answers[:7]) if not isinstance(answer, PerdureError)]
        assert len(winners) == 1, f"round {turn}: {answers}"
        assert all(isinstance(answer, PreconditionError) for answer in answers[:7] if isinstance(answer, PerdureError))
        assert place.backend.get("k")[:2] == (b"%d by %d" % (turn, winners[0]), answers[winners[0]])
    crew.close()


@pytest.mark.parametrize(
    ("meanwhile", "wins"),
    [
        (lambda backend: backend.delete("k"), True),
        (lambda backend: backend.put("k", b"theirs"), False),
        (lambda backend: backend.put("k", b"theirs", if_match=ABSENT), False),
        (lambda backend: backend.prune(), True),
    ],
)
def test_a_creator_who_finds_an_expired_value_swaps_exactly_that_one(
    place: Watched, meanwhile: Callable[[Expiring], object], wins: bool
) -> None:
    """Somebody else is quicker, between his look and his swap."""
    place.backend.put("k", b"old")
    age(place, "k", HOUR)
    slow, quick = Expiring(place, "1 h"), Expiring(place.backend, "1 h")

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        if call.name == "head":
            place.fault = None
            meanwhile(quick)
        return answer

    place.fault = fault
    if wins:
        slow.put("k", b"mine", if_match=ABSENT)
    else:
        with pytest.raises(PreconditionError):
            slow.put("k", b"mine", if_match=ABSENT)
    assert quick.get("k").data == (b"mine" if wins else b"theirs")


def test_a_creator_tries_again_when_the_value_goes_before_his_look(place: Watched) -> None:
    expiring = Expiring(place, "1 h")
    place.backend.put("k", b"theirs")

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        if call.name == "head":
            place.fault = None
            place.backend.delete("k")
        return go()

    place.fault = fault
    expiring.put("k", b"mine", if_match=ABSENT)
    assert expiring.get("k").data == b"mine"


def test_a_dict_over_it_forgets(expiring: Expiring, clock: Clock) -> None:
    d: PersiDict[Any] = PersiDict(expiring)
    d["a"] = 1
    assert d.setdefault("a", 2) == 1
    assert len(d) == 1
    clock.ahead = HOUR
    assert "a" not in d
    assert d.get("a") is None
    assert len(d) == 0
    clock.ahead = 0
    assert d["a"] == 1
    age(expiring.backend, "a", HOUR)
    assert d.setdefault("a", 2) == 2
    assert d["a"] == 2
    d.transform_item("a", transformer=lambda n: n + 1)
    assert d["a"] == 3


# ------------------------------------------------------------------------------------------------------------------- prune


def test_prune_removes_what_is_expired_and_nothing_else(expiring: Expiring, place: Watched) -> None:
    expiring.put_many({f"a/{number}": b"1" for number in range(1200)})
    expiring.put_many({"new": b"2", "a/new": b"3"})
    assert expiring.prune() == 0
    for number in range(1200):
        age(place, f"a/{number}", 2 * HOUR)
    assert expiring.prune() == 1200
    assert sorted(place.backend.keys()) == ["a/new", "new"]
    assert expiring.prune() == 0


@pytest.mark.parametrize("moment", ["scan", "head"])
def test_prune_never_removes_what_was_written_anew(place: Watched, moment: str) -> None:
    expiring = Expiring(place, "1 h")
    expiring.put_many({"a": b"old", "b": b"old"})
    age(place, "a", HOUR)
    age(place, "b", HOUR)

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        if call.name == moment and call.key in ("", "a"):
            answer = iter(list(answer)) if moment == "scan" else answer
            place.backend.put("a", b"new")
        return answer

    place.fault = fault
    assert expiring.prune() == 1
    assert [(meta.key, place.backend.get(meta.key).data) for meta in place.backend.scan()] == [("a", b"new")]


def test_prune_looks_again_where_equal_bytes_have_equal_etags(tmp_path: Path) -> None:
    """As on S3: the ETag from the listing does not tell the expired value from the same one, written since."""

    class Hashed(FileBackend):
        def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
            listed = list(super().times(prefix))
            for key, _ in listed:
                age(self, key, -HOUR)  # as if the same bytes had been written again
            return iter(listed)

    place = Hashed(tmp_path / "place", sync="normal")
    place.put("k", b"1")
    age(place, "k", HOUR)
    assert Expiring(place, "1 h").prune() == 0
    assert place.contains("k")


def test_several_that_prune_at_once_share_the_work(place: Watched) -> None:
    crew = Threads([Expiring(place.backend, "1 h") for _ in range(4)])
    for _ in range(3):
        keys = [f"k{number}x" for number in range(60)]
        place.backend.put_many(dict.fromkeys(keys, b"1"))
        for key in keys:
            age(place, key, HOUR)
        assert sum(crew.at_once([methodcaller("prune")] * 4)) == 60
        assert list(place.backend.keys()) == []
    crew.close()


def test_prune_removes_the_others_before_it_complains_about_a_damaged_one(tmp_path: Path) -> None:
    place = FileBackend(tmp_path / "place", sync="normal")
    place.put_many({"a": b"1", "b": b"2", "c": b"3"})
    for key in ("a", "b", "c"):
        age(place, key, HOUR)
    path = tmp_path / "place" / "b.perdure"
    with path.open("r+b") as file:
        file.write(b"PRDX")
    os.utime(path, (0, 0))
    expiring = Expiring(place, "1 h")
    with pytest.raises(IntegrityError) as caught:
        expiring.prune()
    assert caught.value.key == "b"
    assert list(place.keys()) == ["b"]


def test_prune_ends_when_the_place_does_not_answer(expiring: Expiring, place: Watched) -> None:
    expiring.put("k", b"1")
    age(place, "k", HOUR)
    place.fault = lambda call, go: fail_before(UnavailableError)(call, go) if call.name == "delete" else go()
    with pytest.raises(UnavailableError):
        expiring.prune()
    place.fault = None
    assert expiring.prune() == 1


def test_prune_leaves_no_thread_behind(expiring: Expiring, place: Watched) -> None:
    before = set(threading.enumerate())
    expiring.put_many({"a": b"1", "b": b"2"})
    age(place, "a", HOUR)
    age(place, "b", HOUR)
    assert expiring.prune() == 2
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


# ------------------------------------------------------------------------------------------------------------------ handles


@pytest.mark.parametrize("ttl", [0, 0.0, "0 s", -1, "-1 h", "soon", "5 m", "", math.nan, None, True, b"1", [1]])
def test_a_ttl_that_is_none_is_refused(ttl: Any) -> None:
    with pytest.raises(UsageError):
        Expiring(MemoryBackend(), ttl)


def test_every_method_of_a_backend_is_forwarded_by_name() -> None:
    public = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert public <= set(vars(Expiring))
    assert not hasattr(Expiring, "__getattr__")


def test_it_is_the_place_in_all_but_time(tmp_path: Path) -> None:
    class Place(FileBackend):
        shared_by_machines = True
        remembers_use = True
        marked: Mapping[str, float] | None = None

        def mark_used(self, times: Mapping[str, float]) -> None:
            self.marked = times

    place = Place(tmp_path / "place")
    expiring = Expiring(place, "1 h")
    assert (expiring.place, expiring.shared_by_machines, expiring.remembers_use) == (place.place, True, True)
    assert (expiring.backend, expiring.ttl) == (place, HOUR)
    expiring.record({"codec": "raw"})
    expiring.put("k", b"123")
    assert expiring.recorded() == place.recorded() == {"codec": "raw"}
    expiring.mark_used({"k": 1.0})
    assert place.marked == {"k": 1.0}
    age(place, "k", HOUR)
    assert [use[:2] for use in expiring.uses()] == [("k", 3)], "what is expired takes room until it is removed"
    assert "3600 s" in expiring.guarantees().durable
    with pytest.raises(InvalidKeyError):
        expiring.get("../k")


def test_a_pickled_one_is_a_handle_on_the_same_place(tmp_path: Path) -> None:
    expiring = Expiring(FileBackend(tmp_path / "place"), "90 min")
    again = pickle.loads(pickle.dumps(expiring))
    again.put("k", b"1")
    assert expiring.get("k").data == b"1"
    assert (again.ttl, again._clock) == (5400.0, time.time)


def test_outside_of_copies_none_outlives_its_time(tmp_path: Path, place: Watched, clock: Clock) -> None:
    cached = Cached(place, FileBackend(tmp_path / "copies", sync="normal"), recheck="1 d", absent_for="1 d")
    expiring = Expiring(cached, "1 h", clock=clock)
    etag = expiring.put("k", b"1")
    place.take()
    assert shows(expiring, "k")
    with pytest.raises(NotModified):
        expiring.get("k", if_none_match=etag)
    clock.ahead = HOUR
    assert not shows(expiring, "k")
    with pytest.raises(NotFoundError):
        expiring.get("k", if_none_match=etag)
    assert "get" not in place.take(), "the copies tell the time"
    expiring.put("k", b"2", if_match=ABSENT)
    clock.ahead = 0
    assert expiring.get("k").data == b"2"


def test_in_a_bucket_it_is_the_same(stub: S3Server, tmp_path: Path, clock: Clock) -> None:
    from perdure_backends.s3 import S3Backend

    place = S3Backend("expiring", tmp_path.name, endpoint_url=stub.endpoint_url, create=True)
    with Expiring(place, "1 h", clock=clock) as expiring:
        etag = expiring.put("k", b"old", if_match=ABSENT)
        expiring.put_many({"l": b"1", "m": b"2"})
        assert shows(expiring, "k")
        with pytest.raises(NotModified):
            expiring.get("k", if_none_match=etag)
        clock.ahead = 2 * HOUR
        assert not shows(expiring, "k")
        with pytest.raises(NotFoundError):
            expiring.get("k", if_none_match=etag)
        with pytest.raises(PreconditionError):
            expiring.put("k", b"new", if_match=etag)
        expiring.put("k", b"new", if_match=ABSENT)
        assert place.get("k").data == b"new"
        assert expiring.prune() == 3  # by that clock the new one is as old
        assert list(place.keys()) == []
        expiring.put("k", b"again", if_match=ABSENT)
