"""What tells apart the functions that one `def` makes several times: the variables of the functions around it.

Everything is told by what it holds, once for each object that a variable is set to: whatever cannot be changed is thereby as it
is at each call, and whatever can be changed is as it was when the function was decorated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from operator import attrgetter, itemgetter, methodcaller
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, MethodWrapperType, ModuleType, NoneType
from typing import Any, Final

from ..warning import warn
from . import layers as _layers
from .hashing import digest
from .layers import Uses, is_container, is_fixed, is_passed_over, is_plain, is_tool, layers_of, module_of, name_in_module
from .naming import is_anybodys, own_code_digest
from .objects import attributes_of, is_found_by_name, is_made_by_a_program, spell
from .targets import target_of
from .telling import Always, Met, Tell, in_order, leave, met_at, quietly
from .types import SCALARS

__all__ = ["captured", "captured_names", "told_as_captured", "told_of"]

_UNTOLD: Final = object()
_UNUSED: Final = Uses(set(), set(), set(), set())
_said: Final[dict[tuple[str, str, str], object]] = {}


def captured(function: Callable[..., Any], ignored: Collection[str] = ()) -> Callable[[], tuple[Any, ...]] | None:
    """Find what tells apart functions that one `def` makes several times: the variables of the functions around it.

    What counts of a variable:

    - A scalar, tuple, enum, date, path, frozen dataclass and whatever else cannot be changed: its value at each call.
    - A list, dict, set, array, table, dataclass or namespace: the content that it has when this is called, which is when the
      function is decorated. If the variable is set to another object later, the content which that one has at the next call.
      What is in a list, tuple or dict beside things of which no key can be made counts as well.
    - A function or a class: its name. If others may have the same name (lambdas, and what is defined inside of functions), its
      code, its defaults, and what it captures in turn. A `partial` or a bound method: its function, and what it holds.
    - A module or a logger: its name.

    Where functions wrap each other, the variables of each count, and of each wrapper its name and defaults; in the program
    itself (`__main__`) also its code. Of an object that wraps a function, its class and its attributes count.

    What does not count:

    - What is in `ignored`.
    - A variable that the function, or one inside of it, assigns (`nonlocal`), a container that it changes (`seen.append(x)`),
      and any object of which it assigns a part (`counts[x] += 1`): these collect something, and are no arguments. It is seen by
      the code alone, so what is changed by others, under another name, is taken for an argument.
    - Whatever no key can be made of: locks, connections, plain objects.

    Warns of the last two, once for each name of a function and a variable, with a UserWarning: of what no key can be made of,
    unless it is a lock or the like; and of what the function changes, if it was not empty and the function reads it as well.

    Args:
        function: A function, or what runs one: see `target_of`.
        ignored: Names among `captured_names`.

    Returns:
        What reads the variables, to be called for each call of the function: a flat tuple of names and what they hold, to be
        put behind the arguments for `digest`. None if there is nothing that could count.

    Raises:
        UsageError, UsageTypeError: As for `name_of`.

    Cost: about 100 µs, and to hash what is captured, once (a gigabyte takes a second); reading takes 0.2 µs a variable, and a
    microsecond for each function among them. Keeps what the variables hold alive. Safe in all threads.
    """
    variables = _Variables(target_of(function).function, ignored)
    layers = variables.layers
    variables.warn()
    if not variables.all and not variables.constant:
        return None

    def read() -> tuple[Any, ...]:
        return tuple(variables.read([*layers]))

    read()  # what can be changed counts as it is now
    return read


def captured_names(function: Callable[..., Any]) -> frozenset[str]:
    """The names of all that a function captures, and those of its module that wrap it; of objects that do, of attributes.

    Args:
        function: A function, or what runs one: see `target_of`.

    Raises:
        UsageError, UsageTypeError: As for `name_of`.
    """
    return frozenset(_Variables(target_of(function).function).names)


def told_of(function: Any, defaults: bool = True) -> tuple[Any, ...]:
    """What a function captures now, for what it is a part of: a flat tuple as of `captured`, with its defaults or without."""
    variables = _Variables(function, defaults=defaults)
    return tuple(variables.read([*variables.layers]))


def told_as_captured(value: Any) -> Any:
    """What counts of a value of which no key can be made, if a function captures it; None if nothing does."""
    tell = _way_to_tell(value)
    return None if tell is None else tell([])


class _Variables:
    """What a function, and those that it wraps, close over.

    Attributes:
        layers: The function and those that it wraps, as far as they are looked through.
        constant: A name and what it holds, or nothing: all that cannot be another one at another call.
        all: The variables that may count.
        names: Those of the variables in the module of the function.
    """

    __slots__ = ("_constants", "all", "constant", "layers", "names")

    def __init__(self, function: Any, ignored: Collection[str] = (), defaults: bool = False) -> None:
        layers = layers_of(function)
        self.all: list[_Variable] = []
        self.names: list[str] = []
        self._constants: list[Any] = []
        inner = layers[-1]
        is_function = type(inner) is FunctionType
        home = module_of(inner) if is_function else None
        self.layers = layers if is_function else layers[:-1]
        for level, layer in enumerate(layers):
            if is_passed_over(layer):
                continue
            is_inner = layer is inner
            is_home = home in (None, module_of(layer))
            wrapped = self.layers[level + 1] if level + 1 < len(self.layers) else _UNTOLD
            held = _layers.held_by(layer, wrapped) if not is_inner or (defaults and is_function) else []
            if not is_inner:
                self._constants.append((level, *_layers.name_of_layer(layer)))
            elif level and not is_function and not _layers.closes_over(layers[level - 1], layer):
                held.append((str(getattr(layer, "__name__", "__wrapped__")), layer))
            if type(layer) is FunctionType:
                self._close_over(layer, f"@{level}", wrapped, ignored if is_home else (), is_home)
            if is_home and not is_inner:
                self.names += [name for name, _ in held]
            for at, (name, value) in enumerate(held):
                if not is_home or name not in ignored:
                    label = f"@@{level}.{at}" if type(layer) is FunctionType else f"{name}@@{level}"
                    self._hold(name, label, value, is_home and not name.startswith("__"))
        self.constant = ("layers", digest(tuple(self._constants))) if self._constants else ()

    def _close_over(self, layer: FunctionType, level: str, wrapped: Any, ignored: Collection[str], is_home: bool) -> None:
        if not layer.__closure__:
            return
        uses = _layers.uses_of(layer.__code__)
        for name, cell in zip(layer.__code__.co_freevars, layer.__closure__, strict=True):
            if name == "__class__":
                continue
            if is_home:
                self.names.append(name)
            if name not in uses.assigned and name not in ignored:
                self.all.append(_Variable(name, f"{name}{level}", cell, uses, wrapped, is_home))

    def _hold(self, name: str, label: str, value: Any, is_home: bool) -> None:
        tell = None if is_plain(value) else _way_to_tell(value)
        if is_plain(value):
            self._constants.append((label, value))
        elif isinstance(tell, Always):
            self._constants.append((label, "()", tell.text))
        else:
            self.all.append(_Variable(name, label, CellType(value), _UNUSED, _UNTOLD, is_home))

    def read(self, met: list[Any]) -> list[Any]:
        """Names and what they hold, by turns."""
        held: list[Any] = [*self.constant]
        for variable in self.all:
            variable.read(held, met)
        return held

    def warn(self) -> None:
        """Say what does not count, as `captured` tells."""
        met = Met(self.layers)
        for variable in self.all:
            met.untold.clear()
            variable.read([], met)
            if variable.is_home and variable.is_mixed():
                self._say(variable.name, f"{_a(variable.last[0])} that it changes, which therefore does not count")
            elif variable.is_home and met.untold:
                value = met.untold[0]
                holds = "" if value is variable.last[0] else "which holds "
                self._say(variable.name, f"{holds}{_a(value)} of which no key can be made")
            variable.say = self._say

    def _say(self, name: str, what: str) -> None:
        run = self.layers[-1]
        title = str(getattr(run, "__qualname__", "the function"))
        mark = object()
        if _said.setdefault((module_of(run), title, name), mark) is mark:
            warn(
                f"{title.rpartition('<locals>.')[2]} captures {name!r}, {what}: all functions that this definition makes share "
                f"values, whatever it holds. Pass what matters as an argument, or say ignore={name!r} if nothing of it does. "
                "This is said once."
            )


def _a(value: Any) -> str:
    name = spell(type(value))
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class _Variable:
    __slots__ = ("_called", "_cell", "_label", "_read", "_stored", "is_home", "last", "name", "say")

    def __init__(self, name: str, label: str, cell: CellType, uses: Uses, wrapped: Any, is_home: bool) -> None:
        self.name = name
        self.is_home = is_home
        self.say: Callable[[str, str], None] | None = None
        self._label = label
        self._cell = cell
        self._called = name in uses.called
        self._stored = name in uses.stored
        self._read = name in uses.read
        self.last: tuple[Any, Tell | None] = (wrapped, None)  # of which the variables are among the others anyway

    def read(self, held: list[Any], met: list[Any]) -> None:
        try:
            value = self._cell.cell_contents
        except ValueError:  # not assigned yet
            return
        if type(value) in SCALARS or is_plain(value):
            held += (self._label, value)
            return
        last, tell = self.last
        if last is not value:
            changed = self._is_changed(value)
            tell = None if changed else _way_to_tell(value)
            if not self.is_home:
                tell = tell or _by_attributes(value)
                tell = None if tell is None else quietly(tell)
            elif tell is None and not changed:
                leave(value, met)
                if self.say is not None and not is_tool(value):  # it was set after the function was decorated
                    self.say(self.name, f"{_a(value)} of which no key can be made")
            self.last = (value, tell)
        if tell is not None:
            held += (f"{self._label}()", tell(met))

    def is_mixed(self) -> bool:
        """Tell whether the function changes it, and reads what was in it before."""
        if not self._read or not self._is_changed(self.last[0]) or is_tool(self.last[0]):
            return False
        try:
            return len(self.last[0]) > 0
        except Exception:  # it has no length
            return True

    def _is_changed(self, value: Any) -> bool:
        return (self._called and is_container(value)) or (self._stored and not is_fixed(value))


# ------------------------------------------------------------------------------------------------------- telling values


def _way_to_tell(value: Any) -> Tell | None:
    """What tells a value from others; None if nothing does."""
    try:
        return _told(value, type(value))
    except Exception:  # of its own code: no key can be made of it, and the function is called as it was before
        return None


def _told(value: Any, kind: type) -> Tell | None:
    # Nothing here asks a value what its class is: one that stands for others may answer, or fail.
    if is_plain(value):
        return lambda met: ("plain", value)
    if issubclass(kind, ModuleType):
        return Always(f"{value.__name__}:")
    if _layers.is_ours(value):
        return _cached(value)
    if str(kind.__module__).partition(".")[0] in ("perdure", "perdure_backends") and isinstance(value.place, str):
        return Always(f"{kind.__qualname__} in {value.place}")
    if is_passed_over(value):
        return _way_to_tell(value.__wrapped__)
    if kind is FunctionType:
        return _function(value)
    if issubclass(kind, type) and is_found_by_name(value):
        return Always(name_in_module(value))
    if kind in (BuiltinFunctionType, MethodWrapperType, MethodType):
        holder = value.__self__
        changes = kind is not MethodType and value.__name__ in _layers.CHANGING and is_container(holder)
        if changes or type(holder) in (ModuleType, NoneType) or _layers.is_of_a_module(value):
            return Always(name_in_module(value))
        return _all_of(value, "method", (value.__func__ if kind is MethodType else value.__name__, holder))
    if kind in (staticmethod, classmethod):
        return _way_to_tell(value.__func__)
    if issubclass(kind, partial):
        keywords = [part for pair in sorted(value.keywords.items(), key=itemgetter(0)) for part in pair]
        return _all_of(value, "partial", (value.func, len(value.args), *value.args, *keywords))
    if kind in (itemgetter, attrgetter, methodcaller):
        return _all_of(value, "operator", value.__reduce__())
    try:
        return Always(f"={digest((value,))}")
    except Exception:  # also errors of its own code
        return _of_what_has_no_key(value, kind)


def _of_what_has_no_key(value: Any, kind: type) -> Tell | None:
    if kind in (list, tuple):
        return _all_of(value, kind.__name__, value)
    if kind is dict:
        items = value.items() if not all(map(is_plain, value)) else sorted(value.items(), key=lambda item: in_order(item[0]))
        return _all_of(value, "dict", [part for pair in items for part in pair])
    if len(layers_of(value)) > 1:
        return _function(value)
    if callable(value) and not is_made_by_a_program(kind) and hasattr(value, "__name__"):
        return Always(name_in_module(value))  # such as `str.upper` and `numpy.sin`
    return None


def _by_attributes(value: Any) -> Tell | None:
    """What the attributes of a plain object tell, those aside of which no key can be made: such as `self` of a decorator."""
    kind = type(value)
    if is_tool(value) or not is_made_by_a_program(kind):
        return None
    try:
        attributes = sorted(attributes_of(value, kind).items())
    except Exception:  # of its own code
        return None
    return _all_of(value, spell(kind), [part for pair in attributes for part in pair])


def _cached(value: Any) -> Tell | None:
    """A cached function: as what it runs, without what its own keys ignore."""
    ignored = value.cache.ignored
    if "__self__" in vars(value):
        is_method = ignored.isdisjoint(("self", "cls"))
        return _all_of(value, "method", (value.__func__, value.__self__)) if is_method else _way_to_tell(value.__func__)
    run = value.__wrapped__
    return _function(run, ignored) if type(run) is FunctionType and not is_passed_over(run) else _way_to_tell(run)


def _all_of(value: Any, kind: str, parts: Iterable[Any]) -> Tell:
    """What a value consists of. Looked at when it is first asked for, as the parts may hold the value."""
    held = [*parts]
    tells: list[Tell | None] = []

    def tell(met: list[Any]) -> Any:
        at = met_at(value, met)
        if at is not None:
            return ("again", at)
        met.append(value)
        if not tells:
            tells[:] = map(_way_to_tell, held)
            for part, way in zip(held, tells, strict=True):
                if way is None:
                    leave(part, met)
        return (kind, *[None if each is None else each(met) for each in tells])

    return tell


def _function(value: Any, ignored: Collection[str] = ()) -> Tell:
    """By its name, and what wraps it; with its code and what it captures, if there may be others of that name."""
    inner = layers_of(value)[-1]
    is_code = type(inner) is FunctionType
    by_code = is_code and is_anybodys(inner)
    if inner is value and not by_code:
        return Always(name_in_module(value))
    name = name_in_module(inner) if is_code else ""
    code = own_code_digest(inner) if by_code else ""
    variables: list[_Variables] = []  # looked at when it is first asked for: its defaults may hold the function

    def tell(met: list[Any]) -> Any:
        at = met_at(value, met)
        if at is not None:
            return ("again", at)
        met.append(value)
        if not variables:
            variables.append(_Variables(value, ignored, defaults=by_code))
        return (name, code, *variables[0].read(met))

    return tell
