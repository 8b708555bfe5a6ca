"""`Bounded` with one writer: what goes, what stays, what it costs, and what becomes of trouble."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from perdure.errors import (
    BackendError,
    InvalidKeyError,
    NotFoundError,
    NotModified,
    PerdureError,
    PolicyError,
    PreconditionError,
    UnavailableError,
    UsageError,
    UsageTypeError,
)
from perdure.protocol import ABSENT, Backend, ETag, Use
from perdure.testing import Faulty
from perdure.testing.crew import PATIENCE, within
from perdure.testing.faults import Hold, fail_before, on
from perdure.testing.lifetime import in_child
from perdure.wrappers import Bounded
from perdure.wrappers import bounded as module
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend
from perdure_backends.sqlite import SQLiteBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))

PLACES: dict[str, Callable[[Path], Backend]] = {
    "memory": lambda where: MemoryBackend(str(where)),
    "file": lambda where: FileBackend(where, sync="normal"),
    "sqlite": lambda where: SQLiteBackend(where, sync="normal"),
}


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with PLACES[request.param](tmp_path / "place") as backend:
        yield backend


class Forgetful(MemoryBackend):
    """A place that remembers no uses."""

    remembers_use = False

    def uses(self, prefix: str = "") -> Iterator[Use]:
        return Backend.uses(self, prefix)

    def mark_used(self, times: Any) -> None:
        raise AssertionError("nobody should ask")


def names(backend: Backend) -> list[str]:
    return sorted(backend.keys())


def total(backend: Backend) -> int:
    return sum(use.size for use in backend.uses())


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, UsageError),
        ({"max_bytes": None, "max_items": None}, UsageError),
        ({"max_items": 0}, UsageError),
        ({"max_items": -1}, UsageError),
        ({"max_items": 1.5}, UsageTypeError),
        ({"max_items": "10"}, UsageTypeError),
        ({"max_items": True}, UsageTypeError),
        ({"max_bytes": 0}, UsageError),
        ({"max_bytes": "10 XB"}, UsageError),
        ({"max_bytes": 1.5}, UsageTypeError),
        ({"max_items": 1, "only": "a"}, UsageTypeError),
        ({"max_items": 1, "on_evict": []}, UsageTypeError),
    ],
)
def test_malformed_limits_are_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        Bounded(MemoryBackend(), **options)
    assert type(caught.value) is kind


def test_it_shows_its_limits_and_is_otherwise_its_backend(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "place")
    bounded = Bounded(backend, max_bytes="2 kB", max_items=7)
    assert (bounded.max_bytes, bounded.max_items, bounded.backend) == (2000, 7, backend)
    assert (bounded.place, bounded.shared_by_machines, bounded.remembers_use) == (backend.place, False, True)
    assert "2000 bytes and 7 items in all, the least recently used go first" in bounded.guarantees().limits
    assert bounded.guarantees().durable == backend.guarantees().durable
    bounded.record({"codec": "json"})
    bounded.put("a", b"1")
    assert bounded.recorded() == FileBackend(tmp_path / "place").recorded() == {"codec": "json"}
    assert not Bounded(Forgetful(), max_items=1).remembers_use
    assert not Bounded(NullBackend(), max_items=1).remembers_use


# ------------------------------------------------------------------------------------------------------- what is evicted


def test_the_least_recently_used_go_first(place: Backend) -> None:
    bounded = Bounded(place, max_items=3)
    for key in "abc":
        bounded.put(key, b"1")
    bounded.get("a")
    bounded.put("d", b"1")
    assert names(bounded) == ["a", "c", "d"]
    bounded.get_many(["c", "x"])
    with pytest.raises(NotModified):
        bounded.get("a", if_none_match=bounded.head("a").etag)
    bounded.put("e", b"1")
    assert names(bounded) == ["a", "c", "e"]
    assert (bounded.evicted, bounded.evicted_bytes) == (2, 2)


def test_where_uses_are_not_remembered_the_first_written_go_first() -> None:
    bounded = Bounded(Forgetful(), max_items=3)
    for key in "abc":
        bounded.put(key, b"1")
    bounded.get("a")
    bounded.get_many(["a"])
    bounded.put("d", b"1")
    assert names(bounded) == ["b", "c", "d"]
    bounded.close()


def test_overwriting_evicts_nobody_and_never_the_value_itself(place: Backend) -> None:
    bounded = Bounded(place, max_items=3)
    for key in "abc":
        bounded.put(key, b"1")
    for data in (b"2", b"33"):
        bounded.put("a", data, if_match=bounded.head("a").etag)
    bounded.put_many({"b": b"4", "c": b"4"})
    assert names(bounded) == ["a", "b", "c"]
    bounded = Bounded(place, max_bytes=100)
    bounded.put("a", bytes(50))
    bounded.put("a", bytes(90))  # beside which the old one has no room
    assert bounded.get("a").data == bytes(90)
    bounded.put("a", bytes(100))
    assert names(bounded) == ["a"]


def test_what_others_have_written_counts_and_goes_as_well(place: Backend) -> None:
    for number in range(50):
        place.put(f"k/{number}", bytes(10))
    bounded = Bounded(place, max_bytes=200)
    bounded.put("new", bytes(10))
    assert total(place) <= 200
    assert "new" in names(place)
    assert "k/49" in names(place)
    assert "k/0" not in names(place)
    assert bounded.evicted == 51 - len(names(place))


def test_foreign_keys_neither_count_nor_go(place: Backend) -> None:
    evicted: list[str] = []
    mine_only: Callable[[str], bool] = lambda key: key.startswith("mine/")  # noqa: E731
    bounded = Bounded(place, max_items=5, max_bytes=60, only=mine_only, on_evict=lambda key, size: evicted.append(key))
    place.put("other/0", bytes(1000))
    for number in range(20):
        bounded.put(f"mine/{number}", bytes(10))
        bounded.put(f"other/{number}", bytes(1000))
        bounded.get("other/0")
    bounded.put_many({f"other/{number}": bytes(2000) for number in range(20, 30)} | {"mine/last": b"1"})
    assert {f"other/{number}" for number in range(30)} <= set(bounded.keys())
    mine = list(place.keys("mine/"))
    assert "mine/last" in mine
    assert 4 <= len(mine) <= 5
    assert evicted
    assert all(key.startswith("mine/") for key in evicted)
    bounded.prune()
    assert len(list(place.keys("other/"))) == 30


def test_a_value_larger_than_the_limit_is_refused_before_anything_is_done() -> None:
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_bytes=1000)
    bounded.put("a", b"old")
    bounded.put("b", b"old")
    calls = len(watched.log)
    for write in (
        partial(bounded.put, "a", bytes(1001)),
        partial(bounded.put, "a", memoryview(bytes(2002)).cast("H")),
        partial(bounded.put, "n", bytes(1001), if_match=ABSENT),
        partial(bounded.put_many, {"c": b"1", "a": bytes(1001)}),
    ):
        with pytest.raises(PolicyError, match=r"(1001|2002) bytes.*max_bytes=1000"):
            write()
    assert len(watched.log) == calls
    assert bounded.get("a").data == b"old"
    bounded.put("a", bytes(1000))
    assert names(bounded) == ["a"]


def test_an_illegal_key_evicts_nobody(place: Backend) -> None:
    bounded = Bounded(place, max_items=2, max_bytes=100)
    bounded.put_many({"a": b"1", "b": b"2"})
    bad: Any
    for bad in ("../x", "", "a b", 5, None):
        with pytest.raises(InvalidKeyError):
            bounded.put(bad, b"3")
        with pytest.raises(InvalidKeyError):
            bounded.put_many({"c": b"3", bad: b"3"})
    for wrong in ("text", 5, None):
        with pytest.raises(TypeError):
            bounded.put("c", wrong)  # type: ignore[arg-type]
    assert names(place) == ["a", "b"]


def test_a_batch_larger_than_the_limit_ends_within_it(place: Backend) -> None:
    bounded = Bounded(place, max_items=10)
    etags = bounded.put_many({f"{number:02d}": b"%d" % number for number in range(35)})
    assert len(etags) == 35
    assert len(names(place)) <= 10
    assert "34" in names(place)
    bounded = Bounded(place, max_bytes=100)
    watched: list[int] = []
    room = bounded._room
    look = room._look
    room._look = lambda *args: watched.append(total(place)) or look(*args)  # type: ignore[func-returns-value,method-assign]
    assert len(bounded.put_many({f"n/{number}": bytes(30) for number in range(20)})) == 20
    assert total(place) <= 100
    assert len(watched) > 5
    assert max(watched) <= 100
    assert bounded.put_many({}) == {}


def test_prune_evicts_down_to_the_limit_and_no_further(place: Backend) -> None:
    place.put_many({f"k/{number:03d}": bytes(10) for number in range(500)})
    marks = {f"k/{number:03d}": 2e9 for number in range(50)}
    place.mark_used(marks)
    bounded = Bounded(place, max_items=120)
    assert bounded.prune() == 380 == bounded.evicted
    assert set(marks) <= set(names(place))
    assert len(names(place)) == 120
    assert bounded.prune() == 0
    assert Bounded(place, max_bytes=300).prune() == 90
    assert len(names(place)) == 30
    assert set(names(place)) <= set(marks)


def test_empty_values_have_no_bytes_and_are_items() -> None:
    backend = MemoryBackend()
    bounded = Bounded(backend, max_bytes=1)
    for number in range(100):
        bounded.put(f"{number}", b"")
    assert len(names(backend)) == 100
    bounded.put("one", b"1")
    assert len(names(backend)) == 101
    bounded.put("two", b"2")
    assert {"one", "two"} & set(names(backend)) == {"two"}


def test_both_limits_hold_together() -> None:
    backend = MemoryBackend()
    bounded = Bounded(backend, max_bytes=1000, max_items=20)
    for number in range(200):
        bounded.put(f"{number}", bytes(number % 7 * 30))
        assert total(backend) <= 1000
        assert len(names(backend)) <= 20
    assert len(names(backend)) >= 8


# ---------------------------------------------------------------------------------------------------------- as a model


class Machine(RuleBasedStateMachine):
    """Writes, reads and deletes; the model knows in which order keys were used, and so which ones may go."""

    opener: Callable[[], Backend]
    max_bytes: int | None = None
    max_items: int | None = None

    @initialize()
    def begin(self) -> None:
        self.place = self.opener()
        self.bounded = Bounded(self.place, max_bytes=self.max_bytes, max_items=self.max_items)
        self.sizes: dict[str, int] = {}  # in the order of their last use

    def _used(self, key: str) -> None:
        self.sizes[key] = self.sizes.pop(key)

    def _written(self, new: dict[str, int]) -> None:
        """Forget what has gone, after a look at whether it was its turn."""
        there = {use.key: use.size for use in self.place.uses()}
        gone = [key for key in self.sizes if key not in there]
        for key, size in new.items():
            self.sizes.pop(key, None)
            self.sizes[key] = size
        assert not set(gone) & set(new), "what is being written has gone"
        old = [key for key in self.sizes if key not in new]
        assert gone == old[: len(gone)], f"{gone} went, and the least recently used were {old[: len(gone) + 3]}"
        before = dict(self.sizes)
        for key in gone:
            del self.sizes[key]
        assert there == self.sizes
        if gone:
            # No more than needed: back with the last one that went, and a look would have evicted.
            most = [sum(before[key] for key in (*there, gone[-1])), len(there) + 1]
            tops = [None if m is None else m - m * 3 // 100 - 2 * (m // 100) for m in (self.max_bytes, self.max_items)]
            assert any(top is not None and size > top for size, top in zip(most, tops, strict=True))

    @rule(key=st.sampled_from("abcdefgh"), size=st.integers(0, 400))
    def put(self, key: str, size: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            with pytest.raises(PolicyError):
                self.bounded.put(key, bytes(size))
            self._written({})
        else:
            self.bounded.put(key, bytes(size))
            self._written({key: size})

    @rule(several=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 60), max_size=2))
    def put_many(self, several: dict[str, int]) -> None:
        self.bounded.put_many({key: bytes(size) for key, size in several.items()})
        self._written(several)
        for key in several if len(several) > 1 else ():  # written together, they have no order
            self.get(key)

    @rule(key=st.sampled_from("abcdefgh"))
    def create(self, key: str) -> None:
        if key in self.sizes:
            with pytest.raises(PreconditionError):
                self.bounded.put(key, bytes(50), if_match=ABSENT)
            assert set(self.place.keys()) == set(self.sizes), "nothing goes for a write that loses"
        else:
            self.bounded.put(key, bytes(50), if_match=ABSENT)
            self._written({key: 50})

    @rule(key=st.sampled_from("abcdefgh"))
    def get(self, key: str) -> None:
        if key in self.sizes:
            assert len(self.bounded.get(key).data) == self.sizes[key]
            self._used(key)
        else:
            with pytest.raises(NotFoundError):
                self.bounded.get(key)

    @rule(keys=st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True))
    def get_many(self, keys: list[str]) -> None:
        found = self.bounded.get_many(keys)
        assert sorted(found) == sorted(set(keys) & set(self.sizes))
        if len(found) < 2:  # two that are read together have no order
            for key in found:
                self._used(key)
        else:
            for key in found:
                self.get(key)

    @rule(key=st.sampled_from("abcdefgh"))
    def delete(self, key: str) -> None:
        self.bounded.delete(key)
        self.sizes.pop(key, None)

    @rule()
    def use_another(self) -> None:
        """The order is the place's, and goes on with the next process."""
        self.bounded.close()
        self.place = self.opener()
        self.bounded = Bounded(self.place, max_bytes=self.max_bytes, max_items=self.max_items)

    @rule()
    def prune(self) -> None:
        assert self.bounded.prune() == 0

    @invariant()
    def the_limit_holds(self) -> None:
        if hasattr(self, "sizes"):
            assert sum(self.sizes.values()) <= (self.max_bytes or 10**9)
            assert len(self.sizes) <= (self.max_items or 10**9)

    def teardown(self) -> None:
        if hasattr(self, "bounded"):
            self.bounded.close()


@pytest.mark.parametrize("limits", [{"max_items": 3}, {"max_bytes": 300}, {"max_bytes": 700, "max_items": 5}], ids=str)
@pytest.mark.parametrize("kind", sorted(PLACES))
def test_exactly_the_least_recently_used_go(tmp_path: Path, kind: str, limits: dict[str, int]) -> None:
    numbers = itertools.count()

    class Limited(Machine):
        max_bytes = limits.get("max_bytes")
        max_items = limits.get("max_items")

        def __init__(self) -> None:
            super().__init__()
            self.opener = partial(PLACES[kind], tmp_path / f"model-{next(numbers)}")

    run_state_machine_as_test(
        Limited,
        settings=settings(
            max_examples=(40 if kind == "memory" else 12) * ROUNDS,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )


# --------------------------------------------------------------------------------------------------------- what it costs


def test_a_place_is_listed_once_for_each_hundredth_of_the_limit() -> None:
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_items=1000)
    for number in range(2000):
        bounded.put(f"{number}", b"1")
    assert watched.calls["uses"] <= 2000 / 10 + 1
    assert watched.calls["delete_many"] <= 2000 / 10
    assert 940 <= len(names(watched.backend)) <= 1000
    assert set(watched.calls) <= {"uses", "put", "delete_many"}
    watched.log.clear()
    assert bounded.get("1999").data == b"1"
    assert bounded.contains("1999")
    bounded.delete("1999")
    assert set(watched.calls) == {"get", "contains", "delete"}


