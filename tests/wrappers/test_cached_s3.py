"""What `Cached` costs where it is meant for: in requests to S3, and in bytes that they bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.errors import NotModified, UnavailableError
from perdure.protocol import ABSENT
from perdure.testing.proxy import Fault, FaultProxy
from perdure.testing.servers import S3Server
from perdure.wrappers import Cached, confirmed
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend

pytest.importorskip("botocore")
from perdure_backends.s3 import S3Backend

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture
def proxy(stub: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(stub.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def bucket(proxy: FaultProxy, tmp_path: Path) -> Iterator[Callable[..., S3Backend]]:
    opened: list[S3Backend] = []

    def open_bucket(name: str = "bucket", prefix: str = "", **options: object) -> S3Backend:
        backend = S3Backend(name, f"{tmp_path.name}/{prefix}", endpoint_url=proxy.endpoint_url, create=True, **options)  # type: ignore[arg-type]
        opened.append(backend)
        return backend

    yield open_bucket
    for backend in opened:
        backend.close()


@pytest.fixture
def copies(tmp_path: Path) -> FileBackend:
    return FileBackend(tmp_path / "copies", sync="normal")


def asked(proxy: FaultProxy) -> list[tuple[str, str | None]]:
    """Method and `If-None-Match` of the requests since the last time."""
    requests = list(proxy.requests)
    proxy.reset()
    return [(request.method, request.headers.get("if-none-match")) for request in requests]


def test_an_unchanged_value_costs_one_get_that_is_answered_304(
    bucket: Callable[..., S3Backend], copies: FileBackend, proxy: FaultProxy
) -> None:
    elsewhere = bucket()
    cached = Cached(bucket(), copies)
    etag = elsewhere.put("k", b"x" * 100_000)
    asked(proxy)
    assert cached.get("k").data == b"x" * 100_000
    assert asked(proxy) == [("GET", None)]
    before = (copies.head("k"), copies.path)
    for _ in range(3):
        assert cached.get("k") == (b"x" * 100_000, etag, elsewhere.head("k").modified)
        assert asked(proxy) == [("GET", etag), ("HEAD", None)]
        assert (copies.head("k"), copies.path) == before, "the local place was written to"
        with pytest.raises(NotModified):
            cached.get("k", if_none_match=etag)
        assert asked(proxy) == [("GET", etag)]
    # That these were answered 304: the answer's body would not have come through.
    proxy.plan = lambda request: Fault(cut=10) if request.method == "GET" else None
    assert cached.get("k").data == b"x" * 100_000
    proxy.plan = None
    new = elsewhere.put("k", b"new")
    asked(proxy)
    assert cached.get("k").data == b"new"
    assert asked(proxy) == [("GET", etag)]
    assert cached.get("k").data == b"new"
    assert asked(proxy) == [("GET", new)]


def test_writes_cost_what_they_cost_without_copies(
    bucket: Callable[..., S3Backend], copies: FileBackend, proxy: FaultProxy
) -> None:
    cached = Cached(bucket(), copies)
    etag = cached.put("k", b"1", if_match=ABSENT)  # and the self-test before it
    asked(proxy)
    etag = cached.put("k", b"2", if_match=etag)
    cached.put("k", b"3")
    assert cached.get("k").data == b"3"
    cached.delete("k")
    assert [method for method, _ in asked(proxy)] == ["PUT", "PUT", "GET", "DELETE"]


def test_append_only_costs_no_request_for_what_is_here(
    bucket: Callable[..., S3Backend], copies: FileBackend, proxy: FaultProxy
) -> None:
    cached = Cached(bucket(), copies, append_only=True)
    elsewhere = bucket()
    elsewhere.put_many({f"{n}": b"%d" % n for n in range(50)})
    cached.put("k", b"1", if_match=ABSENT)
    assert len(cached.get_many([f"{n}" for n in range(40)])) == 40
    asked(proxy)
    assert cached.get("k").data == b"1"
    assert cached.head("39").size == 2
    assert cached.contains("0")
    assert asked(proxy) == []
    assert len(cached.get_many([f"{n}" for n in range(50)])) == 50
    assert asked(proxy) == [("GET", None)] * 10


def test_a_chain_of_memory_and_folder_costs_no_request_until_it_has_to_be_checked(
    bucket: Callable[..., S3Backend], copies: FileBackend, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = 0.0
    monkeypatch.setattr(confirmed, "now", lambda: time)
    cached = Cached(Cached(bucket(), copies), MemoryBackend(), recheck=60, absent_for=10)
    elsewhere = bucket()
    etag = cached.put("k", b"1", if_match=ABSENT)
    assert not cached.contains("l")
    asked(proxy)
    for _ in range(3):
        assert cached.get("k")[:2] == (b"1", etag)
        assert cached.head("k").etag == etag
        assert cached.get_many(["k", "l"]).keys() == {"k"}
        assert not cached.contains("l")
    assert asked(proxy) == []
    elsewhere.put("k", b"2")
    elsewhere.put("l", b"3")
    asked(proxy)
    time = 60.0
    assert {key: blob.data for key, blob in cached.get_many(["k", "l"]).items()} == {"k": b"2", "l": b"3"}
    assert sorted(asked(proxy), key=repr) == [("GET", etag), ("GET", None)]
    assert cached.get("l").data == b"3"
    assert asked(proxy) == []


def test_many_unchanged_values_are_asked_about_at_the_same_time(
    bucket: Callable[..., S3Backend], copies: FileBackend, proxy: FaultProxy
) -> None:
    cached = Cached(bucket(), copies)
    etags = cached.put_many({f"{n}": b"%d" % n for n in range(20)})
    bucket().put("new", b"new")
    asked(proxy)
    assert len(cached.get_many([*etags, "new", "absent"])) == 21
    assert sorted(asked(proxy), key=repr) == sorted([("GET", etag) for etag in [*etags.values(), None, None]], key=repr)


def test_a_value_that_was_another_in_between_is_the_same_again(
    bucket: Callable[..., S3Backend], copies: FileBackend, proxy: FaultProxy
) -> None:
    """Equal bytes have equal ETags on S3, so an old copy of A is right when A is back, deleted in between or not."""
    cached, elsewhere = Cached(bucket(), copies), bucket()
    etag = cached.put("k", b"A")
    elsewhere.put("k", b"B")
    elsewhere.delete("k")
    assert elsewhere.put("k", b"A") == etag
    asked(proxy)
    assert cached.get("k")[:2] == (b"A", etag)
    assert asked(proxy) == [("GET", etag)]


@pytest.mark.parametrize("append_only", [False, True])
def test_buckets_and_prefixes_that_share_a_folder_stay_apart(
    bucket: Callable[..., S3Backend], copies: FileBackend, append_only: bool
) -> None:
    places = [("bucket", ""), ("bucket", "a"), ("bucket", "a/b"), ("bucket2", ""), ("bucket2", "a")]
    for name, prefix in places:
        bucket(name, prefix).put("k", f"{name} {prefix}".encode())
    for _ in range(2):
        for name, prefix in places:
            cached = Cached(bucket(name, prefix), copies, append_only=append_only)
            for _ in range(2):
                assert cached.get("k").data == f"{name} {prefix}".encode()


def test_a_copy_never_stands_in_for_a_bucket_that_does_not_answer(
    bucket: Callable[..., S3Backend], copies: FileBackend, proxy: FaultProxy
) -> None:
    cached = Cached(bucket(attempts=1), copies)
    cached.put_many({"k": b"1", "l": b"2"})
    proxy.plan = lambda request: Fault(answer_before=503)
    with pytest.raises(UnavailableError):
        cached.get("k")
    with pytest.raises(UnavailableError):
        cached.get_many(["k", "l"])
    with pytest.raises(UnavailableError):
        cached.contains("k")
    proxy.plan = None
    assert cached.get("k").data == b"1"
