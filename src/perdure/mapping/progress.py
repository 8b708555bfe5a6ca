"""Showing how far long work has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from ..errors import MissingExtraError

Progress: TypeAlias = bool | Callable[[int, int | None], object]
"""`False` shows nothing, `True` a bar, a function gets the number of items done and of all items (`None`: not known)."""


@contextmanager
def reporting(
    progress: Progress, total: int | None, doing: str, *, in_bytes: bool = False
) -> Iterator[Callable[[int], object]]:
    """Give a function to be called with the number of items, or bytes, that were done since it was called last.

    Raises:
        MissingExtraError: A bar is wanted, and tqdm is not installed.
    """
    if progress is False:
        yield _ignore
    elif progress is True:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise MissingExtraError("tqdm", "progress") from error
        with tqdm(total=total, desc=doing, unit="B" if in_bytes else " items", unit_scale=in_bytes) as bar:
            yield bar.update
    else:
        done = 0

        def report(number: int) -> None:
            nonlocal done
            done += number
            progress(done, total)

        yield report


def _ignore(number: int) -> None:
    pass
