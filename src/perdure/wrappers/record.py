"""One copy of a value as one piece of bytes, so that value and ETag cannot be torn apart.

::

    PRDC 1               magic, format
    length, place        whose value this is a copy of
    modified             when it was written there, seconds since the epoch
    length, ETag
    the value's bytes
    checksum             CRC-32 of the key and of all of the above

The key is in the checksum only, so a copy that was moved under another key does not fit either.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

from ..protocol import Blob

_MAGIC: Final = b"PRDC\x01"
_LENGTH: Final = struct.Struct("<I")
_ABOUT: Final = struct.Struct("<dI")
# The CRC-32 of anything followed by its own little-endian CRC-32: one call checks a record, without cutting it first.
_WHOLE: Final = 0x2144DF1C
_new = tuple.__new__  # half the cost of Blob(...), on the path of every read


class Records:
    """Writes and reads the copies of one place. Immutable.

    Args:
        place: What tells it from other places that have copies in the same folder.
    """

    def __init__(self, place: str) -> None:
        name = place.encode("utf-8", "surrogatepass")  # paths may hold what is no text
        self._head = _MAGIC + _LENGTH.pack(len(name)) + name
        self._start = len(self._head)
        self._end = self._start + _ABOUT.size
        self._about = _ABOUT.unpack_from

    def write(self, key: str, blob: Blob) -> bytes:
        """The record of a value. Copies it once."""
        etag = blob.etag.encode()
        about = self._head + _ABOUT.pack(blob.modified, len(etag)) + etag
        crc = crc32(blob.data, crc32(about, crc32(key.encode())))
        return b"".join((about, blob.data, _LENGTH.pack(crc)))

    def read(self, key: str, record: bytes) -> Blob | None:
        """The value in a record; `None` where it is of another key, place or format, cut, or changed in any way."""
        if crc32(record, crc32(key.encode())) != _WHOLE or not record.startswith(self._head):
            return None
        try:
            modified, length = self._about(record, self._start)
            end = self._end + length
            return _new(Blob, (record[end:-4], record[self._end : end].decode(), modified))
        except (struct.error, UnicodeDecodeError):
            return None  # somebody took the trouble to make the checksum fit