def test_beside_a_value_as_large_as_the_limit_there_is_no_share() -> None:
    backend = MemoryBackend()
    bounded = Bounded(backend, max_bytes=1000)
    for size in (1000, 5, 5, 965, 10, 10, 10, 990, 10):
        bounded.put(f"{size}", bytes(size))
        assert total(backend) <= 1000


def test_a_write_on_its_way_during_a_look_counts_after_it() -> None:
    """The look may not have seen it."""
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_bytes=1000)  # of which a share is 10
    bounded.put("first", b"")
    held = Hold()
    watched.plan = on("put", held, key="on-its-way")
    thread = threading.Thread(target=bounded.put, args=("on-its-way", bytes(10)))
    thread.start()
    assert held.reached.wait(PATIENCE)
    bounded.put("a", bytes(5))
    assert watched.calls["uses"] == 2
    bounded.put("b", bytes(1))
    assert watched.calls["uses"] == 3, "the share is on its way already"
    held.release.set()
    thread.join(PATIENCE)
    bounded.put("c", bytes(1))
    assert watched.calls["uses"] == 4
    bounded.put("d", bytes(10))
    assert watched.calls["uses"] == 4, "it has landed, and there is a share again"


def test_what_others_write_during_a_look_counts_after_it() -> None:
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_bytes=1000)
    bounded.put("first", b"")
    bounded.put("a", bytes(5))
    held = Hold(after=True)
    watched.plan = on("uses", held, nth=1)
    thread = threading.Thread(target=bounded.put, args=("b", bytes(6)))
    thread.start()
    assert held.reached.wait(PATIENCE)
    bounded.put("meanwhile", bytes(5))
    held.release.set()
    thread.join(PATIENCE)
    assert watched.calls["uses"] == 2
    bounded.put("c", bytes(6))
    assert watched.calls["uses"] == 3


