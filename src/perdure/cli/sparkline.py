"""A series of numbers as one line of small bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from ..errors import UsageError

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.-=+*%#"
_GAP: Final = " "


def sparkline(values: Sequence[float | None], width: int, *, ascii: bool = False) -> str:
    """Draw numbers as bars, the least one lowest and the greatest one highest.

    Args:
        values: The numbers in their order. `None` and NaN are gaps. Infinite ones stand at the top or the bottom, and the
            others share the scale as if these were not there.
        width: How many characters at most. Fewer numbers take one character each; of more, each character shows the mean of
            neighbours, gaps left out.
        ascii: Draw with ASCII alone, where the terminal or the file takes no more.

    Returns:
        The line, without an end of line; empty where there are no numbers. A series of equal numbers is a line at half height.

    Raises:
        UsageError: `width` is less than 1.

    Cost: linear in the numbers. Safe from any thread.
    """
    if width < 1:
        raise UsageError(
            f"a line needs a width of at least 1, not {width}", hint="Give the number of characters there is room for."
        )
    reals = [_real(value) for value in values]
    columns = min(len(reals), width)
    means = [_mean(reals[i * len(reals) // columns : (i + 1) * len(reals) // columns]) for i in range(columns)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    bars = _ASCII if ascii else _BLOCKS
    return "".join(_GAP if math.isnan(mean) else bars[_level(mean, low, high)] for mean in means)


def _real(value: float | None) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:  # of an integer with hundreds of digits
        return math.inf if value > 0 else -math.inf


def _mean(values: list[float]) -> float:
    """The mean of what is no gap; NaN of nothing, and of infinities that contradict each other."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    mean = sum(value / len(known) for value in known)  # a sum of the numbers themselves could become infinite
    # Rounding must not carry it outside, or a series of equal numbers would show mountains.
    return mean if math.isnan(mean) else min(max(mean, min(known)), max(known))


def _level(value: float, low: float, high: float) -> int:
    top = len(_BLOCKS) - 1
    if math.isinf(value):
        return top if value > 0 else 0
    if low == high:
        return top // 2
    half = 0.5 if math.isinf(high - low) else 1.0
    return min(top, int((value * half - low * half) / (high * half - low * half) * len(_BLOCKS)))
