"""Temporary folders for files on their way to or from a backend. Those of killed processes are removed by the next."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from .disk import explain, lock_folder, remove_tree, unlock

_PREFIX = "perdure-snapshot-"


class Scratch:
    """A folder that is made when it is first asked for, and that nobody else may read."""

    def __init__(self) -> None:
        self._path = ""
        self._lock: int | None = None

    def __bool__(self) -> bool:
        return bool(self._path)

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            BackendError: It cannot be made.
        """
        while not self._path:
            try:
                _sweep()
                path = mkdtemp(prefix=_PREFIX)
                self._lock = lock_folder(path)
                self._path = path
            except (BlockingIOError, FileNotFoundError):
                continue  # somebody swept it in the moment before it was locked
            except OSError as error:
                raise explain(error, f"file:{gettempdir()}", "make a temporary folder") from error
        return Path(self._path)

    def close(self) -> None:
        """Remove it."""
        path, self._path = self._path, ""
        lock, self._lock = self._lock, None
        try:
            if path:
                remove_tree(path)
        except OSError as error:
            raise explain(error, f"file:{path}", "remove the temporary folder") from error
        finally:
            unlock(lock)


def _sweep() -> None:
    """Remove what was left by processes of this user that were killed."""
    for name in os.listdir(gettempdir()):
        path = os.path.join(gettempdir(), name)
        if not name.startswith(_PREFIX):
            continue
        try:
            lock = lock_folder(path)
        except OSError:
            continue  # of somebody who is alive, of another user, or gone
        try:
            if lock is not None:
                remove_tree(path)
        except OSError:
            continue  # what is not ours, its owner removes
        finally:
            unlock(lock)
