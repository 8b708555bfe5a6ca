"""The training as a process, and the moments at which it is killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from ....errors import BackendError
from ..crew import Event, end_of, events_of

_SPREAD = 0.8  # the last kill is wanted before this part of all steps, so that it finds the training at work
_AFTER_STEP, _AFTER_SAVING = 0.01, 0.012  # seconds: up to so long after what is waited for

ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""Environment variables for numpy: rounding depends on how many threads share a sum, and with one it is always the same."""


class Moment(NamedTuple):
    """When to kill.

    Attributes:
        step: Not before this step is done.
        saving: Whether to wait for the next save to begin, too.
        latest: The step by which it is killed without a save, or the next moment would come too late.
        delay: Seconds after what is waited for.
    """

    step: int
    saving: bool
    latest: int
    delay: float

    def has_come(self, event: Event, done: int) -> bool:
        """Whether it is this event of the training, whose last step that is done is given."""
        return done >= self.latest or (done >= self.step and event["event"] == ("saving" if self.saving else "step"))


def choose_moments(kills: int, steps: int, seed: int) -> list[Moment]:
    """One at random in each of as many equal parts of the training; every other one waits for a save."""
    dice = random.Random(seed)
    span = steps * _SPREAD / max(kills, 1)
    moments = []
    for number in range(kills):
        saving = number % 2 == 0
        delay = dice.uniform(0, _AFTER_SAVING if saving else _AFTER_STEP)
        moments.append(Moment(int((number + dice.random()) * span), saving, int((number + 1) * span), delay))
    return moments


class Program:
    """One start of the training.

    Args:
        url: Where it keeps its snapshots.
        steps: How many there are in all.

    Attributes:
        pid: The number of its process.
    """

    def __init__(self, url: str, steps: int) -> None:
        command = [sys.executable, "-m", __package__]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=os.environ | ONE_THREAD
        )
        self.pid = self._child.pid
        assert self._child.stdin is not None
        # The URL may hold secrets, which a command line would show to everybody. The child ends when this pipe is closed.
        self._child.stdin.write(json.dumps({"url": url, "steps": steps}).encode() + b"\n")
        self._child.stdin.flush()

    def run(self, moment: Moment | None, tell: Callable[[Event], object]) -> bool:
        """Let it run until it is done, or until it is time to kill it.

        Args:
            moment: When that is; `None` for never.
            tell: Called with each event: `started` (`step`: the first to do), `step` (`step`, `loss`, `accuracy`), `saving`.

        Returns:
            Whether it was done.

        Raises:
            BackendError: It failed.
        """
        done, killed = -1, False
        try:
            for event in events_of(self._child):
                if event["event"] == "failed":
                    raise BackendError(event["message"])
                tell(event)
                done = event["step"] if event["event"] == "step" else done
                if moment and not killed and moment.has_come(event, done):
                    time.sleep(moment.delay)
                    self._child.kill()
                    killed = True
        except BaseException:
            self._child.kill()
            end_of(self._child)
            raise
        status = end_of(self._child)
        if status and not killed:
            raise BackendError("the training of the demo ended with an error", hint="What it said stands above.")
        return status == 0
