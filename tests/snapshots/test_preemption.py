"""Signals and runs: real processes get real signals, and whoever waits for them sees what they died of.

Executed as a program, this file runs one of its scenarios: `python test_preemption.py NAME WHERE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.snapshots import preemption as preemption_module
from perdure.snapshots.conditions import EverySteps, Metadata, OnImprovement, PeriodicSaveCondition
from perdure.snapshots.preemption import Preemption
from perdure.snapshots.running import Running
from perdure.snapshots.saving import Saving
from perdure.snapshots.store import StateStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of another kind")
PATIENCE = 60.0


class Shelf(StateStore):
    """A store of one number.

    Args:
        where: A folder.
        during: Called in the middle of each save.
    """

    def __init__(self, where: Path, during: Callable[[], object] = lambda: None) -> None:
        super().__init__(where, sync="normal")
        self.number = self.register_value("state", 0)
        self.calls: list[str] = []
        begin = self._place.begin

        def begin_slowly(*, isolate: bool) -> Any:
            draft: Any = begin(isolate=isolate)
            commit = draft.commit
            draft.commit = lambda *arguments: (during(), commit(*arguments))[1]
            return draft

        self._place.begin = begin_slowly  # type: ignore[method-assign]

    @property
    def state(self) -> int:
        return self.number.value

    @state.setter
    def state(self, number: int) -> None:
        self.number.value = number

    def save_if_changed(self, metadata: Mapping[str, Any] | None = None) -> Path:
        self.calls.append("save_if_changed")
        return super().save_if_changed(metadata)

    def save_state(self, metadata: Mapping[str, Any] | None = None, **options: Any) -> Path:
        self.calls.append("save_state")
        return super().save_state(metadata, **options)

    def save_async(self, metadata: Mapping[str, Any] | None = None) -> Saving:
        self.calls.append("save_async")
        return super().save_async(metadata)

    def saved(self) -> list[dict[str, Any]]:
        """All that was completed, the oldest first."""
        other = Shelf(Path(self.states_dir))
        found = []
        for snapshot in self.snapshots():
            other.load_state(snapshot.name)
            found.append({"state": other.state, "metadata": snapshot.metadata})
        return found

    def steps(self) -> list[int]:
        return [one["metadata"]["step"] for one in self.saved()]


# ----------------------------------------------------------------------------------------------------------- the scenarios


def say(text: object) -> None:
    print(text, flush=True)


def heard() -> str:
    """Wait for a line of the test."""
    return sys.stdin.readline().strip()


def loops(where: Path, **options: Any) -> None:
    shelf = Shelf(where)
    with Running(shelf, **options) as run:
        say(f"goes on at {run.step} with {shelf.state}")
        for step in count(run.step):
            shelf.state = step + 1
            say(f"step {step}")
            heard()
            run.tick({"step": step})
    say("not reached")


def loops_and_catches(where: Path) -> None:
    try:
        loops(where)
    except KeyboardInterrupt:
        say(f"interrupted; {signal.getsignal(signal.SIGINT) is signal.default_int_handler}")
        say(f"{signal.getsignal(signal.SIGTERM) is signal.SIG_DFL}")


def is_stuck_in_python(where: Path) -> None:
    with Running(Shelf(where), deadline=0.2):
        say("ready")
        while True:
            time.sleep(PATIENCE)  # is stuck here


def is_stuck_in_python_and_catches(where: Path) -> None:
    try:
        is_stuck_in_python(where)
    except KeyboardInterrupt:
        say("interrupted")


def is_stuck_in_c(where: Path) -> None:
    preemption_module.GRACE = 0.2
    with Running(Shelf(where), deadline=0.2):
        lock = ctypes.create_string_buffer(256)  # a mutex that is taken twice: no signal ends this wait
        ctypes.CDLL(None).pthread_mutex_lock(lock)
        say("ready")
        ctypes.CDLL(None).pthread_mutex_lock(lock)


def has_no_deadline(where: Path) -> None:
    with Preemption(deadline=float("inf")) as preemption:
        say("ready")
        heard()
        say(preemption.requested)
        preemption.exit()


def saves_finally(where: Path) -> None:
    def during() -> None:
        say("saving")
        heard()

    shelf = Shelf(where, during)
    with Running(shelf, deadline=PATIENCE) as run:
        say("ready")
        heard()
        run.tick()


def is_told_in_a_step(where: Path) -> None:
    with Running(Shelf(where), deadline=PATIENCE) as run:
        os.kill(os.getpid(), signal.SIGINT)
        assert run.requested == signal.SIGINT
        say("ready")
        heard()
        say("not reached")


def saves_longer_than_the_deadline(where: Path) -> None:
    def during() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    with Running(Shelf(where, during), deadline=0.1, every=0, background=False) as run:
        run.tick()
        say("not reached")


def saves_longer_than_the_deadline_at_its_end(where: Path) -> None:
    def during() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    with Running(Shelf(where, during), deadline=0.1) as run:
        run.tick()
    say("not reached")


def has_a_handler(where: Path) -> None:
    told: list[int] = []

    def mine(number: int, frame: FrameType | None) -> None:
        assert frame is not None
        assert signal.getsignal(signal.SIGTERM) is mine
        told.append(number)

    signal.signal(signal.SIGTERM, mine)
    shelf = Shelf(where)
    with Running(shelf, every=float("inf")) as run:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            assert run.requested == signal.SIGTERM
            assert run.tick()
            assert run.requested is None
            assert not run.tick()
    assert signal.getsignal(signal.SIGTERM) is mine
    say(f"{told} {shelf.steps()}")


def has_a_handler_that_only_notes(where: Path) -> None:
    preemption_module.GRACE = 0.2
    signal.signal(signal.SIGTERM, lambda number, frame: say("noted"))
    is_stuck_in_python(where)


def ignores(where: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Running(Shelf(where)) as run:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        say(f"{run.requested} {run.tick()}")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def is_told_after_the_last_tick(where: Path) -> None:
    with Running(Shelf(where)) as run:
        run.tick()
        os.kill(os.getpid(), signal.SIGTERM)
        print("unflushed", end="")
    say("not reached")


def fails_when_told(where: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), Running(Shelf(where)) as run:
        run.tick()
        os.kill(os.getpid(), signal.SIGTERM)
        1 / 0
    say("not reached")


def exits_when_told(where: Path) -> None:
    with Running(Shelf(where)) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        if run.requested:
            sys.exit(75)


def cannot_save_when_told(where: Path) -> None:
    def during() -> None:
        raise OSError("disk full")

    with Running(Shelf(where, during)) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        run.tick()


def gets_both(where: Path) -> None:
    try:
        with Running(Shelf(where)) as run:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            run.tick()
    except KeyboardInterrupt:
        say("not reached")


def nests(where: Path) -> None:
    outer_shelf, inner_shelf = Shelf(where), Shelf(where / "inner")
    with Running(outer_shelf) as outer:
        handler = signal.getsignal(signal.SIGTERM)
        with Running(inner_shelf) as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert outer.requested is None
            assert inner.tick({"step": 3})
            assert outer.requested == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handler
        say("inner left")
        outer.tick({"step": 7})
    say("not reached")


def is_stuck_outside_an_inner_one(where: Path) -> None:
    """The wakeup goes back to the outer one."""
    with Running(Shelf(where), deadline=0.2):
        with Running(Shelf(where)):
            pass
        lock = ctypes.create_string_buffer(256)
        ctypes.CDLL(None).pthread_mutex_lock(lock)
        say("ready")
        ctypes.CDLL(None).pthread_mutex_lock(lock)


def ticks_in_a_thread(where: Path) -> None:
    shelf = Shelf(where)
    ended = threading.Event()

    def work() -> None:
        try:
            for step in range(1000):
                shelf.state = step + 1
                say(f"step {step}")
                signalled = heard() == "signalled"
                while signalled and not run.requested:
                    time.sleep(0.001)  # the main thread takes its time
                run.tick({"step": step})
        finally:
            ended.set()

    try:
        with Running(shelf) as run:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    except KeyboardInterrupt:
        assert ended.wait(PATIENCE)
        say("interrupted")


def forks(where: Path) -> None:
    shelf = Shelf(where)
    with Running(shelf, every=0, background=False, deadline=PATIENCE) as run:
        run.tick()
        os.kill(os.getpid(), signal.SIGINT)
        assert run.requested == signal.SIGINT

        def child() -> None:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.set_wakeup_fd(-1) == -1
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
            assert run.requested is None
            assert run.tick() is False
            with contextlib.suppress(ZeroDivisionError), run_of_parent():
                1 / 0
            with Running(Shelf(where / "inner"), every=0, final=False) as own:
                assert own.tick()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PATIENCE)

        @contextlib.contextmanager
        def run_of_parent() -> Iterator[None]:
            try:
                yield
            except ZeroDivisionError as error:
                run.__exit__(type(error), error, None)
                raise

        forked(child)
        thread = threading.Thread(target=forked, args=(child,))
        thread.start()
        thread.join()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        assert len(shelf.saved()) == 1
        with contextlib.suppress(KeyboardInterrupt):
            run.tick()
        say(f"{len(shelf.saved())} {len(Shelf(where / 'inner').saved())}")


def forked(child: Callable[[], object]) -> None:
    """Run something in a forked child, which is to die of SIGTERM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        number = os.fork()
    if number == 0:
        try:
            child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    say(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))


