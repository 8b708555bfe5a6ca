"""Which snapshots to keep: a policy is one method, and those here are small dataclasses.

::

    keeper = KeepLatest(3) | KeepBest(1, "loss") | KeepThinned()
    str(keeper)  # "latest=3,best=1:loss,thinned", which `parse_keeper` reads

A keeper only chooses; it removes nothing. Snapshots are in the order of their sequence numbers, because clocks are set back:
one that says to be older than one before it, or to come from the future, is taken for young.
"""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import pairwise
from typing import Any, Final, SupportsIndex
from urllib.parse import unquote

from ..errors import UsageError, UsageTypeError
from .durations import Duration, seconds
from .manifest import Snapshot

__all__ = ["KeepBest", "KeepEvery", "KeepLatest", "KeepThinned", "KeepYoungerThan", "Keeper", "parse_keeper"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST: Final = 1e13  # seconds; three hundred thousand years, with which times can still be reckoned
_RULES: Final = (("1h", None), ("1d", "1h"), (None, "1d"))
_EXAMPLES: Final = "latest=3, every=10, younger=7d, best=1:loss, best=1:accuracy:max, thinned"


class Keeper(ABC):
    """A policy of what to keep. One of your own needs `select` alone.

    `a | b` keeps what any of both keeps, `a & b` what both keep. All keepers here are immutable, comparable and safe from any
    thread, and go through the snapshots once.
    """

    @abstractmethod
    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        """Choose those to keep.

        Args:
            snapshots: The complete snapshots of a place, by sequence, the oldest first.
            now: The time, with its time zone.

        Returns:
            Some of `snapshots`. The others may be removed.

        Raises:
            UsageError: `now` has no time zone, and the policy depends on time.
        """

    def __or__(self, other: Keeper) -> Keeper:
        return _Either(_parts(_Either, self) + _parts(_Either, other)) if isinstance(other, Keeper) else NotImplemented

    def __and__(self, other: Keeper) -> Keeper:
        if not isinstance(other, Keeper):
            return NotImplemented
        # (a | b) & c becomes a & c | b & c, which keeps the same and can be spelled without parentheses.
        both = [_Both(_parts(_Both, a) + _parts(_Both, b)) for a in _parts(_Either, self) for b in _parts(_Either, other)]
        return _Either(tuple(both)) if len(both) > 1 else both[0]


@dataclass(frozen=True, repr=False)
class _Joined(Keeper):
    parts: tuple[Keeper, ...]


class _Either(_Joined):
    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        return set.union(*(part.select(snapshots, now) for part in self.parts))

    def __str__(self) -> str:
        return ",".join(map(str, self.parts))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


class _Both(_Joined):
    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        return set.intersection(*(part.select(snapshots, now) for part in self.parts))

    def __str__(self) -> str:
        return "&".join(map(str, self.parts))

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.parts))


def _parts(kind: type[_Joined], keeper: Keeper) -> tuple[Keeper, ...]:
    return keeper.parts if isinstance(keeper, kind) else (keeper,)


@dataclass(frozen=True)
class KeepLatest(Keeper):
    """Keep the last ones by sequence number.

    Args:
        n: How many; 0 keeps none.

    Raises:
        UsageError: `n` is negative, or no whole number.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _whole(self.n, 0, "the number of latest snapshots to keep"))

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        return set(snapshots[-self.n :]) if self.n else set()

    def __str__(self) -> str:
        return f"latest={self.n}"


@dataclass(frozen=True)
class KeepEvery(Keeper):
    """Keep those whose sequence number is divisible by `k`.

    It goes by number and not by position, because positions shift when others are removed: what is the tenth today would be
    the ninth tomorrow, and in the end nothing would be left.

    Args:
        k: At least 1, which keeps all.

    Raises:
        UsageError: `k` is less, or no whole number.
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _whole(self.k, 1, "the step between snapshots to keep"))

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        return {snapshot for snapshot in snapshots if snapshot.sequence % self.k == 0}

    def __str__(self) -> str:
        return f"every={self.k}"


@dataclass(frozen=True, init=False, repr=False)
class KeepYoungerThan(Keeper):
    """Keep those saved less than a time span ago. A snapshot is at least as young as each one before it, whatever it says.

    Args:
        age: A `timedelta`, seconds, or text such as `"7d"`; above zero.

    Raises:
        UsageError: `age` is no such time span.
    """

    age: timedelta

    def __init__(self, age: Duration) -> None:
        object.__setattr__(self, "age", _span(age, "the age up to which snapshots are kept"))

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        _check(now)
        kept: set[Snapshot] = set()
        young = False  # since some snapshot that is young by a time that has been
        for snapshot in snapshots:
            age = now - snapshot.saved
            young = young or timedelta(0) <= age < self.age
            if young or age < timedelta(0):
                kept.add(snapshot)
        return kept

    def __str__(self) -> str:
        return f"younger={_spell(self.age)}"

    def __repr__(self) -> str:
        return f"KeepYoungerThan({_spell(self.age)!r})"


