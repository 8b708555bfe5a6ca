"""The names of persidict's module `write_once_dict`."""

from ...mapping.write_once import WriteOnceDict

__all__ = ["WriteOnceDict"]
