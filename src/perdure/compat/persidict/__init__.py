"""persidict 0.309 by its own names: `import perdure.compat.persidict as persidict` runs a program written for it.

Folders and buckets are read and written in place. What differs is written down in "Coming from persidict" of the manual; in
short: nothing is lost between processes, damage and trouble are errors at once, and pickling a dict gives a handle.
"""

from .basic_s3_dict import BasicS3Dict
from .cached_appendonly_dict import AppendOnlyDictCached
from .cached_mutable_dict import MutableDictCached
from .empty_dict import EmptyDict
from .exceptions import BackendError, ConcurrencyConflictError, MutationPolicyError
from .file_dir_dict import FileDirDict
from .jokers_and_status_flags import (
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
    ConditionalOperationResult,
    DeleteCurrentFlag,
    ETagConditionFlag,
    ETagHasChangedFlag,
    ETagIfExists,
    ETagIsTheSameFlag,
    ETagValue,
    IfETagChangedRetrieveFlag,
    ItemNotAvailableFlag,
    Joker,
    KeepCurrentFlag,
    NeverRetrieveFlag,
    OperationResult,
    RetrieveValueFlag,
    ValueNotRetrievedFlag,
)
from .local_dict import LocalDict
from .overlapping_multi_dict import OverlappingMultiDict
from .persi_dict import NonEmptyPersiDictKey, PersiDict, PersiDictKey, TransformingFunction, ValueType
from .s3_dict_file_dir_cached import S3Dict, S3Dict_FileDirCached
from .safe_chars import SAFE_CHARS_SET as SAFE_CHARS_SET
from .safe_chars import SAFE_STRING_MAX_LENGTH as SAFE_STRING_MAX_LENGTH
from .safe_chars import contains_unsafe_chars as contains_unsafe_chars
from .safe_chars import get_safe_chars, replace_unsafe_chars
from .safe_str_tuple import NonEmptySafeStrTuple, SafeStrTuple
from .write_once_dict import WriteOnceDict

__version__ = "0.309.0"
"""Of the persidict whose names these are."""

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
    "AppendOnlyDictCached",
    "BackendError",
    "BasicS3Dict",
    "ConcurrencyConflictError",
    "ConditionalOperationResult",
    "DeleteCurrentFlag",
    "ETagConditionFlag",
    "ETagHasChangedFlag",
    "ETagIfExists",
    "ETagIsTheSameFlag",
    "ETagValue",
    "EmptyDict",
    "FileDirDict",
    "IfETagChangedRetrieveFlag",
    "ItemNotAvailableFlag",
    "Joker",
    "KeepCurrentFlag",
    "LocalDict",
    "MutableDictCached",
    "MutationPolicyError",
    "NeverRetrieveFlag",
    "NonEmptyPersiDictKey",
    "NonEmptySafeStrTuple",
    "OperationResult",
    "OverlappingMultiDict",
    "PersiDict",
    "PersiDictKey",
    "RetrieveValueFlag",
    "S3Dict",
    "S3Dict_FileDirCached",
    "SafeStrTuple",
    "TransformingFunction",
    "ValueNotRetrievedFlag",
    "ValueType",
    "WriteOnceDict",
    "__version__",
    "get_safe_chars",
    "replace_unsafe_chars",
]
