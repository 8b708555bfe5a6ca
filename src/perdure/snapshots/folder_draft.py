"""A snapshot in a folder while it is being made: everything in a draft of its own, then one rename."""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ..errors import BackendError, PerdureError
from .disk import (
    explain,
    identity,
    lock_folder,
    open_again,
    open_new,
    remove_tree,
    sync_file,
    sync_folder,
    unlink_from_others,
    unlock,
    write_at,
)
from .manifest import CHUNK, Part, Snapshot, digest_of, write_manifest
from .names import MANIFEST
from .place import Report, changed_meanwhile, cut, digest_file, digest_of_views
from .work import Call, Work
from .written import written_by

if TYPE_CHECKING:
    from .folder import FolderPlace

_SMALL = 1 << 18  # to hand so little to another thread takes longer than to write it
_ATTEMPTS = 20
_log = logging.getLogger("perdure.snapshots")


class FolderDraft:
    """As `place.Draft`, in a folder that is locked as long as this process lives."""

    def __init__(self, place: FolderPlace) -> None:
        self._place = place
        self._work = Work()
        self._parts: dict[str, Part] = {}
        self._linked: set[str] = set()
        self._adopted: list[str] = []
        self._written: dict[str, tuple[int, int, int, int]] = {}  # files that components wrote by themselves, when digested
        self._seen: set[str] = set()
        self._merged: set[str] = set()
        self._published: dict[str, tuple[int, int, int, int]] = {}  # files that another process may take, when it may
        self._visible = ""
        self._committed = False
        for _ in range(_ATTEMPTS):
            self.id = os.urandom(16).hex()
            self._path = os.path.join(place.own, f"draft-{self.id}")
            os.mkdir(self._path)
            try:
                self._lock = lock_folder(self._path)
                return
            except (FileNotFoundError, BlockingIOError):
                continue  # somebody swept it in the moment before it was locked
        raise BackendError("what is begun here is removed at once", place=place.place, hint=f"Look who cleans {place.own}.")

    def folder(self) -> Path:
        return Path(self._path)

    def add(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        target = self._target(name)
        chunks = cut(pieces)
        size = sum(map(len, pieces))
        job = _Storing(self, name, target, chunks, size)
        if size < _SMALL:
            job.digest(0)
            return
        for number in range(len(chunks)):
            self._work.submit(Call(job.digest, number))

    def _target(self, name: str) -> str:
        """The path of a new part; its folders are made."""
        self._seen.add(name)
        folder, _, file = name.rpartition("/")
        path = os.path.join(self._path, *folder.split("/")) if folder else self._path
        try:
            if folder:
                os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise explain(error, self._place.place, "write", name) from error
        return os.path.join(path, file)

    def adopt(self, component: str) -> list[str]:
        names = written_by(component, self._path, self._seen, self._place.place)
        self._adopted += names
        return names

    def settle(self) -> None:
        for name in self._adopted:
            self._work.submit(Call(self._digest_file, name))
        self._adopted = []
        self._work.finish()

    def commit(self, snapshot: Snapshot, report: Report) -> Snapshot:
        try:
            return self._commit(snapshot, report)
        except OSError as error:
            raise explain(error, self._place.place, "save", snapshot.name) from error

    def publish(self, report: Report) -> list[Part]:
        try:
            self._store_all(report)
            self._check_unchanged()
            self._published = {name: identity(os.lstat(os.path.join(self._path, name))) for name in self._parts}
        except OSError as error:
            raise explain(error, self._place.place, "save") from error
        return list(self._parts.values())

    def merge(self, draft: str, parts: Sequence[Part]) -> None:
        try:
            for part in parts:
                target = self._target(part.name)
                if not part.is_folder:
                    # One by one: whoever sweeps that draft away meanwhile removes none that has been moved.
                    os.rename(os.path.join(self._place.own, f"draft-{draft}", part.name), target)
            self._parts.update((part.name, part) for part in parts)
            self._merged.update(part.name for part in parts)
        except OSError as error:
            self._drop({part.name.partition("/")[0] for part in parts})  # of that process alone
            raise explain(error, self._place.place, "take in what another process saved", draft) from error

    def _drop(self, folders: Iterable[str]) -> None:
        try:
            for folder in folders:
                remove_tree(os.path.join(self._path, folder))
        except OSError as error:
            raise explain(error, self._place.place, "clear away what another process saved") from error

    def hand_over(self, snapshot: Snapshot | None) -> None:
        try:
            self.abandon()
        except PerdureError as error:
            _log.warning("what is left of a save could not be removed, the next one tries again: %s", error)
        self._place.known.clear()
        if snapshot is None:
            return
        # What another process has put in their place was not compared by this one.
        own = []
        for name, published in self._published.items():
            part = snapshot.parts.get(name)
            try:
                if part == self._parts[name] and identity(os.lstat(os.path.join(str(snapshot.path), name))) == published:
                    own.append(part)
            except OSError:
                continue  # a keeper of another process is just removing it
        try:
            self._place.know(snapshot, own)
        except FileNotFoundError:
            self._place.known.clear()

    def _store_all(self, report: Report) -> None:
        """Wait until all parts are written, and make them durable."""
        self.settle()
        if not self._place.durable:
            report(sum(part.size for part in self._parts.values()))
            return
        folders = set()
        for name, part in self._parts.items():
            if not part.is_folder:
                self._work.submit(Call(self._sync, name, report, part.size))
            while "/" in name:
                name = name.rpartition("/")[0]
                folders.add(os.path.join(self._path, *name.split("/")))
        for folder in sorted(folders):
            self._work.submit(Call(sync_folder, folder))
        self._work.finish()

    def _check_unchanged(self) -> None:
        """What is digested must not be written to any more, by a descriptor that its component left open."""
        for name, written in self._written.items():
            if identity(os.lstat(os.path.join(self._path, name))) != written:
                raise changed_meanwhile(name)

    def _commit(self, snapshot: Snapshot, report: Report) -> Snapshot:
        place = self._place
        self._store_all(report)
        self._check_unchanged()
        parts = {name: self._parts[name] for component in snapshot.components.values() for name in component.parts}
        lock = place.lock()
        try:
            snapshot = self._number(dataclasses.replace(snapshot, parts=parts, place=place.place))
            fd = open_new(os.path.join(self._path, MANIFEST))
            try:
                write_at(fd, [write_manifest(snapshot)], 0)
                if place.durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if place.durable:
                sync_folder(self._path)
            os.rename(self._path, str(snapshot.path))
            self._visible = str(snapshot.path)
            if place.durable:
                sync_folder(place.root)
                sync_folder(place.own)  # or, without a journal, it could be in both places, and be swept in one
            self._committed = True
        finally:
            unlock(lock)
        place.known.clear()
        try:
            place.know(snapshot, [part for name, part in parts.items() if name not in self._merged])
        except FileNotFoundError:
            place.known.clear()  # a keeper of another process has removed it already
        self._release()
        return snapshot

    def _number(self, snapshot: Snapshot) -> Snapshot:
        """Give it the next number, and a name that is free; asked while no other process does."""
        place = self._place
        sequence = max((entry.sequence for entry in place.entries() if isinstance(entry, Snapshot)), default=0) + 1
        name, stem, suffix, again = snapshot.name, *os.path.splitext(snapshot.name), 1
        while os.path.lexists(os.path.join(place.root, name)):
            again += 1
            name = f"{stem}~{again}{suffix}"
        return dataclasses.replace(snapshot, sequence=sequence, name=name, path=Path(place.root, name))

    def abandon(self) -> None:
        self._work.stop()
        try:
            if self._visible and not self._committed:  # nobody knows whether it would still be there after a power cut
                os.rename(self._visible, self._path)
                self._visible = ""
                self._place.sync_names()
            if not self._committed and os.path.isdir(self._path):
                remove_tree(self._path)
        except OSError as error:
            raise explain(error, self._place.place, "clear away what was begun") from error
        finally:
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        unlock(lock)

    # What the threads do.

    def keep(self, part: Part, target: str, *, there: bool) -> bool:
        """Note a part, and let its file be a link to an earlier one with the same bytes, where there is one.

        Args:
            part: The part.
            target: Its file.
            there: Whether the file is there already; then the link takes its place.

        Returns:
            Whether it is a link now.
        """
        self._parts[part.name] = part
        known = self._place.known.get(part.chunks) if self._place.share and part.size else None
        if known is None:
            return False
        link = f"{target}.{self.id}" if there else target
        try:
            if identity(os.lstat(known.path)) != known.identity:
                return False
            os.link(known.path, link)
        except OSError:
            return False  # no hard links here, or no more of this one, or it is gone: writing it tells what else is wrong
        if there:
            try:
                os.replace(link, target)
            except OSError as error:
                raise explain(error, self._place.place, "write", part.name) from error
        return True

    def _digest_file(self, name: str) -> None:
        path = os.path.join(self._path, *name.split("/"))
        if name[-1] == "/":
            self._parts[name] = Part(name, 0, (digest_of(b""),))
            return
        try:
            info = os.lstat(path)
            if info.st_nlink > 1:  # whoever has the other name for it would change the snapshot
                unlink_from_others(path, f"{path}.{self.id}")
            size, chunks = digest_file(path)
            if not self.keep(Part(name, size, chunks), path, there=True):
                # All snapshots share it from now on: nobody shall open it for writing by mistake.
                os.chmod(path, stat.S_IMODE(info.st_mode) & ~0o222)
                self._written[name] = identity(os.lstat(path))
        except OSError as error:
            raise explain(error, self._place.place, "look at what was saved", name) from error

    def _sync(self, name: str, report: Report, size: int) -> None:
        try:
            sync_file(os.path.join(self._path, *name.split("/")))
        except OSError as error:
            raise explain(error, self._place.place, "make durable", name) from error
        report(size)

    def submit(self, call: Callable[[], object]) -> None:
        """Have something else done for this draft."""
        self._work.submit(call)

    def explain(self, error: OSError, name: str) -> Exception:
        """The error to raise where a part cannot be written."""
        return explain(error, self._place.place, "write", name)


class _Storing:
    """One part on its way: digests first, as only they tell whether it has to be written at all."""

    def __init__(self, draft: FolderDraft, name: str, target: str, chunks: list[list[memoryview]], size: int) -> None:
        self._draft = draft
        self._name = name
        self._target = target
        self._chunks = chunks
        self._size = size
        self._digests = [""] * len(chunks)
        self._left = len(chunks)
        self._lock = Lock()

    def digest(self, number: int) -> None:
        self._digests[number] = digest_of_views(self._chunks[number])
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._store()

    def _store(self) -> None:
        part = Part(self._name, self._size, tuple(self._digests))
        if self._draft.keep(part, self._target, there=False):
            return
        # With a descriptor each: one for all would have to be closed by the last, which may never come.
        self._write(0, open_new)
        for number in range(1, len(self._chunks)):
            self._draft.submit(Call(self._write, number, open_again))

    def _write(self, number: int, opening: Callable[[str], int]) -> None:
        try:
            fd = opening(self._target)
            try:
                write_at(fd, self._chunks[number], number * CHUNK)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._draft.explain(error, self._name) from error
