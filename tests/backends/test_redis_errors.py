"""What a Redis server refuses becomes an error of ours that says what to do; no password ever stands in one."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import perdure
from perdure.errors import (
    BackendError,
    MissingExtraError,
    PerdureError,
    UnavailableError,
    UnknownOutcomeError,
    UsageError,
    UsageTypeError,
)
from perdure.protocol import ABSENT, ETag
from perdure.registry import open_backend
from perdure.testing import servers
from perdure.testing.servers import RedisServer

redis = pytest.importorskip("redis")
from perdure_backends.redis import RedisBackend, RedisTLSBackend  # noqa: E402

SECRET = "p@ss/w:rd?%2F #é"


@contextlib.contextmanager
def running(*options: str) -> Iterator[RedisServer]:
    try:
        with servers.redis("--databases", "4", *options) as server:
            yield server
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


# ---------------------------------------------------------------------------------------------------------------- the URL


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://example.org", "redis://example.org:6379/0"),
        ("redis://example.org/", "redis://example.org:6379/0"),
        ("redis://example.org:7000/3", "redis://example.org:7000/3"),
        ("redis://example.org:7000/3/", "redis://example.org:7000/3"),
        ("redis://example.org/3/team/app/", "redis://example.org:6379/3/team/app"),
        ("redis://[::1]:7000/0/app", "redis://[::1]:7000/0/app"),
        ("redis://[::1]", "redis://[::1]:6379/0"),
        ("redis://:secret@/0", "redis://localhost:6379/0"),
        ("redis://user:secret@example.org:7000/3/a:b", "redis://example.org:7000/3/a:b"),
        (f"redis://user:{quote(SECRET, safe='')}@example.org/3/app", "redis://example.org:6379/3/app"),
        ("rediss://user:secret@example.org/3/app?timeout=2.5", "rediss://example.org:6379/3/app"),
        ("REDIS://example.org/0/app?ttl=7%20d&attempts=2", "redis://example.org:6379/0/app"),
    ],
)
def test_a_url_names_a_place(url: str, place: str) -> None:
    with open_backend(url) as backend:
        assert backend.place == place
        assert type(backend) is (RedisTLSBackend if url.startswith("rediss") else RedisBackend)
        assert "secret" not in repr(backend)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis:example.org", "begins with redis://"),
        ("redis:user:secret@example.org", "begins with redis://"),
        ("rediss:/x", "begins with rediss://"),
        ("redis://example.org/app", "redis://example.org/0/app"),
        ("redis://example.org:port/0", "not a host and a port"),
        ("redis://:secret", "%3F for '?'"),
        ("redis://:secret?ttl=ss@example.org/0", "%3F for '?'"),
        ("redis://user:1?ttl=secret@example.org:6379/0", "%3F for '?'"),
        ("redis://user:12/0?ttl=secret@example.org/0", "%3F for '?'"),
        ("redis://user:p@user:secret?ttl=ss@example.org/0", "%3F for '?'"),
        ("redis://exam[ple.org/0", "not a host and a port"),
        ("redis://example.org:0/0", "port is a whole number"),
        ("redis://example.org:65536/0", "port is a whole number"),
        ("redis://user@example.org/0", "user and password"),
        ("redis://example.org:6379/0/a@b", "no '@'"),
        ("redis://example.org/0/a//b", "cannot stand in a prefix"),
        ("redis://example.org/0/../b", "cannot stand in a prefix"),
        ("redis://example.org/0/a%0Ab", "cannot stand in a prefix"),
        ("redis://example.org/0/a?ttl=7", "has no unit"),
        ("redis://example.org/0/a?ttl=0s", "between a millisecond"),
        ("redis://example.org/0/a?timeout=0", "timeout"),
        ("redis://example.org/0/a?attempts=0", "attempts"),
        ("redis://example.org/0/a?attempt=3", "Did you mean 'attempts'"),
        ("redis://example.org/0/a?ca_bundle=x", "rediss://"),
        ("redis://user:secret@example.org/0?password=secret", "password is given twice"),
    ],
)
def test_a_wrong_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_backend(url)
    assert said in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_wrong_arguments_are_refused() -> None:
    wrong: Any
    for wrong in ({"ttl": -1}, {"ttl": float("nan")}, {"ttl": 1e11}, {"port": "6379"}, {"db": -1}, {"timeout": "1"}):
        with pytest.raises(UsageError):
            RedisBackend(**wrong)
    for wrong in (
        *({"prefix": 5}, {"ttl": []}, {"host": None}, {"host": 5}, {"user": b"ada"}),
        *({"password": 5555}, {"password": b"5555"}, {"ca_bundle": 5}),
    ):
        with pytest.raises(UsageTypeError) as caught:
            RedisBackend(**wrong)
        assert "5555" not in str(caught.value)
    RedisBackend(ttl=float("inf"))


def test_without_redis_py_the_extra_is_named() -> None:
    program = """if True:
        import sys
        sys.modules["redis"] = None
        import perdure
        try:
            perdure.open("redis://localhost")
        except perdure.MissingExtraError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'perdure[redis]'" in run.stdout


