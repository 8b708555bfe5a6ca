"""Retention policies: what each keeps, that thinning again and again loses nothing more, and how policies are spelled."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perdure.errors import UsageError
from perdure.snapshots import StateStore
from perdure.snapshots.keep import (
    KeepBest,
    Keeper,
    KeepEvery,
    KeepLatest,
    KeepThinned,
    KeepYoungerThan,
    numbers_in,
)
from perdure.snapshots.keep_spelling import parse_keeper
from perdure.snapshots.manifest import Snapshot

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def snap(sequence: int, saved: datetime = NOW, **metadata: Any) -> Snapshot:
    return Snapshot(f"id{sequence}", sequence, f"{sequence}.state", saved, metadata, {}, {})


def kept(keeper: Keeper, snapshots: Sequence[Snapshot], now: datetime = NOW) -> list[int]:
    chosen = keeper.select(snapshots, now)
    assert chosen <= set(snapshots)
    return sorted(snapshot.sequence for snapshot in chosen)


def aged(*ages: timedelta) -> list[Snapshot]:
    """Snapshots of these ages, in this order."""
    return [snap(number, NOW - age) for number, age in enumerate(ages, 1)]


def thin(snapshots: Sequence[Snapshot], keeper: Keeper, now: datetime) -> list[Snapshot]:
    return sorted(keeper.select(snapshots, now), key=lambda snapshot: snapshot.sequence)


TEN = [snap(number) for number in range(3, 13)]


def test_the_latest_are_the_last_by_sequence() -> None:
    assert kept(KeepLatest(3), TEN) == [10, 11, 12]
    assert kept(KeepLatest(1), aged(HOUR, 3 * DAY)) == [2]  # whatever the clock said
    assert kept(KeepLatest(0), TEN) == []
    assert kept(KeepLatest(11), TEN) == list(range(3, 13))
    assert kept(KeepLatest(3), []) == []


def test_every_tenth_stays_the_tenth_when_others_are_gone() -> None:
    keeper = KeepEvery(4)
    assert kept(keeper, TEN) == [4, 8, 12]
    assert kept(keeper, [snapshot for snapshot in TEN if snapshot.sequence in (4, 8, 12)]) == [4, 8, 12]
    assert kept(KeepEvery(1), TEN) == list(range(3, 13))


@pytest.mark.parametrize("age", ["2 h", "120min", 7200, 7200.0, timedelta(hours=2)])
def test_younger_than_takes_any_spelling_of_a_time_span(age: Any) -> None:
    keeper = KeepYoungerThan(age)
    assert keeper == KeepYoungerThan(timedelta(hours=2))
    assert hash(keeper) == hash(KeepYoungerThan("2h"))
    assert kept(keeper, aged(3 * HOUR, 2 * HOUR, 2 * HOUR - timedelta(microseconds=1), timedelta(0))) == [3, 4]


def test_a_snapshot_is_as_young_as_those_before_it() -> None:
    # The clock was set back by three days between the second and the third.
    assert kept(KeepYoungerThan("1d"), aged(30 * HOUR, 2 * HOUR, 3 * DAY, 4 * DAY)) == [2, 3, 4]


def test_a_snapshot_from_the_future_is_young_and_tells_nothing_about_others() -> None:
    assert kept(KeepYoungerThan("1d"), aged(3 * DAY, -365 * DAY, 2 * DAY)) == [2]
    assert kept(KeepThinned([("1h", "1min")]), aged(3 * DAY, -365 * DAY, 2 * DAY, timedelta(0))) == [2, 4]


def test_the_best_are_those_with_the_least_or_the_greatest_number() -> None:
    snapshots = [snap(number, loss=loss, acc=-loss) for number, loss in enumerate([3.0, 1, 2.5, -math.inf, 10**400], 1)]
    assert kept(KeepBest(2), snapshots) == [2, 4]
    assert kept(KeepBest(2, "acc", "max"), snapshots) == [2, 4]
    assert kept(KeepBest(2, mode="max"), snapshots) == [1, 5]
    assert kept(KeepBest(0), snapshots) == []


def test_of_equally_good_ones_the_newer_is_kept() -> None:
    snapshots = [snap(1, loss=1), snap(2, loss=1.0), snap(3, loss=2)]
    assert kept(KeepBest(1), snapshots) == [2]
    assert kept(KeepBest(1, mode="max"), [snap(1, loss=1), snap(2, loss=1)]) == [2]


@pytest.mark.parametrize("odd", [math.nan, None, "0.1", True, [0.1], {"value": 0.1}])
def test_what_is_no_number_is_never_best(odd: Any) -> None:
    assert kept(KeepBest(3), [snap(1, loss=odd), snap(2, loss=5), snap(3, other=1)]) == [2]
    assert kept(KeepBest(3, mode="max"), [snap(1, loss=odd), snap(2, loss=5)]) == [2]


def test_a_metric_that_none_has_is_lacking_and_others_are_not() -> None:
    snapshots = [snap(1, step=1, loss=math.nan, note="a", done=True), snap(2, acc=0.5)]
    assert numbers_in(snapshots) == ["acc", "loss", "step"]
    for has in ("step", "loss", "acc"):  # a loss that is NaN is spelled as it should be
        assert KeepBest(1, has).lacks(snapshots) == []
    for has_not in ("los", "note", "done"):
        assert KeepBest(1, has_not).lacks(snapshots) == [has_not]
    assert KeepBest(1, "los").lacks([]) == []  # nobody knows yet
    assert KeepLatest(1).lacks(snapshots) == KeepThinned().lacks(snapshots) == []


def test_joined_keepers_lack_what_their_parts_lack() -> None:
    class Foreign:
        def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
            return set(snapshots)

    keeper = KeepLatest(1) | KeepBest(1, "a") & KeepYoungerThan("1d") | KeepBest(1, "step") | Foreign() | KeepBest(2, "b")
    assert keeper.lacks([snap(1, step=1)]) == ["a", "b"]
    assert (KeepBest(1, "a") & KeepBest(2, "a")).lacks([snap(1)]) == ["a"]


@pytest.mark.parametrize("keeper", [KeepBest(1, "vall_loss"), KeepLatest(2) | KeepBest(1, "vall_loss") & KeepEvery(2)])
def test_a_store_warns_once_of_a_metric_that_no_snapshot_has(
    keeper: Keeper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StateStore(tmp_path / "run", keep=keeper) as store, caplog.at_level(logging.WARNING, "perdure.snapshots"):
        store.register_value("v", 1)
        store.cleanup()
        assert caplog.messages == []  # there is none that could have it
        for step in range(3):
            store.save_state({"step": step, "val_loss": 1 / (step + 1), "note": "text"})
        store.cleanup()
    (message,) = caplog.messages
    assert "no snapshot has a number 'vall_loss'" in message
    assert "There are: 'step', 'val_loss'." in message
    assert "Did you mean 'val_loss'?" in message


def test_a_store_does_not_warn_of_a_metric_that_some_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StateStore(tmp_path / "run", keep=KeepLatest(2) | KeepBest(1, "loss")) as store:
        store.register_value("v", 1)
        store.save_state({"loss": 1})
        for step in range(3):
            store.save_state({"step": step})
        assert len(store.snapshots()) == 3
    assert caplog.messages == []


def test_either_keeps_what_any_keeps_and_both_what_all_keep() -> None:
    assert kept(KeepLatest(2) | KeepEvery(5), TEN) == [5, 10, 11, 12]
    assert kept(KeepLatest(3) & KeepEvery(5), TEN) == [10]
    assert kept((KeepLatest(3) | KeepEvery(5)) & KeepEvery(2), TEN) == [10, 12]
    assert kept(KeepEvery(2) & (KeepLatest(3) | KeepEvery(5)) & KeepLatest(2), TEN) == [12]


def test_only_keepers_can_be_joined() -> None:
    with pytest.raises(TypeError):
        KeepLatest(3) | 3  # type: ignore[operator]
    with pytest.raises(TypeError):
        KeepLatest(3) & {1}  # type: ignore[operator]


def test_a_keeper_of_ones_own_needs_one_method() -> None:
    class KeepMarked(Keeper):
        def select(self, snapshots: Sequence[Snapshot], now: datetime) -> set[Snapshot]:
            return {snapshot for snapshot in snapshots if snapshot.metadata.get("keep")}

    snapshots = [snap(1, keep=True), snap(2), snap(3)]
    assert kept(KeepMarked() | KeepLatest(1), snapshots) == [1, 3]
    assert kept(KeepMarked() & KeepLatest(1), snapshots) == []


def test_thinning_keeps_all_of_an_hour_one_an_hour_of_a_day_and_one_a_day() -> None:
    start = NOW - 3 * DAY
    snapshots = [snap(number, start + number * 10 * MINUTE) for number in range(3 * 24 * 6 + 1)]
    times = {snapshot.saved for snapshot in KeepThinned().select(snapshots, NOW)}
    young = {NOW - minutes * 10 * MINUTE for minutes in range(6)}
    hourly = {NOW - hours * HOUR for hours in range(25)}  # that of a day ago stays until its hour is a day ago
    daily = {start, *(datetime(2026, 11, day, tzinfo=UTC) for day in (20, 21, 22))}
    assert times == young | hourly | daily


def test_spans_are_those_of_the_clock_in_utc_and_the_first_in_each_stays() -> None:
    keeper = KeepThinned([(None, "1d")])
    midnight = datetime(2026, 11, 20, tzinfo=UTC)
    times = [midnight - MINUTE, midnight, midnight + MINUTE, midnight + DAY - MINUTE, midnight + DAY, midnight + 2 * DAY]
    snapshots = [snap(number, time) for number, time in enumerate(times)]
    assert kept(keeper, snapshots) == [0, 1, 4, 5]
    assert kept(keeper, snapshots[:3], NOW) == [0, 1, 2]  # with the last of all, where the job would go on
    assert kept(keeper, snapshots, NOW + 10000 * DAY) == [0, 1, 4, 5]


def test_a_rule_ends_for_a_whole_span_at_once() -> None:
    keeper = KeepThinned([("1d", "1h")])
    snapshots = [snap(1, NOW + 40 * MINUTE), snap(2, NOW + 50 * MINUTE), snap(3, NOW + 90 * MINUTE)]
    almost = NOW + 25 * HOUR - timedelta(microseconds=1)
    assert kept(keeper, snapshots, almost) == [1, 3]
    assert kept(keeper, snapshots, NOW + 25 * HOUR) == [3]


def test_the_last_snapshot_survives_rules_that_end() -> None:
    assert kept(KeepThinned([("1d", None)]), aged(9 * DAY, 8 * DAY, 7 * DAY)) == [3]
    assert kept(KeepThinned(), []) == []


def test_a_clock_that_was_set_back_costs_no_snapshot() -> None:
    # Every minute for two hours; then the clock is set back by two hours, and it goes on. All of it lies weeks ago.
    start = NOW - 21 * DAY
    before = [snap(number, start + number * MINUTE) for number in range(120)]
    after = [snap(120 + number, start + number * MINUTE) for number in range(120)]
    chosen = kept(KeepThinned(), [*before, *after])
    assert chosen[0] == 0
    assert set(range(120, 239)) <= set(chosen)  # with 239 at the time of 119, all is in order again
    assert 119 in chosen  # else the next thinning would not see that these are odd
    assert kept(KeepThinned(), thin([*before, *after], KeepThinned(), NOW)) == chosen


def test_times_at_the_end_of_the_calendar_are_only_the_future() -> None:
    far = datetime.max.replace(tzinfo=UTC)
    assert kept(KeepThinned(), [snap(1, far), snap(2)]) == [1, 2]
    assert kept(KeepYoungerThan("1d"), [snap(1, far), snap(2, NOW - 2 * DAY)]) == [1]
    assert kept(KeepThinned([(None, 9e12)]), [snap(1), snap(2), snap(3)]) == [1, 3]
    assert kept(KeepThinned(), [snap(1, datetime.min.replace(tzinfo=UTC)), snap(2)]) == [1, 2]


@st.composite
def thinnings(draw: st.DrawFn) -> KeepThinned:
    """Rules of all shapes, whose spacings need not divide each other. A unit is a minute."""
    number = draw(st.integers(1, 4))
    ages = sorted(draw(st.lists(st.integers(1, 200), min_size=number, max_size=number, unique=True)))
    spacings = sorted(draw(st.lists(st.integers(0, 60), min_size=number, max_size=number, unique=True)))
    rules: list[tuple[timedelta | None, timedelta | None]] = [
        (age * MINUTE, spacing * MINUTE or None) for age, spacing in zip(ages, spacings, strict=True)
    ]
    if draw(st.booleans()):
        rules[-1] = (None, rules[-1][1])
    return KeepThinned(rules)


# How long after the one before a snapshot is saved, and whether the place is thinned then.
lives = st.lists(st.tuples(st.integers(0, 70) | st.integers(0, 5), st.booleans()), min_size=1, max_size=60)


def uncovered(keeper: KeepThinned, ever: Sequence[Snapshot], left: Sequence[Snapshot], now: datetime) -> list[str]:
    """Where a rule is broken: a snapshot of its age was there once, and none is left nearer than its spacing."""
    return [
        f"{snapshot} within {spacing}"
        for age, spacing in keeper.rules
        for snapshot in ever
        if snapshot.saved <= now and (age is None or now - snapshot.saved < age)
        if not any(
            abs(other.saved - snapshot.saved) < spacing if spacing else other == snapshot for other in left
        )
    ]  # fmt: skip


@given(thinnings(), lives, st.integers(0, 300))
@example(KeepThinned([(50 * MINUTE, 20 * MINUTE), (None, 30 * MINUTE)]), [(7, True)] * 60, 0)
def test_thinning_again_and_again_leaves_what_thinning_once_would(
    keeper: KeepThinned, life: list[tuple[int, bool]], rest: int
) -> None:
    now = NOW
    ever: list[Snapshot] = []
    left: list[Snapshot] = []
    for number, (pause, thinned) in enumerate(life):
        now += pause * MINUTE
        ever.append(snap(number, now))
        left.append(ever[-1])
        if thinned:
            left = thin(left, keeper, now)
            assert left == thin(ever, keeper, now)
            assert left == thin(left, keeper, now)
            assert not uncovered(keeper, ever, left, now)
    now += rest * MINUTE  # the job has ended, and the place is thinned as time goes by
    left = thin(left, keeper, now)
    assert left == thin(ever, keeper, now)
    assert not uncovered(keeper, ever, left, now)
    assert left[-1] == ever[-1]


@given(thinnings(), lives)
def test_nothing_that_comes_later_takes_the_place_of_a_survivor(keeper: KeepThinned, life: list[tuple[int, bool]]) -> None:
    now = NOW
    left: list[Snapshot] = []
    for number, (pause, _) in enumerate(life):
        now += pause * MINUTE
        new = snap(number, now)
        old = set(left[:-1])  # the last one may have been kept for that alone
        assert old & keeper.select(left, now) == old & keeper.select([*left, new], now)
        left = thin([*left, new], keeper, now)


@given(
    thinnings(),
    st.lists(st.tuples(st.integers(0, 40), st.integers(-300, 300) | st.just(0), st.booleans()), min_size=1, max_size=50),
)
def test_no_clock_makes_thinning_leave_a_gap(keeper: KeepThinned, life: list[tuple[int, int, bool]]) -> None:
    """Snapshots say what a clock said that runs wrong by some minutes; who thins has a good one."""
    now = NOW
    ever: list[Snapshot] = []
    left: list[Snapshot] = []
    for number, (pause, error, thinned) in enumerate(life):
        now += pause * MINUTE
        ever.append(snap(number, now + error * MINUTE))
        left.append(ever[-1])
        if thinned:
            before = left
            left = thin(before, keeper, now)
            assert left == thin(left, keeper, now)
            assert not uncovered(keeper, ever, left, now)
            past = [snapshot for snapshot in before if snapshot.saved <= now]
            odd = [late for i, late in enumerate(past) if any(early.saved > late.saved for early in past[:i])]
            future = [snapshot for snapshot in before if snapshot.saved > now]
            assert {*odd, *future, before[-1]} <= set(left)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
durations = st.timedeltas(timedelta(microseconds=1), timedelta(days=20000))
keepers: st.SearchStrategy[Keeper] = st.recursive(
    st.builds(KeepLatest, st.integers(0, 10**30))
    | st.builds(KeepEvery, st.integers(1, 10**30))
    | st.builds(KeepYoungerThan, durations | st.sampled_from(["7 d", "90 min", 0.25]))
    | st.builds(KeepBest, st.integers(0, 9), words | st.sampled_from(["loss", "min", "max", "a,b&c|d:e%2C=1", " "]))
    | st.builds(KeepBest, st.integers(0, 9), words, st.sampled_from(["min", "max"]))
    | st.just(KeepThinned())
    | thinnings(),
    lambda inner: st.builds(lambda a, b: a | b, inner, inner) | st.builds(lambda a, b: a & b, inner, inner),
    max_leaves=5,
)


@given(keepers)
def test_every_keeper_spells_what_is_read_as_that_keeper(keeper: Keeper) -> None:
    assert parse_keeper(str(keeper)) == keeper
    assert eval(repr(keeper)) == keeper
    assert pickle.loads(pickle.dumps(keeper)) == keeper
    assert hash(copy.copy(keeper)) == hash(keeper)


@given(st.lists(keepers, min_size=2, max_size=3), st.lists(st.tuples(st.integers(0, 90), st.floats() | st.none()), max_size=20))
def test_joined_keepers_choose_as_sets_are_joined(parts: list[Keeper], life: list[tuple[int, float | None]]) -> None:
    snapshots = [
        snap(number, NOW - 30 * MINUTE * (20 - number) + shift * MINUTE, loss=loss) for number, (shift, loss) in enumerate(life)
    ]
    first, second, *rest = (part.select(snapshots, NOW) for part in parts)
    assert (parts[0] | parts[1]).select(snapshots, NOW) == first | second
    assert (parts[0] & parts[1]).select(snapshots, NOW) == first & second
    if rest:
        assert ((parts[0] | parts[1]) & parts[2]).select(snapshots, NOW) == (first | second) & rest[0]


@pytest.mark.parametrize(
    ("text", "keeper"),
    [
        ("latest=3", KeepLatest(3)),
        ("every=10", KeepEvery(10)),
        ("younger=7d", KeepYoungerThan(timedelta(days=7))),
        ("younger=90 min", KeepYoungerThan(5400)),
        ("best=2", KeepBest(2, "loss", "min")),
        ("best=2:loss", KeepBest(2, "loss", "min")),
        ("best=2:accuracy:max", KeepBest(2, "accuracy", "max")),
        ("best=2:val/loss", KeepBest(2, "val/loss")),
        ("best=1:a%3Ab", KeepBest(1, "a:b")),
        ("thinned", KeepThinned()),
        ("thinned=1h:all/1d:1h/ever:1d", KeepThinned()),
        ("thinned=30d:1w", KeepThinned([("30d", "1w")])),
        ("latest=3,best=1:loss", KeepLatest(3) | KeepBest(1)),
        (" latest = 3 | best=1:loss , thinned ", KeepLatest(3) | KeepBest(1) | KeepThinned()),
        ("latest=3,every=2&younger=1d", KeepLatest(3) | KeepEvery(2) & KeepYoungerThan("1d")),
    ],
)
def test_the_command_line_spells_policies(text: str, keeper: Keeper) -> None:
    assert parse_keeper(text) == keeper


def test_what_a_keeper_spells_is_short() -> None:
    keeper = (KeepLatest(3) | KeepYoungerThan("7d")) & KeepEvery(2) | KeepBest(1, "acc", "max") | KeepThinned()
    assert str(keeper) == "latest=3&every=2,younger=7d&every=2,best=1:acc:max,thinned"
    assert repr(KeepLatest(3) | KeepYoungerThan("1.5h") & KeepThinned()) == (
        "KeepLatest(n=3) | KeepYoungerThan('90min') & KeepThinned()"
    )
    assert str(KeepBest(2, "max")) == "best=2:max:min"
    assert str(KeepYoungerThan(0.25)) == "younger=0.25s"
    assert repr(KeepThinned([("2d", "0.5s")])) == "KeepThinned([('2d', '0.5s')])"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a policy is missing"),
        ("latest=3,,every=2", "a policy is missing"),
        ("latest=3&", "a policy is missing"),
        ("lastest=3", "no policy is called 'lastest'. Did you mean 'latest'?"),
        ("Thinned", "Did you mean 'thinned'?"),
        ("younger-than=7d", "Did you mean 'younger'?"),
        ("qqq", "Policies are such as latest=3"),
        ("latest", "'latest': a number is missing. Such as latest=3"),
        ("latest=", "a number is missing"),
        ("latest=x", "'x' is no whole number"),
        ("latest=１", "is no whole number"),
        ("latest=-1", "'latest=-1': the number of latest snapshots to keep cannot be -1. Give a whole number from 0 on"),
        ("every=0", "cannot be 0. Give a whole number from 1 on"),
        ("younger", "the age up to which snapshots are kept cannot be ''"),
        ("younger=7", "has no unit"),
        ("younger=0s", "above zero"),
        ("best=loss", "'loss' is no whole number"),
        ("best=2:max", "this is not a number, a metric and a mode"),
        ("best=2:a:b:max", "a colon in the name of a metric is %3A"),
        ("best=2:loss:most", "mode 'most'. Write \"min\" where less is better"),
        ("best=2:", "'' is no name of a metric"),
        ("thinned=1h", "'1h' is no AGE:SPACING"),
        ("thinned=1h:", "a spacing cannot be ''"),
        ("thinned=1d:1h/1h:2h", "the rules do not grow: 1d:1h/1h:2h"),
        ("thinned=1h:2h/1d:1h", "the rules do not grow"),
        ("thinned=ever:1h/1d:2h", "the rules do not grow"),
        ("thinned=1h:all/1d:all", "the rules do not grow"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_keeper(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepLatest(-1),
        lambda: KeepLatest(1.5),  # type: ignore[arg-type]
        lambda: KeepLatest(True),
        lambda: KeepEvery(0),
        lambda: KeepBest(-1),
        lambda: KeepBest(1, ""),
        lambda: KeepBest(1, None),  # type: ignore[arg-type]
        lambda: KeepBest(1, "loss", "MAX"),
        lambda: KeepYoungerThan(0),
        lambda: KeepYoungerThan(-1),
        lambda: KeepYoungerThan(math.nan),
        lambda: KeepYoungerThan(math.inf),
        lambda: KeepYoungerThan(timedelta.max),
        lambda: KeepYoungerThan(None),  # type: ignore[arg-type]
        lambda: KeepThinned([]),
        lambda: KeepThinned("1h"),  # type: ignore[arg-type]
        lambda: KeepThinned(7),  # type: ignore[arg-type]
        lambda: KeepThinned([("1d",)]),  # type: ignore[list-item]
        lambda: KeepThinned([("1d", 0)]),
        lambda: parse_keeper(3),  # type: ignore[arg-type]
        lambda: KeepThinned().select([snap(1)], datetime(2026, 1, 1)),  # noqa: DTZ001
        lambda: KeepYoungerThan(1).select([], datetime(2026, 1, 1)),  # noqa: DTZ001
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(UsageError):  # which is a ValueError
        make()


def test_keepers_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        KeepLatest(3).n = 4  # type: ignore[misc]
    assert len({KeepLatest(3), KeepEvery(3), KeepBest(3)}) == 3
    assert {KeepThinned(), KeepThinned([(3600, None), (86400, timedelta(hours=1)), (None, "24h")])} == {KeepThinned()}
    assert KeepThinned() | KeepLatest(1) != KeepThinned() & KeepLatest(1)
