"""What snapshots need of the place they are kept in: a folder, or any backend.

Two kinds of place keep this promise: in `folder.py` a snapshot is an ordinary directory, in `bucket.py` a manifest and pieces
under the keys of a backend. Above them nobody knows which it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from blake3 import blake3

from ..errors import IntegrityError, PerdureError, UsageError, UsageTypeError
from ..protocol import Backend
from .disk import open_read, read_into
from .manifest import CHUNK, Broken, Part, Snapshot, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Report: TypeAlias = Callable[[int], object]
"""Told how many more bytes are done."""


class Draft(Protocol):
    """A snapshot that is being made. Nobody sees it before `commit`, and a killed one is swept away.

    Attributes:
        id: Unique.
    """

    id: str

    def folder(self) -> Path:
        """Where components write files by themselves."""
        ...

    def add(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Begin to store a part; the memory must not change before `settle`."""
        ...

    def adopt(self, component: str) -> list[str]:
        """Take over what a component wrote into the folder, and tell the names of these parts."""
        ...

    def settle(self) -> None:
        """Return as soon as the caller's memory may change."""
        ...

    def commit(self, snapshot: Snapshot, report: Report) -> Snapshot:
        """Make all parts durable, and then the snapshot visible.

        Args:
            snapshot: All but its parts, sequence and place; its name gets a suffix where it is taken.
            report: Told of bytes that are durable.
        """
        ...

    def publish(self, report: Report) -> list[Part]:
        """Make all parts durable, for another process to take into its snapshot, and tell what they are."""
        ...

    def merge(self, draft: str, parts: Sequence[Part]) -> None:
        """Take in the parts that another process published, whose draft has this id."""
        ...

    def hand_over(self, snapshot: Snapshot | None) -> None:
        """Be done: another process has taken everything into its snapshot, which may be gone already."""
        ...

    def abandon(self) -> None:
        """Leave no trace. May be called at any time, also after `commit`."""
        ...


class Reading(Protocol):
    """A snapshot that is being read, which nobody removes meanwhile."""

    def fetch(self, parts: Iterable[Part], report: Report) -> Mapping[str, memoryview]:
        """The bytes of parts, each compared with its digests. The memory is the caller's.

        Raises:
            IntegrityError: A part is damaged or missing; it is named.
        """
        ...

    def fetch_files(self, parts: Iterable[Part], report: Report) -> Path:
        """A folder in which these parts are files, each compared with its digests. Raises as `fetch`."""
        ...

    def damage(self, parts: Iterable[Part], report: Report) -> list[IntegrityError]:
        """Compare parts with their digests, and tell what is wrong with each."""
        ...

    def close(self) -> None:
        """Let it be removed again."""
        ...


class Place(Protocol):
    """Where snapshots are kept.

    Attributes:
        place: As a URL without secrets.
        shared_by_machines: Whether others than this machine's users commonly write there.
        path: The folder; `None` where it is none.
    """

    place: str
    shared_by_machines: bool
    path: Path | None

    def entries(self) -> list[Snapshot | Broken]:
        """All snapshots, the oldest first, and what is broken before them."""
        ...

    def find(self, which: str | os.PathLike[str]) -> Snapshot:
        """A snapshot by its name or path.

        Raises:
            SnapshotNotFoundError: There is none.
            CodecError: There is one that is damaged, or of a newer format.
        """
        ...

    def begin(self, *, isolate: bool) -> Draft:
        """Begin a snapshot.

        Args:
            isolate: Whether the caller wants to change its memory before everything is stored.
        """
        ...

    def read(self, snapshot: Snapshot) -> Reading:
        """Begin to read a snapshot."""
        ...

    def is_whole(self, snapshot: Snapshot) -> bool:
        """Whether all its parts are what was saved: they are read, unless this process did that and they look the same."""
        ...

    def remove(self, snapshot: Snapshot) -> bool:
        """Remove a snapshot; `False` where somebody is reading it. One that is gone already is fine."""
        ...

    def remove_broken(self, name: str) -> bool:
        """As `remove`, what `entries` gave as broken under this name. Raises `SnapshotNotFoundError` for anything else."""
        ...

    def sweep(self) -> None:
        """Remove what killed processes left. Nothing of a live one is touched."""
        ...

    def records(self) -> tuple[Backend, str]:
        """A backend, and a prefix in it, for records by which processes agree on a snapshot."""
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...


