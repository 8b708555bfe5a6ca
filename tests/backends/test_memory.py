"""The memory backend keeps the contract, within one process."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import signal
import threading
import time
import weakref
from pathlib import Path

import pytest

from perdure.errors import BackendError, NotFoundError, PolicyError, PreconditionError
from perdure.testing import BackendContract
from perdure.testing.lifetime import in_child
from perdure_backends import memory
from perdure_backends.memory import MemoryBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))


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


def test_a_signal_handler_may_write_in_the_middle_of_a_call() -> None:
    """Each increment and each write of the handler is there: a swap that the handler came before has to fail."""
    backend, dice, fired = MemoryBackend(), random.Random(4), 0
    backend.put("a", b"0")

    def increment() -> None:
        while True:
            blob = backend.get("a")
            try:
                backend.put("a", b"%d" % (int(blob.data) + 1), if_match=blob.etag)
            except PreconditionError:
                continue
            return

    def handle(*_: object) -> None:
        nonlocal fired
        increment()
        fired += 1

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        mine = 0
        for turn in range(1, 200 * ROUNDS):
            strike_soon(dice)
            while fired < turn:
                increment()
                mine += 1
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert int(backend.get("a").data) == mine + fired


def strike_soon(dice: random.Random) -> None:
    """Send this thread a signal within the next moments."""
    main, delay = threading.get_ident(), dice.uniform(0, 300e-6)

    def strike() -> None:
        time.sleep(delay)
        signal.pthread_kill(main, signal.SIGUSR1)

    threading.Thread(target=strike).start()


class Yielding:
    """Lets other threads in when the garbage collector finds it."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0.0001)


def test_a_listing_is_whole_though_the_garbage_collector_lets_other_threads_in() -> None:
    backend = MemoryBackend()
    for number in range(2000):
        backend.put(f"stays{number}", b"")
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            backend.put(f"comes{number}", b"")
            backend.delete(f"comes{number}")
            number += 1

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100 * ROUNDS):
            Yielding()
            assert sum(meta.key.startswith("stays") for meta in backend.scan()) == 2000
            assert sum(key.startswith("stays") for key in backend.keys()) == 2000  # noqa: SIM118
    finally:
        done.set()
        for thread in threads:
            thread.join()
