"""`perdure cp`."""

from __future__ import annotations

import click

from .app import DONE, PROBLEM, Command
from .output import Stopwatch, console, duration, line, plural, print_json, progress, safe, size, styled
from .places import open_place, prefix_option
from .transfer import Outcome, Transfer
from .wording import program

_SHOWN = 20  # keys named in a message for people


@click.command(cls=Command, name="cp", short_help="Copy a whole place to another one, and compare.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@prefix_option("Copy only keys under P.")
@click.option("--overwrite", is_flag=True, help="Replace values of DST that differ from those of SRC.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def cp_command(source: str, target: str, prefix: str | None, overwrite: bool, as_json: bool) -> int:
    """Copy all values of SRC to DST, between any two backends.

    The bytes are copied as they are, together with the recorded codec, then read back and compared. Values that are in
    DST already and equal are skipped, so an interrupted copy is resumed by the same command. If DST holds other
    values under some of the keys, these are listed and nothing is copied, unless --overwrite is given. A value that is
    damaged already arrives with its damage where it can be read at all; `perdure doctor` finds those.

    Nobody should write to DST meanwhile.
    """
    clock = Stopwatch()
    with open_place(source) as here, open_place(target, must_exist=False) as there:
        transfer = Transfer(here, there, prefix or "")
        with progress("comparing", transfer.look(), in_bytes=True, quiet=as_json) as advance:
            transfer.compare(advance)
        todo = transfer.to_copy(overwrite)
        refused = bool(transfer.outcome.conflicts) and not overwrite
        if not refused:
            try:
                with progress("copying", sum(meta.size for meta in todo), in_bytes=True, quiet=as_json) as advance:
                    transfer.copy(todo, advance)
            except BaseException as error:
                if transfer.outcome.copied or isinstance(error, KeyboardInterrupt):
                    done = f"{transfer.outcome.copied:,} of {plural(len(todo), 'value')} copied"
                    click.echo(f"{done}; the same command goes on from there", err=True)
                raise
        outcome, seconds = transfer.outcome, clock.seconds
    if as_json:
        places = {"source": here.place, "target": there.place}
        verified = outcome.complete and not refused
        print_json({**places, "seconds": round(seconds, 3), "verified": verified, **vars(outcome)})
    else:
        _tell(outcome, refused, seconds)
    return DONE if outcome.complete and not refused else PROBLEM


def _tell(outcome: Outcome, refused: bool, seconds: float) -> None:
    complain = console(stderr=True)
    if refused:
        _list("in DST with another value", outcome.conflicts)
        styled(complain, ("nothing was copied", "bold"), "; --overwrite replaces these, --prefix leaves them out")
        return
    rate = f", {size(outcome.bytes / seconds)}/s" if outcome.bytes > 1_000_000 else ""
    skipped = f", {outcome.identical:,} already there" if outcome.identical else ""
    replaced = f", {outcome.replaced:,} of them replaced" if outcome.replaced else ""
    gone = f", {len(outcome.vanished):,} deleted meanwhile" if outcome.vanished else ""
    verified = ", all read back and equal" if outcome.copied and not outcome.unequal else ""
    line(
        f"copied {plural(outcome.copied, 'value')} ({size(outcome.bytes)}){replaced}{skipped}{gone} "
        f"in {duration(seconds)}{rate}{verified}"
    )
    _list("unreadable in SRC", list(outcome.unreadable))
    _list("read back from DST as something else, or not at all", outcome.unequal)
    if outcome.unreadable:
        styled(complain, f"`{program()} doctor SRC` says more, and sets unreadable values aside with --repair")


def _list(what: str, keys: list[str]) -> None:
    if not keys:
        return
    click.echo(f"{plural(len(keys), 'key')} {what}:", err=True)
    for key in keys[:_SHOWN]:
        click.echo(f"  {safe(key)}", err=True)
    if len(keys) > _SHOWN:
        click.echo(f"  ... and {len(keys) - _SHOWN:,} more (--json lists them all)", err=True)
