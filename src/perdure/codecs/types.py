"""The extension types of msgpack: one small encoder and decoder for each, and the types that users register.

An encoder gets the value and `pack`, which turns content into bytes and takes everything the codec holds; a decoder gets the
bytes and `unpack`. Numbers once given out are never used for something else.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from struct import Struct
from types import FunctionType
from typing import Any, Protocol, TypeVar, overload

from ormsgpack import Ext

from ..errors import CodecError, UsageError
from .protocol import Buffer

__all__ = ["register_type"]

_T = TypeVar("_T")

# Numbers of the extension types. 9 to 12 and the like are spelled out in docs/reference/format.md.
(
    TUPLE, SET, FROZENSET, BIG_INT, SURROGATES, BYTEARRAY, MAP, COMPLEX, DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID, RANGE,
    SLICE, ARRAY, ARRAY_IN_TAIL, NUMPY_SCALAR, REGISTERED,
) = range(1, 21)  # fmt: skip


class Pack(Protocol):
    set_aside: list[Buffer] | None

    def __call__(self, content: Any) -> bytes: ...

    def exactly(self, content: Any) -> bytes: ...


class Unpack(Protocol):
    tail: Tail | None

    def __call__(self, data: bytes) -> Any: ...


class Tail:
    """The large arrays after the body; each byte is taken once, so that bytes can never unfold into more memory."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: int) -> memoryview:
        if size > len(self._data):
            raise CodecError("an array is larger than what is stored of it")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def check_used(self) -> None:
        if len(self._data):
            raise CodecError("more is stored of the arrays than the value has")


Encoder = Callable[[Any, Pack], Ext]
Decoder = Callable[[bytes, Unpack], Any]

# The parts that only the careful way meets, because ormsgpack never hands them to a hook.


