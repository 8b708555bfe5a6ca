"""The names of persidict's module `safe_str_tuple_signing`: the digests that stand in file names."""

from __future__ import annotations

from base64 import b32encode
from hashlib import md5
from typing import Any

from ...keys import TupleKey

__all__ = ["sign_safe_str_tuple", "unsign_safe_str_tuple"]


def sign_safe_str_tuple(str_seq: Any, digest_len: int) -> TupleKey:
    """Append to each segment `_` and so many characters of its digest, unless it ends with them already."""
    _check(digest_len)
    return TupleKey(*(s if _bare(s, digest_len) != s else _signed(s, digest_len) for s in TupleKey(str_seq)))


def unsign_safe_str_tuple(str_seq: Any, digest_len: int) -> TupleKey:
    """Take the digests away from those segments that end with their own."""
    _check(digest_len)
    return TupleKey(*(_bare(s, digest_len) for s in TupleKey(str_seq)))


def _check(digest_len: int) -> None:
    if not isinstance(digest_len, int):
        raise TypeError(f"digest_len is a whole number, not {digest_len!r}")
    if digest_len < 0:
        raise ValueError(f"digest_len is 0 or more, not {digest_len}")


def _signed(segment: str, digest_len: int) -> str:
    digest = b32encode(md5(segment.encode(), usedforsecurity=False).digest()).decode().lower()[:digest_len]
    return f"{segment}_{digest}" if digest_len else segment


def _bare(segment: str, digest_len: int) -> str:
    bare = segment[: -digest_len - 1] if digest_len else ""
    return bare if bare and _signed(bare, digest_len) == segment else segment
