"""Handlers of botocore's `before-send`, those of moto's in-process mock and one's own; and a client of boto3's."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import (
    BackendError,
    MissingExtraError,
    NotFoundError,
    NotModified,
    PreconditionError,
    UnavailableError,
    UnknownOutcomeError,
)
from perdure.protocol import ABSENT
from perdure.testing.crew import within
from perdure.testing.lifetime import Lifetime, in_child
from perdure.testing.proxy import FaultProxy
from perdure.testing.races import Races
from perdure.testing.servers import S3Server
from perdure.testing.values import Bulk, Values
from perdure_backends import _s3_client, _s3_forks, _s3_hooks
from perdure_backends.s3 import S3Backend

boto3 = pytest.importorskip("boto3")
awsrequest = pytest.importorskip("botocore.awsrequest")
handlers = pytest.importorskip("botocore.handlers")
exceptions = pytest.importorskip("botocore.exceptions")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")


class Asked(list[Any]):
    """A handler that remembers the events and requests it is asked about, and leaves them all to the server."""

    def __call__(self, event_name: str, request: Any, **_: object) -> Any:
        self.append((event_name.removeprefix("before-send.s3."), request))

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self]


class Raw:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body


def answer(request: Any, status: int, headers: dict[str, Any] | None = None, body: bytes = b"") -> Any:
    return awsrequest.AWSResponse(request.url, status, headers or {}, Raw(body))


def session_with(handler: Callable[..., Any], event: str = "before-send") -> Any:
    session = boto3.Session(aws_access_key_id="one", aws_secret_access_key="two", region_name="us-east-1")
    session.events.register(event, handler)
    return session


# ------------------------------------------------------------------------------------------------------- moto's mock_aws


@pytest.fixture(scope="module")
def mock_aws() -> Iterator[Any]:
    # To import moto adds its handler to botocore's list, for good: other files of tests should be as they are without.
    before = list(handlers.BUILTIN_HANDLERS)
    moto = pytest.importorskip("moto")
    from moto.core.models import botocore_stubber

    if all(handler is not botocore_stubber for _, handler, *_ in handlers.BUILTIN_HANDLERS):
        handlers.BUILTIN_HANDLERS.append(("before-send", botocore_stubber))
    yield moto.mock_aws
    handlers.BUILTIN_HANDLERS[:] = before


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """No settings of AWS but those of a mock, and no way out of this machine."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    looked_up: list[object] = []

    def no_name(*address: object, **_: object) -> None:
        looked_up.append(address)
        raise AssertionError(f"{address} is looked up")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    yield looked_up
    assert looked_up == []


@pytest.fixture
def mocked(mock_aws: Any, offline: list[object]) -> Iterator[None]:
    with mock_aws():
        yield


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As if no handlers were registered for all sessions; all the others there are."""
    without = [entry for entry in handlers.BUILTIN_HANDLERS if not entry[0].startswith("before-send")]
    monkeypatch.setattr(handlers, "BUILTIN_HANDLERS", without)
    return without


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the handlers are asked about."""
    sent = Asked()

    class Ears(_s3_hooks.Hooks):
        def __init__(self, emitter: Any) -> None:
            super().__init__(emitter)
            emitter.register_first("before-send.s3", sent)

    monkeypatch.setattr(_s3_hooks, "Hooks", Ears)
    return sent


class InsideMockAws:
    pace = 0.02  # 5 ms a request
    processes = forks = False  # each process has a mock of its own

    @pytest.fixture(autouse=True)
    def inside(self, mocked: None) -> None:
        pass

    def open(self, where: Path) -> S3Backend:
        return S3Backend("contract", f"contract-{hashlib.md5(str(where).encode()).hexdigest()[:30]}", create=True)


class TestTheContractInsideMockAws(InsideMockAws, Values, Bulk, Lifetime):
    pass


@pytest.mark.torture
@pytest.mark.skipif(os.environ.get("PERDURE_ROUNDS", "1") == "1", reason="half a minute; races are for real servers")
class TestRacesInsideMockAws(InsideMockAws, Races):
    pass


