"""The names of persidict's module `cached_appendonly_dict`."""

from ...mapping.copies import AppendOnlyDictCached

__all__ = ["AppendOnlyDictCached"]
