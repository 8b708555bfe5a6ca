"""Lines of bars: what stands high, what is a gap, and what fits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cli.sparkline import sparkline
from perdure.errors import UsageError

anything = st.lists(st.none() | st.floats() | st.integers(-(10**400), 10**400), max_size=60)


def test_each_number_is_as_high_as_it_is_great() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 1, 2], 40) == "█▁▅"


def test_the_scale_is_that_of_the_series() -> None:
    assert sparkline([-1e-9, 0, 1e-9], 3) == sparkline([100, 200, 300], 3) == "▁▅█"


def test_none_and_nan_are_gaps() -> None:
    assert sparkline([None, 1, math.nan, 2, None], 5) == " ▁ █ "
    assert sparkline([None, math.nan], 5) == "  "


def test_equal_numbers_are_a_level_line() -> None:
    assert sparkline([5, 5, 5], 3) == "▄▄▄"
    assert sparkline([0.1] * 1000, 7) == "▄" * 7  # whatever adding them up makes of the last digit


def test_nothing_is_an_empty_line() -> None:
    assert sparkline([], 10) == ""


def test_more_numbers_than_room_are_shown_by_their_means() -> None:
    assert sparkline([0, 0, 7, 7, 14, 14], 3) == sparkline([0, 7, 14], 3)
    assert sparkline([-1, 1, 4, 6], 2) == "▁█"
    assert sparkline([0, 10, 4, 5.9], 2) == "█▁"  # means of 5 and 4.95: neither the first nor the last of each


def test_a_gap_takes_no_part_in_a_mean() -> None:
    assert sparkline([2, None, math.nan, 3], 2) == "▁█"
    assert sparkline([1, 1, None, None, 2, 2], 3) == "▁ █"


def test_infinite_numbers_do_not_flatten_the_others() -> None:
    assert sparkline([math.inf, 1, 2, 3, -math.inf], 5) == "█▁▅█▁"
    assert sparkline([10**400, 1, 2, 3], 4) == "█▁▅█"


def test_numbers_as_far_apart_as_floats_go_have_a_scale() -> None:
    assert sparkline([-1.7e308, 0, 1.7e308], 3) == "▁▅█"
    assert sparkline([1.7e308] * 4 + [0.0] * 4, 2) == "█▁"


def test_ascii_is_ascii_and_has_as_many_levels() -> None:
    line = sparkline([0, 1, 2, 3, 4, 5, 6, 7, None], 9, ascii=True)
    assert line == "_.-=+*%# "


def test_a_line_without_width_is_refused() -> None:
    with pytest.raises(UsageError, match="width of at least 1, not 0"):
        sparkline([1], 0)


@given(anything, st.integers(1, 70), st.booleans())
def test_any_series_fits_and_shows_its_extremes(values: list[float | None], width: int, ascii: bool) -> None:
    line = sparkline(values, width, ascii=ascii)
    assert len(line) == min(len(values), width)
    bars = "_.-=+*%#" if ascii else "▁▂▃▄▅▆▇█"
    assert set(line) <= {*bars, " "}
    finite = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    if len(values) <= width and len(finite) == len(values) and len(set(finite)) > 1:
        assert line[values.index(min(finite))] == bars[0]
        assert line[values.index(max(finite))] == bars[-1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_greater_never_stands_lower(values: list[float]) -> None:
    line = sparkline(values, 40)
    by_value = [bar for _, bar in sorted(zip(values, line, strict=True))]
    assert by_value == sorted(by_value)
