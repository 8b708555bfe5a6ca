"""Answers that no good server gives: each must end in a clear error, and never in keys left out, made up or counted twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from perdure.errors import BackendError, UnavailableError, UnknownOutcomeError
from perdure.protocol import ABSENT
from perdure.testing.servers import S3Server
from perdure_backends import _s3_client
from perdure_backends.s3 import S3Backend

pytest.importorskip("botocore")


class Asked(NamedTuple):
    """A request as it arrived; names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Told(NamedTuple):
    """What to answer; an empty header is left out."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012  # nobody changes it


@contextmanager
def server(answer: Callable[[Asked], Told]) -> Iterator[tuple[str, list[Asked]]]:
    """Serve on localhost; give the URL, and the list in which requests will appear."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked.append(Asked(self.command, self.path, headers, self.rfile.read(int(headers.get("content-length", "0")))))
            told = answer(asked[-1])
            self.send_response(told.status)
            for name, value in {"content-length": str(len(told.body)), **told.headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(told.body)

        do_GET = do_HEAD = do_PUT = do_DELETE = do_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 100

    with Server(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", asked
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with S3Server("none", "", "ak", "sk").environment():
        yield


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_s3_client, "_pause", lambda seconds: None)


# --------------------------------------------------------------------------------------------------------------- listings

ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag><Size>1</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
)


def page(*names: str, more: str = "") -> str:
    entries = "".join(ENTRY.format(name) for name in names)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<KeyCount>{len(names)}</KeyCount><EncodingType>url</EncodingType>{entries}"
        f"{more or '<IsTruncated>false</IsTruncated>'}</ListBucketResult>"
    )


def names_in(*texts: str, prefix: str = "p") -> list[str]:
    """What we take these pages for, the last one being repeated for ever."""
    left = list(texts)
    with server(lambda asked: Told(body=(left.pop(0) if len(left) > 1 else left[0]).encode())) as (url, _):
        metas = list(S3Backend("bucket", prefix, endpoint_url=url).scan())
    assert all(meta.etag == '"e"' and meta.size == 1 and meta.modified == 1767225600.0 for meta in metas)
    return [meta.key for meta in metas]


@pytest.mark.parametrize(
    "change",
    [
        ("<Contents>", '<Contents xmlns="">'),
        ("<Contents>", "<Contents >"),
        ("<Contents><Key>p/b", "<Contents x='1'><Key>p/b"),  # one of three
        ("<Contents><Key>p/b", "<Contents\n><Key>p/b"),
        ("<Key>", '<Key xml:space="preserve">'),
        ("p/b<", "<![CDATA[p/b]]><"),
        ("</Contents><Contents>", "</Contents>\n\n <Contents>"),
        ("</Contents><Contents>", "</Contents><Owner/><Contents>"),
        ("<IsTruncated>", "<IsTruncated a='b'>"),
        ("<ListBucketResult", f"<!--{'x' * 2000}--><ListBucketResult"),
        ("p/c", "p%2Fc"),
    ],
)
def test_entries_are_found_however_they_are_spelled(change: tuple[str, str]) -> None:
    text = page("p/a", "p/b", "p/c").replace(*change)
    assert text != page("p/a", "p/b", "p/c")
    assert names_in(text) == ["a", "b", "c"]


def test_a_listing_with_a_namespace_prefix() -> None:
    text = page("p/a", "p/Contents").replace("</", "</s3:").replace("<", "<s3:").replace("<s3:/s3:", "</s3:")
    text = text.replace("<s3:?", "<?").replace("xmlns=", "xmlns:s3=")
    assert "<s3:Contents><s3:Key>p/a</s3:Key>" in text
    assert names_in(text) == ["a", "Contents"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("<KeyCount>2", "<KeyCount>3"), "announces 3 objects and names 2"),
        (("<Contents><Key>p/b", "<Content><Key>p/b"), "cannot be understood"),
        (("<Contents><Key>p/b</Key>", "<Contents>"), "cannot be understood: KeyError"),
        (("</Contents><Contents>", "</Contents><Contents/><Contents>"), "cannot be understood: KeyError"),
        (("</ListBucketResult>", ""), "cannot be understood"),
        (("</Contents>", "</Contents"), "cannot be understood"),
        (("<ListBucketResult", "<!DOCTYPE x [<!ENTITY e 'eeee'>]><ListBucketResult"), "document type"),
    ],
)
def test_a_listing_that_does_not_add_up_is_refused(change: tuple[str, str], says: str) -> None:
    with pytest.raises(BackendError, match=says) as caught:
        names_in(page("p/a", "p/b").replace(*change))
    assert "in s3://bucket/p?endpoint_url=" in str(caught.value)


@pytest.mark.parametrize("foreign", ["other/unrelated", "q", "P/a", "p"])
def test_a_server_that_ignores_the_prefix_is_refused(foreign: str) -> None:
    with pytest.raises(BackendError, match=rf"lists '{foreign}': it ignores `prefix`"):
        names_in(page("p/a", foreign))
    with server(lambda asked: Told(body=page("p/ab/c", "p/b/c").encode())) as (url, _), pytest.raises(BackendError):
        list(S3Backend("bucket", "p", endpoint_url=url).keys("ab/"))


