"""The calls that differ between systems, in one place, each with a portable way out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

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

NO_SUCH = (errno.ENOENT, errno.ENOTDIR)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


def sync_folder(path: str) -> None:
    """Make the names in a folder durable. Windows can neither open folders nor needs this for its journalled names."""
    if os.name == "nt":
        return
    fd = os.open(path, _OPEN_FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
