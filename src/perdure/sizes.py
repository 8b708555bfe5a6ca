"""How many bytes: a number, or text such as "10 GB"."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from .errors import UsageError, UsageTypeError

Size: TypeAlias = int | str
"""A number of bytes, or text such as `"500 MB"`."""

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_HINT: Final = "Write a number and a unit, such as '500 MB' (millions of bytes) or '2 GiB', or give a number of bytes."


def size_in_bytes(size: Size, what: str = "a size") -> int:
    """The number of bytes that is meant.

    Args:
        size: Bytes as a whole number, or one decimal number and one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB in any case, with
            or without a space between them.
        what: What it is for, in messages: `"max_bytes"`.

    Returns:
        Bytes, 1 or more.

    Raises:
        UsageError: It is zero, negative, or with a unit that is not known.
        UsageTypeError: It is neither a whole number nor text.
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", size, re.ASCII)
        if found is None or found[2].lower() not in _UNITS:
            raise UsageError(f"{what} cannot be {size!r:.60}", hint=_HINT)
        number = int(float(found[1]) * _UNITS[found[2].lower()])
    elif isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        raise UsageTypeError(f"{what} is a whole number or text, not {size!r:.60}", hint=_HINT)
    if number < 1:
        raise UsageError(f"{what} is 1 byte or more, but {size!r:.60} is not", hint=_HINT)
    return number
