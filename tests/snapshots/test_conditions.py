"""When to save: every tick is answered once, by one thread, also in combinations and after a resume."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from fractions import Fraction
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.durations import seconds
from perdure.errors import UsageError, UsageTypeError
from perdure.snapshots.conditions import EverySteps, Metadata, OnImprovement, PeriodicSaveCondition, SaveCondition, step_of


class Clock:
    """A clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_period_that_has_just_begun_is_not_over() -> None:
    assert PeriodicSaveCondition(60)() is False
    assert PeriodicSaveCondition("10 min")() is False
    assert PeriodicSaveCondition(timedelta(days=1))() is False


def test_the_interval_is_over_at_its_end_and_answered_once() -> None:
    clock = Clock()
    condition = PeriodicSaveCondition(interval=8, clock=clock)
    clock.now += 7.999
    assert condition() is False
    clock.now = 1008
    assert condition() is True
    assert condition() is False


def test_a_late_answer_does_not_shift_the_next_one() -> None:
    clock = Clock()
    condition = PeriodicSaveCondition(8, clock=clock)
    clock.now = 1015
    assert condition()
    clock.now = 1016
    assert condition()


def test_many_missed_intervals_are_one() -> None:
    clock = Clock()
    condition = PeriodicSaveCondition(8, clock=clock)
    clock.now += 800
    assert [condition() for _ in range(3)] == [True, False, False]


def test_a_clock_that_is_set_back_gives_no_second_yes() -> None:
    clock = Clock()
    condition = PeriodicSaveCondition(8, clock=clock)
    clock.now = 1008
    assert condition()
    clock.now = 900
    assert not condition()
    clock.now = 1009
    assert not condition()


def test_the_time_of_day_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    condition = PeriodicSaveCondition(3600)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not condition()
    assert condition._clock is time.monotonic


def test_zero_is_true_every_time_and_infinity_never() -> None:
    clock = Clock()
    always, never = PeriodicSaveCondition(0, clock=clock), PeriodicSaveCondition(math.inf, clock=clock)
    assert [always() for _ in range(3)] == [True, True, True]
    clock.now += 1e15
    assert not never()


@pytest.mark.parametrize("interval", [5e-324, 1e-300, 1e-10, 1e-8, 0.1, 1e300])
def test_an_interval_of_any_size_goes_on_answering(interval: float) -> None:
    clock = Clock()
    condition = PeriodicSaveCondition(interval, clock=clock)
    for _ in range(3):
        clock.now += max(interval * 1.01, 1e-3)
        assert condition()


@given(st.integers(1, 40), st.lists(st.integers(0, 120), max_size=60))
def test_no_tick_is_lost_and_none_answered_twice(interval: int, waits: list[int]) -> None:
    clock = Clock()
    condition = PeriodicSaveCondition(interval / 8, clock=clock)
    elapsed = 0
    for wait in waits:
        clock.now += wait / 8
        ticks = [moment for moment in range(elapsed + 1, elapsed + wait + 1) if moment % interval == 0]
        elapsed += wait
        assert condition() is bool(ticks)


def at_once(number: int, call: Callable[[], bool]) -> int:
    """How many of several threads that call at the same time get a yes."""
    barrier = threading.Barrier(number)
    answers: list[bool] = []

    def ask() -> None:
        barrier.wait()
        answers.append(call())

    threads = [threading.Thread(target=ask) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == number
    return sum(answers)


@pytest.fixture
def nervous() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("nervous")
@pytest.mark.parametrize("kind", ["alone", "and", "or", "steps", "retry"])
def test_exactly_one_of_several_threads_gets_the_yes(kind: str) -> None:
    clock = Clock()

    def yielding(metadata: Metadata) -> bool:
        time.sleep(0)  # lets another thread run between a look and its use
        return kind != "or"

    periodic = PeriodicSaveCondition(8, clock=clock)
    condition: SaveCondition = periodic
    if kind == "and":
        condition = periodic & yielding
    elif kind == "or":
        condition = periodic | yielding
    elif kind == "steps":
        condition = EverySteps(8)
    for _ in range(30):
        clock.now += 8
        if kind == "retry":
            condition()
            condition.retry()
        assert at_once(8, condition) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_child_does_not_wait_for_a_thread_it_does_not_have() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(metadata: Metadata) -> bool:
        inside.set()
        return go_on.wait(60)

    busy = PeriodicSaveCondition(0) & slow
    thread = threading.Thread(target=busy)
    thread.start()
    assert inside.wait(60)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)  # ends a child that waits
            os._exit(0 if PeriodicSaveCondition(0)() else 1)
        finally:
            os._exit(2)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        go_on.set()
        thread.join()


