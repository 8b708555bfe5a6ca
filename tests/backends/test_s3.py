"""What is particular about S3: requests per operation, buckets, servers that lie, tombstones, foreign objects, handles."""

from __future__ import annotations

import os
import pickle
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import perdure
from perdure.errors import (
    BackendError,
    InvalidKeyError,
    NotFoundError,
    NotModified,
    PolicyError,
    PreconditionError,
    UnavailableError,
    UnknownOutcomeError,
    UsageError,
)
from perdure.protocol import ABSENT, ETag
from perdure.registry import open_backend
from perdure.testing import servers
from perdure.testing.proxy import Fault, FaultProxy, Request
from perdure.testing.servers import S3Server
from perdure_backends import _s3_probe
from perdure_backends._s3_swap import TOMBSTONE
from perdure_backends.s3 import S3Backend

pytest.importorskip("botocore")


@pytest.fixture
def backend(proxy: FaultProxy) -> Iterator[S3Backend]:
    with S3Backend("bucket", uuid.uuid4().hex, endpoint_url=proxy.endpoint_url, create=True) as backend:
        backend.put("warm", b"up", if_match=ABSENT)  # bucket, self-test
        backend.delete("warm", if_match=backend.head("warm").etag)
        proxy.reset()
        yield backend


# -------------------------------------------------------------------------------------------------- requests per operation


def test_every_operation_is_one_request(backend: S3Backend, proxy: FaultProxy) -> None:
    def costs(call: Callable[[], object], **requests: int) -> None:
        proxy.reset()
        try:
            call()
        except (NotFoundError, NotModified, PreconditionError):
            pass
        assert proxy.counts == requests

    costs(lambda: backend.put("a", b"x" * 1000), PUT=1)
    assert not any("expect" in request.headers for request in proxy.requests)
    costs(lambda: backend.get("a"), GET=1)
    etag = backend.get("a").etag
    costs(lambda: backend.get("a", if_none_match=etag), GET=1)
    costs(lambda: backend.head("a"), HEAD=1)
    costs(lambda: backend.contains("a"), HEAD=1)
    for absent in (backend.get, backend.contains, backend.head, backend.delete):
        costs(lambda call=absent: call("absent"), **{{"get": "GET", "delete": "DELETE"}.get(absent.__name__, "HEAD"): 1})
    costs(lambda: backend.put("b", b"", if_match=ABSENT), PUT=1)
    costs(lambda: backend.put("a", b"y", if_match=backend.get("a").etag), GET=1, PUT=1)  # compare-and-swap
    costs(lambda: backend.put("a", b"z", if_match=etag), PUT=1, HEAD=1)  # ... that fails: one look at who won
    costs(lambda: backend.put("a", b"z", if_match=ABSENT), PUT=1, HEAD=1)
    costs(lambda: backend.delete("b"), DELETE=1)
    costs(lambda: backend.delete("a", if_match=etag), PUT=1, HEAD=1)
    costs(lambda: backend.delete("a", if_match=ETag(backend.head("a").etag)), HEAD=1, PUT=1, DELETE=1)  # tombstone, removed
    costs(lambda: backend.put("c", b"z", if_match=ETag("not one of ours")))
    costs(lambda: backend.get_many(["a", "b", "a"]), GET=2)
    costs(lambda: backend.put_many({"a": b"1", "b": b"2"}), PUT=2)
    costs(lambda: backend.delete_many(["a", "b", "b"]), DELETE=2)
    costs(lambda: list(backend.scan()), GET=1)
    costs(backend.recorded, GET=1)


def test_a_listing_is_a_request_for_each_thousand(backend: S3Backend, proxy: FaultProxy) -> None:
    backend.put_many({f"n/{number}": b"" for number in range(2001)})
    proxy.reset()
    listing = backend.keys("n/")
    assert proxy.counts == {}
    next(listing)
    assert proxy.counts == {"GET": 1}
    assert len(set(listing)) == 2000
    assert proxy.counts == {"GET": 3}


def test_bulk_calls_run_at_once(backend: S3Backend, proxy: FaultProxy) -> None:
    together = threading.Barrier(32, timeout=30)
    proxy.plan = lambda request: together.wait() and None
    backend.put_many({f"k{number}": b"1" for number in range(64)})
    assert len(backend.get_many(f"k{number}" for number in range(64))) == 64
    backend.delete_many(f"k{number}" for number in range(64))


