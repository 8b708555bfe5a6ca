"""Snapshots as a table, and their numbers as lines of small bars."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..snapshots.keep import lacking, numbers_in
from ..snapshots.manifest import Snapshot
from .output import local_time, one_line, size, styled
from .sparkline import sparkline

if TYPE_CHECKING:
    from rich.console import Console

_TEXT = 16  # characters of a text in the table on a terminal
_MARK = 32  # and at most so much room is left for the marks

Mark: TypeAlias = tuple[str, str]
"""A word about a snapshot, and the style it has on a terminal."""


class Column(NamedTuple):
    """A column, and its rank: where there is no room for all, those of low rank stay."""

    heading: str
    cells: list[str]
    rank: int
    left: bool = False

    def width(self) -> int:
        from rich.cells import cell_len

        return max(map(cell_len, (self.heading, *self.cells)))


def print_table(
    out: Console,
    snapshots: Sequence[Snapshot],
    *,
    metrics: Sequence[str] = (),
    new: Mapping[str, int] | None = None,
    marks: Mapping[str, Mark] | None = None,
) -> None:
    """Print snapshots, one a line. In a pipe everything, on a terminal what it has room for.

    Args:
        out: Where.
        snapshots: Which.
        metrics: Names of metadata that come before others.
        new: By name, the bytes that are new in each.
        marks: By name, a word about each, for the last column.
    """
    if not snapshots:
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    now = datetime.now(UTC)
    columns = [
        Column("#", [str(s.sequence) for s in snapshots], 0),
        Column("saved", [local_time(s.saved.timestamp()) for s in snapshots], 5, left=True),
        Column("age", [brief_age((now - s.saved).total_seconds()) for s in snapshots], 3),
        Column("size", [size(s.size) for s in snapshots], 1),
    ]
    if new is not None:
        columns.append(Column("new", [size(new[s.name]) for s in snapshots], 4))
    columns += _metadata(snapshots, metrics, exact=width is None)
    columns.append(Column("name", [one_line(s.name) for s in snapshots], 0, left=True))
    if width is not None:
        columns = fitting(columns, width - (2 + min(_MARK, max(len(word) for word, _ in marks.values())) if marks else 0))
    widths = [column.width() for column in columns]
    if not marks:
        widths[-1] = 0  # nothing follows
    heading = spell_row([column.heading for column in columns], columns, widths)
    styled(out, (heading.rstrip(), "bold"))
    for number, snapshot in enumerate(snapshots):
        row = spell_row([column.cells[number] for column in columns], columns, widths)
        styled(out, row, *(("  ", marks[snapshot.name]) if marks else ()))


def spell_row(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    """One line of a table."""
    from rich.cells import cell_len

    padded = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        space = " " * (width - cell_len(cell))
        padded.append(cell + space if column.left else space + cell)
    return "  ".join(padded)


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    room = width + 2
    taken = set()
    for number, column in sorted(enumerate(columns), key=lambda pair: (pair[1].rank, pair[0])):
        need = column.width() + 2
        if column.rank == 0 or need <= room:
            room -= need
            taken.add(number)
    return [column for number, column in enumerate(columns) if number in taken]


def _metadata(snapshots: Sequence[Snapshot], metrics: Sequence[str], *, exact: bool) -> list[Column]:
    """A column for each metadata that is no list or dict; `step` first, then those that were asked for."""
    names = dict.fromkeys(name for snapshot in snapshots for name in snapshot.metadata)
    columns = []
    for name in sorted(names, key=lambda name: (name != "step", name not in metrics)):
        values = [snapshot.metadata.get(name) for snapshot in snapshots]
        cells = [_cell(value, exact=exact) for value in values]
        if any(cells):
            rank = 2 if name == "step" or name in metrics else 6
            left = any(isinstance(value, str) for value in values)
            columns.append(Column(one_line(name), cells, rank, left))
    return columns


def _cell(value: object, *, exact: bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if exact else f"{value:.4g}"
    if not isinstance(value, (int, str)):
        return ""
    text = one_line(str(value))
    return text if exact or len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."


def brief_age(seconds: float) -> str:
    if seconds < 0:
        return "ahead"  # of our clock
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 172800 else f"{seconds // 86400:,.0f} d"


def metrics_of(snapshots: Sequence[Snapshot], wanted: Sequence[str]) -> list[str]:
    """The numbers to draw: those asked for, else the loss, or what else is the only one but the step.

    Raises:
        UsageError: No snapshot has what was asked for.
    """
    known = numbers_in(snapshots)
    lacks = [name for name in wanted if name not in known]
    if snapshots and lacks:
        raise lacking(lacks, snapshots)
    if wanted:
        return list(dict.fromkeys(wanted))
    others = [name for name in known if name != "step"]
    return ["loss"] if "loss" in others else others if len(others) == 1 else []


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def draw(out: Console, snapshots: Sequence[Snapshot], metrics: Sequence[str]) -> None:
    rows: list[tuple[str, list[float | None], Any]] = [("size", [snapshot.size for snapshot in snapshots], size)]
    for name in metrics:
        values = [_number(snapshot.metadata.get(name)) for snapshot in snapshots]
        rows.append((_cell(name, exact=False), values, lambda value: _cell(value, exact=False)))
    indent = max(len(name) for name, _, _ in rows)
    try:
        "▁█".encode(sys.stdout.encoding or "ascii")
        plain = False
    except (UnicodeEncodeError, LookupError):
        plain = True
    for name, values, spell in rows:
        known = [value for value in values if value is not None and value == value]
        span = ""
        if known:
            low, high = spell(min(known)), spell(max(known))
            span = f"{low} .. {high}" if low != high else low
            if low == high:  # the bars would make mountains of what nobody can see in the numbers
                values = [known[0] if value in known else None for value in values]
        width = max(8, shutil.get_terminal_size().columns - indent - len(span) - 4)
        styled(out, (f"{one_line(name):<{indent}}  ", "bold"), sparkline(values, width, ascii=plain), f"  {span}")
