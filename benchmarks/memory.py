"""Memory: a dict that holds bytes is the floor; what a dict of ours costs over that is in `mapping`."""

from __future__ import annotations

import pickle
from typing import Any

import perdure

from .contestants import DATA, FLAT, VALUE, setter
from .floors import with_data
from .harness import FLOOR, Effort, Row, race

_BACKEND, _DICT = "perdure, backend", "perdure, dict"


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure everything; `where` is not used."""
    by_hand: dict[str, bytes] = {}
    backend = perdure.open_backend("memory:")
    ours = perdure.open("memory:")
    chain = ours.chain
    encoded = chain.encode(VALUE, "theme0")
    puts: dict[str, Any] = {FLOOR: with_data(by_hand.__setitem__, DATA), _BACKEND: with_data(backend.put, DATA)}
    for put in (*puts.values(), setter(ours)):
        for key in FLAT:
            put(key)
    contains = {FLOOR: by_hand.__contains__, _BACKEND: ours.backend.contains, _DICT: ours.__contains__}
    codec: dict[str, Any] = {
        "pickle": lambda key: pickle.loads(pickle.dumps(VALUE, protocol=5)),
        "perdure, chain of msgpack": lambda key: chain.decode(chain.encode(VALUE, key), key),
    }
    return [
        race("memory", "get bytes", {FLOOR: by_hand.__getitem__, _BACKEND: backend.get}, FLAT, effort),
        race("memory", "put bytes", puts, FLAT, effort),
        race("memory", "contains", contains, FLAT, effort),
        race("memory", f"encode and decode a small dict ({len(encoded)} bytes)", codec, FLAT, effort),
    ]
