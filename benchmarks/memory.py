"""Memory: what the library itself costs. The floor is a dict that holds the value as bytes, pickled and unpickled."""

from __future__ import annotations

import pickle
from typing import Any

import perdure

from .contestants import DATA, FLAT, NESTED, TUPLES, VALUE, setter
from .floors import with_data, with_value
from .harness import FLOOR, Effort, Goal, Row, race

_BACKEND, _DICT = "perdure, backend", "perdure, dict"


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure everything; `where` is not used."""
    bytes_by_hand: dict[str, bytes] = {}
    by_hand: dict[str, bytes] = {}
    backend = perdure.open_backend("memory:")
    ours = perdure.open("memory:")
    # What the codec does, so that the rest can be told from it.
    chain = ours.chain
    encoded = chain.encode(VALUE, "theme0")
    puts: dict[str, Any] = {FLOOR: with_data(bytes_by_hand.__setitem__, DATA), _BACKEND: with_data(backend.put, DATA)}
    sets: dict[str, Any] = {
        FLOOR: with_value(by_hand.__setitem__, VALUE),
        "backend and codec": lambda key: ours.backend.put(key, chain.encode(VALUE, key)),
        _DICT: setter(ours),
    }
    for put in (*puts.values(), *sets.values()):
        for key in (*FLAT, *(TUPLES if put is sets[_DICT] else NESTED)):
            put(key)
    gets: dict[str, Any] = {
        FLOOR: lambda key: pickle.loads(by_hand[key]),
        "backend and codec": lambda key: chain.decode(ours.backend.get(key).data, key),
        _DICT: ours.__getitem__,
    }
    codec: dict[str, Any] = {
        "pickle": lambda key: pickle.loads(pickle.dumps(VALUE, protocol=5)),
        "perdure, chain of msgpack": lambda key: chain.decode(chain.encode(VALUE, key), key),
    }
    over_set, over_get = [Goal(_DICT, of="backend and codec", plus=3)], [Goal(_DICT, of="backend and codec", plus=2)]
    return [
        race("memory", "get bytes", {FLOOR: bytes_by_hand.__getitem__, _BACKEND: backend.get}, FLAT, effort),
        race("memory", "put bytes", puts, FLAT, effort),
        race("memory", "get a small dict", gets, FLAT, effort, goals=over_get),
        race("memory", "get a small dict, key a/b", gets, NESTED, effort, own={_DICT: TUPLES}, goals=over_get),
        race("memory", "set a small dict", sets, FLAT, effort, goals=over_set),
        race(
            "memory",
            "contains",
            {FLOOR: by_hand.__contains__, _BACKEND: ours.backend.contains, _DICT: ours.__contains__},
            FLAT,
            effort,
        ),
        race("memory", f"encode and decode a small dict ({len(encoded)} bytes)", codec, FLAT, effort),
    ]
