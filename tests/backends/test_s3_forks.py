"""Forks beside threads at work: what those hold in the C library, in OpenSSL and in the interpreter must not hang the child."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from perdure.codecs.security import Signed
from perdure.testing.crew import within
from perdure.testing.lifetime import in_child
from perdure.testing.servers import S3Server
from perdure_backends import _s3_account, _s3_forks
from perdure_backends._s3_forks import unforked
from perdure_backends._s3_http import NotSentError, Pool
from perdure_backends._s3_route import Route, connect
from perdure_backends._s3_sign import Credentials, sign
from perdure_backends.s3 import S3Backend

pytest.importorskip("botocore")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))
LONG = 0.3  # seconds in the middle of something


@pytest.fixture(autouse=True)
def no_marks_of_earlier_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests that interrupt calls may leave one of the main thread behind, see `_before_fork`.
    monkeypatch.setattr(_s3_forks, "_inside", [])
    monkeypatch.setattr(_s3_forks, "_forking", {})


class Held:
    """Makes the first call of a function take long, and tells when a thread is in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.begun = threading.Event()
        self.ended = 0.0
        self._function = function

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.begun.is_set():
            return self._function(*args, **options)
        self.begun.set()
        try:
            time.sleep(LONG)
            return self._function(*args, **options)
        finally:
            self.ended = time.monotonic()


def fork_in_the_middle(held: Held, work: Callable[[], object], child: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    assert held.begun.wait(30)

    def late_child() -> None:
        assert held.ended, "the fork did not wait"  # a copy of what was true in the moment of the fork
        child()

    in_child(late_child)
    thread.join()


def test_a_fork_waits_for_a_name_that_is_looked_up(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # glibc reads its configuration under a lock, which stays locked in a child that is forked meanwhile.
    backend = S3Backend("forks", "names", endpoint_url=stub.endpoint_url.replace("127.0.0.1", "localhost"), create=True)
    backend.contains("a")
    backend._client._forget_door(backend._client.account)  # so that the next request connects
    real = socket.getaddrinfo
    held = Held(real)
    monkeypatch.setattr(socket, "getaddrinfo", held)

    def child() -> None:
        socket.getaddrinfo = real
        backend.put("a", b"1")

    fork_in_the_middle(held, lambda: backend.contains("a"), child)
    assert backend.get("a").data == b"1"


def test_a_fork_waits_for_a_handshake() -> None:
    def shakes_no_hands(*_: Any, **__: Any) -> Any:
        raise ssl.SSLError("no handshake")

    held = Held(shakes_no_hands)

    class Slow(ssl.SSLContext):
        wrap_socket = staticmethod(held)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = Pool(Route("127.0.0.1", listener.getsockname()[1], Slow(ssl.PROTOCOL_TLS_CLIENT), None), 5.0, 1)

        def shake() -> None:
            with pytest.raises(NotSentError, match="no handshake"):
                pool.request("GET", "/", [], b"", time.monotonic() + 5)

        fork_in_the_middle(held, shake, lambda: None)


def test_a_fork_waits_for_an_account_that_is_looked_for(stub: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Importing botocore takes long, and the lock of a module that is being imported stays locked in the child.
    real = _s3_account._find
    held = Held(real)
    monkeypatch.setattr(_s3_account, "_find", held)
    backend = S3Backend("forks", "accounts", endpoint_url=stub.endpoint_url, create=True)

    def child() -> None:
        _s3_account._find = real
        backend.put("a", b"1")

    fork_in_the_middle(held, lambda: backend.contains("a"), child)
    assert backend.get("a").data == b"1"


def test_a_thread_that_forks_in_the_middle_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_s3_forks, "_PATIENCE", 1000.0)

    def fork() -> None:
        with unforked, unforked:
            in_child(_pass_through)
        in_child(_pass_through)

    within(60, "a fork", fork)


def test_a_thread_that_stays_holds_up_one_fork_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_s3_forks, "_PATIENCE", LONG)
    thread = threading.Thread(target=unforked.__enter__)
    thread.start()
    thread.join()
    begun = time.monotonic()
    in_child(_pass_through)
    assert time.monotonic() - begun >= LONG
    assert not _s3_forks._inside


def test_a_fork_does_not_wait_for_a_thread_that_waits_for_another_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    # Handlers that were registered before ours run after it, and may want what a thread holds that is kept out by us.
    monkeypatch.setattr(_s3_forks, "_PATIENCE", LONG)
    lock, others = threading.Lock(), threading.Event()

    def hold_and_connect() -> None:
        with lock:
            others.set()
            while not _s3_forks._forking:
                time.sleep(0.001)
            with unforked:
                pass

    thread = threading.Thread(target=hold_and_connect)
    thread.start()
    assert others.wait(30)
    _s3_forks._before_fork()
    assert lock.acquire(timeout=30), "the two wait for each other"
    _s3_forks._after_fork_in_parent()
    thread.join()


def test_every_address_is_tried_and_keeps_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    scoped, missing, other = ("fe80::1%eth0", 80, 0, 2), ("::1", 80, 0, 0), ("127.0.0.1", 80)
    families = {scoped: socket.AF_INET6, missing: -1, other: socket.AF_INET}
    found = [(family, socket.SOCK_STREAM, 6, "", where) for where, family in families.items()]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    class Nowhere:
        def __init__(self, family: int, *_: Any) -> None:
            if family == -1:
                raise OSError("this machine does not know such addresses")

        def settimeout(self, _: float) -> None:
            pass

        def connect(self, address: Any) -> None:
            tried.append(address)
            raise ConnectionRefusedError(len(tried))

        def close(self) -> None:
            tried.append("closed")

    monkeypatch.setattr(socket, "socket", Nowhere)
    with pytest.raises(ConnectionRefusedError) as caught:
        connect(("somewhere.local", 80), 1.0)
    assert tried == [scoped, "closed", other, "closed"]
    assert caught.value.args == (1,)


def test_forks_of_several_threads_let_each_other_pass() -> None:
    failed: list[BaseException] = []

    def fork() -> None:
        try:
            for _ in range(10):
                in_child(_pass_through)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fork) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _pass_through()
    assert not failed, failed


