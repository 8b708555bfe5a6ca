"""What a demo tells as it happens, on a terminal with a bar below it."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

from ..output import bar_on, console, styled
from .crew import Event


class Story:
    """Prints events, each with the seconds since the start. A subclass says in which words.

    Args:
        doing: What the bar says.
        quiet: Print nothing, only remember.
        of: The number of steps in all, if it is known.

    Attributes:
        story: All events that were noted, each with its seconds.
    """

    def __init__(self, doing: str, *, quiet: bool, of: int | None = None) -> None:
        self.story: list[Event] = []
        self._quiet = quiet
        self._console = console()
        self._began = time.monotonic()
        self._bar = bar_on(self._console) if not quiet and sys.stdout.isatty() else None
        self._task = self._bar.add_task(doing, total=of) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print a line without time."""
        if not self._quiet:
            styled(self._console, *parts)

    def _note(self, event: Event) -> None:
        seconds = round(time.monotonic() - self._began, 2)
        self.story.append({"seconds": seconds, **event})
        for number, line in enumerate(self._lines(event)):
            self.say((f"{seconds:6.1f} s  " if not number else " " * 10, "dim"), *line)

    def _advance(self, **numbers: Any) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, **numbers)

    def _lines(self, event: Event) -> list[list[str | tuple[str, str]]]:
        """How an event is told; not at all, by no lines."""
        raise NotImplementedError
