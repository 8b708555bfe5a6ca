"""The system calls of snapshots in folders, each with a portable way out."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from typing import TypeAlias

from ..errors import BackendError, IntegrityError, PerdureError, UnavailableError

Buffer: TypeAlias = bytes | memoryview

# Neither a planted link nor a planted pipe is followed or waited for.
_READ = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)

_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What `fsync` of a folder says on file systems that have no such thing; anything else is a failure to store."""

_HINTS = {
    errno.ENOSPC: "The disk is full: free some space, or keep fewer snapshots. Older snapshots are unchanged.",
    errno.EDQUOT: "The quota is used up: free some space, or keep fewer snapshots. Older snapshots are unchanged.",
    errno.EROFS: "The file system is read-only: remount it, or save elsewhere.",
    errno.EACCES: "Check the owner and mode of the folder and of what is in it.",
    errno.EPERM: "Check the owner and mode of the folder and of what is in it.",
    errno.EIO: "The disk or the network behind it fails: look at the system's log, and save elsewhere meanwhile.",
    errno.ENOENT: "The folder, or one above it, is not there, or was removed in the middle.",
    errno.ENOTDIR: "A file stands where a folder belongs: move it away.",
    errno.EEXIST: "A file stands where a folder belongs: move it away.",
    errno.EMFILE: "Too many open files in this process: raise `ulimit -n`, or close some.",
    errno.EFBIG: "The file system, or `ulimit -f`, allows no file that long.",
    errno.ENAMETOOLONG: "Register the component under a shorter name, or shorten state_name_format.",
}
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EINTR)


def hint_of(error: Exception) -> str | None:
    """What to do where the system itself has said no."""
    return _HINTS.get(error.errno or 0) if isinstance(error, OSError) else None


def explain(error: OSError, place: str, doing: str, key: str | None = None) -> PerdureError:
    """The error to raise for one of the operating system.

    Args:
        error: What the system raised.
        place: Where the snapshots are.
        doing: Such as `"write"`.
        key: The snapshot, and the part, such as `"2026.state/model.pkl"`.
    """
    if isinstance(error, PerdureError):
        return error
    if error.errno == errno.EIO and doing == "read":
        return IntegrityError("the disk cannot read it any more", key=key, place=place, hint="Use another snapshot.")
    kind = UnavailableError if error.errno in _PASSING else BackendError
    problem = f"cannot {doing} ({error.strerror or error})"
    return kind(problem, key=key, place=place, errno=error.errno, hint=_HINTS.get(error.errno or 0))


def open_new(path: str) -> int:
    """A descriptor of a new file to write."""
    return os.open(path, _NEW, 0o666)


def open_again(path: str) -> int:
    """A descriptor of a file made by `open_new`, to write more of it."""
    return os.open(path, _NEW & ~(os.O_CREAT | os.O_EXCL))


def open_read(path: str) -> int:
    """A descriptor of a regular file; anything else is no part of a snapshot."""
    fd = os.open(path, _READ)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOENT, "this is no file", path)
    return fd


def write_at(fd: int, pieces: Sequence[Buffer], offset: int) -> None:
    """Write everything at one place of a file, however often the kernel stops short."""
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if hasattr(os, "pwrite"):
                written = os.pwrite(fd, view, offset)
            else:
                os.lseek(fd, offset, os.SEEK_SET)
                written = os.write(fd, view)
            view = view[written:]
            offset += written


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill memory from one place of a file, and tell how many bytes there were."""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):
            read = os.preadv(fd, [view[done:]], offset + done)
        else:
            os.lseek(fd, offset + done, os.SEEK_SET)
            chunk = os.read(fd, min(len(view) - done, 1 << 20))
            view[done : done + len(chunk)] = chunk
            read = len(chunk)
        if read == 0:
            break
        done += read
    return done


def memory_for(size: int) -> memoryview:
    """Memory to read into; of much, in large pages if there are any.

    A new process gets 400 MB in pages of 4 KB in 200 ms, and in large ones in 60. Raises `MemoryError`.
    """
    if size < 4 << 20 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    try:
        # Private: the default is shared, and a forked child would write into its parent's arrays.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size:,} bytes: {error.strerror}") from error
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without them: then they are small
    return memoryview(memory)


def sync_file(path: str) -> None:
    """Make a file durable."""
    fd = os.open(path, _READ if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """Make the names in a folder durable. Windows can neither open folders nor needs it, as some file systems do not either."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


_lasting: set[tuple[str, int]] = set()
"""Folders, with their inodes, whose names this process has made durable, and those of all above them."""