@pytest.mark.parametrize(
    ("bucket", "region"),
    [
        ("some-bucket", None), ("some-bucket", "us-east-1"), ("elsewhere", "eu-central-1"), ("dots.in.it", "eu-west-3"),
        ("test_bucket", None), ("under_score", "ap-southeast-2"), ("Capital", None),
    ],
)  # fmt: skip
def test_everything_works_inside_mock_aws(mocked: None, sent: Asked, bucket: str, region: str | None) -> None:
    backend = S3Backend(bucket, "team/app", create=True, region=region)
    first = backend.put("a", b"1", if_match=ABSENT)
    assert "CreateBucket" in sent.events
    assert backend.client.get_bucket_location(Bucket=bucket)["LocationConstraint"] in (region, None)
    assert backend.get("a")[:2] == (b"1", first)
    with pytest.raises(NotModified):
        backend.get("a", if_none_match=first)
    second = backend.put("a", b"22", if_match=first)
    for stale in (first, ABSENT):
        with pytest.raises(PreconditionError):
            backend.put("a", b"3", if_match=stale)
    with pytest.raises(PreconditionError):
        backend.delete("a", if_match=first)
    assert backend.head("a")[:3] == ("a", second, 2)
    backend.put("b/c~(d)=", b"")
    assert backend.get("b/c~(d)=").data == b""
    assert [(meta.key, meta.etag) for meta in backend.scan()] == [("a", second), ("b/c~(d)=", backend.head("b/c~(d)=").etag)]
    backend.record({"codec": "json"})
    backend.put("b/c", b"")
    assert S3Backend(bucket, "team/app", region=region).recorded() == {"codec": "json"}
    backend.delete("a", if_match=second)
    backend.delete("b/c")
    backend.delete("b/c")
    for absent in (backend.get, backend.head):
        with pytest.raises(NotFoundError):
            absent("a")
    assert list(backend.keys()) == ["b/c~(d)="]
    assert set(sent.events) >= {"GetObject", "PutObject", "HeadObject", "DeleteObject", "ListObjectsV2", "CreateBucket"}
    by_path = bucket in ("dots.in.it", "test_bucket", "under_score", "Capital")  # what is no name of a host
    assert {(f"/{bucket}" in request.url, f"//{bucket}.s3." in request.url) for _, request in sent} == {(True, not by_path)}


def test_a_missing_bucket_is_missed_inside_mock_aws(mocked: None) -> None:
    backend = S3Backend("missing")
    for call in (partial(backend.get, "a"), partial(backend.put, "a", b"1"), lambda: list(backend.keys()), backend.recorded):
        with pytest.raises(BackendError, match="there is no bucket 'missing'"):
            call()


def test_a_listing_of_several_pages_inside_mock_aws(mocked: None, sent: Asked) -> None:
    backend = S3Backend("some-bucket", "many", create=True)
    keys = [f"{number % 7}/{number}" for number in range(1001)]
    backend.put_many(dict.fromkeys(keys, b""))
    sent.clear()
    assert list(backend.keys()) == sorted(keys)
    assert sent.events == ["ListObjectsV2"] * 2


def test_a_dict_inside_mock_aws(mock_aws: Any, offline: list[object]) -> None:
    @mock_aws
    def program() -> dict[str, int]:
        d = perdure.open("s3://some-bucket/prefix?create=yes")
        d["a", "b"] = 1
        d.transform_item("n", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1)
        again = perdure.open("s3://some-bucket/prefix")
        return {"/".join(key): again[key] for key in again}

    assert program() == program() == {"a/b": 1, "n": 1}


def test_each_mock_is_seen_by_those_in_it(mock_aws: Any, offline: list[object]) -> None:
    with mock_aws():
        first = S3Backend("some-bucket", create=True)
        first.put("a", b"first")
    with mock_aws():
        with pytest.raises(BackendError, match="there is no bucket"):
            S3Backend("some-bucket").get("a")
        second = S3Backend("some-bucket", create=True)
        assert not second.contains("a")
        second.put("a", b"second", if_match=ABSENT)
        assert second.get("a").data == first.get("a").data == b"second"  # as with clients of boto3's
    for late in (first, second):
        with pytest.raises(AssertionError, match="looked up"):  # nothing keeps them from asking Amazon now
            late.get("a")
    assert len(offline) == 2
    offline.clear()


def test_a_backend_used_in_one_mock_makes_its_bucket_in_the_next(mock_aws: Any, offline: list[object]) -> None:
    backend = S3Backend("some-bucket", create=True)
    for _ in range(2):
        with mock_aws():
            assert list(backend.keys()) == []
            backend.put("a", b"1", if_match=ABSENT)
            backend.delete("a", if_match=backend.put("a", b"2", if_match=backend.get("a").etag))


