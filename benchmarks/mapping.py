"""What dicts add to backends: on memory, where nothing hides it, and when the newest of many files is looked for."""

from __future__ import annotations

import pickle
from typing import Any

import perdure

from . import contestants
from .contestants import FLAT, NESTED, TUPLES, VALUE, setter
from .floors import newest_file, with_value
from .harness import FLOOR, Effort, Goal, Row, race

_DICT, _PARTS, _OPEN, _FAMILY = "perdure, dict", "backend and codec", "perdure.open", "perdure.FileDirDict"


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure on memory, and in new folders below `where`."""
    with contestants.folder(where) as root:
        return [*_over_backend(effort), *_local_dicts(effort), *_newest(root, effort)]


def _over_backend(effort: Effort) -> list[Row]:
    """The floor is a dict that holds the value as bytes, pickled and unpickled."""
    by_hand: dict[str, bytes] = {}
    ours = perdure.open("memory:")
    backend, chain = ours.backend, ours.chain
    sets: dict[str, Any] = {
        FLOOR: with_value(by_hand.__setitem__, VALUE),
        _PARTS: lambda key: backend.put(key, chain.encode(VALUE, key)),
        _DICT: setter(ours),
    }
    gets: dict[str, Any] = {
        FLOOR: lambda key: pickle.loads(by_hand[key]),
        _PARTS: lambda key: chain.decode(backend.get(key).data, key),
        _DICT: ours.__getitem__,
    }
    for name, put in sets.items():
        for key in (*FLAT, *(TUPLES if name == _DICT else NESTED)):
            put(key)
    over_get, over_set = [Goal(_DICT, of=_PARTS, plus=2)], [Goal(_DICT, of=_PARTS, plus=3)]
    own = {_DICT: TUPLES}
    return [
        race("mapping", "get a small dict, memory", gets, FLAT, effort, goals=over_get),
        race("mapping", "get a small dict, memory, key a/b", gets, NESTED, effort, own=own, goals=over_get),
        race("mapping", "set a small dict, memory", sets, FLAT, effort, goals=over_set),
        race("mapping", "set a small dict, memory, key a/b", sets, NESTED, effort, own=own, goals=over_set),
    ]


def _local_dicts(effort: Effort) -> list[Row]:
    """Beside a built-in dict, which hands out the very object that it was given: for orientation."""
    notes = ["a built-in dict copies nothing; the others give and take copies"]
    dicts: dict[str, Any] = {"built-in dict": {}, "perdure.LocalDict": perdure.LocalDict()}
    if (module := contestants.optional("persidict", notes)) is not None:
        dicts["persidict.LocalDict"] = module.LocalDict()
    sets = {name: setter(mapping) for name, mapping in dicts.items()}
    for put in sets.values():
        for key in FLAT:
            put(key)
    gets = {name: mapping.__getitem__ for name, mapping in dicts.items()}
    return [
        race("mapping", "get a small dict, LocalDict", gets, FLAT, effort, notes=notes),
        race("mapping", "set a small dict, LocalDict", sets, FLAT, effort, notes=notes),
    ]


def _newest(root: str, effort: Effort) -> list[Row]:
    notes: list[str] = []
    folders, files = (10, 200) if effort.quick else (100, 200)
    keys = [(f"dir{i:03}", f"key{j:03}") for i in range(folders) for j in range(files)]
    framed = perdure.open(f"{root}/framed", sync="normal")
    plain: perdure.FileDirDict[Any] = perdure.FileDirDict(base_dir=f"{root}/plain", sync="normal")
    dicts: dict[str, Any] = {_OPEN: framed, _FAMILY: plain}
    if (theirs := contestants.persidict(f"{root}/plain", notes)) is not None:
        dicts["persidict, the same folder"] = theirs
    last = keys[len(keys) // 2]
    for ours in (framed, plain):
        ours.set_many(dict.fromkeys(keys, VALUE))
        while ours.newest_keys(max_n=1) != [last]:  # a file system's clock ticks some hundred times a second
            ours[last] = VALUE
    for name, mapping in dicts.items():
        if [tuple(key) for key in mapping.newest_keys(max_n=1)] != [last]:
            raise AssertionError(f"{name} takes another key for the newest")
    for folder in ("framed", "plain"):
        if last[1] not in newest_file(f"{root}/{folder}")[1]:
            raise AssertionError(f"{folder}: another file is the newest")

    def by_hand(folder: str) -> Any:
        return lambda _: newest_file(f"{root}/{folder}")

    def entry(of: str, folder: str, names: list[str], goal: str) -> Row:
        racing = {FLOOR: by_hand(folder)} | {name: _newest_of(dicts[name]) for name in names}
        workload = f"newest_keys(max_n=1) of {len(keys)} in {folders} folders, {of}"
        return race("mapping", workload, racing, [None], effort, goals=[Goal(goal, 2.0)], unit="ms", notes=notes)

    peers = [name for name in dicts if name != _OPEN]
    return [entry("perdure.open", "framed", [_OPEN], _OPEN), entry("FileDirDict", "plain", peers, _FAMILY)]


def _newest_of(mapping: Any) -> Any:
    return lambda _: mapping.newest_keys(max_n=1)
