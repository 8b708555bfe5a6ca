"""The names of persidict's module `overlapping_multi_dict`."""

from ...mapping.overlapping import OverlappingMultiDict

__all__ = ["OverlappingMultiDict"]
