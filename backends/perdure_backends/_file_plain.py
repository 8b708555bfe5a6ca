"""The layout `plain`: the value's bytes alone, under names that other programs expect. Imported for folders that have it."""

from __future__ import annotations

import os
import stat
from base64 import b32encode
from collections.abc import Iterable
from hashlib import blake2b, md5

from perdure.errors import IntegrityError, InvalidKeyError
from perdure.protocol import Blob, Buffer, ETag, is_key

from ._file_layout import HINT, Version
from ._file_names import RESERVED_FOLDER
from ._system import read_all, write_all


class Plain:
    """The value's bytes and nothing else, readable by other programs. The ETag is a hash of them with the file's time."""

    def read(self, fd: int) -> Blob:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise IntegrityError("this is not a regular file", hint=HINT)
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


class DigestNames:
    """Segment, `_`, the first characters of its MD5 in base 32, and the suffix: `a` is `a_btax.pkl`. Understood by persidict.

    Args:
        suffix: Such as `.pkl`.
        digest_len: How many characters of the digest, 0 to 26; with 0 names differ by case only where the keys do.
    """

    def __init__(self, suffix: str, digest_len: int) -> None:
        self.suffix = suffix
        self.digest_len = digest_len

    def folder(self, segment: str) -> str:
        if not self.digest_len:
            if segment == RESERVED_FOLDER:
                raise InvalidKeyError(
                    f"{segment!r} is taken by the folder's own files", key=segment, hint="Choose another name."
                )
            return segment
        # The digest is no protection but a spelling, fixed by the layout of existing folders.
        digest = b32encode(md5(segment.encode(), usedforsecurity=False).digest())[: self.digest_len].decode().lower()
        return f"{segment}_{digest}"

    def file(self, segment: str) -> str:
        return self.folder(segment) + self.suffix

    def folder_segment(self, name: str) -> str | None:
        segment = name[: -self.digest_len - 1] if self.digest_len else name
        if not is_key(segment) or "/" in segment or name == RESERVED_FOLDER:
            return None
        return segment if self.folder(segment) == name else None

    def segments(self, names: list[str]) -> Iterable[str]:
        found = (self.folder_segment(name.removesuffix(self.suffix)) for name in names if name.endswith(self.suffix))
        return [segment for segment in found if segment is not None]