@dataclass(frozen=True)
class KeepBest(Keeper):
    """Keep those that are best by a number in their metadata.

    Snapshots where it is missing, NaN, or no number are never among them. Of equal ones the newer is the better.

    Args:
        n: How many; 0 keeps none.
        metric: Its name in the metadata.
        mode: `"min"` where less is better, `"max"` where more is.

    Raises:
        UsageError: `n` is negative or no whole number, `metric` is no name, or `mode` is another word.
    """

    n: int
    metric: str = "loss"
    mode: str = "min"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _whole(self.n, 0, "the number of best snapshots to keep"))
        if not isinstance(self.metric, str) or not self.metric:
            raise UsageTypeError(f"{self.metric!r:.60} is no name of a metric", hint='Name it as in the metadata: "loss".')
        if self.mode not in ("min", "max"):
            hint = 'Write "min" where less is better, "max" where more is.'
            raise UsageError(f"the best by {self.metric} cannot be those of mode {self.mode!r:.60}", hint=hint)

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        sign = 1 if self.mode == "min" else -1
        ranked: list[tuple[float, int, Snapshot]] = []
        for snapshot in snapshots:
            value: Any = snapshot.metadata.get(self.metric)
            if type(value) in (int, float) and value == value:  # which NaN is not
                ranked.append((sign * value, -snapshot.sequence, snapshot))
        return {snapshot for _, _, snapshot in sorted(ranked, key=operator.itemgetter(0, 1))[: self.n]}

    def __str__(self) -> str:
        # The signs that mean something to `parse_keeper` are escaped as in a URL.
        name = re.sub(r"[%,|&:=\s]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), self.metric)
        return f"best={self.n}:{name}" + (":max" if self.mode == "max" else ":min" if name in ("min", "max") else "")


@dataclass(frozen=True, init=False, repr=False)
class KeepThinned(Keeper):
    """Keep many of the young snapshots and few of the old.

    Each rule cuts time, from 1970 on in UTC, into spans of its spacing, and keeps the first snapshot of each span, by sequence,
    until the whole span is older than the rule's age. So for every snapshot that was ever saved and is not older than that,
    there is one that was saved less than the spacing before or after it. As the first of a span is its first for ever, however
    many follow, it does not matter how often snapshots are thinned: what remains is what thinning once would have left.

    The last snapshot of all is kept whatever its age, as there a job goes on. Those that say to be older than one before them
    are kept too, with that one, as it cannot be told to which span they belong.

    Args:
        rules: Pairs `(age, spacing)` with both growing; by default all of the last hour, one an hour for a day, one a day ever
            after. The first spacing may be `None`, which keeps all, and the last age, which never ends.

    Raises:
        UsageError: There is no rule, or they do not grow, or something in them is no time span above zero.
    """

    rules: tuple[tuple[timedelta | None, timedelta | None], ...]

    def __init__(self, rules: Iterable[tuple[Duration | None, Duration | None]] = _RULES) -> None:
        try:
            pairs = [(age, spacing) for age, spacing in rules]
        except (TypeError, ValueError) as error:
            problem = f"rules are pairs of an age and a spacing, not {rules!r:.80}"
            raise UsageTypeError(problem, hint='Such as [("1d", "1h"), (None, "1d")].') from error
        spans = tuple(
            (age if age is None else _span(age, "an age"), spacing if spacing is None else _span(spacing, "a spacing"))
            for age, spacing in pairs
        )
        steps = [(age or timedelta.max, spacing or timedelta(0)) for age, spacing in spans]
        if not steps or any(a[0] >= b[0] or a[1] >= b[1] for a, b in pairwise(steps)):
            hint = "Let ages and spacings grow from rule to rule; only the first spacing and the last age may be None."
            raise UsageError(f"the rules do not grow: {_spell_rules(spans) or 'there are none'}", hint=hint)
        object.__setattr__(self, "rules", spans)

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        _check(now)
        kept = set(snapshots[-1:])
        taken: set[tuple[int, int]] = set()  # the spans of each rule that have their snapshot
        peak: Snapshot | None = None  # the one with the latest time so far
        for snapshot in snapshots:
            old = now - snapshot.saved
            if old < timedelta(0):
                kept.add(snapshot)
                continue
            if peak is None or snapshot.saved >= peak.saved:
                peak = snapshot
            else:
                kept |= {snapshot, peak}  # without the peak, the next thinning would not see that this one is odd
            for number, (age, spacing) in enumerate(self.rules):
                left = timedelta(0)  # from when it was saved to the end of its span
                if spacing is not None:
                    span, into = divmod(snapshot.saved - _EPOCH, spacing)
                    if (number, span) in taken:
                        continue
                    taken.add((number, span))
                    left = spacing - into
                if age is None or old - left < age:
                    kept.add(snapshot)
        return kept

    def __str__(self) -> str:
        return "thinned" if self == KeepThinned() else f"thinned={_spell_rules(self.rules)}"

    def __repr__(self) -> str:
        rules = [tuple(span and _spell(span) for span in rule) for rule in self.rules]
        return "KeepThinned()" if self == KeepThinned() else f"KeepThinned({rules!r})"


def parse_keeper(text: str) -> Keeper:
    """Read a policy as the command line spells it, and as `str(keeper)` does.

    Args:
        text: `latest=3`, `every=10`, `younger=7d`, `best=2` (by the loss), `best=2:loss`, `best=2:accuracy:max`, `thinned`, or
            `thinned=1h:all/1d:1h/ever:1d`, which is how `thinned` alone is understood: ages, each with its spacing. Several
            with `,` or `|` between them keep what any of them keeps; with `&`, which binds tighter, what all of them keep.
            In the name of a metric these signs are written as in a URL, such as `%2C` for a comma.

    Raises:
        UsageError: It cannot be read.
    """
    if not isinstance(text, str):
        raise UsageTypeError(f"a policy is spelled as text, not {text!r:.60}", hint=f"Such as {_EXAMPLES}.")
    alternatives = re.split("[,|]", text)
    return reduce(operator.or_, (reduce(operator.and_, map(_read_one, words.split("&"))) for words in alternatives))


def _read_one(word: str) -> Keeper:
    name, equals, told = (side.strip() for side in word.partition("="))
    reader = _READERS.get(name)
    if reader is None:
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), _READERS, 1, 0.5)
        hint = (f"Did you mean {close[0]!r}? " if close else "") + f"Policies are such as {_EXAMPLES}."
        raise UsageError(f"no policy is called {name!r:.60}" if name else "a policy is missing", hint=hint)
    try:
        return reader(told if equals else None)
    except UsageError as error:
        raise UsageError(f"{word!r:.200}: {error.problem}", hint=error.hint) from error


