"""The names of persidict's module `exceptions`."""

from ...errors import BackendError as BackendError
from ...errors import ConflictError as ConcurrencyConflictError
from ...errors import PolicyError as MutationPolicyError

__all__ = ["BackendError", "ConcurrencyConflictError", "MutationPolicyError"]
