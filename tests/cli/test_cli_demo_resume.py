"""The demo of snapshots, for real: a training that is killed, and has to end with the bits of one that is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from perdure.cli.demo.resume import command, training
from perdure.cli.demo.resume.outcome import COMPONENTS, look
from perdure.cli.demo.resume.program import ONE_THREAD, choose_moments
from perdure.snapshots import StateStore

FEW = ["--kills", "5", "--steps", "400"]


TRAIN = """
from perdure.cli.demo.resume import training
from perdure.snapshots import StateStore
training.RATE *= {factor}
with StateStore("place") as store:
    training.train(store, {steps}, lambda *_: None)
"""


def train(where: Path, steps: int, factor: float = 1.0) -> None:
    """Train with as many threads as the demo does, as that decides on the last bits; and at another rate than it does."""
    code = TRAIN.format(steps=steps, factor=factor)
    subprocess.run([sys.executable, "-c", code], cwd=where, env=os.environ | ONE_THREAD, check=True)


def check(answer: dict[str, Any]) -> None:
    """Killed again and again, each time gone on from what was saved, and nothing lost."""
    assert answer["equal"]
    kills = answer["kills"]
    assert 3 <= kills <= 5  # of five: on a busy machine a kill may come too late
    assert answer["damaged"] == []
    assert list(answer["components"]) == list(COMPONENTS)
    for component in answer["components"].values():
        assert component["equal"]
        assert component["digest"] == component["alone"]
    story = [event for event in answer["story"] if event["event"] in ("started", "killed")]
    assert [event["event"] for event in story] == ["started", "killed"] * kills + ["started", "started"]
    starts = [event["step"] for event in story[::2]]
    ends = [event["step"] for event in story[1:-1:2]]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] > 0, "it never went on from anything"
    assert all(start <= end + 1 for start, end in zip(starts[1:], ends, strict=True)), "it knew what it had not done yet"
    assert len({event["pid"] for event in story if event["event"] == "killed"}) == kills
    assert answer["history"][0] < 0.3
    assert answer["history"][-1] > 0.6


@pytest.mark.parametrize("on", ["file", "sqlite"])
def test_killed_again_and_again_it_ends_with_the_same_bits(process: Any, on: str) -> None:
    answer = process("demo", "resume", "--on", on, *FEW, "--json").json
    check(answer)
    shutil.rmtree(Path(answer["place"].partition(":")[2].replace("//", "", 1)).parent)


@pytest.mark.s3
def test_killed_again_and_again_with_a_bucket(process: Any) -> None:
    check(process("demo", "resume", "--on", "s3", *FEW, "--json").json)


def test_it_can_be_read(process: Any) -> None:
    answer = process("demo", "resume", "--where", "place", *FEW)
    assert 3 <= answer.out.count("killed with SIGKILL") <= 5
    assert "equal bit for bit" in answer.out
    assert "perdure snapshots place" in answer.out
    assert "\x1b" not in answer.out
    assert answer.err == ""
    assert process("snapshots", "place", "--verify").code == 0


def test_another_training_is_noticed(process: Any, tmp_path: Path) -> None:
    train(tmp_path, 20, factor=0.99)
    answer = process("demo", "resume", "--where", "place", "--steps", "20", "--json", code=1).json
    assert not answer["equal"]
    assert not answer["components"]["network"]["equal"]
    assert answer["components"]["order"]["equal"]
    assert "NOT EQUAL" in process("demo", "resume", "--where", "place", "--steps", "20", code=1).out


def test_a_damaged_snapshot_is_passed_over_and_told_of(process: Any, tmp_path: Path) -> None:
    train(tmp_path, 20)
    train(tmp_path, 40)
    newest = look(f"{tmp_path}/place").snapshots[-1]
    assert newest.path is not None
    part = newest.path / "network" / "inner.npy"
    data = bytearray(part.read_bytes())
    data[5000] ^= 1
    part.write_bytes(data)
    answer = process("demo", "resume", "--where", "place", "--steps", "40", "--json", code=1).json
    assert all(component["equal"] for component in answer["components"].values())
    assert [problem for problem in answer["damaged"] if "network/inner.npy" in problem]
    assert not answer["equal"]


def test_what_was_begun_just_finishes(process: Any, tmp_path: Path) -> None:
    train(tmp_path, 30)
    answer = process("demo", "resume", "--where", "place", "--steps", "60", "--json").json
    assert answer["equal"]
    assert answer["kills"] == 0
    assert next(event["step"] for event in answer["story"] if event["event"] == "started") == 30
    assert "has done 60 steps" in process("demo", "resume", "--where", "place", "--steps", "50", code=2).err


def test_other_peoples_snapshots_are_refused_and_stay(run: Any, tmp_path: Path) -> None:
    with StateStore(tmp_path / "place") as store:
        store.register_value("mine", 1)
        for _ in range(5):
            store.save_state()
        assert "of another program" in run("demo", "resume", "--where", "place", code=2).err
        assert len(store.snapshots()) == 5


def test_other_things_are_refused(run: Any) -> None:
    run("set", "sqlite:///x.db", "mine", "1")
    assert "other things" in run("demo", "resume", "--where", "sqlite:///x.db", code=2).err


def test_it_says_what_to_install(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    answer = run("demo", "resume", code=2)
    assert answer.err == "perdure: numpy is not installed. Type: pip install numpy\n"


@pytest.mark.parametrize(
    "words",
    [
        ["resume", "--on", "file", "--where", "sqlite:///x.db"],
        ["resume", "--where", "memory:x"],
        ["resume", "--on", "memory"],
        ["resume", "--kills", "0"],
        ["resume", "--files", "100"],
        ["--workers", "2", "resume"],
        ["--json", "resume"],
        ["resum"],
    ],
)
def test_contradicting_options_are_refused(run: Any, words: list[str]) -> None:
    answer = run("demo", *words, code=2)
    assert answer.err.startswith("perdure: ")
    assert answer.err.count("\n") == 1
    assert not list(Path().iterdir())


def test_both_demos_explain_themselves(run: Any) -> None:
    both = run("demo", "--help").out
    assert "--workers" in both
    assert "resume" in both.partition("Commands:")[2]
    alone = run("demo", "resume", "--help").out
    assert "--kills" in alone
    assert "--workers" not in alone
    assert "--debug" in alone


def test_the_kills_are_spread_over_the_training() -> None:
    moments = choose_moments(9, 1000, seed=4)
    assert moments == choose_moments(9, 1000, seed=4)
    assert moments != choose_moments(9, 1000, seed=5)
    ends = [moment.latest for moment in moments]
    assert ends == sorted(ends)
    assert ends[-1] < 1000
    assert all(begin <= moment.step <= moment.latest for begin, moment in zip([0, *ends], moments, strict=False))
    assert [moment.saving for moment in moments] == [True, False] * 4 + [True]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_killed_itself_it_leaves_no_training_behind(tmp_path: Path) -> None:
    mark = f"PERDURE_TEST_{uuid4().hex}"
    demo = subprocess.Popen(
        [sys.executable, "-m", "perdure", "demo", "resume", "--where", "place", "--steps", "100000"],
        cwd=tmp_path,
        env=os.environ | {mark: "1"},
        stdout=subprocess.PIPE,
    )
    assert demo.stdout is not None
    with demo:
        assert any(b"a process begins" in line for line in demo.stdout)
        demo.send_signal(signal.SIGKILL)
    while _running(mark):
        pass  # it notices without being told; if it does not, the time limit of the test says so


def _running(mark: str) -> list[str]:
    """Processes that were started with this variable."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue  # ended, or somebody else's
    return found


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_says_how_to_go_on(process: Any, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "perdure", "demo", "resume", "--where", "place", "--steps", "200", "--kills", "20"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs in the background
    )
    with demo:
        assert demo.stdout is not None
        assert any(b"a process begins" in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        _, error = demo.communicate()
        assert demo.returncode == 130
    assert b"demo resume --where place --steps 200" in error
    assert process("demo", "resume", "--where", "place", "--steps", "200", "--kills", "1", "--json").json["equal"]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_the_training_may_be_copied_and_ended_like_any_program(tmp_path: Path) -> None:
    script = shutil.copy(training.__file__, tmp_path / "mine.py")
    first = subprocess.Popen([sys.executable, "-u", script], cwd=tmp_path, stdout=subprocess.PIPE)
    assert first.stdout is not None
    with first:
        lines = [first.stdout.readline() for _ in range(30)]
        first.send_signal(signal.SIGTERM)
        lines += first.stdout.readlines()
    assert first.returncode == -signal.SIGTERM
    last = int(lines[-1].split()[1])
    assert 29 <= last < 799, "it was done before it could be ended"
    with subprocess.Popen([sys.executable, "-u", script], cwd=tmp_path, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        assert int(second.stdout.readline().split()[1]) == last + 1
        second.kill()
