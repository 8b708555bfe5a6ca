"""A folder: beside the same system calls by hand, persidict's FileDirDict, diskcache and py-key-value."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import perdure

from . import awaited, contestants
from .contestants import DATA, FLAT, NESTED, TUPLES, VALUE, one_by_one, setter
from .floors import Files, all_with_value, with_data, with_value
from .harness import FLOOR, Effort, Goal, Row, race

_BACKEND, _DICT, _OPEN = "perdure, backend", "perdure, dict", "by hand, with open()"
_MANY, _ONE_BY_ONE = "perdure, set_many", "perdure, d[k] = v for each"


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure everything in new folders below `where`."""
    with ExitStack() as stack:
        root = stack.enter_context(contestants.folder(where))
        rows = [*_reads(root, stack, effort), *_writes(root, stack, effort), _many(root, stack, effort)]
        return [*rows, *_listings(root, stack, effort)]


def _fill(put: Any, value: object) -> None:
    for key in (*FLAT, *NESTED):
        put(key, value)


def _reads(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes: list[str] = []
    floor_bytes, floor_values = Files(f"{root}/floor-bytes"), Files(f"{root}/floor-values")
    backend = perdure.open_backend(f"{root}/backend", sync="normal")
    ours = perdure.open(f"{root}/dict", sync="normal")
    _fill(floor_bytes.put_normal, DATA)
    _fill(floor_values.put_normal, pickle.dumps(VALUE, protocol=5))
    _fill(backend.put, DATA)
    peers: dict[str, Any] = {}
    if (theirs := contestants.persidict(f"{root}/persidict", notes)) is not None:
        peers["persidict"] = theirs
    if (theirs := contestants.diskcache(stack, f"{root}/diskcache", notes)) is not None:
        peers["diskcache"] = theirs
    for mapping in (ours, *peers.values()):
        for key in (*FLAT, *TUPLES):
            mapping[key] = VALUE

    more_notes = list(notes)
    store = awaited.file_store(stack, f"{root}/key-value", more_notes)
    if store is not None:
        for key in FLAT:
            store.set(key)

    def entry(name: str, keys: list[str], goals: list[Goal]) -> Row:
        racing: dict[str, Any] = {FLOOR: floor_values.get, _OPEN: floor_values.get_by_open, _DICT: ours.__getitem__}
        racing |= {name: peer.__getitem__ for name, peer in peers.items()}
        if store is not None and keys is not NESTED:
            racing["py-key-value"] = store.get
        own = dict.fromkeys((_DICT, *peers), TUPLES) if keys is NESTED else {}
        said = notes if keys is NESTED else more_notes
        return race("file", name, racing, keys, effort, own=own, goals=goals, notes=said)

    rows = [
        race("file", "get bytes", {FLOOR: floor_bytes.get_bytes, _BACKEND: backend.get}, FLAT, effort),
        race("file", "get bytes, key a/b", {FLOOR: floor_bytes.get_bytes, _BACKEND: backend.get}, NESTED, effort),
        entry("get a small dict", FLAT, [Goal(_DICT, 1.5), Goal(_DICT, 1.0, of=_OPEN)]),
        entry("get a small dict, key a/b", NESTED, []),
        entry("get a small dict, one key again and again", FLAT[:1], [Goal(_DICT, 1.5), Goal(_DICT, 1.0, of=_OPEN)]),
    ]
    absent = [f"absent{i}" for i in range(100)]
    for name, keys in (("contains", FLAT), ("contains, key a/b", NESTED), ("contains, absent", absent)):
        racing = {FLOOR: floor_bytes.contains, _BACKEND: backend.contains, _DICT: ours.__contains__}
        racing |= {n: p.__contains__ for n, p in peers.items()}
        own = dict.fromkeys((_DICT, *peers), TUPLES) if keys is NESTED else {}
        goals = [] if keys is NESTED else [Goal(_BACKEND, 2.0), Goal(_DICT, 2.0)]
        rows.append(race("file", name, racing, keys, effort, own=own, goals=goals, notes=notes))
    return rows


def _writes(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    rows = []
    for sync, limit in (("full", 1.15), ("normal", 1.2)):
        notes: list[str] = []
        floor = Files(f"{root}/floor-{sync}")
        put = floor.put_full if sync == "full" else floor.put_normal
        backend = perdure.open_backend(f"{root}/backend-{sync}", sync=sync)
        ours = perdure.open(f"{root}/dict-{sync}", sync=sync)
        racing: dict[str, Any] = {
            FLOOR: with_value(put, VALUE),
            _BACKEND: with_data(backend.put, DATA),
            _DICT: setter(ours),
        }
        goals = [Goal(_BACKEND, limit), Goal(_DICT, limit)]
        nested = {name: racing[name] for name in (FLOOR, _DICT)}
        # What the others promise decides in which of the two rows they belong.
        if sync == "full" and (theirs := contestants.persidict(f"{root}/persidict-{sync}", notes)) is not None:
            racing["persidict"] = setter(theirs)
        if sync == "full" and (store := awaited.file_store(stack, f"{root}/key-value-{sync}", notes)) is not None:
            racing["py-key-value"] = store.set
        if sync == "normal" and (theirs := contestants.diskcache(stack, f"{root}/diskcache-{sync}", notes)) is not None:
            racing["diskcache"] = setter(theirs)
        for put in racing.values():
            for flat in FLAT:
                put(flat)
        for name, put in nested.items():
            spelled: Sequence[Any] = TUPLES if name == _DICT else NESTED
            for key in spelled:
                put(key)
        rows.append(race("file", f"set a small dict, sync={sync}", racing, FLAT, effort, goals=goals, notes=notes))
        own = {_DICT: TUPLES}
        goals = [Goal(_DICT, limit)]
        rows.append(race("file", f"set a small dict, sync={sync}, key a/b", nested, NESTED, effort, own=own, goals=goals))
    return rows


def _many(root: str, stack: ExitStack, effort: Effort) -> Row:
    """Many items at once beside one after another, durably."""
    notes: list[str] = []
    keys = [f"key{i:04}" for i in range(200 if effort.quick else 1000)]
    items = dict.fromkeys(keys, VALUE)
    floor = Files(f"{root}/floor-many")
    ours = perdure.open(f"{root}/dict-many")
    racing: dict[str, Any] = {FLOOR: all_with_value(floor.put_many_full, VALUE), _MANY: lambda _: ours.set_many(items)}
    racing[_ONE_BY_ONE] = one_by_one(ours)
    if (theirs := contestants.persidict(f"{root}/persidict-many", notes)) is not None:
        racing["persidict, update"] = lambda _: theirs.update(items)
    notes.append("the floor has one syncfs for all values and one fsync for all names")
    workload = f"set_many of {len(keys)} small dicts, per item, sync=full"
    goals = [Goal(_MANY, 1 / 3, of=_ONE_BY_ONE)]
    return race("file", workload, racing, [keys], effort, goals=goals, per=len(keys), notes=notes)


def _listings(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    rows = []
    for number in (1000,) if effort.quick else (1000, 10_000, 50_000):
        notes: list[str] = []
        keys = [f"key{i:05}" for i in range(number)]
        backend = perdure.open_backend(f"{root}/backend-{number}", sync="normal")
        backend.put_many(dict.fromkeys(keys, DATA))
        ours = perdure.open(f"{root}/backend-{number}")
        plain = f"{root}/floor-{number}"
        os.mkdir(plain)
        for key in keys:
            Path(plain, key).write_bytes(DATA)
        racing: dict[str, Any] = {
            FLOOR: lambda _, plain=plain: os.listdir(plain),
            _BACKEND: lambda _, backend=backend: deque(backend.keys(), 0),
            _DICT: lambda _, ours=ours: deque(ours, 0),
        }
        if number > 1000:
            notes.append("persidict and diskcache take part with 1000 keys only: filling them takes minutes")
        else:
            if (theirs := contestants.persidict(f"{root}/persidict-{number}", notes)) is not None:
                racing["persidict"] = lambda _, theirs=theirs: deque(theirs.keys(), 0)
                for key in keys:
                    theirs[key] = VALUE
            if (theirs := contestants.diskcache(stack, f"{root}/diskcache-{number}", notes)) is not None:
                racing["diskcache"] = lambda _, theirs=theirs: deque(theirs.iterkeys(), 0)
                for key in keys:
                    theirs[key] = VALUE
        goals = [Goal(_BACKEND, 2.0)]
        workload = f"keys, per key of {number}"
        rows.append(race("file", workload, racing, [None], effort, goals=goals, per=number, notes=notes))
    return rows
