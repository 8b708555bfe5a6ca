"""What a place of cached functions holds and what it was good for: by one listing, and the statistics kept there."""

from __future__ import annotations

import math
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..caching.opening import is_entry
from ..caching.recording import KEPT, read_hours
from ..codecs.entry import START
from ..protocol import Backend
from .listing import Column, brief_age, fitting, spell_row
from .output import iso_time, plural, progress, size, styled
from .sparkline import sparkline

if TYPE_CHECKING:
    from rich.console import Console

CLAIM_SIZE: Final = START + 4
"""The size of an entry without a value, which only a claim is: so no claim needs to be read to tell it from values."""

_SKEW: Final = 60.0  # seconds that a clock may be ahead of ours without a word about it
_NARROWEST: Final = 8  # characters of a chart
_PREFIXES: Final = 3  # that are named
_MOST: Final = 1e18  # of what a record says; more was written by nobody who counts
_TAIL: Final = re.compile(r"~[0-9a-f]{16}\Z")  # of names that are not exact

_record = re.compile(r"stats\(\)/([^/]+)/(\d{4}-\d\d-\d\d)\Z").match


class Kind(Enum):
    """What a key is of."""

    VALUE = "the value of a call"
    CLAIM = "the claim of somebody who computes one"
    RECORD = "what was counted in a day"
    OTHER = "something else"


def kind_of(key: str, size: int) -> tuple[Kind, str]:
    """What a key is of, without its prefix, and the function it belongs to (`""` for other things)."""
    if is_entry(key):
        return Kind.CLAIM if size == CLAIM_SIZE else Kind.VALUE, key.rpartition("/")[0]
    record = _record(key)
    return (Kind.RECORD, record[1]) if record else (Kind.OTHER, "")


def is_meant(function: str, wanted: str) -> bool:
    """Whether somebody who types `m.f`, `m.f()`, `m.f=2` or `m.f()=2` means this function; without a version, all versions."""
    whole = _plain(function)
    return _plain(wanted) in (whole, _TAIL.sub("", whole), bare_name(function))


def bare_name(function: str) -> str:
    """The name of a function as somebody types it who means all its versions."""
    return _TAIL.sub("", _plain(function)).partition("=")[0]


def _plain(function: str) -> str:
    return function.replace("()", "", 1)


class Window(NamedTuple):
    """The time that is looked back at, in hours or days of UTC up to the current one.

    Attributes:
        label: Such as `"last 24 h"`.
        start: When it begins.
        step: An hour or a day.
        number: How many of these.
    """

    label: str
    start: datetime
    step: timedelta
    number: int

    @classmethod
    def of(cls, days: int | None) -> Window:
        """The last 24 hours, or so many days."""
        now = datetime.now(UTC)
        if days is None:
            hour = now.replace(minute=0, second=0, microsecond=0)
            return cls("last 24 h", hour - timedelta(hours=23), timedelta(hours=1), 24)
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        label = "today (UTC)" if days == 1 else f"last {days} days"
        return cls(label, day - timedelta(days=days - 1), timedelta(days=1), days)


@dataclass
class Function:
    """What there is of a function in one version. Times are in seconds since the epoch, and infinite where nothing is."""

    name: str
    values: int = 0
    size: int = 0
    claims: int = 0
    oldest: float = math.inf
    newest: float = -math.inf
    used: float = -math.inf
    series: list[dict[str, float]] = field(default_factory=list)
    """What was counted, step by step of the window."""

    def count(self, name: str) -> float:
        """What was counted in the whole window."""
        return sum(step.get(name, 0) for step in self.series)

    @property
    def was_called(self) -> bool:
        """Whether anything was counted."""
        return any(self.series)


@dataclass
class Others:
    """What is in a place besides.

    Attributes:
        number: How many items that is.
        elsewhere: Prefixes under which some of them are values of cached functions.
    """

    number: int = 0
    elsewhere: set[str] = field(default_factory=set)

    def note(self, prefix: str, key: str) -> None:
        """Count the item that has this key below a prefix."""
        self.number += 1
        above, _, last = key.rpartition("/")
        above, _, function = above.rpartition("/")
        if above and len(self.elsewhere) < _PREFIXES and is_entry(f"{function}/{last}"):
            self.elsewhere.add(prefix + above)

    def below(self) -> str:
        """How to look at those."""
        return " and ".join(f"--prefix {prefix}" for prefix in sorted(self.elsewhere))


