"""One at a time on this machine, for places that have no lock of their own to offer: `turn_of(place).alone(work)`.

Threads take a lock in memory, processes `flock` on one of 256 empty files, chosen by the name of the place, in a folder of this
user's: `/dev/shm/perdure-UID`, or the folder for temporary files where there is no such. Nothing is made in the place itself,
and a lock ends with its holder, however it ends. Other users, other machines, containers with a `/dev/shm` of their own, and
Windows are not kept out.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

__all__ = ["Turn", "turn_of"]

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_UN, flock
else:
    LOCK_EX, LOCK_UN = 2, 8

    def flock(fd: int, operation: int, /) -> None:
        """Not there: processes are not kept apart."""


_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
R = TypeVar("R")

_turns: dict[str, Turn] = {}
_held: set[int] = set()  # descriptors a forked child must not keep: its copy of a lock would outlive a killed parent


class Turn:
    """What all that ask for it in this process share.

    Args:
        name: Of the file; `""` where no other process is to be kept out.
    """

    __slots__ = ("depth", "lock", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.depth = 0  # how many calls of the thread that has the lock are within each other

    def alone(self, work: Callable[[], R], trouble: Callable[[Exception], object]) -> R:
        """Do something while nobody else does so here; within itself it begins at once.

        Args:
            work: What to do.
            trouble: Told why other processes cannot be kept out, where they cannot.

        Returns:
            What `work` returns; what it raises is raised.
        """
        lock, fd = self.lock, -1
        # Ctrl-C can strike on entering a function or a `with`: so what releases stands here, and calls straight into C.
        try:
            lock.acquire()
            depth = self.depth
            self.depth = depth + 1
            try:
                if self.name and not depth:
                    try:
                        fd = _opened(self.name)
                        flock(fd, LOCK_EX)
                    except OSError as error:
                        trouble(error)
                return work()
            finally:
                self.depth = depth
                if fd in _held:
                    flock(fd, LOCK_UN)  # by name, as a forked child may have a copy
                    _held.discard(fd)
                    os.close(fd)
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # Ctrl-C struck before it was acquired, or this is a child that was forked meanwhile


def turn_of(place: str) -> Turn:
    """The turn of a place. Equal places have the same, and of many places some have the same."""
    number = blake2b(place.encode("utf-8", "surrogateescape"), digest_size=1).hexdigest()
    if place.startswith("memory:") or sys.platform == "win32":  # which belongs to one process
        return _turns.setdefault(f"memory {number}", Turn(""))
    return _turns.setdefault(number, Turn(f"turn-{number}"))


def _opened(name: str) -> int:
    shared = "/dev/shm"  # unlike TMPDIR it is the same for all jobs
    if not (os.path.isdir(shared) and os.access(shared, os.W_OK)):
        from tempfile import gettempdir

        shared = gettempdir()
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    folder = os.path.join(shared, f"perdure-{user}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode) or (info.st_uid != user and hasattr(os, "geteuid")):
        raise OSError(errno.EPERM, "somebody else's file or folder stands where our locks belong", folder)
    fd = os.open(os.path.join(folder, name), _OPEN, 0o600)
    _held.add(fd)
    return fd


def _after_fork() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()
    for turn in list(_turns.values()):
        turn.lock, turn.depth = threading.RLock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
