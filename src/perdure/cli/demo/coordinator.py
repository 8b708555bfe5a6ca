"""The program that shares a job out among workers, replaces those that die, and keeps nothing but what is in the dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import BackendError
from ...mapping.opening import open as open_dict
from .crew import Crew, Event
from .job import Job

_MOST_DEATHS = 5  # one after the other, without any progress in between and not by our hand


_HINT = "Is another demo running on the same place? Wait for it, and start this again."


class Coordinator:
    """One run of the program, from start to finish or to a violent end.

    Args:
        crew: Who hires the workers.
        url: The dict; a demo has begun in it.
        workers: How many at once.
        endings: See `WorstMoment`; empty for a run that is to finish.
        emit: Called with each event for the user: `started` (`run`, `done`, `of`), `progress` (`done`), `killed` (`worker`,
            `file`, `by_us`), `replaced` (`worker`, `instead_of`), `stop me` (`worker`, `file`), `finished`.

    Raises (from `run`):
        BackendError: Workers end with errors again and again.
    """

    def __init__(self, crew: Crew, url: str, workers: int, endings: Mapping[str, int], emit: Callable[[Event], None]) -> None:
        self._crew = crew
        self._url = url
        self._workers = workers
        self._endings = dict(endings)
        self._emit = emit
        self._hired = 0
        self._active: set[str] = set()
        self._gone: list[str] = []
        self._waiting: dict[str, Event] = {}
        self._deaths = 0
        self._last_words = ""
        self._run = 0

    def run(self) -> None:
        """Work until every file is in the totals."""
        with open_dict(self._url) as shared:
            job = Job(shared)
            self._run = job.start_run()
            done, total = job.totals()["files"], len(job.files)
            self._emit({"event": "started", "run": self._run, "done": done, "of": total})
            before = -1
            while done < total:
                if done == before:
                    raise BackendError("the work does not get on", place=shared.place, hint=_HINT)
                before = done
                for number in range(self._workers):
                    self._hire(number)
                while self._active:
                    event = self._crew.events.get()
                    getattr(self, f"_on_{event['event']}")(event)
                done = job.totals()["files"]  # less than all only if workers died with nobody left to replace them
                self._endings = {}
            self._emit({"event": "finished", "done": done})

    def _hire(self, number: int) -> str:
        self._hired += 1
        name = f"worker-{self._hired}"
        self._active.add(name)
        share = (number, self._workers)
        orders: dict[str, Any] = {"url": self._url, "name": name, "run": self._run, "gone": self._gone, "share": share}
        self._crew.hire({**orders, "endings": self._endings})
        return name

    def _on_added(self, event: Event) -> None:
        self._deaths = 0
        self._emit({"event": "progress", "done": event["files"]})

    def _on_waiting(self, event: Event) -> None:
        self._waiting[event["worker"]] = event
        if event["ending"] == "kill":
            self._crew.kill(event["worker"])
        elif "kill" not in self._endings:
            self._ask_for_stop()

    def _on_error(self, event: Event) -> None:
        self._last_words = event["message"]

    def _on_ended(self, event: Event) -> None:
        name = event["worker"]
        self._active.discard(name)
        if not event["killed"]:
            return
        chosen = self._waiting.pop(name, {"file": None, "ending": None})
        by_us = chosen["ending"] == "kill"
        self._deaths += not by_us
        if self._deaths == _MOST_DEATHS:
            raise BackendError(f"workers die again and again. {self._last_words}".strip())
        self._gone.append(name)
        self._emit({"event": "killed", "worker": name, "pid": event["pid"], "file": chosen["file"], "by_us": by_us})
        new = self._hire(self._hired % self._workers)
        self._emit({"event": "replaced", "worker": new, "instead_of": name})
        self._endings.pop("kill", None)  # one death is enough, whoever did it
        self._ask_for_stop()

    def _ask_for_stop(self) -> None:
        """The stop comes after the kill, however the two workers were scheduled."""
        for event in self._waiting.values():
            if event["ending"] == "stop":
                self._emit({"event": "stop me", "worker": event["worker"], "file": event["file"]})
