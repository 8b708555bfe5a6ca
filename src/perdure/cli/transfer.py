"""Moving a whole place into another one: the bytes as they are, resumable and verified."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from ..errors import PerdureError, UsageError
from ..protocol import Backend, Blob, Meta
from .places import batches, read_all

Reading = tuple[dict[str, Blob], dict[str, PerdureError]]
Advance = Callable[[float], None]


@dataclass
class Outcome:
    """What a transfer did; keys as the backends spell them.

    Attributes:
        copied: How many values were written, read back and found equal.
        bytes: How many bytes these have.
        identical: How many were there already with the same bytes.
        replaced: How many of the copied ones took the place of another value.
        conflicts: Keys with another value in the target; left alone.
        unreadable: Keys whose bytes cannot be read in the source, and why.
        vanished: Keys that were deleted from the source meanwhile.
        unequal: Keys that were written, and read back as something else.
    """

    copied: int = 0
    bytes: int = 0
    identical: int = 0
    replaced: int = 0
    conflicts: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    vanished: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the target now holds all that the source does."""
        return not (self.conflicts or self.unreadable or self.unequal)


class Transfer:
    """One copy of everything under a prefix. Nobody else should write to the target meanwhile: a value that appears there
    between the comparison and the copy is replaced.

    It keeps no state of its own anywhere: what the target holds already *is* the progress. So it may be killed at any moment
    and is resumed by doing it again. Each put is whole or not there, hence so is each value of an interrupted copy.

    Args:
        source: Where the values are.
        target: Where they go; its recorded settings become those of the source.
        prefix: `""` for everything.

    Raises:
        UsageError: Both are one place, one lies in the other, or the target was recorded with other settings.
    """

    def __init__(self, source: Backend, target: Backend, prefix: str = "") -> None:
        inside = (f"{a.place.rstrip('/')}/".startswith(f"{b.place.rstrip('/')}/") for a, b in _both_ways(source, target))
        if any(inside):
            raise UsageError("source and target are one place, or one lies inside the other", place=target.place)
        self._settings = source.recorded()
        _require_agreement(self._settings, target)
        self.source = source
        self.target = target
        self.prefix = prefix
        self.outcome = Outcome()
        self._absent: list[Meta] = []
        self._other: list[Meta] = []
        self._same_size: list[Meta] = []

    def look(self) -> int:
        """List both sides. Returns how many bytes have to be compared, because both sides have a value of that size."""
        there = {meta.key: meta.size for meta in self.target.scan(self.prefix)}
        for meta in self.source.scan(self.prefix):
            size = there.get(meta.key)
            pile = self._absent if size is None else self._same_size if size == meta.size else self._other
            pile.append(meta)
        return sum(meta.size for meta in self._same_size)

    def compare(self, advance: Advance) -> None:
        """Tell what is there already from what is in conflict. Changes nothing."""
        for batch, (ours, damaged) in self._readings(self._same_size):
            self._note_unread(batch, ours, damaged)
            theirs, _ = read_all(self.target, list(ours))  # a damaged value there is another one than ours
            for meta in batch:
                if meta.key in ours:
                    if meta.key in theirs and theirs[meta.key].data == ours[meta.key].data:
                        self.outcome.identical += 1
                    else:
                        self._other.append(meta)
            advance(sum(meta.size for meta in batch))
        self.outcome.conflicts = sorted(meta.key for meta in self._other)

    def to_copy(self, overwrite: bool) -> list[Meta]:
        """What remains to be done; with `overwrite` the conflicts as well."""
        return self._absent + self._other if overwrite else self._absent

    def copy(self, metas: list[Meta], advance: Advance) -> None:
        """Write these, read them back, compare. On Linux, what was skipped is then as durable as what was copied."""
        outcome = self.outcome
        replacing = {meta.key for meta in self._other}.intersection(meta.key for meta in metas)
        outcome.conflicts = [key for key in outcome.conflicts if key not in replacing]
        self.target.record(self._settings)
        for batch, (blobs, damaged) in self._readings(metas):
            self._note_unread(batch, blobs, damaged)
            self.target.put_many({key: blob.data for key, blob in blobs.items()})
            back, _ = read_all(self.target, list(blobs))
            for key, blob in blobs.items():
                if key not in back or back[key].data != blob.data:
                    outcome.unequal.append(key)
                    continue
                outcome.copied += 1
                outcome.replaced += key in replacing
                outcome.bytes += len(blob.data)
            advance(sum(meta.size for meta in batch))
        # Whoever wrote what was skipped may have been killed before it reached the disk, or was not to wait for that. (Only on
        # Linux does this call wait for it; Windows has none.)
        if outcome.identical and isinstance(getattr(self.target, "path", None), str) and hasattr(os, "sync"):
            os.sync()

    def _readings(self, metas: list[Meta]) -> Iterator[tuple[list[Meta], Reading]]:
        """Batches of the source, each read while the one before is being written."""
        read = partial(read_all, self.source)
        pending = None
        with ThreadPoolExecutor(1, "perdure-cp") as ahead:
            for batch in batches(metas):
                following = batch, ahead.submit(read, [meta.key for meta in batch])
                if pending is not None:
                    yield pending[0], pending[1].result()
                pending = following
            if pending is not None:
                yield pending[0], pending[1].result()

    def _note_unread(self, batch: list[Meta], blobs: dict[str, Blob], damaged: dict[str, PerdureError]) -> None:
        self.outcome.unreadable |= {key: str(error) for key, error in damaged.items()}
        self.outcome.vanished += [meta.key for meta in batch if meta.key not in blobs and meta.key not in damaged]


def _both_ways(a: Backend, b: Backend) -> tuple[tuple[Backend, Backend], tuple[Backend, Backend]]:
    return (a, b), (b, a)


def _require_agreement(settings: dict[str, str], target: Backend) -> None:
    # Before anything is compared: what another codec wrote under the same key would be called a conflict, or damage.
    there = target.recorded()
    for name, value in settings.items():
        if there.get(name, value) != value:
            raise UsageError(
                f"the source was written with {name} {value!r}, this target with {name} {there[name]!r}, and values are copied "
                f"as bytes, which nobody could read there",
                place=target.place,
                hint=f"Copy to a place that is empty or was written with {name} {value!r}; to change it, copy value by value "
                "in Python: target.update(source).",
            )
