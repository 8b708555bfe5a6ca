"""SIGTERM and Ctrl-C, put off until the program is at a consistent point, and obeyed after a deadline at the latest.

A signal is noted twice. Python calls its handler in the main thread, between two steps of that thread's own code. As a main
thread that is stuck inside a library never comes to that, C code also writes a byte to a socket at once
(`signal.set_wakeup_fd`), and a thread that reads it watches the deadline.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, Final, Self, TypeAlias

from ..durations import Duration, seconds
from ..errors import UsageError
from .wakeup import Wire, default_setter, end_process, interrupt_main

Disposition: TypeAlias = Callable[[int, FrameType | None], Any] | int | None

AnySignals: TypeAlias = int | str | Iterable[int | str]
"""Signals as they are given: a number, a name such as `"SIGTERM"`, or several."""

SIGNALS: Final[tuple[signal.Signals, ...]] = tuple(
    getattr(signal, name)
    for name in (("SIGINT", "SIGBREAK") if os.name == "nt" else ("SIGTERM", "SIGINT"))
    if hasattr(signal, name)
)
"""What asks a program to end: SIGTERM and SIGINT; on Windows Ctrl-C and Ctrl-Break."""

GRACE = 5.0
"""After the deadline, a handler of the program's own has this many seconds to end it."""

_CALLED_OFF: Final = 255  # told to the thread that watches the deadline; no signal has this number
_KEYS: Final = {getattr(signal, name) for name in ("SIGINT", "SIGBREAK") if hasattr(signal, name)}


