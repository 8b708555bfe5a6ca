"""The names of persidict's module `empty_dict`."""

from ...mapping.family import EmptyDict

__all__ = ["EmptyDict"]
