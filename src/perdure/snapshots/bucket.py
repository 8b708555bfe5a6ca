"""Snapshots in any backend: a bucket, a database, memory.

::

    snapshots/0000000042        a manifest; put last, and only where there is none
    parts/<save>/<digest>       a piece of at most 16 MiB, under the save that uploaded it; never changed
    drafts/<save>               a save under way, and which snapshot it takes unchanged pieces from

    sweeps/<id>                 somebody looks for pieces that nobody needs

Nothing is locked, as nobody could tell a slow machine from a dead one. Instead everybody writes down what is about to happen
and then looks at what the others wrote down; as a place shows every write at once, at least one of two sees the other.

A save puts its draft, which names the snapshot whose pieces it wants to share, and *then* looks whether that is still there and
nobody sweeps; else it shares nothing. Who removes pieces, after a snapshot's manifest was removed or to sweep, puts a mark,
*then* lists drafts and *then* manifests. No sharing begins while the mark is there, and what had begun before is found: as a
draft, as a manifest, or, where its snapshot was removed meanwhile, as a draft whose snapshot is gone. A draft also names the
saves that uploaded the pieces of that snapshot, and all of theirs stay then for another time. (Without the mark, a piece could
be passed on from save to save behind the back of whoever looks.)

A draft that was not renewed for an hour is taken for dead and removed; a save finds its own missing right after it put its
manifest, and takes that back. So a wrong guess costs a save, never a snapshot.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from pathlib import Path

from ..errors import (
    BackendError,
    CodecError,
    NotFoundError,
    PerdureError,
    PreconditionError,
    SnapshotNotFoundError,
    UnknownOutcomeError,
)
from ..protocol import ABSENT, Backend, ETag
from .bucket_draft import BackendDraft
from .bucket_keys import DRAFTS, MANIFESTS, PARTS, SWEEPS, key_of, keys_of, number_in
from .bucket_reading import BackendReading
from .manifest import MAX_SEQUENCE, Broken, Snapshot, read_manifest, write_manifest

LEASE = 3600.0
"""Seconds after which a draft that was not renewed belongs to the dead."""

_ANY = "*"
_BATCH = 1000
_LISTS = "perdure snapshots lists those there are."
_log = logging.getLogger("perdure.snapshots")


class BackendPlace:
    """Snapshots in a backend. Safe for threads, processes and machines.

    Args:
        backend: Where; everything under it belongs to the snapshots.
        share: Whether pieces of an earlier snapshot may be used again.
    """

    def __init__(self, backend: Backend, *, share: bool = True) -> None:
        self.backend = backend
        self.place = backend.place
        self.shared_by_machines = backend.shared_by_machines
        self.path: Path | None = None
        self.share = share
        self.base: Snapshot | None = None
        self.whole: set[str] = set()
        self._failed: set[str] = set()  # keys of this process's saves that failed, which could not be removed
        self._complained: list[str] = []
        self._left = False  # whether pieces had to stay, of which nobody needs some
        self._manifests: dict[str, tuple[ETag, Snapshot | Broken]] = {}

    def __repr__(self) -> str:
        return f"<BackendPlace {self.place}>"

    def entries(self) -> list[Snapshot | Broken]:
        found = [entry for _, entry in sorted(self._listed().items(), key=lambda item: number_in(item[0]))]
        return [e for e in found if isinstance(e, Broken)] + [e for e in found if isinstance(e, Snapshot)]

    def _listed(self) -> dict[str, Snapshot | Broken]:
        """All manifests by their key. Each is fetched once, as they never change."""
        metas = {meta.key: meta.etag for meta in self.backend.scan(MANIFESTS) if number_in(meta.key)}
        self._manifests = {key: known for key, known in self._manifests.items() if metas.get(key) == known[0]}
        for key, blob in self.backend.get_many([key for key in metas if key not in self._manifests]).items():
            self._manifests[key] = blob.etag, self._parse(key, blob.data)
        return {key: entry for key, (_, entry) in self._manifests.items()}

    def _parse(self, key: str, data: bytes) -> Snapshot | Broken:
        try:
            return dataclasses.replace(read_manifest(data, key, self.place), sequence=number_in(key))
        except CodecError as error:
            return Broken(key, error)

    def find(self, which: str | os.PathLike[str]) -> Snapshot:
        name = os.path.basename(os.fspath(which))
        for key, entry in self._listed().items():
            if entry.name == name or key.removeprefix(MANIFESTS) == name:
                if isinstance(entry, Broken):
                    raise entry.error
                return entry
        broken = [entry.name for entry in self._listed().values() if isinstance(entry, Broken)]
        hint = f"It may be one of those whose manifest is damaged: {', '.join(broken)}." if broken else _LISTS
        raise SnapshotNotFoundError("there is no such snapshot", key=name, place=self.place, hint=hint)

    def begin(self, *, isolate: bool) -> BackendDraft:
        self.clear_away()
        draft = BackendDraft(self, isolate=isolate)
        try:
            draft.announce(self.base if self.share else None)
        except BaseException:
            draft.abandon()
            raise
        return draft

    def clear_away(self, *keys: str) -> None:
        """Remove what belongs to saves of this process that have failed; what cannot be removed now, later."""
        self._failed.update(keys)
        if not self._failed:
            return
        try:
            self.backend.delete_many(sorted(self._failed, reverse=True))  # pieces first
            self._failed.clear()
        except PerdureError as error:
            _log.warning("what is left of a save that failed cannot be removed now, and will be later: %s", error)

    def is_there(self, snapshot: Snapshot) -> bool:
        """Whether nobody has removed it; asked of the place."""
        try:
            data = self.backend.get(key_of(snapshot.sequence)).data
        except NotFoundError:
            return False
        found = self._parse(key_of(snapshot.sequence), data)
        return isinstance(found, Snapshot) and found.id == snapshot.id

    def put_manifest(self, snapshot: Snapshot) -> Snapshot:
        """Give it the next number and a free name, and make it visible."""
        entries = self._listed()
        names = {entry.name for entry in entries.values()}
        name, stem, suffix, again = snapshot.name, *os.path.splitext(snapshot.name), 1
        sequence = max(map(number_in, entries), default=0)
        while True:
            while name in names:
                again += 1
                name = f"{stem}~{again}{suffix}"
            sequence += 1
            if sequence >= MAX_SEQUENCE:
                hint = f"Somebody put {max(entries, key=number_in)}: remove it."
                raise BackendError("there is no higher number for a snapshot", place=self.place, hint=hint)
            snapshot = dataclasses.replace(snapshot, sequence=sequence, name=name, place=self.place)
            try:
                self.backend.put(key_of(sequence), write_manifest(snapshot), if_match=ABSENT)
                return snapshot
            except PreconditionError:
                # Somebody was first, and may even have taken the name.
                names |= {entry.name for entry in self._listed().values()}
            except UnknownOutcomeError as error:
                if self._is_surely_there(snapshot, error):
                    return snapshot
                raise

    def _is_surely_there(self, snapshot: Snapshot, unknown: UnknownOutcomeError) -> bool:
        try:
            return self.is_there(snapshot)
        except PerdureError:
            raise unknown from None  # the place does not answer now, so it stays unknown

    def read(self, snapshot: Snapshot) -> BackendReading:
        return BackendReading(self, snapshot)

    def is_whole(self, snapshot: Snapshot) -> bool:
        return snapshot.id in self.whole or not self.read(snapshot).damage(snapshot.parts.values(), lambda _: None)

    def remove(self, snapshot: Snapshot) -> bool:
        if self.base == snapshot:
            self.base = None
        try:
            blob = self.backend.get(key_of(snapshot.sequence))
            found = self._parse(key_of(snapshot.sequence), blob.data)
            if isinstance(found, Snapshot) and found.id == snapshot.id:  # and no later one under the same number
                self.backend.delete(key_of(snapshot.sequence), if_match=blob.etag)
        except (NotFoundError, PreconditionError):
            pass  # somebody else has just removed it; both go on
        self._manifests.pop(key_of(snapshot.sequence), None)
        if self._left:
            self.sweep()
        else:
            self._left = True
            self._left = not self._remove_pieces(set(keys_of(snapshot)))
        return True

    def remove_broken(self, name: str) -> bool:
        entry = self._manifests.get(name)
        if entry is None or not isinstance(entry[1], Broken):
            raise SnapshotNotFoundError("there is no damaged manifest called so", key=name, place=self.place, hint=_LISTS)
        try:
            self.backend.delete(name, if_match=entry[0])
        except (NotFoundError, PreconditionError):
            pass  # somebody else has just removed it
        self._left = True
        return True

    def sweep(self) -> None:
        pieces = set(self.backend.keys(PARTS))
        drafts, marks = list(self.backend.times(DRAFTS)), list(self.backend.times(SWEEPS))
        if drafts or marks:
            now = self._now()
            self.backend.delete_many([key for key, renewed in (*drafts, *marks) if now - renewed > LEASE])
        self._left = bool(pieces) and not self._remove_pieces(pieces)

    def is_being_swept(self) -> bool:
        """Whether somebody looks for pieces that nobody needs; asked of the place."""
        return any(True for _ in self.backend.keys(SWEEPS))

    def _remove_pieces(self, pieces: set[str]) -> bool:
        """Remove those of some pieces that nobody needs; `False` where that cannot be told now.

        Args:
            pieces: Such as were there before this is called.
        """
        self.clear_away()
        mark, begun = f"{SWEEPS}{os.urandom(16).hex()}", time.monotonic()
        self.backend.put(mark, b"{}")
        try:
            # Our own dead are known to share nothing any more.
            drafts = {draft: told for draft, told in self._drafts().items() if f"{DRAFTS}{draft}" not in self._failed}
            manifests = list(self._listed().values())
            live = [entry for entry in manifests if isinstance(entry, Snapshot)]
            ids = {"", *(snapshot.id for snapshot in live)}
            if len(live) < len(manifests):
                self._complain([entry.name for entry in manifests if isinstance(entry, Broken)])
                return False  # nobody knows which pieces they need
            # What is being saved needs what is its own, and where its base is gone, perhaps what that had.
            spoken_for = drafts.keys() | {home for base, homes in drafts.values() if base not in ids for home in homes}
            if _ANY in spoken_for:
                return False
            needless = pieces - {key for snapshot in live for key in keys_of(snapshot)}
            unused = sorted(key for key in needless if key.split("/")[1] not in spoken_for)
            for start in range(0, len(unused), _BATCH):
                if time.monotonic() - begun > LEASE / 2 > 0:
                    return False  # somebody may take the mark for one of the dead soon
                self.backend.delete_many(unused[start : start + _BATCH])
            return len(unused) == len(needless)
        finally:
            self.clear_away(mark)

    def _complain(self, broken: list[str]) -> None:
        if broken != self._complained:
            hint = "`perdure prune --broken` removes what is damaged"
            _log.warning(
                "%s: nothing is freed, as nobody can read what is needed by %s; %s", self.place, ", ".join(broken), hint
            )
        self._complained = broken

    def _drafts(self) -> dict[str, tuple[str, list[str]]]:
        """What is being saved: by its id, that of the snapshot whose pieces it may share, if any, and whose pieces that had."""
        drafts: dict[str, tuple[str, list[str]]] = {}
        for key, blob in self.backend.get_many(self.backend.keys(DRAFTS)).items():
            base, homes = "?", [_ANY]
            try:
                told = json.loads(blob.data)
                base, homes = str(told["base"] or ""), list(map(str, told["homes"]))
            except (ValueError, TypeError, KeyError, RecursionError):
                pass  # of another version, or somebody's joke: then anything may be needed
            drafts[key.removeprefix(DRAFTS)] = base, homes
        return drafts

    def _now(self) -> float:
        """The time by the clock of the place, which also says when drafts were renewed; ours may be anything."""
        key = f"{SWEEPS}{os.urandom(16).hex()}"
        self.backend.put(key, b"{}")
        try:
            return self.backend.head(key).modified
        except NotFoundError:
            return 0.0  # a place that keeps nothing
        finally:
            self.clear_away(key)

    def records(self) -> tuple[Backend, str]:
        return self.backend, "ranks/"

    def close(self) -> None:
        self.backend.close()