@pytest.mark.parametrize("space", ["+", "%20", " "])
def test_a_prefix_with_a_space_however_it_is_encoded(space: str) -> None:
    assert names_in(page(f"my{space}team/a"), prefix="my team") == ["a"]


def cut(token: str) -> str:
    return f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"


def test_a_listing_that_goes_round_in_circles_is_ended() -> None:
    first, second = page("p/a", more=cut("A")), page("p/b", more=cut("B"))
    for circle in (
        [first, second, page("p/c", more=cut("A"))],  # tokens
        [first, second, page("p/a", more=cut("C"))],  # ever new tokens, but the same keys
        [page(more=cut("A")), page(more=cut("B")), page(more=cut("A"))],
    ):
        with pytest.raises(BackendError, match="round in circles"):
            names_in(*circle)


def test_pages_may_be_empty_and_need_not_say_that_they_are_cut() -> None:
    token = "<NextContinuationToken>B&amp;1</NextContinuationToken>"
    assert names_in(page(more=cut("A")), page("p/a", more=token), page("p/b")) == ["a", "b"]


# ----------------------------------------------------------------------------------------------------------------- writes

FAILED = b'<?xml version="1.0"?>\n<Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>'


@pytest.mark.parametrize("etag", [{"etag": '"e"'}, {}])
@pytest.mark.parametrize(
    "coding", [{"content-length": f"{len(FAILED)}"}, {"transfer-encoding": "chunked"}, {"connection": "close"}]
)
def test_a_200_that_tells_of_an_error_is_no_success(no_pauses: None, etag: dict[str, str], coding: dict[str, str]) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(FAILED), FAILED) if "transfer-encoding" in coding else FAILED

    def answer(asked: Asked) -> Told:
        if asked.method == "HEAD" and asked.target != "/bucket":
            return Told(404)
        return (
            Told(body=body, headers={"content-length": "", **etag, **coding}) if asked.method in ("PUT", "DELETE") else Told()
        )

    with server(answer) as (url, _):
        backend = S3Backend("bucket", endpoint_url=url, attempts=3)
        backend._can_swap = True
        for call in (
            lambda: backend.put("a", b"1"),
            lambda: backend.put("a", b"1", if_match=ABSENT),
            lambda: backend.delete("a"),
        ):
            with pytest.raises(UnknownOutcomeError, match=r"answered 200 InternalError, but not as S3 does \(3 attempts\)"):
                call()


def test_a_write_goes_on_after_a_200_that_told_of_an_error(no_pauses: None) -> None:
    told = [Told(body=FAILED, headers={"etag": '"e"'}), Told(headers={"etag": '"e"'})]
    with server(lambda asked: told.pop(0) if asked.method == "PUT" else Told(200 if asked.target == "/bucket" else 404)) as (
        url,
        asked,
    ):
        assert S3Backend("bucket", endpoint_url=url).put("a", b"1") == '"e"'
    assert [request.method for request in asked] == ["HEAD", "PUT", "HEAD", "PUT"]


@pytest.mark.parametrize("value", [b"", b"1"])
def test_a_value_says_that_it_is_bytes(value: bytes) -> None:
    """Some servers refuse a PUT without a type, others when it is not signed."""

    def picky(asked: Asked) -> Told:
        is_typed = asked.headers.get("content-type") == "application/octet-stream"
        if asked.method == "PUT" and not (is_typed and "=content-type;" in asked.headers["authorization"]):
            return Told(415)
        return Told(headers={"etag": '"e"'})

    with server(picky) as (url, asked):
        assert S3Backend("bucket", endpoint_url=url).put("a", value) == '"e"'
        assert [request.method for request in asked if "content-type" in request.headers] == ["PUT"]


# ------------------------------------------------------------------------------------------------------- a server that died


@pytest.mark.parametrize("what", ["bucket", "settings", "self-test"])
def test_many_keys_do_not_find_out_one_after_the_other_that_the_server_is_dead(what: str) -> None:
    """One asks for all, under a lock; those who wait for it fail with it, instead of asking in vain in their turn."""

    def answer(asked: Asked) -> Told:
        if what != "bucket" and asked.target == "/bucket":
            return Told()
        if what == "self-test" and "selftest" not in asked.target:
            return Told(404)
        return Told(503)

    with server(answer) as (url, asked):
        backend = S3Backend("bucket", endpoint_url=url, attempts=3, concurrency=16)
        if what == "settings":
            backend._record.pending = {"codec": "json"}
        failed: list[UnavailableError] = []
        all_there = threading.Barrier(16)

        def put(number: int) -> None:
            all_there.wait()
            try:
                backend.put(f"k{number}", b"1", if_match=ABSENT)
            except UnavailableError as error:
                failed.append(error)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone = len(asked)
        assert len(failed) == 16
        assert all("3 attempts" in str(error) and "Try again later" in str(error) for error in failed)
        assert alone <= 40  # of one or two; not 16 times three or more
        with pytest.raises(UnavailableError):  # it is asked again, of course
            backend.put("again", b"1", if_match=ABSENT)
        assert len(asked) >= alone + 3
