"""The key grammar, the same in every place: tuples of safe names, which backends see as `"a/b/c"`.

A *segment* is 1 to 253 characters out of 69: ASCII letters, digits and `( ) _ - ~ . =`, and is neither `.` nor `..`.
Such a name is legal on every file system, in every bucket and in a URL, cannot climb out of its store, has one spelling
only (no unicode look-alikes), and needs no quoting in a shell or a listing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Self

from .errors import InvalidKeyError, InvalidKeyTypeError

SAFE_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789()_-~.=")
MAX_SEGMENT: Final = 253

_SAFE_BYTES: Final = bytes(map(ord, sorted(SAFE_CHARS))) + b"/\n"

# One expression for keys, prefixes and segments: to compile another takes every new process half a millisecond.
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9()_\-~.=]{1,253}"
_match_key = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*\Z").match


def check_key(key: str) -> str:
    """Return `key` when it is a legal key such as `"a"` or `"a/b"`, else raise `InvalidKeyError`. No input or output."""
    if is_key(key):
        return key
    raise _complaint(key, key.split("/") if isinstance(key, str) else (key,))


def check_prefix(prefix: str) -> str:
    """Return `prefix` when it is `""` or a legal key followed by `"/"`, else raise `InvalidKeyError`."""
    if prefix == "" or (isinstance(prefix, str) and prefix.endswith("/") and _match_key(prefix[:-1])):
        return prefix
    hint = f"Try {prefix.rstrip('/') + '/'!r}." if isinstance(prefix, str) and is_key(prefix.rstrip("/")) else None
    raise InvalidKeyError("a prefix is empty, or a key followed by '/'", key=prefix, hint=hint)


def is_key(key: object) -> bool:
    """Tell whether `key` is a legal key; for names that others put into a store, which are skipped, not reported."""
    return isinstance(key, str) and _match_key(key) is not None


def are_keys(names: Sequence[str]) -> bool:
    """Tell whether all of them are legal keys, in a tenth of the time that it takes to ask for each; for whole listings."""
    text = "/\n/".join(names)
    return (
        text.isascii()
        and not text.encode().translate(None, _SAFE_BYTES)
        and text.count("\n") == max(len(names) - 1, 0)
        and not any(odd in f"/{text}/" for odd in ("//", "/./", "/../"))
        and max(map(len, names), default=0) <= MAX_SEGMENT
    ) or all(map(is_key, names))


def _is_segment(name: str) -> bool:
    return "/" not in name and _match_key(name) is not None


def join_key(key: object) -> str:
    """Spell what a user wrote between square brackets (`"a"`, `("a", "b")`, nested sequences) as a backend's `"a/b"`.

    Raises:
        InvalidKeyError: Empty, not made of strings, or a segment breaks the grammar. A `/` inside a segment is refused:
            `d["a/b"]` would otherwise mean the same item as `d["a", "b"]` by accident.
    """
    if type(key) is SafeStrTuple and key:
        return "/".join(key)
    try:
        return known_key(key)
    except TypeError:  # a list, or a tuple that holds one, which no table takes
        return _spell(key)


def _spell(key: object) -> str:
    if type(key) is str and _is_segment(key):
        return key
    segments = tuple(_flatten(key, key))
    if not segments:
        raise InvalidKeyError("a key needs at least one segment", key=key, hint="Use a name such as d['a'] or d['a', 'b'].")
    for segment in segments:
        if not _is_segment(segment):
            raise _complaint(key, segments)
    return "/".join(segments)


known_key = lru_cache(maxsize=8192)(_spell)
"""The same for what can be hashed. To check a key costs six times what it costs to find it here, on the path of every get."""


def split_key(key: str) -> SafeStrTuple:
    """Turn a backend's `"a/b"`, which is known to be legal, into the tuple that a user sees."""
    return tuple.__new__(SafeStrTuple, key.split("/"))


def split_to_tuple_key(key: str) -> SafeStrTuple:
    """The same for dicts whose keys hash like tuples."""
    return tuple.__new__(NonEmptySafeStrTuple, key.split("/"))


def get_safe_chars() -> set[str]:
    """A new set of the 69 characters that segments are made of."""
    return set(SAFE_CHARS)


def contains_unsafe_chars(text: str) -> bool:
    """Tell whether any character of `text` is none of the 69 safe ones."""
    return not SAFE_CHARS.issuperset(text)


def replace_unsafe_chars(text: str, replacement: str) -> str:
    """Make any text usable as a segment: every character outside the 69 safe ones becomes `replacement`.

    The result is not checked: it may still be too long, empty, or equal for two different texts.
    """
    return re.sub(r"[^A-Za-z0-9()_\-~.=]", lambda _: replacement, text)


