"""From a URL to a backend: `open_backend("s3://bucket/prefix")`.

The built-in schemes are a table of strings, so that nothing is imported before it is used. Other distributions add a scheme
with one entry point in the group `perdure.backends`::

    [project.entry-points."perdure.backends"]
    gopher = "my_package.gopher:GopherBackend"

The class has a classmethod `from_url(location, **options)`: `location` is the URL without scheme and query, and its
keyword-only parameters are the options, whose defaults tell how text from a query is converted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from .errors import MissingExtraError, UsageError
from .protocol import Backend

ENTRY_POINT_GROUP = "perdure.backends"

# scheme -> (where the class is, the extra that brings its dependencies)
_known: dict[str, tuple[str, str]] = {
    "file": ("perdure_backends.file:FileBackend", ""),
    "sqlite": ("perdure_backends.sqlite:SQLiteBackend", ""),
    "s3": ("perdure_backends.s3:S3Backend", "s3"),
    "redis": ("perdure_backends.redis:RedisBackend", "redis"),
    "rediss": ("perdure_backends.redis:RedisTLSBackend", "redis"),
    "memory": ("perdure_backends.memory:MemoryBackend", ""),
    "null": ("perdure_backends.null:NullBackend", ""),
}


def register(scheme: str, target: str, *, extra: str = "") -> None:
    """Add or replace a scheme for this process.

    Args:
        scheme: What stands before the colon of a URL.
        target: `"package.module:Class"`, imported at first use.
        extra: The extra of perdure to name when that import lacks a dependency.
    """
    _known[scheme.lower()] = (target, extra)


def schemes() -> list[str]:
    """All known schemes, those of installed distributions included."""
    return sorted({*_known, *(point.name for point in _entry_points())})


_is_scheme = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+\Z").match


def open_backend(where: str | os.PathLike[str], **options: Any) -> Backend:
    """Open the place that a URL or a path names.

    Args:
        where: A path (a folder), `file:PATH`, `sqlite:///relative.db` or `sqlite:////absolute.db`, `s3://bucket/prefix`,
            `memory:NAME`, `null:`, or a scheme of an installed distribution. Options may stand in its query:
            `file:data?sync=normal`. An `os.PathLike` and a text without a scheme are taken literally, `?` included. In text,
            `~` and `~/` in front of a folder mean the home folder; write `./~` for one of that name.
        **options: Options of that backend, as keyword arguments.

    Returns:
        A backend; nothing is created on disk and no request is sent before its first use.

    Raises:
        UsageError: Unknown scheme or option (the message suggests the nearest known one), or a malformed URL.
        MissingExtraError: The backend's dependencies are not installed; the message says what to type.
        BackendError: The place exists and is something else.
    """
    scheme, location, query = parse_url(where)
    factory = _factory(scheme, _bare(where))
    known: Mapping[str, Any] = getattr(factory, "__kwdefaults__", None) or {}
    for name, text in query:
        if name in options:
            raise UsageError(f"the option {name!r} is given twice", place=_bare(where), hint="Keep one of the two.")
        _require(name, known, scheme)
        options[name] = _convert(name, text, known[name], where)
    for name in options:
        _require(name, known, scheme)
    return factory(location, **options)


def parse_url(where: str | os.PathLike[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """The scheme, the location and the options of a URL; a path is of the scheme `file`. Raises `UsageError`."""
    text = os.fspath(where)
    if not isinstance(text, str):
        raise UsageError(f"a place is given as text or as a path of text, not as {type(text).__name__}")
    if text == "" or "\0" in text:
        raise UsageError(f"{text!r} is not a place", hint="Give a folder or a URL such as sqlite:///app.db.")
    scheme, colon, rest = text.partition(":")
    # A single letter before the colon is a Windows drive, and a separator before it is just a strange folder name.
    if not isinstance(where, str) or not colon or not _is_scheme(scheme):
        path = _at_home(text) if isinstance(where, str) else text
        return "file", "/" + path.lstrip("/") if path.startswith("//") else path, []
    from urllib.parse import parse_qsl, unquote  # 3 ms that a bare path does not need

    location, _, query = rest.partition("?")
    if "@" in query and not _has_no_login(scheme):
        hint = "In a password write %3F for '?' and %40 for '@', or give it as an argument; in options write %40 for '@'."
        raise UsageError("there is an '@' behind a '?'", place=_bare(where), hint=hint)
    path = unquote(location)
    if scheme.lower() == "file" and location.startswith("~"):
        path = _at_home(path)
    return scheme.lower(), path, parse_qsl(query, keep_blank_values=True)


def _at_home(path: str) -> str:
    # Not ~somebody: it is the name of a folder more often than of a user.
    return os.path.expanduser(path) if path == "~" or path.startswith(("~/", "~" + os.sep)) else path


def _bare(where: str | os.PathLike[str]) -> str:
    """What may stand in a message: neither the query nor a user's name and password, which may be secrets."""
    text = os.fspath(where)
    scheme, colon, _ = text.partition(":")
    if colon and _is_scheme(scheme) and not _has_no_login(scheme):
        text = re.sub("//.*@", "//", text)  # a password that should have been quoted may hold anything
    return re.sub("//[^/]*@", "//", text.partition("?")[0])


