"""Listings for `async for`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import PolicyError

if TYPE_CHECKING:
    from .threads import Threads

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_ENTRIES = 256
_SECONDS = 0.005


class Stream(Generic[T_co]):
    """What `async for` goes through. Each `async for` begins anew, and may be left at any time.

    The entries come in pages: a thread collects for 5 ms, 256 entries at most, and hands over what it has, at least one.
    So a slow place is not waited for longer than for one entry, and nobody holds a whole listing.
    """

    def __init__(self, threads: Threads, listing: Callable[[], Iterable[T_co]], words: str) -> None:
        self._threads = threads
        self._listing = listing
        self._words = words

    async def __aiter__(self) -> AsyncIterator[T_co]:
        run = self._threads.run
        entries = await run(lambda: iter(self._listing()))
        async for entry in in_pages(entries, run):
            yield entry

    def __repr__(self) -> str:
        return f"<{self._words}, for `async for`>"

    if not TYPE_CHECKING:  # a type checker says so itself

        def __iter__(self) -> Any:
            raise PolicyError(f"{self._words} cannot be read without waiting", hint="Write `async for`.")


async def in_pages(entries: Iterator[T], run: Callable[..., Awaitable[Any]]) -> AsyncIterator[T]:
    """Go through an iterator whose steps take long.

    Args:
        entries: It is used in one thread at a time, though not always in the same.
        run: Calls a function with its arguments in a thread.

    Raises:
        What the iterator raises, after all the entries that came before.
    """
    more = True
    while more:
        page, more, error = await run(_page, entries)
        for entry in page:
            yield entry
        if error is not None:
            raise error


def _page(entries: Iterator[T]) -> tuple[list[T], bool, Exception | None]:
    """The next entries, whether there may be more, and what came in their place."""
    page: list[T] = []
    until = perf_counter() + _SECONDS
    try:
        for entry in entries:
            page.append(entry)
            if len(page) == _ENTRIES or perf_counter() > until:
                return page, True, None
    except Exception as error:
        return page, False, error
    return page, False, None
