"""The names of `pamiq_core.state_persistence`, for a program that saves its state by them.

Change `from pamiq_core.state_persistence import ...` into `from perdure.compat.pamiq_core.state_persistence import ...`. What
differs is in the manual, under "Coming from pamiq-core".
"""

from __future__ import annotations

from .state_persistence import (
    LatestStatesKeeper,
    PeriodicSaveCondition,
    PersistentStateMixin,
    StatesKeeper,
    StateStore,
    load_pickle,
    save_pickle,
)

__all__ = [
    "LatestStatesKeeper",
    "PeriodicSaveCondition",
    "PersistentStateMixin",
    "StateStore",
    "StatesKeeper",
    "load_pickle",
    "save_pickle",
]
