"""The names of persidict's module `local_dict`."""

import time as time

from ...mapping.family import LocalDict

__all__ = ["LocalDict"]
