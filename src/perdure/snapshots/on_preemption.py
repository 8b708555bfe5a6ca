"""Signals that wait for a consistent point, and nothing else of what `running` does."""

from __future__ import annotations

import atexit
import logging
import math
from types import TracebackType
from typing import Self

from ..durations import Duration
from .preemption import SIGNALS, AnySignals
from .running import Running, Saves

_log = logging.getLogger("perdure.snapshots")


class OnPreemption(Running):
    """Signals wait for the next `tick` or the end, which saves and lets them act. It loads nothing, and else saves nothing.

    `StateStore.on_preemption` makes and begins it. It ends with its `with`, by `close`, or with the program: then a signal that
    waits acts, but nothing is saved, as nobody has said that the state is consistent.

    Args:
        store: What saves.
        deadline: As for `Running`.
        signals: Which ones, as for `Preemption`.

    Raises:
        UsageError: One of these is wrong.
    """

    def __init__(self, store: Saves, *, deadline: Duration = 30.0, signals: AnySignals = SIGNALS) -> None:
        super().__init__(store, every=math.inf, deadline=deadline, signals=signals, load=False)
        self._begun_by_call = False

    def begin(self) -> Self:
        """Take the signals now; entering may follow.

        Raises:
            UsageError: The store is running already, or this is not the main thread.
        """
        super().__enter__()
        self._begun_by_call = True
        atexit.register(self._end_with_program)
        return self

    def __enter__(self) -> Self:
        """Take the signals, if that was not done yet. Raises as `begin`."""
        if self._begun_by_call and self.inside:
            self._begun_by_call = False
            return self
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End as any run, but save only if a signal waits."""
        atexit.unregister(self._end_with_program)
        super().__exit__(kind, error, trace)

    def _spell_when(self) -> str:
        return "when a signal came"

    def _is_final(self) -> bool:
        return self.requested is not None

    def _end_with_program(self) -> None:
        if not self.inside or self._preemption is None:
            return
        if self.requested is not None:
            _log.warning("%s came after the last tick, and the program ended: nothing was saved for it", self.requested.name)
            try:
                self._store.wait()
            except Exception:  # whatever it is, the program ends here and the signal has to act: it is told, and that is all
                _log.exception("a save in the background failed as well")
        self._pid = 0
        self._store.active_run = None
        self._preemption.leave_program()