def test_threads_that_wait_for_room_need_no_look_of_their_own() -> None:
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_items=1000)
    held = Hold()
    watched.plan = on("uses", held, nth=1)
    threads = [threading.Thread(target=bounded.put, args=(f"{number}", b"1")) for number in range(8)]
    for thread in threads:
        thread.start()
    assert held.reached.wait(PATIENCE)
    held.release.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(names(watched.backend)) == 8
    assert watched.calls["uses"] == 1


def test_creates_that_fail_take_no_room() -> None:
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_items=1000)
    bounded.put("a", b"1")
    bounded.put("b", b"1")
    for _ in range(500):
        with pytest.raises(PreconditionError):
            bounded.put("a", b"2", if_match=ABSENT)
    assert watched.calls["uses"] == 1
    assert not bounded._flying


@pytest.mark.parametrize("limits", [{"max_items": 10}, {"max_bytes": 1000}], ids=str)
def test_a_conditional_write_that_loses_evicts_nobody(place: Backend, limits: dict[str, Any]) -> None:
    bounded = Bounded(place, **limits)
    for number in range(10):
        bounded.put(f"k{number}", bytes(90))
    there = names(place)
    stale = bounded.head("k9").etag
    current = bounded.put("k9", bytes(90))
    for key, condition in (("k9", ABSENT), ("k9", stale), ("k9", ETag("nonsense")), ("new", current), ("new", stale)):
        for _ in range(3):
            with pytest.raises(PreconditionError) as caught:
                bounded.put(key, bytes(900), if_match=condition)
            assert (caught.value.key, caught.value.place) == (key, place.place)
    assert names(place) == there
    assert bounded.evicted == 0
    bounded.put("k9", bytes(900), if_match=current)
    bounded.put("new", bytes(900), if_match=ABSENT)
    assert "new" in names(place)
    assert total(place) <= limits.get("max_bytes", 10**9)


