"""Requests of event loops: made in threads, unless the place answers at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..aio.threads import Threads
from ..protocol import Backend

__all__ = ["call_of"]

_threads = Threads(32, "the caches of this process")


async def _at_once(call: Callable[[], Any]) -> Any:
    return call()


def call_of(backend: Backend) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """What makes calls to a place without holding up the event loop."""
    return _at_once if backend.place.startswith(("memory:", "null:")) else _threads.run