def newer_format(entries: Iterable[Snapshot | Broken]) -> PerdureError | None:
    """What is wrong with a snapshot that may be whole and the newest: a newer version wrote it, or we may not look at it."""
    for entry in entries:
        if isinstance(entry, Broken) and not isinstance(entry.error, IntegrityError):
            return entry.error
    return None


def open_place(where: str | os.PathLike[str] | Backend, *, sync: str | None, share: bool) -> Place:
    """The place that a path, a URL or a backend stands for. Nothing is made or asked before it is used.

    Raises:
        UsageError: It is none for snapshots.
    """
    from ..registry import open_backend, parse_url

    if isinstance(where, (str, os.PathLike)):
        scheme, location, options = parse_url(where)
        if scheme == "file":
            from .folder import FolderPlace

            for name, _ in options:
                if name != "sync":
                    raise UsageError(f"file: has no option {name!r} for snapshots", hint="Known: sync.")
            told = dict(options).get("sync") or sync or "full"
            if told not in ("full", "normal"):
                raise UsageError(f"sync is 'full' or 'normal', not {told!r}", place=f"file:{location}")
            return FolderPlace(_local(location), durable=told == "full", share=share)
        where = open_backend(where, **({} if sync is None else {"sync": sync}))
    elif not hasattr(where, "put"):
        raise UsageTypeError(f"states_dir is a path, a URL or a backend, not {where!r:.60}")
    elif sync is not None:
        raise UsageError("sync= belongs to the backend that was given", hint="Open the backend with it.")
    from .bucket import BackendPlace

    return BackendPlace(where, share=share)


def _local(location: str) -> str:
    if location.startswith("//"):
        host, slash, rest = location[2:].partition("/")
        if host not in ("", "localhost"):
            raise UsageError(
                f"file: names no host, and {host!r} stands where one would", hint=f"Write file:{host}{slash}{rest}."
            )
        return slash + rest
    return location


def cut(pieces: Sequence[bytes | memoryview]) -> list[list[memoryview]]:
    """Cut memory into chunks of `CHUNK` bytes, each a list of views, without copying. At least one chunk, that may be empty."""
    chunks: list[list[memoryview]] = [[]]
    room = CHUNK
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if not room:
                chunks.append([])
                room = CHUNK
            chunks[-1].append(view[:room])
            view, room = view[room:], room - min(room, len(view))
    return chunks


def digest_of_views(views: Sequence[memoryview]) -> str:
    """The digest of one chunk."""
    if len(views) == 1:
        return blake3(views[0]).hexdigest()
    digest = blake3()
    for view in views:
        digest.update(view)
    return digest.hexdigest()


def digest_file(path: str) -> tuple[int, tuple[str, ...]]:
    """The size of a file, and the digests of its chunks. Raises `OSError`."""
    fd = open_read(path)
    try:
        size = os.fstat(fd).st_size
        chunks = []
        memory = memoryview(bytearray(min(size, CHUNK)))
        for start in range(0, max(size, 1), CHUNK):
            read = read_into(fd, memory[: min(CHUNK, size - start)], start)
            chunks.append(digest_of(memory[:read]))
    finally:
        os.close(fd)
    return size, tuple(chunks)


def changed_meanwhile(name: str) -> UsageError:
    """The error about a file that was digested, and then changed before the snapshot was complete."""
    hint = "Let save_state write new files each time, and close them before it returns."
    return UsageError(f"{name!r} was written to after its component had saved it", hint=hint)


def damaged(snapshot: Snapshot, part: Part, problem: str) -> IntegrityError:
    """The error about a part that is not what was saved."""
    hint = "load_latest() takes the newest snapshot that is whole; `perdure snapshots --verify` lists them."
    return IntegrityError(problem, key=f"{snapshot.name}/{part.name}", place=snapshot.place, hint=hint)
