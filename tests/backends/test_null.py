"""The null backend keeps those promises that remain when nothing is kept."""

from __future__ import annotations

from pathlib import Path

from perdure.testing import BackendContract
from perdure_backends.null import NullBackend


class TestNull(BackendContract):
    keeps = False

    def open(self, where: Path) -> NullBackend:
        return NullBackend()
