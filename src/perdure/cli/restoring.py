"""`perdure restore`: a snapshot from any place as an ordinary folder, all of it or nothing."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from ..errors import (
    BackendError,
    IntegrityError,
    PerdureError,
    PreconditionError,
    SnapshotNotFoundError,
    UsageError,
)
from ..registry import parse_url
from ..snapshots.disk import (
    explain,
    lock_folder,
    make_folders,
    open_new,
    open_read,
    read_into,
    remove_tree,
    sync_folder,
    unlock,
    write_at,
)
from ..snapshots.manifest import CHUNK, Broken, Part, Snapshot, digest_of, write_manifest
from ..snapshots.names import MANIFEST
from ..snapshots.place import Place, Reading, damaged, newer_format
from ..snapshots.place import open_place as snapshot_place
from .app import DONE, Command
from .output import Advance, Stopwatch, duration, line, one_line, plural, print_json, progress, size
from .snapshots import brief, open_snapshots, pick

_ELSEWHERE = "Nothing was changed; name a folder that does not exist yet."
_DRAFT = ".perdure-restore-"
_ATTEMPTS = 20
_AT_ONCE = 4 * CHUNK  # bytes fetched from a backend at once
_PIECES = 64  # and how many pieces these are at most


@click.command(cls=Command, name="restore", short_help="Copy a snapshot into a new folder.")
@click.argument("url")
@click.argument("target", metavar="TARGET")
@click.option("--snapshot", "which", metavar="NAME", help="Its name, number or path, latest or previous.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def restore_command(url: str, target: str, which: str | None, as_json: bool) -> int:
    """Copy a snapshot to TARGET, a folder that does not exist yet or is empty, as files that other tools can open.

    By default it is the newest snapshot that is whole; damaged ones are named and passed over. One that is named by --snapshot
    is copied or not, and no other instead. All bytes are compared with their digests on the way.

    Its manifest.json comes along, so that StateStore.load_state loads it from there, wherever it came from. TARGET appears as a
    whole or not at all, and nothing is ever overwritten.
    """
    clock = Stopwatch()
    passed: dict[str, PerdureError] = {}
    with open_snapshots(url) as place:
        final = _check_target(place, target)
        if which is not None:
            snapshot = pick(place, which)
            _restore(place, snapshot, final, as_json)
        else:
            snapshot = _restore_newest(place, final, passed, as_json)
    if as_json:
        told: dict[str, Any] = {"place": place.place, "target": final, "snapshot": brief(snapshot)}
        over = [{"name": name, "problem": error.problem} for name, error in passed.items()]
        print_json(told | {"parts": len(snapshot.parts), "passed_over": over, "seconds": round(clock.seconds, 3)})
    else:
        files = plural(len(snapshot.parts), "file")
        line(
            f"restored snapshot {snapshot.sequence} ({one_line(snapshot.name)}) to {one_line(final)}: {files}, "
            f"{size(snapshot.size)} in {duration(clock.seconds)}"
        )
    return DONE


def _restore_newest(place: Place, final: str, passed: dict[str, PerdureError], quiet: bool) -> Snapshot:
    """Restore the newest snapshot that is whole.

    Raises:
        SnapshotNotFoundError: There is none.
        IntegrityError: None is whole.
        CodecError: One is of a newer format: an older one is not what is wanted.
    """
    while True:
        entries = place.entries()
        newer = newer_format(entries)
        if newer is not None:
            raise newer
        for entry in entries:
            if isinstance(entry, Broken):
                _pass_over(entry.name, entry.error, passed)
        snapshots = [entry for entry in entries if isinstance(entry, Snapshot) and entry.name not in passed]
        if not snapshots:
            break
        try:
            _restore(place, snapshots[-1], final, quiet)
            return snapshots[-1]
        except (IntegrityError, SnapshotNotFoundError) as error:
            _pass_over(snapshots[-1].name, error, passed)
    if passed:
        one = len(passed) == 1
        problem = "the only snapshot here is not whole" if one else f"none of the {len(passed):,} snapshots here is whole"
        hint = f"perdure snapshots --verify says what is wrong with {'it' if one else 'each'}."
        raise IntegrityError(problem, place=place.place, hint=hint)
    raise SnapshotNotFoundError("there are no snapshots here", place=place.place, hint="Check the spelling.")


def _pass_over(name: str, error: PerdureError, passed: dict[str, PerdureError]) -> None:
    if name not in passed:
        passed[name] = error
        part = str(error.key).removeprefix(f"{name}/") if error.key else ""
        click.echo(f"passed over {one_line(name)}: {one_line(f'{part}: ' if part else '')} {one_line(error.problem)}", err=True)


def _check_target(place: Place, target: str) -> str:
    """The path of the folder to be made.

    Raises:
        PreconditionError: Something is in it.
        BackendError: It is a file.
        UsageError: It is none, or it would be taken for a snapshot of this place.
    """
    if parse_url(target)[0] != "file":
        hint = "perdure cp copies a whole place to another one."
        raise UsageError("a snapshot is restored to a folder of this machine", place=target.partition("?")[0], hint=hint)
    try:
        final = os.path.realpath(str(snapshot_place(target, sync=None, share=True).path))
    except BackendError as error:
        error.hint = _ELSEWHERE  # what it says is about a folder of snapshots
        raise
    where = f"file:{final}"
    try:
        if os.listdir(final):
            raise PreconditionError("this folder is not empty", place=where, hint=_ELSEWHERE)
        if os.path.samefile(final, "."):
            hint = "Name a folder in it that does not exist yet."
            raise UsageError(
                "this is the folder you are in, which the restored one would take the place of", place=where, hint=hint
            )
    except FileNotFoundError:
        pass  # as it shall be
    except OSError as error:
        raise _failed(error, where, "look into it") from error
    if place.path is not None and os.path.dirname(final) == os.path.realpath(place.path):
        raise UsageError("a folder in this place would be one of its snapshots", place=where, hint="Restore it to elsewhere.")
    return final


def _restore(place: Place, snapshot: Snapshot, final: str, quiet: bool) -> None:
    """Write a snapshot beside its final place, and rename it.

    Raises:
        IntegrityError: A part is damaged or missing.
        SnapshotNotFoundError: It has been removed meanwhile.
        BackendError: A place failed.
    """
    where = f"file:{final}"
    reading = place.read(snapshot)
    with closing(reading), _draft(final, where) as draft:
        pieces = _from_folder(snapshot, snapshot.path) if snapshot.path is not None else _from_backend(reading, snapshot)
        with progress("restoring", snapshot.size, in_bytes=True, quiet=quiet) as advance:
            _write(pieces, draft, where, advance)
        parts = {name: dataclasses.replace(part, homes=()) for name, part in snapshot.parts.items()}
        manifest = write_manifest(dataclasses.replace(snapshot, parts=parts))
        _write(iter([(Part(MANIFEST, len(manifest), ("",)), 0, memoryview(manifest))]), draft, where, lambda n: None)
        try:
            for folder, _, _ in os.walk(draft, topdown=False):
                sync_folder(folder)
            if os.name == "nt" and os.path.isdir(final):
                os.rmdir(final)  # which Windows does not replace; elsewhere the next line does, if it is still empty
            os.rename(draft, final)
            sync_folder(os.path.dirname(final))
        except OSError as error:
            raise _failed(error, where, "put it into its place") from error


@contextmanager
def _draft(final: str, where: str) -> Iterator[str]:
    """A new folder beside the final one, removed where it was not renamed; locked, so that nobody takes it for a leftover."""
    parent = os.path.dirname(final)
    try:
        make_folders(parent, durable=True)
        _sweep(parent)
        for _ in range(_ATTEMPTS):
            draft = os.path.join(parent, f"{_DRAFT}{os.urandom(8).hex()}")
            os.mkdir(draft)
            try:
                lock = lock_folder(draft)
                break
            except (FileNotFoundError, BlockingIOError):
                continue  # somebody swept it in the moment before it was locked
        else:
            raise BackendError("what is begun here is removed at once", place=where, hint=f"Look who cleans {parent}.")
        if os.path.isdir(final):
            os.chmod(draft, stat.S_IMODE(os.lstat(final).st_mode))
    except OSError as error:
        raise _failed(error, where, "make a folder") from error
    try:
        yield draft
    finally:
        if os.path.lexists(draft):
            remove_tree(draft)
        unlock(lock)


def _sweep(parent: str) -> None:
    """Remove what restores that were killed have left; not being able to is no reason not to go on."""
    for name in os.listdir(parent):
        if not name.startswith(_DRAFT):
            continue
        path = os.path.join(parent, name)
        try:
            lock = lock_folder(path)
            try:
                if lock is not None:
                    remove_tree(path)
            finally:
                unlock(lock)
        except (BlockingIOError, FileNotFoundError):
            continue  # of somebody who is alive, or swept by another
        except OSError as error:
            click.echo(f"a leftover stays: {one_line(path)}: {error.strerror or error}", err=True)


def _write(pieces: Iterator[tuple[Part, int, memoryview]], folder: str, where: str, advance: Advance) -> None:
    """Write files piece by piece, each from its beginning, and make them durable."""
    fd = -1
    try:
        for part, start, data in pieces:
            try:
                if start == 0:
                    path = os.path.join(folder, *part.name.split("/"))
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    if part.is_folder:
                        continue
                    fd = open_new(path)
                write_at(fd, [data], start)
                if start + len(data) == part.size:
                    os.fsync(fd)
                    os.close(fd)
                    fd = -1
            except OSError as error:
                raise _failed(error, where, "write", part.name) from error
            advance(len(data))
    finally:
        if fd >= 0:
            os.close(fd)


def _failed(error: OSError, where: str, doing: str, key: str | None = None) -> PerdureError:
    told = explain(error, where, doing, key)
    if not isinstance(error, PerdureError):
        told.hint = "Nothing was restored, and nothing is left of it."
    return told


def _from_folder(snapshot: Snapshot, folder: os.PathLike[str]) -> Iterator[tuple[Part, int, memoryview]]:
    """All pieces of all parts, each compared with its digest; a piece is overwritten by the next one."""
    memory = memoryview(bytearray(min(CHUNK, max((part.size for part in snapshot.parts.values()), default=0))))
    for part in snapshot.parts.values():
        try:
            if part.is_folder:
                os.listdir(os.path.join(folder, part.name))
                yield part, 0, memory[:0]
                continue
            fd = open_read(os.path.join(folder, part.name))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise damaged(snapshot, part, "the part is missing") from error
        except OSError as error:
            raise explain(error, snapshot.place, "read", f"{snapshot.name}/{part.name}") from error
        try:
            length = os.fstat(fd).st_size
            if length != part.size:
                raise damaged(snapshot, part, f"the part has {length} bytes and not {part.size}")
            for number, digest in enumerate(part.chunks):
                start = number * CHUNK
                view = memory[: min(CHUNK, part.size - start)]
                try:
                    read = read_into(fd, view, start)
                except OSError as error:
                    raise explain(error, snapshot.place, "read", f"{snapshot.name}/{part.name}") from error
                if read != len(view) or digest_of(view) != digest:
                    raise damaged(snapshot, part, "the part is damaged: its bytes are not those that were saved")
                yield part, start, view
        finally:
            os.close(fd)


def _from_backend(reading: Reading, snapshot: Snapshot) -> Iterator[tuple[Part, int, memoryview]]:
    """The same from a backend, of which several pieces are fetched at once."""
    batch: dict[str, tuple[Part, int]] = {}
    asked: list[Part] = []
    for part in snapshot.parts.values():
        for number, chunk in enumerate(part.chunks):
            start = number * CHUNK
            # A piece is a part of one piece. Its name is one that no part can have.
            name = f"{part.name}\0{number}"
            piece = Part(name, min(CHUNK, part.size - start), (chunk,), part.homes[number : number + 1])
            if asked and (len(asked) == _PIECES or sum(one.size for one in asked) + piece.size > _AT_ONCE):
                yield from _fetched(reading, asked, batch)
                batch, asked = {}, []
            batch[name] = part, start
            asked.append(piece)
    if asked:
        yield from _fetched(reading, asked, batch)


def _fetched(reading: Reading, asked: list[Part], batch: dict[str, tuple[Part, int]]) -> Iterator[tuple[Part, int, memoryview]]:
    try:
        memory = reading.fetch(asked, lambda n: None)
    except IntegrityError as error:
        error.key = str(error.key).partition("\0")[0]
        raise
    for name, (part, start) in batch.items():
        yield part, start, memory[name]
