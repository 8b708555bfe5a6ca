"""HTTP/1.1 over kept-alive sockets: one request, one answer, and an honest word on whether the request may have arrived.

The general clients neither tell "was certainly not sent" from "may have been carried out" nor keep out of the way: they
resend, follow, or wait for `100 Continue` as they see fit, and cost 0.2 to 1 ms of processor time a request; this takes 0.05.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import time
from collections import deque
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ._s3_forks import unforked
from ._s3_route import Route, connect

# A server, or a box before it, that hangs up after its answer without saying so may take the next request along, and nobody
# can tell then whether that one was carried out. So for these seconds each request gets a connection of its own.
_DISTRUST = 60.0
_MAX_HEAD = 64 * 1024
_MAX_TALK = 16 << 20  # of an answer that is no value and no listing
_MAX_BODY = 5 << 30  # the most S3 takes in one piece
_PIECE = 256 * 1024  # what one send call gets: the socket's time-out covers a whole call, not the time without progress


class NotSentError(Exception):
    """No connection came about: the request was certainly not carried out. The cause tells why."""


class LostAnswerError(Exception):
    """The request went out, wholly or in part, and no whole answer came back: it may or may not have been carried out."""


class Reply(NamedTuple):
    """A whole answer.

    Attributes:
        status: Such as 200.
        headers: Names in lower case.
        body: Exactly as long as announced.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class Pool:
    """Connections to one server, reused in turn. Thread-safe: a connection belongs to one request at a time.

    Args:
        route: The server.
        timeout: Seconds without progress before a request is given up; connecting gets 5 at most.
        keep: How many idle connections to keep.
    """

    def __init__(self, route: Route, timeout: float, keep: int) -> None:
        self._route = route
        self._timeout = timeout
        self._keep = keep
        self._idle: deque[_Connection] = deque()  # append and pop are atomic
        self._closed = False
        self._trust_again = 0.0  # until when no connection is kept
        proxy = urlsplit(route.proxy) if route.proxy else None
        self._proxy = (proxy.hostname or "", proxy.port or 80) if proxy else None
        self._proxy_headers = ""
        if proxy and proxy.username:
            login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
            self._proxy_headers = f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}\r\n"

    def request(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes | memoryview, deadline: float
    ) -> Reply:
        """Send one request, once.

        Args:
            method: In capitals.
            target: Path and query.
            headers: All but `content-length`, which is added here.
            body: What to send.
            deadline: The moment by `time.monotonic()` at which to give up, however busy the line is.

        Raises:
            NotSentError, LostAnswerError: See there.
        """
        if self._proxy and self._route.tls is None:
            host, port = self._route.host, self._route.port
            target = f"http://{f'[{host}]' if ':' in host else host}:{port}{target}"
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        if self._proxy and self._route.tls is None:
            lines += self._proxy_headers
        if body or method in ("PUT", "POST"):
            lines += f"content-length: {len(body)}\r\n"
        head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
        connection = self._connection(deadline)
        try:
            reply = connection.exchange(method, head, body, deadline)
        except (OSError, _BadAnswerError) as error:
            connection.close()
            if connection.used:
                if not connection.heard and not isinstance(error, TimeoutError):
                    self._trust_again = time.monotonic() + _DISTRUST
                self._drop_idle()  # what befell this one mostly befell those that lay idle with it: the next attempt connects
            raise LostAnswerError(str(error) or type(error).__name__) from error
        except BaseException:  # Ctrl-C: an answer is still to come on this connection, so nobody may use it any more
            try:
                if method in ("PUT", "DELETE"):
                    connection.wait_for_answer()
            finally:
                connection.close()
            raise
        keep = connection.reusable and len(self._idle) < self._keep and not self._closed
        if keep and time.monotonic() >= self._trust_again:
            connection.used = True
            self._idle.append(connection)
            if self._closed:
                self.close()
        else:
            connection.close()
        return reply

    def close(self) -> None:
        """Close idle connections; those at work are closed when they are done."""
        self._closed = True
        self._drop_idle()

    def _drop_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def forget(self) -> None:
        """In a forked child: let go of what belongs to the parent, without ending it for the parent."""
        idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.abandon()

    def _connection(self, deadline: float) -> _Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if connection.is_quiet():
                return connection
            connection.close()
        patience = min(self._timeout, 5.0, deadline - time.monotonic())
        try:
            if patience <= 0:
                raise TimeoutError("out of time")
            sock = connect(self._proxy or (self._route.host, self._route.port), patience)
        except OSError as error:
            raise NotSentError(str(error) or type(error).__name__) from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._route.tls is not None:
                if self._proxy:
                    self._tunnel(sock, time.monotonic() + patience)
                with unforked:
                    sock = self._route.tls.wrap_socket(sock, server_hostname=self._route.host)
        except (OSError, _BadAnswerError) as error:
            sock.close()
            raise NotSentError(str(error) or type(error).__name__) from error
        except BaseException:
            sock.close()
            raise
        return _Connection(sock, self._timeout)

    def _tunnel(self, sock: socket.socket, deadline: float) -> None:
        host, port = self._route.host, self._route.port
        where = f"{f'[{host}]' if ':' in host else host}:{port}"
        head = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{self._proxy_headers}\r\n".encode("latin-1")
        reply = _Connection(sock, self._timeout).exchange("CONNECT", head, b"", deadline)
        if reply.status != 200:
            raise _BadAnswerError(f"the proxy answered {reply.status} to CONNECT")


