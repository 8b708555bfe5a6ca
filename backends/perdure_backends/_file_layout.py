"""What stands in a value's file, and where its ETag comes from.

An ETag is never made of times and inode numbers alone: ext4 hands a freed inode back at once, clocks are coarse and are put
back, and such an ETag has accepted a stale swap 100 times out of 100.
"""

from __future__ import annotations

import os
import stat
from hashlib import blake2b
from struct import Struct
from time import time_ns
from typing import NamedTuple, Protocol
from zlib import crc32

from perdure.errors import IntegrityError
from perdure.protocol import Blob, Buffer, ETag

from ._system import read_all, write_all

_FIRST_READ = 1 << 16  # one call fetches all of most values
_HINT = "Restore it from a copy, delete it, or let `perdure doctor --repair` set it aside."


class Version(NamedTuple):
    """ETag, size of the value in bytes, and time of the write in seconds since the epoch."""

    etag: ETag
    size: int
    modified: float


class Layout(Protocol):
    """How one value is kept in one open file."""

    name: str

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

    name = "framed"
    _header = Struct(">4sB3xQQ16sI")  # magic, format, length, nanoseconds since the epoch, token, crc32 of the 40 bytes before
    _checked = 40
    _size = 44

    def _parse(self, raw: bytes) -> tuple[int, ETag, float]:
        if len(raw) < self._size:
            raise IntegrityError(f"the file is cut short or foreign: {len(raw)} bytes", hint=_HINT)
        magic, form, length, nanoseconds, token, checksum = self._header.unpack_from(raw)
        if crc32(raw[: self._checked]) != checksum or magic != b"PRDF":
            raise IntegrityError("the file's header is damaged or foreign", hint=_HINT)
        if form != 1:
            raise IntegrityError(f"the file has format {form}, which this version does not know", hint="Upgrade perdure.")
        return length, token.hex(), nanoseconds / 1e9

    def read(self, fd: int) -> Blob:
        raw = os.read(fd, _FIRST_READ)
        length, etag, modified = self._parse(raw)
        if len(raw) == self._size + length and len(raw) < _FIRST_READ:
            return Blob(raw[self._size :], etag, modified)
        # Long, or not as long as it says; asked of the file before a claim of many gigabytes is believed.
        actual = os.fstat(fd).st_size - self._size
        if actual != length:
            raise IntegrityError(f"the value has {actual} bytes of {length}", hint=_HINT)
        data = read_all(fd, length, self._size)
        if len(data) != length:
            raise IntegrityError(f"the value has {len(data)} bytes of {length}", hint=_HINT)
        return Blob(data, etag, modified)

    def version(self, fd: int) -> Version:
        length, etag, modified = self._parse(os.read(fd, self._size))
        return Version(etag, length, modified)

    def write(self, fd: int, data: Buffer) -> ETag:
        token = os.urandom(16)
        if not isinstance(data, bytes):
            view = memoryview(data)
            data = view.cast("B") if view.c_contiguous else view.tobytes()
        head = self._header.pack(b"PRDF", 1, len(data), time_ns(), token, 0)[: self._checked]
        write_all(fd, [head, crc32(head).to_bytes(4, "big"), data])
        return ETag(token.hex())


class Plain:
    """The value's bytes and nothing else, readable by other programs. The ETag is a hash of them with the file's time."""

    name = "plain"

    def read(self, fd: int) -> Blob:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise IntegrityError("this is not a regular file", hint=_HINT)
        data = read_all(fd, info.st_size, 0)
        return Blob(data, _content_tag(data, info), info.st_mtime)

    def version(self, fd: int) -> Version:
        blob = self.read(fd)
        return Version(blob.etag, len(blob.data), blob.modified)

    def write(self, fd: int, data: Buffer) -> ETag:
        whole = data if isinstance(data, bytes) else bytes(data)
        write_all(fd, [whole])
        return _content_tag(whole, os.fstat(fd))


def _content_tag(data: bytes, info: os.stat_result) -> ETag:
    return ETag(f"{blake2b(data, digest_size=16).hexdigest()}-{info.st_mtime_ns:x}")
