"""Where on disk each key lives."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

from perdure.errors import InvalidKeyError
from perdure.protocol import check_key

from ._file_folder import STRIPES
from ._file_names import Names

_REMEMBERED = 8192
_LONGEST_NAME = 255  # bytes, on every file system in use; some take fewer, and say so themselves
_LONGEST_PATH = 4000  # bytes; Linux takes 4095


class Spot(NamedTuple):
    """A key's file, the folders between the root and it, and its stripe of the 64."""

    path: str
    folders: tuple[str, ...]
    stripe: str

    def refuse_links(self) -> None:
        """Refuse a link among the folders, which would lead out of the root.

        Whoever can swap a folder for a link between this look and the next call can replace every value as well.
        """
        for folder in self.folders:
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                raise OSError(errno.ELOOP, "a folder on the way is a link", folder)


class Spots(dict[str, Spot]):
    """The spots of the keys used lately; the others are worked out, without input or output.

    Args:
        root: Where the values are.
        names: How segments are spelled.
        place: For messages.
        check: Called for every key worked out.
    """

    def __init__(self, root: str, names: Names, place: str, check: Callable[[], None]) -> None:
        self._root, self._names, self._place, self._check = root, names, place, check

    def __missing__(self, key: str) -> Spot:
        check_key(key)
        self._check()
        *parents, last = key.split("/")
        folders = [self._root]
        try:
            # One limit for all segments: a key's last one may become a folder's name tomorrow.
            for segment in parents:
                _fitting(self._names.file(segment), segment)
                folders.append(os.path.join(folders[-1], self._names.folder(segment)))
            path = os.path.join(folders[-1], _fitting(self._names.file(last), last))
        except InvalidKeyError as error:
            error.key, error.place = key, self._place
            raise
        if len(os.fsencode(path)) > _LONGEST_PATH:
            text = "all segments together are too long for a path"
            raise InvalidKeyError(text, key=key, place=self._place, hint="Shorten the key.")
        spot = Spot(path, tuple(folders[1:]), f"{crc32(key.encode()) % STRIPES:02d}")
        if len(self) >= _REMEMBERED:
            self.clear()
        self[key] = spot
        return spot


def _fitting(name: str, segment: str) -> str:
    if len(name) > _LONGEST_NAME:
        raise InvalidKeyError(
            f"the segment {segment[:20]}... needs a file name of {len(name)} characters, and {_LONGEST_NAME} are the most",
            hint="Shorten it, split it into several segments, or use a hash of it.",
        )
    return name
