"""`perdure cache`: what it tells of cached functions, and what `prune` and `clear` remove and leave alone."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.cli import cache_contents
from perdure.cli.cache_contents import Function, Window, is_meant, span
from perdure.codecs.chain import Chain
from perdure.codecs.entry import Entry, write_entry, write_note
from perdure.errors import UsageError
from perdure.protocol import Backend
from perdure.wrappers import Bounded
from perdure_backends import _file_layout
from perdure_backends.memory import MemoryBackend

PERDURE = [sys.executable, "-m", "perdure"]
DAY = 86400.0
SIZE = len(write_entry(Entry(Chain("msgpack").encode("x" * 10, "key"))))  # of what `keep` stores


@pytest.fixture(params=["file", "sqlite", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that does not exist yet."""
    return {
        "file": f"file:{tmp_path}/place?sync=normal",
        "sqlite": f"sqlite:///{tmp_path}/place.db?sync=normal",
        "memory": f"memory:{tmp_path}",
    }[request.param]


@pytest.fixture
def place(url: str) -> Iterator[Backend]:
    with perdure.open_backend(url) as backend:
        yield backend


def key_of(function: str, number: int) -> str:
    return f"{function}/{number:032x}"


def keep(place: Backend, function: str, number: int = 0, *, age: float = 0.0, length: int = 10, **entry: Any) -> str:
    """Store a value of a function, as if written so many seconds ago."""
    key = key_of(function, number)
    frame = Chain("msgpack").encode("x" * length, key)
    place.put(key, write_entry(Entry(frame, cost=0.5, **entry)))
    return backdate(place, key, age)


def claim(place: Backend, function: str, number: int, *, age: float = 0.0, lease: float = 30.0) -> str:
    """Leave what somebody leaves who computes a value, or was killed."""
    key = key_of(function, number)
    place.put(key, write_entry(Entry(None, lease=lease, token=b"t" * 16)))
    return backdate(place, key, age)


def backdate(place: Backend, key: str, age: float) -> str:
    """Let it be written, and used, so many seconds ago."""
    when = time.time() - age
    if isinstance(place, MemoryBackend):
        place._space.blobs[key] = place._space.blobs[key]._replace(modified=when)
    elif place.place.startswith("sqlite:"):
        database = sqlite3.connect(place.path)
        with database:
            database.execute("UPDATE blobs SET modified = ? WHERE key = ?", (when, key))
        database.close()
    else:
        data = place.get(key).data
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_file_layout, "time_ns", lambda: int(when * 1e9))
            place.put(key, data)
    return key


def record(place: Backend, function: str, hours: dict[datetime, dict[str, float]]) -> None:
    """Store statistics as processes do."""
    days: dict[str, dict[str, dict[str, float]]] = {}
    for hour, counts in hours.items():
        days.setdefault(hour.date().isoformat(), {})[str(hour.hour)] = counts
    for day, counted in days.items():
        place.put(f"stats()/{function}/{day}", write_note(json.dumps({"version": 1, "hours": counted}).encode()))


