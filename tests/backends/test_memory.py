"""The memory backend keeps the contract, within one process."""

from __future__ import annotations

from pathlib import Path

from perdure.testing import BackendContract
from perdure_backends.memory import MemoryBackend


class TestMemory(BackendContract):
    processes = False

    def open(self, where: Path) -> MemoryBackend:
        return MemoryBackend(str(where))
