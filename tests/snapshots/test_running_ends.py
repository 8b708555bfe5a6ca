"""How runs begin and end: by the end of the block, by a signal, by the end of the program; and what is remembered then.

Executed as a program, this file runs one of its scenarios: `python test_running_ends.py NAME WHERE`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import KeepBest, StateStore
from perdure.errors import UsageError, UsageTypeError
from perdure.snapshots.conditions import EverySteps, OnImprovement, PeriodicSaveCondition
from perdure.snapshots.preemption import Preemption
from perdure.snapshots.running import Running

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of another kind")
PATIENCE = 60.0


def opened(where: Path) -> tuple[StateStore, Any]:
    store = StateStore(where, sync="normal")
    return store, store.register_value("v", 0)


def saved(where: Path) -> list[tuple[Any, Any]]:
    """What was saved, the oldest first: the value and the metadata."""
    found = []
    for snapshot in StateStore(where).snapshots():
        store, value = opened(where)
        store.load_state(snapshot.name)
        found.append((value.value, dict(snapshot.metadata)))
    return found


# ----------------------------------------------------------------------------------------------------------- the scenarios


def say(text: object) -> None:
    print(text, flush=True)


def runs_and_is_told(where: Path) -> None:
    store, value = opened(where)
    with store.running():
        value.value = 2
        signal.raise_signal(signal.SIGTERM)
    say("not reached")


def guards_and_is_told(where: Path) -> None:
    store, value = opened(where)
    with store.on_preemption():
        value.value = 2
        signal.raise_signal(signal.SIGTERM)
    say("not reached")


def guards_without_with_and_ticks(where: Path) -> None:
    store, value = opened(where)
    store.on_preemption()
    signal.raise_signal(signal.SIGTERM)
    value.value = 2
    store.tick({"step": 7})
    say("not reached")


def guards_without_with_and_closes_the_run(where: Path) -> None:
    store, value = opened(where)
    guard = store.on_preemption()
    signal.raise_signal(signal.SIGTERM)
    value.value = 2
    guard.close()
    say("not reached")


def _guards_to_the_end(where: Path, number: signal.Signals) -> None:
    store, value = opened(where)
    store.on_preemption()
    store.tick({"step": 1})
    value.value = 2
    signal.raise_signal(number)
    print("unflushed", end="")


def guards_to_the_end_and_gets_sigterm(where: Path) -> None:
    _guards_to_the_end(where, signal.SIGTERM)


def guards_to_the_end_and_gets_ctrl_c(where: Path) -> None:
    _guards_to_the_end(where, signal.SIGINT)


def guards_to_the_end_with_a_handler(where: Path) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: say(f"told of {number}"))
    _guards_to_the_end(where, signal.SIGTERM)


def guards_to_the_end_and_hears_nothing(where: Path) -> None:
    opened(where)[0].on_preemption()
    say("ends")


def guards_and_fails(where: Path) -> None:
    _guards_to_the_end(where, signal.SIGTERM)
    raise ZeroDivisionError


def guards_and_forks_a_child_that_ends(where: Path) -> None:
    opened(where)[0].on_preemption()
    signal.raise_signal(signal.SIGINT)  # that of the parent alone
    number = os.fork()
    if number == 0:
        sys.exit(3)
    say(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))


def catches_the_second_ctrl_c(where: Path) -> None:
    store, value = opened(where)
    with store.running(deadline=0.3) as run:
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            say("caught")
        assert run.requested is None
        time.sleep(0.6)  # the deadline was that of the first
        value.value = 5
    say("left")


def is_stuck_after_the_second_ctrl_c(where: Path) -> None:
    with Preemption(deadline=0.3):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        lock = ctypes.create_string_buffer(256)  # a mutex that is taken twice: no signal ends this wait
        ctypes.CDLL(None).pthread_mutex_lock(lock)
        say("ready")
        ctypes.CDLL(None).pthread_mutex_lock(lock)


def catches_the_second_ctrl_c_after_sigterm(where: Path) -> None:
    with Preemption(deadline=1) as preemption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        say(preemption.requested.name if preemption.requested else None)
        time.sleep(PATIENCE)
    say("not reached")


def goes_on_after_a_ctrl_c(where: Path) -> None:
    store, _ = opened(where)
    with store.running() as run:
        signal.raise_signal(signal.SIGINT)
        try:
            run.tick({"step": 1})
        except KeyboardInterrupt:
            say("caught")
        signal.raise_signal(signal.SIGTERM)
        run.tick({"step": 2})
    say("not reached")


# --------------------------------------------------------------------------------------------------------------- the tests


def outcome(scenario: Callable[[Path], None], where: Path) -> tuple[int, str, str]:
    """How a process ends, what it says, and what else it says."""

    def listen() -> None:  # also where the tests run in the background of a shell, which lets its children ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    done = subprocess.run(
        [sys.executable, __file__, scenario.__name__, str(where)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=listen,
        check=False,
    )
    assert "not reached" not in done.stdout
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_the_end_of_a_block_saves_whether_it_ticked_or_not(tmp_path: Path) -> None:
    store, value = opened(tmp_path)
    with store.running(every="10 min"):
        value.value = 42
    assert saved(tmp_path) == [(42, {})]
    with store.running(every=0) as run:
        run.tick({"step": 6})
        value.value = 43  # after the last tick, which was saved
    assert saved(tmp_path)[1:] == [(42, {"step": 6}), (43, {"step": 6})]
    with store.running() as run:
        assert run.step == 7
        value.value = 44
    assert saved(tmp_path)[3:] == [(44, {"step": 6})]


def test_without_a_final_save_or_by_an_exception_nothing_is_saved(tmp_path: Path) -> None:
    store, value = opened(tmp_path)
    with store.running(final=False) as run:
        value.value = 1
        run.tick()
    with pytest.raises(ZeroDivisionError), store.running():
        value.value = 1 / 0
    assert saved(tmp_path) == []


@pytest.mark.parametrize("scenario", [runs_and_is_told, guards_and_is_told])
def test_a_signal_in_a_block_that_never_ticks_acts_after_a_save(scenario: Callable[[Path], None], tmp_path: Path) -> None:
    assert outcome(scenario, tmp_path) == (-signal.SIGTERM, "", "")
    assert saved(tmp_path) == [(2, {})]


def test_without_a_signal_on_preemption_never_saves(tmp_path: Path) -> None:
    store, value = opened(tmp_path)
    with store.on_preemption() as run:
        value.value = 1
        assert not run.tick({"step": 1})
        assert not store.tick({"step": 2})
    guard = store.on_preemption()
    guard.close()
    assert saved(tmp_path) == []


def test_on_preemption_takes_signals_at_once_and_again_when_entered(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    guard = store.on_preemption()
    taken = signal.getsignal(signal.SIGTERM)
    assert taken != signal.SIG_DFL
    assert guard.inside
    with guard as run:
        assert run is guard is store.active_run
        assert signal.getsignal(signal.SIGTERM) == taken
        with pytest.raises(UsageError, match="running already"):
            guard.__enter__()
    assert not guard.inside
    with guard:  # as any other
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    guard.close()


def test_only_one_at_a_time_and_the_message_says_how_to_end_the_other(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    guard = store.on_preemption()
    for begin in (store.on_preemption, store.running().__enter__):
        with pytest.raises(UsageError, match=r"close\(\)"):
            begin()
    guard.close()
    with store.running():
        pass


def test_a_run_that_is_never_entered_does_nothing(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    run = store.running()
    assert store.active_run is None
    run.close()
    assert saved(tmp_path) == []


def test_closing_inside_of_a_block_is_its_end(tmp_path: Path) -> None:
    store, value = opened(tmp_path)
    with store.running() as run:
        value.value = 1
        run.close()
        assert not run.inside
        value.value = 2
    assert saved(tmp_path) == [(1, {})]


def test_signals_are_given_back_in_the_main_thread_only(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    guard = store.on_preemption()
    caught: list[Exception] = []

    def work() -> None:
        for wrong in (guard.close, StateStore(tmp_path / "other").on_preemption):
            try:
                wrong()
            except UsageError as error:
                caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ["main thread" in str(error) for error in caught] == [True, True]
    assert guard.inside
    guard.close()


def test_on_preemption_that_cannot_take_signals_leaves_nothing_behind(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    with pytest.raises(UsageError, match="SIGKILL"):
        store.on_preemption(signals=signal.SIGKILL)
    assert store.active_run is None


def test_ranks_are_told_why_they_have_no_on_preemption(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a signal reaches each of several ranks at another step"):
        StateStore(tmp_path, rank=0, world_size=2).on_preemption()


@pytest.mark.parametrize(
    ("scenario", "metadata"), [(guards_without_with_and_ticks, {"step": 7}), (guards_without_with_and_closes_the_run, {})]
)
def test_without_with_a_tick_and_closing_save_when_a_signal_waits(
    scenario: Callable[[Path], None], metadata: Any, tmp_path: Path
) -> None:
    assert outcome(scenario, tmp_path) == (-signal.SIGTERM, "", "")
    assert saved(tmp_path) == [(2, metadata)]


@pytest.mark.parametrize(
    ("scenario", "number"),
    [
        (guards_to_the_end_and_gets_sigterm, signal.SIGTERM),
        (guards_to_the_end_and_gets_ctrl_c, signal.SIGINT),
    ],
)
def test_a_signal_that_waits_when_the_program_ends_acts_and_saves_nothing(
    scenario: Callable[[Path], None], number: signal.Signals, tmp_path: Path
) -> None:
    code, out, err = outcome(scenario, tmp_path)
    assert (code, out) == (-number, "unflushed")
    assert err.startswith(f"{number.name} came after the last tick") and err.count("\n") == 1
    assert saved(tmp_path) == []  # nobody knows whether the state is consistent


def test_a_handler_is_told_when_the_program_ends(tmp_path: Path) -> None:
    code, out, _ = outcome(guards_to_the_end_with_a_handler, tmp_path)
    assert (code, out) == (0, "unflushedtold of 15\n")


def test_a_program_that_fails_shows_why_and_then_obeys_the_signal(tmp_path: Path) -> None:
    code, _, err = outcome(guards_and_fails, tmp_path)
    assert code == -signal.SIGTERM
    assert "ZeroDivisionError" in err


def test_no_signal_no_ado_when_the_program_ends(tmp_path: Path) -> None:
    assert outcome(guards_to_the_end_and_hears_nothing, tmp_path) == (0, "ends\n", "")


def test_a_forked_child_ends_without_the_signal_of_its_parent(tmp_path: Path) -> None:
    code, out, err = outcome(guards_and_forks_a_child_that_ends, tmp_path)
    assert (code, out) == (-signal.SIGINT, "3\n")
    assert err.count("SIGINT") == 1


# ------------------------------------------------------------------------------------------------------------------ Ctrl-C


def test_a_second_ctrl_c_that_was_caught_is_not_raised_again_and_has_no_deadline(tmp_path: Path) -> None:
    assert outcome(catches_the_second_ctrl_c, tmp_path) == (0, "caught\nleft\n", "")
    assert saved(tmp_path) == [(5, {})]


def test_after_a_second_ctrl_c_the_next_has_a_deadline_again(tmp_path: Path) -> None:
    command = [sys.executable, __file__, is_stuck_after_the_second_ctrl_c.__name__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == -signal.SIGTERM
    assert err.startswith("perdure: SIGTERM came 0.3 s ago")


def test_a_second_ctrl_c_that_was_caught_leaves_sigterm_its_deadline(tmp_path: Path) -> None:
    code, out, err = outcome(catches_the_second_ctrl_c_after_sigterm, tmp_path)
    assert (code, out) == (-signal.SIGTERM, "SIGTERM\n")
    assert err.startswith("perdure: SIGTERM came")


def test_a_ctrl_c_that_was_caught_after_its_save_leaves_the_block_as_it_was(tmp_path: Path) -> None:
    code, out, _ = outcome(goes_on_after_a_ctrl_c, tmp_path)
    assert (code, out) == (-signal.SIGTERM, "caught\n")
    assert saved(tmp_path) == [(0, {"step": 1}), (0, {"step": 2})]


def test_a_handler_that_returns_leaves_the_first_ctrl_c_to_the_next_tick(tmp_path: Path) -> None:
    told: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
    store, _ = opened(tmp_path)
    with store.on_preemption() as run:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert (told, run.requested) == ([signal.SIGINT], signal.SIGINT)
        assert run.tick()
        assert (len(told), run.requested) == (2, None)
    assert len(saved(tmp_path)) == 1
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --------------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("every", [EverySteps(3), OnImprovement, lambda metadata: True, print])
def test_a_condition_given_as_every_is_told_its_place(every: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageTypeError, match=r"condition="):
        opened(tmp_path)[0].running(every)


@pytest.mark.parametrize("condition", [EverySteps, OnImprovement, int])
def test_a_class_is_no_condition(condition: Any, tmp_path: Path) -> None:
    name = condition.__name__
    for wrong in (
        lambda: opened(tmp_path)[0].running(condition=condition),
        lambda: EverySteps(2) | condition,
        lambda: condition & EverySteps(2),
    ):
        with pytest.raises(UsageTypeError, match=rf"{name} is a class.*{name}\("):
            wrong()


@pytest.mark.parametrize("deadline", [0, 0.0, -0.0, "0 s", timedelta(0), -1, "-1 s", math.nan])
@pytest.mark.parametrize("signals", [True, False])
def test_a_deadline_that_leaves_no_time_to_save_is_refused(deadline: Any, signals: bool, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="deadline"):
        opened(tmp_path)[0].running(deadline=deadline, signals=signals)
    with pytest.raises(UsageError, match="deadline"):
        Preemption(deadline=deadline)


@pytest.mark.parametrize(
    "signals", [15, "SIGTERM", signal.SIGTERM, [15], ["SIGTERM"], iter(("SIGTERM", 15)), {signal.SIGTERM, "SIGTERM"}]
)
def test_signals_are_given_by_number_or_name_alone_or_together(signals: Any, tmp_path: Path) -> None:
    assert Preemption(signals).signals == (signal.SIGTERM,) if not isinstance(signals, Iterator) else True
    before = signal.getsignal(signal.SIGINT)
    with opened(tmp_path)[0].running(signals=signals):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("signals", [0, 12345, "TERM", "SIG_DFL", "", None, [None], [1.5], True, [True], b"SIGTERM"])
def test_what_is_no_signal_is_refused_with_the_way_to_write_one(signals: Any) -> None:
    with pytest.raises(UsageError, match=r"no signal.*SIGTERM"):
        Preemption(signals)


# ------------------------------------------------------------------------------------------------------------ how they look


def test_a_run_tells_where_it_saves_when_and_how_far_it_is(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    run = store.running("1 min", condition=EverySteps(5))
    assert repr(run) == (
        f"<Running of {store!r}: saves by PeriodicSaveCondition(interval=60) | EverySteps(n=5) and at the end, outside>"
    )
    with run:
        assert repr(run).endswith(" and at the end, inside>")
        run.tick({"step": 5})
        assert repr(run).endswith(" and at the end, inside, step 5>")
    with store.running(final=False) as run:
        assert repr(run).endswith("saves by PeriodicSaveCondition(interval=600), inside, step 5>")
    with store.on_preemption() as run:
        assert repr(run) == f"<OnPreemption of {store!r}: saves when a signal came, inside>"


def test_a_preemption_tells_its_signals_and_deadline() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    preemption = Preemption(deadline="1 min")
    assert repr(preemption) == "<Preemption of SIGTERM, SIGINT: deadline 60 s, outside>"
    with preemption:
        assert repr(preemption) == "<Preemption of SIGTERM, SIGINT: deadline 60 s, inside>"
        signal.raise_signal(signal.SIGTERM)
        assert repr(preemption) == "<Preemption of SIGTERM, SIGINT: deadline 60 s, inside, SIGTERM waits>"
    assert told == [signal.SIGTERM]
    assert repr(Preemption([], math.inf)) == "<Preemption of nothing: no deadline, outside>"
    signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------------ what a restart remembers


def test_the_best_value_is_learned_from_the_snapshots_there_are(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    with store.running(condition=OnImprovement(), final=False) as run:
        assert [run.tick({"loss": loss}) for loss in (5, 3, 4)] == [True, True, False]
    better = OnImprovement()
    with opened(tmp_path)[0].running(condition=PeriodicSaveCondition(math.inf) | better, final=False) as run:
        assert better.best == 3
        assert [run.tick({"loss": loss}) for loss in (4, 2)] == [False, True]


def test_steps_in_strides_go_on_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path)[0].running(condition=EverySteps(100), final=False) as run:
        assert [run.tick({"step": step}) for step in (164, 228)] == [False, True]
    with opened(tmp_path)[0].running(condition=EverySteps(100), final=False) as run:
        assert [run.tick({"step": step}) for step in (310, 374)] == [True, False]


def test_what_is_registered_or_was_asked_before_remembers_by_itself(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    store.register("best", OnImprovement())
    both = EverySteps(2) & OnImprovement()
    with store.running(condition=both, final=False) as run:
        assert [run.tick({"loss": loss, "step": 1 + n}) for n, loss in enumerate((9, 8, 7))] == [False, True, False]
    store.save_state({"loss": 1})
    with store.running(condition=both, final=False) as run:
        assert run.tick({"loss": 7, "step": 4})  # better than the 8 of the last yes
    registered = OnImprovement()
    other, _ = opened(tmp_path)
    other.register("best", registered)
    registered.load_state_dict({"metric": "loss", "mode": "min", "best": 5})
    other.save_state({"loss": 0.5})
    registered.load_state_dict({"metric": "loss", "mode": "min", "best": None})
    with other.running(condition=registered, final=False) as run:
        assert registered.best == 5
        assert run.tick({"loss": 4})


def test_a_fresh_start_and_snapshots_after_the_loaded_one_teach_nothing(tmp_path: Path) -> None:
    store, value = opened(tmp_path)
    store.save_state({"loss": 3})
    value.value = 1
    damaged = store.save_state({"loss": 1})
    with (damaged / "v.pkl").open("r+b") as part:
        part.write(b"\xff")
    better = OnImprovement()
    with opened(tmp_path)[0].running(condition=better, load=False, final=False):
        assert better.best is None
    with opened(tmp_path)[0].running(condition=better, final=False) as run:
        assert run.resumed is not None
        assert better.best == 3


def test_with_keep_best_a_restart_does_not_save_what_is_worse(tmp_path: Path) -> None:
    for losses, expected in (([5, 3, 4], [5, 3]), ([4, 3.5], []), ([2], [2])):
        store = StateStore(tmp_path, keep=KeepBest(1, "loss"), sync="normal")
        store.register_value("v", 0)
        with store.running(condition=OnImprovement(), final=False) as run:
            assert [loss for loss in losses if run.tick({"loss": loss})] == expected
    (kept,) = store.snapshots()
    assert kept.metadata["loss"] == 2


def test_a_run_is_what_running_and_on_preemption_return(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    guard = store.on_preemption(signals="SIGTERM")
    guard.close()
    assert isinstance(store.running(), Running) and isinstance(guard, Running)


@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_the_end_saves_what_changed_after_the_last_tick_and_nothing_twice(kind: str, tmp_path: Path) -> None:
    url = f"file:{tmp_path}/states" if kind == "folder" else f"sqlite:///{tmp_path}/states.db"

    def run(steps: int, end: int | None = None) -> list[Any]:
        store = StateStore(url)
        value, fixed = store.register_value("v", 0), store.register_value("fixed", bytearray(300_000))
        with store.running(every=0) as run:
            for value.value in range(run.step, steps):
                run.tick()
            if end is not None:
                value.value = end
        again = StateStore(url)
        loaded, _ = again.register_value("v", 0), again.register_value("fixed", fixed.value)
        values = []
        for snapshot in again.snapshots():
            again.load_state(snapshot)
            values.append(loaded.value)
        return values

    assert run(3) == [0, 1, 2]  # the last tick was saved, so the end saves nothing
    assert run(3) == [0, 1, 2]  # nor does a job that is done already
    assert run(3, end=7) == [0, 1, 2, 7]
    assert run(4, end=7) == [0, 1, 2, 7, 3, 7]


@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_save_if_changed_saves_where_anything_differs_or_is_damaged(kind: str, tmp_path: Path) -> None:
    url = f"file:{tmp_path}/states" if kind == "folder" else f"sqlite:///{tmp_path}/states.db"
    store = StateStore(url, share=False)
    value, other = store.register_value("v", b"x" * 1000), store.register_value("other", b"")
    first = store.save_if_changed({"step": 1})
    assert store.save_if_changed({"step": 1}) == first
    assert len({first, store.save_if_changed({"step": 2})}) == 2
    value.value = b"y" * 1000
    third = store.save_if_changed({"step": 2})
    store.register_value("new", other.value)
    fourth = store.save_if_changed({"step": 2})
    assert len({first, third, fourth}) == 3
    assert len(store.snapshots()) == 4
    if kind == "folder":
        part = fourth / "v.pkl"
        part.write_bytes(part.read_bytes()[:-1] + b"?")
        assert store.save_if_changed({"step": 2}) != fourth
        assert len(store.snapshots()) == 5
        assert os.listdir(tmp_path / "states" / ".perdure-snapshots") == ["lock"]
    else:
        backend = store._place.backend  # type: ignore[attr-defined]
        assert list(backend.keys("drafts/")) == []
        assert {key.split("/")[1] for key in backend.keys("parts/")} == {snapshot.id for snapshot in store.snapshots()}


def closes_with_a_signal(where: Path) -> None:
    store, value = opened(where)
    store.on_preemption()
    value.value = 3
    signal.raise_signal(signal.SIGTERM)
    store.close()
    say("not reached")


def fails_with_a_signal(where: Path) -> None:
    with StateStore(where, sync="normal") as store:
        store.register_value("v", 0)
        store.on_preemption()
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("half changed")


@pytest.mark.parametrize(("scenario", "values"), [(closes_with_a_signal, [3]), (fails_with_a_signal, [])])
def test_closing_the_store_is_the_end_of_what_runs(scenario: Callable[[Path], None], values: list[int], tmp_path: Path) -> None:
    code, out, _ = outcome(scenario, tmp_path)
    assert (code, out) == (-signal.SIGTERM, "")
    assert [value for value, _ in saved(tmp_path)] == values


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
