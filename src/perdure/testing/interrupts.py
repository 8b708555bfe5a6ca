"""Promises about Ctrl-C: wherever it hits, a value is the old one or the new one, and no lock stays behind."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from ..errors import BackendError, NotFoundError
from ..protocol import ABSENT, Backend
from .crew import PATIENCE, within
from .kit import Kit

# The interpreter looks for signals when a function begins and when a call into C comes back: there a Ctrl-C can strike.
_STRIKES = frozenset({"call", "c_return"})


# One that strikes in a destructor, or where the garbage collector calls back, is swallowed by the interpreter with a warning.
_swallowed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Interrupts(Kit):
    """KeyboardInterrupt in the middle of calls."""

    @_swallowed
    @pytest.mark.parametrize("action", ["put", "swap", "create", "delete", "delete_if", "get", "scan", "put_many"])
    def test_an_interrupt_at_any_moment_leaves_everything_usable(
        self, backend: Backend, another: Callable[[], Backend], action: str
    ) -> None:
        other = another()
        act = _actions[action]

        def attempt(strike: int) -> int:
            """Interrupt `act` at its moment number `strike`; return how many moments it had."""
            if action == "create":
                backend.delete("k")
            else:
                backend.put("k", b"old")
            return _interrupted(lambda: act(backend), strike)

        moments = attempt(strike=0)
        assert moments > 0
        chosen = self.rounds(40)
        for strike in sorted({1 + turn * moments // chosen for turn in range(chosen)}):
            attempt(strike)
            about = f"after an interrupt at moment {strike} of {moments} of {action}"
            for handle in (backend, other):
                seen = within(PATIENCE, f"a get {about}", _look, handle)
                assert seen in (b"old", b"new", None), about
                if action not in ("create", "delete", "delete_if"):
                    assert seen is not None, about
            for number, handle in enumerate((backend, other, backend)):
                data = b"next %d" % number
                within(PATIENCE, f"a put {about}", handle.put, "k", data)
                assert other.get("k").data == data, about
            # A scratch file, a lock or a half-made entry that stayed behind must not show either.
            assert set(backend.keys()) <= {"k", "l"}, about

    @_swallowed
    def test_real_signals_at_random_moments(self, backend: Backend, another: Callable[[], Backend]) -> None:
        other = another()
        if threading.current_thread() is not threading.main_thread():
            pytest.skip("signals reach the main thread only, and the tests run in another one")
        # Plain flags: the lock inside an Event is itself nothing that a signal's handler may touch.
        armed = over = False
        main = threading.main_thread().ident
        assert main is not None

        def interrupt(number: int, frame: FrameType | None) -> None:
            nonlocal armed
            if armed:
                armed = False
                raise KeyboardInterrupt

        def shoot() -> None:
            spin = 0
            while not over:
                spin = (spin * 5 + 7) % 1999
                for _ in range(spin):
                    pass
                if armed:
                    signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0)

        before = signal.signal(signal.SIGINT, interrupt)
        gun = threading.Thread(target=shoot, daemon=True)
        gun.start()
        written = hits = 0
        try:
            backend.put("k", b"0")
            while hits < self.rounds(40):
                try:
                    while True:
                        armed = True  # again and again, because some are swallowed
                        written += 1
                        backend.put("k", b"%d" % written)
                        backend.get("k")
                except KeyboardInterrupt:
                    hits += 1
                seen = within(PATIENCE, f"a get after interrupt {hits}", other.get, "k")
                assert int(seen.data) in (written, written - 1)
                within(PATIENCE, f"a swap after interrupt {hits}", other.put, "k", b"%d" % written, if_match=seen.etag)
        finally:
            armed, over = False, True
            gun.join(PATIENCE)
            signal.signal(signal.SIGINT, before)
        assert list(backend.keys()) == ["k"]


def _interrupted(call: Callable[[], object], strike: int) -> int:
    """Raise KeyboardInterrupt at moment number `strike` of `call`, counted from 1, and return how many moments passed."""
    moments = 0

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal moments
        # From Python 3.14 on entering a `with` block is a call as well. Ctrl-C between that and the block is the language's
        # own gap, and no backend that locks by `with` could close it.
        if event in _STRIKES and arg is not sys.setprofile and getattr(arg, "__name__", "") != "__enter__":
            moments += 1
            if moments == strike:
                raise KeyboardInterrupt

    before = sys.getprofile()
    try:
        sys.setprofile(watch)
        call()
    except KeyboardInterrupt:
        pass
    except BackendError as error:
        # Whoever clears up after an interrupt may report what failed by it, as long as that is an error of ours.
        assert strike, error
    finally:
        sys.setprofile(before)
    return moments


def _look(backend: Backend) -> bytes | None:
    try:
        return backend.get("k").data
    except NotFoundError:
        return None


_actions: dict[str, Callable[[Backend], object]] = {
    "put": lambda backend: backend.put("k", b"new"),
    "swap": lambda backend: backend.put("k", b"new", if_match=backend.head("k").etag),
    "create": lambda backend: backend.put("k", b"new", if_match=ABSENT),
    "delete": lambda backend: backend.delete("k"),
    "delete_if": lambda backend: backend.delete("k", if_match=backend.head("k").etag),
    "get": lambda backend: backend.get("k"),
    "scan": lambda backend: list(backend.scan()),
    "put_many": lambda backend: backend.put_many({"k": b"new", "l": b"new"}),
}
