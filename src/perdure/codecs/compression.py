"""Filters that compress, and the bounded decompression that every reader of compressed bytes uses."""

from __future__ import annotations

import threading
from typing import Any

import lz4.frame

from ..errors import CodecError, IntegrityError, MissingExtraError

__all__ = ["LZ4_MAGIC", "Lz4", "Zstd", "expand_lz4"]

LZ4_MAGIC = b"\x04\x22\x4d\x18"
_PIECE = 1024  # of zstd; cannot unfold into more than 32 megabytes, so that much can the limit be exceeded for a moment
_LZ4_MOST = 255  # lz4 cannot expand further than that, so a head that claims more lies


class Lz4:
    """The filter `lz4`: fast compression (about 0.5 GB/s, reading 1 GB/s and more).

    Args:
        level: 0 is fast; 3 to 16 are slower and smaller.
    """

    name = "lz4"
    id = 1
    authentic = False

    def __init__(self, level: int = 0) -> None:
        self.level = level

    def __repr__(self) -> str:
        return "'lz4'" if self.level == 0 else f"Lz4({self.level})"

    def encode(self, data: bytes, header: bytes, key: str) -> bytes:
        packed: bytes = lz4.frame.compress(data, compression_level=self.level, store_size=True)
        return packed

    def decode(self, data: bytes | memoryview, header: bytes, key: str, limit: int) -> bytes:
        return expand_lz4(data, limit)


def expand_lz4(data: bytes | memoryview, limit: int) -> bytes:
    """Decompress exactly one lz4 frame into at most `limit` bytes, whatever its head claims.

    Raises:
        IntegrityError: Damaged, cut, or followed by something.
        CodecError: It would be larger than `limit`.
    """
    try:
        claimed: int = lz4.frame.get_frame_info(data)["content_size"]
        if claimed > _LZ4_MOST * len(data):
            raise IntegrityError("what is stored is damaged: its lz4 frame cannot hold what it claims")
        if claimed > limit:
            raise too_large(limit)
        expander = lz4.frame.LZ4FrameDecompressor()
        plain: bytes = expander.decompress(data, max_length=claimed or limit + 1)
        if not expander.eof and len(plain) <= limit:  # an exact buffer can be full before the end mark is read
            plain += expander.decompress(b"", max_length=1)
    except (RuntimeError, ValueError, EOFError) as error:
        if isinstance(error, CodecError):
            raise
        raise IntegrityError(f"what is stored is damaged: its lz4 frame cannot be decompressed ({error})") from error
    if len(plain) > limit:
        raise too_large(limit)
    if not expander.eof:
        raise IntegrityError("what is stored is damaged: its lz4 frame is cut")
    if expander.unused_data:
        raise IntegrityError("what is stored is damaged: something follows its lz4 frame")
    return plain


class Zstd:
    """The filter `zstd`: smaller than lz4 and slower to write. Needs the extra `zstd`.

    Args:
        level: 1 is fast, 19 small; negative levels are faster still.

    Raises:
        MissingExtraError: zstandard is not installed.
    """

    name = "zstd"
    id = 2
    authentic = False

    def __init__(self, level: int = 3) -> None:
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise MissingExtraError("zstandard", "zstd") from error
        self.level = level
        self._zstd: Any = zstandard
        self._own = threading.local()  # its compressors serve one thread at a time, and are dear to make

    def __repr__(self) -> str:
        return "'zstd'" if self.level == 3 else f"Zstd({self.level})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Zstd, (self.level,)

    def encode(self, data: bytes, header: bytes, key: str) -> bytes:
        try:
            compress = self._own.compress
        except AttributeError:
            compress = self._own.compress = self._zstd.ZstdCompressor(level=self.level).compress
        packed: bytes = compress(data)
        return packed

    def decode(self, data: bytes | memoryview, header: bytes, key: str, limit: int) -> bytes:
        try:
            expander = self._own.expander
        except AttributeError:
            expander = self._own.expander = self._zstd.ZstdDecompressor()
        try:
            claimed: int = self._zstd.frame_content_size(data)
            if claimed > limit:
                raise too_large(limit)
            if claimed >= 0:
                plain: bytes = expander.decompress(data, allow_extra_data=False)
                return plain
            return self._expand_unsized(expander, data, limit)
        except self._zstd.ZstdError as error:
            raise IntegrityError(f"what is stored is damaged: it cannot be decompressed ({error})") from error

    def _expand_unsized(self, expander: Any, data: bytes | memoryview, limit: int) -> bytes:
        """Decompress a frame of somebody who did not say how large it is: perdure always does."""
        stream = expander.decompressobj()
        pieces, size, read = [], 0, 0
        while read < len(data) and not stream.eof:
            piece = stream.decompress(data[read : read + _PIECE])
            read += _PIECE
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            pieces.append(piece)
        if not stream.eof or stream.unused_data or read < len(data):
            raise IntegrityError("what is stored is damaged: its zstd frame is cut, or something follows it")
        return b"".join(pieces)


def too_large(limit: int) -> CodecError:
    """Return the error for what would be larger than allowed once decompressed."""
    hint = "Give open(..., max_bytes=...) if you trust it."
    return CodecError(f"decompressed, this is larger than max_bytes={limit:,}", hint=hint)
