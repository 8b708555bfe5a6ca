"""Text and raw bytes, stored as they are."""

from __future__ import annotations

from typing import Any

from ..errors import CodecError, IntegrityError

__all__ = ["Raw", "Text"]


class Text:
    """The codecs `txt`, `md`, `csv` and so on: text in UTF-8, every character kept, line ends too.

    Args:
        name: The suffix under which a plain folder stores it.
    """

    id = 4
    safe = True
    bare = True
    any_bytes = False

    def __init__(self, name: str = "txt") -> None:
        self.name = name

    def encode(self, value: Any) -> bytes:
        if type(value) is not str:
            plain = "Decode it with .decode()" if isinstance(value, (bytes, bytearray)) else "Convert it with str(...)"
            hint = f'{plain}, or use codec="msgpack".'
            raise CodecError(f"value is a {type(value).__name__}, and codec {self.name!r} holds text only", hint=hint)
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            hint = 'Replace it, or use codec="msgpack", which holds such text.'
            raise CodecError(
                f"value[{error.start}] is half of a surrogate pair, which UTF-8 does not hold", hint=hint
            ) from error

    def decode(self, data: bytes | memoryview, limit: int) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            hint = 'If it was never text, use open(..., codec="raw").'
            raise IntegrityError(f"what is stored is not UTF-8 at byte {error.start}", hint=hint) from error


class Raw:
    """The codec `raw`: bytes. Without filters there is no frame, so no checksum but what the backend keeps."""

    name = "raw"
    id = 5
    safe = True
    bare = True
    any_bytes = True

    def encode(self, value: Any) -> bytes:
        if type(value) is not bytes:
            hint = 'Use codec="msgpack".'
            if isinstance(value, str):
                hint = 'Encode it with .encode(), or use codec="msgpack".'
            elif isinstance(value, (bytes, bytearray, memoryview)):  # of others it makes something else: bytes(5) is five zeros
                hint = 'Convert it with bytes(...), or use codec="msgpack".'
            raise CodecError(f"value is a {type(value).__name__}, and codec 'raw' holds bytes only", hint=hint)
        return value

    def decode(self, data: bytes | memoryview, limit: int) -> bytes:
        return bytes(data)
