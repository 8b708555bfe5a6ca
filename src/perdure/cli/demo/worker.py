"""One of several that share the work: claims a file, counts its words, stores the counts, adds them to the totals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ...errors import UnknownOutcomeError
from ...mapping.flags import ETAG_IS_THE_SAME, ITEM_NOT_AVAILABLE
from .job import Job, claim_key, count_words, counts_key, is_included

Step = Callable[..., None]
"""Called as `step("claimed" | "stored" | "added", file=..., files=...)`: where the worker is, and how many files the totals
had when it last saw them. Whatever it raises ends the worker there, as if it were killed."""


class Worker:
    """Works until no file is left that it may claim.

    Args:
        job: What to do.
        name: Unlike that of any other worker of this run.
        run: The number of this run. Claims of earlier runs are void: their workers ended with their program.
        gone: Names of workers of this run that were killed; their claims may be taken over.
        share: This worker's number and how many there are: each starts at another file, so that they rarely meet.
        step: See `Step`.
    """

    def __init__(
        self, job: Job, name: str, run: int, *, gone: Collection[str] = (), share: tuple[int, int] = (0, 1), step: Step
    ) -> None:
        self._job = job
        self._me = {"by": name, "run": run}
        self._gone = frozenset(gone)
        self._share = share
        self._step = step

    def work(self) -> None:
        """Do all that can be done."""
        number, workers = self._share
        files = self._job.files
        start = len(files) * number // workers
        totals = self._job.totals()
        for file in files[start:] + files[:start]:
            if not is_included(totals, self._job.number[file]) and self._claim(file):
                self._step("claimed", file=file, files=totals["files"])
                counts = self._store(file)
                self._step("stored", file=file, files=totals["files"])
                totals = self._add(file, counts)  # shows what the others have done meanwhile as well
                self._step("added", file=file, files=totals["files"])

    def _claim(self, file: str) -> bool:
        """Claim a file, create-only; a dead worker's claim by compare-and-swap. Of several who try, one succeeds."""
        key = claim_key(file)
        expected: Any = ITEM_NOT_AVAILABLE
        mine: dict[str, Any] = {**self._me, "after": None}
        while True:
            done = self._set_if(key, mine, expected)
            if done.condition_was_satisfied or _same(done.new_value, mine):
                return True
            theirs: Any = done.new_value
            if theirs["run"] >= mine["run"] and theirs["by"] not in self._gone:
                return False
            expected = done.actual_etag
            mine["after"] = theirs["by"]

    def _store(self, file: str) -> dict[str, Any]:
        """Store the counts of a file, create-only; returns those that are there, be it from somebody who is gone."""
        counts = {**count_words(self._job.root, file), **self._me}
        done = self._set_if(counts_key(file), counts, ITEM_NOT_AVAILABLE)
        return counts if done.condition_was_satisfied else done.new_value

    def _set_if(self, key: Any, value: dict[str, Any], expected: Any) -> Any:
        while True:
            try:
                return self._job.shared.set_item_if(key, value=value, condition=ETAG_IS_THE_SAME, expected_etag=expected)
            except UnknownOutcomeError:
                continue  # if it was written after all, the next attempt is refused and shows us our own value

    def _add(self, file: str, counts: dict[str, Any]) -> dict[str, Any]:
        while True:
            try:
                return self._job.add(file, counts)
            except UnknownOutcomeError:
                continue  # the bit will tell


def _same(theirs: Any, mine: Mapping[str, Any]) -> bool:
    return bool(theirs["by"] == mine["by"] and theirs["run"] == mine["run"])


class WorstMoment:
    """A step that lets one of all workers wait for its end between storing counts and adding them to the totals.

    Because that worker's file is not added yet, the job cannot be done before its end has come; all others go on.

    Args:
        job: Whose dict elects the one.
        name: The worker whose step this is.
        at: For each ending (`"kill"` of that worker, `"stop"` of the whole program) how many files are to be done before.
        wait: Called with the ending and the file; does not return.
    """

    def __init__(self, job: Job, name: str, at: Mapping[str, int], wait: Callable[[str, str], None]) -> None:
        self._job = job
        self._name = name
        self._at = dict(at)
        self._wait = wait

    def __call__(self, what: str, *, file: str, files: int) -> None:
        if what == "stored":
            for ending in [ending for ending, least in self._at.items() if files >= least]:
                del self._at[ending]  # only one chance for each: one is always elected
                if self._job.elect(self._name, ending, file):
                    self._wait(ending, file)
