"""What the tortures of snapshots kill: `python saver.py FUNCTION URL ARGUMENT...`. It tells what it does, a line a step."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from perdure.snapshots import KeepLatest, PersistentStateMixin, StateStore

SIZES = [10, 40_000, 300_000]  # items: in the pickle, in a file of its own, and large enough for several threads


class Files(PersistentStateMixin):
    """Saves itself to two files."""

    def __init__(self) -> None:
        self.step = 0

    def save_state(self, path: Path) -> None:
        path.with_suffix(".txt").write_text(str(self.step))
        path.mkdir()
        (path / "more").write_bytes(str(self.step).encode() * 5000)

    def load_state(self, path: Path) -> None:
        self.step = int(path.with_suffix(".txt").read_text())
        assert (path / "more").read_bytes() == str(self.step).encode() * 5000


class Job:
    """A state of which every piece tells the step it belongs to, but for one that never changes."""

    def __init__(self, url: str, **options: Any) -> None:
        self.store = StateStore(url, **options)
        self.arrays = [self.store.register_value(f"array{n}", np.zeros(size)) for n, size in enumerate(SIZES)]
        self.fixed = self.store.register_value("fixed", np.arange(50_000))
        self.files = Files()
        self.store.register("files", self.files)

    def be(self, step: int) -> None:
        """Change everything."""
        for array in self.arrays:
            array.value[:] = step
        self.files.step = step

    def check(self, step: int) -> None:
        """Fail where anything is not of this step."""
        for array in self.arrays:
            assert (array.value == step).all(), f"an array holds {array.value.min()} to {array.value.max()} at step {step}"
        assert (self.fixed.value == np.arange(50_000)).all()
        assert self.files.step == step


def say(text: str) -> None:
    """One line, in one call that a kill cannot tear."""
    os.write(1, text.encode() + b"\n")


def save(url: str, keep: str = "2", background: str = "") -> None:
    """Go on from the newest snapshot, and save step after step, until killed."""
    job = Job(url, keep=KeepLatest(int(keep)))
    found = job.store.load_latest()
    step = found.metadata["step"] if found else 0
    job.check(step)
    say(f"from {step}")
    while True:
        step += 1
        job.be(step)
        if background:
            saving = job.store.save_async({"step": step})
            job.be(-1)
            saving.wait()
        else:
            job.store.save_state({"step": step})
        say(f"saved {step}")


def few(url: str, steps: str) -> None:
    """Save some steps, without threads, so that its system calls have one order."""
    from perdure.snapshots import work

    work.AT_ONCE = 1
    job = Job(url, keep=KeepLatest(2))
    found = job.store.load_latest()
    step = found.metadata["step"] if found else 0
    for number in range(step + 1, step + 1 + int(steps)):
        job.be(number)
        say(f"> {number}")
        job.store.save_state({"step": number})
        say(f"< {number}")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
