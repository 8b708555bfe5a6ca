"""The program as a whole, which can be started, listened to, and killed: as processes, or as threads for a place in memory."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ...errors import BackendError, PerdureError
from .coordinator import Coordinator
from .crew import Event, Threads, end_of, events_of, start_child


class Program(Protocol):
    """One start of the coordinator and its workers."""

    def events(self) -> Iterator[Event]:
        """What it reports, until it ends.

        Raises:
            BackendError: It failed.
        """
        ...

    def kill(self) -> None:
        """End it and all its workers at once, wherever they are. Nothing of it is left afterwards but the dict."""
        ...


class ProcessProgram:
    """A fresh process for the coordinator, which starts one for each worker.

    Args:
        url: The dict.
        workers: How many.
        endings: See `Coordinator`.
    """

    def __init__(self, url: str, workers: int, endings: Mapping[str, int]) -> None:
        orders: dict[str, Any] = {"url": url, "workers": workers, "endings": dict(endings)}
        self._process = start_child("coordinator", orders, own_group=True)

    def events(self) -> Iterator[Event]:
        for event in events_of(self._process):
            if event["event"] == "failed":
                raise BackendError(event["message"])
            yield event
        if end_of(self._process) > 0:
            raise BackendError("the coordinator of the demo ended with an error", hint="What it said stands above.")

    def kill(self) -> None:
        if self._process.poll() is None and hasattr(os, "killpg"):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # elsewhere the workers notice that the coordinator is gone, and end
        end_of(self._process)


class ThreadProgram:
    """The same in threads of this process."""

    def __init__(self, url: str, workers: int, endings: Mapping[str, int]) -> None:
        self._halt = threading.Event()
        self._crew = Threads(self._halt)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        coordinator = Coordinator(self._crew, url, workers, endings, self._report)
        self._thread = threading.Thread(target=self._run, args=(coordinator,), daemon=True)
        self._thread.start()

    def _report(self, event: Event) -> None:
        if self._halt.is_set():
            raise SystemExit(9)
        self._events.put(event)

    def _run(self, coordinator: Coordinator) -> None:
        last: Event = {"event": "failed", "message": "the coordinator of the demo ended with an error"}
        try:
            coordinator.run()
            last = {"event": "end"}
        except PerdureError as error:
            last = {"event": "failed", "message": str(error)}
        except SystemExit:
            return
        finally:
            self._events.put(last)

    def events(self) -> Iterator[Event]:
        while (event := self._events.get())["event"] != "end":
            if event["event"] == "failed":
                raise BackendError(event["message"])
            yield event

    def kill(self) -> None:
        self._halt.set()
        self._crew.end()  # each thread's last event wakes the coordinator, which then finds that it is halted
        self._thread.join()
