"""The benchmarks run, and what they write has the shape that is promised. Nothing here looks at a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not part of the wheel")


def test_a_quick_run_prints_its_rows_and_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks", "memory", "--quick", "--json", str(target)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "memory: get bytes" in run.stdout
    found = json.loads(target.read_text())
    assert found["format"] == 1
    assert found["quick"] is True
    assert {"python", "system", "processors", "file system", "date", "command"} <= found["machine"].keys()
    assert len(found["rows"]) > 3
    for row in found["rows"]:
        assert row.keys() == {"place", "workload", "unit", "entries", "verdicts", "notes"}
        assert row["place"] == "memory"
        assert row["entries"][0]["ratio"] == 1
        for entry in row["entries"]:
            assert entry.keys() == {"name", "median", "low", "high", "ratio", "more"}
            assert 0 < entry["low"] <= entry["median"] <= entry["high"] < math.inf
        for verdict in row["verdicts"]:
            assert verdict["reached"] == (verdict["measured"] <= verdict["limit"])


def test_an_unknown_place_is_named() -> None:
    run = subprocess.run([sys.executable, "-m", "benchmarks", "memroy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "memroy" in run.stderr


def test_ratios_are_taken_within_a_round_and_goals_judged_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.harness import FLOOR, Goal, judge

    # A machine that gets ten times slower in the middle: medians alone would compare quick rounds with slow ones.
    samples = {FLOOR: [1.0, 1.0, 10.0, 10.0, 10.0], "ours": [1.4, 1.4, 14.0, 14.0, 14.0], "peer": [2.0, 2.0, 20.0, 20.0, 20.0]}
    goals = [
        Goal("ours", 1.5),
        Goal("ours", 1.3),
        Goal("ours", 0.8, "peer"),
        Goal("ours", plus=5.0),
        Goal("ours", of=None, plus=3.0),
    ]
    row = judge("somewhere", "work", "µs", samples, [*goals, Goal("absent", 1.0), Goal("ours", 1.0, "absent")])
    assert [entry.ratio for entry in row.entries] == [1.0, 1.4, 2.0]
    assert [verdict.reached for verdict in row.verdicts] == [True, False, True, True, False]
    assert [verdict.goal for verdict in row.verdicts] == [
        "≤ 1.5 × floor",
        "≤ 1.3 × floor",
        "≤ 0.8 × peer",
        "≤ floor + 5 µs",
        "≤ 3 µs",
    ]
    assert "NOT REACHED" in row.text()
