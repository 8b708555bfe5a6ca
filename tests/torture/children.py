"""The processes that the tortures start, kill and record: `python children.py FUNCTION ARGUMENT...`.

They tell what they do on standard output, a line for a step, written at once: see `ledger.Ledger`.
"""

from __future__ import annotations

import os
import random
import sys
import threading

from ledger import opened, value

from perdure.errors import NotFoundError, PreconditionError
from perdure.protocol import ABSENT, Backend

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
        action = rng.choice(["overwrite", "overwrite", "create", "swap", "delete", "count"])
        if action == "count":
            count_up(backend, "shared", size // 10)
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
            backend.put("k", value("k", version, rng.choice(SIZES)))
            say(f"< k {version}")
            written.release()

    threading.Thread(target=go_on, daemon=True).start()
    for _ in range(rng.randrange(1, 6)):
        written.acquire()
    for _ in range(rng.randrange(3000)):
        pass
    child = os.fork()
    if not child:
        os.close(1)
    say("child" if child else "ready", 2)
    sys.stdin.read()  # the parent is killed meanwhile; the child waits until nobody holds the other end
    say("the child ends", 2)
    os._exit(0)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
