"""Folders that another program wrote, as snapshots: all they lack is a manifest."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import SnapshotNotFoundError, UsageError
from .components import Registered, spell_names
from .disk import explain, make_folders, open_new, sync_file, sync_folder, unlock, write_at
from .folder import FolderPlace
from .manifest import Component, Part, Snapshot, digest_of, write_manifest
from .names import MANIFEST
from .place import Place, digest_file
from .written import written_by


def adopt(
    place: Place, components: Mapping[str, Registered], which: str | os.PathLike[str], metadata: Mapping[str, Any]
) -> Snapshot:
    """Write a manifest into a folder. Arguments and errors as `StateStore.adopt`."""
    if not isinstance(place, FolderPlace):
        raise UsageError("only folders can be adopted", place=place.place, hint="Adopt it in a folder, and save it here.")
    folder = os.path.join(place.root, os.path.basename(os.path.normpath(os.fspath(which))))
    name = os.path.basename(folder)
    if os.path.abspath(os.fspath(which)) not in (folder, os.path.abspath(name)) or not os.path.isdir(folder):
        raise SnapshotNotFoundError("there is no such folder", key=name, place=place.place, hint="Move it there first.")
    if os.path.lexists(os.path.join(folder, MANIFEST)):
        raise UsageError("this is a snapshot already", key=name, place=place.place, hint="Load it.")
    files = written_by(name, folder, set(), place.place)
    owned = {component: tuple(file for file in files if _belongs(file, component)) for component in components}
    empty = [component for component, its in owned.items() if not its or components[component].kind != "files"]
    if empty:
        problem = f"it holds {spell_names(files)}, and nothing that {spell_names(empty)} could load from files"
        raise UsageError(problem, key=name, place=place.place, hint="Register what it was saved from, and nothing else.")
    try:
        parts = {file: _look(folder, file, durable=place.durable) for its in owned.values() for file in its}
        make_folders(place.own, durable=place.durable)
        snapshot = Snapshot(
            os.urandom(16).hex(),
            0,
            name,
            datetime.fromtimestamp(os.stat(folder).st_mtime, UTC),
            metadata,
            {component: Component("files", its) for component, its in owned.items()},
            parts,
            f"perdure {__version__}",
            platform.python_version(),
            place.place,
            Path(folder),
        )
        return _publish(place, folder, snapshot)
    except OSError as error:
        raise explain(error, place.place, "adopt", name) from error


def _belongs(file: str, component: str) -> bool:
    top = file.partition("/")[0]
    return top == component or os.path.splitext(top)[0] == (os.path.splitext(component)[0] if file == top else component)


def _look(folder: str, file: str, *, durable: bool) -> Part:
    if file.endswith("/"):
        return Part(file, 0, (digest_of(b""),))
    path = os.path.join(folder, *file.split("/"))
    size, chunks = digest_file(path)
    if durable:
        sync_file(path)
    return Part(file, size, chunks)


def _publish(place: FolderPlace, folder: str, snapshot: Snapshot) -> Snapshot:
    """Give it the next number, and let the manifest appear by a rename."""
    lock = place.lock()
    try:
        numbers: Iterable[int] = (entry.sequence for entry in place.entries() if isinstance(entry, Snapshot))
        snapshot = dataclasses.replace(snapshot, sequence=max(numbers, default=0) + 1)
        if os.path.lexists(os.path.join(folder, MANIFEST)):
            raise UsageError("this is a snapshot by now", key=snapshot.name, place=place.place, hint="Load it.")
        aside = os.path.join(place.own, "adopting")  # always the same, under the lock: who was killed left one at most
        if os.path.lexists(aside):
            os.unlink(aside)
        fd = open_new(aside)
        try:
            write_at(fd, [write_manifest(snapshot)], 0)
            if place.durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(aside, os.path.join(folder, MANIFEST))
        if place.durable:
            sync_folder(folder)
    finally:
        unlock(lock)
    return snapshot
