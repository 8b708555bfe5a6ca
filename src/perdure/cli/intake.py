"""Taking the items of another library's store into a dict: each one whole, resumable and verified."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import CodecError, InvalidKeyError
from ..mapping import PersiDict
from ..mapping.sameness import same
from . import places
from .keynames import name_of, spell_source_key
from .places import read_all
from .sources import Entry, Source

Advance = Callable[[float], None]
_LONG = 100  # keys beyond this may be too long for some places, which are asked


class Encoded(NamedTuple):
    """A value, and the bytes it is stored as."""

    value: Any
    data: bytes


@dataclass
class Outcome:
    """What an import did; keys as the target spells them.

    Attributes:
        imported: How many values were written, read back and found equal; in a rehearsal, how many would be written.
        bytes: How many bytes these have.
        identical: How many were there already and equal.
        replaced: How many of the imported ones took the place of another value.
        conflicts: Keys with another value in the target; left alone.
        unreadable: Keys whose value cannot be read in the source, and why.
        refused: Keys whose value the codec of the target cannot hold as it is, and why.
        unequal: Keys that were written, and read back as something else.
        expired: How many items of the source had expired, and were left out.
        expiring: How many items will expire there, and not here.
        tagged: How many items have a tag, which was left out.
    """

    imported: int = 0
    bytes: int = 0
    identical: int = 0
    replaced: int = 0
    conflicts: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unequal: list[str] = field(default_factory=list)
    expired: int = 0
    expiring: int = 0
    tagged: int = 0

    @property
    def complete(self) -> bool:
        """Whether the target holds all that the source does."""
        return not (self.conflicts or self.unreadable or self.refused or self.unequal)


class Intake:
    """One import. Nobody else should write to the source or the target meanwhile.

    As with `Transfer`, what the target holds already is the progress: whatever stops it, doing it again resumes it.

    Args:
        source: Where the items are.
        target: Where they go.
        rule: How keys become legal; see `name_of`.

    Attributes:
        todo: The items that `plan` found, by name.
        outcome: What became of them.
    """

    def __init__(self, source: Source, target: PersiDict[Any], rule: str) -> None:
        self.source = source
        self.target = target
        self.outcome = Outcome()
        self._rule = rule
        self.todo: dict[str, Entry] = {}
        self._there: set[str] = set()

    def plan(self) -> list[str]:
        """Name every item. Changes nothing.

        Returns:
            What is wrong with keys, a line for each: no legal name, or one name for several. Empty when all is well.

        Raises:
            PerdureError: The source cannot be listed, or the target.
        """
        problems = []
        twins: dict[str, list[Entry]] = {}
        for entry in self.source.entries():
            try:
                name = name_of(entry, self._rule)
                if len(name) > _LONG:
                    self.target.backend.contains(name)
            except InvalidKeyError as error:
                problems.append(f"{spell_source_key(entry.key)}: {error.problem}")
                continue
            if name in self.todo:
                twins.setdefault(name, [self.todo[name]]).append(entry)
            self.todo[name] = entry
            self.outcome.expiring += entry.expires is not None
            self.outcome.tagged += entry.tagged
        for name, entries in twins.items():
            problems.append(f"{' and '.join(spell_source_key(entry.key) for entry in entries)} would both be {name}")
        self.outcome.expired = self.source.expired
        self._there = self.todo.keys() & set(self.target.backend.keys())
        return problems

    def run(self, advance: Advance, *, overwrite: bool = False, rehearse: bool = False) -> None:
        """Write what is not there yet, in batches, and compare.

        Args:
            advance: Told how many items are done.
            overwrite: Replace other values.
            rehearse: Do all of it but the writing.
        """
        batch: dict[str, Encoded] = {}
        filled = done = 0
        for name, entry in self.todo.items():
            encoded = self._encode(name, entry)
            size = len(encoded.data) if encoded else 0
            if batch and filled + size > places.BATCH_BYTES:
                self._write(batch, overwrite, rehearse)
                advance(done)
                batch, filled, done = {}, 0, 0
            if encoded:
                batch[name] = encoded
                filled += size
            done += 1
            if done == places.BATCH_KEYS:
                self._write(batch, overwrite, rehearse)
                advance(done)
                batch, filled, done = {}, 0, 0
        self._write(batch, overwrite, rehearse)
        advance(done)
        # As after a copy: what was skipped may not have reached the disk, when its writer was killed.
        if self.outcome.identical and isinstance(getattr(self.target.backend, "path", None), str) and hasattr(os, "sync"):
            os.sync()

    def _encode(self, name: str, entry: Entry) -> Encoded | None:
        """Read a value, and spell it so that it is certain to come back."""
        try:
            value = self.source.value(entry)
        except CodecError as error:
            self.outcome.unreadable[name] = _reason(error)
            return None
        try:
            data = self.target.chain.encode(value, name)
            if not self._means(data, value, name):
                raise CodecError(f"codec {self.target.chain.codec.name!r} would give back another value than this one")
        except CodecError as error:
            self.outcome.refused[name] = _reason(error)
            return None
        return Encoded(value, data)

    def _means(self, data: bytes, value: Any, name: str) -> bool:
        """Whether the bytes stand for this very value."""
        back = self.target.chain.decode(data, name)
        try:
            return same(value, back)
        except RecursionError:
            return self.target.chain.encode(back, name) == data

    def _write(self, batch: dict[str, Encoded], overwrite: bool, rehearse: bool) -> None:
        outcome, backend = self.outcome, self.target.backend
        theirs, damaged = read_all(backend, [name for name in batch if name in self._there])
        other = set(damaged)
        for name, blob in theirs.items():
            if blob.data == batch[name].data or self._holds(blob.data, batch[name].value, name):
                outcome.identical += 1
                del batch[name]
            else:
                other.add(name)
        if not overwrite:
            outcome.conflicts += sorted(other)
            for name in other:
                del batch[name]
        if not rehearse:
            backend.put_many({name: encoded.data for name, encoded in batch.items()})
        back = {} if rehearse else read_all(backend, list(batch))[0]
        for name, encoded in batch.items():
            if not rehearse and (name not in back or back[name].data != encoded.data):
                outcome.unequal.append(name)
                continue
            outcome.imported += 1
            outcome.replaced += name in other
            outcome.bytes += len(encoded.data)

    def _holds(self, data: bytes, value: Any, name: str) -> bool:
        try:
            return self._means(data, value, name)
        except CodecError:  # it cannot be read, so it is another one
            return False


def _reason(error: CodecError) -> str:
    return f"{error.problem}. {error.hint}" if error.hint else error.problem
