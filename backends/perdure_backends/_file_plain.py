"""The layout `plain`: the value's bytes alone, under names that other programs expect. Imported for folders that have it."""

from __future__ import annotations

import os
import re
import stat
import warnings
from base64 import b32encode
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b, md5

from perdure.errors import BackendError, IntegrityError, InvalidKeyError, UsageError
from perdure.protocol import Blob, Buffer, ETag, are_keys, is_key

from ._file_layout import HINT, Version
from ._file_marker import Marker
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

    def use(self, info: os.stat_result) -> tuple[int, float]:
        return info.st_size, max(info.st_atime, info.st_mtime)


def _content_tag(data: bytes, info: os.stat_result) -> ETag:
    return ETag(f"{blake2b(data, digest_size=16).hexdigest()}-{info.st_mtime_ns:x}")


class DigestNames:
    """Segment, `_`, the first characters of its MD5 in base 32, and the suffix: `a` is `a_btax.pkl`. Understood by persidict.

    Args:
        suffix: Such as `.pkl`.
        digest_len: How many characters of the digest, 0 to 32; with 0 names differ by case only where the keys do.
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
        return f"{segment}_{_digest(segment, self.digest_len)}"

    def file(self, segment: str) -> str:
        return self.folder(segment) + self.suffix

    def folder_segment(self, name: str) -> str | None:
        segment = name[: -self.digest_len - 1] if self.digest_len else name
        if not is_key(segment) or "/" in segment or name == RESERVED_FOLDER:
            return None
        return segment if self.folder(segment) == name else None

    def segments(self, names: list[str]) -> Iterable[str]:
        stems = [name.removesuffix(self.suffix) for name in names if name.endswith(self.suffix)]
        n = self.digest_len
        if n and are_keys(segments := [stem[: -n - 1] for stem in stems]):
            # A whole listing is checked at once but for the digests. A name has no slash, so these are single segments.
            pairs = zip(segments, stems, strict=True)
            return [segment for segment, stem in pairs if stem[-n - 1] == "_" and stem[-n:] == _digest(segment, n)]
        return [segment for segment in map(self.folder_segment, stems) if segment is not None]


@lru_cache(maxsize=1 << 14)  # the same names come in many folders, and in every listing
def _digest(segment: str, length: int) -> str:
    """The first characters of the MD5 in base 32. No protection but a spelling, fixed by the layout of existing folders."""
    digest = md5(segment.encode(), usedforsecurity=False).digest()
    if length > 24:
        return b32encode(digest).decode().lower()[:length]
    # Worked out for every name of a listing: two letters at once, in a quarter of the time of the general function.
    number = int.from_bytes(digest, "big")
    text = _PAIRS[number >> 118]
    for shift in range(108, 118 - 10 * ((length + 1) // 2), -10):
        text += _PAIRS[number >> shift & 1023]
    return text[:length]


_PAIRS = [a + b for a in "abcdefghijklmnopqrstuvwxyz234567" for b in "abcdefghijklmnopqrstuvwxyz234567"]


# What a marker says of the values with one suffix stands under names that end in "@" and the suffix, so that values of several
# formats can share a folder.

_is_suffix = re.compile(r"[A-Za-z0-9()_\-~.=]{0,64}\Z").match
_LOOKED_AT = 1000  # names, where there is no marker that says how they are made


def settle_names(marker: Marker, root: str, suffix: str, digest_len: int, *, given: bool) -> tuple[DigestNames, str]:
    """Agree with the marker, or with the names that are there, on how names are made.

    Args:
        marker: Of the folder.
        root: The folder.
        suffix: What is asked for.
        digest_len: What is asked for.
        given: Whether these were asked for, and are not just what is meant when nothing is said.

    Returns:
        The scheme of naming, and what is added to the names of settings that are about values with this suffix.

    Raises:
        UsageError: The folder has another digest length, or several suffixes of which none was asked for.
    """
    place = f"file:{root}"
    if not _is_suffix(suffix) or not 0 <= digest_len <= 32:
        text = f"a suffix is up to 64 letters, digits and ()_-~.=, and digest_len 0 to 32; not {suffix!r:.80} and {digest_len}"
        raise UsageError(text, place=place)
    there = sorted(name[len("suffix@") :].replace("%", "=") for name in marker.settings if name.startswith("suffix@"))
    if not (given or suffix) and there:
        if len(there) > 1:
            hint = f"Say which: suffix={there[0]!r}, for example."
            raise UsageError(f"values of several formats share this folder: {', '.join(there)}", place=place, hint=hint)
        suffix = there[0]
    if not int(marker.settings.get("digest_len", digest_len)):
        for other in there:
            if other != suffix and (other.endswith(suffix) or suffix.endswith(other)):
                text = f"values with suffix {other!r} are here, and could not be told from those with suffix {suffix!r}"
                raise UsageError(text, place=place, hint="Use another folder.")
    if "digest_len" in marker.settings and given:
        marker.require({"digest_len": str(digest_len)})
    if suffix not in there:
        found = _look_for_digests(root, suffix, int(marker.settings.get("digest_len", digest_len)), place)
        others = sorted({*there, *found})
        if given and others and suffix not in others:
            warnings.warn(
                f"{place}: this folder holds values with the suffix {', '.join(others)}, and this dict shows and keeps those "
                f"with {suffix or 'none'} only. If that is not meant, open it with the other format.",
                stacklevel=6,  # whoever called perdure.open, or FileDirDict
            )
    about = "@" + suffix.replace("=", "%")  # a "=" ends a name in the marker
    marker.require({"digest_len": marker.settings.get("digest_len", str(digest_len)), f"suffix{about}": "used"})
    return DigestNames(suffix, int(marker.settings["digest_len"])), about


def _look_for_digests(root: str, suffix: str, digest_len: int, place: str) -> list[str]:
    """See whether the names in a folder without a marker have digests of another length; that would hide all its values.

    Returns:
        Suffixes of names whose digests fit; not that of this dict, if there are none such.
    """
    names = []
    others = set()
    try:
        with os.scandir(root) as entries:
            for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
                if entry.name.endswith(suffix) and entry.is_file():
                    names.append(entry.name.removesuffix(suffix))
                elif entry.is_dir() and entry.name != RESERVED_FOLDER:
                    names.append(entry.name)
                elif digest_len and _has_digest(entry.name.partition(".")[0], digest_len):
                    others.add(f".{entry.name.partition('.')[2]}")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        text = f"the folder cannot be listed ({error.strerror})"
        raise BackendError(text, place=place, errno=error.errno, hint="Check its owner and mode.") from error
    if digest_len and any(_has_digest(name, digest_len) for name in names):
        return [suffix]
    for other in range(32, 0, -1):
        fitting = sum(_has_digest(name, other) for name in names)
        # Names that look so by chance: five bits for each character.
        if other != digest_len and 2 * fitting > len(names) and 5 * other * fitting >= 20:
            text = f"the names in this folder have digests of {other} characters, not {digest_len}"
            raise UsageError(text, place=place, hint=f"Open it with digest_len={other}, or use another folder.")
    if digest_len and (bare := [name for name in names if is_key(name)]):
        warnings.warn(
            f"{place}: {len(bare)} names such as {bare[0][:60]!r} have no digest of {digest_len} characters, so they are taken "
            "for files of others and not shown. If they are values of this dict, open it with digest_len=0.",
            stacklevel=7,
        )
    return [suffix] if names else sorted(others)


def _has_digest(name: str, length: int) -> bool:
    segment, digest = name[: -length - 1], name[-length:]
    return bool(segment) and name[-length - 1] == "_" and is_key(segment) and _digest(segment, length) == digest