class SafeStrTuple(tuple[str, ...]):
    """A key as dicts hand it out: an immutable tuple of safe names, here called segments.

    It is a real tuple (it sorts, unpacks and slices as one) and equals whatever you may write between the square
    brackets: `SafeStrTuple("a") == "a" == ("a",)`. A key of one segment also *hashes* like that segment, so
    `"a" in set(d)` and `dict(d)["a"]` work; a longer one hashes like the plain tuple.

    Args:
        *parts: Strings, sequences of them, and other keys in any nesting, flattened from left to right.

    Raises:
        InvalidKeyError: A segment breaks the grammar (see `perdure.keys`) or is not a string.
    """

    __slots__ = ()

    def __new__(cls, *parts: Any) -> Self:
        segments = tuple(_flatten(parts, parts))
        for segment in segments:
            if not _is_segment(segment):
                raise _complaint(segments, segments)
        return super().__new__(cls, segments)

    @property
    def strings(self) -> tuple[str, ...]:
        """The segments as a plain tuple."""
        return tuple(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return len(self) == 1 and self[0] == other
        if isinstance(other, SafeStrTuple):
            if type(other).__eq__ is not SafeStrTuple.__eq__ and type(self).__eq__ is SafeStrTuple.__eq__:
                return NotImplemented  # a class that compares in its own way decides, from either side
            return tuple.__eq__(self, other)
        if not isinstance(other, Sequence):
            return NotImplemented
        try:
            return tuple.__eq__(self, tuple(other)) or tuple.__eq__(self, tuple(_flatten(other, other)))
        except InvalidKeyError:
            return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reversed__(self) -> Self:  # type: ignore[override]
        return tuple.__new__(type(self), self[::-1])

    def __hash__(self) -> int:
        return hash(self[0]) if len(self) == 1 else tuple.__hash__(self)

    # The sum of keys is a key again, which is stricter than the sum of tuples.
    def __add__(self, other: Any) -> SafeStrTuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SafeStrTuple(self, other)

    def __radd__(self, other: Any) -> SafeStrTuple:
        return SafeStrTuple(other, self)

    def __str__(self) -> str:
        return "/".join(self)

    def __repr__(self) -> str:
        return f"SafeStrTuple({tuple.__repr__(self)})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self),)

    def __getnewargs__(self) -> tuple[tuple[str, ...]]:
        return (tuple(self),)


class TupleKey(SafeStrTuple):
    """A key that hashes like the plain tuple whatever its length, as keys of persidict do: `("a",) in set(d)`.

    The dicts that programs written for persidict use (`FileDirDict` and its family) hand these out.
    """

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __add__(self, other: Any) -> TupleKey:  # pyright: ignore[reportIncompatibleMethodOverride]
        return TupleKey(self, other)

    def __radd__(self, other: Any) -> TupleKey:
        return TupleKey(other, self)

    @property
    def str_chain(self) -> tuple[str, ...]:
        """The segments as a plain tuple; another name of `strings`."""
        return tuple(self)


class NonEmptySafeStrTuple(TupleKey):
    """A `TupleKey` of at least one segment.

    Raises:
        InvalidKeyError: There is none, or as for `SafeStrTuple`.
    """

    __slots__ = ()

    def __new__(cls, *parts: Any) -> Self:
        key = super().__new__(cls, *parts)
        if not key:
            raise InvalidKeyError("a key needs at least one segment", key=parts, hint="Use a name such as 'a'.")
        return key


def _flatten(part: object, whole: object) -> Iterable[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Sequence) and not isinstance(part, (Mapping, bytes, bytearray, memoryview, range)):
        for inner in part:
            yield from _flatten(inner, whole)
    else:
        kind = "bytes" if isinstance(part, (bytes, bytearray)) else type(part).__name__
        raise InvalidKeyTypeError(
            f"a key is made of strings, and this one holds {'an' if kind[0] in 'aeio' else 'a'} {kind}",
            key=whole,
            hint="Convert it to text first, for example with str().",
        )


def _complaint(key: object, segments: Iterable[object]) -> InvalidKeyError:
    """Say which segment is wrong, why, and what would do."""
    for segment in segments:
        if not isinstance(segment, str):
            return InvalidKeyTypeError(f"a key is text, not {type(segment).__name__}", key=key)
        if segment == "":
            return InvalidKeyError("a segment is empty", key=key, hint="Leave it out: no leading, trailing or double '/'.")
        if segment in (".", ".."):
            return InvalidKeyError(f"a segment may not be {segment!r}", key=key, hint="It would name a folder, not a value.")
        if len(segment) > MAX_SEGMENT:
            text = f"a segment has {len(segment)} characters, and {MAX_SEGMENT} are the most"
            return InvalidKeyError(text, key=key, hint="Split it into several segments, or use a hash of it.")
        unsafe = sorted(set(segment) - SAFE_CHARS)
        if unsafe == ["/"]:
            spelled = ", ".join(map(repr, segment.strip("/").split("/")))
            return InvalidKeyError("a segment may not contain '/'", key=key, hint=f"For levels use a tuple: d[{spelled}].")
        if unsafe:
            text = f"{', '.join(map(repr, unsafe[:5]))} cannot stand in a key (letters, digits and ()_-~.= can)"
            hint = f"perdure.replace_unsafe_chars(text, '_') gives {replace_unsafe_chars(segment, '_')[:40]!r}."
            return InvalidKeyError(text, key=key, hint=hint)
    return InvalidKeyError("not a legal key", key=key)
