"""How the objects of snapshots are called in a backend; `bucket` says what each is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from .manifest import Part, Snapshot

MANIFESTS: Final = "snapshots/"
PARTS: Final = "parts/"
DRAFTS: Final = "drafts/"
SWEEPS: Final = "sweeps/"


def number_in(key: str) -> int:
    """The number in a manifest's key; 0 for a key of something else."""
    found = re.fullmatch(rf"{MANIFESTS}(\d{{10,15}})", key)
    return int(found[1]) if found else 0


def key_of(sequence: int) -> str:
    """Where a manifest is."""
    return f"{MANIFESTS}{sequence:010d}"


def piece_key(snapshot: Snapshot, part: Part, number: int) -> str:
    """Where a piece of a part is."""
    home = part.homes[number] if part.homes else snapshot.id
    return f"{PARTS}{home}/{part.chunks[number]}"


def keys_of(snapshot: Snapshot) -> Iterable[str]:
    """Where all its pieces are."""
    for part in snapshot.parts.values():
        for number in range(len(part.chunks)):
            if part.size:
                yield piece_key(snapshot, part, number)