def big_int(value: int) -> Ext:
    return Ext(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def surrogates(value: str) -> Ext:
    return Ext(SURROGATES, value.encode("utf-8", "surrogatepass"))


def bytearray_(value: bytearray) -> Ext:
    return Ext(BYTEARRAY, bytes(value))


def any_map(flat: bytes) -> Ext:
    return Ext(MAP, flat)


def _decode_map(data: bytes, unpack: Unpack) -> dict[Any, Any]:
    flat = unpack(data)
    result = dict(zip(flat[::2], flat[1::2], strict=True))
    if 2 * len(result) != len(flat):
        raise CodecError("a dict holds a key twice")
    return result


def _decode_set(data: bytes, unpack: Unpack) -> set[Any]:
    members = unpack(data)
    result = set(members)
    if len(result) != len(members):
        raise CodecError("a set holds a member twice")
    return result


# Dates and times: numbers in a fixed layout, then how the offset from UTC is known.

_datetime = Struct(">HBBBBBI").pack
_datetime_of = Struct(">HBBBBBI").unpack_from
_time = Struct(">BBBI").pack
_time_of = Struct(">BBBI").unpack_from
_date = Struct(">HBB")
_delta = Struct(">iii")
_FOLD = 1 << 31  # in the field of the microseconds


def _zone(tz: tzinfo | None, pack: Pack) -> bytes:
    if tz is None:
        return b""
    if type(tz) is timezone:
        offset, *name = tz.__getinitargs__()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        return pack([offset.days * 86400 + offset.seconds, offset.microseconds, *name])
    zoneinfo = sys.modules.get("zoneinfo")
    key = getattr(tz, "key", None)
    if key and zoneinfo and type(tz) is zoneinfo.ZoneInfo:
        return pack(key)
    raise TypeError(f"its zone is a {type(tz).__module__}.{type(tz).__qualname__}; use datetime.timezone or zoneinfo.ZoneInfo")


def _zone_of(data: bytes, unpack: Unpack) -> tzinfo | None:
    if not data:
        return None
    spec = unpack(data)
    if isinstance(spec, str):
        import zoneinfo

        try:
            return zoneinfo.ZoneInfo(spec)
        except zoneinfo.ZoneInfoNotFoundError as error:
            raise CodecError(f"the time zone {spec!r} is not known here", hint="Type: pip install tzdata") from error
    seconds, micros, *name = spec
    offset = timedelta(seconds=seconds, microseconds=micros)
    return timezone(offset, *name) if offset or name else UTC


def _encode_datetime(v: datetime, pack: Pack) -> Ext:
    micros = v.microsecond | _FOLD if v.fold else v.microsecond
    return Ext(DATETIME, _datetime(v.year, v.month, v.day, v.hour, v.minute, v.second, micros) + _zone(v.tzinfo, pack))


def _decode_datetime(data: bytes, unpack: Unpack) -> datetime:
    year, month, day, hour, minute, second, micros = _datetime_of(data)
    zone = _zone_of(data[11:], unpack)
    return datetime(year, month, day, hour, minute, second, micros & ~_FOLD, zone, fold=micros >> 31)


def _encode_time(v: time, pack: Pack) -> Ext:
    micros = v.microsecond | _FOLD if v.fold else v.microsecond
    return Ext(TIME, _time(v.hour, v.minute, v.second, micros) + _zone(v.tzinfo, pack))


def _decode_time(data: bytes, unpack: Unpack) -> time:
    hour, minute, second, micros = _time_of(data)
    return time(hour, minute, second, micros & ~_FOLD, _zone_of(data[7:], unpack), fold=micros >> 31)


_complex = Struct(">dd")

_encoders: dict[type, Encoder] = {
    tuple: lambda v, pack: Ext(TUPLE, pack(list(v))),
    set: lambda v, pack: Ext(SET, pack(list(v))),
    frozenset: lambda v, pack: Ext(FROZENSET, pack(list(v))),
    int: lambda v, pack: big_int(v),
    complex: lambda v, pack: Ext(COMPLEX, _complex.pack(v.real, v.imag)),
    datetime: _encode_datetime,
    date: lambda v, pack: Ext(DATE, _date.pack(v.year, v.month, v.day)),
    time: _encode_time,
    timedelta: lambda v, pack: Ext(TIMEDELTA, _delta.pack(v.days, v.seconds, v.microseconds)),
    Decimal: lambda v, pack: Ext(DECIMAL, str(v).encode()),
    uuid.UUID: lambda v, pack: Ext(UUID, v.bytes),
    range: lambda v, pack: Ext(RANGE, pack([v.start, v.stop, v.step])),
    slice: lambda v, pack: Ext(SLICE, pack([v.start, v.stop, v.step])),
}
decoders: dict[int, Decoder] = {
    TUPLE: lambda data, unpack: tuple(unpack(data)),
    SET: _decode_set,
    FROZENSET: lambda data, unpack: frozenset(_decode_set(data, unpack)),
    BIG_INT: lambda data, unpack: int.from_bytes(data, "little", signed=True),
    SURROGATES: lambda data, unpack: data.decode("utf-8", "surrogatepass"),
    BYTEARRAY: lambda data, unpack: bytearray(data),
    MAP: _decode_map,
    COMPLEX: lambda data, unpack: complex(*_complex.unpack(data)),
    DATETIME: _decode_datetime,
    DATE: lambda data, unpack: date(*_date.unpack(data)),
    TIME: _decode_time,
    TIMEDELTA: lambda data, unpack: timedelta(*_delta.unpack(data)),
    DECIMAL: lambda data, unpack: Decimal(data.decode()),
    UUID: lambda data, unpack: uuid.UUID(bytes=data),
    RANGE: lambda data, unpack: range(*unpack(data)),
    SLICE: lambda data, unpack: slice(*unpack(data)),
    ARRAY: lambda data, unpack: _arrays().decode_array(data, unpack),
    ARRAY_IN_TAIL: lambda data, unpack: _arrays().decode_array_in_tail(data, unpack),
    NUMPY_SCALAR: lambda data, unpack: _arrays().decode_scalar(data, unpack),
    REGISTERED: lambda data, unpack: _decode_registered(data, unpack),
}


def _arrays() -> Any:
    try:
        from . import arrays
    except ModuleNotFoundError as error:
        raise CodecError("this holds a numpy array, and numpy is not installed", hint="Type: pip install numpy") from error
    return arrays


def encoder_of(kind: type) -> Encoder | None:
    """Return what writes values of exactly this type; None when nothing does."""
    encoder = _encoders.get(kind)
    if encoder is None and "numpy" in sys.modules:
        encoder = _arrays().encoder_of(kind)
        if encoder is not None:
            _encoders[kind] = encoder
    return encoder


# Types that users register.

_classes: dict[str, tuple[type, Callable[[Any], Any]]] = {}
_native = frozenset({type(None), bool, int, float, str, bytes, bytearray, memoryview, list, dict, *_encoders})


@overload
def register_type(
    cls: type[_T],
    name: str | None = ...,
    encode: Callable[[_T], Any] | None = ...,
    decode: Callable[[Any], _T] | None = ...,
) -> type[_T]: ...
@overload
def register_type(
    cls: None = ...,
    name: str | None = ...,
    encode: Callable[[Any], Any] | None = ...,
    decode: Callable[[Any], Any] | None = ...,
) -> Callable[[type[_T]], type[_T]]: ...
def register_type(
    cls: type[Any] | None = None,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Any:
    """Let the codec `msgpack` hold values of a class, in this process; also a decorator: `@perdure.register_type`.

    Dataclasses, enums and named tuples need nothing else. A dataclass is stored as its fields and restored without running
    `__init__`; a field that is stored no longer is filled from its default. Subclasses have to be registered themselves.

    Args:
        cls: The class.
        name: What stands in the stored bytes; by default module and qualified name. Give one to move or rename the class
            later. Bytes never choose a class that was not registered under the name they carry.
        encode: Turns a value into something that msgpack holds; a subclass of `dict` may well give `list(d.items())`.
        decode: Turns that back into an equal value. It is run on what is stored, so let it do nothing but build the value.

    Returns:
        The class.

    Raises:
        UsageError: Only one of `encode` and `decode` is given; neither is, and the class is none of the three kinds above; the
            name belongs to another class; or msgpack holds the type already.
    """
    if cls is None:
        return lambda c: register_type(c, name, encode, decode)
    if not isinstance(cls, type):
        raise UsageError(f"register_type takes a class, not {cls!r}")
    if cls in _native:
        raise UsageError(f"msgpack holds {cls.__qualname__} already")
    if (encode is None) != (decode is None):
        raise UsageError(f"registering {cls.__qualname__} needs both encode= and decode=, or neither")
    if encode is None or decode is None:
        encode, decode = _usual_ways(cls)
    name = name or f"{cls.__module__}.{cls.__qualname__}"
    other = _classes[name][0] if name in _classes else cls
    # The same class again, from a module that was loaded once more or a notebook cell run twice, is no clash.
    if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UsageError(f"{name!r} is registered for {other!r} already", hint="Give another name=.")
    state_of = encode
    _classes[name] = (cls, decode)
    _encoders[cls] = lambda value, pack: Ext(REGISTERED, pack.exactly([name, state_of(value)]))
    return cls


def registered_types() -> list[type]:
    """The classes that `register_type` was told of."""
    return [cls for cls, _ in list(_classes.values())]


def _decode_registered(data: bytes, unpack: Unpack) -> Any:
    name, state = unpack(data)
    if name not in _classes:
        raise CodecError(
            f"this holds a {name!r:.200}, a type that is not registered here",
            hint="Import the module that calls perdure.register_type on it first.",
        )
    cls, decode = _classes[name]
    try:
        value = decode(state)
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"the decode= of {name!r} raised {type(error).__name__}: {error}") from error
    if type(value) is not cls:
        raise CodecError(f"the decode= of {name!r} made a {type(value).__qualname__}", hint="It must make what was registered.")
    return value


def _usual_ways(cls: type[Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if dataclasses.is_dataclass(cls):
        return _dataclass_ways(cls)
    if issubclass(cls, enum.Enum):
        if issubclass(cls, enum.Flag):
            return lambda member: member.value, cls
        return lambda member: member.name, lambda name: cls[name]
    if issubclass(cls, tuple) and hasattr(cls, "_make"):
        make: Any = cls._make  # pyright: ignore[reportAttributeAccessIssue]
        return list, make
    raise UsageError(
        f"{cls.__qualname__} is neither a dataclass, an enum nor a named tuple",
        hint="Give encode= and decode=: encode turns a value into plain data, decode turns that back.",
    )


def _dataclass_ways(cls: type[Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    names = tuple(fields)
    anew: Any = cls

    def encode(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    def decode(state: Any) -> Any:
        if state.keys() - fields.keys():
            gone = ", ".join(sorted(map(repr, state.keys() - fields.keys())))
            raise CodecError(
                f"a stored {cls.__qualname__} has the fields {gone}, which the class has no more",
                hint="Register the class with encode= and decode= that know the old fields.",
            )
        value = anew.__new__(anew)
        for name, field in fields.items():
            if name in state:
                part = state[name]
            elif field.default is not dataclasses.MISSING:
                part = field.default
            elif field.default_factory is not dataclasses.MISSING:
                part = field.default_factory()
            else:
                hint = "Give the field a default, or register the class with encode= and decode=."
                raise CodecError(f"a stored {cls.__qualname__} lacks the field {name!r}", hint=hint)
            object.__setattr__(value, name, part)  # also for frozen ones
        return value

    return encode, decode


def advice(value: Any) -> str:
    """Say what to do about a value that msgpack does not hold."""
    cls = type(value)
    name = cls.__qualname__
    if isinstance(value, memoryview):
        return "Store bytes(view)."
    if dataclasses.is_dataclass(cls) or isinstance(value, enum.Enum) or (isinstance(value, tuple) and hasattr(cls, "_make")):
        return f'Call perdure.register_type({name}) once, before reading as well, or use codec="pkl".'
    base = next((b for b in cls.__mro__[1:] if b in _native and b is not object), None)
    if base is None and not _pickles(value):
        return "It cannot be stored, not even with codec 'pkl'. Store what it was made from, or leave it out."
    if base is not None:
        plain = (
            f"Convert it with {base.__name__}(...), register it with"
            if base in (str, bytes, int, float, list, tuple, dict, set, frozenset)
            else "Register it with"
        )
        return f'{plain} perdure.register_type({name}, encode=..., decode=...), or use codec="pkl".'
    return f'Call perdure.register_type({name}, encode=..., decode=...) once, or use codec="pkl".'


def _pickles(value: Any) -> bool:
    """Tell whether pickle takes it, as far as that is up to itself and not to what it holds."""
    if isinstance(value, (type, FunctionType)):  # by name, so it must have one
        return "<" not in value.__qualname__
    if type(value) in copyreg.dispatch_table:
        return True
    try:
        value.__reduce_ex__(5)
    except Exception:  # which is what we want to know
        return False
    return True
