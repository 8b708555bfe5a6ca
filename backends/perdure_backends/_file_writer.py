"""How values in a folder are changed: each under one of its locks, and by a rename, so that readers need no lock."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from perdure.errors import BackendError, PreconditionError, UnknownOutcomeError
from perdure.protocol import ABSENT, Buffer, Condition, ETag

from ._file_folder import ATTEMPTS, Lock, OwnFolder
from ._file_layout import Layout, look
from ._file_spots import Spot
from ._flock import LOCK_EX, LOCK_UN, close_lock, flock, held
from ._system import NO_LINKS, OPEN_NEW, keep_alive, swap_names, sync_folder


class Writer:
    """Writes and removes the files of values. What it raises besides `PerdureError`, the operating system raised.

    Args:
        own: Where the locks are.
        layout: What a file holds.
        durable: Whether to fsync.
    """

    def __init__(self, own: OwnFolder, layout: Layout, *, durable: bool) -> None:
        self._own = own
        self._layout = layout
        self._durable = durable

    def put(self, spot: Spot, data: Buffer, condition: Condition) -> ETag:
        """Replace a value, as `Backend.put`."""
        for _ in range(ATTEMPTS):
            fd, lock = self._own.open_lock(spot.stripe)
            old = None
            # Neither a context manager nor a function of ours: Ctrl-C can strike on entering one, but cannot keep these
            # lines, which call straight into C, from releasing the lock.
            try:
                _require_ours(fd)
                held[fd] = lock
                flock(fd, LOCK_EX)
                if condition is not None:
                    self._check_condition(spot, condition)
                if self._durable and condition is not ABSENT:
                    old = keep_alive(spot.path)
                etag = self._replace(spot, data, create=condition is ABSENT, guard=fd, lock=lock)
                if etag is not None:
                    return etag
            finally:
                if fd in held:
                    held[fd] = None
                    flock(fd, LOCK_UN)
                close_lock(fd)
                if old is not None:
                    os.close(old)
        raise self._own.gone(spot.path)

    def _replace(self, spot: Spot, data: Buffer, *, create: bool, guard: int, lock: Lock) -> ETag | None:
        """Put a new file in place of the old one; None: not done, the folder was removed or moved away meanwhile."""
        temporary = self._own.temporary(lock)
        try:
            etag = self._write_new(temporary, data, guard)
            for _ in range(ATTEMPTS):
                try:
                    if spot.folders:
                        spot.refuse_links()
                    # Last of all, for with the lock of a folder that is gone we may not be the only one here.
                    if not self._own.is_current(lock):
                        break
                    _require_ours(guard)
                    self._publish(temporary, spot.path, create)
                except FileNotFoundError:
                    if not os.path.lexists(temporary):
                        break
                    self._make_folders(spot)
                    continue
                if self._durable:
                    self._sync_names([spot])
                return etag
        except FileNotFoundError:
            pass  # nor is there a folder for temporary files
        except BaseException:
            if guard in held:  # else this is a child forked just now, and the file is its parent's
                _remove(temporary)
            raise
        if guard in held:
            _remove(temporary)
        self._own.ready = False
        return None

    def _write_new(self, temporary: str, data: Buffer, guard: int) -> ETag:
        try:
            fd = os.open(temporary, OPEN_NEW, 0o666)
        except FileExistsError:
            # A killed writer's. It may be a second name of a live value (see _publish): removed, never written into.
            os.unlink(temporary)
            fd = os.open(temporary, OPEN_NEW, 0o666)
        held[fd] = None
        try:
            _require_ours(guard)
            etag = self._layout.write(fd, data)
            if self._durable:
                os.fsync(fd)
        finally:
            held.pop(fd, None)
            os.close(fd)
        return etag

    def _publish(self, temporary: str, path: str, create: bool) -> None:
        if create:
            # Unlike a rename this fails on an existing name, whoever made it.
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise PreconditionError("the key exists already") from None
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                os.replace(temporary, path)  # a file system without hard links: the lock alone has to do
                return
            try:
                os.unlink(temporary)
            except OSError:
                pass  # the value is there, so this is no failure; the next holder of the lock removes its second name
        elif not self._durable and swap_names(temporary, path):
            try:
                os.unlink(temporary)
            except OSError:
                swap_names(temporary, path)  # it was a folder that stood in our place
                raise
        else:
            os.replace(temporary, path)

    def _check_condition(self, spot: Spot, condition: Condition) -> None:
        try:
            if condition is ABSENT:
                if spot.folders:
                    spot.refuse_links()
                os.lstat(spot.path)
                raise PreconditionError("the key exists already")
            if look(spot, self._layout).etag == condition:
                return
            raise PreconditionError("the value is another version by now", hint="Read it again.")
        except (FileNotFoundError, NotADirectoryError):
            if condition is not ABSENT:
                raise PreconditionError("the value is absent") from None

    def delete(self, spot: Spot, condition: ETag | None) -> None:
        """Remove a value, as `Backend.delete`."""
        if not self._is_there(spot):
            if condition is None:
                self._sync_absence(spot)
                return
            raise PreconditionError("the value is absent")
        for _ in range(ATTEMPTS):
            fd, lock = self._own.open_lock(spot.stripe)
            old = None
            try:
                _require_ours(fd)
                held[fd] = lock
                flock(fd, LOCK_EX)
                if condition is not None:
                    self._check_condition(spot, condition)
                old = keep_alive(spot.path)
                if not self._own.is_current(lock):
                    continue
                _require_ours(fd)
                try:
                    os.unlink(spot.path)
                except (FileNotFoundError, NotADirectoryError):
                    self._sync_absence(spot)
                    return
                if self._durable:
                    self._sync_names([spot])
                return
            finally:
                if fd in held:
                    held[fd] = None
                    flock(fd, LOCK_UN)
                close_lock(fd)
                if old is not None:
                    os.close(old)
        raise self._own.gone(spot.path)

    def _is_there(self, spot: Spot) -> bool:
        """Tell whether there is a value to remove; what is no file of ours is refused."""
        try:
            if spot.folders:
                spot.refuse_links()
            if not stat.S_ISREG(os.lstat(spot.path).st_mode):
                raise BackendError("what stands there is not a file of ours")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _make_folders(self, spot: Spot) -> None:
        self._own.synced.difference_update(spot.folders)
        for folder in spot.folders:
            self._own.make(folder)

    def _sync_names(self, spots: Iterable[Spot]) -> None:
        """Make the names of values durable, and once also the folders on the way to them: another process may have made them
        and not have come to that. Each folder is synced once."""
        done = set()
        try:
            for spot in spots:
                if (parent := os.path.dirname(spot.path)) not in done:
                    done.add(parent)
                    sync_folder(parent)
                for folder in spot.folders:
                    if folder not in self._own.synced:
                        if (parent := os.path.dirname(folder)) not in done:
                            done.add(parent)
                            sync_folder(parent)
                        self._own.synced.add(folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            text = "the change was made, and the folder was removed or moved away before it was durable"
            raise UnknownOutcomeError(text, errno=error.errno, hint="Read the key.") from error
        except OSError as error:
            raise UnknownOutcomeError(
                f"the change is visible, but making it durable failed ({error.strerror})",
                errno=error.errno,
                hint="Check the disk; the value may be the old one after a power cut.",
            ) from error

    def _sync_absence(self, spot: Spot) -> None:
        """Whoever removed the value may have been killed before it made that durable, and then it would come back."""
        if self._durable:
            try:
                sync_folder(os.path.dirname(spot.path))
            except (FileNotFoundError, NotADirectoryError):
                pass  # no folder, no value

    def set_aside(self, spot: Spot, name: str, unless: Callable[[], bool]) -> str:
        """Move a file into the folder for what cannot be read, under this name and a number; return where it is, or `""`."""
        folder = os.path.join(self._own.path, "set-aside")
        fd, lock = self._own.open_lock(spot.stripe)
        try:
            _require_ours(fd)
            held[fd] = lock
            flock(fd, LOCK_EX)
            if unless():
                return ""
            if not self._own.is_current(lock):
                raise BackendError("the folder was removed or moved away meanwhile")
            self._own.make(folder)
            number = 0
            stem = os.path.join(folder, name)
            while os.path.lexists(target := f"{stem}.{number}"):
                number += 1
            _require_ours(fd)
            os.rename(spot.path, target)
            if self._durable:
                sync_folder(folder)
                self._sync_names([spot])
        finally:
            if fd in held:
                held[fd] = None
                flock(fd, LOCK_UN)
            close_lock(fd)
        return target


def _require_ours(fd: int) -> None:
    """Stop in a child that was forked (by a signal handler) in the middle of what its parent carries on."""
    if fd not in held:
        raise BackendError("this process was forked in the middle of a change, which the parent carries on")


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # published already
