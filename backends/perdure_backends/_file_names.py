"""How keys become names in a folder, and back.

Both ways are exact inverses of each other: a name that no key encodes to is somebody else's file, and is neither listed,
read nor removed. No two keys share a file even where names ignore case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

from perdure.protocol import is_key

RESERVED_FOLDER = ".perdure"  # marker, locks and temporary files live here


class Names(Protocol):
    """One scheme of naming. A key `a/b` is the file `<folder(a)>/<file(b)>`."""

    suffix: str

    def file(self, segment: str) -> str:
        """The name of the file that holds the last segment of a key."""
        ...

    def folder(self, segment: str) -> str:
        """The name of the folder for any other segment."""
        ...

    def segments(self, names: list[str]) -> Iterable[str]:
        """The segments behind those of `names` (of files) that are ours."""
        ...

    def folder_segment(self, name: str) -> str | None:
        """The segment behind the name of a folder, or `None` for a foreign one."""
        ...


_PLAIN = re.compile(r"(?!\.)[a-z0-9()_\-~.=]+(?<!\.)\Z").match
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE).match
_USUAL = b"abcdefghijklmnopqrstuvwxyz0123456789()_-~.=\0"
_ODD_START = r"\0(?:\.|(?:con|prn|aux|nul|com[0-9]|lpt[0-9])\.)"  # or nothing before the suffix
_ODD_ENDS = ("..perdure\0", ".perdure.perdure\0")
_DIGITS = "0123456789abcdefghijklmnopqrstuv"


class PortableNames:
    """Readable names that are safe on every file system, Windows and case-folding ones included.

    A segment of lower-case letters stands as it is. `+`, which no key contains, marks the rest: behind it stand, in base 32,
    the positions of the capitals (`Theme` is `Theme+1`, so it differs from `theme` without regard to case); it is put in
    front of a leading dot and of the device names of Windows, and behind a final dot or a final suffix of ours.
    """

    suffix = ".perdure"

    def folder(self, segment: str) -> str:
        ends = segment.endswith((".", self.suffix))
        if _PLAIN(segment) and not ends and not _RESERVED(segment):
            return segment
        front = "+" if segment[0] == "." or _RESERVED(segment) else ""
        capitals = sum(1 << i for i, letter in enumerate(segment) if letter.isupper())
        if not capitals and not ends:
            return front + segment
        return f"{front}{segment}+{_base32(capitals)}"

    def file(self, segment: str) -> str:
        return self.folder(segment) + self.suffix

    def folder_segment(self, name: str) -> str | None:
        segment = name.removeprefix("+")
        segment = segment.partition("+")[0]
        return segment if is_key(segment) and "/" not in segment and self.folder(segment) == name else None

    def segments(self, names: list[str]) -> Iterable[str]:
        # A whole listing is checked at once: to look at each name would cost more than the listing itself.
        lines = "\0".join(["", *names, ""])  # no name holds this
        if lines.isascii() and not lines.encode().translate(None, _USUAL):
            found = lines[1:].split(".perdure\0")  # as many as there are lines: then each of these ends so
            odd = re.search(_ODD_START, lines) or (lines.count(".") > len(names) and any(end in lines for end in _ODD_ENDS))
            if len(found) == len(names) + 1 and not odd:
                found.pop()
                return found
        cut = -len(self.suffix)
        ours = (self.folder_segment(name[:cut]) for name in names if name.endswith(self.suffix))
        return [segment for segment in ours if segment is not None]


def _base32(number: int) -> str:
    digits = ""
    while number:
        digits += _DIGITS[number & 31]
        number >>= 5
    return digits
