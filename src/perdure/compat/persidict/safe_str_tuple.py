"""The names of persidict's module `safe_str_tuple`."""

from ...keys import NonEmptySafeStrTuple
from ...keys import TupleKey as SafeStrTuple
from .safe_chars import SAFE_CHARS_SET, SAFE_STRING_MAX_LENGTH

__all__ = ["SAFE_CHARS_SET", "SAFE_STRING_MAX_LENGTH", "NonEmptySafeStrTuple", "SafeStrTuple"]
