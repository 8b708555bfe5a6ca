"""Types beyond those that pickle has instructions for, as calls that build a value and can do nothing else.

An untrusted reader makes these calls and no others. They stand in the pickles by the names of the functions here, so those
must stay; and they take no more than they need, as anybody may have written what they are given.
"""

from __future__ import annotations

import datetime
import decimal
import pathlib
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, TypeAlias

from ..codecs.protocol import Buffer
from ..codecs.types import REGISTERED, decoders, encoder_of, registered_types
from ..errors import CodecError, IntegrityError

__all__ = ["HARMLESS", "Reducer", "reducers"]

Reducer: TypeAlias = Callable[[Any], Any]
"""What `copyreg` calls a reduction function."""


def reducers() -> dict[type, Reducer]:
    """How values are reduced to these calls, by their exact type; with the classes registered by `perdure.register_type`."""
    table = dict(_REDUCERS)
    for cls in registered_types():
        table[cls] = _reduce_registered
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None:
        table[zoneinfo.ZoneInfo] = lambda value: (zone, value.__reduce__()[1])
    return table


# Collections are made empty, and filled by pickle.


def ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def attributes(target: Any, state: Any) -> None:
    """Give an OrderedDict the attributes it had; those that are the state of a module of torch have some."""
    if type(target) is not OrderedDict:
        raise IntegrityError(f"a {type(target).__qualname__} does not get attributes")
    update_attributes(target, state)


def update_attributes(target: Any, state: Any) -> None:
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise IntegrityError("attributes have no names")
    vars(target).update(state)


def default_dict(factory: Any) -> defaultdict[Any, Any]:
    return defaultdict(_FACTORIES[factory] if type(factory) is str else factory)


def counter() -> Counter[Any]:
    return Counter()


def ring(length: Any) -> deque[Any]:
    return deque(maxlen=length)


def _reduce_ordered_dict(value: OrderedDict[Any, Any]) -> Any:
    state = vars(value)
    return ordered_dict, (), state or None, None, iter(value.items()), attributes if state else None


def _reduce_default_dict(value: defaultdict[Any, Any]) -> Any:
    factory: Any = value.default_factory
    name = getattr(factory, "__name__", None)
    known = type(name) is str and _FACTORIES.get(name) is factory
    return default_dict, (name if known else factory,), None, None, iter(value.items())


# As names: the classes themselves, called with what the file says, could ask for any amount of memory.
_FACTORIES: Final = {
    cls.__name__: cls for cls in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set)
} | {
    "frozenset": frozenset,
    "OrderedDict": OrderedDict,
    "Counter": Counter,
    "deque": deque,
}


def fraction(numerator: Any, denominator: Any) -> Fraction:
    if type(numerator) is not int or type(denominator) is not int or denominator < 1:
        raise IntegrityError("a fraction is not made of two whole numbers")
    return Fraction(numerator, denominator)


def unique_id(number: Any, safe: Any) -> uuid.UUID:
    return uuid.UUID(int=number, is_safe=uuid.SafeUUID(safe))


def path(kind: Any, text: Any) -> pathlib.PurePath:
    """A path; one that is not pure becomes one of this system, whichever it came from."""
    if type(text) is not str or kind not in _PATHS:
        raise IntegrityError("a path is not made of text")
    return _PATHS[kind](text)


_PATHS: Final[dict[str, type[pathlib.PurePath]]] = {
    "Path": pathlib.Path,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}


def _reduce_path(value: pathlib.PurePath) -> Any:
    return path, ("Path" if isinstance(value, pathlib.Path) else type(value).__name__, str(value))


def zone(key: Any, cached: Any) -> datetime.tzinfo:
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(key) if cached else zoneinfo.ZoneInfo.no_cache(key)
    except zoneinfo.ZoneInfoNotFoundError as error:
        raise CodecError(f"the time zone {key!r:.80} is not known here", hint="Type: pip install tzdata") from error


# What the user registered says itself how it becomes plain data, and is made again from that and nothing else.


class _Spelling:
    """Takes the name and the plain data which are to be put into msgpack."""

    content: Any = None
    set_aside: list[Buffer] | None = None

    def __call__(self, content: Any) -> bytes:
        self.content = content
        return b""

    exactly = __call__


def _reduce_registered(value: Any) -> Any:
    encoder, spelling = encoder_of(type(value)), _Spelling()
    if encoder is None:
        return value.__reduce_ex__(5)
    encoder(value, spelling)
    return registered, tuple(spelling.content)


def registered(name: Any, state: Any) -> Any:
    unpack: Any = lambda _: (name, state)  # noqa: E731
    return decoders[REGISTERED](b"", unpack)


_REDUCERS: Final[dict[type, Reducer]] = {
    OrderedDict: _reduce_ordered_dict,
    defaultdict: _reduce_default_dict,
    Counter: lambda value: (counter, (), None, None, iter(value.items())),
    deque: lambda value: (ring, (value.maxlen,), None, iter(value)),
    Fraction: lambda value: (fraction, (value.numerator, value.denominator)),
    uuid.UUID: lambda value: (unique_id, (value.int, value.is_safe.value)),
    pathlib.PosixPath: _reduce_path,
    pathlib.WindowsPath: _reduce_path,
    pathlib.PurePosixPath: _reduce_path,
    pathlib.PureWindowsPath: _reduce_path,
}

# Besides the functions above, classes whose objects are never larger than what they are made from, or lazy. A class itself may
# be a value, and cannot be changed through these: all are written in C.
_CLASSES: Final = (
    complex, range, slice, decimal.Decimal,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
)  # fmt: skip
_FUNCTIONS: Final = (
    ordered_dict, attributes, default_dict, counter, ring, fraction, unique_id, path, zone, registered,
)  # fmt: skip

HARMLESS: Final[dict[tuple[str, str], Any]] = {
    ("builtins", "Ellipsis"): Ellipsis,
    ("builtins", "NotImplemented"): NotImplemented,
    **{(made.__module__, made.__qualname__): made for made in (*_CLASSES, *_FUNCTIONS)},
}
"""All that an untrusted reader may call or hold, by module and name; what has to do with arrays comes on top."""
