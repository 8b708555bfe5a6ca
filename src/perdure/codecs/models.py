"""Classes of msgspec and pydantic as values: their libraries make them plain and build them again, by their own rules.

Neither library checks a value when it makes it plain, and either may leave something out. So what was made plain is built
again before anything is written, and compared part by part: what would come back as something else is refused. Only numbers
may become a float where one is annotated. Imported only for a class of theirs, so their modules are there already.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from json import dumps
from typing import Any, Final, get_origin
from uuid import UUID

from ..errors import UsageError
from .forms import Form, Misfit, expected, show

__all__ = ["model_form", "struct_form"]

_TIMES: Final = (datetime, date, time, timedelta)
_NATIVE: Final = (bytes, bytearray, memoryview, *_TIMES, Decimal, UUID)
_DATA: Final = frozenset({type(None), bool, int, float, complex, str, *_NATIVE})


# ---------------------------------------------------------------- msgspec

_at = re.compile(r"(.*) - at `(key` in `)?\$(.*)`\Z", re.DOTALL).match


class _Foreign(Exception):
    """msgspec does not know a type; the codec inside may."""


def struct_form(hint: Any, name: str, json: bool) -> Form:
    msgspec: Any = sys.modules["msgspec"]
    native: tuple[type, ...] = () if json else _NATIVE
    handed_on: tuple[type, ...] = native

    def foreign(value: Any) -> Any:
        raise _Foreign(type(value))

    def make_plain(value: Any) -> Any:
        nonlocal handed_on
        while True:
            try:
                plain = msgspec.to_builtins(value, builtin_types=handed_on, str_keys=json, enc_hook=foreign)
                return _without_tuples(plain) if json else plain
            except _Foreign as error:
                if error.args[0] in handed_on:
                    raise
                handed_on += error.args

    def dump(value: Any) -> Any:
        try:
            return make_plain(value)
        except (TypeError, ValueError) as error:
            raise Misfit(str(error)).under(_blame(value, lambda field: make_plain(getattr(value, field)))) from error

    def take(cls: Any, plain: Any) -> Any:
        if not isinstance(plain, get_origin(cls) or cls):
            raise TypeError(f"Expected `{cls.__name__}`, got `{type(plain).__name__}`")
        return plain

    def load(plain: Any) -> Any:
        try:
            return msgspec.convert(plain, hint, builtin_types=native, str_keys=json, dec_hook=take)
        except msgspec.ValidationError as error:
            found = _at(str(error))
            problem, is_key, path = found.groups() if found else (str(error), None, "")
            raise Misfit(f"a key: {problem}" if is_key else problem).under(path) from error

    msgspec.msgpack.Decoder(hint, dec_hook=take)  # complains about annotations that msgspec does not support
    return _proved(name, get_origin(hint) or hint, dump, load)


# ---------------------------------------------------------------- pydantic


def model_form(cls: Any, name: str, json: bool) -> Form:
    """Models and dataclasses of pydantic, stored under the names of their fields. A strict one always has its form for JSON,
    because from plain data its other form would refuse enums and paths."""
    import pydantic

    if tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11):
        problem = f"value_type={name} is a model of pydantic {pydantic.VERSION}, and 2.11 is the first that will do"
        raise UsageError(problem, hint="Type: pip install -U pydantic")
    if hasattr(cls, "model_rebuild"):
        cls.model_rebuild()  # complains about names that are not defined
    config = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}
    json = json or bool(config.get("strict"))
    adapter: Any = pydantic.TypeAdapter(cls)
    by: Any = {"by_name": True, "by_alias": True}

    plainly: Any = {"mode": "json" if json else "python", "round_trip": True, "warnings": False, "by_alias": False}

    def dump(value: Any) -> Any:
        try:
            plain = adapter.dump_python(value, **plainly)
        except ValueError as error:  # pydantic_core.PydanticSerializationError, which does not say where
            path = _blame(value, lambda field: adapter.dump_python(value, include={field}, **plainly))
            raise Misfit(str(error)).under(path) from error
        return plain if json else _tame(plain)

    def load(plain: Any) -> Any:
        try:
            return adapter.validate_json(dumps(plain), **by) if json else adapter.validate_python(plain, **by)
        except pydantic.ValidationError as error:
            first, *others = error.errors(include_url=False, include_context=False)
            problem = first["msg"] if first["type"] == "missing" else f"{first['msg']}, got {show(first['input'])}"
            if others:
                problem += f" (and {len(others)} more)"
            path = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in first["loc"])
            raise Misfit(problem).under(path) from error

    return _proved(name, cls, dump, load)


def _tame(plain: Any) -> Any:
    """Replace what only Python has, which pydantic leaves in: enums, paths, URLs, its own time zones."""
    kind = type(plain)
    if kind is dict:
        return {_tame(key): _tame(part) for key, part in plain.items()}
    if kind in (list, tuple, set, frozenset):
        return kind(map(_tame, plain))
    if kind is datetime or kind is time:
        zone = plain.tzinfo
        if zone is None or not type(zone).__module__.startswith("pydantic"):
            return plain
        return plain.replace(tzinfo=timezone(zone.utcoffset(None)))
    if kind in _DATA or kind.__module__ == "numpy":
        return plain
    if isinstance(plain, enum.Enum):
        return _tame(plain.value)
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(plain)
    except PydanticSerializationError:
        return plain  # the codec inside may hold it, or says what to do


def _without_tuples(plain: Any) -> Any:
    if type(plain) is dict:
        return {key: _without_tuples(part) for key, part in plain.items()}
    return [_without_tuples(part) for part in plain] if type(plain) in (list, tuple) else plain


def _blame(value: Any, make_plain: Callable[[str], Any]) -> str:
    """Find the field that cannot be made plain."""
    for field in _fields_of(type(value)) or ():
        try:
            make_plain(field)
        except (TypeError, ValueError):
            return f".{field}"
    return ""


# ---------------------------------------------------------------- what would come back


def _proved(name: str, cls: type[Any], dump: Callable[[Any], Any], load: Callable[[Any], Any]) -> Form:
    def to_plain(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(name, value)
        _compare(value, load(dump(value)))
        return dump(value)  # once more, because a validator may have changed the other one

    return Form(name, to_plain, load)


def _compare(a: Any, b: Any) -> None:
    """Raise `Misfit` at the first part that would come back as something else."""
    kind = type(a)
    if a is b or (kind in (int, str) and type(b) in (kind, float) and a == b):
        return
    if type(b) is not kind:
        raise _lost(a, b)
    step = ""
    try:
        if kind is dict:
            if list(map(_typed, a)) != list(map(_typed, b)):
                raise _lost(a, b)
            for key, part in a.items():
                step = f"[{show(key)}]"
                _compare(part, b[key])
        elif isinstance(a, (list, tuple)):
            if len(a) != len(b):
                raise _lost(a, b)
            for i, part in enumerate(a):
                step = f"[{i}]"
                _compare(part, b[i])
        elif (fields := _fields_of(kind)) is not None:
            for field in fields:
                step = f".{field}"
                _compare(getattr(a, field), getattr(b, field))
        elif not _equal(a, b):
            raise _lost(a, b)
    except Misfit as error:
        error.under(step)
        raise


def _typed(value: Any) -> tuple[type, Any]:
    return type(value), value


def _find_fields(cls: Any) -> Iterable[str] | None:
    if hasattr(cls, "__struct_fields__"):
        return tuple(cls.__struct_fields__)
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if "__pydantic_validator__" in vars(cls):  # a field that the model excludes is its own affair
        return [*(name for name, field in cls.model_fields.items() if not field.exclude), "model_extra"]
    return None


_fields_of: Callable[[Any], Iterable[str] | None] = lru_cache(1000)(_find_fields)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (float, complex, Decimal)):
        return repr(a) == repr(b)  # nan is nan, 0.0 is not -0.0, 1.0 is not 1.00
    if isinstance(a, (set, frozenset)):
        return set(map(_typed, a)) == set(map(_typed, b))
    if isinstance(a, (datetime, time)):
        # Of pydantic's own zones, which are fixed, the offset is all there is. A named one must stay what it is.
        fixed = all(isinstance(zone, timezone) or type(zone).__module__.startswith("pydantic") for zone in (a.tzinfo, b.tzinfo))
        same_zone = type(a.tzinfo) is type(b.tzinfo) or fixed
        return a == b and a.utcoffset() == b.utcoffset() and a.fold == b.fold and same_zone
    if type(a).__module__ == "numpy":
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a == b)


def _lost(a: Any, b: Any) -> Misfit:
    return Misfit(f"{show(a)} would be read back as {show(b)}", "Change the value, or how its class makes it plain.")
