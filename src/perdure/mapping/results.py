"""What conditional operations answer."""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from ..protocol import ETag
from .flags import DeleteCurrentFlag, ItemNotAvailableFlag, KeepCurrentFlag, ValueNotRetrievedFlag

__all__ = ["ConditionalOperationResult", "ETagIfExists", "OperationResult", "TransformingFunction", "ValueType"]

ValueType = TypeVar("ValueType")
"""The type of a dict's values."""

V = TypeVar("V")

ETagIfExists: TypeAlias = ETag | ItemNotAvailableFlag
"""An ETag, or `ITEM_NOT_AVAILABLE`, which is the ETag of an absent key."""


class OperationResult(NamedTuple, Generic[V]):
    """What an unconditional operation left behind.

    Attributes:
        resulting_etag: The ETag after the operation, or `ITEM_NOT_AVAILABLE`.
        new_value: The value after the operation, or `ITEM_NOT_AVAILABLE`.
    """

    resulting_etag: ETagIfExists
    new_value: V | ItemNotAvailableFlag


class ConditionalOperationResult(NamedTuple, Generic[V]):
    """What a conditional operation found and left behind.

    Attributes:
        condition_was_satisfied: Whether the condition held; where it did not, nothing was changed.
        actual_etag: The version the condition was checked against, or `ITEM_NOT_AVAILABLE`. A write replaced exactly this.
        resulting_etag: The version after the operation, or `ITEM_NOT_AVAILABLE`.
        new_value: The value after the operation, `ITEM_NOT_AVAILABLE`, or `VALUE_NOT_RETRIEVED`.
    """

    condition_was_satisfied: bool
    actual_etag: ETagIfExists
    resulting_etag: ETagIfExists
    new_value: V | ItemNotAvailableFlag | ValueNotRetrievedFlag

    @property
    def value_was_mutated(self) -> bool:
        """Whether the ETag is another than before. (Rewriting equal bytes keeps the ETag on S3.)"""
        return self.resulting_etag != self.actual_etag


@runtime_checkable
class TransformingFunction(Protocol[ValueType]):
    """What `transform_item` takes."""

    def __call__(self, value: ValueType | ItemNotAvailableFlag, /) -> ValueType | KeepCurrentFlag | DeleteCurrentFlag:
        """Compute the next value, or say to keep or delete the current one."""
        ...
