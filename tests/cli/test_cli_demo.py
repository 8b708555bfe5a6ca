"""The demo, for real: processes, SIGKILL, and a count that has to be right to the last word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import perdure
from perdure.cli.demo.job import SUMS, Job, choose_files, count_words, counts_key, sum_up
from perdure.cli.demo.worker import Worker
from perdure.errors import UnknownOutcomeError
from perdure.mapping import PersiDict
from perdure_backends.memory import MemoryBackend

FEW = ["--files", "120", "--workers", "3"]


def check_story(answer: dict[str, Any]) -> None:
    """All that is promised has happened, in this order."""
    story = {event["event"]: event for event in answer["story"]}
    kinds = [event["event"] for event in answer["story"]]
    assert kinds == ["opened", "started", "killed", "replaced", "stopped", "started", "finished"]
    assert story["killed"]["by_us"]
    first, second = (event for event in answer["story"] if event["event"] == "started")
    assert (first["run"], first["done"]) == (1, 0)
    assert second["run"] == 2
    assert 0 < second["done"] < second["of"] == 120
    assert answer["equal"]
    assert answer["totals"] == answer["counts"]["sums"] == answer["plain"]["sums"]
    assert answer["totals"]["files"] == 120
    # Whoever was killed at the worst moment left a file that was stored and not added.
    assert answer["taken_over"] >= 2
    assert answer["found_stored"] >= 2


@pytest.mark.parametrize("on", ["file", "sqlite"])
def test_on_processes(process, on):
    answer = process("demo", "--on", on, "--where", "place", *FEW, "--json").json
    check_story(answer)
    (killed,) = [event for event in answer["story"] if event["event"] == "killed"]
    with perdure.open(answer["place"]) as d:
        elected = d["elected", "kill"]
        assert elected == {"worker": killed["worker"], "file": killed["file"]}
        assert d["claims", *killed["file"].split("/")]["after"] == killed["worker"]  # it was taken over from the dead


def test_on_threads(run):
    check_story(run("demo", "--on", "memory", *FEW, "--json").json)


@pytest.mark.s3
def test_on_s3(process):
    check_story(process("demo", "--on", "s3", *FEW, "--json").json)


def test_it_can_be_read(process):
    answer = process("demo", "--where", "sqlite:///d.db", *FEW)
    assert "killed with SIGKILL" in answer.out
    assert "the whole program is stopped" in answer.out
    assert "equal to a plain count" in answer.out
    assert "\x1b" not in answer.out
    assert answer.err == ""


def test_a_wrong_count_is_noticed(process, tmp_path):
    process("demo", "--where", "place", *FEW, "--json")
    with perdure.open(tmp_path / "place") as d:
        name = d["job"]["files"][7]
        counts = d[counts_key(name)]
        counts["words"]["surplus"] = 1
        d[counts_key(name)] = counts
    answer = process("demo", "--where", "place", "--json", code=1).json
    assert not answer["equal"]
    assert answer["unequal_files"] == [name]
    assert "NOT EQUAL" in process("demo", "--where", "place", code=1).out


def test_a_wrong_total_is_noticed(run):
    url = f"memory:{uuid4()}"
    with perdure.open(url) as d:
        run("demo", "--where", url, *FEW, "--json")
        d["totals"] = d["totals"] | {"lines": d["totals"]["lines"] + 1}
        assert not run("demo", "--where", url, "--json", code=1).json["equal"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_killed_itself_it_leaves_no_process_behind_and_goes_on(process, tmp_path):
    mark = f"PERDURE_TEST_{uuid4().hex}"
    command = [sys.executable, "-m", "perdure", "demo", "--where", "place", *FEW]
    demo = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {mark: "1"}, stdout=subprocess.PIPE)
    with demo:
        assert any(b"replaces it" in line for line in demo.stdout)  # so coordinator and workers are there
        demo.send_signal(signal.SIGKILL)
    while running(mark):
        pass  # they notice without being told; if they do not, the time limit of the test says so
    answer = process("demo", "--where", "place", "--json").json
    assert answer["equal"]
    assert answer["totals"]["files"] == 120


def running(mark: str) -> list[str]:
    """Processes that were started with this variable."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue  # ended, or somebody else's
    return found


