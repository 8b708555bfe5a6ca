"""The names of persidict's module `cached_mutable_dict`."""

from ...mapping.copies import MutableDictCached

__all__ = ["MutableDictCached"]