def test_the_credentials_of_the_mock_are_used_in_it_and_no_longer_after_it(
    mock_aws: Any, stub: S3Server, sent: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_of(request: Any) -> str:
        return str(request.headers["authorization"]).partition("Credential=")[2].partition("/")[0]

    opened = partial(S3Backend, "some-bucket", create=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "real")
    with FaultProxy(stub.endpoint_url) as proxy:
        before = opened(endpoint_url=proxy.endpoint_url)
        before.put("a", b"1")
        with mock_aws():
            sent.clear()
            assert not opened().contains("a")
            assert {key_of(request) for _, request in sent} == {"FOOBARKEY"}
            proxy.reset()
            assert before.get("a").data == b"1"  # moto leaves other servers alone
            assert opened(endpoint_url=proxy.endpoint_url).get("a").data == b"1"
            assert [key_of(request) for request in proxy.requests] == ["real", "FOOBARKEY"]
        proxy.reset()
        opened(endpoint_url=proxy.endpoint_url).put("a", b"2")
        assert {key_of(request) for request in proxy.requests} == {"real"}


def test_what_a_mock_can_do_is_not_taken_for_what_the_bucket_can_do(stub: S3Server, nobody: list[Any]) -> None:
    with FaultProxy(stub.endpoint_url) as proxy:
        bucket = f"b-{uuid.uuid4().hex}"
        for session in (session_with(Asked()), None):
            backend = S3Backend(bucket, endpoint_url=proxy.endpoint_url, create=True, session=session)
            proxy.reset()
            backend.delete("a", if_match=backend.put("a", b"1", if_match=ABSENT))
            assert any("selftest" in request.target and request.method == "PUT" for request in proxy.requests)
            assert any("selftest" in request.target and "if-match" in request.headers for request in proxy.requests)


def test_moto_may_be_imported_after_the_first_request(stub: S3Server) -> None:
    program = """
import os, socket, sys
from perdure_backends.s3 import S3Backend
from perdure_backends import _s3_hooks

endpoint_url, real = sys.argv[1], socket.getaddrinfo
backend = S3Backend("bucket", "late", endpoint_url=endpoint_url, create=True)
backend.put("a", b"1")
assert backend._client.account.hooks is None
assert "boto3" not in sys.modules

import moto

def only_here(host, *rest, **options):
    assert host == "127.0.0.1", host
    return real(host, *rest, **options)

socket.getaddrinfo = only_here
with moto.mock_aws():
    mocked = S3Backend("bucket", "late", create=True)
    assert not mocked.contains("a")
    mocked.put("a", b"2")
    assert backend.get("a").data == b"1"
assert S3Backend("bucket", "late", endpoint_url=endpoint_url).get("a").data == b"1"
"""
    done = subprocess.run([sys.executable, "-c", program, stub.endpoint_url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_inside_mock_aws(mocked: None) -> None:
    d = perdure.open("s3://some-bucket/threads?create=yes")
    backend = S3Backend("some-bucket", "bulk", create=True)
    values = {f"{number}": b"%d" % number for number in range(32)}
    start = threading.Barrier(8)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            start.wait(30)
            for _ in range(3):
                d.transform_item("n", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1, n_retries=None)
                backend.put_many(values)
                assert {key: blob.data for key, blob in backend.get_many([*values, "absent"]).items()} == values
                assert set(backend.keys()) == set(values)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    assert d["n"] == 24


@needs_fork
def test_a_child_forked_inside_mock_aws_has_its_copy_of_the_mock(mocked: None) -> None:
    backend = S3Backend("some-bucket", create=True)
    backend.put("a", b"1")
    client = backend.client

    def child() -> None:
        assert backend.get("a").data == b"1"
        assert backend.client is not client
        assert backend.client.get_object(Bucket="some-bucket", Key="a")["Body"].read() == b"1"
        backend.put("a", b"2")

    in_child(child)
    assert backend.get("a").data == b"1"
    assert backend.client is client


@needs_fork
@pytest.mark.parametrize("patient", [True, False])
def test_a_child_forked_while_a_handler_works_is_not_locked_out(
    stub: S3Server, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(request: Any, **_: object) -> None:
        if threading.current_thread().name == "slow" and not begun.is_set():
            begun.set()
            assert go_on.wait(30)
            ended.set()

    backend = S3Backend("bucket", "forked", endpoint_url=stub.endpoint_url, create=True, session=session_with(slow))
    backend.put("a", b"1")
    thread = threading.Thread(target=backend.get, args=("a",), name="slow")
    thread.start()
    assert begun.wait(30)
    if patient:
        threading.Timer(0.3, go_on.set).start()
    else:
        monkeypatch.setattr(_s3_forks, "_PATIENCE", 0.05)

    def child() -> None:
        assert ended.is_set() == patient, "the fork did not wait"
        assert backend.get("a").data == b"1"

    in_child(child)
    go_on.set()
    thread.join()


# ------------------------------------------------------------------------------------------------------ handlers of one's own


def test_a_handler_that_answers_nothing_sees_each_request_as_it_is_sent(stub: S3Server) -> None:
    asked = Asked()
    bucket = f"b-{uuid.uuid4().hex}"
    with FaultProxy(stub.endpoint_url) as proxy:
        session = session_with(asked, "before-send.s3")
        backend = S3Backend(bucket, "p", endpoint_url=proxy.endpoint_url, create=True, session=session)
        backend._client.account  # is found without a request that anybody could be asked about
        assert asked == []
        backend.put("a~=b", memoryview(b"value"))
        backend.put("empty", b"")
        backend.get("empty")
        backend.contains("a~=b")
        backend.delete("a~=b")
        list(backend.keys())
        assert asked.events == [
            "HeadBucket", "CreateBucket", "PutObject", "PutObject", "GetObject", "HeadObject", "DeleteObject", "ListObjectsV2"
        ]  # fmt: skip
        assert len(proxy.requests) == len(asked)
        for (_, request), arrived in zip(asked, proxy.requests, strict=True):
            assert request.method == arrived.method
            assert request.url == f"{proxy.endpoint_url}{arrived.target}"
            assert {name.lower(): value for name, value in request.headers.items()} == arrived.headers
            assert (request.body or b"") == arrived.body
    assert [type(request.body) for event, request in asked if event == "PutObject"] == [bytes, bytes]


def test_a_handler_stands_in_for_the_server(offline: list[object]) -> None:
    values: dict[str, bytes] = {}

    def serve(request: Any, event_name: str, **_: object) -> Any:
        name = request.url.partition("//bucket.s3.")[2].partition("/")[2]
        if event_name.endswith("PutObject"):
            values[name] = request.body
        elif name not in values:
            return answer(request, 404, {}, b"<Code>NoSuchKey</Code>" if request.method == "GET" else b"not here")
        headers = {"ETag": hashlib.md5(values[name]).hexdigest(), "Content-Length": len(values[name])}
        return answer(request, 200, headers, values[name])  # a number in a header, a body for HEAD: moto does that too

    second = Asked()
    session = session_with(serve, "before-send.*.*")
    session.events.register_last("before-send", second)
    backend = S3Backend("bucket", session=session)
    etag = backend.put("a", b"1")
    assert values == {"a": b"1"}
    assert backend.get("a")[:2] == (b"1", etag)
    assert backend.head("a")[:3] == ("a", etag, 1)
    for call in (backend.get, backend.head):
        with pytest.raises(NotFoundError):
            call("b")
    assert second.events == ["PutObject", "GetObject", "HeadObject", "GetObject", "HeadObject"]  # all are told, as by botocore


@pytest.mark.parametrize("wrong", ["text", object(), 7])
def test_an_answer_that_is_none_is_an_error(offline: list[object], wrong: object) -> None:
    backend = S3Backend("bucket", session=session_with(lambda **_: wrong))
    with pytest.raises(BackendError, match="a handler of botocore's before-send failed") as caught:
        backend.get("a")
    assert isinstance(caught.value.__cause__, AttributeError)


def test_what_a_handler_raises_comes_out_as_the_cause(offline: list[object]) -> None:
    wrong = RuntimeError("no such luck")
    asked = Asked()

    def fail(request: Any, **_: object) -> None:
        raise wrong

    session = session_with(asked, "before-send.s3")
    session.events.register("before-send", fail)
    backend = S3Backend("bucket", session=session)
    for read in (partial(backend.get, "a"), partial(backend.head, "a"), partial(list, backend.keys())):
        asked.clear()
        with pytest.raises(BackendError, match="no such luck") as caught:
            read()
        assert type(caught.value) is BackendError
        assert caught.value.__cause__ is wrong
        assert len(asked) == 1  # it is no matter of patience
    for write in (
        partial(backend.put, "a", b"1"),
        partial(backend.put, "a", b"1", if_match=ABSENT),
        partial(backend.delete, "a"),
    ):
        with pytest.raises(UnknownOutcomeError, match="no such luck") as unknown:  # it may have stored it before
            write()
        assert unknown.value.__cause__ is wrong


def test_a_write_that_a_handler_carried_out_and_then_raised_is_found_out(stub: S3Server) -> None:
    backend = S3Backend("bucket", uuid.uuid4().hex, endpoint_url=stub.endpoint_url, create=True)
    backend.put("bucket", b"")

    def carry_out(request: Any, event_name: str, **_: object) -> None:
        if event_name.endswith("PutObject") and request.url.endswith("/a"):
            conditions = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta")}
            backend._client.send("PUT", request.url.partition("/bucket/")[2], body=request.body, headers=conditions)
            raise RuntimeError("too late")

    session = session_with(carry_out)
    clumsy = S3Backend("bucket", backend.prefix, endpoint_url=stub.endpoint_url, session=session)
    for condition in (None, ABSENT):
        etag = clumsy.put("a", b"1", if_match=condition)
        assert backend.get("a")[:2] == (b"1", etag)
        backend.delete("a")


def test_a_bad_network_made_by_a_handler_is_treated_as_one(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_s3_client, "_pause", lambda _: None)
    bad = 0

    def fail(request: Any, **_: object) -> None:
        nonlocal bad
        bad -= 1
        if bad >= 0:
            raise exceptions.EndpointConnectionError(endpoint_url=request.url)

    backend = S3Backend(
        "bucket", uuid.uuid4().hex, endpoint_url=stub.endpoint_url, create=True, session=session_with(fail), attempts=3
    )
    etag = backend.put("a", b"1", if_match=ABSENT)
    for again in (partial(backend.get, "a"), partial(list, backend.keys())):
        bad = 2
        again()
        assert bad == -1
    bad = 2
    etag = backend.put("a", b"2", if_match=etag)
    assert bad == -1
    bad = 1_000_000
    with pytest.raises(UnavailableError, match=r"Could not connect to the endpoint URL.*\(3 attempts\)"):
        backend.get("a")
    with pytest.raises(UnknownOutcomeError):
        backend.put("a", b"3", if_match=etag)
    bad = 0
    assert backend.get("a")[:2] == (b"2", etag)


def test_handlers_are_those_at_the_first_request_as_with_a_client_of_boto3(stub: S3Server) -> None:
    early, late = Asked(), Asked()
    session = boto3.Session(aws_access_key_id="one", aws_secret_access_key="two", region_name="us-east-1")
    backend = S3Backend("bucket", "early", endpoint_url=stub.endpoint_url, create=True, session=session)
    session.events.register("before-send.s3.PutObject", early)
    backend.put("a", b"1")
    session.events.register("before-send", late)
    session.events.unregister("before-send.s3.PutObject", early)
    backend.put("a", b"2")
    assert early.events == ["PutObject"] * 2
    assert late == []


def test_a_handler_for_all_sessions_is_noticed_when_it_comes_and_when_it_goes(
    stub: S3Server, nobody: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> S3Backend:
        return S3Backend("bucket", "builtin", endpoint_url=stub.endpoint_url, create=True)

    before = opened()
    before.put("a", b"1")
    for asked in (Asked(), Asked()):
        monkeypatch.setattr(handlers, "BUILTIN_HANDLERS", [*nobody, ("before-send", asked)])
        opened().get("a")
        assert asked.events == ["GetObject"]
        monkeypatch.setattr(handlers, "BUILTIN_HANDLERS", nobody)
        assert opened()._client.account.hooks is None
        before.get("a")
        assert asked.events == ["GetObject"]


def test_without_handlers_nothing_of_it_is_touched(stub: S3Server, nobody: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("somebody is asked")

    monkeypatch.setattr(_s3_hooks.Hooks, "__init__", touched)
    monkeypatch.setattr(_s3_hooks.Hooks, "ask", touched)
    for session in (None, session_with(Asked(), "before-sign"), session_with(Asked(), "before-send.dynamodb")):
        backend = S3Backend("bucket", uuid.uuid4().hex, endpoint_url=stub.endpoint_url, create=True, session=session)
        backend.delete("a", if_match=backend.put("a", b"1", if_match=ABSENT))
        assert backend.get_many(["a", "b"]) == {}
        assert list(backend.keys()) == []
        assert backend._client.account.hooks is None


def test_where_botocore_cannot_tell_who_listens_it_is_asked_each_time() -> None:
    class Emitter:
        def emit(self, event_name: str, request: Any) -> list[tuple[object, Any]]:
            return [(None, None), (None, answer(request, 200, {"A": 1}, event_name.encode()))]

    class Session:
        def get_component(self, name: str) -> Emitter:
            assert name == "event_emitter"
            return Emitter()

    hooks = _s3_hooks.find_hooks(Session())
    assert hooks is not None
    assert hooks.ask("GET", "a", "https://bucket/a", [], b"") == (200, {"a": "1"}, b"before-send.s3.GetObject")


# ---------------------------------------------------------------------------------------------------------- a client of boto3's


def test_the_client_goes_where_the_backend_goes(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    with FaultProxy(stub.endpoint_url) as proxy:
        backend = S3Backend("bucket", "c", endpoint_url=proxy.endpoint_url, create=True, region="eu-west-3")
        backend.put("a", b"1")
        proxy.reset()
        client = backend.client
        assert proxy.requests == []
        assert backend.client is client
        assert hasattr(client, "upload_file")
        assert client.get_object(Bucket="bucket", Key="c/a")["Body"].read() == b"1"
        client.put_object(Bucket="bucket", Key="c/b", Body=b"2")
        assert backend.get("b").data == b"2"
        assert all("Credential=who/" in request.headers["authorization"] for request in proxy.requests)
        assert all("/eu-west-3/s3/" in request.headers["authorization"] for request in proxy.requests)
        assert not any("checksum" in name for request in proxy.requests for name in request.headers)
        another = S3Backend("bucket", "d", endpoint_url=proxy.endpoint_url).client  # of the same session of botocore
        assert hasattr(another, "upload_file")


def test_the_client_of_a_session(stub: S3Server) -> None:
    made: list[Any] = []

    class Mine(boto3.Session):  # type: ignore[misc]
        def client(self, *args: Any, **options: Any) -> Any:
            made.append(super().client(*args, **options))
            return made[-1]

    mine = Mine(aws_access_key_id="one", aws_secret_access_key="two", region_name="eu-west-3")
    plain = mine._session.__class__()
    plain.set_credentials("three", "four")
    wrapped = boto3.Session(aws_access_key_id="five", aws_secret_access_key="six")._session
    for session, key in ((mine, "one"), (plain, "three"), (plain, "three"), (wrapped, "five")):
        with FaultProxy(stub.endpoint_url) as proxy:
            backend = S3Backend("bucket", endpoint_url=proxy.endpoint_url, create=True, session=session)
            backend.put("a", b"1")
            assert hasattr(backend.client, "upload_file")
            assert (backend.client in made) == (session is mine)
            backend.client.list_objects_v2(Bucket="bucket")
            assert f"Credential={key}/" in proxy.requests[-1].headers["authorization"]


def test_the_client_is_not_pickled_and_ends_with_the_backend(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = S3Backend("bucket", endpoint_url=stub.endpoint_url, create=True)
    backend.put("a", b"1")
    client = backend.client
    closed: list[int] = []
    monkeypatch.setattr(client, "close", lambda: closed.append(1))
    copy = pickle.loads(pickle.dumps(backend))
    assert copy.client is not client
    assert closed == []
    backend.close()
    assert closed == [1]
    with pytest.raises(BackendError, match="closed"):
        backend.client
    assert copy.client.head_bucket(Bucket="bucket")


def test_threads_get_one_client(stub: S3Server) -> None:
    backend = S3Backend("bucket", endpoint_url=stub.endpoint_url, create=True)
    clients: list[Any] = []
    start = threading.Barrier(8)

    def get() -> None:
        start.wait(30)
        clients.append(backend.client)

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        within(60, "a client", thread.join)
    assert len(clients) == 8
    assert all(client is clients[0] for client in clients)


def test_the_client_needs_boto3(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = S3Backend("bucket", endpoint_url=stub.endpoint_url, create=True)
    backend.put("a", b"1")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtraError, match="boto3 is not installed"):
        backend.client
    backend.put("a", b"2")
