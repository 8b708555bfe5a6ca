"""`get_or_create`: an item of a dict that is there afterwards like any other, computed by one at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import perdure
import perdure.aio
from perdure.caching import entries as entries_module
from perdure.codecs.entry import Entry, write_entry
from perdure.errors import BackendError, CodecError, InvalidKeyError, NotFoundError, PolicyError, UsageError, UsageTypeError


def claimed(d: Any, key: str, value: bytes | None = None) -> None:
    """Leave behind what a process does that is killed while it computes."""
    d.backend.put(key, write_entry(Entry(value, lease=0.2, token=b"x" * 12)))


def test_it_is_computed_once_and_is_an_item_like_any_other(url: str) -> None:
    d = perdure.open(url)
    runs: list[int] = []

    def compute() -> list[int]:
        runs.append(1)
        return [1, 2]

    assert perdure.get_or_create(d, ("a", "b"), compute) == [1, 2]
    assert perdure.get_or_create(d, ("a", "b"), compute) == [1, 2]
    assert d["a", "b"] == [1, 2]
    assert dict(d) == {("a", "b"): [1, 2]}
    assert len(runs) == 1
    d["a", "b"] = "mine"
    assert perdure.get_or_create(d, ("a", "b"), compute) == "mine"
    assert perdure.get_or_create(d.get_subdict("a"), "b", compute) == "mine"
    assert perdure.get_or_create(d, "none", lambda: None) is None
    assert d["none"] is None


def test_eight_threads_with_dicts_of_their_own_compute_once(url: str) -> None:
    runs: list[int] = []
    answers: list[object] = []
    barrier = threading.Barrier(8)

    def compute() -> int:
        runs.append(1)
        time.sleep(0.1)
        return 5

    def ask() -> None:
        with perdure.open(url) as d:
            barrier.wait()
            answers.append(perdure.get_or_create(d, "k", compute))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [5] * 8
    assert len(runs) == 1


def test_what_the_factory_raises_leaves_nothing_behind(url: str) -> None:
    d = perdure.open(url)

    def fail() -> int:
        raise LookupError("no")

    with pytest.raises(LookupError):
        perdure.get_or_create(d, "k", fail)
    assert "k" not in d
    assert len(d) == 0
    with pytest.raises(CodecError, match=r"k.*not even with codec 'pkl'"):
        perdure.get_or_create(d, "k", threading.Lock)
    assert "k" not in d


def test_a_claim_of_a_killed_process_is_no_value_for_anybody(url: str) -> None:
    d = perdure.open(url)
    d["other"] = 1
    claimed(d, "k")
    with pytest.raises(NotFoundError):
        d["k"]
    assert d.get("k", "default") == "default"
    assert d.get_many(["k", "other"]) == {"other": 1}
    assert list(d.values()) == [1]
    assert [key for key, _ in d.items()] == ["other"]
    assert [key for key, _, _ in d.items_and_timestamps()] == ["other"]
    assert d.newest_values() == [1]
    with pytest.raises(NotFoundError):
        d.pop("k")
    assert d.pop("k", 5) == 5
    assert d.get_with_etag("k").new_value is perdure.ITEM_NOT_AVAILABLE
    assert d.setdefault("k", 7) == 7
    assert d["k"] == 7
    claimed(d, "k")
    d.transform_item("k", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1)
    assert d["k"] == 1
    claimed(d, "k")
    d["k"] = 9
    assert d["k"] == 9
    claimed(d, "k")
    del d["k"]
    assert "k" not in d
    claimed(d, "k")
    assert perdure.get_or_create(d, "k", lambda: 11) == 11
    assert d["k"] == 11


def test_a_value_that_is_kept_with_a_claim_is_read_as_it_was(url: str) -> None:
    d = perdure.open(url)
    claimed(d, "k", d.chain.encode([1, 2], "k"))
    assert d["k"] == [1, 2]
    assert d.get("k") == [1, 2]
    assert dict(d) == {"k": [1, 2]}


def test_values_expire_and_may_be_stale(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    d = perdure.open(url)
    assert perdure.get_or_create(d, "k", lambda: 1, ttl="1 h") == 1
    monkeypatch.setattr(entries_module, "time", lambda: time.time() + 3700)
    assert perdure.get_or_create(d, "k", lambda: 2) == 1
    assert perdure.get_or_create(d, "k", lambda: 3, ttl="1 h") == 3
    claimed(d, "k")


def test_a_factory_that_fails_leaves_the_old_value_to_be_answered(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    d = perdure.open(url)
    perdure.get_or_create(d, "k", lambda: 1, ttl="1 h", stale_ok=True)
    monkeypatch.setattr(entries_module, "time", lambda: time.time() + 3700)

    def fail() -> int:
        raise LookupError("no")

    with pytest.raises(LookupError):
        perdure.get_or_create(d, "k", fail, ttl="1 h", stale_ok=True)
    assert d["k"] == 1
    assert perdure.get_or_create(d, "k", lambda: 2, ttl="1 h", stale_ok=True) == 2, "it had expired, and has still"


def test_an_append_only_dict_gets_what_came_first(url: str) -> None:
    d = perdure.open(url, append_only=True)
    assert perdure.get_or_create(d, "k", lambda: 1) == 1
    assert perdure.get_or_create(d, "k", lambda: 2) == 1


def test_the_class_of_values_is_checked(url: str) -> None:
    d = perdure.open(url, base_class_for_values=int)
    with pytest.raises(PolicyError, match="int"):
        perdure.get_or_create(d, "k", lambda: "text")
    assert "k" not in d


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    d = perdure.FileDirDict(base_dir=str(tmp_path / "plain"), serialization_format="json")
    perdure.get_or_create(d, "k", lambda: {"a": 1})
    (file,) = (tmp_path / "plain").rglob("k*.json")
    assert file.read_text().replace(" ", "") == '{"a":1}'


def test_bad_calls_are_told(url: str) -> None:
    d = perdure.open(url)
    with pytest.raises(InvalidKeyError):
        perdure.get_or_create(d, "a/b", lambda: 1)
    with pytest.raises(UsageError, match="ttl"):
        perdure.get_or_create(d, "k", lambda: 1, ttl=-1)
    with pytest.raises(UsageTypeError, match=r"perdure\.open"):
        perdure.get_or_create({}, "k", lambda: 1)  # type: ignore[arg-type]
    missing = perdure.open("sqlite:////nonexistent/folder/x.db")
    with pytest.raises(BackendError, match="nonexistent"):
        perdure.get_or_create(missing, "k", lambda: 1)
    with pytest.warns(RuntimeWarning, match="goes on without"):
        assert perdure.get_or_create(missing, "k", lambda: 1, on_error="compute") == 1


def test_asyncio(shared_url: str) -> None:
    runs: list[int] = []

    async def compute() -> int:
        runs.append(1)
        await asyncio.sleep(0.05)
        return 5

    async def story() -> None:
        d = perdure.open(shared_url)
        assert await asyncio.gather(*(perdure.get_or_create_async(d, "k", compute) for _ in range(50))) == [5] * 50
        async with perdure.aio.open(shared_url) as twin:
            assert await perdure.get_or_create_async(twin, "k", compute) == 5
            assert await perdure.get_or_create_async(twin, "plain", lambda: 6) == 6
            assert await twin["plain"] == 6

    asyncio.run(story())
    assert len(runs) == 1
