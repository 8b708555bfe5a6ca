"""Functions that several processes cache; each run leaves a line in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import perdure


def slow(where: Any, log: str, seconds: float = 0.3, **options: Any) -> Callable[[int], dict[str, int]]:
    """A function that takes some time, cached."""

    @perdure.cached(where, version=1, key=lambda n: n, ignore=("log", "seconds"), **options)
    def work(n: int) -> dict[str, int]:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {n}\n")
        time.sleep(seconds)
        return {"n": n, "square": n * n}

    return work


def runs(log: str) -> list[str]:
    """The lines that the runs left."""
    if not os.path.exists(log):
        return []
    with open(log) as file:
        return file.read().splitlines()
