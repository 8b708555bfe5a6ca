"""Whose turn it is: a store saves or loads one thing at a time, of which the end of a save may go on in a thread of its own."""

from __future__ import annotations

import os
from threading import RLock, get_ident
from typing import Protocol

from ..errors import UsageError


class Background(Protocol):
    """What goes on while the program does."""

    @property
    def thread(self) -> int:
        """The thread that does it, as `get_ident` tells; 0 before and after."""
        ...

    def join(self) -> None:
        """Wait until it is over."""
        ...


class Turn:
    """A lock for the calls of a store. Whoever has it waits for what an earlier call has left to go on in the background.

    Whoever asks from inside of a call, or from a signal's handler that interrupted one, is refused, as waiting would never end.
    Ctrl-C gives the lock back, as `with` takes and releases it in a single step each; a context manager in Python around it
    would not, as a generator that was interrupted may hold it until the collector comes.

    Attributes:
        background: What was left to go on; noted before it begins.
    """

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._process = os.getpid()
        self._lock = RLock()
        self.background: Background | None = None

    def lock(self, place: str) -> RLock:
        """The lock, to be taken by `with`, after which comes `settle`.

        Args:
            place: For the message.

        Raises:
            UsageError: The calling thread has it already.
        """
        if os.getpid() != self._process:
            self._begin_anew()  # the threads that hold the lock are its parent's
        background = self.background
        # Of an RLock, Python tells only by this private method who has it; a note of our own would be wrong for a moment.
        if self._lock._is_owned() or (background is not None and background.thread == get_ident()):  # type: ignore[attr-defined]  # noqa: SLF001
            problem = "this store is in the middle of saving or loading, in this very thread"
            hint = "A component or policy must not save or load; to save when a signal comes, use running() or on_preemption()."
            raise UsageError(problem, place=place, hint=hint)
        return self._lock

    def settle(self) -> None:
        """Wait for what goes on in the background."""
        if self.background is not None:
            self.background.join()
