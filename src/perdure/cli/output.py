"""What the commands print: safe on a terminal, exact in a pipe, JSON on demand."""

from __future__ import annotations

import base64
import codecs
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from datetime import time as clock_time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Control characters could rewrite the screen or type commands; marks that turn the writing direction could lie about a line.
_unsafe = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def safe(text: str) -> str:
    """Text without anything a terminal would obey; new lines and tabs stay."""
    return _unsafe.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Safe text on a single line."""
    return safe(" ".join(text.split()))


def line(text: str) -> None:
    """Write one line of results."""
    sys.stdout.write(text + "\n")


def spell_json(value: object, **options: Any) -> str:
    """JSON with its characters as they are where stdout takes them all, else escaped as JSON does it and not as Python."""
    takes_all = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name.startswith("utf-")
    return json.dumps(value, ensure_ascii=not takes_all, **options)


def print_json(value: object) -> None:
    """Write one JSON document."""
    line(spell_json(jsonable(value), indent=2 if sys.stdout.isatty() else None))


def print_json_list(values: Iterable[object]) -> None:
    """Write a JSON array as it comes, one item a line."""
    before = "["
    for value in values:
        sys.stdout.write(before + "\n" + spell_json(jsonable(value)))
        before = ","
    line("\n]" if before == "," else "[]")


def jsonable(value: object) -> Any:
    """The nearest JSON has: sets and arrays are lists, bytes `{"base64": ...}`, times ISO text, the rest is its `repr`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return [jsonable(inner) for inner in sorted(value, key=repr)]
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (datetime, date, clock_time)):
        return value.isoformat()
    tolist = getattr(value, "tolist", None)
    if tolist is not None:  # numpy; the repr of a large array leaves most of it out
        plain = tolist()
        if type(plain) is not type(value):  # as it is of a number that Python has no type for
            return jsonable(plain)
    return repr(value)


def size(n: float) -> str:
    """A number of bytes in at most 8 characters, such as `1.5 MB`."""
    if n < 1000:
        return f"{n:.0f} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        n /= 1000
        if n < 999.5 or unit == "PB":
            break
    return f"{n:.1f} {unit}" if n < 99.95 else f"{n:.0f} {unit}"


def local_time(seconds: float) -> str:
    """Seconds since the epoch as local date and time."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso_time(seconds: float) -> str:
    """Seconds since the epoch in ISO format and UTC, for JSON."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def duration(seconds: float) -> str:
    """Such as `0.4 s`, `12 s` or `3:05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def plural(n: int, word: str) -> str:
    """Such as `1 value` or `1,200 values`."""
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def console(*, stderr: bool = False) -> Console:
    """Where people read: colours only on a terminal and without NO_COLOR, and no line is cut or wrapped by us."""
    from rich.console import Console as RichConsole

    class Console(RichConsole):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that rich would turn into exit code 1

    return Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)


def styled(on: Console, *parts: str | tuple[str, str]) -> None:
    """Print a line of plain parts and `(text, style)` pairs; nothing in them is taken for markup."""
    from rich.text import Text

    on.print(Text.assemble(*(safe(part) if isinstance(part, str) else (safe(part[0]), part[1]) for part in parts)))


class Advance(Protocol):
    """Reports work done: `advance(n)`."""

    def __call__(self, n: float, /) -> None: ...


@contextmanager
def progress(doing: str, total: float | None, *, in_bytes: bool = False, quiet: bool = False) -> Iterator[Advance]:
    """A bar with rate and remaining time on stderr; nothing where that is not a terminal.

    Args:
        doing: Such as `"copying"`.
        total: What all the work adds up to; `None` where nobody knows.
        in_bytes: Whether it is counted in bytes.
        quiet: No bar, whatever stderr is.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda n: None
        return
    with bar_on(console(stderr=True), in_bytes=in_bytes) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda n: bar.advance(task, n)


def bar_on(on: Console, *, in_bytes: bool = False) -> Progress:
    """A bar with rate and remaining time that vanishes when it is done."""
    from rich import progress as bars

    done = [bars.DownloadColumn(), bars.TransferSpeedColumn()] if in_bytes else [bars.MofNCompleteColumn(), _Rate()]
    bar = bars.TaskProgressColumn() if on.width < 70 else bars.BarColumn()  # what is narrow gets the number only
    columns = [bars.TextColumn("{task.description}"), bar, *done, bars.TimeRemainingColumn()]
    return bars.Progress(*columns, console=on, transient=True)


def _Rate() -> Any:  # noqa: N802 - a column of rich, made late because rich is imported late
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s")

    return Rate()


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
