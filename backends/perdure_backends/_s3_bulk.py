"""Many requests at once: a few threads that take keys from one heap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Crew:
    """Threads, started at the first use, for calls that mostly wait.

    Args:
        size: How many calls to make at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Call for every item and return the answers in order. The first error ends it, is raised, and leaves nothing running.

        On Ctrl-C, calls that have begun end by themselves; no further ones begin.
        """
        if len(items) < 2 or self._size == 1:
            return [call(item) for item in items]
        todo = deque(enumerate(items))
        done: list[tuple[int, R]] = []
        failed: list[BaseException] = []
        ended: SimpleQueue[None] = SimpleQueue()  # in C: what Futures wait with breaks when Ctrl-C strikes in the middle

        def work() -> None:
            while not failed:
                try:
                    index, item = todo.popleft()
                except IndexError:
                    break
                try:
                    done.append((index, call(item)))
                except BaseException as error:
                    failed.append(error)
            ended.put(None)

        threads = self._running()
        at_work = 0
        try:
            try:
                for _ in range(min(self._size, len(items))):
                    threads.submit(work)
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
        done.sort(key=_index)
        return [answer for _, answer in done]

    def close(self) -> None:
        """Let the threads end."""
        with self._lock:
            if self._threads is not None:
                self._threads.shutdown(wait=False)
                self._threads = None

    def after_fork(self) -> None:
        """In a child, which has none of the threads."""
        self._lock = threading.Lock()
        self._threads = None

    def _running(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="perdure-s3")
            return self._threads


def _index(pair: tuple[int, object]) -> int:
    return pair[0]
