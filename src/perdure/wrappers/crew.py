"""Several calls at once, for wrappers that must ask about each key by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

R = TypeVar("R")


class Crew:
    """Threads, started when first needed, for calls that mostly wait.

    Args:
        size: How many calls to make at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # At most one. In a dict, whose methods are single steps: a lock would have to be renewed after a fork.
        self._pool: dict[str, ThreadPoolExecutor] = {}

    def run(self, calls: Sequence[Callable[[], R]]) -> list[R]:
        """Make all calls and return their answers in any order. The first error ends it, is raised, and leaves nothing running.

        A single call is made by the thread that asks. On Ctrl-C, calls that have begun end by themselves; no others begin.
        """
        if len(calls) < 2:
            return [call() for call in calls]
        todo = deque(calls)
        done: list[R] = []
        failed: list[BaseException] = []
        ended: SimpleQueue[None] = SimpleQueue()  # in C: what Futures wait with breaks when Ctrl-C strikes in the middle

        def work() -> None:
            while not failed:
                try:
                    call = todo.popleft()
                except IndexError:
                    break
                try:
                    done.append(call())
                except BaseException as error:
                    failed.append(error)
            ended.put(None)

        at_work = 0
        try:
            try:
                pool = self._running()
                for _ in range(min(self._size, len(calls))):
                    pool.submit(work)
                    at_work += 1
            except RuntimeError:  # no thread can be started any more: closed meanwhile, the interpreter ends, or a limit
                at_work += 1
                work()
            for _ in range(at_work):
                ended.get()
        except BaseException:
            todo.clear()
            raise
        if failed:
            raise failed[0]
        return done

    def close(self) -> None:
        """Let the threads end."""
        pool = self._pool.pop("pool", None)
        if pool is not None:
            pool.shutdown(wait=False)

    def after_fork(self) -> None:
        """In a child, which has none of the threads."""
        self._pool = {}

    def _running(self) -> ThreadPoolExecutor:
        pool = self._pool.get("pool")
        if pool is None:
            from concurrent.futures import ThreadPoolExecutor  # not above: once the main thread has ended this raises

            # Of several that come here at once, the others' has no threads yet.
            new = ThreadPoolExecutor(self._size, thread_name_prefix="perdure-cached")
            pool = self._pool.setdefault("pool", new)
        return pool
