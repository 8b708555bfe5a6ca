"""What stands in a value's file, and where its ETag comes from.

An ETag is never made of times and inode numbers alone: ext4 hands a freed inode back at once, clocks are coarse and are put
back, and such an ETag has accepted a stale swap 100 times out of 100.
"""

from __future__ import annotations

import os
from functools import lru_cache
from os import read
from struct import Struct
from time import time_ns
from typing import NamedTuple, Protocol
from zlib import crc32

from perdure.errors import IntegrityError
from perdure.protocol import Blob, Buffer, ETag

from ._file_spots import Spot
from ._system import OPEN_READ, read_all, set_time, write_all

_FIRST_READ = 1 << 14  # one call fetches all of most values
_HEADER = Struct(">4sB3xQQ16sI")  # magic, format, length, nanoseconds since the epoch, token, crc32 of the 40 bytes before
_new = tuple.__new__  # half the cost of Blob(...), on the path of every read
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

    def use(self, info: os.stat_result) -> tuple[int, float]:
        """The size of the value and when it was last used, by the state of its file."""
        ...


def modified(info: os.stat_result) -> float:
    """The time that the header of a framed value says, by the state of its file."""
    return info.st_mtime_ns / 1e9


def look(spot: Spot, layout: Layout) -> Version:
    """Open a value's file, if no link leads there, and read all but the value."""
    if spot.folders:
        spot.refuse_links()
    fd = os.open(spot.path, OPEN_READ)
    try:
        return layout.version(fd)
    finally:
        os.close(fd)


class Framed:
    """A 44-byte header before the value: `PRDF`, format, length, time, a random token, and a checksum of all that.

    The token is the ETag, so comparing versions reads the header only. The value's own checksum is the codec's business. The
    file itself gets the same time, so that times can be listed without opening any.
    """

    def read(self, fd: int) -> Blob:
        raw = read(fd, _FIRST_READ)
        etag, length, modified = _parse(raw[:44])
        if len(raw) == 44 + length:
            return _new(Blob, (raw[44:], etag, modified))
        # Long, or not as long as it says; asked of the file before a claim of many gigabytes is believed.
        actual = os.fstat(fd).st_size - 44
        data = read_all(fd, length, 44) if actual == length else b""
        if len(data) != length:
            raise IntegrityError(f"the value has {actual} bytes of {length}", hint=HINT)
        return _new(Blob, (data, etag, modified))

    def version(self, fd: int) -> Version:
        return _parse(read(fd, 44))

    def write(self, fd: int, data: Buffer) -> ETag:
        token = os.urandom(16)
        if not isinstance(data, bytes):
            view = memoryview(data)
            data = view.cast("B") if view.c_contiguous else view.tobytes()
        now = time_ns() // 100 * 100  # NTFS keeps no finer times
        head = _HEADER.pack(b"PRDF", 1, len(data), now, token, 0)[:40]
        write_all(fd, [head, crc32(head).to_bytes(4, "big"), data])
        set_time(fd, now)
        return ETag(token.hex())

    def use(self, info: os.stat_result) -> tuple[int, float]:
        return max(info.st_size - 44, 0), max(info.st_atime_ns, info.st_mtime_ns) / 1e9


@lru_cache(maxsize=2048)  # values that are read again and again: their headers, all different, say the same again
def _parse(header: bytes) -> Version:
    if len(header) < 44:
        raise IntegrityError(f"the file is cut short or foreign: {len(header)} bytes", hint=HINT)
    magic, form, length, nanoseconds, token, checksum = _HEADER.unpack(header)
    if crc32(header[:40]) != checksum or magic != b"PRDF":
        raise IntegrityError("the file's header is damaged or foreign", hint=HINT)
    if form != 1:
        raise IntegrityError(f"the file has format {form}, which this version does not know", hint="Upgrade perdure.")
    return Version(ETag(token.hex()), length, nanoseconds / 1e9)
