"""The kit can fail: every backend of `broken.py` is found out by the tests that are there for its mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import broken
import pytest

# The tests that must fail with some broken backend, which must pass with the correct one it was made from.
CORRECT = {
    correct.__name__: sorted({test for cls, tests in broken.MUST_FAIL.items() if issubclass(cls, correct) for test in tests})
    for correct in (broken.Correct, broken.CorrectFolder)
}
BROKEN = {cls.__name__: tests for cls, tests in broken.MUST_FAIL.items()}
STUCK = ["LockStaysAfterCtrlC", "LockIsInheritedByForks"]  # these are found out by waiting in vain


def start(base: Path, backends: dict[str, list[str]], patience: int) -> tuple[Path, subprocess.Popen[str]]:
    """Run some tests with some backends in another process."""
    # One that hangs names itself: its threads are printed after a while, and the time that pytest allows is less than ours.
    options = ["-v", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "faulthandler_timeout=100", "--timeout=200"]
    options += ["--tb=line", "--hypothesis-profile=found", f"--junitxml={base}.xml", f"--basetemp={base}"]
    ids = [f"{broken.__file__}::Test{name}::{test}" for name, tests in backends.items() for test in tests]
    environment = os.environ | {"PERDURE_PATIENCE": str(patience), "PERDURE_ROUNDS": "1"}
    command = [sys.executable, "-m", "pytest", *options, *ids]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Path(f"{base}.xml"), process


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """How each test went, with the correct backends and with the broken ones."""
    base = tmp_path_factory.mktemp("kit")
    rest = CORRECT | {name: tests for name, tests in BROKEN.items() if name not in STUCK}
    runs = [start(base / "stuck", {name: BROKEN[name] for name in STUCK}, patience=3), start(base / "rest", rest, patience=60)]
    found: dict[tuple[str, str], str] = {}
    for report, process in runs:
        try:
            output = process.communicate(timeout=250)[0]
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"stuck: {(error.output or b'').decode()[-5000:]}", pytrace=False)
        finally:
            process.kill()
        assert process.returncode == 1, output
        for case in ElementTree.parse(report).iter("testcase"):
            backend = case.get("classname", "").rpartition(".Test")[2]
            found[backend, case.get("name", "")] = case[0].tag if len(case) else "passed"
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_backend_is_found_out(name: str, outcomes: dict[tuple[str, str], str]) -> None:
    assert {test: outcomes[name, test] for test in BROKEN[name]} == dict.fromkeys(BROKEN[name], "failure")


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_backend_passes_the_same_tests(name: str, outcomes: dict[tuple[str, str], str]) -> None:
    assert {test: outcomes[name, test] for test in CORRECT[name]} == dict.fromkeys(CORRECT[name], "passed")


def test_there_are_at_least_ten_broken_backends() -> None:
    assert len(BROKEN) >= 10
