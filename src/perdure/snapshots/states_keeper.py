"""Keepers as objects with a folder of their own, under the names and with the meaning that pamiq-core gave them."""

from __future__ import annotations

import fnmatch
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from ..errors import PerdureError, SnapshotNotFoundError, UsageError
from .disk import make_folders, remove_tree
from .folder import FolderPlace
from .manifest import Snapshot
from .names import MANIFEST
from .place import open_place


class StatesKeeper(ABC):
    """Decides which snapshots of a folder to remove, and removes them. For a store with `keep=` nothing of this is needed."""

    def __init__(self) -> None:
        self.logger = logging.getLogger(f"{type(self).__module__}.{type(self).__qualname__}")
        self._places: dict[Path, FolderPlace] = {}  # they remember what was verified, so that no part is read at each clean-up
        self._spared: Path | None = None

    def append(self, path: Path) -> None:
        """Be told of a new snapshot.

        Args:
            path: What `StateStore.save_state` returned.
        """
        return

    @abstractmethod
    def select_removal_states(self) -> Iterable[Path]:
        """The snapshots to remove now."""
        raise NotImplementedError

    def cleanup(self) -> list[Path]:
        """Remove what is selected, each by one rename first, so that nobody ever sees half of it.

        What cannot be removed is logged, and stays for the next clean-up. The last snapshot of a folder that is whole stays.

        Returns:
            The paths that were removed.
        """
        removed: list[Path] = []
        for path in map(Path, list(self.select_removal_states())):
            place = self._places.get(path.parent)
            if place is None:
                place = self._places[path.parent] = FolderPlace(path.parent)
            try:
                if self._remove(place, path):
                    self.logger.info("Removed: '%s'", path)
                    removed.append(path)
            except (PerdureError, OSError) as error:
                self.logger.warning("not removed, to be tried again: %s", error)
        return removed

    def _remove(self, place: FolderPlace, path: Path) -> bool:
        try:
            snapshot = place.find(path)
        except SnapshotNotFoundError:
            if path.is_symlink() or not path.is_dir():
                return False
            # Without a manifest: of a program that did not write one, or what it left when it was killed.
            aside = os.path.join(place.own, f"trash-{os.urandom(16).hex()}")
            make_folders(place.own, durable=False)
            os.rename(path, aside)
            remove_tree(aside)
            return True
        others = [entry for entry in place.entries() if isinstance(entry, Snapshot) and entry != snapshot]
        if not any(place.is_whole(other) for other in reversed(others)):
            if path != self._spared:  # said once; a loop may clean up at each of its steps
                self.logger.warning("not removed, as no other snapshot is whole: '%s'", path)
            self._spared = path
            return False
        return place.remove(snapshot)


class LatestStatesKeeper(StatesKeeper):
    """Keeps the newest snapshots of a folder, by their number and not by the times of files, whoever saved them.

    Folders without a manifest are older than all snapshots, in the order of their times, and are never counted before them.
    A folder of another place, or whose name does not fit the pattern, counts once it was appended.

    Args:
        states_dir: The folder; made where it is missing.
        max_keep: How many to keep, 0 or more. The last one that is whole stays in any case.
        state_name_pattern: Which names to look at, as in a shell.

    Raises:
        UsageError: `max_keep` is negative, or the pattern is for paths and not for names.
        BackendError: The folder cannot be made.
    """

    def __init__(self, states_dir: str | Path, max_keep: int, state_name_pattern: str = "*.state") -> None:
        super().__init__()
        if not isinstance(max_keep, int) or max_keep < 0:
            raise UsageError(f"max_keep must be non-negative, and whole, not {max_keep!r:.60}")
        if os.path.dirname(state_name_pattern):
            hint = f"Make a keeper for {os.path.join(states_dir, os.path.dirname(state_name_pattern))}."
            raise UsageError(f"a pattern is for the names in a folder, not for paths: {state_name_pattern!r}", hint=hint)
        self.max_keep = max_keep
        self.state_name_pattern = state_name_pattern
        place = open_place(states_dir, sync=None, share=True)
        if not isinstance(place, FolderPlace):
            raise UsageError("this keeper is for folders", place=place.place, hint="Make the store with keep=KeepLatest(n).")
        self._place = place
        if not os.path.isdir(self._place.root):
            self.logger.warning("States directory %s does not exist. Creating it.", states_dir)
            make_folders(self._place.root, durable=True)
        self._appended: dict[Path, tuple[int, int]] = {}

    def append(self, path: Path) -> None:
        """Count a folder of another place, or whose name does not fit the pattern, too, as the newest there is now.

        Others are found by themselves.
        """
        path = self._spelled_as_ours(Path(path))
        if path.parent != self._place.path or not self._fits(path.name):
            newest = max((entry.sequence for entry in self._place.entries() if isinstance(entry, Snapshot)), default=0)
            self._appended[path] = newest, len(self._appended) + 1

    def _spelled_as_ours(self, path: Path) -> Path:
        """A folder can be reached by several paths; counted twice, the newest snapshot would be taken for an old folder."""
        parent = os.path.realpath(path.parent)
        return Path(self._place.root if parent == os.path.realpath(self._place.root) else parent, path.name)

    def _fits(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self.state_name_pattern)

    def select_removal_states(self) -> list[Path]:
        """All but the newest `max_keep`, the oldest first. Asked again, it looks again."""
        bare: list[tuple[int, Path]] = []
        counted: list[tuple[int, int, Path]] = []
        known = {entry.name: entry for entry in self._place.entries() if isinstance(entry, Snapshot)}
        with os.scandir(self._place.root) as listing:
            for entry in listing:
                path = Path(self._place.root, entry.name)
                if not self._fits(entry.name) or not entry.is_dir(follow_symlinks=False):
                    continue
                if entry.name in known:
                    counted.append((known[entry.name].sequence, 0, path))
                elif not os.path.lexists(os.path.join(entry.path, MANIFEST)):
                    bare.append((entry.stat(follow_symlinks=False).st_mtime_ns, path))
        for path, (newest, order) in self._appended.items():
            if path.name in known and path.parent == self._place.path:
                counted.append((known[path.name].sequence, 0, path))
            elif path.is_dir() and not path.is_symlink():
                counted.append((newest, order, path))
        paths = [path for _, path in sorted(bare)] + [path for _, _, path in sorted(counted)]
        return paths[: max(0, len(paths) - self.max_keep)]