def make_folders(path: str, *, durable: bool) -> None:
    """Make a folder and all above it that are missing.

    Args:
        path: An absolute path.
        durable: Whether to make their names durable, also where they are there: whoever made them may have been killed before.
    """
    missing = []
    folder = path
    while not os.path.isdir(folder):
        missing.append(folder)
        parent = os.path.dirname(folder)
        if parent == folder:
            break
        folder = parent
    for folder in reversed(missing):
        try:
            os.mkdir(folder)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
    known = path, os.stat(path).st_ino
    if not durable or known in _lasting:
        return
    folder = path
    while not os.path.ismount(folder):
        folder = os.path.dirname(folder)
        try:
            sync_folder(folder)
        except PermissionError:
            continue  # a parent we may not read: then it is not we who could have made a folder in it
    _lasting.add(known)


def identity(info: os.stat_result) -> tuple[int, int, int, int]:
    """What tells that a file is the same, and was not written to, between two looks in one process."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else (0, 0, 0, 0)


def unlink_from_others(path: str, aside: str) -> None:
    """Make a file with several names one of its own, by a copy.

    Args:
        path: The file.
        aside: A free name in the same folder.
    """
    try:
        shutil.copy2(path, aside)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def remove_tree(path: str) -> None:
    """Remove a folder with all that is in it; others may be at it, too.

    Raises:
        OSError: Something in it cannot be removed.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            shutil.rmtree(path)
    except PermissionError:
        # A component may make folders that it cannot write to any more; on Windows, files alone may be so.
        os.chmod(path, 0o700)
        for folder, inner, files in os.walk(path):
            for name in inner:  # before it is walked into
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
            for file in files if os.name == "nt" else ():
                os.chmod(os.path.join(folder, file), 0o600)
        shutil.rmtree(path)


# Folders are locked by `flock` on the folder itself, so that no lock file stands among a snapshot's files and a killed process
# leaves nothing behind. A child that was forked meanwhile must not keep its copy of a lock.
_held: set[int] = set()

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock

    _NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)

    def lock_folder(path: str, *, shared: bool = False) -> int | None:
        """Lock a folder without waiting.

        Returns:
            A descriptor for `unlock`; `None` where this file system locks no folders.

        Raises:
            BlockingIOError: Somebody else holds it.
            OSError: There is no such folder.
        """
        fd = os.open(path, _FOLDER)
        _held.add(fd)
        try:
            flock(fd, (LOCK_SH if shared else LOCK_EX) | LOCK_NB)
            there = os.lstat(path)
            if not os.path.samestat(there, os.fstat(fd)):
                raise FileNotFoundError(errno.ENOENT, "it was removed just now", path)
        except (BlockingIOError, FileNotFoundError):
            unlock(fd)
            raise
        except OSError:
            unlock(fd)
            return None  # NFS, for one, locks only what is open for writing; others lock nothing
        except BaseException:
            unlock(fd)
            raise
        return fd

    def lock_file(path: str) -> int:
        """Wait for the lock of a file, which is made where it is missing, and return a descriptor for `unlock`.

        Where this file system has no locks it waits for nothing; whoever needs one then has to notice what others do.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            # Not at once: in a folder with the sticky bit, O_CREAT refuses the existing file of another user.
            fd = os.open(path, flags | os.O_CREAT, 0o666)
        _held.add(fd)
        try:
            flock(fd, LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                unlock(fd)
                raise
        except BaseException:
            unlock(fd)
            raise
        return fd

    def unlock(fd: int | None) -> None:
        """Release a lock, by name: a forked child may hold a copy of the descriptor."""
        if fd in _held:
            _held.discard(fd)
            try:
                flock(fd, LOCK_UN)
            except OSError:
                pass  # there are no locks here; else closing it releases it, too
            finally:
                os.close(fd)

else:
    import msvcrt

    def lock_folder(path: str, *, shared: bool = False) -> int | None:
        """Windows locks no folders, and removes none in which a file is open."""
        os.stat(path)
        return None

    def lock_file(path: str) -> int:
        """Wait for the lock of a file, which is made where it is missing, and return a descriptor for `unlock`."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(fd)
        while True:
            try:
                os.lseek(fd, 0, os.SEEK_SET)
                msvcrt.locking(fd, msvcrt.LK_LOCK, 1)
                return fd
            except OSError as error:  # after ten tries, a second each
                if error.errno != errno.EDEADLK:
                    unlock(fd)
                    raise

    def unlock(fd: int | None) -> None:
        """Release a lock."""
        if fd in _held:
            _held.discard(fd)
            os.close(fd)


def _drop_copies() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_copies)
