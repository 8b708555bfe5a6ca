"""What a cache keeps under a key: a value, the claim of somebody who is computing one, or both.

An entry is a frame (`perdure.codecs.chain`) of codec number 0, which has no codec, but a header and another frame::

    0        the head of a frame: 0xC1, 1, 0, 0
    4        flags: 1 there is a value, 2 the value is an error, 4 somebody claims the key; 8 it is a note
    5        when the value was stored, if that is not when this was written; seconds since the epoch, a double, else 0
    13       how long the value took to compute: seconds, a float
    17       how long the claim is good when it is not renewed: seconds, a float
    21       the claim's token, 12 bytes, and how often it was renewed, 4 bytes
    37       the value as its chain wrote it
    -4       CRC-32 of everything before it

Value and claim stand in one record so that one compare-and-swap decides about both: who claimed a key and was then
overtaken, or whose value was invalidated meanwhile, cannot store its result any more.

A note is something that perdure itself keeps under a key, such as the state of a lock: its bytes stand where a value would. A
dict that has a note among its keys finds no value there.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from ..errors import CodecError, IntegrityError

__all__ = [
    "HEAD",
    "PLAIN",
    "START",
    "Entry",
    "Unfinished",
    "holds_value",
    "is_claim",
    "read_note",
    "write_note",
    "read_entry",
    "value_in",
    "write_entry",
]

HEAD: Final = b"\xc1\x01\x00\x00"
_VALUE: Final = 1
_ERROR: Final = 2
_CLAIM: Final = 4
_NOTE: Final = 8
PLAIN: Final = HEAD + bytes((_VALUE,)) + bytes(8)
"""How an entry begins that is a value and nothing else, stored when it was written."""

_PACKED: Final = Struct("<4sBdff12sI")
COST: Final = 13
"""Where the cost is, a little-endian float."""

START: Final = _PACKED.size
"""Where the value begins."""

BARE: Final = START + 4
"""The size of a claim without a value. No value is as small."""

_crc = Struct("<I").pack
_WHOLE: Final = 0x2144DF1C
_NOBODY: Final = bytes(12)


class Unfinished(CodecError):
    """There is no value under the key: somebody is computing it, or was killed while doing so; or it is a note."""


class Entry(NamedTuple):
    """An entry, taken apart.

    Attributes:
        value: The value's bytes as its chain wrote them; None where there is only a claim.
        is_error: The value is an exception that the function raised.
        stored: When the value was stored, in seconds since the epoch; 0.0 for when the entry was written.
        cost: How long it took to compute, in seconds.
        lease: How long the claim is good when it is not renewed, in seconds.
        token: Whose claim it is, 12 bytes; empty where nobody claims it.
        renewals: How often the claim was renewed. So each renewal is another record, also where equal ones have equal ETags.
    """

    value: bytes | None
    is_error: bool = False
    stored: float = 0.0
    cost: float = 0.0
    lease: float = 0.0
    token: bytes = b""
    renewals: int = 0


def write_entry(entry: Entry) -> bytes:
    """The bytes of an entry. Copies the value once."""
    flags = (0 if entry.value is None else _VALUE) | (_ERROR if entry.is_error else 0) | (_CLAIM if entry.token else 0)
    token, renewals = entry.token or _NOBODY, entry.renewals & 0xFFFFFFFF
    header = _PACKED.pack(HEAD, flags, entry.stored, entry.cost, entry.lease, token, renewals)
    value = entry.value or b""
    return b"".join((header, value, _crc(crc32(value, crc32(header)))))


def read_entry(data: bytes) -> Entry | None:
    """An entry taken apart; None where these are no entry's bytes. Copies the value once.

    Raises:
        IntegrityError: They begin like one, and are damaged.
    """
    if not data.startswith(HEAD):
        return None
    if len(data) < START + 4 or crc32(data) != _WHOLE:
        raise IntegrityError("what is stored is damaged: its checksum does not fit")
    _head, flags, stored, cost, lease, token, renewals = _PACKED.unpack_from(data)
    value = data[START:-4] if flags & _VALUE else None
    return Entry(value, bool(flags & _ERROR), stored, cost, lease, token if flags & _CLAIM else b"", renewals)


def write_note(note: bytes) -> bytes:
    """A note, so that whoever looks for values knows that it is none."""
    header = _PACKED.pack(HEAD, _NOTE, 0.0, 0.0, 0.0, _NOBODY, 0)
    return b"".join((header, note, _crc(crc32(note, crc32(header)))))


def read_note(data: bytes) -> bytes | None:
    """The note in stored bytes; None where they are something else, or damaged."""
    if not data.startswith(HEAD) or len(data) < START + 4 or data[4] != _NOTE or crc32(data) != _WHOLE:
        return None
    return data[START:-4]


def is_claim(data: bytes) -> bool:
    """Tell whether somebody claims the key, without a look at the rest."""
    return data.startswith(HEAD) and len(data) > 4 and bool(data[4] & _CLAIM)


def holds_value(data: bytes) -> bool:
    """Tell whether stored bytes stand for a value, and not only for somebody's claim to compute it, or for an error."""
    if not data.startswith(HEAD):
        return True
    try:
        value_in(data)
    except Unfinished:
        return False
    except IntegrityError:
        return True  # whoever reads it is told
    return True


def value_in(data: bytes) -> bytes:
    """The value of an entry for who reads it without knowing of caches.

    Raises:
        IntegrityError: Damaged.
        Unfinished: There is none, or it is an error.
    """
    entry = read_entry(data)
    if entry is None or entry.value is None or entry.is_error:
        raise Unfinished("there is no value, but a note of perdure's own, or somebody's claim to compute one")
    return entry.value
