"""`cached`: a function whose results last, and are shared by all who name the same place."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from ..durations import Duration
from ..errors import UsageTypeError
from ..sizes import Size
from .cache import Cache
from .keys.keying import keys_of
from .methods import Bound, ClassMethod, method_of
from .opening import Local, Opening, Where
from .policy import LEASE, WAIT, policy_of

if TYPE_CHECKING:
    from ..codecs import Codec, Filter
    from .awaiting import AsyncCache

__all__ = ["AsyncCachedFunction", "CachedFunction", "cached"]

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class _Taking(Protocol[S_contra, P, R_co]):
    """What takes something first. Type checkers tell by it whether a function is a method of a class."""

    def __call__(self, first: S_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class CachedFunction(Protocol[P, R_co]):
    """What `cached` makes of a function: the same, with its values in `cache`."""

    cache: Cache
    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself, which neither asks the cache nor stores anything."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload  # a class method, or what looks like one: its first argument is a class
    def __get__(self: _Taking[type[S], Q, R], instance: S | None, owner: type[S]) -> CachedFunction[Q, R]: ...
    @overload  # a method
    def __get__(self: _Taking[S, Q, R], instance: S, owner: type[S] | None = None) -> CachedFunction[Q, R]: ...
    @overload  # a method of a class without an instance, or a static method
    def __get__(self, instance: object, owner: type | None = None) -> CachedFunction[P, R_co]: ...


class AsyncCachedFunction(Protocol[P, R_co]):
    """The same of a coroutine function."""

    cache: AsyncCache
    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, R_co]]:
        """The function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    @overload  # a class method, or what looks like one: its first argument is a class
    def __get__(
        self: _Taking[type[S], Q, Coroutine[Any, Any, R]], instance: S | None, owner: type[S]
    ) -> AsyncCachedFunction[Q, R]: ...
    @overload  # a method
    def __get__(
        self: _Taking[S, Q, Coroutine[Any, Any, R]], instance: S, owner: type[S] | None = None
    ) -> AsyncCachedFunction[Q, R]: ...
    @overload  # a method of a class without an instance, or a static method
    def __get__(self, instance: object, owner: type | None = None) -> AsyncCachedFunction[P, R_co]: ...


