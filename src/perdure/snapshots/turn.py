"""Whose turn it is: a store saves or loads one thing at a time, of which the end of a save may go on in a thread of its own."""

from __future__ import annotations

import os
from threading import Lock, RLock, get_ident

from ..errors import UsageError


class Turn:
    """Two locks: one for the calls of a store, and one that a save in the background takes over from the call that began it.

    Whoever asks from inside of a call, or from a signal's handler that interrupted one, is refused, as waiting would never end.
    """

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._process = os.getpid()
        self._calls = RLock()  # and not a Lock: a handler may run between two steps of `take` in the same thread
        self._inside = False
        self._under_way = Lock()
        self._background = 0  # the thread that has taken it over

    def take(self, place: str) -> None:
        """Wait until it is the caller's turn.

        Args:
            place: For the message.

        Raises:
            UsageError: The calling thread has it already.
        """
        if os.getpid() != self._process:
            self._begin_anew()  # the threads that held the locks are its parent's
        if self._background == get_ident():
            raise self._refusal(place)
        self._calls.acquire()
        if self._inside:
            self._calls.release()
            raise self._refusal(place)
        self._inside = True
        try:
            self._under_way.acquire()
        except BaseException:
            self.leave()
            raise

    def _refusal(self, place: str) -> UsageError:
        hint = "A component or policy must not save or load; to save when a signal comes, use running() or on_preemption()."
        return UsageError("this store is in the middle of saving or loading, in this very thread", place=place, hint=hint)

    def leave(self) -> None:
        """End the call, though what it began may go on."""
        self._inside = False
        self._calls.release()

    def take_over(self) -> None:
        """Say that the calling thread does the rest, and calls `end`."""
        self._background = get_ident()

    def end(self) -> None:
        """Say that what was begun is over."""
        self._background = 0
        self._under_way.release()