# ------------------------------------------------------------------------------------------------------- who may come in


CALLS: list[Callable[[RedisBackend], object]] = [
    lambda backend: backend.get("k"),
    lambda backend: backend.put("k", b""),
    lambda backend: backend.put("k", b"", if_match=ABSENT),
    lambda backend: backend.delete("k"),
    lambda backend: list(backend.scan()),
    lambda backend: backend.recorded(),
]


def refusals(backend: RedisBackend) -> Iterator[PerdureError]:
    for number, call in enumerate(CALLS):
        with pytest.raises(PerdureError) as caught:
            call(backend)
        assert backend.place in str(caught.value), number
        yield caught.value


def everything_about(error: BaseException) -> str:
    said = "".join(traceback.format_exception(error))
    return said + repr(error) + str(pickle.loads(pickle.dumps(error))) + str(vars(error))


def test_a_wrong_password_is_told_and_not_shown() -> None:
    with running("--requirepass", SECRET) as server:
        for user, password in ((None, None), (None, "wrong-one"), ("nobody", "wrong-one")):
            with RedisBackend("127.0.0.1", server.port, prefix="app", user=user, password=password) as backend:
                for error in refusals(backend):
                    assert type(error) is BackendError
                    assert "Check user and password" in str(error)
                    assert "wrong-one" not in everything_about(error)
        url = f"redis://:{quote(SECRET, safe='')}@127.0.0.1:{server.port}/0/app"
        with open_backend(url) as backend, pickle.loads(pickle.dumps(backend)) as again:
            again.put("k", b"1")
            assert backend.get("k").data == b"1"
            assert SECRET not in repr(again) + again.place + str(again.guarantees())
        with open_backend(f"redis://127.0.0.1:{server.port}/0/app", password=SECRET) as backend:
            assert backend.get("k").data == b"1"
        assert perdure.open(url, codec="raw")["k"] == b"1"


def test_a_password_that_nobody_asked_for(server: RedisServer) -> None:
    with RedisBackend("127.0.0.1", server.port, password=SECRET) as backend:
        for error in refusals(backend):
            assert type(error) is BackendError
            assert SECRET not in everything_about(error)