def _pass_through() -> None:
    def pass_through() -> None:
        with unforked:
            passed.set()

    passed = threading.Event()
    threading.Thread(target=pass_through, daemon=True).start()
    assert passed.wait(5), "the entrance is closed"


@pytest.mark.torture
def test_children_are_forked_while_threads_that_sign_come_and_go() -> None:
    # One of about 2500 hung when signing requests and values used OpenSSL's HMAC.
    credentials = Credentials("ak", "sk", None)
    signed = Signed(bytes(32))

    def sign_once() -> None:
        sign("GET", "/bucket", "", {"host": "localhost"}, b"", credentials, "us-east-1")
        signed.encode(b"value", b"header", "key")

    fork_beside(lambda: all_at_once([sign_once] * 4), lambda: all_at_once([sign_once]))


@pytest.mark.torture
def test_children_are_forked_while_threads_look_up_names() -> None:
    # About as many hung when forks did not wait. (What they cannot wait for is the end of a thread that has looked up a
    # name, where glibc takes the same lock for a moment: such a thread lives on here.)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        address = "localhost", deaf.getsockname()[1]

        def look_up() -> None:
            with pytest.raises(ConnectionRefusedError):
                connect(address, 5.0)

        fork_beside(look_up, look_up)


def fork_beside(life: Callable[[], None], child: Callable[[], None]) -> None:
    stop = threading.Event()

    def live() -> None:
        while not stop.is_set():
            life()

    threads = [threading.Thread(target=live) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(120 if ROUNDS == 1 else 300 * ROUNDS):
            in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def all_at_once(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
