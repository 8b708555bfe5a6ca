"""`save_pickle` and `load_pickle`, for components that write files by themselves."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from .disk import open_new, sync_file, sync_folder


def save_pickle(obj: Any, path: Path | str) -> None:
    """Write an object to a file by pickle, protocol 5. A file that is there stays as it is until the new one is complete.

    Args:
        obj: Anything that pickle takes.
        path: The file. A folder must be there.

    Raises:
        OSError: It cannot be written.
        pickle.PicklingError: Pickle does not take the object, whatever else pickle raises for that kind of object.

    Cost: two fsyncs and a rename. Arrays are written as they lie in memory; nothing is copied.
    """
    target = os.fspath(path)
    aside = f"{target}.{os.urandom(8).hex()}.tmp"
    try:
        with open(open_new(aside), "wb") as file:
            try:
                pickle.dump(obj, file, protocol=5)
            except (TypeError, AttributeError, RecursionError, NotImplementedError) as error:
                raise pickle.PicklingError(f"cannot pickle {type(obj).__name__} to {target}: {error}") from error
        sync_file(aside)
        os.replace(aside, target)
    except BaseException:
        try:
            os.unlink(aside)
        except FileNotFoundError:
            pass
        raise
    sync_folder(os.path.dirname(target) or ".")


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
