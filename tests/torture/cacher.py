"""What the torture of the cache kills: `python cacher.py use URL OPTIONS NAME`. It tells what it does, a line a step.

All times are seconds of the clock that all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from typing import Any

import perdure

ARGUMENTS = 40
LEASE = 1.0
_SIZES = [0, 10, 1000, 5000, 60_000]

_now = threading.local()  # which call a thread is in
_numbers = count(1)


def say(*words: object) -> None:
    """One line, in one call that a kill cannot tear."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def cached_work(url: str, options: dict[str, Any], name: str) -> Any:
    """A function whose results tell which run made them, and prove that they are whole."""

    def work(n: int) -> dict[str, Any]:
        run = f"{name}/{next(_numbers)}"
        rng = random.Random(f"{run} {n}")
        say("run", run, n, _now.called, time.monotonic())
        time.sleep(rng.choice([0, 0.001, 0.03]))
        failing = rng.random() < 0.05
        payload = rng.randbytes(rng.choice(_SIZES))
        say("end", run, time.monotonic())
        if failing:
            raise LookupError(run)
        return {"n": n, "run": run, "payload": payload, "digest": _digest(n, run, payload)}

    decorate: Callable[..., Any] = perdure.cached(
        url, version=1, key=lambda n: n, ignore="name", lease=LEASE, wait="1 min", on_error="raise", **options
    )
    return decorate(work)


def _digest(n: int, run: str, payload: bytes) -> str:
    return blake2b(b"%d %s " % (n, run.encode()) + payload).hexdigest()


def call(work: Any, n: int) -> str | None:
    """Call it, check what it answers, and return which run that is from; None where it failed."""
    _now.called = time.monotonic()
    try:
        value = work(n)
    except LookupError:
        return None
    assert value["n"] == n, f"{n} got the value of {value['n']}"
    assert value["digest"] == _digest(n, value["run"], value["payload"]), f"what {n} got is torn"
    return str(value["run"])


def use(url: str, options: str, name: str) -> None:
    """Call and invalidate, in two threads, until killed."""
    given = json.loads(options)
    invalidate = given.pop("invalidate")
    work = cached_work(url, given, name)
    numbers = count()

    def go_on(thread: int) -> None:
        rng = random.Random(f"{name} {thread}")
        try:
            while True:
                n = rng.randrange(ARGUMENTS)
                if rng.random() < invalidate:
                    number = f"{name}/{next(numbers)}"
                    say("invalidating", number, n, time.monotonic())
                    work.cache.invalidate(n)
                    say("invalidated", number, time.monotonic())
                    continue
                run = call(work, n)
                say("got", run, n, _now.called, time.monotonic())
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    threads = [threading.Thread(target=go_on, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def call_all(url: str, options: str, name: str) -> None:
    """Call each once, and tell how long it took."""
    given = json.loads(options)
    del given["invalidate"]
    work = cached_work(url, given, name)
    for n in range(ARGUMENTS):
        before = time.monotonic()
        call(work, n)
        say("took", name, time.monotonic() - before)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
