"""The cache on a Redis server, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cached_functions import runs, slow
from test_single_flight import EIGHT_THREADS, HOLD, together, wait_until

import perdure
from perdure.errors import MissingExtraError
from perdure.testing import servers

pytest.importorskip("redis")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    try:
        with servers.redis() as server:
            yield server.url
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture
def place(server: str, tmp_path: Path) -> str:
    return f"{server.rstrip('/')}/0/{tmp_path.name}"


def test_four_processes_of_eight_threads_run_it_once(place: str, tmp_path: Path, start: Any, finish: Any) -> None:
    log = str(tmp_path / "log")
    together([start(EIGHT_THREADS, place, log, "30", ahead) for ahead in ("0", "60", "-60", "0")], finish)
    assert len(runs(log)) == 1


def test_when_the_holder_is_killed_it_runs_exactly_once_more(place: str, tmp_path: Path, start: Any, finish: Any) -> None:
    log = str(tmp_path / "log")
    holder = start(HOLD, place, log, "1", "3600")
    wait_until(lambda: runs(log))
    holder.kill()
    together([start(EIGHT_THREADS, place, log, "1", "0") for _ in range(3)], finish)
    assert len(runs(log)) == 2


def test_a_limit_holds_and_the_least_recently_used_go_first(place: str, tmp_path: Path) -> None:
    work = slow(place, str(tmp_path / "log"), 0.0, max_items=10)
    for n in range(30):
        work(n)
        work(0)
    stored = [meta for meta in perdure.open_backend(place).scan() if meta.key.startswith(work.cache.name)]  # type: ignore[attr-defined]
    assert len(stored) <= 11
    assert work.cache.contains(0)  # type: ignore[attr-defined]


def test_what_is_invalidated_while_it_is_computed_is_not_stored(place: str) -> None:
    found = ["old"]

    @perdure.cached(place, ignore="found")
    def read() -> str:
        value = found[0]
        if value == "old":
            found[0] = "new"
            read.cache.invalidate()
        return value

    assert [read(), read(), read()] == ["old", "new", "new"]
    assert read.cache.stats().lost == 1