def _read_best(told: str | None) -> Keeper:
    n, *words = (told or "").split(":")
    if len(words) > 2 or words in (["min"], ["max"]):
        hint = "Write best=NUMBER:METRIC or best=NUMBER:METRIC:max; a colon in the name of a metric is %3A."
        raise UsageError("this is not a number, a metric and a mode", hint=hint)
    return KeepBest(_number(n, "best=1:loss"), *map(unquote, words))


def _read_thinned(told: str | None) -> Keeper:
    if told is None:
        return KeepThinned()
    rules: list[tuple[str | None, str | None]] = []
    for rule in told.split("/"):
        age, colon, spacing = rule.partition(":")
        if not colon:
            raise UsageError(f"{rule!r:.60} is no AGE:SPACING", hint="Such as thinned=1h:all/1d:1h/ever:1d.")
        rules.append((None if age == "ever" else age, None if spacing == "all" else spacing))
    return KeepThinned(rules)


def _number(told: str | None, example: str) -> int:
    if not told or not re.fullmatch("-?[0-9]{1,1000}", told):
        raise UsageError(f"{told!r:.60} is no whole number" if told else "a number is missing", hint=f"Such as {example}.")
    return int(told)


def _whole(n: SupportsIndex, least: int, what: str) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__") or operator.index(n) < least:
        raise UsageError(f"{what} cannot be {n!r:.60}", hint=f"Give a whole number from {least} on.")
    return operator.index(n)


def _span(told: Duration, what: str) -> timedelta:
    """A time span from whatever spells one."""
    length = seconds(told, what)
    if not 1e-6 <= length <= _LONGEST:
        raise UsageError(f"{what} cannot be {told!r:.60}", hint='Give a time span above zero, such as "7d".')
    return timedelta(seconds=length)


def _spell(span: timedelta) -> str:
    """How a time span is written, such as `7d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if span % timedelta(seconds=length) == timedelta(0):
            return f"{span // timedelta(seconds=length)}{unit}"
    whole, part = divmod(span, timedelta(seconds=1))
    return f"{whole}.{part.microseconds:06d}".rstrip("0").rstrip(".") + "s"


def _spell_rules(rules: Iterable[tuple[timedelta | None, timedelta | None]]) -> str:
    return "/".join(f"{_spell(age) if age else 'ever'}:{_spell(spacing) if spacing else 'all'}" for age, spacing in rules)


def _check(now: datetime) -> None:
    if now.tzinfo is None:
        raise UsageError(f"the time {now} has no time zone", hint="Pass datetime.now(UTC).")


_READERS: Final[dict[str, Callable[[str | None], Keeper]]] = {
    "latest": lambda told: KeepLatest(_number(told, "latest=3")),
    "every": lambda told: KeepEvery(_number(told, "every=10")),
    "younger": lambda told: KeepYoungerThan(told or ""),
    "best": _read_best,
    "thinned": _read_thinned,
}
