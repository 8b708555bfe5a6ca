"""Writes over Redis are carried out once, whatever gets lost on the way: answers, requests, connections, the server."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perdure.errors import (
    BackendError,
    MissingExtraError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    UnknownOutcomeError,
)
from perdure.protocol import ABSENT, Backend, ETag
from perdure.testing import servers
from perdure.testing.crew import within
from perdure.testing.races import count_up
from perdure.testing.servers import RedisServer

redis = pytest.importorskip("redis")
from perdure_backends import _redis_calls  # noqa: E402
from perdure_backends._redis_scripts import DELETE, PUT  # noqa: E402
from perdure_backends.redis import RedisBackend  # noqa: E402

PATIENCE = 30.0
Fate = Callable[["Wire", bytes], str]


class Wire:
    """A TCP proxy before a Redis server, on whose way things get lost.

    For each piece that a client sends, `fate(wire, piece)` is asked what becomes of it: `"pass"`; `"lose"`: it is carried out,
    then `meanwhile` is called, and the connection ends before the answer; `"cut"`: the connection ends before it gets through,
    then `meanwhile` is called; `"hold"`: as `"cut"`, but `release` lets it through later.
    """

    def __init__(self, port: int) -> None:
        self.fate: Fate = lambda wire, piece: "pass"
        self.meanwhile: Callable[[], object] = lambda: None
        self.fates: list[str] = []
        self._upstream = port
        self._held: list[tuple[socket.socket, bytes]] = []
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
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                return
            try:
                held = self._pump(client, server)
            except OSError:
                held = False
            if not held:
                server.close()

    def _pump(self, client: socket.socket, server: socket.socket) -> bool:
        while True:
            ready, _, _ = select.select([client, server], [], [])
            if server in ready:
                answer = server.recv(1 << 16)
                if not answer:
                    return False
                client.sendall(answer)
                continue
            piece = client.recv(1 << 16)
            if not piece:
                return False
            fate = self.fate(self, piece)
            if fate != "pass":
                self.fates.append(fate)
            if fate in ("pass", "lose"):
                server.sendall(piece)
            if fate == "lose":
                select.select([server], [], [])
            if fate == "hold":
                self._held.append((server, piece))
            if fate != "pass":
                self.meanwhile()
                return fate == "hold"

    def release(self) -> list[bytes]:
        """Let through what was held, and return what the server says to it."""
        answers = []
        for server, piece in self._held:
            with server:
                server.sendall(piece)
                answers.append(server.recv(1 << 16))
        return answers

    def close(self) -> None:
        """Let nobody in any more."""
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()


def once(fate: str) -> Fate:
    """The first write meets a fate."""
    left = [fate]

    def plan(wire: Wire, piece: bytes) -> str:
        return left.pop() if left and (PUT.name in piece or DELETE.name in piece) else "pass"

    return plan


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        with servers.redis("--databases", "4") as server:
            yield server
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    """The database itself, which is empty."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def wire(server: RedisServer) -> Iterator[Wire]:
    wire = Wire(server.port)
    yield wire
    wire.close()


@pytest.fixture
def other(server: RedisServer, raw: Any) -> Iterator[RedisBackend]:
    """Somebody whose way to the server is good."""
    with RedisBackend("127.0.0.1", server.port, prefix="app") as backend:
        yield backend


@pytest.fixture
def backend(wire: Wire, raw: Any) -> Iterator[RedisBackend]:
    """Somebody whose way goes over the wire. The scripts are loaded, and a connection is there."""
    with RedisBackend("127.0.0.1", wire.port, prefix="app") as backend:
        backend.put("warm", b"")
        backend.delete("warm")
        yield backend


