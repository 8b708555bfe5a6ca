"""What a fork waits for: threads that look up a name, shake hands or import a module, and hold locks that nobody can renew.

They belong to the C library, to OpenSSL and to the interpreter. A child forked meanwhile would find them held by a thread that
it does not have, and wait for them for ever at its own first lookup, handshake or import.
"""

from __future__ import annotations

import logging  # noqa: F401 - a fork takes its lock, which must come after ours: handlers of modules imported later run earlier
import os
import threading
import time
from types import TracebackType

_PATIENCE = 10.0  # seconds a fork waits at most: a name server may be silent for long

_inside: list[int] = []  # the threads that are in such a section, each as often as it entered
_entrance = threading.RLock()  # held by a thread while it forks
_forking: list[int] = []  # the threads that hold it


class _Unforked:
    """A section that other threads do not fork in. Costs a microsecond; reentrant; does not keep two threads apart."""

    __slots__ = ()

    def __enter__(self) -> None:
        me = threading.get_ident()
        if me in _inside:  # a fork waits for us, so we do not wait for it
            _inside.append(me)
            return
        with _entrance:
            _inside.append(me)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        me = threading.get_ident()
        if me in _inside:
            _inside.remove(me)


unforked = _Unforked()


def _before_fork() -> None:
    me = threading.get_ident()
    give_up = time.monotonic() + _PATIENCE
    if _entrance.acquire(timeout=_PATIENCE):
        _forking.append(me)
    while any(thread != me for thread in list(_inside)):
        if time.monotonic() >= give_up:  # nor need the next fork wait for them: Ctrl-C may have kept one from leaving
            _inside[:] = [thread for thread in _inside if thread == me]
            break
        time.sleep(0.001)


def _after_fork_in_parent() -> None:
    me = threading.get_ident()
    if me in _forking:
        _forking.remove(me)
        _entrance.release()


def _after_fork_in_child() -> None:
    global _entrance
    _entrance = threading.RLock()
    _forking.clear()
    me = threading.get_ident()
    _inside[:] = [thread for thread in _inside if thread == me]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
