"""The story of one demo, told as it happens, and its result."""

from __future__ import annotations

import platform
from typing import Any

from ..output import duration, plural, size
from .crew import Event
from .job import SUMS, Job
from .story import Story


class Report(Story):
    """The words of the demo that counts.

    Args:
        quiet: Print nothing, only remember.
        threads: Workers are threads, not processes.
    """

    def __init__(self, *, quiet: bool, threads: bool) -> None:
        super().__init__("counting", quiet=quiet)
        self._threads = threads
        self._done = 0
        self._of = 0

    def tell(self, event: Event) -> None:
        """Take note of an event, and print it."""
        if event["event"] == "progress":
            self._done = max(self._done, event["done"])
            self._advance(completed=self._done)
            return
        self._of = event.get("of", self._of)
        self._done = event.get("done", self._done)
        self._advance(total=self._of, completed=self._done)
        self._note(event)

    def _lines(self, event: Event) -> list[list[str | tuple[str, str]]]:
        kind, strong = event["event"], "bold"
        if kind == "opened":
            workers = "threads" if self._threads else "processes"
            return [[f"{event['workers']} {workers} begin to count together, with nothing in common but the dict"]]
        if kind == "started" and event["done"]:
            fresh = "coordinator" if self._threads else "process"
            return [[f"a fresh {fresh} starts with nothing but the dict, finds {event['done']:,} files done, and goes on"]]
        if kind == "killed" and event["by_us"]:
            how = "ended in the middle" if self._threads else f"killed with SIGKILL (pid {event['pid']})"
            return [
                [(f"{event['worker']} is {how}", strong), f" after it stored the counts of {event['file']},"],
                ["and before it added them to the totals: the worst moment"],
            ]
        if kind == "killed":
            return [[(f"{event['worker']} has died", strong), ", and not by our hand"]]
        if kind == "replaced":
            return [[f"{event['worker']} replaces it, and takes over its claims"]]
        if kind == "stopped":
            how = "all threads are ended" if self._threads else "SIGKILL to the coordinator and all its workers at once"
            return [[("the whole program is stopped", strong), f" with {self._done:,} of {self._of:,} files done: {how}"]]
        if kind == "finished":
            return [[f"all {event['done']:,} files are counted; now once more, plainly, to compare"]]
        return []

    def introduce(self, job: Job, durable: str) -> None:
        """Say what is about to happen, and where."""
        self.say(
            ("perdure demo", "bold"),
            f": the words in {plural(len(job.files), 'source file')} of Python {platform.python_version()}, from {job.root}",
        )
        self.say("the dict: ", (job.shared.place, "bold"))
        self.say("durable:  ", durable)
        if self._threads:
            self.say(
                "memory is shared by threads only, so threads take the place of processes, and a kill ends one in the middle"
            )

    def conclude(self, result: dict[str, Any], look: str) -> None:
        """Print the result."""
        if self._quiet:
            return
        by_hand = result["plain"]["sums"]
        self.say("")
        sides = {"totals": result["totals"], "all counts": result["counts"]["sums"], "plain count": by_hand}
        self.say(f"{'':16}", *((f"{name:>12}", "bold") for name in sides))
        for row in SUMS:
            self.say((f"{row:16}", "bold"), *(f"{sums[row]:>12,}" for sums in sides.values()))
        words = [result[side]["different_words"] for side in ("counts", "plain")]
        self.say(("different words ", "bold"), f"{'':12}", *(f"{number:>12,}" for number in words))
        self.say("")
        taken, stored = plural(result["taken_over"], "claim"), result["found_stored"]
        self.say(f"{taken} of dead workers taken over; {stored:,} of these files were stored already and only had to be added")
        verdict = ("equal", "bold green") if result["equal"] else ("NOT EQUAL", "bold red")
        seconds = duration(result["plain"]["seconds"])
        self.say(verdict, f" to a plain count in a single process ({seconds}), file by file and word by word")
        for name in result["unequal_files"][:10]:
            self.say(f"  not equal: {name}")
        self.say(f"most frequent: {', '.join(f'{word} {n:,}' for word, n in result['most_frequent'])}")
        self.say(f"{duration(result['seconds'])} in all, {size(by_hand['bytes'])} of source read", f". {look}" if look else "")
