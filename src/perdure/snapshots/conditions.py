"""When to save: functions that are asked at each consistent point, and say yes once for each reason there is."""

from __future__ import annotations

import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

from ..durations import Duration, seconds
from ..errors import UsageError, UsageTypeError

T = TypeVar("T")

Metadata: TypeAlias = Mapping[str, Any] | None
"""What is known at a consistent point, such as `{"step": 100, "loss": 0.25}`."""

AnyCondition: TypeAlias = Callable[[Metadata], object]
"""A save condition, or a function that is asked with the metadata each time and remembers nothing."""

_NO_TIME = 1e-9  # below this, the number of intervals since the start is no longer exact
_NEAR = 1e-9  # so many intervals before its end, one is over: where moments are added up, rounding makes no more of it


# One for all: conditions are asked rarely and briefly, and a combination must be asked as a whole. Reentrant, as a signal's
# handler may ask while its own thread is being answered.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # the thread that held it does not exist there


class SaveCondition(ABC):
    """Says whether it is time to save. Combined with `|` and `&`, also with plain functions of the metadata.

    `a | b` is true when either is. `a & b` is true when both are: what happened while the other said no is kept, so
    `PeriodicSaveCondition("10 min") & OnImprovement("loss")` saves when ten minutes have passed and the loss is better than
    at the last save, whichever comes second. All parts are asked each time, so that each can count.

    Thread safety: any thread may ask; of several that ask at once, exactly one gets the true answer. A function in a
    combination must not wait for a thread that asks a condition.
    """

    _again = False

    @abstractmethod
    def due(self, metadata: Metadata) -> Callable[[], object] | None:
        """Look and count, but take no yes back that nobody used. For subclasses; called by one thread at a time.

        Args:
            metadata: What is known at this point.

        Returns:
            `None` for no. For yes, a function that notes that the answer was used: called at most once, before the next
            look. As long as it was not called, later looks say yes as well.
        """

    def __call__(self, metadata: Metadata = None) -> bool:
        """Whether to save now. A yes is given once: whoever gets it saves, or calls `retry`.

        Args:
            metadata: What is known at this point.
        """
        with _lock:
            use = self.due(metadata)
            again, self._again = self._again, False
            if use is not None:
                use()
            return again or use is not None

    def retry(self) -> None:
        """Make the next call say yes: the save that was made for the last yes failed."""
        with _lock:
            self._again = True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run should know: `load_state_dict` takes it. Register a condition as a component to have it saved."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to remember
        """Go on from what `state_dict` gave. What belongs to another kind of condition is ignored, as if there were none.

        Args:
            state: What `state_dict` gave, in this run or an earlier one.
        """

    def recall(self, earlier: Sequence[Mapping[str, Any]]) -> None:  # noqa: B027 - most have nothing to remember
        """Learn from what was saved before a restart, where nothing is remembered yet; `Running` calls it after loading.

        Args:
            earlier: The metadata of the snapshots there are, the oldest first. What is no number there is passed over.
        """

    def __or__(self, other: AnyCondition) -> SaveCondition:
        return _Either(self, condition_of(other)) if callable(other) else NotImplemented

    def __ror__(self, other: AnyCondition) -> SaveCondition:
        return _Either(condition_of(other), self) if callable(other) else NotImplemented

    def __and__(self, other: AnyCondition) -> SaveCondition:
        return _Both(self, condition_of(other)) if callable(other) else NotImplemented

    def __rand__(self, other: AnyCondition) -> SaveCondition:
        return _Both(condition_of(other), self) if callable(other) else NotImplemented


