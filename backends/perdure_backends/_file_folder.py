"""What a folder keeps for itself: the marker, 64 locks, and the temporary file of whoever holds one of them."""

from __future__ import annotations

import errno
import os
from _thread import get_ident

from perdure.errors import BackendError

from ._file_marker import Marker
from ._file_names import RESERVED_FOLDER
from ._flock import LOCK_EX, LOCK_NB, LOCK_UN, close_lock, flock, held, open_lock
from ._system import sync_folder

STRIPES = 64
_ATTEMPTS = 10
_lasting: set[str] = set()  # folders whose names this process has made durable, and those of all above them


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
        self.marker = Marker(self.path, place)
        self.ready = False  # whether this instance has seen to it that all is there and agreed on

    def temporary(self, stripe: str) -> str:
        """The one file that the holder of a lock may write to before it is renamed."""
        return os.path.join(self.path, "tmp", stripe)

    def open_lock(self, stripe: str) -> tuple[int, object]:
        """A descriptor to lock with, and what to note in `held` before that; makes the folder where it is missing.

        Raises:
            OSError: With `EDEADLK` where this thread holds the lock already, and would wait for itself.
        """
        if not self.ready:
            self.prepare()
        path = os.path.join(self.path, "locks", stripe)
        owner = path, get_ident()
        if owner in held.values():
            raise OSError(errno.EDEADLK, "a signal handler or finalizer writes in the middle of a write under the same lock")
        for _ in range(_ATTEMPTS):
            try:
                fd = open_lock(path)
            except FileNotFoundError:
                self.prepare()  # the folder was removed under us
                continue
            if os.fstat(fd).st_nlink:
                return fd, owner
            close_lock(fd)  # ... just now: a lock on a file without a name would exclude nobody
        raise BackendError("the folder is removed again and again", place=self._place)

    def prepare(self) -> None:
        """Make what is missing, agree on the settings, and remove what killed writers left."""
        locks, temporaries = os.path.join(self.path, "locks"), os.path.join(self.path, "tmp")
        self.make(self._root, parents=True)
        for folder in (self.path, locks, temporaries):
            self.make(folder)
            if os.path.islink(folder):
                raise BackendError(f"{folder} is a link", place=self._place, hint="Remove it: somebody planted it.")
        fd = open_lock(os.path.join(locks, "00"))
        try:
            flock(fd, LOCK_EX)
            self.marker.write(self.temporary("00"), durable=self._durable)
        finally:
            flock(fd, LOCK_UN)
            close_lock(fd)
        if self._durable:
            self._sync_way_here()
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

    def make(self, folder: str, *, parents: bool = False) -> None:
        """Make a folder durably, where it is missing."""
        missing = [folder]
        while parents and not os.path.isdir(parent := os.path.dirname(missing[-1])):
            missing.append(parent)
        for path in reversed(missing):
            try:
                os.mkdir(path)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise
                continue
            if self._durable:
                sync_folder(os.path.dirname(path))

    def sweep(self, *, remove: bool = True) -> list[str]:
        """Find, and remove, the files of killed writers. A live writer holds its lock, and is left alone."""
        found = []
        try:
            names = os.listdir(os.path.join(self.path, "tmp"))
        except FileNotFoundError:
            return []
        for name in names:
            if not (len(name) == 2 and name.isdigit() and int(name) < STRIPES):
                continue  # not ours
            fd = open_lock(os.path.join(self.path, "locks", name))
            try:
                flock(fd, LOCK_EX | LOCK_NB)
                path = self.temporary(name)
                if os.path.lexists(path):
                    found.append(path)
                    if remove:
                        os.unlink(path)
            except BlockingIOError:
                continue
            finally:
                flock(fd, LOCK_UN)
                close_lock(fd)
        return found
