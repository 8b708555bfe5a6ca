"""The story of one demo, told as it happens, and its result."""

from __future__ import annotations

import sys
from typing import Any

from ...output import duration, plural, size
from ...sparkline import sparkline
from ..crew import Event
from ..story import Story

_DIGITS = 16  # of a digest, for people


class Report(Story):
    """The words of the demo that trains.

    Args:
        quiet: Print nothing, only remember.
        steps: How many steps a training has.

    Attributes:
        last: The last step that was told of, with loss and accuracy.
    """

    def __init__(self, *, quiet: bool, steps: int) -> None:
        super().__init__("training", quiet=quiet, of=steps)
        self._steps = steps
        self.last: Event = {}

    def tell(self, event: Event) -> None:
        """Take note of an event, and print it, unless it is a single step."""
        if event["event"] == "step":
            self.last = event
        if "step" in event:
            self._advance(completed=event["step"])
        if event["event"] not in ("step", "saving"):
            self._note(event)

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
