"""A SQLite file: beside the same statements by hand with the same settings, diskcache, sqlitedict and py-key-value."""

from __future__ import annotations

import pickle
from collections import deque
from contextlib import ExitStack, closing
from typing import Any

import perdure

from . import awaited, contestants
from .contestants import DATA, FLAT, VALUE, one_by_one, setter, setter_with_commit
from .floors import Table, all_with_value, with_data, with_value
from .harness import FLOOR, Effort, Goal, Row, race

_BACKEND, _DICT, _PEER = "perdure, backend", "perdure, dict", "diskcache"
_MANY, _ONE_BY_ONE = "perdure, set_many", "perdure, d[k] = v for each"


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure everything in new files below `where`."""
    rows: list[Row] = []
    for sync in ("normal", "full"):
        with ExitStack() as stack:
            root = stack.enter_context(contestants.folder(where))
            rows += _measure(root, sync, stack, effort)
    return rows


def _measure(root: str, sync: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes: list[str] = []
    floor_bytes = stack.enter_context(closing(Table(f"{root}/floor-bytes.db", sync)))
    floor_values = stack.enter_context(closing(Table(f"{root}/floor-values.db", sync)))
    backend = stack.enter_context(closing(perdure.open_backend(f"sqlite:///{root}/backend.db", sync=sync)))
    ours = stack.enter_context(perdure.open(f"sqlite:///{root}/dict.db", sync=sync))
    settings = {} if sync == "normal" else {"sqlite_synchronous": 2}
    peer = contestants.diskcache(stack, f"{root}/diskcache", notes, **settings)
    simple = contestants.sqlitedict(stack, f"{root}/sqlitedict.db", notes, sync)
    more_notes = list(notes)
    store = awaited.disk_store(stack, f"{root}/key-value", more_notes, **settings)
    sets: dict[str, Any] = {FLOOR: with_value(floor_values.put, VALUE), _DICT: setter(ours)}
    puts: dict[str, Any] = {FLOOR: with_data(floor_bytes.put, DATA), _BACKEND: with_data(backend.put, DATA)}
    if peer is not None:
        sets[_PEER] = setter(peer)
    if simple is not None:
        sets["sqlitedict"] = setter_with_commit(simple)
    if store is not None:
        sets["py-key-value"] = store.set
    for put in (*sets.values(), *puts.values()):
        for key in FLAT:
            put(key)
    limit = 1.5 if sync == "normal" else 1.3
    set_goals = [Goal(_DICT, limit)] + ([Goal(_DICT, 1 / 2.5, _PEER)] if sync == "normal" else [])
    rows = [
        race("sqlite", f"put bytes, sync={sync}", puts, FLAT, effort, goals=[Goal(_BACKEND, limit)]),
        race("sqlite", f"set a small dict, sync={sync}", sets, FLAT, effort, goals=set_goals, notes=more_notes),
    ]
    if sync == "full":
        return [*rows, _many(floor_values, ours, peer, simple, store, effort, more_notes)]  # reading is the same
    gets: dict[str, Any] = {FLOOR: floor_values.get, _DICT: ours.__getitem__}
    contains: dict[str, Any] = {FLOOR: floor_bytes.contains, _BACKEND: backend.contains, _DICT: ours.__contains__}
    if peer is not None:
        gets[_PEER], contains[_PEER] = peer.__getitem__, peer.__contains__
    if simple is not None:
        gets["sqlitedict"], contains["sqlitedict"] = simple.__getitem__, simple.__contains__
    if store is not None:
        gets["py-key-value"] = store.get
    get_goals = [Goal(_DICT, 1.5), Goal(_DICT, 1 / 1.2, _PEER)]
    get_bytes: dict[str, Any] = {FLOOR: floor_bytes.get_bytes, _BACKEND: backend.get}
    rows += [
        race("sqlite", "get bytes", get_bytes, FLAT, effort, goals=[Goal(_BACKEND, 1.5)]),
        race("sqlite", "get a small dict", gets, FLAT, effort, goals=get_goals, notes=more_notes),
        race("sqlite", "contains", contains, FLAT, effort, notes=notes),
    ]
    number = 1000 if effort.quick else 20_000
    keys = [f"key{i:05}" for i in range(number)]
    pickled = pickle.dumps(VALUE, protocol=5)
    floor_bytes.db.execute("DELETE FROM blobs")
    floor_bytes.db.execute("BEGIN")
    for key in keys:
        floor_bytes.put(key, pickled)
    floor_bytes.db.execute("COMMIT")
    ours.clear()
    ours.set_many(dict.fromkeys(keys, VALUE))
    listing: dict[str, Any] = {
        FLOOR: lambda _: floor_bytes.keys(),
        _BACKEND: lambda _: deque(ours.backend.keys(), 0),
        _DICT: lambda _: deque(ours, 0),
    }
    rows.append(race("sqlite", f"keys, per key of {number}", listing, [None], effort, per=number))
    return rows


def _many(floor: Table, ours: Any, peer: Any, simple: Any, store: Any, effort: Effort, notes: list[str]) -> Row:
    """Many items at once beside one after another, durably."""
    keys = [f"key{i:04}" for i in range(200 if effort.quick else 1000)]
    items = dict.fromkeys(keys, VALUE)
    racing: dict[str, Any] = {FLOOR: all_with_value(floor.put_many, VALUE), _MANY: lambda _: ours.set_many(items)}
    racing[_ONE_BY_ONE] = one_by_one(ours)
    if peer is not None:
        set_all = one_by_one(peer)

        def in_transaction(keys: list[str]) -> None:
            with peer.transact():
                set_all(keys)

        racing["diskcache, transact"] = in_transaction
    if simple is not None:

        def update(_: object) -> None:
            simple.update(items)
            simple.commit()

        racing["sqlitedict, update and commit"] = update
    if store is not None:
        racing["py-key-value, put_many"] = store.set_many
    workload = f"set_many of {len(keys)} small dicts, per item, sync=full"
    goals = [Goal(_MANY, 1 / 20, of=_ONE_BY_ONE)]
    return race("sqlite", workload, racing, [keys], effort, goals=goals, per=len(keys), notes=notes)
