"""Everything perdure raises, one class for each *reaction* a caller can have.

::

    PerdureError
    ├── NotFoundError (KeyError)          the key is absent: create it, or use a default
    │   └── SnapshotNotFoundError (FileNotFoundError)   ... and it was to be a snapshot
    ├── NotModified                       `get(if_none_match=...)`: keep using what you have
    ├── PreconditionError                 somebody else was first: read again, decide again
    │   ├── ConflictError (RuntimeError)  ... and every retry lost as well
    │   └── LeaseLostError                ... and holds the lock that was yours: stop
    ├── InvalidKeyError (ValueError)      the key can never work here: change the key
    │   └── InvalidKeyTypeError (TypeError)   ... as it is not made of strings
    ├── CodecError (ValueError)           the value cannot be written, or what is stored cannot be read
    │   ├── IntegrityError                the stored bytes are damaged
    │   └── UntrustedError                reading them could run code, or their signature does not fit
    ├── PolicyError (TypeError)           read-only, write-once, append-only: not allowed here by design
    ├── UsageError (ValueError)           a URL, an option or a setting is wrong: change the call
    │   ├── UsageTypeError (TypeError)        ... as it is of the wrong type
    │   └── DuplicateNameError (KeyError)     ... as the name is taken
    ├── ComponentError (RuntimeError)     an object could not save or load its part of a snapshot: see its `__cause__`
    ├── MissingExtraError (ImportError)   an optional dependency is not installed: the message says what to type
    └── BackendError (OSError, RuntimeError)   the place itself failed
        ├── UnavailableError              ... for the moment: the same call may work later
        │   ├── MissingRankError (TimeoutError)   ... as other processes did not bring their parts of a snapshot
        │   └── NotAcquiredError (TimeoutError)   ... as others held the lock for longer than you would wait
        └── UnknownOutcomeError           ... and the write may or may not have happened

Each error says which key, in which place, and what to do next, and keeps these as the attributes `key`, `place` and `hint`.
Whatever a driver or the operating system raised is the `__cause__`. All of them survive pickling, so they cross process pools.
The one warning, `UntrustedWarning`, stands outside this tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

__all__ = [
    "BackendError",
    "CodecError",
    "ComponentError",
    "ConflictError",
    "DuplicateNameError",
    "IntegrityError",
    "InvalidKeyError",
    "InvalidKeyTypeError",
    "LeaseLostError",
    "MissingExtraError",
    "MissingRankError",
    "NotAcquiredError",
    "NotFoundError",
    "NotModified",
    "PerdureError",
    "PolicyError",
    "PreconditionError",
    "SnapshotNotFoundError",
    "UnavailableError",
    "UnknownOutcomeError",
    "UntrustedError",
    "UntrustedWarning",
    "UsageError",
    "UsageTypeError",
]


class PerdureError(Exception):
    """The root of the tree; catches everything perdure raises on purpose.

    Args:
        problem: What went wrong, without a full stop.
        key: The key concerned, as the layer that raises knows it (`"a/b"` in a backend, a tuple in a dict).
        place: Where: a URL without secrets.
        hint: What to do next, as a full sentence.
    """

    def __init__(self, problem: str = "", *, key: object = None, place: str | None = None, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.key = key
        self.place = place
        self.hint = hint

    def __str__(self) -> str:
        where = "" if self.key is None else f"key {_spell(self.key)}"
        if self.place:
            where += f" in {self.place}" if where else f"in {self.place}"
        text = ": ".join(part for part in (where.removesuffix(":"), self.problem) if part)  # not "in null::"
        return f"{text.removesuffix('.')}. {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ calls cls(*args) and so loses, or trips over, keyword arguments.
        return _revive, (type(self), self.args), self.__dict__

    def at(self, key: object = None, place: str | None = None) -> Self:
        """Fill in the key or the place where they are still unknown, and return the same error."""
        if self.key is None:
            self.key = key
        if self.place is None:
            self.place = place
        return self


def _spell(key: object) -> str:
    spelled = repr("/".join(key)) if isinstance(key, tuple) and all(isinstance(k, str) for k in key) else repr(key)
    return spelled if len(spelled) <= 300 else f"{spelled[:60]}...{spelled[-10:]}"


def _revive(cls: type[PerdureError], args: tuple[Any, ...]) -> PerdureError:
    error = cls.__new__(cls, *args)
    error.args = args
    return error


class NotFoundError(PerdureError, KeyError):
    """There is nothing under this key."""

    def __init__(
        self, problem: str = "not found", *, key: object = None, place: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(problem, key=key, place=place, hint=hint)
        if key is not None:
            self.args = (key,)  # where code that catches a dict's KeyError looks for it


class SnapshotNotFoundError(NotFoundError, FileNotFoundError):
    """There is no snapshot of this name, or none at all."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return FileNotFoundError.__new__(cls)  # by name: what `KeyError` brings along refuses to make an `OSError`


