"""Workers as processes, or as threads where the place lives in this process."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ...errors import PerdureError
from ...mapping.opening import open as open_dict
from .job import Job
from .worker import Worker, WorstMoment

Event = dict[str, Any]
"""What is reported, `{"event": kind, ...}`. From workers: `added` (`files`), `waiting` (`ending`, `file`), `error` (`message`)
and `ended` (`killed`); all with `worker`."""


class Crew(Protocol):
    """Hires and kills workers."""

    events: queue.SimpleQueue[Event]

    def hire(self, orders: Mapping[str, Any]) -> None:
        """Start a worker; `orders` are the arguments of `work` below, but for the last three."""
        ...

    def kill(self, worker: str) -> None:
        """End a worker wherever it is, without a word of warning."""
        ...


def work(
    url: str,
    name: str,
    run: int,
    gone: list[str],
    share: tuple[int, int],
    endings: dict[str, int],
    report: Callable[[Event], None],
    wait: Callable[[], object],
    check: Callable[[], None],
) -> None:
    """Be a worker from beginning to end.

    Args:
        url: The dict.
        name: See `Worker`; likewise `run`, `gone` and `share`.
        endings: See `WorstMoment`.
        report: Called with each event.
        wait: Called to wait for the end; does not return.
        check: Called at each step; raises if the end has come.
    """

    def wait_for_end(ending: str, file: str) -> None:
        report({"event": "waiting", "worker": name, "ending": ending, "file": file})
        wait()

    try:
        with open_dict(url) as shared:
            job = Job(shared)
            worst = WorstMoment(job, name, endings, wait_for_end)

            def step(what: str, *, file: str, files: int) -> None:
                check()
                worst(what, file=file, files=files)
                if what == "added":
                    report({"event": "added", "worker": name, "files": files})

            Worker(job, name, run, gone=gone, share=share, step=step).work()
    except PerdureError as error:
        report({"event": "error", "worker": name, "message": str(error)})
        raise SystemExit(3) from None


class Processes:
    """Workers as processes of their own; they get their orders, and are watched, through pipes."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def hire(self, orders: Mapping[str, Any]) -> None:
        process = start_child("worker", orders)
        self._running[orders["name"]] = process
        threading.Thread(target=self._listen, args=(orders["name"], process), daemon=True).start()

    def _listen(self, name: str, process: subprocess.Popen[bytes]) -> None:
        for event in events_of(process):
            self.events.put(event)
        self.events.put({"event": "ended", "worker": name, "killed": end_of(process) != 0, "pid": process.pid})

    def kill(self, worker: str) -> None:
        self._running[worker].kill()  # SIGKILL


class Threads:
    """Workers as threads of this process. What is killed stops at its next step, and what is halted as well.

    Args:
        halt: Ends all of them when it is set.
    """

    def __init__(self, halt: threading.Event) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._halt = halt
        self._killed: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def hire(self, orders: Mapping[str, Any]) -> None:
        name = orders["name"]
        self._killed[name] = threading.Event()
        thread = threading.Thread(target=self._work, args=(name, dict(orders)), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self, name: str, orders: dict[str, Any]) -> None:
        killed = self._killed[name]

        def check() -> None:
            if self._halt.is_set() or killed.is_set():
                raise SystemExit(9)

        def wait() -> None:
            killed.wait()
            raise SystemExit(9)

        whole = False
        try:
            work(**orders, report=self.events.put, wait=wait, check=check)
            whole = True
        except SystemExit:
            return
        finally:
            self.events.put({"event": "ended", "worker": name, "killed": not whole, "pid": None})

    def kill(self, worker: str) -> None:
        self._killed[worker].set()

    def end(self) -> None:
        """Wait until all threads are gone; `halt` is set already."""
        for killed in list(self._killed.values()):
            killed.set()
        for thread in list(self._threads):
            thread.join()


def start_child(role: str, orders: Mapping[str, Any], *, own_group: bool = False) -> subprocess.Popen[bytes]:
    """Start `python -m perdure.cli.demo ROLE`. Its orders go through stdin, where nobody else sees the URL; that stdin then
    stays open, and the child ends when it is closed, which also happens when this process dies."""
    command = [sys.executable, "-m", "perdure.cli.demo", role]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=own_group)
    assert child.stdin is not None
    child.stdin.write(json.dumps(orders).encode() + b"\n")
    child.stdin.flush()
    return child


def events_of(child: subprocess.Popen[bytes]) -> Iterator[Event]:
    """What a child reports, until it ends. A last line that was cut off by its death is left out."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.endswith(b"\n"):
            yield json.loads(line)


def end_of(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child that has closed its output, and return its exit status."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    return child.wait()


def child_orders() -> dict[str, Any]:
    """In a child: read the orders, and from now on end together with the parent."""
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    orders: dict[str, Any] = json.loads(line)
    return orders


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would be in the way of an ordinary exit
    os._exit(9)


def print_event(event: Event) -> None:
    """In a child: report to the parent."""
    try:
        os.write(1, json.dumps(event).encode() + b"\n")
    except BrokenPipeError:
        os._exit(9)  # the parent is gone
