"""Many values at once: what a single write syncs for itself is synced for all of them together.

New values are written into files of a folder that belongs to this call alone, `.perdure/tmp/batch-...`, and made durable in one
go. Then each is renamed to its place under the lock of its stripe, as a single one would be, and at last each folder with new
names is synced once. Readers and other writers notice no difference.

A lock in that folder is held until all is done. Whoever gets it knows that the writer was killed, and removes the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from perdure.errors import BackendError, UnknownOutcomeError
from perdure.protocol import NOT_KEPT, Buffer, ETag

from ._file_folder import ATTEMPTS, Lock, OwnFolder, remove_batch
from ._file_layout import Layout
from ._file_spots import Spot, Spots
from ._file_writer import Writer
from ._flock import LOCK_EX, LOCK_NB, LOCK_UN, close_lock, flock, held
from ._system import OPEN_NEW, keep_alive, start_writing, whole_sync

_VALUES = 256  # in one batch
_BYTES = 16 << 20  # in one batch, unless a single value has more
_OPEN = 64  # new files that are being synced, or old ones that are kept until a lock is free

_under_way: set[object] = set()
"""Batches of this process. A child forked in the middle of one (by a signal handler) has none, and leaves it to its parent."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_under_way.clear)


class Item(NamedTuple):
    """One value on its way.

    Attributes:
        key: Its key.
        spot: Where it belongs.
        data: The bytes; of no account where it is to be removed.
        new: The file that holds them until it is renamed.
        etag: Their version.
    """

    key: str
    spot: Spot
    data: Buffer = b""
    new: str = ""
    etag: ETag = NOT_KEPT


_stripe = attrgetter("spot.stripe")


