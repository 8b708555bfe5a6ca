"""Counters: nothing lost, nothing counted twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from locking import lose_after, stored

from perdure.codecs.entry import write_note
from perdure.errors import (
    IntegrityError,
    UnavailableError,
    UnknownOutcomeError,
    UsageTypeError,
)
from perdure.locks import Counter
from perdure.locks import counter as counting
from perdure.protocol import Backend
from perdure.testing.crew import Threads
from perdure.testing.faults import Call, Faulty, fail_before, in_order, lose_answer, on
from perdure_backends.memory import MemoryBackend


def test_a_counter_counts(place: Backend) -> None:
    counter = Counter(place, "n")
    assert counter.value == 0
    assert counter.add() == 1
    assert counter.add(41) == 42
    assert counter.add(-50) == -8
    assert counter.swap(7) == -8
    counter.set(100)
    assert Counter(place, "n").value == 100
    assert counter.add(0) == 100


@pytest.mark.parametrize(("sign", "bits"), [(1, 53), (-1, 53), (1, 64), (1, 20_000), (-1, 20_000)])
def test_a_counter_has_no_largest_number(memory: MemoryBackend, sign: int, bits: int) -> None:
    number = sign * (1 << bits)
    counter = Counter(memory, "n")
    assert counter.add(number) == number
    assert counter.value == number
    assert counter.add(1) == number + 1
    assert counter.value == number + 1


def test_a_counter_counts_in_whole_numbers(memory: MemoryBackend) -> None:
    counter: Any = Counter(memory, "n")
    for wrong in (1.5, "1", None, b"1"):
        for call in (counter.add, counter.swap, counter.set):
            with pytest.raises(UsageTypeError, match="counts in whole numbers, not"):
                call(wrong)
    assert not memory.contains("counters()/n")


def test_no_count_is_lost_and_no_number_given_twice_among_threads(place: Backend) -> None:
    numbers: list[int] = []
    crew = Threads([place] * 6)
    crew.at_once([lambda backend: numbers.extend(Counter(backend, "n").add() for _ in range(20))] * 6)
    crew.close()
    assert sorted(numbers) == list(range(1, 121))


@pytest.mark.parametrize("happens", [True, False])
def test_a_count_whose_answer_was_lost_is_counted_once(memory: MemoryBackend, happens: bool) -> None:
    faulty = Faulty(memory)
    counter = Counter(faulty, "n")
    for number in range(1, 40):
        left = iter([lose_after(happens)] * (number % 3))
        faulty.plan = lambda call, left=left: next(left, None) if call.name == "put" else None
        assert counter.add() == number
    faulty.plan = on("put", lose_after(happens), nth=1)
    assert counter.swap(5) == 39
    assert counter.value == 5


def others_in_between(memory: MemoryBackend, count: int, happens: bool) -> Counter:
    """A counter whose next change loses its answer, and meets `count` changes of others before it looks again."""

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        faulty.plan = None
        if happens:
            go()
        for _ in range(count):
            Counter(memory, "n").add(100)
        raise UnknownOutcomeError("the answer was lost")

    faulty = Faulty(memory, on("put", fault))
    return Counter(faulty, "n")


@pytest.mark.parametrize("others", [1, 10, 31])
def test_a_lost_answer_is_found_among_the_changes_of_others(memory: MemoryBackend, others: int) -> None:
    Counter(memory, "n").set(1000)
    assert others_in_between(memory, others, happens=True).add() == 1001
    assert Counter(memory, "n").value == 1001 + 100 * others


@pytest.mark.parametrize("others", [1, 10, 32])
def test_a_change_that_others_forestalled_is_made_again(memory: MemoryBackend, others: int) -> None:
    Counter(memory, "n").set(1000)
    assert others_in_between(memory, others, happens=False).add() == 1001 + 100 * others
    assert Counter(memory, "n").value == 1001 + 100 * others


@pytest.mark.parametrize("happens", [True, False])
def test_a_change_that_nobody_remembers_is_reported_and_not_made_again(memory: MemoryBackend, happens: bool) -> None:
    counter = others_in_between(memory, 32 + (not happens), happens)
    with pytest.raises(UnknownOutcomeError):
        counter.add()
    assert counter.value == 3200 + (1 if happens else 100)


def test_a_change_that_certainly_was_not_made_is_made_again_however_many_come_in_between(memory: MemoryBackend) -> None:
    def crowd(call: Call, go: Callable[[], Any]) -> Any:
        faulty.plan = None
        for _ in range(40):
            Counter(memory, "n").add(100)
        return go()

    def lose(call: Call, go: Callable[[], Any]) -> Any:
        faulty.plan = on("put", crowd)
        Counter(memory, "n").add(100)
        raise UnknownOutcomeError("the answer was lost")

    faulty = Faulty(memory, on("put", lose))
    counter = Counter(faulty, "n")
    assert counter.add() == 4101
    assert counter.value == 4101


def test_a_lost_answer_and_a_place_that_is_gone_is_an_unknown_outcome(memory: MemoryBackend) -> None:
    counter = Counter(Faulty(memory, in_order(None, lose_answer(), fail_before(UnavailableError))), "n")
    with pytest.raises(UnknownOutcomeError) as info:
        counter.add()
    assert isinstance(info.value.__cause__, UnavailableError)
    assert counter.value == 1


def test_a_counter_remembers_a_bounded_number_of_changes(memory: MemoryBackend) -> None:
    counter = Counter(memory, "n")
    for _ in range(100):
        counter.add()
    assert len(stored(memory, "counters()/n")["recent"]) == counting._RECENT
    assert stored(memory, "counters()/n")["changes"] == 100


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"value": 1},
        {"value": "one", "changes": 0, "recent": []},
        {"value": 1.5, "changes": 0, "recent": []},
        {"value": True, "changes": 0, "recent": []},
        {"value": 1, "changes": 0, "recent": ["a"]},
        {"value": 1, "changes": 1, "recent": "a"},
    ],
)
def test_what_is_no_record_of_a_counter_is_an_error_and_stays(memory: MemoryBackend, fields: dict[str, Any]) -> None:
    data = write_note(json.dumps({"perdure": "counter", "format": 1, **fields}).encode())
    memory.put("counters()/it", data)
    counter = Counter(memory, "it")
    for call in (counter.add, lambda: counter.swap(1), lambda: counter.value):
        with pytest.raises(IntegrityError, match="not a readable record of a counter") as info:
            call()
        assert info.value.key == "counters()/it"
    assert memory.get("counters()/it").data == data
