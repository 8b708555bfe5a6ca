"""`save_pickle` and `load_pickle`, for components that write files by themselves."""

from __future__ import annotations

import errno
import os
import pickle
import stat
from pathlib import Path
from typing import Any

from .disk import sync_folder


def save_pickle(obj: Any, path: Path | str) -> None:
    """Write an object to a file by pickle, protocol 5. A file that is there stays as it is until the new one is complete.

    A link is followed, and a file that is there hands its mode on. While it works, a file `.perdure-*.tmp` stands beside it.

    Args:
        obj: Anything that pickle takes.
        path: The file. A folder must be there.

    Raises:
        OSError: It cannot be written; the error has the path that was given.
        pickle.PicklingError: Pickle does not take the object, whatever else pickle raises for that kind of object.

    Cost: two fsyncs and a rename. Arrays are written as they lie in memory; nothing is copied.
    """
    given = os.fspath(path)
    target = os.path.realpath(given)
    folder = os.path.dirname(target)
    aside = os.path.join(folder, f".perdure-{os.urandom(8).hex()}.tmp")  # short, whatever the file is called
    try:
        _write(obj, given, target, aside)
        sync_folder(folder)
    except OSError as error:
        if error.errno is None or error.filename not in (None, target, folder, aside):
            raise  # by the object itself, while it was pickled
        raise OSError(error.errno, error.strerror, given) from error


def _write(obj: Any, given: str, target: str, aside: str) -> None:
    mode = _mode_of(target)
    try:
        # Before its mode is set, a file that others may not read is not to be read by them either.
        with open(aside, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else 0o600)) as file:
            try:
                pickle.dump(obj, file, protocol=5)
            except (TypeError, AttributeError, RecursionError, NotImplementedError) as error:
                raise pickle.PicklingError(f"cannot pickle {type(obj).__name__} to {given}: {error}") from error
            file.flush()
            if mode is not None:
                os.chmod(aside, mode)
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException:
        try:
            os.unlink(aside)
        except FileNotFoundError:
            pass
        raise


def _mode_of(target: str) -> int | None:
    """The mode of a file that is there.

    Raises:
        OSError: It is no file, and nothing to put one in the place of.
    """
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return stat.S_IMODE(mode) & 0o777
    number = errno.ELOOP if stat.S_ISLNK(mode) else errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(number, os.strerror(number), target)


def load_pickle(path: Path | str) -> Any:
    """Read an object that `save_pickle` wrote. **This runs the code that the file names**: read only what you trust.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        pickle.UnpicklingError: What it holds is no pickle, or one that was cut short.
        ModuleNotFoundError: It needs a module that is not there.
    """
    with open(path, "rb") as file:
        try:
            return pickle.load(file)
        except (EOFError, IndexError, KeyError, ValueError) as error:
            raise pickle.UnpicklingError(f"{os.fspath(path)} holds no whole pickle: {error!r}") from error
