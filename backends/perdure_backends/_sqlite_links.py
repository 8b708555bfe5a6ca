"""The connections of a backend: one for each thread, handed on when it ends, and closed before a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from perdure.errors import BackendError

from ._flock import close_lock

_IDLE = 8  # links kept for threads to come

gate = threading.RLock()
"""Held while a fork is on its way. A thread needs it to use a backend for the first time."""

inherited: dict[str, list[Any]] = {}
"""Databases this process must not open: it got connections to them from a fork in the middle of a call, by a signal handler,
or from one by a C program that told Python only afterwards. They are kept here, unused: not even closing them would be safe."""

_in_use: set[Links] = set()


class Link:
    """A connection and a lock descriptor. They are used, and shut, under `lock` only, and by nobody else while it is `busy`.

    A signal handler or finalizer may call the backend in the middle of a call of its own thread. Until Python 3.12 the garbage
    collector runs finalizers, and they let signal handlers run, even within a call into C: to close a connection then, or to
    use it, would crash the interpreter. The lock, being re-entrant, lets them in; `busy` tells them to keep their hands off.

    Attributes:
        busy: Whether a call is on its way. Its thread holds `lock`.
        alone: Whether that call is in the middle of a transaction of several statements.
        path: The file behind `db`, or which is being opened, links resolved.
        inode: Its number, to notice that somebody put another file in its place.
        read: `db.execute`, once it may be used for reading.
        write: The same, once it may be used for writing.
        fd: The lock file, or -1.
        look_again: When, by the monotonic clock, `is_current` is to be asked next.
    """

    __slots__ = ("alone", "busy", "db", "fd", "inode", "lock", "look_again", "path", "read", "write")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.busy = self.alone = False
        self.db: Any = None
        self.read: Callable[..., Any] | None = None
        self.write: Callable[..., Any] | None = None
        self.path = ""
        self.inode = 0
        self.fd = -1
        self.look_again = 0.0

    def adopt(self, db: Any, inode: int) -> None:
        """Take over an open connection to `path`.

        Raises:
            BackendError: It was opened before a fork, by whom this process is a copy of.
        """
        if self.path in inherited:
            inherited[self.path].append(db)
            raise forked()
        self.inode = inode
        self.db, self.read = db, db.execute

    def is_current(self) -> bool:
        """Tell whether the file is still the one behind its name. Asked a few times a second: it costs a quarter of a write."""
        try:
            current = os.stat(self.path).st_ino == self.inode
        except (FileNotFoundError, NotADirectoryError):
            current = False
        self.look_again = monotonic() + 0.05 if current else 0.0
        return current

    def drop(self) -> None:
        """Close the connection."""
        self.read = self.write = None
        db, self.db = self.db, None
        if db is not None:
            db.close()

    def struck(self) -> bool:
        """Tell whether the call that is on its way is one of this thread, which now runs a signal handler or finalizer."""
        if self.busy and self.lock.acquire(blocking=False):
            try:
                return self.busy  # another thread's may have ended just now
            finally:
                self.lock.release()
        return False

    def shut(self) -> None:
        """Close the connection and the lock file."""
        fd, self.fd = self.fd, -1
        try:
            self.drop()
        finally:
            if fd >= 0:
                close_lock(fd)


class Links:
    """All links of one backend, and those among them whose thread has ended."""

    def __init__(self) -> None:
        self.all: set[Link] = set()
        self._idle: list[Link] = []
        _in_use.add(self)

    def take(self) -> Link:
        """A link for a thread that has none."""
        with gate:
            try:
                link = self._idle.pop()
            except IndexError:
                link = Link()
                self.all.add(link)
        return link

    def give_back(self, link: Link) -> None:
        """Take a link over from a thread that has ended, without ever waiting: the garbage collector may call this anywhere."""
        if len(self._idle) < _IDLE or not link.lock.acquire(blocking=False):
            self._idle.append(link)  # when it is locked, then by somebody who is about to shut it anyway
            return
        try:
            link.shut()
            self.all.discard(link)
        finally:
            link.lock.release()

    def retire(self) -> None:
        """Shut what is not in the middle of a call. For the end of the backend or of the process."""
        self.shut(blocking=False)
        _in_use.discard(self)  # only now: a fork in another thread must wait for what is being closed

    def shut(self, *, blocking: bool) -> None:
        """Shut what is not in the middle of a call.

        Args:
            blocking: Whether to wait for calls of other threads.
        """
        for link in list(self.all):
            if link.lock.acquire(blocking=blocking):
                try:
                    if not link.busy:
                        link.shut()
                finally:
                    link.lock.release()


def forked() -> BackendError:
    """The error for a process that must not use a database."""
    return BackendError(
        "this process was forked while the database was in use: in the middle of a call, or by other than Python",
        hint="Close the backend before such a fork, or open it only after.",
    )


def struck() -> list[Link]:
    """The links of this thread that are in the middle of a call, which a signal handler or finalizer struck.

    Whoever finds any must not wait for other threads: one of them may be waiting for this one.
    """
    return [link for links in list(_in_use) for link in list(links.all) if link.struck()]


class Seat:
    """Stands in a `threading.local`, so it goes when its thread ends, and gives the link back."""

    __slots__ = ("link", "links")

    def __init__(self, links: Links, link: Link) -> None:
        self.links = links
        self.link = link

    def __del__(self) -> None:
        if hasattr(self, "link"):  # not when Ctrl-C struck in the very first step; then the link goes with the backend
            self.links.give_back(self.link)


class _Stopped(threading.local):
    """The locks that this thread took for a fork."""

    def __init__(self) -> None:
        self.locks: list[Any] = []


_stopped = _Stopped()


def _before_fork() -> None:
    """Wait until no call is on its way, then close everything.

    SQLite keeps the locks it holds in a table of the process. A forked child inherits the table but not the locks: what it
    opens then believes to be protected and is not, and the parent's last close deletes the log with the child's writes in it.

    A fork in the middle of a call waits for nothing, and what is in use remains open; the child must not use that.
    """
    patience = 0.0 if struck() else 0.05
    while not _stop_all(patience) and patience:
        # A call that we wait for may itself have been struck, by what waits for one of those that we hold.
        _after_fork()
        patience = min(2 * patience, 2.0)


def _stop_all(patience: float) -> bool:
    complete = _stop(gate, patience)
    for links in list(_in_use):
        for link in list(links.all):
            if not complete and patience:
                return False
            if not _stop(link.lock, patience):
                complete = False
            elif not link.busy:
                link.shut()
    return complete


def _stop(lock: Any, patience: float) -> bool:
    """Take a lock if it is to be had within so many seconds."""
    _stopped.locks.append(lock)  # first, so that it is never forgotten
    if lock.acquire(True, patience):
        return True
    _stopped.locks.remove(lock)
    return False


def _after_fork() -> None:
    while _stopped.locks:
        try:
            _stopped.locks.pop().release()
        except RuntimeError:
            pass  # Ctrl-C struck while waiting for this one: it is not ours


def _after_fork_in_child() -> None:
    global gate
    _after_fork()
    gate = threading.RLock()  # as below: a thread that is not here may have held it
    for links in list(_in_use):
        for link in list(links.all):
            ours, connecting = link.struck(), link.busy and bool(link.path)
            link.lock = threading.RLock()
            link.busy = ours
            if link.db is not None or connecting:  # the latter: it may have been just about to get one
                if ours and link.db is not None:  # the call goes on in the parent, and here as well when the handler returns:
                    link.db.set_authorizer(_deny)  # it must not get far
                inherited.setdefault(link.path, []).append(link.db)
                link.db = link.read = link.write = None
            link.fd = -1


def _deny(*_: object) -> int:
    return sqlite3.SQLITE_DENY


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