def test_a_failed_save_is_tried_again_at_the_next_call_and_once() -> None:
    clock = Clock()
    for condition in (PeriodicSaveCondition(8, clock=clock), EverySteps(8) | OnImprovement(), OnImprovement() & EverySteps(8)):
        condition.retry()
        assert [condition(), condition()] == [True, False]


def test_a_retry_and_a_tick_are_one_yes() -> None:
    clock = Clock()
    condition = PeriodicSaveCondition(8, clock=clock)
    clock.now += 8
    condition.retry()
    assert [condition(), condition()] == [True, False]


# -------------------------------------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize("start", [0.0, 0.3, 1000.0, 12345.678, 1e6 + 0.1, 1e9, -1e9])
@pytest.mark.parametrize("interval", [0.001, 0.1, 1 / 3, 0.7, 1.0, 60.1, 600.0])
def test_no_tick_is_lost_to_rounding(start: float, interval: float) -> None:
    clock = Clock()
    clock.now = start
    condition = PeriodicSaveCondition(interval, clock=clock)
    answers = []
    for number in range(1001):
        clock.now = start + number * interval
        answers.append(condition())
        assert not condition()
    assert answers == [False] + [True] * 1000


@pytest.mark.parametrize("interval", [0.1, 0.7, 1 / 3])
def test_a_clock_that_adds_up_its_rounding_loses_nothing(interval: float) -> None:
    clock = Clock()
    clock.now = 0.0
    condition = PeriodicSaveCondition(interval, clock=clock)
    answers = []
    for _ in range(1000):
        clock.now += interval
        answers.append(condition())
    assert sum(answers) == 1000


@given(
    st.floats(1e-3, 1e5),
    st.sampled_from([0.0, 1.7, 1e5, 1e9]) | st.floats(0, 1e9),
    st.lists(st.floats(0, 3), max_size=60),
)
def test_asked_at_random_each_interval_is_answered_once_and_never_clearly_early(
    interval: float, start: float, waits: list[float]
) -> None:
    clock = Clock()
    clock.now = start
    condition = PeriodicSaveCondition(interval, clock=clock)
    near = 1e-8 + 10 * math.ulp(start + 200 * interval) / interval  # in intervals
    answered = 0.0  # as many intervals as were over at the last yes
    for wait in waits:
        clock.now += wait * interval
        passed = Fraction(clock.now - start) / Fraction(interval)
        if condition():
            assert passed >= answered + 1 - near
            answered = math.floor(passed + Fraction(near))
        else:
            assert passed < answered + 1 + near


def test_a_clock_too_coarse_for_the_interval_says_yes_at_its_own_ticks_only() -> None:
    clock = Clock()
    clock.now = 1e9
    condition = PeriodicSaveCondition(1e-8, clock=clock)
    assert [condition() for _ in range(3)] == [False] * 3
    clock.now = math.nextafter(1e9, math.inf)
    assert [condition() for _ in range(3)] == [True, False, False]
    for_ever = PeriodicSaveCondition(math.inf, clock=clock)
    clock.now = 1e18
    assert not for_ever()


# ----------------------------------------------------------------------------------------------------------------- steps


def test_without_metadata_every_nth_call_counts() -> None:
    condition = EverySteps(3)
    assert [condition() for _ in range(7)] == [False, False, True, False, False, True, False]
    assert [EverySteps(1)() for _ in range(3)] == [True] * 3


