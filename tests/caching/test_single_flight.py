"""One at a time computes: threads, tasks, processes; killed, stopped and interrupted ones; clocks that differ."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cached_functions import runs, slow

import perdure
from perdure.codecs.entry import is_claim

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))

EIGHT_THREADS = """
    import sys, threading
    from cached_functions import slow
    url, log, lease, ahead = sys.argv[1:]
    if float(ahead):
        import time
        right = time.time
        time.time = lambda: right() + float(ahead)
        import perdure.caching.entries as entries
        entries.time = time.time
    work = slow(url, log, lease=float(lease), ttl="1 h")
    print("ready", flush=True)
    sys.stdin.readline()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(work(7))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert answers == [{"n": 7, "square": 49}] * 8, answers
"""


def together(children: list[Any], finish: Callable[..., str]) -> None:
    """Let processes that are ready begin at once, and wait until all have ended well."""
    for child in children:
        assert child.stdout.readline().strip() == "ready"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        finish(child)


@pytest.mark.parametrize("ahead", [(0, 0, 0, 0), (-60, 60, 0, 30)], ids=["clocks agree", "clocks differ by two minutes"])
def test_four_processes_of_eight_threads_run_it_once(
    shared_url: str, tmp_path: Path, start: Any, finish: Any, ahead: tuple[int, ...]
) -> None:
    log = str(tmp_path / "log")
    together([start(EIGHT_THREADS, shared_url, log, "30", str(seconds)) for seconds in ahead], finish)
    assert len(runs(log)) == 1


def test_eight_threads_run_it_once_in_many_rounds(url: str) -> None:
    count = []

    @perdure.cached(url)
    def work(n: int) -> int:
        count.append(n)
        time.sleep(0.001)
        return n

    for n in range(20 * ROUNDS):
        barrier = threading.Barrier(8)
        answers = []

        def call(n: int = n, barrier: threading.Barrier = barrier, answers: list[int] = answers) -> None:
            barrier.wait()
            answers.append(work(n))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [n] * 8
    assert len(count) == 20 * ROUNDS


def test_threads_with_caches_of_their_own_run_it_once(url: str, tmp_path: Path) -> None:
    """As processes do: by claims alone."""
    log = str(tmp_path / "log")
    caches = [slow(url, log, 0.1) for _ in range(8)]
    barrier = threading.Barrier(8)
    answers = []

    def call(work: Callable[[int], Any]) -> None:
        barrier.wait()
        answers.append(work(3))

    threads = [threading.Thread(target=call, args=(work,)) for work in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"n": 3, "square": 9}] * 8
    assert len(runs(log)) == 1


HOLD = """
    import sys, time
    from cached_functions import slow
    url, log, lease, seconds = sys.argv[1:]
    slow(url, log, float(seconds), lease=float(lease))(7)