WRITES: dict[str, Callable[[RedisBackend, ETag | None], object]] = {
    "put": lambda backend, etag: backend.put("k", b"ours"),
    "create": lambda backend, etag: backend.put("k", b"ours", if_match=ABSENT),
    "swap": lambda backend, etag: backend.put("k", b"ours", if_match=etag),
    "put_many": lambda backend, etag: backend.put_many({"k": b"ours", "l": b"ours"})["k"],
    "delete": lambda backend, etag: backend.delete("k"),
    "delete_if": lambda backend, etag: backend.delete("k", if_match=etag),
    "delete_many": lambda backend, etag: backend.delete_many(["k", "l"]),
}
every_write = pytest.mark.parametrize("action", list(WRITES))


def start(backend: Backend, action: str) -> ETag | None:
    return None if action == "create" else backend.put("k", b"start")


def look(backend: Backend) -> bytes | None:
    try:
        return backend.get("k").data
    except NotFoundError:
        return None


@every_write
@pytest.mark.parametrize("fate", ["lose", "cut", "hold"])
def test_what_gets_lost_is_made_up_for(wire: Wire, backend: RedisBackend, other: RedisBackend, action: str, fate: str) -> None:
    etag = start(other, action)
    wire.fate = once(fate)
    answer = WRITES[action](backend, etag)
    assert wire.fates == [fate]
    assert look(other) == (None if "delete" in action else b"ours")
    if answer is not None:
        assert other.head("k").etag == answer


@every_write
def test_who_won_is_told_so_even_when_others_have_written_since(
    wire: Wire, backend: RedisBackend, other: RedisBackend, action: str
) -> None:
    etag = start(other, action)

    def undo() -> None:
        if "delete" in action:
            other.put("k", b"theirs", if_match=ABSENT)
        else:
            other.put("k", b"theirs", if_match=other.head("k").etag)

    wire.fate, wire.meanwhile = once("lose"), undo
    WRITES[action](backend, etag)
    assert look(other) == b"theirs", "the write was carried out once more"


@pytest.mark.parametrize("action", ["put", "create", "put_many"])
def test_a_value_that_was_written_and_deleted_does_not_come_back(
    wire: Wire, backend: RedisBackend, other: RedisBackend, action: str
) -> None:
    wire.fate, wire.meanwhile = once("lose"), lambda: other.delete("k")
    WRITES[action](backend, None)
    assert look(other) is None


@pytest.mark.parametrize("action", ["create", "swap", "delete_if"])
@pytest.mark.parametrize("fate", ["cut", "hold"])
def test_who_lost_is_told_so(wire: Wire, backend: RedisBackend, other: RedisBackend, action: str, fate: str) -> None:
    etag = start(other, action)
    wire.fate, wire.meanwhile = once(fate), lambda: other.put("k", b"theirs")
    with pytest.raises(PreconditionError):
        WRITES[action](backend, etag)
    wire.release()
    assert look(other) == b"theirs"


@every_write
def test_a_request_that_was_held_up_on_its_way_does_nothing_when_it_comes(
    wire: Wire, backend: RedisBackend, other: RedisBackend, action: str
) -> None:
    etag = start(other, action)
    wire.fate = once("hold")
    WRITES[action](backend, etag)
    if "delete" in action:
        other.put("k", b"theirs")
    else:
        other.delete("k")
    (answer,) = wire.release()
    assert b"receipt is closed" in answer
    assert look(other) == (b"theirs" if "delete" in action else None)


def test_a_lost_answer_about_a_lost_answer_is_made_up_for(wire: Wire, backend: RedisBackend, other: RedisBackend) -> None:
    fates = iter(["lose", "lose", "cut", "pass", "lose"])

    def plan(wire: Wire, piece: bytes) -> str:
        return next(fates, "pass") if b"EVAL" in piece else "pass"

    etag = other.put("k", b"start")
    wire.fate = plan
    new = backend.put("k", b"ours", if_match=etag)
    assert wire.fates == ["lose", "lose", "cut"]
    assert other.get("k")[:2] == (b"ours", new)


