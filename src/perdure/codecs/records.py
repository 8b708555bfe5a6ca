"""Values that are made a dict of their fields: dataclasses and typed dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from .forms import Form, Misfit, Turn, expected, show

__all__ = ["dataclass_form", "typed_dict_form"]

_NOTHING: Final = object()


def _unknown(plain: dict[Any, Any], known: Mapping[str, Any], name: str) -> Misfit:
    extra = next(key for key in plain if key not in known)
    step = f".{extra}" if isinstance(extra, str) and extra.isidentifier() else f"[{show(extra)}]"
    return Misfit(f"{name} has no such field", "Give it that field; or open the place without value_type.").under(step)


def _missing() -> Any:
    raise Misfit("it is missing, and the field has no default", "Give the field a default; values may be older than it.")


def dataclass_form(cls: type[Any], parts: dict[str, Form]) -> Form:
    """Instances of exactly this dataclass; `parts` has a form for each field by the time the first value comes.

    They are restored field by field, without `__init__` and `__post_init__`, as pickle restores objects.
    """
    name = cls.__name__
    defaults: dict[str, Callable[[], Any]] = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = lambda default=field.default: default  # type: ignore[misc]
        else:
            defaults[field.name] = _missing
    new, put = object.__new__, object.__setattr__  # whatever the class has of its own, such as when it is frozen

    def to_plain(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(name, value, _about_subclass(value, cls))
        plain = {}
        field = ""
        try:
            for field, form in parts.items():
                part = getattr(value, field, _NOTHING)
                if part is _NOTHING:
                    raise Misfit("it was never set", "Give the field a default.")
                plain[field] = part if type(part) in form.exact else form.to_plain(part)
        except Misfit as error:
            error.under(f".{field}")
            raise
        return plain

    def from_plain(plain: Any) -> Any:
        if type(plain) is not dict:
            raise Misfit(f"expected the fields of {name}, got {show(plain)}")
        value = new(cls)
        left = len(plain)
        field = ""
        try:
            for field, form in parts.items():
                if field in plain:
                    left -= 1
                    part = plain[field]
                    put(value, field, part if type(part) in form.exact else form.from_plain(part))
                else:
                    put(value, field, defaults[field]())
        except Misfit as error:
            error.under(f".{field}")
            raise
        if left:
            raise _unknown(plain, parts, name)
        return value

    return Form(name, to_plain, from_plain, fields=defaults.keys())


def _about_subclass(value: Any, cls: type[Any]) -> str | None:
    if not isinstance(value, cls):
        return None
    return f"What {type(value).__name__} adds would be lost: name both, {type(value).__name__} | {cls.__name__}."


def typed_dict_form(name: str, parts: dict[str, Form], optional: AbstractSet[str]) -> Form:
    """Dicts with these keys and no others; `parts` is complete by the time the first value comes."""

    def turn(how: str) -> Turn:
        def check(value: Any) -> Any:
            if type(value) is not dict:
                raise expected(name, value)
            done = {}
            for key, part in value.items():
                if key not in parts:
                    raise Misfit(f"{name} has no such key", "Give it that key, or leave it out.").under(f"[{show(key)}]")
                try:
                    done[key] = getattr(parts[key], how)(part)
                except Misfit as error:
                    error.under(f"[{key!r}]")
                    raise
            for key in parts.keys() - done.keys() - optional:
                raise Misfit("it is missing").under(f"[{key!r}]")
            return done

        return check

    return Form(name, turn("to_plain"), turn("from_plain"), fields=None if optional else parts.keys())