"""


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_when_the_holder_is_killed_or_stopped_it_runs_exactly_once_more(
    shared_url: str, tmp_path: Path, start: Any, finish: Any, how: signal.Signals
) -> None:
    log = str(tmp_path / "log")
    for _ in range(ROUNDS):
        holder = start(HOLD, shared_url, log, "1", "3600")
        wait_until(lambda: runs(log))
        waiters = [start(EIGHT_THREADS, shared_url, log, "1", "0") for _ in range(3)]
        os.kill(holder.pid, how)
        together(waiters, finish)
        assert len(runs(log)) == 2
        if how is signal.SIGSTOP:
            os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        os.remove(log)
        slow(shared_url, log).cache.clear()  # type: ignore[attr-defined]


def test_a_holder_that_takes_longer_than_its_lease_keeps_it(shared_url: str, tmp_path: Path, start: Any, finish: Any) -> None:
    log = str(tmp_path / "log")
    holder = start(HOLD, shared_url, log, "0.5", "3")
    wait_until(lambda: runs(log))
    waiter = start(EIGHT_THREADS, shared_url, log, "0.5", "0")
    together([waiter], finish)
    finish(holder)
    assert len(runs(log)) == 1


def test_somebody_who_takes_too_long_is_waited_for_no_longer_than_wait(url: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    stuck, go_on = threading.Event(), threading.Event()

    @perdure.cached(url, version=1, key=lambda n: n, lease=0.3)
    def hang(n: int) -> dict[str, int]:
        stuck.set()
        go_on.wait(60)
        return {"wrong": n}

    hang.cache._keys = slow(url, log).cache._keys  # type: ignore[attr-defined]
    hang.cache._digest = hang.cache._keys.digest
    holder = threading.Thread(target=hang, args=(7,))
    holder.start()
    assert stuck.wait(60)
    work = slow(url, log, 0.0, lease=0.3, wait=0.5)
    assert work(7) == {"n": 7, "square": 49}
    go_on.set()
    holder.join()
    assert hang.cache.stats().lost == 1
    assert work(7) == {"n": 7, "square": 49}
    assert len(runs(log)) == 1


def test_who_waits_tries_when_the_first_fails(url: str) -> None:
    tries = []
    begun = threading.Event()

    @perdure.cached(url)
    def moody() -> int:
        tries.append(threading.get_ident())
        begun.set()
        time.sleep(0.1)
        if len(tries) < 3:
            raise LookupError("not yet")
        return 5

    answers: list[object] = []

    def call() -> None:
        try:
            answers.append(moody())
        except LookupError:
            answers.append("failed")

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, answers)) == ["5"] * 4 + ["failed"] * 2
    assert len(tries) == 3


def test_an_interrupt_withdraws_the_claim(url: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be ignored, where tests run in the background

    @perdure.cached(url)
    def work() -> int:
        signal.raise_signal(signal.SIGINT)
        return 1

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(perdure.open_backend(url).keys()) == []


def test_a_forked_child_waits_for_its_parent(shared_url: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    work = slow(shared_url, log, 0.5)
    thread = threading.Thread(target=work, args=(7,))
    thread.start()
    wait_until(lambda: runs(log))
    child = os.fork()
    if not child:
        os._exit(0 if work(7) == {"n": 7, "square": 49} else 1)
    _, status = os.waitpid(child, 0)
    thread.join()
    assert status == 0
    assert len(runs(log)) == 1


# ----------------------------------------------------------------------------------------------------------------- asyncio


def test_two_hundred_tasks_run_it_once(url: str) -> None:
    count = []

    @perdure.cached(url)
    async def work(n: int) -> list[int]:
        count.append(n)
        await asyncio.sleep(0.05)
        return [n]

    async def herd() -> list[list[int]]:
        return await asyncio.gather(*(work(7) for _ in range(200)))

    answers = asyncio.run(herd())
    assert answers == [[7]] * 200
    assert len({id(answer) for answer in answers}) == 200
    assert count == [7]
    assert asyncio.run(work(7)) == [7]
    stats = work.cache.stats()
    assert (stats.hits, stats.misses) == (200, 1)


def test_tasks_of_two_event_loops_and_threads_run_it_once(url: str) -> None:
    count = []

    @perdure.cached(url)
    async def work(n: int) -> int:
        count.append(n)
        await asyncio.sleep(0.1)
        return n

    async def herd() -> None:
        assert await asyncio.gather(*(work(7) for _ in range(20))) == [7] * 20

    threads = [threading.Thread(target=asyncio.run, args=(herd(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [7]


def test_a_cancelled_task_withdraws_its_claim_and_the_next_one_computes(url: str) -> None:
    count = []

    @perdure.cached(url)
    async def work(n: int) -> int:
        count.append(n)
        await asyncio.sleep(3600 if len(count) == 1 else 0)
        return n

    async def story() -> None:
        first = asyncio.create_task(work(7))
        while not count:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(work(7))
        await asyncio.sleep(0.02)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == 7

    asyncio.run(story())
    assert count == [7, 7]


@pytest.mark.parametrize("moment", range(0, 30, 3))
def test_a_task_that_is_cancelled_at_any_moment_leaves_no_claim(shared_url: str, moment: int) -> None:
    @perdure.cached(shared_url)
    async def work(n: int) -> int:
        await asyncio.sleep(0.002)
        return n

    async def story() -> None:
        task = asyncio.create_task(work(7))
        await asyncio.sleep(moment / 2000)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass

    asyncio.run(story())
    backend = perdure.open_backend(shared_url)
    assert not [meta for meta in backend.scan() if is_claim(backend.get(meta.key).data)]
    assert asyncio.run(work(7)) == 7


def test_the_cache_of_a_coroutine_function_is_awaited(url: str) -> None:
    count = []

    @perdure.cached(url)
    async def work(n: int) -> int:
        count.append(n)
        return n

    async def story() -> None:
        assert await work.cache.peek(1) is None
        await work(1)
        assert await work.cache.peek(1) == 1
        assert await work.cache.contains(1)
        assert await work.cache.refresh(1) == 1
        await work.cache.invalidate(1)
        assert not await work.cache.contains(1)
        await work(1)
        assert await work.cache.clear() == 1

    asyncio.run(story())
    assert count == [1, 1, 1]


def test_stale_values_are_answered_to_tasks_meanwhile(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.caching import entries as entries_module

    count = []

    @perdure.cached(url, ttl="1 h", stale_ok=True)
    async def work() -> int:
        count.append(1)
        await asyncio.sleep(0.05)
        return len(count)

    async def herd() -> list[int]:
        return await asyncio.gather(*(work() for _ in range(50)))

    assert asyncio.run(herd()) == [1] * 50
    monkeypatch.setattr(entries_module, "time", lambda: time.time() + 3700)
    assert sorted(asyncio.run(herd())) == [1] * 49 + [2]


def test_an_exception_reaches_the_task_that_computed(url: str) -> None:
    @perdure.cached(url)
    async def work() -> int:
        await asyncio.sleep(0)
        raise LookupError("no")

    async def story() -> None:
        results = await asyncio.gather(*(work() for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [LookupError] * 3

    asyncio.run(story())
    assert list(perdure.open_backend(url).keys()) == []


AFTER_MAIN = """
    import sys, threading
    from cached_functions import slow
    url, log, *local = sys.argv[1:]

    def use_it_first():
        threading.main_thread().join()
        work = slow(url, log, 0.5, lease=0.2, local=local)
        print(work(3), work(3))

    threading.Thread(target=use_it_first).start()
"""


def test_a_thread_that_outlives_the_main_thread_may_be_the_first(
    shared_url: str, tmp_path: Path, start: Any, finish: Any
) -> None:
    """From then on Python refuses some things, such as to begin with `concurrent.futures`."""
    log = str(tmp_path / "log")
    assert finish(start(AFTER_MAIN, shared_url, log)) == "{'n': 3, 'square': 9} {'n': 3, 'square': 9}\n"
    assert finish(start(AFTER_MAIN, shared_url, log, "memory:")) == "{'n': 3, 'square': 9} {'n': 3, 'square': 9}\n"
    assert len(runs(log)) == 1