@given(st.integers(1, 20), st.integers(0, 100), st.lists(st.integers(1, 50), max_size=40))
def test_each_multiple_of_n_that_was_passed_is_answered_once(n: int, first: int, strides: list[int]) -> None:
    condition = EverySteps(n)
    step = first
    assert condition({"step": step}) is (step > 0 and step % n == 0)
    for stride in strides:
        passed = any(number % n == 0 for number in range(step + 1, step + stride + 1))
        step += stride
        assert condition({"step": step}) is passed


def test_a_resumed_run_keeps_the_steps_of_the_first() -> None:
    whole = [step for step in range(50) if EverySteps(10)({"step": step})]
    resumed = EverySteps(10)
    assert whole == [10, 20, 30, 40]
    assert [step for step in range(25, 50) if resumed({"step": step})] == [30, 40]


def test_steps_in_strides_go_on_after_a_resume_by_their_state() -> None:
    first, second = EverySteps(100), EverySteps(100)
    assert first({"step": 164}) is False
    assert first({"step": 228}) is True
    second.load_state_dict(first.state_dict())
    assert second({"step": 292}) is False
    third = EverySteps(100)
    third.load_state_dict(first.state_dict())
    assert third({"step": 310}) is True


def test_calls_are_counted_on_after_a_resume() -> None:
    first, second = EverySteps(3), EverySteps(3)
    first()
    second.load_state_dict(first.state_dict())
    assert [second(), second()] == [False, True]


def test_a_step_back_begins_again_from_there() -> None:
    condition = EverySteps(10)
    assert [condition({"step": step}) for step in (30, 12, 15, 20)] == [True, False, False, True]


@pytest.mark.parametrize("step", ["3", b"3", [1], math.nan, math.inf, {}])
def test_a_step_that_is_no_number_is_refused(step: Any) -> None:
    with pytest.raises(UsageTypeError, match="a step is a number"):
        EverySteps(3)({"step": step})


def test_steps_of_other_kinds_of_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert [step_of({"step": step}) for step in (numpy.int64(7), numpy.float32(7.5), 7.9, True)] == [7, 7, 7, 1]
    assert type(step_of({"step": numpy.int64(7)})) is int
    assert step_of({"step": None}) is step_of({}) is step_of(None) is None


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3", None])
def test_a_number_of_steps_is_a_whole_one(n: Any) -> None:
    with pytest.raises(UsageError):
        EverySteps(n)


# ----------------------------------------------------------------------------------------------------------- improvement


def losses(condition: SaveCondition, *values: Any) -> list[bool]:
    return [condition({"loss": value}) for value in values]


def test_only_what_is_better_than_ever_is_saved() -> None:
    condition = OnImprovement()
    assert losses(condition, 3, 2, 2, 2.5, 1.9) == [True, True, False, False, True]
    assert condition.best == 1.9
    assert losses(OnImprovement(mode="max"), 3, 2, 3.5, 3.5) == [True, False, True, False]


def test_nan_never_improves_and_is_always_improved_on() -> None:
    for mode in ("min", "max"):
        assert losses(OnImprovement(mode=mode), math.nan, 1, math.nan, 1) == [False, True, False, False]


def test_infinity_in_the_wrong_direction_is_no_improvement() -> None:
    assert losses(OnImprovement(), math.inf, 1e308, -math.inf, -math.inf) == [False, True, True, False]
    assert losses(OnImprovement(mode="max"), -math.inf, -1e308) == [False, True]


def test_small_improvements_add_up_until_they_are_more_than_min_delta() -> None:
    assert losses(OnImprovement(min_delta=0.25), 1, 0.875, 0.75, 0.625, 0.5) == [True, False, False, True, False]


def test_where_the_metric_is_missing_nothing_improves() -> None:
    condition = OnImprovement("accuracy", "max")
    assert [condition(), condition({}), condition({"accuracy": None}), condition({"accuracy": 0})] == [
        False,
        False,
        False,
        True,
    ]


def test_numbers_of_numpy_are_numbers_and_text_is_not() -> None:
    numpy = pytest.importorskip("numpy")
    assert losses(OnImprovement(), numpy.float32(0.5), numpy.array(0.25)) == [True, True]
    for odd in ("0.5", numpy.zeros(2), [1]):
        with pytest.raises(UsageTypeError, match="'loss' is no number"):
            OnImprovement()({"loss": odd})


