"""Snapshots in a folder, each an ordinary directory that other tools can open.

::

    2026-11-22_05-00-00,000000.state/     appears whole, by one rename
        manifest.json                     written last
        model.pkl  model/weight.npy       unchanged parts are hard links to those of the snapshot before
    .perdure-snapshots/
        lock                              held while a number is given out
        draft-5e.../                      what a live process is saving; it holds a lock on the folder
        trash-77.../                      what is being removed
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import BackendError, CodecError, IntegrityError, PerdureError, SnapshotNotFoundError, UnavailableError
from ..protocol import Backend
from ..registry import open_backend
from .disk import (
    explain,
    lock_file,
    lock_folder,
    make_folders,
    memory_for,
    open_read,
    read_into,
    remove_tree,
    sync_folder,
    unlock,
)
from .folder_draft import FolderDraft
from .manifest import CHUNK, MANIFEST, MAX_MANIFEST, Broken, Part, Snapshot, digest_of, read_manifest
from .place import Report, damaged
from .work import Call, Work

OWN: Final = ".perdure-snapshots"
_PATIENCE = 30.0  # seconds
_log = logging.getLogger("perdure.snapshots")
_FOREIGN = "Snapshots have a manifest.json; one that lacks it was never completed, or something else wrote it."


class Known(NamedTuple):
    """A file whose bytes this process has written or compared with their digest, and how to tell that it is still the same."""

    path: str
    identity: tuple[int, int, int, int]


class FolderPlace:
    """Snapshots in a folder. Safe for threads and processes; nothing is made before the first save.

    Args:
        path: The folder.
        durable: Whether a snapshot that was saved survives a power cut, or only the end of the process.
        share: Whether unchanged parts may be hard links to those of an earlier snapshot.
    """

    shared_by_machines = False

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True, share: bool = True) -> None:
        self.path: Path | None = Path(os.path.abspath(path))
        self.root = str(self.path)
        self.own = os.path.join(self.root, OWN)
        self.place = f"file:{self.root}"
        self.durable = durable
        self.share = share
        self.known: dict[tuple[str, ...], Known] = {}
        self._manifests: dict[str, tuple[tuple[int, int, int, int], Snapshot | Broken]] = {}
        self._whole: dict[str, list[Known]] = {}
        if os.path.lexists(self.root) and not os.path.isdir(self.root):
            raise BackendError("this is a file, not a folder", place=self.place, hint="Give a folder for the snapshots.")

    def __repr__(self) -> str:
        return f"<FolderPlace {self.place}>"

    def entries(self) -> list[Snapshot | Broken]:
        found: list[Snapshot | Broken] = []
        try:
            with os.scandir(self.root) as listing:
                names = [entry.name for entry in listing if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain(error, self.place, "list the snapshots") from error
        for name in names:
            entry = self._entry(name)
            if entry is not None:
                found.append(entry)
        for gone in self._manifests.keys() - set(names):
            self._manifests.pop(gone, None)
            self._whole.pop(gone, None)
        return sorted(
            found, key=lambda e: (e.sequence, e.saved.timestamp(), e.name) if isinstance(e, Snapshot) else (-1, 0, e.name)
        )

    def _entry(self, name: str) -> Snapshot | Broken | None:
        """What a folder holds: a snapshot, something broken, or nothing of ours. Manifests are read once: they never change."""
        path = os.path.join(self.root, name)
        try:
            info = os.lstat(os.path.join(path, MANIFEST))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None  # nor is a folder that is closed to us, such as lost+found
        except OSError as error:
            raise explain(error, self.place, "look at", f"{name}/{MANIFEST}") from error
        if not stat.S_ISREG(info.st_mode):
            return None
        known = self._manifests.get(name)
        if known is None or known[0] != identity(info):
            entry: Snapshot | Broken | None
            try:
                entry = self._read_manifest(path, name)
            except SnapshotNotFoundError:
                return None
            except CodecError as error:
                entry = Broken(name, error)
            self._manifests[name] = known = identity(info), entry
        return known[1]

    def _read_manifest(self, path: str, name: str) -> Snapshot:
        try:
            fd = open_read(os.path.join(path, MANIFEST))
            try:
                size = os.fstat(fd).st_size
                if size > MAX_MANIFEST:
                    problem = f"the manifest has {size:,} bytes"
                    raise IntegrityError(problem, key=f"{name}/{MANIFEST}", place=self.place, hint="Use another snapshot.")
                data = bytearray(size)
                read = read_into(fd, memoryview(data), 0)
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "this folder is no snapshot" if os.path.isdir(path) else "there is no such snapshot"
            hint = _FOREIGN if os.path.isdir(path) else "perdure snapshots lists those there are."
            raise SnapshotNotFoundError(what, key=name, place=self.place, hint=hint) from error
        except OSError as error:
            raise explain(error, self.place, "read", f"{name}/{MANIFEST}") from error
        snapshot = read_manifest(bytes(data[:read]), name, self.place, Path(path))
        # A folder may be renamed, copied or moved: then it is called what it is called.
        return snapshot if snapshot.name == name else dataclasses.replace(snapshot, name=name)

    def find(self, which: str | os.PathLike[str]) -> Snapshot:
        text = os.fspath(which)
        if os.path.dirname(text):
            path = os.path.abspath(text)
            if not os.path.lexists(path) and not os.path.isabs(text):
                path = os.path.join(self.root, text)
        else:
            path = os.path.join(self.root, text)
        return self._read_manifest(path, os.path.basename(path))

    def begin(self, *, isolate: bool) -> FolderDraft:
        try:
            make_folders(self.own, durable=self.durable)
            self._check_own()
        except OSError as error:
            raise explain(error, self.place, "begin a snapshot") from error
        try:
            self.sweep()
        except PerdureError as error:
            _log.warning("what killed processes left could not be removed: %s", error)
        try:
            return FolderDraft(self)
        except OSError as error:
            raise explain(error, self.place, "begin a snapshot") from error

    def _check_own(self) -> None:
        if os.path.islink(self.own):
            raise BackendError(f"{self.own} is a link", place=self.place, hint="Remove it: somebody planted it.")

    def read(self, snapshot: Snapshot) -> FolderReading:
        return FolderReading(self, snapshot)

    def is_whole(self, snapshot: Snapshot) -> bool:
        seen = self._whole.get(snapshot.name)
        try:
            if seen is not None and all(identity(os.lstat(path)) == known for path, known in seen):
                return True
        except OSError:
            pass  # then reading tells what is wrong
        reading = self.read(snapshot)
        try:
            return not reading.damage(snapshot.parts.values(), lambda _: None)
        finally:
            reading.close()

    def remove(self, snapshot: Snapshot) -> bool:
        if snapshot.path is None:
            raise SnapshotNotFoundError("this snapshot is not in a folder", key=snapshot.name, place=self.place)
        path = str(snapshot.path)
        try:
            lock = lock_folder(path)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            raise explain(error, self.place, "remove", snapshot.name) from error
        try:
            make_folders(self.own, durable=False)
            self._check_own()
            trash = os.path.join(self.own, f"trash-{os.urandom(16).hex()}")
            os.rename(path, trash)
            # Durable before anything in it is removed: after a power cut there is the whole snapshot or none.
            sync_folder(os.path.dirname(path))
            sync_folder(self.own)
            remove_tree(trash)
        except OSError as error:
            raise explain(error, self.place, "remove", snapshot.name) from error
        finally:
            unlock(lock)
        return True

    def sweep(self) -> None:
        self._check_own()
        try:
            names = os.listdir(self.own)
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain(error, self.place, "sweep") from error
        for name in names:
            if not name.startswith(("draft-", "trash-")):
                continue
            path = os.path.join(self.own, name)
            try:
                lock = lock_folder(path)
            except (BlockingIOError, FileNotFoundError, NotADirectoryError):
                continue  # of somebody who is alive, swept by another, or no folder and not ours
            except OSError as error:
                _log.warning("what a killed process left cannot be removed: %s", explain(error, self.place, "sweep", name))
                continue
            try:
                if lock is not None or name.startswith("trash-"):
                    remove_tree(path)
            except FileNotFoundError:
                continue
            except OSError as error:  # of another user: the rest is swept all the same
                _log.warning("what a killed process left cannot be removed: %s", explain(error, self.place, "sweep", name))
            finally:
                unlock(lock)

    def lock(self) -> int:
        """Wait until no other process gives out a number; for `disk.unlock`."""
        return lock_file(os.path.join(self.own, "lock"))

    def know(self, snapshot: Snapshot, parts: Iterable[Part]) -> None:
        """Remember files whose bytes were compared with their digests: a later snapshot may link to them."""
        seen = {}
        for part in parts:
            path = os.path.join(str(snapshot.path), part.name)
            seen[part.name] = known = Known(path, identity(os.lstat(path)))
            if part.size:
                self.known[part.chunks] = known
        if seen.keys() >= snapshot.parts.keys():
            self._whole[snapshot.name] = list(seen.values())

    def records(self) -> tuple[Backend, str]:
        return open_backend(Path(self.own, "ranks"), sync="normal"), ""

    def close(self) -> None:
        """Nothing is held open."""


class FolderReading:
    """One snapshot, locked against removal by its folder."""

    def __init__(self, place: FolderPlace, snapshot: Snapshot) -> None:
        self._place = place
        self._snapshot = snapshot
        self._folder = str(snapshot.path)
        self._folders: set[str] = set()
        self._lock: int | None = None
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self._lock = lock_folder(self._folder, shared=True)
                return
            except FileNotFoundError as error:
                raise SnapshotNotFoundError(
                    "the snapshot has been removed meanwhile", key=snapshot.name, place=place.place, hint="Take another one."
                ) from error
            except BlockingIOError as error:
                # By who has just completed it, or is about to remove it: both take a moment.
                if time.monotonic() > end:
                    problem = f"another process has locked the snapshot for {_PATIENCE:g} s"
                    raise UnavailableError(problem, key=snapshot.name, place=place.place, hint="Try again.") from error
                time.sleep(0.005)
            except OSError as error:
                raise explain(error, place.place, "read", snapshot.name) from error

    def fetch(self, parts: Iterable[Part], report: Report) -> dict[str, memoryview]:
        wanted = list(parts)
        fetched: dict[str, memoryview] = {}
        errors = self._compare(wanted, report, fetched)
        if errors:
            raise errors[0]
        return fetched

    def fetch_files(self, parts: Iterable[Part], report: Report) -> Path:
        errors = self._compare(list(parts), report, None)
        if errors:
            raise errors[0]
        return Path(self._folder)

    def damage(self, parts: Iterable[Part], report: Report) -> list[IntegrityError]:
        return self._compare(list(parts), report, None)

    def _compare(self, parts: list[Part], report: Report, keep: dict[str, memoryview] | None) -> list[IntegrityError]:
        """Read all chunks of all parts, several at once, and compare each with its digest."""
        errors: dict[str, IntegrityError] = {}
        work = Work()
        opened: list[int] = []
        try:
            for part in parts:
                try:
                    self._refuse_links(part.name)
                    fd = open_read(os.path.join(self._folder, part.name))
                    opened.append(fd)
                    size = os.fstat(fd).st_size
                except (FileNotFoundError, NotADirectoryError):
                    errors[part.name] = damaged(self._snapshot, part, "the part is missing")
                    continue
                except OSError as error:
                    self._fail(error, part, errors)
                    continue
                if size != part.size:
                    errors[part.name] = damaged(self._snapshot, part, f"the part has {size} bytes and not {part.size}")
                    continue
                memory = memory_for(part.size) if keep is not None else None
                if keep is not None and memory is not None:
                    keep[part.name] = memory
                for number in range(len(part.chunks)):
                    work.submit(Call(self._compare_chunk, fd, part, number, memory, errors, report))
                if len(opened) >= 256:
                    work.finish()
                    _close_all(opened)
            work.finish()
        finally:
            work.stop()
            _close_all(opened)
        whole = [part for part in parts if part.name not in errors]
        try:
            self._place.know(self._snapshot, whole)
        except FileNotFoundError:
            pass  # somebody removes parts of a snapshot by hand: then there is nothing to link to
        return [errors[part.name] for part in parts if part.name in errors]

    def _refuse_links(self, name: str) -> None:
        """A folder of a part that is a link leads to files which are not the snapshot's."""
        folder = name.rpartition("/")[0]
        while folder and folder not in self._folders:
            if not stat.S_ISDIR(os.lstat(os.path.join(self._folder, folder)).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "this is a link", folder)
            self._folders.add(folder)
            folder = folder.rpartition("/")[0]

    def _fail(self, error: OSError, part: Part, errors: dict[str, IntegrityError]) -> None:
        told = explain(error, self._place.place, "read", f"{self._snapshot.name}/{part.name}")
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            told = damaged(self._snapshot, part, "no file stands in the part's place")
        if not isinstance(told, IntegrityError):
            raise told from error
        told.__cause__ = error
        errors[part.name] = told

    def _compare_chunk(
        self,
        fd: int,
        part: Part,
        number: int,
        memory: memoryview | None,
        errors: dict[str, IntegrityError],
        report: Report,
    ) -> None:
        start = number * CHUNK
        size = min(CHUNK, part.size - start)
        view = memory[start : start + size] if memory is not None else memoryview(bytearray(size))
        try:
            read = read_into(fd, view, start)
        except OSError as error:
            self._fail(error, part, errors)
            return
        if read != size or digest_of(view) != part.chunks[number]:
            errors[part.name] = damaged(self._snapshot, part, "the part is damaged: its bytes are not those that were saved")
        report(size)

    def close(self) -> None:
        unlock(self._lock)
        self._lock = None


def identity(info: os.stat_result) -> tuple[int, int, int, int]:
    """What tells that a file is the same, and was not written to, between two looks in one process."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else (0, 0, 0, 0)


def _close_all(opened: list[int]) -> None:
    while opened:
        os.close(opened.pop())