def test_a_condition_is_asked_about_only_where_something_has_to_go() -> None:
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_items=3)
    for key in "abc":
        bounded.put(key, b"1", if_match=ABSENT)
    bounded.put("a", b"2", if_match=watched.backend.head("a").etag)
    assert "head" not in watched.calls
    bounded.put("d", b"1")
    assert "head" not in watched.calls
    bounded.put("e", b"1", if_match=ABSENT)
    assert watched.calls["head"] == 1


def test_a_damaged_record_decides_nothing_about_a_condition(tmp_path: Path) -> None:
    """The place does, as it would without a limit."""
    outcomes = []
    for limited in (False, True):
        place = FileBackend(tmp_path / f"{limited}", sync="normal")
        place.put_many(dict.fromkeys("abc", b"value"))
        (file,) = (tmp_path / f"{limited}").glob("a*")
        file.write_bytes(file.read_bytes()[:-3] + b"\0\0\0")
        try:
            (Bounded(place, max_items=2) if limited else place).put("a", b"new", if_match=ABSENT)
            outcomes.append("written")
        except PerdureError as error:
            outcomes.append(type(error).__name__)
    assert outcomes[0] == outcomes[1]


def test_little_is_remembered_of_a_large_place_unless_much_has_to_go() -> None:
    backend = MemoryBackend()
    backend.put_many({f"{number:05d}": b"x" * 10 for number in range(20_000)})
    room = Bounded(backend, max_bytes=205_000)._room
    _, items, oldest = room._look(room._bytes.wanted(10), room._items.wanted(1), {})
    assert items == 20_000
    assert {old.key for old in oldest} == {f"{number:05d}" for number in range(len(oldest))}
    assert len(oldest) < 1000
    watched = Faulty(backend)
    small = Bounded(watched, max_bytes=20_000)  # so that the first look has not remembered enough
    small.put("new", b"1")
    assert watched.calls["uses"] == 2
    assert total(backend) <= 20_000
    assert names(backend)[0] > "18000"