@dataclass
class Contents:
    """What a place holds.

    Attributes:
        window: The time that was looked back at.
        remembers: Whether the place knows when values were last used.
        functions: By name, each with something in the place or in the window.
        others: What is there besides.
    """

    window: Window
    remembers: bool
    functions: dict[str, Function] = field(default_factory=dict)
    others: Others = field(default_factory=Others)

    def function(self, name: str) -> Function:
        """The one of this name, which is added where it is new."""
        if name not in self.functions:
            self.functions[name] = Function(name, series=[{} for _ in range(self.window.number)])
        return self.functions[name]

    def in_order(self) -> list[Function]:
        """The functions by name."""
        return [self.functions[name] for name in sorted(self.functions)]

    def total(self) -> Function:
        """All functions together."""
        functions = self.functions.values()
        whole = Function("total", series=[{} for _ in range(self.window.number)])
        for function in functions:
            whole.values += function.values
            whole.size += function.size
            whole.claims += function.claims
            whole.oldest = min(whole.oldest, function.oldest)
            whole.newest = max(whole.newest, function.newest)
            whole.used = max(whole.used, function.used)
            for mine, theirs in zip(whole.series, function.series, strict=True):
                _add(mine, theirs)
        return whole


def survey(backend: Backend, prefix: str, window: Window, *, quiet: bool) -> Contents:
    """Look at a place: no value is read.

    Cost: one listing, where the place remembers use another one for the times of writing, and one read for each record of
    statistics.
    """
    contents = Contents(window, backend.remembers_use)
    cut, claims = len(prefix), set[str]()
    with progress("looking", None, quiet=quiet) as advance:
        for number, use in enumerate(backend.uses(prefix), 1):
            kind, name = kind_of(use.key[cut:], use.size)
            if kind is Kind.OTHER:
                contents.others.note(prefix, use.key[cut:])
            elif kind is Kind.CLAIM:
                contents.function(name).claims += 1
                claims.add(use.key)
            elif kind is Kind.VALUE:
                function = contents.function(name)
                function.values += 1
                function.size += use.size
                function.used = max(function.used, use.used)
                if not contents.remembers:
                    _note_time(function, use.used)
            if not number % 100:
                advance(100)
        for key, modified in backend.times(prefix) if contents.remembers else ():
            if is_entry(key[cut:]) and key not in claims:
                _note_time(contents.function(key[cut:].rpartition("/")[0]), modified)
        for hour in read_hours(backend, prefix, window.start.date()):
            at = (hour.start - window.start) // window.step
            if 0 <= at < window.number:
                _add(contents.function(hour.function).series[at], hour.counts)
    return contents


def _note_time(function: Function, modified: float) -> None:
    function.oldest = min(function.oldest, modified)
    function.newest = max(function.newest, modified)


def _add(to: dict[str, float], counts: Mapping[str, float]) -> None:
    for name, amount in counts.items():
        if 0 < amount < _MOST:  # and so no NaN either
            to[name] = to.get(name, 0) + amount


# --------------------------------------------------------------------------------------------------------------- as JSON


def spell_contents(contents: Contents, place: str, prefix: str) -> dict[str, Any]:
    """All that is known, as data."""
    return {
        "place": place,
        "prefix": prefix,
        "since": contents.window.start.isoformat(),
        "step": contents.window.step.total_seconds(),
        "functions": [{"function": function.name} | _data(function, contents) for function in contents.in_order()],
        "total": _data(contents.total(), contents),
        "other_items": contents.others.number,
        "elsewhere": sorted(contents.others.elsewhere),
    }


def _data(function: Function, contents: Contents) -> dict[str, Any]:
    there = function.values > 0
    return (
        {
            "values": function.values,
            "bytes": function.size,
            "claims": function.claims,
            "oldest": iso_time(function.oldest) if there else None,
            "newest": iso_time(function.newest) if there else None,
            "used": iso_time(function.used) if there and contents.remembers else None,
        }
        | {name: _number(name, function.count(name)) for name in KEPT}
        | {
            "hit_rate": _rate(function.series),
            "history": [
                {"start": (contents.window.start + at * contents.window.step).isoformat(), "hit_rate": _rate([step])}
                | {name: _number(name, step.get(name, 0)) for name in KEPT}
                for at, step in enumerate(function.series)
            ],
        }
    )


def _number(name: str, amount: float) -> float:
    return round(amount, 3) if name == "saved" else int(amount)


def _rate(series: Iterable[Mapping[str, float]]) -> float | None:
    """Hits among the calls, None where there were none."""
    hits = misses = 0.0
    for step in series:
        hits += step.get("hits", 0)
        misses += step.get("misses", 0)
    return hits / (hits + misses) if hits or misses else None


# ------------------------------------------------------------------------------------------------------------- for people


