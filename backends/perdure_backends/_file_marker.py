"""The marker in a folder: a few lines of text that say how its values are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping

from perdure.errors import BackendError, UsageError
from perdure.protocol import require_settings

from ._system import OPEN_NEW, OPEN_READ, sync_folder

_FIRST_LINE = "perdure folder, format 1"


class Marker:
    """Settings of a folder, fixed by whoever writes first.

    Args:
        folder: Where the marker is kept.
        place: For messages.
    """

    def __init__(self, folder: str, place: str) -> None:
        self._path = os.path.join(folder, "marker")
        self._place = place
        self.settings = self._read()

    def require(self, settings: Mapping[str, str]) -> None:
        """Insist on settings; those the marker does not have yet are added by the next `write`.

        Raises:
            UsageError: The folder was written with others.
        """
        require_settings(settings, self.settings, self._place)
        self.settings |= settings

    def write(self, temporary: str, *, durable: bool) -> None:
        """Write the marker unless it stands; the caller holds lock 00, to which `temporary` belongs."""
        there = self._read()
        require_settings(self.settings, there, self._place)
        self.settings = there | self.settings
        if there == self.settings:
            return
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        text = "\n".join([_FIRST_LINE, *(f"{name}={value}" for name, value in sorted(self.settings.items()))]) + "\n"
        fd = os.open(temporary, OPEN_NEW, 0o666)
        try:
            os.write(fd, text.encode())
            os.fsync(fd)  # always: a marker that a power cut left empty would make all values unreadable
        finally:
            os.close(fd)
        os.replace(temporary, self._path)
        if durable:
            sync_folder(os.path.dirname(self._path))

    def _read(self) -> dict[str, str]:
        try:
            fd = os.open(self._path, OPEN_READ)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise BackendError(
                f"the marker cannot be read ({error.strerror})",
                place=self._place,
                errno=error.errno,
                hint=f"Check the owner and mode of {self._path} and of the folders above.",
            ) from error
        try:
            text = os.read(fd, 4096).decode("utf-8", "replace")
        finally:
            os.close(fd)
        first, *lines = text.splitlines() or [""]
        if first != _FIRST_LINE:
            newer = first.startswith(_FIRST_LINE[:-1])
            hint = "Upgrade perdure." if newer else f"Look at {self._path}; move it away if it is not ours."
            raise UsageError(f"the marker says {first[:60]!r}", place=self._place, hint=hint)
        return dict(line.split("=", 1) for line in lines if "=" in line)