def now() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """The current hour, which does not end before the test does."""
    current = datetime.now(UTC)

    class Still(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return current

    monkeypatch.setattr(cache_contents, "datetime", Still)
    return current.replace(minute=0, second=0, microsecond=0)


def row(out: str, name: str) -> list[str]:
    """The cells of the first row of this name."""
    found = next(line for line in out.splitlines() if line.startswith(f"{name} "))
    return re.split(" {2,}", found.strip())


# ------------------------------------------------------------------------------------------------------------ what is shown


@pytest.mark.smoke
def test_each_function_and_version_has_a_row_and_all_have_a_total(run, url, place) -> None:
    for number, age in enumerate((3 * DAY, 7200.0, 300.0)):
        keep(place, "app.embed()=1", number, age=age)
    keep(place, "app.embed()=2", age=90.0, length=2000)
    out = run("cache", url).out
    first, second, total = row(out, "app.embed()=1"), row(out, "app.embed()=2"), row(out, "total")
    assert first[1] == "3"
    assert first[3:5] == ["3 d", "5 min"]
    assert second[1] == "1"
    assert second[2] == "2.1 kB"
    assert total[1] == "4"
    assert total[3:5] == ["3 d", "1 min"]
    assert "no calls were recorded" in out


def test_the_last_use_is_told_where_the_place_knows(run, url, place, monkeypatch) -> None:
    key = keep(place, "m.f()", age=5 * DAY)
    place.mark_used({key: time.time() - 7200})
    out = run("cache", url).out
    assert out.splitlines()[0].split() == ["function", "values", "size", "oldest", "newest", "used"]
    assert row(out, "m.f()")[3:] == ["5 d", "5 d", "2 h"]
    assert run("cache", url, "--json").json["functions"][0]["used"] is not None
    monkeypatch.setattr(type(place), "remembers_use", False)
    monkeypatch.setattr(type(place), "uses", Backend.uses)
    out = run("cache", url).out
    assert "used" not in out
    assert row(out, "m.f()")[3:] == ["5 d", "5 d"]
    assert run("cache", url, "--json").json["functions"][0]["used"] is None


def test_no_value_is_read(run, url, place, monkeypatch) -> None:
    for number in range(5):
        keep(place, "m.f()", number)
    claim(place, "m.f()", 9)
    record(place, "m.f()", {now(): {"hits": 1}})
    place.put("other/thing", b"x")
    read: list[str] = []
    get = type(place).get
    monkeypatch.setattr(type(place), "get", lambda self, key, **how: read.append(key) or get(self, key, **how))
    monkeypatch.setattr(type(place), "get_many", lambda self, keys: Backend.get_many(self, keys))
    assert row(run("cache", url).out, "m.f()")[1] == "5"
    assert read
    assert all(key.startswith("stats()/") for key in read)


def test_claims_are_no_values(run, url, place) -> None:
    keep(place, "m.f()", 0, age=7200.0)
    claim(place, "m.f()", 1)
    claim(place, "m.g()", 2)
    keep(place, "m.h()", 3, lease=30.0, token=b"t" * 16)  # a value that is being computed anew is one
    out = run("cache", url).out
    assert row(out, "m.f()")[1:5] == ["1", f"{place.head(key_of('m.f()', 0)).size} B", "2 h", "2 h"]
    assert row(out, "m.g()")[1] == "0"
    assert row(out, "total")[1] == "2"
    assert "2 values are being computed, or were when a process was killed" in out
    found = run("cache", url, "--json").json
    assert [(f["function"], f["values"], f["claims"]) for f in found["functions"]] == [
        ("m.f()", 1, 1),
        ("m.g()", 0, 1),
        ("m.h()", 1, 0),
    ]
    assert found["functions"][1]["oldest"] is None


def test_what_else_is_there_is_counted_and_nothing_more(run, url, place) -> None:
    keep(place, "m.f()")
    for key in ("a", "b/c", "m.f()/short", f"m.f/{0:032x}", f"x/m.f()/{0:032X}z", "stats()/m.f()/tomorrow"):
        place.put(key, b"1")
    out = run("cache", url).out
    assert "and 6 other items, which are not touched" in out
    assert row(out, "total")[1] == "1"
    assert run("cache", url, "--json").json["other_items"] == 6


def test_a_place_without_values_says_where_they_may_be(run, url, place) -> None:
    with perdure.open(url) as d:
        d["something"] = 1
        assert "only 1 other item" in run("cache", url).err
        assert "ls " in run("cache", url).err
        keep(place, "a/b/m.f()")
        assert "but with --prefix a/b" in run("cache", url).err
        assert row(run("cache", url, "--prefix", "a/b").out, "m.f()")[1] == "1"
        assert run("cache", url, "--json").json["elsewhere"] == ["a/b"]
        keep(place, "m.g()")
        assert "and 2 other items, which are not touched; with --prefix a/b some are" in run("cache", url).out


def test_nothing_is_created_where_nothing_is(run, tmp_path) -> None:
    assert "nothing here" in run("cache", tmp_path / "no", code=3).err
    assert "nothing here" in run("cache", "prune", tmp_path / "no", "--ttl", "1d", code=3).err
    assert "nothing here" in run("cache", "clear", tmp_path / "no", "--yes", code=3).err
    assert not (tmp_path / "no").exists()
    (tmp_path / "empty").mkdir()
    assert "no values of cached functions here, nor anything else" in run("cache", tmp_path / "empty").err
    (tmp_path / "file").write_text("x")
    assert "not a folder" in run("cache", tmp_path / "file", code=3).err


def test_a_folder_of_the_name_of_a_subcommand(run, tmp_path) -> None:
    with perdure.open_backend("prune") as place:
        keep(place, "m.f()")
    assert "Missing argument 'URL'" in run("cache", "prune", code=2).err
    assert row(run("cache", "./prune").out, "m.f()")[1] == "1"
    assert run("cache", "clear", "prune", "--yes").out.endswith(f"removed 1 value ({SIZE} B)\n")


# ---------------------------------------------------------------------------------------------------------------- statistics


def test_calls_of_the_last_24_hours(run, url, place, hour) -> None:
    keep(place, "m.f()")
    hours = {
        hour - timedelta(hours=23): {"hits": 1, "misses": 3, "saved": 0.5},
        hour: {"hits": 999, "misses": 0, "saved": 7200.0},
        hour - timedelta(hours=24): {"hits": 5000, "misses": 5000, "saved": 1e6},  # before
    }
    record(place, "m.f()", hours)
    lines = run("cache", url).out.splitlines()
    calls = lines[next(at for at, line in enumerate(lines) if line.startswith("last 24 h")) :]
    assert re.split(" {2,}", calls[0]) == ["last 24 h", "hits", "misses", "hit rate", "saved", "over time"]
    assert re.split(" {2,}", calls[1])[:5] == ["m.f()", "1,000", "3", "99.7 %", "2.0 h"]
    chart = calls[1].partition("2.0 h  ")[2]
    assert len(chart) == 24
    assert (chart[0], chart[1:23].strip(), chart[23]) == ("▃", "", "█")  # 25 % and 100 % of the full height


def test_days(run, url, place, hour) -> None:
    today = hour.replace(hour=0)
    record(place, "m.f()", {today - timedelta(days=days): {"hits": 10 - days, "misses": days} for days in range(12)})
    found = run("cache", url, "--days", "3", "--json").json
    [function] = found["functions"]
    assert (function["hits"], function["misses"], found["step"]) == (27, 3, DAY)
    assert [step["hit_rate"] for step in function["history"]] == [0.8, 0.9, 1.0]
    assert found["since"] == function["history"][0]["start"] == (today - timedelta(days=2)).isoformat()
    assert "last 3 days" in run("cache", url, "--days", "3").out
    assert "today (UTC)" in run("cache", url, "--days", "1").out
    assert "not in the range 1<=x<=30" in run("cache", url, "--days", "31", code=2).err


def test_json_says_all(run, url, place, hour) -> None:
    keep(place, "m.f()", age=3600.0)
    counts = {"hits": 3, "misses": 1, "stale": 1, "waits": 2, "errors": 1, "bytes_read": 30, "bytes_written": 10, "saved": 1.5}
    record(place, "m.f()", {hour: counts})
    found = run("cache", url, "--json").json
    assert found["place"] == place.place
    [function] = found["functions"]
    total = found["total"]
    assert {name: function[name] for name in counts} == counts == {name: total[name] for name in counts}
    assert function["hit_rate"] == total["hit_rate"] == 0.75
    assert len(function["history"]) == 24
    written = datetime.fromisoformat(function["oldest"]).timestamp()
    assert written == pytest.approx(time.time() - 3600, abs=60)
    assert function["newest"] == function["oldest"]


def test_a_function_without_values_that_was_called_has_a_row(run, url, place, hour) -> None:
    record(place, "m.gone()", {hour: {"hits": 0, "misses": 2, "errors": 2}})
    out = run("cache", url).out
    assert row(out, "m.gone()")[1:] == ["0", "0 B"]
    assert "errors" in out
    assert "0 %" in out


def test_errors_have_a_column_only_where_there_are_any(run, url, place, hour) -> None:
    record(place, "m.f()", {hour: {"hits": 1}})
    assert "errors" not in run("cache", url).out


def test_one_miss_in_a_million_is_not_a_hit_rate_of_100_percent(run, url, place, hour) -> None:
    record(place, "m.f()", {hour: {"hits": 10**6, "misses": 1}})
    record(place, "m.g()", {hour: {"hits": 1, "misses": 10**6}})
    record(place, "m.h()", {hour: {"hits": 5}})
    out = run("cache", url).out.partition("last 24 h")[2]
    assert [row(out, f"m.{name}()")[3] for name in "fgh"] == ["99.9 %", "0.1 %", "100 %"]


@pytest.mark.parametrize(
    "text",
    [
        '{"hits": NaN, "saved": Infinity, "misses": -5}',
        f'{{"hits": 1{"0" * 400}, "saved": 1e300}}',
        '{"hits": "many", "misses": null, "saved": true}',
        "[]",
        "5",
    ],
)
def test_statistics_that_make_no_sense_do_no_harm(run, tmp_path, text) -> None:
    place = perdure.open_backend(url := f"memory:{tmp_path}")
    keep(place, "m.f()")
    today = now()
    place.put(f"stats()/m.f()/{today.date()}", write_note(f'{{"version": 1, "hours": {{"{today.hour}": {text}}}}}'.encode()))
    place.put(f"stats()/m.g()/{today.date()}", write_note(b"\xff not JSON"))
    place.put("stats()/m.g()/2026-13-99", write_note(b"{}"))
    place.put(f"stats()/m.h()/{today.date()}", write_note(b'{"version": 1, "hours": {"-1": {"hits": 1}, "x": {}}}'))
    assert row(run("cache", url).out, "m.f()")[1] == "1"
    assert run("cache", url, "--json").json["functions"][0]["hits"] in (0, 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.04, "0.0 s"), (4.2, "4.2 s"), (9.96, "10 s"), (59, "59 s"), (60, "1.0 min"), (3599, "60 min"),
        (5400, "1.5 h"), (47.9 * 3600, "48 h"), (3 * DAY, "3.0 d"), (1e8, "1,157 d"),
    ],
)  # fmt: skip
def test_time_saved_is_short(seconds, text) -> None:
    assert span(seconds) == text


