"""How functions wrap each other, what the code of one does with the variables around it, and what these can hold."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import MutableMapping, MutableSequence, MutableSet
from functools import partial
from io import BytesIO, StringIO
from types import AsyncGeneratorType, BuiltinFunctionType, CodeType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import Any, Final, NamedTuple

from .objects import attributes_of, is_made_by_a_program, main_stem
from .types import SCALARS

__all__ = [
    "CHANGING", "Uses", "closes_over", "held_by", "is_container", "is_fixed", "is_of_a_module", "is_ours", "is_passed_over",
    "is_plain", "is_tool", "layers_of", "module_of", "name_in_module", "name_of_layer", "uses_of",
]  # fmt: skip

_CACHED_BY_PYTHON: Final = type(functools.lru_cache(lambda: None))
# What these hold tells more than a `__wrapped__` that they happen to have.
_INNERMOST: Final = (MethodType, partial, BuiltinFunctionType, type, staticmethod, classmethod)
_BY_WRAPS: Final = frozenset({
    "__annotate__", "__annotate_func__", "__annotations__", "__doc__", "__module__", "__name__", "__qualname__",
    "__type_params__", "__wrapped__",
})  # fmt: skip
_STORES: Final = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE", "STORE_ATTR", "DELETE_ATTR"})
GIVING: Final = frozenset({"pop", "popitem", "popleft", "setdefault"})
"""Methods that change a container and return something that was in it."""

CHANGING: Final = GIVING | {
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "fill", "insert",
    "intersection_update", "move_to_end", "put", "remove", "resize", "reverse", "rotate", "sort", "subtract",
    "symmetric_difference_update", "update",
}  # fmt: skip
"""Methods by which containers are changed. Those of other objects that are called so may do anything."""

# Of these modules objects hold nothing on which a result could depend, or nothing that lasts.
_TOOLS: Final = frozenset({
    "_asyncio", "_contextvars", "_io", "_queue", "_socket", "_ssl", "_thread", "_weakref", "asyncio", "concurrent",
    "contextvars", "io", "logging", "multiprocessing", "perdure", "perdure_backends", "queue", "selectors", "socket",
    "ssl", "subprocess", "threading", "typing", "unittest", "weakref",
})  # fmt: skip
_STEPPED: Final = (GeneratorType, CoroutineType, AsyncGeneratorType)


# ------------------------------------------------------------------------------------------------------------- layers


def layers_of(function: Any) -> list[Any]:
    """A function and those that it wraps, from the outside in."""
    found: list[Any] = [function]
    each = _wrapped_by(function)
    while each is not None and not any(each is one for one in found):
        found.append(each)
        each = _wrapped_by(each)
    return found


def _wrapped_by(value: Any) -> Any:
    """What it wraps; None if nothing."""
    kind = type(value)
    if issubclass(kind, _INNERMOST):
        return None
    try:
        # Objects that stand for others, wherever they come from, have any attribute that they are asked for.
        if is_made_by_a_program(kind) and inspect.getattr_static(value, "__wrapped__", None) is None:
            return None
        wrapped = value.__wrapped__
    except Exception:  # its own code: whatever it stands for, it is no function now
        return None
    return wrapped if callable(wrapped) and callable(value) else None


def is_ours(value: Any) -> bool:
    """Tell whether it is what stands for a cached function, of which the function itself is all that counts."""
    run = value if type(value) is FunctionType else getattr(type(value), "__call__", None)  # noqa: B004
    return type(run) is FunctionType and str(run.__globals__.get("__name__")).startswith("perdure.caching.")


def is_passed_over(value: Any) -> bool:
    """Tell whether nothing of it counts but what it wraps: a cache. What joblib's holds is another in each process."""
    return type(value) is _CACHED_BY_PYTHON or is_ours(value) or type(value).__module__ == "joblib.memory"


def module_of(value: Any) -> str:
    """Where it was written, whatever it says: `functools.wraps` sets the module and name of a wrapper to those of another."""
    if type(value) is FunctionType:
        name = value.__globals__.get("__name__")
    else:
        name = (value if issubclass(type(value), (type, BuiltinFunctionType)) else type(value)).__module__
    return "__main__" if name == "__mp_main__" else str(name)


def name_of_layer(layer: Any) -> tuple[Any, ...]:
    """What tells a wrapper from others: its name, and its code where others may have the name."""
    from .hashing import digest
    from .naming import own_code_digest

    run: Any = layer if type(layer) is FunctionType else getattr(type(layer), "__call__", None)  # noqa: B004
    name = f"{module_of(layer)}:{run.__code__.co_qualname}" if run is layer else digest((type(layer),))
    if type(run) is FunctionType and (module_of(run) == "__main__" or run.__code__.co_name == "<lambda>"):
        return (name, own_code_digest(run))
    return (name,)


def held_by(layer: Any, wrapped: Any) -> list[tuple[str, Any]]:
    """The defaults of a function or the attributes of an object, by name, besides what it wraps."""
    if type(layer) is FunctionType:
        code, defaults = layer.__code__, layer.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        held = [*zip(names, defaults, strict=False), *(layer.__kwdefaults__ or {}).items()]
    else:
        attributes = attributes_of(layer, type(layer)) if is_made_by_a_program(type(layer)) else {}
        held = [(name, value) for name, value in sorted(attributes.items()) if name not in _BY_WRAPS]
    return [(name, value) for name, value in held if value is not wrapped]


