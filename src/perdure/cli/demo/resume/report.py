"""The story of one demo, told as it happens, and its result."""

from __future__ import annotations

import sys
import time
from typing import Any

from ...output import bar_on, console, duration, plural, size, styled
from ...sparkline import sparkline
from ..crew import Event

_DIGITS = 16  # of a digest, for people


class Report:
    """Prints what happens, on a terminal with a bar below it.

    Args:
        quiet: Print nothing, only remember.
        steps: How many steps a training has.

    Attributes:
        story: All events but single steps, each with the seconds since the start.
        last: The last step that was told of, with loss and accuracy.
    """

    def __init__(self, *, quiet: bool, steps: int) -> None:
        self._quiet = quiet
        self._console = console()
        self._began = time.monotonic()
        self._steps = steps
        self.story: list[Event] = []
        self.last: Event = {}
        self._bar = bar_on(self._console) if not quiet and sys.stdout.isatty() else None
        self._task = self._bar.add_task("training", total=steps) if self._bar else None

    def __enter__(self) -> Report:
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

    def tell(self, event: Event) -> None:
        """Take note of an event, and print it."""
        if event["event"] == "step":
            self.last = event
        if self._bar and self._task is not None and "step" in event:
            self._bar.update(self._task, completed=event["step"])
        if event["event"] in ("step", "saving"):
            return
        seconds = round(time.monotonic() - self._began, 2)
        self.story.append({"seconds": seconds, **event})
        for number, line in enumerate(self._lines(event)):
            self.say((f"{seconds:6.1f} s  " if not number else " " * 10, "dim"), *line)

    def _lines(self, event: Event) -> list[list[str | tuple[str, str]]]:
        kind, strong = event["event"], "bold"
        if kind == "started":
            return [[f"a process goes on with step {event['step']}" if event["step"] else "a process begins with step 0"]]
        if kind == "killed":
            when = "while it was saving" if event["half_saved"] else "between two saves"
            state = plural(event["whole"], "snapshot") + " there, compared byte by byte with their digests: "
            state += "all whole" if not event["damaged"] else ", ".join(event["damaged"])
            return [
                [(f"killed with SIGKILL (pid {event['pid']})", strong), f" at step {event['step']}, {when}"],
                [state if event["whole"] else "no snapshot is there yet"],
            ]
        if kind == "finished":
            right = f"{event['accuracy']:.1%} right" if "accuracy" in event else "nothing was left to do"
            return [[("done", strong), f": {self._steps} steps, {right}"]]
        if kind == "alone":
            return [["now the same once more in another place, and nobody disturbs it"]]
        return []

    def introduce(self, place: str, kills: int) -> None:
        """Say what is about to happen, and where."""
        learns = "a network learns which package of Python's own library 20 lines are from"
        self.say(("perdure demo resume", "bold"), f": {learns}")
        self.say("the snapshots: ", (place, "bold"), ", one every tenth of a second")
        if kills:
            self.say(f"it is killed {plural(kills, 'time')} at random moments, every other time soon after a save began")

    def conclude(self, result: dict[str, Any], look: str) -> None:
        """Print the result."""
        if self._quiet:
            return
        self.say("")
        sides = (f"killed {plural(result['kills'], 'time')}", "left alone")
        self.say(f"{'':10}", *((f"{side:{_DIGITS + 2}}", "bold") for side in sides))
        for name, component in result["components"].items():
            digests = (component["digest"], component["alone"])
            mark = ("  equal", "green") if component["equal"] else ("  NOT EQUAL", "bold red")
            shown = (f"{digest[:_DIGITS]:{_DIGITS + 2}}" for digest in digests)
            self.say((f"{name:10}", "bold"), *shown, f"{size(component['bytes']):>8}", mark)
        self.say("")
        plain = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
        bars = sparkline(result["history"], 40, ascii=plain)
        first, last = result["history"][0], result["history"][-1]
        self.say(f"right, of files it never learned from: {first:.1%}  {bars}  {last:.1%}")
        if result["equal"]:
            self.say(("equal bit for bit", "bold green"), ", though it was killed" if result["kills"] else "")
        else:
            self.say(("NOT EQUAL", "bold red"))
        for problem in result["damaged"]:
            self.say(f"  damaged: {problem}")
        saved = f"{plural(result['snapshots'], 'snapshot')} saved, {plural(result['kills_while_saving'], 'kill')} while saving"
        self.say(f"{duration(result['seconds'])} in all, {saved}", f". {look}" if look else "")
