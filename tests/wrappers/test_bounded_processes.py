"""Many that write to one bounded place as fast as they can, some of them killed, while somebody keeps an eye on the total."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import NotFoundError, PreconditionError
from perdure.protocol import ABSENT, Backend
from perdure.testing.crew import PATIENCE, Move, Processes, Threads, within
from perdure.testing.lifetime import in_child
from perdure.wrappers import Bounded, turns
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.sqlite import SQLiteBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))
WRITERS = 8

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")


def opened(kind: str, where: Path, limits: dict[str, int]) -> Bounded:
    """One of several `Bounded` over a place; it never counts what is under `other/`."""
    backend: Backend
    if kind == "memory":
        backend = MemoryBackend(str(where))
    elif kind == "file":
        backend = FileBackend(where, sync="normal")
    else:
        backend = SQLiteBackend(where, sync="normal")
    return Bounded(backend, **limits, only=counts)  # type: ignore[arg-type]


def counts(key: str) -> bool:
    return not key.startswith("other/")


def write_fast(backend: Backend, member: int, times: int, sizes: tuple[int, int], done: Path) -> int:
    """Put, create, swap, delete and put several, over old keys and new ones.

    They are all in one folder: a listing of several, one after the other, shows a total that there never was.
    """
    dice = random.Random(member)
    for number in range(times):
        key = f"{member}-{number}" if dice.random() < 0.7 else f"shared-{dice.randrange(20)}"
        data = bytes(dice.randint(*sizes))
        way = dice.random()
        try:
            if way < 0.8:
                backend.put(key, data)
            elif way < 0.85:
                backend.put(key, data, if_match=ABSENT)
            elif way < 0.9:
                backend.put(key, data, if_match=backend.get(key).etag)
            elif way < 0.93:
                backend.delete(key)
            elif way < 0.96:
                backend.put_many({key: data, f"{member}-m-{number}": data[: len(data) // 2]})
            else:
                backend.put(f"other/{number % 5}", bytes(5000))
        except (NotFoundError, PreconditionError):
            continue
    for number in range(5):
        backend.put(f"other/{number}", bytes(5000))
    done.joinpath(f"done-{member}").touch()
    assert isinstance(backend, Bounded)
    assert backend.troubles == 0
    return backend.evicted


def write_in_threads(backend: Backend, member: int, threads: int, **options: Any) -> int:
    """The same by several threads with one handle."""
    crew = Threads([backend] * threads)
    moves: list[Move] = [partial(write_fast, member=member * threads + number, **options) for number in range(threads)]
    answers = crew.at_once(moves)
    crew.close()
    return max(answers)


def watch(backend: Backend, done: Path) -> tuple[int, int]:
    """Look at the place until all writers are done, and return the most bytes and items there were."""
    assert isinstance(backend, Bounded)
    most_bytes = most_items = 0
    last = False
    while not last:
        last = len(list(done.glob("done-*"))) >= WRITERS
        sizes = at_one_moment(backend.backend)
        most_bytes, most_items = max(most_bytes, sum(sizes)), max(most_items, len(sizes))
    return most_bytes, most_items


def at_one_moment(place: Backend) -> list[int]:
    """The sizes that count."""
    if not isinstance(place, SQLiteBackend):
        return [use.size for use in place.uses() if counts(use.key)]
    if not os.path.exists(place.path):
        return []
    # Of which a listing reads one page after the other; what is evicted from the first is then seen beside what takes its room.
    db = sqlite3.connect(f"file:{place.path}?mode=ro", uri=True)
    try:
        return [size for size, key in db.execute("SELECT length(data), key FROM blobs") if counts(key)]
    except sqlite3.OperationalError as error:
        assert "no such table" in str(error) or "locked" in str(error)
        return []
    finally:
        db.close()


# Limits that hold a few values, some dozens, and so many that each writer has a share of its own.
LIMITS: list[tuple[dict[str, int], tuple[int, int], int]] = [
    ({"max_items": 1}, (0, 100), 60),
    ({"max_items": 10}, (0, 100), 100),
    ({"max_items": 20}, (0, 100), 100),
    ({"max_items": 50}, (0, 100), 150),
    ({"max_items": 150}, (0, 100), 150),
    ({"max_items": 1000}, (0, 100), 250),
    ({"max_bytes": 1000}, (0, 1000), 100),
    ({"max_bytes": 20_000}, (0, 5000), 100),
    ({"max_bytes": 100_000}, (0, 2000), 150),
    ({"max_bytes": 1_000_000}, (100, 9000), 200),
    ({"max_bytes": 300_000, "max_items": 300}, (0, 4000), 150),
]


def judge(limits: dict[str, int], largest: int, watched: tuple[int, int], place: Bounded) -> None:
    most_bytes, most_items = watched
    filled = []
    for most, limit, most_of_one in (
        (most_bytes, limits.get("max_bytes"), largest),
        (most_items, limits.get("max_items"), 1),
    ):
        if limit is not None:
            assert most <= 1.1 * limit, f"{most} of {limit} at some moment"
            filled.append(most >= 0.75 * limit or limit < 10 * most_of_one)
    assert any(filled), f"the place was never full: {most_bytes} bytes, {most_items} items"
    assert len(list(place.keys("other/"))) == 5
    place.put("last", b"1")
    assert place.get("last").data == b"1"


def shown(value: object) -> str:
    return str(value) if isinstance(value, (dict, str)) else ""


@pytest.mark.parametrize(
    ("kind", "limits", "sizes", "times"),
    [*(("file", *limits) for limits in LIMITS), *(("sqlite", *limits) for limits in LIMITS[1::2])],
    ids=shown,
)
def test_the_limit_holds_while_eight_processes_write(
    tmp_path: Path, kind: str, limits: dict[str, int], sizes: tuple[int, int], times: int
) -> None:
    crew = Processes(WRITERS + 1, "fork")
    try:
        crew.open(partial(opened, kind, tmp_path / "place", limits))
        moves: list[Move] = [
            partial(write_fast, member=number, times=times * ROUNDS, sizes=sizes, done=tmp_path) for number in range(WRITERS)
        ]
        *evicted, watched = crew.at_once([*moves, partial(watch, done=tmp_path)])
    finally:
        crew.close()
    with opened(kind, tmp_path / "place", limits) as place:
        judge(limits, sizes[1], watched, place)
    assert sum(evicted) > 0


@pytest.mark.parametrize(
    ("limits", "sizes", "times"), LIMITS[1::3], ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_the_limit_holds_while_processes_of_several_threads_write(
    tmp_path: Path, limits: dict[str, int], sizes: tuple[int, int], times: int
) -> None:
    crew = Processes(3, "fork")
    try:
        crew.open(partial(opened, "file", tmp_path / "place", limits))
        options: dict[str, Any] = {"threads": WRITERS // 2, "times": times * ROUNDS, "sizes": sizes, "done": tmp_path}
        moves: list[Move] = [partial(write_in_threads, member=number, **options) for number in range(2)]
        *evicted, watched = crew.at_once([*moves, partial(watch, done=tmp_path)])
    finally:
        crew.close()
    with opened("file", tmp_path / "place", limits) as place:
        judge(limits, sizes[1], watched, place)
    assert sum(evicted) > 0


@pytest.mark.parametrize("together", [True, False], ids=["one-handle", "handles"])
@pytest.mark.parametrize(
    ("kind", "limits", "sizes", "times"),
    [*(("memory", *limits) for limits in LIMITS), *(("file", *limits) for limits in LIMITS[::4])],
    ids=shown,
)
def test_the_limit_holds_while_eight_threads_write(
    tmp_path: Path, kind: str, together: bool, limits: dict[str, int], sizes: tuple[int, int], times: int
) -> None:
    place = opened(kind, tmp_path / "place", limits)
    handles = [place if together else opened(kind, tmp_path / "place", limits) for _ in range(WRITERS)]
    crew = Threads([*handles, place])
    moves: list[Move] = [
        partial(write_fast, member=number, times=times * ROUNDS, sizes=sizes, done=tmp_path) for number in range(WRITERS)
    ]
    *evicted, watched = crew.at_once([*moves, partial(watch, done=tmp_path)])
    crew.close()
    judge(limits, sizes[1], watched, place)
    assert sum(evicted) > 0
    assert all(not handle._flying for handle in handles)
    for handle in (place, *handles):
        handle.close()


# ----------------------------------------------------------------------------------------------------------------- uses


def read_some(backend: Backend, where: Path, kind: str, keys: list[str]) -> int:
    """A program that reads, and ends."""
    with opened(kind, where, {"max_items": 100}) as place:
        return len([place.get(key) for key in keys])


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_what_another_process_reads_stays(tmp_path: Path, kind: str) -> None:
    place = opened(kind, tmp_path / "place", {"max_items": 100})
    hot = [f"hot/{number}" for number in range(5)]
    place.put_many(dict.fromkeys(hot, b"1"))
    place.put_many({f"cold/{number}": b"1" for number in range(5)})
    crew = Processes(1, "fork", MemoryBackend())
    try:
        for turn in range(6):
            assert crew.at_once([partial(read_some, where=tmp_path / "place", kind=kind, keys=hot)]) == [5]
            for number in range(60):
                place.put(f"{turn}/{number}", b"1")
    finally:
        crew.close()
    there = set(place.keys())
    assert set(hot) <= there
    assert not any(key.startswith("cold/") for key in there)
    assert not any(key.startswith("0/") for key in there)
    place.close()


def test_what_a_thread_keeps_reading_stays(tmp_path: Path) -> None:
    place = opened("memory", tmp_path, {"max_items": 50})
    hot = [f"hot/{number}" for number in range(5)]
    place.put_many(dict.fromkeys(hot, b"1"))
    rounds = 0
    ended = False
    failed: list[BaseException] = []

    def read() -> None:
        nonlocal rounds
        try:
            while not ended:
                for key in hot:
                    place.get(key)
                rounds += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    for number in range(300):
        place.put(f"{number}", b"1")
        begun = rounds
        deadline = time.monotonic() + PATIENCE
        while number % 10 == 0 and rounds < begun + 2 and not failed:  # it may not get to read as often as this one writes
            assert time.monotonic() < deadline
            time.sleep(0.0001)
    ended = True
    thread.join(PATIENCE)
    assert not failed
    assert set(hot) <= set(place.keys())
    assert place.evicted > 200


# --------------------------------------------------------------------------------------------------------------- killed


def forked(work: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("limits", [{"max_items": 10}, {"max_bytes": 20_000}, {"max_bytes": 200_000}], ids=str)
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_killed_writers_hold_up_nobody_and_the_limit_holds(tmp_path: Path, kind: str, limits: dict[str, int]) -> None:
    dice = random.Random(5)
    for turn in range(8 * ROUNDS):
        children = []
        for number in range(3):

            def work(member: int = 10 * turn + number) -> None:
                write_fast(opened(kind, tmp_path / "place", limits), member, 10**9, (0, 5000), tmp_path)

            children.append(forked(work))
        try:
            time.sleep(0.05 + dice.random() / 20)  # so that they die anywhere
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
            for child in children:
                os.waitpid(child, 0)
        with opened(kind, tmp_path / "place", limits) as place:
            sizes = [use.size for use in place.uses() if counts(use.key)]
            assert sum(sizes) <= 1.1 * limits.get("max_bytes", 10**9)
            assert len(sizes) <= 1.1 * limits.get("max_items", 10**9)
            for number in range(5):
                within(PATIENCE, "a put after a kill", place.put, f"mine/{number}", bytes(3000))
            assert place.troubles == 0
            assert len(list(place.keys("mine/"))) == 5


# ---------------------------------------------------------------------------------------------------------------- turns


def fail(error: Exception) -> None:
    raise AssertionError("nobody should be told") from error


def hold(place: str, told: int, wait: int) -> None:
    def work() -> None:
        os.write(told, b"!")
        os.read(wait, 1)

    turns.turn_of(place).alone(work, fail)


@pytest.fixture
def name(tmp_path: Path) -> str:
    return f"file:{tmp_path}"


def test_processes_take_turns_and_a_killed_one_gives_its_turn_up(name: str) -> None:
    told, tell = os.pipe()
    wait, go = os.pipe()
    child = forked(partial(hold, name, tell, wait))
    assert os.read(told, 1) == b"!"
    got = threading.Event()
    thread = threading.Thread(target=turns.turn_of(name).alone, args=(got.set, fail), daemon=True)
    thread.start()
    assert not got.wait(0.2)
    turns.turn_of(f"{name}/another").alone(lambda: None, fail)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert got.wait(PATIENCE)
    thread.join(PATIENCE)
    for fd in (told, tell, wait, go):
        os.close(fd)
    assert not turns._held


def test_threads_take_turns_and_each_may_be_within_its_own(name: str) -> None:
    turn = turns.turn_of(name)
    assert turns.turn_of(name) is turn
    inside = 0
    most = 0

    def work(depth: int = 2) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.0005)
        inside -= 1
        if depth:
            turn.alone(partial(work, depth - 1), fail)

    def run() -> None:
        for _ in range(20):
            turn.alone(work, fail)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert (most, turn.depth) == (1, 0)


def test_a_turn_ends_with_what_is_raised(name: str) -> None:
    def work() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        turns.turn_of(name).alone(work, fail)
    assert not turns._held
    in_child(partial(turns.turn_of(name).alone, lambda: None, fail))


def test_a_child_forked_in_a_turn_does_not_keep_it(name: str) -> None:
    """It holds a copy of the descriptor, which would keep the lock of a parent that is killed."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    begun, begin = os.pipe()

    def parent() -> None:
        thread = threading.Thread(target=hold, args=(name, tell, wait), daemon=True)
        thread.start()
        os.read(begun, 1)
        if os.fork() == 0:
            os.write(tell, b"%20d" % os.getpid())
        time.sleep(2 * PATIENCE)

    child = forked(parent)
    assert os.read(told, 1) == b"!"
    os.write(begin, b"!")
    grandchild = int(os.read(told, 20))
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        within(PATIENCE, "a turn", turns.turn_of(name).alone, lambda: None, fail)
    finally:
        os.kill(grandchild, signal.SIGKILL)
    for fd in (told, tell, wait, go, begun, begin):
        os.close(fd)


