"""Backends over backends: `Cached(remote, local)` keeps copies of a remote place in a local one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cached import Cached

__all__ = ["Cached"]


def __getattr__(name: str) -> Any:
    # At first use, so that one wrapper does not cost the imports of all.
    if name == "Cached":
        from .cached import Cached

        return Cached
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
