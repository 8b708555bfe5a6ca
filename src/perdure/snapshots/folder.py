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
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import BackendError, CodecError, IntegrityError, PerdureError, SnapshotNotFoundError
from ..protocol import Backend
from ..registry import open_backend
from .disk import (
    explain,
    identity,
    lock_file,
    lock_folder,
    make_folders,
    open_read,
    read_into,
    remove_tree,
    sync_folder,
    unlock,
)
from .folder_draft import FolderDraft
from .folder_reading import FolderReading
from .manifest import Broken, Part, Snapshot, read_manifest
from .metadata import MAX_MANIFEST
from .names import MANIFEST

OWN: Final = ".perdure-snapshots"
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
            problem = "this is a link that leads nowhere" if os.path.islink(self.root) else "this is a file, not a folder"
            raise BackendError(problem, place=self.place, hint="Give a folder for the snapshots.")

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
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            # Another user's, perhaps. To begin anew as if there were none would lose work; lost+found is not meant.
            return Broken(name, explain(error, self.place, "look into it", name)) if name.endswith(".state") else None
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
        here, there = os.path.join(self.root, text), os.path.abspath(text)
        # A path is one from the working folder, and a single word a name.
        first, second = (there, here) if os.path.dirname(text) else (here, there)
        path = os.path.realpath(first if os.path.lexists(first) or not os.path.lexists(second) else second)
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
        return self._remove(str(snapshot.path), snapshot.name)

    def remove_broken(self, name: str) -> bool:
        if not isinstance(self._entry(name), Broken):
            raise SnapshotNotFoundError("there is no damaged manifest in a folder called so", key=name, place=self.place)
        return self._remove(os.path.join(self.root, name), name)

    def _remove(self, path: str, name: str) -> bool:
        try:
            lock = lock_folder(path)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            raise explain(error, self.place, "remove", name) from error
        try:
            make_folders(self.own, durable=False)
            self._check_own()
            trash = os.path.join(self.own, f"trash-{os.urandom(16).hex()}")
            os.rename(path, trash)
            if os.path.dirname(path) != self.root:
                sync_folder(os.path.dirname(path))
            self.sync_names()
            remove_tree(trash)
        except OSError as error:
            raise explain(error, self.place, "remove", name) from error
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
        synced = False
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
                if lock is None and name.startswith("draft-"):
                    continue
                if not synced:
                    self.sync_names()
                    synced = True
                remove_tree(path)
            except FileNotFoundError:
                continue
            except OSError as error:  # of another user: the rest is swept all the same
                _log.warning("what a killed process left cannot be removed: %s", explain(error, self.place, "sweep", name))
            finally:
                unlock(lock)

    def sync_names(self) -> None:
        """Before anything is removed from what was renamed out of sight, also by who was killed then.

        Else a power cut could bring a snapshot back of which some is gone.
        """
        sync_folder(self.root)
        sync_folder(self.own)

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