def _has_no_login(scheme: str) -> bool:
    return scheme.lower() in ("file", "memory", "null", "s3", "sqlite")


def _factory(scheme: str, text: str) -> Callable[..., Backend]:
    if scheme in _known:
        target, extra = _known[scheme]
        module, _, name = target.partition(":")
        try:
            cls = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
            if extra and missing and missing.partition(".")[0] != module.partition(".")[0]:
                raise MissingExtraError(missing, extra) from error
            raise _unusable(scheme, target, error) from error
    else:
        point = next((point for point in _entry_points() if point.name.lower() == scheme), None)
        if point is None:
            hint = _nearest(scheme, schemes(), f"For a folder of that name write ./{text}")
            raise UsageError(f"no backend is known for {scheme!r}", hint=hint)
        target = point.value
        try:
            cls = point.load()
        except (ImportError, AttributeError) as error:
            raise _unusable(scheme, f"{target} of {point.dist.name}", error) from error
    factory: Callable[..., Backend] | None = getattr(cls, "from_url", None)
    if factory is None:
        raise UsageError(f"{target}, which is installed for {scheme}:, is no backend: it has no from_url")
    return factory


def _unusable(scheme: str, target: str, error: Exception) -> UsageError:
    hint = "Install what it needs, or install it again."
    return UsageError(f"the backend for {scheme}:, {target}, cannot be imported: {error}", hint=hint)


def _entry_points() -> Iterable[Any]:
    from importlib.metadata import entry_points  # 20 ms, so only when the table did not know

    return entry_points(group=ENTRY_POINT_GROUP)


def _require(name: str, known: Mapping[str, Any], scheme: str) -> None:
    if name not in known:
        otherwise = "Others, such as codec, are arguments of perdure.open" if known else "It has no options"
        raise UsageError(f"{scheme}: has no option {name!r}", hint=_nearest(name, known, otherwise))


def _nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(word, known, 1, 0.5)
    listing = f"Known: {', '.join(known)}." if known else ""
    return f"Did you mean {close[0]!r}? {listing}" if close else " ".join(filter(None, (listing, otherwise.rstrip(".") + ".")))


_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _convert(name: str, text: str, default: Any, where: str | os.PathLike[str]) -> Any:
    """Convert text from a query to the type of the option's default; `None` means text."""
    try:
        if isinstance(default, bool):
            return _WORDS[text.lower()]
        if isinstance(default, (int, float)):
            return type(default)(text)
    except (KeyError, ValueError):
        kind = "yes or no" if isinstance(default, bool) else "a number"
        raise UsageError(f"the option {name!r} needs {kind}, not {text!r}", place=_bare(where)) from None
    return text