class NotModified(PerdureError):
    """`get(if_none_match=etag)` found the same ETag: what the caller holds is still current.

    Attributes:
        modified: When it was written, in seconds since the epoch, where the place said so.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        key: object = None,
        place: str | None = None,
        hint: str | None = None,
        modified: float | None = None,
    ) -> None:
        super().__init__(problem, key=key, place=place, hint=hint)
        self.modified = modified


class PreconditionError(PerdureError):
    """`if_match` did not hold: the value is another one, absent, or (for `ABSENT`) already there. Nothing was changed."""


class ConflictError(PreconditionError, RuntimeError):
    """Every attempt of a read-change-write loop lost against another writer.

    Programs written for persidict make one by `ConflictError(key, attempts)`.

    Attributes:
        attempts: How many times it was tried.
    """

    def __init__(
        self,
        problem: Any = "",
        attempts: int | None = None,
        *,
        key: object = None,
        place: str | None = None,
        hint: str | None = None,
    ) -> None:
        if attempts is not None:
            key, problem = problem, f"another writer was first, {'once' if attempts == 1 else f'{attempts} times'}"
        super().__init__(problem, key=key, place=place, hint=hint)
        self.attempts = attempts or 0


class LeaseLostError(PreconditionError):
    """A lease that was held is held no more, and others may hold it by now: what it protects must not be touched."""


class InvalidKeyError(PerdureError, ValueError):
    """The key breaks the grammar, or is too long for this place. Raised before any input or output."""


class InvalidKeyTypeError(InvalidKeyError, TypeError):
    """The key holds something other than strings."""


class CodecError(PerdureError, ValueError):
    """A value cannot be encoded (nothing was written) or stored bytes cannot be decoded (nothing was changed)."""


class IntegrityError(CodecError):
    """The stored bytes are not what was written: flipped, cut, zeroed or foreign."""


class UntrustedError(CodecError):
    """Decoding could run code and was not opted into, or a signature is missing, wrong, or made with another key."""


class PolicyError(PerdureError, TypeError):
    """The place or the dict refuses this value or this kind of change by design: read-only, write-once, append-only.

    Args:
        problem: What was refused; the name of a policy alone stands for both.

    Attributes:
        policy: Which policy: `"append-only"`, `"write-once"`, `"read-only"`; `None` where it is about the value.
    """

    def __init__(self, problem: str = "", *, key: object = None, place: str | None = None, hint: str | None = None) -> None:
        super().__init__(problem, key=key, place=place, hint=hint)
        self.policy: str | None = problem if problem in ("append-only", "write-once", "read-only") else None


class UntrustedWarning(UserWarning):
    """A codec that can run code reads from a place where others may write, and nothing is signed. Not an error."""


class UsageError(PerdureError, ValueError):
    """The call itself is wrong: an unknown scheme or option, or settings that contradict what the place was written with."""


class UsageTypeError(UsageError, TypeError):
    """An argument is of the wrong type."""


class DuplicateNameError(UsageError, KeyError):
    """Something else has this name already."""


class ComponentError(PerdureError, RuntimeError):
    """A registered object could not save or load its part of a snapshot; what it raised is the `__cause__`.

    Attributes:
        component: The name of the object that failed.
        loaded: The names of those that had been loaded before it, and now have the state of the snapshot.
        untouched: The names of those that still have the state from before.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        key: object = None,
        place: str | None = None,
        hint: str | None = None,
        component: str = "",
        loaded: Sequence[str] = (),
        untouched: Sequence[str] = (),
    ) -> None:
        super().__init__(problem, key=key, place=place, hint=hint)
        self.component = component
        self.loaded = tuple(loaded)
        self.untouched = tuple(untouched)


class MissingExtraError(PerdureError, ImportError):
    """An optional dependency is not installed.

    Args:
        module: The module that could not be imported, such as `"boto3"`.
        extra: The extra of this distribution that brings it, such as `"s3"`.
    """

    def __init__(self, module: str = "", extra: str = "") -> None:
        super().__init__(f"{module} is not installed", hint=f"Type: pip install 'perdure[{extra}]'")


class BackendError(PerdureError, OSError, RuntimeError):
    """The place failed: disk full, permission denied, bucket missing, database damaged, backend closed.

    Attributes:
        errno: The number that the operating system gave, where it was the one that failed.
        backend: The kind of place, such as `"filesystem"`, where that was said.
        operation: What was being done, such as `"init"`, where that was said.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        key: object = None,
        place: str | None = None,
        hint: str | None = None,
        errno: int | None = None,
        backend: str | None = None,
        operation: str | None = None,
    ) -> None:
        super().__init__(problem, key=key, place=place, hint=hint)
        self.errno = errno
        self.backend = backend
        self.operation = operation

    def __reduce__(self) -> tuple[Any, ...]:
        # `errno` lives in a C slot of OSError, not in __dict__.
        return _revive, (type(self), self.args), self.__dict__ | {"errno": self.errno}


class UnavailableError(BackendError):
    """The place cannot be reached or is too busy at the moment; nothing was changed and the same call may work later."""


class MissingRankError(UnavailableError, TimeoutError):
    """Not all processes of a job brought their parts of a snapshot in time; there is no such snapshot.

    Attributes:
        ranks: The numbers of those that are missing.
    """

    ranks: tuple[int, ...] = ()


class NotAcquiredError(UnavailableError, TimeoutError):
    """A lock or a slot of a semaphore was not free within the time that was allowed."""


class UnknownOutcomeError(BackendError):
    """A write was sent, its answer was lost, and it cannot be told any more whether it took effect.

    Never reported as success, never as conflict. Read the key to see what is there now.

    Attributes:
        token: The unique token of the write, as the backend recorded it; for logs.
    """

    token: str | None = None
