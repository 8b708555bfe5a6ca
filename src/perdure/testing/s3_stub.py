"""A small S3 server in memory, with a latency of your choice: for benchmarks, and for races that a real one is too slow for.

Buckets, objects with metadata, conditional GET, PUT and DELETE decided under one lock, and listings in pages. It believes
any signature. Run it by itself, so that it does not compete for one interpreter with what is measured::

    python -m perdure.testing.s3_stub --latency 0.01

prints its URL; `perdure.testing.servers.stub` does that for you.
"""

from __future__ import annotations

import argparse
import hashlib
import socket
import sys
import threading
import time
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

_REASONS = {200: "OK", 204: "No Content", 304: "Not Modified", 404: "Not Found", 409: "Conflict", 412: "Precondition Failed"}


class _Object(NamedTuple):
    data: bytes
    etag: str
    moment: float
    modified: str
    metadata: str


class _Answer(NamedTuple):
    status: int
    headers: str = ""
    body: bytes = b""


class S3Stub:
    """The server; every connection has a thread.

    Args:
        latency: Seconds until an answer leaves; its effect comes about at once.
        port: To listen on at 127.0.0.1; 0 picks one.
    """

    def __init__(self, latency: float = 0.0, port: int = 0) -> None:
        self._latency = latency
        self._buckets: dict[str, dict[str, _Object]] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve_forever(self) -> None:
        """Take connections until the process ends."""
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        spare = b""
        with connection:
            while True:
                try:
                    while (end := spare.find(b"\r\n\r\n")) < 0:
                        spare += _some(connection)
                    arrived = time.perf_counter()
                    first, *lines = spare[:end].decode("latin-1").split("\r\n")
                    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                    spare = spare[end + 4 :]
                    length = int(headers.get("content-length", 0))
                    if headers.get("expect", "").lower() == "100-continue" and len(spare) < length:
                        time.sleep(self._latency)
                        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                        arrived = time.perf_counter()  # the rest is a second round trip
                    while len(spare) < length:
                        spare += _some(connection)
                    body, spare = spare[:length], spare[length:]
                    method, target, _ = first.split(" ")
                    answer = self._answer(method, target, headers, body)
                    size = "" if answer.status in (204, 304) or "content-length" in answer.headers else len(answer.body)
                    size = f"content-length: {size}\r\n" if size != "" else ""
                    head = f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\n{answer.headers}{size}\r\n".encode("latin-1")
                    rest = arrived + self._latency - time.perf_counter()
                    if rest > 0:
                        time.sleep(rest)
                    connection.sendall(head + answer.body if method != "HEAD" else head)
                except OSError:
                    return

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> _Answer:
        path, _, query = target.partition("?")
        bucket, _, name = unquote(path[1:]).partition("/")
        with self._lock:
            objects = self._buckets.get(bucket)
            if method == "PUT" and not name:
                self._buckets.setdefault(bucket, {})
                return _Answer(200)
            if objects is None:
                return _error(404, "NoSuchBucket")
            if not name:
                return _Answer(200) if method == "HEAD" else _listing(objects, dict(parse_qsl(query)))
            there = objects.get(name)
            etag = there.etag if there else None
            if method == "PUT":
                if "if-none-match" in headers and there:
                    return _error(412, "PreconditionFailed")
                if "if-match" in headers and headers["if-match"] != etag:
                    return _error(412, "PreconditionFailed") if there else _error(404, "NoSuchKey")
                kept = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name.startswith("x-amz-meta-"))
                now = time.time()
                new = _Object(body, f'"{hashlib.md5(body).hexdigest()}"', now, formatdate(now, usegmt=True), kept)
                objects[name] = new
                return _Answer(200, f"etag: {new.etag}\r\n")
            if method == "DELETE":
                if "if-match" in headers and headers["if-match"] != etag:
                    return _error(412, "PreconditionFailed") if there else _error(404, "NoSuchKey")
                objects.pop(name, None)
                return _Answer(204)
        if there is None:
            return _error(404, "NoSuchKey")
        if headers.get("if-none-match") == etag:
            return _Answer(304, f"etag: {etag}\r\nlast-modified: {there.modified}\r\n")
        about = f"etag: {etag}\r\nlast-modified: {there.modified}\r\ncontent-length: {len(there.data)}\r\n{there.metadata}"
        return _Answer(200, about, there.data)


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 18)
    if not data:
        raise ConnectionResetError
    return data


def _error(status: int, code: str) -> _Answer:
    return _Answer(status, "content-type: application/xml\r\n", f"<Error><Code>{code}</Code></Error>".encode())


def _listing(objects: dict[str, _Object], options: dict[str, str]) -> _Answer:
    prefix, after = options.get("prefix", ""), unquote(options.get("continuation-token", ""))
    most = int(options.get("max-keys", "1000"))
    names = sorted([name for name in objects if name.startswith(prefix) and name > after])
    parts = ['<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><EncodingType>url</EncodingType>']
    parts += [_entry(name, objects[name].etag, len(objects[name].data), objects[name].moment) for name in names[:most]]
    if len(names) > most:
        parts.append(f"<NextContinuationToken>{quote(names[most - 1], safe='')}</NextContinuationToken>")
    parts.append(f"<IsTruncated>{str(len(names) > most).lower()}</IsTruncated></ListBucketResult>")
    return _Answer(200, "content-type: application/xml\r\n", "".join(parts).encode())


@lru_cache(20_000)
def _entry(name: str, etag: str, size: int, moment: float) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(moment))
    spelled = escape(etag, {'"': "&quot;"})
    return (
        f"<Contents><Key>{quote(name)}</Key><LastModified>{when}</LastModified><ETag>{spelled}</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A small S3 server in memory.")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until an answer leaves")
    parser.add_argument("--port", type=int, default=0, help="to listen on; 0 picks one")
    options = parser.parse_args()
    stub = S3Stub(options.latency, options.port)
    sys.setswitchinterval(1e-4)
    print(stub.endpoint_url, flush=True)
    stub.serve_forever()


if __name__ == "__main__":
    main()
