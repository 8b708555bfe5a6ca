"""Semaphores: as many as may, and no more."""

from __future__ import annotations

import time
from typing import Any

import pytest
from locking import SHORT, Clock, stored

from perdure.errors import (
    UnavailableError,
    UsageError,
)
from perdure.locks import Semaphore
from perdure.protocol import Backend
from perdure.testing.crew import Threads
from perdure_backends.memory import MemoryBackend


def test_a_semaphore_lets_as_many_in_as_it_says(place: Backend) -> None:
    inside: list[int] = []
    most: list[int] = []
    tokens: list[int] = []

    def move(backend: Backend) -> None:
        slot = Semaphore(backend, "it", 3)
        for _ in range(4):
            with slot:
                inside.append(1)
                most.append(len(inside))
                tokens.append(slot.token)
                time.sleep(0.002)
                inside.pop()

    crew = Threads([place] * 6)
    crew.at_once([move] * 6)
    crew.close()
    assert max(most) <= 3
    assert sorted(tokens) == list(range(1, 25))


def test_a_semaphore_is_full_at_its_limit_and_a_slot_is_free_after_a_release(memory: MemoryBackend) -> None:
    taken = [Semaphore(memory, "it", 3) for _ in range(3)]
    assert all(slot.acquire(blocking=False) for slot in taken)
    other = Semaphore(memory, "it", 3, timeout=0)
    assert not other.acquire()
    with pytest.raises(UnavailableError, match=r"held by .*, .*, "), other:
        pass
    assert taken[1].release()
    with other:
        assert other.token == 4
        assert [holder.token for holder in other.holders()] == [1, 3, 4]
    taken[0].renew()
    assert taken[0].release()


def test_the_slot_of_a_dead_holder_is_free_after_its_ttl_and_those_of_the_living_are_not(
    memory: MemoryBackend, hands: Clock
) -> None:
    dead, alive = Semaphore(memory, "it", 2, ttl=10, renew=False), Semaphore(memory, "it", 2, ttl=10, renew=False)
    assert dead.acquire()
    assert alive.acquire()
    waiter = Semaphore(memory, "it", 2)
    for _ in range(3):
        assert not waiter.acquire(blocking=False)
        hands.now += 4
        alive.renew()
    assert waiter.acquire(blocking=False)
    assert {holder.token for holder in waiter.holders()} == {2, 3}
    assert alive.held
    assert not dead.held


def test_another_limit_is_refused_while_holders_live_and_taken_over_afterwards(memory: MemoryBackend, hands: Clock) -> None:
    first = Semaphore(memory, "it", 2, ttl=10, renew=False)
    first.acquire()
    other = Semaphore(memory, "it", 3)
    with pytest.raises(UsageError, match="has the limit 2, not 3, and is held by"):
        other.acquire(blocking=False)
    hands.now += 10.1  # the first is dead
    assert other.acquire(blocking=False)
    assert stored(memory, "semaphores()/it")["limit"] == 3
    assert other.release()
    assert first.acquire(blocking=False)  # nobody has a slot, so the limit may change
    assert stored(memory, "semaphores()/it")["limit"] == 2


def test_who_waits_with_another_limit_hears_of_it_when_a_holder_lives(memory: MemoryBackend) -> None:
    with Semaphore(memory, "it", 2, ttl=SHORT), pytest.raises(UsageError, match="has the limit 2, not 3"):
        Semaphore(memory, "it", 3).acquire()


@pytest.mark.parametrize("limit", [0, -1, 1.5, "2", True, None])
def test_a_limit_is_a_positive_number(memory: MemoryBackend, limit: Any) -> None:
    with pytest.raises(UsageError, match="limit"):
        Semaphore(memory, "it", limit)