def test_a_bulk_call_that_fails_raises_the_error_and_leaves_nothing_running(backend: S3Backend, proxy: FaultProxy) -> None:
    proxy.plan = lambda request: Fault(answer_before=403) if request.target.endswith("/k50") else None
    with pytest.raises(BackendError, match="'k50'"):
        backend.put_many({f"k{number}": b"1" for number in range(1000)})
    sent = proxy.counts["PUT"]
    assert sent < 300
    proxy.plan = None
    backend.put("a", b"1")
    assert proxy.counts["PUT"] == sent + 1


def test_a_bad_key_in_a_bulk_call_changes_nothing(backend: S3Backend, proxy: FaultProxy) -> None:
    with pytest.raises(InvalidKeyError):
        backend.put_many({"good": b"1", "../bad": b"2"})
    with pytest.raises(InvalidKeyError):
        backend.delete_many(["good", "x" * 1024])
    assert proxy.requests == []


def test_big_values(backend: S3Backend) -> None:
    data = os.urandom(3_000_001)
    backend.put("big", memoryview(data))
    assert backend.get("big").data == data
    assert backend.head("big").size == len(data)


# ----------------------------------------------------------------------------------------------------------------- buckets


def every_call(backend: S3Backend) -> list[Callable[[], Any]]:
    return [
        lambda: backend.get("a"),
        lambda: backend.head("a"),
        lambda: backend.contains("a"),
        lambda: backend.put("a", b""),
        lambda: backend.put("a", b"", if_match=ABSENT),
        lambda: backend.put("a", b"", if_match=ETag('"e"')),
        lambda: backend.delete("a"),
        lambda: backend.delete("a", if_match=ETag('"e"')),
        lambda: list(backend.scan()),
        lambda: list(backend.keys("a/")),
        lambda: backend.get_many(["a", "b"]),
        lambda: backend.put_many({"a": b"", "b": b""}),
        lambda: backend.delete_many(["a", "b"]),
        lambda: backend.recorded(),
    ]


