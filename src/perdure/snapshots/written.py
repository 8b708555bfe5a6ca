"""What a component wrote by itself: which files of a folder are its parts."""

from __future__ import annotations

import os
import stat

from ..errors import UsageError
from .disk import explain
from .manifest import MANIFEST, is_bad_name


def written_by(component: str, folder: str, seen: set[str], place: str) -> list[str]:
    """List the files that are new in a folder and in those in it.

    Args:
        component: The one that has just saved itself there.
        folder: Where.
        seen: The paths of the files that were there before, or that others are writing; what is new is added.
        place: For messages.

    Returns:
        The paths of the files in the folder, with `/`.

    Raises:
        UsageError: Something is no file, or has a name that no part can have.
        BackendError: The system does not let us look.
    """
    names: list[str] = []
    try:
        _walk(component, folder, "", seen, names)
    except OSError as error:
        raise explain(error, place, "look at what was saved of", component) from error
    seen.update(names)
    return names


def _walk(component: str, folder: str, prefix: str, seen: set[str], names: list[str]) -> None:
    for file in sorted(os.listdir(os.path.join(folder, prefix))):
        name = prefix + file
        if name in seen:
            continue
        mode = os.lstat(os.path.join(folder, name)).st_mode
        if is_bad_name(file) or name.casefold() == MANIFEST:
            raise UsageError(f"component {component!r} wrote a file called {name!r}, which no snapshot can hold")
        if stat.S_ISDIR(mode):
            _walk(component, folder, f"{name}/", seen, names)
        elif stat.S_ISREG(mode):
            names.append(name)
        else:
            problem = f"component {component!r} wrote {name!r}, which is neither a file nor a folder"
            raise UsageError(problem, hint="A link leads out of the snapshot: let it write a copy.")
