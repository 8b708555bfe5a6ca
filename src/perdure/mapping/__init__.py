"""Dicts over a backend."""

from .dict import PersiDict
from .results import ConditionalOperationResult, ETagIfExists, OperationResult

__all__ = ["ConditionalOperationResult", "ETagIfExists", "OperationResult", "PersiDict"]
