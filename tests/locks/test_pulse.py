"""Calls now and then: among slow ones, failing ones, forks, signal handlers and finalizers."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from perdure import pulse
from perdure.errors import UnavailableError, UsageError
from perdure.pulse import Beat, every

SOON = 60.0  # seconds after which something that does not happen counts as stuck


@pytest.fixture(autouse=True)
def fresh_pulse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Beats and threads of this test alone."""
    monkeypatch.setattr(pulse, "_pulse", pulse._Pulse())
    yield
    for beat in list(pulse._pulse.beats.values()):
        beat.stop()


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=SOON)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def until(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.002)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "perdure-pulse"}


class Times:
    """A call that counts how often it was made, in whatever threads at once."""

    def __init__(self, until: int | None = None) -> None:
        self._calls: list[None] = []
        self.until = until
        self.ended = threading.Event()

    @property
    def count(self) -> int:
        return len(self._calls)

    def __call__(self) -> bool | None:
        self._calls.append(None)
        if self.count == self.until:
            self.ended.set()
            return False
        return None


def test_a_call_is_made_again_and_again_until_it_returns_false() -> None:
    call, other = Times(until=5), Times()
    beat = every(0.001, call)
    assert call.ended.wait(SOON)
    every(0.001, other)
    until(lambda: other.count > 20)
    assert call.count == 5
    assert beat.stopped


def test_nothing_is_called_before_an_interval_is_over() -> None:
    times: list[float] = []
    began = time.monotonic()
    beat = every(0.05, lambda: times.append(time.monotonic()))
    until(lambda: len(times) >= 3)
    beat.stop()
    assert all(moment - began >= 0.05 * number for number, moment in enumerate(times[:3], 1))


def test_a_sooner_beat_does_not_wait_for_a_later_one() -> None:
    every(3000, lambda: None)
    call = Times(until=3)
    every(0.001, call)
    assert call.ended.wait(SOON)


def test_a_stopped_beat_is_called_no_more() -> None:
    call, other = Times(), Times()
    beat = every(0.001, call)
    until(lambda: call.count)
    beat.stop()
    beat.stop()
    every(0.001, other)
    until(lambda: other.count)  # whatever was under way is over
    count = call.count
    until(lambda: other.count > 20)
    assert call.count == count
    assert beat.stopped


def test_a_call_may_stop_its_own_beat() -> None:
    beats: list[Beat] = []
    made = threading.Event()

    def call() -> None:
        beats[0].stop()
        made.set()

    beats.append(every(0.01, call))
    assert made.wait(SOON)
    until(lambda: not pulse._pulse.beats)


def test_a_call_that_raises_is_logged_with_its_trace_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    call = Times()

    def fails() -> None:
        call()
        raise SystemExit("out of order")

    with caplog.at_level(logging.ERROR, "perdure.pulse"):
        every(0.001, fails, name="the failing one")
        until(lambda: call.count > 3)
    assert "the failing one" in caplog.messages[0]
    assert "out of order" in caplog.text
    assert "in fails" in caplog.text


def test_slow_calls_hold_up_no_other_ones() -> None:
    go_on = threading.Event()
    stuck = Times()

    def slow() -> None:
        stuck()
        go_on.wait(SOON)

    for _ in range(7):
        every(0.001, slow)
    quick = Times(until=50)
    every(0.001, quick)
    assert quick.ended.wait(SOON)
    until(lambda: stuck.count == 7)
    go_on.set()


def test_there_are_eight_threads_at_most_and_a_ninth_slow_call_waits_its_turn() -> None:
    before = threads()
    go_on = threading.Event()
    begun = Times()

    def slow() -> None:
        begun()
        go_on.wait(SOON)

    for _ in range(20):
        every(0.001, slow)
    until(lambda: begun.count == 8)
    last = Times(until=3)
    every(0.001, last)
    assert len(threads() - before) == 8
    assert begun.count == 8
    go_on.set()
    assert last.ended.wait(SOON)


def test_a_call_does_not_overlap_with_itself() -> None:
    inside: list[int] = []
    most: list[int] = []

    def slow() -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)
        inside.pop()

    every(0.0001, slow)
    every(0.0001, Times())
    until(lambda: len(most) > 20)
    assert max(most) == 1


def test_no_thread_exists_before_the_first_beat_and_short_lived_ones_need_one() -> None:
    code = """
import threading
from perdure.pulse import every
assert threading.active_count() == 1
for _ in range(1000):
    every(1000, lambda: None).stop()
print(threading.active_count())
for _ in range(20):
    done = threading.Event()
    beat = every(0.001, done.set)
    done.wait()
    beat.stop()
print(threading.active_count())
"""
    assert in_a_fresh_process(code) == "2\n2"


