"""Calls of an `AsyncPersiDict` run at once, may be abandoned, survive forks and end when it is closed."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
import perdure.aio
from perdure import DELETE_CURRENT, ITEM_NOT_AVAILABLE, KEEP_CURRENT, ConflictError, PersiDict
from perdure.aio import AsyncPersiDict
from perdure.errors import BackendError
from perdure.protocol import Blob, ETag
from perdure_backends.memory import MemoryBackend


def plus_one(n: Any) -> int:
    return 1 if n is ITEM_NOT_AVAILABLE else n + 1


async def plus_one_later(n: Any) -> int:
    await asyncio.sleep(0)
    return plus_one(n)


# At once


class Meeting(MemoryBackend):
    """A get returns when as many run at once as there are parties."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(parties, timeout=60)

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        self.barrier.wait()
        return super().get(key, if_none_match=if_none_match)


def test_as_many_calls_run_at_once_as_there_are_threads(threads_end: Callable[[], None]) -> None:
    async def main() -> None:
        async with AsyncPersiDict(PersiDict[int](Meeting(20)), concurrency=20) as d:
            await d.set("a", 1)
            assert await asyncio.gather(*(d["a"] for _ in range(20)), *(d.get_subdict("v").get("b", 2) for _ in range(20))) == (
                [1] * 20 + [2] * 20
            )
            assert len(d._threads._crew()._threads) == 20

    asyncio.run(main())
    threads_end()


def test_calls_that_follow_each_other_share_a_thread() -> None:
    async def main() -> None:
        async with AsyncPersiDict(PersiDict[int](MemoryBackend())) as d:
            for number in range(100):
                await d.set("a", number)
            assert len(d._threads._crew()._threads) == 1

    asyncio.run(main())


def test_one_of_a_hundred_setdefaults_wins(new_url: Callable[[str], str]) -> None:
    async def main() -> None:
        async with perdure.aio.open(new_url("one")) as d:
            for key in ("a", "b"):
                answers = await asyncio.gather(*(d.setdefault(key, number) for number in range(100)))
                assert set(answers) == {await d[key]}
            done = await asyncio.gather(
                *(
                    d.setdefault_if("c", default_value=n, condition=perdure.ETAG_IS_THE_SAME, expected_etag=ITEM_NOT_AVAILABLE)
                    for n in range(100)
                )
            )
            assert sum(answer.condition_was_satisfied for answer in done) == 1

    asyncio.run(main())


def _increment(url: str, times: int, transformer: Any) -> None:
    async def main() -> None:
        async with perdure.aio.open(url) as d:
            await asyncio.gather(*(d.transform_item("n", transformer=transformer) for _ in range(times)))

    asyncio.run(main())


@pytest.mark.parametrize(("transformer", "tasks"), [(plus_one, 200), (plus_one_later, 50)])
def test_no_increment_is_lost_among_tasks_and_processes(tmp_path: Path, transformer: Any, tasks: int) -> None:
    url = f"file:{tmp_path}/folder?sync=normal"
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_increment, args=(url, 30, transformer)) for _ in range(2)]
    for other in others:
        other.start()
    _increment(url, tasks, transformer)
    for other in others:
        other.join(120)
        assert other.exitcode == 0
    with perdure.open(url) as d:
        assert d["n"] == tasks + 60


def test_no_increment_is_lost_anywhere(new_url: Callable[[str], str]) -> None:
    _increment(new_url("one"), 40, plus_one)
    if new_url("one").startswith("memory:"):
        return  # gone with its loop
    _increment(new_url("one"), 20, plus_one_later)
    with perdure.open(new_url("one")) as d:
        assert d["n"] == 60


# Coroutine transformers


