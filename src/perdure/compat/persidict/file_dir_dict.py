"""The names of persidict's module `file_dir_dict`."""

import os as _os

from ...mapping.family import FileDirDict
from .exceptions import BackendError

FILEDIRDICT_DEFAULT_BASE_DIR = "__file_dir_dict__"


def add_long_path_prefix(path: str) -> str:
    """On Windows, spell a path so that it may be long; elsewhere as it is."""
    if _os.name != "nt" or not path or path.startswith("\\\\?\\"):
        return path
    path = _os.path.abspath(path)
    return "\\\\?\\UNC\\" + path[2:] if path.startswith("\\\\") else "\\\\?\\" + path


def drop_long_path_prefix(path: str) -> str:
    """Undo `add_long_path_prefix`."""
    if _os.name != "nt" or not path.startswith("\\\\?\\"):
        return path
    return "\\\\" + path[8:] if path.startswith("\\\\?\\UNC\\") else path[4:]


__all__ = ["FILEDIRDICT_DEFAULT_BASE_DIR", "BackendError", "FileDirDict", "add_long_path_prefix", "drop_long_path_prefix"]
