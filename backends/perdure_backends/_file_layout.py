"""What stands in a value's file, and where its ETag comes from.

An ETag is never made of times and inode numbers alone: ext4 hands a freed inode back at once, clocks are coarse and are put
back, and such an ETag has accepted a stale swap 100 times out of 100.
"""

from __future__ import annotations

import os
from functools import partial
from os import read
from struct import Struct
from struct import error as StructError  # noqa: N812
from time import time_ns
from typing import NamedTuple, NoReturn, Protocol
from zlib import crc32

from perdure.errors import IntegrityError
from perdure.protocol import Blob, Buffer, ETag

from ._system import read_all, write_all

_FIRST_READ = 1 << 14  # one call fetches all of most values
_START = b"PRDF\1\0\0\0"  # magic and format
_HEADER = Struct(">8sQQ16sI")  # start, length, nanoseconds since the epoch, token, crc32 of the 40 bytes before
_unpack = _HEADER.unpack_from
_blob = partial(tuple.__new__, Blob)  # half the cost of Blob(...), on the path of every read
HINT = "Restore it from a copy, delete it, or let `perdure doctor --repair` set it aside."


class Version(NamedTuple):
    """ETag, size of the value in bytes, and time of the write in seconds since the epoch."""

    etag: ETag
    size: int
    modified: float


class Layout(Protocol):
    """How one value is kept in one open file."""

    def read(self, fd: int) -> Blob:
        """The whole value; `IntegrityError` where the file cannot be what was written."""
        ...

    def version(self, fd: int) -> Version:
        """All but the value."""
        ...

    def write(self, fd: int, data: Buffer) -> ETag:
        """Fill a new file."""
        ...


class Framed:
    """A 44-byte header before the value: `PRDF`, format, length, time, a random token, and a checksum of all that.

    The token is the ETag, so comparing versions reads the header only. The value's own checksum is the codec's business.
    """

    def read(self, fd: int) -> Blob:
        raw = read(fd, _FIRST_READ)
        # The same lines as in _parse: to call it would cost every read a tenth more.
        try:
            start, length, nanoseconds, token, checksum = _unpack(raw)
        except StructError:
            self._refuse(raw)
        if crc32(raw[:40]) != checksum or start != _START:
            self._refuse(raw)
        if len(raw) == 44 + length:
            return _blob((raw[44:], token.hex(), nanoseconds / 1e9))
        # Long, or not as long as it says; asked of the file before a claim of many gigabytes is believed.
        actual = os.fstat(fd).st_size - 44
        data = read_all(fd, length, 44) if actual == length else b""
        if len(data) != length:
            raise IntegrityError(f"the value has {actual} bytes of {length}", hint=HINT)
        return _blob((data, token.hex(), nanoseconds / 1e9))

    def _parse(self, raw: bytes) -> Version:
        try:
            start, length, nanoseconds, token, checksum = _unpack(raw)
        except StructError:
            self._refuse(raw)
        if crc32(raw[:40]) != checksum or start != _START:
            self._refuse(raw)
        return Version(ETag(token.hex()), length, nanoseconds / 1e9)

    def _refuse(self, raw: bytes) -> NoReturn:
        if len(raw) < 44:
            raise IntegrityError(f"the file is cut short or foreign: {len(raw)} bytes", hint=HINT)
        if crc32(raw[:40]).to_bytes(4, "big") != raw[40:44] or raw[:4] != b"PRDF":
            raise IntegrityError("the file's header is damaged or foreign", hint=HINT)
        raise IntegrityError(f"the file has format {raw[4]}, which this version does not know", hint="Upgrade perdure.")

    def version(self, fd: int) -> Version:
        return self._parse(read(fd, 44))

    def write(self, fd: int, data: Buffer) -> ETag:
        token = os.urandom(16)
        if not isinstance(data, bytes):
            view = memoryview(data)
            data = view.cast("B") if view.c_contiguous else view.tobytes()
        head = _HEADER.pack(_START, len(data), time_ns(), token, 0)[:40]
        write_all(fd, [head, crc32(head).to_bytes(4, "big"), data])
        return ETag(token.hex())
