"""What the tests of locks share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from perdure.codecs.entry import read_note
from perdure.errors import (
    UnknownOutcomeError,
)
from perdure.locks import clock, holding, slots, waiting
from perdure.protocol import Backend
from perdure.testing.crew import PATIENCE
from perdure.testing.faults import Call, fail_before, lose_answer

KEY = "locks()/it"
HOLDER = b'{"nonce": "a", "token": 2, "renewal": 0, "ttl": 1.5, "name": "", "host": "", "pid": 1, "since": 1}'
SHORT = 0.7  # seconds; a holder that is alive must get to run in time, also on a busy machine
LONG = 3600.0


class Clock:
    """The boot clock of this process, when a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (clock, slots, waiting, holding):
            monkeypatch.setattr(module, "boot_time", lambda: self.now)


def until(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.005)


def stored(backend: Backend, key: str = KEY) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(read_note(backend.get(key).data) or b"")
    return fields


def lose_after(happens: bool) -> Any:
    return lose_answer() if happens else fail_before(UnknownOutcomeError)


class Late:
    """A write whose answer is lost, and that arrives when the next one is about to."""

    def __init__(self) -> None:
        self.on_its_way: Callable[[], Any] | None = None

    def __call__(self, call: Call) -> Any:
        return self.meet if call.name == "put" else None

    def meet(self, call: Call, go: Callable[[], Any]) -> Any:
        if self.on_its_way is None:
            self.on_its_way = go
            raise UnknownOutcomeError("the answer was lost")
        late, self.on_its_way = self.on_its_way, lambda: None
        late()
        return go()
