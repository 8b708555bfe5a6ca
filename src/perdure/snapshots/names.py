"""What snapshots, their parts and components may be called."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from ..errors import UsageError

MANIFEST: Final = "manifest.json"
MAX_PATH: Final = 1000
"""Characters of the name of a part."""

_LONGEST = 255  # bytes; no common file system has longer names
_LONGEST_COMPONENT = 200  # which leaves room for suffixes
_WINDOWS = os.name == "nt"
_control = re.compile(r"[\x00-\x1f\x7f]").search
_windows_forbids = re.compile(r'[:*?"<>|]').search
_is_device = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\.|$)", re.IGNORECASE).match
_UNSEEN = ("Cc", "Cf", "Co", "Zl", "Zp")  # private characters among them: other systems put them for colons and the like


def is_bad_name(name: str) -> bool:
    """Tell whether a name cannot stand in a path here, or on any system."""
    return why_bad_name(name) != ""


def why_bad_name(name: str, *, longest: int = _LONGEST, windows: bool | None = None) -> str:
    """Say why a name cannot stand in a path.

    Args:
        name: One segment of a path.
        longest: Bytes that it may have in UTF-8.
        windows: Whether it has to be one on Windows as well; by default, whether this is Windows.

    Returns:
        The end of a sentence; `""` for a name that can.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # half of a pair of surrogates, by which Python spells other bytes, too
        return "it is no text in UTF-8"
    if name in ("", ".", ".."):
        return "it names no file"
    if size > longest:
        return f"it has {size:,} bytes, and {longest:,} are the most"
    if "/" in name or "\\" in name:
        return "it has a separator of folders, as a backslash is one on Windows"
    if _control(name):
        return "it has a control character"
    if _WINDOWS if windows is None else windows:
        forbidden = _windows_forbids(name)
        if forbidden:
            return f"Windows has no names with {forbidden[0]!r}"
        if name[-1] in ". ":
            return "Windows drops a dot or space at the end of a name"
        if _is_device(name):
            return "a device of Windows is called so"
    return ""


def why_bad_path(path: str) -> str:
    """Say, as `why_bad_name`, why a path cannot be the name of a part."""
    segments = path.removesuffix("/").split("/")
    if len(path) > MAX_PATH:
        return f"it has {len(path):,} characters, and {MAX_PATH:,} are the most"
    if segments[0].casefold() == MANIFEST:
        return "the snapshot's own manifest is called so"
    return next(filter(None, map(why_bad_name, segments)), "")


def check_places(paths: Iterable[str]) -> None:
    """Raise `ValueError` where a file or an empty folder would have something in it."""
    # With what sorts before all other characters between folders, what is in a folder comes right behind it.
    in_order = sorted((path.removesuffix("/").replace("/", "\0"), path) for path in paths)
    for (place, path), (other_place, other) in itertools.pairwise(in_order):
        if other_place == place or other_place.startswith(f"{place}\0"):
            raise ValueError(f"{path!r:.80} and {other!r:.80} cannot both be parts, as one would be in the other")


def check_component_name(name: object, taken: Sequence[str] = ()) -> str:
    """A name for a registered object, which also names its files on every system.

    Args:
        name: The name.
        taken: The names of the others.

    Raises:
        UsageError: It cannot.
    """
    if not isinstance(name, str):
        raise UsageError(f"a component is registered by a name, not by {name!r:.60}")
    problem = why_bad_name(name, longest=_LONGEST_COMPONENT, windows=True)
    unseen = next((sign for sign in name if unicodedata.category(sign) in _UNSEEN), None)
    if not problem and unseen is not None:
        problem = f"it has {unseen!a}, which is no letter that one sees"
    if not problem and (name[0] == "." or name != name.strip()):
        problem = "it begins with a dot, or begins or ends with a space"
    if problem:
        hint = "Choose another name: its files are named after it, and have to be on every system."
        raise UsageError(f"a component cannot be called {name!r:.80}: {problem}", hint=hint)
    if "manifest" in _claims(name):
        hint = "Choose another name."
        raise UsageError(f"a component cannot be called {name!r}: the snapshot's own manifest has that name", hint=hint)
    mine = _claims(name)
    for other in taken:
        common = _claims(other).keys() & mine.keys()
        if common:
            such = mine[min(common)].removesuffix(".pkl")
            problem = f"components {other!r} and {name!r} would write the same files, such as {such}.pkl"
            raise UsageError(problem, hint="Let their names differ in more than case or what follows a dot.")
    return name


@lru_cache(4096)  # each is asked for by all that are registered after it
def _claims(name: str) -> Mapping[str, str]:
    """What a component writes: its name with a suffix, and, by `Path.with_suffix`, what stands before the last dot with one.

    By how it compares: some file systems take two cases, or two spellings of an accent, for the same name.
    """
    return {_fold(claimed): claimed for claimed in (name, name.rpartition(".")[0] or name, f"{name}.pkl")}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
