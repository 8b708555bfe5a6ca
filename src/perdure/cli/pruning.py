"""`perdure prune`: remove the snapshots that a policy lets go, after telling which."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import reduce
from typing import TypeAlias

import click

from ..errors import PerdureError, UsageError
from ..snapshots.cleaning import Cleaned, clean
from ..snapshots.keep import Keeper, parse_keeper
from ..snapshots.manifest import Broken, Snapshot
from ..snapshots.place import Place
from .app import DONE, PROBLEM, Command
from .listing import print_table
from .output import console, line, one_line, plural, print_json, progress, safe, size, styled
from .snapshots import brief, open_snapshots, stored

_Laid: TypeAlias = Mapping[str, Mapping[object, int]]  # by the name of a snapshot, what it consists of


@click.command(cls=Command, name="prune", short_help="Remove the snapshots that a policy lets go.")
@click.argument("url")
@click.option("--keep", "keeps", multiple=True, required=True, metavar="POLICY", help="What to keep; repeatable.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def prune_command(url: str, keeps: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove the snapshots that no --keep keeps, after asking.

    A POLICY is latest=3, every=10 (by their numbers), younger=7d, best=1:loss, best=1:accuracy:max, or thinned (all of the last
    hour, one an hour for a day, one a day ever after). Of several, each keeps its own; POLICY&POLICY keeps what both keep.

    Before the first is removed, one of those that stay is read and compared with its digests. If none of them is whole, the
    newest whole one of the others stays as well. What has a damaged manifest, or is of a newer format, is neither counted nor
    removed. What killed processes have left is swept.

    Exit code 0; 1 if something could not be removed, or the answer was no.
    """
    keeper = reduce(operator.or_, map(parse_keeper, keeps))
    now = datetime.now(UTC)
    with open_snapshots(url) as place:
        with progress("reading", None, quiet=as_json):
            plan = clean(place, keeper, dry_run=True, now=now)
        laid: _Laid = {s.name: dict(piece for part in s.parts.values() for piece in stored(s, part)) for s in _all(plan)}
        if not as_json:
            _show(place, plan, _freed(laid, plan.removed))
        agreed = dry_run or yes or not plan.removed or _confirmed(place, plan, _freed(laid, plan.removed))
        outcome, problem = plan, None
        if not agreed:
            outcome = Cleaned(_all(plan), (), (), plan.spared)
        elif not dry_run:
            with progress("removing", None, quiet=as_json):
                outcome = clean(place, _Agreed(keeper, plan), now=now)
                problem = _sweep(place)
    freed = _freed(laid, outcome.removed)
    spared = outcome.spared or plan.spared
    if as_json:
        print_json(
            {
                "place": place.place,
                "keep": str(keeper),
                "dry_run": dry_run,
                "kept": [brief(snapshot) for snapshot in outcome.kept],
                "removed": [brief(snapshot) for snapshot in outcome.removed],
                "bytes": freed,
                "failed": [brief(snapshot) | {"problem": why} for snapshot, why in outcome.failed],
                "spared": spared and brief(spared),
                "sweep": problem or ("done" if agreed and not dry_run else "not done"),
            }
        )
    elif agreed and not dry_run and plan.removed:
        line(f"removed {plural(len(outcome.removed), 'snapshot')}, {size(freed)}")
        if outcome.spared:
            line(f"{one_line(outcome.spared.name)} stays: no other is whole")
    if not agreed:
        click.echo("nothing was removed", err=True)
    for snapshot, why in outcome.failed:
        click.echo(f"not removed: {snapshot.sequence} {one_line(snapshot.name)}: {one_line(why)}", err=True)
    if problem:
        click.echo(f"what killed processes left could not be removed: {one_line(problem)}", err=True)
    return DONE if agreed and not outcome.failed and not problem else PROBLEM


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


def _freed(laid: _Laid, gone: Iterable[Snapshot]) -> int:
    """The bytes that only these snapshots need."""
    names = {snapshot.name for snapshot in gone}
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


def _show(place: Place, plan: Cleaned, frees: int) -> None:
    out = console()
    marks = {snapshot.name: ("stays", "green") for snapshot in plan.kept}
    marks |= {snapshot.name: ("goes", "red") for snapshot in plan.removed}
    print_table(out, _all(plan), marks=marks)
    styled(
        out,
        f"{plural(len(plan.kept), 'snapshot')} to stay, {len(plan.removed):,} to go"
        + (f": {size(frees)}" if plan.removed else ""),
    )
    if plan.spared:
        styled(out, ("spared", "bold yellow"), f"  {one_line(plan.spared.name)}, as no other one that stays is whole")
    broken = [entry for entry in place.entries() if isinstance(entry, Broken)]
    for entry in broken:
        styled(out, ("ignored", "bold yellow"), f"  {one_line(entry.name)}: {one_line(entry.error.problem)}")


def _confirmed(place: Place, plan: Cleaned, frees: int) -> bool:
    if not sys.stdin.isatty():
        hint = "--dry-run only tells which would go."
        raise UsageError("removing snapshots needs --yes where nobody can be asked", place=place.place, hint=hint)
    question = f"Remove {plural(len(plan.removed), 'snapshot')} ({size(frees)}) from {place.place}?"
    return click.confirm(safe(question), err=True)
