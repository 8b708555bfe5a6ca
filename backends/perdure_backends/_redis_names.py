"""What may name a server, a database and a prefix, and what options may be; the rest is refused before anything is sent."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import NamedTuple

from perdure.durations import seconds
from perdure.errors import UsageError, UsageTypeError

_LONGEST_TTL = 1e10  # seconds; what is longer, a server cannot add to its clock
_split_server = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:/\[\]]*)(?::([0-9]{1,5}))?\Z").match
# `host:6379/0/a@b` is no login, though it has an `@` and a colon.
_is_no_login = re.compile(r"[^:]*(:\d{1,5}/\d+(/.*)?)?\Z", re.DOTALL).match


class Address(NamedTuple):
    """What a URL says."""

    host: str
    port: int
    db: int
    prefix: str
    user: str | None
    password: str | None


def parse(location: str, scheme: str) -> Address:
    """Take `//user:password@host:port/db/prefix` apart, which is decoded already, so a password may hold any character.

    Raises:
        UsageError: It cannot be. Nothing that may be a password is repeated.
    """
    hint = f"Write {scheme}://host:6379/0/prefix, or {scheme}://user:password@host:6379/0/prefix."
    if not location.startswith("//"):
        raise UsageError(f"a Redis URL begins with {scheme}://", hint=hint)
    login, at, rest = location[2:].rpartition("@")
    if at and _is_no_login(login):
        raise UsageError("before an '@' stand user and password, and a prefix holds no '@'", hint=hint)
    server, _, path = rest.partition("/")
    found = _split_server(server)
    if found is None and ":" in server.rpartition("]")[2]:
        raise cut_in_two(scheme)
    if found is None:
        raise UsageError(f"{server!r:.80} is not a host and a port", hint=hint)
    db, _, prefix = path.partition("/")
    if not (db == "" or (db.isascii() and db.isdigit())):
        said = f"{scheme}://{server}"
        hint = f"Write {said}/0/{path}."
        raise UsageError(f"after the host stands the number of a database, not {db!r:.80}", place=said, hint=hint)
    host, port = found[1].strip("[]") or "localhost", int(found[2] or 6379)
    user, _, password = login.partition(":")
    return Address(host, port, int(db or 0), prefix, user or None, password or None)


def cut_in_two(scheme: str) -> UsageError:
    """The error for what may be a URL up to a `?` in its password. It repeats nothing of it."""
    hint = (
        f"Write {scheme}://user:password@host:6379/0/prefix, and in a password %3F for '?', %40 for '@', %2F for '/' and %25 "
        "for '%', or give it as password=."
    )
    return UsageError("after '//', or after an '@', there is not a host and a port", hint=hint)


def check_texts(host: str, **options: str | None) -> None:
    """Refuse what is no text, without repeating it."""
    if not isinstance(host, str):
        raise UsageTypeError(f"the host is text, such as 'localhost', not {type(host).__name__}")
    for name, text in options.items():
        if not (text is None or isinstance(text, str)):
            raise UsageTypeError(f"{name} is text, not {type(text).__name__}")


def checked_prefix(prefix: str, place: str) -> str:
    """The prefix as names begin with it: `""`, or ending in a slash."""
    if not isinstance(prefix, str):
        raise UsageTypeError(f"a prefix is text, not {type(prefix).__name__}", place=place)
    segments = prefix.strip("/").split("/") if prefix.strip("/") else []
    for segment in segments:
        if segment in ("", ".", "..") or not segment.isprintable() or "@" in segment:
            hint = "Use names between single slashes, such as team/app."
            raise UsageError(f"{segment!r:.80} cannot stand in a prefix", place=place, hint=hint)
    return "".join(segment + "/" for segment in segments)


def check_numbers(port: int, db: int, timeout: float, attempts: int, place: str) -> None:
    """Refuse options that are no numbers, or numbers that cannot be."""
    for name, number, least, most in (("port", port, 1, 65535), ("db", db, 0, 1 << 30), ("attempts", attempts, 1, 1000)):
        if not isinstance(number, int) or not least <= number <= most:
            raise UsageError(f"{name} is a whole number from {least} to {most}, not {number!r:.80}", place=place)
    if not isinstance(timeout, (int, float)) or not 0 < timeout <= 1e6:
        raise UsageError(f"timeout is a number of seconds above 0, not {timeout!r:.80}", place=place)


def milliseconds(ttl: str | float | timedelta | None, place: str) -> int:
    """A time to live as scripts take it; 0 is for ever."""
    length = math.inf if ttl is None else seconds(ttl, "ttl")
    if math.isinf(length):
        return 0
    if not 0.001 <= length <= _LONGEST_TTL:
        hint = "Write a duration such as '7 d', or leave it out for values that stay."
        raise UsageError(f"ttl is between a millisecond and {_LONGEST_TTL:g} seconds, not {ttl!r:.80}", place=place, hint=hint)
    return int(length * 1000)
