"""Exceptions as values: stored by name and content if that is all there is to them, and made again where they were named."""

from __future__ import annotations

from collections.abc import Iterator
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from ..codecs.chain import Chain
from ..errors import CodecError

__all__ = ["failure_in", "spell_failure"]

# What tells where an exception came from, and not what it is, and what is kept by itself.
_ASIDE: Final = {"__cause__", "__context__", "__dict__", "__suppress_context__", "__traceback__", "__weakref__", "args"}


def spell_failure(chain: Chain, error: Exception, path: str) -> bytes | None:
    """The bytes of an exception; None where what would be made of them is not the same, so that it must not be stored.

    It is made again at once, and compared: its class, arguments, text, attributes and what the interpreter keeps beside these,
    such as the file name of an `OSError`. Where it came from (traceback, cause, context) is not stored.
    """
    own, kept = dict(vars(error)), _kept(error)
    try:
        data = chain.encode([_name(type(error)), list(error.args), own, kept], _context(path))
        again = _make(type(error), *_read(chain, data, path)[1:])
        same = str(again) == str(error) and _same([again.args, vars(again), _kept(again)], [error.args, own, kept])
    except Exception:  # whatever an own class may raise: there is an exception to be raised already, which this must not hide
        return None
    return data if same else None


def failure_in(chain: Chain, data: bytes, path: str, classes: tuple[type[Exception], ...]) -> Exception | None:
    """The exception that bytes stand for; None where it is of none of the classes, nor of one derived from them.

    Nothing is looked up by what stands in the bytes, and no constructor is called: they can only choose among classes that this
    program named, and fill in data.

    Raises:
        CodecError: The bytes cannot be read.
    """
    name, arguments, own, kept = _read(chain, data, path)
    for cls in classes:
        for candidate in _derived(cls):
            if _name(candidate) == name:
                try:
                    return _make(candidate, arguments, own, kept)
                except Exception as error:  # it was of another version of the class
                    raise CodecError(f"what is stored makes no {name}", key=path) from error
    return None


def _read(chain: Chain, data: bytes, path: str) -> tuple[str, list[Any], dict[str, Any], dict[str, Any]]:
    stored = chain.decode(data, _context(path))
    if not (isinstance(stored, list) and [type(part) for part in stored] == [str, list, dict, dict]):
        raise CodecError("what is stored is no exception", key=path)
    name, arguments, own, kept = stored
    return name, arguments, own, kept


def _make(cls: type[Exception], arguments: list[Any], own: dict[str, Any], kept: dict[str, Any]) -> Exception:
    # Without its constructor, which may take something else than what is in `args`, and do more than to fill in attributes.
    error: Exception = cls.__new__(cls, *arguments)
    error.args = tuple(arguments)
    vars(error).clear()
    vars(error).update(own)
    for name in _places(cls):
        if name in kept:
            setattr(error, name, kept[name])
    return error


def _kept(error: Exception) -> dict[str, Any]:
    """What is not in `__dict__`: in slots, or in structures of the interpreter."""
    values = {name: getattr(error, name, None) for name in _places(type(error))}
    return {name: value for name, value in values.items() if value is not None}


def _places(cls: type) -> Iterator[str]:
    for base in cls.__mro__[:-1]:  # not those of `object`
        for name, value in vars(base).items():
            if isinstance(value, (MemberDescriptorType, GetSetDescriptorType)) and name not in _ASIDE:
                yield name


def _same(a: Any, b: Any) -> bool:
    """Tell whether two values are equal and of the same types: 1 is not True here."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return (a == b) is True  # of arrays it is an array, and so they count as different


def _derived(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for derived in reversed(cls.__subclasses__()):  # of several of one name, as a notebook makes, the last
        yield from _derived(derived)


def _name(cls: type) -> str:
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__  # as processes call it that were spawned
    return f"{module}.{cls.__qualname__}"


def _context(path: str) -> str:
    return f"{path}!"  # no key, so a signed value cannot be passed off as an exception, nor the other way round
