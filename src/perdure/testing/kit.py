"""What every part of the contract stands on: how the backend under test is opened, and what it can do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ..protocol import Backend

E = TypeVar("E", bound=BaseException)


class Kit:
    """Base of all parts. A subclass supplies `open`, and sets the flags that are not as here.

    Attributes:
        keeps: What is put can be read back. Where not (`null:`), only the promises that remain are tested.
        processes: Another process that opens the same place sees the same values.
        forks: A forked child may go on with the handle it inherited.
        longest_segment: The most lower-case letters a segment may have here; one more must be refused.
        longest_key: The most characters a whole key may have here; `None` where only segments are limited.
        big: Size of the largest value that is tried, in bytes.
        pace: What numbers of rounds are multiplied with: below 1 for a slow place. `PERDURE_ROUNDS` comes on top.
    """

    keeps: bool = True
    processes: bool = True
    forks: bool = True
    longest_segment: int = 253
    longest_key: int | None = None
    big: int = 1 << 20
    pace: float = 1.0

    def open(self, where: Path) -> Backend:
        """Return a new handle on the place that belongs to `where`: the same place whenever `where` is the same.

        Also called in other processes, with a pickled copy of `self`: what a fixture must hand over (such as the port of
        a server) it sets as a plain attribute of `self`.

        Args:
            where: A path that does not exist yet and is unique to one test; its parent does exist.
        """
        raise NotImplementedError("say how to open the backend: def open(self, where): return MyBackend(where)")

    def rounds(self, count: int) -> int:
        """How often to repeat what a default run does `count` times."""
        return max(2, int(count * self.pace * int(os.environ.get("PERDURE_ROUNDS", "1"))))

    @pytest.fixture
    def where(self, tmp_path: Path) -> Path:
        """The place of this test."""
        return tmp_path / "place"

    @pytest.fixture
    def another(self, where: Path) -> Iterator[Callable[[], Backend]]:
        """Opens one more handle on the place of this test."""
        handles: list[Backend] = []

        def open_another() -> Backend:
            handles.append(self.open(where))
            return handles[-1]

        yield open_another
        for handle in handles:
            handle.close()

    @pytest.fixture
    def handle(self, another: Callable[[], Backend]) -> Backend:
        """A backend of any kind, for what even a place that keeps nothing promises."""
        return another()

    @pytest.fixture
    def backend(self, handle: Backend) -> Backend:
        """A backend that keeps what it is given."""
        if not self.keeps:
            pytest.skip("this place keeps nothing")
        return handle


def refused(kind: type[E], what: str, call: Callable[..., object], *args: Any, **options: Any) -> E:
    """Return the exception of class `kind` that the call raises; fail, saying `what` was tried, when it does not."""
    try:
        answer = call(*args, **options)
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{what}: raised {error!r}, and {kind.__name__} was due") from error
    raise AssertionError(f"{what}: answered {answer!r:.200}, and {kind.__name__} was due")


def contents(backend: Backend) -> dict[str, bytes]:
    """Everything there is, read key by key."""
    keys = list(backend.keys())
    return {key: backend.get(key).data for key in keys}