def test_nothing_keeps_a_process_from_ending() -> None:
    code = """
import threading, time
from perdure.pulse import every
begun = threading.Event()
every(0.001, lambda: (begun.set(), time.sleep(3600))[0])
every(0.001, lambda: None)
every(3600, lambda: None)
begun.wait()
print("over")
"""
    assert in_a_fresh_process(code) == "over"


def test_a_stopped_beat_holds_nothing() -> None:
    class Thing:
        def call(self) -> None:
            made.set()

    made = threading.Event()
    for interval in (0.001, 1000.0):
        thing = Thing()
        dead = weakref.ref(thing)
        beat = every(interval, thing.call)
        if interval < 1:
            assert made.wait(SOON)
        del thing
        beat.stop()

        def gone(dead: weakref.ref[Thing] = dead) -> bool:
            return dead() is None  # a call that was under way may hold it for a moment

        until(gone)


def test_an_interval_is_a_positive_number() -> None:
    for interval in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            every(interval, lambda: None)
    assert not pulse._pulse.beats


def test_where_no_thread_can_be_started_that_is_an_error_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(UnavailableError, match="no thread") as info:
            every(0.001, lambda: None)
    assert isinstance(info.value.__cause__, RuntimeError)
    assert not pulse._pulse.beats
    call = Times(until=2)
    every(0.001, call)
    assert call.ended.wait(SOON)


def test_beats_come_and_go_in_many_threads() -> None:
    calls = [Times(until=3) for _ in range(200)]
    line = threading.Barrier(8)

    def start(mine: list[Times]) -> None:
        line.wait(SOON)
        for call in mine:
            every(0.0005, call)
            every(0.0001, lambda: None).stop()

    starters = [threading.Thread(target=start, args=(calls[number::8],)) for number in range(8)]
    for thread in starters:
        thread.start()
    for thread in starters:
        thread.join(SOON)
    assert all(call.ended.wait(SOON) for call in calls)
    until(lambda: not pulse._pulse.beats)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_a_signal_handler_may_start_and_stop_beats_in_the_middle_of_it() -> None:
    handled = Times()
    called = Times()

    def handler(*_: object) -> None:
        every(1000, called).stop()
        every(0.0001, lambda: called() or False)
        handled()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        give_up = time.monotonic() + SOON
        while handled.count < 300:
            every(1000, called).stop()
            assert time.monotonic() < give_up
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    until(lambda: not pulse._pulse.beats)
    assert called.count >= 300


def test_a_finalizer_may_start_and_stop_beats_in_the_middle_of_it() -> None:
    finalized, called = Times(), Times()

    class Last:
        def __init__(self) -> None:
            self.me = self  # so that it goes in a collection, which may begin anywhere

        def __del__(self) -> None:
            every(1000, called).stop()
            every(0.0001, lambda: called() or False)
            finalized()

    thresholds = gc.get_threshold()
    try:
        gc.set_threshold(3)
        for _ in range(300):
            Last()
            every(1000, called).stop()
    finally:
        gc.set_threshold(*thresholds)
    until(lambda: gc.collect() >= 0 and finalized.count == 300)  # a collection does nothing while another thread is at one
    until(lambda: called.count == 300)
    until(lambda: not pulse._pulse.beats)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_beats_of_its_parent_and_starts_its_own() -> None:
    ours = Times()
    beat = every(0.001, ours)
    busy = threading.Event()

    def churn() -> None:
        while not busy.is_set():
            every(0.001, lambda: None).stop()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(int(SOON))
                    assert beat.stopped
                    own = Times(until=5)
                    count = ours.count
                    every(0.001, own)
                    assert own.ended.wait(SOON)
                    assert ours.count == count
                    beat.stop()  # changes nothing over there
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        busy.set()
        churning.join(SOON)
    count = ours.count
    until(lambda: ours.count > count)
    assert not beat.stopped


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_call_that_forks_does_not_go_on_in_the_child() -> None:
    here, there = os.pipe()
    forked = threading.Event()

    def call() -> bool:
        if os.fork() == 0:
            os.write(there, b"c")
            return True  # and so back into the thread, which has to end here
        forked.set()
        return False

    every(0.001, call)
    assert forked.wait(SOON)
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(there)
    assert os.read(here, 100) == b"c"
    os.close(here)
