"""The transport under the S3 backend: signatures, odd and broken answers, TLS, proxies, redirects."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from perdure.errors import BackendError, NotFoundError, PreconditionError, UnavailableError, UnknownOutcomeError, UsageError
from perdure.protocol import ABSENT
from perdure.testing import servers
from perdure.testing.servers import S3Server
from perdure_backends import _s3_client
from perdure_backends._s3_http import LostAnswerError, NotSentError, Pool, Reply, Route
from perdure_backends._s3_sign import Credentials, sign
from perdure_backends.s3 import S3Backend

pytest.importorskip("botocore")

GOOD = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 5\r\n\r\nhello'


class Scripted:
    """A server that sends prepared bytes, whatever is asked; `None` hangs up without an answer."""

    def __init__(self, answers: list[bytes | None], tls: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while head := b"".join(iter(lambda: stream.readline().strip(b"\r\n"), b"")):
                    self.requests.append(head)
                    if b"content-length: " in head and head.startswith(b"PUT"):
                        stream.read(int(head.split(b"content-length: ")[1].split(b"u")[0]))
                    answer = self.answers.pop(0) if self.answers else None
                    if answer is None:
                        return
                    connection.sendall(answer)
                    if b"Connection: close" in answer or b"HTTP/1.0" in answer or b"Content-Length: 99" in answer:
                        return
        except OSError:
            return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def make(*answers: bytes | None, tls: ssl.SSLContext | None = None) -> Scripted:
        servers.append(Scripted(list(answers), tls))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with S3Server("none", "", "ak", "sk").environment():
        yield


@pytest.fixture
def stub_url() -> Iterator[str]:
    with servers.stub() as server:
        yield server.endpoint_url


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_s3_client, "_pause", lambda seconds: None)


def ask(server: Scripted, method: str = "GET", body: bytes = b"", timeout: float = 5.0, pool: Pool | None = None) -> Reply:
    pool = pool or Pool(Route("127.0.0.1", server.port, None, None), timeout, 4)
    return pool.request(method, "/x", [("host", "h")], body, time.monotonic() + timeout)


# ------------------------------------------------------------------------------------------------------------ signatures


@pytest.mark.parametrize("token", [None, "session/token+="])
@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "body"),
    [
        ("GET", "/bucket/a/b", "", {}, b""),
        ("PUT", "/bucket/a%20b/%28x%29~.pkl", "", {"if-none-match": "*", "x-amz-meta-perdure-writers": "ab-cd.ef-gh"}, b"data"),
        ("GET", "/", "continuation-token=a%2Fb%3D&encoding-type=url&list-type=2&max-keys=1000&prefix=p%2F", {}, b""),
        ("PUT", "/k", "", {"if-match": '"abc"', "content-type": "application/octet-stream"}, bytes(range(256)) * 50),
    ],
)
def test_signatures_are_those_of_botocore(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str, query: str, headers: dict[str, str], body: bytes, token: str | None
) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as TheirCredentials

    headers = {"host": "bucket.example.com", **headers}
    ours = dict(sign(method, path, query, headers, body, Credentials("AKID", "sécret/+", token), "eu-west-1"))
    url = f"http://bucket.example.com{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method=method, url=url, headers={k: v for k, v in headers.items() if k != "host"}, data=body)
    request.context["payload_signing_enabled"] = True
    moment = datetime.datetime.strptime(ours["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: moment.replace(tzinfo=None), raising=False)
    signer = S3SigV4Auth(TheirCredentials("AKID", "sécret/+", token), "s3", "eu-west-1")
    signer.add_auth(request)
    if request.headers["X-Amz-Date"] != ours["x-amz-date"]:
        pytest.skip("the second changed in between, and this botocore takes its clock elsewhere")
    assert ours["authorization"] == request.headers["Authorization"]


# --------------------------------------------------------------------------------------------------------------- answers


def test_a_whole_answer(scripted: Any) -> None:
    reply = ask(scripted(GOOD))
    assert (reply.status, reply.body, reply.headers["etag"]) == (200, b"hello", '"e"')


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Wait\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_every_way_to_send_a_body(scripted: Any, answer: bytes) -> None:
    assert ask(scripted(answer)).body == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5368709121\r\n\r\nhello",
        b"HTTP/1.1 404 No\r\nContent-Length: 99999999\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n13FFFFFFFC\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nhel\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",  # one cut short would look the same
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    ],
)
def test_an_answer_that_is_not_whole_is_none(scripted: Any, answer: bytes | None) -> None:
    with pytest.raises(LostAnswerError):
        ask(scripted(answer), timeout=0.5)


def test_a_put_is_done_when_the_headers_say_so(scripted: Any) -> None:
    server = scripted(b'HTTP/1.1 200 OK\r\nETag: "e"\r\n\r\n', GOOD)  # no length, and the connection stays open
    pool = Pool(Route("127.0.0.1", server.port, None, None), 5, 4)
    assert ask(server, "PUT", b"data", pool=pool).headers["etag"] == '"e"'
    assert ask(server, pool=pool).body == b"hello"
    assert server.connections == 2


def test_nobody_listens(scripted: Any) -> None:
    server = scripted()
    server.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server.port = taken.getsockname()[1]
        with pytest.raises(NotSentError) as caught:
            ask(server)
    assert isinstance(caught.value.__cause__, OSError)


def test_connections_are_reused_until_the_server_hangs_up(scripted: Any) -> None:
    server = scripted(GOOD, GOOD, GOOD.replace(b"ETag", b"Connection: close\r\nETag"), GOOD)
    pool = Pool(Route("127.0.0.1", server.port, None, None), 5, 4)
    for _ in range(4):
        assert ask(server, pool=pool).body == b"hello"
    assert server.connections == 2


def test_a_connection_the_server_closed_while_idle_is_not_used_again(scripted: Any) -> None:
    server = scripted(GOOD, GOOD)
    pool = Pool(Route("127.0.0.1", server.port, None, None), 5, 4)
    ask(server, pool=pool)
    (idle,) = pool._idle
    idle._sock.shutdown(socket.SHUT_WR)  # the server sees the end, and closes its side
    assert idle._readable(5)
    assert ask(server, pool=pool).body == b"hello"
    assert server.connections == 2


def test_a_dead_connection_takes_the_idle_ones_with_it() -> None:
    """A server that vanished leaves many connections that look alive; trying one after the other would use up all attempts."""
    alive = threading.Event()
    accepted: list[socket.socket] = []
    together = threading.Barrier(12, timeout=20)

    def serve(connection: socket.socket, old: bool) -> None:
        with connection:
            while connection.recv(65536):
                if old and alive.is_set():
                    return  # as after a fail-over: whoever has the address now knows nothing of this connection
                if old:
                    together.wait()
                connection.sendall(GOOD)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return
                threading.Thread(target=serve, args=(accepted[-1], not alive.is_set()), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        backend = S3Backend("bucket", endpoint_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert len(backend.get_many(f"k{number}" for number in range(12))) == 12
        alive.set()
        before = len(accepted)
        assert backend.get("a").data == b"hello"
        assert len(accepted) == before + 1
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_hangs_up_after_each_answer_without_saying_so_is_found_out(stub_url: str) -> None:
    """Each request on such a connection may be lost, and of a write nobody could tell: after the first, none is reused."""
    target = urlsplit(stub_url)

    def serve(connection: socket.socket) -> None:
        with connection, socket.create_connection((target.hostname, target.port)) as server:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := connection.recv(65536)):
                    return
                head += data
            server.sendall(head)
            connection.sendall(server.recv(65536))
            connection.recv(1, socket.MSG_PEEK)  # late enough for the next request to be on its way
            connection.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        backend = S3Backend("bucket", uuid.uuid4().hex, endpoint_url=url, create=True)
        etag = backend.put("a", b"0", if_match=ABSENT)
        unknown = 0
        for number in range(100):
            try:
                with pytest.raises(PreconditionError):
                    backend.put("a", b"x", if_match=ABSENT)
            except UnknownOutcomeError:
                unknown += 1
            etag = backend.put("a", b"%d" % number, if_match=etag)
        assert backend.get("a").data == b"99"
        assert unknown <= 1  # the one by which it was found out
        listener.shutdown(socket.SHUT_RDWR)


def test_bytes_nobody_asked_for_end_a_connection(scripted: Any) -> None:
    server = scripted(GOOD + GOOD.replace(b"hello", b"other"), GOOD)
    pool = Pool(Route("127.0.0.1", server.port, None, None), 5, 4)
    assert ask(server, pool=pool).body == b"hello"
    assert ask(server, pool=pool).body == b"hello"
    assert server.connections == 2


def test_a_refusal_before_the_whole_body_was_read_is_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                pass
            connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        pool = Pool(Route("127.0.0.1", listener.getsockname()[1], None, None), 5, 4)
        reply = pool.request("PUT", "/x", [("host", "h")], b"x" * 8_000_000, time.monotonic() + 10)
        assert reply.status == 412
        assert not pool._idle


def test_an_answer_that_trickles_in_for_ever_is_given_up_at_the_deadline() -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not over.wait(0.01):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        pool = Pool(Route("127.0.0.1", listener.getsockname()[1], None, None), 5, 4)
        with pytest.raises(LostAnswerError, match="time"):
            pool.request("GET", "/x", [("host", "h")], b"", time.monotonic() + 0.3)
        over.set()


# ---------------------------------------------------------------------------------------------- TLS, proxies, credentials


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x509 = pytest.importorskip("cryptography.x509")
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_certificates_are_checked(scripted: Any, tls: ssl.SSLContext, no_pauses: None) -> None:
    server = scripted(GOOD, tls=tls)
    with pytest.raises(BackendError, match="ca_bundle") as caught:
        S3Backend("bucket", endpoint_url=server.url).get("a")
    assert isinstance(caught.value.__cause__, NotSentError)
    assert server.requests == []


def test_a_named_authority_is_trusted(
    scripted: Any, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted(GOOD, GOOD, tls=tls)
    backend = S3Backend("bucket", endpoint_url=server.url, ca_bundle=str(certificate))
    assert [backend.get("a").data for _ in range(2)] == [b"hello"] * 2
    assert server.connections == 1
    server = scripted(GOOD, tls=tls)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert S3Backend("bucket", endpoint_url=server.url).get("a").data == b"hello"
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert S3Backend("bucket", endpoint_url=scripted(GOOD, tls=tls).url).get("a").data == b"hello"
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with pytest.raises(UsageError, match=r"nowhere\.pem"):
        S3Backend("bucket", endpoint_url=server.url).get("a")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))  # as botocore does
    assert S3Backend("bucket", endpoint_url=scripted(GOOD, tls=tls).url).get("a").data == b"hello"


def test_a_missing_bundle_of_authorities_is_named() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.pem.* Check ca_bundle=, AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE\."):
        S3Backend("bucket", endpoint_url="https://127.0.0.1:1", ca_bundle="/nowhere.pem").get("a")


def test_plain_requests_go_through_the_proxy(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = scripted(GOOD)
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
    assert S3Backend("bucket", endpoint_url="http://s3.example.com:81").get("a").data == b"hello"
    assert proxy.requests[0].startswith(b"GET http://s3.example.com:81/bucket/a HTTP/1.1")
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==" in proxy.requests[0]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    direct = scripted(GOOD)
    assert S3Backend("bucket", endpoint_url=direct.url).get("a").data == b"hello"
    assert direct.requests[0].startswith(b"GET /bucket/a HTTP/1.1")


def test_secure_requests_tunnel_through_the_proxy(
    scripted: Any, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = scripted(GOOD, tls=tls)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked: list[bytes] = []

        def pump(source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    sink.sendall(data)
            except OSError:
                pass

        def tunnel() -> None:
            inner, _ = listener.accept()
            asked.append(inner.recv(65536))
            inner.sendall(b"HTTP/1.1 200 Go\r\n\r\n")
            outer = socket.create_connection(("127.0.0.1", target.port))
            threading.Thread(target=pump, args=(outer, inner), daemon=True).start()
            pump(inner, outer)

        threading.Thread(target=tunnel, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        backend = S3Backend("bucket", endpoint_url=target.url, ca_bundle=str(certificate))
        assert backend.get("a").data == b"hello"
        assert asked[0].startswith(f"CONNECT 127.0.0.1:{target.port} HTTP/1.1".encode())
        backend.close()


def test_a_proxy_that_refuses_means_nothing_was_sent(scripted: Any, monkeypatch: pytest.MonkeyPatch, no_pauses: None) -> None:
    proxy = scripted(*[b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"] * 8)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(
        UnavailableError, match=rf"s3\..* through the proxy 127\.0\.0\.1:{proxy.port}: .*403 to CONNECT.* NO_PROXY"
    ):
        S3Backend("bucket", endpoint_url="https://s3.example.com").put("a", b"")


def test_a_proxy_that_fails_is_named_without_its_password(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    proxy = scripted(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
    backend = S3Backend("bucket", endpoint_url="http://s3.example.com", attempts=2)
    for says in ("refuses: 407. Write HTTP_PROXY", "did not arrive"):
        with pytest.raises(
            BackendError, match=rf"s3\.example\.com through the proxy 127\.0\.0\.1:{proxy.port} {says}"
        ) as caught:
            backend.get("a")
        assert "secret" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "127.0.0.1:1")
    with pytest.raises(
        UnavailableError, match=r"no connection to s3\.example\.com through the proxy 127\.0\.0\.1:1: .* NO_PROXY"
    ):
        S3Backend("bucket", endpoint_url="http://s3.example.com", attempts=2).get("a")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://127.0.0.1:no", "http://"])
def test_an_unusable_proxy_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UsageError, match="only HTTP proxies"):
        S3Backend("bucket", endpoint_url="https://s3.example.com").get("a")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BackendError, match=r"no credentials .*aws configure"):
        S3Backend("bucket").get("a")


def test_an_unknown_profile() -> None:
    with pytest.raises(UsageError, match="nobody"):
        S3Backend("bucket", profile="nobody").get("a")


def test_temporary_credentials_send_their_token(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-token")
    server = scripted(GOOD)
    S3Backend("bucket", endpoint_url=server.url).get("a")
    assert b"x-amz-security-token: the-token" in server.requests[0]
    assert b"x-amz-security-token" in server.requests[0].split(b"SignedHeaders=")[1]


def test_expired_credentials_are_read_anew_once(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expired = b"<Error><Code>ExpiredToken</Code></Error>"
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(expired), expired)
    server = scripted(GOOD, answer, GOOD, answer, answer)
    backend = S3Backend("bucket", endpoint_url=server.url)
    backend.get("a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    assert backend.get("a").data == b"hello"
    assert [b"Credential=renewed/" in request for request in server.requests] == [False, False, True]
    with pytest.raises(BackendError, match=r"ExpiredToken.* log in again"):
        backend.get("a")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("text", ["ak\n", "ak\r\nX-Evil: 1", "ключ"])
def test_credentials_that_do_not_fit_into_a_header(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    server = scripted(GOOD)
    with pytest.raises(BackendError, match=r"(access key id|session token) holds a line end") as caught:
        S3Backend("bucket", endpoint_url=server.url).get("a")
    assert text not in str(caught.value)
    assert server.requests == []


def test_credentials_that_cannot_be_renewed(scripted: Any) -> None:
    from botocore.credentials import RefreshableCredentials
    from botocore.exceptions import ClientError
    from botocore.session import Session

    over = datetime.datetime.now(datetime.UTC)
    metadata = {"access_key": "a", "secret_key": "b", "token": "c", "expiry_time": over.isoformat()}

    def denied() -> dict[str, str]:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not you"}}, "AssumeRole")

    for refresh, says in ((denied, "not you"), (lambda: metadata, "expired")):
        session = Session()
        session._credentials = RefreshableCredentials("a", "b", "c", over, refresh, "test")
        with pytest.raises(BackendError, match=says):
            S3Backend("bucket", endpoint_url=scripted(GOOD).url, session=session).get("a")
        soon = over + datetime.timedelta(hours=2)
        session._credentials = RefreshableCredentials("a", "b", "c", soon, refresh, "test")
        backend = S3Backend("bucket", endpoint_url=scripted(GOOD, GOOD).url, session=session)
        backend.get("a")
        session._credentials._expiry_time = over
        with pytest.raises(BackendError, match=says):
            backend.get("a")


# ------------------------------------------------------------------------------------------------- regions and addresses


def test_the_bucket_is_in_another_region(scripted: Any) -> None:
    said = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"
    server = scripted(
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said),
        GOOD,
        b"HTTP/1.1 301 Moved\r\nx-amz-bucket-region: ap-south-1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    )
    backend = S3Backend("bucket", endpoint_url=server.url)
    assert backend.get("a").data == b"hello"
    backend.delete("a")
    backend.delete("a")
    regions = [request.split(b"Credential=ak/")[1].split(b"/")[1] for request in server.requests]
    assert regions == [b"us-east-1", b"eu-central-1", b"eu-central-1", b"ap-south-1", b"ap-south-1"]


def test_a_redirect_is_followed_once_and_only_to_a_region(scripted: Any) -> None:
    away = b"HTTP/1.1 307 Go\r\nLocation: http://evil.example.com/\r\nx-amz-bucket-region: %b\r\nContent-Length: 0\r\n\r\n"
    for region in (b"x.evil.example.com/", b"us-east-1"):
        with pytest.raises(BackendError, match="another region"):
            S3Backend("bucket", endpoint_url=scripted(away % region).url).get("a")
    server = scripted(away % b"eu-west-1", away % b"eu-west-2", away % b"eu-west-3")
    with pytest.raises(BackendError, match="another region"):
        S3Backend("bucket", endpoint_url=server.url).get("a")
    assert len(server.requests) == 2


def test_a_server_that_wants_https(scripted: Any) -> None:
    moved = b"HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1/bucket/a\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(BackendError, match="begin endpoint_url with https://"):
        S3Backend("bucket", endpoint_url=scripted(moved).url).get("a")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6_and_a_path_with_oddities() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    asked = []

    def serve() -> None:
        connection, _ = listener.accept()
        asked.append(connection.recv(65536))
        connection.sendall(GOOD)

    with listener:
        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        assert S3Backend("bucket", "p q", endpoint_url=f"http://[::1]:{port}/a b/é/").get("x=(1)~.y").data == b"hello"
    first, *headers = asked[0].split(b"\r\n")
    assert first == b"GET /a%20b/%C3%A9/bucket/p%20q/x%3D%281%29~.y HTTP/1.1"
    assert b"host: [::1]:%d" % port in headers


@pytest.mark.parametrize(
    ("options", "host", "path", "region", "is_aws"),
    [
        ({"region": "eu-west-1"}, "bucket.s3.eu-west-1.amazonaws.com", "", "eu-west-1", True),
        ({"bucket": "dotted.bucket", "region": "eu-west-1"}, "s3.eu-west-1.amazonaws.com", "/dotted.bucket", "eu-west-1", True),
        ({"endpoint_url": "https://minio.example.com"}, "minio.example.com", "/bucket", "us-east-1", False),
        ({"endpoint_url": "http://10.0.0.1:9000/base/"}, "10.0.0.1:9000", "/base/bucket", "us-east-1", False),
    ],
)
def test_addresses(options: dict[str, str], host: str, path: str, region: str, is_aws: bool) -> None:
    account = S3Backend(**{"bucket": "bucket", **options})._client.account
    assert (account.host, account.path, account.region, account.is_aws) == (host, path, region, is_aws)
    assert (account.route.tls is None) == options.get("endpoint_url", "").startswith("http:")


def test_the_endpoint_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:99")
    account = S3Backend("bucket")._client.account
    assert (account.host, account.path, account.is_aws) == ("127.0.0.1:99", "/bucket", False)


# ------------------------------------------------------------------------------------------------------- what S3 answers


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", BackendError, "no ETag"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", BackendError, "credentials are wrong"),
        (b"HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n", BackendError, "cannot do this"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 39\r\n\r\n<Error><Code>NoSuchKey</Code></Error>  ", NotFoundError, "not found"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 40\r\n\r\n<Error><Code>NoSuchBucket</Code></Error>", BackendError, "create=True"),
    ],
)
def test_refusals(scripted: Any, answer: bytes, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        S3Backend("bucket", endpoint_url=scripted(answer).url).get("some/key")
    assert type(caught.value) is kind
    assert "some/key" in str(caught.value)


HTML = b"Content-Type: text/html\r\nContent-Length: 19\r\n\r\n<html>Hello!</html>"


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"502 Bad Gateway", b"403 Forbidden", b"302 Found"])
def test_pages_for_people_are_no_answers(scripted: Any, no_pauses: None, status: bytes) -> None:
    page = b"HTTP/1.1 " + status + b"\r\n" + HTML
    known = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"  # the bucket is there, until a box on the way breaks
    for call in (
        lambda backend: backend.get("a"),
        lambda backend: backend.put("a", b"1"),
        lambda backend: backend.delete("a"),
        lambda backend: list(backend.keys()),
    ):
        backend = S3Backend("bucket", endpoint_url=scripted(known, *[page] * 20).url)
        backend._client.require_bucket()
        with pytest.raises(BackendError):  # neither done nor absent
            call(backend)


def test_a_page_of_a_box_that_just_restarts_is_waited_out(scripted: Any, no_pauses: None) -> None:
    page = b"HTTP/1.1 404 Not Found\r\n" + HTML
    server = scripted(GOOD, page, page, GOOD)
    backend = S3Backend("bucket", endpoint_url=server.url)
    backend.get("a")
    assert backend.get("a").data == b"hello"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"412 Precondition Failed"])
def test_an_answer_to_another_question_is_refused(scripted: Any, status: bytes) -> None:
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(BackendError, match="refuses"):
        S3Backend("bucket", endpoint_url=scripted(answer).url).get("a")
    if not status.startswith(b"204"):
        known = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        with pytest.raises(BackendError, match="refuses"):
            S3Backend("bucket", endpoint_url=scripted(known, answer).url).delete("a")


@pytest.mark.parametrize(
    "header",
    [b"Content-Length: five", b"Content-Length: " + b"9" * 5000, b"Last-Modified: Sun, 06 Nov %s 08:49:37 GMT" % (b"9" * 30)],
)
def test_nonsense_in_headers_does_not_cross_the_seam(scripted: Any, header: bytes) -> None:
    answer = b'HTTP/1.1 200 OK\r\nETag: "e"\r\n' + header + b"\r\n\r\n"
    backend = S3Backend("bucket", endpoint_url=scripted(answer).url, attempts=1)
    if header.startswith(b"Last"):
        assert backend.head("a").modified == 0.0
    else:
        with pytest.raises(BackendError, match="size"):
            backend.head("a")


def test_the_clock_is_wrong_and_the_answer_has_no_body(scripted: Any) -> None:
    server = scripted(b"HTTP/1.1 403 No\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n")
    with pytest.raises(BackendError, match=r"403\. The clock"):
        S3Backend("bucket", endpoint_url=server.url).contains("a")
    now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT").encode()
    with pytest.raises(BackendError, match="credentials are wrong"):
        S3Backend("bucket", endpoint_url=scripted(b"HTTP/1.1 403 No\r\nDate: " + now + b"\r\n\r\n").url).contains("a")


def test_the_clock_is_wrong(scripted: Any) -> None:
    said = b"<Error><Code>RequestTimeTooSkewed</Code><Message>a &lt;b&gt;.</Message></Error>"
    server = scripted(b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
    with pytest.raises(BackendError, match=r"RequestTimeTooSkewed: a <b>\. The clock"):
        S3Backend("bucket", endpoint_url=server.url).get("a")


ENTRY = b'<Contents><Key>a</Key><LastModified>x</LastModified><ETag>"e"</ETag><Size>%b</Size></Contents>'


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Log in</html>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents>",
        b"",
        b"<ListBucketResult>" + ENTRY % b"1",  # its end is missing, and with it, perhaps, other keys
        b"<ListBucketResult>" + ENTRY % (b"9" * 5000) + b"</ListBucketResult>",
    ],
)
def test_what_is_not_a_listing(scripted: Any, answer: bytes) -> None:
    server = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
    with pytest.raises(BackendError, match="listing"):
        list(S3Backend("bucket", endpoint_url=server.url).scan())


@pytest.mark.parametrize(
    ("token", "says"),
    [(b"", "cut its listing short"), (b"<NextContinuationToken>x</NextContinuationToken>", "round in circles")],
)
def test_a_listing_that_does_not_go_on_is_not_taken_for_whole(scripted: Any, token: bytes, says: str) -> None:
    page = b"<ListBucketResult>%b<IsTruncated>true</IsTruncated></ListBucketResult>" % token
    server = scripted(*[b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page)] * 3)
    with pytest.raises(BackendError, match=says):
        list(S3Backend("bucket", endpoint_url=server.url).keys())


def test_a_listing_with_every_oddity(scripted: Any) -> None:
    page = b"""<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>
    <IsTruncated>false</IsTruncated><Contents><ETag>W/&#34;e1&#34;</ETag><Key>p/%28a%29</Key><Size>1</Size>
    <Owner><ID>Key</ID></Owner><LastModified>2026-01-31T12:00:00.500Z</LastModified></Contents>
    <Contents><Key>p/dir/</Key><LastModified>x</LastModified><ETag>"e"</ETag><Size>0</Size></Contents>
    <Contents><Key>p/a%20b</Key><LastModified>x</LastModified><ETag>"e"</ETag><Size>0</Size></Contents>
    <Contents><Key>p/../b</Key><LastModified>x</LastModified><ETag>"e"</ETag><Size>0</Size></Contents>
    <Contents><Key>p/b</Key><LastModified>x</LastModified><ETag>e2</ETag><Size>0</Size></Contents></ListBucketResult>"""
    server = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))
    moment = datetime.datetime(2026, 1, 31, 12, 0, 0, 500_000, datetime.UTC).timestamp()
    assert list(S3Backend("bucket", "p", endpoint_url=server.url).scan()) == [("(a)", '"e1"', 1, moment), ("b", '"e2"', 0, 0.0)]


def test_no_time_limits(scripted: Any) -> None:
    server = scripted(GOOD)
    assert S3Backend("bucket", endpoint_url=server.url, timeout=float("inf"), deadline=float("inf")).get("a").data == b"hello"


def test_threads_do_not_wait_for_a_dead_server_one_after_the_other() -> None:
    """Each has its deadline; they do not add up under the lock that lets one only ask for the bucket."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:  # and say nothing
            while True:
                try:
                    asked.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        backend = S3Backend("bucket", endpoint_url=url, timeout=0.5, deadline=0.5, attempts=1)
        assert backend._client.account  # imports are done with
        failed: list[str] = []

        def put(number: int) -> None:
            try:
                backend.put(f"k{number}", b"")
            except UnavailableError as error:
                failed.append(str(error))

        threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 16
        assert all("k" in text and "Try again later" in text for text in failed)
        assert len(asked) <= 8  # not 16, each after the other
        listener.shutdown(socket.SHUT_RDWR)


def test_no_server_is_reported_as_nothing_sent(no_pauses: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        backend = S3Backend("bucket", endpoint_url=f"http://127.0.0.1:{taken.getsockname()[1]}", attempts=3)
        for call in (lambda: backend.get("a"), lambda: backend.put("a", b""), lambda: backend.delete("a")):
            with pytest.raises(UnavailableError, match=r"no connection .*3 attempts") as caught:
                call()
            assert not isinstance(caught.value, UnknownOutcomeError)
            assert isinstance(caught.value.__cause__, NotSentError)


def test_importing_the_module_is_cheap() -> None:
    code = "import perdure_backends.s3, sys; print(*(name for name in ('botocore', 'boto3', 'urllib3') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == ""


@contextmanager
def without(*modules: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
            patch.delitem(sys.modules, name)
        for name in modules:
            patch.setitem(sys.modules, name, None)
        yield


def test_the_missing_dependency_is_named() -> None:
    with without("botocore"), pytest.raises(ImportError, match=r"pip install 'perdure\[s3\]'"):
        S3Backend("bucket").get("a")
