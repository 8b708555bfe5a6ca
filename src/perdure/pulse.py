"""Calls that are made now and then, all by a few daemon threads: `beat = every(10.0, renew)`, and later `beat.stop()`.

There is no lock that a fork or a signal handler could meet half-way. The beats are in a dict, whose methods are single steps.
Of the threads one *leads*: it sleeps until a call is due, lets another one lead, and makes that call. So a call that takes long
holds up no other, as long as a thread is left; a thread is started when a call begins and none is left to lead.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from itertools import count
from math import inf
from operator import attrgetter
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeAlias

from .errors import UnavailableError, UsageError

__all__ = ["Beat", "every"]

_THREADS = 8
_LONGEST = 3600.0  # seconds of one sleep: what the system is asked to wait for has a limit

_log = logging.getLogger("perdure.pulse")
_due = attrgetter("due")

Call: TypeAlias = Callable[[], bool | None]


class Beat:
    """What `every` returns: a call that is made again and again until somebody stops it.

    Attributes:
        name: As given.
        interval: Seconds from the beginning of one call to that of the next.
        call: As given; `None` once it is stopped.
        due: When the next call begins, by `time.monotonic`; infinite while one is under way.
    """

    __slots__ = ("_number", "_pulse", "call", "due", "interval", "name")

    def __init__(self, pulse: _Pulse, interval: float, call: Call, name: str) -> None:
        self.name = name
        self.interval = interval
        self.call: Call | None = call
        self.due = monotonic() + interval
        self._pulse = pulse
        self._number = next(pulse.numbers)
        pulse.beats[self._number] = self

    @property
    def stopped(self) -> bool:
        """Whether no further call begins: it was stopped, its call returned False, or a fork left it in the parent."""
        return self.call is None or self._pulse is not _pulse

    def stop(self) -> None:
        """Begin no further call, and let go of the function. May be called twice, from anywhere, the call itself included.

        A call that another thread has just begun goes on; this does not wait for it.
        """
        self.call = None
        self._pulse.beats.pop(self._number, None)

    def __repr__(self) -> str:
        return f"<Beat {self.name or 'of no name'}, every {self.interval:g} s{', stopped' if self.stopped else ''}>"


def every(interval: float, call: Call, *, name: str = "") -> Beat:
    """Make a call every `interval` seconds, in a thread that does not keep the process alive.

    The first call begins after one interval, each further one an interval after the one before began, or when that one ends if
    it takes longer: a call never overlaps with itself, and what was missed (in a machine that slept) is not made up for.
    What the call raises is logged with its trace, by the logger `perdure.pulse`, and the beat goes on.

    Args:
        interval: Seconds, more than 0. By a clock that stands still while the machine sleeps.
        call: A function without arguments. When it returns `False` the beat ends. Held until then, or until `stop`.
        name: Stands in the log.

    Returns:
        The beat, to stop it. A forked child has none of its parent's beats; they go on in the parent.

    Raises:
        UsageError: The interval is not a positive number.
        UnavailableError: There is no thread yet and none can be started, as the process has as many as it may have, or ends.

    Cost: some microseconds; the first time and, where all threads are busy, up to the eighth time, the start of a thread.
    Threads are kept. May be called from any thread, a signal handler or a finalizer.
    """
    if not 0 < interval < inf:
        raise UsageError(f"an interval is a number of seconds above 0, not {interval!r}")
    pulse = _pulse
    beat = Beat(pulse, interval, call, name)
    try:
        pulse.notice(beat)
    except BaseException:
        beat.stop()
        raise
    return beat


class _Pulse:
    """The beats and threads of one process.

    Who changes what the leader looks at does so first and reads `sleeping_until` and `busy` afterwards; the leader sets these
    first and looks afterwards. So of two that meet at least one sees the other, and a thread too many or a look in vain is the
    worst that can happen.
    """

    def __init__(self) -> None:
        self.beats: dict[int, Beat] = {}
        self.numbers = count()
        self._lead = threading.Lock()  # only ever taken by the threads themselves
        self._wake: SimpleQueue[float] = SimpleQueue()  # can be put to at any moment, in a signal handler, too
        self._sleeping_until = inf
        self._seats = [None] * _THREADS  # one for each thread that may still be started
        self._busy: set[int] = set()  # the threads that make a call

    def notice(self, beat: Beat) -> None:
        """See to it that somebody wakes up when a beat is due."""
        self._wake_for(beat)
        if not self._anybody_free():
            self._start()

    def _wake_for(self, beat: Beat) -> None:
        if beat.due < self._sleeping_until:
            self._wake.put(beat.due)

    def _anybody_free(self) -> bool:
        return _THREADS - len(self._seats) > len(self._busy)

    def _start(self) -> None:
        try:
            self._seats.pop()
        except IndexError:
            return  # all there may be; the first that is free leads
        try:
            threading.Thread(target=self._work, name="perdure-pulse", daemon=True).start()
        except BaseException as error:
            self._seats.append(None)
            if not isinstance(error, RuntimeError):  # what a signal handler raised
                raise
            if self._busy:
                return  # no thread more, so calls wait for each other
            hint = "The process ends, or has as many threads as it may have."
            raise UnavailableError("no thread can be started for calls that are made now and then", hint=hint) from error

    def _work(self) -> None:
        try:
            while self is _pulse:  # else the last call forked, and this is the child
                self._next()
        finally:
            self._seats.append(None)  # whatever ended it, another may take its place

    def _next(self) -> None:
        """Lead until a call is due, hand over, and make it. Nothing of it is held afterwards."""
        with self._lead:
            beat = self._await_due()
            self._busy.add(threading.get_ident())
        try:
            if len(self.beats) > 1 and not self._anybody_free():
                self._start()
            self._make(beat)
        finally:
            self._busy.discard(threading.get_ident())

    def _await_due(self) -> Beat:
        # When to look again for the sake of a beat that may be stopped by now. Beats that last for a moment only, one after the
        # other, would each wake this thread if it slept on until for ever in between.
        alarm = inf
        while True:
            self._sleeping_until = inf  # whatever comes in from here on wakes this thread
            beat = min(self.beats.copy().values(), key=_due, default=None)  # a copy is made in a single step
            now = monotonic()
            due = inf if beat is None else beat.due
            if beat is not None and due <= now:
                beat.due = inf
                return beat
            alarm = alarm if alarm > now else inf
            self._sleeping_until = until = min(due, alarm)
            del beat  # or it would live for as long as this sleeps
            try:
                alarm = min(alarm, self._wake.get(timeout=min(until - now, _LONGEST)))
            except Empty:
                pass

    def _make(self, beat: Beat) -> None:
        call = beat.call
        if call is None:
            return
        began = monotonic()
        try:
            if call() is False:
                beat.stop()
        except BaseException:
            _log.exception("%r: a call raised; further ones are made", beat)
        if beat.call is not None:
            beat.due = began + beat.interval
            self._wake_for(beat)


_pulse = _Pulse()


def _after_fork() -> None:
    global _pulse
    _pulse = _Pulse()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
