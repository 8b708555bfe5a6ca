"""The names of pamiq-core's module `state_persistence`."""

from __future__ import annotations

from ...snapshots.components import PersistentStateMixin
from ...snapshots.conditions import PeriodicSaveCondition
from ...snapshots.pickles import load_pickle, save_pickle
from ...snapshots.states_keeper import LatestStatesKeeper, StatesKeeper
from ...snapshots.store import StateStore

__all__ = [
    "LatestStatesKeeper",
    "PeriodicSaveCondition",
    "PersistentStateMixin",
    "StateStore",
    "StatesKeeper",
    "load_pickle",
    "save_pickle",
]