class Preemption:
    """While entered, signals that would end the program wait until it asks for them; `Running` does.

    ::

        with Preemption() as preemption:
            for step in range(1000):
                train(step)
                if preemption.requested:
                    save()
                    preemption.exit()

    A signal that was ignored before stays ignored, so `nohup` works. A second Ctrl-C acts at once, as if there were no
    `Preemption`, and where that raises, the first is done with as well; a second SIGTERM, which schedulers like to send, only
    when the deadline is over. On leaving, the handlers from before are back, and a signal that was not obeyed yet acts as it
    would have before. A child made by `fork` has the handlers from before from its beginning.

    One inside another is fine: the signal goes to the inner one, whose `exit` passes it on to the outer one.

    Args:
        signals: The signals to take: numbers, or names such as `"SIGTERM"`; one, or several.
        deadline: After so long, in seconds or as text such as `"1 min"`, more than 0, the program is ended as the signal
            would have ended it: also one that is stuck, unless in a library that lets no other thread run. Infinity is never.

    Raises:
        UsageError: A signal or the deadline is none.

    Thread safety: entered and left in the main thread; everything else in any.
    """

    def __init__(self, signals: AnySignals = SIGNALS, deadline: Duration = 30.0) -> None:
        self.signals = signals_of(signals)
        self.deadline = deadline_of(deadline)
        self._pid = 0  # of the process that is in the block
        self._before: dict[int, Disposition] = {}
        self._requested: int | None = None
        self._since = 0.0
        self._seen: list[int] = []  # in the order in which they came first
        self._overdue = False  # the next signal acts as it would have before
        self._leaving = False  # signals are noted only
        self._wire: Wire | None = None
        self._set_default: Callable[[int, None], object] | None = None
        # The same objects each time, to be compared.
        self._handler = self._on_signal
        self._entry = (self.signals, self._leave_in_child)

    @property
    def requested(self) -> signal.Signals | None:
        """The first signal that came and was not obeyed yet. Always `None` in a forked child."""
        number = self._requested
        return None if number is None or self._pid != os.getpid() else signal.Signals(number)

    def __enter__(self) -> Self:
        """Take the signals.

        Raises:
            UsageError: This is not the main thread, it is entered already, or a signal cannot be taken, such as SIGKILL.
        """
        if threading.current_thread() is not threading.main_thread():
            hint = "Enter it in the main thread, or do without it: `running(signals=False)`."
            raise UsageError("only the main thread can say what signals do", hint=hint)
        if self._pid == os.getpid():
            raise UsageError("this Preemption is entered already", hint="Make another one for another block.")
        self._before, self._requested, self._seen = {}, None, []
        self._overdue = self._leaving = False
        self._pid = os.getpid()
        _entered.append(self._entry)
        try:
            self._take_signals()
            if self.deadline < math.inf:
                self._set_default = default_setter()  # now: later, its import may be just what the main thread is stuck in
                self._wire = wire = Wire()
                threading.Thread(target=self._watch, args=(wire,), name="perdure-deadline", daemon=True).start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Put the handlers from before back, as `leave`."""
        self.leave(error)

    def leave(self, error: BaseException | None = None) -> None:
        """Put the handlers from before back. A signal that was not obeyed yet acts now, unless `SystemExit` is the error.

        Args:
            error: What the block is left by. It is shown where the signal ends the process.
        """
        if self._pid != os.getpid():
            return
        self._leave()
        waiting = self._seen
        if isinstance(error, SystemExit):
            return  # the program's own answer
        if isinstance(error, KeyboardInterrupt):
            waiting = [number for number in waiting if number not in _KEYS]
        if isinstance(error, Exception) and any(not callable(self._before[number]) for number in waiting):
            sys.excepthook(type(error), error, error.__traceback__)  # as the process ends here, nobody else will show it
        self._obey(waiting)

    def leave_program(self) -> None:
        """As `leave`, while the interpreter ends: a `KeyboardInterrupt` would reach nobody, so Ctrl-C ends the process."""
        for number in self._seen:
            if self._before[number] is signal.default_int_handler:
                self._before[number] = signal.SIG_DFL
        self.leave()

    def exit(self) -> None:
        """Obey the signal: call it after the final save. Does nothing where no signal came.

        SIGTERM ends the process, and whoever waits for it sees that it was by this signal; Ctrl-C raises `KeyboardInterrupt`; a
        handler of the program's own is called, and where that returns, so does this, ready for the next signal. If this is not
        the main thread, that happens there, and this one ends by `SystemExit`.

        Raises:
            KeyboardInterrupt: The signal was SIGINT.
            SystemExit: Outside the main thread.
        """
        number = self.requested
        if number is None:
            return
        if threading.current_thread() is not threading.main_thread():
            _flush()
            self._overdue = True
            interrupt_main(number)
            raise SystemExit
        self._leave()
        try:
            self._obey(self._seen)
        finally:
            self.__enter__()  # also where somebody inside the block catches what it raises

    def __repr__(self) -> str:
        taken = ", ".join(number.name for number in self.signals) or "nothing"
        until = f"deadline {self.deadline:g} s" if self.deadline < math.inf else "no deadline"
        inside = "inside" if self._pid == os.getpid() else "outside"
        waits = "" if self.requested is None else f", {self.requested.name} waits"
        return f"<Preemption of {taken}: {until}, {inside}{waits}>"

    # -------------------------------------------------------------------------------------------------------- the handlers

    def _take_signals(self) -> None:
        # Ctrl-C is taken first and given back last, so that nothing in between is interrupted.
        for number in sorted(self.signals, key=lambda number: number not in _KEYS):
            before = signal.getsignal(number)
            if before == signal.SIG_IGN:
                continue
            if before is None:  # Python could not put it back
                raise UsageError(f"the handler of {number.name} was not installed by Python", hint="Leave this signal out.")
            self._before[number] = before
            try:
                signal.signal(number, self._handler)
            except (OSError, ValueError) as error:
                del self._before[number]
                raise UsageError(f"{number.name} cannot be taken: {error}", hint="Leave this signal out.") from error

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Runs in the middle of anything that the main thread does, so it takes no locks."""
        if self._pid != os.getpid():  # a child, or this was left and somebody else's handler passes the signal on
            self._act(number, frame)
        elif self._overdue and not self._leaving:
            self._restore()
            self._forget(number)
            self._requested = None
            self._act(number, frame)
        elif number not in self._seen:
            self._seen.append(number)
            if self._requested is None:
                self._since = time.monotonic()
                self._requested = number
            if self._wire is not None:
                self._wire.tell(number)  # again, for where the wakeup belongs to somebody else
        elif not self._leaving and (number in _KEYS or time.monotonic() - self._since > self.deadline):
            try:
                self._act(number, frame)
            except BaseException:
                self._forget(number)  # whoever catches this inside the block was told, and has decided to go on
                raise

    def _forget(self, number: int) -> None:
        self._seen = [other for other in self._seen if other != number]
        self._requested = self._seen[0] if self._seen else None
        if self._requested is None and self._wire is not None:
            self._wire.tell(_CALLED_OFF)

    def _obey(self, waiting: list[int]) -> None:
        """What these signals would have done, one after the other, whatever the first raises: none is lost."""
        if waiting:
            _flush()
            number, *others = waiting
            try:
                self._act(number, sys._getframe())  # noqa: SLF001 - what a handler is given
            finally:
                self._obey(others)

    def _act(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if callable(before):
            before(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        # Still here: it is blocked in this thread, or this is process 1 of a container, which no signal ends by default.
        os.kill(os.getpid(), number)
        os._exit(128 + number)

    def _restore(self) -> None:
        for number, before in reversed(self._before.items()):
            if signal.getsignal(number) is self._handler:  # else somebody took it after us, and keeps it
                signal.signal(number, before)

    def _leave(self) -> None:
        self._leaving = True
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.leave()
        if self._entry in _entered:
            _entered.remove(self._entry)
        self._restore()
        self._pid, self._requested = 0, None

    def _leave_in_child(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.leave_in_child()
        self._restore()
        self._pid, self._requested, self._seen = 0, None, []

    # -------------------------------------------------------------------------------------------------------- the deadline

    def _watch(self, wire: Wire) -> None:
        with wire.ear:
            number: int | None = _CALLED_OFF
            while number == _CALLED_OFF:
                wire.ear.settimeout(None)
                came = wire.hear(self._is_mine)
                number = None if came is None else self._wait_for_deadline(wire, came)
            if number is None:
                return
            if self._is_mine(number):
                self._say_why(number)
                if not callable(self._before[number]) and self._set_default is not None:
                    end_process(number, self._set_default)
                self._overdue = True
                interrupt_main(number)
                if wire.is_left_within(GRACE):
                    return
                end_process(number, self._set_default)
            wire.is_left_within(math.inf)

    def _wait_for_deadline(self, wire: Wire, came: int) -> int | None:
        """The signal whose deadline is over; or `None` when the block was left, or `_CALLED_OFF`."""
        until = time.monotonic() + self.deadline
        while (remaining := until - time.monotonic()) > 0:
            wire.ear.settimeout(min(remaining, 86400.0))
            try:
                heard = wire.hear(lambda number: True)
            except TimeoutError:
                continue
            if heard in (None, _CALLED_OFF):
                return heard
        return self._requested or came

    def _is_mine(self, number: int) -> bool:
        """Not if somebody took it over inside the block; but what our own handler has seen stays."""
        return number in self._seen or (number in self._before and signal.getsignal(number) is self._handler)

    def _say_why(self, number: int) -> None:
        from select import select

        frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - for such reports
        where = f"; the main thread is in {frame.f_code.co_filename}, line {frame.f_lineno}" if frame is not None else ""
        what = f"perdure: {signal.Signals(number).name} came {self.deadline:g} s ago, and it has not ended since"
        try:
            if os.name == "nt" or select([], [2], [], 0)[1]:  # a terminal that nobody reads must not keep us
                os.write(2, f"{what}: it ends now{where}\n".encode("utf-8", "replace"))
        except (OSError, ValueError):
            pass  # there is nowhere to say it


def signals_of(given: AnySignals) -> tuple[signal.Signals, ...]:
    """The signals that are meant, each once.

    Raises:
        UsageError: One is none.
    """
    found: dict[signal.Signals, None] = {}
    several: Iterable[Any] = given if isinstance(given, Iterable) and not isinstance(given, (str, bytes)) else (given,)
    for one in several:
        try:
            if isinstance(one, bool):  # a number to Python, and no signal to anybody
                raise ValueError
            found[signal.Signals[one] if isinstance(one, str) else signal.Signals(one)] = None
        except (KeyError, ValueError) as error:
            hint = "Give a name such as 'SIGTERM', a number such as signal.SIGTERM, or several of these."
            raise UsageError(f"{one!r:.60} is no signal", hint=hint) from error
    return tuple(found)


def deadline_of(deadline: Duration) -> float:
    """The deadline that is meant, in seconds, more than 0.

    Raises:
        UsageError: It is none, or leaves no time to save.
    """
    found = seconds(deadline, "a deadline")
    if found == 0:
        hint = "Give less than the scheduler leaves until it kills, such as deadline='25 s'; infinity is none."
        raise UsageError("a deadline of 0 would end the process at the first signal, without a save", hint=hint)
    return found


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # closed, or nobody listens any more


# ------------------------------------------------------------------------------------------ what a process has only one of

_entered: list[tuple[tuple[int, ...], Callable[[], None]]] = []
_masks: dict[int, Any] = {}


def _before_fork() -> None:
    # A signal to a newborn child would be told to its parent, through the wire that they share.
    if _entered and hasattr(signal, "pthread_sigmask"):
        taken = {number for signals, _ in _entered for number in signals}
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, taken)


def _after_fork() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    while _entered:
        _, leave = _entered.pop()
        leave()
    _after_fork()
    _masks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
