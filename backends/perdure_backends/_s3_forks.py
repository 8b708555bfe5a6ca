"""What a fork waits for: threads that look up a name, shake hands or import a module, and hold locks that nobody can renew.

They belong to the C library, to OpenSSL and to the interpreter. A child forked meanwhile would find them held by a thread that
it does not have, and wait for them for ever at its own first lookup, handshake or import.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - a fork takes its lock and that of logging after ours: last come, first served
import contextlib
import os
import threading
import time
from types import TracebackType

_PATIENCE = 3.0  # seconds that a fork waits at most: a name server may be silent for longer

_inside: list[int] = []  # the threads that are in such a section, each as often as it entered
_forking: dict[int, float] = {}  # the threads that fork, and until when others stay outside for it


class _Unforked:
    """A section that other threads do not fork in. Costs 2 µs; reentrant; does not keep two threads apart.

    No lock is held, only marks that lose their force with time: a fork also takes the locks of others, and Ctrl-C or an
    error in any of their handlers must not shut us out for ever.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        me = threading.get_ident()
        nested = me in _inside  # then a fork waits for us, so we do not wait for it
        _inside.append(me)
        while not nested and any(thread != me and time.monotonic() < until for thread, until in list(_forking.items())):
            _leave(me)
            time.sleep(0.001)
            _inside.append(me)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _leave(threading.get_ident())


unforked = _Unforked()


def _leave(thread: int) -> None:
    with contextlib.suppress(ValueError):  # a fork gave up waiting for it
        _inside.remove(thread)


def _before_fork() -> None:
    me = threading.get_ident()
    _forking[me] = until = time.monotonic() + _PATIENCE
    while others := [thread for thread in list(_inside) if thread != me and thread not in _forking]:
        if time.monotonic() >= until:  # nor need the next fork wait for them: Ctrl-C may have kept one from leaving
            for thread in others:
                _leave(thread)
            break
        time.sleep(0.001)


def _after_fork_in_parent() -> None:
    _forking.pop(threading.get_ident(), None)


def _after_fork_in_child() -> None:
    _forking.clear()
    me = threading.get_ident()
    _inside[:] = [thread for thread in _inside if thread == me]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