# ------------------------------------------------------------------------------------------------------ telling of uses


class Clock:
    def __init__(self) -> None:
        self.now = 3e9  # later than anything is written

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def told(watched: Faulty) -> dict[str, float]:
    return {use.key: use.used for use in watched.backend.uses() if use.used >= 3e9}


def test_uses_are_told_in_passing_every_five_seconds(clock: Clock) -> None:
    watched = Faulty(MemoryBackend())
    watched.put_many({f"{number}": b"1" for number in range(10)})
    bounded = Bounded(watched, max_items=100)
    for number in range(10):
        bounded.get(f"{number}")
        assert not told(watched)
        clock.now += 0.5
    bounded.get("0")
    assert told(watched) == {f"{number}": 3e9 + number / 2 for number in range(1, 10)} | {"0": clock.now}
    clock.now -= 1000  # a clock that was set back
    bounded.get("1")
    clock.now += 1
    bounded.get("2")
    assert watched.calls["mark_used"] == 2
    clock.now += 5
    bounded.get("3")
    assert watched.calls["mark_used"] == 3


def test_uses_are_told_when_a_thousand_have_gathered(clock: Clock) -> None:
    watched = Faulty(MemoryBackend())
    watched.put_many({f"{number}": b"1" for number in range(2500)})
    bounded = Bounded(watched, max_items=10_000)
    for number in range(2500):
        bounded.get(f"{number}")
    assert watched.calls["mark_used"] == 2
    assert len(told(watched)) == 2000
    bounded.get_many(f"{number}" for number in range(1500))
    assert watched.calls["mark_used"] == 3
    assert len(told(watched)) == 2500


