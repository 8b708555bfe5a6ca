"""Writers killed with SIGKILL at random moments: nothing acknowledged is lost, nothing torn, nobody waits for the dead."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger import PLACES, ROUNDS, STUCK, Ledger, Stopwatch, check_counter, lines, opened, side_by_side, start, value

import perdure
from perdure.protocol import Backend
from perdure.testing.crew import within
from perdure_backends.file import FileBackend

WRITERS = 3
KILLS = 2 * ROUNDS  # of each writer: 24 in all by default, 240 with ten rounds


@pytest.mark.parametrize(("kind", "sync"), [*PLACES, ("plain", "full")])
def test_killed_writers_lose_nothing(kind: str, sync: str, tmp_path: Path) -> None:
    where = tmp_path / "place"
    ledgers = [Ledger() for _ in range(WRITERS)]
    clock = Stopwatch()

    def keep_killing(number: int) -> Iterator[None]:
        for life in range(1, KILLS + 1):
            _let_live_and_kill(kind, sync, where, number, life, ledgers[number], clock)
            yield

    side_by_side(WRITERS, keep_killing)

    with opened(kind, sync, where) as backend:
        for ledger in ledgers:
            ledger.settle(backend)
        check_counter(backend, ledgers)
        expected = {key for ledger in ledgers for key, due in ledger.due.items() if due != {None}}
        assert set(backend.keys()) - {"shared"} == expected
        _check_leftovers(backend, where)
    writes = sum(ledger.acknowledged for ledger in ledgers)
    print(f"{kind} {sync}: {WRITERS * KILLS} kills, {writes} writes acknowledged, longest wait {clock.worst * 1000:.0f} ms")


def _let_live_and_kill(kind: str, sync: str, where: Path, number: int, life: int, ledger: Ledger, clock: Stopwatch) -> None:
    """One life of one writer, while the others go on writing."""
    rng = random.Random(f"{kind} {sync} {number} {life}")
    child = start("write", kind, sync, where, number, life)
    left = rng.randrange(2, 40)
    for line in lines(child):
        ledger.note(line)
        left -= 1
        if left == 0:
            time.sleep(rng.random() * 0.005)  # whatever it is doing then
            child.kill()
    assert child.returncode == -9, "it should have gone on until it was killed"
    # A new handle: its first write sweeps, beside writers that are in the middle of theirs.
    with opened(kind, sync, where) as backend:
        blocked = ledger.forget() or f"writer{number}/a"
        if isinstance(backend, FileBackend):
            assert len(os.listdir(where / ".perdure" / "tmp")) <= 64
        ledger.settle(backend)
        if blocked == "shared":
            return
        version = life * 1_000_000 + 999_999
        with clock:
            within(STUCK, f"a put of {blocked}", backend.put, blocked, value(blocked, version, 10))
        ledger.due[blocked] = {version}


def _check_leftovers(backend: Backend, where: Path) -> None:
    """Everybody is dead: one write of a new handle clears up after all of them."""
    backend.put("last", b"")
    backend.delete("last")
    if isinstance(backend, FileBackend):
        assert backend.leftovers() == []
        assert os.listdir(where / ".perdure" / "tmp") == []
    else:
        assert {name.name for name in where.parent.iterdir()} <= {"place", "place-wal", "place-shm", "place-lock"}


@pytest.mark.parametrize(("kind", "sync"), PLACES)
def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(kind: str, sync: str, tmp_path: Path) -> None:
    where = tmp_path / "place"
    clock = Stopwatch()
    ledger = Ledger()
    for turn in range(1, 1 + 3 * ROUNDS):
        parent = start("fork_while_writing", kind, sync, where, turn)
        assert parent.stdin and parent.stdout and parent.stderr
        news = {parent.stderr.readline().partition(" ")[0].strip(): None for _ in range(2)}
        assert set(news) == {"child", "ready"}, news
        parent.kill()
        for line in parent.stdout:  # to the end: the forked child has closed its copy
            ledger.note(line)
        with opened(kind, sync, where) as backend:
            ledger.forget()
            ledger.settle(backend)
            version = turn * 1_000_000 + 999_999
            with clock:
                within(STUCK, "a put beside the child of a killed writer", backend.put, "k", value("k", version, 10))
            ledger.due["k"] = {version}
        parent.stdin.close()  # which the forked child has been waiting for
        assert parent.stderr.read() == "the child ends\n"
        parent.stderr.close()
        parent.stdout.close()
        assert parent.wait(STUCK) == -9
    print(f"{kind} {sync}: {3 * ROUNDS} kills beside a forked child, longest wait {clock.worst * 1000:.0f} ms")


@pytest.mark.parametrize("url", ["{0}/folder", "sqlite:///{0}/app.db"])
def test_killed_users_of_a_dict(url: str, tmp_path: Path) -> None:
    """The same where it is used: `perdure.open`, a counter that is transformed, and values that Python made."""
    pytest.importorskip("ormsgpack")
    url = url.format(tmp_path)
    sure = tried = 0
    items: dict[str, str] = {}
    for turn in range(3 * ROUNDS):
        rng = random.Random(turn)
        users = [start("use_a_dict", url, f"{turn}-{number}", site=True) for number in range(2)]
        for user in users:
            left = rng.randrange(4, 40)
            for line in lines(user):
                what, key, *rest = line.split()
                if what == "counting":
                    tried += 1
                elif what == "counted":
                    sure += 1
                elif what == "stored":
                    items[key] = rest[0]
                left -= 1
                if left == 0:
                    time.sleep(rng.random() * 0.005)
                    user.kill()
        with perdure.open(url) as d:
            for key, text in items.items():
                value = d[tuple(key.split("/"))]
                assert value == {"text": text * 1000, "of": (key, 1.5, None)}, key
            assert sure <= d.get("hits", 0) <= tried
    print(f"{url}: {6 * ROUNDS} kills, {sure} counted, {len(items)} stored")
    assert sure
