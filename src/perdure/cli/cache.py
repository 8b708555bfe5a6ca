"""`perdure cache`: what cached functions keep in a place and what it is good for, and removing some or all of that."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from time import time
from typing import Any, Final, NamedTuple, TypeVar

import click

from ..codecs.entry import read_entry
from ..durations import seconds
from ..errors import IntegrityError, NotFoundError, UsageError
from ..protocol import Backend, ETag, Meta
from ..sizes import size_in_bytes
from .app import DONE, PROBLEM, Command
from .cache_contents import (
    Kind,
    Others,
    Window,
    bare_name,
    is_meant,
    kind_of,
    print_columns,
    print_contents,
    spell_contents,
    survey,
)
from .listing import Column
from .output import console, line, plural, print_json, progress, safe, size, styled
from .places import BATCH_KEYS, batches, open_place, prefix_option, read_all
from .wording import program

F = TypeVar("F", bound=Callable[..., Any])
_NAMED: Final = 10  # functions, as examples
_DAYS: Final = 30  # for which caches keep their statistics
_YOUNG: Final = 600.0
"""Seconds. Who computes renews three times in a lease; what was not written for so long is nobody's claim by now, or of a lease
longer than half an hour: to remove that costs a result that is not stored, and to read all old values to find it costs more."""


class _Cache(Command):
    """A command with two others behind it, whose names stand where the URL does otherwise."""

    def make_context(self, info_name: Any, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        commands: dict[str, click.Command] = {"prune": prune_command, "clear": clear_command}
        if args and args[0] in commands:
            return commands[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


_prefix = prefix_option("Where the values are below P, as of perdure.open(URL).get_subdict(P).")


def _removal(command: F) -> F:
    """What `prune` and `clear` have in common."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask before removing."),
        click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be removed."),
        _prefix,
        click.option("--function", metavar="NAME[=VERSION]", help="Only of this function, in all versions or in one."),
        click.argument("url"),
    ):
        command = option(command)
    return command


