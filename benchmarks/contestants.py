"""What the scripts share: the value, the keys, folders to work in, and the other libraries, where they are installed."""

from __future__ import annotations

import dbm
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .awaited import Loop

MEMOIZE, JOBLIB, DOGPILE = "diskcache, memoize", "joblib.Memory", "dogpile.cache, dbm"
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
    module = optional("diskcache", notes)
    if module is None:
        return None
    return stack.enter_context(module.Cache(path, **settings))


def persidict(path: str, notes: list[str]) -> Any | None:
    """persidict.FileDirDict with pickle, or `None` and a note."""
    module = optional("persidict", notes)
    return None if module is None else module.FileDirDict(base_dir=path, serialization_format="pkl")


def persidict_on_s3(
    kind: str, endpoint: str, stack: ExitStack, notes: list[str], bucket: str = "persidict", **settings: Any
) -> Any | None:
    """persidict.BasicS3Dict or S3Dict, or `None` and a note."""
    module = optional("persidict", notes)
    if module is None:
        return None
    os.environ["AWS_ENDPOINT_URL"] = endpoint  # it takes no other word for it
    stack.callback(os.environ.pop, "AWS_ENDPOINT_URL", None)
    return getattr(module, kind)(bucket_name=bucket, region="us-east-1", **settings)


def sqlitedict(stack: ExitStack, path: str, notes: list[str], sync: str) -> Any | None:
    """sqlitedict.SqliteDict that promises as much as the others in its row, or `None` and a note."""
    module = optional("sqlitedict", notes)
    if module is None:
        return None
    mapping = module.SqliteDict(path, journal_mode="WAL", outer_stack=False)
    stack.callback(mapping.close)
    mapping.conn.execute(f"PRAGMA synchronous = {sync}")
    notes.append(f"sqlitedict: with journal_mode=WAL, synchronous={sync} (of itself it has OFF) and a commit after each call")
    return mapping


def memoized(stack: ExitStack, root: str, function: Callable[[Any], Any], notes: list[str]) -> dict[str, Callable[[Any], Any]]:
    """A function as others keep its results on this disk, by the names they have in rows; a note for each that is missing."""
    found: dict[str, Callable[[Any], Any]] = {}
    if (cache := diskcache(stack, f"{root}/memoized", notes)) is not None:
        found[MEMOIZE] = cache.memoize()(function)
    if (joblib := optional("joblib", notes)) is not None:
        found[JOBLIB] = joblib.Memory(f"{root}/joblib", verbose=0).cache(function)
    if (dogpile := optional("dogpile.cache", notes)) is not None:
        region = dogpile.make_region().configure("dogpile.cache.dbm", arguments={"filename": f"{root}/dogpile"})
        found[DOGPILE] = region.cache_on_arguments()(function)
        notes.append(f"dogpile: in a file of what Python's dbm is on this machine, {dbm.whichdb(f'{root}/dogpile')}")
    return found


def cashews(stack: ExitStack, loop: Loop, url: str, notes: list[str], **settings: Any) -> Callable[[Any], Any] | None:
    """A decorator of cashews for coroutine functions, or `None` and a note."""
    module = optional("cashews", notes)
    if module is None:
        return None
    cache = module.Cache()
    cache.setup(url, **settings)
    stack.callback(loop.each, lambda _: cache.close(), [None])
    decorate: Callable[[Any], Any] = cache(ttl=None)
    return decorate


def optional(name: str, notes: list[str], package: str | None = None) -> Any | None:
    """The module, or `None` and a note that says what to install."""
    try:
        return import_module(name)
    except ImportError:
        note = f"{package or name} is not installed: left out. pip install '{package or name}'"
        if note not in notes:
            notes.append(note)
        return None


def setter(mapping: Any, value: object = VALUE) -> Any:
    """`mapping[key] = value` as a function of the key."""

    def set_item(key: Any) -> None:
        mapping[key] = value

    return set_item


def setter_with_commit(mapping: Any, value: object = VALUE) -> Any:
    """The same where a write lasts only after a commit."""

    def set_item(key: Any) -> None:
        mapping[key] = value
        mapping.commit()

    return set_item


def one_by_one(mapping: Any, value: object = VALUE) -> Any:
    """`mapping[key] = value` for each key, as a function of the keys."""

    def set_items(keys: Any) -> None:
        for key in keys:
            mapping[key] = value

    return set_items
