"""What a component wrote by itself: which files of a folder are its parts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ..errors import UsageError
from .disk import explain
from .names import why_bad_path


def written_by(component: str, folder: str, seen: set[str], place: str) -> list[str]:
    """List the files that are new in a folder and in those in it, and the folders that nothing is in.

    Args:
        component: The one that has just saved itself there.
        folder: Where.
        seen: The paths of what was there before, or of files that others are writing; what is new is added.
        place: For messages.

    Returns:
        The paths in the folder, with `/`; those of empty folders end in one.

    Raises:
        UsageError: Something is no file, or has a name that no part can have.
        BackendError: The system does not let us look.
    """
    names: list[str] = []
    try:
        _walk(component, folder, "", seen, names)
    except OSError as error:
        raise explain(error, place, "look at what was saved of", component) from error
    if any(name.endswith("/") for name in names):
        # A folder that was made for a file which is still to come, or for all components of a rank, is not this one's.
        others = {above for name in (*seen, component) for above in _folders_of(name)}
        names = [name for name in names if name not in others]
    seen.update(names)
    return names


def _folders_of(name: str) -> Iterator[str]:
    at = name.find("/")
    while at >= 0:
        yield name[: at + 1]
        at = name.find("/", at + 1)


def _walk(component: str, folder: str, prefix: str, seen: set[str], names: list[str]) -> None:
    files = sorted(os.listdir(os.path.join(folder, prefix)))
    if prefix and not files and prefix not in seen:
        names.append(prefix)
    for file in files:
        name = prefix + file
        if name in seen:
            continue
        mode = os.lstat(os.path.join(folder, name)).st_mode
        _check_path(component, name, stat.S_ISDIR(mode))
        if stat.S_ISDIR(mode):
            _walk(component, folder, f"{name}/", seen, names)
        elif stat.S_ISREG(mode):
            names.append(name)
        else:
            problem = f"component {component!r} wrote {name!r}, which is {_kind(mode)}, and neither a file nor a folder"
            link = "A link leads out of the snapshot: let it write a copy."
            other = "A snapshot holds bytes only: let it make such things elsewhere, or remove them before it returns."
            raise UsageError(problem, hint=link if stat.S_ISLNK(mode) else other)


def _check_path(component: str, name: str, is_folder: bool) -> None:
    problem = why_bad_path(f"{name}/" if is_folder else name)
    if problem:
        spelled = repr(name) if len(name) <= 200 else f"{name[:80]!r}..."
        hint = "Let it write that under another name, or a shorter path."
        raise UsageError(f"component {component!r} wrote {spelled}, which no snapshot can hold: {problem}", hint=hint)


def _kind(mode: int) -> str:
    kinds = (stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")
    return next((kind for is_it, kind in kinds if is_it(mode)), "a device")
