"""What the tests of packing share: a round trip, and what the same means."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from perdure.snapshots.packing import Packed, check_readable, pack, unpack


def written(parts: list[Packed]) -> dict[str, memoryview]:
    """The parts as they are read again: each in memory of its own."""
    return {part.name: memoryview(bytearray(b"".join(part.pieces))) for part in parts}


def round_trip(value: object, *, trusted: bool = False, own: int = 1 << 18) -> Any:
    parts = pack(value, "it", own=own)
    if not trusted:
        check_readable(parts)
    return unpack("it", written(parts).__getitem__, trusted=trusted)


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal in all respects, also in those that `==` does not look at."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape) and one.dtype.str == other.dtype.str
        alike = alike and _order(one) == _order(other)
        if one.dtype.hasobject:
            return bool(alike) and all(map(is_same, one.ravel().tolist(), other.ravel().tolist()))
        if one.dtype.names:  # what is in the gaps between fields means nothing
            return bool(alike) and bool(np.all(one == other))
        return bool(alike) and one.tobytes() == other.tobytes()
    if isinstance(one, np.generic):
        return bool(one.dtype == other.dtype) and one.tobytes() == other.tobytes()
    if isinstance(one, (float, complex)):
        return repr(one) == repr(other)
    if isinstance(one, Mapping):
        return len(one) == len(other) and all(
            is_same(key, twin) and is_same(one[key], other[twin]) for key, twin in zip(one, other, strict=True)
        )
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def _order(array: Any) -> str:
    return "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
