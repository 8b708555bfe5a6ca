"""`perdure prune`: remove the snapshots that a policy lets go, after telling which."""

from __future__ import annotations

import json
import operator
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import reduce
from typing import Any, TypeAlias

import click

from ..errors import PerdureError, UsageError
from ..snapshots.cleaning import Cleaned, clean
from ..snapshots.keep import Keeper, KeepEvery, lacking
from ..snapshots.keep_spelling import parse_keeper
from ..snapshots.manifest import Broken, Snapshot
from ..snapshots.metadata import MAX_MANIFEST
from ..snapshots.names import MANIFEST
from ..snapshots.place import Place
from ..snapshots.upkeep import remove_damaged
from .app import DONE, PROBLEM, Command
from .listing import print_table
from .output import console, line, one_line, plural, print_json, progress, safe, size, styled
from .snapshots import brief, complete, is_damage, open_snapshots, stored

_MARKS = (b'"perdure snapshot', b'"library"', b'"components"', b'"sequence"', b'"seal"')
_Laid: TypeAlias = Mapping[str, Mapping[Any, int]]  # by the name of a snapshot, what it consists of


@click.command(cls=Command, name="prune", short_help="Remove the snapshots that a policy lets go.")
@click.argument("url")
@click.option("--keep", "keeps", multiple=True, metavar="POLICY", help="What to keep; repeatable.")
@click.option("--broken", is_flag=True, help="Remove what has a damaged manifest.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def prune_command(url: str, keeps: tuple[str, ...], broken: bool, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove the snapshots that no --keep keeps, after asking, and with --broken those whose manifest is damaged.

    A POLICY is latest=3, every=10 (by their numbers), younger=7d, best=1:loss, best=1:accuracy:max, or thinned (all of the last
    hour, one an hour for a day, one a day ever after). Of several, each keeps its own; POLICY&POLICY keeps what both keep. A
    metric that no snapshot has is wrong usage.

    Before the first is removed, one of those that stay is read and compared with its digests. If none of them is whole, the
    newest whole one of the others stays as well. What has a damaged manifest is not counted, and only removed by --broken; what
    is of a newer format, or looks like a folder of another program, never. What killed processes have left is swept.

    Exit code 0; 1 if something could not be removed, or the answer was no.
    """
    if not keeps and not broken:
        raise UsageError("nothing says what to remove", hint="Give --keep POLICY, such as --keep latest=3, or --broken.")
    keeper = reduce(operator.or_, map(parse_keeper, keeps)) if keeps else KeepEvery(1)
    now = datetime.now(UTC)
    with open_snapshots(url) as place:
        listed = complete(place)
        lacks = keeper.lacks(listed)
        if lacks:  # best=1:vall_loss would keep none, and the best ones would go
            raise lacking(lacks, listed).at(place=place.place)
        with progress("reading", None, quiet=as_json):
            plan = clean(place, keeper, dry_run=True, now=now)
        entries = [entry for entry in place.entries() if isinstance(entry, Broken)]
        doomed = [entry for entry in entries if broken and is_damage(entry) and not _is_foreign(place, entry)]
        laid: dict[str, Mapping[Any, int]] = {entry.name: _files(place, entry) for entry in entries}
        laid |= {s.name: dict(piece for part in s.parts.values() for piece in stored(s, part)) for s in _all(plan)}
        frees = 0 if _is_stuck(place, len(entries) - len(doomed)) else _freed(laid, (*plan.removed, *doomed))
        if not as_json:
            _show(place, plan, frees, entries, doomed)
        agreed = dry_run or yes or not (plan.removed or doomed) or _confirmed(place, plan, frees, doomed)
        outcome, gone, freed, failed, problem = plan, doomed, frees, dict[str, str](), None
        if not agreed:
            outcome, gone, freed = Cleaned(_all(plan), (), (), plan.spared), [], 0
        elif not dry_run:
            with progress("removing", None, quiet=as_json):
                failed = _remove_broken(place, doomed)  # first, as in a backend nothing is freed while they are there
                outcome = clean(place, _Agreed(keeper, plan), now=now)
                problem = _sweep(place)
            left = sum(isinstance(entry, Broken) for entry in place.entries())
            gone = [entry for entry in doomed if entry.name not in failed]
            freed = 0 if _is_stuck(place, left) else _freed(laid, (*outcome.removed, *gone))
    if as_json:
        spared = outcome.spared or plan.spared
        print_json(
            {
                "place": place.place,
                "keep": str(keeper),
                "dry_run": dry_run,
                "kept": [brief(snapshot) for snapshot in outcome.kept],
                "removed": [brief(snapshot) for snapshot in outcome.removed],
                "bytes": freed,
                "failed": [brief(snapshot) | {"problem": why} for snapshot, why in outcome.failed],
                "broken": [
                    {"name": entry.name, "problem": entry.error.problem, "damaged": is_damage(entry)}
                    | {"removed": entry in gone, "failed": failed.get(entry.name)}
                    for entry in entries
                ],
                "spared": spared and brief(spared),
                "sweep": problem or ("done" if agreed and not dry_run else "not done"),
            }
        )
    elif agreed and not dry_run:
        if plan.removed or doomed:
            what = [plural(len(outcome.removed), "snapshot")] if plan.removed else []
            what += [plural(len(gone), "damaged manifest")] if doomed else []
            line(f"removed {' and '.join(what)}{_spell_freed(place, freed, gone)}")
        if outcome.spared:
            line(f"{one_line(outcome.spared.name)} stays, {_why_spared(outcome)}")
    if not agreed:
        click.echo("nothing was removed", err=True)
    for snapshot, why in outcome.failed:
        click.echo(f"not removed: {snapshot.sequence} {one_line(snapshot.name)}: {one_line(why)}", err=True)
    for name, why in failed.items():
        click.echo(f"not removed: {one_line(name)}: {one_line(why)}", err=True)
    if problem:
        click.echo(f"what killed processes left could not be removed: {one_line(problem)}", err=True)
    return DONE if agreed and not outcome.failed and not failed and not problem else PROBLEM


class _Agreed(Keeper):
    """Keeps also what the user was not told of: who saves meanwhile must not make more go than was agreed to."""

    def __init__(self, keeper: Keeper, plan: Cleaned) -> None:
        self._keeper = keeper
        self._doomed = {snapshot.name for snapshot in plan.removed}

    def select(self, snapshots: Iterable[Snapshot], now: datetime) -> set[Snapshot]:
        listed = list(snapshots)
        return self._keeper.select(listed, now) | {snapshot for snapshot in listed if snapshot.name not in self._doomed}


def _all(plan: Cleaned) -> tuple[Snapshot, ...]:
    return tuple(sorted((*plan.kept, *plan.removed), key=lambda snapshot: snapshot.sequence))


def _files(place: Place, entry: Broken) -> dict[object, int]:
    """The files in a folder, whatever its manifest said; of what is in a backend, nobody knows."""
    if place.path is None:
        return {}
    found: dict[object, int] = {}
    top = place.path / entry.name
    for folder, _, names in os.walk(top):
        for path in (os.path.join(folder, name) for name in names):
            with suppress(OSError):  # gone, or it may not be looked at: then it is not counted
                info = os.lstat(path)
                found[info.st_dev, info.st_ino] = info.st_size
    with suppress(OSError):
        info = os.lstat(top / MANIFEST)
        found.pop((info.st_dev, info.st_ino), None)  # as for other snapshots, only parts count
    return found


def _freed(laid: _Laid, gone: Iterable[Snapshot | Broken]) -> int:
    """The bytes that only these need."""
    names = {entry.name for entry in gone}
    needed = {piece for name, pieces in laid.items() if name not in names for piece in pieces}
    theirs = {piece: length for name in names for piece, length in laid[name].items()}
    return sum(length for piece, length in theirs.items() if piece not in needed)


def _sweep(place: Place) -> str | None:
    """Remove what killed processes left, and tell what went wrong."""
    try:
        place.sweep()
    except PerdureError as error:
        return str(error)
    return None


def _remove_broken(place: Place, doomed: Iterable[Broken]) -> dict[str, str]:
    """Remove what has a damaged manifest, and tell by name what could not be removed."""
    failed = {}
    for entry in doomed:
        try:
            if not remove_damaged(place, entry.name):
                failed[entry.name] = "somebody is reading it"
        except PerdureError as error:
            failed[entry.name] = str(error)
    return failed


def _is_foreign(place: Place, entry: Broken) -> bool:
    """Whether a folder may be another program's, as many write a manifest.json; a little damage leaves most of ours in it."""
    if place.path is None:
        return False
    try:
        with open(place.path / entry.name / MANIFEST, "rb") as file:
            data = file.read(MAX_MANIFEST)
    except OSError:
        return True  # who knows; it stays, and is named
    ours = sum(mark in data for mark in _MARKS)
    try:
        json.loads(data)
    except ValueError:
        return not ours and not entry.name.endswith(".state")
    return ours < len(_MARKS) - 1  # it is whole as JSON, and yet not ours


def _is_stuck(place: Place, broken: int) -> bool:
    """Whether nothing is freed: in a backend nobody knows which pieces are needed by what cannot be read."""
    return place.path is None and broken > 0


def _spell_freed(place: Place, freed: int, broken: Sequence[Broken]) -> str:
    """Such as `, 1.5 kB`; nothing where nobody knows."""
    if place.path is None and broken:
        return f", at least {size(freed)}" if freed else ""
    return f", {size(freed)}"


def _why_spared(plan: Cleaned) -> str:
    return "as none of the others that stay is whole" if len(plan.kept) > 1 else "as no other snapshot would stay"


def _show(place: Place, plan: Cleaned, frees: int, entries: Sequence[Broken], doomed: Sequence[Broken]) -> None:
    out = console()
    marks = {snapshot.name: ("stays", "green") for snapshot in plan.kept}
    marks |= {snapshot.name: ("goes", "red") for snapshot in plan.removed}
    print_table(out, _all(plan), marks=marks)
    for entry in doomed:
        styled(out, ("goes", "red"), f"  {one_line(entry.name)}: {one_line(entry.error.problem)}")
    styled(
        out,
        f"{plural(len(plan.kept), 'snapshot')} to stay, {len(plan.removed):,} to go"
        + (f", and {plural(len(doomed), 'damaged manifest')}" if doomed else "")
        + (_spell_freed(place, frees, doomed).replace(", ", ": ", 1) if plan.removed or doomed else ""),
    )
    if plan.spared:
        styled(out, ("spared", "bold yellow"), f"  {one_line(plan.spared.name)}, {_why_spared(plan)}")
    ignored = [entry for entry in entries if entry not in doomed]
    for entry in ignored:
        foreign = "; if nobody needs it, remove it by rm -r" if is_damage(entry) and _is_foreign(place, entry) else ""
        styled(out, ("ignored", "bold yellow"), f"  {one_line(entry.name)}: {one_line(entry.error.problem)}{foreign}")
    if not doomed and any(is_damage(entry) and not _is_foreign(place, entry) for entry in ignored):
        styled(out, "--broken removes what has a damaged manifest")
    if _is_stuck(place, len(ignored)):
        styled(out, "no space is freed, as nobody knows what those that are ignored need")


def _confirmed(place: Place, plan: Cleaned, frees: int, doomed: Sequence[Broken]) -> bool:
    if not sys.stdin.isatty():
        hint = "--dry-run only tells which would go."
        raise UsageError("removing snapshots needs --yes where nobody can be asked", place=place.place, hint=hint)
    what = [plural(len(plan.removed), "snapshot")] if plan.removed else []
    what += [f"{plural(len(doomed), 'snapshot')} with a damaged manifest"] if doomed else []
    freed = _spell_freed(place, frees, doomed).removeprefix(", ")
    return click.confirm(safe(f"Remove {' and '.join(what)}{freed and f' ({freed})'} from {place.place}?"), err=True)
