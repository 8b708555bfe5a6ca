"""What a store does for a loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ..errors import UsageError

if TYPE_CHECKING:
    from ..durations import Duration
    from .conditions import AnyCondition
    from .ranks import Ranks
    from .running import Running
    from .store import StateStore


class Looping:
    """Saves while a program runs; a part of `StateStore`."""

    _ranks: Ranks | None

    def __init__(self) -> None:
        self.active_run: Running | None = None
        """What has begun of `running` or `on_preemption`, and not ended."""

    def running(
        self,
        every: Duration | None = None,
        *,
        condition: AnyCondition | None = None,
        background: bool = True,
        deadline: Duration = 30.0,
        final: bool = True,
        signals: bool | int | str | Iterable[int | str] = True,
        load: bool = True,
    ) -> Running:
        """Do the usual thing around a loop: resume, save when it is time, and once more at the end or when a signal comes.

        ::

            with checkpoint.running(every="10 min") as run:
                for step in range(run.step, 1000):
                    train(step)
                    run.tick({"step": step, "loss": loss})

        Args:
            every: Seconds, text such as `"10 min"`, or a timedelta; by default ten minutes.
            condition: When to save besides, such as `EverySteps(1000) | OnImprovement("loss")`. After a restart it knows the
                best value and the last step of the snapshots there are.
            background: Whether to go on while a snapshot is being stored.
            deadline: How long after a signal the program may go on, the final save included; more than 0.
            final: Whether to save at the end, whether it ticked or not, and before a signal acts.
            signals: Whether SIGTERM and Ctrl-C wait for the next `tick`; or which signals do, such as `"SIGTERM"`. In a job of
                several ranks they act as ever, as the others may be at another step.
            load: Whether to load the newest snapshot on entering.

        Returns:
            A context manager; see `Running`.

        Raises:
            UsageError: An argument is wrong, or `every` is given in a job of several ranks.
        """
        from .running import Running

        if self._ranks is not None:
            if every is not None or condition is None:
                hint = "Use condition=EverySteps(n), with the step in the metadata."
                raise UsageError("several ranks save at the same steps, and each has a clock of its own", hint=hint)
            signals = False
        return Running(
            cast("StateStore", self),
            every=every,
            condition=condition,
            background=background,
            deadline=deadline,
            final=final,
            signals=signals,
            load=load,
        )

    def tick(self, metadata: Mapping[str, Any] | None = None) -> bool:
        """Say that the state is consistent now, inside of `running` or after `on_preemption`; see `Running.tick`.

        Raises:
            UsageError: It is not running.
        """
        if self.active_run is None:
            hint = "Call it inside of `with store.running(...):`, or after `store.on_preemption()`."
            raise UsageError("tick() outside of running()", hint=hint)
        return self.active_run.tick(metadata)

    def on_preemption(self, deadline: Duration = 30.0, *, signals: int | str | Iterable[int | str] | None = None) -> Running:
        """From now on, let SIGTERM and Ctrl-C wait for the next `tick`, which saves and lets them act. Else nothing is saved.

        As `running`, but without resuming, regular saves and a save at the end, unless a signal waits there. It ends with the
        block of `with store.on_preemption():`; without `with`, by `close()` of what this returns, or with the program: then a
        signal that waits acts, but nothing is saved, as the state may be half changed.

        Args:
            deadline: How long after the signal the program may go on, the final save included; more than 0.
            signals: Which signals, such as `"SIGTERM"`; by default SIGTERM and SIGINT.

        Returns:
            What has begun, and may be entered, or closed.

        Raises:
            UsageError: An argument is wrong, this is not the main thread, the store is running already, or there are several
                ranks.
        """
        from .on_preemption import OnPreemption
        from .preemption import SIGNALS

        if self._ranks is not None:
            hint = "Let the ranks agree on a step by what they communicate with, and call save_state() there."
            raise UsageError("a signal reaches each of several ranks at another step", hint=hint)
        return OnPreemption(
            cast("StateStore", self), deadline=deadline, signals=SIGNALS if signals is None else signals
        ).begin()
