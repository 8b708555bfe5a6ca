"""Threads that run calls for event loops. asyncio's own executor has six on a machine with two cores, for everybody."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeAlias, TypeVar

from ..errors import BackendError, UnavailableError, UsageError

P = ParamSpec("P")
R = TypeVar("R")

_Job: TypeAlias = "tuple[_Crew, asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]"
_GRACE = 5.0  # seconds that calls under way get when the interpreter ends
_alive: weakref.WeakSet[_Crew] = weakref.WeakSet()


class Threads:
    """Runs calls in threads, for any number of event loops, in order of arrival, with the context variables of the caller.

    A thread is started when a call would have to wait for one, and kept. A forked child starts its own. Whoever drops this
    without closing it leaves nothing behind: the threads end after what they are at. When the interpreter ends, calls under
    way get five seconds, so that one that is stuck does not hold up Ctrl-C for ever.

    Args:
        most: The largest number of threads, 1 or more.

    Attributes:
        place: Stands in errors.
    """

    def __init__(self, most: int, place: str | None = None) -> None:
        if not isinstance(most, int) or most < 1:
            raise UsageError(f"concurrency is {most!r}", place=place, hint="It is the number of threads, 1 or more.")
        self.most = most
        self.place = place
        self._closed = False
        self._crews: dict[int, _Crew] = {}  # by process, since a fork takes no thread along and may leave a lock locked

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.most, self.place)

    async def run(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call in a thread. When this is cancelled, a call that has begun goes on, and one that has not never begins.

        Raises:
            BackendError: Closed.
            UnavailableError: No thread can be started.
        """
        # No variable holds the future here: an error would hold this frame, and so itself.
        return await self._crew().take(partial(copy_context().run, call, *args, **kwargs))  # type: ignore[no-any-return]

    def _crew(self) -> _Crew:
        if self._closed:
            raise _closed(self.place)
        pid = os.getpid()
        return self._crews.get(pid) or self._crews.setdefault(pid, _Crew(self.most, self.place, pid))

    async def close(self, last: Callable[[], object]) -> None:
        """Take no more calls, let those that were taken finish, and then call `last`, even when this is cancelled."""
        self._closed = True
        crew = self._crews.get(os.getpid())
        threads = [] if crew is None else crew.dismiss()

        def finish() -> None:
            for thread in threads:
                thread.join()
            last()

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        # Not in one of the threads it waits for, and not in the loop's executor, whose end a cancelled main task waits for.
        threading.Thread(target=_tell, args=(loop, future, finish), name="perdure-aio-close", daemon=True).start()
        await future


class _Crew:
    """The threads of one process."""

    def __init__(self, most: int, place: str | None, pid: int) -> None:
        self.pid = pid
        self._most = most
        self._place = place
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False
        weakref.finalize(self, _send_home, self._jobs, self._threads).atexit = False
        _alive.add(self)

    def take(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            if self._closed:
                raise _closed(self._place)
            if self._unfinished >= len(self._threads) < self._most:
                self._start()
            self._unfinished += 1
            self._jobs.put((self, loop, future, work))
        return future

    def _start(self) -> None:
        thread = threading.Thread(target=_serve, args=(self._jobs,), name="perdure-aio", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if self._threads:
                return  # those that are there do it
            text = "no thread can be started"
            raise UnavailableError(text, place=self._place, hint="This process has as many as it is allowed.") from error
        self._threads.append(thread)

    def finished(self) -> None:
        with self._lock:
            self._unfinished -= 1

    def dismiss(self) -> list[threading.Thread]:
        """Take no more jobs, and return the threads, which end after those that were taken."""
        with self._lock:
            if not self._closed:
                self._closed = True
                _send_home(self._jobs, self._threads)
            return list(self._threads)


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        crew, loop, future, work = job
        if future.cancelled() or loop.is_closed():
            crew.finished()  # nobody waits, and it has not begun
        else:
            _tell(loop, future, work, crew.finished)
        del job, crew, loop, future, work  # else they would live until the next job comes


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    work: Callable[[], Any],
    before: Callable[[], object] = lambda: None,
) -> None:
    answer, error = _outcome(work)
    try:
        before()
        loop.call_soon_threadsafe(_settle, future, answer, error)
    except RuntimeError:
        if not loop.is_closed():  # then nobody waits any more
            raise
    finally:
        del future, work, answer, error  # an error holds the frames it came through, and this one would hold the error


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except StopIteration as error:  # no coroutine can raise it, and a future that is given it never ends
        substitute = RuntimeError(f"{error!r} was raised")
        substitute.__cause__ = error
        return None, substitute
    except BaseException as error:
        return None, error


def _settle(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():
        return  # cancelled meanwhile
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)


def _send_home(jobs: SimpleQueue[_Job | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)


def _closed(place: str | None) -> BackendError:
    return BackendError("this dict was closed", place=place, hint="Open it again.")


@atexit.register
def _wait_for_the_last_calls() -> None:
    until = time.monotonic() + _GRACE
    for crew in [crew for crew in _alive if crew.pid == os.getpid()]:
        for thread in crew.dismiss():
            thread.join(max(0.0, until - time.monotonic()))