class Decorator(Protocol):
    """What `cached` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine is an object too; the first that fits counts
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCachedFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> CachedFunction[P, R]: ...


def cached(
    where: Where,
    *,
    ttl: Duration | None = None,
    stale_ok: Duration | bool | None = None,
    early: float = 0.0,
    key: Callable[..., Any] | None = None,
    ignore: str | Collection[str] = (),
    version: object = None,
    max_bytes: Size | None = None,
    max_items: int | None = None,
    codec: str | Codec | None = None,
    filters: str | Filter | Iterable[str | Filter] = (),
    trusted: bool = False,
    errors: type[Exception] | tuple[type[Exception], ...] = (),
    errors_ttl: Duration | None = None,
    keep_if: Callable[[Any], object] | None = None,
    lock: bool = True,
    lease: Duration = LEASE,
    wait: Duration = WAIT,
    local: Local | Iterable[Local] | None = (),
    recheck: Duration = 60.0,
    on_error: str = "compute",
    on_evict: Callable[[str, int], object] | None = None,
    record_stats: bool = True,
    **options: Any,
) -> Decorator:
    """Keep what a function returns, for all processes and machines that name the same place.

    For functions, coroutine functions, methods, class methods and static methods. The function must depend on nothing but its
    arguments, and on what `version` says. Of all who call it with the same arguments at once, one runs it
    (`perdure.get_or_create` tells how); what it raises is not stored. Each caller gets an object of its own.

    A value is found by the function's module and qualified name, `version`, and the arguments, given by position or name, with
    defaults filled in (not through a decorator that takes `*args, **kwargs`). Functions of a script or notebook, and those
    inside of others, count with their code, as their names are anybody's, and with what they capture. Arguments may be scalars,
    containers, dates, enums, paths, dataclasses, arrays, data frames and classes. Equal dicts and sets are equal in any order;
    1, 1.0 and True are three arguments. `self` counts with its class and attributes.

    Args:
        where: A folder, a URL such as `"sqlite:///cache.db"` or `"s3://bucket/prefix"`, a backend, or what `perdure.open`
            returns. A folder or SQLite file is written with `sync="normal"` unless the URL says otherwise.
        ttl: How long a value is good, such as `"7 d"`; `None` is for ever. By the clock of the place against ours.
        stale_ok: How long after that it may be answered while somebody else computes a new one; `True` is for ever.
        early: Above 0 a value is computed anew before it expires, by one caller who is chosen by chance; 1.0 is usual.
        key: A function of the same arguments whose result stands for them.
        ignore: Names of parameters, or of variables that the function captures, that do not matter: `"verbose"` or
            `("self", "log")`.
        version: What the code is: change it when the function changes, and its old values are not found any more. `"code"`
            takes a digest of the function's own source, without comments; what it calls does not count.
        max_bytes: The most bytes that the values of all functions in this place take, such as `"10 GB"`; the least recently
            used go first, or where a place cannot remember use (S3), the oldest. A larger value is returned and not stored.
        max_items: The most values.
        codec: As of `perdure.open`: `"msgpack"` holds data and never runs code; `"pkl"` holds nearly everything.
        filters: As of `perdure.open`: `perdure.Signed.from_env("NAME")` makes values acceptable from shared places. A
            value that is not signed, or not by us, counts as absent and is never decoded.
        trusted: Whoever can write to the place may run code here.
        errors: Classes of exceptions that are stored and raised again, for `errors_ttl`. One that would not come back the same
            is not stored, such as one that holds a connection.
        errors_ttl: How long those are good; by default `ttl`, and a minute at most.
        keep_if: Tells of a value whether it is stored; by default all are, `None` too.
        lock: Whether processes wait for each other. Without, a miss costs one request less; threads always do.
        lease: How long others wait for a process that was killed while computing.
        wait: How long they wait for one that is still alive.
        local: Nearer places that keep copies, the nearest first: `["memory:", "~/.cache/app"]`. One in memory holds 256 MiB.
        recheck: How long the nearest answers a copy without asking whether it is current.
        on_error: `"compute"`: where the place fails, that is counted and warned about once, and the function runs. `"raise"`
            raises.
        on_evict: Called with key and size of each value that this process removed to keep the limit.
        record_stats: Add what is counted to records in the place, once a minute, for `perdure cache URL`.
        **options: Options of the backend.

    Returns:
        A decorator. The function it makes has `__wrapped__`, and `cache`: `peek`, `contains`, `invalidate`, `refresh`, `clear`,
        `prune`, `stats`, `key` (`perdure.caching.cache.Cache`); of coroutine functions, those that make requests are awaited.

    Raises:
        UsageError: An option is malformed, or the place is none.
        UsageTypeError: A generator function, or something that is no function.
        MissingExtraError: Something is not installed.

    A call raises what the function raises, and besides:
        UsageTypeError: An argument cannot be told from others in all processes; it says which, and what to do.
        CodecError: What the function returned cannot be stored with this codec.
        UsageError: The place was written with another codec.
        BackendError: The place failed, and `on_error` is `"raise"`.

    Cost: a hit is a read of the place and the digest of the arguments; a miss a read and two writes more than the function.
    Safe in threads, tasks, processes and forked children.
    """
    policy = policy_of(
        ttl=ttl,
        stale_ok=stale_ok,
        early=early,
        errors=errors,
        errors_ttl=errors_ttl,
        keep_if=keep_if,
        lock=lock,
        lease=lease,
        wait=wait,
        on_error=on_error,
    )
    if not isinstance(record_stats, bool):
        raise UsageTypeError(f"record_stats is True or False, not {record_stats!r:.60}")
    open_place = Opening(
        where,
        codec=codec,
        filters=filters,
        trusted=trusted,
        max_bytes=max_bytes,
        max_items=max_items,
        local=local,
        recheck=recheck,
        on_evict=on_evict,
        options=options,
    )
    ignored = (ignore,) if isinstance(ignore, str) else ignore

    def decorate(function: Any) -> Any:
        if isinstance(function, (classmethod, staticmethod)):
            kind = ClassMethod if isinstance(function, classmethod) else staticmethod
            return kind(decorate(function.__func__))
        if isinstance(function, Bound):  # what a key is made of is looked for in a partial
            function = partial(function.__func__, function.__self__)
        _refuse_what_cannot_be_cached(function)
        is_async = any(map(inspect.iscoroutinefunction, _run_by(function)))
        keys = keys_of(function, key, ignored, version)
        cache = _cache_class(is_async)(function, open_place, policy, keys, record_stats=record_stats)
        wrapper = _wrapper(function, cache, is_async)
        return method_of(wrapper) if _is_in_class(function) else wrapper

    return decorate


def _cache_class(is_async: bool) -> type[Cache]:
    if not is_async:
        return Cache
    from .awaiting import AsyncCache  # and with it asyncio, which takes longer to import than all the rest

    return AsyncCache


def _innermost(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function


def _run_by(function: Any) -> tuple[Any, ...]:
    """What tells whether calls are to be awaited: a function, or an object and the method that is run when it is called."""
    inner = _innermost(function)
    return (inner,) if inspect.isroutine(inner) else (inner, getattr(type(inner), "__call__", None))  # noqa: B004


def _refuse_what_cannot_be_cached(function: Any) -> None:
    inner = _innermost(function)
    name = getattr(inner, "__qualname__", repr(inner))
    if isinstance(inner, type) or not callable(inner):
        raise UsageTypeError(f"only functions can be cached, and {inner!r:.60} is none")
    if any(inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run) for run in _run_by(function)):
        raise UsageTypeError(
            f"{name} is a generator function, and what a generator will give cannot be stored",
            hint="Return a list, or cache a function that makes one piece.",
        )


def _wrapper(function: Any, cache: Cache, is_async: bool) -> Any:
    answer = cache.answer

    def call(*args: Any, **kwargs: Any) -> Any:
        return answer(args, kwargs)

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        return await answer(args, kwargs)

    wrapper: Any = update_wrapper(call_async if is_async else call, function)
    wrapper.cache = cache
    return wrapper


def _is_in_class(function: Any) -> bool:
    """Tell whether a function is being defined in the body of a class, by its name."""
    parent = getattr(function, "__qualname__", "").rpartition(".")[0]
    return isinstance(function, types.FunctionType) and bool(parent) and not parent.endswith("<locals>")