class _BadAnswerError(Exception):
    """What came back is not a whole HTTP answer."""


class _Connection:
    __slots__ = ("_answered", "_patience", "_sent", "_sock", "_spare", "_timeout", "heard", "reusable", "used")

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self._patience = -1.0
        self._spare = b""
        self._sent = False  # whether a request may have left
        self._answered = False  # whether any of its answer has come
        self.reusable = True
        self.used = False  # by an earlier request
        self.heard = False  # whether a byte of the last answer has come

    def close(self) -> None:
        # A child forked meanwhile holds a copy of the descriptor, so closing ours would not end the connection.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def abandon(self) -> None:
        """Close this process's copy of a connection that belongs to the parent."""
        self._sock.close()

    def is_quiet(self) -> bool:
        """Tell whether nothing came in while it was idle: whatever came, mostly the end, makes it useless."""
        try:
            return not self._readable(0)
        except (OSError, ValueError):
            return False

    def wait_for_answer(self) -> None:
        """Give a write that was interrupted a second to take effect now, and not while its caller does the next thing."""
        if self._sent and not self._answered:
            with contextlib.suppress(OSError, ValueError):
                self._readable(1.0)

    def _readable(self, seconds: float) -> bool:
        if hasattr(select, "poll"):
            poll = select.poll()  # select() cannot take descriptors from 1024 on
            poll.register(self._sock, select.POLLIN)
            return bool(poll.poll(int(seconds * 1000)))
        return bool(select.select([self._sock], [], [], seconds)[0])

    def exchange(self, method: str, head: bytes, body: bytes | memoryview, deadline: float) -> Reply:
        self.reusable = False  # until the whole answer is in
        self._sent = self._answered = self.heard = False
        try:
            self._send(head, body, deadline)
        except (BrokenPipeError, ConnectionResetError):
            # A server may answer "no" before it has read all, and hang up. If it did, that is the answer.
            with contextlib.suppress(OSError, _BadAnswerError):
                reply = self._receive(method, deadline)
                self.reusable = False
                return reply
            raise
        return self._receive(method, deadline)

    def _send(self, head: bytes, body: bytes | memoryview, deadline: float) -> None:
        self._wait_until(deadline)
        self._sent = True
        if len(body) <= _PIECE:
            self._sock.sendall(head + body if body else head)  # one packet, one system call
            return
        self._sock.sendall(head)
        view = memoryview(body)
        for start in range(0, len(view), _PIECE):
            self._wait_until(deadline)
            self._sock.sendall(view[start : start + _PIECE])

    def _wait_until(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        patience = min(self._timeout, left)
        if patience != self._patience:
            self._sock.settimeout(patience)
            self._patience = patience

    def _more(self, deadline: float) -> bytes:
        self._wait_until(deadline)
        data = self._sock.recv(_PIECE)
        self._answered = True
        if not data:
            raise _BadAnswerError("the server hung up in the middle of an answer")
        self.heard = True
        return data

    def _receive(self, method: str, deadline: float) -> Reply:
        status, keep, headers = 100, False, dict[str, str]()
        while status < 200:  # 100 Continue and its like are notes, not answers
            data = self._spare
            while (end := data.find(b"\r\n\r\n")) < 0:
                if len(data) > _MAX_HEAD:
                    raise _BadAnswerError("the answer's headers never end")
                data += self._more(deadline)
            self._spare = data[end + 4 :]
            status, keep, headers = _parse_head(data[:end].decode("latin-1"))
        room = _MAX_BODY if method == "GET" and status == 200 else _MAX_TALK
        if method in ("HEAD", "CONNECT") or status in (204, 304):
            body = b""
        elif coding := headers.get("transfer-encoding", "").lower():
            if coding != "chunked":
                raise _BadAnswerError(f"the answer's transfer coding is {coding[:40]!r}")
            body = self._chunks(deadline, room)
        elif "content-length" in headers:
            length = headers["content-length"]
            if not (length.isascii() and length.isdigit() and len(length) < 20):
                raise _BadAnswerError(f"the answer's length is {length[:40]!r}")
            body = self._exactly(_fits(int(length), room), deadline)
        elif method == "GET" and status == 200:
            raise _BadAnswerError("the answer does not say how long it is, so one cut short would look whole")
        elif method == "PUT" and status == 200 and keep:
            body, keep = self._spare, False  # its headers tell all there is to know
        else:
            body, keep = self._to_the_end(deadline, room), False
        self.reusable = keep and not self._spare
        return Reply(status, headers, body)

    def _exactly(self, n: int, deadline: float) -> bytes:
        parts, missing = [], n
        data = self._spare
        while len(data) < missing:
            parts.append(data)
            missing -= len(data)
            data = self._more(deadline)
        self._spare = data[missing:]
        parts.append(data[:missing])
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _line(self, deadline: float) -> bytes:
        while (end := self._spare.find(b"\r\n")) < 0:
            if len(self._spare) > _MAX_HEAD:
                raise _BadAnswerError("a line of the answer never ends")
            self._spare += self._more(deadline)
        line, self._spare = self._spare[:end], self._spare[end + 2 :]
        return line

    def _chunks(self, deadline: float, room: int) -> bytes:
        parts: list[bytes] = []
        while True:
            size = self._line(deadline).partition(b";")[0].strip()
            try:
                n = int(size, 16)
            except ValueError:
                raise _BadAnswerError(f"a chunk's size is {size[:40]!r}") from None
            if n < 0:
                raise _BadAnswerError("a chunk's size is negative")
            if n == 0:
                break
            room -= _fits(n, room)
            parts.append(self._exactly(n, deadline))
            if self._line(deadline):
                raise _BadAnswerError("a chunk is longer than announced")
        while self._line(deadline):  # trailers
            pass
        return b"".join(parts)

    def _to_the_end(self, deadline: float, room: int) -> bytes:
        parts = [self._spare]
        self._spare = b""
        while True:
            self._wait_until(deadline)
            data = self._sock.recv(_PIECE)
            if not data:
                return b"".join(parts)
            room -= _fits(len(data), room)
            parts.append(data)


def _fits(n: int, room: int) -> int:
    if n > room:
        raise _BadAnswerError(f"an answer of {n} bytes or more is too long")
    return n


def _parse_head(head: str) -> tuple[int, bool, dict[str, str]]:
    """Return status, whether the connection stays open, and the headers."""
    first, *lines = head.split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
        raise _BadAnswerError(f"this is not an HTTP answer: {first[:60]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    said = headers.get("connection", "").lower()
    keep = "close" not in said if version == "HTTP/1.1" else "keep-alive" in said
    return int(code), keep, headers
