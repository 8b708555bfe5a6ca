"""Keys of other stores, which may be anything, as keys of ours."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from ..errors import InvalidKeyError
from ..keys import join_key, replace_unsafe_chars
from .sources import Entry, UnreadableKey

RULES = ("strict", "replace", "hash")
_READABLE = 40  # characters before the hash


def name_of(entry: Entry, rule: str) -> str:
    """The key under which an entry is stored, as backends spell it.

    Args:
        entry: Whose key it is.
        rule: `"strict"` takes text that is a legal segment, and tuples of such text as levels. `"replace"` makes the others
            legal where that can be read back by people: a `/` between two names begins a level, a number, `None` or bytes
            become their text, a tuple the levels of its parts, and every other character that cannot stand in a key an
            underscore. `"hash"` puts 20 digits of a SHA-256 behind the beginning of the name, which works for any key.

    Raises:
        InvalidKeyError: The rule has no legal name for it.
    """
    key = entry.key
    if rule == "strict":
        return _strict(key)
    if rule == "replace":
        return join_key(tuple(replace_unsafe_chars(part, "_") for part in _parts(key)))
    try:
        return _strict(key)
    except InvalidKeyError:
        return _hashed(key, entry.pickled)


def spell_source_key(key: object) -> str:
    """A key of the source for people."""
    text = "a key that cannot be read" if isinstance(key, UnreadableKey) else _say(key)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def _say(key: object) -> str:
    try:
        return repr(key)
    except Exception as error:  # of a class that the store brought along
        return f"a {type(key).__name__} whose repr fails: {error}"


def _strict(key: Any) -> str:
    if isinstance(key, UnreadableKey):
        raise InvalidKeyError(f"it cannot be read: {key.problem}")
    if type(key) is str and "/" in key:
        raise InvalidKeyError("'/' cannot stand in a key; levels are written as a tuple")
    if type(key) in (str, tuple):
        return join_key(key)
    raise InvalidKeyError(f"a key is text, not {type(key).__name__}")


def _parts(key: Any) -> list[str]:
    """The levels that `replace` makes of a key."""
    if type(key) is str:
        levels = key.split("/")
        return [key] if any(level in ("", ".", "..") for level in levels) else levels
    if type(key) is bytes:
        try:
            return _parts(key.decode())
        except UnicodeDecodeError:
            return [key.hex()]
    if type(key) is tuple:
        return [part for inner in key for part in _parts(inner)]
    if key is None or type(key) in (bool, int, float):
        return [_number(key)]
    raise InvalidKeyError("only text, bytes, numbers, None and tuples of these can be spelled")


def _hashed(key: Any, pickled: bytes) -> str:
    try:
        readable = "_".join(_parts(key))
    except InvalidKeyError:
        readable = "key" if isinstance(key, UnreadableKey) else type(key).__name__
        exact = pickled
    else:
        exact = _exact(key).encode()
    return f"{replace_unsafe_chars(readable, '_')[:_READABLE]}-{sha256(exact).hexdigest()[:20]}"


def _exact(key: Any) -> str:
    """One spelling for each key, the same in every Python: `repr` writes newer characters in two ways."""
    if type(key) is tuple:
        return f"({','.join(map(_exact, key))})"
    return _number(key) if type(key) is int else ascii(key)


def _number(number: float | None) -> str:
    try:
        return repr(number)
    except ValueError:  # more digits than Python cares to write
        return hex(number)  # type: ignore[arg-type]
