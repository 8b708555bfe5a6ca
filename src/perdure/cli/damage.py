"""Values whose bytes are not what was written: finding them, and getting them out of the way without losing a byte."""

from __future__ import annotations

from dataclasses import dataclass
from errno import EACCES, EPERM
from zlib import crc32

from ..codecs import codec_by_name
from ..codecs.chain import MAGIC, MAX_BYTES
from ..codecs.compression import LZ4_MAGIC, expand_lz4
from ..errors import BackendError, CodecError, IntegrityError, PreconditionError
from ..protocol import ABSENT, Backend
from .places import open_place, read_all


@dataclass
class Unreadable:
    """A value that cannot be read.

    Attributes:
        key: Its key.
        problem: What is wrong with it.
        aside: Where its bytes are now; empty as long as they are in place.
        closed: Whether its bytes may well be whole, and only we may not read them. That is not mended by setting them aside.
    """

    key: str
    problem: str
    aside: str = ""
    closed: bool = False


def set_aside(backend: Backend, key: str, elsewhere: str, examine: IntegrityCheck) -> str:
    """Get an unreadable value out of the way, all its bytes preserved; but not one that somebody writes anew meanwhile.

    Args:
        backend: Where it is. One that can set values aside by itself does so, which also works where it can no longer read
            them.
        key: Its key.
        elsewhere: The URL of a place for those of any other backend.
        examine: Tells whether it is unreadable.

    Returns:
        Where the bytes are now; `""` where the value is readable again, and stays.

    Raises:
        PerdureError: It is still where it was.
    """
    own = getattr(backend, "set_aside", None)
    if own is not None:
        return str(own(key, unless=lambda: all(one.closed for one in examine([key]))))
    blob = backend.get(key)  # before the look: what is deleted below is this version or none
    if not examine([key]):
        return ""
    with open_place(elsewhere, must_exist=False) as place:
        kept, number = key, 0
        while True:
            try:
                place.put(kept, blob.data, if_match=ABSENT)
            except PreconditionError:
                if place.get(kept).data != blob.data:  # another one, set aside earlier
                    number += 1
                    kept = f"{key}~{number}"
                    continue
            break
        if place.get(kept).data != blob.data:
            raise BackendError("what was set aside reads back as something else", key=kept, place=place.place)
        backend.delete(key, if_match=blob.etag)  # exactly the version that is safe now
        return f"{place.place}, key {kept}"


class IntegrityCheck:
    """Tells which values are damaged, by their checksums. No value is restored, so nothing in one can run.

    Args:
        backend: Where the values are.
        codec: What they were written with; `None` where nobody knows. Then a value without a frame of ours counts as
            unchecked, not as damaged: it may be anything.

    Attributes:
        unchecked: How many of the values seen so far carry nothing to check them by.
    """

    def __init__(self, backend: Backend, codec: str | None) -> None:
        self._backend = backend
        self._codec = codec
        self.unchecked = 0

    def __call__(self, keys: list[str]) -> list[Unreadable]:
        """Look at some values."""
        blobs, errors = read_all(self._backend, keys)
        found = []
        for key, error in errors.items():
            closed = isinstance(error, BackendError) and error.errno in (EACCES, EPERM)
            found.append(Unreadable(key, f"{error.problem}. {error.hint}" if closed else error.problem, closed=closed))
        for key, blob in blobs.items():
            try:
                self._check(blob.data)
            except IntegrityError as error:
                found.append(Unreadable(key, error.problem))
        return found

    def _check(self, data: bytes) -> None:
        if data.startswith(MAGIC) and self._codec != "raw":
            if len(data) < 8 or crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
                raise IntegrityError("its checksum does not fit")
            return
        if crc32(memoryview(data)[1:-4], crc32(MAGIC)) == int.from_bytes(data[-4:], "little") and len(data) >= 8:
            raise IntegrityError("its first byte was changed")
        if self._codec == "msgpack":
            raise IntegrityError("it does not begin as a value of ours does")
        if self._codec == "pkl" and data.startswith(LZ4_MAGIC):
            expand_lz4(data, MAX_BYTES)
        elif self._codec in ("json", "txt"):
            try:
                codec_by_name(self._codec).decode(data, MAX_BYTES)
            except IntegrityError:
                raise
            except CodecError:
                return  # whole, and only not for everybody: nested too deeply, or asking for code to be run
        else:
            self.unchecked += 1
