"""From an annotation to what checks its values (`perdure.codecs.forms`)."""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar, get_args, get_origin

from ..errors import UsageError
from . import forms, records
from .forms import Form, show

__all__ = ["form_of", "spell"]

_Scope: TypeAlias = Mapping[Any, Any]  # what type variables stand for, and under `_NAMES` the names of the module

_NAMES: Final = "names"
_NONE: Final = type(None)
_EXACT_MODULES: Final = ("builtins", "datetime", "decimal", "uuid")
_WRAPPERS: Final = (typing.Annotated, typing.Final, typing.Required, typing.NotRequired, getattr(typing, "ReadOnly", ...))


def form_of(annotation: Any, *, json: bool = False) -> Form:
    """Look through an annotation once, so that values need not.

    Args:
        annotation: A class, or another annotation such as `dict[str, int]`.
        json: Let the classes of msgspec and pydantic use the form that they have for JSON.

    Raises:
        UsageError: It, or that of a field, cannot be resolved, or nothing can be checked against it.

    Cost: about a tenth of a millisecond for a dataclass; pydantic and msgspec prepare their classes themselves.
    """
    return _Forms(json).form(annotation, {}, spell(annotation))


def spell(hint: Any) -> str:
    """How an annotation is written, without the modules of its classes."""
    if hint is _NONE or hint is ...:
        return "None" if hint is _NONE else "..."
    if isinstance(hint, typing.ForwardRef):
        return hint.__forward_arg__
    origin, args = get_origin(hint), get_args(hint)
    if not args:
        return getattr(hint, "__name__", None) or show(hint)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(show, args))}]"
    if origin is typing.Annotated:
        return spell(args[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(spell, args))
    return f"{spell(origin)}[{', '.join(map(spell, args))}]"


class _Forms:
    """The forms of one annotation and of all that it names, so that types may name themselves."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.made: dict[Any, Form] = {}

    def form(self, annotation: Any, scope: _Scope, where: str) -> Form:
        """Return the form of an annotation; `where` is the field that it belongs to, for messages."""
        try:
            return self._form(annotation, scope, where)
        except UsageError:
            raise
        except Exception as error:  # names that are not defined, wrong numbers of arguments, whatever a metaclass raises
            problem = f"value_type: {where} cannot be used: {type(error).__name__}: {error}"
            hint = "Define what it names at the top of a module." if isinstance(error, NameError) else "Change the annotation."
            raise UsageError(problem, hint=hint) from error

    def _form(self, hint: Any, scope: _Scope, where: str) -> Form:
        if isinstance(hint, TypeVar) or hint is typing.Self:
            hint = scope[hint] if hint in scope else _any_of(hint)
        if hint is Any or hint is object:
            return forms.any_form
        if hint is None:
            hint = _NONE
        origin, args = get_origin(hint), get_args(hint)
        free = getattr(hint, "__parameters__", ()) if origin else ()
        if free:
            hint = hint[tuple(scope[var] if var in scope else _any_of(var) for var in free)]
            args = get_args(hint)
        if type(origin or hint).__name__ == "TypeAliasType":
            alias = origin or hint
            inside = {**dict(zip(alias.__type_params__, args, strict=False)), _NAMES: _names_around(alias)}
            return self._named(hint, lambda: alias.__value__, inside, where)
        if isinstance(hint, (str, typing.ForwardRef)) and _NAMES in scope:
            name, names = hint if isinstance(hint, str) else hint.__forward_arg__, scope[_NAMES]
            return self._named((name, id(names)), lambda: _resolved(name, names), scope, where)
        if isinstance(hint, typing.NewType):
            return self.form(hint.__supertype__, scope, where)
        if origin in _WRAPPERS:
            return self.form(args[0], scope, where)
        if origin in (typing.Union, types.UnionType):
            return forms.union_form(spell(hint), [self.form(arg, scope, where) for arg in args])
        if origin is typing.Literal:
            return forms.choice_form(spell(hint), args, where)
        if isinstance(origin, type) and not getattr(hint, "__unpacked__", False):
            return self._generic(spell(hint), origin, args, scope, where)
        if isinstance(hint, type):
            return self._class(hint, (), where)
        raise _unchecked(hint, where)

    def _named(self, key: Any, meaning: Callable[[], Any], scope: _Scope, where: str) -> Form:
        """An alias, which may name itself, so it is there before it is made."""
        if key not in self.made:
            real: list[Form] = []
            name = key[0] if isinstance(key, tuple) else spell(key)
            self.made[key] = Form(name, lambda v: real[0].to_plain(v), lambda p: real[0].from_plain(p))
            real.append(self.form(meaning(), scope, where))
        return self.made[key]

    def _generic(self, name: str, origin: type[Any], args: tuple[Any, ...], scope: _Scope, where: str) -> Form:
        abstract = origin.__module__ == "collections.abc"
        if origin is tuple and args[-1:] != (...,):
            return forms.tuple_form(name, [self.form(arg, scope, where) for arg in args])
        if origin in (list, tuple, set, frozenset) or (abstract and len(args) == 1):
            lists: list[type[Any]] = [list, tuple]
            sets: list[type[Any]] = [set, frozenset]
            kinds = [kind for kind in lists if issubclass(kind, origin)] or [kind for kind in sets if issubclass(kind, origin)]
            if kinds:
                return forms.several_form(name, kinds, self.form(args[0], scope, where))
        if len(args) == 2 and (origin is dict or (abstract and issubclass(dict, origin))):
            return forms.dict_form(name, self.form(args[0], scope, where), self.form(args[1], scope, where))
        if origin.__name__ == "ndarray" and isinstance(scalar := next(iter(get_args(args[-1])), None), type):
            return forms.array_form(name, origin, scalar)
        return self._class(origin, args, where)

    def _class(self, cls: type[Any], args: tuple[Any, ...], where: str) -> Form:
        if (cls, args) in self.made:
            return self.made[cls, args]
        whole = typing.cast("Any", cls)[args] if args else cls
        if issubclass(cls, getattr(sys.modules.get("msgspec"), "Struct", ())):
            from .models import struct_form

            form = struct_form(whole, spell(whole), self.json)
        elif "__pydantic_validator__" in vars(cls):
            from .models import model_form

            form = model_form(cls, cls.__name__, self.json)
        elif issubclass(cls, enum.Flag):
            form = forms.flag_form(cls)
        elif issubclass(cls, enum.Enum):
            form = forms.choice_form(cls.__name__, cls, where)
        elif dataclasses.is_dataclass(cls):
            return self._dataclass(cls, args)
        elif typing.is_typeddict(cls):
            return self._typed_dict(cls, args)
        elif cls.__module__ in _EXACT_MODULES:
            form = forms.exact_form(cls)
        else:
            try:
                isinstance(None, cls)
            except TypeError as error:
                raise _unchecked(cls, where) from error
            form = forms.instance_form(cls)
        self.made[cls, args] = form
        return form

    def _dataclass(self, cls: type[Any], args: tuple[Any, ...]) -> Form:
        if any(base.__module__ == "builtins" and base is not object for base in cls.__mro__):
            problem = f"value_type: {cls.__name__} is a dataclass and also another type, and its fields are not all of it"
            raise UsageError(problem, hint="Make that a field.")
        parts: dict[str, Form] = {}
        form = self.made[cls, args] = records.dataclass_form(cls, parts)
        bound, hints = _bindings(cls, args), _hints(cls)
        for field in dataclasses.fields(cls):
            owner = next((base for base in cls.__mro__ if field.name in getattr(base, "__annotations__", ())), cls)
            scope = {**bound.get(owner, {}), typing.Self: cls, _NAMES: _names_around(owner)}
            parts[field.name] = self.form(hints[field.name], scope, f"{cls.__name__}.{field.name}")
        return form

    def _typed_dict(self, cls: Any, args: tuple[Any, ...]) -> Form:
        hints = _hints(cls)
        optional = {name for name in cls.__optional_keys__ if not _says(hints[name], typing.Required)}
        optional |= {name for name, hint in hints.items() if _says(hint, typing.NotRequired)}
        parts: dict[str, Form] = {}
        form = self.made[cls, args] = records.typed_dict_form(cls.__name__, parts, optional)
        scope = {**dict(zip(getattr(cls, "__parameters__", ()), args, strict=False)), _NAMES: _names_around(cls)}
        for name, hint in hints.items():
            parts[name] = self.form(hint, scope, f"{cls.__name__}.{name}")
        return form


def _any_of(var: Any) -> Any:
    """What a type variable that was left open may be."""
    constraints = getattr(var, "__constraints__", ())
    return typing.Union[constraints] if constraints else getattr(var, "__bound__", None) or Any  # noqa: UP007


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:  # perhaps a class in a function that names itself, one inside of it, or (Python 3.12) a type parameter
        params = {param for base in cls.__mro__ for param in getattr(base, "__type_params__", ())}
        names = [param.__name__ for param in params]
        local = {param.__name__: param for param in params if names.count(param.__name__) == 1}
        return typing.get_type_hints(cls, localns={**local, **vars(cls), cls.__name__: cls}, include_extras=True)


def _resolved(name: str, names: dict[str, Any]) -> Any:
    holder = type("_", (), {"__annotations__": {"it": name}})
    return typing.get_type_hints(holder, names, include_extras=True)["it"]


def _names_around(cls: Any) -> dict[str, Any]:
    return getattr(sys.modules.get(cls.__module__), "__dict__", {})


def _bindings(cls: type[Any], args: tuple[Any, ...]) -> dict[type, dict[Any, Any]]:
    """For a class and each of its bases, what their type variables stand for; the same one may mean several things."""
    mine = dict(zip(getattr(cls, "__parameters__", ()), args, strict=False))
    found: dict[type, dict[Any, Any]] = {cls: mine}
    for base in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if origin is typing.Generic or origin is typing.Protocol or not isinstance(origin, type):
            continue
        free = getattr(base, "__parameters__", ()) if origin is not base else ()
        full = base[tuple(mine[var] if var in mine else _any_of(var) for var in free)] if free else base
        found.update(_bindings(origin, get_args(full)))
    return found


def _says(hint: Any, word: Any) -> bool:
    while get_origin(hint) in _WRAPPERS:
        if get_origin(hint) is word:
            return True
        hint = get_args(hint)[0]
    return False


def _unchecked(hint: Any, where: str) -> UsageError:
    at = "" if where == spell(hint) else f"{where} is annotated "
    hint_text = "Annotate it with a class, a container of such, a union, a Literal, or Any, which is not checked."
    return UsageError(f"value_type: {at}{show(hint)}, and no value can be checked against that", hint=hint_text)
