"""The way to a server, and the first step on it."""

from __future__ import annotations

import socket
import ssl
from typing import Any, NamedTuple

from ._s3_forks import unforked


class Route(NamedTuple):
    """How to reach a server.

    Attributes:
        host: Its name or address.
        port: Its port.
        tls: How to check its certificate; `None` for plain HTTP.
        proxy: URL of an HTTP proxy to go through, or `None`.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    proxy: str | None


def connect(address: tuple[str, int], patience: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers, each within `patience` seconds."""
    with unforked:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failed: list[OSError] = []
    try:
        for family, kind, protocol, _, where in found:
            try:
                return _connect_once(socket.socket(family, kind, protocol), where, patience)
            except OSError as error:
                failed.append(error)
        raise failed[0] if failed else OSError("its name has no address")
    finally:
        failed.clear()  # each knows this frame, which would know it


def _connect_once(sock: socket.socket, where: Any, patience: float) -> socket.socket:
    try:
        sock.settimeout(patience)
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock
