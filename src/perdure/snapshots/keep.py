"""Which snapshots to keep: a policy is one method, and those here are small dataclasses.

::

    keeper = KeepLatest(3) | KeepBest(1, "loss") | KeepThinned()
    str(keeper)  # "latest=3,best=1:loss,thinned", which `keep_spelling.parse_keeper` reads

A keeper only chooses; it removes nothing. Snapshots are in the order of their sequence numbers, because clocks are set back:
one that says to be older than one before it, or to come from the future, is taken for young.
"""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise
from typing import Any, Final, Protocol, SupportsIndex

from ..durations import Duration, seconds
from ..errors import UsageError, UsageTypeError
from .manifest import Snapshot

__all__ = ["KeepBest", "KeepEvery", "KeepLatest", "KeepThinned", "KeepYoungerThan", "Keeper"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST: Final = 1e13  # seconds; three hundred thousand years, with which times can still be reckoned
_NAMED: Final = 20  # metrics that a message lists
_RULES: Final = (("1h", None), ("1d", "1h"), (None, "1d"))


class Policy(Protocol):
    """What `StateStore(keep=)` takes: a keeper, or any object with this one method."""

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> Iterable[Snapshot]:
        """Choose those to keep; see `Keeper.select`."""
        ...


def is_policy(object_: object) -> bool:
    """Whether it can choose; a class cannot."""
    return callable(getattr(object_, "select", None)) and not isinstance(object_, type)


class Keeper(ABC):
    """A policy of what to keep. One of your own needs `select` alone, and to be combined with those here not even this class.

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

    def lacks(self, snapshots: Sequence[Snapshot]) -> list[str]:
        """Name the metrics this goes by that no snapshot has as a number, which mostly are misspelt ones.

        Args:
            snapshots: As for `select`; where there are none, nothing is lacking.

        Returns:
            The metrics, each once. Always empty for a policy that goes by none.
        """
        return []

    def __or__(self, other: Policy) -> Keeper:
        if not is_policy(other):
            return NotImplemented
        return _Either(_parts(_Either, self) + _parts(_Either, other))

    def __ror__(self, other: Policy) -> Keeper:
        return _Either((other, *_parts(_Either, self))) if is_policy(other) else NotImplemented

    def __rand__(self, other: Policy) -> Keeper:
        return _Both((other,)) & self if is_policy(other) else NotImplemented

    def __and__(self, other: Policy) -> Keeper:
        if not is_policy(other):
            return NotImplemented
        # (a | b) & c becomes a & c | b & c, which keeps the same and can be spelled without parentheses.
        both = [_Both(_parts(_Both, a) + _parts(_Both, b)) for a in _parts(_Either, self) for b in _parts(_Either, other)]
        return _Either(tuple(both)) if len(both) > 1 else both[0]


@dataclass(frozen=True, repr=False)
class _Joined(Keeper):
    parts: tuple[Policy, ...]

    def lacks(self, snapshots: Sequence[Snapshot]) -> list[str]:
        lacking = (part.lacks(snapshots) for part in self.parts if isinstance(part, Keeper))
        return list(dict.fromkeys(chain.from_iterable(lacking)))


class _Either(_Joined):
    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        return set().union(*(part.select(snapshots, now) for part in self.parts))

    def __str__(self) -> str:
        return ",".join(map(str, self.parts))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


class _Both(_Joined):
    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
        return set(snapshots).intersection(*(part.select(snapshots, now) for part in self.parts))

    def __str__(self) -> str:
        return "&".join(map(str, self.parts))

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.parts))


def _parts(kind: type[_Joined], policy: Policy) -> tuple[Policy, ...]:
    return policy.parts if isinstance(policy, kind) else (policy,)


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
    """Keep those saved less than a time span ago.

    A snapshot is at least as young as each one before it, whatever it says, unless the one before says to come from the future.
    One of these is kept until its time has come and the span has passed, so what was saved with the clock a year ahead stays a
    year longer; about others it tells nothing.

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
            if _is_number(value) and value == value:  # which NaN is not
                ranked.append((sign * value, -snapshot.sequence, snapshot))
        return {snapshot for _, _, snapshot in sorted(ranked, key=operator.itemgetter(0, 1))[: self.n]}

    def lacks(self, snapshots: Sequence[Snapshot]) -> list[str]:
        # A loss that is NaN is there: the job has gone wrong, and not the spelling.
        known = any(_is_number(snapshot.metadata.get(self.metric)) for snapshot in snapshots)
        return [] if known or not snapshots else [self.metric]

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


def numbers_in(snapshots: Iterable[Snapshot]) -> list[str]:
    """The names of all metadata that are a number in some snapshot, sorted."""
    return sorted({name for snapshot in snapshots for name, value in snapshot.metadata.items() if _is_number(value)})


def lacking(metrics: Sequence[str], snapshots: Iterable[Snapshot]) -> UsageError:
    """The error about metrics that no snapshot has.

    Args:
        metrics: What `Keeper.lacks` has named, one at least.
        snapshots: Those which it was asked about.
    """
    from difflib import get_close_matches

    there = numbers_in(snapshots)
    close = [match for name in metrics for match in get_close_matches(name, there, 1, 0.5)]
    listed = ", ".join(f"{name!r:.60}" for name in there[:_NAMED]) + (", ..." if len(there) > _NAMED else "")
    hint = (f"Did you mean {close[0]!r:.60}? " if close else "") + f"There are: {listed or 'none'}."
    return UsageError(f"no snapshot has a number {' or '.join(f'{name!r:.60}' for name in metrics)}", hint=hint)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


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
