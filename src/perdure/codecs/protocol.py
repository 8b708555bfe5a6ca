"""The two seams between a value and the bytes that a backend keeps: `Codec` (value <-> bytes), `Filter` (bytes <-> bytes)."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

__all__ = ["Buffer", "Codec", "Filter", "Pieces"]

Buffer: TypeAlias = bytes | bytearray | memoryview
Pieces: TypeAlias = bytes | list[Buffer]
"""What a codec returns: bytes, or several buffers that the frame joins, so that a large array is copied once only."""


class Codec(Protocol):
    """Turns a value into bytes and back. One instance serves all threads.

    Attributes:
        name: What users write: `open(..., codec=name)`. A bare codec's values carry it as their suffix in a plain folder.
        id: One byte that stands in every frame and decides who decodes it. 1 to 127 are ours, 128 to 255 are yours.
        safe: Decoding bytes from anybody builds data and never runs code.
        bare: Without filters, exactly this codec's own bytes are stored, for other programs to read; no frame.
        any_bytes: Every byte string is a value of this codec, so nothing tells a damaged one.
    """

    name: str
    id: int
    safe: bool
    bare: bool
    any_bytes: bool

    def encode(self, value: Any) -> Pieces:
        """Turn a value into bytes, or raise `CodecError` and say which part of it cannot be held."""
        ...

    def decode(self, data: bytes | memoryview, limit: int) -> Any:
        """Turn bytes back into an equal value of the same types; nothing it returns may keep `data` alive as a view.

        Args:
            data: What `encode` returned, joined; or whatever somebody else has put there.
            limit: The most bytes that a decompression inside may yield.

        Raises:
            IntegrityError: The bytes are damaged.
            CodecError: They are whole and cannot be decoded. Other exceptions become one, so do not fear to let them out.
        """
        ...


class Filter(Protocol):
    """Turns bytes into other bytes and back: compresses, signs, encrypts. One instance serves all threads.

    Attributes:
        name: What users write or read in messages.
        id: One byte, 1 to 255, in every frame. With the top bit set, a value without this filter is refused.
        authentic: Nobody without the key can make bytes that `decode` accepts.
    """

    name: str
    id: int
    authentic: bool

    def encode(self, data: bytes, header: bytes, key: str) -> bytes:
        """Filter what is written.

        Args:
            data: The bytes so far.
            header: The head of the frame: format, codec and filters. A signature covers it.
            key: The whole key from the root of the store. A signature covers it too.
        """
        ...

    def decode(self, data: bytes | memoryview, header: bytes, key: str, limit: int) -> bytes | memoryview:
        """Undo `encode`. Never yields more than `limit` bytes. Raises `IntegrityError`, `UntrustedError` or `CodecError`."""
        ...
