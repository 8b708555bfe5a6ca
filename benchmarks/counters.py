"""Eight processes increment one number durably, as fast as they can, for a while: how fast, how fair, and is any lost?

All are started once and wait; then each contestant has its turns. A process notes how many increments it made and how long
the slowest took. The number at the end minus all of these is what was lost.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from statistics import median
from typing import Any, NamedTuple

import perdure

from . import contestants
from .floors import PRAGMAS, Files
from .harness import FLOOR, Effort, Goal, Row, Verdict, judge

PROCESSES = 8
_OURS = "perdure, transform_item"
_IN_TURNS = "by hand, in turns"


class Turn(NamedTuple):
    """What one process did in one turn."""

    done: int
    errors: int
    worst: float  # seconds
    took: float  # seconds; longer than asked for by the last increment


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure in new folders below `where`."""
    turns, seconds = (2, 0.5) if effort.quick else (5, 1.5)
    rows = []
    with contestants.folder(where) as root, _crew() as crew:
        for place, names in _CONTESTANTS.items():
            notes = [f"{PROCESSES} processes, {turns} turns of {seconds} s each; wait is the slowest single increment"]
            present = []
            for name in names:
                url = f"{root}/{place}-{names.index(name)}"
                try:
                    with closing(_number(place, name, url)) as number:
                        number.reset()
                except ImportError as error:
                    notes.append(f"{error.name} is not installed: left out. pip install {error.name}")
                else:
                    present.append((name, url))
            results: dict[str, list[list[Turn]]] = {name: [] for name, _ in present}
            for number_of_turn in range(turns):
                for name, url in present:
                    if number_of_turn and name == _ONCE:
                        continue
                    results[name].append(crew(place, name, url, seconds))
            totals = {}
            for name, url in present:
                with closing(_number(place, name, url)) as number:
                    totals[name] = number.value()
            rows.append(_row(place, results, totals, notes))
    return rows


def _row(place: str, results: dict[str, list[list[Turn]]], totals: dict[str, int], notes: list[str]) -> Row:
    samples: dict[str, list[float]] = {}
    more: dict[str, dict[str, float | str]] = {}
    for name, turns in results.items():
        samples[name] = [1e6 * max(turn.took for turn in crew) / max(1, sum(turn.done for turn in crew)) for crew in turns]
        each = [sum(turn.done for turn in process) for process in zip(*turns, strict=True)]
        done = sum(each)
        more[name] = {
            "lost": f"{done - totals[name]} of {done}",
            "errors": sum(turn.errors for crew in turns for turn in crew),
            "wait ms": 1e3 * max(turn.worst for crew in turns for turn in crew),
            "median wait ms": 1e3 * median(max(turn.worst for turn in crew) for crew in turns),
            "shares": f"{100 * min(each) / max(1, done):.0f}..{100 * max(each) / max(1, done):.0f} %",
        }
    goals = [Goal(_OURS, 1.2)] if place == "file" else [Goal(_OURS, 1.5), Goal(_OURS, 1.5, _IN_TURNS)]
    row = judge(
        "counters", f"{place}: 8 processes increment one key, per increment", "µs", samples, goals, more=more, notes=notes
    )
    lost = sum(turn.done for crew in results[_OURS] for turn in crew) - totals[_OURS]
    errors = sum(turn.errors for crew in results[_OURS] for turn in crew)
    slowest = max(turn.worst for crew in results[_OURS] for turn in crew) * 1e3
    row.verdicts += [
        _absolute("0 lost", abs(lost), 0),
        _absolute("0 errors", errors, 0),
        _absolute("worst wait ≤ 200 ms", slowest, 200),
    ]
    return row


def _absolute(goal: str, measured: float, limit: float) -> Verdict:
    return Verdict(_OURS, goal, measured, limit, measured <= limit)


# ------------------------------------------------------------------------------------------------------------- processes