def kills_newborn_children(where: Path) -> None:
    """If the signal to one of them was told to its parent, that would end at once."""
    with Preemption(deadline=0.001):
        for _ in range(100):
            number = os.fork()
            if number == 0:
                time.sleep(PATIENCE)
                os._exit(1)
            os.kill(number, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGTERM
    say("alive")


def loses_a_signal_to_somebody_else(where: Path) -> None:
    """What took SIGTERM inside the block gets it, keeps it, and no deadline begins."""
    with Preemption(deadline=0.001) as preemption:
        mine = lambda number, frame: say("mine")  # noqa: E731
        signal.signal(signal.SIGTERM, mine)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        assert preemption.requested is None
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    say("alive")


def runs_beside_asyncio(where: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, came.set)
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(came.wait(), PATIENCE)
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.requested == signal.SIGTERM
            preemption._seen.clear()
        came.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(came.wait(), PATIENCE)

    asyncio.run(main())
    say("heard twice")


# --------------------------------------------------------------------------------------------------------------- the tests


@contextlib.contextmanager
def program(scenario: Callable[..., None], where: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a scenario; it is gone afterwards."""
    (where / "inner").mkdir(exist_ok=True)
    command = [*before, sys.executable, __file__, scenario.__name__, str(where)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1, env=buffered, preexec_fn=_listen
    ) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Ctrl-C is not ignored, as it is where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _listen() -> None:
    """Take Ctrl-C, also where the tests run in the background of a shell, which lets its children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def expect(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdout and child.stderr
    line = child.stdout.readline()
    assert line == text + "\n", line + child.stderr.read()


def tell(child: subprocess.Popen[str], text: str = "") -> None:
    assert child.stdin
    child.stdin.write(text + "\n")


def end_of(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = child.communicate(timeout=PATIENCE)
    assert "not reached" not in out
    return child.returncode, out, err


def test_sigterm_is_obeyed_at_the_next_tick_and_the_next_run_goes_on_there(tmp_path: Path) -> None:
    with program(loops, tmp_path) as child:
        expect(child, "goes on at 0 with 0")
        for step in range(3):
            expect(child, f"step {step}")
            if step == 2:
                child.send_signal(signal.SIGTERM)
            tell(child)
        assert end_of(child) == (-signal.SIGTERM, "", "")
    assert Shelf(tmp_path).saved() == [{"state": 3, "metadata": {"step": 2}}]
    with program(loops, tmp_path) as child:
        expect(child, "goes on at 3 with 3")
        expect(child, "step 3")
        child.send_signal(signal.SIGTERM)
        tell(child)
        assert end_of(child)[0] == -signal.SIGTERM
    assert Shelf(tmp_path).steps() == [2, 3]


def test_ctrl_c_is_a_keyboard_interrupt_after_the_save(tmp_path: Path) -> None:
    with program(loops_and_catches, tmp_path) as child:
        expect(child, "goes on at 0 with 0")
        expect(child, "step 0")
        child.send_signal(signal.SIGINT)
        tell(child)
        assert end_of(child) == (0, "interrupted; True\nTrue\n", "")
    assert Shelf(tmp_path).steps() == [0]


def test_an_uncaught_ctrl_c_ends_the_process_as_it_always_does(tmp_path: Path) -> None:
    with program(loops, tmp_path) as child:
        expect(child, "goes on at 0 with 0")
        expect(child, "step 0")
        child.send_signal(signal.SIGINT)
        tell(child)
        code, _, err = end_of(child)
        assert code == -signal.SIGINT
        assert err.rstrip().endswith("KeyboardInterrupt")
    assert Shelf(tmp_path).steps() == [0]


def test_a_step_that_is_stuck_is_ended_by_the_signal_after_the_deadline(tmp_path: Path) -> None:
    with program(is_stuck_in_python, tmp_path) as child:
        expect(child, "ready")
        child.send_signal(signal.SIGTERM)
        code, _, err = end_of(child)
        line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# is stuck here"))
        assert code == -signal.SIGTERM
        assert err.startswith("perdure: SIGTERM came 0.2 s ago")
        assert err.endswith(f"line {line}\n")
    assert Shelf(tmp_path).saved() == []


def test_a_step_that_is_stuck_is_interrupted_after_the_deadline(tmp_path: Path) -> None:
    with program(is_stuck_in_python_and_catches, tmp_path) as child:
        expect(child, "ready")
        child.send_signal(signal.SIGINT)
        code, out, err = end_of(child)
        assert (code, out) == (0, "interrupted\n")
        assert err.startswith("perdure: SIGINT came")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_that_is_stuck_in_a_library_is_ended_as_well(number: signal.Signals, tmp_path: Path) -> None:
    with program(is_stuck_in_c, tmp_path) as child:
        expect(child, "ready")
        child.send_signal(number)
        assert end_of(child)[0] == -number


def test_a_handler_that_does_not_end_a_stuck_step_is_no_protection(tmp_path: Path) -> None:
    with program(has_a_handler_that_only_notes, tmp_path) as child:
        expect(child, "ready")
        child.send_signal(signal.SIGTERM)
        assert end_of(child)[:2] == (-signal.SIGTERM, "noted\n")


def test_a_stuck_outer_block_hears_signals_after_an_inner_one(tmp_path: Path) -> None:
    with program(is_stuck_outside_an_inner_one, tmp_path) as child:
        expect(child, "ready")
        child.send_signal(signal.SIGTERM)
        assert end_of(child)[0] == -signal.SIGTERM


def test_without_a_deadline_a_signal_waits_for_ever(tmp_path: Path) -> None:
    with program(has_no_deadline, tmp_path) as child:
        expect(child, "ready")
        child.send_signal(signal.SIGTERM)
        tell(child)
        assert end_of(child)[:2] == (-signal.SIGTERM, f"{signal.SIGTERM!s}\n")


def test_a_second_sigterm_does_not_disturb_the_final_save(tmp_path: Path) -> None:
    with program(saves_finally, tmp_path) as child:
        expect(child, "ready")
        child.send_signal(signal.SIGTERM)
        tell(child)
        expect(child, "saving")
        child.send_signal(signal.SIGTERM)
        tell(child)
        assert end_of(child)[0] == -signal.SIGTERM
    assert len(Shelf(tmp_path).saved()) == 1


@pytest.mark.parametrize("saving", [True, False])
def test_a_second_ctrl_c_acts_at_once(saving: bool, tmp_path: Path) -> None:
    with program(saves_finally if saving else is_told_in_a_step, tmp_path) as child:
        expect(child, "ready")
        if saving:
            child.send_signal(signal.SIGINT)
            tell(child)
            expect(child, "saving")
        child.send_signal(signal.SIGINT)
        code, _, err = end_of(child)
        assert code == -signal.SIGINT
        assert err.rstrip().endswith("KeyboardInterrupt")
    assert Shelf(tmp_path).saved() == []


@pytest.mark.parametrize("scenario", [saves_longer_than_the_deadline, saves_longer_than_the_deadline_at_its_end])
def test_a_save_that_takes_longer_than_the_deadline_is_given_up(scenario: Callable[..., None], tmp_path: Path) -> None:
    with program(scenario, tmp_path) as child:
        assert end_of(child)[:2] == (-signal.SIGTERM, "")
    shelf = Shelf(tmp_path)
    assert shelf.saved() == []
    shelf.save_state()
    assert len(shelf.saved()) == 1


def test_a_handler_of_the_programs_own_is_called_after_each_save(tmp_path: Path) -> None:
    with program(has_a_handler, tmp_path) as child:
        assert end_of(child) == (0, "[15, 15, 15] [0, 2, 4, 5]\n", "")


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    with program(ignores, tmp_path) as child:
        assert end_of(child) == (0, "None False\n", "")


def test_a_signal_after_the_last_tick_is_not_lost(tmp_path: Path) -> None:
    with program(is_told_after_the_last_tick, tmp_path) as child:
        assert end_of(child) == (-signal.SIGTERM, "unflushed", "")
    assert Shelf(tmp_path).steps() == [0]


def test_a_signal_is_not_lost_when_the_step_fails_and_neither_is_its_traceback(tmp_path: Path) -> None:
    with program(fails_when_told, tmp_path) as child:
        code, _, err = end_of(child)
        assert code == -signal.SIGTERM
        assert "ZeroDivisionError" in err
    assert Shelf(tmp_path).saved() == []


def test_a_program_that_exits_by_itself_has_the_last_word(tmp_path: Path) -> None:
    with program(exits_when_told, tmp_path) as child:
        assert end_of(child)[0] == 75


def test_a_final_save_that_fails_is_told_and_the_signal_is_obeyed(tmp_path: Path) -> None:
    with program(cannot_save_when_told, tmp_path) as child:
        code, _, err = end_of(child)
        assert code == -signal.SIGTERM
        assert "disk full" in err


def test_of_several_signals_none_is_lost(tmp_path: Path) -> None:
    with program(gets_both, tmp_path) as child:
        assert end_of(child)[0] == -signal.SIGTERM
    assert len(Shelf(tmp_path).saved()) == 1


def test_of_two_runs_one_inside_the_other_both_save(tmp_path: Path) -> None:
    with program(nests, tmp_path) as child:
        assert end_of(child)[:2] == (-signal.SIGTERM, "inner left\n")
    assert (Shelf(tmp_path).steps(), Shelf(tmp_path / "inner").steps()) == ([7], [3])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_another_thread_may_tick(number: signal.Signals, tmp_path: Path) -> None:
    with program(ticks_in_a_thread, tmp_path) as child:
        expect(child, "step 0")
        tell(child)
        expect(child, "step 1")
        child.send_signal(number)
        tell(child, "signalled")
        expected = (0, "interrupted\n") if number == signal.SIGINT else (-number, "")
        assert end_of(child)[:2] == expected
    assert Shelf(tmp_path).steps() == [1]


def test_a_forked_child_has_the_handlers_from_before_and_never_saves(tmp_path: Path) -> None:
    with program(forks, tmp_path) as child:
        assert end_of(child) == (0, "-15\n-15\n2 2\n", "")


def test_a_signal_to_a_newborn_child_is_no_signal_to_its_parent(tmp_path: Path) -> None:
    with program(kills_newborn_children, tmp_path) as child:
        assert end_of(child)[:2] == (0, "alive\n")


def test_a_handler_that_was_installed_inside_the_block_stays(tmp_path: Path) -> None:
    with program(loses_a_signal_to_somebody_else, tmp_path) as child:
        assert end_of(child)[:2] == (0, "mine\nalive\n")


def test_asyncio_goes_on_hearing_its_signals(tmp_path: Path) -> None:
    with program(runs_beside_asyncio, tmp_path) as child:
        assert end_of(child)[:2] == (0, "heard twice\n")


@pytest.mark.parametrize("scenario", [loops, is_stuck_in_c])
def test_process_1_of_a_container_ends_as_well(scenario: Callable[..., None], tmp_path: Path) -> None:
    """No signal ends it by default, so it has to say 128 + 15 by itself."""
    unshare = shutil.which("unshare")
    space = [unshare or "", "--fork", "--kill-child", "--pid", "--mount-proc"]
    if unshare is None or subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("containers cannot be made here")
    with program(scenario, tmp_path, *space) as child:
        expect(child, "ready" if scenario is is_stuck_in_c else "goes on at 0 with 0")
        inner = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
        os.kill(inner, signal.SIGTERM)
        tell(child)
        assert child.wait(PATIENCE) == 128 + signal.SIGTERM


# ----------------------------------------------------------------------------------------------------- in this very process


def dispositions() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_handlers_and_wakeup_are_as_before_afterwards(tmp_path: Path) -> None:
    before = dispositions()
    with Preemption() as outer:
        within = dispositions()
        assert all(one not in before for one in within)
        with Preemption([signal.SIGINT]):
            assert dispositions()[0] is within[0]
            assert dispositions()[1] is not within[1]
        assert all(one is other for one, other in zip(dispositions(), within, strict=True))
        assert outer.requested is None
        outer.exit()
        assert all(one is other for one, other in zip(dispositions(), within, strict=True))
    assert dispositions() == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(ZeroDivisionError), Running(Shelf(tmp_path)):
        1 / 0
    assert dispositions() == before


def test_one_preemption_is_good_for_one_block_after_another() -> None:
    preemption = Preemption()
    for _ in range(2):
        with preemption, pytest.raises(UsageError, match="entered already"):
            preemption.__enter__()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_thread_stays_behind() -> None:
    before = threading.enumerate()
    with Preemption():
        (watching,) = [thread for thread in threading.enumerate() if thread not in before]
    watching.join(PATIENCE)
    assert not watching.is_alive()


def test_only_the_main_thread_can_take_signals(tmp_path: Path) -> None:
    caught: list[Exception] = []

    def work() -> None:
        for enter in (Preemption().__enter__, Running(Shelf(tmp_path)).__enter__):
            try:
                enter()
            except UsageError as error:
                caught.append(error)
        with Running(Shelf(tmp_path), signals=False) as run:
            run.tick()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 2
    assert all("signals=False" in str(error) for error in caught)
    assert len(Shelf(tmp_path).saved()) == 1


def test_what_cannot_be_taken_is_refused_and_the_rest_put_back() -> None:
    before = dispositions()
    with pytest.raises(UsageError, match="SIGKILL cannot be taken"):
        Preemption([signal.SIGTERM, signal.SIGKILL]).__enter__()
    assert dispositions() == before
    assert signal.set_wakeup_fd(-1) == -1
    for deadline in ("soon", -1):
        with pytest.raises(UsageError):
            Preemption(deadline=deadline)


def test_other_signals_can_be_taken() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    try:
        with Preemption([signal.SIGUSR1]) as preemption:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (preemption.requested, told) == (signal.SIGUSR1, [])
            preemption.exit()
            assert (preemption.requested, told) == (None, [signal.SIGUSR1])
            os.kill(os.getpid(), signal.SIGUSR1)
        assert told == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_second_ctrl_c_is_handled_once() -> None:
    told: list[int] = []

    def mine(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, mine)
    try:
        with pytest.raises(KeyboardInterrupt), Preemption():
            os.kill(os.getpid(), signal.SIGINT)
            assert told == []
            os.kill(os.getpid(), signal.SIGINT)
        assert told == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------------------------------------------- runs


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_run_saves_when_its_condition_says_so_and_at_the_end(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with Running(shelf, condition=EverySteps(3)) as run:
        assert (run.resumed, run.step, shelf.active_run) == (None, 0, run)
        begun = [run.tick({"step": step}) for step in range(run.step, 8)]
    assert begun == [False, False, False, True, False, False, True, False]
    assert shelf.steps() == [3, 6, 7]
    assert shelf.calls == ["save_async", "save_async", "save_if_changed"]
    assert shelf.active_run is None
    with Running(shelf, condition=EverySteps(3)) as run:
        assert run.resumed is not None
        assert [run.tick({"step": step}) for step in range(run.step, 13)] == [False, True, False, False, True]
    assert shelf.steps() == [3, 6, 7, 9, 12]  # the last tick was saved, and nothing has changed since


def test_every_and_a_condition_are_whichever_comes_first(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with Running(shelf, every="1 h", condition=OnImprovement(), final=False) as run:
        assert [run.tick({"loss": loss}) for loss in (3, 4, 2)] == [True, False, True]
        assert repr(run.condition).startswith("PeriodicSaveCondition(interval=3600) | OnImprovement")
    assert shelf.steps() == [0, 2]
    assert repr(Running(shelf).condition) == "PeriodicSaveCondition(interval=600)"
    assert repr(Running(shelf, condition=OnImprovement()).condition).startswith("OnImprovement")
    with pytest.raises(UsageError, match="every"):
        Running(shelf, every="10")
    with pytest.raises(UsageError, match="no save condition"):
        Running(shelf, condition=5)  # type: ignore[arg-type]


def test_loading_is_no_part_of_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path)
    clock = Clock()
    monkeypatch.setattr(PeriodicSaveCondition.__init__, "__kwdefaults__", {"clock": clock})
    run = Running(shelf, every=60, final=False)
    monkeypatch.setattr(shelf, "load_latest", lambda: setattr(clock, "now", 100.0))
    with run:
        assert not run.tick()
        clock.now = 160.0
        assert run.tick()


def test_the_step_goes_on_by_itself_where_the_metadata_have_none(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with Running(shelf, every=0) as run:
        while run.step < 3:
            run.tick()
        run.tick({"loss": 0.5})
        run.tick({"step": 10})
        run.tick({"loss": 0.25, "step": None})
    assert shelf.steps() == [0, 1, 2, 3, 10, 11]
    assert shelf.saved()[3]["metadata"] == {"loss": 0.5, "step": 3}
    with Running(shelf) as run:
        assert run.step == 12
    assert len(shelf.saved()) == 6  # nothing is new
    with Running(shelf, load=False) as run:
        assert (run.step, run.resumed) == (0, None)


def test_metadata_are_those_of_the_last_tick_whatever_becomes_of_them_later(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    metadata = {"loss": 1}
    with Running(shelf) as run:
        run.tick(metadata)
        metadata["loss"] = 2
    assert shelf.saved()[0]["metadata"] == {"loss": 1, "step": 0}


def test_metadata_that_cannot_be_saved_are_refused_at_the_first_tick(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"metadata\['model'\] is an object, which JSON cannot hold"),
        Running(Shelf(tmp_path)) as run,
    ):
        run.tick({"model": object()})
    with pytest.raises(UsageError, match="a step is a number"), Running(Shelf(tmp_path)) as run:
        run.tick({"step": "one"})


def test_an_exception_saves_nothing_and_waits_for_what_is_under_way(tmp_path: Path) -> None:
    go_on = threading.Event()
    shelf = Shelf(tmp_path, partial(go_on.wait, PATIENCE))
    with pytest.raises(KeyboardInterrupt) as caught, Running(shelf, condition=EverySteps(1)) as run:
        run.tick({"step": 1})
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert shelf.steps() == [1]
    assert not hasattr(caught.value, "__notes__")


def failing(*turns: int) -> Callable[[], None]:
    """Fails in these saves, counted from 0."""
    turn = count()

    def during() -> None:
        number = next(turn)
        if number in turns:
            raise OSError(f"disk full in save {number}")

    return during


def test_the_error_of_a_save_under_way_is_a_note_on_the_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught, Running(Shelf(tmp_path, failing(0)), condition=EverySteps(1)) as run:
        run.tick({"step": 1})
        1 / 0
    assert "disk full in save 0" in caught.value.__notes__[0]


def test_a_failed_save_in_the_background_is_raised_by_the_next_that_saves_and_made_up_for(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, failing(0))
    with Running(shelf, condition=EverySteps(2)) as run:
        assert [run.tick({"step": step}) for step in range(1, 4)] == [False, True, False]
        with pytest.raises(OSError, match="disk full in save 0"):
            run.tick({"step": 4})
        assert run.tick({"step": 5})  # not only at step 6
        assert shelf.active_run is run
        shelf.wait()
        assert shelf.steps() == [5]


@pytest.mark.parametrize("background", [True, False])
def test_a_save_that_cannot_begin_is_raised_and_tried_again(background: bool, tmp_path: Path) -> None:
    class Moody(Shelf):
        fails = True

        def save_async(self, metadata: Metadata = None) -> Saving:
            self.check()
            return super().save_async(metadata)

        def save_state(self, metadata: Metadata = None) -> Path:
            self.check()
            return super().save_state(metadata)

        def check(self) -> None:
            if self.fails:
                raise OSError("no space for a copy")

    shelf = Moody(tmp_path)
    with Running(shelf, condition=EverySteps(2), background=background) as run:
        with pytest.raises(OSError, match="no space"):
            run.tick({"step": 2})
        shelf.fails = False
        assert run.tick({"step": 3})
        shelf.wait()
        assert shelf.steps() == [3]


def test_a_failed_save_in_the_background_is_made_up_for_and_told_at_the_end(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, failing(0))
    with pytest.raises(OSError, match="disk full in save 0") as caught, Running(shelf, condition=EverySteps(1)) as run:
        run.tick({"step": 1})
    assert "the final save after it was completed" in caught.value.__notes__[0]
    assert shelf.steps() == [1]


def test_a_final_save_that_fails_is_raised(tmp_path: Path) -> None:
    before = dispositions()
    shelf = Shelf(tmp_path, failing(0, 1))
    with pytest.raises(OSError, match="disk full in save 1") as caught, Running(shelf, condition=EverySteps(1)) as run:
        run.tick({"step": 1})
    assert "disk full in save 0" in caught.value.__notes__[0]
    assert shelf.active_run is None
    assert dispositions() == before


def test_without_a_final_save_the_one_under_way_is_waited_for(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with Running(shelf, condition=EverySteps(2), final=False) as run:
        for step in range(4):
            run.tick({"step": step})
    assert shelf.steps() == [2]


def test_a_save_that_the_program_began_by_itself_is_waited_for_too(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, failing(0))
    with pytest.raises(OSError, match="disk full in save 0"), Running(shelf):
        shelf.save_async()


def test_who_never_ticks_is_warned_and_saved_all_the_same(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with Running(shelf) as run:
        run.tick({"step": 6})
    with pytest.warns(RuntimeWarning, match=r"Call run.tick\(\) at the end of each step") as caught, Running(shelf, every=1e-6):
        shelf.state = 5
    assert caught[0].filename == __file__
    assert shelf.saved()[-1] == {"state": 5, "metadata": {"step": 6}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Running(shelf, every=60):  # not yet time to complain
            pass
        with pytest.raises(RuntimeWarning), Running(shelf, every=1e-6):
            shelf.state = 7
    assert shelf.saved()[-1]["state"] == 7


def test_a_store_runs_once_at_a_time_and_ticks_inside_its_block_only(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    run = Running(shelf)
    with pytest.raises(UsageError, match="outside its block"):
        run.tick()
    with run:
        with pytest.raises(UsageError, match="running already"):
            Running(shelf).__enter__()
        assert shelf.active_run is run
    with pytest.raises(UsageError, match="outside its block"):
        run.tick()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