def test_a_user_who_may_not_do_all(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as raw:
        raw.acl_setuser("ada", enabled=True, passwords=["+" + "reader"], keys=["perdure:app/*"], commands=["+@read"])
        with RedisBackend("127.0.0.1", server.port, prefix="app", user="ada", password="reader") as backend:
            assert not backend.contains("k")
            for call in (lambda: backend.put("k", b""), lambda: backend.delete("k")):
                with pytest.raises(BackendError, match="Let this user run") as caught:
                    call()
                assert type(caught.value) is BackendError
        raw.acl_setuser("eve", enabled=True, passwords=["+" + "writer"], keys=["perdure:app/*"], commands=["+@all"])
        with RedisBackend("127.0.0.1", server.port, prefix="other", user="eve", password="writer") as backend:
            for call in (
                lambda: backend.put("k", b""),
                lambda: backend.put_many({"k": b"", "l": b""}),
                lambda: backend.get("k"),
                lambda: backend.get("k", if_none_match=ETag("0" * 16)),
                lambda: backend.delete("k"),
                backend.recorded,
            ):
                with pytest.raises(BackendError, match="add ~perdure:PREFIX") as caught:
                    call()
                assert type(caught.value) is BackendError
        commands = ["+@read", "+evalsha", "+script|load", "+hset", "+set", "+unlink", "+time"]
        raw.acl_setuser("bob", enabled=True, passwords=["+" + "writer"], keys=["perdure:app/*"], commands=commands)
        with RedisBackend("127.0.0.1", server.port, prefix="app", user="bob", password="writer") as backend:
            backend.put("k", b"1")
            backend.delete("k")
        with (
            RedisBackend("127.0.0.1", server.port, prefix="app", user="bob", password="writer", ttl="1 h") as backend,
            pytest.raises(UnknownOutcomeError),
        ):
            backend.put("k", b"1")  # the script breaks off after it has written, where it may not PEXPIRE
        assert backend.place in repr(backend)


# ------------------------------------------------------------------------------------------------ what the server refuses


def test_a_full_server_refuses_values_and_takes_deletes() -> None:
    with running("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        with RedisBackend("127.0.0.1", server.port, prefix="app") as backend:
            with pytest.raises(BackendError, match="Raise maxmemory") as caught:
                for number in range(100):
                    backend.put(f"{number}", bytes(100_000))
            assert type(caught.value) is BackendError
            assert caught.value.key == f"{number}"
            assert not backend.contains(f"{number}")
        with redis.Redis(port=server.port) as raw:
            raw.config_set("maxmemory", "500kb")
        with RedisBackend("127.0.0.1", server.port, prefix="app") as backend:  # new connections, without receipts
            etag = backend.head("0").etag
            for call in (
                lambda: backend.put("a", b""),
                lambda: backend.put("0", b"", if_match=etag),
                lambda: backend.put_many({"a": b"", "b": b""}),
                lambda: backend.mark_used({"0": 1e10}),
            ):
                with pytest.raises(BackendError, match="Raise maxmemory"):
                    call()
            backend.delete("0", if_match=etag)
            backend.delete_many(list(backend.keys()))
            assert list(backend.scan()) == []
            with redis.Redis(port=server.port) as raw:
                raw.config_set("maxmemory", "3mb")
            backend.put("a", b"1")


def test_a_replica_reads_and_does_not_write(server: RedisServer) -> None:
    with RedisBackend("127.0.0.1", server.port, prefix="app") as primary:
        primary.put("k", b"1")
        with (
            running("--replicaof", "127.0.0.1", str(server.port)) as second,
            RedisBackend("127.0.0.1", second.port, prefix="app") as replica,
        ):
            give_up = time.monotonic() + 30
            while not replica.contains("k"):
                assert time.monotonic() < give_up
                time.sleep(0.01)
            assert replica.get("k", if_none_match=ETag("0" * 16)).data == b"1"
            assert [meta.key for meta in replica.scan()] == ["k"]
            for call in (lambda: replica.put("k", b"2"), lambda: replica.delete("k"), lambda: replica.mark_used({"k": 1e10})):
                with pytest.raises(UnavailableError, match="name the primary"):
                    call()
        assert primary.get("k").data == b"1"


def test_after_a_failover_the_new_primary_is_found() -> None:
    """The name leads to another server then, while connections to the old one go on and refuse to write."""
    with (
        running() as old,
        running() as new,
        Redirect(old.port) as name,
        RedisBackend("127.0.0.1", name.port, prefix="app") as backend,
    ):
        etag = backend.put("k", b"1")
        with redis.Redis(port=old.port) as raw, redis.Redis(port=new.port) as heir:
            heir.restore("perdure:app/k", 0, raw.dump("perdure:app/k"))
            raw.replicaof("127.0.0.1", str(new.port))
        name.upstream = new.port
        backend.put("k", b"2", if_match=etag)
        with RedisBackend("127.0.0.1", new.port, prefix="app") as direct:
            assert direct.get("k").data == b"2"


def test_a_database_that_is_not_there(server: RedisServer) -> None:
    with RedisBackend("127.0.0.1", server.port, 77) as backend:
        for error in refusals(backend):
            assert type(error) is BackendError
            assert "number" in str(error)


def test_nobody_listens_or_no_such_host(server: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for host in ("127.0.0.1", "no-such-host.invalid"):
        with RedisBackend(host, port, attempts=2) as backend:
            for error in refusals(backend):
                assert type(error) is UnavailableError
                assert "2 attempts" in str(error)
    with RedisBackend("x" * 300, port) as backend:
        for error in refusals(backend):
            assert type(error) in (BackendError, UnavailableError)


class Redirect:
    """A port that leads to another one, which may change for connections to come."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            hand_on(client, self.upstream)

    def __enter__(self) -> Redirect:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def hand_on(outer: socket.socket, port: int) -> None:
    """Copy what comes, in both directions."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                target.sendall(piece)
            target.shutdown(socket.SHUT_RDWR)

    inner = socket.create_connection(("127.0.0.1", port))
    for pair in ((outer, inner), (inner, outer)):
        threading.Thread(target=copy, args=pair, daemon=True).start()


class Fake:
    """A server that greets like Redis and answers everything else as it is told."""

    def __init__(self, answer: bytes | Callable[[bytes], bytes], login: bytes = b"+OK\r\n") -> None:
        self.answer = answer
        self.login = login
        self.pieces: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while piece := client.recv(1 << 16):
                if b"CLIENT\r\n" in piece:
                    client.sendall(b"+OK\r\n" * piece.count(b"CLIENT\r\n"))
                elif b"AUTH\r\n" in piece:
                    client.sendall(self.login)
                elif b"\r\nSET\r\n" in piece:
                    client.sendall(b"+OK\r\n")  # a receipt
                else:
                    self.pieces.append(piece)
                    client.sendall(self.answer(piece) if callable(self.answer) else self.answer)

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize(
    ("answer", "kind", "hint"),
    [
        ("LOADING Redis is loading the dataset in memory", UnavailableError, "when it is ready"),
        ("MISCONF Redis is configured to save RDB snapshots, but is unable to", UnavailableError, "cannot save to its disk"),
        ("NOREPLICAS Not enough good replicas to write.", UnavailableError, "min-replicas-to-write"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", UnavailableError, "keeps the server busy"),
        ("MASTERDOWN Link with MASTER is down", UnavailableError, "Try again"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", UnavailableError, "Try again"),
        ("CLUSTERDOWN The cluster is down", UnavailableError, "Try again"),
        ("MOVED 3999 127.0.0.1:6381", BackendError, "Redis Cluster"),
        ("ASK 3999 127.0.0.1:6381", BackendError, "Redis Cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", BackendError, "Redis Cluster"),
        ("READONLY You can't write against a read only replica.", UnavailableError, "name the primary"),
        ("OOM command not allowed when used memory > 'maxmemory'.", BackendError, "Raise maxmemory"),
        ("ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed", BackendError, "Raise maxmemory"),
        ("NOAUTH Authentication required.", BackendError, "Check user and password"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", BackendError, "Let this user run"),
        ("NOPERM No permissions to access a key", BackendError, "~perdure:PREFIX"),
        ("NOPERM this user has no permissions to run the 'keys' command", BackendError, "Let this user run"),
        ("ERR unknown command `EVALSHA`, with args beginning with: `x`", BackendError, "lets it run scripts"),
        ("ERR unknown command 'evalsha'", BackendError, "lets it run scripts"),
        ("NOSCRIPT No matching script. Please use EVAL.", BackendError, "several servers"),
        ("ERR something that nobody has heard of", UnknownOutcomeError, "Read the key"),
    ],
)
def test_what_a_server_answers_to_a_write_means_something(answer: str, kind: type[BackendError], hint: str) -> None:
    with Fake(f"-{answer}\r\n".encode()) as fake, RedisBackend("127.0.0.1", fake.port, attempts=2) as backend:
        for call in (lambda: backend.put("k", b""), lambda: backend.delete("k")):
            if answer.startswith("NOSCRIPT"):
                fake.answer = lambda piece: b"+OK\r\n" * 6 if b"LOAD" in piece else b"-" + answer.encode() + b"\r\n"
            with pytest.raises(BackendError) as caught:
                call()
            assert type(caught.value) is kind
            assert hint in str(caught.value)
            assert caught.value.key == "k"
            assert caught.value.__cause__ is not None
        sent = len(fake.pieces)
        with pytest.raises(BackendError) as caught:
            backend.get("k")
        assert type(caught.value) is (UnavailableError if kind is UnavailableError else BackendError)
        assert len(fake.pieces) - sent == 2 if kind is UnavailableError else len(fake.pieces) > sent


def test_what_a_server_lists_twice_is_listed_once() -> None:
    """As SCAN does while the server moves its keys to a smaller table."""

    def answer(piece: bytes) -> bytes:
        about = b"0123456789abcdef 1 1.0"
        if b"HMGET" in piece:
            return (b"*2\r\n$%d\r\n%b\r\n$-1\r\n" % (len(about), about)) * piece.count(b"HMGET")
        cursor, names = (b"7", b"aba") if b"\r\n$1\r\n0\r\n" in piece else (b"0", b"bcac")
        listed = b"".join(b"$9\r\nperdure:%c\r\n" % name for name in names)
        return b"*2\r\n$1\r\n%b\r\n*%d\r\n%b" % (cursor, len(names), listed)

    with Fake(answer) as fake, RedisBackend("127.0.0.1", fake.port) as backend:
        for listing in (backend.keys(), (use.key for use in backend.uses())):
            assert sorted(listing) == ["a", "b", "c"]


@pytest.mark.parametrize("answer", ["HTTP/1.1 400 Bad Request\r\n\r\n", "\x15\x03\x01\r\n", "$x\r\n"])
def test_what_is_no_redis_server_is_refused(answer: str) -> None:
    with Fake(answer.encode()) as fake, RedisBackend("127.0.0.1", fake.port, attempts=2) as backend:
        with pytest.raises(BackendError) as caught:
            backend.get("k")
        with pytest.raises(BackendError) as caught:
            backend.put("k", b"")
        assert backend.place in str(caught.value)


@pytest.mark.parametrize("login", ["ERR unknown command `AUTH`, with args beginning with: `{}`", "WRONGPASS no user with {}"])
def test_a_server_that_repeats_the_password_is_not_quoted(login: str) -> None:
    with (
        Fake(b"", b"-" + login.format("sesame-open").encode() + b"\r\n") as fake,
        RedisBackend("127.0.0.1", fake.port, password="sesame-open", attempts=2) as backend,
    ):
        for error in refusals(backend):
            assert "***" in str(error)
            assert "sesame-open" not in everything_about(error)


# ---------------------------------------------------------------------------------------------------------------- TLS


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signed itself, and its key."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "perdure test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    none = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none))
    return pem, private


@contextlib.contextmanager
def tls_before(port: int, pem: Path, private: Path) -> Iterator[int]:
    """Take TLS off what comes, and hand it on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                outer = context.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                continue
            hand_on(outer, port)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_it_speaks_tls_and_trusts_nobody_by_itself(server: RedisServer, tmp_path: Path) -> None:
    pem, private = write_certificate(tmp_path)
    with tls_before(server.port, pem, private) as port:
        with open_backend(f"rediss://127.0.0.1:{port}/0/tls?ca_bundle={pem}") as backend:
            etag = backend.put("k", bytes(1 << 20))
            assert backend.get("k")[:2] == (bytes(1 << 20), etag)
            with pickle.loads(pickle.dumps(backend)) as again:
                assert again.place == backend.place == f"rediss://127.0.0.1:{port}/0/tls"
                assert list(again.keys()) == ["k"]
        for url, said in (
            (f"rediss://127.0.0.1:{port}/0/tls", "ca_bundle="),
            (f"rediss://localhost:{port}/0/tls?ca_bundle={pem}", "ca_bundle="),  # it is not the name in the certificate
            (f"rediss://127.0.0.1:{port}/0/tls?ca_bundle=no-such-file", "ca_bundle="),
        ):
            with open_backend(url) as backend, pytest.raises(BackendError) as caught:
                backend.get("k")
            assert type(caught.value) is BackendError, caught.value
            assert said in str(caught.value)
        with open_backend(f"redis://127.0.0.1:{port}/0/tls?attempts=2") as backend, pytest.raises(UnavailableError) as caught:
            backend.get("k")
        assert "rediss://" in str(caught.value)
    with (
        Fake(b"HTTP/1.1 400 Bad Request\r\n") as plain,
        open_backend(f"rediss://127.0.0.1:{plain.port}/0/tls") as backend,
        pytest.raises(BackendError, match="no TLS"),
    ):
        backend.get("k")


# -------------------------------------------------------------------------------------------------------------- signals


def test_a_handler_may_call_in_the_middle_of_a_call(server: RedisServer) -> None:
    """The handler's calls have a connection of their own, so neither gets the other's answer."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    handled = 0
    busy = False

    def handle(number: int, frame: object) -> None:
        nonlocal handled, busy
        if busy:
            return  # the next signal came early
        busy = True
        handled += 1
        backend.put("handler", b"%d" % handled)
        assert backend.get("handler").data == b"%d" % handled
        busy = False

    with RedisBackend("127.0.0.1", server.port, prefix="signals") as backend:
        backend.put("handler", b"")
        before = signal.signal(signal.SIGALRM, handle)
        try:
            for number in range(300):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + number % 20 * 1e-5)
                backend.put("k", b"%d" % number)
                assert backend.get("k").data == b"%d" % number
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert handled
