"""Leases where answers are lost and writes come late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from locking import LONG, Clock, Late, lose_after, stored

from perdure.errors import (
    LeaseLostError,
    NotAcquiredError,
    UnavailableError,
    UnknownOutcomeError,
)
from perdure.locks import Counter, Lease, Semaphore, lock
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


class Slow:
    """A write that lands at once and whose answer takes some seconds of the clock of a test."""

    def __init__(self, hands: Clock, *seconds: float) -> None:
        self.hands = hands
        self.seconds: list[float] = list(seconds)
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, call: Call) -> Any:
        return self.meet if call.name == "put" and self.seconds else None

    def meet(self, call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        self.hands.now += self.seconds.pop(0)
        self.meanwhile()
        return answer


@pytest.mark.parametrize("make", [lock, lambda where, name, **options: Semaphore(where, name, 1, **options)])
def test_a_lease_that_lapsed_before_its_answer_came_is_not_acquired(
    memory: MemoryBackend, hands: Clock, make: Callable[..., Lease]
) -> None:
    slow = Slow(hands)
    options: dict[str, Any]
    for options in ({"blocking": False}, {"timeout": 0}, {"timeout": 5}):
        slow.seconds = [10]
        lease = make(Faulty(memory, slow), "it", ttl=10)
        assert not lease.acquire(**options)
        assert not lease.held
        assert lease._beats == []
        assert lease.holders() == []  # so that nobody has to wait for it
    assert slow.seconds == []
    assert make(memory, "it").acquire(blocking=False)


def test_with_is_not_entered_on_a_lease_that_has_lapsed(memory: MemoryBackend, hands: Clock) -> None:
    slow = Slow(hands, 10)
    lease = lock(Faulty(memory, slow), "it", ttl=10, timeout=1)
    with pytest.raises(NotAcquiredError, match=r"answered so late that less than half of the lease, of 10 s") as info, lease:
        raise AssertionError("entered")
    assert "longer ttl" in str(info.value)
    slow.seconds = [10]
    with lock(Faulty(memory, slow), "it", ttl=10) as lease:
        assert lease.held
        assert lease.token == 3
        assert [holder.token for holder in lease.holders()] == [3]
    assert stored(memory)["holders"] == []


def test_who_comes_too_late_does_not_take_a_lease_back_from_who_took_it_over(memory: MemoryBackend, hands: Clock) -> None:
    slow, other = Slow(hands, 0), lock(memory, "it", ttl=10, renew=False)

    def overtake() -> None:
        assert not other.acquire(blocking=False)
        hands.now += 10.1
        assert other.acquire(blocking=False)

    slow.meanwhile = overtake
    late = lock(Faulty(memory, slow), "it", ttl=10, renew=False)
    assert not late.acquire(blocking=False)
    other.check()
    assert other.release()
    assert late.acquire(blocking=False)
    assert late.token == 3


def test_a_lease_is_acquired_with_at_least_half_of_its_ttl_left(memory: MemoryBackend, hands: Clock) -> None:
    slow = Slow(hands, 5, 6)
    lease = lock(Faulty(memory, slow), "it", ttl=10, renew=False)
    assert lease.acquire(blocking=False)
    assert lease.expires_in == 5
    lease.release()
    slow.seconds = [6]
    assert not lease.acquire(blocking=False)
    slow.seconds = [6, 6, 1]
    assert lease.acquire(timeout=30)
    assert lease.expires_in == 9


def test_a_lost_answer_does_not_make_a_lease_longer(memory: MemoryBackend, hands: Clock) -> None:
    def lose_late(call: Call, go: Callable[[], Any]) -> Any:
        go()
        hands.now += 10
        raise UnknownOutcomeError("the answer was lost")

    lease = lock(Faulty(memory, on("put", lose_late, nth=1)), "it", ttl=10)
    assert not lease.acquire(blocking=False)
    assert lease.acquire(blocking=False)


def test_a_late_lease_that_cannot_be_withdrawn_is_told_and_lapses(
    memory: MemoryBackend, hands: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty(memory)
    faulty.plan = in_order(None, lambda call, go: Slow(hands, 10).meet(call, go), None, fail_before(UnavailableError))
    assert not lock(faulty, "it", ttl=10).acquire(blocking=False)
    assert "in vain" in caplog.text
    assert len(stored(memory)["holders"]) == 1


def test_a_renewal_that_is_answered_too_late_is_a_lost_lease(memory: MemoryBackend, hands: Clock) -> None:
    slow = Slow(hands)
    lease = lock(Faulty(memory, slow), "it", ttl=10, renew=False)
    lease.acquire()
    slow.seconds = [10]
    with pytest.raises(LeaseLostError, match="answered too late"):
        lease.renew()
    assert not lease.held
    assert not lease.release()
    lease.acquire()
    hands.now += 8
    slow.seconds = [4]
    slow.meanwhile = lambda: lease.held  # somebody has seen that it is over
    with pytest.raises(LeaseLostError, match="not renewed within 10 s"):
        lease.renew()
    assert not lease.held


def test_a_task_does_not_acquire_what_has_lapsed_either(memory: MemoryBackend, hands: Clock) -> None:
    slow = Slow(hands, 10)

    async def main() -> None:
        for lease in (lock(Faulty(memory, slow), "it", ttl=10), Semaphore(Faulty(memory, slow), "it", 2, ttl=10)):
            assert not await lease.acquire_async(blocking=False)
            assert not lease.held
            assert lease.holders() == []
            slow.seconds = [10, 10]
            async with lease:
                assert lease.held
                assert slow.seconds == []
            slow.seconds = [10]

    asyncio.run(main())


def test_a_task_that_hears_of_it_too_late_acquires_it_again(memory: MemoryBackend, hands: Clock) -> None:
    async def main(timeout: float) -> bool:
        lease = lock(memory, "it", ttl=10, renew=False)
        turns = iter([10.0])
        turn = lease._turn_or_back_out

        def then_the_loop_is_busy(waiting: Any) -> float:
            pause = turn(waiting)
            hands.now += next(turns, 0.0)
            return pause

        lease._turn_or_back_out = then_the_loop_is_busy  # type: ignore[method-assign]
        acquired = await lease.acquire_async(timeout=timeout)
        assert acquired == lease.held
        return acquired

    assert not asyncio.run(main(timeout=1))
    assert stored(memory)["holders"] == []
    assert asyncio.run(main(timeout=100))
    assert stored(memory)["token"] == 3
