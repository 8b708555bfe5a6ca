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
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, Final, TypeAlias

from ..codecs.protocol import Buffer
from ..codecs.types import REGISTERED, decoders, encoder_of, registered_types
from ..errors import CodecError, IntegrityError

__all__ = ["COMPONENT", "HARMLESS", "Reducer", "Reference", "find_component", "reducers", "refer"]

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


# What containers hold, for those that are to hold something else from now on. The methods are those of the classes below, as
# those of a subclass may do anything.

_CONTAINERS: Final[tuple[type[Any], ...]] = (Counter, OrderedDict, defaultdict, dict, list, set, deque, bytearray)


def container_of(value: object) -> type[Any] | None:
    """Which kind of container something is, if any; not which one it says it is, as a proxy does."""
    return next((base for base in _CONTAINERS if issubclass(type(value), base)), None)


def contents_of(value: Any, base: type[Any]) -> Any:
    """What a container holds, in one that is exactly of this type."""
    if base is defaultdict:
        return defaultdict(value.default_factory, dict.items(value))
    if base is Counter:
        contents = Counter[Any]()
        dict.update(contents, dict.items(value))  # its own `update` adds
        return contents
    if base is deque:
        return deque(deque.__iter__(value), value.maxlen)
    if base is bytearray:
        return bytearray(memoryview(value))
    return base(base.items(value) if issubclass(base, dict) else base.__iter__(value))


def refill(value: Any, contents: Any, base: type[Any]) -> None:
    """Let a container hold what another one does, which is exactly of this type."""
    if base in (list, bytearray):
        base.__setitem__(value, slice(None), contents)
        return
    base.clear(value)
    if base is OrderedDict:
        for key, inner in contents.items():
            OrderedDict.__setitem__(value, key, inner)
    elif issubclass(base, dict):
        dict.update(value, contents)
        if base is defaultdict:
            value.default_factory = contents.default_factory
    elif base is set:
        set.update(value, contents)
    else:
        deque.extend(value, contents)


def redirect(value: Any, before: Any, live: Mapping[str, object]) -> None:
    """Let everything in a container that refers to the one from which it was refilled refer to itself instead.

    It is looked for in containers and attributes, but not in what is registered, which is not of the same pickle.
    """
    seen = {id(value), *map(id, live.values())}
    todo = [value]
    while todo:
        part = todo.pop()
        inside: list[tuple[Any, Any]] = list(part.items() if isinstance(part, dict) else enumerate(part))
        for at, inner in inside:
            if inner is before and isinstance(part, (dict, list, deque)):
                part[at] = value
            elif id(inner) not in seen:
                seen.add(id(inner))
                if type(inner) is tuple or (type(inner) in _CONTAINERS and type(inner) is not bytearray):
                    todo.append(inner)
                elif not isinstance(inner, (type, FunctionType, ModuleType)) and hasattr(inner, "__dict__"):
                    todo.append(vars(inner))


# What is registered with a store is not copied into the pickles of others, but stands there by its name.


class Reference:
    """Stands for a component of a store where none is at hand, as in a comparison of two snapshots."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return type(other) is Reference and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<component {self.name!r}>"


def component(name: Any) -> Any:
    if type(name) is not str:
        raise IntegrityError("a component is not referred to by its name")
    return Reference(name)


def find_component(live: Mapping[str, object], name: Any) -> Any:
    """What is called instead of the function above where the components are at hand.

    Raises:
        CodecError: The one that is referred to is not.
    """
    if component(name).name in live:
        return live[name]
    owner, _, tensor = name.partition("/")
    if tensor and owner in live:
        problem = f"it refers to the tensor {tensor!r:.200} of component {owner!r:.200}, which has none of that name"
        raise CodecError(problem, hint=f"Register a module with the same parameters and buffers as {owner!r:.200}.")
    problem = f"it refers to component {owner!r:.200}, which is not registered"
    raise CodecError(problem, hint="Register it, too: what holds it is to hold that very object again.")


def refer(table: dict[type, Reducer], live: Mapping[str, object]) -> None:
    """Let the registered objects be reduced to their names, and others of their types as ever.

    Only objects of these types are looked at, so all others cost what they did. Classes are pickled by their own names anyway,
    as are functions and modules; and pickle looks nothing up for lists, dicts and the like.
    """
    names = {id(target): name for name, target in reversed(list(live.items()))}  # of two, the first
    for cls in {type(target) for target in live.values()}:
        if not issubclass(cls, (type, FunctionType, ModuleType)):
            table[cls] = partial(_reduce_to_name, names, table[cls])


def _reduce_to_name(names: dict[int, str], usual: Reducer, value: Any) -> Any:
    name = names.get(id(value))
    return usual(value) if name is None else (component, (name,))


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
    component,
)  # fmt: skip

HARMLESS: Final[dict[tuple[str, str], Any]] = {
    ("builtins", "Ellipsis"): Ellipsis,
    ("builtins", "NotImplemented"): NotImplemented,
    **{(made.__module__, made.__qualname__): made for made in (*_CLASSES, *_FUNCTIONS)},
}
"""All that an untrusted reader may call or hold, by module and name; what has to do with arrays comes on top."""

COMPONENT: Final = (component.__module__, component.__qualname__)
