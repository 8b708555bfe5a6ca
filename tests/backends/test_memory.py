"""The memory backend keeps the contract, within one process."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest

from perdure.errors import BackendError, NotFoundError, PolicyError
from perdure.testing import BackendContract
from perdure.testing.lifetime import in_child
from perdure_backends import memory
from perdure_backends.memory import MemoryBackend


class TestMemory(BackendContract):
    processes = False

    def open(self, where: Path) -> MemoryBackend:
        return MemoryBackend(str(where))


def test_a_backend_without_a_name_is_a_space_of_its_own() -> None:
    one, two = MemoryBackend(), MemoryBackend()
    one.put("a", b"1")
    with pytest.raises(NotFoundError):
        two.get("a")


def test_a_private_space_goes_with_its_backend() -> None:
    backend = MemoryBackend()
    backend.put("a", b"1")
    space = weakref.ref(backend._space)
    assert space() in memory._spaces
    del backend
    gc.collect()
    assert space() is None


def test_a_forked_child_goes_on_with_its_own_copy() -> None:
    backend = MemoryBackend()
    backend.put("a", b"1")

    def child() -> None:
        assert backend.get("a").data == b"1"
        backend.put("a", b"2")

    in_child(child)
    assert backend.get("a").data == b"1"


def test_it_refuses_to_be_pickled_or_copied() -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(PolicyError, match="a memory backend cannot be pickled"):
            attempt(MemoryBackend("x"))


def test_closing_one_handle_leaves_the_others(tmp_path: Path) -> None:
    one, two = MemoryBackend(str(tmp_path)), MemoryBackend(str(tmp_path))
    one.put("a", b"1")
    one.close()
    assert two.get("a").data == b"1"
    with pytest.raises(BackendError, match="was closed"):
        one.get("a")
