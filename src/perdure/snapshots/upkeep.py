"""Looking after the snapshots of a place, whoever saved them."""

from __future__ import annotations

import logging
import os
from copy import deepcopy
from dataclasses import replace

from ..errors import BackendError, IntegrityError, SnapshotNotFoundError, UsageError, UsageTypeError
from ..mapping.progress import Progress, reporting
from .cleaning import Cleaned, clean
from .keep import Keeper, Policy, is_policy, lacking
from .loading import one_by_one
from .manifest import Broken, Snapshot
from .place import Place

_log = logging.getLogger("perdure.snapshots")


class Upkeep:
    """Lists, verifies and removes snapshots; a part of `StateStore`.

    Args:
        place: Where they are.
        keep: Which stay: a policy, or how the command line spells one.

    Raises:
        UsageError: That is no keeper.
    """

    def __init__(self, place: Place, keep: Policy | str | None) -> None:
        if isinstance(keep, str):
            from .keep_spelling import parse_keeper

            keep = parse_keeper(keep)
        if keep is not None and not is_policy(keep):
            hint = 'Such as keep=perdure.KeepLatest(3), or keep="latest=3".'
            raise UsageTypeError(f"keep= takes a keeper, not {keep!r:.60}", hint=hint)
        self._place = place
        self.keep: Policy | None = keep
        self._warned: set[str] = set()  # metrics that no snapshot had

    def snapshots(self) -> list[Snapshot]:
        """All complete snapshots, the oldest first. Their manifests are read, and no parts."""
        found = (entry for entry in self._place.entries() if isinstance(entry, Snapshot))
        return [replace(snapshot, metadata=deepcopy(snapshot.metadata)) for snapshot in found]  # whose may be changed

    def verify(self, state_path: str | os.PathLike[str], *, progress: Progress = False) -> list[IntegrityError]:
        """Read all parts of a snapshot and compare them with their digests.

        Returns:
            What is wrong, one error a part; empty where all is well.

        Raises:
            SnapshotNotFoundError, CodecError: As `load_state`.
        """
        snapshot = self._place.find(state_path)
        reading = self._place.read(snapshot)
        try:
            with reporting(progress, snapshot.size, "verifying", in_bytes=True) as report:
                return reading.damage(snapshot.parts.values(), one_by_one(report))
        finally:
            reading.close()

    def remove(self, state_path: str | os.PathLike[str]) -> None:
        """Remove one snapshot. What it shares with others stays.

        One whose manifest is damaged is removed as well, if it is in the place of this store.

        Args:
            state_path: As for `load_state`. In a backend, a damaged manifest is named by its key, which the error about it and
                `perdure snapshots` tell.

        Raises:
            SnapshotNotFoundError: There is none.
            CodecError: It is of a newer format.
            IntegrityError: Its manifest is damaged, and it is elsewhere.
            BackendError: Somebody is reading it, or the place failed.
        """
        try:
            snapshot = self._place.find(state_path)
        except IntegrityError:
            name = self._damaged(state_path)
            if name is None:
                raise
            removed = remove_damaged(self._place, name)
            self._place.sweep()  # nobody knows which pieces it had
        else:
            name, removed = snapshot.name, self._place.remove(snapshot)
        if not removed:
            raise BackendError("somebody is reading this snapshot", key=name, place=self._place.place, hint="Try later.")

    def _damaged(self, which: str | os.PathLike[str]) -> str | None:
        """The name of what has a damaged manifest in this place, and is meant by this name or path."""
        text, root = os.fspath(which), self._place.path
        there = damaged_in(self._place)
        if root is None:
            return next((entry.name for entry in there if os.path.basename(entry.name) == os.path.basename(text)), None)
        # As `find` looks: what has a slash is a path from the working folder first, and never an equal name in ours.
        path = os.path.realpath(text if os.path.dirname(text) and os.path.lexists(text) else os.path.join(root, text))
        inside = os.path.dirname(path) == os.path.realpath(root)
        return next((entry.name for entry in there if inside and entry.name == os.path.basename(path)), None)

    def cleanup(self, *, dry_run: bool = False) -> Cleaned:
        """Remove the snapshots that `keep` lets go, but never the last one that is whole. Every save does this, too.

        What has a damaged manifest is neither counted nor removed. Where `keep` goes by a metric that no snapshot has, a
        warning of the logger `perdure.snapshots` says so, once.

        Args:
            dry_run: Only tell what would be removed.

        Raises:
            UsageError: The store has no `keep`.
            BackendError: The place failed.
        """
        if self.keep is None:
            raise UsageError("this store keeps all snapshots", hint="Make it with keep=, such as keep=perdure.KeepLatest(3).")
        cleaned = clean(self._place, self.keep, dry_run=dry_run)
        if isinstance(self.keep, Keeper):
            listed = [*cleaned.kept, *cleaned.removed, *(snapshot for snapshot, _ in cleaned.failed)]
            lacks = [metric for metric in self.keep.lacks(listed) if metric not in self._warned]
            if lacks:
                self._warned.update(lacks)
                _log.warning("keep=%r: %s", self.keep, lacking(lacks, listed))
        return cleaned


def damaged_in(place: Place) -> list[Broken]:
    """What has a damaged manifest; without what is of a newer format, or may not be looked into."""
    return [entry for entry in place.entries() if isinstance(entry, Broken) and isinstance(entry.error, IntegrityError)]


def remove_damaged(place: Place, name: str) -> bool:
    """Remove what has a damaged manifest; `False` where somebody is reading it. What is gone or mended by now is fine.

    Args:
        place: Where.
        name: As `damaged_in` gives it.

    Raises:
        BackendError: The place failed.
    """
    if all(entry.name != name for entry in damaged_in(place)):
        return True
    try:
        return place.remove_broken(name)
    except SnapshotNotFoundError:
        return True  # removed by another just now
