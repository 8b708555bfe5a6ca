"""`perdure.aio.open`: from a URL, a path or a backend to a dict for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ..codecs.chain import MAX_BYTES
from ..mapping import opening
from .dict import THREADS, AsyncPersiDict, _again
from .threads import Threads

if TYPE_CHECKING:
    from ..codecs import Codec, Filter
    from ..mapping.dict import PersiDict
    from ..protocol import Backend

V = TypeVar("V")


@overload
def open(
    where: str | os.PathLike[str] | Backend,
    *,
    value_type: type[V],
    codec: str | Codec | None = None,
    filters: str | Filter | Iterable[str | Filter] = (),
    trusted: bool = False,
    append_only: bool = False,
    base_class_for_values: type[Any] | None = None,
    max_bytes: int = MAX_BYTES,
    cache: str | os.PathLike[str] | Backend | None = None,
    concurrency: int = THREADS,
    **options: Any,
) -> Opening[V]: ...
@overload
def open(
    where: str | os.PathLike[str] | Backend,
    *,
    value_type: Any = None,
    codec: str | Codec | None = None,
    filters: str | Filter | Iterable[str | Filter] = (),
    trusted: bool = False,
    append_only: bool = False,
    base_class_for_values: type[Any] | None = None,
    max_bytes: int = MAX_BYTES,
    cache: str | os.PathLike[str] | Backend | None = None,
    concurrency: int = THREADS,
    **options: Any,
) -> Opening[Any]: ...
def open(where: str | os.PathLike[str] | Backend, *, concurrency: int = THREADS, **arguments: Any) -> Opening[Any]:
    """Open a dict for asyncio: `async with perdure.aio.open(...) as d`, or `d = await perdure.aio.open(...)`.

    Args:
        where: A folder, a URL or a backend, as in `perdure.open`.
        concurrency: How many calls run at once, each in a thread; further ones wait. A backend that keeps connections takes
            its own number in the URL: `s3://bucket/prefix?concurrency=64`.
        **arguments: All that `perdure.open` takes: `value_type`, `codec`, `filters`, `trusted`, `append_only`,
            `base_class_for_values`, `max_bytes`, `cache`, and options of the backend.

    Returns:
        What gives the dict when it is awaited; nothing is opened before. Opening runs in a thread, too. When it is cancelled,
        what was opened is closed.

    Raises (when it is awaited):
        UsageError: `concurrency` is not a number of 1 or more.
        Everything else: as `perdure.open`.
    """
    ours = isinstance(where, (str, os.PathLike))
    return Opening(partial(opening.open, where, **arguments), concurrency, ours=ours)


class Opening(Generic[V]):
    """A dict that is opened when it is awaited, or entered by `async with`, which closes it in the end."""

    def __init__(self, make: Callable[[], PersiDict[V]], concurrency: int, *, ours: bool) -> None:
        self._make = make
        self._concurrency = concurrency
        self._ours = ours  # a backend that was passed in stays open, whatever happens
        self._dict: AsyncPersiDict[V] | None = None

    def __await__(self) -> Generator[Any, Any, AsyncPersiDict[V]]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncPersiDict[V]:
        self._dict = await self._open()
        return self._dict

    async def __aexit__(self, *exc_info: object) -> None:
        if self._dict is not None:
            await self._dict.close()

    async def _open(self) -> AsyncPersiDict[V]:
        threads = Threads(self._concurrency)
        opened: list[PersiDict[V]] = []
        given_up: list[bool] = []

        def make() -> None:
            opened.append(self._make())
            if given_up and self._ours:
                opened[0].close()

        try:
            await Threads(1).run(make)
        except asyncio.CancelledError:
            given_up.append(True)  # whoever comes second, this or the thread, sees the other, and closes; both is fine
            if opened and self._ours:
                opened[0].close()
            raise
        threads.place = opened[0].backend.place
        return _again(AsyncPersiDict, opened[0], threads)
