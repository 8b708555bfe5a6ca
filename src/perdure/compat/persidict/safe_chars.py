"""The names of persidict's module `safe_chars`."""

from ...keys import SAFE_CHARS as _SAFE_CHARS
from ...keys import contains_unsafe_chars, get_safe_chars, replace_unsafe_chars

SAFE_CHARS_SET = set(_SAFE_CHARS)
SAFE_STRING_MAX_LENGTH = 254

__all__ = ["SAFE_CHARS_SET", "SAFE_STRING_MAX_LENGTH", "contains_unsafe_chars", "get_safe_chars", "replace_unsafe_chars"]
