"""What tells apart the functions that one `def` makes several times: the variables of the functions around it.

Everything is told by what it holds, once for each object that a variable is set to: whatever cannot be changed is thereby as it
is at each call, and whatever can be changed is as it was when the function was decorated.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter, itemgetter, methodcaller
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any, Final, TypeAlias

from ...errors import UsageError
from .binding import target_of
from .hashing import digest
from .naming import code_digest, is_anybodys, is_plain
from .objects import is_found_by_name, is_made_by_a_program

__all__ = ["captured"]

# Tells what a value is; it is given what was met before, which is not told twice: functions may capture themselves.
_Tell: TypeAlias = Callable[[list[Any]], Any]

_CACHED_BY_PYTHON: Final = type(functools.lru_cache(lambda: None))
_STORES: Final = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE", "STORE_ATTR", "DELETE_ATTR"})
_CHANGING: Final = frozenset({
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "fill", "insert",
    "intersection_update", "move_to_end", "pop", "popitem", "popleft", "put", "put_nowait", "remove", "resize", "reverse",
    "rotate", "setdefault", "sort", "subtract", "symmetric_difference_update", "update",
})  # fmt: skip


def captured(function: Callable[..., Any]) -> Callable[[], tuple[Any, ...]] | None:
    """Find what tells apart functions that one `def` makes several times: the variables of the functions around it.

    What counts of a variable:

    - A scalar, tuple, enum, date, path, frozen dataclass and whatever else cannot be changed: its value at each call.
    - A list, dict, set, array, table or dataclass: the content that it has when this is called, which is when the function is
      decorated. If the variable is set to another object later, the content which that one has at the next call. What is in a
      list, tuple or dict beside things of which no key can be made counts as well.
    - A function or a class: its name. If others may have the same name (lambdas, and what is defined inside of functions), its
      code, and what it captures in turn. A `partial` or a bound method: its function, and the arguments that it holds.
    - A module: its name.

    What does not count:

    - A variable that the function, or one inside of it, assigns (`nonlocal`), and a list, dict or the like that it changes
      (`seen.append(x)`, `counts[x] += 1`): these collect something, and are no arguments. It is seen by the code alone, so
      what is changed by others, under another name, is taken for an argument.
    - Whatever no key can be made of: locks, connections, plain objects.

    Where functions wrap each other, the variables of each count.

    Args:
        function: A function, or what runs one: see `target_of`.

    Returns:
        What reads the variables, to be called for each call of the function: a flat tuple of names and what they hold, to be
        put behind the arguments for `digest`. None if the function closes over nothing that could count.

    Raises:
        UsageError, UsageTypeError: As for `name_of`.

    Cost: about 100 µs, and to hash what is captured, once (a gigabyte takes a second); reading takes 0.2 µs a variable, and a
    microsecond for each function among them. Keeps what the variables hold alive. Safe in all threads.
    """
    variables = _Variables(target_of(function).function)
    if not variables.all:
        return None

    def read() -> tuple[Any, ...]:
        return tuple(variables.read([*variables.functions]))

    read()  # what can be changed counts as it is now
    return read


class _Variables:
    """What a function, and those that it wraps, close over.

    Attributes:
        functions: The function and those that it wraps.
        all: The variables that may count.
    """

    __slots__ = ("all", "functions")

    def __init__(self, function: Any) -> None:
        self.functions: list[Any] = []
        self.all: list[_Variable] = []
        each = function
        while each is not None and each not in self.functions:
            if isinstance(each, FunctionType) and each.__closure__ and not _is_ours(each):
                assigned, changed = _touched(each.__code__)
                level = len(self.functions)
                self.all += [
                    _Variable(f"{name}@{level}", cell, name in changed)
                    for name, cell in zip(each.__code__.co_freevars, each.__closure__, strict=True)
                    if name not in assigned and name != "__class__"
                ]
            self.functions.append(each)
            each = getattr(each, "__wrapped__", None)

    def read(self, met: list[Any]) -> list[Any]:
        """Names and what they hold, by turns."""
        held: list[Any] = []
        for variable in self.all:
            variable.read(held, met)
        return held


class _Variable:
    __slots__ = ("_cell", "_changed", "_last", "_name")

    def __init__(self, name: str, cell: CellType, changed: bool) -> None:
        self._name = name
        self._cell = cell
        self._changed = changed
        self._last: tuple[Any, _Tell | None] = (self, None)

    def read(self, held: list[Any], met: list[Any]) -> None:
        try:
            value = self._cell.cell_contents
        except ValueError:  # not assigned yet
            return
        if is_plain(value):
            held += (self._name, value)
            return
        last, tell = self._last
        if last is not value:
            tell = None if self._changed and not _is_fixed(value) else _way_to_tell(value)
            self._last = (value, tell)
        if tell is not None:
            held += (f"{self._name}()", tell(met))


def _is_ours(function: FunctionType) -> bool:
    """Tell whether it is what stands for a cached function, of which the function itself is all that counts."""
    return str(function.__globals__.get("__name__")).startswith("perdure.caching.")


def _touched(code: CodeType) -> tuple[set[str], set[str]]:
    """The free variables that the code, or code inside of it, assigns or deletes, and those whose objects it changes.

    An object is changed by a call of `append` and the like, or by an assignment to a part of it. That it is *this* object
    follows from the source: both expressions, the variable and the part of it, begin at the same place.
    """
    assigned: set[str] = set()
    changed: set[str] = set()
    begun: dict[tuple[int | None, int | None], str] = {}
    previous: str | None = None
    for step in dis.get_instructions(code):
        operation = step.opname
        place = (step.positions.lineno, step.positions.col_offset) if step.positions else (None, None)
        if operation == "LOAD_DEREF":
            previous = step.argval
            if None not in place:
                begun[place] = step.argval
            continue
        if operation in ("STORE_DEREF", "DELETE_DEREF"):
            assigned.add(step.argval)
        elif operation.startswith("CALL"):
            begun.pop(place, None)  # what a call returns is something else: `names.copy().pop()` changes nothing of ours
        elif operation in _STORES:
            changed.add(begun.get(place, ""))
        elif operation in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in _CHANGING:
            changed.add(begun.get(place) or previous or "")
        previous = None
    for const in code.co_consts:
        if isinstance(const, CodeType):
            more = _touched(const)
            assigned |= more[0]
            changed |= more[1]
    free = {*code.co_freevars}
    return assigned & free, changed & free


def _is_fixed(value: object) -> bool:
    """Tell whether nobody can change it, so that a method of it called `put` or `remove` does something else."""
    if type(value).__hash__ is object.__hash__:
        return isinstance(value, (FunctionType, MethodType, partial, type))
    try:
        hash(value)
    except Exception:  # what cannot be hashed can be changed
        return False
    return True


# ------------------------------------------------------------------------------------------------------- telling values


def _way_to_tell(value: Any) -> _Tell | None:
    """What tells a value from others; None if nothing does."""
    if is_plain(value):
        return lambda met: ("plain", value)
    if isinstance(value, ModuleType):
        return _always(f"{value.__name__}:")
    if isinstance(value, _CACHED_BY_PYTHON):
        return _way_to_tell(value.__wrapped__)
    if isinstance(value, FunctionType):
        return _function(value)
    if isinstance(value, type) and is_found_by_name(value):
        return _always(_name(value))
    if isinstance(value, BuiltinFunctionType):
        holder = value.__self__
        if isinstance(holder, (ModuleType, NoneType)) or not _is_fixed(holder):
            return _always(_name(value))
        return _all_of(value, "method", (value.__name__, holder))
    if isinstance(value, MethodType):
        return _all_of(value, "method", (value.__func__, value.__self__))
    if isinstance(value, partial):
        keywords = [part for pair in sorted(value.keywords.items(), key=itemgetter(0)) for part in pair]
        return _all_of(value, "partial", (value.func, len(value.args), *value.args, *keywords))
    if type(value) in (itemgetter, attrgetter, methodcaller):
        return _all_of(value, "operator", value.__reduce__())
    try:
        return _always(f"={digest((value,))}")
    except Exception:  # also errors of its own code: no key can be made of it, and the function is called as it was before
        return _of_what_has_no_key(value)


def _of_what_has_no_key(value: Any) -> _Tell | None:
    if type(value) in (list, tuple):
        return _all_of(value, type(value).__name__, value)
    if type(value) is dict:
        return _all_of(value, "dict", [part for pair in value.items() for part in pair])
    if callable(value) and not is_made_by_a_program(type(value)) and hasattr(value, "__name__"):
        return _always(_name(value))  # such as `str.upper` and `numpy.sin`
    return None


def _always(text: str) -> _Tell:
    return lambda met: text


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or value.__name__
    return f"{getattr(value, '__module__', None)}:{name}".replace("__mp_main__:", "__main__:")


def _met_at(value: Any, met: list[Any]) -> int | None:
    return next((at for at, each in enumerate(met) if each is value), None)


def _all_of(value: Any, kind: str, parts: Iterable[Any]) -> _Tell:
    """What a value consists of. Looked at when it is first asked for, as the parts may hold the value."""
    held = [*parts]
    tells: list[_Tell | None] = []

    def tell(met: list[Any]) -> Any:
        at = _met_at(value, met)
        if at is not None:
            return ("again", at)
        met.append(value)
        if not tells:
            tells[:] = [_way_to_tell(part) for part in held]
        return (kind, *[None if each is None else each(met) for each in tells])

    return tell


def _function(value: FunctionType) -> _Tell:
    """By its name; with its code and what it captures, if there may be others of that name."""
    name = _name(value)
    if not is_anybodys(value):
        return _always(name)
    try:
        code = code_digest(value)
    except UsageError:  # it wraps something that is not written in Python
        code = ""
    variables = _Variables(value)

    def tell(met: list[Any]) -> Any:
        at = _met_at(value, met)
        if at is not None:
            return ("again", at)
        met.append(value)
        return (name, code, *variables.read(met))

    return tell