def test_uses_are_told_before_a_look_at_the_end_and_to_whoever_asks(place: Backend, clock: Clock) -> None:
    watched = Faulty(place)
    bounded = Bounded(watched, max_items=10)
    for key in "abc":
        bounded.put(key, b"1")
    bounded.get("a")
    assert not told(watched)
    bounded.put("d", b"1")
    assert set(told(watched)) == {"a"}
    bounded.get("b")
    assert {use.key for use in bounded.uses() if use.used >= 3e9} == {"a", "b"}
    bounded.get("c")
    bounded.mark_used({"d": 3e9})
    watched.close = lambda: None  # type: ignore[method-assign]
    bounded.close()
    assert set(told(watched)) == {"a", "b", "c", "d"}


def test_uses_are_told_by_a_program_that_ends_without_closing(tmp_path: Path) -> None:
    with FileBackend(tmp_path / "place") as backend:
        backend.put_many(dict.fromkeys("abc", b"1"))
        backend.mark_used(dict.fromkeys("abc", 1e9))
        written = {use.key: use.used for use in backend.uses()}
    program = """
        import sys
        from perdure.wrappers import Bounded
        from perdure_backends.{kind} import {name}
        bounded = Bounded({name}(sys.argv[1]), max_items=10)
        bounded.get("b")
    """
    code = textwrap.dedent(program).format(kind="file", name="FileBackend")
    subprocess.run([sys.executable, "-c", code, tmp_path / "place"], check=True)
    uses = {use.key: use.used for use in FileBackend(tmp_path / "place").uses()}
    assert [key for key in "abc" if uses[key] > written[key] + 0.05] == ["b"]
    with SQLiteBackend(tmp_path / "db") as database:
        database.put_many(dict.fromkeys("abc", b"1"))
        written = {use.key: use.used for use in database.uses()}
    code = textwrap.dedent(program).format(kind="sqlite", name="SQLiteBackend")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path / "db"], capture_output=True, check=True)
    assert done.stderr == b""
    uses = {use.key: use.used for use in SQLiteBackend(tmp_path / "db").uses()}
    assert [key for key in "abc" if uses[key] > written[key]] == ["b"]


def test_uses_of_foreign_keys_are_not_told(clock: Clock) -> None:
    watched = Faulty(MemoryBackend())
    watched.put_many({"mine/a": b"1", "other/a": b"1"})
    bounded = Bounded(watched, max_items=10, only=lambda key: key.startswith("mine/"))
    bounded.get("mine/a")
    bounded.get("other/a")
    list(bounded.uses())
    assert set(told(watched)) == {"mine/a"}


