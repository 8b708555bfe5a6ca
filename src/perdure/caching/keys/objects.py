"""How objects and classes are written to be hashed: by the name of the class, and by all that the object holds."""

from __future__ import annotations

import dataclasses
import enum
import os
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from types import FunctionType, MemberDescriptorType, UnionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ormsgpack import packb

from ...codecs.types import encoder_of

if TYPE_CHECKING:
    from ...protocol import Buffer
    from .hashing import Walk

__all__ = [
    "Refused", "attributes_of", "is_found_by_name", "is_made_by_a_program", "layout_of", "main_stem", "spell", "write_alias",
    "write_class", "write_dataclass", "write_enum", "write_logger", "write_model", "write_named_tuple", "write_object",
    "write_own_key", "write_registered", "write_struct",
]  # fmt: skip

_UNSET: Final = object()
_HEAP_TYPE: Final = 1 << 9  # a flag of classes, Py_TPFLAGS_HEAPTYPE
_asked: Final = threading.local()
_CONSTANTS: Final = frozenset({type(None), bool, int, float, str, bytes})
_CIRCUMSTANCES: Final = frozenset({"__module__", "__qualname__", "__doc__", "__firstlineno__"})  # of which the last moves


class Refused(Exception):
    """A value that no key can be made of; on its way out it learns where it stood.

    Attributes:
        problem: What is said after "argument 'x', at [0], "; empty if the nesting has no end in sight.
        advice: What to do; `{leave}` stands for how to leave the argument out.
        steps: The way to it, from the inside out.
        holders: The values that were passed through.
    """

    def __init__(self, problem: str, advice: str = "{leave}.") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self.steps: list[str] = []
        self.holders: list[Any] = []

    def under(self, step: str, holder: Any) -> None:
        self.steps.append(step)
        self.holders.append(holder)


