"""The SQLite backend among threads, forks, signals and killed processes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import BackendError, NotFoundError, PreconditionError
from perdure.protocol import ABSENT
from perdure_backends import _sqlite_file, _sqlite_links
from perdure_backends._flock import LOCK_EX, LOCK_NB, LOCK_UN, close_lock, flock, open_lock
from perdure_backends.sqlite import SQLiteBackend

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


class Child:
    """A forked process that runs a function; a pipe leads from it to us and one back."""

    def __init__(self, run: Callable[[Child], object]) -> None:
        from_child, self._up = os.pipe()
        self._down, to_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(from_child)
                os.close(to_child)
                run(self)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(self._up)
        os.close(self._down)
        self._from_child = os.fdopen(from_child, "rb", buffering=0)
        self._to_child = to_child

    # In the child.

    def tell(self, number: int) -> None:
        os.write(self._up, number.to_bytes(8, "little"))

    def wait(self) -> None:
        os.read(self._down, 1)

    # In the parent.

    def hear(self) -> int | None:
        """The next number, or None when the child has ended."""
        told = self._from_child.read(8)
        return int.from_bytes(told, "little") if told else None

    def go_on(self) -> None:
        os.write(self._to_child, b"!")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """What it told since; then it is gone."""
        last = 0
        while (told := self.hear()) is not None:
            last = told
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.close()
        return last

    def close(self) -> None:
        self._from_child.close()
        os.close(self._to_child)


def seen_by_another(path: Path) -> dict[str, bytes]:
    """What plain SQLite in a process of its own finds in the file."""
    code = (
        "import sqlite3, sys\n"
        "for key, data in sqlite3.connect(sys.argv[1]).execute('SELECT key, data FROM blobs'): print(key, data.hex())"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=120)
    return {line.split(" ")[0]: bytes.fromhex(line.split(" ")[1]) for line in done.stdout.splitlines()}


def open_files(folder: Path) -> int:
    """Of those below a folder: what other tests left to the garbage collector is not to be counted."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{folder}/")
        except FileNotFoundError:
            continue  # the one of this listing
    return count


# Forks.


def test_a_forked_child_keeps_its_writes_when_the_parent_closes_last(path: Path) -> None:
    """SQLite's table of locks is inherited, its locks are not: the parent used to remove the log under the child."""
    backend = SQLiteBackend(path)
    backend.put("parent", b"1")

    def run(me: Child) -> None:
        backend.put("child/1", b"2")
        me.tell(1)
        me.wait()
        backend.put("child/2", b"3")
        assert backend.get("parent").data == b"1"

    child = Child(run)
    assert child.hear() == 1
    assert backend.get("child/1").data == b"2"
    backend.close()
    child.go_on()
    child.end()
    assert child.status == 0
    assert seen_by_another(path) == {"parent": b"1", "child/1": b"2", "child/2": b"3"}


def test_forks_while_threads_write(path: Path) -> None:
    backend = SQLiteBackend(path, sync="normal")
    stop = threading.Event()
    written: dict[int, int] = {}
    trouble: list[BaseException] = []

    def write(number: int) -> None:
        count = 0
        try:
            while not stop.is_set():
                count += 1
                backend.put(f"t/{number}", b"%d" % count)
                assert backend.get(f"t/{number}").data == b"%d" % count
                if count % 10 == 0:
                    backend.put_many({f"t/{number}/many/{i}": b"%d" % count for i in range(5)})
        except BaseException as error:
            trouble.append(error)
        written[number] = count

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def run(me: Child) -> None:
        backend.put(f"c/{me.number}", b"1")  # type: ignore[attr-defined]
        assert backend.get("c/0").data == b"1"
        assert len(list(backend.keys("t/"))) >= 1

    Child.number = 0  # type: ignore[attr-defined]
    backend.put("t/first", b"")
    children = 12 * ROUNDS
    for number in range(children):
        Child.number = number  # type: ignore[attr-defined]
        child = Child(run)
        child.end()
        assert child.status == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert trouble == []
    found = seen_by_another(path)
    assert {key for key in found if key.startswith("c/")} == {f"c/{number}" for number in range(children)}
    assert {number: int(found[f"t/{number}"]) for number in written} == written
    backend.close()