@click.command(cls=_Cache, name="cache", short_help="Show, prune or clear what cached functions keep.")
@click.argument("url")
@_prefix
@click.option("--days", type=click.IntRange(1, _DAYS), metavar="N", help="Look back at N days (of UTC) instead of 24 hours.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def cache_command(url: str, prefix: str | None, days: int | None, as_json: bool) -> int:
    """Show what functions made by perdure.cached keep in a place, and how often that was of use.

    One row for each function and version: how many values, when the oldest and the newest was written, and when one was last
    used, where the place remembers that. Then the calls that were counted by all processes in the last 24 hours: hits, misses,
    the time that computing the hits had taken, and bars of the hit rate over time, where the full height is 100 %. Processes
    tell what they count once a minute and when they end.

    No value is read. What else is in the place is only counted.

    perdure cache prune URL removes old values, and perdure cache clear URL all of them: see their --help. A folder of such a
    name is ./prune.
    """
    with open_place(url) as backend:
        contents = survey(backend, prefix or "", Window.of(days), quiet=as_json)
        place = backend.place
    if as_json:
        print_json(spell_contents(contents, place, prefix or ""))
        return DONE
    if contents.functions:
        print_contents(console(), contents)
    else:
        _tell_of_others(contents.others, url, prefix or "")
    return DONE


def _tell_of_others(others: Others, url: str, prefix: str) -> None:
    """Say what is there instead of values."""
    look = f"{program()} ls {shlex.quote(url)}" + (f" --prefix {prefix}" if prefix else "")
    there = f"but with {others.below()}" if others.elsewhere else f"only {plural(others.number, 'other item')}: {look}"
    click.echo(f"no values of cached functions here, {there if others.number else 'nor anything else'}", err=True)


# --------------------------------------------------------------------------------------------------------- what is removed


class _Item(NamedTuple):
    """A value, a claim, or a record of statistics."""

    key: str
    function: str
    size: int
    used: float
    written: float


@dataclass
class _Listing:
    """What a place holds of the functions that are meant: values, claims without one, statistics."""

    values: list[_Item] = field(default_factory=list)
    claims: list[_Item] = field(default_factory=list)
    records: list[_Item] = field(default_factory=list)


@dataclass
class _Plan:
    """What goes.

    Attributes:
        expired: Values that are too old.
        evicted: Values beyond the limits.
        claims: What processes that were killed left while they computed.
        records: Old statistics.
        stay: The values that stay.
    """

    expired: Sequence[_Item] = ()
    evicted: Sequence[_Item] = ()
    claims: Sequence[_Item] = ()
    records: Sequence[_Item] = ()
    stay: Sequence[_Item] = ()

    @property
    def values(self) -> list[_Item]:
        """The values that go."""
        return [*self.expired, *self.evicted]

    @property
    def keys(self) -> list[str]:
        """All that goes."""
        return [item.key for item in (*self.expired, *self.evicted, *self.claims, *self.records)]


def _list(backend: Backend, url: str, prefix: str, wanted: str | None, quiet: bool, *, times: bool = True) -> _Listing:
    """List what there is of the functions that are meant; where there are no values at all, say so.

    Raises:
        NotFoundError: None is.
    """
    listing, cut, names, others = _Listing(), len(prefix), set[str](), Others()
    with progress("looking", None, quiet=quiet) as advance:
        written = dict(backend.times(prefix)) if times and backend.remembers_use else {}
        for number, use in enumerate(backend.uses(prefix), 1):
            kind, name = kind_of(use.key[cut:], use.size)
            if kind is Kind.OTHER:
                others.note(prefix, use.key[cut:])
                continue
            names.add(name)
            if wanted is None or is_meant(name, wanted):
                item = _Item(use.key, name, use.size, use.used, written.get(use.key, use.used))
                where = {Kind.VALUE: listing.values, Kind.CLAIM: listing.claims, Kind.RECORD: listing.records}
                where[kind].append(item)
            if not number % 100:
                advance(100)
    if wanted is not None and not any(is_meant(name, wanted) for name in names):
        raise _unknown(wanted, names, backend.place)
    if not names and not quiet:
        _tell_of_others(others, url, prefix)
    return listing


def _unknown(wanted: str, functions: set[str], place: str) -> NotFoundError:
    name = bare_name(wanted)
    versions = sorted(function for function in functions if bare_name(function) == name)
    known = sorted(map(bare_name, functions))
    close = [bare for bare in known if bare.endswith(f".{name}")] or get_close_matches(name, known, 1, 0.6)
    hint = f"Did you mean {close[0]!r}?" if close else None
    if versions or not close:
        hint = f"There are: {', '.join((versions or known)[:_NAMED])}." if known else None
    return NotFoundError(f"there is no cached function {wanted!r} here", place=place, hint=hint)


def _plan(backend: Backend, listing: _Listing, ttl: float | None, max_bytes: int | None, max_items: int | None) -> _Plan:
    """What goes: what is too old, then what was least recently used, and what nobody needs; nothing that is being computed."""
    now = time()
    old_claims = [item for item in listing.claims if now - item.written >= _YOUNG]
    live = _live(backend, old_claims, now)
    claims = [item for item in old_claims if item.key not in live]
    first_day = str(datetime.now(UTC).date() - timedelta(days=_DAYS))
    records = [item for item in listing.records if item.key.rpartition("/")[2] < first_day]
    values = sorted(listing.values, key=lambda item: (item.used, item.key))
    asked, spared = set[str](), set[str]()
    while True:
        expired = [i for i in values if ttl is not None and now - i.written > ttl and i.key not in spared]
        gone = {item.key for item in expired}
        evicted = _beyond([item for item in values if item.key not in gone], max_bytes, max_items, spared)
        # A value may be kept in somebody's claim while a new one is computed. Only reading it tells.
        young = [i for i in (*expired, *evicted) if now - i.written < _YOUNG and i.key not in asked]
        if not young:
            gone |= {item.key for item in evicted}
            return _Plan(expired, evicted, claims, records, [item for item in values if item.key not in gone])
        asked |= {item.key for item in young}
        spared |= _live(backend, young, now)


def _beyond(values: Sequence[_Item], max_bytes: int | None, max_items: int | None, spared: set[str]) -> list[_Item]:
    """Of values in the order of use, those to evict until the others are within the limits."""
    surplus_bytes = 0 if max_bytes is None else sum(item.size for item in values) - max_bytes
    surplus_items = 0 if max_items is None else len(values) - max_items
    evicted = []
    for item in values:
        if surplus_bytes <= 0 and surplus_items <= 0:
            break
        if item.key not in spared:
            evicted.append(item)
            surplus_bytes -= item.size
            surplus_items -= 1
    return evicted


def _live(backend: Backend, items: Sequence[_Item], now: float) -> set[str]:
    """The keys of those that somebody is computing, as far as can be told."""
    live: set[str] = set()
    for batch in batches(Meta(item.key, ETag(""), item.size, item.written) for item in items):
        blobs, _ = read_all(backend, [meta.key for meta in batch])  # what cannot be read is nobody's claim
        for key, blob in blobs.items():
            with suppress(IntegrityError):
                entry = read_entry(blob.data)
                if entry is not None and entry.token and now - blob.modified < entry.lease:
                    live.add(key)
    return live


@click.command(cls=Command, name="prune", short_help="Remove old values of cached functions.")
@click.option("--ttl", metavar="TIME", help="Remove values written longer ago, such as 7d or 12h.")
@click.option("--max-bytes", metavar="SIZE", help="Remove the least recently used beyond this size, such as 10GB.")
@click.option("--max-items", type=click.IntRange(min=1), metavar="N", help="The same for the number of values.")
@_removal
def prune_command(
    url: str,
    ttl: str | None,
    max_bytes: str | None,
    max_items: int | None,
    function: str | None,
    prefix: str | None,
    **how: bool,
) -> int:
    """Remove values of cached functions: those older than --ttl, then the least recently used beyond the limits.

    Where a place does not remember use (S3), the oldest go instead. The limits are for all functions together, or with
    --function for that one. What is being computed stays, what killed processes left while computing goes, and so do
    statistics older than 30 days. Other things in the place are never touched.

    Exit code 0; 1 if the answer was no, or there is no such function.
    """
    all_of_it = f"{program()} cache clear URL removes all values."
    if ttl is None and max_bytes is None and max_items is None:
        hint = f"Give --ttl 7d, --max-bytes 10GB or --max-items 1000, or several of them. {all_of_it}"
        raise UsageError("nothing says what to remove", hint=hint)
    longest = None if ttl is None else seconds(ttl, "--ttl")
    if longest == 0:
        raise UsageError("--ttl is more than 0", hint=all_of_it)
    largest = None if max_bytes is None else size_in_bytes(max_bytes, "--max-bytes")
    with open_place(url) as backend:
        listing = _list(backend, url, prefix or "", function, how["as_json"])
        limits = [size(largest)] if largest is not None else []
        limits += [plural(max_items, "value")] if max_items is not None else []
        first = "least recently used" if backend.remembers_use else "oldest, as this place does not remember use,"
        reasons = f"older than {ttl}", f"the {first} beyond {' and '.join(limits)}"
        return _carry_out(backend, _plan(backend, listing, longest, largest, max_items), reasons, **how)


@click.command(cls=Command, name="clear", short_help="Remove all values of cached functions.")
@_removal
def clear_command(url: str, function: str | None, prefix: str | None, **how: bool) -> int:
    """Remove all values of cached functions, or with --function of one, after asking.

    What is being computed just now is not stored any more. Other things in the place are not touched, and statistics stay for
    their 30 days. Processes with nearer copies (local=...) may answer those for up to their recheck.

    Exit code 0; 1 if the answer was no, or there is no such function.
    """
    with open_place(url) as backend:
        listing = _list(backend, url, prefix or "", function, how["as_json"], times=False)
        return _carry_out(backend, _Plan(evicted=listing.values, claims=listing.claims), None, **how)


def _carry_out(
    backend: Backend, plan: _Plan, reasons: tuple[str, str] | None, *, dry_run: bool, yes: bool, as_json: bool
) -> int:
    """Tell what goes, and why (too old, beyond the limits; None where all go), ask, and remove it."""
    keys = plan.keys
    what = _spell(plan, of_all=reasons is None)
    if plan.values and not as_json:
        _show(plan, reasons)
    agreed = dry_run or yes or not keys or _confirmed(f"Remove {what} from {backend.place}?", backend.place)
    if keys and agreed and not dry_run:
        with progress("removing", len(keys), quiet=as_json) as advance:
            for start in range(0, len(keys), BATCH_KEYS):
                backend.delete_many(keys[start : start + BATCH_KEYS])
                advance(BATCH_KEYS)
    if not agreed:
        plan = _Plan(stay=[*plan.values, *plan.stay])
        click.echo("nothing was removed", err=True)
    if as_json:
        print_json(_outcome(plan, backend.place, dry_run=dry_run, of_all=reasons is None))
    elif not keys:
        line(f"nothing to remove: {_values(plan.stay)} stay" if plan.stay else "nothing to remove")
    elif agreed:
        line(f"{'would remove' if dry_run else 'removed'} {what}")
    return DONE if agreed else PROBLEM


def _spell(plan: _Plan, *, of_all: bool) -> str:
    """Such as `3 values (1.5 MB) and 1 unfinished computation`."""
    parts = [_values(plan.values)] if plan.values else []
    if plan.claims:
        parts.append(plural(len(plan.claims), "unfinished computation") + ("" if of_all else " of killed processes"))
    if plan.records:
        parts.append(f"{plural(len(plan.records), 'day')} of statistics")
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _values(items: Sequence[_Item]) -> str:
    return f"{plural(len(items), 'value')} ({size(_sum(items)['bytes'])})"


def _show(plan: _Plan, reasons: tuple[str, str] | None) -> None:
    """Print how much goes of each function, and why."""
    names = sorted(_by_function(plan.values))
    columns = [Column("function", [*names, "total"], 0, left=True)]
    for heading, items in (("go", plan.values), ("stay", plan.stay)):
        if heading == "go" or reasons is not None:
            groups = _by_function(items)
            sums = [*(_sum(groups.get(name, [])) for name in names), _sum(items)]
            columns.append(Column(heading, [f"{one['values']:,}" for one in sums], 1))
            columns.append(Column("size", [size(one["bytes"]) for one in sums], 2))
    out = console()
    print_columns(out, columns, total=True)
    for items, reason in zip((plan.expired, plan.evicted), reasons or (), strict=False):
        if items:
            styled(out, f"{_values(items)}: {reason}")


def _sum(items: Sequence[_Item]) -> dict[str, int]:
    return {"values": len(items), "bytes": sum(item.size for item in items)}


def _by_function(items: Iterable[_Item]) -> dict[str, list[_Item]]:
    groups: dict[str, list[_Item]] = {}
    for item in items:
        groups.setdefault(item.function, []).append(item)
    return groups


def _confirmed(question: str, place: str) -> bool:
    if not sys.stdin.isatty():
        problem = "removing values needs --yes where nobody can be asked"
        raise UsageError(problem, place=place, hint="--dry-run only tells which would go.")
    return click.confirm(safe(question), err=True)


def _outcome(plan: _Plan, place: str, *, dry_run: bool, of_all: bool) -> dict[str, Any]:
    """For JSON: what was done."""
    gone, stay = _by_function(plan.values), _by_function(plan.stay)
    return {
        "place": place,
        "dry_run": dry_run,
        "removed": _sum(plan.values),
        **({} if of_all else {"expired": _sum(plan.expired), "evicted": _sum(plan.evicted)}),
        "unfinished": len(plan.claims),
        "statistics": len(plan.records),
        "stay": _sum(plan.stay),
        "functions": [
            {"function": name, "removed": _sum(gone.get(name, [])), "stay": _sum(stay.get(name, []))}
            for name in sorted(gone.keys() | stay.keys())
        ],
    }
