"""The fields of stored values, and listing them: each key once, although a server may name it twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from redis.exceptions import ResponseError

from perdure.protocol import ETag, is_key

from ._redis_calls import Calls

UNREADABLE: Final = ETag("unreadable")  # what no version has
_STEP: Final = b"1000"  # names that a server looks at in one go
_escape = re.compile(rb"([*?\[\]\\])").sub

is_etag = re.compile(r"[0-9a-f]{16}\Z").match


def about(field: bytes | None) -> tuple[ETag, int, float]:
    """What the field `m` says: ETag, size and time. Raises `ValueError` when it was not written by us."""
    etag, size, modified = (field or b"").decode().split(" ")
    if not is_etag(etag):
        raise ValueError(f"{etag!r:.40} is no ETag")
    return ETag(etag), int(size), float(modified)


def about_listed(field: bytes) -> tuple[ETag, int, float]:
    """The same for listings, which show what cannot be read as well."""
    try:
        return about(field)
    except ValueError:
        return UNREADABLE, 0, 0.0


def moment(field: bytes | None) -> float:
    """What the field `u` says, in seconds since the epoch; 0 when there is none, or none of ours."""
    try:
        return float(field or 0)
    except ValueError:
        return 0.0


def is_foreign(answer: object) -> bool:
    """Tell whether an answer says that another program keeps something else under this name."""
    return isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer)


def entries(calls: Calls, base: bytes, prefix: str) -> Iterator[tuple[str, bytes, bytes | None]]:
    """All keys under `prefix` with their fields `m` and `u`. Two round trips for each thousand names in the database."""
    pattern = _escape(rb"\\\1", base + prefix.encode()) + b"*"
    cursor = b"0"
    seen: set[str] = set()
    while True:
        (answer,) = calls.ask([[b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _STEP]])
        cursor, names = calls.value(answer, None)
        keys = {name: name[len(base) :].decode("latin-1") for name in names}
        ours = [(name, key) for name, key in keys.items() if is_key(key) and key not in seen]
        answers = calls.ask([[b"HMGET", name, b"m", b"u"] for name, _ in ours]) if ours else []
        for (_, key), fields in zip(ours, answers, strict=True):
            if is_foreign(fields):
                continue
            written, used = calls.value(fields, key)
            if written is not None:
                seen.add(key)
                yield key, written, used
        if cursor == b"0":
            return
