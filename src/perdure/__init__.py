"""perdure: program state that lasts, across restarts, processes and machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .caching.creating import get_or_create, get_or_create_async
    from .caching.functions import cached
    from .codecs.security import Encrypted, Signed
    from .codecs.types import register_type
    from .errors import (
        BackendError,
        CodecError,
        ComponentError,
        ConflictError,
        IntegrityError,
        InvalidKeyError,
        LeaseLostError,
        MissingExtraError,
        NotAcquiredError,
        NotFoundError,
        NotModified,
        PerdureError,
        PolicyError,
        PreconditionError,
        SnapshotNotFoundError,
        UnavailableError,
        UnknownOutcomeError,
        UntrustedError,
        UntrustedWarning,
        UsageError,
    )
    from .keys import SafeStrTuple, replace_unsafe_chars
    from .locks.lease import lock
    from .mapping.dict import PersiDict
    from .mapping.family import BasicS3Dict, EmptyDict, FileDirDict, LocalDict, S3Dict
    from .mapping.flags import (
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
    )
    from .mapping.opening import open as open
    from .mapping.overlapping import OverlappingMultiDict
    from .mapping.write_once import WriteOnceDict
    from .protocol import ABSENT, AsyncBackend, Backend, Blob, ETag, Meta
    from .registry import open_backend
    from .snapshots.components import PersistentStateMixin
    from .snapshots.conditions import PeriodicSaveCondition
    from .snapshots.generators import RandomGenerators
    from .snapshots.keep import KeepBest, KeepEvery, KeepLatest, KeepThinned, KeepYoungerThan
    from .snapshots.manifest import Snapshot
    from .snapshots.pickles import load_pickle, save_pickle
    from .snapshots.states_keeper import LatestStatesKeeper, StatesKeeper
    from .snapshots.store import StateStore
    from .wrappers.bounded import Bounded
    from .wrappers.cached import Cached
    from .wrappers.expiring import Expiring
    from .wrappers.observed import Observed

# Where each public name lives. Loaded at first use: `import perdure` alone costs about a millisecond.
_homes = {
    "caching.creating": "get_or_create get_or_create_async",
    "caching.functions": "cached",
    "codecs.security": "Encrypted Signed",
    "codecs.types": "register_type",
    "errors": (
        "BackendError CodecError ComponentError ConflictError IntegrityError InvalidKeyError LeaseLostError MissingExtraError "
        "NotAcquiredError NotFoundError NotModified PerdureError PolicyError PreconditionError SnapshotNotFoundError "
        "UnavailableError UnknownOutcomeError UntrustedError UntrustedWarning UsageError"
    ),
    "keys": "SafeStrTuple replace_unsafe_chars",
    "locks.lease": "lock",
    "mapping.dict": "PersiDict",
    "mapping.family": "BasicS3Dict EmptyDict FileDirDict LocalDict S3Dict",
    "mapping.flags": (
        "ALWAYS_RETRIEVE ANY_ETAG DELETE_CURRENT ETAG_HAS_CHANGED ETAG_IS_THE_SAME IF_ETAG_CHANGED ITEM_NOT_AVAILABLE "
        "KEEP_CURRENT NEVER_RETRIEVE VALUE_NOT_RETRIEVED"
    ),
    "mapping.opening": "open",
    "mapping.overlapping": "OverlappingMultiDict",
    "mapping.write_once": "WriteOnceDict",
    "protocol": "ABSENT AsyncBackend Backend Blob ETag Meta",
    "registry": "open_backend",
    "snapshots.components": "PersistentStateMixin",
    "snapshots.conditions": "PeriodicSaveCondition",
    "snapshots.generators": "RandomGenerators",
    "snapshots.keep": "KeepBest KeepEvery KeepLatest KeepThinned KeepYoungerThan",
    "snapshots.manifest": "Snapshot",
    "snapshots.pickles": "load_pickle save_pickle",
    "snapshots.states_keeper": "LatestStatesKeeper StatesKeeper",
    "snapshots.store": "StateStore",
    "wrappers.bounded": "Bounded",
    "wrappers.cached": "Cached",
    "wrappers.expiring": "Expiring",
    "wrappers.observed": "Observed",
}
_home = {name: module for module, names in _homes.items() for name in names.split()}

# Written out for type checkers; a test compares it with the table. Without `open`, so that `from perdure import *` does not
# replace Python's own.
__all__ = [
    "__version__",
    "ABSENT",
    "ALWAYS_RETRIEVE",
    "ANY_ETAG",
    "AsyncBackend",
    "Backend",
    "BackendError",
    "BasicS3Dict",
    "Blob",
    "Bounded",
    "Cached",
    "CodecError",
    "ComponentError",
    "ConflictError",
    "DELETE_CURRENT",
    "ETAG_HAS_CHANGED",
    "ETAG_IS_THE_SAME",
    "ETag",
    "EmptyDict",
    "Encrypted",
    "Expiring",
    "FileDirDict",
    "IF_ETAG_CHANGED",
    "ITEM_NOT_AVAILABLE",
    "IntegrityError",
    "InvalidKeyError",
    "KEEP_CURRENT",
    "KeepBest",
    "KeepEvery",
    "KeepLatest",
    "KeepThinned",
    "KeepYoungerThan",
    "LatestStatesKeeper",
    "LeaseLostError",
    "LocalDict",
    "Meta",
    "MissingExtraError",
    "NEVER_RETRIEVE",
    "NotAcquiredError",
    "NotFoundError",
    "NotModified",
    "Observed",
    "OverlappingMultiDict",
    "PerdureError",
    "PeriodicSaveCondition",
    "PersiDict",
    "PersistentStateMixin",
    "PolicyError",
    "PreconditionError",
    "RandomGenerators",
    "S3Dict",
    "SafeStrTuple",
    "Signed",
    "Snapshot",
    "SnapshotNotFoundError",
    "StateStore",
    "StatesKeeper",
    "UnavailableError",
    "UnknownOutcomeError",
    "UntrustedError",
    "UntrustedWarning",
    "UsageError",
    "VALUE_NOT_RETRIEVED",
    "WriteOnceDict",
    "cached",
    "get_or_create",
    "get_or_create_async",
    "load_pickle",
    "lock",
    "open_backend",
    "register_type",
    "replace_unsafe_chars",
    "save_pickle",
]


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module 'perdure' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_home[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_home} - {"Any", "TYPE_CHECKING", "annotations"})
