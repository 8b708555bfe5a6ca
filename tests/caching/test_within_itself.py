"""A function that comes back to its own key, by whatever way, never waits for itself."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import perdure
from perdure.caching.flights import Attempt

pytestmark = pytest.mark.timeout(60)


async def awaited(coroutine: Any) -> Any:
    return await coroutine


async def gathered(coroutine: Any) -> Any:
    return (await asyncio.gather(coroutine))[0]


async def in_time(coroutine: Any) -> Any:
    return await asyncio.wait_for(coroutine, 300)


async def in_a_group(coroutine: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(coroutine)
    return task.result()


@pytest.mark.parametrize("how", [awaited, gathered, in_time, in_a_group])
def test_a_task_of_whoever_computes(url: str, how: Callable[[Any], Any]) -> None:
    runs: list[int] = []

    @perdure.cached(url, ignore="attempt")
    async def fetch(page: str, attempt: int = 0) -> str:
        runs.append(attempt)
        return str(await how(fetch(page, 1))) if attempt == 0 else "text"

    async def story() -> None:
        assert await fetch("a") == await fetch("a") == "text"

    asyncio.run(story())
    assert runs == [0, 1]


def test_a_function_that_a_thread_calls_for_whoever_computes(url: str) -> None:
    @perdure.cached(url, ignore="attempt")
    async def fetch(page: str, attempt: int = 0) -> str:
        return await asyncio.to_thread(blocking, page)

    @perdure.cached(url, key=lambda page: page)
    def blocking(page: str) -> str:
        return blocking(page) if page == "a" and not seen.append(page) and len(seen) == 1 else "text"

    seen: list[str] = []
    assert asyncio.run(fetch("a")) == "text"


def test_threads_that_wait_for_each_other_in_a_circle(url: str) -> None:
    graph = {"a": "b", "b": "c", "c": "a"}
    inside = threading.Barrier(3)

    @perdure.cached(url, ignore="seen")
    def reach(node: str, seen: frozenset[str] = frozenset()) -> list[str]:
        if not seen:
            inside.wait()  # each of the three has begun with one before any asks for the next
        return [] if node in seen else [node, *reach(graph[node], seen | {node})]

    answers: dict[str, list[str]] = {}
    threads = [threading.Thread(target=lambda node=node: answers.update({node: reach(node)})) for node in graph]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["a", "b", "c"]
    assert all(answer[0] == node for node, answer in answers.items())


def test_two_decorators_on_one_function(url: str) -> None:
    runs: list[int] = []

    @perdure.cached(url)
    @perdure.cached(url, ttl="1 h")
    def work(n: int) -> int:
        runs.append(n)
        return n

    assert work(1) == work(1) == 1
    assert runs == [1]


def test_a_cached_function_that_is_cached_again_in_the_same_place(url: str) -> None:
    def load(n: int) -> int:
        return n

    long = perdure.cached(url)(load)
    assert perdure.cached(url, ttl=5)(long)(1) == 1
    assert perdure.cached(url, ttl=5)(long).cache.peek(1) == 1


@pytest.mark.parametrize("options", [{"ttl": 5}, {"keep_if": lambda value: True}, {"lock": False}], ids=str)
def test_get_or_create_of_one_key_with_other_options_inside(url: str, options: Any) -> None:
    d: Any = perdure.open(url)
    again: Any = perdure.open(url)
    assert perdure.get_or_create(d, "user", lambda: perdure.get_or_create(d, "user", lambda: 1, **options)) == 1
    assert perdure.get_or_create(d, "other", lambda: perdure.get_or_create(again, "other", lambda: 2, **options)) == 2
    assert (d["user"], d["other"]) == (1, 2)


def test_a_task_whose_loop_was_closed_is_not_waited_for(url: str) -> None:
    """Also where somebody still holds it, so that it is not destroyed."""
    runs: list[int] = []

    @perdure.cached(url)
    async def work(n: int) -> int:
        runs.append(n)
        await asyncio.sleep(0.5 if len(runs) == 1 else 0)
        return n

    loop = asyncio.new_event_loop()
    task = loop.create_task(work(1))
    while not runs:
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert asyncio.run(work(1)) == 1
    assert runs == [1, 1]
    assert asyncio.run(work(1)) == 1
    assert len(runs) == 2
    assert not task.done()


def test_without_claims_threads_wait_for_one_whatever_their_options_are(url: str) -> None:
    d: Any = perdure.open(url)
    runs: list[int] = []
    barrier = threading.Barrier(5)
    go_on = threading.Event()

    def factory() -> int:
        runs.append(1)
        assert go_on.wait(30)
        return 7

    def ask(_: int) -> Any:
        barrier.wait()
        return perdure.get_or_create(d, "key", factory, lock=False, keep_if=lambda value: value == 7)

    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(ask, n) for n in range(5)]
        while not runs:
            pass
        threading.Timer(0.2, go_on.set).start()
        assert [answer.result() for answer in answers] == [7] * 5
    assert len(runs) == 1


def test_what_has_ended_is_not_kept_by_the_tasks_that_it_left_behind(url: str) -> None:
    """Such as a token that is fetched, and schedules that it is fetched anew."""

    latest: list[asyncio.Task[int]] = []

    counted: list[int] = []

    @perdure.cached(url, ignore="latest")
    async def token(n: int) -> int:
        if n < 50:
            latest[:] = [asyncio.get_running_loop().create_task(token(n + 1))]
        else:
            counted.append(attempts())
        return n

    async def story() -> None:
        await token(0)
        while latest:
            await latest.pop()

    before = attempts()
    asyncio.run(story())
    assert counted[0] - before < 10


def attempts() -> int:
    gc.collect()
    return sum(type(thing) is Attempt for thing in gc.get_objects())
