"""The page of results in the manual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from .harness import Row

_ABOUT = """\
# Benchmarks

How fast this is beside the same system calls and statements written by hand in Python (*floor*), and beside other libraries.
Written by `python -m benchmarks --write-docs`; measure your own machine with `nox -s bench`, or `nox -s bench -- file --quick`.

How it is measured: all contestants run in one process and take turns, a short batch each, in an order that rotates. A line
shows the median over these rounds, the quartiles, and the ratio to the first line of its table: the median of the ratios
within each round. The machine below is a virtual one with two cores, whose speed changes by half from one minute to the next;
that is why times of different tables cannot be compared, while a ratio comes from moments next to each other and varies by a
tenth. The floor checks nothing, locks nothing and notices no damage; the goals say how much all that may cost. A goal that was
not reached says so.

What is behind those that were not: a miss is confirmed by the one call that tells "not there" from "cannot be read", whose
exception alone costs as much as two `access`; nearly half of what a new process takes over `python -c pass` goes into the
standard library's `typing` and `re`; and of eight processes that increment one number those that lose look again before they
try again, none of them waits long, and a single one already takes one and a half times its floor. A key of several levels
costs a folder one look more for each, so that a planted link is not followed.

`set_many` saves syncs, so its gain depends on what a sync costs beside the rest. The disk here is an ext4 without a journal,
mounted with `discard`. There a sync is cheap (two of them in 0.5 ms), replacing a file waits for the discard of its old blocks,
and a new file is looked for past all that were freed in the last seconds: the floor, with two syncs for 1000 values, is only
twice as fast as single writes. On an ext4 as `mkfs.ext4` makes it, in a file of this disk, 1000 values in a folder took 134 to
162 µs each by `set_many` and 770 to 1085 µs by single writes, 5.3 to 8.0 times as much. In SQLite `set_many` costs what the
same statements by hand do (18 to 31 times less than single writes on that ext4, 13 to 17 times here).
"""


def write_page(path: Path, facts: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Write the page at `path`."""
    lines = [_ABOUT, "```text", *(f"{name + ':':<21}{fact}" for name, fact in facts.items()), "```", ""]
    lines += ["## Goals", "", *_goals(rows), ""]
    for place, group in groupby(rows, key=lambda row: row.place):
        lines += [f"## {place}", "", "```text", "\n\n".join(row.text() for row in group), "```", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def _goals(rows: Sequence[Row]) -> list[str]:
    lines = ["| place | workload | who | goal | measured | |", "|---|---|---|---|---|---|"]
    for row in rows:
        for verdict in row.verdicts:
            state = "reached" if verdict.reached else "**not reached**"
            measured = f"{verdict.measured:.3g}"
            lines.append(f"| {row.place} | {row.workload} | {verdict.who} | {verdict.goal} | {measured} | {state} |")
    return lines
