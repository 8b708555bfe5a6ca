"""The names of persidict's module `jokers_and_status_flags`."""

from typing import Final as _Final

from ...mapping.flags import (
    ALWAYS_RETRIEVE,
    ANY_ETAG,
    DELETE_CURRENT,
    ETAG_HAS_CHANGED,
    ETAG_IS_THE_SAME,
    IF_ETAG_CHANGED,
    ITEM_NOT_AVAILABLE,
    KEEP_CURRENT,
    NEVER_RETRIEVE,
    VALUE_NOT_RETRIEVED,
    AlwaysRetrieveFlag,
    AnyETagFlag,
    DeleteCurrentFlag,
    ETagConditionFlag,
    ETagHasChangedFlag,
    ETagIsTheSameFlag,
    IfETagChangedRetrieveFlag,
    ItemNotAvailableFlag,
    Joker,
    KeepCurrentFlag,
    NeverRetrieveFlag,
    RetrieveValueFlag,
    ValueNotRetrievedFlag,
)
from ...mapping.flags import _Flag as _Flag
from ...mapping.results import ConditionalOperationResult, ETagIfExists, OperationResult, TransformingFunction, ValueType
from ...protocol import ETag as ETagValue


class StatusFlag:
    """What steps of persidict's own writing tell each other. Nothing here uses it."""

    __slots__ = ()


class ContinueNormalExecutionFlag(StatusFlag, _Flag):
    CONTINUE_NORMAL_EXECUTION = "go on"


class ExecutionIsCompleteFlag(StatusFlag, _Flag):
    EXECUTION_IS_COMPLETE = "done"


CONTINUE_NORMAL_EXECUTION: _Final = ContinueNormalExecutionFlag.CONTINUE_NORMAL_EXECUTION
EXECUTION_IS_COMPLETE: _Final = ExecutionIsCompleteFlag.EXECUTION_IS_COMPLETE

__all__ = [
    "ALWAYS_RETRIEVE",
    "ANY_ETAG",
    "CONTINUE_NORMAL_EXECUTION",
    "DELETE_CURRENT",
    "ETAG_HAS_CHANGED",
    "ETAG_IS_THE_SAME",
    "EXECUTION_IS_COMPLETE",
    "IF_ETAG_CHANGED",
    "ITEM_NOT_AVAILABLE",
    "KEEP_CURRENT",
    "NEVER_RETRIEVE",
    "VALUE_NOT_RETRIEVED",
    "AlwaysRetrieveFlag",
    "AnyETagFlag",
    "ConditionalOperationResult",
    "ContinueNormalExecutionFlag",
    "DeleteCurrentFlag",
    "ETagConditionFlag",
    "ETagHasChangedFlag",
    "ETagIfExists",
    "ETagIsTheSameFlag",
    "ETagValue",
    "ExecutionIsCompleteFlag",
    "IfETagChangedRetrieveFlag",
    "ItemNotAvailableFlag",
    "Joker",
    "KeepCurrentFlag",
    "NeverRetrieveFlag",
    "OperationResult",
    "RetrieveValueFlag",
    "StatusFlag",
    "TransformingFunction",
    "ValueNotRetrievedFlag",
    "ValueType",
]
