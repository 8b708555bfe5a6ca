"""One snapshot of several processes: each brings its parts, and the first makes the manifest when all have.

They agree by small records beside the snapshots, and by nothing else::

    ranks/call   by rank 0: {"round": 1000, "token": "8f...", "beat": "c0...", "outcomes": {"41...": {"done": "2026....state"}}}
    ranks/3      by rank 3: {"token": "8f...", "id": "5e...", "state": "open", "parts": ...}

A round is the step that the metadata name, else how often this process has saved. For each save:

1. Rank 0 calls with a new token, and renews the call until it has told the outcome: so the others see that it lives.
2. Every other makes its parts durable and answers with the token and the id of its draft; its answer is open.
3. When all have answered, rank 0 makes each answer taken, takes in the parts, completes the snapshot, and tells the outcome,
   with the drafts that are in it. Only who finds its own there was saved.

Any process may be killed and started anew at any moment, or be started twice. So a record is only ever changed by
compare-and-swap, and

- an answer is taken or withdrawn, never both. Who gives up withdraws it first. Where that succeeds, there is no snapshot with
  its parts, and they can be removed; else nobody knows until rank 0 tells, and they stay;
- a process replaces an open answer of another with its rank, which was killed; never a taken one: what becomes of that is its
  predecessor's. Who finds its own answer replaced is one of two that are alive: it writes down that they dispute the rank, and
  rank 0 refuses the save;
- an answer whose parts are gone, as its process was killed and swept away, becomes void, and the next may answer;
- a new rank 0 writes down that a call without an outcome is lost, and one that finds its call replaced gives up.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import (
    BackendError,
    IntegrityError,
    MissingRankError,
    PerdureError,
    SnapshotNotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)
from ..protocol import Condition
from .manifest import Component, Part, Snapshot, check_id, read_part
from .rank_records import ONCE, Answer, Call, Looks, Records, outcomes_of

if TYPE_CHECKING:
    from .place import Draft, Place, Report

_BEAT = 1.0  # seconds after which a call is renewed, or sooner where little time is given
_log = logging.getLogger("perdure.snapshots")


class Ranks:
    """This process among those that save together.

    Args:
        place: Where the snapshots are.
        rank: The number of this process, from 0.
        size: How many there are.
        timeout: Seconds to wait for the others.
    """

    def __init__(self, place: Place, rank: int, size: int, timeout: float) -> None:
        self.rank = rank
        self.first = rank == 0
        self._place = place
        self._size = size
        self._timeout = timeout
        self._beat = min(_BEAT, max(timeout / 4, 0.05))
        self._saves = 0
        self._records = Records(place)

    def name(self, component: str) -> str:
        """What a component of this process is called in the snapshot."""
        return f"rank-{self.rank}/{component}"

    def commit(self, draft: Draft, snapshot: Snapshot, report: Report) -> Snapshot:
        """Complete the snapshot together with all others.

        Raises:
            MissingRankError: Somebody did not come in time.
            UnavailableError: Rank 0 could not complete it, or another process has the same rank.
            UnknownOutcomeError: Rank 0 has taken the parts, and did not say what became of them.
        """
        self._saves += 1
        number = snapshot.metadata.get("step", self._saves)
        components = {name: replace(component, rank=self.rank) for name, component in snapshot.components.items()}
        snapshot = replace(snapshot, components=components)
        return (self._lead if self.first else self._follow)(draft, snapshot, number, report)

    def _lead(self, draft: Draft, snapshot: Snapshot, number: object, report: Report) -> Snapshot:
        call = Call(self._records, self._beat)
        committing = False
        try:
            call.begin({"round": number, "ranks": self._size})
            components = dict(snapshot.components)
            drafts = self._collect(call, draft, components, number)
            committing = True
            snapshot = draft.commit(replace(snapshot, components=components), report)
        except BaseException as error:
            refused = isinstance(error, PerdureError) and not isinstance(error, UnknownOutcomeError)
            outcome = {"failed": str(error) or type(error).__name__, "unknown": committing and not refused}
            if isinstance(error, MissingRankError):
                outcome["missing"] = error.ranks
            try:
                call.end(outcome)
            except PerdureError as untold:
                error.add_note(f"The other ranks could not be told, and wait until their time is over: {untold}")
            raise
        try:
            call.end({"done": snapshot.name, "drafts": drafts})
        except PerdureError as error:
            _log.warning("the snapshot is saved, and the other ranks could not be told: %s", error)
        return snapshot

    def _collect(self, call: Call, draft: Draft, components: dict[str, Component], number: object) -> dict[str, str]:
        """Take in the parts of all others, and tell the ids of their drafts."""
        drafts: dict[str, str] = {}
        answers: dict[str, tuple[dict[str, Any], Condition]] = {}
        ranks = [str(rank) for rank in range(1, self._size)]
        for _ in Looks(self._timeout):
            if call.replaced_by:
                raise self._twice(0, call.replaced_by)
            for rank in ranks:
                if rank in drafts or rank in answers:
                    continue
                answer, seen = self._records.read(rank)
                if answer.get("token") == call.token and answer.get("state") == "disputed":
                    raise self._twice(int(rank), answer.get("process"))
                if answer.get("token") == call.token and answer.get("state") == "open":
                    answers[rank] = answer, seen
            # Not one before all are there: until it is taken, an answer can be withdrawn, and given to another call.
            if len(drafts) + len(answers) == len(ranks):
                for rank, (answer, seen) in answers.items():
                    if self._take(rank, answer, seen, draft, components):
                        drafts[rank] = answer["id"]
                answers.clear()  # what could not be taken has changed
            if len(drafts) == len(ranks):
                return drafts
        raise self._missing([int(rank) for rank in ranks if rank not in drafts and rank not in answers], number)

    def _take(self, rank: str, answer: dict[str, Any], seen: Condition, draft: Draft, components: dict[str, Component]) -> bool:
        """Take in what a rank brings, unless its answer is another one now, or its parts are gone."""
        origin, parts, its = self._checked(int(rank), answer)
        mark = {name: answer.get(name) for name in ("token", "id", "process")}
        version = self._records.swap(rank, mark | {"state": "taken"}, seen)
        if version is None:
            return False
        try:
            draft.merge(origin, parts)
        except BackendError as error:
            if error.errno != errno.ENOENT:
                raise
            self._records.swap(rank, mark | {"state": "void"}, version)
            return False
        components.update(its)
        return True

    def _checked(self, rank: int, answer: Mapping[str, Any]) -> tuple[str, list[Part], dict[str, Component]]:
        """What a rank brings, its draft, parts and components, which may have been written by anybody."""
        try:
            parts = [read_part(name, told) for name, told in answer["parts"].items()]
            components = {
                name: Component(str(told["kind"]), tuple(map(str, told["parts"])), rank, str(told.get("of", "")))
                for name, told in answer["components"].items()
            }
            if not all(name.startswith(f"rank-{rank}/") for name in [*components, *(part.name for part in parts)]):
                raise ValueError("it brings parts of others")
            return check_id(answer["id"]), parts, components
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problem = f"what rank {rank} says that it saved cannot be: {error}"
            raise IntegrityError(problem, key=f"ranks/{rank}", place=self._place.place, hint="Save again.") from error

    def _follow(self, draft: Draft, snapshot: Snapshot, number: object, report: Report) -> Snapshot:
        parts = draft.publish(report)
        answer = Answer(self._records, str(self.rank), draft.id, snapshot.components, parts)
        try:
            name = self._await(answer, number)
            found = self._found(name, parts)
        except BaseException:
            withdrawn = False
            try:
                withdrawn = answer.withdraw()
            finally:
                if not withdrawn:
                    draft.hand_over(None)  # perhaps they are in a snapshot: then nobody may remove them
            raise
        draft.hand_over(found)
        if found is None:  # removed already by a keeper that keeps few
            return replace(snapshot, name=name, path=self._place.path and self._place.path / name)
        return found

    def _await(self, answer: Answer, number: object) -> str:
        """Answer the call for this round, and return the name of the snapshot that rank 0 has made of it."""
        looks = Looks(self._timeout)
        last: Condition = None
        mine: dict[str, Any] = {}
        alive = ""  # the token of a call that was renewed since this process looks
        theirs = ""  # the token of a call that another process with this rank has answered, which may be taken
        for _ in looks:
            call, version = self._records.read("call")
            mine, seen = self._records.read(str(self.rank))
            token, outcomes = str(call.get("token")), outcomes_of(call)
            if last not in (None, version):
                alive = token
                if token in (answer.token, theirs):
                    looks.begin(2 * self._beat)  # rank 0, whose time is over at the same moment, is to be heard
            last = version

            outcome = outcomes.get(answer.token or theirs, {})
            if "failed" in outcome:
                raise self._failed(outcome, number)
            if "done" in outcome:
                drafts = outcome.get("drafts")
                if not isinstance(drafts, dict) or drafts.get(str(self.rank)) != answer.id:
                    raise self._twice(self.rank, mine.get("process"))
                return str(outcome["done"])

            taken = mine.get("state") == "taken"
            if answer.token and mine.get("token") == answer.token and mine.get("id") != answer.id:
                if mine.get("state") == "open":
                    answer.dispute(seen)
                raise self._twice(self.rank, mine.get("process"))
            if taken and mine.get("id") == answer.id:
                if outcome:
                    raise self._unknown("rank 0 was started anew")
                continue

            if "token" not in call or call.get("round") != number or token in outcomes or token == answer.token:
                continue  # to be awaited, or of another time
            if call.get("ranks") != self._size:
                if alive == token:  # and not of a job of another size that was killed
                    problem = f"rank 0 saves with {call.get('ranks')} processes, and rank {self.rank} with {self._size}"
                    raise UnavailableError(problem, place=self._place.place, hint="Give all the same world_size.")
            elif (taken and mine.get("token") == token) or not answer.give(token, seen):
                theirs = token
            elif alive == token:
                looks.begin(2 * self._beat)
        if theirs and not answer.token:
            raise self._twice(self.rank, mine.get("process"))
        if not answer.withdraw():
            raise self._unknown(f"rank 0 was not heard of for {self._timeout:g} s")
        raise self._missing([0], number)

    def _found(self, name: str, parts: Sequence[Part]) -> Snapshot | None:
        """The snapshot, in which all parts are this process's own; `None` where it is gone already."""
        try:
            found = self._place.find(name)
        except SnapshotNotFoundError:
            return None
        for part in parts:
            there = found.parts.get(part.name)
            if there is None or (there.size, there.chunks) != (part.size, part.chunks):
                raise self._twice(self.rank, None)
        return found

    def _missing(self, ranks: list[int], number: object) -> MissingRankError:
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        what = f"did not save in {self._timeout:g} s what belongs to round {number}; this save made no snapshot"
        hint = "See whether it is alive, and whether all save at the same steps."
        error = MissingRankError(f"{who} of {self._size} {what}", place=self._place.place, hint=hint)
        error.ranks = tuple(ranks)
        return error

    def _failed(self, outcome: Mapping[str, Any], number: object) -> PerdureError:
        """What rank 0 has told of its failure."""
        missing = outcome.get("missing")
        if isinstance(missing, list) and missing and all(isinstance(rank, int) for rank in missing):
            return self._missing(missing, number)
        if outcome.get("unknown"):
            return self._unknown(f"rank 0 failed when it completed the snapshot: {outcome['failed']}")
        problem = f"rank 0 could not complete the snapshot: {outcome['failed']}"
        return UnavailableError(problem, place=self._place.place, hint="Save again.")

    def _unknown(self, why: str) -> UnknownOutcomeError:
        problem = f"{why}; it is unknown whether the snapshot was completed"
        hint = "`perdure snapshots` lists it if it was; it is whole then."
        return UnknownOutcomeError(problem, place=self._place.place, hint=hint)

    def _twice(self, rank: int, process: object) -> UnavailableError:
        who = f" ({process:.80})" if isinstance(process, str) else ""
        problem = f"another process with rank {rank}{who} took part in this save"
        return UnavailableError(problem, place=self._place.place, hint=ONCE)
