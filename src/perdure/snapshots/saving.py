"""A save in the background: what the caller can do with it while it goes on."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread, get_ident

from ..errors import UnavailableError
from .turn import Turn

_log = logging.getLogger("perdure.snapshots")
_GLANCE = 0.5  # seconds
_untold: set[Saving] = set()
"""Those that failed, and nobody knows."""


@atexit.register
def _tell() -> None:
    """Let no program end as if all were well whose last snapshot is missing. By then all threads have ended."""
    for saving in _untold:
        if saving.is_of_this_process:
            _log.error("a snapshot was not stored, and nobody waited for it: %s", saving.error, exc_info=saving.error)


class Saving:
    """A snapshot that is being stored while the program goes on.

    `save_async` returns one as soon as the program may change its objects. Until `wait` has returned, or `done` says so, the
    snapshot may still fail to appear. An interpreter that ends normally waits for it.
    """

    def __init__(self, rest: Rest, turn: Turn) -> None:
        self._rest = rest
        self._path: Path | None = None
        self._error: BaseException | None = None
        self._told = False
        self._process = os.getpid()
        self.thread = 0
        # And not the end of the thread: where Ctrl-C interrupts a `join`, Python 3.11 forgets that it runs.
        self._over = Event()
        turn.background = self
        try:
            Thread(target=self._run, name="perdure-save").start()
        except RuntimeError:  # the interpreter ends, and takes no more threads
            self._run()

    def _run(self) -> None:
        self.thread = get_ident()
        try:
            self._path = self._rest()
        except BaseException as error:
            self._error = error
            if not self._rest.cancelled:  # else an exception has told it already
                _untold.add(self)
        finally:
            self.thread = 0
            self._over.set()

    def join(self) -> None:
        """Wait until it is over, however it ended, unless it was undone."""
        while not self._rest.cancelled and not self._over.wait(_GLANCE):
            pass

    @property
    def error(self) -> BaseException | None:
        """Why it failed, if it did."""
        return self._error

    @property
    def is_of_this_process(self) -> bool:
        """Not so in a forked child."""
        return os.getpid() == self._process

    @property
    def done(self) -> bool:
        """Whether it is over, well or not."""
        return self._over.is_set() or not self.is_of_this_process

    def wait(self, timeout: float | None = None) -> Path:
        """Wait until the snapshot is stored as durably as its place can.

        Args:
            timeout: Seconds to wait at most; `None` waits as long as it takes.

        Returns:
            What `save_state` would have returned.

        Raises:
            TimeoutError: It takes longer; it goes on.
            PerdureError: What went wrong, as `save_state` would have raised it. There is no snapshot then.
        """
        if not self.is_of_this_process:
            raise UnavailableError("this save is under way in the process that forked this one", hint="Wait for it there.")
        if not self._over.wait(timeout):
            raise SavingTimeoutError(f"the snapshot is not stored after {timeout:g} s", hint="Wait longer; it goes on.")
        self._told = True
        _untold.discard(self)
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path

    def surface(self) -> None:
        """Wait for it, and raise its error unless somebody was told already. In a forked child there is nothing to wait for."""
        if not self.is_of_this_process:
            return
        told = self._told
        try:
            self.wait()
        except BaseException as error:
            if not told or error is not self._error:
                raise

    def __repr__(self) -> str:
        state = "under way" if not self.done else f"failed: {self._error}" if self._error else f"stored as {self._path}"
        return f"<Saving {state}>"


class Rest:
    """What remains of a save, done by its thread, or undone by who was interrupted before that had begun; never both.

    Args:
        complete: Does it.
        abandon: Undoes what came before it.

    Attributes:
        cancelled: Whether it was undone.
    """

    def __init__(self, complete: Callable[[], Path], abandon: Callable[[], None]) -> None:
        self.cancelled = False
        self._todo = [complete]  # whoever takes it out does it: `pop` is atomic
        self._abandon = abandon

    def __call__(self) -> Path:
        """Do it.

        Raises:
            UnavailableError: It was undone.
            PerdureError: As `StateStore.save_state`.
        """
        try:
            complete = self._todo.pop()
        except IndexError:
            raise UnavailableError("this save was interrupted before it began", hint="Save again.") from None
        return complete()

    def cancel(self) -> None:
        """Undo what came before, unless the rest has begun: then it goes on."""
        try:
            self._todo.pop()
        except IndexError:
            return
        self.cancelled = True
        self._abandon()


class SavingTimeoutError(UnavailableError, TimeoutError):
    """A background save takes longer than its caller wanted to wait."""
