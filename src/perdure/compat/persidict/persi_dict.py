"""The names of persidict's module `persi_dict`."""

import time as time
from collections.abc import Sequence
from typing import TypeAlias

from ...mapping.dict import PersiDict
from ...mapping.results import TransformingFunction, ValueType
from .safe_str_tuple import NonEmptySafeStrTuple, SafeStrTuple

PersiDictKey: TypeAlias = SafeStrTuple | Sequence[str] | str
NonEmptyPersiDictKey: TypeAlias = NonEmptySafeStrTuple | Sequence[str] | str

__all__ = ["NonEmptyPersiDictKey", "PersiDict", "PersiDictKey", "TransformingFunction", "ValueType"]
