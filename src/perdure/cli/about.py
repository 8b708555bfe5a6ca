"""`perdure info`."""

from __future__ import annotations

import click

from ..protocol import Backend, Meta
from .app import DONE, Command
from .output import console, iso_time, local_time, plural, print_json, progress, size, styled
from .places import open_place, prefix_option


@click.command(cls=Command, name="info", short_help="Tell what a place is, holds and guarantees.")
@click.argument("url")
@prefix_option("Count only keys under P.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info_command(url: str, prefix: str | None, as_json: bool) -> int:
    """Tell what a place is, how much it holds, and what it guarantees."""
    with open_place(url) as backend:
        count, total, largest, oldest, newest = _measure(backend, prefix or "", as_json)
        settings, guarantees, place = backend.recorded(), backend.guarantees(), backend.place
    if as_json:
        print_json(
            {
                "place": place,
                "prefix": prefix or "",
                "values": count,
                "bytes": total,
                "largest": largest and {"key": largest.key, "size": largest.size},
                "oldest": oldest and {"key": oldest.key, "modified": iso_time(oldest.modified)},
                "newest": newest and {"key": newest.key, "modified": iso_time(newest.modified)},
                "settings": settings,
                "guarantees": guarantees._asdict(),
            }
        )
        return DONE
    out = console()
    rows = [("place", place), ("values", f"{plural(count, 'value')}, {size(total)}" + (f" under {prefix}" if prefix else ""))]
    if largest and oldest and newest:
        rows += [("largest", f"{largest.key}, {size(largest.size)}")]
        rows += [(name, f"{meta.key}, {local_time(meta.modified)}") for name, meta in (("oldest", oldest), ("newest", newest))]
    rows += settings.items() or [("codec", "not recorded")]
    rows += guarantees._asdict().items()
    for name, text in rows:
        styled(out, (f"{name:<8} ", "bold"), text)
    return DONE


def _measure(backend: Backend, prefix: str, quiet: bool) -> tuple[int, int, Meta | None, Meta | None, Meta | None]:
    count = total = 0
    largest = oldest = newest = None
    with progress("looking", None, quiet=quiet) as advance:  # to know the total would cost a second listing
        for meta in backend.scan(prefix):
            count += 1
            total += meta.size
            if largest is None or meta.size > largest.size:
                largest = meta
            if oldest is None or meta.modified < oldest.modified:
                oldest = meta
            if newest is None or meta.modified > newest.modified:
                newest = meta
            if not count % 100:
                advance(100)
    return count, total, largest, oldest, newest
