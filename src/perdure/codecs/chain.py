"""The frame around a value, and the chain of codec and filters that fills and reads it.

A frame, byte by byte::

    0        0xC1, which begins neither msgpack, pickle, lz4, JSON nor UTF-8 text
    1        format version: 1
    2        codec id
    3        n, the number of filters
    4        n filter ids, in the order in which they were applied when writing
    4 + n    payload
    -4       CRC-32 (as in zlib and PNG) of everything before it, little endian

The first byte and the last four stay what they are in every later version, so that any reader can tell a damaged value
from one of a newer format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any, Final, NoReturn
from zlib import crc32

from ..errors import CodecError, IntegrityError, UntrustedError, UsageError
from . import codec_by_name, codec_name_of_id, filter_by_name, filter_name_of_id, spell_filter
from .protocol import Codec, Filter

__all__ = ["MAX_BYTES", "Chain"]

MAGIC: Final = b"\xc1"
VERSION: Final = 1
MAX_BYTES: Final = 2**31 - 1
"""The default limit: two gigabytes less one byte, the most that every filter can take in one piece."""

# The CRC-32 of anything followed by its own little-endian CRC-32: one call checks a frame, without cutting it first.
_WHOLE: Final = 0x2144DF1C
_SMALL: Final = 1 << 14  # below this a copy is quicker than a memoryview
_pack_crc = Struct("<I").pack


class Chain:
    """A codec and the filters after it. Immutable, and safe to share between threads; may be pickled, keys included.

    Args:
        codec: A name (see `perdure.codecs`) or a codec object.
        filters: Names or filter objects, or a single one, in the order in which they are applied when writing: compress before
            you encrypt.
        trusted: Whoever can write the stored bytes may run code here: lets the codec `json` restore arbitrary objects.
        max_bytes: The most bytes a value may have, as stored and after each decompression. Larger ones are neither written
            nor read.

    Attributes:
        codec: The codec object.
        filters: The filter objects.
        authentic: Only who has the key of a filter can make bytes that this chain accepts.

    Raises:
        UsageError: An unknown name, or a filter given twice.
        MissingExtraError: A filter needs what is not installed.
    """

    def __init__(
        self,
        codec: str | Codec = "msgpack",
        filters: str | Filter | Iterable[str | Filter] = (),
        *,
        trusted: bool = False,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.codec = codec_by_name(codec, trusted=trusted) if isinstance(codec, str) else codec
        given = tuple(filters) if isinstance(filters, Iterable) and not isinstance(filters, str) else (filters,)
        self.filters: tuple[Filter, ...] = tuple(filter_by_name(f) if isinstance(f, str) else f for f in given)
        for part, what, mark in ((self.codec, "codec", "bare"), *((f, "filter", "authentic") for f in self.filters)):
            if not hasattr(part, mark):
                hint = f"Give a name, or an object with what perdure.codecs.{what.title()} has."
                raise UsageError(f"{part!r:.80} is not a {what}", hint=hint)
        self.trusted = trusted
        self.max_bytes = max_bytes
        self.authentic = any(f.authentic for f in self.filters)
        ids = [f.id for f in self.filters]
        if len(set(ids)) < len(ids):
            raise UsageError("a filter is given twice", hint="Give each once; for several keys use also=[...].")
        if not isinstance(max_bytes, int) or max_bytes <= 0:
            raise UsageError(f"max_bytes is a positive number of bytes, not {max_bytes!r}")
        self._header = MAGIC + bytes((VERSION, self.codec.id, len(ids), *ids))
        self._header_crc = crc32(self._header)
        self._start = len(self._header)
        self._quick = 0 if self.filters else _SMALL
        self._bare = self.codec.bare and not self.filters
        self._backwards = self.filters[::-1]

    def __repr__(self) -> str:
        words = [repr(self.codec.name), *([f"[{', '.join(map(repr, self.filters))}]"] if self.filters else [])]
        return f"Chain({', '.join(words)}{', trusted=True' if self.trusted else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (self.codec, self.filters, self.trusted, self.max_bytes)

    def encode(self, value: Any, key: str) -> bytes:
        """Turn a value into the bytes to store.

        Args:
            value: What the codec holds.
            key: The whole key from the root of the store; filters that sign cover it.

        Raises:
            CodecError: The codec cannot hold the value (the message says which part), or it is larger than `max_bytes`.

        Cost: for a small dict of msgpack half a microsecond over the codec itself; no copy beyond joining the frame.
        """
        try:
            payload = self.codec.encode(value)
        except CodecError as error:
            error.at(key)
            raise
        except Exception as error:
            raise CodecError(f"codec {self.codec.name!r} cannot hold this value: {_say(error)}", key=key) from error
        if isinstance(payload, bytes):
            if self.filters or self._bare:
                return self._finish(payload, key)
            crc = crc32(payload, self._header_crc)
            data = b"".join((self._header, payload, _pack_crc(crc)))
        elif self.filters or self._bare:
            return self._finish(b"".join(payload), key)
        else:
            crc = self._header_crc
            for piece in payload:
                crc = crc32(piece, crc)
            data = b"".join((self._header, *payload, _pack_crc(crc)))
        if len(data) > self.max_bytes:
            self._too_long("it is", len(data), key)
        return data

    def _finish(self, payload: bytes, key: str) -> bytes:
        """Apply filters and frame, or leave both out for a bare codec."""
        if len(payload) > self.max_bytes:
            self._too_long("it is", len(payload), key)
        if self._bare and not (payload[:1] == MAGIC and crc32(payload) == _WHOLE):
            return payload  # a value that is itself a frame goes into another one, or it would be taken off when reading
        try:
            for f in self.filters:
                payload = f.encode(payload, self._header, key)
        except CodecError as error:
            error.at(key)
            raise
        except Exception as error:
            raise CodecError(f"the filters cannot take this value: {_say(error)}", key=key) from error
        data = b"".join((self._header, payload, _pack_crc(crc32(payload, self._header_crc))))
        if len(data) > self.max_bytes:
            self._too_long("it is", len(data), key)
        return data

    def decode(self, data: bytes, key: str) -> Any:
        """Turn stored bytes back into the value.

        In this order: length limit, checksum, signature or decryption and bounded decompression as the frame says, decoding.

        Args:
            data: What is stored, by whomever.
            key: The whole key from the root of the store.

        Raises:
            IntegrityError: The bytes are damaged, cut, or not of this format.
            UntrustedError: A signature is missing or wrong, or reading this would run code.
            CodecError: Whole, and cannot be read here: another codec, a filter that was not given, a newer format, a type
                that is not registered, larger than `max_bytes`.
        """
        if len(data) > self.max_bytes:
            self._too_long("what is stored is", len(data), key)
        try:
            if data.startswith(self._header) and crc32(data) == _WHOLE:
                if len(data) < self._quick:  # nearly every read
                    return self.codec.decode(data[4:-4], self.max_bytes)
                start = self._start
                payload = data[start:-4] if len(data) < _SMALL else memoryview(data)[start:-4]
                for f in self._backwards:
                    payload = f.decode(payload, self._header, key, self.max_bytes)
                return self.codec.decode(payload, self.max_bytes)
            if self._bare and not data.startswith(MAGIC):
                return self.codec.decode(data, self.max_bytes)
            return self._decode_other(data, key)
        except CodecError as error:
            error.at(key)
            raise
        except Exception as error:
            raise CodecError(f"codec {self.codec.name!r} cannot decode this: {_say(error)}", key=key) from error

    def _decode_other(self, data: bytes, key: str) -> Any:
        """Decode what is not simply this chain's own frame, or say what it is."""
        if not data.startswith(MAGIC):
            return self._decode_unframed(data)
        if len(data) < 8 or crc32(data) != _WHOLE:
            if self._bare and self.codec.any_bytes:
                return self.codec.decode(data, self.max_bytes)
            raise IntegrityError("what is stored is damaged: its checksum does not fit")
        version, codec_id, count = data[1], data[2], data[3]
        if version != VERSION:
            raise CodecError(f"this was written by a newer perdure (format {version})", hint="Update: pip install -U perdure")
        if codec_id == 0:
            from .entry import value_in  # what a cache keeps, read by who knows of no caches

            return self.decode(value_in(data), key)
        start = 4 + count
        if len(data) < start + 4:
            raise IntegrityError("what is stored is damaged: its header is cut")
        if codec_id != self.codec.id:
            self._refuse_codec(codec_id)
        header = data[:start]
        filters = self._filters_of(header[4:])
        payload: bytes | memoryview = memoryview(data)[start:-4]
        for f in reversed(filters):
            payload = f.decode(payload, header, key, self.max_bytes)
        return self.codec.decode(payload, self.max_bytes)

    def _filters_of(self, ids: bytes) -> list[Filter]:
        """Return the filters that a frame names, all of which were given when opening, or complain."""
        mine = {f.id: f for f in self.filters}
        for id in ids:
            if id not in mine:
                name = filter_name_of_id(id)
                if name is None:
                    hint = "Give that filter when opening, or update perdure."
                    raise CodecError(f"this was written with filter number {id}, which is not known here", hint=hint)
                spelled = ", ".join(spell_filter(filter_name_of_id(i) or str(i)) for i in ids)
                raise CodecError(
                    f"this was written with the filter {name!r}, which was not given when opening",
                    hint=f"Use open(..., filters=[{spelled}]).",
                )
        if len(set(ids)) < len(ids):
            raise CodecError("a filter stands twice in the header, which perdure never writes")
        for f in self.filters:
            # Compression may have been switched on later. A signature that is missing is a forgery until told otherwise.
            if (f.authentic or f.id & 0x80) and f.id not in ids:
                self._refuse_unprotected(f)
        return [mine[id] for id in ids]

    def _decode_unframed(self, data: bytes) -> Any:
        """Decode a bare value where compression was switched on later; otherwise say what these bytes are."""
        if data[:1] in (b"", b"\0"):
            what = "empty" if not data else "zeroed"
            hint = "If it was written without filters, open it without filters." if self.codec.bare else None
            raise IntegrityError(f"what is stored is damaged: it is {what}", hint=hint)
        if crc32(memoryview(data)[1:], crc32(MAGIC)) == _WHOLE:
            raise IntegrityError("what is stored is damaged: its first byte was changed")
        for f in self.filters:
            if f.authentic or f.id & 0x80:
                self._refuse_unprotected(f)
        if self.codec.bare:
            return self.codec.decode(data, self.max_bytes)
        if _looks_like_pickle(data):
            raise UntrustedError(
                f"this is a pickle, not {self.codec.name}, and reading a pickle can run code",
                hint='If you trust everybody who can write there, use open(..., codec="pkl").',
            )
        hint = 'If it is JSON or text, use open(..., codec="json") or codec="txt".' if data[0] < 0x80 else None
        raise IntegrityError(
            "what is stored is damaged, or was not written by perdure: it does not begin as it must", hint=hint
        )

    def _refuse_codec(self, id: int) -> NoReturn:
        name = codec_name_of_id(id)
        if name is None:
            raise CodecError(
                f"this was written with codec number {id}, which is not known here", hint="Give that codec object."
            )
        error = UntrustedError if name == "pkl" else CodecError
        risk = " If you trust everybody who can write there, use" if name == "pkl" else "Use"
        raise error(
            f"this was written with codec {name!r}, and {self.codec.name!r} was given when opening",
            hint=f'{risk.strip()} open(..., codec="{name}").',
        )

    def _refuse_unprotected(self, f: Filter) -> NoReturn:
        raise UntrustedError(
            f"this value is not {f.name}, and only {f.name} values are accepted here",
            hint="Read it without that filter where you trust it, and write it again.",
        )

    def _too_long(self, what: str, size: int, key: str) -> NoReturn:
        hint = "Give open(..., max_bytes=...) or split the value."
        raise CodecError(f"{what} {size:,} bytes, and max_bytes={self.max_bytes:,} are allowed", key=key, hint=hint)


def _looks_like_pickle(data: bytes) -> bool:
    return data.startswith(b"\x04\x22\x4d\x18") or (data[0] == 0x80 and 2 <= (data[1:2] or b"\0")[0] <= 5)


def _say(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _revive(codec: Codec, filters: Sequence[Filter], trusted: bool, max_bytes: int) -> Chain:
    return Chain(codec, filters, trusted=trusted, max_bytes=max_bytes)
