"""`Observed` changes nothing, tells everything once, and whatever an observer does, no call fails of it."""

from __future__ import annotations

import gc
import logging
import pickle
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from watching import Watched

from perdure.errors import (
    InvalidKeyError,
    NotFoundError,
    NotModified,
    PreconditionError,
    UnavailableError,
    UnknownOutcomeError,
)
from perdure.protocol import ABSENT, Backend, ETag
from perdure.testing import BackendContract
from perdure.testing.faults import fail_after, fail_before, lose_answer
from perdure.testing.lifetime import in_child
from perdure.wrappers import Cached, Call, Observed, observed
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend

LAST: deque[Call] = deque(maxlen=1000)


def note(call: Call) -> None:
    """By name, so that it is found again in other processes."""
    assert call.seconds >= 0
    LAST.append(call)


class TestOverFolder(BackendContract):
    longest_segment = 247
    pace = 0.5

    def open(self, where: Path) -> Observed:
        return Observed(FileBackend(where, sync="normal"), note)


class TestOverMemory(BackendContract):
    processes = False
    pace = 0.3

    def open(self, where: Path) -> Observed:
        return Observed(MemoryBackend(str(where)), note)


class TestOverNull(BackendContract):
    keeps = False

    def open(self, where: Path) -> Observed:
        return Observed(NullBackend(), note)


@pytest.fixture
def place(tmp_path: Path) -> Watched:
    return Watched(FileBackend(tmp_path / "place", sync="normal"))


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def eye(place: Watched, calls: list[Call]) -> Iterator[Observed]:
    with Observed(place, calls.append) as eye:
        yield eye


def said(calls: list[Call]) -> list[tuple[object, ...]]:
    """What was told since the last time, without the seconds."""
    told = [(call.operation, call.key, call.size, call.outcome, call.values) for call in calls]
    assert all(0 <= call.seconds < 60 for call in calls)
    calls.clear()
    return told


# -------------------------------------------------------------------------------------------------------------- what is told


def test_each_call_is_told_once_with_what_came_of_it(eye: Observed, place: Watched, calls: list[Call]) -> None:
    etag = eye.put("a/b", b"12345")
    assert said(calls) == [("put", "a/b", 5, "ok", 1)]
    assert eye.get("a/b") == place.backend.get("a/b")
    assert said(calls) == [("get", "a/b", 5, "ok", 1)]
    assert eye.head("a/b") == place.backend.head("a/b")
    assert said(calls) == [("head", "a/b", 0, "ok", 1)]
    assert eye.contains("a/b") is True
    assert eye.contains("x") is False
    assert said(calls) == [("contains", "a/b", 0, "ok", 1), ("contains", "x", 0, "absent", 0)]
    eye.put("m", memoryview(bytes(range(64))).cast("I"))
    eye.put("m", bytearray(7), if_match=eye.head("m").etag)
    assert said(calls) == [("put", "m", 64, "ok", 1), ("head", "m", 0, "ok", 1), ("put", "m", 7, "ok", 1)]
    etags = eye.put_many({"m": b"12", "n": memoryview(b"345")})
    assert etags.keys() == {"m", "n"}
    assert {key: blob.data for key, blob in eye.get_many(iter(["m", "n", "x"])).items()} == {"m": b"12", "n": b"345"}
    assert said(calls) == [("put_many", None, 5, "ok", 2), ("get_many", None, 5, "ok", 2)]
    assert sorted(eye.keys()) == ["a/b", "m", "n"]
    assert [meta.key for meta in eye.scan("a/")] == ["a/b"]
    assert len(list(eye.times())) == len(list(eye.uses())) == 3
    assert list(eye.keys("none/")) == []
    assert said(calls) == [
        ("keys", "", 0, "ok", 3),
        ("scan", "a/", 0, "ok", 1),
        ("times", "", 0, "ok", 3),
        ("uses", "", 0, "ok", 3),
        ("keys", "none/", 0, "ok", 0),
    ]
    eye.mark_used({"m": 1.0, "n": 2.0})
    eye.delete("a/b", if_match=etag)
    eye.delete("a/b")
    eye.delete_many(iter(["m", "n"]))
    eye.record({"codec": "raw"})
    eye.put("k", b"")
    assert eye.recorded() == {"codec": "raw"}
    assert said(calls) == [
        ("mark_used", None, 0, "ok", 2),
        ("delete", "a/b", 0, "ok", 1),
        ("delete", "a/b", 0, "ok", 1),
        ("delete_many", None, 0, "ok", 2),
        ("record", None, 0, "ok", 0),
        ("put", "k", 0, "ok", 1),
        ("recorded", None, 0, "ok", 0),
    ]


