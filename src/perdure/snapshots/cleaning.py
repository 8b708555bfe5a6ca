"""Removing snapshots that a keeper lets go, and never the last one that is whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..errors import PerdureError, SnapshotNotFoundError, UsageTypeError
from .keep import Policy
from .manifest import Snapshot
from .place import Place

_log = logging.getLogger("perdure.snapshots")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up did, or would do.

    Attributes:
        kept: The snapshots that stay, the oldest first.
        removed: Those that are gone, or would be.
        failed: Those that should be gone and are not: somebody reads them, or they cannot be removed. The next clean-up tries
            again.
        spared: One that its keeper would have let go, and that stays as no other would, or none that does is whole.
    """

    kept: tuple[Snapshot, ...]
    removed: tuple[Snapshot, ...]
    failed: tuple[tuple[Snapshot, str], ...]
    spared: Snapshot | None = None


def clean(place: Place, keeper: Policy, *, dry_run: bool = False, now: datetime | None = None) -> Cleaned:
    """Remove what a keeper does not keep.

    Only complete snapshots are counted. Before the first is removed, one of those that stay was read as a whole and compared
    with its digests, by this process or now; if none of them is whole, the newest whole one of the others stays as well.

    Args:
        place: Where.
        keeper: What to keep.
        dry_run: Only tell.
        now: What the keeper takes for the present; for tests.

    Raises:
        UsageTypeError: The keeper chose what is no snapshot of this place; nothing is removed.
        BackendError: The place failed.
    """
    snapshots = [entry for entry in place.entries() if isinstance(entry, Snapshot)]
    keep = _chosen(keeper, snapshots, now or datetime.now(UTC))
    kept = [snapshot for snapshot in snapshots if snapshot in keep]
    unwanted = [snapshot for snapshot in snapshots if snapshot not in keep]
    spared = None
    if unwanted and not _newest_whole(place, kept):
        spared = _newest_whole(place, unwanted) or unwanted[-1]
        unwanted.remove(spared)
        kept = [snapshot for snapshot in snapshots if snapshot in keep or snapshot == spared]
    if dry_run:
        return Cleaned(tuple(kept), tuple(unwanted), (), spared)
    removed, failed = [], []
    for snapshot in unwanted:
        try:
            if place.remove(snapshot):
                removed.append(snapshot)
                _log.info("removed %s", snapshot.path or snapshot.name)
            else:
                failed.append((snapshot, "somebody is reading it"))
        except PerdureError as error:
            failed.append((snapshot, str(error)))
            _log.warning("not removed, to be tried again: %s", error)
    return Cleaned(tuple(kept), tuple(removed), tuple(failed), spared)


def _chosen(keeper: Policy, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
    chosen: object = keeper.select(snapshots, now)
    # What is no snapshot of these would silently keep nothing: names, copies, or the None of a forgotten return.
    if isinstance(chosen, Iterable) and (keep := set(chosen)) <= set(snapshots):
        return keep
    hint = "Let select() return those of the snapshots that it was given which are to stay."
    raise UsageTypeError(f"{keeper!r:.80} chose {chosen!r:.80}, and not snapshots", hint=hint)


def _newest_whole(place: Place, snapshots: Sequence[Snapshot]) -> Snapshot | None:
    for snapshot in reversed(snapshots):
        try:
            if place.is_whole(snapshot):
                return snapshot
        except SnapshotNotFoundError:
            continue  # removed by another just now
    return None
