"""The processes that the tortures start, kill and record: `python children.py FUNCTION ARGUMENT...`.

They tell what they do on standard output, a line for a step, written at once: see `ledger.Ledger`.
"""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable

from ledger import opened, seen, value

from perdure.errors import BackendError, NotFoundError, PerdureError, PreconditionError
from perdure.protocol import ABSENT, Backend, ETag
from perdure_backends import _file_batch, _file_folder, _file_writer, _sqlite_file, _system
from perdure_backends._file_writer import Writer
from perdure_backends.sqlite import SQLiteBackend

# To fork while threads run is what is tried here; from Python 3.12 on that is warned of.
warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)

_system._MUCH_UNWRITTEN = 1 << 40  # or what else happens on this machine would decide which system calls are made
BATCH = [f"{n % 3}/{n}" if n % 2 else f"{n}" for n in range(18)]
SIZES = [10, 10, 100, 100, 1000, 4000, 4052, 20_000, 65_000, 65_492, 200_000, 1_000_000]


def say(text: str, fd: int = 1) -> None:
    """One line, in one call that a kill cannot tear."""
    os.write(fd, text.encode() + b"\n")


def write(kind: str, sync: str, where: str, number: str, life: str) -> None:
    """Write, create, swap, delete and count, until killed."""
    rng = random.Random(f"{number} {life}")
    backend = opened(kind, sync, where)
    version = int(life) * 1_000_000
    while True:
        version += 1
        key = f"writer{number}/" + rng.choice(["a", "b", "c", "deep/d", "deep/e"])
        size = rng.choice(SIZES)
        action = rng.choice(["overwrite", "overwrite", "create", "swap", "delete", "count", "many"])
        if action == "count":
            count_up(backend, "shared", size // 10)
            continue
        if action == "many":
            script = Script(backend, version)
            keys = [f"writer{number}/{name}" for name in ["a", "deep/d", *(f"many/{n}" for n in range(7))]]
            if rng.random() < 0.2:
                script.delete_many(keys)
            else:
                script.put_many(keys, size // 5)
            version += 1
            continue
        deleting = action == "delete"
        say(f"> {key} {'-' if deleting else version}")
        present = backend.contains(key)
        data = value(key, version, size)
        if action == "overwrite":
            backend.put(key, data)
        elif action == "swap" and present:
            backend.put(key, data, if_match=backend.head(key).etag)  # nobody else writes this key: it must succeed
        elif deleting and present and version % 2:
            backend.delete(key, if_match=backend.head(key).etag)
        elif deleting:
            backend.delete(key)
        else:
            try:
                backend.put(key, data, if_match=ABSENT)
            except PreconditionError:
                assert present
                say(f"= {key} {version}")
                continue
            assert not present
        say(f"< {key} {'-' if deleting else version}")


def count_up(backend: Backend, key: str, size: int) -> None:
    """Add one, against other writers that do the same."""
    while True:
        try:
            blob = backend.get(key)
        except NotFoundError:
            number, condition = 1, ABSENT
        else:
            number, condition = int(blob.data.split(b" ")[1]) + 1, blob.etag
        say(f"> {key} {number}")
        try:
            backend.put(key, value(key, number, size), if_match=condition)
        except PreconditionError:
            say(f"= {key} {number}")
            continue
        say(f"< {key} {number}")
        return


def fork_while_writing(kind: str, sync: str, where: str, seed: str) -> None:
    """Write without end in a thread; the main thread forks a child that lives on, and tells its process id."""
    rng = random.Random(seed)
    backend = opened(kind, sync, where)
    written = threading.Semaphore(0)

    def go_on() -> None:
        version = int(seed) * 1_000_000
        while True:
            version += 1
            say(f"> k {version}")
            backend.put("k", value("k", version, 1_000_000))
            say(f"< k {version}")
            written.release()

    threading.Thread(target=go_on, daemon=True).start()
    for _ in range(rng.randrange(1, 6)):
        written.acquire()
    time.sleep(rng.random() * 0.01)  # whatever the thread is doing then, which mostly is to write a megabyte
    child = os.fork()
    if not child:
        os.close(1)
    say("child" if child else "ready", 2)
    sys.stdin.read()  # the parent is killed meanwhile; the child waits until nobody holds the other end
    say("the child ends", 2)
    os._exit(0)


def one_step(kind: str, sync: str, where: str, action: str) -> None:
    """Change the key `k`, which has version 1 (`create`: is absent), once; if that fails, tell it and try again."""
    backend = opened(kind, sync, where)
    before = None if action in ("create", "first") else backend.head("k").etag
    for version in ("2", "3"):
        target = "-" if action == "delete" else version
        say(f"> k {target}")
        try:
            if action == "delete":
                backend.delete("k", if_match=before)
            else:
                condition = {"create": ABSENT, "first": ABSENT, "swap": before}.get(action)
                backend.put("k", value("k", int(version), 5000), if_match=condition)
        except PreconditionError:
            say(f"= k {target}")
            return
        except PerdureError as error:
            say(f"! {type(error).__name__} {error.errno if isinstance(error, OSError) else 0} {error.key} {error}")
            say(f"? {seen(backend, 'k')}")
            before = _etag(backend) if before else None
        else:
            say(f"< k {target}")
            return


def one_batch(kind: str, sync: str, where: str, action: str) -> None:
    """Write or remove all keys that `BATCH` names, at once; if that fails, tell it and try again."""
    if action == "put one by one":  # as where there is no syncfs that can be relied on
        _file_batch.whole_sync = lambda fd: None
    backend = opened(kind, sync, where)
    for version in ("2", "3"):
        target = "-" if action == "delete" else version
        for key in BATCH:
            say(f"> {key} {target}")
        try:
            if action == "delete":
                backend.delete_many(BATCH)
            else:
                backend.put_many({key: value(key, int(version), 500) for key in BATCH})
        except PerdureError as error:
            say(f"! {type(error).__name__} {error.errno if isinstance(error, OSError) else 0} {error.key} {error}")
        else:
            for key in BATCH:
                say(f"< {key} {target}")
            return


def _etag(backend: Backend) -> ETag | None:
    try:
        return backend.head("k").etag
    except NotFoundError:
        return None


def unprivileged(kind: str, where: str) -> None:
    """Read and write as a user who owns nothing."""
    backend = opened(kind, "full", where)
    os.setgid(65534)
    os.setuid(65534)
    tries: list[tuple[str, Callable[[], object]]] = [
        ("get", lambda: backend.get("k").data.decode()),
        ("keys", lambda: sorted(backend.keys())),
        ("put", lambda: backend.put("k", b"new")),
        ("create", lambda: backend.put("l", b"new")),
        ("delete", lambda: backend.delete("k")),
        ("contains hidden", lambda: backend.contains("hidden/k")),
        ("get hidden", lambda: backend.get("hidden/k")),
        ("names only", lambda: list(backend.keys("listed/"))),
        ("scan names only", lambda: list(backend.scan("listed/"))),
    ]
    for name, attempt in tries:
        try:
            say(f"{name}: {attempt()}")
        except BackendError as error:
            say(f"{name}: errno {error.errno}: {error}")
        except PerdureError as error:
            say(f"{name}: {type(error).__name__}")


def put_on_command(kind: str, sync: str, where: str) -> None:
    """Put what each line of the input says: a key and a version."""
    backend = opened(kind, sync, where)
    for line in sys.stdin:
        key, version = line.split()
        backend.put(key, value(key, int(version), 10))
        say(version)


def fork_again_and_again(kind: str, sync: str, where: str, forks: str) -> None:
    """Threads write; the main thread writes, too, and forks children that write with the same handle, two at a time."""
    backend = opened(kind, sync, where)
    over = threading.Event()
    troubles: list[BaseException] = []

    def write_on(name: str) -> None:
        try:
            version = 0
            while not over.is_set():
                version += 1
                backend.put(name, value(name, version, random.choice(SIZES)))
                say(f"{name} {version}")
        except BaseException as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=write_on, args=(f"thread{number}",), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    children: list[int] = []
    for number in range(int(forks)):
        backend.put("main", value("main", number, 10))
        say(f"main {number}")
        child = os.fork()
        if child == 0:
            for version in range(3):
                key = f"child{number}"
                backend.put(key, value(key, version, random.choice(SIZES)))
                say(f"{key} {version}")
            if number % 2:
                os._exit(0)
            sys.exit(0)  # with all that runs at the end of an interpreter
        children.append(child)
        if len(children) == 2:
            for pid in children:
                assert os.waitpid(pid, 0)[1] == 0
            children.clear()
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    over.set()
    for thread in threads:
        thread.join()
    assert not troubles, troubles


def use_a_dict(url: str, name: str) -> None:
    """Count, and store values of Python, until killed."""
    import perdure

    with perdure.open(url) as d:
        number = 0
        while True:
            number += 1
            say("counting hits")
            d.transform_item("hits", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1)
            say("counted hits")
            key = f"items/{name}/{number}"
            say(f"storing {key}")
            d[tuple(key.split("/"))] = {"text": f"{name}.{number}" * 1000, "of": (key, 1.5, None)}
            say(f"stored {key} {name}.{number}")


class Script:
    """Steps that are told one by one, with versions that count up from `first`."""

    def __init__(self, backend: Backend, first: int) -> None:
        self.backend = backend
        self._version = first

    def put(self, key: str, size: int, how: str = "overwrite") -> None:
        self._version += 1
        condition = ABSENT if how == "create" else self.backend.head(key).etag if how == "swap" else None
        say(f"> {key} {self._version}")
        self.backend.put(key, value(key, self._version, size), if_match=condition)
        say(f"< {key} {self._version}")

    def delete(self, key: str, how: str = "") -> None:
        condition = self.backend.head(key).etag if how == "swap" else None
        say(f"> {key} -")
        self.backend.delete(key, if_match=condition)
        say(f"< {key} -")

    def put_many(self, keys: list[str], size: int) -> None:
        self._version += 1
        for key in keys:
            say(f"> {key} {self._version}")
        self.backend.put_many({key: value(key, self._version, size) for key in keys})
        for key in keys:
            say(f"< {key} {self._version}")

    def delete_many(self, keys: list[str]) -> None:
        for key in keys:
            say(f"> {key} -")
        self.backend.delete_many(keys)
        for key in keys:
            say(f"< {key} -")


def first_script(kind: str, sync: str, where: str, fault: str = "") -> None:
    """A life of all kinds of writes, from the first one on."""
    with opened(kind, sync, where) as backend:
        if fault:
            _break(fault)
        backend.record({"codec": "msgpack"})
        script = Script(backend, 0)
        script.put("a", 10)
        if isinstance(backend, SQLiteBackend):
            # Move the log into the database every few writes, or none of that would happen here.
            backend._calls._local.link.db.execute("PRAGMA wal_autocheckpoint = 12")
        script.put("deep/er/b", 4000, "create")
        script.put("a", 20_000)
        script.put("deep/er/b", 100, "swap")
        script.put_many(["m/x", "m/y", "m/z"], 600)
        script.put("deep/c", 70_000)
        script.delete("a")
        script.put("a", 30, "create")
        script.put_many(["m/x", "m/y", "m/z"], 6000)
        script.delete("deep/er/b", "swap")
        script.put("deep/er/b", 9000, "create")
        script.delete_many(["m/x", "m/y", "m/z"])
        script.put("deep/er/b", 5, "swap")
        many = ["a", *(f"deep/{n % 3}/{n}" for n in range(17))]
        script.put_many(many, 20)
        script.put_many(many, 700)
        script.delete_many(many[3:])
    with opened(kind, sync, where) as backend:
        script.backend = backend
        script.put("a", 3000, "swap")
        script.put("deep/er/and/d", 300, "create")
        script.delete("a")


def second_script(kind: str, sync: str, where: str) -> None:
    """Go on where the first was killed, anywhere."""
    with opened(kind, sync, where) as backend:
        backend.record({"codec": "msgpack"})
        script = Script(backend, 1000)
        script.delete("deep/er/b")
        script.delete("a")
        script.put("deep/er/d", 700)
        script.put("deep/er/b", 700)
        script.put("z", 10)
        script.put("a", 10)


def _break(fault: str) -> None:
    """Make the backends forget one of the things that make a write durable."""

    def nothing(*_: object) -> None:
        pass

    if fault == "no fsync of folders":
        _file_writer.sync_folder = _file_folder.sync_folder = nothing
    elif fault == "no fsync of files":
        fsync = os.fsync
        os.fsync = lambda fd: fsync(fd) if stat.S_ISDIR(os.fstat(fd).st_mode) else None
    elif fault == "fsync after the rename":
        write_new, publish = Writer._write_new, Writer._publish

        def write_only(self: Writer, *arguments: object) -> object:
            self._durable = False
            try:
                return write_new(self, *arguments)  # type: ignore[arg-type]
            finally:
                self._durable = True

        def publish_and_sync(self: Writer, temporary: str, path: str, create: bool) -> None:
            publish(self, temporary, path, create)
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

        Writer._write_new, Writer._publish = write_only, publish_and_sync  # type: ignore[method-assign]
    elif fault == "no sync of many files":
        _file_batch.whole_sync = lambda fd: lambda: None
    elif fault == "no sync of the log":
        open_live = _sqlite_file.open_live
        _sqlite_file.open_live = lambda path, sync, timeout: open_live(path, "NORMAL", timeout)
    else:
        raise AssertionError(fault)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
