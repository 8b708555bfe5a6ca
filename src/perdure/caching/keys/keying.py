"""From a call to the key of its value: the function's name, and a digest of the arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any, Final, NamedTuple, TypeAlias, cast
from weakref import WeakValueDictionary

from ...errors import UsageError, UsageTypeError
from ..warning import warn
from .binding import Binding
from .captures import captured, captured_names
from .hashing import RESULT_OF_KEY, digest
from .naming import CODE, innermost, is_anybodys, is_same_code, name_of
from .nesting import NestedBinding, binding_of
from .targets import target_of

__all__ = ["Keys", "keys_of"]

_named: Final[WeakValueDictionary[str, FunctionType]] = WeakValueDictionary()  # the latest function of each name that lives
_held: Final[dict[str, str]] = {}  # and what else tells it from others: the digest of what it captures
_warned: Final[set[str]] = set()

_Key: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], str]


class Keys(NamedTuple):
    """How calls of a function become keys.

    Attributes:
        name: The first segment of all of them.
        digest: The second one, from the arguments.
        ignored: The names of what does not count.
    """

    name: str
    digest: _Key
    ignored: frozenset[str]


def keys_of(
    function: Callable[..., Any], key: Callable[..., Any] | None, ignore: Collection[str] | None, version: object
) -> Keys:
    """Work out how calls of a function become keys.

    Warns, once for each name, with a UserWarning if another function of that name exists in this process: they share values.

    Args:
        function: It.
        key: Stands for the arguments; None for the arguments themselves.
        ignore: Parameters and captured variables that do not count; with a `key`, variables only. None is the same as nothing.
        version: What the code is.

    Raises:
        UsageError, UsageTypeError: It is no function whose results can be told apart, or an option does not fit it.
    """
    name = name_of(function, version)
    variables = captured_names(function) if ignore else frozenset()
    binding: Binding | NestedBinding | None = None
    if key is None:
        binding = binding_of(function, ignore, variables)
    elif not callable(key):
        raise UsageTypeError(
            f"key is a function of the arguments, not {key!r:.60}", hint="Such as key=lambda text: text.lower()."
        )
    elif ignore and not (isinstance(ignore, Collection) and variables.issuperset(ignore)):
        raise UsageTypeError("with key=, the other arguments do not count anyway", hint="Leave ignore out.")
    more = captured(function, variables.intersection(ignore or ()))
    if not (isinstance(version, str) and version == CODE):
        held = "" if more is None else digest(more())
        _warn_of_another(name, target_of(function).function, held, binding.keyless if binding else {})
    if binding is not None:
        return Keys(name, _by_arguments(function, binding, more), frozenset(ignore or ()))
    return Keys(name, _by_result(cast("Callable[..., Any]", key), more), frozenset(ignore or ()))


def _by_arguments(function: Any, binding: Binding | NestedBinding, more: Callable[[], tuple[Any, ...]] | None) -> _Key:
    instance = binding.instance
    if isinstance(binding, NestedBinding):
        named = binding.bind

        def by_nested(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
            names, values = named(args, kwargs)
            return digest(values if more is None else values + more(), names, instance)

        return by_nested
    bind, names = binding.bind, binding.names
    if more is not None:
        return lambda args, kwargs: digest(bind(args, kwargs) + more(), names, instance)
    if instance is not None or not names or not _is_method(function):
        return lambda args, kwargs: digest(bind(args, kwargs), names, instance)
    first = names[0]

    def by_method(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        try:
            return digest(bind(args, kwargs), names)
        except UsageTypeError as error:
            if error.problem.startswith(f"argument {first!r} is of type"):
                error.hint = f"{error.hint} Of a method, only a first parameter called self or cls is taken for its object."
            raise

    return by_method


def _is_method(function: Any) -> bool:
    """Tell whether it is defined in the body of a class, by its name."""
    parent = getattr(function, "__qualname__", "").rpartition(".")[0]
    return bool(parent) and not parent.endswith("<locals>")


def _by_result(key: Callable[..., Any], more: Callable[[], tuple[Any, ...]] | None) -> _Key:
    names = (RESULT_OF_KEY,)
    if more is None:
        return lambda args, kwargs: digest((key(*args, **kwargs),), names)
    return lambda args, kwargs: digest((key(*args, **kwargs), *more()), names)


def _warn_of_another(name: str, function: Any, held: str, keyless: dict[str, Any]) -> None:
    """Warn if a function that does something else has this name, and its calls the same keys, which nobody was told yet."""
    if not isinstance(function, FunctionType) or is_anybodys(function):
        return
    other, other_held = _named.get(name), _held.get(name)
    _named[name], _held[name] = function, held
    if other is None or other is function or held != other_held or name in _warned:
        return
    try:
        if is_same_code(other, function) and not _has_other_defaults(other, function, keyless):
            return
    except UsageError:  # they wrap something that is not written in Python
        return
    _warned.add(name)
    warn(
        f"there are two functions called {name}, and where both are cached in one place, they share values. "
        "Give one of them another name, or a version= of its own."
    )


def _has_other_defaults(one: Any, other: Any, keyless: dict[str, Any]) -> bool:
    """Tell whether one `def` made both, as in a loop, with defaults that differ and do not count."""
    one, other = innermost(one), innermost(other)
    if one.__code__ is not other.__code__:
        return False
    defaults = inspect.signature(one, follow_wrapped=False).parameters
    return any(defaults[name].default is not default for name, default in keyless.items())
