"""Exceptions as values: stored by name and arguments, and made again only where their class was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..codecs.chain import Chain
from ..errors import CodecError

__all__ = ["failure_in", "spell_failure"]


def spell_failure(chain: Chain, error: Exception, path: str) -> bytes:
    """The bytes of an exception. Arguments that cannot be stored are left out, and its text stands for them."""
    name = _name(type(error))
    try:
        return chain.encode([name, list(error.args)], _context(path))
    except CodecError:
        return chain.encode([name, [str(error)]], _context(path))


def failure_in(chain: Chain, data: bytes, path: str, classes: tuple[type[Exception], ...]) -> Exception | None:
    """The exception that bytes stand for; None where it is of none of the classes, nor of one derived from them.

    Nothing is looked up by what stands in the bytes: it can only choose among classes that this program named.

    Raises:
        CodecError: The bytes cannot be read.
    """
    stored = chain.decode(data, _context(path))
    if not (isinstance(stored, list) and len(stored) == 2 and isinstance(stored[1], list)):
        raise CodecError("what is stored is no exception", key=path)
    name, arguments = stored
    for cls in classes:
        for candidate in _derived(cls):
            if _name(candidate) == name:
                return _make(candidate, arguments)
    return None


def _make(cls: type[Exception], arguments: list[Any]) -> Exception:
    try:
        return cls(*arguments)
    except Exception:  # its constructor takes something else than what it hands to Exception
        error = cls.__new__(cls, *arguments)
        error.args = tuple(arguments)
        return error


def _derived(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for derived in cls.__subclasses__():
        yield from _derived(derived)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _context(path: str) -> str:
    return f"{path}!"  # no key, so a signed value cannot be passed off as an exception, nor the other way round
