"""Leases in asyncio."""

from __future__ import annotations

import asyncio

import pytest
from locking import KEY, LONG, Clock, stored, until

from perdure.errors import (
    PreconditionError,
    UnavailableError,
)
from perdure.locks import Lease, Semaphore, lock
from perdure.protocol import Backend
from perdure.testing.crew import PATIENCE
from perdure.testing.faults import Faulty, Hold, on
from perdure_backends.memory import MemoryBackend


def test_tasks_exclude_each_other_and_many_may_wait(place: Backend) -> None:
    box = [0]

    async def work() -> None:
        async with lock(place, "it") as lease:
            assert lease.held
            count = box[0]
            await asyncio.sleep(0)
            box[0] = count + 1

    async def main() -> None:
        first = lock(place, "it")
        assert await first.acquire_async()
        await first.renew_async()
        # More than asyncio has threads, so if they waited in those nobody could ever release.
        tasks = [asyncio.create_task(work()) for _ in range(40)]
        await asyncio.sleep(0.05)
        assert box[0] == 0
        assert await first.release_async()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    asyncio.run(main())
    assert box[0] == 40


def test_a_task_hears_what_a_thread_hears(memory: MemoryBackend, hands: Clock) -> None:
    async def main() -> None:
        async with lock(memory, "it"):
            assert not await lock(memory, "it").acquire_async(blocking=False)
            with pytest.raises(UnavailableError, match="held by"):
                async with lock(memory, "it", timeout=0):
                    pass
        with pytest.raises(PreconditionError, match="was lost"):
            async with lock(memory, "it", ttl=10, renew=False):
                hands.now += 10
        with pytest.raises(ZeroDivisionError):
            async with Semaphore(memory, "it", 2, ttl=10, renew=False):
                hands.now += 10
                1 / 0

    asyncio.run(main())


@pytest.mark.parametrize("after", [False, True])
def test_what_a_cancelled_task_was_about_to_get_is_given_back(memory: MemoryBackend, after: bool) -> None:
    async def main() -> None:
        hold = Hold(after=after)
        faulty = Faulty(memory, on("put", hold, nth=1))
        lease = lock(faulty, "it", ttl=LONG)
        task = asyncio.create_task(lease.acquire_async())
        while not hold.reached.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not lease.held
        hold.release.set()
        assert await lease.acquire_async(timeout=PATIENCE)
        assert await lease.release_async()

    asyncio.run(main())
    until(lambda: stored(memory)["holders"] == [])


def test_what_a_task_got_in_the_moment_it_was_cancelled_is_given_back(memory: MemoryBackend) -> None:
    for delay in range(30):
        lease = lock(memory, "it", ttl=LONG)

        async def main(lease: Lease = lease, delay: int = delay) -> None:
            task = asyncio.create_task(lease.acquire_async())
            await asyncio.sleep(delay * 0.00005)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                assert not lease.held
            else:
                await lease.release_async()

        asyncio.run(main())
        until(lambda: not memory.contains(KEY) or stored(memory)["holders"] == [])


def test_a_cancelled_wait_ends_at_once_and_holds_nothing(memory: MemoryBackend) -> None:
    async def main() -> None:
        async with lock(memory, "it"):
            waiter = lock(memory, "it")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiter.acquire_async(), 0.05)
            assert not waiter.held
        assert await waiter.acquire_async(blocking=False)
        assert await waiter.release_async()

    asyncio.run(main())
