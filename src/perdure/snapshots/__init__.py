"""Checkpoint and resume: snapshots of registered objects that are there as a whole or not at all.

The concepts, each in a file: a **snapshot** (`manifest`) has **parts**, and is kept in a **place** (`folder`, `bucket`). A
`StateStore` (`store`) saves and restores **components** (`components`, `packing`). A **keeper** (`keep`) says which snapshots
stay, a **save condition** (`conditions`) when to save. `running` puts it together for a loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cleaning import Cleaned
    from .comparison import Comparison, compare
    from .components import PersistentStateMixin, Stateful, Value
    from .conditions import EverySteps, OnImprovement, PeriodicSaveCondition, SaveCondition
    from .generators import RandomGenerators
    from .keep import KeepBest, Keeper, KeepEvery, KeepLatest, KeepThinned, KeepYoungerThan
    from .keep_spelling import parse_keeper
    from .manifest import Component, Part, Snapshot
    from .pickles import load_pickle, save_pickle
    from .preemption import Preemption
    from .running import Running
    from .saving import Saving
    from .states_keeper import LatestStatesKeeper, StatesKeeper
    from .store import StateStore

_homes = {
    "cleaning": "Cleaned",
    "comparison": "Comparison compare",
    "components": "PersistentStateMixin Stateful Value",
    "conditions": "EverySteps OnImprovement PeriodicSaveCondition SaveCondition",
    "generators": "RandomGenerators",
    "keep": "Keeper KeepBest KeepEvery KeepLatest KeepThinned KeepYoungerThan",
    "keep_spelling": "parse_keeper",
    "manifest": "Component Part Snapshot",
    "pickles": "load_pickle save_pickle",
    "preemption": "Preemption",
    "running": "Running",
    "saving": "Saving",
    "states_keeper": "LatestStatesKeeper StatesKeeper",
    "store": "StateStore",
}
_home = {name: module for module, names in _homes.items() for name in names.split()}

__all__ = [
    "Cleaned",
    "Comparison",
    "Component",
    "EverySteps",
    "KeepBest",
    "KeepEvery",
    "KeepLatest",
    "KeepThinned",
    "KeepYoungerThan",
    "Keeper",
    "LatestStatesKeeper",
    "OnImprovement",
    "Part",
    "PeriodicSaveCondition",
    "PersistentStateMixin",
    "Preemption",
    "RandomGenerators",
    "Running",
    "SaveCondition",
    "Saving",
    "Snapshot",
    "StateStore",
    "Stateful",
    "StatesKeeper",
    "Value",
    "compare",
    "load_pickle",
    "parse_keeper",
    "save_pickle",
]


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_home[name]}", __name__), name)
    return value
