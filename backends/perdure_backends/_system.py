"""The calls that differ between systems, in one place, each with a portable way out."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

# Following a planted link would read or write outside the folder; blocking on a planted FIFO would hang the reader.
OPEN_READ = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
OPEN_NEW = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_OPEN_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else None
_OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_DIRECTORY", 0)

KEEPS_TIMES = os.utime in os.supports_fd
"""Whether `set_time` does anything: Windows sets no times by descriptor."""

NO_SUCH = (errno.ENOENT, errno.ENOTDIR)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
_NO_TIMES = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_SYNC_WHOLE = (0xEF53, 0x58465342, 0x9123683E)  # ext2 to ext4, XFS, btrfs; overlayfs and others keep errors to themselves
_MUCH_UNWRITTEN = 32 << 10  # kilobytes: a fraction of a second of most disks


def sync_folder(path: str) -> None:
    """Make the names in a folder durable. Windows can neither open folders nor needs this for its journalled names."""
    if os.name == "nt":
        return
    fd = os.open(path, _OPEN_FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def whole_sync(fd: int) -> Callable[[], None] | None:
    """What makes durable all that is written to the file system of an open file from now on, whoever writes it, in one call.

    Returns:
        The call, which raises `OSError` when anything of that failed. `None` where it would not tell so, or would wait for
        much that others have written: then each file has to be synced by itself.
    """
    library = _libc()
    # Before 5.8 syncfs kept to itself that a file could not be written.
    if library is None or [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]] < [5, 8]:
        return None
    import ctypes

    about = (ctypes.c_long * 32)()  # more than any `struct statfs` has; the first number is the kind of file system
    if library.fstatfs(fd, about) != 0 or about[0] & 0xFFFFFFFF not in _SYNC_WHOLE or _unwritten() > _MUCH_UNWRITTEN:
        return None

    def sync() -> None:
        if library.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return sync


def start_writing(fd: int) -> None:
    """Begin to write a file to the disk, if that can be done without waiting, so that several are on their way at once."""
    library = _libc()
    if library is not None:
        import ctypes

        library.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), 2)  # SYNC_FILE_RANGE_WRITE


def _unwritten() -> int:
    """How many kilobytes the whole system has yet to write to disks."""
    try:
        with open("/proc/meminfo", "rb") as file:
            return sum(int(number) for number in re.findall(rb"(?:Dirty|Writeback): *(\d+)", file.read()))
    except OSError:
        return _MUCH_UNWRITTEN + 1


@cache
def _libc() -> Any:
    """The C library of Linux; `None` on other systems."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        return library if library.syncfs and library.fstatfs and library.sync_file_range else None
    except (ImportError, OSError, AttributeError):
        return None


def set_time(fd: int, nanoseconds: int) -> None:
    """Set the times of a file, if its file system lets its owner do that: some set their own, which differ a little."""
    if KEEPS_TIMES:
        try:
            os.utime(fd, ns=(nanoseconds, nanoseconds))
        except OSError as error:
            if error.errno not in _NO_TIMES:
                raise


def write_all(fd: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write everything in as few calls as the kernel allows: a full disk and very large values cut a write short."""
    if not hasattr(os, "writev"):
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
        return
    written = os.writev(fd, parts)
    while True:
        while parts and written >= len(parts[0]):
            written -= len(parts[0])
            parts = parts[1:]
        if not parts:
            return
        parts = [memoryview(parts[0])[written:], *parts[1:]]
        written = os.writev(fd, parts)


def read_all(fd: int, size: int, offset: int) -> bytes:
    """Read exactly `size` bytes from `offset`, or fewer where the file ends before."""
    if not hasattr(os, "pread"):
        os.lseek(fd, offset, os.SEEK_SET)
    chunks: list[bytes] = []
    while size > 0:
        chunk = os.pread(fd, size, offset) if hasattr(os, "pread") else os.read(fd, size)
        if not chunk:
            break
        chunks.append(chunk)
        size -= len(chunk)
        offset += len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def keep_alive(path: str) -> int | None:
    """A descriptor of the file that a name stands for, if there is one; to be closed when its name is gone and locks are free.

    To remove the last name of a file nobody has open takes ext4 0.2 ms, a third of a durable write. It is the same work when
    the last descriptor is closed, but nobody has to wait for that.
    """
    if _OPEN_PATH is None:
        return None
    try:
        return os.open(path, _OPEN_PATH)
    except OSError:
        return None  # mostly absent; and whatever else it is, the removal itself will meet it


def swap_names(temporary: str, target: str) -> bool:
    """Exchange two names atomically, or return False where that cannot be done (the target absent, another system).

    Replacing an existing file makes ext4 write the new one out at once; an exchange does not, and costs a third.
    """
    return _renameat2()(-100, os.fsencode(temporary), -100, os.fsencode(target), 2) == 0  # AT_FDCWD, RENAME_EXCHANGE


@cache
def _renameat2() -> Callable[..., int]:
    try:
        import ctypes  # 5 ms, so only for the first overwrite with sync="normal"

        function = ctypes.CDLL(None).renameat2
    except (ImportError, OSError, AttributeError, TypeError):
        return lambda *_: -1
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    return cast("Callable[..., int]", function)