@pytest.mark.parametrize("name", ["stub", "moto", pytest.param("seaweedfs", marks=pytest.mark.s3)])
def test_a_missing_bucket_is_an_error_and_not_an_empty_dict(name: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(name).endpoint_url
    for number in range(len(every_call(S3Backend("no-such-bucket")))):
        backend = S3Backend("no-such-bucket", endpoint_url=url)
        with pytest.raises(BackendError, match=r"no bucket 'no-such-bucket'.*create=True") as caught:
            every_call(backend)[number]()
        assert not isinstance(caught.value, KeyError)
    for number in range(len(every_call(backend))):
        bucket = f"bucket-{number}"
        backend = S3Backend(bucket, endpoint_url=url, create=True)
        try:
            every_call(backend)[number]()
        except (NotFoundError, PreconditionError):
            pass
        assert not S3Backend(bucket, endpoint_url=url).contains("b/b")


def test_two_processes_may_create_the_bucket_at_once(stub: S3Server, proxy: FaultProxy) -> None:
    def meanwhile(request: Request) -> Fault | None:
        if request.method == "PUT" and request.target == "/twice":
            return Fault(answer_after=409, code="BucketAlreadyOwnedByYou")
        return None

    proxy.plan = meanwhile
    S3Backend("twice", endpoint_url=proxy.endpoint_url, create=True).put("a", b"1")
    assert S3Backend("twice", endpoint_url=stub.endpoint_url).get("a").data == b"1"


def test_whoever_may_not_ask_about_the_bucket_may_still_use_it(stub: S3Server, proxy: FaultProxy) -> None:
    S3Backend("private", endpoint_url=stub.endpoint_url, create=True).put("a", b"1")
    proxy.plan = lambda request: Fault(answer_before=403) if request[1:3] == ("HEAD", "/private") else None
    backend = S3Backend("private", endpoint_url=proxy.endpoint_url)
    backend.put("a", b"2")
    assert not backend.contains("b")


def test_a_bucket_of_somebody_else(proxy: FaultProxy) -> None:
    proxy.plan = lambda request: (
        Fault(answer_before=409, code="BucketAlreadyExists") if request[1:3] == ("PUT", "/others") else None
    )
    with pytest.raises(BackendError, match="BucketAlreadyExists"):
        S3Backend("others", endpoint_url=proxy.endpoint_url, create=True).put("a", b"1")
    assert proxy.counts["PUT"] == 1


@pytest.mark.s3
def test_wrong_credentials(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    S3Backend("bucket", endpoint_url=seaweedfs.endpoint_url, create=True).put("a", b"1")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "wrong")
            for call in every_call(S3Backend("bucket", endpoint_url=seaweedfs.endpoint_url)):
                with pytest.raises(BackendError, match=r"refuses: 403|credentials"):
                    call()


# ----------------------------------------------------------------------------------------------------- servers that lie


def test_a_server_that_ignores_conditions_is_refused_before_any_harm() -> None:
    pytest.importorskip("nanio")
    with servers.nanio() as server, server.environment():
        backend = S3Backend("bucket", "p", endpoint_url=server.endpoint_url, create=True)
        etag = backend.put("a", b"1")  # a plain write asks for nothing the server cannot do
        for call in (
            lambda: backend.put("a", b"2", if_match=ABSENT),
            lambda: backend.put("a", b"2", if_match=etag),
            lambda: backend.delete("a", if_match=etag),
        ):
            with pytest.raises(BackendError, match=r"self-test: it ignores .*unsafe_single_writer=True") as caught:
                call()
            assert not isinstance(caught.value, PreconditionError)
        assert backend.get("a")[:2] == (b"1", etag)
        assert list(backend.keys()) == ["a"]
        everything = S3Backend("bucket", endpoint_url=server.endpoint_url)
        assert [entry.name for page in pages(everything) for entry in page] == ["p/a"]  # and the test left nothing behind


def pages(backend: S3Backend) -> Any:
    from perdure_backends._s3_list import pages

    return pages(backend._client, backend.prefix)


def test_a_single_writer_may_use_it_at_his_own_risk() -> None:
    pytest.importorskip("nanio")
    with servers.nanio() as server, server.environment():
        backend = S3Backend("bucket", endpoint_url=server.endpoint_url, create=True, unsafe_single_writer=True)
        backend.record({"codec": "json"})
        etag = backend.put("a", b"1", if_match=ABSENT)
        assert backend.recorded() == {"codec": "json"}
        for bad in (ABSENT, ETag('"other"')):
            with pytest.raises(PreconditionError):
                backend.put("a", b"2", if_match=bad)
        with pytest.raises(PreconditionError):
            backend.delete("a", if_match=ETag('"other"'))
        with pytest.raises(PreconditionError):
            backend.put("b", b"2", if_match=etag)
        backend.put("a", b"2", if_match=etag)
        assert "NONE" in backend.guarantees().swap
        again = S3Backend("bucket", endpoint_url=server.endpoint_url, unsafe_single_writer=True)

        def add(backend: S3Backend) -> None:
            for _ in range(10):
                while True:
                    blob = backend.get("n")
                    try:
                        backend.put("n", str(int(blob.data) + 1).encode(), if_match=blob.etag)
                        break
                    except PreconditionError:
                        continue

        backend.put("n", b"0")
        threads = [threading.Thread(target=add, args=(one,)) for one in (backend, again) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert backend.get("n").data == b"40"
        backend.delete("n", if_match=backend.head("n").etag)
        assert list(backend.keys()) == ["a"]


def test_what_a_dict_can_do_where_conditions_are_ignored() -> None:
    """As docs/how-to/choose-a-backend.md says."""
    pytest.importorskip("nanio")
    with servers.nanio() as server, server.environment():

        def opened(prefix: str, **options: Any) -> Any:
            return perdure.open(f"s3://bucket/{prefix}", endpoint_url=server.endpoint_url, create=True, **options)

        plain = opened("plain")
        plain.update({"a": 1, "b": 2, "c": 3, "d": 4, "k": 5})
        plain["c"] = perdure.DELETE_CURRENT
        plain.delete_many(["d"])
        refused: list[Callable[[Any], object]] = [
            lambda d: d.__delitem__("k"),
            lambda d: d.discard("a"),
            lambda d: d.pop("b"),
            lambda d: d.setdefault("new", 1),
            lambda d: d.transform_item("new", transformer=lambda old: 2),
            lambda d: d.set_item_if("new", value=3, condition=perdure.ANY_ETAG, expected_etag=perdure.ITEM_NOT_AVAILABLE),
        ]
        for call in refused:
            with pytest.raises(BackendError, match="self-test"):
                call(plain)
        assert {str(key): value for key, value in plain.items()} == {"a": 1, "b": 2, "k": 5}
        with pytest.raises(BackendError, match="self-test"):
            opened("log", append_only=True)["k"] = 1
        alone = opened("plain", unsafe_single_writer=True)
        for call in refused:
            call(alone)
        assert {str(key): value for key, value in alone.items()} == {"new": 3}
        plain.clear()
        assert not alone


LIES = {
    "if-none-match": "it ignores If-None-Match",
    "if-match": "it ignores If-Match",
    "x-amz-meta-perdure-writers": "it does not keep an object's metadata",
}


@pytest.mark.parametrize("ignored", LIES)
def test_each_lie_is_found(proxy: FaultProxy, ignored: str) -> None:
    proxy.plan = lambda request: request.headers.pop(ignored, None) and None
    backend = S3Backend("lies", endpoint_url=proxy.endpoint_url, create=True)
    with pytest.raises(BackendError, match=LIES[ignored]):
        backend.put("a", b"", if_match=ABSENT)
    assert "PUT /lies/a" not in [f"{request.method} {request.target}" for request in proxy.requests]


def test_a_server_that_swaps_into_nothing_is_found(proxy: FaultProxy) -> None:
    deleted: list[str] = []

    def lie(request: Request) -> Fault | None:
        if request.method == "DELETE":
            deleted.append(request.target)
        elif request.target in deleted:
            request.headers.pop("if-match", None)
        return None

    proxy.plan = lie
    with pytest.raises(BackendError, match="where there is no object"):
        S3Backend("lies", endpoint_url=proxy.endpoint_url, create=True).put("a", b"", if_match=ABSENT)


def test_a_server_that_compares_etags_without_quotes(proxy: FaultProxy) -> None:
    def strange(request: Request) -> Fault | None:
        condition = request.headers.get("if-match")
        if condition is not None:
            request.headers["if-match"] = "never" if condition.startswith('"') else f'"{condition}"'
        return None

    proxy.plan = strange
    backend = S3Backend("unquoted", endpoint_url=proxy.endpoint_url, create=True)
    etag = backend.put("a", b"1", if_match=ABSENT)
    stale, etag = etag, backend.put("a", b"2", if_match=etag)
    with pytest.raises(PreconditionError):
        backend.put("a", b"3", if_match=stale)
    backend.delete("a", if_match=etag)
    assert not backend.contains("a")


def test_the_self_test_is_done_once_and_by_one(stub: S3Server, proxy: FaultProxy) -> None:
    backends = [S3Backend("once", f"p{n}", endpoint_url=proxy.endpoint_url, create=True) for n in range(4)]
    threads = [threading.Thread(target=backend.put, args=("a", b""), kwargs={"if_match": ABSENT}) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tested = [request for request in proxy.requests if "perdure-selftest" in request.target]
    assert 8 <= len(tested) <= 12
    assert len({request.target for request in tested}) == 1
    assert [list(backend.keys()) for backend in backends] == [["a"]] * 4


def test_a_server_that_hangs_does_not_hold_up_the_self_test_of_another(stub: S3Server, proxy: FaultProxy) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hang(request: Request) -> None:
        if "selftest" in request.target:
            reached.set()
            go_on.wait(60)

    proxy.plan = hang
    slow = S3Backend("slow", endpoint_url=proxy.endpoint_url, create=True)
    thread = threading.Thread(target=slow.put, args=("a", b""), kwargs={"if_match": ABSENT})
    thread.start()
    assert reached.wait(30)
    done = threading.Thread(
        target=S3Backend("quick", endpoint_url=stub.endpoint_url, create=True).put, args=("a", b""), kwargs={"if_match": ABSENT}
    )
    done.start()
    done.join(30)
    stuck = done.is_alive()
    go_on.set()
    thread.join()
    done.join()
    assert not stuck


def test_a_server_without_conditional_writes_serves_a_single_writer(proxy: FaultProxy) -> None:
    proxy.plan = lambda request: (
        Fault(answer_before=501, code="NotImplemented")
        if request.method == "PUT" and {"if-match", "if-none-match"} & request.headers.keys()
        else None
    )
    backend = S3Backend("plain", endpoint_url=proxy.endpoint_url, create=True)
    backend.put("a", b"1")
    with pytest.raises(BackendError, match=r"does not know conditional writes.*unsafe_single_writer"):
        backend.put("b", b"1", if_match=ABSENT)
    alone = S3Backend("plain", endpoint_url=proxy.endpoint_url, unsafe_single_writer=True)
    etag = alone.put("b", b"1", if_match=ABSENT)
    with pytest.raises(PreconditionError):
        alone.put("b", b"2", if_match=ABSENT)
    alone.delete("b", if_match=etag)


@pytest.mark.parametrize("fault", [Fault(answer_before=500), Fault(hang_up=True)])
def test_a_server_that_breaks_on_conditions_serves_a_single_writer_only(proxy: FaultProxy, fault: Fault) -> None:
    proxy.plan = lambda request: fault if {"if-match", "if-none-match"} & request.headers.keys() else None
    backend = S3Backend("breaks", uuid.uuid4().hex, endpoint_url=proxy.endpoint_url, create=True, attempts=2)
    backend.put("a", b"1")  # there is nothing to agree on
    advice = r"self-test could not be finished.* Try again later\. If it goes on, .*unsafe_single_writer=True"
    with pytest.raises(UnavailableError, match=advice):
        backend.put("b", b"1", if_match=ABSENT)
    backend.record({"codec": "json"})
    with pytest.raises(UnavailableError, match=advice):  # for all we know, it has bad minutes, and others write their settings
        backend.put("a", b"2")
    alone = S3Backend("breaks", backend.prefix, endpoint_url=proxy.endpoint_url, attempts=2, unsafe_single_writer=True)
    alone.record({"codec": "json"})
    alone.put("a", b"2")
    etag = alone.put("b", b"1", if_match=ABSENT)
    with pytest.raises(PreconditionError):
        alone.put("b", b"2", if_match=ABSENT)
    alone.delete("b", if_match=etag)
    assert list(alone.keys()) == ["a"]
    assert alone.recorded() == {"codec": "json"}


@pytest.mark.parametrize("what", ["selftest", "perdure.json", "nowhere"])
def test_a_write_that_did_not_begin_is_not_of_unknown_outcome(proxy: FaultProxy, what: str) -> None:
    """Answers are lost, but those to what comes before: the self-test, the settings, the new bucket."""
    bucket = f"nowhere-{uuid.uuid4().hex[:8]}" if what == "nowhere" else f"there-{uuid.uuid4().hex[:8]}"
    if what != "nowhere":
        S3Backend(bucket, endpoint_url=proxy.endpoint_url, create=True).put("warm", b"")
    proxy.plan = lambda request: (
        Fault(lose_answer=True) if what in request.target and request.method in ("PUT", "DELETE") else None
    )
    backend = S3Backend(bucket, endpoint_url=proxy.endpoint_url, create=True, attempts=2)
    if what == "perdure.json":
        proxy.plan = lambda request: Fault(hang_up=True) if what in request.target and request.method == "PUT" else None
        backend.record({"codec": "json"})
    with pytest.raises(UnavailableError) as caught:
        backend.put("a", b"", if_match=ABSENT)
    assert "PUT" not in [request.method for request in proxy.requests if request.target.endswith("/a")]
    assert isinstance(caught.value.__cause__, UnknownOutcomeError)


def test_settings_are_not_overwritten_because_a_self_test_could_not_be_finished(stub: S3Server, proxy: FaultProxy) -> None:
    bucket = f"b-{uuid.uuid4().hex[:20]}"
    S3Backend(bucket, endpoint_url=stub.endpoint_url, create=True).contains("a")
    late = S3Backend(bucket, endpoint_url=proxy.endpoint_url, create=True, attempts=1)
    late.record({"codec": "pkl"})

    def meanwhile(request: Request) -> Fault | None:
        if "selftest" not in request.target:
            return None
        early = S3Backend(bucket, endpoint_url=stub.endpoint_url, create=True)
        early.record({"codec": "json"})
        early.put("a", b"1")
        return Fault(answer_before=503)

    proxy.plan = meanwhile
    with pytest.raises((UnavailableError, UsageError)):
        late.put("a", b"2")
    assert S3Backend(bucket, endpoint_url=stub.endpoint_url).recorded() == {"codec": "json"}


def test_settings_agreed_upon_while_an_answer_was_lost_are_agreed_upon(stub: S3Server, proxy: FaultProxy) -> None:
    bucket = f"b-{uuid.uuid4().hex[:20]}"
    late = S3Backend(bucket, endpoint_url=proxy.endpoint_url, create=True)
    late.record({"codec": "json"})
    begun: list[Request] = []

    def meanwhile(request: Request) -> Fault | None:
        if begun or request.method != "PUT" or "perdure.json" not in request.target:
            return None
        begun.append(request)
        with S3Backend(bucket, endpoint_url=stub.endpoint_url) as early:  # the same settings
            early.record({"codec": "json"})
            early.put("theirs", b"1")
        return Fault(answer_before=503)  # so nobody knows whether ours arrived

    proxy.plan = meanwhile
    late.put("ours", b"2")
    assert begun
    assert late.recorded() == {"codec": "json"}
    assert sorted(late.keys()) == ["ours", "theirs"]


def test_bulk_calls_work_where_no_thread_can_be_started(backend: S3Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limit)
        backend._crew.after_fork()  # no threads yet
        etags = backend._crew.map(str, range(100))
    assert etags == [str(number) for number in range(100)]
    backend._crew._running().shutdown()  # as when the interpreter ends
    assert backend._crew.map(str, range(100)) == etags


def test_a_self_test_that_could_not_be_finished_is_done_again(proxy: FaultProxy) -> None:
    backend = S3Backend("again", endpoint_url=proxy.endpoint_url, create=True, attempts=1)
    backend.put("a", b"1")
    proxy.plan = lambda request: Fault(answer_before=503) if "selftest" in request.target else None
    with pytest.raises(BackendError):
        backend.put("b", b"1", if_match=ABSENT)
    proxy.plan = None
    backend.put("b", b"1", if_match=ABSENT)


def test_amazon_itself_is_not_tested(monkeypatch: pytest.MonkeyPatch, stub: S3Server) -> None:
    backend = S3Backend("bucket", region="eu-west-1")
    monkeypatch.setattr(_s3_probe, "_try_swaps", lambda *_: pytest.fail("tested"))
    assert _s3_probe.examine_swaps(backend._client, "") == ("", False)


# -------------------------------------------------------------------------------------------------------------- tombstones


@pytest.fixture
def forgetful(proxy: FaultProxy) -> Iterator[S3Backend]:
    """A server without conditional DELETE, so that tombstones stay."""
    proxy.plan = lambda request: (
        Fault(answer_before=501, code="NotImplemented")
        if request.method == "DELETE" and "if-match" in request.headers
        else None
    )
    yield S3Backend("bucket", uuid.uuid4().hex, endpoint_url=proxy.endpoint_url, create=True)


def test_a_tombstone_counts_as_absent(forgetful: S3Backend, stub: S3Server) -> None:
    etag = forgetful.put("a", b"1")
    forgetful.put("same-size", b"." * len(TOMBSTONE))
    forgetful.delete("a", if_match=etag)
    assert [entry.size for page in pages(forgetful) for entry in page] == [len(TOMBSTONE)] * 2  # it is still there, but ...
    for call in (forgetful.get, forgetful.head):
        with pytest.raises(NotFoundError):
            call("a")
    assert not forgetful.contains("a")
    assert list(forgetful.keys()) == [meta.key for meta in forgetful.scan()] == ["same-size"]
    assert forgetful.get_many(["a"]) == {}
    for call in (lambda: forgetful.put("a", b"2", if_match=etag), lambda: forgetful.delete("a", if_match=etag)):
        with pytest.raises(PreconditionError, match="absent"):
            call()
    again = forgetful.put("a", b"1", if_match=ABSENT)
    assert forgetful.get("a")[:2] == (b"1", again)
    assert sorted(forgetful.keys()) == ["a", "same-size"]
    forgetful.delete("a", if_match=again)
    forgetful.put("a", b"3")
    assert forgetful.get("a").data == b"3"
    forgetful.delete("a", if_match=forgetful.head("a").etag)
    forgetful.delete("a")
    assert [entry.name for page in pages(forgetful) for entry in page] == [forgetful.prefix + "same-size"]


def test_one_of_many_creates_in_place_of_a_tombstone(forgetful: S3Backend) -> None:
    forgetful.delete("a", if_match=forgetful.put("a", b"1"))
    start, won = threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait()
        try:
            won.append((forgetful.put("a", b"%d" % number, if_match=ABSENT), number))
        except PreconditionError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((etag, number),) = won
    assert forgetful.get("a")[:2] == (b"%d" % number, etag)


def test_a_tombstone_is_removed_where_that_is_safe(backend: S3Backend) -> None:
    backend.delete("a", if_match=backend.put("a", b"1"))
    assert [entry for page in pages(backend) for entry in page] == []


# -------------------------------------------------------------------------------------------- names, foreign objects, URLs


def test_foreign_objects_are_neither_listed_nor_in_the_way(backend: S3Backend, stub: S3Server) -> None:
    base = f"{stub.endpoint_url}/bucket/{backend.prefix}"
    for name in ("dir/", "a%20b", "a+b", "%C3%A9", "x//y", "", "item%20(1).pkl", "!perdure.json", "..", "a&b", "a<b"):
        urllib.request.urlopen(urllib.request.Request(base + name, data=b"x", method="PUT")).close()
    backend.put("dir/a", b"1")
    backend.put("mine", b"2")
    assert sorted(backend.keys()) == ["dir/a", "mine"]
    assert [meta.key for meta in backend.scan("dir/")] == ["dir/a"]
    neighbour = S3Backend("bucket", backend.prefix.rstrip("/") + "-2", endpoint_url=stub.endpoint_url)
    neighbour.put("b", b"")
    assert sorted(backend.keys()) == ["dir/a", "mine"]


def test_a_suffix(backend: S3Backend, stub: S3Server) -> None:
    other = S3Backend("bucket", backend.prefix, endpoint_url=stub.endpoint_url, suffix=".pkl")
    other.put("a", b"1")
    backend.put("b", b"2")
    backend.put("c.pkl.pkl", b"3")
    assert sorted(other.keys()) == ["a", "c.pkl"]
    assert sorted(backend.keys()) == ["a.pkl", "b", "c.pkl.pkl"]
    assert other.get("c.pkl").data == b"3"
    assert not other.contains("b")


def test_keys_too_long_for_s3_are_refused_before_any_request(proxy: FaultProxy) -> None:
    backend = S3Backend("bucket", "é" * 10, endpoint_url=proxy.endpoint_url, suffix=".pkl", create=True)
    room = 1024 - 21 - 4
    fits = "/".join(["x" * 249] * 4)[:room]
    for call in (backend.get, backend.head, backend.contains, backend.delete, lambda key: backend.put(key, b"")):
        with pytest.raises(InvalidKeyError, match=f"{room} are the most"):
            call(fits + "x" * (room + 1 - len(fits)))
    assert list(backend.scan("/".join(["x" * 250] * 4) + "/")) == []
    assert proxy.requests == []
    backend.put(fits, b"1")
    assert list(backend.keys()) == [fits]


@pytest.mark.parametrize("prefix", ["", "/", "a", "/a/", "a/b", "a b/é?#%"])
def test_prefixes_are_normalised(stub: S3Server, prefix: str) -> None:
    bucket = f"b-{uuid.uuid4().hex[:20]}"
    backend = S3Backend(bucket, prefix, endpoint_url=stub.endpoint_url, create=True)
    backend.put("k/x", b"1")
    expected = prefix.strip("/") + "/" if prefix.strip("/") else ""
    assert backend.prefix == expected
    assert list(backend.keys()) == ["k/x"]
    assert [entry.name for page in pages(S3Backend(bucket, endpoint_url=stub.endpoint_url)) for entry in page] == [
        expected + "k/x"
    ]


@pytest.mark.parametrize("prefix", ["..", "a/../b", "a//b", "./a", "a\nb", "a\0b", "a\\b", "a\x7f", "x" * 1024, 1, None])
def test_hostile_prefixes_are_refused(prefix: Any) -> None:
    with pytest.raises(UsageError):
        S3Backend("bucket", prefix)


@pytest.mark.parametrize(
    "bucket", ["", "a", "a/b", "..", "a..b", "-a-", "a b", "bücket", "x" * 300, "a--x-s3", None, "a\nb", "abc\n"]
)
def test_hostile_buckets_are_refused(bucket: Any) -> None:
    with pytest.raises(UsageError):
        S3Backend(bucket)


@pytest.mark.parametrize("url", ["s3://who:pa55word@bucket/a", "s3://who:pa55/word@bucket/a", "s3://pa55word@bucket"])
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(UsageError, match="Give credentials as AWS does") as caught:
        open_backend(url)
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "localhost:9000", "http://u:p@x", "http://x?y", "http://[x", "http://x#y"]
)
def test_bad_endpoints_are_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        S3Backend("bucket", endpoint_url=url)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0}, {"concurrency": 2.5}, {"timeout": -1}, {"timeout": "x"}, {"timeout": float("nan")}, {"attempts": 0},
        {"deadline": 0}, {"suffix": "/x"}, {"session": "me"},
    ],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        S3Backend("bucket", **options)


