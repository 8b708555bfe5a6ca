"""Ctrl-C at any moment: what nobody has entered is not held, not renewed and in nobody's way."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from locking import KEY, LONG, SHORT, stored

from perdure import pulse
from perdure.locks import Lease, Semaphore, lock
from perdure.testing.crew import PATIENCE
from perdure_backends.memory import MemoryBackend

# The interpreter looks for signals when a function begins and when a call into C comes back.
STRIKES = frozenset({"call", "c_return"})


def interrupted(call: Callable[[], object], strike: int) -> tuple[str, bool]:
    """Raise KeyboardInterrupt at moment number `strike` of `call`; returns where that was, and whether it was raised at all."""
    moments = 0
    where = ""

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal moments, where
        # From Python 3.14 on entering a `with` of a lock is a call as well, which is the language's own gap.
        if event in STRIKES and arg is not sys.setprofile and getattr(arg, "__name__", "") != "__enter__":
            moments += 1
            if moments == strike:
                where = f"{event} {frame.f_code.co_name if event == 'call' else arg.__name__}"
                raise KeyboardInterrupt

    before = sys.getprofile()
    try:
        sys.setprofile(watch)
        call()
    except KeyboardInterrupt:
        return where, True
    finally:
        sys.setprofile(before)
    return where, False


def enter_and_leave(lease: Lease) -> None:
    with lease:
        INSIDE.append(True)


def acquire_and_release(lease: Lease) -> None:
    if lease.acquire():
        try:
            INSIDE.append(True)
        finally:
            lease.release()


INSIDE: list[bool] = []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("act", [enter_and_leave, acquire_and_release])
@pytest.mark.parametrize("make", [lock, lambda where, name, ttl: Semaphore(where, name, 1, ttl)])
def test_an_interrupt_at_any_moment_leaves_nothing_that_is_held_but_not_entered(
    memory: MemoryBackend, act: Callable[[Lease], None], make: Callable[..., Lease]
) -> None:
    exposed = {"call __exit__", "call release"}  # nothing runs before them that could see to it
    key = KEY if make is lock else "semaphores()/it"
    seen: set[str] = set()
    strike = 0
    while True:
        strike += 1
        INSIDE.clear()
        memory.delete(key)
        lease = make(memory, "it", ttl=LONG)
        lease.acquire()
        lease.release()
        where, struck = interrupted(lambda lease=lease: act(lease), strike)  # type: ignore[misc]
        if not struck:
            break
        seen.add(where)
        about = f"after an interrupt at moment {strike}, {where}"
        if INSIDE:
            assert not lease.held or where in exposed, about
        else:
            assert not lease.held, about
            assert not memory.contains(key) or stored(memory, key)["holders"] == [], about
        if lease.held:
            lease.release()
        memory.delete(key)
        assert lease.acquire(timeout=PATIENCE), about  # the object is not stuck half-way
        assert lease.release(), about
        beats = [beat for beat in pulse._pulse.beats.copy().values() if beat.call is not None and beat.call() is not False]
        assert beats == [], about
    assert strike > 50
    assert exposed & seen


def test_what_an_interrupt_before_the_first_line_of_exit_leaves_is_held_no_longer_than_its_object_lives(
    memory: MemoryBackend,
) -> None:
    strike, where = 0, ""
    while where != "call __exit__":
        strike += 1
        memory.delete(KEY)
        where, struck = interrupted(lambda: enter_and_leave(lock(memory, "it", ttl=SHORT)), strike)
        assert struck
    gc.collect()
    assert len(stored(memory)["holders"]) == 1
    assert lock(memory, "it").acquire(timeout=PATIENCE)