def spell(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def main_stem(namespace: Mapping[str, Any] | None = None) -> str:
    """What the program is called: its file without folder and ending, or `"__main__"` where it has none."""
    file = (namespace or vars(sys.modules["__main__"])).get("__file__")
    if not isinstance(file, str) or file.startswith("<"):  # such as "<stdin>"
        return "__main__"
    return os.path.splitext(os.path.basename(file))[0]


def _name(kind: type) -> bytes:
    """Module and qualified name; of a program's own classes the name of the program, as every program is a `__main__`."""
    module, name = kind.__module__, kind.__qualname__
    if module in ("__main__", "__mp_main__"):  # the second in processes that multiprocessing spawned
        module = f"__main__:{main_stem()}"
    if not is_found_by_name(kind):
        definition = _definition(kind)
        if definition:
            return packb((module, name, definition))
    return packb((module, name))


def is_made_by_a_program(kind: type) -> bool:
    """Tell whether it is none of the classes that are compiled into Python or a module."""
    return bool(kind.__flags__ & _HEAP_TYPE)


def is_found_by_name(kind: type) -> bool:
    """Tell whether module and qualified name lead to this class, so that there is no other one of that name."""
    if not is_made_by_a_program(kind):
        return True
    module, name = sys.modules.get(kind.__module__), kind.__qualname__
    if getattr(module, name, None) is kind:
        return True
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is kind


def _definition(kind: type) -> str:
    """What tells apart the classes of one name: the code in them, what it captures, and constants; empty if there is nothing.

    Classes that are met on the way count by their name alone. So there is an end where classes hold each other, and it does not
    matter of which one this was asked first.
    """
    if getattr(_asked, "already", False):
        return ""
    _asked.already = True
    try:
        return _definition_of(kind)
    finally:
        _asked.already = False


@lru_cache(1024)
def _definition_of(kind: type) -> str:
    from .captures import told_of
    from .hashing import digest
    from .layers import layers_of
    from .naming import code_digest

    told: list[object] = []
    for base in kind.__mro__:
        if is_found_by_name(base):
            if base is not object and base.__module__ != "enum":  # which has more of them in some versions
                told.append(_name(base))
            continue
        if issubclass(base, enum.Enum):  # the rest was made by the enum module, and is another one in each version
            for name, choice in base.__members__.items():
                told += (name, _told_constant(choice._value_))
            continue
        for name, member in sorted(vars(base).items()):
            form = type(member)  # not what it says, should it stand for others
            if issubclass(form, property):
                member = member.fget
            elif issubclass(form, cached_property):
                member = member.func
            elif issubclass(form, (staticmethod, classmethod)):
                member = member.__func__
            function = layers_of(member)[-1]
            if type(function) is FunctionType:
                if function.__code__.co_filename == "<string>":  # one that dataclass made
                    continue
                if function.__module__ != base.__module__:
                    told += (name, f"{function.__module__}:{function.__qualname__}", *told_of(member, defaults=False))
                else:
                    told += (name, code_digest(function), told_of(member))
            elif type(member) in _CONSTANTS and name not in _CIRCUMSTANCES:
                told += (name, member)
            elif not name.startswith("__") and (constant := _told_constant(member)):
                told += (name, constant)
    return digest(tuple(told)) if told else ""


def _told_constant(value: Any) -> object:
    """What tells apart the values of an attribute; empty if nothing does."""
    from .captures import told_as_captured
    from .hashing import digest

    try:
        return digest((value,))
    except Exception:  # also errors of its own code
        return told_as_captured(value)


class _Layout(NamedTuple):
    """What is known of the objects of a class.

    Attributes:
        more: They have memory beyond their attributes and slots, as those of types written in C do.
        slots: The descriptors of their slots, by name.
        derived: The names of cached properties, which follow from the rest and do not count.
    """

    more: bool
    slots: dict[str, Any]
    derived: frozenset[str]


def _layout_of(kind: type) -> _Layout:
    slots: dict[str, Any] = {}
    names: dict[str, Any] = {}
    for base in kind.__mro__:
        for name, member in vars(base).items():
            names.setdefault(name, member)
            if type(member) is MemberDescriptorType:
                slots[name if name not in slots else f"{base.__qualname__}.{name}"] = member
    pointer = tuple.__itemsize__
    known = object.__basicsize__ + pointer * len(slots)
    if kind.__dictoffset__ and not kind.__flags__ & 1 << 4:  # a dict that is not kept in front of the object
        known += pointer
    if kind.__weakrefoffset__ > 0:
        known += pointer
    slots.pop("__dict__", None)  # of some types written in C; what is in it counts anyway
    derived = frozenset(name for name, member in names.items() if isinstance(member, cached_property))
    return _Layout(kind.__basicsize__ > known or kind.__itemsize__ != 0, slots, derived)


layout_of: Final[Callable[[type], _Layout]] = lru_cache(1024)(_layout_of)


def attributes_of(value: Any, kind: type) -> dict[str, Any]:
    """All that an object has of its own."""
    layout = layout_of(kind)
    held = {name: part for name, slot in layout.slots.items() if (part := _value_of(slot, value, kind)) is not _UNSET}
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:  # slots only
        return held
    return held | {name: part for name, part in own.items() if name not in layout.derived}


def _value_of(slot: Any, value: Any, kind: type) -> Any:
    try:
        return slot.__get__(value, kind)
    except AttributeError:
        return _UNSET


def write_object(walk: Walk, value: Any, fields: Iterable[str] = (), without: str = "") -> None:
    kind = type(value)
    walk.parts.append(b"\xc1o" + _name(kind))
    held = attributes_of(value, kind)
    for name in fields:
        if name not in held and (part := getattr(value, name, _UNSET)) is not _UNSET:
            held[name] = part
    held.pop(without, None)
    walk.entries(value, held, ".{}")


def write_dataclass(walk: Walk, value: Any) -> None:
    write_object(walk, value, [field.name for field in dataclasses.fields(value)])


def write_struct(walk: Walk, value: Any) -> None:
    write_object(walk, value, type(value).__struct_fields__)


def write_model(walk: Walk, value: Any) -> None:
    write_object(walk, value, without="__pydantic_fields_set__")  # which does not count for pydantic's `==` either


def write_logger(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1g")
    walk.part("__main__" if value.name == "__mp_main__" else value.name, ".name", value)


def write_own_key(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1x" + _name(type(value)))
    walk.part(value.__perdure_key__(), ".__perdure_key__()", value)


def write_registered(walk: Walk, value: Any) -> None:
    taken = _Taken()
    encoder = encoder_of(type(value))
    if encoder is not None:
        encoder(value, taken)
    name, state = taken.content
    walk.parts.append(b"\xc1r" + packb(name))
    walk.part(state, "", value)


class _Taken:
    """Takes from an encoder of msgpack what it would pack."""

    set_aside: list[Buffer] | None = None
    content: Any = None

    def __call__(self, content: Any) -> bytes:
        self.content = content
        return b""

    exactly = __call__


def write_named_tuple(walk: Walk, value: Any) -> None:
    kind = type(value)
    walk.parts.append(b"\xc1n" + _name(kind))
    walk.run(kind._fields)
    walk.run(tuple.__getitem__(value, slice(None)), value, kind._fields, ".{}")
    walk.entries(value, attributes_of(value, kind), ".{}")


def write_enum(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1e" + _name(type(value)))
    # Not every combination of flags has a name, and some of Python's versions name them otherwise.
    walk.part(value._value_ if isinstance(value, enum.Flag) else value._name_, ".value", value)


def write_class(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1c" + _name(value))


def write_alias(walk: Walk, value: Any) -> None:
    """`list[int]`, `int | None`: as an argument, or what a generic object was made by."""
    origin: Any = typing.get_origin(value)
    walk.parts.append(b"\xc1a")
    if origin is UnionType or origin.__module__ == "typing":  # of which some are classes in some versions of Python
        walk.put("Union" if origin is UnionType else origin.__name__)
    else:
        walk.put(origin)
    walk.run(typing.get_args(value), value)
