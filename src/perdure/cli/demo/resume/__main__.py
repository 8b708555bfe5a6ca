"""The process that is killed: `python -m perdure.cli.demo.resume` trains, with its orders on stdin, and reports to stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ....errors import PerdureError
from ....mapping.progress import Progress
from ....snapshots import KeepLatest, Saving, Snapshot, StateStore
from ..crew import child_orders, print_event
from .training import train


class Reporting(StateStore):
    """Says from where it goes on, and when it begins to save."""

    def load_latest(self, *, strict: bool = True, progress: Progress = False) -> Snapshot | None:
        snapshot = super().load_latest(strict=strict, progress=progress)
        print_event({"event": "started", "step": snapshot.metadata["step"] + 1 if snapshot else 0})
        return snapshot

    def save_async(self, metadata: Mapping[str, Any] | None = None) -> Saving:
        print_event({"event": "saving"})
        return super().save_async(metadata)


def report(step: int, loss: float, accuracy: float) -> None:
    """Tell of a step that is done."""
    print_event({"event": "step", "step": step, "loss": loss, "accuracy": accuracy})


orders = child_orders()
try:
    with Reporting(orders["url"], keep=KeepLatest(3)) as store:
        train(store, orders["steps"], report)
except PerdureError as error:
    print_event({"event": "failed", "message": str(error)})
    sys.exit(3)