def test_from_a_url(stub: S3Server) -> None:
    backend = open_backend(f"s3://bucket/team/app?endpoint_url={stub.endpoint_url}&create=yes&concurrency=4&timeout=2.5")
    assert isinstance(backend, S3Backend)
    assert (backend.bucket, backend.prefix) == ("bucket", "team/app/")
    assert (backend._options["create"], backend._options["concurrency"], backend._options["timeout"]) == (True, 4, 2.5)
    assert open_backend(backend.place).place == backend.place == f"s3://bucket/team/app?endpoint_url={stub.endpoint_url}"
    assert open_backend("s3://bucket").place == "s3://bucket"
    with pytest.raises(UsageError, match="endpoint_url"):
        open_backend("s3://bucket?endpoint=x")
    for bad in ("s3:bucket", "s3:/bucket", "s3://", "s3:///x"):
        with pytest.raises(UsageError):
            open_backend(bad)


# ----------------------------------------------------------------------------------------------------------------- handles


def test_a_pickled_handle_holds_no_secret(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who-am-i")
    backend = S3Backend("bucket", "pickled", endpoint_url=stub.endpoint_url, create=True)
    backend.put("a", b"1")
    packed = pickle.dumps(backend)
    assert b"secret" not in packed.replace(b"unsafe", b"")
    assert b"who-am-i" not in packed
    assert pickle.loads(packed).get("a").data == b"1"
    for text in (repr(backend), backend.place, str(backend.guarantees())):
        assert "secret" not in text
        assert "who-am-i" not in text


def test_credentials_of_a_session(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    session = boto3.Session(aws_access_key_id="one", aws_secret_access_key="two", region_name="eu-west-3")
    with FaultProxy(stub.endpoint_url) as proxy:
        backend = S3Backend("bucket", endpoint_url=proxy.endpoint_url, create=True, session=session)
        backend.put("a", b"1")
        assert "Credential=one/" in proxy.requests[0].headers["authorization"]
        assert "/eu-west-3/s3/" in proxy.requests[0].headers["authorization"]
    with pytest.raises(PolicyError, match="session"):
        pickle.dumps(backend)


def test_settings_of_a_place(stub: S3Server, proxy: FaultProxy) -> None:
    prefix = uuid.uuid4().hex
    one = S3Backend("bucket", prefix, endpoint_url=proxy.endpoint_url, create=True)
    two = S3Backend("bucket", prefix, endpoint_url=stub.endpoint_url, create=True)
    assert one.recorded() == {}
    one.record({"codec": "json"})
    two.record({"codec": "pkl"})  # both saw an empty place; the first write decides
    three = pickle.loads(pickle.dumps(two))
    one.put("a", b"1")
    for late in (two, three):
        with pytest.raises(UsageError, match="'json', not 'pkl'"):
            late.put("b", b"2")
    with pytest.raises(UsageError, match="codec='json'"):
        S3Backend("bucket", prefix, endpoint_url=stub.endpoint_url).record({"codec": "pkl"})
    four = S3Backend("bucket", prefix, endpoint_url=stub.endpoint_url)
    four.record({"codec": "json", "filters": "lz4"})
    four.put("c", b"3")
    assert four.recorded() == {"codec": "json", "filters": "lz4"}
    proxy.reset()
    one.put("a", b"2")
    assert proxy.counts == {"PUT": 1}
    assert sorted(one.keys()) == ["a", "c"]


def test_settings_are_written_once_by_threads_that_race(stub: S3Server) -> None:
    with FaultProxy(stub.endpoint_url) as proxy:
        backend = S3Backend("bucket", uuid.uuid4().hex, endpoint_url=proxy.endpoint_url, create=True)
        backend.record({"codec": "json"})
        backend.put_many({f"k{number}": b"" for number in range(32)})
        written = [request for request in proxy.requests if request.target.endswith("perdure.json")]
        assert [request.method for request in written] == ["GET", "GET", "PUT"]
        assert backend.recorded() == {"codec": "json"}


def test_damaged_settings_are_not_taken_for_none(backend: S3Backend, stub: S3Server) -> None:
    for text in (b"", b"{", b"[]", b'{"perdure": 2, "settings": {}}', b'{"perdure": 1, "settings": {"codec": 1}}', b"\xff"):
        url = f"{stub.endpoint_url}/bucket/{backend.prefix}!perdure.json"
        urllib.request.urlopen(urllib.request.Request(url, data=text, method="PUT")).close()
        with pytest.raises(UsageError, match=r"!perdure\.json"):
            backend.recorded()


@pytest.mark.smoke
def test_a_dict_on_s3(stub: S3Server) -> None:
    opened = getattr(perdure, "open", None)
    if opened is None:
        pytest.skip("no mapping yet")
    with opened(f"s3://bucket/{uuid.uuid4().hex}", endpoint_url=stub.endpoint_url, create=True) as d:
        d["a", "b"] = {"x": [1, 2.5, None]}
        assert d["a", "b"] == {"x": [1, 2.5, None]}
        assert list(d) == [("a", "b")]