def print_contents(out: Console, contents: Contents) -> None:
    """Print what functions keep, and what that was good for. On a terminal what it has room for, but always whole names."""
    functions = contents.in_order()
    rows = [*functions, contents.total()]
    columns = [
        Column("function", [row.name for row in rows], 0, left=True),
        Column("values", [f"{row.values:,}" for row in rows], 1),
        Column("size", [size(row.size) for row in rows], 1),
        Column("oldest", [age(row.oldest) if row.values else "" for row in rows], 4),
        Column("newest", [age(row.newest) if row.values else "" for row in rows], 3),
    ]
    if contents.remembers:
        columns.append(Column("used", [age(row.used) if row.values else "" for row in rows], 2))
    print_columns(out, columns, total=True)
    styled(out)
    if any(function.was_called for function in functions):
        _print_use(out, [row for row in rows if row.was_called], contents.window)
    else:
        styled(out, f"{contents.window.label}: no calls were recorded")
    claims = sum(function.claims for function in functions)
    if claims:
        are = "is being computed, or was" if claims == 1 else "are being computed, or were"
        styled(out, f"{plural(claims, 'value')} {are} when a process was killed")
    others = contents.others
    if others.number:
        some = f"; with {others.below()} some are values of cached functions" if others.elsewhere else ""
        styled(
            out, f"and {plural(others.number, 'other item')}, which {'is' if others.number == 1 else 'are'} not touched{some}"
        )


def _print_use(out: Console, rows: Sequence[Function], window: Window) -> None:
    columns = [
        Column(window.label, [row.name for row in rows], 0, left=True),
        Column("hits", [f"{row.count('hits'):,.0f}" for row in rows], 1),
        Column("misses", [f"{row.count('misses'):,.0f}" for row in rows], 4),
        Column("hit rate", [_percent(_rate(row.series)) for row in rows], 1),
        Column("saved", [span(row.count("saved")) for row in rows], 2),
    ]
    if any(row.count("errors") for row in rows):
        columns.append(Column("errors", [f"{row.count('errors'):,.0f}" for row in rows], 3))
    room = window.number
    if sys.stdout.isatty():
        left = shutil.get_terminal_size().columns - sum(column.width() + 2 for column in columns)
        room = max(min(left, room), min(_NARROWEST, room))
    charts = [_chart(row.series, room) for row in rows]
    columns.append(Column("over time" if room > _NARROWEST else "trend", charts, 1, left=True))
    print_columns(out, columns, total=True)


def print_columns(out: Console, columns: Sequence[Column], *, total: bool = False) -> None:
    """Print a table; the last row is bold where it is the total."""
    if sys.stdout.isatty():
        columns = fitting(columns, shutil.get_terminal_size().columns)
    widths = [column.width() for column in columns]
    styled(out, (spell_row([column.heading for column in columns], columns, widths).rstrip(), "bold"))
    number = len(columns[0].cells)
    for at in range(number):
        row = spell_row([column.cells[at] for column in columns], columns, widths).rstrip()
        styled(out, (row, "bold") if total and at == number - 1 else row)


def _chart(series: Sequence[Mapping[str, float]], width: int) -> str:
    """The hit rate over time, where the full height is 100 %. Where there is no room, each bar is of several steps."""
    together = -(-len(series) // width)
    ends = range(len(series), 0, -together)  # from the end, so that the last bar is as long as the others
    rates = [_rate(series[max(end - together, 0) : end]) for end in reversed(ends)]
    # The two in front set the scale, or 98 and 99 % would look like nothing and everything.
    return sparkline([0.0, 1.0, *rates], len(rates) + 2, ascii=_is_plain_stdout())[2:]


def _is_plain_stdout() -> bool:
    try:
        "▁█".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def _percent(rate: float | None) -> str:
    if rate is None:
        return ""
    if rate in (0.0, 1.0):
        return f"{rate:.0%}".replace("%", " %")
    return f"{min(max(100 * rate, 0.1), 99.9):.1f} %"  # not 100 % where there was a miss


def age(when: float) -> str:
    """How long ago that was, such as `5 min`."""
    passed = time() - when
    return brief_age(0.0 if -_SKEW < passed < 0 else passed)


def span(seconds: float) -> str:
    """How long something takes, in two or three digits, such as `1.5 h`."""
    for unit, length in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < length:
            return f"{seconds:.1f} {unit}" if seconds < 9.95 and (seconds or unit != "s") else f"{seconds:.0f} {unit}"
        seconds /= length if unit != "h" else 24
    return f"{seconds:.1f} d" if seconds < 9.95 else f"{seconds:,.0f} d"