def test_a_place_that_takes_no_uses_fails_no_get(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    watched = Faulty(MemoryBackend(), on("mark_used", fail_before(UnavailableError)))
    bounded = Bounded(watched, max_items=10)
    bounded.put("a", b"1")
    with caplog.at_level(logging.WARNING, "perdure.wrappers"):
        for _ in range(3):
            clock.now += 10
            assert bounded.get("a").data == b"1"
        bounded.put("b", b"1")
        bounded.get("a")
        bounded.close()
    assert bounded.troubles == 4
    assert len(caplog.records) == 1
    assert "an injected fault" in caplog.text


def test_what_is_read_while_the_place_is_listed_stays() -> None:
    """The read comes too late for the listing to show it."""
    backend = MemoryBackend()
    bounded = Bounded(backend, max_items=3)
    for key in "abc":
        bounded.put(key, b"1")

    def uses(prefix: str = "") -> Iterator[Use]:
        listing = list(MemoryBackend.uses(backend, prefix))
        bounded.get("a")
        return iter(listing)

    backend.uses = uses  # type: ignore[method-assign]
    bounded.put("d", b"1")
    assert names(backend) == ["a", "c", "d"]


# -------------------------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize("method", ["uses", "delete_many"])
def test_where_no_room_can_be_made_nothing_is_written(method: str) -> None:
    watched = Faulty(MemoryBackend())
    bounded = Bounded(watched, max_items=3)
    for key in "abc":
        bounded.put(key, b"1")
    watched.plan = on(method, fail_before(UnavailableError))
    for write in (partial(bounded.put, "d", b"1"), partial(bounded.put_many, {"d": b"1"})):
        with pytest.raises(UnavailableError):
            write()
    with pytest.raises(UnavailableError):
        Bounded(watched, max_items=1).prune()
    assert names(watched.backend) == ["a", "b", "c"]
    assert bounded.evicted == 0
    watched.plan = None
    bounded.put("d", b"1")
    assert names(watched.backend) == ["b", "c", "d"]


def test_each_eviction_is_reported_and_a_report_that_fails_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    reported: list[tuple[str, int]] = []

    def report(key: str, size: int) -> None:
        reported.append((key, size))
        if key == "a":
            raise ValueError("no")

    bounded = Bounded(MemoryBackend(), max_items=2, on_evict=report)
    for number, key in enumerate("abcd"):
        bounded.put(key, bytes(number))
    assert reported == [("a", 0), ("b", 1)]
    assert (bounded.evicted, bounded.evicted_bytes) == (2, 1)
    assert "on_evict failed for 'a'" in caplog.text
    assert "ValueError" in caplog.text


def test_a_report_may_write_here() -> None:
    backend = MemoryBackend()
    bounded = Bounded(backend, max_items=5, on_evict=lambda key, size: bounded.put("log", key.encode()))
    for number in range(20):
        within(PATIENCE, "a put", bounded.put, f"{number}", b"1")
    assert len(names(backend)) <= 6
    assert backend.get("log").data


def test_one_may_stand_before_another_of_the_same_place(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "place", sync="normal")
    bounded = Bounded(Bounded(backend, max_bytes=100), max_items=3)
    for number in range(10):
        within(PATIENCE, "a put", bounded.put, f"{number}", bytes(40))
    assert names(backend) == ["8", "9"]


def test_after_close_nothing_works() -> None:
    bounded = Bounded(MemoryBackend(), max_items=3)
    bounded.put("a", b"1")
    bounded.get("a")
    bounded.close()
    bounded.close()
    for call in (partial(bounded.get, "a"), partial(bounded.put, "a", b"2"), bounded.prune, bounded.uses):
        with pytest.raises(BackendError):
            call()
    assert bounded.troubles == 0


# --------------------------------------------------------------------------------------------------- copies of processes


def large(key: str) -> bool:
    return key != "small"


def test_it_pickles_with_its_limits(tmp_path: Path) -> None:
    bounded = Bounded(FileBackend(tmp_path / "place", sync="normal"), max_items=2, max_bytes="1 kB", only=large, on_evict=print)
    bounded.put("a", b"1")
    again = pickle.loads(pickle.dumps(bounded))
    assert (again.max_items, again.max_bytes, again._only, again._on_evict) == (2, 1000, large, print)
    again.put("small", b"1")
    for key in "bcd":
        again.put(key, b"1")
    assert names(bounded) == ["c", "d", "small"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_goes_on_and_tells_no_uses_of_its_parent(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "place", sync="normal")
    bounded = Bounded(backend, max_items=3)
    for key in "abc":
        bounded.put(key, b"1")
    bounded.get("a")
    before = {use.key: use.used for use in backend.uses()}

    def work() -> None:
        assert not bounded._used
        bounded.get("b")
        bounded.put("d", b"1")
        assert names(bounded) == ["b", "c", "d"] or names(bounded) == ["a", "b", "d"]  # as the system notes reads, or not
        bounded.close()

    in_child(work)
    bounded.put("e", b"1")
    assert {"d", "e"} < set(names(bounded))
    assert before["a"] > 0