def test_windows_end_now() -> None:
    for days in (None, 1, 30):
        window = Window.of(days)
        assert (
            window.start + (window.number - 1) * window.step <= datetime.now(UTC) < window.start + window.number * window.step
        )


# ------------------------------------------------------------------------------------------------------- as a person sees it


@pytest.fixture
def terminal(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a command on a terminal of some width, and return the lines it shows, without colours."""
    pty = pytest.importorskip("pty")
    import fcntl
    import termios

    def terminal(*words: str, width: int = 80, typed: str = "", code: int = 0, raw: bool = False) -> list[str]:
        outside, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        told = termios.tcgetattr(inside)
        told[3] &= ~termios.ECHO
        termios.tcsetattr(inside, termios.TCSANOW, told)
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        env |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        child = subprocess.Popen([*PERDURE, *words], cwd=tmp_path, stdin=inside, stdout=inside, stderr=inside, env=env)
        os.close(inside)
        os.write(outside, typed.encode())
        shown = b""
        while True:
            try:
                piece = os.read(outside, 4096)
            except OSError:  # Linux says so when the other side is closed
                break
            if not piece:
                break
            shown += piece
        assert child.wait() == code, shown
        os.close(outside)
        if raw:
            return [shown.decode()]
        # A bar comes and goes on a line that it returns to.
        return [line.rpartition("\r")[2] for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).split("\r\n")]

    return terminal


@pytest.mark.parametrize("name", ["m.f()", "package.module.function()=3", "train.(locals).step()~0123456789abcdef"])
def test_a_terminal_of_80_columns_shows_whole_names_and_no_long_lines(terminal, tmp_path, name) -> None:
    with perdure.open_backend(f"sqlite:///{tmp_path}/c.db") as place:
        for number in range(12):
            keep(place, name, number, length=100_000)
        record(place, name, {now() - timedelta(hours=at): {"hits": 9999, "misses": 1000, "saved": 5000} for at in range(24)})
        place.put("other", b"1")
    for width in (60, 80, 120):
        lines = terminal("cache", "sqlite:///c.db", width=width)
        assert max(map(len, lines)) <= width, lines
        assert sum(line.startswith(f"{name} ") for line in lines) == 2
    assert any("██" in line for line in lines)


def test_a_chart_that_has_no_room_has_fewer_bars(terminal, tmp_path) -> None:
    with perdure.open_backend(f"sqlite:///{tmp_path}/c.db") as place:
        record(place, "package.module.function()=3", {now() - timedelta(hours=at): {"hits": 9999} for at in range(23)})
    for width, bars in ((120, 24), (80, 12), (72, 8)):
        lines = terminal("cache", "sqlite:///c.db", width=width)
        assert max(line.count("█") for line in lines) in (bars - 1, bars), lines  # the hour may have ended meanwhile


def test_bars_of_several_steps_end_now() -> None:
    called: dict[str, float] = {"hits": 1}
    assert cache_contents._chart([*[{}] * 8, called], 8) == "    █"
    assert cache_contents._chart([called, *[{}] * 8], 8) == "█    "
    assert cache_contents._chart([{}, {"hits": 9}, {"misses": 3}, {"hits": 1, "misses": 0}], 2) == "█▃"


def test_colours_are_for_terminals(run, terminal, tmp_path) -> None:
    with perdure.open_backend(f"sqlite:///{tmp_path}/c.db") as place:
        keep(place, "m.f()")
    assert "\x1b[1m" in terminal("cache", "sqlite:///c.db", raw=True)[0]
    assert "\x1b" not in run("cache", "sqlite:///c.db").out


def test_a_chart_for_who_has_no_blocks(process, tmp_path) -> None:
    with perdure.open_backend(f"sqlite:///{tmp_path}/c.db") as place:
        record(place, "m.f()", {now(): {"hits": 1}})
    out = process("cache", "sqlite:///c.db", PYTHONIOENCODING="ascii").out
    assert out.isascii()
    assert "#" in out


def test_prune_and_clear_ask(terminal, tmp_path) -> None:
    with perdure.open_backend(f"sqlite:///{tmp_path}/c.db") as place:
        keep(place, "m.f()", age=2 * DAY)
        keep(place, "m.g()")
        for command in (["prune", "--ttl", "1d"], ["clear", "--function", "m.g"]):
            before = keys(place)
            words = ["cache", command[0], "sqlite:///c.db", *command[1:]]
            shown = terminal(*words, typed="n\n", code=1)
            assert any(f"Remove 1 value ({SIZE} B) from sqlite:///" in line for line in shown)
            assert shown[-2].endswith("nothing was removed")
            assert keys(place) == before
            assert terminal(*words, typed="y\n")[-2].endswith(f"removed 1 value ({SIZE} B)")
            assert len(keys(place)) == len(before) - 1


# ------------------------------------------------------------------------------------------------------------------- pruning


def everything(place: Backend) -> dict[str, bytes]:
    """All values; for a folder they count as used then."""
    return {key: place.get(key).data for key in keys(place)}


def keys(place: Backend) -> set[str]:
    return set(place.keys())


def test_prune_says_what_to_give(run, url, place) -> None:
    keep(place, "m.f()", age=99 * DAY)
    for words in ([], ["--function", "m.f"], ["--yes"]):
        assert "Give --ttl 7d, --max-bytes 10GB or --max-items 1000" in run("cache", "prune", url, *words, code=2).err
    assert "months" in run("cache", "prune", url, "--ttl", "7m", code=2).err
    assert "more than 0" in run("cache", "prune", url, "--ttl", "0s", "--yes", code=2).err
    run("cache", "prune", url, "--max-bytes", "much", code=2)
    run("cache", "prune", url, "--max-items", "0", "--yes", code=2)
    assert len(keys(place)) == 1


def test_where_nobody_can_be_asked_yes_is_needed(run, url, place) -> None:
    keep(place, "m.f()", age=2 * DAY)
    before = everything(place)
    assert "needs --yes" in run("cache", "prune", url, "--ttl", "1d", code=2).err
    assert "needs --yes" in run("cache", "clear", url, code=2).err
    assert everything(place) == before
    assert f"nothing to remove: 1 value ({SIZE} B) stay" in run("cache", "prune", url, "--ttl", "9d").out


def test_what_is_older_than_the_ttl_goes_and_nothing_else(run, url, place) -> None:
    old = [keep(place, "m.f()", number, age=8 * DAY) for number in range(600)]  # more than one batch
    place.mark_used(dict.fromkeys(old, time.time()))  # which does not make it younger
    keep(place, "m.f()", 1000, age=6 * DAY)
    keep(place, "m.g()", 1, age=1.0)
    for number, key in enumerate(("a", "b/c", "m.f()/short", f"a/{key_of('m.f()', 1)}")):
        place.put(key, b"%d" % number)
        backdate(place, key, 99 * DAY)
    expected = everything(place)
    for key in old:
        del expected[key]
    answer = run("cache", "prune", url, "--ttl", "7d", "--yes")
    assert everything(place) == expected
    assert f"removed 600 values ({600 * SIZE / 1000:.1f} kB)" in answer.out
    assert row(answer.out, "m.f()")[1:4] == ["600", f"{600 * SIZE / 1000:.1f} kB", "1"]


def test_old_statistics_go(run, url, place) -> None:
    keep(place, "m.f()")
    record(place, "m.f()", {now() - timedelta(days=days): {"hits": 1} for days in (0, 29, 32, 40)})
    record(place, "m.gone()", {now() - timedelta(days=50): {"hits": 1}})
    assert "removed 1 day of statistics" in run("cache", "prune", url, "--ttl", "1d", "--function", "m.gone", "--yes").out
    assert "removed 2 days of statistics" in run("cache", "prune", url, "--ttl", "1d", "--yes").out
    assert sum(key.startswith("stats()/") for key in keys(place)) == 2
    assert key_of("m.f()", 0) in keys(place)


def test_the_least_recently_used_go_beyond_the_limits(run, url, place) -> None:
    made = [keep(place, "m.f()", number, age=1000.0 + number) for number in range(10)]
    place.mark_used({made[9]: time.time()})  # the oldest
    place.put("foreign", b"x" * 10_000)
    assert "5 values" in run("cache", "prune", url, "--max-items", "5", "--yes").out
    assert keys(place) == {*made[:4], made[9], "foreign"}
    run("cache", "prune", url, "--max-bytes", "150B", "--max-items", "4", "--yes")
    assert keys(place) == {made[0], made[9], "foreign"}


def test_limits_hold_after_the_ttl(run, url, place) -> None:
    made = [keep(place, "m.f()", number, age=DAY * number) for number in range(10)]
    found = run("cache", "prune", url, "--ttl", "4.5d", "--max-items", "3", "--yes", "--json").json
    assert keys(place) == {*made[:3]}
    assert (found["expired"]["values"], found["evicted"]["values"], found["stay"]["values"]) == (5, 2, 3)
    assert found["removed"]["values"] == 7


def test_where_use_is_not_remembered_the_oldest_go(run, monkeypatch, tmp_path) -> None:
    url = f"memory:{tmp_path}"
    monkeypatch.setattr(MemoryBackend, "remembers_use", False)
    monkeypatch.setattr(MemoryBackend, "uses", Backend.uses)
    with perdure.open_backend(url) as place:
        made = [keep(place, "m.f()", number, age=1000.0 + number) for number in range(3)]
        assert "does not remember use" in run("cache", "prune", url, "--max-items", "1", "--yes").out
        assert keys(place) == {made[0]}


def test_prune_chooses_as_a_bounded_place_does(run, tmp_path) -> None:
    urls = [f"memory:{tmp_path}/{name}" for name in "ab"]
    for url in urls:
        with perdure.open_backend(url) as place:
            for number in range(50):
                key = keep(place, "m.f()", number, age=1000.0 + number * 37 % 50 * 10, length=number * 13 % 50)
                if number % 3 == 0:
                    place.mark_used({key: 1e9 + number * 11 % 50})
    run("cache", "prune", urls[0], "--max-bytes", "1500", "--max-items", "30", "--yes")
    with perdure.open_backend(urls[0]) as pruned, perdure.open_backend(urls[1]) as place:
        Bounded(place, max_bytes=1500, max_items=30).prune()
        assert everything(pruned) == everything(place)
        assert 0 < len(keys(place)) < 30


@pytest.mark.parametrize("words", [["prune", "--ttl", "2d", "--max-items", "3"], ["clear"]])
def test_a_dry_run_tells_what_a_real_one_does(run, url, place, words) -> None:
    for number in range(10):
        keep(place, "m.f()", number, age=1000.0 + number * DAY / 2)
        keep(place, "m.g()", number, age=1000.0 + number * DAY / 3)
    claim(place, "m.f()", 99, age=7200.0)
    before = keys(place)
    command, *options = words
    told = run("cache", command, url, *options, "--dry-run", "--json").json
    text = run("cache", command, url, *options, "-n").out
    assert keys(place) == before
    real = run("cache", command, url, *options, "--yes", "--json").json
    assert told | {"dry_run": False} == real
    gone = len(before - keys(place))
    assert gone == real["removed"]["values"] + real["unfinished"]
    assert f"would remove {real['removed']['values']} values" in text


def test_claims_of_live_processes_stay(run, url, place) -> None:
    fresh = claim(place, "m.f()", 1)
    silent = claim(place, "m.f()", 7, age=300.0, lease=30.0)  # clocks differ: not before ten minutes
    renewed = claim(place, "m.f()", 2, age=700.0, lease=3600.0)
    anew = keep(place, "m.f()", 3, age=20.0, lease=30.0, token=b"t" * 16)  # kept while a new one is computed
    killed = claim(place, "m.f()", 4, age=700.0, lease=30.0)
    dropped = keep(place, "m.f()", 5, age=40.0, lease=30.0, token=b"t" * 16)
    plain = keep(place, "m.f()", 6, age=20.0)
    answer = run("cache", "prune", url, "--ttl", "1s", "--yes")
    assert keys(place) == {fresh, silent, renewed, anew}
    assert f"removed 2 values ({2 * SIZE} B) and 1 unfinished computation of killed processes" in answer.out
    assert {killed, dropped, plain}.isdisjoint(keys(place))


def test_a_live_claim_is_not_evicted_and_another_value_goes_for_it(run, url, place) -> None:
    anew = keep(place, "m.f()", 1, age=25.0, lease=30.0, token=b"t" * 16)  # the least recently used
    others = [keep(place, "m.f()", number, age=20.0 - number) for number in range(2, 5)]
    run("cache", "prune", url, "--max-items", "2", "--yes")
    assert keys(place) == {anew, others[-1]}


def test_damaged_values_go_like_others(run, url, place) -> None:
    key = keep(place, "m.f()", 1)
    data = place.get(key).data
    place.put(key, data[:-1] + bytes((data[-1] ^ 1,)))
    backdate(place, key, 5.0)
    cut = key_of("m.f()", 2)
    place.put(cut, b"")
    backdate(place, cut, 5.0)
    run("cache", "prune", url, "--ttl", "1s", "--yes")
    assert not keys(place)


def test_a_value_damaged_on_disk_goes(run, tmp_path) -> None:
    with perdure.open_backend("c") as place:
        keys_of_both = {keep(place, "m.f()", number, age=5.0) for number in (1, 2)}
        path = tmp_path / "c" / f"{key_of('m.f()', 1)}.perdure"
        path.write_bytes(path.read_bytes()[:-20])
        os.utime(path, (time.time() - 5, time.time() - 5))
        assert keys(place) == keys_of_both
        run("cache", "prune", "c", "--ttl", "1s", "--yes")
        assert not keys(place)


# ------------------------------------------------------------------------------------------------------------- one function


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("m.f", {"m.f()", "m.f()=2", "m.f()=v.1"}),
        ("m.f()", {"m.f()", "m.f()=2", "m.f()=v.1"}),
        ("m.f=2", {"m.f()=2"}),
        ("m.f()=2", {"m.f()=2"}),
        ("m.f()=v.1", {"m.f()=v.1"}),
        ("m.C.f", {"m.C.f()"}),
        ("s.(locals).g", {"s.(locals).g()~0123456789abcdef", "s.(locals).g()=a_b~fedcba9876543210"}),
        ("s.(locals).g()~0123456789abcdef", {"s.(locals).g()~0123456789abcdef"}),
        ("s.(locals).g=a_b", {"s.(locals).g()=a_b~fedcba9876543210"}),
        ("f", set()),
        ("m", set()),
        ("m.f=", set()),
        ("", set()),
        ("m.f()=", set()),
    ],
)
def test_who_is_meant(wanted, meant) -> None:
    names = ["m.f()", "m.f()=2", "m.f()=v.1", "m.C.f()", "m.ff()", "s.(locals).g()~0123456789abcdef"]
    names += ["s.(locals).g()=a_b~fedcba9876543210"]
    assert {name for name in names if is_meant(name, wanted)} == meant


def test_one_function_or_one_version_is_pruned(run, url, place) -> None:
    names = ["m.f()=1", "m.f()=2", "m.g()"]
    for name in names:
        for number in range(4):
            keep(place, name, number, age=1000.0 + number)
    run("cache", "prune", url, "--function", "m.f=2", "--max-items", "1", "--yes")
    assert {name: sum(key.startswith(f"{name}/") for key in keys(place)) for name in names} == {
        "m.f()=1": 4,
        "m.f()=2": 1,
        "m.g()": 4,
    }
    run("cache", "prune", url, "--function", "m.f()", "--max-items", "2", "--yes")  # of both versions together
    assert sum(key.startswith("m.f()") for key in keys(place)) == 2
    run("cache", "clear", url, "--function", "m.f", "--yes")
    assert {key.partition("/")[0] for key in keys(place)} == {"m.g()"}


def test_an_unknown_function_is_an_error_that_helps(run, url, place) -> None:
    keep(place, "package.embed()=2")
    before = everything(place)
    for command in (["prune", url, "--ttl", "1s"], ["clear", url]):
        answer = run("cache", *command, "--yes", "--function", "embed", code=1)
        assert "no cached function 'embed'" in answer.err
        assert "Did you mean 'package.embed'?" in answer.err
        assert answer.err.count("\n") == 1
    assert "Did you mean 'package.embed'?" in run("cache", "clear", url, "--function", "package.embde()=2", code=1).err
    assert "There are: package.embed()=2." in run("cache", "clear", url, "--function", "package.embed=3", code=1).err
    assert "There are: package.embed." in run("cache", "clear", url, "--function", "zzz", code=1).err
    assert everything(place) == before


# ------------------------------------------------------------------------------------------------------------------ clearing


def test_clear_removes_values_and_nothing_else(run, url, place) -> None:
    for number in range(300):
        keep(place, "m.f()", number)
    claim(place, "m.f()", 999)
    record(place, "m.f()", {now(): {"hits": 1}})
    place.put("foreign", b"1")
    keep(place, "a/m.f()")
    answer = run("cache", "clear", url, "--yes")
    assert f"removed 300 values ({300 * SIZE / 1000:.1f} kB) and 1 unfinished computation\n" in answer.out
    assert keys(place) == {"foreign", f"a/{key_of('m.f()', 0)}", f"stats()/m.f()/{now().date()}"}
    assert "nothing to remove" in run("cache", "clear", url).out
    run("cache", "clear", url, "--prefix", "a", "--yes")
    assert "foreign" in keys(place)
    assert f"a/{key_of('m.f()', 0)}" not in keys(place)


def test_an_empty_place_is_no_error(run, url, place) -> None:
    place.put("foreign", b"1")
    for words in (["clear", url], ["prune", url, "--ttl", "1d"]):
        answer = run("cache", *words)
        assert answer.out == "nothing to remove\n"
        assert "no values of cached functions here, only 1 other item" in answer.err
    assert run("cache", "clear", url, "--json").json["removed"] == {"values": 0, "bytes": 0}


# ---------------------------------------------------------------------------------------------------- with real functions


def test_a_cached_function_is_shown_pruned_and_cleared(run, tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/cache.db"
    runs: list[int] = []

    @perdure.cached(url, version=3)
    def square(x: int) -> int:
        runs.append(x)
        return x * x

    for x in (1, 2, 3, 1, 1):
        square(x)
    square.cache.write_stats()
    [function] = run("cache", url, "--json").json["functions"]
    assert function["function"] == square.cache.name
    assert (function["values"], function["hits"], function["misses"]) == (3, 2, 3)
    assert (function["bytes"], function["claims"]) == (function["bytes_written"], 0)
    with perdure.open_backend(url) as place:
        backdate(place, square.cache.key(2), 2 * DAY)
    assert run("cache", "prune", url, "--ttl", "1d", "--yes", "--json").json["removed"]["values"] == 1
    square(1)
    square(2)
    assert runs == [1, 2, 3, 2]
    name = square.cache.name.partition("()")[0]
    run("cache", "clear", url, "--function", name, "--yes")
    square(1)
    assert runs == [1, 2, 3, 2, 1]


def test_what_is_being_computed_survives_prune_and_is_not_stored_after_clear(run, tmp_path) -> None:
    url = f"memory:{tmp_path}"
    begun, go_on = threading.Semaphore(0), threading.Event()

    @perdure.cached(url)
    def slow(x: int) -> int:
        begun.release()
        assert go_on.wait(60)
        return x

    made = [slow.cache.key(1), slow.cache.key(2)]
    with perdure.open_backend(url) as place:
        first = threading.Thread(target=slow, args=(1,))
        first.start()
        assert begun.acquire(timeout=60)
        assert run("cache", url, "--json").json["total"]["claims"] == 1
        run("cache", "prune", url, "--ttl", "1ms", "--max-items", "1", "--yes")
        go_on.set()
        first.join()
        assert keys(place) == {made[0]}
        go_on.clear()
        second = threading.Thread(target=slow, args=(2,))
        second.start()
        assert begun.acquire(timeout=60)
        run("cache", "clear", url, "--yes")
        go_on.set()
        second.join()
        assert not keys(place)


def test_functions_of_a_script_are_found(run, tmp_path) -> None:
    (tmp_path / "script.py").write_text(
        "import perdure\n\n\n@perdure.cached('cache')\ndef double(x):\n    return 2 * x\n\n\ndouble(1)\ndouble(1)\n"
    )
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True)
    [function] = run("cache", "cache", "--json").json["functions"]
    assert function["function"].startswith("script.double()")
    assert (function["values"], function["hits"], function["misses"]) == (1, 1, 1)
    assert run("cache", "clear", "cache", "--function", "script.double", "--yes", "--json").json["removed"]["values"] == 1


def test_a_function_counts_nothing_where_nothing_was_counted() -> None:
    assert not Function("m.f()", series=[{}, {}]).was_called


def test_a_url_with_a_wrong_option_is_wrong_usage(run) -> None:
    assert "no option" in run("cache", "sqlite:///c.db?nonsense=1", code=2).err
    with pytest.raises(UsageError):
        perdure.open_backend("sqlite:///c.db?nonsense=1")