def test_ctrl_c_says_how_to_go_on(process, tmp_path):
    command = [sys.executable, "-m", "perdure", "demo", "--where", "place", *FEW]
    demo = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs in the background
    )
    with demo:
        assert any(b"replaces it" in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        _, error = demo.communicate()
        assert demo.returncode == 130
    assert b"perdure demo --where place" in error
    assert process("demo", "--where", "place", "--json").json["equal"]


def test_a_place_with_other_things_is_refused(run):
    run("set", "place", "mine", "1")
    assert "other things" in run("demo", "--where", "place", code=2).err
    assert run("ls", "place", "--json").json == ["mine"]


def test_contradicting_options_are_refused(run):
    run("demo", "--on", "file", "--where", "sqlite:///x.db", code=2)
    run("demo", "--on", "s3", "--where", "path", code=2)
    run("demo", "--files", "5", code=2)


# What makes it right, looked at one step at a time.


@pytest.fixture
def job() -> Job:
    return Job.begin(PersiDict(MemoryBackend()), 100)


class Killed(Exception):
    pass


def kill_at(step: str, nth: int) -> Any:
    passed = 0

    def maybe(what: str, **_: Any) -> None:
        nonlocal passed
        passed += what == step
        if passed == nth:
            raise Killed

    return maybe


def go_on(what: str, **_: Any) -> None:
    pass


def expected(job: Job) -> dict[str, int]:
    return sum_up(count_words(job.root, name) for name in job.files)[0]


def sums(job: Job) -> dict[str, int]:
    return {name: job.totals()[name] for name in SUMS}


@pytest.mark.parametrize("step", ["claimed", "stored", "added"])
@pytest.mark.parametrize("next_run", [False, True], ids=["replaced", "restarted"])
def test_killed_at_any_step_nothing_is_lost_or_counted_twice(job, step, next_run):
    with pytest.raises(Killed):
        Worker(job, "first", 1, step=kill_at(step, 30)).work()
    Worker(job, "stranger", 1, step=go_on).work()  # does the rest, and respects the claim
    assert sums(job)["files"] == (100 if step == "added" else 99)
    Worker(job, "second", 2 if next_run else 1, gone=() if next_run else ("first",), step=go_on).work()
    assert sums(job) == expected(job)


def test_an_older_run_does_not_take_claims_of_a_newer_one(job):
    with pytest.raises(Killed):
        Worker(job, "new", 2, step=kill_at("claimed", 1)).work()
    Worker(job, "old", 1, step=go_on).work()
    assert sums(job)["files"] == 99


def test_adding_may_be_repeated(job):
    counts = count_words(job.root, job.files[0])
    once = job.add(job.files[0], counts)
    assert job.add(job.files[0], counts) == once
    assert once["files"] == 1


class Doubtful(MemoryBackend):
    """Every third write takes effect, and nobody is told."""

    writes = 0

    def put(self, key, data, *, if_match=None):
        etag = super().put(key, data, if_match=if_match)
        self.writes += 1
        if if_match is not None and self.writes % 3 == 0:
            raise UnknownOutcomeError("the answer was lost", key=key, place=self.place)
        return etag


def test_lost_answers_change_nothing():
    shared = PersiDict(Doubtful())
    root, files = choose_files(100)
    shared["job"] = {"kind": "perdure demo 1", "root": root, "files": files}
    job = Job(shared)
    Worker(job, "only", 1, step=go_on).work()
    assert sums(job) == expected(job)


def test_one_of_all_is_elected(job):
    assert [job.elect(name, "kill", "x.py") for name in ("a", "b", "c")] == [True, False, False]


def test_files_are_real_and_sorted():
    root, files = choose_files(150)
    assert files == sorted(files)
    assert len(set(files)) == 150
    assert all(Path(root, name).is_file() for name in files)
    assert json.loads(json.dumps(files)) == files
