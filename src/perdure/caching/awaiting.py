"""Computing in a task, without holding up its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Token
from functools import partial
from math import inf
from typing import Any, TypeVar

from .. import pulse
from ..aio.threads import Threads
from ..errors import UnavailableError
from ..protocol import Backend
from .cache import Cache
from .entries import Entries, Miss
from .flights import Attempt, Flight, Outcome, further_out, within
from .running import own
from .steps import Computed, Step, Steps, steps, withdraw

__all__ = ["AsyncCache", "call_of", "run_async"]

T = TypeVar("T")
_threads = Threads(32, "the caches of this process")


async def _at_once(call: Callable[[], Any]) -> Any:
    return call()


def call_of(backend: Backend) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """What makes calls to a place: in threads, unless the place answers at once."""
    return _at_once if backend.place.startswith(("memory:", "null:")) else _threads.run


async def run_async(
    entries: Entries,
    path: str,
    factory: Callable[[], Awaitable[Any]],
    call: Callable[[Callable[[], Any]], Awaitable[Any]],
    miss: Miss = Miss.MISS,
    *,
    anew: bool = False,
) -> Any:
    """As `running.run`; `call` makes a call that may take as long as a request."""
    flights, policy = entries.flights, entries.policy
    loop = asyncio.get_running_loop()
    outside = further_out()
    needs = outside[-1].needs if outside else set()
    while True:
        attempt = Attempt()
        mine = Flight(attempt, policy, loop)
        outcome: Outcome | None = None
        inside = None
        try:
            flight = flights.join(path, mine)
            late = flight.attempt.closed or flight.policy is not policy
            needs.add(flight.attempt)
            if flight is mine:
                inside = within.set((*outside, attempt))
                outcome = await _take(steps(entries, path, miss, anew, attempt), factory, call)
        finally:
            if inside is not None:
                _leave(inside)
            if attempt.token:
                # The task is destroyed with its loop, so nothing can be awaited any more; and a request may take its time.
                _soon(partial(withdraw, entries, path, attempt))
            flights.leave(path, mine, outcome)
            attempt.over = True
            needs.discard(attempt)
        if outcome is not None:
            return entries.given(outcome)
        if outside and flight.attempt.leads_to(outside):
            needs.discard(flight.attempt)
            return await factory()
        if flight.is_abandoned():
            await call(partial(withdraw, entries, path, flight.attempt))
            flights.leave(path, flight, None)
            flight.attempt.over = True
            continue
        if not anew and (meanwhile := await call(partial(entries.meanwhile, path))) is not None:
            needs.discard(flight.attempt)
            return entries.given(meanwhile)
        entries.counts.add("waits")
        landed = await _landed(flight, policy.wait)
        needs.discard(flight.attempt)
        if not landed:
            entries.counts.add("misses")
            return await factory()
        if not (anew or late) and flight.outcome is not None:
            return own(entries, flight.outcome, path)
        miss = Miss.FAILED if miss is Miss.FAILED else Miss.MISS


def _leave(inside: Token[tuple[Attempt, ...]]) -> None:
    try:
        within.reset(inside)
    except ValueError:
        pass  # the task is destroyed by whoever collects garbage just now, in a context that is not ours


def _soon(call: Callable[[], object]) -> None:
    def once() -> bool:
        call()
        return False

    try:
        pulse.every(0.001, once, name="withdrawal of a claim")
    except UnavailableError:
        call()  # the interpreter ends


async def _landed(flight: Flight, patience: float) -> bool:
    """Wait until somebody has computed; False where that takes longer than `patience` seconds."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ring() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(ring)
        except RuntimeError:
            pass  # that loop was closed, and nobody waits in it any more

    if flight.enlist(wake):
        try:
            await asyncio.wait_for(future, None if patience == inf else patience)
        except TimeoutError:
            pass
    return flight.landed


async def _take(
    todo: Steps[Outcome], factory: Callable[[], Awaitable[Any]], call: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> Outcome:
    cancelled: asyncio.CancelledError | None = None
    try:
        step, what = next(todo)
        while True:
            try:
                if step is Step.CALL:
                    # A request that was sent cannot be taken back, and its answer says what is ours: cancellation waits.
                    task = asyncio.ensure_future(call(what))
                    cancelled = await _finish(task) or cancelled
                    result = task.result()
                elif step is Step.COMPUTE:
                    result = await _compute(factory, cancelled)
                elif cancelled is not None:
                    raise cancelled
                else:
                    result = await asyncio.sleep(what)  # type: ignore[func-returns-value]
            except GeneratorExit:
                raise
            except BaseException as error:
                step, what = todo.throw(error)
            else:
                step, what = todo.send(result)
    except StopIteration as done:
        if cancelled is not None:
            raise cancelled from None
        return done.value  # type: ignore[no-any-return]


async def _compute(factory: Callable[[], Awaitable[Any]], cancelled: asyncio.CancelledError | None) -> Computed:
    if cancelled is not None:
        return Computed(None, cancelled)
    try:
        return Computed(await factory())
    except GeneratorExit:
        raise  # the task is destroyed, and must not go on
    except BaseException as error:
        return Computed(None, error)


async def _finish(task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until a task has ended, however it did; return the cancellation of the one who waits, if there was one."""
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


class AsyncCache(Cache):
    """The same for a coroutine function: what may take as long as a request is awaited."""

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await call_of(self.opened().near)(partial(function, *args, **kwargs))

    async def peek(self, *args: Any, **kwargs: Any) -> Any:
        """As `Cache.peek`."""
        return await self._call(super().peek, *args, **kwargs)

    async def contains(self, *args: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        """As `Cache.contains`."""
        return bool(await self._call(super().contains, *args, **kwargs))

    async def invalidate(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As `Cache.invalidate`."""
        await self._call(super().invalidate, *args, **kwargs)

    async def clear(self) -> int:  # type: ignore[override]
        """As `Cache.clear`."""
        return int(await self._call(super().clear))

    async def prune(self) -> int:  # type: ignore[override]
        """As `Cache.prune`."""
        return int(await self._call(super().prune))

    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """As `Cache.refresh`."""
        entries = self.opened()
        factory = partial(self.function, *args, **kwargs)
        return await run_async(entries, self.key(*args, **kwargs), factory, call_of(entries.near), anew=True)

    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a call, computed if need be."""
        # The first time, settings of the place are read, which is a request.
        entries = self._entries or await asyncio.to_thread(self.try_to_open)
        if entries is None:
            return await self.function(*args, **kwargs)
        path = self._start + self._digest(args, kwargs)
        value = entries.hit_at_hand(path) if self._is_memory_nearest else Miss.MISS
        if not isinstance(value, Miss):
            return value
        call = call_of(entries.near)
        value = await call(partial(entries.hit, path))
        if not isinstance(value, Miss):
            return value
        if self._recorder is not None:
            self._recorder.start()
        return await run_async(entries, path, partial(self.function, *args, **kwargs), call, value)

    @property
    def _is_memory_nearest(self) -> bool:
        """Whether the nearest copies are in memory, so that to look for one takes no time worth mentioning."""
        return self._nearest.startswith("memory:")