def batches(items: Mapping[str, Buffer], spots: Spots) -> Iterator[list[Item]]:
    """Cut what is to be written into batches that take little room; folder by folder, so that few folders have to be synced."""
    batch: list[Item] = []
    size = 0
    for key in sorted(items):
        data = items[key]
        length = memoryview(data).nbytes
        if batch and (len(batch) == _VALUES or size + length > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(Item(key, spots[key], data))
        size += length
    if batch:
        yield batch


class Batch(Writer):
    """Writes or removes several values, durably. One for each call, and used once.

    Args:
        own: Where the locks are.
        layout: What a file holds.

    Attributes:
        key: The one it is at, for messages; `None` while it is at all of them.
    """

    def __init__(self, own: OwnFolder, layout: Layout) -> None:
        super().__init__(own, layout, durable=True)
        self.key: str | None = None
        self._changed: list[Item] = []  # visible, and not yet durable

    def put_all(self, items: list[Item]) -> dict[str, ETag]:
        """Replace values, each as `put` does without a condition."""
        etags: dict[str, ETag] = {}
        try:
            _under_way.add(self)
            for _ in range(ATTEMPTS):
                self._write_and_publish(items)
                etags |= {item.key: item.etag for item in self._changed}
                items = [item for item in items if item.key not in etags]
                if not items:
                    return etags
            raise self._own.gone(self._own.path)
        finally:
            _under_way.discard(self)

    def _write_and_publish(self, items: list[Item]) -> None:
        self._changed = []
        folder, fd = self._own.open_batch()
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            batch = Lock.of("", os.fstat(fd))
            written = self._write(items, folder, fd)

            def publish(item: Item, lock: Lock) -> bool:
                return self._rename(item, lock, batch, folder)

            self._under_locks(written, publish)
        except BlockingIOError:
            pass  # somebody who sweeps was quicker
        except FileNotFoundError:
            self._own.ready = False  # there is no folder any more
        finally:
            try:
                self._sync_changed()
            finally:
                mine = fd in held  # else this is a child forked just now, and the folder its parent's
                if mine:
                    flock(fd, LOCK_UN)
                close_lock(fd)
                if mine:
                    self._clear(folder)

    def _write(self, items: list[Item], folder: str, lock: int) -> list[Item]:
        """Make a file of each value, all of them durable."""
        sync = whole_sync(lock)
        written: list[Item] = []
        unsynced: dict[int, str] = {}  # open files, and the keys of what is in them
        try:
            for number, item in enumerate(items):
                self.key = item.key
                new = os.path.join(folder, str(number))
                if self not in _under_way:  # looked up without a call, after which a signal handler could fork
                    raise _forked()
                fd = os.open(new, OPEN_NEW, 0o666)
                if self not in _under_way:
                    raise _forked()
                held[fd] = None
                unsynced[fd] = item.key
                written.append(item._replace(new=new, etag=self._layout.write(fd, item.data)))
                if sync is not None:
                    del unsynced[fd]
                    close_lock(fd)
                    continue
                start_writing(fd)
                if len(unsynced) == _OPEN:
                    self._sync_files(unsynced)
            self._sync_files(unsynced)
        finally:
            for fd in unsynced:
                close_lock(fd)
        self.key = None
        if sync is not None:
            sync()
        return written

    def _sync_files(self, unsynced: dict[int, str]) -> None:
        while unsynced:
            fd, self.key = next(iter(unsynced.items()))
            os.fsync(fd)
            del unsynced[fd]
            close_lock(fd)

    def _rename(self, item: Item, lock: Lock, batch: Lock, folder: str) -> bool:
        """Put a new file in place of the old one; tell whether the folder is still the one in which it was written."""
        for _ in range(ATTEMPTS):
            try:
                if item.spot.folders:
                    item.spot.refuse_links()
                # What stands under these names may be a copy of the folder: neither its locks nor its files are ours.
                there = os.lstat(os.path.join(folder, "lock"))
                if (there.st_dev, there.st_ino) != (batch.device, batch.file) or not self._own.is_current(lock):
                    return False
                if self not in _under_way:
                    raise _forked()
                os.replace(item.new, item.spot.path)
            except FileNotFoundError:
                if not os.path.lexists(item.new):
                    return False
                self._make_folders(item.spot)
            else:
                self._changed.append(item)
                return True
        return False

    def _make_folders(self, spot: Spot) -> None:
        self._own.synced.difference_update(spot.folders)
        for folder in spot.folders:
            self._own.make(folder, durable=False)  # that is `_sync_changed`'s business, outside all locks

    def delete_all(self, items: list[Item]) -> None:
        """Remove values, each as `delete` does without a condition."""
        absent: dict[str, Spot] = {}

        def remove(item: Item, lock: Lock) -> bool:
            if not self._own.is_current(lock):
                return False
            if self not in _under_way:
                raise _forked()
            try:
                os.unlink(item.spot.path)
            except (FileNotFoundError, NotADirectoryError):
                absent[os.path.dirname(item.spot.path)] = item.spot
            else:
                self._changed.append(item)
            done.add(item.key)
            return True

        try:
            _under_way.add(self)
            done: set[str] = set()
            for item in items:
                self.key = item.key
                if not self._is_there(item.spot):
                    absent[os.path.dirname(item.spot.path)] = item.spot
                    done.add(item.key)
            for _ in range(ATTEMPTS):
                self._changed = []
                try:
                    self._under_locks((item for item in items if item.key not in done), remove)
                finally:
                    self._sync_changed()
                if len(done) == len(items):
                    break
            else:
                raise self._own.gone(self._own.path)
            for spot in absent.values():
                self._sync_absence(spot)
        finally:
            _under_way.discard(self)

    def _under_locks(self, items: Iterable[Item], change: Callable[[Item, Lock], bool]) -> None:
        """Change each item under the lock of its stripe, never holding two, until one says that the folder is gone."""
        for stripe, group in groupby(sorted(items, key=_stripe), _stripe):
            if not self._under_lock(stripe, list(group), change):
                return

    def _under_lock(self, stripe: str, items: list[Item], change: Callable[[Item, Lock], bool]) -> bool:
        self.key = items[0].key
        fd, lock = self._own.open_lock(stripe)
        old: list[int] = []
        try:
            if self not in _under_way:
                raise _forked()
            held[fd] = lock
            flock(fd, LOCK_EX)
            for item in items:
                self.key = item.key
                if len(old) < _OPEN and (alive := keep_alive(item.spot.path)) is not None:
                    old.append(alive)
                if not change(item, lock):
                    self._own.ready = False  # removed or moved away
                    return False
            return True
        finally:
            if fd in held:
                held[fd] = None
                flock(fd, LOCK_UN)
            close_lock(fd)
            for alive in old:
                os.close(alive)

    def _sync_changed(self) -> None:
        """Make durable what was changed. After an error, too: what came before it then lasts as it would one by one."""
        if not self._changed or self not in _under_way:
            return
        try:
            self._sync_names(item.spot for item in self._changed)
        except UnknownOutcomeError:
            self.key = None
            raise

    def _clear(self, folder: str) -> None:
        try:
            remove_batch(folder)
        except OSError:
            pass  # the values are in place, or an error is on its way; the next one who sweeps meets what is left


def _forked() -> BackendError:
    return BackendError("this process was forked in the middle of a change, which the parent carries on")
