"""Lost answers, 503, slow and cut bodies, requests sent twice: no update may get lost, none may happen twice."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from perdure.errors import BackendError, NotFoundError, PreconditionError, UnavailableError, UnknownOutcomeError
from perdure.protocol import ABSENT
from perdure.testing.proxy import Fault, FaultProxy, Request
from perdure.testing.servers import S3Server
from perdure_backends import _s3_client
from perdure_backends._s3_swap import _LONGEST, WRITERS, _fingerprint, _has, _left_by_another
from perdure_backends.s3 import S3Backend

pytest.importorskip("botocore")

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))
LOST = Fault(lose_answer=True)
TWICE = Fault(twice=True)
NOT_SENT = Fault(hang_up=True)
BUSY_BEFORE = Fault(answer_before=503, code="SlowDown")
BUSY_AFTER = Fault(answer_after=503, code="SlowDown")
BROKEN_AFTER = Fault(answer_after=500, code="InternalError")
CONFLICT = Fault(answer_before=409, code="ConditionalRequestConflict")
SLOW = Fault(delay=0.05)
LATE = Fault(delay=0.4)  # longer than a counting client waits: it arrives after the next attempt, and its answer never
PASSING = [LOST, TWICE, NOT_SENT, BUSY_BEFORE, BUSY_AFTER, BROKEN_AFTER, CONFLICT, SLOW]


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def backend(proxy: FaultProxy, prefix: str) -> Iterator[S3Backend]:
    with opened(proxy.endpoint_url, prefix) as backend:
        proxy.reset()
        yield backend


@pytest.fixture
def other(stub: S3Server, prefix: str) -> Iterator[S3Backend]:
    """Somebody else, whose network works."""
    with opened(stub.endpoint_url, prefix) as backend:
        yield backend


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = _s3_client.time.sleep
    monkeypatch.setattr(_s3_client, "_pause", lambda seconds: pause(seconds / 50))


def opened(endpoint_url: str, prefix: str, **options: Any) -> S3Backend:
    backend = S3Backend("bucket", prefix, endpoint_url=endpoint_url, create=True, **options)
    backend.delete("warm", if_match=backend.put("warm", b"", if_match=ABSENT))  # bucket and self-tests are done with
    return backend


def then(method: str, *steps: Fault | Callable[[], object] | None) -> Callable[[Request], Fault | None]:
    """A plan for the first requests of a method: a fault, something to do before the request is forwarded, or nothing."""
    todo = list(steps)
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            step = todo.pop(0) if request.method == method and todo else None
        if callable(step):
            step()
            return None
        return step

    return plan


# ------------------------------------------------------------------------------------------------------- one writer alone


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("times", [1, 3])
def test_a_writer_alone_always_knows_that_it_won(backend: S3Backend, proxy: FaultProxy, fault: Fault, times: int) -> None:
    faults = [fault] * times
    proxy.plan = then("PUT", *faults)
    etag = backend.put("a", b"1", if_match=ABSENT)
    proxy.plan = then("PUT", *faults)
    etag = backend.put("a", b"2", if_match=etag)
    proxy.plan = then("PUT", *faults)
    etag = backend.put("a", b"3")
    assert backend.get("a")[:2] == (b"3", etag)
    proxy.plan = then("PUT", *faults)
    backend.delete("a", if_match=etag)
    with pytest.raises(NotFoundError):
        backend.get("a")
    proxy.plan = None
    backend.put("a", b"4")
    proxy.plan = then("DELETE", *faults)
    backend.delete("a")
    assert list(backend.keys()) == []


@pytest.mark.parametrize("fault", [*PASSING, Fault(cut=1), Fault(cut=0)])
def test_reads_are_sent_again(backend: S3Backend, proxy: FaultProxy, fault: Fault) -> None:
    etag = backend.put("a", b"hello")
    for read, method in (
        (lambda: backend.get("a").data, "GET"),
        (lambda: backend.contains("a"), "HEAD"),
        (lambda: backend.head("a").etag, "HEAD"),
        (lambda: list(backend.keys()), "GET"),
    ):
        proxy.plan = then(method, fault, fault)
        assert read() in (b"hello", True, etag, ["a"])


def test_a_body_cut_short_is_never_returned(backend: S3Backend, proxy: FaultProxy) -> None:
    backend.put("a", b"x" * 100_000)
    proxy.plan = then("GET", *[Fault(cut=n) for n in (0, 1, 50_000, 99_999)])
    assert backend.get("a").data == b"x" * 100_000
    assert proxy.counts["GET"] == 5
    proxy.plan = lambda request: Fault(cut=99_999)
    with pytest.raises(UnavailableError, match=r"8 attempts") as caught:
        backend.get("a")
    assert isinstance(caught.value.__cause__, Exception)


def test_a_slow_body_is_waited_for_and_one_too_slow_is_given_up(backend: S3Backend, proxy: FaultProxy, prefix: str) -> None:
    backend.put("a", b"x" * 100)
    proxy.plan = then("GET", Fault(trickle=0.03))
    assert backend.get("a").data == b"x" * 100
    assert proxy.counts["GET"] == 1
    hasty = S3Backend("bucket", prefix, endpoint_url=proxy.endpoint_url, deadline=0.3)
    proxy.plan = then("GET", Fault(trickle=0.1))
    with pytest.raises(UnavailableError):
        hasty.get("a")


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(proxy: FaultProxy, prefix: str) -> None:
    impatient = S3Backend("bucket", prefix, endpoint_url=proxy.endpoint_url, create=True, timeout=0.1)
    etag = impatient.put("a", b"1", if_match=ABSENT)
    held = threading.Event()
    proxy.plan = then("PUT", Fault(hold=held))
    etag = impatient.put("a", b"2", if_match=etag)
    assert impatient.get("a")[:2] == (b"2", etag)
    held.set()


def test_requests_are_not_sent_again_for_ever(backend: S3Backend, proxy: FaultProxy) -> None:
    proxy.plan = lambda request: BUSY_BEFORE
    for call, kind in (
        (lambda: backend.get("a"), UnavailableError),
        (lambda: backend.contains("a"), UnavailableError),
        (lambda: list(backend.scan()), UnavailableError),
        (lambda: backend.put("a", b""), UnknownOutcomeError),  # a 503 may come from a box on the way, after the server's 200
        (lambda: backend.delete("a"), UnknownOutcomeError),
    ):
        proxy.reset()
        with pytest.raises(kind, match=r"503.* \(8 attempts\)"):
            call()
        assert proxy.requests[0].method != "PUT" or proxy.counts["PUT"] == 8
    proxy.plan = lambda request: CONFLICT if request.method == "PUT" else None
    with pytest.raises(UnavailableError, match="409"):  # which says that nothing was done
        backend.put("a", b"", if_match=ABSENT)


# ----------------------------------------------------------------------------------------------- others write in between


def test_a_lost_answer_then_others_swap_from_ours(backend: S3Backend, other: S3Backend, proxy: FaultProxy) -> None:
    start = backend.put("a", b"0")

    def others() -> None:
        for number in range(31):
            other.put("a", b"other %d" % number, if_match=other.get("a").etag)

    proxy.plan = then("PUT", LOST, others)
    etag = backend.put("a", b"ours", if_match=start)  # we won, 31 writers ago
    with pytest.raises(PreconditionError):
        backend.put("a", b"again", if_match=etag)
    assert other.get("a").data == b"other 30"


def test_a_lost_answer_and_too_many_others_is_unknown(backend: S3Backend, other: S3Backend, proxy: FaultProxy) -> None:
    start = backend.put("a", b"0")

    def others() -> None:
        for number in range(32):
            other.put("a", b"other %d" % number, if_match=other.get("a").etag)

    proxy.plan = then("PUT", LOST, others)
    with pytest.raises(UnknownOutcomeError) as caught:
        backend.put("a", b"ours", if_match=start)
    assert caught.value.key == "a"
    assert caught.value.token is not None
    assert len(caught.value.token) == 16
    assert not isinstance(caught.value, PreconditionError)


@pytest.mark.parametrize("known", [True, False])
def test_a_lost_refusal_is_a_certain_conflict(
    backend: S3Backend, other: S3Backend, proxy: FaultProxy, stub: S3Server, prefix: str, known: bool
) -> None:
    start = backend.put("a", b"0") if known else other.put("a", b"0")  # whose writer we know, or not
    other.put("a", b"theirs", if_match=other.get("a").etag)
    proxy.plan = then("PUT", LOST, None)
    with pytest.raises(PreconditionError):
        backend.put("a", b"ours", if_match=start)
    other.put("a", b"theirs again", if_match=other.get("a").etag)
    proxy.plan = lambda request: BUSY_AFTER if request.method == "PUT" else None  # to the bitter end
    with pytest.raises(PreconditionError):
        backend.put("a", b"ours", if_match=start)
    with pytest.raises(PreconditionError):
        backend.delete("a", if_match=start)
    assert other.get("a").data == b"theirs again"


def test_a_lost_answer_then_somebody_overwrites_is_unknown(backend: S3Backend, other: S3Backend, proxy: FaultProxy) -> None:
    for overwrite in (lambda: other.put("a", b"theirs"), lambda: other.delete("a")):
        start = backend.put("a", b"0")
        proxy.plan = then("PUT", LOST, overwrite)
        with pytest.raises(UnknownOutcomeError):
            backend.put("a", b"ours", if_match=start)
        proxy.plan = None
        start = backend.put("a", b"0")
        proxy.plan = then("PUT", NOT_SENT, overwrite)
        with pytest.raises(UnknownOutcomeError):  # for all we know, it may have arrived
            backend.put("a", b"ours", if_match=start)
        proxy.plan = None


def test_creating_with_a_lost_answer(backend: S3Backend, other: S3Backend, proxy: FaultProxy) -> None:
    proxy.plan = then("PUT", LOST, lambda: other.put("a", b"theirs", if_match=other.get("a").etag))
    backend.put("a", b"ours", if_match=ABSENT)  # we created it, then they swapped
    assert other.get("a").data == b"theirs"
    proxy.plan = then("PUT", LOST)
    with pytest.raises(UnknownOutcomeError):  # it was there before; but ours might have been deleted and theirs be new
        backend.put("a", b"ours", if_match=ABSENT)
    proxy.plan = then("PUT", lambda: other.put("b", b"theirs"))
    with pytest.raises(PreconditionError):
        backend.put("b", b"ours", if_match=ABSENT)
    proxy.plan = then("HEAD", lambda: other.delete("b"))  # refused, then gone when we look: try again
    backend.put("b", b"ours", if_match=ABSENT)
    assert other.get("b").data == b"ours"


def test_a_first_attempt_sent_twice_is_no_conflict(backend: S3Backend, other: S3Backend, proxy: FaultProxy) -> None:
    proxy.plan = lambda request: TWICE
    etag = backend.put("a", b"1", if_match=ABSENT)
    etag = backend.put("a", b"2", if_match=etag)
    assert other.get("a")[:2] == (b"2", etag)
    backend.delete("a", if_match=etag)
    assert not other.contains("a")


def test_a_value_by_other_software_has_no_writers(
    backend: S3Backend, other: S3Backend, proxy: FaultProxy, stub: S3Server
) -> None:
    proxy.plan = lambda request: request.headers.pop(WRITERS, None) and None
    backend.put("a", b"0")  # as another program would put it
    proxy.plan = None
    etag = backend.head("a").etag
    proxy.plan = then("PUT", LOST)
    etag = backend.put("a", b"1", if_match=etag)
    with pytest.raises(PreconditionError):
        backend.put("a", b"2", if_match=ABSENT)
    assert backend.get("a")[:2] == (b"1", etag)


def test_a_hostile_list_of_writers_stays_out_of_requests(backend: S3Backend, proxy: FaultProxy) -> None:
    for nonsense in ("é", "x" * 1500, "zz", "a b"):

        def tamper(request: Request, nonsense: str = nonsense) -> None:
            if WRITERS in request.headers:
                request.headers[WRITERS] = nonsense

        proxy.plan = tamper
        backend.put("a", nonsense.encode())
        proxy.plan = None
        blob = backend.get("a")
        proxy.plan = then("PUT", LOST)
        backend.put("a", b"1", if_match=blob.etag)
        sent = [request for request in proxy.requests if request.method == "PUT"]
        assert len(sent[-1].headers[WRITERS]) == 16 + 1 + 12


def test_an_etag_from_a_listing_serves_as_well(backend: S3Backend, other: S3Backend, proxy: FaultProxy) -> None:
    other.put("a", b"0")
    (meta,) = backend.scan()
    proxy.plan = then("PUT", LOST, lambda: other.put("a", b"2", if_match=other.get("a").etag))
    backend.put("a", b"1", if_match=meta.etag)
    proxy.plan = then("PUT", LOST)
    with pytest.raises(PreconditionError):
        backend.put("a", b"3", if_match=meta.etag)
    assert other.get("a").data == b"2"


def test_looking_that_fails_as_well_keeps_the_outcome_unknown(backend: S3Backend, proxy: FaultProxy) -> None:
    etag = backend.put("a", b"0")
    proxy.plan = lambda request: LOST if request.method == "PUT" else BUSY_BEFORE
    for call in (lambda: backend.put("a", b"1", if_match=etag), lambda: backend.put("a", b"1")):
        with pytest.raises(UnknownOutcomeError):
            call()


def test_a_lost_answer_followed_by_a_refusal_is_unknown(backend: S3Backend, proxy: FaultProxy) -> None:
    for condition in (None, ABSENT):
        proxy.plan = then("PUT", LOST, Fault(answer_before=403, code="AccessDenied"))
        backend.put(f"a{condition}", b"1", if_match=condition)  # a look shows that it arrived
        proxy.plan = then("PUT", NOT_SENT, Fault(answer_before=403, code="AccessDenied"))
        with pytest.raises(UnknownOutcomeError, match="AccessDenied"):
            backend.put(f"b{condition}", b"1", if_match=condition)


@pytest.mark.parametrize("fault", [LOST, BUSY_AFTER])
def test_an_overwrite_with_a_lost_answer_does_not_undo_what_others_made_of_it(
    backend: S3Backend, other: S3Backend, proxy: FaultProxy, fault: Fault
) -> None:
    def plan(request: Request) -> Fault | None:
        if request.number == 1:
            return fault
        if request.number == 2:  # whatever comes next, they were quicker
            blob = other.get("n")
            other.put("n", blob.data + b"+1", if_match=blob.etag)
        return None

    proxy.plan = plan
    etag = backend.put("n", b"0")
    assert other.get("n").data == b"0+1"  # and not 0, with an update that was acknowledged gone
    with pytest.raises(PreconditionError):
        backend.put("n", b"2", if_match=etag)
    assert proxy.counts["PUT"] == 2


def test_an_overwrite_that_did_not_arrive_is_sent_again_even_when_looking_fails(backend: S3Backend, proxy: FaultProxy) -> None:
    puts = then("PUT", NOT_SENT, NOT_SENT)
    proxy.plan = lambda request: BUSY_BEFORE if request.method == "HEAD" else puts(request)
    backend.put("n", b"0")
    assert proxy.counts == {"PUT": 3, "HEAD": 2}


DENIED = Fault(answer_before=403, code="AccessDenied")
DELETED_BUCKET = Fault(answer_before=404, code="NoSuchBucket")


@pytest.mark.parametrize("refusal", [DENIED, DELETED_BUCKET])
def test_whatever_stops_a_write_after_a_lost_answer_its_outcome_is_unknown(
    proxy: FaultProxy, stub: S3Server, prefix: str, refusal: Fault
) -> None:
    opened(stub.endpoint_url, prefix).put("a", b"1")
    backend = S3Backend("bucket", prefix, endpoint_url=proxy.endpoint_url)
    backend.contains("a")
    proxy.plan = then("DELETE", LOST, *[refusal] * 8)
    with pytest.raises(UnknownOutcomeError) as caught:
        backend.delete("a")
    assert caught.value.key == "a"
    assert not backend.contains("a")  # it was deleted, in fact


def test_closing_in_the_middle_of_a_write_leaves_its_outcome_unknown(backend: S3Backend, proxy: FaultProxy) -> None:
    def close_and_lose(request: Request) -> Fault:
        backend.close()
        return LOST

    proxy.plan = close_and_lose
    with pytest.raises(UnknownOutcomeError):
        backend.put("a", b"1")


@pytest.mark.parametrize("first", [LOST, TWICE])
@pytest.mark.parametrize("refusal", [BUSY_BEFORE, DENIED])
def test_a_refusal_that_cannot_be_looked_into_is_unknown(
    backend: S3Backend, other: S3Backend, proxy: FaultProxy, first: Fault, refusal: Fault
) -> None:
    etag = backend.put("a", b"0")
    for call in (
        lambda: backend.put("a", b"1", if_match=etag),
        lambda: backend.put("b", b"1", if_match=ABSENT),
        lambda: backend.delete("a", if_match=other.get("a").etag),
    ):
        puts = then("PUT", first)
        proxy.plan = lambda request, puts=puts: refusal if request.method == "HEAD" else puts(request)
        with pytest.raises(UnknownOutcomeError):  # the first one was carried out, so "nothing was changed" would be a lie
            call()


def test_the_list_of_writers_is_bounded(backend: S3Backend, proxy: FaultProxy) -> None:
    etag = backend.put("a", b"0")
    for number in range(40):
        etag = backend.put("a", b"%d" % number, if_match=etag)
    sizes = [len(request.headers[WRITERS]) for request in proxy.requests if request.method == "PUT"]
    assert max(sizes) == sizes[-1] == _LONGEST
    assert sizes[-1].bit_length() <= 10  # user metadata of an object may have 2 KB in all


def test_who_left_a_version() -> None:
    e, f = _fingerprint('"e"'), _fingerprint('"f"')
    mine, theirs, older = "1" * 16, "2" * 16, "3" * 16
    read = f"{older}-{f}"
    assert _has(f"{theirs}-{f}.{mine}-{e}.{read}", mine)
    assert not _has(f"{theirs}-{f}.{read}", mine)
    assert _left_by_another(f"{theirs}-{e}.{read}", e, read)
    assert _left_by_another(f"{theirs}-{e}", e, "")
    assert not _left_by_another(f"{theirs}-{'-' * 12}", e, read)
    assert not _left_by_another(read, f, read)  # that was before what we read
    assert not _left_by_another("", e, read)


def test_ctrl_c_leaves_the_connection_to_nobody(backend: S3Backend, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put("a", b"1")
    backend.put("b", b"2")
    connection = backend._client._door[1]._idle[-1]  # type: ignore[index]

    def strike(method: str, deadline: float) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(connection), "_receive", lambda self, *args: strike(*args))
    with pytest.raises(KeyboardInterrupt):
        backend.get("a")
    with pytest.raises(KeyboardInterrupt):
        backend.put("a", b"3")
    monkeypatch.undo()
    assert backend.get("b").data == b"2"  # and not the answer about `a` that nobody took
    assert backend.get("a").data == b"3"  # what was under way was let finish


# --------------------------------------------------------------------------------------------------- counters must add up


class Tally:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = self.unknown = self.failed = 0


def increment(backend: S3Backend, tally: Tally, times: int) -> None:
    for _ in range(times):
        while True:
            try:
                blob = backend.get("n")
                backend.put("n", b"%d" % (int(blob.data) + 1), if_match=blob.etag)
            except PreconditionError:
                continue
            except UnknownOutcomeError:
                with tally.lock:
                    tally.unknown += 1
                break
            except UnavailableError:
                with tally.lock:
                    tally.failed += 1
                continue
            with tally.lock:
                tally.done += 1
            break


def count(server: S3Server, workers: int, times: int, seed: int, faults: list[Fault], one_handle: bool) -> tuple[Tally, int]:
    dice, lock = random.Random(seed), threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            return dice.choice(faults) if dice.random() < 0.3 else None

    prefix, tally = uuid.uuid4().hex, Tally()
    opened(server.endpoint_url, prefix).put("n", b"0")
    with FaultProxy(server.endpoint_url) as proxy:
        handles = [opened(proxy.endpoint_url, prefix, timeout=0.3) for _ in range(1 if one_handle else workers)] * (
            workers if one_handle else 1
        )
        proxy.plan = plan
        threads = [threading.Thread(target=increment, args=(handle, tally, times)) for handle in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for handle in handles:
            handle.close()
    with closing(S3Backend("bucket", prefix, endpoint_url=server.endpoint_url)) as backend:
        return tally, int(backend.get("n").data)


@pytest.mark.parametrize("one_handle", [True, False])
def test_a_counter_adds_up_on_a_bad_network(stub: S3Server, one_handle: bool) -> None:
    for seed in range(ROUNDS):
        tally, total = count(stub, workers=6, times=25, seed=seed, faults=PASSING, one_handle=one_handle)
        assert tally.done + tally.unknown == 6 * 25
        assert tally.done <= total <= tally.done + tally.unknown, vars(tally)
        assert tally.unknown <= 3, vars(tally)  # none, unless a thread slept through 32 writes of the others


def test_a_counter_adds_up_when_requests_arrive_after_they_were_given_up(stub: S3Server) -> None:
    for seed in range(ROUNDS):
        tally, total = count(stub, workers=4, times=10, seed=seed, faults=[LATE, LOST, TWICE], one_handle=True)
        assert tally.done + tally.unknown == 4 * 10
        assert tally.done <= total <= tally.done + tally.unknown, vars(tally)


@pytest.mark.s3
def test_a_counter_adds_up_on_seaweedfs_on_a_bad_network(seaweedfs: S3Server) -> None:
    for seed in range(ROUNDS):
        tally, total = count(seaweedfs, workers=4, times=6, seed=seed, faults=[*PASSING, LATE], one_handle=False)
        assert tally.done + tally.unknown == 4 * 6
        assert tally.done <= total <= tally.done + tally.unknown, vars(tally)
        assert tally.unknown <= 2, vars(tally)


@pytest.mark.s3
@pytest.mark.parametrize("condition", ["swap", "create", "delete"])
def test_one_of_eight_wins_on_seaweedfs(seaweedfs: S3Server, condition: str) -> None:
    backend = opened(seaweedfs.endpoint_url, uuid.uuid4().hex)
    for turn in range(3 * ROUNDS):
        key = f"k{turn}"
        etag = backend.put(key, b"start") if condition != "create" else None
        start, won = threading.Barrier(8), []

        def act(number: int, key: str = key, etag: Any = etag, start: threading.Barrier = start, won: list[int] = won) -> None:
            start.wait()
            try:
                if condition == "delete" and number % 2:
                    backend.delete(key, if_match=etag)
                else:
                    backend.put(key, b"%d" % number, if_match=etag or ABSENT)
            except PreconditionError:
                return
            won.append(number)

        threads = [threading.Thread(target=act, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        if condition == "delete" and won[0] % 2:
            assert not backend.contains(key)
        else:
            assert backend.get(key).data == b"%d" % won[0]


@pytest.mark.s3
def test_a_counter_adds_up_with_processes_on_seaweedfs(seaweedfs: S3Server) -> None:
    import multiprocessing

    prefix = uuid.uuid4().hex
    backend = opened(seaweedfs.endpoint_url, prefix)
    backend.put("n", b"0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=increment, args=(backend, Nobody(), 5)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert backend.get("n").data == b"20"


class Nobody:
    """A tally that insists on nothing but success; it travels to other processes."""

    unknown = failed = 0
    done = 0

    @property
    def lock(self) -> Any:
        return threading.Lock()

    def __setattr__(self, name: str, value: object) -> None:
        if name != "done":
            raise BackendError(f"{name}: {value}")
