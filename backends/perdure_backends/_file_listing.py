"""Which keys there are in a folder, by the names of its files and folders alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ._file_errors import explain
from ._file_names import RESERVED_FOLDER, Names


class Listing:
    """The keys below a folder. Files and folders of others, links and pipes are passed over.

    Args:
        root: Where the values are.
        names: How segments are spelled.
        place: For messages.
    """

    def __init__(self, root: str, names: Names, place: str) -> None:
        self._root, self._names, self._place = root, names, place

    def keys(self, prefix: str) -> Iterator[Iterable[str]]:
        """The keys below a prefix, folder by folder."""
        names = self._names
        folder = os.path.join(self._root, *map(names.folder, prefix.split("/")[:-1]))
        # A link in place of a folder leads out of this one; the root itself is the user's own choice.
        if prefix and any(os.path.islink(step) for step in self._steps(folder)):
            return
        ahead = [(folder, prefix)]
        while ahead:
            folder, prefix = ahead.pop()
            try:
                # A whole folder at once: what happens to it between two of our yields cannot repeat or hide a name.
                files, others = [], []
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_file(follow_symlinks=False):
                            files.append(entry.name)
                        else:
                            others.append(entry)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise explain(error, None, self._place, "list") from error
            for entry in others:
                if entry.name != RESERVED_FOLDER and entry.is_dir(follow_symlinks=False):
                    segment = names.folder_segment(entry.name)
                    if segment is not None:
                        ahead.append((os.path.join(folder, entry.name), f"{prefix}{segment}/"))
            segments = names.segments(files)
            yield [prefix + segment for segment in segments] if prefix else segments

    def _steps(self, folder: str) -> Iterator[str]:
        while folder != self._root:
            yield folder
            folder = os.path.dirname(folder)
