"""Looking after the snapshots of a place, whoever saved them."""

from __future__ import annotations

import os

from ..errors import BackendError, IntegrityError, UsageError
from ..mapping.progress import Progress, reporting
from .cleaning import Cleaned, clean
from .keep import Keeper
from .loading import one_by_one
from .manifest import Snapshot
from .place import Place


class Upkeep:
    """Lists, verifies and removes snapshots; a part of `StateStore`.

    Args:
        place: Where they are.
        keep: Which stay.
    """

    def __init__(self, place: Place, keep: Keeper | None) -> None:
        self._place = place
        self.keep = keep

    def snapshots(self) -> list[Snapshot]:
        """All complete snapshots, the oldest first. Their manifests are read, and no parts."""
        return [entry for entry in self._place.entries() if isinstance(entry, Snapshot)]

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

        Raises:
            SnapshotNotFoundError: There is none.
            BackendError: Somebody is reading it, or the place failed.
        """
        snapshot = self._place.find(state_path)
        if not self._place.remove(snapshot):
            raise BackendError(
                "somebody is reading this snapshot", key=snapshot.name, place=self._place.place, hint="Try later."
            )

    def cleanup(self, *, dry_run: bool = False) -> Cleaned:
        """Remove the snapshots that `keep` lets go, but never the last one that is whole. Every save does this, too.

        Args:
            dry_run: Only tell what would be removed.

        Raises:
            UsageError: The store has no `keep`.
            BackendError: The place failed.
        """

        if self.keep is None:
            raise UsageError("this store keeps all snapshots", hint="Make it with keep=, such as keep=perdure.KeepLatest(3).")
        return clean(self._place, self.keep, dry_run=dry_run)
