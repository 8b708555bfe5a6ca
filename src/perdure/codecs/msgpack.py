"""The default codec. The work is done in `perdure.codecs.packing`, which takes its time to import; until then a few plain
values are read here, for a process that starts, looks one thing up and ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from struct import error as StructError  # noqa: N812
from struct import unpack_from
from typing import Any, Final

from ..errors import CodecError
from .protocol import Pieces

__all__ = ["Msgpack"]


class Msgpack:
    """The codec `msgpack`. Holds, with exact types and the order of dicts: None, bool, int and float of any value, str, bytes,
    bytearray, list, tuple, dict with any hashable key, set, frozenset, datetime, date, time, timedelta, timezone-aware ones
    included, Decimal, UUID, complex, range, slice, numpy arrays and scalars, and what `perdure.register_type` was told.

    Subclasses of these are refused unless registered, because their type would be lost.

    Cost: 0.1 µs over ormsgpack for a small dict; 30 ms once, for importing it, at the first write or after the first
    kilobytes read. Safe on bytes from anybody: builds data, never imports or calls by name; memory is at most about 80 times
    the length of the bytes.
    """

    name = "msgpack"
    id = 1
    safe = True
    bare = False
    any_bytes = False

    encode: Callable[[Any], Pieces]
    decode: Callable[[bytes | memoryview, int], Any]

    def __init__(self) -> None:
        if hasattr(sys.modules.get(f"{__package__}.packing"), "whole"):
            self._import()
            return
        self._allowance = 8192  # bytes to be read here: as much as can be in a tenth of the time that the import takes
        self.encode = self._encode_first
        self.decode = self._decode_first

    def _import(self) -> None:
        from . import packing

        if not hasattr(packing, "whole"):  # this very thread is importing it, further up the stack
            raise CodecError(
                "the codec is being imported, and this was called by a signal handler or a finalizer meanwhile",
                hint="Write a value, or import perdure.codecs.packing, before such calls can come.",
            )
        self.encode = packing.encode
        self.decode = packing.decode

    def _encode_first(self, value: Any) -> Pieces:
        self._import()
        return self.encode(value)

    def _decode_first(self, data: bytes | memoryview, limit: int) -> Any:
        self._allowance -= len(data)
        if self._allowance >= 0 and isinstance(data, bytes):
            try:
                value, end = _read(data, 0, 0)
                if end == len(data):
                    return value
            except (LookupError, ValueError, StructError):
                pass  # not plain, or not whole: which of them, the other one says
        self._import()
        return self.decode(data, limit)

    def __reduce__(self) -> tuple[type[Msgpack], tuple[()]]:
        return Msgpack, ()


# What follows each mark: what it is, and how many bytes its number or length takes. All other marks are left to ormsgpack.
_MARKS: Final = {
    **{0xC4 + i: ("bytes", 1 << i) for i in range(3)},
    **{0xCC + i: ("natural", 1 << i) for i in range(4)},
    **{0xD0 + i: ("integer", 1 << i) for i in range(4)},
    **{0xD9 + i: ("text", 1 << i) for i in range(3)},
    **{0xDC + i: ("list", 2 << i) for i in range(2)},
    **{0xDE + i: ("dict", 2 << i) for i in range(2)},
    0xCB: ("float", 8),
}
_WORDS: Final = {0xC0: None, 0xC2: False, 0xC3: True}
_DEEPEST: Final = 20


def _read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Read one plain value from a position; return it and where it ends, which is beyond the end where data is cut."""
    mark = data[at]
    at += 1
    if mark < 0x80:
        return mark, at
    if mark >= 0xE0:
        return mark - 0x100, at
    if mark in _WORDS:
        return _WORDS[mark], at
    if mark < 0xC0:
        kind, size = ("dict", mark & 15) if mark < 0x90 else ("list", mark & 15) if mark < 0xA0 else ("text", mark & 31)
    else:
        kind, width = _MARKS[mark]
        size = int.from_bytes(data[at : at + width], "big", signed=kind == "integer")
        at += width
        if kind == "natural" or kind == "integer":
            return size, at
        if kind == "float":
            return unpack_from(">d", data, at - 8)[0], at
    if kind == "text":
        return data[at : at + size].decode(), at + size
    if kind == "bytes":
        return data[at : at + size], at + size
    if depth == _DEEPEST:
        raise LookupError("deep")
    parts = []
    for _ in range(size if kind == "list" else 2 * size):
        part, at = _read(data, at, depth + 1)
        parts.append(part)
    if kind == "list":
        return parts, at
    keys = parts[::2]
    if set(map(type, keys)) - {str} or len(set(keys)) < size:
        raise LookupError("keys that are not plain")
    return dict(zip(keys, parts[1::2], strict=True)), at
