"""Which keys there are in a folder, by the names of its files and folders alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ._file_errors import explain
from ._file_names import RESERVED_FOLDER, Names

T = TypeVar("T")


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
        for above, files in self._walk(prefix):
            segments = self._names.segments([entry.name for entry in files])
            yield [above + segment for segment in segments] if above else segments

    def states(self, prefix: str, tell: Callable[[os.stat_result], T]) -> Iterator[tuple[str, T]]:
        """The keys below a prefix, and what `tell` makes of the state of their files."""
        for above, files in self._walk(prefix):
            ours = [entry for entry in files if entry.name.endswith(self._names.suffix)]
            segments = list(self._names.segments([entry.name for entry in ours]))
            if len(segments) < len(ours):  # others' files are among them still
                ours = [entry for entry in ours if list(self._names.segments([entry.name]))]
            for segment, entry in zip(segments, ours, strict=True):
                try:
                    info = entry.stat(follow_symlinks=False)
                except (FileNotFoundError, NotADirectoryError):
                    continue  # deleted since its name was read
                except OSError as error:
                    raise explain(error, above + segment, self._place, "look at") from error
                yield above + segment, tell(info)

    def _walk(self, prefix: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
        """The files in each folder below a prefix, with the prefix of that folder."""
        names = self._names
        folder = self.folder(prefix)
        # A link in place of a folder leads out of this one; the root itself is the user's own choice.
        if prefix and any(os.path.islink(step) for step in self._steps(folder)):
            return
        ahead = [(folder, prefix)]
        while ahead:
            folder, prefix = ahead.pop()
            try:
                # A whole folder at once: what happens to it between two of our yields cannot repeat or hide a name.
                files: list[os.DirEntry[str]] = []
                others: list[os.DirEntry[str]] = []
                with os.scandir(folder) as entries:
                    for entry in entries:
                        (files if entry.is_file(follow_symlinks=False) else others).append(entry)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise explain(error, None, self._place, "list") from error
            for entry in others:
                if entry.name != RESERVED_FOLDER and entry.is_dir(follow_symlinks=False):
                    segment = names.folder_segment(entry.name)
                    if segment is not None:
                        ahead.append((os.path.join(folder, entry.name), f"{prefix}{segment}/"))
            yield prefix, files

    def folder(self, prefix: str) -> str:
        """Where the files of the keys below a prefix are."""
        return os.path.join(self._root, *map(self._names.folder, prefix.split("/")[:-1]))

    def _steps(self, folder: str) -> Iterator[str]:
        while folder != self._root:
            yield folder
            folder = os.path.dirname(folder)
