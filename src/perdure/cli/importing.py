"""`perdure import`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import click

from ..errors import InvalidKeyError, UntrustedError, UsageError
from ..mapping import PersiDict
from ..mapping.opening import open as open_dict
from ..protocol import Backend
from .app import DONE, PROBLEM, Command
from .intake import Intake, Outcome
from .keynames import RULES
from .output import Stopwatch, console, duration, line, plural, print_json, progress, safe, size, styled
from .places import open_place
from .sources import KINDS, Source, open_source

_SHOWN = 10  # keys named in a message for people


@click.command(cls=Command, name="import", short_help="Take over a store of shelve, sqlitedict or diskcache.")
@click.argument("path", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--from", "kind", type=click.Choice(KINDS), help="What SOURCE is; by default what its files show.")
@click.option("--table", metavar="NAME", help="The table of a sqlitedict file that has several.")
@click.option("--codec", help="How values are written; by default what TARGET was recorded with, else msgpack.")
@click.option(
    "--keys",
    "rule",
    type=click.Choice(RULES),
    default="strict",
    show_default=True,
    help="What to do about keys that are not legal here; see above.",
)
@click.option("--overwrite", is_flag=True, help="Replace values of TARGET that differ from those of SOURCE.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, and write nothing.")
@click.option("--trusted", is_flag=True, help="You trust whoever could write to SOURCE: its pickles may run code.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def import_command(
    path: str,
    target: str,
    kind: str | None,
    table: str | None,
    codec: str | None,
    rule: str,
    overwrite: bool,
    dry_run: bool,
    trusted: bool,
    as_json: bool,
) -> int:
    """Take over every item of a store of shelve, sqlitedict or diskcache.

    SOURCE is a shelf as shelve.open takes it, a file of sqlitedict, or a folder of diskcache (Cache, FanoutCache, Index). It
    is only read, and stays as it is, byte for byte. Its values are pickles, and to restore a pickle runs whatever code it
    names: this asks first, or wants --trusted.

    Keys that are not legal here are listed, and nothing is written. --keys replace makes them legal: a/b becomes two levels,
    1 becomes "1", a tuple levels, and any other character an underscore. --keys hash puts a hash behind a readable beginning.
    Two keys that would become one are refused.

    Values are written to TARGET in batches, read back, and compared by type and value. What is there already and equal is
    skipped, so an interrupted import is resumed by the same command. Other values in TARGET are listed and left alone,
    unless --overwrite is given. What cannot be read, or be held by the codec, is listed as well, and the rest goes on.

    Nobody should write to SOURCE or TARGET meanwhile.
    """
    clock = Stopwatch()
    with open_source(path, kind, table=table) as source:
        if not trusted and not _confirmed(source):
            click.echo("nothing was read", err=True)
            return PROBLEM
        source.trusted = True
        with open_place(target, must_exist=False) as backend:
            _require_apart(path, backend)
            intake = Intake(source, _open_dict(backend, codec), rule)
            _require_legal(intake.plan(), path, rule)
            _run(intake, overwrite, dry_run, as_json)
            outcome, notes, place = intake.outcome, source.notes, backend.place
    if as_json:
        about = {"source": path, "target": place, "kind": source.kind, "dry_run": dry_run, "notes": notes}
        verified = outcome.complete and not dry_run
        print_json({**about, "seconds": round(clock.seconds, 3), "verified": verified, **vars(outcome)})
    else:
        _tell(outcome, dry_run, clock.seconds, notes)
    return DONE if outcome.complete else PROBLEM


def _confirmed(source: Source) -> bool:
    text = f"reading a store of {source.kind} restores pickles, which run whatever code they name"
    if not sys.stdin.isatty():
        hint = "If you trust everybody who could write to it, add --trusted."
        raise UntrustedError(text, place=source.place, hint=hint)
    click.echo(f"{safe(source.place)}: {text}", err=True)
    return click.confirm("Do you trust everybody who could write to it?", err=True)


def _require_apart(path: str, backend: Backend) -> None:
    there = getattr(backend, "path", None)
    if not isinstance(there, str):
        return
    ours, theirs = os.path.realpath(path), os.path.realpath(there)
    if ours == theirs or theirs.startswith(os.path.join(ours, "")):
        raise UsageError("source and target are one, or the target lies inside the source", place=backend.place)


def _open_dict(backend: Backend, codec: str | None) -> PersiDict[Any]:
    try:
        return open_dict(backend, codec=codec)
    except UntrustedError as error:
        error.hint = f"If you trust everybody who can write there, add --codec {backend.recorded()['codec']}."
        raise


def _require_legal(problems: list[str], path: str, rule: str) -> None:
    if not problems:
        return
    _list(f"{plural(len(problems), 'key')} cannot be taken over:", problems, "")
    more = RULES[RULES.index(rule) + 1 :]
    hint = f"Nothing was written; try {' or '.join(f'--keys {other}' for other in more)}." if more else "Nothing was written."
    raise InvalidKeyError("not every key is legal here", place=path, hint=hint)


def _run(intake: Intake, overwrite: bool, dry_run: bool, quiet: bool) -> None:
    total = len(intake.todo)
    try:
        with progress("checking" if dry_run else "importing", total, quiet=quiet) as advance:
            intake.run(advance, overwrite=overwrite, rehearse=dry_run)
    except BaseException as error:
        if not dry_run and (intake.outcome.imported or isinstance(error, KeyboardInterrupt)):
            done = f"{intake.outcome.imported:,} of {plural(total, 'value')} imported"
            click.echo(f"{done}; the same command goes on from there", err=True)
        raise


def _tell(outcome: Outcome, dry_run: bool, seconds: float, notes: list[str]) -> None:
    replaced = f", {outcome.replaced:,} of them replaced" if outcome.replaced else ""
    skipped = f", {outcome.identical:,} already there" if outcome.identical else ""
    expired = f", {outcome.expired:,} left out because expired" if outcome.expired else ""
    verified = ", all read back and equal" if outcome.imported and not outcome.unequal and not dry_run else ""
    did = "would import" if dry_run else "imported"
    line(
        f"{did} {plural(outcome.imported, 'value')} ({size(outcome.bytes)}){replaced}{skipped}{expired} "
        f"in {duration(seconds)}{verified}"
    )
    for count, what in ((outcome.expiring, "an expiry time"), (outcome.tagged, "a tag")):
        if count:
            notes = [*notes, f"{plural(count, 'value')} had {what} in SOURCE, which was not taken over."]
    for note in notes:
        click.echo(safe(note), err=True)
    more = "(--json lists them all)"
    conflicts = outcome.conflicts
    _list(f"{plural(len(conflicts), 'key')} in TARGET with another value, left alone; --overwrite replaces:", conflicts, more)
    for what, keys in (("unreadable in SOURCE:", outcome.unreadable), ("the codec cannot hold:", outcome.refused)):
        _list(f"{plural(len(keys), 'value')} {what}", [f"{key}: {why}" for key, why in keys.items()], more)
    _list(f"{plural(len(outcome.unequal), 'key')} read back from TARGET as something else:", outcome.unequal, more)
    if outcome.refused:
        styled(console(stderr=True), "A new TARGET with ", ("--codec pkl", "bold"), " holds nearly everything")


def _list(head: str, lines: Iterable[str], more: str) -> None:
    lines = list(lines)
    if lines:
        click.echo(head, err=True)
    for text in lines[:_SHOWN]:
        click.echo(f"  {safe(text)}", err=True)
    if len(lines) > _SHOWN:
        click.echo(f"  ... and {len(lines) - _SHOWN:,} more {more}".rstrip(), err=True)
