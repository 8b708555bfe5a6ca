"""A snapshot in a backend while it is being made: pieces are uploaded at once, and the manifest is put at the end."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Condition, Lock
from typing import TYPE_CHECKING, Final

from ..errors import PerdureError, PreconditionError, UnavailableError, UnknownOutcomeError
from ..protocol import ETag
from .bucket_keys import DRAFTS, PARTS
from .disk import explain, open_read, read_into
from .manifest import CHUNK, Part, Snapshot, digest_of
from .place import Report, changed_meanwhile, cut, digest_of_views
from .scratch import Scratch
from .work import Call, Work
from .written import written_by

if TYPE_CHECKING:
    from .bucket import BackendPlace

STAGED: Final = 1 << 30
"""Bytes of copies that may wait for being uploaded while the program goes on; a larger state makes it wait for the rest."""

_RENEW = 600.0  # seconds
_log = logging.getLogger("perdure.snapshots")


class BackendDraft:
    """As `place.Draft`.

    Args:
        place: Where.
        isolate: Whether pieces are copied, so that the caller need not wait for them to be uploaded.
    """

    def __init__(self, place: BackendPlace, *, isolate: bool) -> None:
        self.id = os.urandom(16).hex()
        self._place = place
        self._isolate = isolate
        self._copying = Work()
        self._sending = Work(transfers=True)
        self._room = _Room(STAGED)
        self._lock = Lock()
        self._parts: dict[str, Part] = {}
        self._pieces: dict[str, dict[int, tuple[str, str]]] = {}  # of each part: digest and home of its pieces
        self._sizes: dict[str, int] = {}
        self._sent: set[str] = set()
        self._reusable: dict[str, str] = {}
        self._scratch = Scratch()
        self._adopted: list[str] = []
        self._staged: list[Call] = []  # pieces of files, digested and to be sent
        self._seen: set[str] = set()
        self._etag: ETag | None = None
        self._renewed = time.monotonic()
        self._committed = False
        self._attempted = False
        self._merged: list[str] = []

    def announce(self, base: Snapshot | None) -> None:
        """Write down that this is being saved, before anything else is done."""
        self._key = f"{DRAFTS}{self.id}"
        homes = sorted({home for part in base.parts.values() for home in part.homes or (base.id,)}) if base else []
        self._content = json.dumps({"base": base.id if base else None, "homes": homes, "begun": time.time()}).encode()
        self._etag = self._place.backend.put(self._key, self._content)
        if base is not None and not self._place.is_being_swept() and self._place.is_there(base):
            for part in base.parts.values():
                for number, digest in enumerate(part.chunks):
                    self._reusable[digest] = part.homes[number] if part.homes else base.id

    def folder(self) -> Path:
        return self._scratch.path

    def add(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        chunks = cut(pieces)
        self._sizes[name] = sum(map(len, pieces))
        self._pieces[name] = {}
        for number, views in enumerate(chunks):
            self._copying.submit(Call(self._take, name, number, views))

    def adopt(self, component: str) -> list[str]:
        if not self._scratch:
            return []
        names = written_by(component, str(self._scratch.path), self._seen, self._place.place)
        self._adopted += names
        return names

    def settle(self) -> None:
        self._copying.finish()
        self._begin_files()
        if not self._isolate:
            self._sending.finish()
        self._copying.finish()

    def commit(self, snapshot: Snapshot, report: Report) -> Snapshot:
        self._store_all(report)
        parts = {name: self._parts[name] for component in snapshot.components.values() for name in component.parts}
        self._renew(force=True)
        self._attempted = True
        try:
            snapshot = self._place.put_manifest(dataclasses.replace(snapshot, id=self.id, parts=parts))
        except UnknownOutcomeError:
            raise
        except PerdureError:
            self._attempted = False  # it was refused
            raise
        self._committed = True
        if self._etag and not self._is_alive():
            self._place.remove(snapshot)
            raise self._taken_for_dead()
        self._finish()
        self._place.base = self._own_of(snapshot)
        self._place.whole.add(snapshot.id)
        return snapshot

    def _own_of(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot without what other processes brought: only pieces of one's own are shared without being read."""
        own = {name: part for name, part in snapshot.parts.items() if name in self._sizes}
        return dataclasses.replace(snapshot, parts=own)

    def _is_alive(self) -> bool:
        """Whether nobody has taken this save for dead, or another process's part of it."""
        keys = [self._key, *self._merged]
        try:
            return all(self._place.backend.contains(key) for key in keys)
        except UnavailableError:
            return all(self._place.backend.contains(key) for key in keys)  # it is saved: once more is worth it

    def _finish(self) -> None:
        """Clear away what is not needed any more; the snapshot is there, so not being able to is no error."""
        try:
            self._place.backend.delete(self._key)
            self._scratch.close()
        except PerdureError as error:
            _log.warning("the snapshot is saved, and something is left of saving it: %s", error)

    def publish(self, report: Report) -> list[Part]:
        self._store_all(report)
        return [
            part if part.homes else dataclasses.replace(part, homes=(self.id,) * len(part.chunks))
            for part in self._parts.values()
        ]

    def merge(self, draft: str, parts: Sequence[Part]) -> None:
        self._merged.append(f"{DRAFTS}{draft}")
        self._parts |= {part.name: part for part in parts}

    def hand_over(self, snapshot: Snapshot | None) -> None:
        self._committed = True  # the pieces are not ours any more
        self._finish()
        self._place.base = snapshot and self._own_of(snapshot)

    def _store_all(self, report: Report) -> None:
        """Wait until all pieces are stored, and put together what parts they make."""
        self.settle()
        for send in self._staged:
            self._sending.submit(send)
        self._staged = []
        self._sending.finish()
        for name, size in self._sizes.items():
            pieces = [self._pieces[name][number] for number in range(len(self._pieces[name]))]
            homes = tuple(home for _, home in pieces)
            own = all(home == self.id for home in homes)
            self._parts[name] = Part(name, size, tuple(digest for digest, _ in pieces), () if own else homes)
            report(size)

    def abandon(self) -> None:
        self._room.open()
        self._copying.stop()
        self._sending.stop()
        try:
            # Where nobody knows whether the manifest is there, all stays; `sweep` removes it when the draft is old.
            if not self._committed and not self._attempted:
                pieces = [self._piece_key(digest) for digest in self._sent]
                self._place.clear_away(*pieces, *([self._key] if self._etag is not None else []))
        finally:
            self._scratch.close()

    def _piece_key(self, digest: str) -> str:
        return f"{PARTS}{self.id}/{digest}"

    # What the threads do.

    def _take(self, name: str, number: int, views: list[memoryview]) -> None:
        digest = digest_of_views(views)
        if self._note(name, number, digest, sum(map(len, views))):
            return
        if self._isolate:
            size = sum(map(len, views))
            self._room.take(size)
            self._sending.submit(Call(self._send, digest, b"".join(views), size))  # a copy, even of one
        else:
            self._sending.submit(Call(self._send, digest, views[0] if len(views) == 1 else b"".join(views), 0))

    def _note(self, name: str, number: int, digest: str, size: int) -> bool:
        """Write down where a piece will be, and tell whether it is there already."""
        home = self._reusable.get(digest, self.id)
        with self._lock:
            self._pieces[name][number] = digest, home
            if home != self.id or digest in self._sent or not size:
                return True
            self._sent.add(digest)
            return False

    def _send(self, digest: str, data: bytes | memoryview, staged: int) -> None:
        try:
            self._renew()
            self._place.backend.put(self._piece_key(digest), data)
        except BaseException:
            self._room.open()  # what was to be sent after this never makes room
            raise
        finally:
            self._room.give(staged)

    def _begin_files(self) -> None:
        """Digest what components wrote by themselves, as nothing later is to be taken; if it is waited for, send it."""
        adopted, self._adopted = self._adopted, []
        for name in adopted:
            path = os.path.join(self._scratch.path, *name.split("/"))
            try:
                size = 0 if name[-1] == "/" else os.path.getsize(path)
            except OSError as error:
                raise explain(error, self._place.place, "look at what was saved", name) from error
            self._sizes[name] = size
            self._pieces[name] = {}
            if not size:
                self._note(name, 0, digest_of(b""), 0)
            for start in range(0, size, CHUNK):
                work = self._copying if self._isolate else self._sending
                work.submit(Call(self._take_file, name, path, start, min(CHUNK, size - start)))

    def _take_file(self, name: str, path: str, start: int, size: int) -> None:
        data = self._read_file(name, path, start, size)
        digest = digest_of(data)
        if self._note(name, start // CHUNK, digest, len(data)):
            return
        if self._isolate:
            self._staged.append(Call(self._send_file, name, path, start, size, digest))
        else:
            self._send(digest, data, 0)

    def _send_file(self, name: str, path: str, start: int, size: int, digest: str) -> None:
        data = self._read_file(name, path, start, size)
        if digest_of(data) != digest:
            raise changed_meanwhile(name)
        self._send(digest, data, 0)

    def _read_file(self, name: str, path: str, start: int, size: int) -> memoryview:
        data = memoryview(bytearray(size))
        try:
            fd = open_read(path)
            try:
                read = read_into(fd, data, start)
            finally:
                os.close(fd)
        except OSError as error:
            raise explain(error, self._place.place, "read what was saved", name) from error
        if read != size:
            raise changed_meanwhile(name)
        return data

    def _renew(self, *, force: bool = False) -> None:
        """Show that this process is alive."""
        with self._lock:
            if not self._etag or (not force and time.monotonic() - self._renewed < _RENEW):
                return
            if force and time.monotonic() - self._renewed < _RENEW / 60:
                return
            try:
                self._etag = self._place.backend.put(self._key, self._content, if_match=self._etag)
            except PreconditionError as error:
                raise self._taken_for_dead() from error
            self._renewed = time.monotonic()

    def _taken_for_dead(self) -> PerdureError:
        return UnavailableError(
            "this save took so long that another process took it for dead, and cleared it away",
            place=self._place.place,
            hint="Save again.",
        )


class _Room:
    """How many bytes of copies may exist at once."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._changed = Condition()

    def take(self, size: int) -> None:
        """Wait until there is room."""
        with self._changed:
            while self._free < size:
                self._changed.wait()
            self._free -= size

    def give(self, size: int) -> None:
        """Make room again."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def open(self) -> None:
        """Let nobody wait any more."""
        self.give(1 << 62)
