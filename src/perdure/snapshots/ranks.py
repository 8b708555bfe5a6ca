"""One snapshot of several processes: each brings its parts, and the first makes the manifest when all have.

They agree by small records beside the snapshots, and by nothing else::

    ranks/call      by rank 0: {"round": 1000, "token": "8f...", "outcomes": {"41...": {"done": "2026....state"}}}
    ranks/3         by rank 3: {"token": "8f...", "id": ..., "parts": ...}

A round is the step that the metadata name, else how often this process has saved. Rank 0 makes up a new token for each save and
takes only answers that repeat it, so what was left by processes that were killed is never taken for a part of this one. How its
last saves ended stays in the record for those that are slow to look.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import IntegrityError, MissingRankError, NotFoundError, PerdureError, SnapshotNotFoundError, UnavailableError
from .manifest import Component, Part, Snapshot, check_id, read_part

if TYPE_CHECKING:
    from .place import Draft, Place, Report

_OUTCOMES = 8
_PAUSE = 0.02, 1.0  # seconds between two looks: at first, and in the end


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
        self._saves = 0
        self._outcomes: dict[str, dict[str, str]] = {}  # by token
        self._records, self._prefix = place.records()

    def name(self, component: str) -> str:
        """What a component of this process is called in the snapshot."""
        return f"rank-{self.rank}/{component}"

    def commit(self, draft: Draft, snapshot: Snapshot, report: Report) -> Snapshot:
        """Complete the snapshot together with all others.

        Raises:
            MissingRankError: Somebody did not come in time.
            UnavailableError: Rank 0 could not complete it.
        """
        self._saves += 1
        number = snapshot.metadata.get("step", self._saves)
        components = {name: replace(component, rank=self.rank) for name, component in snapshot.components.items()}
        snapshot = replace(snapshot, components=components)
        return (self._lead if self.first else self._follow)(draft, snapshot, number, report)

    # ------------------------------------------------------------------------------------------------------------ rank 0

    def _lead(self, draft: Draft, snapshot: Snapshot, number: object, report: Report) -> Snapshot:
        token = os.urandom(16).hex()
        call = {"round": number, "token": token, "ranks": self._size, "outcomes": self._outcomes}
        self._tell("call", call)
        try:
            components = dict(snapshot.components)
            for rank, answer in self._gather(token, number).items():
                draft.merge(*self._checked(rank, answer, components))
            snapshot = draft.commit(replace(snapshot, components=components), report)
        except BaseException as error:
            self._outcomes[token] = {"failed": str(error) or type(error).__name__}
            try:
                self._tell("call", call)
            except PerdureError as untold:
                error.add_note(f"The other ranks could not be told, and wait until their time is over: {untold}")
            raise
        self._outcomes[token] = {"done": snapshot.name}
        self._tell("call", call)
        for old in list(self._outcomes)[:-_OUTCOMES]:
            del self._outcomes[old]
        return snapshot

    def _checked(self, rank: int, answer: Mapping[str, Any], components: dict[str, Component]) -> tuple[str, list[Part]]:
        """What a rank brings: its draft and its parts, which may have been written by anybody; its components are added."""
        try:
            parts = [read_part(name, told) for name, told in answer["parts"].items()]
            if not all(part.name.startswith(f"rank-{rank}/") for part in parts):
                raise ValueError("it brings parts of others")
            for name, told in answer["components"].items():
                components[name] = Component(str(told["kind"]), tuple(map(str, told["parts"])), rank)
            return check_id(answer["id"]), parts
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problem = f"what rank {rank} says that it saved cannot be: {error}"
            raise IntegrityError(problem, key=f"ranks/{rank}", place=self._place.place, hint="Save again.") from error

    def _gather(self, token: object, number: object) -> dict[int, Any]:
        """The answers of all other ranks."""
        missing = set(range(1, self._size))
        answers: dict[int, Any] = {}
        for _ in _Looks(self._timeout):
            for rank in sorted(missing):
                answer = self._read(str(rank))
                if answer.get("token") == token:
                    answers[rank] = answer
            missing -= answers.keys()
            if not missing:
                return answers
        raise self._missing(sorted(missing), number)

    # --------------------------------------------------------------------------------------------------------- the others

    def _follow(self, draft: Draft, snapshot: Snapshot, number: object, report: Report) -> Snapshot:
        parts = draft.publish(report)
        components = {
            name: {"kind": component.kind, "parts": component.parts, "rank": component.rank}
            for name, component in snapshot.components.items()
        }
        told = {part.name: {"size": part.size, "chunks": part.chunks, "homes": part.homes} for part in parts}
        answered = None
        looks = _Looks(self._timeout)
        for _ in looks:
            call = self._read("call")
            told_before = call.get("outcomes")
            outcomes: dict[str, Any] = told_before if isinstance(told_before, dict) else {}
            outcome = outcomes.get(answered or "", {})
            if "failed" in outcome:
                problem = f"rank 0 could not complete the snapshot: {outcome['failed']}"
                raise UnavailableError(problem, place=self._place.place, hint="Save again.")
            if "done" in outcome:
                return self._taken(draft, replace(snapshot, name=outcome["done"]))
            token = call.get("token")
            if call.get("round") != number or token == answered or str(token) in outcomes:
                continue  # to be awaited, or of another time
            if call.get("ranks") != self._size:
                problem = f"rank 0 saves with {call.get('ranks')} processes, and rank {self.rank} with {self._size}"
                raise UnavailableError(problem, place=self._place.place, hint="Give all the same world_size.")
            answered = token
            self._tell(str(self.rank), {"token": token, "id": draft.id, "components": components, "parts": told})
            looks.begin()  # rank 0 is alive, and waits for others in its turn
        raise self._missing([0], number)

    def _taken(self, draft: Draft, snapshot: Snapshot) -> Snapshot:
        """Be done with what rank 0 has taken into its snapshot."""
        try:
            found = self._place.find(snapshot.name)
        except SnapshotNotFoundError:  # removed already by a keeper that keeps few
            draft.hand_over(None)
            return replace(snapshot, path=self._place.path and self._place.path / snapshot.name)
        draft.hand_over(found)
        return found

    # ------------------------------------------------------------------------------------------------------------- records

    def _missing(self, ranks: list[int], number: object) -> MissingRankError:
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        error = MissingRankError(
            f"{who} of {self._size} did not save in {self._timeout:g} s what belongs to round {number}; there is no snapshot",
            place=self._place.place,
            hint="See whether it is alive, and whether all save at the same steps.",
        )
        error.ranks = tuple(ranks)
        return error

    def _tell(self, name: str, record: Mapping[str, object]) -> None:
        self._records.put(self._prefix + name, json.dumps(record).encode())

    def _read(self, name: str) -> dict[str, Any]:
        try:
            record = json.loads(self._records.get(self._prefix + name).data)
        except (NotFoundError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}


class _Looks:
    """When to look at the records again, until the time is over."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.begin()

    def begin(self) -> None:
        """Let the time begin anew."""
        self._end = time.monotonic() + self._timeout

    def __iter__(self) -> Iterator[None]:
        pause, longest = _PAUSE
        while True:
            yield
            left = self._end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, longest)
