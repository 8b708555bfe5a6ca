"""The kit can fail: every backend of `broken.py` is found out by the tests that are there for its mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import broken
import pytest


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """How each test went, run in another process: with a correct backend, and with each broken one."""
    file = Path(broken.__file__)
    wanted = {test for tests in broken.MUST_FAIL.values() for test in tests}
    ids = [f"{file}::TestCorrect::{test}" for test in sorted(wanted)]
    ids += [f"{file}::Test{cls.__name__}::{test}" for cls, tests in broken.MUST_FAIL.items() for test in tests]
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    options = [
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "--tb=line",
        f"--junitxml={report}",
        f"--basetemp={report.parent / 'base'}",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *ids],
        env=os.environ | {"PERDURE_PATIENCE": "3", "PERDURE_ROUNDS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return {
        (case.get("classname", "").rpartition(".Test")[2], case.get("name", "")): case[0].tag if len(case) else "passed"
        for case in ElementTree.parse(report).iter("testcase")
    }


@pytest.mark.parametrize("cls", broken.MUST_FAIL, ids=lambda cls: cls.__name__)
def test_a_broken_backend_is_found_out(cls: type, outcomes: dict[tuple[str, str], str]) -> None:
    tests = broken.MUST_FAIL[cls]
    assert {test: outcomes[cls.__name__, test] for test in tests} == dict.fromkeys(tests, "failure")


def test_a_correct_backend_passes_the_same_tests(outcomes: dict[tuple[str, str], str]) -> None:
    found = {test: outcome for (name, test), outcome in outcomes.items() if name == "Correct"}
    assert set(found) == {test for tests in broken.MUST_FAIL.values() for test in tests}
    assert set(found.values()) == {"passed"}, found


def test_there_are_at_least_ten_broken_backends() -> None:
    assert len(broken.MUST_FAIL) >= 10
