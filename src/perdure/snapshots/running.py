"""A loop that lasts: it goes on where the newest snapshot was, saves when it is time, and once more when it has to end."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ..durations import Duration, seconds
from ..errors import UsageError, UsageTypeError
from .conditions import AnyCondition, Metadata, PeriodicSaveCondition, SaveCondition, condition_of, step_of
from .manifest import Snapshot
from .metadata import check_metadata
from .preemption import SIGNALS, AnySignals, Preemption, deadline_of

_log = logging.getLogger("perdure.snapshots")

DEFAULT_INTERVAL = 600.0
"""Seconds between saves, where nothing else is said."""


class Saving(Protocol):
    """A save in the background."""

    def wait(self, timeout: float | None = None) -> Path:
        """Wait until it is done, and raise what it raised."""
        ...


class Saves(Protocol):
    """What `Running` needs of a `StateStore`."""

    active_run: Running | None

    def save_state(self, metadata: Mapping[str, Any] | None = None) -> Path:
        """Save now."""
        ...

    def save_if_changed(self, metadata: Mapping[str, Any] | None = None) -> Path:
        """Save now, unless the newest snapshot is the same."""
        ...

    def save_async(self, metadata: Mapping[str, Any] | None = None) -> Saving:
        """Copy the state now, and save the copy in the background."""
        ...

    def wait(self) -> None:
        """Wait until no save is under way, and raise what it raised."""
        ...

    def load_latest(self) -> Snapshot | None:
        """Load the newest valid snapshot; `None` where there is none."""
        ...

    def snapshots(self) -> list[Snapshot]:
        """All complete snapshots, the oldest first."""
        ...


class Running:
    """The time during which a store saves by itself, each time the program says that its state is consistent.

    ::

        with checkpoint.running(every="10 min") as run:
            for step in range(run.step, 1000):
                train(step)
                run.tick({"step": step, "loss": loss})

    Entering loads the newest valid snapshot. A signal that would end the program waits for the next `tick`, which saves and
    then lets it act; see `Preemption`. Leaving by the end of the block makes a final save, ticked or not, with the metadata of
    the last tick, or else of the snapshot that was loaded, or none; leaving by an exception makes none, as the state may be
    half changed. A child made by `fork` never saves.

    Args:
        store: What saves.
        every: How often to save: seconds, text such as `"10 min"`, or a timedelta; infinity is only at the end.
        condition: When to save besides: a save condition, or a function of the metadata. Without this and `every`, it is every
            ten minutes. If it remembers nothing yet, it learns from the metadata of the snapshot that is loaded, and of those
            before it.
        background: Wait only until the state is copied, not until it is written. A save waits for the one before it.
        deadline: How long after a signal the program may go on, the final save included, in seconds or as text; more than 0.
            What was not saved by then is lost; the snapshots before are not.
        final: Save at the end, and before a signal acts.
        signals: Whether to let signals wait, or which ones, as for `Preemption`; `False` also works outside the main thread.
        load: Load the newest snapshot on entering.

    Attributes:
        resumed: The snapshot that was loaded, or `None`.
        condition: What says when to save.

    Raises:
        UsageError: One of these is wrong.

    Thread safety: `tick` is called by one thread at a time, as nobody else may change the state meanwhile.
    """

    def __init__(
        self,
        store: Saves,
        *,
        every: Duration | None = None,
        condition: AnyCondition | None = None,
        background: bool = True,
        deadline: Duration = 30.0,
        final: bool = True,
        signals: bool | AnySignals = True,
        load: bool = True,
    ) -> None:
        if callable(every):
            hint = "Give it as condition=; every= takes seconds, text such as '10 min', or a timedelta."
            raise UsageTypeError(f"every= is no place for the condition {every!r:.60}", hint=hint)
        if every is None and condition is None:
            every = DEFAULT_INTERVAL
        self.resumed: Snapshot | None = None
        self._store = store
        self._interval = None if every is None else seconds(every, "every")
        self._given = None if condition is None else condition_of(condition)
        self.condition: SaveCondition = self._begun()
        self._background = background
        self._final = final
        self._load = load
        deadline = deadline_of(deadline)
        self._preemption = None if signals is False else Preemption(SIGNALS if signals is True else signals, deadline)
        self._pid = 0  # of the process that is in the block
        self._step = 0
        self._metadata: dict[str, Any] | None = None
        self._ticked = False
        self._saving: Saving | None = None
        self._start = 0.0

    def _earlier(self, last: Snapshot) -> list[Mapping[str, Any]]:
        """The metadata of the snapshots up to one. What is newer than that is damaged, so nothing of it is left."""
        return [snapshot.metadata for snapshot in self._store.snapshots() if snapshot.sequence <= last.sequence]

    def _begun(self) -> SaveCondition:
        """The condition, with an interval that begins now."""
        if self._interval is None:
            assert self._given is not None
            return self._given
        periodic = PeriodicSaveCondition(self._interval)
        return periodic if self._given is None else periodic | self._given

    @property
    def step(self) -> int:
        """The step to go on with: the one after that of the last `tick`, or of the snapshot that was loaded; else 0."""
        return self._step

    @property
    def inside(self) -> bool:
        """Whether the block is entered, and by this process."""
        return self._pid == os.getpid()

    @property
    def requested(self) -> signal.Signals | None:
        """The signal that waits for the next `tick`. A long step may look at it and end early."""
        return None if self._preemption is None else self._preemption.requested

    def __enter__(self) -> Self:
        """Load the newest snapshot, and from then on let signals wait.

        Raises:
            UsageError: The store is running already, or signals were to be taken outside the main thread.
            PerdureError: What loading raised.
        """
        if self._store.active_run is not None and self._store.active_run.inside:
            hint = "Call `tick` of the run there is, or leave its block first; without `with`, call its close()."
            raise UsageError("this store is running already", hint=hint)
        self._step, self._metadata, self._saving = 0, None, None
        self._ticked = False
        self.resumed = self._store.load_latest() if self._load else None
        if self.resumed is not None:
            self._metadata = dict(self.resumed.metadata)
            last = step_of(self._metadata)
            self._step = 0 if last is None else last + 1
            if self._given is not None:
                self._given.recall(self._earlier(self.resumed))
        self.condition = self._begun()  # what loading took is no part of the interval
        self._start = time.monotonic()
        self._store.active_run = self
        try:
            if self._preemption is not None:
                self._preemption.__enter__()
        except BaseException:
            self._store.active_run = None
            raise
        self._pid = os.getpid()
        return self

    def tick(self, metadata: Metadata = None) -> bool:
        """Say that the state is consistent now: call it at the end of each step. Saves if it is time.

        If a signal waits, it waits for the save under way, saves once more, and lets the signal act; see `Preemption.exit`.

        Args:
            metadata: What to keep with the state, as JSON has it. Without a `"step"`, the number of the step is added: one more
                than at the `tick` before.

        Returns:
            Whether a save was begun. In a forked child always `False`.

        Raises:
            UsageError: This is not inside the block, or the metadata are wrong.
            PerdureError: What saving raised, or the save in the background before it. The next `tick` tries again.
            KeyboardInterrupt: SIGINT came, and the state is saved.

        Cost: a few microseconds when it is not time to save.
        """
        if not self.inside:
            if self._pid:
                return False
            raise UsageError("tick() outside its block", hint="Call it inside `with store.running(...) as run:`.")
        self._note(metadata)
        if self._preemption is None:
            return self._save_if_due()
        begun = self._preemption.requested is None and self._save_if_due()
        if self._preemption.requested is not None:
            self._save_finally()
            begun = True
            self._preemption.exit()
        return begun

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End: save once more, unless by an exception, put the signals' handlers back, and let a signal that waits act.

        Raises:
            PerdureError: What saving raised.
        """
        if not self.inside:
            return
        ending = error
        try:
            if error is None:
                self._end_well()
            else:
                self._end_badly(error)
        except BaseException as failed:
            ending = failed
            raise
        finally:
            self._pid = 0
            self._store.active_run = None
            if self._preemption is not None:
                self._preemption.leave(ending)

    def close(self) -> None:
        """End it as the end of the block would, at a consistent point; for where there is no `with`. May be called again.

        Raises:
            UsageError: Signals were taken, and this is not the main thread, which alone can give them back.
            PerdureError: What saving raised.
            KeyboardInterrupt: SIGINT came, and the state is saved.
        """
        elsewhere = threading.current_thread() is not threading.main_thread()
        if self.inside and self._preemption is not None and elsewhere:
            raise UsageError("only the main thread can say what signals do", hint="Call close() in the main thread.")
        self.__exit__(None, None, None)

    def __repr__(self) -> str:
        inside = "inside" if self.inside else "outside"
        step = f", step {self._step - 1}" if self._step else ""
        return f"<{type(self).__name__} of {self._store!r}: saves {self._spell_when()}, {inside}{step}>"

    def _spell_when(self) -> str:
        return f"by {self.condition!r}{' and at the end' if self._final else ''}"

    def _note(self, metadata: Metadata) -> None:
        if not self._ticked:
            check_metadata(metadata)  # at the first tick, and not after the first ten minutes
        noted = dict(metadata or {})
        if noted.get("step") is None:
            noted["step"] = self._step
        self._step = (step_of(noted) or 0) + 1
        self._metadata = noted
        self._ticked = True

    def _save_if_due(self) -> bool:
        if not self.condition(self._metadata):
            return False
        try:
            self._wait_for_background()
            if self._background:
                self._saving = self._store.save_async(self._metadata)
            else:
                self._store.save_state(self._metadata)
        except BaseException:
            self.condition.retry()
            raise
        return True

    def _wait_for_background(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.wait()

    def _is_final(self) -> bool:
        return self._final

    def _save_finally(self) -> None:
        """Also when the save under way fails: that one's error is raised after the final save only."""
        lost: Exception | None = None
        try:
            self._wait_for_background()
        except Exception as error:
            lost = error
        if self._is_final():
            try:
                self._store.save_if_changed(self._metadata)
            except BaseException as error:
                if lost is not None:
                    error.add_note(f"the save in the background before it had failed as well: {lost!r}")
                raise
            if lost is not None:
                lost.add_note("a save in the background failed with this; the final save after it was completed")
        if lost is not None:
            raise lost

    def _end_well(self) -> None:
        lasted = time.monotonic() - self._start
        forgotten = not self._ticked and self._interval and lasted > self._interval
        self._save_finally()
        self._store.wait()
        if forgotten:  # said last, as a warning may be made an error
            problem = f"it ran for {lasted:.0f} s and saved nothing meanwhile, as tick() was never called"
            warnings.warn(f"{problem}. Call run.tick() at the end of each step.", RuntimeWarning, stacklevel=3)

    def _end_badly(self, error: BaseException) -> None:
        try:
            self._wait_for_background()
            self._store.wait()
        except Exception as failed:
            error.add_note(f"a save in the background failed as well: {failed!r}")