def test_the_best_value_survives_a_resume() -> None:
    first, second = OnImprovement(), OnImprovement()
    losses(first, 2)
    second.load_state_dict(first.state_dict())
    assert second.best == 2
    assert losses(second, 3, 2, 1) == [False, False, True]


def test_the_best_of_another_metric_is_ignored() -> None:
    first = OnImprovement()
    losses(first, 2)
    for other in (OnImprovement("accuracy"), OnImprovement(mode="max")):
        other.load_state_dict(first.state_dict())
        assert other.best is None


@pytest.mark.parametrize("wrong", [{"mode": "least"}, {"min_delta": -1}, {"min_delta": math.nan}, {"min_delta": math.inf}])
def test_a_wrong_improvement_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        OnImprovement(**wrong)


# ---------------------------------------------------------------------------------------------------------- combinations


def never(metadata: Metadata) -> bool:
    return False


def is_there(metadata: Metadata) -> bool:
    return metadata is not None


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60))
def test_a_tick_waits_for_the_other_condition_in_both_and_for_nobody_in_either(asked: list[tuple[int, bool]]) -> None:
    clock = Clock()
    both = PeriodicSaveCondition(8, clock=clock) & is_there
    either = is_there | PeriodicSaveCondition(8, clock=clock)
    elapsed = 0
    waiting = False
    for wait, other in asked:
        clock.now += wait
        ticked = any(moment % 8 == 0 for moment in range(elapsed + 1, elapsed + wait + 1))
        elapsed += wait
        waiting = waiting or ticked
        metadata = {} if other else None
        assert both(metadata) is (waiting and other)
        assert either(metadata) is (ticked or other)
        waiting = waiting and not other


def test_at_most_every_three_steps_what_is_better_than_the_last_save() -> None:
    condition = EverySteps(3) & OnImprovement()
    # The 5 of the second call was never saved, so the 6 improves on the 7 that was.
    assert losses(condition, 9, 8, 7, 5, 8, 8, 6, 6, 6, 5) == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_in_either_a_save_for_one_reason_leaves_the_best_of_the_other() -> None:
    better = OnImprovement()
    condition = EverySteps(2) | better
    assert losses(condition, 5, 7, 6, 4) == [True, True, False, True]
    assert better.best == 4


def test_three_conditions_and_plain_functions_combine() -> None:
    condition = (EverySteps(2) | EverySteps(3)) & (lambda metadata: True)
    assert [condition() for _ in range(6)] == [False, True, True, True, False, True]
    first = never | (EverySteps(2) & EverySteps(3))
    assert [first() for _ in range(6)] == [False, False, True, False, False, True]


def test_a_combination_remembers_what_its_parts_do() -> None:
    def made() -> SaveCondition:
        return PeriodicSaveCondition(60) | (OnImprovement() & EverySteps(1))

    first, second = made(), made()
    losses(first, 2)
    second.load_state_dict(first.state_dict())
    assert losses(second, 3, 1) == [False, True]


def test_the_state_of_another_combination_is_ignored() -> None:
    first = EverySteps(2) | OnImprovement()
    losses(first, 2)
    for other in (OnImprovement() | EverySteps(2), OnImprovement(), EverySteps(5), PeriodicSaveCondition(60)):
        other.load_state_dict(first.state_dict())
        assert isinstance(other({"loss": 1}), bool)


def test_nothing_else_combines() -> None:
    odd: Any = 5
    for combine in (lambda: EverySteps(2) | odd, lambda: odd & EverySteps(2), lambda: EverySteps(2) & None):  # type: ignore[operator]
        with pytest.raises(TypeError):
            combine()


def test_a_condition_of_the_users_own_needs_one_method() -> None:
    class WhenAsked(SaveCondition):
        def __init__(self) -> None:
            self.asked = 0

        def due(self, metadata: Metadata) -> Callable[[], object] | None:
            return self.use if self.asked else None

        def use(self) -> None:
            self.asked -= 1

    own = WhenAsked()
    condition = own & EverySteps(2)
    own.asked = 2
    assert [condition() for _ in range(5)] == [False, True, False, True, False]
    own.retry()
    assert own()


