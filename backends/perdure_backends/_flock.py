"""Whole-file locks that exclude threads and processes alike, and end with their holder.

`flock` belongs to an *open file description*: every `open_lock` makes one, so two threads exclude each other as two
processes do. (`lockf` would not do: it belongs to the process, and closing any other descriptor of the file drops it.)

A caller locks like this, calling straight into C, so that Ctrl-C cannot strike between taking a lock and the `finally`::

    fd = open_lock(path)
    try:
        flock(fd, LOCK_EX)
        ...
    finally:
        if fd in held:  # else this is a child that was forked meanwhile, and the lock its parent's
            flock(fd, LOCK_UN)  # by name: such a child may hold a copy of the descriptor, and closing ours is not enough
        close_lock(fd)
"""

from __future__ import annotations

import os
import sys

__all__ = ["LOCK_EX", "LOCK_NB", "LOCK_UN", "close_lock", "flock", "held", "open_lock"]

_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

held: dict[int, object] = {}
"""Descriptors a forked child must not keep, since its copy of a lock would outlive a killed parent; with something that stands
for the lock and its thread, where a thread that would wait for itself is to be told so."""

_opening: list[str] = []
"""Lock files that are being opened, whose descriptors a fork may copy before they are noted in `held`."""

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
else:
    import errno
    import msvcrt
    import time

    _OPEN = os.O_RDWR | getattr(os, "O_NOINHERIT", 0)
    LOCK_EX, LOCK_NB, LOCK_UN = 2, 4, 8
    _locked: set[int] = set()

    def flock(fd: int, operation: int, /) -> None:
        """The same by a lock on the file's first byte, which belongs to the handle as `flock` does to the description."""
        if operation == LOCK_UN:
            if fd in _locked:
                _locked.discard(fd)
                os.lseek(fd, 0, os.SEEK_SET)
                msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
            return
        while True:
            try:
                os.lseek(fd, 0, os.SEEK_SET)
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    raise
                if operation & LOCK_NB:
                    raise BlockingIOError(errno.EAGAIN, "locked by another") from error
                time.sleep(0.001)
            else:
                _locked.add(fd)
                return


def open_lock(path: str) -> int:
    """Open a lock file, made where it is missing. A link in its place is refused. Reading rights are enough to lock."""
    _opening.append(path)
    try:
        try:
            fd = os.open(path, _OPEN)
        except FileNotFoundError:
            # Not at once: in a folder with the sticky bit, O_CREAT refuses the existing file of another user.
            fd = os.open(path, _OPEN | os.O_CREAT, 0o666)
        held[fd] = None
    finally:
        _opening.remove(path)
    return fd


def close_lock(fd: int) -> None:
    """Close what `open_lock` opened, unless a fork did it already."""
    if fd in held:
        del held[fd]
        os.close(fd)


def _drop_copies() -> None:
    """In a forked child: close the copies of locks. The parent's stay: only `LOCK_UN` or the last copy's end releases them."""
    for fd in held:
        os.close(fd)
    held.clear()
    if _opening:
        # The list stays as it is: what our own thread was just opening is still to be taken off by it.
        locks = {(info.st_dev, info.st_ino) for path in _opening if (info := _stat(path)) is not None}
        for name in os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"):
            info = _stat(int(name))
            if info is not None and (info.st_dev, info.st_ino) in locks:
                os.close(int(name))


def _stat(file: str | int) -> os.stat_result | None:
    try:
        return os.stat(file)
    except OSError:
        return None  # removed meanwhile, or the descriptor of the listing itself


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_copies)
