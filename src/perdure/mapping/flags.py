"""The words of conditional operations: jokers, conditions, what to fetch, and the two answers that are not values.

Each is the only member of its class, so `is` compares it, a type checker narrows on it, and pickling or copying gives the
same object again.
"""

from __future__ import annotations

import enum
from typing import Any, Final

__all__ = [
    "ALWAYS_RETRIEVE",
    "ANY_ETAG",
    "DELETE_CURRENT",
    "ETAG_HAS_CHANGED",
    "ETAG_IS_THE_SAME",
    "IF_ETAG_CHANGED",
    "ITEM_NOT_AVAILABLE",
    "KEEP_CURRENT",
    "NEVER_RETRIEVE",
    "VALUE_NOT_RETRIEVED",
    "AlwaysRetrieveFlag",
    "AnyETagFlag",
    "DeleteCurrentFlag",
    "ETagConditionFlag",
    "ETagHasChangedFlag",
    "ETagIsTheSameFlag",
    "IfETagChangedRetrieveFlag",
    "ItemNotAvailableFlag",
    "Joker",
    "KeepCurrentFlag",
    "NeverRetrieveFlag",
    "NotAValue",
    "RetrieveValueFlag",
    "ValueNotRetrievedFlag",
]


class NotAValue:
    """What can never be stored as a value: the flags of this module, and dicts themselves."""

    __slots__ = ()


class Joker(NotAValue):
    """A command written where a value is expected."""

    __slots__ = ()


class ETagConditionFlag(NotAValue):
    """Under which condition an operation takes effect."""

    __slots__ = ()


class RetrieveValueFlag(NotAValue):
    """Whether a conditional operation fetches the value that is there."""

    __slots__ = ()


class _OneMember(enum.EnumMeta):
    """Calling the class without arguments gives its one member."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) if args or kwargs else next(iter(cls))


class _Flag(enum.Enum, metaclass=_OneMember):
    def __repr__(self) -> str:
        return self.name


class KeepCurrentFlag(Joker, _Flag):
    KEEP_CURRENT = "keep what is there"


class DeleteCurrentFlag(Joker, _Flag):
    DELETE_CURRENT = "delete what is there"


class AnyETagFlag(ETagConditionFlag, _Flag):
    ANY_ETAG = "always"


class ETagIsTheSameFlag(ETagConditionFlag, _Flag):
    ETAG_IS_THE_SAME = "expected == actual"


class ETagHasChangedFlag(ETagConditionFlag, _Flag):
    ETAG_HAS_CHANGED = "expected != actual"


class AlwaysRetrieveFlag(RetrieveValueFlag, _Flag):
    ALWAYS_RETRIEVE = "fetch it"


class IfETagChangedRetrieveFlag(RetrieveValueFlag, _Flag):
    IF_ETAG_CHANGED = "fetch it unless its ETag is the expected one"


class NeverRetrieveFlag(RetrieveValueFlag, _Flag):
    NEVER_RETRIEVE = "do not fetch it"


class ItemNotAvailableFlag(NotAValue, _Flag):
    ITEM_NOT_AVAILABLE = "the key is absent"


class ValueNotRetrievedFlag(NotAValue, _Flag):
    VALUE_NOT_RETRIEVED = "there is a value, and it was not fetched"


KEEP_CURRENT: Final = KeepCurrentFlag.KEEP_CURRENT
"""Written as a value: change nothing."""
DELETE_CURRENT: Final = DeleteCurrentFlag.DELETE_CURRENT
"""Written as a value: delete the key; an absent one is fine."""
ANY_ETAG: Final = AnyETagFlag.ANY_ETAG
"""Whatever is there."""
ETAG_IS_THE_SAME: Final = ETagIsTheSameFlag.ETAG_IS_THE_SAME
"""Only if the value is the one the caller has seen."""
ETAG_HAS_CHANGED: Final = ETagHasChangedFlag.ETAG_HAS_CHANGED
"""Only if the value is another than the caller has seen."""
ALWAYS_RETRIEVE: Final = AlwaysRetrieveFlag.ALWAYS_RETRIEVE
"""Fetch the value that is there."""
IF_ETAG_CHANGED: Final = IfETagChangedRetrieveFlag.IF_ETAG_CHANGED
"""Fetch it unless its ETag is the expected one, so that the caller holds it already."""
NEVER_RETRIEVE: Final = NeverRetrieveFlag.NEVER_RETRIEVE
"""Do not fetch it."""
ITEM_NOT_AVAILABLE: Final = ItemNotAvailableFlag.ITEM_NOT_AVAILABLE
"""The ETag, and the value, of an absent key."""
VALUE_NOT_RETRIEVED: Final = ValueNotRetrievedFlag.VALUE_NOT_RETRIEVED
"""There is a value, and it was not fetched."""
