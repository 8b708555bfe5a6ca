"""Several pieces of work at once: digests, writes and requests, while whoever asked goes on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any

AT_ONCE = max(2, min(8, os.cpu_count() or 2))
"""For work that computes or copies; more threads than processors gain nothing there."""

TRANSFERS = 8
"""Pieces on their way at once; so much memory is used besides, times `CHUNK`."""


class Work:
    """Calls that threads take from a queue. The threads live as long as there is something to do.

    Args:
        transfers: Whether the calls wait for a place most of the time, so that `TRANSFERS` are made at once and not `AT_ONCE`.
            The thread that waits in `finish` makes one of them.
    """

    def __init__(self, *, transfers: bool = False) -> None:
        self._limit = (TRANSFERS if transfers else AT_ONCE) - 1
        self._todo: deque[Callable[[], object]] = deque()
        self._changed = Condition()
        self._threads = 0  # that take from the queue by themselves
        self._running = 0  # calls that they are making
        self._error: BaseException | None = None

    def submit(self, call: Callable[[], object]) -> None:
        """Have it called, soon, by some thread; not at all once another call has failed. Calls may submit others."""
        with self._changed:
            if self._error is not None:
                return
            self._todo.append(call)
            self._changed.notify()
            if self._threads >= self._limit:
                return
            self._threads += 1
        try:
            Thread(target=self._live, name="perdure-snapshot", daemon=True).start()
        except RuntimeError:  # no more threads: the interpreter ends, or a limit; then `finish` does it alone
            with self._changed:
                self._threads -= 1

    def finish(self) -> None:
        """Help until everything is done.

        Raises:
            BaseException: The first that any call raised; what had not begun by then is left undone.
        """
        while True:
            with self._changed:
                while not self._todo and self._running:
                    self._changed.wait()
                if not self._todo:
                    if self._error is not None:
                        raise self._error
                    return
                # Not counted: who waits for calls to end must not wait for one that Ctrl-C kept this thread from making.
                call = self._todo.popleft()
            self._make(call)

    def stop(self) -> None:
        """Leave undone what has not begun, and wait for the rest. Nothing is raised."""
        with self._changed:
            self._todo.clear()
            while self._running:
                self._changed.wait()

    def _live(self) -> None:
        while True:
            with self._changed:
                if not self._todo:
                    self._threads -= 1
                    return
                self._running += 1
                call = self._todo.popleft()
            self._make(call)
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _make(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._todo.clear()


class Call:
    """A function with its arguments, for the queue. (A loop's variables in a lambda would change before it runs.)"""

    def __init__(self, function: Callable[..., object], *arguments: Any) -> None:
        self._function = function
        self._arguments = arguments

    def __call__(self) -> None:
        self._function(*self._arguments)
