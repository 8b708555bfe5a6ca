"""From what stands on the command line to a backend, a prefix or a key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

from ..errors import BackendError, IntegrityError, NotFoundError, PerdureError, UnavailableError, UsageError
from ..protocol import Backend, Blob, Meta, check_key
from ..registry import open_backend

F = TypeVar("F", bound=Callable[..., Any])
BATCH_KEYS = 256
BATCH_BYTES = 16_000_000


def open_place(url: str, *, must_exist: bool = True) -> Backend:
    """Open the place a URL names.

    Args:
        url: See `perdure.open_backend`.
        must_exist: Refuse a local path with nothing there, so that a misspelt one is noticed. Nothing is created. Without it
            the place is to be written to, so one that ends with this command is refused.

    Raises:
        BackendError: `must_exist`, and it does not.
        UsageError: Nothing would be left of what is written there.
    """
    if not must_exist and url[:7].lower() == "memory:":
        hint = "Name a folder or a database, or null: to keep nothing on purpose."
        raise UsageError("memory: is the memory of this command, which ends at once", place=url, hint=hint)
    backend = open_backend(url)
    path = getattr(backend, "path", None)
    if must_exist and isinstance(path, str):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            backend.close()
            hint = "Check the spelling; nothing was created."
            if "?" in path:
                hint = f"Options need a scheme in front, such as file:{url}; nothing was created."
            raise BackendError("there is nothing here", place=backend.place, hint=hint) from None
    return backend


def as_prefix(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The prefix that `a/b` or `a/b/` means."""
    if value is None:
        return None
    bare = value.rstrip("/")
    return f"{check_key(bare)}/" if bare else ""


def as_key(value: str) -> tuple[str, ...]:
    """The segments of `a/b`."""
    return tuple(check_key(value).split("/"))


def prefix_option(help: str) -> Callable[[F], F]:
    """`--prefix`, the same everywhere."""
    return click.option("--prefix", callback=as_prefix, metavar="P", help=help)


def batches(metas: Iterable[Meta]) -> Iterator[list[Meta]]:
    """Cut a listing into pieces that fit into memory; a larger value comes alone."""
    batch: list[Meta] = []
    filled = 0
    for meta in metas:
        if batch and (len(batch) == BATCH_KEYS or filled + meta.size > BATCH_BYTES):
            yield batch
            batch, filled = [], 0
        batch.append(meta)
        filled += meta.size
    if batch:
        yield batch


def read_all(backend: Backend, keys: list[str]) -> tuple[dict[str, Blob], dict[str, PerdureError]]:
    """Read many values, and what cannot be read among them does not keep the others from us.

    Returns:
        The values that could be read, and the error of each that is there and could not: damaged, or of somebody who does not
        let us read it. Absent keys are in neither.

    Raises:
        PerdureError: It is not one value but the place: nothing can be read at the moment.
    """
    try:
        return backend.get_many(keys), {}
    except (IntegrityError, BackendError) as error:
        if not _is_of_one_value(error):
            raise
    blobs: dict[str, Blob] = {}
    unreadable: dict[str, PerdureError] = {}
    for key in keys:
        try:
            blobs[key] = backend.get(key)
        except NotFoundError:
            continue
        except (IntegrityError, BackendError) as error:
            if not _is_of_one_value(error):
                raise
            unreadable[key] = error
    return blobs, unreadable


def _is_of_one_value(error: PerdureError) -> bool:
    # What the system says when a file is read is of that file. A server or a database that refuses, refuses everything.
    return not isinstance(error, BackendError) or (
        error.key is not None and error.errno is not None and not isinstance(error, UnavailableError)
    )
