"""Leases: what they are, and among threads."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from locking import KEY, stored

import perdure
import perdure.aio
from perdure.errors import (
    BackendError,
    InvalidKeyError,
    PerdureError,
    PreconditionError,
    UnavailableError,
    UsageError,
    UsageTypeError,
)
from perdure.locks import Counter, Lease, Semaphore, lock
from perdure.protocol import Backend
from perdure.testing.crew import PATIENCE, Threads
from perdure.testing.faults import Faulty, Hold, on
from perdure.wrappers import Bounded, Cached, Expiring, Observed
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.redis import RedisBackend

MAKERS: list[Callable[[Any, str], object]] = [lock, lambda where, name: Semaphore(where, name, 2), Counter]


def test_a_lease_excludes_others_until_it_is_released(place: Backend) -> None:
    first, second = lock(place, "it"), lock(place, "it")
    assert not first.held
    with first as lease:
        assert lease is first
        assert first.held
        assert 0 < first.expires_in <= 30
        first.check()
        assert not second.acquire(blocking=False)
        assert not second.acquire(timeout=0.05)
        assert not second.held
        assert second.expires_in == 0
    assert not first.held
    assert second.acquire(blocking=False)
    assert second.release()


def test_tokens_grow_with_each_acquisition_by_whoever_and_after_a_restart_of_everything(place: Backend) -> None:
    tokens = []
    for _ in range(3):
        lease = lock(place, "it")
        for _ in range(2):
            with lease:
                tokens.append(lease.token)
            tokens.append(lease.token)  # still known
    assert tokens == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert stored(place)["holders"] == []


def test_locks_of_other_names_and_kinds_do_not_meet(memory: MemoryBackend) -> None:
    with lock(memory, "a"), lock(memory, "b"), lock(memory, ("a", "b")), Semaphore(memory, "a", 1):
        Counter(memory, "a").add()
    assert sorted(memory.keys()) == ["counters()/a", "locks()/a", "locks()/a/b", "locks()/b", "semaphores()/a"]


def test_who_does_not_get_it_in_time_learns_who_has_it(memory: MemoryBackend) -> None:
    import os

    with lock(memory, "it", owner="the nightly run"):
        with (
            pytest.raises(UnavailableError, match=r"within 0.02 s; held by the nightly run") as info,
            lock(memory, "it", timeout=0.02),
        ):
            raise AssertionError("two hold it")
        assert f"process {os.getpid()} on {os.uname().nodename}" in str(info.value)
        assert "Wait longer than 30 s" in str(info.value)
        assert info.value.key == KEY
        assert info.value.place == memory.place
        (holder,) = lock(memory, "it").holders()
        assert holder.name == "the nightly run"
        assert holder.pid == os.getpid()


def test_one_object_is_one_holder(memory: MemoryBackend) -> None:
    lease = lock(memory, "it")
    with pytest.raises(UsageError, match="not held"):
        lease.release()
    with pytest.raises(UsageError, match="no token"):
        lease.token
    for call in (lease.check, lease.renew):
        with pytest.raises(UsageError, match="not held"):
            call()
    with lease:
        with pytest.raises(UsageError, match="already"):
            lease.acquire(blocking=False)
        assert lease.held
    with pytest.raises(UsageError, match="not held"):
        lease.release()


@pytest.mark.parametrize("options", [{"ttl": 0}, {"ttl": -1}, {"ttl": float("inf")}, {"ttl": "soon"}, {"timeout": "5"}])
def test_times_are_checked_at_once(memory: MemoryBackend, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        lock(memory, "it", **options)


@pytest.mark.parametrize("options", [{"owner": 5}, {"owner": None}, {"on_lost": 5}, {"renew": "no"}, {"renew": None}])
def test_arguments_of_a_wrong_type_are_refused_when_the_object_is_made(memory: MemoryBackend, options: dict[str, Any]) -> None:
    for make in (lock, lambda where, name, **options: Semaphore(where, name, 2, **options)):
        with pytest.raises(UsageTypeError, match=f"{next(iter(options))} is"):
            make(memory, "it", **options)


@pytest.mark.parametrize("name", ["", "a b", "..", "a/b", (), "x" * 254, 7])
def test_a_name_is_a_key(memory: MemoryBackend, name: Any) -> None:
    for make in (lock, Counter, lambda where, name: Semaphore(where, name, 2)):
        with pytest.raises(InvalidKeyError):
            make(memory, name)


def test_a_place_is_a_url_a_path_a_backend_or_a_dict(tmp_path: Path) -> None:
    d = perdure.open(tmp_path)
    view = d.get_subdict(("a", "b"))
    assert Counter(str(tmp_path), "n").add() == 1
    assert Counter(tmp_path, "n").add() == 2
    assert Counter(f"file:{tmp_path}", "n").add() == 3
    assert Counter(d.backend, "n").add() == 4
    assert Counter(d, "n").add() == 5
    assert Counter(view, "n").add() == 1
    assert d.backend.contains("a/b/counters()/n")

    async def twin() -> int:
        async with perdure.aio.open(tmp_path) as twin:
            return Counter(twin, "n").add()

    assert asyncio.run(twin()) == 6
    for wrong in (None, 7, object(), {}):
        with pytest.raises(UsageTypeError, match="not a place"):
            Counter(wrong, "n")  # type: ignore[arg-type]


def test_where_nobody_else_can_be_there_is_no_lock() -> None:
    with pytest.raises(UsageError, match="new space"):
        lock("memory:", "it")
    with pytest.raises(UsageError, match="cannot be kept here"):
        lock("null:", "it").acquire()
    with pytest.raises(UsageError, match="cannot be kept here"):
        Counter("null:", "it").add()


def test_where_values_go_after_a_while_there_is_no_lock(memory: MemoryBackend) -> None:
    short = Expiring(memory, "1 s")
    places = [short, Observed(short, print), Cached(Observed(short, print), MemoryBackend()), perdure.open(short)]
    for where in [*places, "redis://nowhere/0/p?ttl=5 s", RedisBackend(ttl=5), Observed(RedisBackend(ttl="5 s"), print)]:
        for make in MAKERS:
            with pytest.raises(UsageError, match=r"forgets what nobody has written for [15] s") as info:
                make(where, "it")
            assert "place of its own" in str(info.value)
            assert info.value.place
    for make in MAKERS:
        make(Cached(memory, Expiring(MemoryBackend(), "1 s")), "it")  # only copies go
        make(RedisBackend(), "it")


def test_where_values_are_evicted_there_is_no_lock_unless_it_is_left_alone(memory: MemoryBackend) -> None:
    asked: list[str] = []

    def only(key: str) -> bool:
        asked.append(key)
        return not key.startswith(("locks()/", "semaphores()/"))

    for bounded in (Bounded(memory, max_bytes="1 MB"), Bounded(memory, max_items=3), Bounded(memory, max_items=3, only=bool)):
        for make in MAKERS:
            with pytest.raises(UsageError, match="evicts values") as info:
                make(Observed(bounded, print), "it")
            assert "only=" in str(info.value)
            assert info.value.place == memory.place
    spared = Bounded(memory, max_items=3, only=only)
    with lock(spared, ("a", "it")), Semaphore(spared, "it", 2):
        pass
    assert {"locks()/a/it", "semaphores()/it"} <= set(asked)
    with pytest.raises(UsageError, match="counters"):
        Counter(spared, "it")


def test_closing_closes_what_was_opened_here_and_nothing_else(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path)
    ours, theirs = lock(str(tmp_path), "it"), lock(backend, "it")
    ours.close()
    theirs.close()
    with pytest.raises(BackendError, match="closed"):
        ours.acquire()
    assert theirs.acquire(blocking=False)
    Counter(str(tmp_path), "n").close()


def test_a_pickled_lease_is_one_that_is_not_held(tmp_path: Path) -> None:
    lease = Semaphore(FileBackend(tmp_path), "it", 2, ttl=20, timeout=0)
    with lease:
        other = pickle.loads(pickle.dumps(lease))
        assert not other.held
        assert (other.ttl, other.name, other.limit) == (20, "it", 2)
        assert other.acquire()
        assert other.token == lease.token + 1
        other.release()
    assert pickle.loads(pickle.dumps(Counter(FileBackend(tmp_path), "n"))).add() == 1


def test_a_record_says_what_it_is(memory: MemoryBackend) -> None:
    with lock(memory, "it", ttl="1.5 s", owner="me"):
        record = stored(memory)
        (holder,) = record.pop("holders")
    assert {name: record[name] for name in ("perdure", "format", "token", "limit")} == {
        "perdure": "lock",
        "format": 1,
        "token": 1,
        "limit": 1,
    }
    assert {name: holder[name] for name in ("token", "renewal", "ttl", "name")} == {
        "token": 1,
        "renewal": 0,
        "ttl": 1.5,
        "name": "me",
    }
    assert len(bytes.fromhex(holder["nonce"])) == 16
    assert len(bytes.fromhex(record["write"])) == 16


def test_threads_that_exclude_each_other_lose_no_count(place: Backend) -> None:
    box = [0]
    tokens: list[int] = []

    def move(backend: Backend) -> None:
        lease = lock(backend, "it")
        for _ in range(5):
            with lease:
                count = box[0]
                time.sleep(0)
                box[0] = count + 1
                tokens.append(lease.token)

    crew = Threads([place] * 6)
    crew.at_once([move] * 6)
    crew.close()
    assert box[0] == 30
    assert tokens == list(range(1, 31))


def test_of_many_threads_that_use_one_object_one_holds_it_and_the_others_hear_of_it(memory: MemoryBackend) -> None:
    for _ in range(30):
        lease = lock(memory, "it")
        crew = Threads([memory] * 4)
        answers = crew.at_once([lambda _, lease=lease: lease.acquire(blocking=False)] * 4)
        assert sum(answer is True for answer in answers) == 1
        assert sum(isinstance(answer, UsageError) for answer in answers) == 3
        assert len(stored(memory)["holders"]) == 1
        answers = crew.at_once([lambda _, lease=lease: lease.release()] * 4)
        assert sum(answer is True for answer in answers) == 1
        assert sum(isinstance(answer, UsageError) for answer in answers) == 3
        crew.close()


def test_a_release_in_the_middle_of_a_renewal_leaves_nothing_behind(memory: MemoryBackend) -> None:
    for after in (False, True):
        faulty = Faulty(memory)
        lease = lock(faulty, "it")
        lease.acquire()
        hold = Hold(after=after)
        faulty.plan = on("put", hold, nth=1)
        failed: list[BaseException] = []

        def renew(lease: Lease = lease, failed: list[BaseException] = failed) -> None:
            try:
                lease.renew()
            except PerdureError as error:
                failed.append(error)

        renewing = threading.Thread(target=renew)
        renewing.start()
        assert hold.reached.wait(PATIENCE)
        assert lease.release()
        hold.release.set()
        renewing.join(PATIENCE)
        assert after or isinstance(failed[0], PreconditionError)
        assert stored(memory)["holders"] == []
        assert not lease.held