def test_counters_add_up_over_a_bad_line(wire: Wire, raw: Any, other: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis_calls, "_pause", lambda seconds: time.sleep(seconds / 50))
    dice = random.Random(3)

    def plan(wire: Wire, piece: bytes) -> str:
        return dice.choice(["lose", "cut", "hold"]) if dice.random() < 0.1 else "pass"

    problems: list[BaseException] = []

    def count() -> None:
        try:
            count_up(backend, 40)
        except BaseException as error:
            problems.append(error)

    wire.fate = plan
    with RedisBackend("127.0.0.1", wire.port, prefix="app", attempts=30) as backend:
        threads = [threading.Thread(target=count, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert not problems, problems
    assert {"lose", "cut", "hold"} <= set(wire.fates)
    wire.release()
    assert int(other.get("counter").data) == 160


@every_write
def test_without_its_receipt_a_lost_answer_is_never_called_a_conflict(
    wire: Wire, backend: RedisBackend, other: RedisBackend, raw: Any, action: str
) -> None:
    etag = start(other, action)

    def evict() -> None:
        other.put_many({"k": b"theirs", "l": b"theirs"})
        raw.delete(*raw.keys("perdure:app/!*"))

    wire.fate, wire.meanwhile = once("lose"), evict
    with pytest.raises(UnknownOutcomeError, match="may or may not") as caught:
        WRITES[action](backend, etag)
    assert (caught.value.token is None) == ("delete" in action)
    assert look(other) == b"theirs"
    backend.put("k", b"on it goes")


@pytest.mark.parametrize("action", ["put", "create", "swap", "put_many"])
def test_without_its_receipt_a_value_is_still_known_by_its_etag(
    wire: Wire, backend: RedisBackend, other: RedisBackend, raw: Any, action: str
) -> None:
    etag = start(other, action)
    wire.fate, wire.meanwhile = once("lose"), lambda: raw.delete(*raw.keys("perdure:app/!*"))
    assert WRITES[action](backend, etag) == other.head("k").etag
    assert look(other) == b"ours"


@every_write
def test_when_nobody_can_be_asked_the_outcome_is_unknown(wire: Wire, raw: Any, other: RedisBackend, action: str) -> None:
    with RedisBackend("127.0.0.1", wire.port, prefix="app", attempts=2) as backend:
        backend.put("warm", b"")
        etag = start(other, action)
        wire.fate, wire.meanwhile = once("lose"), wire.close
        with pytest.raises(UnknownOutcomeError) as caught:
            WRITES[action](backend, etag)
        assert backend.place in str(caught.value)
        assert look(other) == (None if "delete" in action else b"ours")
        with pytest.raises(UnavailableError):
            WRITES[action](backend, etag)  # nothing can be sent, so nothing is unknown
        with pytest.raises(UnavailableError):
            backend.get("k")


def test_a_read_whose_answer_is_lost_is_asked_again(wire: Wire, backend: RedisBackend, other: RedisBackend) -> None:
    etag = other.put("k", b"1")
    calls: list[Callable[[], object]] = [
        lambda: backend.get("k").data == b"1",
        lambda: backend.get("k", if_none_match=ETag("0" * 16)).data == b"1",
        lambda: backend.head("k").etag == etag,
        lambda: backend.contains("k"),
        lambda: list(backend.keys()) == ["k"],
        lambda: list(backend.get_many(["k", "l"])) == ["k"],
        lambda: backend.recorded() == {},
        lambda: backend.mark_used({"k": 1e10}) or next(backend.uses()).used == 1e10,
    ]
    for number, call in enumerate(calls):
        fates = iter(["lose", "cut"])
        wire.fate = lambda wire, piece, fates=fates: next(fates, "pass")  # type: ignore[misc]
        assert call(), number
        assert len(wire.fates) == 2 * (number + 1)


def test_connections_that_ended_while_idle_leave_no_doubt(backend: RedisBackend, raw: Any) -> None:
    for _ in range(3):
        etag = backend.put("k", b"1")
        raw.client_kill_filter(_type="normal", skipme=True)
        etag = backend.put("k", b"2", if_match=etag)
        raw.client_kill_filter(_type="normal", skipme=True)
        backend.delete("k", if_match=etag)


def test_a_server_that_forgot_the_scripts_gets_them_again(backend: RedisBackend, raw: Any) -> None:
    for _ in range(2):
        raw.script_flush()
        etag = backend.put("k", b"1")
        raw.script_flush()
        assert backend.get("k", if_none_match=ETag("0" * 16)).etag == etag
        raw.script_flush()
        backend.mark_used({"k": 1e10, "l": 1e10})
        raw.script_flush()
        backend.put_many({"a": b"", "b": b""})
        raw.script_flush()
        backend.delete("k", if_match=etag)
        raw.script_flush()
        backend.record({"codec": "json"})
        backend.put("k", b"")


def test_a_killed_server_that_comes_back_empty_is_used_again() -> None:
    """Errors are `UnavailableError` or, for writes on their way, `UnknownOutcomeError`; then it goes on by itself."""
    try:
        running = servers.redis()
        server = running.__enter__()
    except MissingExtraError as error:
        pytest.skip(str(error))
    backend = RedisBackend("127.0.0.1", server.port, prefix="app", attempts=2)
    backend.record({"codec": "json"})
    problems: list[BaseException] = []
    unavailable = [threading.Event() for _ in range(4)]
    ended = threading.Event()
    good = [0] * 4

    def work(number: int) -> None:
        try:
            while not ended.is_set():
                try:
                    backend.put(f"{number}", b"1")
                    backend.get_many([f"{number}"])
                    good[number] += 1
                except UnknownOutcomeError:
                    pass
                except UnavailableError:
                    unavailable[number].set()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: all(good))
        os.kill(server.pid, signal.SIGKILL)
        assert all(event.wait(PATIENCE) for event in unavailable), problems
        running.__exit__(None, None, None)
        with servers.redis(port=server.port):
            good[:] = [0] * 4
            wait_for(lambda: all(good))
            ended.set()
            for thread in threads:
                thread.join(PATIENCE)
            assert not problems, problems
            assert set(backend.keys()) == {"0", "1", "2", "3"}
            assert backend.recorded() == {"codec": "json"}, (
                "the server lost the settings, and the writes after that brought none"
            )
    finally:
        ended.set()
        backend.close()


def test_a_server_that_does_not_answer_at_all_is_given_up(raw: Any, server: RedisServer) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        RedisBackend("127.0.0.1", deaf.getsockname()[1], timeout=0.1, attempts=2) as backend,
    ):
        for call in (lambda: backend.get("k"), lambda: backend.put("k", b""), lambda: list(backend.scan())):
            with pytest.raises(UnavailableError, match="2 attempts"):
                within(PATIENCE, "a call", call)


def test_what_hangs_in_the_server_is_given_up_and_found_out_about(server: RedisServer, raw: Any, other: RedisBackend) -> None:
    if not server.pid:
        pytest.skip("the server is not ours to stop")
    with RedisBackend("127.0.0.1", server.port, prefix="app", timeout=0.2, attempts=2) as backend:
        backend.put("k", b"1")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UnknownOutcomeError):
                backend.put("k", b"2")
            with pytest.raises(UnavailableError):
                backend.get("k")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert look(other) == b"2"  # it lay in the server's mailbox, and nobody could tell


def wait_for(condition: Callable[[], object]) -> None:
    def turn() -> None:
        while not condition():
            threading.Event().wait(0.01)

    within(PATIENCE, "waiting", turn)


def test_the_kit_itself_loses_what_it_says(wire: Wire, backend: RedisBackend, other: RedisBackend) -> None:
    """A wire on which nothing is lost would make every test here pass."""
    wire.fate = lambda wire, piece: "lose" if PUT.name in piece else "pass"
    with pytest.raises(BackendError):
        RedisBackend("127.0.0.1", wire.port, prefix="app", attempts=1).put("k", b"1")
    assert look(other) == b"1"
