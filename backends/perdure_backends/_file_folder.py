"""What a folder keeps for itself: the marker, 64 locks, the temporary file of whoever holds one of them, and folders in which
several values are written at once."""

from __future__ import annotations

import errno
import os
import stat
from _thread import get_ident
from typing import NamedTuple, Self

from perdure.errors import BackendError

from ._file_marker import Marker
from ._file_names import RESERVED_FOLDER
from ._flock import LOCK_EX, LOCK_NB, LOCK_UN, close_lock, flock, held, open_lock
from ._system import sync_folder

STRIPES = 64
ATTEMPTS = 100  # writes under which the folder vanishes begin again this often
_BATCH = "batch-"
_lasting: set[str] = set()  # folders whose names this process has made durable, and those of all above them


class Lock(NamedTuple):
    """A lock file that one thread has opened. It is the same lock by whatever path that was."""

    stripe: str
    thread: int
    device: int
    file: int

    @classmethod
    def of(cls, stripe: str, info: os.stat_result) -> Self:
        """The lock that this thread opened as this file."""
        return cls(stripe, get_ident(), info.st_dev, info.st_ino)


class OwnFolder:
    """The folder `.perdure` under `root`, made by the first write.

    Args:
        root: Where the values are.
        place: For messages.
        durable: Whether to fsync.
    """

    def __init__(self, root: str, place: str, *, durable: bool) -> None:
        self._root = root
        self._place = place
        self._durable = durable
        self.path = os.path.join(root, RESERVED_FOLDER)
        self._locks = os.path.join(self.path, "locks", "")
        self._temporaries = os.path.join(self.path, "tmp", "")
        self.marker = Marker(self.path, place)
        self.ready = False  # whether this instance has seen to it that all is there and agreed on
        self.synced: set[str] = set()  # folders of values whose names are known to be durable
        self._known: dict[str, tuple[int, int, int]] = {}  # which files the locks are, by which another folder is noticed

    def temporary(self, lock: Lock) -> str:
        """The one file that the holder of a lock may write to before it is renamed.

        Named after the lock's file, too: whoever holds a lock of a folder that was removed or moved meanwhile must not write
        into what the holder of the same lock in the new one is writing.
        """
        return f"{self._temporaries}{lock.stripe}-{lock.file:x}"

    def open_lock(self, stripe: str) -> tuple[int, Lock]:
        """A descriptor to lock with, and what to note in `held` before that; makes the folder where it is missing.

        Raises:
            OSError: With `EDEADLK` where this thread holds the lock already, and would wait for itself.
            BackendError: There is no folder whatever we do.
        """
        missing: FileNotFoundError | None = None
        for _ in range(ATTEMPTS):
            try:
                if not self.ready:
                    self.prepare()
                fd = open_lock(self._locks + stripe)
            except FileNotFoundError as error:
                self.ready = False  # the folder was removed under us
                missing = error
                continue
            try:
                info = os.fstat(fd)
                if self._known.get(stripe) == _identity(info) or self._is_new_here(stripe, info):
                    return fd, _lock(stripe, info)
            except BaseException:
                close_lock(fd)
                raise
            close_lock(fd)
            self.ready = False  # another folder stands in place of the one we knew
        raise self.gone(missing.filename if missing else self.path) from missing

    def gone(self, path: str) -> BackendError:
        """The error for whoever has tried often enough."""
        hint = f"Check {path}: it must be possible to make it, and something may remove it all the time."
        text = "the folder cannot be made, or is removed again and again"
        return BackendError(text, place=self._place, errno=errno.ENOENT, hint=hint)

    def is_current(self, lock: Lock) -> bool:
        """Tell whether a lock still is the one that others take. It is not when the folder was removed or moved away."""
        try:
            info = os.lstat(self._locks + lock.stripe)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return info.st_ino == lock.file and info.st_dev == lock.device

    def _is_new_here(self, stripe: str, info: os.stat_result) -> bool:
        """Note a lock that this instance takes for the first time, if the folder is the one it knows."""
        if stripe in self._known:
            return False
        try:
            there = os.lstat(f"{self._locks}00")
        except (FileNotFoundError, NotADirectoryError):
            return False
        if _identity(there) != self._known.get("00"):
            return False
        self._known[stripe] = _identity(info)
        return True

    def prepare(self) -> None:
        """Make what is missing, agree on the settings, and remove what killed writers left."""
        if self._known:  # all over again: nothing is known of a folder that was made, moved or copied here by others
            self.synced.clear()
            _lasting.clear()
        self.make(self._root, parents=True)
        for folder in (self.path, self._locks[:-1], self._temporaries[:-1]):
            self.make(folder)
            if os.path.islink(folder):
                raise BackendError(f"{folder} is a link", place=self._place, hint="Remove it: somebody planted it.")
        fd = open_lock(f"{self._locks}00")
        try:
            info = os.fstat(fd)
            held[fd] = lock = _lock("00", info)
            flock(fd, LOCK_EX)
            self.marker.write(self.temporary(lock), durable=self._durable)
        finally:
            if fd in held:
                held[fd] = None
                flock(fd, LOCK_UN)
            close_lock(fd)
        if self._durable:
            self._sync_way_here()
        self._known = {"00": _identity(info)}
        self.ready = True
        self.sweep()

    def _sync_way_here(self) -> None:
        """Make the names of the marker, of our folders and of all above durable: whoever made them may have been killed
        before it came to that, and what is written now is to last."""
        for folder in (self.path, self._root):
            sync_folder(folder)
        way = []
        folder = self._root
        while not os.path.ismount(folder) and (folder == self._root or folder not in _lasting):
            way.append(folder)
            folder = os.path.dirname(folder)
            try:
                sync_folder(folder)
            except PermissionError:
                continue  # a parent we may not read: then it is not we who could have made a folder in it
        _lasting.update(way)

    def make(self, folder: str, *, parents: bool = False, durable: bool = True) -> None:
        """Make a folder where it is missing, durably unless the caller sees to that."""
        missing = [folder]
        while parents and not os.path.isdir(parent := os.path.dirname(missing[-1])) and parent != missing[-1]:
            missing.append(parent)
        for path in reversed(missing):
            try:
                os.mkdir(path)
            except FileExistsError:
                if stands_in_the_way(path):
                    raise
                continue
            if durable and self._durable:
                sync_folder(os.path.dirname(path))

    def open_batch(self) -> tuple[str, int]:
        """Make a folder to write several values in, with a lock in it, which the caller takes and holds as long as it needs
        the folder: that keeps it from being swept. Return the folder and a descriptor of the lock.

        Raises:
            BackendError: There is no folder whatever we do.
        """
        for _ in range(ATTEMPTS):
            try:
                if not self.ready:
                    self.prepare()
                self.sweep_batches()  # here, too: who is killed again and again may never have to prepare
                folder = f"{self._temporaries}{_BATCH}{os.urandom(8).hex()}"
                os.mkdir(folder)
                try:
                    return folder, open_lock(os.path.join(folder, "lock"))
                except BaseException:
                    remove_batch(folder)
                    raise
            except FileNotFoundError:
                self.ready = False  # removed under us
        raise self.gone(self.path)

    def sweep_batches(self, *, remove: bool = True) -> list[str]:
        """Find, and remove, folders of killed writers. Whoever is alive holds the lock in its folder, and is left alone."""
        found = []
        try:
            names = os.listdir(self._temporaries)
        except FileNotFoundError:
            return []
        for name in names:
            folder = self._temporaries + name
            if not name.startswith(_BATCH) or os.path.islink(folder):
                continue
            try:
                fd = open_lock(os.path.join(folder, "lock"))
            except OSError:
                continue  # removed meanwhile, no folder, or another user's, and whoever can remove it will do so
            try:
                flock(fd, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                continue
            finally:
                if fd in held:
                    flock(fd, LOCK_UN)
                close_lock(fd)
            if not os.path.isdir(folder):
                continue
            try:
                if remove:
                    remove_batch(folder)
            except PermissionError:
                continue
            found.append(folder)
        return found

    def sweep(self, *, remove: bool = True) -> list[str]:
        """Find, and remove, the files of killed writers. A live writer holds its lock, and is left alone."""
        found = self.sweep_batches(remove=remove)
        try:
            names = os.listdir(self._temporaries)
        except FileNotFoundError:
            return []
        for name in names:
            stripe = name[:2]
            if not (stripe.isdecimal() and int(stripe) < STRIPES and name[2:3] == "-"):
                continue  # not ours
            fd = open_lock(self._locks + stripe)
            try:
                held[fd] = Lock.of(stripe, os.fstat(fd))
                flock(fd, LOCK_EX | LOCK_NB)
                path = self._temporaries + name
                if os.path.lexists(path):
                    found.append(path)
                    if remove:
                        os.unlink(path)
            except BlockingIOError:
                continue
            finally:
                if fd in held:
                    held[fd] = None
                    flock(fd, LOCK_UN)
                close_lock(fd)
        return found


def remove_batch(folder: str) -> None:
    """Remove a folder for several values whose lock was free, and is not open any more: Windows would not remove it then.

    Others may be at it, too. If its writer had only just made it, that finds it gone, and begins again.
    """
    try:
        for name in sorted(os.listdir(folder), key="lock".__eq__):
            try:
                os.unlink(os.path.join(folder, name))
            except FileNotFoundError:
                pass
        os.rmdir(folder)
    except OSError as error:
        # Gone, or somebody who sweeps was about to open the lock, and has made it again.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise


def stands_in_the_way(path: str) -> bool:
    """Tell whether a name belongs to something other than a folder; asked once, as others may make and remove it meanwhile."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return os.path.islink(path)  # to nothing


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    # The number of an inode is soon given to another file. Nobody changes a lock file, so its time of change tells them apart;
    # where somebody does (chmod -R), the folder is only looked at anew. Windows does not reuse numbers, and has two such times.
    return info.st_dev, info.st_ino, info.st_ctime_ns if os.name != "nt" else 0


def _lock(stripe: str, info: os.stat_result) -> Lock:
    lock = Lock.of(stripe, info)
    if lock in held.values():
        raise OSError(errno.EDEADLK, "a signal handler or finalizer writes in the middle of a write under the same lock")
    return lock
