"""What is run when something is called, whatever stands in front of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial, partialmethod
from types import FunctionType, MethodType, ModuleType, NoneType
from typing import Any, Final, NamedTuple, cast

from ...errors import UsageError, UsageTypeError
from .layers import is_passed_over, layers_of

__all__ = ["Target", "inwards", "target_of", "telling"]

_MISSING: Final = object()


class Target(NamedTuple):
    """What is run when a callable is called.

    Attributes:
        function: The function itself.
        args: What it gets before the arguments of the call.
        kwargs: What it gets by keyword unless the call gives it.
        bound: The first of `args` is the object that it is a method of.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bound: bool


def target_of(function: Any) -> Target:
    """Look through `functools.partial`, bound methods, static methods and callable objects at the function that they run.

    A partial is then the same as its function called with all the arguments, so both share results.

    Raises:
        UsageTypeError: It is nothing that can be called.
        UsageError: It can, but it is unknown what its results depend on.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    bound = False
    run: Any = function
    while True:
        if isinstance(run, partial):
            if bound:
                raise _unsuitable(run, "a partial that is a method")
            args = _fixed(run, args)
            kwargs = {**run.keywords, **kwargs}
            run = run.func
        elif isinstance(run, staticmethod):
            run = run.__func__
        elif isinstance(run, MethodType):
            args = (run.__self__, *args)
            bound = True
            run = run.__func__
        elif isinstance(run, (FunctionType, type, classmethod, property, partialmethod)) or not _is_object(run):
            break
        else:
            args = (run, *args)
            bound = True
            run = type(run).__call__
    return Target(_checked_function(run), args, kwargs, bound)


def _fixed(function: partial[Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a partial passes on when it is called with these arguments."""
    place = getattr(functools, "Placeholder", _MISSING)  # since Python 3.14 it may leave places for some of them
    if any(value is place for value in function.args):
        raise _unsuitable(function, "a partial with places left open")
    return (*function.args, *args)


def _is_object(function: Any) -> bool:
    """Tell whether it is called by a method `__call__` that its class defines in Python, and does not stand for a function."""
    call = getattr(type(function), "__call__", None)  # noqa: B004
    return isinstance(call, FunctionType) and not hasattr(function, "__wrapped__")


def _checked_function(function: Any) -> Callable[..., Any]:
    """The function, if it is one whose calls can be told apart."""
    if isinstance(function, (classmethod, property)):
        kind = type(function).__name__
        raise UsageError(
            f"a {kind} is no function", hint=f"Put @{kind} above, so that what is cached is the function below it."
        )
    if isinstance(function, partialmethod):
        raise UsageError("a partialmethod is no function", hint="Cache the method that it calls.")
    if not callable(function):
        raise UsageTypeError(f"only calls can be cached, and {function!r:.80} cannot be called")
    if isinstance(function, type):
        raise UsageError(f"{function.__qualname__} is a class", hint="Write a function that makes and returns such an object.")
    if not isinstance(function, FunctionType) and not isinstance(getattr(function, "__self__", None), (ModuleType, NoneType)):
        raise _unsuitable(function, "a method of a built-in object, on which its results depend")
    if not all(isinstance(getattr(function, name, None), str) for name in ("__module__", "__qualname__")):
        raise _unsuitable(function, f"a {type(function).__qualname__}, which has no name that lasts")
    return cast("Callable[..., Any]", function)


def _unsuitable(function: Any, what: str) -> UsageError:
    return UsageError(f"{function!r:.80} is {what}", hint="Write a function that calls it, and cache that.")


def inwards(function: Any) -> list[Any]:
    """A function and those that it wraps, from the outside in."""
    found = layers_of(function)
    while isinstance(found[-1], staticmethod):
        found[-1:] = layers_of(found[-1].__func__)
    return found


def telling(function: Any) -> list[Any]:
    """The same without those that have no parameters of their own."""
    return [each for each in inwards(function) if not is_passed_over(each)] or [function]
