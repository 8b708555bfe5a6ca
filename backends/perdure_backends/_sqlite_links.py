"""The connections of a backend: one for each thread, handed on when it ends, none of them open during a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ._flock import close_lock

_IDLE = 8  # links kept for threads to come

gate = threading.RLock()
"""Held while a fork is on its way. A thread needs it to use a backend for the first time."""

inherited: dict[str, list[Any]] = {}
"""Databases this process must not open: it got connections to them from a fork that passed Python's hooks by. They are kept
here, unused, because not even closing them would be safe."""

_in_use: set[Links] = set()
_stopped: list[Any] = []


class Link:
    """A connection and a lock descriptor. They are used, and shut, under `lock` only.

    The lock is re-entrant for the sake of signal handlers and finalizers, which may call the backend in the middle of a call.

    Attributes:
        path: The file behind `db`, links resolved.
        inode: Its number, to notice that somebody put another file in its place.
        read: `db.execute`, once it may be used for reading.
        write: The same, once it may be used for writing.
        transaction: The connection in the middle of a transaction, which is then nowhere else.
        fd: The lock file, or -1.
        adopted: How many connections there have been.
        look_again: When, by the monotonic clock, `is_current` is to be asked next.
    """

    __slots__ = ("adopted", "db", "fd", "inode", "lock", "look_again", "path", "read", "transaction", "write")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.db: Any = None
        self.transaction: Any = None
        self.read: Callable[..., Any] | None = None
        self.write: Callable[..., Any] | None = None
        self.path = ""
        self.inode = self.adopted = 0
        self.fd = -1
        self.look_again = 0.0

    def adopt(self, db: Any, path: str, inode: int) -> None:
        """Take over an open connection."""
        self.drop()
        self.adopted += 1
        self.path, self.inode = path, inode
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
        """Close the connection, and take back a transaction that was interrupted."""
        self.read = self.write = None
        db, self.db = self.db, None
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            try:
                transaction.rollback()  # which closing would put off until the cursor of the interrupted call is gone
            except sqlite3.ProgrammingError:
                pass  # it is closed already
            transaction.close()
        if db is not None:
            db.close()

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
        _in_use.discard(self)
        for link in list(self.all):
            if link.lock.acquire(blocking=False):
                try:
                    link.shut()
                finally:
                    link.lock.release()


class Seat:
    """Stands in a `threading.local`, so it goes when its thread ends, and gives the link back."""

    __slots__ = ("link", "links")

    def __init__(self, links: Links, link: Link) -> None:
        self.links = links
        self.link = link

    def __del__(self) -> None:
        if hasattr(self, "link"):  # not when Ctrl-C struck in the very first step; then the link goes with the backend
            self.links.give_back(self.link)


def _before_fork() -> None:
    """Wait until no call is on its way, then close everything.

    SQLite keeps the locks it holds in a table of the process. A forked child inherits the table but not the locks: what it
    opens then believes to be protected and is not, and the parent's last close deletes the log with the child's writes in it.
    """
    _stop(gate)
    for links in list(_in_use):
        for link in list(links.all):
            _stop(link.lock)
            link.shut()


def _stop(lock: Any) -> None:
    _stopped.append(lock)  # first, so that it is never forgotten
    lock.acquire()


def _after_fork() -> None:
    while _stopped:
        try:
            _stopped.pop().release()
        except RuntimeError:
            pass  # Ctrl-C struck while waiting for this one: it is not ours


def _after_fork_in_child() -> None:
    _after_fork()
    for links in list(_in_use):
        for link in list(links.all):
            if link.db is not None or link.transaction is not None:
                inherited.setdefault(link.path, []).extend((link.db, link.transaction))
                link.db = link.transaction = link.read = link.write = None
                link.fd = -1
                link.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