def test_a_killed_parent_leaves_no_lock_with_its_child(path: Path) -> None:
    def parent(me: Child) -> None:
        backend = SQLiteBackend(path)

        def write() -> None:
            for number in range(1_000_000):
                backend.put("a", b"%d" % number)

        threading.Thread(target=write, daemon=True).start()
        while not backend.contains("a"):
            pass
        for _ in range(5):
            if os.fork() == 0:
                os.read(me._down, 1)  # outlives its parent, holding whatever it inherited
                os._exit(0)
        me.tell(1)
        signal.pause()

    child = Child(parent)
    assert child.hear() == 1
    child.kill()
    os.waitpid(child.pid, 0)
    with SQLiteBackend(path) as backend:
        backend.put("a", b"next")
        assert backend.get("a").data == b"next"
    for _ in range(5):
        child.go_on()
    child.close()


def test_a_fork_behind_pythons_back_is_refused(path: Path) -> None:
    # As a server written in C does it that embeds Python: the hook before the fork is never called.
    backend, closed = SQLiteBackend(path), SQLiteBackend(path.with_name("y.db"))
    backend.put("a", b"1")
    closed.put("a", b"1")
    closed.close()
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        code = 1
        try:
            _sqlite_links._after_fork_in_child()  # all of PyOS_AfterFork_Child that matters here
            for again in (backend, SQLiteBackend(path)):
                for call in (lambda b=again: b.get("a"), lambda b=again: b.put("a", b"2")):
                    with pytest.raises(BackendError, match="forked while the database was in use"):
                        call()
            SQLiteBackend(path.with_name("y.db")).put("a", b"2")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    backend.put("b", b"2")
    backend.close()
    assert seen_by_another(path) == {"a": b"1", "b": b"2"}


