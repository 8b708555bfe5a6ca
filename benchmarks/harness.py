"""Race contestants against each other, and tell what came out.

The machine is never quiet, so nobody runs alone: in every round each contestant does one short batch, in an order that
rotates, and a ratio is taken between two batches of the same round. What is reported is the median over the rounds, with
the quartiles to show the noise.
"""

from __future__ import annotations

import gc
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from statistics import median, quantiles
from typing import Any

FLOOR = "floor"


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    A batch is much shorter than the time slices of the scheduler, so most batches run through even on a busy machine, and
    the median is one of those.

    Attributes:
        rounds: Batches for each contestant.
        batch: Seconds a batch should take; at least one call is made.
        limit: Seconds for a row, after which no further round begins; a few rounds are always run.
        quick: Whether this run is for a first impression only.
    """

    rounds: int = 301
    batch: float = 0.0005
    limit: float = 3.0
    quick: bool = False


QUICK = Effort(rounds=25, batch=0.0003, limit=1.0, quick=True)
_ROUNDS_AT_LEAST = 5


@dataclass(frozen=True)
class Goal:
    """What a contestant has to reach: at most `factor` times what `of` needs, plus `plus` (in the unit of the row)."""

    who: str
    factor: float = 1.0
    of: str | None = FLOOR
    plus: float = 0.0

    def text(self, unit: str) -> str:
        """Such as "≤ 1.5 × floor"."""
        parts = []
        if self.of is not None:
            parts.append(self.of if self.factor == 1 else f"{self.factor:.3g} × {self.of}")
        if self.plus or self.of is None:
            parts.append(f"{self.plus:g} {unit}".rstrip())
        return "≤ " + " + ".join(parts)


@dataclass
class Entry:
    """What one contestant did: median and quartiles, in the unit of the row, and the ratio to the first of the row."""

    name: str
    median: float
    low: float
    high: float
    ratio: float
    more: dict[str, float | str] = field(default_factory=dict)


@dataclass
class Verdict:
    """Whether a goal was reached; measured and limit are a ratio where the goal is one, else in the unit of the row."""

    who: str
    goal: str
    measured: float
    limit: float
    reached: bool


@dataclass
class Row:
    """One workload with everybody who took part."""

    place: str
    workload: str
    unit: str
    entries: list[Entry]
    verdicts: list[Verdict]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The row as a small table."""
        lines = [f"{self.place}: {self.workload}  [{self.unit or 'number'}]"]
        for entry in self.entries:
            spread = f"  {_short(entry.low)} .. {_short(entry.high)}"
            noise = f"{spread:>19}{entry.ratio:>8.2f} ×" if entry.ratio else spread if entry.low < entry.high else ""
            more = "".join(f"  {name} {_short(value)}" for name, value in entry.more.items())
            lines.append(f"  {entry.name:<34}{_short(entry.median):>9}{noise}{more}")
        for verdict in self.verdicts:
            state = "reached" if verdict.reached else "NOT REACHED"
            lines.append(f"  {verdict.who}, {verdict.goal}: {_short(verdict.measured)} of {_short(verdict.limit)}, {state}")
        lines += [f"  ({note})" for note in self.notes]
        return "\n".join(lines)


