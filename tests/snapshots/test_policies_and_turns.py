"""What a policy of one's own may return, and who may ask a store while it is busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ComponentError, UsageError, UsageTypeError
from perdure.snapshots import KeepBest, KeepLatest, PersistentStateMixin, Snapshot, StateStore
from perdure.testing.crew import within


class Yielding:
    """A policy that is no keeper of ours, and returns a generator."""

    def __init__(self, n: int = 2) -> None:
        self.n = n

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> Iterable[Snapshot]:
        yield from snapshots[-self.n :]


class Choosing:
    """A policy that chooses what it is told."""

    def __init__(self, choose: Callable[[Sequence[Snapshot]], Any]) -> None:
        self.choose = choose

    def select(self, snapshots: Sequence[Snapshot], now: datetime) -> Any:
        return self.choose(snapshots)


@pytest.fixture(params=["folder", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file:{tmp_path}/states" if request.param == "folder" else f"sqlite:///{tmp_path}/states.db"


def steps(store: StateStore) -> list[int]:
    return [snapshot.metadata["step"] for snapshot in store.snapshots()]


def test_a_policy_may_yield(url: str) -> None:
    store = StateStore(url, keep=Yielding())
    store.register_value("v", 1)
    for step in range(5):
        store.save_state({"step": step})
    assert steps(store) == [3, 4]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (KeepBest(1) | Yielding(1), [0, 3]),
        (Yielding(1) | KeepBest(1), [0, 3]),
        (KeepLatest(3) & Yielding(2), [2, 3]),
        (Yielding(3) & KeepLatest(2), [2, 3]),
        (KeepBest(1) | Choosing(lambda snapshots: [snapshots[-1]]), [0, 3]),
        (Choosing(list) & (KeepLatest(1) | KeepBest(1)), [0, 3]),
    ],
)
def test_policies_of_ones_own_combine_with_ours(url: str, keep: Any, kept: list[int]) -> None:
    store = StateStore(url, keep=keep)
    store.register_value("v", 1)
    for step in range(4):
        store.save_state({"step": step, "loss": step})
    assert steps(store) == kept
    assert "Yielding" in repr(keep) or "Choosing" in repr(keep)


@pytest.mark.parametrize(
    "choose", [lambda _: None, lambda snapshots: [s.name for s in snapshots], lambda _: 3], ids=["nothing", "names", "number"]
)
def test_a_policy_that_chooses_no_snapshots_removes_none(url: str, choose: Any, caplog: pytest.LogCaptureFixture) -> None:
    store = StateStore(url, keep=Choosing(choose))
    store.register_value("v", 1)
    for step in range(3):
        store.save_state({"step": step})
    assert steps(store) == [0, 1, 2]
    assert "chose" in caplog.text
    with pytest.raises(UsageTypeError, match="chose"):
        store.cleanup()


def test_a_policy_that_fails_costs_no_snapshot(url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = StateStore(url, keep=Choosing(lambda snapshots: [s for s in snapshots if s.metadata["accuracy"]]))
    store.register_value("v", 1)
    store.save_state({"step": 0})
    store.save_async({"step": 1}).wait()
    assert steps(store) == [0, 1]
    assert "KeyError" in caplog.text
    with pytest.raises(KeyError):
        store.cleanup()


@pytest.mark.parametrize("keep", [3, KeepLatest, [KeepLatest(3)], object()])
def test_what_is_no_keeper_is_refused_at_once(url: str, keep: Any) -> None:
    with pytest.raises(UsageTypeError, match="takes a keeper"):
        StateStore(url, keep=keep)


def test_a_policy_may_be_given_as_the_command_line_spells_it(url: str) -> None:
    store = StateStore(url, keep="latest=1,best=1:loss")
    assert store.keep == KeepLatest(1) | KeepBest(1)
    with pytest.raises(UsageError, match="no policy is called"):
        StateStore(url, keep="last=3")


def test_metadata_of_what_is_listed_may_be_changed(url: str) -> None:
    store = StateStore(url, keep=KeepBest(1) | KeepLatest(1))
    store.register_value("v", 1)
    store.save_state({"step": 0, "loss": 1})
    store.snapshots()[0].metadata["loss"] = 100
    for step in (1, 2):
        store.save_state({"step": step, "loss": 50})
    assert steps(store) == [0, 2]


class Asking(PersistentStateMixin):
    """Asks the store that is saving or loading it."""

    def __init__(self) -> None:
        self.ask: Callable[[], object] = lambda: None

    def save_state(self, path: Path) -> None:
        path.write_text("saved")
        self.ask()

    def load_state(self, path: Path) -> None:
        self.ask()


@pytest.mark.parametrize("ask", ["save_state", "save_async", "load_latest"])
@pytest.mark.parametrize("way", ["save_state", "save_async", "load_latest"])
def test_a_component_that_asks_its_own_store_is_refused_and_does_not_wait_for_ever(url: str, way: str, ask: str) -> None:
    store, asking = StateStore(url), Asking()
    store.register("asking", asking)
    store.save_state()
    asking.ask = getattr(store, ask)

    def attempt() -> None:
        with pytest.raises((ComponentError, UsageError), match="in the middle of saving or loading"):
            getattr(store, way)()

    within(30, way, attempt)
    asking.ask = lambda: None
    within(30, "the next save", store.save_state)
    assert len(store.snapshots()) == 2


def test_a_policy_that_loads_is_refused_and_does_not_wait_for_ever(url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = StateStore(url)
    store.keep = Choosing(lambda _: store.load_latest())
    store.register_value("v", 1)
    within(30, "a save", store.save_state)
    within(30, "a save in the background", lambda: store.save_async().wait())
    assert len(store.snapshots()) == 2
    assert "in the middle of saving or loading" in caplog.text


def test_another_thread_waits_for_its_turn(url: str) -> None:
    store, asking = StateStore(url), Asking()
    store.register("asking", asking)
    others: list[threading.Thread] = []

    def ask() -> None:
        if not others:
            others.append(threading.Thread(target=store.save_state))
            others[0].start()

    asking.ask = ask
    within(30, "a save", store.save_state)
    others[0].join(30)
    assert not others[0].is_alive()
    assert len(store.snapshots()) == 2


HANDLER = """
import os, signal, sys, perdure
from pathlib import Path
from perdure.errors import UsageError

