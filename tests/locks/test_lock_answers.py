"""Leases where answers are lost and writes come late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from locking import LONG, Clock, Late, lose_after, stored

from perdure.errors import (
    UnavailableError,
    UnknownOutcomeError,
)
from perdure.locks import Counter, Semaphore, lock
from perdure.testing.crew import PATIENCE
from perdure.testing.faults import Call, Faulty, Hold, fail_before, in_order, lose_answer, on
from perdure_backends.memory import MemoryBackend


@pytest.mark.parametrize("happens", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_to_any_write_is_resolved(memory: MemoryBackend, happens: bool, times: int) -> None:
    faulty = Faulty(memory)
    lease = lock(faulty, "it")

    def lose() -> None:
        left = iter([lose_after(happens)] * times)
        faulty.plan = lambda call: next(left, None) if call.name == "put" else None

    for number in range(1, 4):
        lose()
        assert lease.acquire(blocking=False)
        assert lease.token == number
        (holder,) = stored(memory)["holders"]
        lose()
        lease.renew()
        assert stored(memory)["holders"][0]["renewal"] > holder["renewal"]
        lose()
        assert lease.release()
        assert stored(memory)["holders"] == []


def test_an_answer_that_cannot_be_had_is_an_error_and_what_it_left_is_overtaken_by_its_maker(memory: MemoryBackend) -> None:
    faulty = Faulty(memory)
    lease = lock(faulty, "it", ttl=LONG)
    faulty.plan = in_order(None, lose_answer(), fail_before(UnavailableError))
    with pytest.raises(UnknownOutcomeError):
        lease.acquire()
    assert not lease.held
    assert len(stored(memory)["holders"]) == 1
    assert not lock(memory, "it").acquire(blocking=False)
    assert lease.acquire(blocking=False)
    assert lease.token == 2


def test_a_place_that_never_answers_is_not_asked_for_ever(memory: MemoryBackend) -> None:
    faulty = Faulty(memory, on("put", fail_before(UnknownOutcomeError)))
    with pytest.raises(UnknownOutcomeError):
        lock(faulty, "it").acquire()
    with pytest.raises(UnknownOutcomeError):
        Counter(faulty, "it").add()
    assert faulty.calls["put"] == 6


def test_a_write_that_arrives_late_is_taken_for_what_it_is(memory: MemoryBackend) -> None:
    lease = lock(Faulty(memory, Late()), "it")
    assert lease.acquire(blocking=False)
    assert lease.token == 1
    assert len(stored(memory)["holders"]) == 1
    lease._records.backend.plan = Late()  # type: ignore[attr-defined]
    assert lease.release()
    assert stored(memory)["holders"] == []
    assert Counter(Faulty(memory, Late()), "n").add() == 1
    assert Counter(memory, "n").value == 1


def test_answers_that_are_lost_while_others_come_in_between_are_no_reason_to_give_up(memory: MemoryBackend) -> None:
    others = [Semaphore(memory, "it", 9) for _ in range(6)]
    left = iter(others)

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        other = next(left, None)
        if other is None:
            return go()
        other.acquire()
        raise UnknownOutcomeError("the answer was lost")

    slot = Semaphore(Faulty(memory, on("put", fault)), "it", 9)
    assert slot.acquire(timeout=PATIENCE)
    assert slot.token == 7
    assert len(slot.holders()) == 7


@pytest.mark.parametrize("what", ["renew", "release"])
def test_a_look_that_comes_late_does_not_make_a_lease_lost(memory: MemoryBackend, what: str) -> None:
    with lock(memory, "it"):
        pass
    hold = Hold(after=True)
    lease = lock(Faulty(memory, on("get", hold, nth=1)), "it")
    looking = threading.Thread(target=lease.holders)
    looking.start()
    assert hold.reached.wait(PATIENCE)  # it has seen that nobody holds it
    assert lease.acquire(blocking=False)
    hold.release.set()
    looking.join(PATIENCE)
    if what == "renew":
        lease.renew()
        assert stored(memory)["holders"][0]["renewal"] > 0
    assert lease.release()
    assert stored(memory)["holders"] == []


def test_a_lease_counts_from_the_beginning_of_a_request_and_not_from_its_end(memory: MemoryBackend, hands: Clock) -> None:
    def slow(call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        hands.now += 4
        return answer

    lease = lock(Faulty(memory, on("put", slow)), "it", ttl=10, renew=False)
    lease.acquire()
    assert lease.expires_in == 6
    hands.now += 5
    lease.renew()
    assert lease.expires_in == 6
    hands.now += 6
    assert not lease.held