def test_what_goes_otherwise_is_told_in_a_word(eye: Observed, place: Watched, calls: list[Call]) -> None:
    etag = eye.put("k", b"1")
    calls.clear()
    for kind, word, call in (
        (NotFoundError, "absent", lambda: eye.get("x")),
        (NotFoundError, "absent", lambda: eye.head("x")),
        (NotModified, "not modified", lambda: eye.get("k", if_none_match=etag)),
        (PreconditionError, "conflict", lambda: eye.put("k", b"2", if_match=ABSENT)),
        (PreconditionError, "conflict", lambda: eye.delete("k", if_match=ETag("x"))),
        (InvalidKeyError, "InvalidKeyError", lambda: eye.get("../k")),
        (InvalidKeyError, "InvalidKeyError", lambda: eye.put_many({"../k": b""})),
        (InvalidKeyError, "InvalidKeyError", lambda: eye.scan("no-slash")),
        (TypeError, "TypeError", lambda: eye.put("k", "text")),  # type: ignore[arg-type]
    ):
        with pytest.raises(kind):
            call()
        ((_, _, size, outcome, values),) = said(calls)
        assert (size, outcome, values) == (0, word, 0)
    for fault, word in (
        (fail_before(UnavailableError), "UnavailableError"),
        (fail_after(RuntimeError("a bug")), "RuntimeError"),
        (lose_answer(), "UnknownOutcomeError"),
        (fail_before(KeyboardInterrupt()), "KeyboardInterrupt"),  # type: ignore[arg-type]
    ):
        place.fault = fault if word != "KeyboardInterrupt" else _interrupt
        for write in (lambda: eye.put("k", b"1"), lambda: eye.delete("k"), lambda: eye.delete_many(["k"])):
            with pytest.raises((UnavailableError, RuntimeError, UnknownOutcomeError, KeyboardInterrupt)) as caught:
                write()
            assert type(caught.value).__name__ == word
            assert [call.outcome for call in calls] == [word]
            calls.clear()


def _interrupt(call: object, go: object) -> None:
    raise KeyboardInterrupt


