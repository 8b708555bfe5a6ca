"""A proxy that misbehaves on command: what stands between a client and a server in the bad hours of a network.

::

    with FaultProxy(server.endpoint_url) as proxy:
        backend = S3Backend("bucket", endpoint_url=proxy.endpoint_url)
        proxy.plan = lambda request: Fault(lose_answer=True) if request.method == "PUT" else None
        ...
        assert proxy.counts["PUT"] == 2

It counts and remembers requests by method, so it also tells how many an operation costs.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import BinaryIO, NamedTuple, Self
from urllib.parse import urlsplit


class Request(NamedTuple):
    """A request as it arrived.

    Attributes:
        number: The how-manieth this is of its proxy, from 1.
        method: Such as `"PUT"`.
        target: Path and query.
        headers: Names in lower case.
        body: The bytes sent along.
    """

    number: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Fault(NamedTuple):
    """What to do to one request. Whatever is not said happens as it should.

    Attributes:
        delay: Seconds to wait before the request is forwarded.
        answer_before: Answer with this status, such as 503, and do not forward the request.
        hang_up: Reset the connection instead of forwarding the request.
        twice: Forward the request twice and answer what came the second time.
        lose_answer: Reset the connection after the request was carried out.
        answer_after: Answer with this status after the request was carried out.
        hold: Keep the answer back until this event is set.
        cut: Send so many bytes of the answer's body, then hang up.
        trickle: Seconds between pieces of the answer's body (ten pieces at most).
        code: The S3 error code of an answer made up here.
    """

    delay: float = 0.0
    answer_before: int = 0
    hang_up: bool = False
    twice: bool = False
    lose_answer: bool = False
    answer_after: int = 0
    hold: threading.Event | None = None
    cut: int | None = None
    trickle: float = 0.0
    code: str = ""


class FaultProxy:
    """An HTTP proxy on 127.0.0.1 in threads of this process; forwards to one server.

    Args:
        upstream: URL of the server.
        plan: Called for each request, possibly in several threads at once; returns what to do to it.

    Attributes:
        endpoint_url: Where it listens.
        plan: As given; may be replaced at any time.
        requests: All that arrived, oldest first.
    """

    def __init__(self, upstream: str, plan: Callable[[Request], Fault | None] | None = None) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.plan = plan
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)

    @property
    def counts(self) -> Counter[str]:
        """How many requests arrived, by method."""
        with self._lock:
            return Counter(request.method for request in self.requests)

    def reset(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self.requests.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Closing a listener does not wake a thread that waits in accept(); shutting it down does.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not everywhere can one that listens be shut down
        self._listener.close()
        with self._lock:
            for connection in self._open:
                _reset(connection)
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = HTTPConnection(*self._upstream, timeout=60)
        stream = client.makefile("rb")
        try:
            while (request := self._read(stream)) is not None:
                plan = self.plan
                if not self._treat(client, server, request, (plan(request) if plan else None) or Fault()):
                    return
        except (OSError, HTTPException):
            pass  # either side hung up; the other one gets to know by the reset below
        finally:
            with self._lock:
                self._open.discard(client)
            stream.close()
            _reset(client)
            server.close()

    def _read(self, stream: BinaryIO) -> Request | None:
        first = stream.readline()
        if not first.strip():
            return None
        method, target, _ = first.decode("latin-1").split(" ")
        headers: dict[str, str] = {}
        while (line := stream.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        with self._lock:
            request = Request(len(self.requests) + 1, method, target, headers, body)
            self.requests.append(request)
        return request

    def _treat(self, client: socket.socket, server: HTTPConnection, request: Request, fault: Fault) -> bool:
        """Do what is planned; return whether the connection goes on."""
        if fault.delay:
            time.sleep(fault.delay)
        if fault.hang_up:
            return False
        if fault.answer_before:
            client.sendall(_made_up(fault.answer_before, fault.code, request.method))
            return True
        status, headers, body = _forward(server, request)
        if fault.twice:
            status, headers, body = _forward(server, request)
        if fault.hold is not None:
            fault.hold.wait(60)
        if fault.lose_answer:
            return False
        if fault.answer_after:
            client.sendall(_made_up(fault.answer_after, fault.code, request.method))
            return True
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        client.sendall(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode("latin-1"))
        if fault.cut is not None:
            client.sendall(body[: fault.cut])
            client.shutdown(socket.SHUT_WR)
            return False
        step = -(-len(body) // 10) if fault.trickle and body else len(body)
        for start in range(0, len(body), step or 1):
            client.sendall(body[start : start + step])
            time.sleep(fault.trickle)
        return True


def _forward(server: HTTPConnection, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
    server.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        server.putheader(name, value)
    server.endheaders(request.body or None)
    response = server.getresponse()
    body = response.read()
    headers = [
        (n, v) for n, v in response.getheaders() if n.lower() not in ("connection", "transfer-encoding", "content-length")
    ]
    length = response.getheader("content-length") if request.method == "HEAD" else str(len(body))
    if length is not None and response.status not in (204, 304):
        headers.append(("Content-Length", length))
    return response.status, headers, body


def _made_up(status: int, code: str, method: str) -> bytes:
    body = b"" if method == "HEAD" or not code else f"<Error><Code>{code}</Code></Error>".encode()
    return f"HTTP/1.1 {status} Made Up\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _reset(connection: socket.socket) -> None:
    """Close with a reset, as a crashed peer would."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already
    connection.close()