def race(
    place: str,
    workload: str,
    contestants: Mapping[str, Callable[[Any], object]],
    arguments: Sequence[Any],
    effort: Effort,
    *,
    own: Mapping[str, Sequence[Any]] | None = None,
    goals: Sequence[Goal] = (),
    unit: str = "µs",
    per: int = 1,
    notes: Sequence[str] = (),
) -> Row:
    """Let contestants do the same work in turn.

    Args:
        place: Such as `"file"`.
        workload: What is done, in a few words.
        contestants: Functions of one argument. The first is what ratios are taken to, usually named `FLOOR`.
        arguments: What they are called with, over and over; usually keys.
        effort: How long.
        own: Arguments of contestants that spell the same keys in another way.
        goals: What is to be reached. A goal whose contestant is missing is left out.
        unit: `"µs"` or `"ms"`.
        per: How many items one call deals with; times are given for one.
        notes: What a reader should know.
    """
    scale = {"µs": 1e6, "ms": 1e3}[unit] / per
    calls = {name: _plan(call, (own or {}).get(name, arguments), effort) for name, call in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    try:
        for number in range(effort.rounds):
            if number >= _ROUNDS_AT_LEAST and time.perf_counter() - began > effort.limit:
                break
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                samples[name].append(_time(contestants[name], calls[name]) * scale)
            if number % 64 == 63:
                gc.collect()
    finally:
        gc.enable()
    return judge(place, workload, unit, samples, goals, notes=notes)


def _plan(call: Callable[[Any], object], arguments: Sequence[Any], effort: Effort) -> list[Any]:
    """Warm up, and choose arguments for one batch, as many as fit into the time a batch should take."""
    once = list(arguments[: 1 + len(arguments) // 20])
    each = min(_time(call, once) for _ in range(3))
    return list(islice(cycle(arguments), max(1, int(effort.batch / each))))


def _time(call: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    clock = time.perf_counter
    each = getattr(call, "each", None)
    if each is not None:  # coroutines: see `awaited`
        began = clock()
        each(arguments)
        return (clock() - began) / len(arguments)
    began = clock()
    for argument in arguments:
        call(argument)
    return (clock() - began) / len(arguments)


def judge(
    place: str,
    workload: str,
    unit: str,
    samples: Mapping[str, Sequence[float]],
    goals: Sequence[Goal] = (),
    *,
    more: Mapping[str, dict[str, float | str]] | None = None,
    notes: Sequence[str] = (),
) -> Row:
    """Make a row of samples, one list for each contestant with one sample for each round; the first is the measure."""
    first = next(iter(samples.values()))
    entries = []
    for name, taken in samples.items():
        low, middle, high = quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else [taken[0]] * 3
        entries.append(Entry(name, middle, low, high, _ratio(taken, first), (more or {}).get(name, {})))
    verdicts = [_judge(goal, samples, unit) for goal in goals if goal.who in samples and goal.of in (None, *samples)]
    return Row(place, workload, unit, entries, verdicts, list(notes))


def _ratio(taken: Sequence[float], first: Sequence[float]) -> float:
    """The median of the ratios within each round: what slows a whole round down drops out."""
    pairs = [(a, b) for a, b in zip(taken, first, strict=False) if b]
    return median(a / b for a, b in pairs) if pairs else 0.0


def _judge(goal: Goal, samples: Mapping[str, Sequence[float]], unit: str) -> Verdict:
    mine = samples[goal.who]
    if goal.of is not None and not goal.plus:
        measured, limit = _ratio(mine, samples[goal.of]), goal.factor
    else:
        measured = median(mine)
        limit = goal.plus + (goal.factor * median(samples[goal.of]) if goal.of is not None else 0)
    return Verdict(goal.who, goal.text(unit), measured, limit, measured <= limit)


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine(folder: str) -> dict[str, str]:
    """What the figures depend on.

    Args:
        folder: Where files are written.
    """
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processors": f"{os.cpu_count()} × {_processor()}",
        "file system": _file_system(folder),
        "sqlite": sqlite3.sqlite_version,
        "load when it began": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _file_system(folder: str) -> str:
    folder = os.path.realpath(folder)
    try:
        with open("/proc/mounts", encoding="utf-8") as lines:
            mounts = [line.split()[:3] for line in lines]
    except OSError:
        return "unknown"
    above = [(len(point), kind) for _device, point, kind in mounts if f"{folder}/".startswith(point.rstrip("/") + "/")]
    return max(above)[1] if above else "unknown"


def as_json(facts: Mapping[str, str], rows: Sequence[Row], *, quick: bool) -> dict[str, Any]:
    """All of it for a program; a row has the fields of `Row`."""
    return {"format": 1, "quick": quick, "machine": dict(facts), "rows": [asdict(row) for row in rows]}
