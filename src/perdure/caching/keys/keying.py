"""From a call to the key of its value: the function's name, and a digest of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from ...errors import UsageError, UsageTypeError
from ..warning import warn
from .binding import Binding, target_of
from .captures import captured
from .hashing import RESULT_OF_KEY, digest
from .naming import CODE, is_anybodys, is_same_code, name_of

__all__ = ["Keys", "keys_of"]

_named: Final[WeakValueDictionary[str, FunctionType]] = WeakValueDictionary()  # the latest function of each name that lives
_warned: Final[set[str]] = set()


class Keys(NamedTuple):
    """How calls of a function become keys.

    Attributes:
        name: The first segment of all of them.
        digest: The second one, from the arguments.
    """

    name: str
    digest: Callable[[tuple[Any, ...], dict[str, Any]], str]


def keys_of(
    function: Callable[..., Any], key: Callable[..., Any] | None, ignore: Collection[str] | None, version: object
) -> Keys:
    """Work out how calls of a function become keys.

    Warns, once for each name, with a UserWarning if another function of that name exists in this process: they share values.

    Args:
        function: It.
        key: Stands for the arguments; None for the arguments themselves.
        ignore: Parameters that do not count. None is the same as nothing.
        version: What the code is.

    Raises:
        UsageError, UsageTypeError: It is no function whose results can be told apart, or an option does not fit it.
    """
    name = name_of(function, version)
    if not (isinstance(version, str) and version == CODE) and _is_of_another(name, target_of(function).function):
        warn(
            f"there are two functions called {name}, and where both are cached in one place, they share values. "
            "Give one of them another name, or a version= of its own."
        )
    if key is None:
        return Keys(name, _by_arguments(Binding(function, ignore), captured(function)))
    if not callable(key):
        raise UsageTypeError(
            f"key is a function of the arguments, not {key!r:.60}", hint="Such as key=lambda text: text.lower()."
        )
    if ignore:
        raise UsageTypeError("with key=, the other arguments do not count anyway", hint="Leave ignore out.")
    return Keys(name, _by_result(key, captured(function)))


def _by_arguments(
    binding: Binding, more: Callable[[], tuple[Any, ...]] | None
) -> Callable[[tuple[Any, ...], dict[str, Any]], str]:
    bind, names, instance = binding.bind, binding.names, binding.instance
    if more is None:
        return lambda args, kwargs: digest(bind(args, kwargs), names, instance)
    return lambda args, kwargs: digest(bind(args, kwargs) + more(), names, instance)


def _by_result(
    key: Callable[..., Any], more: Callable[[], tuple[Any, ...]] | None
) -> Callable[[tuple[Any, ...], dict[str, Any]], str]:
    names = (RESULT_OF_KEY,)
    if more is None:
        return lambda args, kwargs: digest((key(*args, **kwargs),), names)
    return lambda args, kwargs: digest((key(*args, **kwargs), *more()), names)


def _is_of_another(name: str, function: Any) -> bool:
    """Tell whether a function that does something else has this name, which nobody was told yet."""
    if not isinstance(function, FunctionType) or is_anybodys(function):
        return False
    other = _named.get(name)
    _named[name] = function
    if other is None or other is function or other.__code__ is function.__code__ or name in _warned:
        return False
    try:
        same = is_same_code(other, function)
    except UsageError:  # they wrap something that is not written in Python
        return False
    if not same:
        _warned.add(name)
    return not same
