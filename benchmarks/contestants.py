"""What the scripts share: the value, the keys, folders to work in, and the other libraries, where they are installed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

VALUE = {"theme": "dark", "size": 12, "ratio": 1.5, "recent": ["a.txt", "b.txt"], "saved": True}
DATA = b"x" * 100
FLAT = [f"theme{i}" for i in range(100)]
NESTED = [f"settings/theme{i}" for i in range(100)]
TUPLES = [("settings", f"theme{i}") for i in range(100)]  # the same keys as a dict takes them


@contextmanager
def folder(where: str | None = None) -> Iterator[str]:
    """A new folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=where) as path:
        yield path


def diskcache(stack: ExitStack, path: str, notes: list[str], **settings: Any) -> Any | None:
    """diskcache.Cache, or `None` and a note."""
    module = _optional("diskcache", notes)
    if module is None:
        return None
    return stack.enter_context(module.Cache(path, **settings))


def persidict(path: str, notes: list[str]) -> Any | None:
    """persidict.FileDirDict with pickle, or `None` and a note."""
    module = _optional("persidict", notes)
    return None if module is None else module.FileDirDict(base_dir=path, serialization_format="pkl")


def _optional(name: str, notes: list[str]) -> Any | None:
    try:
        return import_module(name)
    except ImportError:
        notes.append(f"{name} is not installed: left out. pip install {name}")
        return None


def setter(mapping: Any, value: object = VALUE) -> Any:
    """`mapping[key] = value` as a function of the key."""

    def set_item(key: Any) -> None:
        mapping[key] = value

    return set_item
