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


class StatesKeeper(ABC):
    """Decides which snapshots of a folder to remove, and removes them. For a store with `keep=` nothing of this is needed."""

    def __init__(self) -> None:
        self.logger = logging.getLogger(f"{type(self).__module__}.{type(self).__qualname__}")

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
        places: dict[str, FolderPlace] = {}
        for path in list(self.select_removal_states()):
            place = places.setdefault(str(path.parent), FolderPlace(path.parent))
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
            self.logger.warning("not removed, as no other snapshot is whole: '%s'", path)
            return False
        return place.remove(snapshot)


class LatestStatesKeeper(StatesKeeper):
    """Keeps the newest snapshots of a folder, by their number and not by the times of files, whoever saved them.

    Folders without a manifest are older than all snapshots, in the order of their times, and are never counted before them.

    Args:
        states_dir: The folder; made where it is missing.
        max_keep: How many to keep, 0 or more. The last one that is whole stays in any case.
        state_name_pattern: Which names to look at, as in a shell.

    Raises:
        UsageError: `max_keep` is negative.
        BackendError: The folder cannot be made.
    """

    def __init__(self, states_dir: str | Path, max_keep: int, state_name_pattern: str = "*.state") -> None:
        super().__init__()
        if max_keep < 0:
            raise UsageError(f"max_keep must be non-negative, not {max_keep}")
        self.max_keep = max_keep
        self.state_name_pattern = state_name_pattern
        self._place = FolderPlace(states_dir)
        if not os.path.isdir(self._place.root):
            self.logger.warning("States directory %s does not exist. Creating it.", states_dir)
            make_folders(self._place.root, durable=True)
        self._appended: dict[Path, None] = {}

    def append(self, path: Path) -> None:
        """Count a folder whose name does not fit the pattern, too. Others are found by themselves."""
        if path.parent != self._place.path or not fnmatch.fnmatchcase(path.name, self.state_name_pattern):
            self._appended[path] = None

    def select_removal_states(self) -> list[Path]:
        """All but the newest `max_keep`, the oldest first. Asked again, it looks again."""
        bare, snapshots = [], []
        known = {entry.name: entry for entry in self._place.entries() if isinstance(entry, Snapshot)}
        with os.scandir(self._place.root) as listing:
            for entry in listing:
                if not fnmatch.fnmatchcase(entry.name, self.state_name_pattern) or not entry.is_dir(follow_symlinks=False):
                    continue
                if entry.name in known:
                    snapshots.append(known[entry.name])
                elif not os.path.lexists(os.path.join(entry.path, "manifest.json")):
                    bare.append((entry.stat(follow_symlinks=False).st_mtime_ns, Path(self._place.root, entry.name)))
        for path in self._appended:
            if path.name in known and path.parent == self._place.path:
                snapshots.append(known[path.name])
            elif path.is_dir() and not path.is_symlink():
                bare.append((path.stat().st_mtime_ns, path))
        snapshots.sort(key=lambda snapshot: snapshot.sequence)
        paths = [path for _, path in sorted(bare)] + [Path(self._place.root, snapshot.name) for snapshot in snapshots]
        return paths[: max(0, len(paths) - self.max_keep)]
