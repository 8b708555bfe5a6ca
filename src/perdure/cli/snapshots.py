"""`perdure snapshots`, and what the other commands for snapshots share: opening, choosing one, and the table of them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, TypeAlias

import click

from ..errors import BackendError, IntegrityError, SnapshotNotFoundError, UnavailableError, UsageError
from ..registry import parse_url
from ..snapshots.bucket_keys import number_in
from ..snapshots.manifest import CHUNK, Broken, Part, Snapshot
from ..snapshots.names import MANIFEST
from ..snapshots.place import Place
from ..snapshots.place import open_place as snapshot_place
from .app import DONE, PROBLEM, Command
from .listing import Mark, draw, metrics_of, print_table
from .output import console, one_line, plural, print_json, progress, size, styled
from .places import open_place
from .wording import program

_SHOWN = 20  # damaged parts, or manifests, named in a message for people
_NUMBER: Final = re.compile("[1-9][0-9]{0,17}")

Damage: TypeAlias = list[tuple[str, str]]
"""Parts of a snapshot, each with what is wrong."""


@contextmanager
def open_snapshots(url: str) -> Iterator[Place]:
    """Open the place of snapshots that a URL names. Where nothing is, nothing is created.

    Raises:
        BackendError: There is nothing.
        UsageError: It is no place for snapshots, or it is a snapshot itself.
    """
    if parse_url(url)[0] == "file":
        place = snapshot_place(url, sync=None, share=True)
        folder = str(place.path)
        if not os.path.lexists(folder):
            hint = "Check the spelling; nothing was created."
            if "?" in folder:
                hint = f"Options need a scheme in front, such as file:{url}; nothing was created."
            raise BackendError("there is nothing here", place=place.place, hint=hint)
        if os.path.lexists(os.path.join(folder, MANIFEST)):
            hint = f"Name the folder that it is in: {os.path.dirname(folder)}"
            raise UsageError("this is a snapshot, not a place of snapshots", place=place.place, hint=hint)
    else:
        place = snapshot_place(open_place(url), sync=None, share=True)
    with closing(place):
        yield place


def complete(place: Place) -> list[Snapshot]:
    """The snapshots of a place, the oldest first."""
    return [entry for entry in place.entries() if isinstance(entry, Snapshot)]


def pick(place: Place, which: str) -> Snapshot:
    """The snapshot that a name, a path, a sequence number, `latest` or `previous` means. With a slash it is never a number.

    Raises:
        SnapshotNotFoundError: There is none.
        CodecError: It is damaged, or of a newer format.
        UsageError: Several have this number, or one is called as another is numbered.
    """
    hint = "perdure snapshots lists those there are."
    if which in ("latest", "previous"):
        back = 1 if which == "latest" else 2
        snapshots = complete(place)
        if len(snapshots) < back:
            there = "no other snapshot" if snapshots else "no snapshot"
            raise SnapshotNotFoundError(f"there is {there} here", key=which, place=place.place, hint=hint)
        return snapshots[-back]
    if not _NUMBER.fullmatch(which):
        return place.find(which)
    entries = place.entries()
    found = [entry for entry in entries if entry.name == which or _is_numbered(entry, int(which))]
    if len(found) > 1:
        names = ", ".join(repr(entry.name) for entry in found)
        raise UsageError(
            f"{which} can mean {names}", place=place.place, hint=f"Give a name; {which!r} as a name is ./{which} here."
        )
    if not found:
        broken = [entry for entry in entries if isinstance(entry, Broken)]
        if broken:
            names = ", ".join(entry.name for entry in broken[:_SHOWN]) + (", ..." if len(broken) > _SHOWN else "")
            what = "is damaged" if all(map(is_damage, broken)) else "cannot be read here"
            hint = f"It may be one of those whose manifest {what}: {names}."
        raise SnapshotNotFoundError("there is no snapshot of this number", key=int(which), place=place.place, hint=hint)
    if isinstance(found[0], Broken):
        raise found[0].error
    return found[0]


def _is_numbered(entry: Snapshot | Broken, number: int) -> bool:
    # The manifest of a folder alone knows its number; in a backend the key does, too, whatever became of the manifest.
    return number == (entry.sequence if isinstance(entry, Snapshot) else number_in(entry.name))


def stored(snapshot: Snapshot, part: Part) -> list[tuple[Hashable, int]]:
    """What a part consists of in its place, and the size of each; what two snapshots share has the same identity in both."""
    if snapshot.path is not None:
        try:
            info = os.lstat(os.path.join(snapshot.path, part.name))
        except OSError:
            return [((snapshot.name, part.name), 0)]  # reading it will tell what is wrong
        return [((info.st_dev, info.st_ino), info.st_size)]
    homes = part.homes or (snapshot.id,) * len(part.chunks)
    sizes = (min(CHUNK, part.size - number * CHUNK) for number in range(len(part.chunks)))
    return [((home, chunk), length) for home, chunk, length in zip(homes, part.chunks, sizes, strict=True)]


def brief(snapshot: Snapshot) -> dict[str, Any]:
    """For JSON: which snapshot it is."""
    return {
        "sequence": snapshot.sequence,
        "name": snapshot.name,
        "id": snapshot.id,
        "saved": snapshot.saved.isoformat(),
        "size": snapshot.size,
    }


@click.command(cls=Command, name="snapshots", short_help="List snapshots, and verify them.")
@click.argument("url", default=".")
@click.option("--verify", is_flag=True, help="Read all parts and compare them with their digests.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Draw this number of the metadata; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def snapshots_command(url: str, verify: bool, metrics: tuple[str, ...], as_json: bool) -> int:
    """List the snapshots of a place, by default of the current folder, the oldest first.

    "new" are the bytes of parts that the snapshot before does not have. Age and time are by the clock of whoever saved it. Of
    the metadata, numbers and short texts are shown as far as there is room; in a pipe and with --json nothing is left out. On
    a terminal, sizes and a metric (by default the loss, or the only number but the step) are drawn below.

    Only manifests are read, unless --verify is given: then each part is read once, however many snapshots share it.

    Exit code 0; with --verify 1 if not all of them are whole.
    """
    with open_snapshots(url) as place:
        entries = place.entries()
        snapshots = [entry for entry in entries if isinstance(entry, Snapshot)]
        broken = [entry for entry in entries if isinstance(entry, Broken)]
        damage = _verify(place, snapshots, as_json) if verify else {}
        if verify:
            snapshots = [snapshot for snapshot in snapshots if snapshot.name in damage]
    new = new_bytes(snapshots)
    if as_json:
        listed = [_as_json(snapshot, new[snapshot.name], damage.get(snapshot.name)) for snapshot in snapshots]
        unusable = [{"name": entry.name, "problem": entry.error.problem, "damaged": is_damage(entry)} for entry in broken]
        print_json({"place": place.place, "verified": verify, "snapshots": listed, "broken": unusable})
    else:
        _tell(snapshots, broken, new, damage if verify else None, metrics_of(snapshots, metrics))
    return PROBLEM if verify and (broken or any(damage.values())) else DONE


def is_damage(entry: Broken) -> bool:
    """Whether its manifest is damaged; else it is of a newer format, or may not be looked into."""
    return isinstance(entry.error, IntegrityError)


def new_bytes(snapshots: Sequence[Snapshot]) -> dict[str, int]:
    """By name: the bytes of each snapshot that the one before does not have; of files, or in a bucket of pieces of them."""
    new = {}
    before: set[object] = set()
    for snapshot in snapshots:
        here = _pieces(snapshot)
        new[snapshot.name] = sum(length for piece, length in here.items() if piece not in before)
        before = set(here)
    return new


def _pieces(snapshot: Snapshot) -> dict[object, int]:
    """What a snapshot consists of, by its digests, and the size of each."""
    if snapshot.path is not None:
        return {part.chunks: part.size for part in snapshot.parts.values()}
    return {
        chunk: min(CHUNK, part.size - number * CHUNK)
        for part in snapshot.parts.values()
        for number, chunk in enumerate(part.chunks)
    }


def _verify(place: Place, snapshots: Sequence[Snapshot], quiet: bool) -> dict[str, Damage]:
    """By name, what is wrong with each snapshot. Those that were removed meanwhile are left out."""
    found: dict[str, Damage] = {}
    problems: dict[Hashable, str] = {}  # of what was read, `""` where it is whole
    pieces = {
        (snapshot.name, part.name): (*(piece for piece, _ in stored(snapshot, part)), part.size, *part.chunks)
        for snapshot in snapshots
        for part in snapshot.parts.values()
    }
    sizes = {pieces[s.name, part.name]: part.size for s in snapshots for part in s.parts.values()}
    with progress("verifying", sum(sizes.values()), in_bytes=True, quiet=quiet) as advance:
        for snapshot in snapshots:
            unread = {pieces[snapshot.name, part.name]: part for part in snapshot.parts.values()}
            unread = {piece: part for piece, part in unread.items() if piece not in problems}
            try:
                reading = place.read(snapshot)
            except SnapshotNotFoundError:
                continue
            with closing(reading):
                try:
                    errors: Sequence[IntegrityError | BackendError] = reading.damage(unread.values(), advance)
                except BackendError as error:
                    # What the system says when a file is read is of that file. A server that refuses, refuses everything.
                    if snapshot.path is None or error.errno is None or isinstance(error, UnavailableError):
                        raise
                    errors = [error]
            told = {str(error.key).removeprefix(f"{snapshot.name}/"): error.problem for error in errors}
            if not all(isinstance(error, IntegrityError) for error in errors):
                found[snapshot.name] = list(told.items())  # it ended there, and who knows of the others
                continue
            problems |= {piece: told.get(part.name, "") for piece, part in unread.items()}
            found[snapshot.name] = [
                (part, problems[pieces[snapshot.name, part]])
                for part in snapshot.parts
                if problems[pieces[snapshot.name, part]]
            ]
    if any(found.values()):
        there = {entry.name for entry in place.entries()}
        found = {name: damage for name, damage in found.items() if name in there}
    return found


def _as_json(snapshot: Snapshot, new: int, damage: Damage | None) -> dict[str, Any]:
    state = {"state": "listed"}
    if damage is not None:
        state = {"state": "damaged" if damage else "whole"}
    return (
        brief(snapshot)
        | {"new": new, "path": None if snapshot.path is None else str(snapshot.path)}
        | state
        | {"damage": [{"part": part, "problem": problem} for part, problem in damage or ()]}
        | {
            "metadata": snapshot.metadata,
            "components": {
                name: {"kind": told.kind, "parts": told.parts, "rank": told.rank} for name, told in snapshot.components.items()
            },
            "parts": {
                part.name: {"size": part.size, "digest": part.digest, "chunks": part.chunks} for part in snapshot.parts.values()
            },
            "library": snapshot.library,
            "python": snapshot.python,
        }
    )


def _tell(
    snapshots: Sequence[Snapshot],
    broken: Sequence[Broken],
    new: Mapping[str, int],
    damage: Mapping[str, Damage] | None,
    metrics: Sequence[str],
) -> None:
    out = console()
    marks = None if damage is None else {name: _mark(parts) for name, parts in damage.items()}
    print_table(out, snapshots, metrics=metrics, new=new, marks=marks)
    for entry in broken:
        word = ("broken", "bold red") if is_damage(entry) else ("unknown", "bold yellow")
        styled(out, word, f"  {one_line(entry.name)}: {one_line(entry.error.problem)}")
    if sys.stdout.isatty():
        if len(snapshots) > 1:
            draw(out, snapshots, metrics)
        styled(out, f"{plural(len(snapshots), 'snapshot')}, {_total(snapshots)}" if snapshots else "no snapshots here")
    if any(map(is_damage, broken)):
        click.echo(f"{program()} prune URL --broken removes what has a damaged manifest", err=True)
    problems = [(f"{name}/{part}", problem) for name, parts in (damage or {}).items() for part, problem in parts]
    for part, problem in problems[:_SHOWN]:
        click.echo(f"{one_line(part)}: {one_line(problem)}", err=True)
    if len(problems) > _SHOWN:
        click.echo(f"... and {len(problems) - _SHOWN:,} more (--json lists them all)", err=True)


def _total(snapshots: Sequence[Snapshot]) -> str:
    total = sum(snapshot.size for snapshot in snapshots)
    pieces: dict[object, int] = {}
    for snapshot in snapshots:
        pieces |= _pieces(snapshot)
    once = sum(pieces.values())
    return size(total) if once == total else f"{size(total)} in all, {size(once)} with equal parts counted once"


def _mark(damage: Damage) -> Mark:
    if not damage:
        return "whole", "green"
    more = f", and {len(damage) - 1:,} more" if len(damage) > 1 else ""
    return f"damaged: {one_line(damage[0][0])}{more}", "bold red"
