"""Who takes part in the benchmarks, what is counted, and what happens where a library is missing. Times are not looked at."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not part of the wheel")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def hardly() -> Any:
    """An effort of next to nothing."""
    from benchmarks.harness import Effort

    return Effort(rounds=1, batch=0.0, limit=0.0, quick=True)


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "cashews",
        "diskcache",
        "dogpile.cache",
        "joblib",
        "key_value.aio.stores.disk",
        "key_value.aio.stores.filetree",
        "orbax.checkpoint",
        "pamiq_core.state_persistence",
        "persidict",
        "safetensors.numpy",
        "sqlitedict",
        "torch",
    ):
        monkeypatch.setitem(sys.modules, name, None)


def test_the_rows_of_dicts_have_their_goals(hardly: Any, without_peers: None) -> None:
    from benchmarks import mapping

    goals = {(row.workload, verdict.who, verdict.goal) for row in mapping.run(hardly) for verdict in row.verdicts}
    assert goals == {
        ("get a small dict, memory", "perdure, dict", "≤ backend and codec + 2 µs"),
        ("get a small dict, memory, key a/b", "perdure, dict", "≤ backend and codec + 2 µs"),
        ("set a small dict, memory", "perdure, dict", "≤ backend and codec + 3 µs"),
        ("set a small dict, memory, key a/b", "perdure, dict", "≤ backend and codec + 3 µs"),
        ("newest_keys(max_n=1) of 2000 in 10 folders, perdure.open", "perdure.open", "≤ 2 × floor"),
        ("newest_keys(max_n=1) of 2000 in 10 folders, FileDirDict", "perdure.FileDirDict", "≤ 2 × floor"),
    }


def test_what_is_not_installed_is_left_out_with_a_note(hardly: Any, without_peers: None, tmp_path: Path) -> None:
    from benchmarks import awaited, contestants, s3_requests, sqlite

    rows = [*sqlite.run(hardly), s3_requests.of_dicts()]
    assert {verdict.who for row in rows for verdict in row.verdicts} >= {"perdure, dict", "perdure, set_many"}
    names = {entry.name for row in rows[:-1] for entry in row.entries}
    assert [name for name in names if not name.startswith(("floor", "perdure"))] == []
    assert {name for entry in rows[-1].entries for name in entry.more} == {"perdure.S3Dict"}
    notes = [note for row in rows for note in row.notes]
    with ExitStack() as stack:
        assert awaited.file_store(stack, str(tmp_path), notes) is None
        assert contestants.persidict(str(tmp_path), notes) is None
    for package in ("diskcache", "persidict", "sqlitedict", "py-key-value-aio[disk]", "py-key-value-aio[filetree]"):
        assert f"{package} is not installed: left out. pip install '{package}'" in notes


def test_the_rows_of_snapshots_have_their_goals_and_reach_those_that_are_counted(hardly: Any, without_peers: None) -> None:
    pytest.importorskip("numpy")
    from benchmarks import snapshots

    rows = snapshots.run(hardly)
    arrays, changed, small = "save 40 MB in 40 arrays", "save 40 MB in 40 arrays, 2 of them changed", "20000 small objects"
    save, later, load = "perdure, save_state", "perdure, save_async", "perdure, load_state"
    verdicts = {(row.workload, verdict.who, verdict.goal): verdict for row in rows for verdict in row.verdicts}
    assert verdicts.keys() == {
        (f"{arrays}, caller blocked", save, "≤ 1.3 × floor"),
        (f"{arrays}, caller blocked", later, "≤ 1.3 × floor"),
        (f"{changed}, caller blocked", save, "≤ 1.5 × floor"),
        (f"{changed}, caller blocked", later, "≤ 1.5 × floor"),
        (f"{changed}, caller blocked", save, "≤ 5 % + 1 MB written"),
        (f"{changed}, caller blocked", later, "≤ 5 % + 1 MB written"),
        (f"save {small}", save, "≤ 1.1 × pickle"),
        (f"restore {small}", load, "≤ 0.5 × pickle"),
    }
    for (_, _, goal), verdict in verdicts.items():
        if goal.endswith("written"):
            assert 2 <= verdict.measured <= verdict.limit == 3
    written = {entry.name: entry.more["MB written"] for row in rows[1:2] for entry in row.entries}
    assert written["floor"] == 2
    assert written["pickle, to and from the file"] == pytest.approx(40, rel=0.01)
    sent = {entry.name: entry.median for entry in rows[-1].entries}
    assert 0 < sent["save, nothing changed"] < sent["save, one array changed"] < sent["save, first"]
    notes = [note for row in rows for note in row.notes]
    for package in ("joblib", "torch", "safetensors", "orbax-checkpoint", "pamiq-core"):
        assert f"{package} is not installed: left out. pip install '{package}'" in notes


def test_the_rows_of_caches_have_their_goals_and_reach_those_that_are_counted(hardly: Any, without_peers: None) -> None:
    pytest.importorskip("boto3")
    from benchmarks import caching

    rows = caching.run(hardly)
    ours, limited = "perdure.cached", "perdure.cached, max_items=1000"
    verdicts = {(row.workload, verdict.who, verdict.goal): verdict for row in rows for verdict in row.verdicts}
    counted = {
        ("miss, sqlite, where 1000 values are all that there may be", limited, "≤ 1000 values"),
        ("miss, file, where 1000 values are all that there may be", limited, "≤ 1000 values"),
        ("32 threads call for a new value that takes 50 ms", ours, "≤ 1 run"),
        ("requests to S3", "miss", "≤ 3 requests"),
        ("requests to S3", "miss, lock=False", "≤ 2 requests"),
        ("requests to S3", "hit", "≤ 1 requests"),
        ("requests to S3", "invalidate", "≤ 1 requests"),
        ("requests to S3", "hit, local folder", "≤ 0 requests"),
        ("requests to S3", "hit, local folder, recheck=0", "≤ 1 requests"),
    }
    assert verdicts.keys() == counted | {
        ("hit, sqlite", ours, "≤ floor + 1 µs"),
        ("hit, file", ours, "≤ floor + 1 µs"),
        ("hit, in memory", 'perdure.cached, local="memory:"', "≤ 5 µs"),
        ("hit, in memory", 'perdure.cached("memory:x")', "≤ 5 µs"),
    }
    assert [goal for goal in counted if not verdicts[goal].reached] == []
    nothing = ("requests to S3", "hit, local folder", "≤ 0 requests")
    assert [goal for goal in counted if not verdicts[goal].measured] == [nothing]  # all others do reach what counts
    notes = [note for row in rows for note in row.notes]
    for package in ("cashews", "diskcache", "dogpile.cache", "joblib"):
        assert f"{package} is not installed: left out. pip install '{package}'" in notes


def test_each_of_the_libraries_that_cache_answers_without_running_the_function(hardly: Any) -> None:
    for name in ("cashews", "diskcache", "dogpile.cache", "joblib"):
        pytest.importorskip(name)
    from benchmarks import caching

    with ExitStack() as stack:
        root = stack.enter_context(caching.contestants.folder())
        rows = caching._hits(root, stack, hardly)  # which raises if one of them runs it
    names = ["diskcache, memoize", "joblib.Memory", "dogpile.cache, dbm", "cashews"]
    for row in rows:
        assert [entry.name for entry in row.entries][2:6] == names


def test_dicts_on_s3_send_as_few_requests_as_promised() -> None:
    from benchmarks import s3_requests

    verdicts = [*s3_requests.of_backend().verdicts, *s3_requests.of_dicts().verdicts]
    assert len(verdicts) == 8 + 2 * 7
    assert [verdict for verdict in verdicts if not verdict.reached] == []
    assert all(verdict.measured > 0 for verdict in verdicts)  # they do reach the server that counts


def test_reading_again_through_copies_sends_one_request_and_none_where_values_never_change() -> None:
    from benchmarks import s3_requests

    assert s3_requests.of_reading_again(append_only=False)[s3_requests.CACHED] == 1
    assert s3_requests.of_reading_again(append_only=True)[s3_requests.CACHED] == 0


@pytest.fixture
def loop() -> Iterator[Any]:
    from benchmarks.awaited import Loop

    loop = Loop()
    yield loop
    loop.close()


def test_coroutines_are_awaited_by_one_task_in_the_order_of_their_arguments(loop: Any, hardly: Any) -> None:
    from benchmarks.awaited import Awaited
    from benchmarks.harness import race

    seen: list[tuple[int, object]] = []

    async def call(argument: int) -> None:
        await asyncio.sleep(0)
        seen.append((argument, asyncio.current_task()))

    Awaited(loop, call)(7)
    Awaited(loop, call).each([1, 2, 3])
    assert [argument for argument, _ in seen] == [7, 1, 2, 3]
    assert len({task for _, task in seen}) == 1
    seen.clear()
    row = race("somewhere", "work", {"called": lambda _: None, "awaited": Awaited(loop, call)}, [1], hardly)
    assert [entry.name for entry in row.entries] == ["called", "awaited"]
    assert seen


def test_what_a_coroutine_raises_ends_the_benchmark_and_not_the_loop(loop: Any) -> None:
    async def fail(argument: int) -> None:
        raise ValueError(argument)

    async def work(argument: int) -> None:
        done.append(argument)

    done: list[int] = []
    with pytest.raises(ValueError, match="5"):
        loop.each(fail, [5, 6])
    loop.each(work, [1])
    assert done == [1]


def test_a_closed_loop_leaves_no_task_behind(recwarn: pytest.WarningsRecorder) -> None:
    from benchmarks.awaited import Loop

    async def in_a_thread(argument: int) -> None:
        tasks.append(asyncio.current_task())
        await asyncio.to_thread(pow, argument, 2)

    tasks: list[Any] = []
    loop = Loop()
    loop.each(in_a_thread, [1])
    assert not tasks[0].done()
    loop.close()
    assert tasks[0].done()
    assert not recwarn.list


def test_the_newest_file_by_hand_is_found_in_any_folder(tmp_path: Path) -> None:
    from benchmarks.floors import newest_file

    for number, name in enumerate(("a", "deep/b", "deep/er/c", "d"), 1):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (number, number if name != "deep/er/c" else 9))
    assert newest_file(str(tmp_path)) == (9, str(tmp_path / "deep/er/c"))


def test_many_values_by_hand_are_all_there(tmp_path: Path) -> None:
    from benchmarks.floors import Files, Table

    items = {f"key{i}": f"value {i}".encode() for i in range(20)}
    files, table = Files(str(tmp_path / "files")), Table(str(tmp_path / "table.db"), "full")
    for _ in range(2):
        files.put_many_full(items)
        table.put_many(items)
    assert {key: files.get_bytes(key) for key in items} == items
    assert {key: table.get_bytes(key) for key in items} == items
    assert sorted(table.keys()) == sorted(items)
    assert not list((tmp_path / "files").glob("temporary*"))
    table.close()


def test_files_by_hand_that_are_called_by_their_digests_are_written_once(tmp_path: Path) -> None:
    from benchmarks.floors import Digested, write_folder

    write_folder(str(tmp_path / "folder"), {"a": b"one", "b": b"two"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == {"a": b"one", "b": b"two"}
    digested = Digested(str(tmp_path / "digested"))
    assert digested.keep(digested.put_all([b"one", b"two"])) == 6
    assert digested.keep(digested.put_all([b"two", b"three"])) == 5
    assert {path.read_bytes() for path in (tmp_path / "digested").iterdir()} == {b"two", b"three"}
    digested.close()
