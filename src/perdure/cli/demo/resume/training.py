"""A small network learns which package of Python's library some lines are from. End it at any moment, and start it again.

    python training.py

Copy it as you like; it needs numpy and perdure. What the next step depends on is registered: the network, its momentum, the
order of the examples and the random generator. So is the history, which only people look at.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perdure import KeepLatest, RandomGenerators, StateStore

PACKAGES, LINES, FEATURES, HIDDEN, BATCH, RATE = 8, 20, 2048, 256, 64, np.float32(0.3)


class Network:
    """Counts in, one hidden layer, a score for each package out."""

    def __init__(self, random: np.random.Generator) -> None:
        self.inner = random.normal(0, 0.25, (FEATURES, HIDDEN)).astype(np.float32)
        self.outer = random.normal(0, 0.06, (HIDDEN, PACKAGES)).astype(np.float32)

    def accuracy(self, counts: Any, packages: Any) -> float:
        """Which part of these it gets right."""
        scores = np.maximum(counts @ self.inner, 0) @ self.outer
        return float(np.mean(scores.argmax(1) == packages))

    def learn(self, counts: Any, packages: Any, momentum: dict[str, Any], random: np.random.Generator) -> float:
        """One step downhill; half of the hidden layer sleeps, another half each time. Returns the loss before it."""
        awake = (random.random((len(counts), HIDDEN)) < 0.5) * np.float32(2)
        hidden = np.maximum(counts @ self.inner, 0) * awake
        chances = np.exp(hidden @ self.outer)
        chances /= chances.sum(1, keepdims=True)
        right = np.arange(len(packages)), packages
        loss = -np.log(chances[right]).mean()
        chances[right] -= 1
        back = chances @ self.outer.T * awake * (hidden > 0)
        for name, gradient in {"inner": counts.T @ back, "outer": hidden.T @ chances}.items():
            momentum[name] *= np.float32(0.9)
            momentum[name] -= gradient * RATE / len(packages)
            vars(self)[name] += momentum[name]
        return float(loss)


def count(text: bytes) -> Any:
    """How often each run of four characters occurs, by its hash; a long text weighs as much as a short one."""
    codes = np.frombuffer(text, np.uint8).astype(np.uint32)
    runs = codes[:-3] | codes[1:-2] << 8 | codes[2:-1] << 16 | codes[3:] << 24
    counts = np.log1p(np.bincount(runs * np.uint32(0x9E3779B1) >> 21, minlength=FEATURES).astype(np.float32))
    return counts / np.linalg.norm(counts)


def read_examples() -> list[tuple[Any, Any]]:
    """Counts and numbers of packages: of pieces to learn from, and of a quarter of the files, which it never sees."""
    found = [init.parent for init in Path(sysconfig.get_path("stdlib")).glob("*/__init__.py") if init.parent.name != "test"]
    packages = sorted([sorted(file for file in folder.rglob("*.py") if "test" not in file.parent.name) for folder in found])
    packages.sort(key=lambda files: sum(file.stat().st_size for file in files if len(files) >= 8))
    examples: tuple[list[Any], list[Any]] = [], []
    for package, files in enumerate(packages[-PACKAGES:]):
        for number, file in enumerate(files):
            lines = file.read_bytes().splitlines(keepends=True)
            pieces = [lines[start : start + LINES] for start in range(0, len(lines) - LINES + 1, LINES)]
            examples[number % 4 == 3].extend((count(b"".join(piece)), package) for piece in pieces)
    return [(np.stack([counts for counts, _ in part]), np.array([package for _, package in part])) for part in examples]


def show(step: int, loss: float, accuracy: float) -> None:
    """Print how it goes."""
    print(f"step {step:4}  loss {loss:.3f}  right {accuracy:.1%}")


def train(store: StateStore, steps: int = 800, report: Callable[[int, float, float], object] = show) -> None:
    """Train to the end, from wherever the newest snapshot is."""
    (counts, packages), unseen = read_examples()
    random = np.random.default_rng(1)
    network = Network(random)
    store.register("network", network)
    store.register("random", RandomGenerators(random))
    momentum = store.register_value("momentum", {name: np.zeros_like(array) for name, array in vars(network).items()})
    order = store.register_value("order", np.arange(len(counts)))
    history = store.register_value("history", [network.accuracy(*unseen)])

    with store.running(every=0.1) as run:  # seconds, as it is so short; else "10 min"
        for step in range(run.step, steps):
            start = step * BATCH % (len(counts) - BATCH)
            if start < BATCH:
                random.shuffle(order.value)
            batch = order.value[start : start + BATCH]
            loss = network.learn(counts[batch], packages[batch], momentum.value, random)
            if step % 20 == 19:
                history.value.append(network.accuracy(*unseen))
            report(step, loss, history.value[-1])
            run.tick({"step": step, "loss": loss, "accuracy": history.value[-1]})


if __name__ == "__main__":
    with StateStore("training-run", keep=KeepLatest(3)) as store:
        train(store)