@contextmanager
def _crew() -> Iterator[Callable[[str, str, str, float], list[Turn]]]:
    """Processes that all take the same turn when the function is called."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    pipes, processes = [], []
    for _ in range(PROCESSES):
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, barrier), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)

    def turn(place: str, name: str, url: str, seconds: float) -> list[Turn]:
        for pipe in pipes:
            pipe.send((place, name, url, seconds))
        return [pipe.recv() for pipe in pipes]

    try:
        yield turn
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10)
            process.kill()


def _work(pipe: Any, barrier: Any) -> None:
    while True:
        try:
            place, name, url, seconds = pipe.recv()
        except EOFError:
            return
        with closing(_number(place, name, url)) as number:
            number.value()  # so that opening is not measured
            barrier.wait()
            pipe.send(_turn(number.increment, seconds))


def _turn(increment: Callable[[], object], seconds: float) -> Turn:
    clock = time.perf_counter
    done = errors = 0
    worst = 0.0
    began = clock()
    until = began + seconds
    while began < until:
        try:
            increment()
            done += 1
        except Exception:  # whatever a contestant raises; the count is shown
            errors += 1
        ended = clock()
        worst = max(worst, ended - began)
        began = ended
    return Turn(done, errors, worst, began - until + seconds)


# ----------------------------------------------------------------------------------------------------------- contestants


class _Mapped:
    """A number in a dict of ours or of persidict."""

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping
        self.reset = lambda: mapping.__setitem__("n", 0)
        self.increment = lambda: mapping.transform_item("n", transformer=lambda n: n + 1, n_retries=None)
        self.value = lambda: mapping["n"]
        self.close = getattr(mapping, "close", lambda: None)


class _FileByHand:
    """The floor: the lock is held from reading to writing, so that nobody's work is ever in vain."""

    def __init__(self, path: str) -> None:
        self.files = Files(path)
        self.lock = f"{path}/lock"

    def reset(self) -> None:
        self.files.put_full("n", b"0")

    def value(self) -> int:
        return int(self.files.get_bytes("n"))

    def increment(self) -> None:
        fd = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self.files.put_full("n", str(self.value() + 1).encode())
        os.close(fd)

    def close(self) -> None:
        pass


class _TableByHand:
    """The floor: read, then write, in one transaction. SQLite's own way of waiting decides who is next."""

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=60)
        self.db.executescript(PRAGMAS.format(sync="full"))
        self.db.execute("CREATE TABLE IF NOT EXISTS numbers (key TEXT PRIMARY KEY, n INTEGER NOT NULL)")

    def reset(self) -> None:
        self.db.execute("INSERT OR REPLACE INTO numbers VALUES ('n', 0)")

    def value(self) -> int:
        return int(self.db.execute("SELECT n FROM numbers WHERE key = 'n'").fetchone()[0])

    def increment(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("UPDATE numbers SET n = ? WHERE key = 'n'", (self.value() + 1,))
        self.db.execute("COMMIT")

    def close(self) -> None:
        self.db.close()


class _TableInTurns(_TableByHand):
    """The same, with a lock beside the database to queue at: the least that nobody's starving costs."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lock = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT, 0o666)

    def increment(self) -> None:
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        super().increment()
        fcntl.flock(self.lock, fcntl.LOCK_UN)

    def close(self) -> None:
        super().close()
        os.close(self.lock)


class _DiskCache:
    """diskcache counts within one transaction of its own."""

    def __init__(self, path: str) -> None:
        import diskcache

        self.cache = diskcache.Cache(path, sqlite_synchronous=2)

    def reset(self) -> None:
        self.cache["n"] = 0

    def value(self) -> int:
        return int(self.cache["n"])

    def increment(self) -> None:
        self.cache.incr("n", retry=True)

    def close(self) -> None:
        self.cache.close()


def _persidict(path: str) -> _Mapped:
    import persidict

    return _Mapped(persidict.FileDirDict(base_dir=path))


_ONCE = "persidict, transform_item"  # its turn of a second takes half a minute
_CONTESTANTS: dict[str, list[str]] = {
    "file": [FLOOR, _OURS, _ONCE],
    "sqlite": [FLOOR, _IN_TURNS, _OURS, "diskcache, incr"],
}


def _number(place: str, name: str, path: str) -> Any:
    makers: dict[tuple[str, str], Callable[[str], Any]] = {
        ("file", FLOOR): _FileByHand,
        ("file", _OURS): lambda path: _Mapped(perdure.open(path)),
        ("file", _ONCE): _persidict,
        ("sqlite", FLOOR): _TableByHand,
        ("sqlite", _IN_TURNS): _TableInTurns,
        ("sqlite", _OURS): lambda path: _Mapped(perdure.open(f"sqlite:///{path}")),
        ("sqlite", "diskcache, incr"): _DiskCache,
    }
    return makers[place, name](path)
