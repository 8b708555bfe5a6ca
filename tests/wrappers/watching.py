"""A place that tells what it was asked, and what it sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.errors import NotModified
from perdure.protocol import Backend, Blob
from perdure.testing import Faulty
from perdure.testing.faults import Call, Fault


class Watched(Faulty):
    """Notes the calls made to it, `requests`, and how many values it sent, `bodies`; `fault` strikes every call."""

    def __init__(self, backend: Backend, fault: Fault | None = None) -> None:
        super().__init__(backend, lambda call: self._watch)
        self.fault = fault
        self.requests: list[str] = []
        self.bodies = 0

    def _watch(self, call: Call, go: Callable[[], Any]) -> Any:
        outcome = call.name
        try:
            answer = go() if self.fault is None else self.fault(call, go)
        except NotModified:
            outcome = "not modified"
            raise
        finally:
            self.requests.append(outcome)
        if isinstance(answer, Blob):
            self.bodies += 1
        elif call.name == "get_many":
            self.bodies += len(answer)
        return answer

    def take(self) -> list[str]:
        """What was asked since the last time."""
        taken, self.requests = self.requests, []
        return taken
