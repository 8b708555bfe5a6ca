"""From a call to the key of its value: the function's name, and a digest of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ...errors import UsageTypeError
from .binding import Binding
from .hashing import digest
from .naming import captured, name_of

__all__ = ["Keys", "keys_of"]


class Keys(NamedTuple):
    """How calls of a function become keys.

    Attributes:
        name: The first segment of all of them.
        digest: The second one, from the arguments.
    """

    name: str
    digest: Callable[[tuple[Any, ...], dict[str, Any]], str]


def keys_of(function: Callable[..., Any], key: Callable[..., Any] | None, ignore: Collection[str], version: object) -> Keys:
    """Work out how calls of a function become keys.

    Args:
        function: It.
        key: Stands for the arguments; None for the arguments themselves.
        ignore: Parameters that do not count.
        version: What the code is.

    Raises:
        UsageError, UsageTypeError: It is no function whose results can be told apart, or an option does not fit it.
    """
    name = name_of(function, version)
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
    names = ("the result of key=",)
    if more is None:
        return lambda args, kwargs: digest((key(*args, **kwargs),), names)
    return lambda args, kwargs: digest((key(*args, **kwargs), *more()), names)
