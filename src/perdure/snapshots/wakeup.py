"""Hearing of a signal while the main thread is stuck, and ending the process from another thread."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from socket import socket


class Wire:
    """What signals are told through, at once: C code writes to it, and one thread listens."""

    LEFT: Final = 0  # no signal has this number

    def __init__(self) -> None:
        import socket

        self.mouth, self.ear = socket.socketpair()
        self.mouth.setblocking(False)
        self.ear.settimeout(None)  # whatever the program made the default
        before = signal.set_wakeup_fd(self.mouth.fileno(), warn_on_full_buffer=False)
        if before not in (-1, *(wire.mouth.fileno() for wire in _wires)):
            signal.set_wakeup_fd(before)  # asyncio listens there; we hear of a signal when Python runs its handler
        _wires.append(self)

    def tell(self, number: int) -> None:
        try:
            self.mouth.send(bytes([number]))
        except OSError:
            pass  # full: whoever listens has enough to hear; closed: nobody does

    def hear(self, expected: Callable[[int], bool]) -> int | None:
        """Wait for a signal that is expected; `None` when the block was left before."""
        while number := self._next():
            if expected(number):
                return number
        return None

    def is_left_within(self, patience: float) -> bool:
        """Wait until the block is left, whatever else is heard."""
        until = time.monotonic() + patience
        while (remaining := until - time.monotonic()) > 0:
            self.ear.settimeout(min(remaining, 86400.0))
            try:
                if not self._next():
                    return True
            except TimeoutError:
                pass
        return False

    def leave(self) -> None:
        _wires.remove(self)
        self._give_wakeup_to(_wires[-1].mouth if _wires else None)
        self.tell(self.LEFT)
        self.mouth.close()

    def leave_in_child(self) -> None:
        _wires.remove(self)
        self._give_wakeup_to(None)
        self.mouth.close()
        self.ear.close()

    def _next(self) -> int:
        heard = self.ear.recv(1)
        return heard[0] if heard else self.LEFT

    def _give_wakeup_to(self, mouth: socket | None) -> None:
        before = signal.set_wakeup_fd(-1 if mouth is None else mouth.fileno(), warn_on_full_buffer=False)
        if before not in (-1, self.mouth.fileno()):
            signal.set_wakeup_fd(before)


_wires: list[Wire] = []  # those in use, the innermost last: it has the wakeup, of which a process has only one


def interrupt_main(number: int) -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)  # also wakes it from a system call
    else:
        signal.raise_signal(number)


def end_process(number: int, set_default: Callable[[int, None], object] | None) -> None:
    """End the process by a signal, from a thread that is not the main one."""
    if set_default is not None:
        set_default(number, None)
        os.kill(os.getpid(), number)
        time.sleep(1.0)  # process 1 of a container does not die of it
    os._exit(128 + number)


def default_setter() -> Callable[[int, None], object] | None:
    """C's `signal`, as Python's own works in the main thread only; `None` where it cannot be had."""
    if os.name == "nt":
        return None
    try:
        import ctypes

        function = ctypes.CDLL(None).signal
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return function
