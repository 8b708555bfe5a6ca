"""How each type of argument is written to be hashed, and what is said of those that cannot be.

A type is written by its content only where all of its content is known; otherwise it is refused, because two arguments that
differ in what was overlooked would share a result.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import re
import sys
import typing
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from types import EllipsisType, MappingProxyType, NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ormsgpack import packb

from ...codecs.types import encoder_of
from .objects import (
    Refused,
    layout_of,
    spell,
    write_alias,
    write_class,
    write_dataclass,
    write_enum,
    write_logger,
    write_model,
    write_named_tuple,
    write_object,
    write_own_key,
    write_registered,
    write_struct,
)

if TYPE_CHECKING:
    from .hashing import Walk

    Writer: TypeAlias = Callable[[Walk, Any], object]

__all__ = ["SCALARS", "sized", "writer_for", "writers"]

SCALARS: Final = frozenset({NoneType, bool, int, float, str, bytes})
_SORTED: Final = ({str}, {int}, {bytes})  # sets of these are sorted as they are, which is quicker


def _refusal(kind: type) -> Refused:
    base = next((base for base in kind.__mro__[1:] if base in SCALARS or _exactly(base)), None)
    if base is not None:
        advice = f"Pass a plain {spell(base)}, give the class a method __perdure_key__(), {{leave}}."
        return Refused(f"is of type {spell(kind)}, a subclass of {spell(base)} that may hold more than that", advice)
    if kind is object or layout_of(kind).more:
        return Refused(f"is of type {spell(kind)}, and no key can be made of it")
    advice = "Make the class a dataclass, give it a method __perdure_key__(), {leave}."
    return Refused(f"is of type {spell(kind)}, and it is unknown what of it counts", advice)


def sized(letter: bytes, data: bytes | bytearray) -> bytes:
    """Bytes with their length in front, which may be more than MessagePack can say."""
    return b"\xc1" + letter + packb(len(data)) + data


# ------------------------------------------------------------------------------------------------------------ containers


def _write_run(letter: bytes) -> Writer:
    def write(walk: Walk, value: Any) -> None:
        walk.parts.append(b"\xc1" + letter)
        walk.run(value, value)

    return write


def _write_entries(letter: bytes) -> Writer:
    def write(walk: Walk, value: Any) -> None:
        walk.parts.append(b"\xc1" + letter)
        walk.entries(value, value)

    return write


def _write_defaultdict(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1D")
    walk.part(value.default_factory, ".default_factory", value)
    walk.entries(value, value)


def _write_ordered_dict(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1O")
    keys = list(value)
    walk.run(keys, value, [" (a key)"] * len(keys), "{}")
    walk.run(list(value.values()), value, keys)


def _write_set(letter: bytes) -> Writer:
    def write(walk: Walk, value: Any) -> None:
        walk.parts.append(b"\xc1" + letter)
        if {*map(type, value)} in _SORTED:
            walk.run(sorted(value))
            return
        walk.parts.append(b"\xc1{" + packb(len(value)))
        walk.parts += sorted([walk.apart(member, "{...}", value) for member in value])

    return write


def _write_deque(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1q" + packb(value.maxlen))
    walk.run(list(value), value)


def _write_slice(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1S")
    walk.run((value.start, value.stop, value.step), value, ("start", "stop", "step"), ".{}")


def _write_range(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1R")
    walk.run((value.start, value.stop, value.step))


# ------------------------------------------------------------------------------------------------------------ single values


def _write_datetime(walk: Walk, v: datetime) -> None:
    walk.parts.append(b"\xc1T" + packb((v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.fold)))
    walk.part(v.tzinfo, ".tzinfo", v)


def _write_time(walk: Walk, v: time) -> None:
    walk.parts.append(b"\xc1h" + packb((v.hour, v.minute, v.second, v.microsecond, v.fold)))
    walk.part(v.tzinfo, ".tzinfo", v)


def _write_timezone(walk: Walk, v: Any) -> None:
    offset, *name = v.__getinitargs__()
    walk.parts.append(b"\xc1z" + packb((offset.days, offset.seconds, offset.microseconds)))
    walk.run(name)


def _write_zone(walk: Walk, v: Any) -> None:
    if v.key is None:
        raise Refused(
            "is a zoneinfo.ZoneInfo without a name", "Make it by its name, such as ZoneInfo('Europe/Berlin'), {leave}."
        )
    walk.parts.append(b"\xc1Z" + packb(v.key))


def _write_fraction(walk: Walk, v: Any) -> None:
    walk.parts.append(b"\xc1F")
    walk.run((v.numerator, v.denominator))


def _write_complex(walk: Walk, v: complex) -> None:
    walk.parts.append(b"\xc1j")
    walk.run((v.real, v.imag))


def _write_pattern(walk: Walk, v: re.Pattern[Any]) -> None:
    walk.parts.append(b"\xc1p")
    walk.run((v.pattern, v.flags))


def _write_path(flavour: bytes, walk: Walk, v: Any) -> None:
    walk.parts.append(b"\xc1P" + flavour)
    walk.put(str(v))


def _write_memoryview(walk: Walk, v: memoryview) -> None:
    walk.parts.append(b"\xc1v" + packb((v.format, v.shape)))
    walk.large(v.tobytes())


writers: Final[dict[type, Writer]] = {
    list: _write_run(b"l"),
    tuple: _write_run(b"t"),
    dict: _write_entries(b"d"),
    MappingProxyType: _write_entries(b"M"),
    collections.Counter: _write_entries(b"C"),
    collections.defaultdict: _write_defaultdict,
    collections.OrderedDict: _write_ordered_dict,
    collections.deque: _write_deque,
    set: _write_set(b"y"),
    frozenset: _write_set(b"Y"),
    slice: _write_slice,
    range: _write_range,
    bytearray: lambda walk, v: walk.parts.append(sized(b"b", v)),
    memoryview: _write_memoryview,
    complex: _write_complex,
    EllipsisType: lambda walk, _: walk.parts.append(b"\xc1."),
    Decimal: lambda walk, v: walk.parts.append(b"\xc1m" + packb(str(v).upper())),  # a setting of the thread makes it `1e+5`
    uuid.UUID: lambda walk, v: walk.parts.append(b"\xc1u" + packb(v.bytes)),
    date: lambda walk, v: walk.parts.append(b"\xc1k" + packb((v.year, v.month, v.day))),
    datetime: _write_datetime,
    time: _write_time,
    timedelta: lambda walk, v: walk.parts.append(b"\xc1w" + packb((v.days, v.seconds, v.microseconds))),
    timezone: _write_timezone,
    re.Pattern: _write_pattern,
    SimpleNamespace: write_object,
}
"""By exact type. What is not here is looked for by `writer_for`."""

# Of modules that many programs never load: by name, the module and the writer.
_elsewhere: Final[dict[str, tuple[str, Writer]]] = {
    "Namespace": ("argparse", write_object),
    "Fraction": ("fractions", _write_fraction),
    "ZoneInfo": ("zoneinfo", _write_zone),
    "PurePosixPath": ("pathlib", partial(_write_path, b"P")),
    "PosixPath": ("pathlib", partial(_write_path, b"P")),
    "PureWindowsPath": ("pathlib", partial(_write_path, b"W")),
    "WindowsPath": ("pathlib", partial(_write_path, b"W")),
}
_own_key = "__perdure_key__"


def _exactly(kind: type) -> Writer | None:
    """What writes values of exactly this type, if it is one of Python's own, of numpy, pandas or torch."""
    write = writers.get(kind)
    if write is not None:
        return write
    root = str(kind.__module__).partition(".")[0]
    if root in ("numpy", "pandas", "torch"):
        from . import arrays

        write = arrays.writer_of(kind, root)
    elif kind.__name__ in _elsewhere:
        module, found = _elsewhere[kind.__name__]
        write = found if getattr(sys.modules.get(module), kind.__name__, None) is kind else None
    if write is not None:
        writers[kind] = write
    return write


def writer_for(value: Any, kind: type[Any], plain: bool) -> Writer:
    """Find what writes a value whose type is not in the table; with `plain`, any object that is nothing but attributes.

    Raises:
        Refused: Nothing does.
    """
    if any(_own_key in vars(base) for base in kind.__mro__):
        return write_own_key
    write = _exactly(kind)
    if write is not None:
        return write
    if encoder_of(kind) is not None:
        return write_registered
    if issubclass(kind, type):
        return write_class
    if issubclass(kind, enum.Enum):
        return write_enum
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return write_named_tuple
    if issubclass(kind, getattr(sys.modules.get("msgspec"), "Struct", ())):
        return write_struct
    if issubclass(kind, getattr(sys.modules.get("pydantic"), "BaseModel", ())):
        return write_model
    if issubclass(kind, getattr(sys.modules.get("logging"), "Logger", ())):
        return write_logger
    if kind.__module__ in ("types", "typing", "collections.abc") and typing.get_origin(value) is not None:
        return write_alias
    if kind is object or layout_of(kind).more or not (plain or dataclasses.is_dataclass(kind)):
        raise _refusal(kind)
    return write_dataclass if dataclasses.is_dataclass(kind) else write_object
