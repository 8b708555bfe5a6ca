"""The fault-injecting backend: without a plan it keeps the contract, with one it fails exactly as told."""

from __future__ import annotations

import errno
import pickle
import threading
from collections import Counter
from pathlib import Path

import pytest

from perdure.errors import BackendError, IntegrityError, PreconditionError, UnavailableError, UnknownOutcomeError
from perdure.protocol import ABSENT
from perdure.testing import BackendContract, Faulty
from perdure.testing.faults import Hold, at_random, corrupt, delay, fail_after, fail_before, in_order, lose_answer, on
from perdure_backends.memory import MemoryBackend


class TestFaultyWithoutFaults(BackendContract):
    processes = False

    def open(self, where: Path) -> Faulty:
        return Faulty(MemoryBackend(str(where)))


@pytest.fixture
def inner() -> MemoryBackend:
    return MemoryBackend()


def test_it_counts_calls(inner: MemoryBackend) -> None:
    faulty = Faulty(inner)
    faulty.put("a", b"1")
    faulty.put_many({"b": b"2"})
    faulty.get("a")
    faulty.contains("b")
    list(faulty.scan())
    with pytest.raises(PreconditionError):
        faulty.put("a", b"3", if_match=ABSENT)
    assert faulty.calls == Counter(put=2, put_many=1, get=1, contains=1, scan=1)


def test_fail_before_changes_nothing(inner: MemoryBackend) -> None:
    faulty = Faulty(inner, on("put", fail_before(UnavailableError), nth=2))
    faulty.put("a", b"1")
    with pytest.raises(UnavailableError, match="an injected fault in call 2 of put") as caught:
        faulty.put("a", b"2")
    assert (caught.value.key, caught.value.place) == ("a", inner.place)
    assert inner.get("a").data == b"1"
    faulty.put("a", b"3")
    assert inner.get("a").data == b"3"


def test_fail_after_happens(inner: MemoryBackend) -> None:
    faulty = Faulty(inner, in_order(fail_after(BackendError)))
    with pytest.raises(BackendError):
        faulty.put("a", b"1")
    assert faulty.get("a").data == b"1"


def test_any_exception_can_be_raised(inner: MemoryBackend) -> None:
    faulty = Faulty(inner, on("put", fail_before(OSError(errno.ENOSPC, "no space"))))
    with pytest.raises(OSError, match="no space"):
        faulty.put("a", b"1")


def test_a_lost_answer_of_a_write_is_an_unknown_outcome_and_of_a_read_nothing_but_unavailable(inner: MemoryBackend) -> None:
    faulty = Faulty(inner, lambda call: lose_answer())
    with pytest.raises(UnknownOutcomeError):
        faulty.put("a", b"1", if_match=ABSENT)
    assert inner.get("a").data == b"1"
    with pytest.raises(UnknownOutcomeError):
        faulty.put("a", b"2", if_match=ABSENT)  # that it was refused is lost, too
    assert inner.get("a").data == b"1"
    with pytest.raises(UnavailableError):
        faulty.get("a")
    with pytest.raises(UnknownOutcomeError):
        faulty.delete("a")
    assert not inner.contains("a")


def test_a_listing_fails_after_its_entries(inner: MemoryBackend) -> None:
    inner.put_many({"a": b"", "b": b""})
    faulty = Faulty(inner, on("keys", fail_after(UnavailableError)))
    listing = faulty.keys()
    assert sorted([next(listing), next(listing)]) == ["a", "b"]
    with pytest.raises(UnavailableError):
        next(listing)


@pytest.mark.parametrize("data", [b"", b"x", b"some bytes"])
def test_corrupt_changes_what_is_read_and_not_what_is_there(inner: MemoryBackend, data: bytes) -> None:
    inner.put("a", data)
    faulty = Faulty(inner, lambda call: corrupt())
    assert faulty.get("a").data != data
    assert faulty.get_many(["a"])["a"].data != data
    assert faulty.get("a").etag == inner.get("a").etag
    assert inner.get("a").data == data
    faulty.plan = on("get", corrupt(lambda data: data[:-1]))
    assert faulty.get("a").data == data[:-1]


def test_hold_makes_an_interleaving_to_order(inner: MemoryBackend) -> None:
    etag = inner.put("a", b"1")
    hold = Hold()
    faulty = Faulty(inner, on("put", hold, nth=1))
    refused: list[PreconditionError] = []

    def slow() -> None:
        try:
            faulty.put("a", b"slow", if_match=etag)
        except PreconditionError as error:
            refused.append(error)

    thread = threading.Thread(target=slow)
    thread.start()
    assert hold.reached.wait(60)
    faulty.put("a", b"fast", if_match=etag)
    hold.release.set()
    thread.join()
    assert refused
    assert inner.get("a").data == b"fast"


def test_hold_after_the_effect_and_a_hold_that_nobody_releases(inner: MemoryBackend) -> None:
    faulty = Faulty(inner, on("put", Hold(after=True, patience=0.01)))
    with pytest.raises(AssertionError, match="nobody released the held put of 'a'"):
        faulty.put("a", b"1")
    assert inner.get("a").data == b"1"


def test_delay_goes_on(inner: MemoryBackend) -> None:
    faulty = Faulty(inner, on("put", delay(0.001)))
    faulty.put("a", b"1")
    assert inner.get("a").data == b"1"


def test_plans_by_key_and_in_order(inner: MemoryBackend) -> None:
    faulty = Faulty(inner, on("put", fail_before(UnavailableError), nth=2, key="b"))
    faulty.put("b", b"1")
    faulty.put("a", b"1")
    faulty.put("a", b"2")
    with pytest.raises(UnavailableError):
        faulty.put("b", b"2")
    faulty.plan = in_order(None, fail_before(IntegrityError), None)
    faulty.get("a")
    with pytest.raises(IntegrityError):
        faulty.get("a")
    faulty.get("a")
    faulty.get("a")


def test_random_plans_repeat(inner: MemoryBackend) -> None:
    def failures(seed: int) -> list[int]:
        faulty = Faulty(inner, at_random(seed, 0.3, [fail_before(UnavailableError)], names=["put"]))
        failed = []
        for number in range(50):
            try:
                faulty.put("a", b"")
            except UnavailableError:
                failed.append(number)
            faulty.get_many(["a"])
        return failed

    assert failures(1) == failures(1) != failures(2)
    assert 3 < len(failures(1)) < 30


def test_it_pickles_as_its_backend_does(tmp_path: Path) -> None:
    from perdure_backends.file import FileBackend

    with Faulty(FileBackend(tmp_path / "data"), on("get", fail_before(UnavailableError))) as faulty:
        faulty.put("a", b"1")
        with pickle.loads(pickle.dumps(faulty)) as again:
            assert again.get("a").data == b"1"