class PeriodicSaveCondition(SaveCondition):
    """True when an interval has passed; several that passed unasked count as one.

    The intervals begin at construction and follow each other without a gap: asking late does not shift the next one.
    Measured by a clock that is never set; on most systems it stands still while the machine sleeps. Where its last digits
    fall short of the end of an interval, that is over.

    Args:
        interval: Seconds, text such as `"10 min"`, or a timedelta. 0 is true on every call, infinity never.
        clock: Gives the time in seconds; never goes back.

    Raises:
        UsageError: The interval is negative or not understood.
    """

    def __init__(self, interval: Duration, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = seconds(interval, "an interval")
        self._clock = clock
        self._start = clock()
        self._used = 0.0  # the number of intervals that are over and answered for

    def due(self, metadata: Metadata) -> Callable[[], object] | None:
        over = self._over() if self.interval > _NO_TIME else self._used + 1
        if over <= self._used:
            return None

        def use() -> None:
            self._used = over

        return use

    def _over(self) -> int:
        now = self._clock()
        rounding = 4 * math.ulp(abs(now) + abs(self._start))  # of the clock, of the start, and of what is computed here
        return math.floor((now - self._start) / self.interval + min(_NEAR + rounding / self.interval, 0.25))

    def __repr__(self) -> str:
        return f"PeriodicSaveCondition(interval={self.interval:g})"


class EverySteps(SaveCondition):
    """True at every n-th step.

    Where the metadata has a `"step"`, that is at 1×n, 2×n, 3×n..., or at the first step after it that is asked about, so that
    a resumed run goes on where it was; else at every n-th call.

    Args:
        n: The number of steps, at least 1.

    Raises:
        UsageError: It is less.
    """

    def __init__(self, n: int) -> None:
        if isinstance(n, bool) or not isinstance(n, int):
            raise UsageTypeError(f"a number of steps is an int, not {n!r:.60}")
        if n < 1:
            raise UsageError(f"cannot save every {n} steps", hint="Give 1 or more.")
        self.n = n
        self._calls = 0
        self._since: int | None = None  # the step of the last yes, or the one before the first that was asked about

    def due(self, metadata: Metadata) -> Callable[[], object] | None:
        step = step_of(metadata)
        if step is None:
            self._calls += 1
            return self._use_calls if self._calls >= self.n else None
        if self._since is None:
            self._since = max(step - 1, 0)
        self._since = min(self._since, step)  # an older state was loaded
        if step // self.n <= self._since // self.n:
            return None

        def use() -> None:
            self._since = step

        return use

    def _use_calls(self) -> None:
        self._calls %= self.n

    def state_dict(self) -> dict[str, Any]:
        """The step that is counted from, and the calls since the last yes."""
        with _lock:
            return {"since": self._since, "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there; `n` may have changed meanwhile."""
        with _lock:
            if "calls" in state:
                self._since, self._calls = state["since"], state["calls"]

    def recall(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Count on from the last step that was saved."""
        with _lock:
            if self._since is None and not self._calls:
                steps = (_number_in(step_of, metadata) for metadata in reversed(earlier))
                self._since = next((step for step in steps if step is not None), None)

    def __repr__(self) -> str:
        return f"EverySteps(n={self.n})"


class OnImprovement(SaveCondition):
    """True when a metric is better than at the last yes. Where the metadata lacks it, and for NaN, the answer is no.

    Only what was said yes to counts as the best: inside `a & b`, a better value while the other said no changes nothing.

    Args:
        metric: Its name in the metadata.
        mode: `"min"` when less is better, `"max"` when more is.
        min_delta: By more than this much it must be better; 0 or more.

    Raises:
        UsageError: The mode or `min_delta` is none.
    """

    def __init__(self, metric: str = "loss", mode: Literal["min", "max"] = "min", min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise UsageError(f"there is no mode {mode!r:.60}", hint="Use 'min' when less is better, 'max' when more is.")
        if not 0 <= min_delta < math.inf:
            raise UsageError(f"min_delta is 0 or more, not {min_delta!r:.60}", hint="Leave it out for any improvement.")
        self.metric = metric
        self.mode = mode
        self.min_delta = float(min_delta)
        self._best: float | None = None

    @property
    def best(self) -> float | None:
        """The value at the last yes, `None` before the first."""
        return self._best

    def due(self, metadata: Metadata) -> Callable[[], object] | None:
        value = self._value(metadata)
        # A first value of infinity in the wrong direction is no improvement on nothing; a NaN makes the gain a NaN.
        best = self._best if self._best is not None else math.inf if self.mode == "min" else -math.inf
        gain = best - value if self.mode == "min" else value - best
        if not gain > self.min_delta:
            return None

        def use() -> None:
            self._best = value

        return use

    def _value(self, metadata: Metadata) -> float:
        found = None if metadata is None else metadata.get(self.metric)
        if found is None:
            return math.nan
        try:
            if isinstance(found, (str, bytes)):
                raise TypeError("it is text")
            return float(found)  # numpy and torch have their own kinds of numbers
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            hint = "Put a number into the metadata that are given to tick()."
            raise UsageTypeError(f"the metric {self.metric!r} is no number: {found!r:.60}", hint=hint) from error

    def state_dict(self) -> dict[str, Any]:
        """The best value, and of what."""
        return {"metric": self.metric, "mode": self.mode, "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the best value. That of another metric or mode is ignored."""
        if (state.get("metric"), state.get("mode")) == (self.metric, self.mode):
            self._best = state["best"]

    def recall(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Take the best value that was saved, whatever it was saved for."""
        with _lock:
            if self._best is None:
                found = (_number_in(self._value, metadata) for metadata in earlier)
                values = [value for value in found if value is not None and not math.isnan(value)]
                self._best = (min if self.mode == "min" else max)(values, default=None)

    def __repr__(self) -> str:
        return f"OnImprovement(metric={self.metric!r}, mode={self.mode!r}, min_delta={self.min_delta:g})"


class _Pair(SaveCondition):
    sign = ""

    def __init__(self, first: SaveCondition, second: SaveCondition) -> None:
        self._parts = (first, second)

    def _uses(self, metadata: Metadata) -> list[Callable[[], object]]:
        return [use for part in self._parts if (use := part.due(metadata)) is not None]

    def state_dict(self) -> dict[str, Any]:
        """What the parts have to remember."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each part its own; what a part does not know, it ignores."""
        for part, its in zip(self._parts, state.get("parts", ()), strict=False):
            part.load_state_dict(its)

    def recall(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Let each part learn."""
        for part in self._parts:
            part.recall(earlier)

    def __repr__(self) -> str:
        return f" {self.sign} ".join(f"({part!r})" if isinstance(part, _Pair) else repr(part) for part in self._parts)


class _Either(_Pair):
    sign = "|"

    def due(self, metadata: Metadata) -> Callable[[], object] | None:
        uses = self._uses(metadata)
        return (lambda: [use() for use in uses]) if uses else None


class _Both(_Pair):
    sign = "&"

    def due(self, metadata: Metadata) -> Callable[[], object] | None:
        uses = self._uses(metadata)
        return (lambda: [use() for use in uses]) if len(uses) == len(self._parts) else None


class _Function(SaveCondition):
    def __init__(self, function: Callable[[Metadata], object]) -> None:
        self._function = function

    def due(self, metadata: Metadata) -> Callable[[], object] | None:
        return (lambda: None) if self._function(metadata) else None

    def __repr__(self) -> str:
        return getattr(self._function, "__qualname__", None) or repr(self._function)


def condition_of(condition: AnyCondition) -> SaveCondition:
    """The same condition, or one that asks a plain function.

    Args:
        condition: What a user gave.

    Raises:
        UsageTypeError: It cannot be called, or is a class.
    """
    if isinstance(condition, SaveCondition):
        return condition
    if isinstance(condition, type):
        name = condition.__name__
        raise UsageTypeError(f"{name} is a class and no save condition", hint=f"Make one of it, such as {name}(...).")
    if not callable(condition):
        hint = "Give a save condition such as EverySteps(100), or a function of the metadata."
        raise UsageTypeError(f"{condition!r:.60} is no save condition", hint=hint)
    return _Function(condition)


def step_of(metadata: Metadata) -> int | None:
    """The step in the metadata, rounded down to a whole one; `None` where there is none.

    Args:
        metadata: What is known at a consistent point.

    Raises:
        UsageTypeError: It is no number.
    """
    step = None if metadata is None else metadata.get("step")
    if step is None:
        return None
    try:
        if isinstance(step, (str, bytes)):
            raise TypeError("it is text")
        return int(step // 1)  # as a plain int: numpy and torch have their own
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageTypeError(f"a step is a number, not {step!r:.60}", hint="Such as tick({'step': 100}).") from error


def _number_in(look: Callable[[Metadata], T], metadata: Metadata) -> T | None:
    try:
        return look(metadata)
    except UsageTypeError:  # nobody saves for its sake now
        return None