def test_a_coroutine_transformer_that_loses_decides_again() -> None:
    async def main() -> None:
        async with perdure.aio.open("memory:") as d:
            seen: list[Any] = []

            async def transformer(value: Any) -> Any:
                seen.append(value)
                if len(seen) < 4:
                    await d.set("a", f"rival {len(seen)}")
                return "mine"

            assert (await d.transform_item("a", transformer=transformer)).new_value == await d["a"] == "mine"
            assert seen == [ITEM_NOT_AVAILABLE, "rival 1", "rival 2", "rival 3"]

            seen.clear()
            with pytest.raises(ConflictError) as caught:
                await d.transform_item("a", transformer=transformer, n_retries=2)
            assert (len(seen), caught.value.attempts, caught.value.key) == (3, 3, ("a",))
            assert await d["a"] == "rival 3"

            async def deletes(value: Any) -> Any:
                if value == "rival 3":
                    await d.delete("a")
                return DELETE_CURRENT

            assert await d.transform_item("a", transformer=deletes) == (ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
            assert not await d.contains("a")

    asyncio.run(main())


def test_a_coroutine_transformer_follows_the_rules_of_a_function() -> None:
    async def main() -> None:
        async with perdure.aio.open("memory:") as d:

            class Callable_:  # noqa: N801
                async def __call__(self, value: Any) -> int:
                    return plus_one(value)

            async def keep(value: Any) -> Any:
                return KEEP_CURRENT

            async def away(value: Any) -> Any:
                return DELETE_CURRENT

            async def fails(value: Any) -> Any:
                raise ZeroDivisionError

            async def answer(value: Any) -> Any:
                return ITEM_NOT_AVAILABLE

            assert await d.transform_item("a", transformer=away) == (ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
            assert await d.transform_item("a", transformer=Callable_()) == (await d.etag("a"), 1)
            assert await d.transform_item("a", transformer=keep) == (await d.etag("a"), 1)
            with pytest.raises(ZeroDivisionError):
                await d.transform_item("a", transformer=fails)
            with pytest.raises(perdure.PolicyError, match="answer"):
                await d.transform_item("a", transformer=answer)
            with pytest.raises(perdure.UsageError, match="n_retries"):
                await d.transform_item("a", transformer=keep, n_retries=-1)
            with pytest.raises(perdure.InvalidKeyError):
                await d.transform_item("\0", transformer=keep)
            with pytest.raises(perdure.UsageError, match="coroutine") as caught:
                await d.transform_item("a", transformer=lambda value: keep(value))
            assert (caught.value.key, caught.value.place) == ("a", d.place)
            assert await d["a"] == 1
            assert await d.transform_item("a", transformer=away) == (ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
        async with perdure.aio.open("null:") as d:
            assert await d.transform_item("a", transformer=Callable_()) == (ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)

    asyncio.run(main())


def test_coroutine_transformers_hold_no_thread_while_they_wait() -> None:
    async def main() -> None:
        async with perdure.aio.open("memory:", concurrency=2) as d:

            async def transformer(value: Any) -> int:
                await d.transform_item("inner", transformer=plus_one)
                await d.get("nothing")
                return plus_one(value)

            await asyncio.gather(*(d.transform_item(("k", str(n % 50)), transformer=transformer) for n in range(100)))
            assert sum([value async for value in d.get_subdict("k").values()]) == 100

    asyncio.run(main())


# Cancelling


def test_a_cancelled_call_is_finished_by_its_thread(stopping: Any, threads_end: Callable[[], None]) -> None:
    async def main() -> None:
        d = AsyncPersiDict(PersiDict[int](stopping))
        task = asyncio.create_task(d.set("slow", 1))
        await asyncio.to_thread(stopping.begun.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stopping.log == []
        stopping.go_on.set()
        await d.close()
        assert stopping.log == ["put slow", "closed"]

    asyncio.run(main())
    threads_end()


def test_a_cancelled_call_that_waits_for_a_thread_never_begins(stopping: Any) -> None:
    async def main() -> None:
        d = AsyncPersiDict(PersiDict[int](stopping), concurrency=1)
        first = asyncio.create_task(d.set("slow", 1))
        await asyncio.to_thread(stopping.begun.acquire)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(d.set("late", 1), 0)
        second = asyncio.create_task(d.set("later", 1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await second
        stopping.go_on.set()
        await first
        await d.close()
        assert stopping.log == ["put slow", "closed"]

    asyncio.run(main())


def test_what_is_being_opened_is_closed_when_that_is_cancelled(monkeypatch: pytest.MonkeyPatch, stopping: Any) -> None:
    begun = threading.Event()

    def open_backend(where: object, **options: object) -> Any:
        begun.set()
        assert stopping.go_on.wait(60)
        return stopping

    monkeypatch.setattr("perdure.mapping.opening.open_backend", open_backend)

    async def main() -> None:
        async def enter() -> None:
            async with perdure.aio.open("memory:"):
                raise AssertionError("it was not opened")

        task = asyncio.create_task(enter())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stopping.go_on.set()
        assert await asyncio.to_thread(stopping.ended.wait, 60)

    asyncio.run(main())


# The end


def test_close_waits_for_the_calls_made_before(stopping: Any, threads_end: Callable[[], None]) -> None:
    async def main() -> None:
        d = AsyncPersiDict(PersiDict[int](stopping), concurrency=2)
        view = d.get_subdict("v")
        calls = [asyncio.create_task(d.set("slow", n)) for n in range(2)] + [
            asyncio.create_task(view.set("a", n)) for n in range(5)
        ]
        for _ in range(2):
            await asyncio.to_thread(stopping.begun.acquire)
        ends = [asyncio.create_task(dict_.close()) for dict_ in (d, view)]
        await asyncio.sleep(0)
        with pytest.raises(BackendError, match="closed") as caught:
            await d.set("late", 1)
        assert (caught.value.place, caught.value.hint) == (d.place, "Open it again.")
        assert "closed" not in stopping.log
        stopping.go_on.set()
        await asyncio.gather(*calls, *ends)
        assert sorted(stopping.log[:-2]) == ["put slow"] * 2 + ["put v/a"] * 5
        assert stopping.log[-2:] == ["closed"] * 2
        await d.close()

    asyncio.run(main())
    threads_end()


def test_a_call_that_meets_close_in_another_loop_is_refused() -> None:
    async def main() -> None:
        d: AsyncPersiDict[int] = AsyncPersiDict(PersiDict(MemoryBackend()))
        await d.set("a", 1)
        crew = d._threads._crew()  # so far has a call come in another thread when this one closes
        await d.close()
        with pytest.raises(BackendError, match="closed"):
            crew.take(lambda: 1)

    asyncio.run(main())


def test_a_cancelled_close_closes_all_the_same(stopping: Any) -> None:
    async def main() -> None:
        d = AsyncPersiDict(PersiDict[int](stopping))
        call = asyncio.create_task(d.set("slow", 1))
        await asyncio.to_thread(stopping.begun.acquire)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(d.close(), 0.01)
        stopping.go_on.set()
        await call
        assert await asyncio.to_thread(stopping.ended.wait, 60)

    asyncio.run(main())
    assert stopping.log == ["put slow", "closed"]


def test_a_dropped_dict_leaves_no_thread(threads_end: Callable[[], None]) -> None:
    async def main() -> None:
        d = await perdure.aio.open("memory:")
        await asyncio.gather(*(d.set("a", n) for n in range(50)))
        e = d.get_subdict("a")
        del d
        assert await e.count() == 0

    asyncio.run(main())
    gc.collect()
    threads_end()


class Value:
    """What can be referred to weakly."""


def test_neither_answers_nor_errors_are_kept() -> None:
    class Own(Exception):
        pass

    async def main() -> None:
        async with perdure.aio.open("memory:", codec="pkl") as d:

            def fails(_: Any) -> Any:
                raise Own

            for _ in range(3):
                try:
                    await d.transform_item("a", transformer=fails)
                except Own as error:
                    errors.append(weakref.ref(error))
            value = Value()
            values = weakref.ref(value)
            assert await d.setdefault("a", value) is value
            del value
            await d.count()
            assert values() is None

    errors: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        assert [error() for error in errors] == [None] * 3
    finally:
        gc.enable()


SCRIPT = """if True:
    import asyncio, signal, threading
    import perdure.aio
    from perdure import PersiDict
    from perdure.aio import AsyncPersiDict, threads
    from perdure_backends.memory import MemoryBackend

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without one
    threads._GRACE = 0.1
    begun = threading.Event()

    class Stuck(MemoryBackend):
        def get(self, key, *, if_none_match=None):
            print("begun", flush=True)
            begun.set()
            threading.Event().wait()

    class Told(AsyncPersiDict):
        async def close(self):
            print("closing", flush=True)
            await super().close()

    async def wait(d):
        try:
            await asyncio.gather(*(d[f"k{n}"] for n in range(100)))
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise

    async def main():
        # asyncio itself misses a signal that comes just before it begins to wait, unless it is told so in this way.
        signal.set_wakeup_fd(asyncio.get_running_loop()._csock.fileno())
        d = Told(PersiDict(Stuck()), concurrency=1)
        if CLOSE:
            async with d:
                await wait(d)
        elif LEAVE:
            asyncio.create_task(wait(d))
            await asyncio.to_thread(begun.wait)
        else:
            await wait(d)

    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("close", "signals"), [(False, 1), (True, 2)])
def test_control_c_ends_a_program_whose_calls_are_stuck(close: bool, signals: int) -> None:
    code = SCRIPT.replace("CLOSE", str(close)).replace("LEAVE", "False")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == "begun\n"
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "cancelled\n"
            if signals == 2:  # `async with` waits for what is running; the second signal gives that up
                assert child.stdout.readline() == "closing\n"
                child.send_signal(signal.SIGINT)
            rest, errors = child.communicate(timeout=60)
        finally:
            child.kill()
        assert child.returncode == -signal.SIGINT
        assert rest == ""
        assert errors.rstrip().endswith("KeyboardInterrupt")


def test_the_end_of_the_loop_waits_for_nobody() -> None:
    code = SCRIPT.replace("CLOSE", "False").replace("LEAVE", "True")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr, sorted(done.stdout.split())) == (0, "", ["begun", "cancelled"])


def test_the_end_of_a_program_lets_an_abandoned_write_finish(tmp_path: Path) -> None:
    code = f"""if True:
        import asyncio, threading
        from perdure import PersiDict
        from perdure.aio import AsyncPersiDict
        from perdure_backends.file import FileBackend

        class Slow(FileBackend):
            def put(self, key, data, **options):
                begun.set()
                go_on.wait()
                return super().put(key, data, **options)

        async def main():
            d = AsyncPersiDict(PersiDict(Slow({str(tmp_path)!r})))
            asyncio.create_task(d.set("a", 1))
            await asyncio.to_thread(begun.wait)

        begun, go_on = threading.Event(), threading.Event()
        asyncio.run(main())
        go_on.set()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with perdure.open(tmp_path) as d:
        assert dict(d) == {("a",): 1} or d["a"] == 1


# Loops, forks and what travels


def test_a_dict_is_used_from_two_loops_after_each_other_and_at_once(threads_end: Callable[[], None]) -> None:
    d: AsyncPersiDict[int] = AsyncPersiDict(PersiDict(MemoryBackend()))

    async def work() -> None:
        await asyncio.gather(*(d.transform_item("n", transformer=plus_one) for _ in range(50)))
        await asyncio.gather(*(d.transform_item("n", transformer=plus_one_later) for _ in range(10)))

    for _ in range(2):
        asyncio.run(work())
    loops = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(4)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()

    async def end() -> None:
        assert await d["n"] == 6 * 60
        await d.close()

    asyncio.run(end())
    threads_end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_goes_on_with_threads_of_its_own(stopping: Any) -> None:
    d: AsyncPersiDict[int] = AsyncPersiDict(PersiDict(stopping), concurrency=4)

    async def stand() -> None:
        await asyncio.gather(*(d.set("slow", n) for n in range(20)))

    async def child() -> None:
        await asyncio.gather(*(d.set("a", n) for n in range(20)))
        assert await d.contains("a")
        await d.close()
        with pytest.raises(BackendError):
            await d.contains("a")

    loop = threading.Thread(target=asyncio.run, args=(stand(),))
    loop.start()
    for _ in range(4):
        stopping.begun.acquire()
    process = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(child()))
    process.start()
    process.join(60)
    stopping.go_on.set()
    loop.join()
    assert process.exitcode == 0
    assert not d.sync.backend.contains("a")
    asyncio.run(d.close())


def test_context_variables_are_seen_in_the_thread() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")

    async def one(d: AsyncPersiDict[str], who: str) -> None:
        name.set(who)
        await d.transform_item(who, transformer=lambda _: name.get())

    async def main() -> None:
        async with perdure.aio.open("memory:") as d:
            await asyncio.gather(*(one(d, f"task{n}") for n in range(40)))
            async for key, value in d.items():
                assert key == (value,) or key == value

    asyncio.run(main())


def test_items_are_written_as_they_were_when_the_call_was_made(stopping: Any) -> None:
    async def main() -> None:
        async with AsyncPersiDict(PersiDict[int](stopping), concurrency=1) as d:
            first = asyncio.create_task(d.set("slow", 1))
            await asyncio.to_thread(stopping.begun.acquire)
            items, keys, pairs = {"a": 1}, ["a", "b"], [("b", 2)]
            calls = [asyncio.create_task(call) for call in (d.set_many(items), d.update(pairs), d.delete_many(keys=keys))]
            calls += [asyncio.create_task(d.update({"a": 5}, c=6))]  # type: ignore[arg-type]
            await asyncio.sleep(0)
            items["late"] = 1
            pairs.append(("late", 1))
            keys.clear()
            stopping.go_on.set()
            await asyncio.gather(first, *calls)
            assert await d.equals({"slow": 1, "a": 5, "c": 6})

    asyncio.run(main())


def test_an_iterator_of_items_is_read_in_the_loop() -> None:
    async def main() -> None:
        async with perdure.aio.open("memory:") as d:
            await d.set_many((threading.current_thread().name, n) for n in range(2))
            assert [key async for key in d] == [(threading.main_thread().name,)]

    asyncio.run(main())


@pytest.mark.parametrize("error", [StopIteration(3), asyncio.CancelledError("own"), GeneratorExit(), ValueError("x")])
def test_whatever_a_transformer_raises_arrives(error: BaseException) -> None:
    def fails(_: Any) -> Any:
        raise error

    async def main() -> None:
        async with perdure.aio.open("memory:") as d:
            try:
                await d.transform_item("a", transformer=fails)
            except BaseException as caught:
                assert caught is error or caught.__cause__ is error or repr(caught) == repr(error)
            else:
                raise AssertionError("nothing was raised")
            await d.set("a", 1)
            assert await d["a"] == 1

    asyncio.run(main())


def test_where_no_thread_can_be_started_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        d: AsyncPersiDict[int] = AsyncPersiDict(PersiDict(MemoryBackend()))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(perdure.UnavailableError, match="no thread") as caught:
                await d["a"]
            assert caught.value.place == d.place
        await d.set("a", 1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert await asyncio.gather(*(d["a"] for _ in range(10))) == [1] * 10
        await d.close()

    asyncio.run(main())


def test_members_of_the_family_are_served_as_well(tmp_path: Path) -> None:
    from perdure.mapping.family import FileDirDict
    from perdure.mapping.write_once import WriteOnceDict

    async def main() -> None:
        plain: FileDirDict[int] = FileDirDict(base_dir=str(tmp_path), append_only=True)
        async with AsyncPersiDict(WriteOnceDict(wrapped_dict=plain)) as d:
            await asyncio.gather(*(d.set("a", n) for n in range(10)))
            assert await d["a"] in range(10)
            assert await d.get_subdict("none").is_empty()

    asyncio.run(main())