class Slow(perdure.PersistentStateMixin):
    def save_state(self, path):
        path.write_text("x")
        if armed:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(1000))  # the handler runs here

armed = False
store = perdure.StateStore(sys.argv[1])
store.register("slow", Slow())

def handler(*_):
    try:
        store.save_state()
    except UsageError as error:
        print("refused:", error)

signal.signal(signal.SIGTERM, handler)
store.save_state()
armed = True
store.save_state()
armed = False
os.kill(os.getpid(), signal.SIGTERM)
store.wait()
print(len(store.snapshots()))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_handler_that_interrupts_a_save_is_refused_and_others_save(url: str) -> None:
    done = subprocess.run([sys.executable, "-c", HANDLER, url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("refused: ") and "this store is in the middle" in first and "on_preemption" in first
    assert last == "3"  # two by the program, and one by the handler


UNTOLD = """
import sys, perdure
store = perdure.StateStore(sys.argv[1])
value = store.register_value("v", b"x" * 100)
store.save_state()
def fail(*_): raise OSError(28, "No space left on device")
import perdure.snapshots.taking as taking
taking.Taking.complete = fail  # as a disk does that fills up while the program ends
saving = store.save_async()
if sys.argv[2] == "waits":
    try:
        saving.wait()
    except OSError:
        pass
"""


@pytest.mark.parametrize("who", ["waits", "does not wait"])
def test_a_program_whose_last_save_failed_does_not_end_as_if_all_were_well(url: str, who: str) -> None:
    done = subprocess.run([sys.executable, "-c", UNTOLD, url, who], capture_output=True, text=True, timeout=120, check=False)
    assert ("No space left on device" in done.stderr) == (who == "does not wait")
    assert ("a snapshot was not stored" in done.stderr) == (who == "does not wait")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals are those of POSIX")
@pytest.mark.parametrize("what", ["wait", "store.wait", "save_state"])
def test_ctrl_c_while_a_background_save_is_waited_for_does_not_forget_it(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 takes a thread for ended if who joins it is interrupted."""
    from perdure.snapshots.folder_draft import FolderDraft

    gate, commit = threading.Event(), FolderDraft.commit

    def slowly(*arguments: Any) -> Snapshot:
        gate.wait(60)
        return commit(*arguments)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderDraft, "commit", slowly)
    store = StateStore(tmp_path)
    store.register_value("v", 1)
    saving = store.save_async()
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            {"wait": saving.wait, "store.wait": store.wait, "save_state": store.save_state}[what]()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not saving.done
    assert store.snapshots() == []
    gate.set()
    path = within(30, "the save", saving.wait)
    assert [snapshot.path for snapshot in store.snapshots()] == [path]
    within(30, "the next save", store.save_state)
    assert len(store.snapshots()) == 2
