"""Users of one cache, killed with SIGKILL at random moments: no value is lost, torn or outdated, and none is computed twice."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cacher import LEASE
from ledger import ROUNDS, STUCK, lines, patience, side_by_side

from perdure.codecs.entry import BARE
from perdure.registry import open_backend

USERS = 3
KILLS = 4 * ROUNDS  # of each: with ten rounds 480 in all
_CACHER = str(Path(__file__).with_name("cacher.py"))


@dataclass
class Run:
    """One run of the function. It ended for the others when it returned, or was killed."""

    who: str
    n: int
    called: float
    began: float
    ended: float = math.inf
    killed: bool = False


@dataclass
class Invalidation:
    """It happened at some moment between the two; one whose user was killed may happen at none."""

    n: int
    began: float
    ended: float = math.inf


@dataclass
class History:
    """What all users said."""

    runs: dict[str, Run] = field(default_factory=dict)
    invalidations: dict[str, Invalidation] = field(default_factory=dict)
    answers: list[tuple[str, int, float, float]] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Take down one line."""
        what, who, *rest = line.split()
        numbers = [float(word) for word in rest]
        if what == "run":
            self.runs[who] = Run(who, int(numbers[0]), numbers[1], numbers[2])
        elif what == "end":
            self.runs[who].ended = numbers[0]
        elif what == "invalidating":
            self.invalidations[who] = Invalidation(int(numbers[0]), numbers[1])
        elif what == "invalidated":
            self.invalidations[who].ended = numbers[0]
        elif what == "got":
            self.answers.append((who, int(numbers[0]), numbers[1], numbers[2]))
        else:
            raise AssertionError(line)

    def forget(self, name: str, killed_at: float) -> None:
        """This user was killed, and with it what it was running."""
        for who, run in self.runs.items():
            if who.startswith(f"{name}/") and run.ended == math.inf:
                run.ended, run.killed = killed_at, True

    def check_answers(self) -> None:
        """Nobody gets a value that was invalidated before the call, or takes longer than to wait for some killed ones."""
        for who, n, called, answered in self.answers:
            assert answered - called < STUCK
            if who == "None":
                continue
            run = self.runs[who]
            assert run.n == n
            for bygone in self._invalidations_of(n):
                assert not (run.began < bygone.began and bygone.ended < called), f"a call of {n} got what was invalidated"

    def check_runs(self, *, evicting: bool) -> None:
        """One at a time computes a value, and nobody computes one that is there."""
        ordered = sorted(self.runs.values(), key=lambda run: (run.n, run.began))
        for one, next_one in pairwise(ordered):
            if one.n != next_one.n or one.ended - one.called > LEASE / 2:  # so slow a machine may have lost the claim
                continue
            if next_one.began < one.ended:
                assert self._was_invalidated(one.n, one.called, next_one.began), f"{one} and {next_one} at once"
        if evicting:
            return
        for who, n, _, answered in self.answers:
            if who == "None":
                continue
            value = self.runs[who]
            for run in ordered:
                if run.n == n and run.called > answered:
                    assert self._was_invalidated(n, value.called, run.began), f"{value} was lost before {run}"

    def _invalidations_of(self, n: int) -> Iterator[Invalidation]:
        return (bygone for bygone in self.invalidations.values() if bygone.n == n)

    def _was_invalidated(self, n: int, after: float, before: float) -> bool:
        return any(after <= bygone.ended and bygone.began <= before for bygone in self._invalidations_of(n))


@pytest.mark.parametrize("options", [{"invalidate": 0.0}, {"invalidate": 0.2}, {"invalidate": 0.02, "max_items": 20}], ids=str)
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_killed_users_of_a_cache(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ormsgpack")
    url = {"file": str(tmp_path / "cache"), "sqlite": f"sqlite:///{tmp_path}/cache.db"}[kind]
    limit = options.get("max_items")
    histories = [History() for _ in range(USERS)]

    def keep_killing(number: int) -> Iterator[None]:
        for life in range(KILLS):
            _let_live_and_kill(url, options, f"user{number}.{life}", histories[number])
            if limit is not None:
                assert _how_many(url) <= limit * 1.1
            yield

    side_by_side(USERS, keep_killing)

    told = History()
    for history in histories:
        told.runs |= history.runs
        told.invalidations |= history.invalidations
        told.answers += history.answers
    told.check_answers()
    told.check_runs(evicting=limit is not None)
    longest = _longest_wait(url, options)
    if limit is not None:
        assert limit / 2 < _how_many(url) <= limit
    killed = sum(run.killed for run in told.runs.values())
    print(f"{kind} {options}: {USERS * KILLS} kills, {killed} of them amid one of {len(told.runs)} runs; ", end="")
    print(f"{len(told.answers)} answers, {len(told.invalidations)} invalidations, then the longest wait {longest:.2f} s")
    assert told.runs and len(told.answers) > USERS * KILLS


def _started(what: str, url: str, options: dict[str, Any], name: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, _CACHER, what, url, json.dumps(options), name]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def _let_live_and_kill(url: str, options: dict[str, Any], name: str, history: History) -> None:
    """One life of one user, while the others go on."""
    rng = random.Random(f"{url[:6]} {options} {name}")
    child = _started("use", url, options, name)
    left = rng.randrange(2, 120)
    killed_at = math.inf
    for line in lines(child):
        history.note(line)
        left -= 1
        if left == 0:
            time.sleep(rng.random() * 0.02)  # whatever it is doing then
            child.kill()
            killed_at = time.monotonic()
    assert child.returncode == -9, "it should have gone on until it was killed"
    history.forget(name, killed_at)


def _how_many(url: str) -> int:
    """How many values there are; not the claims of those who compute one."""
    with open_backend(url) as backend:
        return sum(meta.size != BARE for meta in backend.scan() if not meta.key.startswith("stats()/"))


def _longest_wait(url: str, options: dict[str, Any]) -> float:
    """All users are dead: whoever comes then waits for each of their claims no longer than a lease."""
    longest = 0.0
    for line in lines(_started("call_all", url, options, "last")):
        what, _, took = line.split()[:3]
        if what == "took":
            longest = max(longest, float(took))
            assert longest < LEASE + patience()
    return longest
