"""What stands for a cached function in a class, and for a cached method of an instance."""

from __future__ import annotations

import inspect
import sys
import types
from functools import update_wrapper
from typing import Any, Final

from .cache import BoundCache

__all__ = ["Bound", "ClassMethod", "Method", "method_of"]

_WRAPPER: Final = ".wrapper"
# `inspect` takes for a function, or a coroutine function, what has these.
_OF_FUNCTIONS: Final = frozenset(
    ("__annotations__", "__code__", "__defaults__", "__globals__", "__kwdefaults__", "__name__", "__qualname__")
)


def method_of(wrapper: Any) -> Any:
    """The method that calls a wrapper. Pickles name it so: whether functions go by name or as a whole is up to who pickles."""
    holder: Any = sys.modules.get(wrapper.__module__)
    for name in wrapper.__qualname__.split("."):
        holder = getattr(holder, name, None)
        if isinstance(holder, Method) and holder.wrapper is wrapper:
            return holder
    return (AsyncMethod if inspect.iscoroutinefunction(wrapper) else Method)(wrapper)


class Method:
    """A cached function in a class. It passes for a function with all who look for the attributes of one.

    The class has no annotations: from Python 3.14 on they would pass for those of the function.
    """

    def __init__(self, wrapper: Any) -> None:
        update_wrapper(self, wrapper.__wrapped__)
        vars(self).update(vars(wrapper))  # `cache` and `__wrapped__` among them
        self.wrapper = wrapper
        self.__qualname__ = wrapper.__qualname__.removesuffix(_WRAPPER)
        # The name under which pickle finds the wrapper, by way of the class and of this object.
        wrapper.__qualname__ = self.__qualname__ + _WRAPPER

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.wrapper(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._bound_to(instance)

    def _bound_to(self, instance: Any) -> Bound:
        return Bound(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_FUNCTIONS:
            return getattr(self.wrapper, name)
        raise AttributeError(f"a cached function has no attribute {name!r}", name=name, obj=self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol < 4:  # which finds what is in a class only after it has written what holds it
            return self.__qualname__
        return method_of, (self.wrapper,)

    def __copy__(self) -> Method:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        return self  # as functions are copied

    def __repr__(self) -> str:
        return f"<cached function {self.__qualname__}>"


class AsyncMethod(Method):
    def _bound_to(self, instance: Any) -> Bound:
        return AsyncBound(self, instance)

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return await self.wrapper(*args, **kwargs)


class Bound:
    """A cached method of an instance; its `cache` is about that instance."""

    def __init__(self, method: Method, instance: Any) -> None:
        self.__func__ = method
        self.__self__ = instance
        self.__module__ = method.__module__
        self.__doc__ = method.__doc__

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__func__.cache.answer((self.__self__, *args), kwargs)

    @property
    def cache(self) -> BoundCache:
        return BoundCache(self.__func__.cache, self.__self__)

    @property
    def __wrapped__(self) -> Any:  # where `inspect` finds the signature
        return types.MethodType(self.__func__.__wrapped__, self.__self__)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_FUNCTIONS or not name.startswith("__"):  # the others say how the method is copied, and the like
            return getattr(self.__func__, name)
        raise AttributeError(f"a cached method has no attribute {name!r}", name=name, obj=self)

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__func__.__name__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.__self__ is other.__self__ and self.__func__ is other.__func__

    def __hash__(self) -> int:
        return hash((id(self.__self__), id(self.__func__)))

    def __repr__(self) -> str:
        return f"<cached method {self.__func__.__qualname__} of {self.__self__!r}>"


class AsyncBound(Bound):
    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return await self.__func__.cache.answer((self.__self__, *args), kwargs)


class ClassMethod(classmethod):  # type: ignore[type-arg]
    """One whose `cache` is about the class. From Python 3.13 on a built-in one hands the class to the calls alone."""

    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        return self.__func__.__get__(type(instance) if owner is None else owner)


for _class in (Method, AsyncMethod):
    # Among the names that stand in the body of a model, pydantic passes over functions, and over what comes from functools.
    _class.__module__ = "functools"
