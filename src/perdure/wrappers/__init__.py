"""Backends over backends: copies near by, a limit in bytes, an end of life, and an eye on every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bounded import Bounded
    from .cached import Cached
    from .expiring import Expiring
    from .observed import Call, Observed

_home = {"Bounded": "bounded", "Cached": "cached", "Call": "observed", "Expiring": "expiring", "Observed": "observed"}

__all__ = ["Bounded", "Cached", "Call", "Expiring", "Observed"]


def __getattr__(name: str) -> Any:
    # At first use, so that one wrapper does not cost the imports of all.
    if name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_home[name]}", __name__), name)
    return value
