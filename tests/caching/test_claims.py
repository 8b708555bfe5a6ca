"""Claims end: when a refresh fails, a process is killed, a signal strikes anywhere, a task is destroyed, a disk is full."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cached_functions import runs, slow
from test_single_flight import HOLD, wait_until

import perdure
from perdure.caching import entries as entries_module
from perdure.codecs.entry import Entry, is_claim, write_entry
from perdure.protocol import Buffer, Condition, ETag
from perdure_backends.memory import MemoryBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))


def claims(where: Any) -> list[str]:
    backend = where if hasattr(where, "get") else perdure.open_backend(where)
    return [key for key in list(backend.keys()) if is_claim(backend.get(key).data)]


@pytest.mark.parametrize("options", [{"stale_ok": "1 d"}, {}])
def test_a_refresh_that_fails_makes_no_old_value_new(
    url: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    fails: list[bool] = []

    @perdure.cached(url, ttl="1 h", **options)
    def rate() -> str:
        if fails:
            raise LookupError("down")
        return "new"

    rate()
    fails.append(True)
    for ahead in (1800, 3000):
        monkeypatch.setattr(entries_module, "time", lambda ahead=ahead: time.time() + ahead)
        with pytest.raises(LookupError):
            rate.cache.refresh()
        assert rate() == "new"
    monkeypatch.setattr(entries_module, "time", lambda: time.time() + 3700)
    for _ in range(3):
        with pytest.raises(LookupError):
            rate()
    assert not claims(url)


def test_a_killed_refresh_is_taken_over_where_stale_values_are_answered(
    shared_url: str, tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = str(tmp_path / "log")
    work = slow(shared_url, log, 0.0, ttl="1 h", stale_ok=True, lease=1)
    work(7)
    lines = HOLD.replace("lease=float(lease)", "lease=float(lease), ttl=0.000001, stale_ok=True")
    holder = start(lines, shared_url, log, "1", "3600")
    wait_until(lambda: len(runs(log)) == 2)
    holder.kill()
    holder.wait()
    monkeypatch.setattr(entries_module, "time", lambda: time.time() + 3700 - 3300)
    later = slow(shared_url, log, 0.0, ttl="1 min", stale_ok=True, lease=1)
    wait_until(lambda: later(7) and len(runs(log)) == 3)
    assert later.cache.stats().stale >= 1  # type: ignore[attr-defined]
    assert not claims(shared_url)


def test_a_claim_that_is_older_than_clocks_are_wrong_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = slow(url, os.devnull, 0.0, lease=30)
    perdure.open_backend(url).put(work.cache.key(7), write_entry(Entry(None, lease=30.0, token=b"x" * 12)))  # type: ignore[attr-defined]
    monkeypatch.setattr(entries_module, "time", lambda: time.time() + 700)
    assert work(7) == {"n": 7, "square": 49}
    assert work.cache.stats().waits == 0  # type: ignore[attr-defined]


@pytest.fixture
def interrupting() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.torture
def test_an_interrupt_at_any_moment_leaves_nothing_that_is_renewed(shared_url: str, interrupting: None) -> None:
    work = slow(shared_url, os.devnull, 0.002, lease=0.5)
    work(0)
    dice = random.Random(7)
    struck = 0
    for n in range(60 * ROUNDS):
        try:
            signal.setitimer(signal.ITIMER_REAL, dice.random() * 0.006 + 1e-5)
            work(n)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            struck += 1
            began = time.monotonic()
            assert work(n) == {"n": n, "square": n * n}
            assert time.monotonic() - began < 30
    assert struck


def test_a_task_that_is_destroyed_leaves_nothing_that_is_renewed(shared_url: str) -> None:
    begun = threading.Event()

    @perdure.cached(shared_url, lease="0.5 s")
    async def work(n: int, seconds: float) -> int:
        begun.set()
        await asyncio.sleep(seconds if not count else 0)
        count.append(n)
        return n

    count: list[int] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(work(3, 3600.0))
    while not begun.is_set():
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    del task
    gc.collect()
    count.append(0)
    assert asyncio.run(asyncio.wait_for(work(3, 3600.0), 60)) == 3


def test_eviction_spares_those_who_compute(url: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @perdure.cached(url, max_items=20)
    def work(x: int) -> int:
        if x == -1:
            begun.set()
            assert go_on.wait(60)
        return x

    thread = threading.Thread(target=work, args=(-1,))
    thread.start()
    assert begun.wait(60)
    for x in range(100):
        work(x)
    assert claims(url) == [work.cache.key(-1)]
    go_on.set()
    thread.join()
    assert work.cache.stats().lost == 0
    assert work.cache.contains(-1)


def test_eight_threads_lose_nothing_where_four_values_have_room(url: str) -> None:
    @perdure.cached(url, max_items=4)
    def work(x: int) -> int:
        time.sleep(0.02)
        return x

    threads = [threading.Thread(target=work, args=(x,)) for x in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert work.cache.stats().lost == 0
    assert len(list(perdure.open_backend(url).keys())) <= 4


def test_a_place_that_takes_the_claim_and_not_the_value_holds_nobody_up(url: str) -> None:
    class Full(type(perdure.open_backend(url))):  # type: ignore[misc]
        def put(self, key: str, data: Any, **more: Any) -> Any:
            if len(data) > 1000:
                raise perdure.BackendError("no space left on device", key=key)
            return super().put(key, data, **more)

    backend = Full.from_url(url.partition(":")[2] if ":" in url else url)

    @perdure.cached(backend, lease="1 h")
    def work(x: int) -> bytes:
        return b"x" * 5000

    with pytest.warns(RuntimeWarning, match="no space"):
        for _ in range(3):
            assert len(work(1)) == 5000
    assert not claims(backend)


def test_a_task_that_a_cached_function_leaves_behind_waits_like_others(url: str) -> None:
    count: list[int] = []
    left: list[asyncio.Task[Any]] = []

    @perdure.cached(url)
    async def work(n: int) -> int:
        count.append(n)
        if len(count) == 1:
            left.append(asyncio.create_task(later()))
        await asyncio.sleep(0.02)
        return n

    async def later() -> None:
        await asyncio.sleep(0.1)
        await work.cache.invalidate(1)
        await asyncio.gather(*(work(1) for _ in range(5)))

    async def story() -> None:
        await work(1)
        await left[0]

    asyncio.run(story())
    assert count == [1, 1]


@pytest.mark.parametrize("keep", [True, False], ids=["stored", "not stored"])
@pytest.mark.parametrize("by", ["itself", "itself, without claims", "itself, all at once", "another process"])
def test_who_calls_after_an_invalidation_gets_nothing_that_was_begun_before(url: str, by: str, keep: bool) -> None:
    """Not even from a thread of the same process that is still computing it."""
    source = SimpleNamespace(now="old")
    begun, go_on = threading.Event(), threading.Event()

    def decorated() -> Any:
        @perdure.cached(url, version=1, keep_if=lambda value: keep, ignore="source", lock="without" not in by)
        def read() -> str:
            found = str(source.now)
            if found == "old":
                begun.set()
                assert go_on.wait(60)
            return found

        return read

    read = decorated()
    answers: dict[str, str] = {}
    first = threading.Thread(target=lambda: answers.update(first=read()))
    first.start()
    assert begun.wait(60)
    source.now = "new"
    cache = (decorated() if by == "another process" else read).cache
    cache.clear() if by == "itself, all at once" else cache.invalidate()
    waits = read.cache.stats().waits
    second = threading.Thread(target=lambda: answers.update(second=read()))
    second.start()
    while read.cache.stats().waits == waits and second.is_alive():
        time.sleep(0.001)
    go_on.set()
    first.join()
    second.join()
    assert answers == {"first": "old", "second": "new"}
    assert read() == "new"
    assert read.cache.peek() == ("new" if keep else None)


def test_the_same_among_tasks(url: str) -> None:
    source = SimpleNamespace(now="old")

    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        @perdure.cached(url)
        async def read() -> str:
            found = str(source.now)
            if found == "old":
                begun.set()
                await go_on.wait()
            return found

        first = asyncio.create_task(read())
        await begun.wait()
        source.now = "new"
        await read.cache.invalidate()
        waits = read.cache.stats().waits
        second = asyncio.create_task(read())
        while read.cache.stats().waits == waits and not second.done():
            await asyncio.sleep(0.001)
        go_on.set()
        assert (await first, await second, await read()) == ("old", "new", "new")

    asyncio.run(main())


def test_a_value_is_not_handed_on_that_was_invalidated_just_after_it_was_stored() -> None:
    """Who comes while a value is being stored looks at the place itself."""
    backend = StoringSlowly()
    source = SimpleNamespace(now="old")

    @perdure.cached(backend)
    def read() -> str:
        return str(source.now)

    answers: dict[str, str] = {}
    first = threading.Thread(target=lambda: answers.update(first=read()))
    first.start()
    assert backend.stored.wait(60)
    source.now = "new"
    read.cache.invalidate()
    second = threading.Thread(target=lambda: answers.update(second=read()))
    second.start()
    while not read.cache.stats().waits and second.is_alive():
        time.sleep(0.001)
    backend.go_on.set()
    first.join()
    second.join()
    assert answers == {"first": "old", "second": "new"}


class StoringSlowly(MemoryBackend):
    """The second write, which is the first value, is there before whoever wrote it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.stored, self.go_on = threading.Event(), threading.Event()
        self._writes = itertools.count(1)

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        etag = super().put(key, data, if_match=if_match)
        if next(self._writes) == 2:
            self.stored.set()
            assert self.go_on.wait(60)
        return etag
