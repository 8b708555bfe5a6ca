"""Warnings that point at the line of the caller's own code."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn about what the nearest caller outside of perdure does."""
    level, frame = 1, sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("perdure."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level + 1)
