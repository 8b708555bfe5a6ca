"""One at a time on this machine, for places that have no lock of their own to offer: `turn_of(place).alone(work)`.

Threads take a lock in memory, processes `flock` on a file, named after a hash of the place, in a folder of this user's:
`/dev/shm/perdure-UID`, or the folder for temporary files where there is no such. Nothing is made in the place itself, and a
lock ends with its holder, however it ends. Other users, other machines, containers with a `/dev/shm` of their own, and
Windows are not kept out.

Whoever had the turn removes the file. So a file is one turn: who gets the lock of a removed one begins again with the next,
and no more files stay behind than processes were killed.

*Who waits* goes on without after 10 seconds in which no turn ended, as the process that has it may be stopped (Ctrl-Z, a
debugger), and after 60 in any case. From then on it asks once and does not wait, until it gets a turn or has not asked for a
minute.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, TypeVar

__all__ = ["Turn", "turn_of"]

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
else:
    LOCK_EX, LOCK_NB, LOCK_UN = 2, 4, 8

    def flock(fd: int, operation: int, /) -> None:
        """Not there: processes are not kept apart."""


_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
# All in seconds.
_PATIENCE: Final = 10.0  # in which no turn ends
_IN_ALL: Final = 60.0
_ONCE_ONLY: Final = 60.0
_SHORTEST: Final = 0.0001  # pauses between two looks
_LONGEST: Final = 0.004
R = TypeVar("R")

_turns: dict[str, Turn] = {}
_held: set[int] = set()  # descriptors a forked child must not keep: its copy of a lock would outlive a killed parent


class Turn:
    """What all that ask for it in this process share.

    Args:
        name: Of the file; `""` where no other process is to be kept out.
    """

    __slots__ = ("awaited", "depth", "fd", "impatient_until", "lock", "name", "path")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.impatient_until = 0.0
        self._begin()

    def _begin(self) -> None:
        self.depth = 0  # how many calls of the thread that has the lock are within each other
        self.fd = -1
        self.path = ""  # of the file, while this process has the turn
        self.awaited = False  # whether others waited for the last turn of this process to end

    def alone(self, work: Callable[[], R], trouble: Callable[[Exception], object]) -> R:
        """Do something while nobody else does so here; within itself it begins at once.

        Args:
            work: What to do.
            trouble: Told why other processes cannot be kept out, where they cannot, or why this one waits no longer.

        Returns:
            What `work` returns; what it raises is raised.
        """
        lock = self.lock
        # Ctrl-C can strike on entering a function or a `with`: so what releases stands here, and calls straight into C.
        try:
            lock.acquire()
            depth = self.depth
            self.depth = depth + 1
            try:
                if self.name and not depth:
                    try:
                        self._take()
                    except OSError as error:
                        trouble(error)
                return work()
            finally:
                if self.lock is lock:  # else this is a child that was forked meanwhile
                    self.depth = depth
                    if not depth and self.fd >= 0:
                        fd, self.fd = self.fd, -1
                        path, self.path = self.path, ""
                        if path:
                            try:
                                os.unlink(path)  # which ends the turn, whatever strikes after it
                            except OSError:
                                pass  # somebody has cleared that folder
                            self.awaited = os.fstat(fd).st_size > 0
                        flock(fd, LOCK_UN)  # by name, as a forked child may have a copy
                        _held.discard(fd)
                        os.close(fd)
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # Ctrl-C struck before it was acquired, or this is a child that was forked meanwhile

    def _take(self) -> None:
        """Wait for the turn. Raises `OSError` where there is none to be had."""
        if self.awaited:  # let them have it: this one would be back before they look again
            self.awaited = False
            time.sleep(_LONGEST)
        path = _path(self.name)
        self.fd = _opened(path)
        begun = time.monotonic()
        until, pause = begun + _PATIENCE, _SHORTEST
        while True:
            taken = _is_locked(self.fd)
            ended = not _is_there(self.fd, path)
            if taken and not ended:
                self.path = path
                self.impatient_until = 0.0
                return
            now = time.monotonic()
            if now >= begun + _IN_ALL or (not ended and (now >= until or now < self.impatient_until)):
                self.impatient_until = now + _ONCE_ONLY
                raise TimeoutError("another process has had its turn for too long: perhaps it is stopped")
            if ended:
                fd, self.fd = self.fd, -1
                _held.discard(fd)
                os.close(fd)
                self.fd = _opened(path)
                until = now + _PATIENCE
            else:
                os.ftruncate(self.fd, 1)  # tells that somebody waits
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)


def turn_of(place: str) -> Turn:
    """The turn of a place. Equal places have the same."""
    number = blake2b(place.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    if place.startswith("memory:") or sys.platform == "win32":  # which belongs to one process
        return _turns.setdefault(f"memory {number}", Turn(""))
    return _turns.setdefault(number, Turn(f"turn-{number}"))


def _path(name: str) -> str:
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
    return os.path.join(folder, name)


def _opened(path: str) -> int:
    fd = os.open(path, _OPEN, 0o600)
    _held.add(fd)
    return fd


def _is_locked(fd: int) -> bool:
    """Lock a file, if nobody else has."""
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(fd: int, path: str) -> bool:
    """Tell whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _after_fork() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()
    for turn in list(_turns.values()):
        turn.lock = threading.RLock()
        turn._begin()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