def test_without_a_lock_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(turns, "_opened", refuse)
    place = opened("file", tmp_path / "place", {"max_items": 3})
    for number in range(10):
        place.put(f"{number}", b"1")
    assert len(list(place.keys())) == 3
    assert place.troubles == 10
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_locks_are_in_a_folder_that_nobody_else_can_write_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles: list[Exception] = []
    monkeypatch.setattr(os.path, "isdir", lambda path: path != "/dev/shm")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    during = turns.turn_of(name).alone(lambda: list(tmp_path.glob("perdure-*/*")), fail)
    assert len(during) == 1
    (folder,) = tmp_path.glob("perdure-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.symlink_to("/")
    turns.turn_of(name).alone(lambda: None, troubles.append)
    assert "somebody else's" in str(troubles[0])


@pytest.fixture
def stopped(name: str) -> Iterator[int]:
    """A process that has the turn and was stopped."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    child = forked(partial(hold, name, tell, wait))
    assert os.read(told, 1) == b"!"
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for fd in (told, tell, wait, go):
        os.close(fd)


def test_a_stopped_process_holds_up_others_only_for_a_while(
    name: str, stopped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turns, "_PATIENCE", 0.3)
    place = opened("file", tmp_path, {"max_items": 3})
    assert place.place == name
    begun = time.monotonic()
    within(PATIENCE, "a put", place.put, "a", b"1")
    assert time.monotonic() - begun >= 0.3
    assert place.troubles == 1
    monkeypatch.setattr(turns, "_PATIENCE", 1e6)
    for number in range(10):  # of which none waits
        within(PATIENCE, "a put", place.put, f"{number}", b"1")
    assert place.troubles == 11
    assert len(caplog.records) == 1
    assert "perhaps it is stopped" in caplog.text
    assert len(list(place.keys())) == 3
    os.kill(stopped, signal.SIGKILL)
    os.waitid(os.P_PID, stopped, os.WEXITED | os.WNOWAIT)
    within(PATIENCE, "a put", place.put, "z", b"1")
    assert place.troubles == 11
    assert turns.turn_of(name).impatient_until == 0.0
    assert not turns._held
    place.close()


@pytest.mark.usefixtures("stopped")
def test_a_stopped_process_holds_up_nobody_elsewhere(name: str) -> None:
    for number in range(600):  # of a few hundred locks, one of these would have the same
        turns.turn_of(f"{name}/{number}").alone(lambda: None, fail)


@pytest.mark.usefixtures("stopped")
def test_who_waits_no_longer_ends_no_turn_of_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE", 0.05)
    troubles: list[Exception] = []
    path = turns._path(turns.turn_of(name).name)
    turns.turn_of(name).alone(lambda: None, troubles.append)
    assert len(troubles) == 1
    assert os.path.exists(path)  # still the turn of the one that is stopped


@pytest.mark.usefixtures("stopped")
def test_ctrl_c_ends_waiting(name: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell nobody listens
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            turns.turn_of(name).alone(lambda: None, fail)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert not turns._held
    assert turns.turn_of(name).depth == 0


def test_who_waits_waits_on_while_one_turn_follows_the_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many slow ones are not one that is stopped."""
    stop = tmp_path / "stop"

    def work() -> None:
        while not stop.exists():
            turns.turn_of(name).alone(lambda: time.sleep(0.1), fail)

    monkeypatch.setattr(turns, "_PATIENCE", 0.5)
    children = [forked(work) for _ in range(5)]
    try:
        for _ in range(5):
            within(PATIENCE, "a turn", turns.turn_of(name).alone, lambda: None, fail)
    finally:
        stop.touch()
        for child in children:
            os.waitpid(child, 0)


def test_who_writes_all_the_time_lets_others_have_their_turn(name: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"

    def work() -> None:
        while not stop.exists():
            turns.turn_of(name).alone(lambda: time.sleep(0.001), fail)

    child = forked(work)
    try:
        begun = time.monotonic()
        for _ in range(50):
            within(PATIENCE, "a turn", turns.turn_of(name).alone, lambda: None, fail)
        assert time.monotonic() - begun < PATIENCE
    finally:
        stop.touch()
        os.waitpid(child, 0)


def test_a_turn_ends_without_leaving_a_file(name: str) -> None:
    turn = turns.turn_of(name)
    path = turns._path(turn.name)
    assert turn.alone(lambda: os.path.exists(path), fail)
    assert not os.path.exists(path)
    child = forked(lambda: turn.alone(lambda: os.kill(os.getpid(), signal.SIGKILL), fail))
    os.waitpid(child, 0)
    assert os.path.exists(path)  # of the one that was killed; the next one takes it away
    assert turn.alone(lambda: os.path.exists(path), fail)
    assert not os.path.exists(path)


def test_somebody_who_clears_the_folder_ends_no_turn_of_others(name: str) -> None:
    turn = turns.turn_of(name)
    path = turns._path(turn.name)
    turn.alone(lambda: os.unlink(path), fail)
    turn.alone(lambda: None, fail)
    assert not turns._held


def test_writers_started_by_spawn_keep_the_limit_too(tmp_path: Path) -> None:
    """Fresh interpreters, which share nothing with each other but the place."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_bounded_processes as t; "
        "where = Path(sys.argv[2]); member = int(sys.argv[3]); "
        "t.write_fast(t.opened('file', where / 'place', {'max_bytes': 30_000}), member, 150, (0, 8000), where)"
    )
    here = str(Path(__file__).parent)
    children = [
        subprocess.Popen([sys.executable, "-c", program, here, str(tmp_path), str(number)]) for number in range(WRITERS)
    ]
    place = opened("file", tmp_path / "place", {"max_bytes": 30_000})
    try:
        watched = watch(place, tmp_path)
        assert [child.wait(PATIENCE) for child in children] == [0] * WRITERS
    finally:
        for child in children:
            child.kill()
            child.wait(PATIENCE)
    judge({"max_bytes": 30_000}, 8000, watched, place)
