"""How long: a number of seconds, a timedelta, or text such as "10 min"."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final, TypeAlias

from .errors import UsageError, UsageTypeError

Duration: TypeAlias = float | str | timedelta
"""Seconds, text such as `"10 min"`, or a timedelta."""

_UNITS: Final = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
}
_IN_TEXT: Final = "Write a number and a unit, such as '30 s', '10 min', '1.5 h', '7 d' or '2 w'"
_HINT: Final = f"{_IN_TEXT}, or give a number of seconds."


def seconds(text: Duration, what: str = "a duration") -> float:
    """The number of seconds that are meant.

    Args:
        text: Seconds as a number, a timedelta, or one decimal number and one of the units ms, s, min, h, d and w, also
            spelled out (`"2 hours"`), with or without a space between them. Infinity, as a number, is for ever.
        what: What it is for, in messages: `"an interval"`.

    Returns:
        Seconds, 0 or more, never NaN.

    Raises:
        UsageError: It is negative, NaN, too large, without a unit, or with one that is not known.
        UsageTypeError: It is nothing of this kind.
    """
    if isinstance(text, str):
        return _parsed(text, what)
    try:
        if isinstance(text, (bool, bytes)):  # a number to Python's float, and no second to anybody
            raise TypeError
        number = text.total_seconds() if isinstance(text, timedelta) else float(text)
    except OverflowError as error:
        raise UsageError(f"{what} is too large", hint=_HINT) from error
    except (TypeError, ValueError) as error:
        raise UsageTypeError(f"{what} is a number or text, not {text!r:.60}", hint=_HINT) from error
    if not number >= 0:
        raise UsageError(
            f"{what} is not negative, but {text!r:.60} is" if number < 0 else f"{what} is not a number", hint=_HINT
        )
    return number


def _parsed(text: str, what: str) -> float:
    found = re.fullmatch(r"\s*([+-]?)(\d+(?:\.\d+)?|\.\d+)\s*([^\W\d_]*)\s*", text, re.ASCII)
    if found is None:
        raise UsageError(f"{what} cannot be {text!r:.60}", hint=f"{_IN_TEXT}.")
    sign, number, unit = found.groups()
    if sign == "-":
        raise UsageError(f"{what} is not negative, but {text!r:.60} is", hint=f"{_IN_TEXT}.")
    if unit in ("m", "M"):
        raise UsageError(
            f"the unit of {text!r:.60} could be minutes or months", hint="Write 'min' for minutes, or days: '30 d'."
        )
    if not unit and float(number) == 0:
        return 0.0
    if unit not in _UNITS:
        problem = f"{unit!r:.30} in {text!r:.60} is no unit" if unit else f"{text!r:.60} has no unit"
        raise UsageError(f"{what}: {problem}", hint=f"{_IN_TEXT}.")
    result = float(number) * _UNITS[unit]
    if math.isinf(result):
        raise UsageError(f"{what} is too large", hint=f"{_IN_TEXT}.")
    return result
