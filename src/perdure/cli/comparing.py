"""`perdure diff`: what changed from one snapshot to another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ..errors import SnapshotNotFoundError
from ..snapshots.comparison import Change, Comparison, ComponentComparison, PartComparison, compare
from ..snapshots.manifest import Snapshot
from ..snapshots.place import Place, Reading
from .app import DONE, PROBLEM, Command
from .output import Advance, console, local_time, one_line, plural, print_json, progress, size, styled
from .snapshots import brief, complete, open_snapshots, pick

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20  # changes of one part, for people
_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow"), "same": ("=", "dim")}


@click.command(cls=Command, name="diff", short_help="Tell what changed between two snapshots.")
@click.argument("url")
@click.argument("old", default="latest", metavar="[SNAP1]")
@click.argument("new", required=False, metavar="[SNAP2]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def diff_command(url: str, old: str, new: str | None, as_json: bool) -> int:
    """Tell what changed from snapshot SNAP1 to SNAP2: components, their parts, values in them, and metadata.

    A snapshot is given by its name, number or path, or as latest or previous. One alone (without any, the latest) is compared
    with the one before it.

    Parts with the same digests are not read. Of the others, JSON, arrays and what perdure saved are compared value by value. No
    code in them is ever run; what cannot be read without that is only said to be different.

    Exit code 0 if both are the same in state and metadata, 1 if not.
    """
    with open_snapshots(url) as place:
        if new is None:
            after = pick(place, old)
            before = _before(place, after)
        else:
            before, after = pick(place, old), pick(place, new)
        told = _compare(place, before, after, as_json)
    equal = told.same and not told.metadata
    if as_json:
        print_json({"place": place.place, "equal": equal, **told.as_dict(), "old": brief(before), "new": brief(after)})
    else:
        _tell(told, before, after, equal)
    return DONE if equal else PROBLEM


def _before(place: Place, snapshot: Snapshot) -> Snapshot:
    earlier = [one for one in complete(place) if one.sequence < snapshot.sequence]
    if not earlier:
        hint = "Give two snapshots; perdure snapshots lists those there are."
        raise SnapshotNotFoundError("there is no snapshot before this one", key=snapshot.name, place=place.place, hint=hint)
    return earlier[-1]


def _compare(place: Place, old: Snapshot, new: Snapshot, quiet: bool) -> Comparison:
    changed = [
        (part, new.parts[name])
        for name, part in old.parts.items()
        if name in new.parts and new.parts[name].chunks != part.chunks
    ]
    reading = place.read(old)
    try:
        other = place.read(new)
        try:
            with progress("comparing", sum(a.size + b.size for a, b in changed), in_bytes=True, quiet=quiet) as advance:
                return compare(old, new, _reader(reading, old, advance), _reader(other, new, advance))
        finally:
            other.close()
    finally:
        reading.close()


def _reader(reading: Reading, snapshot: Snapshot, advance: Advance) -> Callable[[str], memoryview]:
    return lambda name: reading.fetch([snapshot.parts[name]], advance)[name]


def _tell(told: Comparison, old: Snapshot, new: Snapshot, equal: bool) -> None:
    out = console()
    for sign, style, snapshot in (("-", "bold red", old), ("+", "bold green", new)):
        saved = local_time(snapshot.saved.timestamp())
        styled(out, (sign * 3, style), f" {snapshot.sequence}  {one_line(snapshot.name)}  {saved}")
    if told.metadata:
        styled(out, ("metadata", "bold"))
        _tell_changes(out, told.metadata, told.metadata_omitted)
    for component in told.components:
        if component.kind != "same":
            _tell_component(out, component)
    same = sum(component.kind == "same" for component in told.components)
    if equal:
        styled(out, "no difference")
    elif same:
        styled(out, f"{plural(same, 'component')} unchanged")


def _tell_component(out: Console, component: ComponentComparison) -> None:
    kinds = [kind for kind in (component.old_kind, component.new_kind) if kind]
    kind = f" ({' -> '.join(dict.fromkeys(kinds))})" if component.name else ""
    styled(out, _SIGNS[component.kind], " ", (one_line(component.name) or "files of no component", "bold"), kind)
    for part in component.parts:
        if part.kind != "same":
            _tell_part(out, part)
    same = sum(part.kind == "same" for part in component.parts)
    if same:
        styled(out, f"    {plural(same, 'part')} unchanged")


def _tell_part(out: Console, part: PartComparison) -> None:
    sizes = [size(length) for length in (part.old_size, part.new_size) if length is not None]
    styled(out, "  ", _SIGNS[part.kind], f" {one_line(part.name)}  {' -> '.join(dict.fromkeys(sizes))}")
    if part.reason:
        styled(out, f"      {one_line(part.reason)}")
    _tell_changes(out, part.changes, part.omitted, "      ")


def _tell_changes(out: Console, changes: tuple[Change, ...], omitted: int, indent: str = "  ") -> None:
    for change in changes[:_SHOWN]:
        styled(out, indent, _SIGNS[change.kind], f" {one_line(change.path)}: {_spell_change(change)}")
    omitted += len(changes[_SHOWN:])
    if omitted:
        more = "" if sys.stdout.isatty() and len(changes) <= _SHOWN else " (--json lists more of them)"
        styled(out, f"{indent}... and {omitted:,} more{more}")


def _spell_change(change: Change) -> str:
    if change.differing is not None:
        most = "" if change.largest is None else f", by at most {change.largest:.4g}"
        return f"{_spell(change.new)}, {plural(change.differing, 'element')} different{most}"
    if change.kind == "changed":
        return f"{_spell(change.old)} -> {_spell(change.new)}"
    return _spell(change.new if change.kind == "added" else change.old)


def _spell(value: object) -> str:
    return one_line(repr(value) if isinstance(value, str) else str(value))
