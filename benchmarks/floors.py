"""What cannot be beaten: the same system calls and statements, written by hand, with no check of anything."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from time import time
from typing import Any

from blake3 import blake3

# What perdure sets as well.
PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = {sync}; PRAGMA journal_size_limit = 67108864;"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS blobs "
    "(key TEXT NOT NULL PRIMARY KEY, etag TEXT NOT NULL, modified REAL NOT NULL, data BLOB NOT NULL)"
)
GET = "SELECT data, etag, modified FROM blobs WHERE key = ?"
PUT = (
    "INSERT INTO blobs VALUES (?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET etag = excluded.etag, modified = excluded.modified, data = excluded.data"
)
KEYS = "SELECT key FROM blobs ORDER BY key"


class Files:
    """Values in a folder: a file for each key, which is its name."""

    def __init__(self, root: str) -> None:
        self.root = root
        os.makedirs(os.path.join(root, "settings"), exist_ok=True)

    def get_bytes(self, key: str) -> bytes:
        fd = os.open(f"{self.root}/{key}", os.O_RDONLY)
        data = os.read(fd, 65536)
        os.close(fd)
        return data

    def get(self, key: str) -> Any:
        fd = os.open(f"{self.root}/{key}", os.O_RDONLY)
        data = os.read(fd, 65536)
        os.close(fd)
        return pickle.loads(data)

    def get_by_open(self, key: str) -> Any:
        """No floor, but what most would write."""
        with open(f"{self.root}/{key}", "rb") as file:
            return pickle.load(file)

    def put_full(self, key: str, data: bytes) -> None:
        path = f"{self.root}/{key}"
        temporary = f"{self.root}/temporary"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.replace(temporary, path)
        fd = os.open(os.path.dirname(path), os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def put_normal(self, key: str, data: bytes) -> None:
        temporary = f"{self.root}/temporary"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(fd, data)
        os.close(fd)
        os.replace(temporary, f"{self.root}/{key}")

    def put_many_full(self, items: Mapping[str, bytes]) -> None:
        """Write all of them, make all that is written durable in one go, replace, and make the names durable."""
        for number, data in enumerate(items.values()):
            fd = os.open(f"{self.root}/temporary{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.write(fd, data)
            os.close(fd)
        folder = os.open(self.root, os.O_RDONLY)
        _sync_whole(folder)
        for number, key in enumerate(items):
            os.replace(f"{self.root}/temporary{number}", f"{self.root}/{key}")
        os.fsync(folder)
        os.close(folder)

    def contains(self, key: str) -> bool:
        return os.access(f"{self.root}/{key}", os.F_OK)


def _sync_whole(fd: int) -> None:
    """Make durable what is written to the file system of an open file; where that cannot be said, to all of them."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "syncfs"):
        os.sync()
    elif library.syncfs(fd) != 0:
        raise OSError("syncfs failed")


def newest_file(folder: str) -> tuple[float, str]:
    """When the newest file below a folder was written, and its path: what everybody would write."""
    newest = 0.0, ""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found = newest_file(entry.path)
            else:
                found = entry.stat(follow_symlinks=False).st_mtime, entry.path
            if found > newest:
                newest = found
    return newest


def write_new(path: str, data: Any) -> None:
    """A new file with these bytes, or those of an array."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.write(fd, data)
    os.close(fd)


def write_folder(folder: str, buffers: Mapping[str, Any]) -> None:
    """A new folder, and a file for each of the buffers."""
    os.mkdir(folder)
    for name, data in buffers.items():
        write_new(f"{folder}/{name}", data)


class Digested:
    """Files that are called by the digest of their bytes; what is there is not written again.

    Args:
        root: A new folder.
    """

    def __init__(self, root: str) -> None:
        os.mkdir(root)
        self.root = root
        self.names: set[str] = set()
        self._pool = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)))  # as many as perdure takes

    def put_all(self, buffers: Iterable[Any]) -> set[str]:
        """Write what is new, and tell the names of all."""
        return set(self._pool.map(self._put, buffers))

    def _put(self, data: Any) -> str:
        name = blake3(data).hexdigest()
        if name not in self.names:
            write_new(f"{self.root}/{name}", data)
        return name

    def keep(self, names: set[str]) -> int:
        """Remove all but these, and tell how many bytes are new among them."""
        written = sum(os.path.getsize(f"{self.root}/{name}") for name in names - self.names)
        for name in self.names - names:
            os.unlink(f"{self.root}/{name}")
        self.names = names
        return written

    def close(self) -> None:
        self._pool.shutdown()


class Table:
    """Values in a SQLite file: one connection, one statement for each call."""

    def __init__(self, path: str, sync: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=60)
        self.db.executescript(PRAGMAS.format(sync=sync))
        self.db.execute(SCHEMA)
        self.versions = count()

    def get_bytes(self, key: str) -> bytes:
        return bytes(self.db.execute(GET, (key,)).fetchone()[0])

    def get(self, key: str) -> Any:
        return pickle.loads(self.db.execute(GET, (key,)).fetchone()[0])

    def put(self, key: str, data: bytes) -> None:
        # A new version each time: SQLite writes nothing at all where a row stays the same.
        self.db.execute(PUT, (key, f"{next(self.versions):016x}", time(), data))

    def put_many(self, items: Mapping[str, bytes]) -> None:
        now = time()
        self.db.execute("BEGIN")
        self.db.executemany(PUT, [(key, f"{next(self.versions):016x}", now, data) for key, data in items.items()])
        self.db.execute("COMMIT")

    def contains(self, key: str) -> bool:
        return self.db.execute("SELECT 1 FROM blobs WHERE key = ?", (key,)).fetchone() is not None

    def keys(self) -> list[str]:
        return [row[0] for row in self.db.execute(KEYS)]

    def close(self) -> None:
        self.db.close()


class Http:
    """S3 requests over sockets that are open already: no signature, no parser but for the length of the answer.

    Args:
        port: Of a server on this machine that asks for no signature.
        connections: How many requests may be in flight.
    """

    def __init__(self, port: int, connections: int = 1) -> None:
        self.sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        for each in self.sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        self.sockets[0].sendall(_request(method, path, body))
        return _answer(self.sockets[0])

    def ask_all(self, method: str, paths: Sequence[str], body: bytes = b"") -> None:
        """Each connection asks, all are answered, and so on: latency is paid once for as many as there are connections."""
        step = len(self.sockets)
        for start in range(0, len(paths), step):
            busy = list(zip(self.sockets, paths[start : start + step], strict=False))
            for each, path in busy:
                each.sendall(_request(method, path, body))
            for each, _ in busy:
                _answer(each)

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def _request(method: str, path: str, body: bytes) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _answer(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 18)
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(1 << 18)
    at = data.find(b"content-length: ", 0, end)
    length = int(data[at + 16 : data.index(b"\r", at)]) if at >= 0 else 0
    while len(data) < end + 4 + length:
        data += connection.recv(1 << 18)
    return data[end + 4 :]


def with_data(put: Callable[[str, bytes], object], data: bytes) -> Callable[[str], object]:
    """A function of the key alone, for the race."""
    return lambda key: put(key, data)


def with_value(put: Callable[[str, bytes], object], value: object) -> Callable[[str], object]:
    """The same, with the value pickled each time."""
    return lambda key: put(key, pickle.dumps(value, protocol=5))


def all_with_value(put_many: Callable[[dict[str, bytes]], object], value: object) -> Callable[[Sequence[str]], object]:
    """A function of many keys, with the value pickled for each."""
    return lambda keys: put_many({key: pickle.dumps(value, protocol=5) for key in keys})
