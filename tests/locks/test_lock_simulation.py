"""Leases among simulated machines: clocks of their own, long requests, lost answers, late writes, pauses and sudden death."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from perdure.errors import PerdureError, PreconditionError, UnavailableError, UnknownOutcomeError
from perdure.locks import clock, slots, waiting
from perdure.locks.records import Records
from perdure.locks.slots import Grip, Slots
from perdure.locks.waiting import Waiting
from perdure.testing.faults import Call, Faulty
from perdure_backends.memory import MemoryBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))
TTL = 10.0


class Machine:
    """One that wants a lease: its clock began at any time and is a little fast or slow."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self.offset = dice.uniform(0, 1e6)
        self.speed = dice.uniform(0.9995, 1.0005)
        self.records = Records("lock", world.backend, "it")
        self.start()

    def start(self) -> None:
        """Begin, or begin anew after a sudden death."""
        self.slots = Slots(self.records)
        self.grip: Grip | None = None
        self.waiting: Waiting | None = None
        self.paused_until = 0.0

    def time(self, world: World) -> float:
        return self.offset + world.now * self.speed


class World:
    """All machines, and the only true time, which none of them knows."""

    def __init__(self, seed: int, limit: int) -> None:
        self.dice = random.Random(seed)
        self.limit = limit
        self.now = 0.0
        self.backend = Faulty(MemoryBackend(), self.plan)
        self.late: list[Callable[[], Any]] = []  # writes that are still on their way
        self.machines = [Machine(self, self.dice) for _ in range(4)]
        self.at = self.machines[0]  # the one whose turn it is
        self.tokens: list[int] = []

    def boot_time(self) -> float:
        return self.at.time(self)

    def believers(self) -> int:
        found = 0
        for machine in self.machines:
            # Without a look at the clock by `held`, which would be sticky.
            found += machine.grip is not None and not machine.grip.lost and machine.time(self) < machine.grip.until
        return found

    def pass_time(self) -> None:
        """Let time pass, little or much; at no moment of it may there be too many who believe."""
        for _ in range(3):
            self.now += self.dice.expovariate(1) * self.dice.choice([0.0, 0.01, 0.1, 0.5])
            if self.dice.random() < 0.004:
                self.now += self.dice.uniform(0, 2 * TTL)  # a place that is stuck
            assert self.believers() <= self.limit
            if self.late and self.dice.random() < 0.3:
                try:
                    self.late.pop(self.dice.randrange(len(self.late)))()
                except PerdureError:
                    pass  # too late
                assert self.believers() <= self.limit

    def plan(self, call: Call) -> Any:
        return self.fault

    def fault(self, call: Call, go: Callable[[], Any]) -> Any:
        self.pass_time()
        chance = self.dice.random()
        if call.name == "put" and chance < 0.3:
            if chance < 0.1:
                self.late.append(go)
            elif chance < 0.2:
                try:
                    go()
                except PreconditionError:
                    pass
            self.pass_time()
            raise UnknownOutcomeError("the answer was lost")
        if chance > 0.93:
            raise UnavailableError("out of reach")
        try:
            return go()
        finally:
            self.pass_time()

    def step(self) -> None:
        awake = [machine for machine in self.machines if machine.paused_until <= self.now]
        machine = self.at = self.dice.choice(awake or self.machines)
        self.pass_time()
        chance = self.dice.random()
        if chance > 0.9:
            machine.paused_until = self.now + self.dice.uniform(0, 2 * TTL)
            return
        try:
            if chance < 0.03:
                machine.start()
            elif machine.grip is None:
                self.wait(machine)
            elif chance < 0.8:
                machine.slots.extend(machine.grip, TTL)
            else:
                grip, machine.grip = machine.grip, None
                machine.slots.leave(grip)
        except PreconditionError:
            machine.grip = None
        except (UnavailableError, UnknownOutcomeError):
            if machine.grip is None:
                machine.waiting = None

    def wait(self, machine: Machine) -> None:
        if machine.waiting is None:
            timeout = self.dice.choice([-1.0, 5.0, 1e9])
            machine.waiting = Waiting(machine.records, machine.slots, self.limit, TTL, "", timeout)
        pause = machine.waiting.turn()
        if not pause and self.dice.random() < 0.2:
            self.pass_time()  # until an event loop hears of it
        if machine.waiting.missed():
            return
        if machine.waiting.grip is not None:
            assert machine.time(self) < machine.waiting.grip.until
            machine.grip = machine.waiting.grip
            self.tokens.append(machine.grip.token)
            assert self.tokens[-1] > max(self.tokens[:-1], default=0)
        if not pause:
            machine.waiting = None


@pytest.mark.parametrize("limit", [1, 2])
def test_there_are_never_more_who_believe_than_may_and_tokens_grow(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    acquired = 0
    for seed in range(40 * ROUNDS):
        world = World(seed, limit)
        with monkeypatch.context() as patch:
            for module in (clock, slots, waiting):
                patch.setattr(module, "boot_time", world.boot_time)
            for _ in range(400):
                world.step()
        acquired += len(world.tokens)
    assert acquired > 800 * ROUNDS  # or it would say little


def test_the_simulation_notices_a_waiter_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_DRIFT", 0.6)
    with pytest.raises(AssertionError):
        test_there_are_never_more_who_believe_than_may_and_tokens_grow(monkeypatch, 1)
