"""Leases that are renewed, overtaken and lost, and what else may be under their key."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from locking import HOLDER, KEY, LONG, SHORT, Clock, stored, until

from perdure.codecs.entry import write_note
from perdure.errors import (
    CodecError,
    IntegrityError,
    LeaseLostError,
    PreconditionError,
    UnavailableError,
    UsageError,
)
from perdure.locks import Counter, Watched, boot_time, holding, lock
from perdure.testing.crew import PATIENCE
from perdure.testing.faults import Call, Faulty, fail_before, on
from perdure_backends.memory import MemoryBackend


def test_a_held_lease_outlives_its_ttl_many_times(memory: MemoryBackend) -> None:
    lease = lock(memory, "it", ttl=SHORT)
    with lease:
        until(lambda: stored(memory)["holders"][0]["renewal"] >= 5)
        assert lease.held
        assert not lock(memory, "it").acquire(timeout=2 * SHORT)
    assert stored(memory)["holders"] == []


def test_a_dropped_lease_is_held_all_the_same(memory: MemoryBackend) -> None:
    lock(memory, "it", ttl=SHORT).acquire()
    assert not lock(memory, "it").acquire(timeout=3 * SHORT)


def test_what_with_has_entered_is_renewed_for_as_long_as_somebody_has_the_lease(memory: MemoryBackend) -> None:
    with lock(memory, "it", ttl=SHORT, on_lost=print):  # nobody but the statement
        gc.collect()
        until(lambda: stored(memory)["holders"][0]["renewal"] >= 3)
    dropped = lock(memory, "it", ttl=SHORT, on_lost=print)
    dropped.__enter__()  # as if a Ctrl-C had come before the first line of __exit__
    del dropped
    gc.collect()
    assert lock(memory, "it").acquire(timeout=PATIENCE)


def test_without_renewal_it_ends_unless_somebody_renews(memory: MemoryBackend, hands: Clock) -> None:
    lease = lock(memory, "it", ttl=10, renew=False)
    lease.acquire()
    for _ in range(5):
        hands.now += 9
        lease.renew()
        assert lease.expires_in == 10
    hands.now += 9.99
    lease.check()
    hands.now += 0.01
    assert not lease.held
    with pytest.raises(PreconditionError, match="not renewed within 10 s") as info:
        lease.check()
    assert "your token is 1" in str(info.value)
    with pytest.raises(PreconditionError):
        lease.renew()
    hands.now -= 5  # lost is lost, whatever a clock says
    assert not lease.held
    assert lease.token == 1
    assert not lease.release()
    assert stored(memory)["holders"] == []


def test_a_lease_is_taken_over_by_who_saw_it_unchanged_for_its_ttl_and_by_nobody_else(
    memory: MemoryBackend, hands: Clock
) -> None:
    dead = lock(memory, "it", ttl=10, renew=False)
    dead.acquire()
    hands.now += 3600
    waiter = lock(memory, "it", ttl=99)
    assert not waiter.acquire(blocking=False)  # an hour old, as nobody here can know
    hands.now += 10
    assert not waiter.acquire(blocking=False)  # clocks may differ a little in speed
    late = lock(memory, "it")
    assert not late.acquire(blocking=False)
    hands.now += 0.03
    assert not late.acquire(blocking=False)
    assert waiter.acquire(blocking=False)
    assert waiter.token == 2
    assert not dead.held


def test_a_renewal_makes_a_waiter_begin_anew(memory: MemoryBackend, hands: Clock) -> None:
    lease = lock(memory, "it", ttl=10, renew=False)
    lease.acquire()
    waiter = lock(memory, "it")
    for _ in range(5):
        assert not waiter.acquire(blocking=False)
        hands.now += 8
        lease.renew()
    hands.now += 9.9
    assert not waiter.acquire(blocking=False)
    assert lease.held


def test_a_holder_that_was_overtaken_learns_it_from_its_next_renewal(memory: MemoryBackend, hands: Clock) -> None:
    # By a machine whose clock is too fast, say: the lease had not ended here.
    lease = lock(memory, "it", ttl=10, renew=False)
    lease.acquire()
    record = stored(memory)
    record["token"] = 2
    record["holders"] = [dict(record["holders"][0], nonce="other", token=2, name="the other one")]
    memory.put(KEY, write_note(json.dumps(record).encode()))
    assert lease.held
    with pytest.raises(PreconditionError, match=r"the other one .* took it over"):
        lease.renew()
    assert not lease.held
    with pytest.raises(PreconditionError, match="the other one"):
        lease.check()
    assert not lease.release()
    assert stored(memory) == record


def test_with_ends_with_an_error_when_the_lease_was_lost_unless_something_else_is_raised(
    memory: MemoryBackend, hands: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PreconditionError, match="was lost"), lock(memory, "it", ttl=10, renew=False):
        hands.now += 10
    with pytest.raises(ZeroDivisionError), lock(memory, "it", ttl=10, renew=False):
        hands.now += 10
        1 / 0
    assert "was lost" in caplog.text
    with lock(memory, "it"):  # a lease that was lost is given back all the same
        pass


def test_a_lost_lease_can_be_acquired_again_by_the_same_object_at_once(memory: MemoryBackend, hands: Clock) -> None:
    lease = lock(memory, "it", ttl=10, renew=False)
    lease.acquire()
    hands.now += 10
    assert not lease.held
    assert lease.acquire(blocking=False)
    assert lease.token == 2
    assert lease.release()


def test_a_place_that_is_out_of_reach_for_long_ends_the_lease_and_somebody_is_told(
    memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty(memory)
    told = threading.Event()
    times: list[bool] = []
    lease = lock(faulty, "it", ttl=SHORT, on_lost=lambda: (times.append(lease.held), told.set()))
    lease.acquire()
    with caplog.at_level(logging.WARNING, "perdure.locks"):
        faulty.plan = lambda call: fail_before(UnavailableError)
        assert told.wait(PATIENCE)
        until(lambda: "was lost" in caplog.text)
    assert "could not be renewed" in caplog.text
    assert not lease.held
    with pytest.raises(PreconditionError, match=f"not renewed within {SHORT} s"):
        lease.check()
    assert not lease.release()  # not even that is possible, and it is not held
    time.sleep(SHORT)
    assert times == [False]


def test_a_place_that_is_out_of_reach_for_a_while_ends_nothing(memory: MemoryBackend) -> None:
    failures = threading.Semaphore(0)

    def fail(call: Call, go: Callable[[], Any]) -> Any:
        failures.release()
        raise UnavailableError("out of reach")

    faulty = Faulty(memory)
    lease = lock(faulty, "it", ttl=60)
    lease.acquire()
    beat = lease._beats[0]
    beat.interval = 0.01
    beat.due = 0.0
    beat._pulse.notice(beat)
    faulty.plan = lambda call: fail
    for _ in range(3):
        assert failures.acquire(timeout=PATIENCE)
    faulty.plan = None
    until(lambda: stored(memory)["holders"][0]["renewal"] > 3)
    assert lease.release()


def test_an_error_in_on_lost_is_logged(memory: MemoryBackend, caplog: pytest.LogCaptureFixture) -> None:
    lease = lock(memory, "it", ttl=0.05, renew=False, on_lost=lambda: 1 / 0)
    lease.acquire()
    until(lambda: "division by zero" in caplog.text)


def test_on_lost_is_not_called_after_a_release(memory: MemoryBackend) -> None:
    told = threading.Event()
    with lock(memory, "it", ttl=0.1, on_lost=told.set):
        pass
    assert not told.wait(0.3)


def test_a_deleted_record_means_a_lost_lease(memory: MemoryBackend) -> None:
    lease = lock(memory, "it")
    lease.acquire()
    memory.delete(KEY)
    with pytest.raises(PreconditionError, match="record was deleted"):
        lease.renew()
    assert not memory.contains(KEY)
    assert not lease.held


@pytest.mark.parametrize("again", [False, True])
def test_who_lost_its_lease_with_the_record_is_not_told_to_trust_in_tokens(memory: MemoryBackend, again: bool) -> None:
    for _ in range(5):
        with lock(memory, "it"):
            pass
    lease = lock(memory, "it")
    lease.acquire()
    assert lease.token == 6
    memory.delete(KEY)
    for _ in range(6 if again else 0):  # the last one has the same token
        assert lock(memory, "it").acquire(blocking=False)
        if stored(memory)["token"] < 6:
            memory.put(KEY, write_note(json.dumps({**stored(memory), "holders": []}).encode()))
    with pytest.raises(LeaseLostError, match="record was deleted") as info:
        lease.renew()
    assert "theirs are larger" not in str(info.value)
    assert "tokens begin anew" in str(info.value)
    for what in (lease.check, lease.renew):
        with pytest.raises(LeaseLostError, match="tokens begin anew"):
            what()


def test_what_the_body_raises_is_not_replaced_when_the_lease_was_released_in_it(
    memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    lease = lock(memory, "it")
    with pytest.raises(ZeroDivisionError), lease:
        lease.release()
        1 / 0
    assert "not held" in caplog.text
    with pytest.raises(UsageError, match="not held"), lease:
        lease.release()

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with lease:
                await lease.release_async()
                1 / 0
        with pytest.raises(UsageError, match="not held"):
            async with lease:
                await lease.release_async()

    asyncio.run(main())


def test_a_release_that_fails_says_so_and_holds_nothing(memory: MemoryBackend) -> None:
    faulty = Faulty(memory)
    lease = lock(faulty, "it", ttl=SHORT)
    lease.acquire()
    faulty.plan = on("put", fail_before(UnavailableError))
    with pytest.raises(UnavailableError):
        lease.release()
    assert not lease.held
    faulty.plan = None
    assert lock(memory, "it").acquire(timeout=PATIENCE)  # it lapses


def test_interrupting_a_wait_leaves_nothing(memory: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    lease = lock(memory, "it")
    with lock(memory, "it"), monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lease.acquire()
    assert lease.acquire(blocking=False)


def test_where_no_thread_can_renew_it_a_lease_is_given_back(memory: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnavailableError("no thread can be started")

    lease = lock(memory, "it")
    with monkeypatch.context() as patch:
        patch.setattr(holding, "every", refuse)
        with pytest.raises(UnavailableError, match="no thread"):
            lease.acquire()
    assert not lease.held
    assert stored(memory)["holders"] == []
    assert lease.acquire(blocking=False)


def test_a_waiter_that_sees_nothing_new_is_sent_no_bytes_and_looks_seldom(memory: MemoryBackend) -> None:
    faulty = Faulty(memory)
    answers: list[int] = []

    def look(call: Call, go: Callable[[], Any]) -> Any:
        blob = go()
        answers.append(len(blob.data))
        return blob

    with lock(memory, "it", ttl=LONG):
        faulty.plan = on("get", look)
        assert not lock(faulty, "it").acquire(timeout=0.5)
    assert len(answers) == 1
    assert faulty.calls["get"] < 20
    assert faulty.calls["put"] == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"7",
        b"{}",
        b'{"perdure": "counter", "format": 1}',
        b'{"perdure": "lock", "format": 1}',
        b'{"perdure": "lock", "format": 1, "token": -1, "limit": 1, "holders": []}',
        b'{"perdure": "lock", "format": 1, "token": true, "limit": 1, "holders": []}',
        b'{"perdure": "lock", "format": 1, "token": 1, "limit": 0, "holders": []}',
        b'{"perdure": "lock", "format": 1, "token": 1, "limit": 1, "holders": {}}',
        b'{"perdure": "lock", "format": 1, "token": 1, "limit": 1, "holders": [{"nonce": "a"}]}',
        b'{"perdure": "lock", "format": 1, "token": 1, "limit": 1, "holders": [%s]}' % HOLDER,
        b'{"perdure": "lock", "format": 1, "token": 2, "limit": 1, "holders": [%s]}' % HOLDER.replace(b"1.5", b"NaN"),
    ],
)
def test_what_is_no_record_of_a_lock_is_an_error_and_stays(memory: MemoryBackend, data: bytes) -> None:
    memory.put(KEY, data)
    lease = lock(memory, "it")
    for call in (lease.acquire, lease.holders, lambda: lease.acquire(blocking=False)):
        with pytest.raises(IntegrityError, match="not a readable record of a lock") as info:
            call()
        assert info.value.key == KEY
        assert info.value.place == memory.place
    assert memory.get(KEY).data == data


def test_a_record_of_a_later_format_is_an_error_and_stays(memory: MemoryBackend) -> None:
    for kind, call in (("lock", lock(memory, "it").acquire), ("counter", Counter(memory, "it").add)):
        data = write_note(json.dumps({"perdure": kind, "format": 2}).encode())
        memory.put(f"{kind}s()/it", data)
        with pytest.raises(CodecError, match="has the format 2, and this version knows 1") as info:
            call()
        assert "newer perdure" in str(info.value)
        assert memory.get(f"{kind}s()/it").data == data


def test_a_record_that_is_damaged_while_it_is_held_ends_the_lease_at_its_time(
    memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    lease = lock(memory, "it", ttl=SHORT)
    lease.acquire()
    memory.put(KEY, b"?")
    until(lambda: not lease.held)
    until(lambda: "was lost" in caplog.text)
    assert "not a readable record" in caplog.text
    assert not lease.release()
    assert memory.get(KEY).data == b"?"


def test_watched_tells_how_long_a_mark_was_there(hands: Clock) -> None:
    watched = Watched()
    assert watched.seen("a") == 0
    hands.now += 5
    assert watched.seen("a") == 5
    hands.now += 1
    assert watched.seen("b") == 0
    assert watched.seen("a") == 0
    hands.now += 2.5
    assert watched.seen("a") == 2.5


def test_the_boot_clock_goes_on() -> None:
    first = boot_time()
    time.sleep(0.001)
    assert 0.001 <= boot_time() - first < PATIENCE
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(boot_time() - time.clock_gettime(time.CLOCK_BOOTTIME)) < PATIENCE
