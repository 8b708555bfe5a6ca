"""`Cached` with `recheck`, `absent_for` and `worth`: what is answered unasked is late by so much, and never goes back."""

from __future__ import annotations

import math
import os
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from watching import Watched

from perdure.errors import (
    BackendError,
    InvalidKeyError,
    NotFoundError,
    NotModified,
    PreconditionError,
    UnavailableError,
    UnknownOutcomeError,
    UsageError,
)
from perdure.mapping import PersiDict
from perdure.protocol import ABSENT, Backend, ETag
from perdure.testing.crew import Move, Threads
from perdure.testing.faults import Call, Hold, fail_after, fail_before, lose_answer
from perdure.testing.interrupts import _interrupted
from perdure.testing.lifetime import in_child
from perdure.wrappers import Cached, confirmed
from perdure.wrappers.confirmed import Confirmed
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # nothing warns but where a test expects it

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))


class Clock:
    """The clock of all confirmations, which only tests move on."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(confirmed, "now", clock)
    return clock


@pytest.fixture
def remote(tmp_path: Path) -> Watched:
    return Watched(FileBackend(tmp_path / "remote", sync="normal"))


@pytest.fixture
def local(tmp_path: Path) -> Watched:
    return Watched(FileBackend(tmp_path / "copies", sync="normal"))


@pytest.fixture
def cached(clock: Clock, remote: Watched, local: Watched) -> Iterator[Cached]:
    with Cached(remote, local, recheck="60 s", absent_for="10 s") as cached:
        local.take()
        yield cached


# ----------------------------------------------------------------------------------------------------------------- recheck


def test_a_copy_is_answered_unasked_until_it_has_to_be_checked_again(cached: Cached, remote: Watched, clock: Clock) -> None:
    etag = remote.backend.put("k", b"value")
    for _ in range(3):
        before = clock.time
        assert cached.get("k")[:2] == (b"value", etag)
        assert len(remote.take()) == 1
        clock.time = before + 59.9
        assert cached.get("k") == remote.backend.get("k")
        assert cached.head("k") == remote.backend.head("k")
        assert cached.contains("k") is True
        assert cached.get_many(["k"]) == {"k": remote.backend.get("k")}
        assert cached.get("k", if_none_match=ETag("other")).data == b"value"
        with pytest.raises(NotModified) as caught:
            cached.get("k", if_none_match=etag)
        assert (caught.value.key, caught.value.place) == ("k", remote.place)
        assert remote.take() == []
        clock.time = before + 60
    assert (cached.hits, cached.misses, cached.unasked, cached.absences) == (3 * 3 + 2, 1, 3 * 6, 0)


def test_an_unasked_hit_is_one_read_of_the_local_place(cached: Cached, local: Watched) -> None:
    cached.put("k", b"1")
    local.take()
    cached.get("k")
    assert local.take() == ["get"]


def test_what_is_at_hand_is_what_get_would_answer_unasked(cached: Cached, remote: Watched, clock: Clock) -> None:
    assert cached.at_hand("k") is None
    cached.put("k", b"1")
    remote.take()
    assert cached.at_hand("k") == cached.get("k")
    clock.time += 60
    assert cached.at_hand("k") is None
    assert remote.take() == []
    assert cached.get("k") is not None
    assert cached.at_hand("k") is not None
    cached.forget("k")
    assert cached.at_hand("k") is None


@pytest.mark.parametrize("share", [False, True])
def test_what_another_one_writes_and_deletes_is_seen_in_time(
    tmp_path: Path, cached: Cached, remote: Watched, clock: Clock, share: bool
) -> None:
    folder = "copies" if share else "others-copies"
    other = Cached(FileBackend(tmp_path / "remote"), FileBackend(tmp_path / folder, sync="normal"), recheck=60)
    cached.put("k", b"old")
    clock.time += 30
    assert other.get("k").data == b"old"
    etag = other.put("k", b"new")
    assert other.get("k")[:2] == (b"new", etag)
    if share:
        assert cached.get("k")[:2] == (b"new", etag), "the copy in the common folder is one that was not confirmed"
        etag = remote.backend.put("k", b"newer")
        clock.time += 60
    else:
        assert cached.get("k").data == b"old"
        clock.time += 30
        other.delete("k")
        etag = other.put("k", b"newer")
    assert cached.get("k")[:2] == (b"newer", etag)
    other.delete("k")
    with pytest.raises(NotFoundError):
        other.get("k")
    clock.time += 60
    with pytest.raises(NotFoundError):
        cached.get("k")
    other.close()


def test_a_look_without_the_bytes_confirms_them_too(cached: Cached, remote: Watched, clock: Clock) -> None:
    cached.put("k", b"1")
    for look in (cached.head, cached.contains):
        clock.time += 60
        look("k")
        assert remote.take()[-1] == "head"
        assert cached.get("k").data == b"1"
        assert remote.take() == []


def test_lateness_counts_from_before_the_question(cached: Cached, remote: Watched, clock: Clock) -> None:
    """The answer may have been true for the last time just after the question was sent."""
    remote.backend.put("k", b"old")

    def slow(call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        clock.time += 50
        remote.backend.put("k", b"new")
        return answer

    remote.fault = slow
    assert cached.get("k").data == b"old"
    remote.fault = None
    clock.time += 9.9
    assert cached.get("k").data == b"old"
    clock.time += 0.2
    assert cached.get("k").data == b"new"


WRITES: dict[str, Callable[[Cached, str], object]] = {
    "put": lambda cached, key: cached.put(key, b"mine"),
    "swap": lambda cached, key: cached.put(key, b"mine", if_match=cached.get(key).etag),
    "put_many": lambda cached, key: cached.put_many({key: b"mine", "other": b"1"}),
    "delete": lambda cached, key: cached.delete(key),
    "delete_if": lambda cached, key: cached.delete(key, if_match=cached.get(key).etag),
    "delete_many": lambda cached, key: cached.delete_many([key, "other"]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_here_is_seen_here_at_once_and_unasked(
    cached: Cached, remote: Watched, write: Callable[[Cached, str], object]
) -> None:
    cached.put("k", b"old")
    cached.get("k")
    write(cached, "k")
    there = remote.backend.contains("k")
    remote.take()
    assert cached.contains("k") is there
    assert bool(cached.get_many(["k"])) is there
    if there:
        assert cached.get("k")[:2] == remote.backend.get("k")[:2]
    else:
        with pytest.raises(NotFoundError):
            cached.get("k")
    assert remote.take() == []


@pytest.mark.parametrize("fault", [lose_answer(), fail_after(RuntimeError("a bug")), fail_before(UnknownOutcomeError)])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_after_a_write_of_unknown_outcome_the_remote_is_asked(
    cached: Cached, remote: Watched, write: Callable[[Cached, str], object], fault: Any
) -> None:
    cached.put("k", b"old")
    remote.fault = fault
    with pytest.raises((UnknownOutcomeError, RuntimeError)):
        write(cached, "k")
    remote.fault = None
    for _ in range(2):
        assert {key: b[:2] for key, b in cached.get_many(["k"]).items()} == {
            key: b[:2] for key, b in remote.backend.get_many(["k"]).items()
        }


def test_whoever_loses_a_swap_sees_next_what_he_lost_to(cached: Cached, remote: Watched) -> None:
    """Else he would try the same again until the copy has to be checked."""
    old = cached.put("k", b"old")
    for lose in (
        lambda: cached.put("k", b"mine", if_match=old),
        lambda: cached.delete("k", if_match=old),
        lambda: cached.put("k", b"mine", if_match=ABSENT),
    ):
        theirs = b"theirs %d" % random.randrange(1 << 60)
        assert cached.get("k")
        remote.backend.put("k", theirs)
        with pytest.raises(PreconditionError):
            lose()
        assert cached.get("k").data == theirs
    remote.backend.delete("k")
    with pytest.raises(PreconditionError):
        cached.put("k", b"mine", if_match=cached.get("k").etag)
    with pytest.raises(NotFoundError):
        cached.get("k")


def test_two_dicts_count_together_though_neither_checks_by_itself(tmp_path: Path) -> None:
    dicts = [
        PersiDict[Any](
            Cached(
                FileBackend(tmp_path / "remote", sync="normal"),
                FileBackend(tmp_path / f"copies{number}", sync="normal"),
                recheck=math.inf,
                absent_for=math.inf,
            )
        )
        for number in range(2)
    ]
    dicts[0]["n"] = 0
    for turn in range(20):
        dicts[turn % 2].transform_item("n", transformer=lambda n: n + 1)
    assert dicts[1]["n"] == 20


def test_trouble_with_the_remote_is_raised_only_when_it_has_to_be_asked(cached: Cached, remote: Watched, clock: Clock) -> None:
    cached.put_many({"k": b"1", "l": b"2"})
    remote.fault = fail_before(UnavailableError)
    assert cached.get("k").data == b"1"
    assert len(cached.get_many(["k", "l"])) == 2
    clock.time += 60
    for call in (lambda: cached.get("k"), lambda: cached.get_many(["k"]), lambda: cached.contains("k")):
        with pytest.raises(UnavailableError):
            call()


def test_of_many_only_those_are_asked_about_that_have_to_be(cached: Cached, remote: Watched, clock: Clock) -> None:
    cached.put_many({"a": b"1", "b": b"2", "c": b"3"})
    clock.time += 55
    assert cached.get_many(["x", "y"]) == {}
    clock.time += 5
    cached.put("a", b"4")
    remote.backend.put("b", b"5")
    remote.backend.put("z", b"6")
    remote.take()
    found = cached.get_many(iter(["a", "b", "c", "x", "y", "z", "a"]))
    assert {key: blob.data for key, blob in found.items()} == {"a": b"4", "b": b"5", "c": b"3", "z": b"6"}
    assert sorted(remote.take()) == ["get", "get_many", "not modified"]
    again = cached.get_many(["a", "b", "c", "x", "y", "z"])
    assert {key: blob[:2] for key, blob in again.items()} == {key: remote.backend.get(key)[:2] for key in "abcz"}
    assert cached.get_many(["x", "y"]) == {}
    assert remote.take() == []


def test_a_listing_is_never_answered_unasked(cached: Cached, remote: Watched) -> None:
    cached.put("k", b"1")
    remote.backend.put("l", b"2")
    remote.backend.delete("k")
    assert [*cached.keys()] == [key for key, _ in cached.times()] == [meta.key for meta in cached.scan()] == ["l"]
    assert [use.key for use in cached.uses()] == ["l"]


@pytest.mark.parametrize("option", ["recheck", "absent_for"])
@pytest.mark.parametrize("wrong", [-1, "-1 s", "soon", "5 m", math.nan, None, b"1"])
@pytest.mark.parametrize("append_only", [False, True])
def test_what_is_no_duration_is_refused(remote: Watched, local: Watched, option: str, wrong: Any, append_only: bool) -> None:
    with pytest.raises(UsageError):
        Cached(remote, local, append_only=append_only, **{option: wrong})


def test_by_default_nothing_is_remembered(remote: Watched, local: Watched) -> None:
    cached = Cached(remote, local)
    cached.put("k", b"1")
    cached.get("k")
    cached.contains("l")
    cached.forget("k")
    assert cached._confirmed._said == {}
    assert cached.unasked == cached.absences == 0


def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    import time

    before = confirmed.now()
    assert confirmed.now() >= before
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(confirmed.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


# ------------------------------------------------------------------------------------------------------------------ chains


def test_in_a_chain_each_part_is_asked_in_turn(tmp_path: Path, remote: Watched, clock: Clock) -> None:
    folder = Watched(FileBackend(tmp_path / "copies", sync="normal"))
    near = Watched(Cached(remote, folder))
    cached = Cached(near, MemoryBackend(), recheck=60)
    etag = remote.backend.put("k", b"1")
    assert cached.get("k")[:2] == (b"1", etag)
    for parts in (near, remote, folder):
        parts.take()
    for _ in range(3):
        assert cached.get("k")[:2] == (b"1", etag)
    assert near.take() == remote.take() == folder.take() == []
    clock.time += 60
    assert cached.get("k")[:2] == (b"1", etag)
    assert (near.take(), remote.take(), folder.take()) == (["not modified"], ["not modified"], ["get"])
    etag = remote.backend.put("k", b"2")
    clock.time += 60
    assert cached.get("k")[:2] == (b"2", etag)
    again = Cached(near, MemoryBackend(), recheck=60)
    remote.take()
    assert again.get("k")[:2] == (b"2", etag)
    assert remote.take() == ["not modified"], "the folder has it, so the remote need not send it"
    etag = again.put("k", b"3")
    assert remote.backend.get("k")[:2] == again.get("k")[:2] == (b"3", etag)


def test_in_a_chain_forgetting_reaches_every_part(remote: Watched, clock: Clock) -> None:
    cached = Cached(Cached(remote, MemoryBackend(), recheck=60, absent_for=60), MemoryBackend(), recheck=60, absent_for=60)
    cached.put("k", b"1")
    remote.backend.put("k", b"2")
    assert cached.get("k").data == b"1"
    cached.forget("k")
    assert cached.get("k").data == b"2"


# ------------------------------------------------------------------------------------------------------------ append-only


def test_where_values_stay_a_copy_is_good_for_ever_and_an_absence_is_not(remote: Watched, local: Watched, clock: Clock) -> None:
    cached = Cached(remote, local, append_only=True, recheck="1 s", absent_for="10 s")
    cached.put("k", b"1", if_match=ABSENT)
    for _ in range(2):
        with pytest.raises(NotFoundError):
            cached.get("l")
    assert remote.take() == ["put", "get"]
    clock.time += 9
    assert cached.get("k").data == b"1"
    assert not cached.contains("l")
    assert remote.take() == []
    clock.time += 1e6
    assert cached.get("k").data == b"1"
    assert cached.contains("k")
    assert remote.take() == []
    remote.backend.put("l", b"2")
    assert cached.get("l").data == b"2"
    clock.time += 1e6
    assert cached.get("l").data == b"2"
    assert remote.take() == ["get"]
    cached.forget("l")
    assert cached.get("l").data == b"2"
    assert remote.take() == ["get"], "the next get asks, even here"


# ---------------------------------------------------------------------------------------------------------------- absences


def test_an_absence_is_answered_unasked_for_its_time(cached: Cached, remote: Watched, clock: Clock) -> None:
    for ask in (
        lambda: cached.get("k"),
        lambda: cached.head("k"),
        lambda: cached.contains("k"),
        lambda: cached.get_many(["k"]),
        lambda: cached.delete("k"),
    ):
        try:
            ask()
        except NotFoundError:
            pass
        assert len(remote.take()) == 1
        remote.backend.put("k", b"1")
        clock.time += 9.9
        for _ in range(2):
            with pytest.raises(NotFoundError) as caught:
                cached.get("k", if_none_match=ETag("x"))
            assert (caught.value.key, caught.value.place) == ("k", remote.place)
            with pytest.raises(NotFoundError):
                cached.head("k")
            assert cached.contains("k") is False
            assert cached.get_many(["k", "k"]) == {}
        assert remote.take() == []
        clock.time += 0.2
        assert cached.get("k").data == b"1"
        remote.take()
        cached.forget("k")
        remote.backend.delete("k")
    assert cached.absences == 5 * 2 * 4


@pytest.mark.parametrize("condition", [None, ABSENT])
def test_a_write_is_never_held_back_by_an_absence(cached: Cached, remote: Watched, condition: Any) -> None:
    assert not cached.contains("k")
    etag = cached.put("k", b"1", if_match=condition)
    remote.take()
    assert cached.get("k")[:2] == (b"1", etag)
    assert cached.contains("k")
    assert remote.take() == []


def test_a_create_asks_though_the_key_was_absent_a_moment_ago(cached: Cached, remote: Watched) -> None:
    assert not cached.contains("k")
    remote.backend.put("k", b"theirs")
    assert not cached.contains("k")
    with pytest.raises(PreconditionError):
        cached.put("k", b"mine", if_match=ABSENT)
    assert cached.get("k").data == b"theirs"


def test_a_copy_that_another_process_stored_contradicts_an_absence(tmp_path: Path, cached: Cached, remote: Watched) -> None:
    assert not cached.contains("k")
    Cached(remote.backend, FileBackend(tmp_path / "copies", sync="normal")).put("k", b"1")
    assert cached.get("k").data == b"1"


def test_absences_are_kept_without_copies_being_answered_unasked(remote: Watched, local: Watched, clock: Clock) -> None:
    cached = Cached(remote, local, absent_for=10)
    cached.put("k", b"1")
    assert not cached.contains("l")
    remote.take()
    assert not cached.contains("l")
    assert cached.get("k").data == b"1"
    assert remote.take() == ["not modified"]
    remote.backend.delete("k")
    assert not cached.contains("k")
    remote.backend.put("k", b"2")
    assert not cached.contains("k")
    clock.time += 10
    assert cached.contains("k")


def test_a_wrong_key_is_refused_and_not_absent(cached: Cached) -> None:
    for key in ("../k", "", "a b", None, ["a"], b"k"):
        for call in (
            cached.get,
            cached.head,
            cached.contains,
            cached.delete,
            cached.forget,
            lambda key: cached.put(key, b""),
            lambda key: cached.get_many([key]),
            lambda key: cached.delete_many([key]),
        ):
            for _ in range(2):
                with pytest.raises(InvalidKeyError):
                    call(key)  # type: ignore[arg-type]


def test_a_closed_one_answers_nothing_from_memory(cached: Cached, remote: Watched) -> None:
    cached.put("k", b"1")
    assert not cached.contains("l")
    cached.close()
    for call in (cached.get, cached.head, cached.contains, lambda key: cached.get_many([key])):
        for key in ("k", "l"):
            with pytest.raises(BackendError, match="was closed"):
                call(key)


# ------------------------------------------------------------------------------------------------------------------- worth


def large(data: bytes) -> bool:
    return len(data) > 3


@pytest.fixture
def choosy(remote: Watched, local: Watched, clock: Clock) -> Iterator[Cached]:
    with Cached(remote, local, recheck=60, worth=large) as cached:
        yield cached


def test_what_is_not_worth_a_copy_is_read_from_the_remote_each_time(choosy: Cached, remote: Watched, local: Watched) -> None:
    choosy.put("small", b"1")
    choosy.put_many({"little": b"2", "large": b"large"})
    remote.backend.put("tiny", b"3")
    assert list(local.backend.keys()) == ["large"]
    for number in range(3):
        remote.take()
        assert choosy.get("small").data == b"1"
        assert choosy.get("tiny").data == b"3"
        assert {key: blob.data for key, blob in choosy.get_many(["little", "large"]).items()} == {
            "little": b"2",
            "large": b"large",
        }
        assert remote.take() == ["get", "get", "get_many"]
        assert list(local.backend.keys()) == ["large"]
        remote.backend.put("tiny", b"3")
        assert choosy.unasked == number + 1


@pytest.mark.parametrize(
    "write",
    [lambda b: b.put("k", b"1"), lambda b: b.put_many({"k": b"1"}), lambda b: b.put("k", b"1", if_match=b.get("k").etag)],
)
def test_what_is_no_longer_worth_it_loses_its_copy(
    choosy: Cached, remote: Watched, local: Watched, clock: Clock, write: Callable[[Backend], object]
) -> None:
    for backend in (choosy, remote.backend):
        choosy.put("k", b"large")
        assert local.backend.contains("k")
        write(backend)
        clock.time += 60 * (backend is not choosy)
        assert choosy.get("k").data == b"1"
        assert not local.backend.contains("k")
        choosy.put("k", b"large")
        write(backend)
        clock.time += 60 * (backend is not choosy)
        assert choosy.get_many(["k"])["k"].data == b"1"
        assert not local.backend.contains("k")


def test_where_worth_cannot_tell_the_value_is_not_copied_and_nothing_fails(remote: Watched, local: Watched) -> None:
    def worth(data: bytes) -> bool:
        raise LookupError("no opinion")

    cached = Cached(remote, local, recheck=60, worth=worth)
    with pytest.warns(UserWarning, match="LookupError: no opinion") as warned:
        cached.put("k", b"1")
        assert cached.get("k").data == b"1"
        assert cached.get_many(["k"])["k"].data == b"1"
    assert len(warned) == 1
    assert cached.troubles == 3
    assert list(local.backend.keys()) == []


# ------------------------------------------------------------------------------------------------------------------ forget


def test_what_is_forgotten_is_asked_about_once(cached: Cached, remote: Watched) -> None:
    cached.put("k", b"old")
    etag = remote.backend.put("k", b"new")
    assert not cached.contains("l")
    remote.backend.put("l", b"there")
    remote.take()
    cached.forget("k")
    cached.forget("l")
    cached.forget("never-heard-of")
    assert cached.get("k")[:2] == (b"new", etag)
    assert cached.get("l").data == b"there"
    assert remote.take() == ["get", "get"]
    cached.get("k")
    assert remote.take() == []


def held(remote: Watched, call: Callable[[], object]) -> tuple[Hold, threading.Thread]:
    """Begin a call whose answer from the remote is there, and held back."""
    hold = Hold()

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        try:
            return go()
        finally:
            hold(call, lambda: None)  # errors are answers, too

    remote.fault = fault
    thread = threading.Thread(target=call)
    thread.start()
    assert hold.reached.wait(60)
    remote.fault = None
    return hold, thread


def test_an_answer_on_its_way_does_not_count_after_forgetting(cached: Cached, remote: Watched) -> None:
    remote.backend.put("k", b"old")
    hold, thread = held(remote, lambda: cached.get("k"))
    remote.backend.put("k", b"new")
    cached.forget("k")
    hold.release.set()
    thread.join(60)
    assert cached.get("k").data == b"new"


# ------------------------------------------------------------------------------------------------------------------- races


SLOW: dict[str, Callable[[Cached], object]] = {
    "get": lambda cached: cached.get("k"),
    "get_many": lambda cached: cached.get_many(["k"]),
    "head": lambda cached: cached.head("k"),
    "contains": lambda cached: cached.contains("k"),
}


@pytest.mark.parametrize("read", SLOW.values(), ids=SLOW)
@pytest.mark.parametrize("before", ["value", "nothing"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_slow_answer_from_before_a_write_does_not_undo_it_here(
    cached: Cached, remote: Watched, read: Callable[[Cached], object], write: Callable[[Cached, str], object], before: str
) -> None:
    if before == "value":
        remote.backend.put("k", b"old")

    def quietly() -> None:
        try:
            read(cached)
        except NotFoundError:
            pass

    hold, thread = held(remote, quietly)
    try:
        write(cached, "k")
    except NotFoundError:
        cached.put("k", b"mine")
    hold.release.set()
    thread.join(60)
    there = {key: blob[:2] for key, blob in remote.backend.get_many(["k"]).items()}
    for _ in range(2):
        assert {key: blob[:2] for key, blob in cached.get_many(["k"]).items()} == there
        assert cached.contains("k") is bool(there)


@pytest.mark.parametrize("second", ["put", "delete"])
def test_of_two_writes_at_once_neither_is_taken_for_the_last(cached: Cached, remote: Watched, second: str) -> None:
    """The first is done, and its answer on its way, when the second begins and ends; or the other way round."""
    hold, thread = held(remote, lambda: cached.put("k", b"first"))
    cached.put("k", b"second") if second == "put" else cached.delete("k")
    hold.release.set()
    thread.join(60)
    assert {key: b[:2] for key, b in cached.get_many(["k"]).items()} == {
        key: b[:2] for key, b in remote.backend.get_many(["k"]).items()
    }
    before = Hold()
    remote.fault = lambda call, go: before(call, go) if call.name == "put" else go()
    thread = threading.Thread(target=cached.put, args=("k", b"third"))
    thread.start()
    assert before.reached.wait(60)
    remote.fault = None
    cached.put("k", b"fourth")
    assert cached.get("k").data == b"fourth"
    before.release.set()
    thread.join(60)
    assert remote.backend.get("k").data == b"third"
    assert cached.get("k").data == b"third"


def test_a_slow_answer_does_not_take_back_what_a_quick_one_said(cached: Cached, remote: Watched) -> None:
    """Another machine writes in between: whoever reads through this object must not see the new value and then the old one."""
    remote.backend.put("k", b"old")
    hold, thread = held(remote, lambda: cached.get("k"))
    remote.backend.put("k", b"new")
    assert cached.get("k").data == b"new"
    hold.release.set()
    thread.join(60)
    for _ in range(2):
        assert cached.get("k").data == b"new"


def test_many_readers_at_once_confirm_what_they_agree_on(cached: Cached, remote: Watched) -> None:
    remote.backend.put("k", b"1")
    together = threading.Barrier(8)

    def meet(call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        together.wait(60)
        return answer

    remote.fault = meet
    threads = [threading.Thread(target=cached.get, args=("k",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    remote.fault = None
    remote.take()
    cached.get("k")
    assert remote.take() == []


KEYS = ["a", "b/c"]


def count_on(backend: Backend, key: str, latest: dict[str, int], done: list[str], times: int) -> None:
    try:
        _count_on(backend, key, latest, times)
    finally:
        done.append(key)


def _count_on(backend: Backend, key: str, latest: dict[str, int], times: int) -> None:
    for number in range(1, times + 1):
        data = b"%d" % number
        if number % 5 == 0:
            backend.delete(key)
        if number % 3 == 0:
            backend.put_many({key: data})
        elif number % 2 == 0 or not backend.contains(key):
            backend.put(key, data)
        else:
            backend.put(key, data, if_match=backend.get(key).etag)
        latest[key] = number


def look_on(backend: Backend, latest: dict[str, int], done: list[str], many: bool) -> int:
    looks = 0
    seen: dict[str, int] = {}
    last = False
    while not last:
        last = len(done) == len(KEYS)
        acknowledged = dict(latest)
        for key in KEYS:
            try:
                data = backend.get_many([key])[key].data if many else backend.get(key).data
            except KeyError:
                continue
            number = int(data)
            floor = max(acknowledged.get(key, 0), seen.get(key, 0))
            assert number >= floor, f"{key} was {floor} before, and {number} was answered"
            seen[key] = number
            looks += 1
    return looks


@pytest.mark.parametrize("recheck", [1e9, 0.0005])
def test_through_one_object_no_thread_ever_sees_an_older_value(tmp_path: Path, recheck: float) -> None:
    for turn in range(4 * ROUNDS):
        remote = MemoryBackend() if turn % 2 else FileBackend(tmp_path / f"remote{turn}", sync="normal")
        cached = Cached(remote, MemoryBackend(), recheck=recheck, absent_for=recheck)
        latest: dict[str, int] = {}
        done: list[str] = []
        crew = Threads([cached] * 6)
        moves: list[Move] = [partial(count_on, key=key, latest=latest, done=done, times=150) for key in KEYS]
        moves += [partial(look_on, latest=latest, done=done, many=number % 2 == 0) for number in range(4)]
        answers = crew.at_once(moves)
        crew.close()
        assert sum(answers[2:]) > 0
        assert cached.unasked > 0
        for key in KEYS:
            assert cached.get(key)[:2] == remote.get(key)[:2]


def write_at_random(backend: Backend, seed: int, times: int) -> None:
    dice = random.Random(seed)
    for number in range(times):
        try:
            match dice.randrange(6):
                case 0:
                    backend.delete("k")
                case 1:
                    backend.put("k", b"%d.%d" % (seed, number), if_match=ABSENT)
                case 2:
                    backend.put("k", b"%d.%d" % (seed, number), if_match=backend.get("k").etag)
                case 3:
                    backend.get("k")
                case _:
                    backend.put("k", b"%d.%d" % (seed, number))
        except (PreconditionError, NotFoundError):
            continue


def test_when_all_writers_are_done_everybody_sees_what_is_there() -> None:
    crew_size, remote = 6, MemoryBackend()
    cached = Cached(remote, MemoryBackend(), recheck=1e9, absent_for=1e9)
    crew = Threads([cached] * crew_size)
    for turn in range(60 * ROUNDS):
        crew.at_once([partial(write_at_random, seed=turn * 10 + number, times=8) for number in range(crew_size)])
        assert {key: b[:2] for key, b in cached.get_many(["k"]).items()} == {
            key: b[:2] for key, b in remote.get_many(["k"]).items()
        }, f"round {turn}"
    crew.close()


FAILING: dict[str, Callable[[Cached, ETag], object]] = {
    "swap": lambda cached, etag: cached.put("k", b"mine", if_match=etag),
    "create": lambda cached, etag: cached.put("k", b"mine", if_match=ABSENT),
    "delete_if": lambda cached, etag: cached.delete("k", if_match=etag),
    "put_many": lambda cached, etag: cached.put_many({"k": b"mine"}),
    "delete_many": lambda cached, etag: cached.delete_many(["k"]),
}


@pytest.mark.parametrize("write", FAILING.values(), ids=FAILING)
def test_what_was_heard_while_a_write_failed_does_not_count(
    cached: Cached, remote: Watched, local: Watched, write: Callable[[Cached, ETag], object]
) -> None:
    old = cached.put("k", b"old")
    record = local.backend.get("k").data

    def meanwhile(call: Call, go: Callable[[], Any]) -> Any:
        remote.fault = None
        assert cached.get("k").data == b"old"  # asks, and is told that it is current
        remote.backend.put("k", b"theirs")
        if "many" in call.name:
            raise UnknownOutcomeError
        return go()

    remote.fault = meanwhile
    with pytest.raises((PreconditionError, UnknownOutcomeError)):
        write(cached, old)
    local.backend.put("k", record)  # by another process, who read it before
    assert cached.get("k").data == b"theirs"


def test_an_absence_that_was_heard_while_a_write_failed_does_not_count(cached: Cached, remote: Watched) -> None:
    def meanwhile(call: Call, go: Callable[[], Any]) -> Any:
        remote.fault = None
        assert not cached.contains("k")
        go()
        raise UnknownOutcomeError

    for write in (lambda: cached.put("k", b"1"), lambda: cached.put_many({"k": b"1"})):
        remote.fault = meanwhile
        with pytest.raises(UnknownOutcomeError):
            write()
        assert cached.get("k").data == b"1"
        cached.delete("k")


def test_what_was_heard_before_a_value_not_worth_it_does_not_count(choosy: Cached, remote: Watched, local: Watched) -> None:
    choosy.put("k", b"large")
    record = local.backend.get("k").data

    def meanwhile(call: Call, go: Callable[[], Any]) -> Any:
        remote.fault = None
        assert choosy.get("k").data == b"large"
        return go()

    remote.fault = meanwhile
    choosy.put("k", b"1")
    local.backend.put("k", record)  # by another process, who read it before
    assert choosy.get("k").data == b"1"


def test_what_overlapped_is_believed_only_where_it_agrees(clock: Clock) -> None:
    confirmed = Confirmed(60, 60)
    one, two = ETag("1"), ETag("2")
    slow, quick = confirmed.begin(), confirmed.begin()
    confirmed.settle(quick, "k", one)
    confirmed.settle(slow, "k", one)
    assert confirmed.has("k", one)
    confirmed.settle(slow, "k", two)
    assert not confirmed.has("k", one), "the slow answer may be the newer one, and somebody was given it"
    assert not confirmed.has("k", two)
    for absent, there in ((None, one), (one, None)):
        slow, quick = confirmed.begin(), confirmed.begin()
        confirmed.settle(quick, "k", there)
        confirmed.settle(slow, "k", absent)
        assert not confirmed.has("k", there)
        assert not confirmed.has("k", absent)
    confirmed.forget("k")
    begun = confirmed.begin()
    confirmed.forget("k")
    confirmed.settle(begun, "k", one)
    assert not confirmed.has("k", one)
    confirmed.settle(confirmed.begin(), "k", one)
    assert confirmed.has("k", one)
    clock.time += 60
    assert not confirmed.has("k", one)


# ---------------------------------------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_after_an_interrupt_at_any_moment_what_is_there_is_seen(write: Callable[[Cached, str], object]) -> None:
    remote = MemoryBackend()
    cached = Cached(remote, MemoryBackend(), recheck=1e9, absent_for=1e9)

    def attempt(strike: int) -> int:
        cached.put("k", b"old")
        moments = _interrupted(lambda: write(cached, "k"), strike)
        for _ in range(2):
            assert {key: b[:2] for key, b in cached.get_many(["k"]).items()} == {
                key: b[:2] for key, b in remote.get_many(["k"]).items()
            }, f"after an interrupt at moment {strike}"
        return moments

    for strike in range(1, attempt(strike=0) + 1):
        attempt(strike)


@pytest.mark.parametrize("call", {**SLOW, "write": lambda cached: cached.put("k", b"outer")}.values(), ids=[*SLOW, "write"])
@pytest.mark.parametrize("nested", WRITES.values(), ids=WRITES)
def test_a_signal_handler_that_writes_at_any_moment_is_not_undone(
    call: Callable[[Cached], object], nested: Callable[[Cached, str], object]
) -> None:
    remote = MemoryBackend()
    cached = Cached(remote, MemoryBackend(), recheck=1e9, absent_for=1e9)

    def attempt(strike: int) -> int:
        moments = 0
        remote.put("k", b"old")
        cached.forget("k")

        def watch(frame: FrameType, event: str, arg: Any) -> None:
            nonlocal moments
            if event in ("call", "c_return") and arg is not sys.setprofile:
                moments += 1
                if moments == strike:
                    sys.setprofile(None)
                    nested(cached, "k")

        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            call(cached)
        except NotFoundError:
            pass
        finally:
            sys.setprofile(before)
        assert {key: b[:2] for key, b in cached.get_many(["k"]).items()} == {
            key: b[:2] for key, b in remote.get_many(["k"]).items()
        }, f"after a write at moment {strike}"
        return moments

    for strike in range(1, attempt(strike=0) + 1):
        attempt(strike)


# ------------------------------------------------------------------------------------------------------------------ handles


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_begins_anew_and_is_never_stuck(cached: Cached, remote: Watched) -> None:
    cached.put("k", b"old")
    assert not cached.contains("l")
    ended = threading.Event()

    def hammer(number: int) -> None:
        while not ended.is_set():
            cached._confirmed.settle(cached._confirmed.begin(), f"hammer{number}", None)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def child() -> None:
        remote.backend.put("k", b"new")
        remote.backend.put("l", b"new")
        assert cached.get("k").data == cached.get("l").data == b"new"
        cached.put("k", b"child's")
        remote.take()
        assert cached.get("k").data == b"child's"
        assert remote.take() == []

    try:
        for _ in range(10):
            in_child(child)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    etag = cached.put("k", b"parent's")
    assert cached.get("k")[:2] == (b"parent's", etag)


def test_a_child_that_is_forked_in_the_middle_of_a_request_does_not_believe_its_answer() -> None:
    """By a signal handler, say, who then writes in the child, before the request of the thread below him goes on."""
    confirmed = Confirmed(60, 60)
    for _ in range(50):
        confirmed.settle(confirmed.begin(), "x", None)
    begun = confirmed.begin()
    confirmed.after_fork()
    confirmed.settle(confirmed.begin("k"), "k", ETag("new"))
    confirmed.settle(begun, "k", ETag("old"))
    assert not confirmed.has("k", ETag("old"))
    confirmed.settle(begun, "l", ETag("old"))
    assert not confirmed.has("l", ETag("old"))


def test_a_pickled_one_has_the_same_options_and_no_memory(tmp_path: Path, clock: Clock) -> None:
    cached = Cached(
        FileBackend(tmp_path / "remote"), FileBackend(tmp_path / "copies"), recheck="1 min", absent_for=5, worth=large
    )
    cached.put("k", b"large")
    again = pickle.loads(pickle.dumps(cached))
    FileBackend(tmp_path / "remote").put("k", b"other")
    assert cached.get("k").data == b"large"
    assert again.get("k").data == b"other"
    assert (again._recheck, again._absent_for, again._worth) == (60.0, 5.0, large)
    assert "60 s" in again.guarantees().shared


def test_it_passes_on_when_values_were_used(tmp_path: Path, local: Watched) -> None:
    class Remembering(FileBackend):
        remembers_use = True
        marked: dict[str, float] | None = None

        def mark_used(self, times: Any) -> None:
            self.marked = dict(times)

    class Forgetful(FileBackend):
        remembers_use = False

    remote = Remembering(tmp_path / "remote")
    cached = Cached(remote, local)
    cached.put("k", b"123")
    assert cached.remembers_use is True
    assert Cached(Forgetful(tmp_path / "remote"), local).remembers_use is False
    cached.mark_used({"k": 5.0})
    assert remote.marked == {"k": 5.0}
    assert [use[:2] for use in cached.uses()] == [("k", 3)]
    assert list(cached.uses()) == list(remote.uses())


# ------------------------------------------------------------------------------------------------------------------- memory


def test_of_too_many_keys_the_half_that_was_heard_of_longest_ago_is_forgotten(clock: Clock) -> None:
    confirmed = Confirmed(60, 60, limit=100)
    for number in range(90):
        confirmed.settle(confirmed.begin(), f"{number}", ETag("e"))
    for number in range(10):
        confirmed.settle(confirmed.begin(), f"{number}", ETag("again"))
    late = confirmed.begin()
    for number in range(100, 111):
        confirmed.settle(confirmed.begin(), f"{number}", None)
    assert len(confirmed._said) <= 51
    assert all(confirmed.has(f"{number}", ETag("again")) for number in range(10))
    assert all(confirmed.has(f"{number}", None) for number in range(100, 111))
    assert not confirmed.has("10", ETag("e"))
    confirmed.settle(late, "10", ETag("late"))
    assert not confirmed.has("10", ETag("late")), "nobody knows any more what was said about it since"
    for number in range(10_000):
        confirmed.settle(confirmed.begin(), f"{number}", ETag("e"))
        confirmed.forget(f"f{number}")
    assert len(confirmed._said) <= 101


def test_no_more_keys_are_remembered_than_is_said(remote: Watched, local: Watched) -> None:
    assert confirmed.REMEMBERED == Cached(remote, local, recheck=1)._confirmed._limit == 100_000