# Threads.


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_threads_that_end_leave_no_descriptors(path: Path) -> None:
    at_first = open_files(path.parent)
    backend = SQLiteBackend(path, sync="normal")
    backend.put("a", b"0")

    def use(line: threading.Barrier) -> None:
        line.wait()
        backend.put("b", backend.get("a").data)
        line.wait()

    def crowd(size: int) -> int:
        line = threading.Barrier(size)
        threads = [threading.Thread(target=use, args=(line,)) for _ in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return open_files(path.parent)

    one = crowd(1)
    for _ in range(1000):
        crowd(1)
    assert open_files(path.parent) == one
    # SQLite itself keeps those of the file, though not of the log, for connections to come, as long as the file is in use.
    for _ in range(20):
        assert crowd(40) <= one + 2 * 40 + 8 * 2
    backend.close()
    assert open_files(path.parent) == at_first


def test_a_backend_that_is_forgotten_closes_its_files(path: Path) -> None:
    before = open_files(path.parent)
    for _ in range(5):
        SQLiteBackend(path, sync="normal").put("a", b"1")
    assert open_files(path.parent) == before
    assert sorted(os.listdir(path.parent)) == ["x.db", "x.db-lock"]


def test_a_process_that_ends_merges_the_log(path: Path) -> None:
    code = "import sys; from perdure_backends.sqlite import SQLiteBackend; b = SQLiteBackend(sys.argv[1]); b.put('a', b'1')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(path.parent)) == ["x.db", "x.db-lock"]


def test_close_while_threads_are_at_work(path: Path) -> None:
    for _ in range(5 * ROUNDS):
        backend = SQLiteBackend(path, sync="normal")
        backend.put("a", b"0")
        line = threading.Barrier(5)
        with ThreadPoolExecutor(4) as pool:
            ends = [pool.submit(use_until_closed, backend, line) for _ in range(4)]
            line.wait()
            backend.put("b", b"1")
            backend.close()
        assert ["closed" in end.result() for end in ends] == [True] * 4
        backend.close()


def use_until_closed(backend: SQLiteBackend, line: threading.Barrier) -> str:
    line.wait()
    try:
        while True:
            backend.put("a", b"1")
            backend.get("a")
            list(backend.scan())
    except BackendError as error:
        return error.problem


# Signals.


class Interrupted(BaseException):
    """What Ctrl-C raises, without being taken for a real one."""


def strike_soon(dice: random.Random) -> None:
    """Send this thread a signal within the next moments. (The alarm clock belongs to pytest-timeout.)"""
    main, delay = threading.get_ident(), dice.uniform(0, 600e-6)

    def strike() -> None:
        time.sleep(delay)
        signal.pthread_kill(main, signal.SIGUSR1)

    threading.Thread(target=strike).start()


def test_an_interrupt_at_any_moment_leaves_everything_usable(path: Path) -> None:
    backend, other = SQLiteBackend(path, sync="normal"), SQLiteBackend(path, sync="normal")
    backend.put("n", b"0")
    other.get("n")
    watch = open_lock(f"{path}-lock")
    tracebacks: list[Any] = []
    armed = False

    def strike(*_: object) -> None:
        if armed:
            raise Interrupted

    before = signal.signal(signal.SIGUSR1, strike)
    dice = random.Random(7)
    struck = 0
    try:
        for number in range(150 * ROUNDS):
            done = -1
            try:
                armed = True
                strike_soon(dice)
                while True:
                    done += 1
                    etag = backend.put("n", b"%d.%d" % (number, done))
                    backend.put("n", b"%d.%d" % (number, done), if_match=etag)
                    backend.put_many({"many/1": b"%d" % done, "many/2": b"%d" % done})
                    backend.get("n")
                    next(iter(backend.scan()))
            except Interrupted as error:
                armed = False
                struck += 1
                tracebacks.append(error)  # its frames keep alive what a debugger would
                del tracebacks[:-5]
            flock(watch, LOCK_EX | LOCK_NB)  # raises when the lock was left behind
            flock(watch, 8)
            index = backend.get("n").data.split(b".")
            assert int(index[0]) in (number, number - 1)
            many = backend.get_many(["many/1", "many/2"]).values()
            assert len({blob.data for blob in many}) <= 1, "half of a transaction"
            other.put("n", b"%d.0" % number)
            assert backend.get("n").data == b"%d.0" % number, "an old snapshot"
            backend.put("mine", b"%d" % number)
            assert other.get("mine").data == b"%d" % number, "a transaction was left open"
    finally:
        armed = False
        signal.signal(signal.SIGUSR1, before)
        close_lock(watch)
    assert struck == 150 * ROUNDS
    backend.close()
    other.close()


@pytest.mark.parametrize("what", ["put", "put_many", "first put"])
def test_a_signal_handler_may_use_the_backend_in_the_middle_of_a_call(tmp_path: Path, what: str) -> None:
    fired = refused = 0
    dice, path = random.Random(8), tmp_path / "0.db"
    backend = SQLiteBackend(path, sync="normal")

    def handle(*_: object) -> None:
        nonlocal fired, refused
        try:
            backend.put("handler", b"%d" % (fired + 1))
        except BackendError as error:  # while the file is being made
            assert error.errno == errno.EDEADLK, error
            assert "middle of a first write" in str(error)
            refused += 1
            strike_soon(dice)
            return
        fired += 1
        backend.put_many({"handler/1": b"%d" % fired, "handler/2": b"%d" % fired})
        assert backend.get("handler").data == b"%d" % fired

    if what != "first put":
        backend.put("a", b"0")  # the file is there, however long that takes
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        for count in range(1, (150 if what != "first put" else 50) * ROUNDS):
            if what == "first put":
                backend.close()
                path = tmp_path / f"{count}.db"
                backend = SQLiteBackend(path, sync="normal")
                backend.record({"codec": "json"})
            strike_soon(dice)
            while True:
                if what == "put_many":
                    backend.put_many({f"many/{i}": b"%d" % count for i in range(100)})
                    assert {blob.data for blob in backend.get_many(backend.keys("many/")).values()} == {b"%d" % count}
                else:
                    backend.put("a", b"%d" % count)
                    assert backend.get("a").data == b"%d" % count
                if fired == count:
                    break
            assert {blob.data for blob in backend.get_many(backend.keys("handler/")).values()} == {b"%d" % count}
            assert backend.recorded() == ({"codec": "json"} if what == "first put" else {})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert what == "first put" or not refused, "only while the file is being made"
    backend.close()


# Killed processes.


def step(number: int) -> dict[str, bytes]:
    """What a writer puts as its nth write: mostly one value, sometimes a transaction of eight."""
    data = b"%d," % number * (number % 700 + 1)
    return {f"slot/{number % 5}": data} if number % 11 else {f"many/{i}": data for i in range(8)}


@pytest.mark.torture
@pytest.mark.parametrize("sync", ["normal", "full"])
def test_killed_writers_lose_and_tear_nothing(path: Path, sync: str) -> None:
    dice = random.Random()
    backend = SQLiteBackend(path, sync=sync)
    first = 1

    def run(me: Child) -> None:
        mine = SQLiteBackend(path, sync=sync)
        number = first
        while True:
            items = step(number)
            if len(items) > 1:
                mine.put_many(items)
            else:
                mine.put(*items.popitem())
            me.tell(number)
            number += 1

    for _ in range(50 * ROUNDS):
        child = Child(run)
        last = first - 1
        for _ in range(dice.randrange(40)):
            last = child.hear() or last
        if dice.random() < 0.5:
            time.sleep(dice.random() * 0.002)  # somewhere else within a write
        child.kill()
        last = max(child.end(), last)
        assert child.status == -signal.SIGKILL

        backend.put("next", b"")  # stuck, and ended by the timeout of pytest, if somebody still held a lock
        backend.delete("next")
        acknowledged: dict[str, bytes] = {}
        for number in range(first, last + 1):
            acknowledged |= step(number)
        found = {key: blob.data for key, blob in backend.get_many(backend.keys()).items()}
        assert found in (acknowledged, acknowledged | step(last + 1))  # the latter if it was killed before it could say so
        backend.delete_many(found)
        first = last + 2
    assert sorted(os.listdir(path.parent)) == ["x.db", "x.db-lock", "x.db-shm", "x.db-wal"]
    backend.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.torture
def test_a_counter_survives_killed_processes(path: Path) -> None:
    """Increments by processes of which one is killed and replaced again and again: each counts once, if it was acknowledged."""
    dice = random.Random()
    with SQLiteBackend(path, sync="normal") as backend:
        backend.put("n", b"0")

    def run(me: Child) -> None:
        mine = SQLiteBackend(path, sync="normal")
        done = 0
        while True:
            blob = mine.get("n")
            try:
                mine.put("n", b"%d" % (int(blob.data) + 1), if_match=blob.etag)
            except PreconditionError:
                continue
            done += 1
            me.tell(done)

    workers = [Child(run) for _ in range(3)]
    acknowledged = kills = 0
    heard = {worker.pid: 0 for worker in workers}
    for _ in range(20 * ROUNDS):
        for worker in workers:
            for _ in range(dice.randrange(1, 6)):
                heard[worker.pid] = worker.hear() or heard[worker.pid]
        victim = workers.pop(dice.randrange(len(workers)))
        victim.kill()
        acknowledged += max(victim.end(), heard[victim.pid])
        kills += 1
        workers.append(Child(run))
        heard[workers[-1].pid] = 0
    for worker in workers:
        worker.kill()
        acknowledged += max(worker.end(), heard[worker.pid])
        kills += 1
    with SQLiteBackend(path) as backend:
        assert acknowledged <= int(backend.get("n").data) <= acknowledged + kills


@pytest.mark.torture
def test_killed_creators_leave_something_usable(tmp_path: Path) -> None:
    dice = random.Random()
    left: set[tuple[str, ...]] = set()
    for number in range(25 * ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()

        def run(me: Child, folder: Path = folder) -> None:
            with SQLiteBackend(folder / "x.db") as mine:
                mine.record({"codec": "json"})
                me.tell(1)
                mine.put("a", b"1")
                me.tell(2)

        child = Child(run)
        child.hear()
        time.sleep(dice.random() * 0.004)
        child.kill()
        acknowledged = child.end() == 2
        left.add(tuple(sorted(os.listdir(folder))))
        with SQLiteBackend(folder / "x.db") as backend:
            try:
                assert backend.get("a").data == b"1"
            except NotFoundError:
                assert not acknowledged
            backend.put("a", b"2")
            assert backend.get("a").data == b"2"
        assert sorted(os.listdir(folder)) == ["x.db", "x.db-lock"]


def test_processes_that_create_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(6 * ROUNDS):
        path = tmp_path / f"{number}.db"
        line = context.Barrier(4)

        def run(me: Child, path: Path = path, line: Any = line) -> None:
            with SQLiteBackend(path, sync="normal") as mine:
                mine.record({"codec": "json"})
                line.wait()
                try:
                    mine.put("winner", b"1", if_match=ABSENT)
                    won = 1
                except PreconditionError:
                    won = 0
                mine.put(f"p/{os.getpid()}", b"1")
                me.tell(won)

        children = [Child(run) for _ in range(4)]
        assert sum(child.end() for child in children) == 1
        assert {child.status for child in children} == {0}
        with SQLiteBackend(path) as backend:
            assert set(backend.keys("p/")) == {f"p/{child.pid}" for child in children}
            assert backend.recorded() == {"codec": "json"}


# Turns.


def test_writers_take_turns(path: Path) -> None:
    """With SQLite's own way of waiting, some have hardly begun when the first has finished."""
    context = multiprocessing.get_context("fork")
    line, stop = context.Barrier(8), context.Event()
    goal = 200
    with SQLiteBackend(path) as backend:
        backend.put("n", b"0")

    def run(me: Child) -> None:
        with SQLiteBackend(path) as mine:
            mine.put(f"p/{os.getpid()}", b"")
            line.wait()
            done = 0
            while done < goal and not stop.is_set():
                blob = mine.get("n")
                try:
                    mine.put("n", b"%d" % (int(blob.data) + 1), if_match=blob.etag)
                except PreconditionError:
                    continue
                done += 1
            stop.set()
            me.tell(done)

    children = [Child(run) for _ in range(8)]
    shares = [child.end() for child in children]
    with SQLiteBackend(path) as backend:
        assert int(backend.get("n").data) == sum(shares)
    assert max(shares) == goal
    assert min(shares) > goal // 20, shares  # SQLite by itself lets the unlucky ones do one or two


STRUCK = """
import os, signal, sys, threading
from perdure.errors import BackendError
from perdure_backends.sqlite import SQLiteBackend

path, how, act = sys.argv[1:]
backend, other = SQLiteBackend(path, sync="normal"), SQLiteBackend(path, sync="normal")
backend.put("n", b"-1")
other.get("n")
struck, refused = 0, 0

def strike(*_):
    global struck, refused
    struck += 1
    if act == "close" and struck > 20:
        backend.close()
    elif act == "write":
        try:
            other.put("struck", b"%d" % struck)
            backend.put("struck", b"%d" % struck)
            assert backend.get("struck").data == b"%d" % struck
            backend.put_many({"s/1": b"%d" % struck, "s/2": b"%d" % struck})
        except BackendError as error:
            assert "several values" in str(error), error
            refused += 1
    elif act == "fork" and struck % 10 == 0:
        pid = os.fork()
        if not pid:
            try:
                backend.get("n")
            except BackendError as error:  # in the middle of a call it is refused, between two it is not
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

class Owner:
    def __init__(self):
        self.me = self

    def __del__(self):
        strike()

keep, failed = [], None
if how == "signal":
    signal.signal(signal.SIGALRM, lambda *_: (strike(), signal.setitimer(signal.ITIMER_REAL, 0.0005)))
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
for n in range(2500):
    if how == "finalizer":
        Owner()
        keep.append([])
    data = b"%d" % n
    try:
        if n % 5 == 0:
            backend.put_many({f"many/{i}": data for i in range(250)} | {"n": data})
        elif n % 5 == 1:
            backend.put_many({f"few/{i}": data for i in range(50)} | {"n": data})
        else:
            backend.put("n", data)
        assert backend.get("n").data == data, "acknowledged, and not there"
    except BackendError as error:
        failed = error
        break
signal.setitimer(signal.ITIMER_REAL, 0)
if act == "close":
    assert "was closed" in str(failed), failed
else:
    assert failed is None, failed
assert struck > 20, struck
last = int(SQLiteBackend(path).get("n").data)
assert last in (n, n - 1), (last, n)
os._exit(0)
"""


@pytest.mark.parametrize("act", ["write", "close", "fork"])
@pytest.mark.parametrize("how", ["signal", "finalizer"])
def test_what_strikes_a_call_of_its_own_thread_harms_neither(path: Path, how: str, act: str) -> None:
    """Until Python 3.12 finalizers, and signal handlers through them, strike even within a call into C."""
    for _ in range(ROUNDS):
        child = subprocess.run([sys.executable, "-c", STRUCK, str(path), how, act], capture_output=True, text=True, timeout=120)
        assert (child.returncode, child.stderr) == (0, "")


def test_writing_in_the_middle_of_a_transaction_of_ones_own_is_refused_at_once(path: Path) -> None:
    backend, other = SQLiteBackend(path), SQLiteBackend(path)
    backend.put("a", b"0")
    seen: list[BackendError] = []

    def strike(*_: object) -> None:
        for one in (backend, other):
            with pytest.raises(BackendError, match=r"'h'.*middle of a write of several values.*Set a flag") as caught:
                one.put("h", b"1")
            assert caught.value.errno == errno.EDEADLK
            assert one.get("a").data == b"0", "what is not committed yet"
            seen.append(caught.value)

    class Rows(list[Any]):
        def __iter__(self) -> Any:
            yield from super().__iter__()
            strike()

    sql = "INSERT INTO blobs VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET data = excluded.data"
    rows = [("a", "1" * 16, 0.0, b"1"), ("b", "2" * 16, 0.0, b"1")]
    backend._calls.write(None, "", Rows((sql, row) for row in rows), many=True)
    assert len(seen) == 2
    assert {key: blob.data for key, blob in backend.get_many(["a", "b", "h"]).items()} == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize("how", ["used", "new"])
def test_a_fork_does_not_wait_for_a_call_that_waits_for_the_fork(tmp_path: Path, how: str) -> None:
    """It was struck by a handler that needs what the forking thread holds while it waits for that call to end."""
    code = f"""
import os, signal, sys, threading
from perdure_backends import _sqlite_file, _sqlite_links
from perdure_backends._flock import LOCK_EX, LOCK_UN, flock, open_lock
from perdure_backends.sqlite import SQLiteBackend

first, second = SQLiteBackend({str(tmp_path / "a.db")!r}), SQLiteBackend({str(tmp_path / "b.db")!r})
first.put("k", b"1")
if sys.argv[1] == "used":
    second.put("k", b"1")
turn = open_lock({str(tmp_path / "a.db-lock")!r})
flock(turn, LOCK_EX)
inode, codes = os.fstat(turn).st_ino, []

def strike(*_):
    second.contains("k")
    flock(turn, LOCK_UN)

def fork():
    child = os.fork()
    if not child:
        answer = second.contains("k")
        os._exit(0 if answer == (sys.argv[1] == "used") else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

def disturb():
    while not any(f":{{inode}} " in line and "->" in line for line in open("/proc/locks")):
        pass
    forking.start()
    while _sqlite_links.gate.acquire(blocking=False):
        _sqlite_links.gate.release()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

signal.signal(signal.SIGUSR1, strike)
forking, disturbing = threading.Thread(target=fork), threading.Thread(target=disturb)
disturbing.start()
first.put("k", b"2")
disturbing.join()
forking.join()
assert codes == [0], codes
assert first.get("k").data == b"2"
"""
    child = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stderr) == (0, "")


def test_a_handler_does_not_make_the_file_out_of_turn(path: Path) -> None:
    """Who has the turn may be about to make it, and what is thrown away first would be theirs."""
    backend, other = SQLiteBackend(path), SQLiteBackend(path)
    turn = open_lock(f"{path}-lock")
    flock(turn, LOCK_EX)
    inode, seen = os.fstat(turn).st_ino, []

    def strike(*_: object) -> None:
        with pytest.raises(BackendError, match=r"'h'.*middle of a first write.*Set a flag") as caught:
            other.put("h", b"1")
        seen.append(caught.value.errno)
        assert not path.exists()
        flock(turn, LOCK_UN)

    def disturb() -> None:
        while not any(f":{inode} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines()):
            pass
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, strike)
    disturbing = threading.Thread(target=disturb)
    try:
        disturbing.start()
        backend.put("k", b"1")
    finally:
        signal.signal(signal.SIGUSR1, before)
        disturbing.join()
        close_lock(turn)
    assert seen == [errno.EDEADLK]
    assert list(other.keys()) == ["k"]


@pytest.mark.parametrize("act", ["read", "write"])
def test_a_child_forked_while_a_connection_is_being_made_does_not_use_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    SQLiteBackend(path).put("k", b"0")
    really_open, codes, me = _sqlite_file.open_live, [], os.getpid()

    def open_and_fork(*arguments: Any) -> Any:
        monkeypatch.undo()
        db = really_open(*arguments)
        child = os.fork()
        if child:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return db

    monkeypatch.setattr(_sqlite_file, "open_live", open_and_fork)
    backend = SQLiteBackend(path)
    try:
        assert backend.get("k").data == b"0" if act == "read" else backend.put("k", b"1")
    except BackendError as error:
        if os.getpid() == me:
            raise
        try:
            SQLiteBackend(path).put("k", b"2")
        except BackendError as again:
            os._exit(7 if "was forked" in str(error) and "was forked" in str(again) else 1)
    if os.getpid() != me:
        os._exit(2)
    assert codes == [7]
    backend.put("k", b"3")
    assert SQLiteBackend(path).get("k").data == b"3"


def test_a_fork_waits_for_a_backend_that_is_dropped_in_another_thread(tmp_path: Path) -> None:
    """Its last connection is being closed, which merges the log into the file, and nobody else must come in between."""
    code = """
import os, sys, threading
from perdure_backends.sqlite import SQLiteBackend

path = sys.argv[1]
for number in range(4):
    held = [SQLiteBackend(f"{path}{number}", sync="normal")]
    held[0].put("a", bytes(500_000))
    dropping = threading.Thread(target=held.clear)
    dropping.start()
    child = os.fork()
    if not child:
        SQLiteBackend(f"{path}{number}").put("b", b"1")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    dropping.join()
    assert sorted(SQLiteBackend(f"{path}{number}").keys()) == ["a", "b"]
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_lock_file_that_was_removed_with_the_database_is_not_locked_again(path: Path) -> None:
    backend = SQLiteBackend(path)
    backend.put("old", b"1")
    for name in os.listdir(path.parent):
        os.unlink(path.parent / name)
    time.sleep(0.06)  # until the removal is noticed
    assert not backend.contains("old")
    turn = open_lock(f"{path}-lock")
    flock(turn, LOCK_EX)
    inode, waited, done = os.fstat(turn).st_ino, [], threading.Event()

    def let_go() -> None:
        while not done.is_set():
            if any(f":{inode} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines()):
                waited.append(True)
                flock(turn, LOCK_UN)
                return

    letting_go = threading.Thread(target=let_go)
    letting_go.start()
    backend.put("new", b"1")
    done.set()
    letting_go.join()
    close_lock(turn)
    assert waited
    assert list(backend.keys()) == ["new"]


def test_settings_recorded_while_others_are_written_are_not_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SQLiteBackend(path)
    really_settle = backend._calls._settle

    def settle(db: Any) -> None:
        monkeypatch.undo()
        really_settle(db)
        recording = threading.Thread(target=backend.record, args=({"codec": "pkl"},))
        recording.start()
        recording.join()

    monkeypatch.setattr(backend._calls, "_settle", settle)
    backend.put("a", b"1")
    backend.put("a", b"2")
    assert backend.recorded() == {"codec": "pkl"}
