"""Libraries for asyncio: how they take part beside functions that are simply called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from . import contestants

_NOTE = "py-key-value: awaited, call after call, by one task of a running loop"


class Loop:
    """An event loop with one task that awaits whatever it is given.

    A task for each call would cost more than the call, and some libraries start threads for each task.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._batches: asyncio.Queue[tuple[Callable[[Any], Awaitable[object]], Iterable[Any], asyncio.Future[None]]]
        self._batches = asyncio.Queue()
        self._task = self._loop.create_task(self._work())

    async def _work(self) -> None:
        while True:
            call, arguments, done = await self._batches.get()
            try:
                for argument in arguments:
                    await call(argument)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def each(self, call: Callable[[Any], Awaitable[object]], arguments: Iterable[Any]) -> None:
        """Await a call for each argument, one after another."""
        done = self._loop.create_future()
        self._batches.put_nowait((call, arguments, done))
        self._loop.run_until_complete(done)

    def close(self) -> None:
        self._task.cancel()
        self._loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        self._loop.close()


class Awaited:
    """A coroutine function as a contestant: called like any other, and for a whole batch at once by the harness."""

    def __init__(self, loop: Loop, call: Callable[[Any], Awaitable[object]]) -> None:
        self._loop, self._call = loop, call

    def __call__(self, argument: Any) -> None:
        self._loop.each(self._call, (argument,))

    def each(self, arguments: Sequence[Any]) -> None:
        """What the harness calls for a batch."""
        self._loop.each(self._call, arguments)


class KeyValue:
    """A store of py-key-value as contestants.

    Attributes:
        get: Of a key.
        set: Of a key, a small dict.
        set_many: Of keys, a small dict each, by its `put_many`.
    """

    def __init__(self, stack: ExitStack, store: Any) -> None:
        loop = Loop()
        stack.callback(loop.close)
        value = contestants.VALUE
        self.get = Awaited(loop, store.get)
        self.set = Awaited(loop, lambda key: store.put(key, value))
        self.set_many = Awaited(loop, lambda keys: store.put_many(keys, [value] * len(keys)))


def disk_store(stack: ExitStack, path: str, notes: list[str], **settings: Any) -> KeyValue | None:
    """py-key-value's DiskStore, which is diskcache inside and so SQLite, or `None` and a note; settings are diskcache's."""
    module = contestants.optional("key_value.aio.stores.disk", notes, "py-key-value-aio[disk]")
    cache = contestants.diskcache(stack, path, notes, eviction_policy="none", **settings)
    if module is None or cache is None:
        return None
    notes.append(f"{_NOTE}; its DiskStore keeps JSON in diskcache, and its put_many puts one by one")
    return KeyValue(stack, module.DiskStore(disk_cache=cache))


def file_store(stack: ExitStack, path: str, notes: list[str]) -> KeyValue | None:
    """py-key-value's FileTreeStore, or `None` and a note."""
    module = contestants.optional("key_value.aio.stores.filetree", notes, "py-key-value-aio[filetree]")
    if module is None:
        return None
    notes.append(f"{_NOTE}; its FileTreeStore syncs the file and not its name")
    return KeyValue(stack, module.FileTreeStore(data_directory=path))