def test_conditions_spell_themselves() -> None:
    both = PeriodicSaveCondition("10 min") & OnImprovement("accuracy", "max", 0.5) | EverySteps(3)
    better = "OnImprovement(metric='accuracy', mode='max', min_delta=0.5)"
    assert repr(both) == f"(PeriodicSaveCondition(interval=600) & {better}) | EverySteps(n=3)"
    assert repr(EverySteps(1) | never) == "EverySteps(n=1) | never"


# ------------------------------------------------------------------------------------------------------ earlier snapshots


def test_the_best_of_earlier_metadata_is_recalled_and_the_last_step() -> None:
    earlier: list[dict[str, Any]] = [
        {"loss": 3, "step": 5},
        {"loss": 2.5},
        {"loss": math.nan, "step": 228},
        {"loss": 4},
        {"loss": "text", "step": "text"},
        {},
    ]
    low, high, steps = OnImprovement(min_delta=1), OnImprovement(mode="max"), EverySteps(100)
    ((low | high) & (steps | never)).recall(earlier)
    assert (low.best, high.best) == (2.5, 4)
    assert [steps({"step": step}) for step in (292, 301)] == [False, True]
    low.recall([{"loss": 1}])
    assert low.best == 2.5  # it has its own memory
    steps.recall([{"step": 900}])
    assert steps({"step": 401})


def test_nothing_is_recalled_where_there_is_nothing() -> None:
    for condition in (OnImprovement(), EverySteps(2), PeriodicSaveCondition(8), OnImprovement() & never):
        before = condition.state_dict()
        condition.recall([])
        condition.recall([{}, {"other": 1}])
        assert condition.state_dict() == before


def test_counted_calls_are_a_memory() -> None:
    condition = EverySteps(2)
    condition()
    condition.recall([{"step": 7}])
    assert condition.state_dict() == {"since": None, "calls": 1}


# ------------------------------------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (math.inf, math.inf),
        (timedelta(minutes=2), 120.0),
        ("30s", 30.0),
        ("30 s", 30.0),
        (" 10 min ", 600.0),
        ("1.5 h", 5400.0),
        ("2d", 172800.0),
        ("7 days", 604800.0),
        ("1 week", 604800.0),
        ("250 ms", 0.25),
        (".5 sec", 0.5),
        ("+1 minute", 60.0),
        ("0 hours", 0.0),
    ],
)
def test_durations_are_understood(text: Any, expected: float) -> None:
    assert seconds(text) == expected
    assert type(seconds(text)) is float


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10", "has no unit"),
        ("10 m", "minutes or months"),
        ("6M", "minutes or months"),
        ("10 parsecs", "'parsecs' in '10 parsecs' is no unit"),
        ("10 Min", "is no unit"),
        ("", "cannot be ''"),
        ("min", "cannot be 'min'"),
        ("1h 30min", "cannot be"),
        ("1e3 s", "cannot be"),
        ("1,5 h", "cannot be"),
        ("inf s", "cannot be"),
        ("nan", "cannot be"),
        ("٣ s", "cannot be"),
        ("-5 s", "not negative"),
        (-1, "not negative"),
        (timedelta(seconds=-1), "not negative"),
        (math.nan, "not a number"),
        (10**400, "too large"),
        ("9" * 400 + " s", "too large"),
        (True, "a number or text"),
        (None, "a number or text"),
        ([5], "a number or text"),
        (b"5 s", "a number or text"),
        (b"5", "a number or text"),
    ],
)
def test_what_is_no_duration_is_refused_with_a_reason(text: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        seconds(text, "an age")
    assert caught.value.hint
    with pytest.raises(ValueError):
        PeriodicSaveCondition(text)


def test_every_is_counted_by_whoever_asks() -> None:
    """The sum of it: a loop that asks at each step saves as often as ticks have passed, and at the first step after each."""
    clock = Clock()
    condition = PeriodicSaveCondition("10 s", clock=clock)
    saved = []
    for step in count():
        clock.now += 3
        if condition({"step": step}):
            saved.append(3 * (step + 1))
        if step == 20:
            break
    assert saved == [12, 21, 30, 42, 51, 60]