def test_the_seconds_are_those_of_the_place(place: Watched, calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    time = 0.0
    monkeypatch.setattr(observed, "perf_counter", lambda: time)

    def slow(call: object, go: Callable[[], Any]) -> Any:
        nonlocal time
        time += 2
        try:
            return go()
        finally:
            time += 1

    class SlowSteps(FileBackend):
        def scan(self, prefix: str = "") -> Iterator[Any]:
            nonlocal time
            time += 5
            return self._steps()

        def _steps(self) -> Iterator[Any]:
            nonlocal time
            for meta in super().scan():
                time += 10
                yield meta
            time += 100

    place.fault = slow
    eye = Observed(place, calls.append)
    eye.put("k", b"1")
    eye.put_many({"l": b"1"})
    with pytest.raises(NotFoundError):
        eye.get("x")
    place.fault = None
    for _ in Observed(SlowSteps(place.place.removeprefix("file:")), calls.append).scan():
        time += 1000  # what is done between the steps is not the place's time
    assert [(call.operation, call.seconds) for call in calls] == [("put", 3), ("put_many", 3), ("get", 3), ("scan", 125)]


# ----------------------------------------------------------------------------------------------------------------- listings


def test_a_listing_is_told_when_it_ends(eye: Observed, calls: list[Call]) -> None:
    eye.put_many({f"{number}": b"" for number in range(5)})
    calls.clear()
    listing = eye.scan()
    first = next(listing)
    assert said(calls) == []
    assert len({first, *listing}) == 5
    assert said(calls) == [("scan", "", 0, "ok", 5)]
    assert list(listing) == []
    assert said(calls) == []


def test_a_listing_that_fails_half_way_is_told_with_how_far_it_got(calls: list[Call]) -> None:
    class Broken(MemoryBackend):
        def scan(self, prefix: str = "") -> Iterator[Any]:
            yield from islice(super().scan(prefix), 3)
            raise UnavailableError("gone", place=self.place)

    eye = Observed(Broken(), calls.append)
    eye.put_many({f"{number}": b"" for number in range(5)})
    calls.clear()
    with pytest.raises(UnavailableError):
        list(eye.scan())
    assert said(calls) == [("scan", "", 0, "UnavailableError", 3)]


@pytest.mark.parametrize("follow", ["get", "listing", "close"])
def test_a_listing_given_up_half_way_is_told_with_the_next_call(eye: Observed, calls: list[Call], follow: str) -> None:
    eye.put_many({f"{number}": b"" for number in range(5)})
    calls.clear()
    explicit: Any = eye.scan()
    next(explicit)
    next(eye.keys())
    next(explicit)
    explicit.close()
    assert said(calls) == []
    if follow == "get":
        eye.get("0")
        assert said(calls)[:2] == [("keys", "", 0, "ok", 1), ("scan", "", 0, "ok", 2)]
    elif follow == "listing":
        eye.uses()  # not even begun
        assert said(calls) == [("keys", "", 0, "ok", 1), ("scan", "", 0, "ok", 2)]
    else:
        eye.close()
        assert said(calls) == [("keys", "", 0, "ok", 1), ("scan", "", 0, "ok", 2)]


def test_the_garbage_collector_never_calls_the_observer(place: Watched) -> None:
    """It strikes anywhere, also while this thread holds the very lock that the observer waits for."""
    lock = threading.Lock()
    told: list[Call] = []

    def observer(call: Call) -> None:
        assert lock.acquire(timeout=5), "the observer waits for a lock that its own thread holds"
        with_lock(call)
        lock.release()

    def with_lock(call: Call) -> None:
        told.append(call)
        if call.operation == "get":
            gc.collect()

    eye = Observed(place, observer)
    eye.put_many({"a": b"1", "b": b"2"})
    cycle: list[Any] = [eye.scan()]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    eye.get("a")
    eye.contains("a")
    assert [call.operation for call in told] == ["put_many", "get", "scan", "contains"]


# -------------------------------------------------------------------------------------------------------- broken observers


def exercise(backend: Backend) -> None:
    etag = backend.put("k", b"1")
    assert backend.get("k")[:2] == (b"1", etag)
    with pytest.raises(NotFoundError):
        backend.get("x")
    with pytest.raises(PreconditionError):
        backend.put("k", b"2", if_match=ABSENT)
    assert [meta.key for meta in backend.scan()] == ["k"]
    next(backend.keys())
    assert backend.get_many(["k"])["k"].etag == etag
    backend.delete("k")
    assert not backend.contains("k")


def test_an_observer_that_fails_is_logged_once_with_its_traceback(place: Watched, caplog: pytest.LogCaptureFixture) -> None:
    failed = 0

    def observer(call: Call) -> None:
        nonlocal failed
        failed += 1
        raise LookupError(f"no metric for {call.operation}")

    with Observed(place, observer) as eye:
        exercise(eye)
        exercise(eye)
    assert failed == 2 * 9
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("perdure.wrappers", logging.ERROR)
    assert place.place in record.getMessage()
    assert "put" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


def test_many_threads_whose_observer_fails_log_it_once(place: Watched, caplog: pytest.LogCaptureFixture) -> None:
    line = threading.Barrier(8)

    def observer(call: Call) -> None:
        line.wait(60)
        raise LookupError

    eye = Observed(place, observer)
    threads = [threading.Thread(target=eye.contains, args=("k",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1


def test_an_observer_that_fails_now_and_then_is_told_the_rest(place: Watched) -> None:
    told: list[str] = []

    def observer(call: Call) -> None:
        if call.operation == "get":
            raise LookupError
        told.append(call.operation)

    exercise(Observed(place, observer))
    assert told == ["put", "put", "scan", "keys", "get_many", "delete", "contains"]


def test_ctrl_c_in_an_observer_is_no_failure_of_it(place: Watched) -> None:
    def observer(call: Call) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observed(place, observer).put("k", b"1")
    assert place.backend.get("k").data == b"1"


# ------------------------------------------------------------------------------------------------------------------ handles


def test_many_threads_are_told_of_each_call(place: Watched, calls: list[Call]) -> None:
    eye = Observed(place, calls.append)

    def work(number: int) -> None:
        for turn in range(50):
            eye.put(f"{number}", b"%d" % turn)
            eye.get(f"{number}")
            next(eye.keys())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eye.close()
    assert Counter(call.operation for call in calls) == {"put": 400, "get": 400, "keys": 400}


def test_every_method_of_a_backend_is_forwarded_by_name() -> None:
    public = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert public <= set(vars(Observed))
    assert not hasattr(Observed, "__getattr__")


def test_it_is_the_place_itself_in_all_but_name(tmp_path: Path) -> None:
    class Place(FileBackend):
        shared_by_machines = True
        remembers_use = True
        marked: Mapping[str, float] | None = None

        def mark_used(self, times: Mapping[str, float]) -> None:
            self.marked = times

    place = Place(tmp_path / "place")
    eye = Observed(place, note)
    assert (eye.place, eye.shared_by_machines, eye.remembers_use) == (place.place, True, True)
    assert eye.backend is place
    assert eye.guarantees() == place.guarantees()
    eye.mark_used({"k": 1.0})
    assert place.marked == {"k": 1.0}


def test_a_pickled_one_tells_the_same_observer(tmp_path: Path) -> None:
    again = pickle.loads(pickle.dumps(Observed(FileBackend(tmp_path / "place"), note)))
    LAST.clear()
    again.put("k", b"1")
    assert [call.operation for call in LAST] == ["put"]


def test_a_forked_child_tells_its_own_observer(eye: Observed, calls: list[Call]) -> None:
    eye.put("k", b"1")

    def child() -> None:
        calls.clear()
        eye.get("k")
        assert [call.operation for call in calls] == ["get"]

    in_child(child)
    assert [call.operation for call in calls] == ["put"]


def test_each_part_of_a_chain_can_be_observed_by_itself(place: Watched) -> None:
    remote: list[Call] = []
    whole: list[Call] = []
    eye = Observed(Cached(Observed(place, remote.append), MemoryBackend(), recheck="1 h"), whole.append)
    eye.put("k", b"1")
    for _ in range(3):
        eye.get("k")
    assert [call.operation for call in remote if call.operation != "recorded"] == ["put"]
    assert [call.operation for call in whole] == ["put", "get", "get", "get"]
