"""The names of persidict's module `safe_str_tuple`."""

from ...keys import NonEmptySafeStrTuple
from ...keys import TupleKey as SafeStrTuple

__all__ = ["NonEmptySafeStrTuple", "SafeStrTuple"]