def closes_over(function: Any, value: Any) -> bool:
    """Tell whether a function whose variables count has this in one of them."""
    if type(function) is not FunctionType or is_passed_over(function):
        return False
    for cell in function.__closure__ or ():
        try:
            if cell.cell_contents is value:
                return True
        except ValueError:  # not assigned yet
            continue
    return False


# --------------------------------------------------------------------------------------------------------------- code


class Uses(NamedTuple):
    """What code does with the variables of the functions around it; each is a set of names.

    Attributes:
        assigned: They are set or deleted.
        stored: A part or attribute of what they hold is.
        called: A method in `CHANGING` of what they hold is called.
        read: They are used in some other way as well, or a result of such a method is.
    """

    assigned: set[str]
    stored: set[str]
    called: set[str]
    read: set[str]


def uses_of(code: CodeType) -> Uses:
    """Look at the code, and at code inside of it.

    That it is what a variable holds to which something is done follows from the source: both expressions, the variable and the
    part of it, begin at the same place.
    """
    uses = Uses(set(), set(), set(), set())
    begun: dict[tuple[int | None, int | None], str] = {}  # by place, the variable that an expression begins with
    unexplained: dict[tuple[int | None, int | None], str] = {}  # likewise, until it turns out to be changed there
    giving: dict[tuple[int | None, int | None], Any] = {}  # by the place of a call, that of the variable
    previous = ""  # the variable that was loaded just before
    where: tuple[int | None, int | None] = (None, None)
    steps = [*dis.get_instructions(code)]
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        operation = step.opname
        place = (step.positions.lineno, step.positions.col_offset) if step.positions else (None, None)
        if operation == "LOAD_DEREF":
            previous, where = step.argval, place
            if None in place or place in unexplained:
                uses.read.add(step.argval)
            else:
                begun[place] = unexplained[place] = step.argval
            continue
        if operation in ("STORE_DEREF", "DELETE_DEREF"):
            uses.assigned.add(step.argval)
        elif operation in ("LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
            uses.read.add(step.argval)
        elif operation.startswith("CALL"):
            begun.pop(place, None)  # what a call returns is something else: `names.copy().pop()` changes nothing of ours
            if place in giving and after is not None and after.opname == "POP_TOP":
                unexplained.pop(giving[place], None)
        elif operation in _STORES:
            uses.stored.add(begun.get(place, ""))
            if place in begun:
                unexplained.pop(place, None)
        elif operation in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in CHANGING:
            start = place if place in begun else where  # of an attribute on another line, the place is there
            uses.called.add(begun.get(place) or previous)
            if step.argval in GIVING:
                giving[place] = start
            elif place in begun or previous:
                unexplained.pop(start, None)
        previous = ""
    uses.read.update(unexplained.values())
    for const in code.co_consts:
        if isinstance(const, CodeType):
            for mine, inner in zip(uses, uses_of(const), strict=True):
                mine.update(inner)
    for names in uses:
        names.intersection_update(code.co_freevars)
    return uses


# ------------------------------------------------------------------------------------------------------------- values
# Nothing here asks a value what its class is: one that stands for others may answer, or fail.


def is_plain(value: object) -> bool:
    """Tell whether it is a scalar, or a tuple of nothing else."""
    kind = type(value)
    return kind in SCALARS or (kind is tuple and all(map(is_plain, tuple.__iter__(value))))  # type: ignore[arg-type]


def name_in_module(value: Any) -> str:
    """Module and name, as these say themselves; of the program itself with the name of the program, as there are many."""
    name = getattr(value, "__qualname__", None) or value.__name__
    module = getattr(value, "__module__", None)
    if module in ("__main__", "__mp_main__"):
        module = f"__main__:{main_stem(getattr(value, '__globals__', None))}"
    return f"{module}:{name}"


def is_of_a_module(method: Any) -> bool:
    """Tell whether it is a function of a module that happens to be a method of an object, as `random.choice` is."""
    module = sys.modules.get(str(type(method.__self__).__module__))
    found = getattr(module, method.__name__, None)
    return type(found) is type(method) and bool(found == method)


def is_fixed(value: object) -> bool:
    """Tell whether nobody can change it."""
    kind = type(value)
    if kind.__hash__ is object.__hash__:
        return issubclass(kind, (FunctionType, MethodType, partial, type))
    try:
        hash(value)
    except Exception:  # what cannot be hashed can be changed
        return False
    return True


def is_container(value: Any) -> bool:
    """Tell whether methods called `add` and `pop` change it, or something that is in it."""
    kind = type(value)
    if issubclass(kind, tuple):
        return any(map(is_container, tuple.__iter__(value)))
    array: Any = getattr(sys.modules.get("numpy"), "ndarray", ())
    return issubclass(kind, (MutableSequence, MutableMapping, MutableSet, array))


def is_tool(value: Any) -> bool:
    """Tell whether no result is likely to depend on what it holds."""
    kind = type(value)
    if kind in (BytesIO, StringIO):
        return False
    return kind is object or kind in _STEPPED or str(kind.__module__).partition(".")[0] in _TOOLS
