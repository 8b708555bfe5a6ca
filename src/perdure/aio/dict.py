"""`AsyncPersiDict`: the methods of `PersiDict`, awaited."""

from __future__ import annotations

import inspect
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NoReturn, ParamSpec, Self, TypeVar, cast, overload

from ..codecs.chain import Chain
from ..errors import PolicyError, UsageError
from ..keys import SafeStrTuple
from ..mapping.core import Key
from ..mapping.dict import PersiDict
from ..mapping.flags import (
    DeleteCurrentFlag,
    ItemNotAvailableFlag,
    KeepCurrentFlag,
    NotAValue,
)
from ..mapping.results import OperationResult
from ..protocol import Backend
from .stream import Stream
from .threads import Threads

V = TypeVar("V")
D = TypeVar("D")
R = TypeVar("R")
P = ParamSpec("P")

THREADS = 32
_COPIED: tuple[type, ...] = (Iterator, list, set, type({}.keys()), type({}.values()), type({}.items()))


def _awaited(
    method: Callable[Concatenate[PersiDict[V], P], R], copied: str | None = None
) -> Callable[Concatenate[AsyncPersiDict[V], P], Coroutine[Any, Any, R]]:
    """The same method, called in a thread.

    Args:
        method: Of the synchronous dict.
        copied: Its first parameter, where that takes many keys or items.
    """
    name = method.__name__

    @wraps(method)
    async def call(self: AsyncPersiDict[V], /, *args: Any, **kwargs: Any) -> Any:
        if copied is not None:
            if copied in kwargs:
                kwargs[copied] = _copy(kwargs[copied])
            elif args:
                args = _copy(args[0]), *args[1:]
        return await self._threads.run(getattr(self.sync, name), *args, **kwargs)

    call.__module__, call.__qualname__ = __name__, f"AsyncPersiDict.{name}"
    return call


def _copy(given: Any) -> Any:
    """What was given, as it is now: while a thread goes through it, the loop may change it."""
    if isinstance(given, dict):
        return dict(given)
    if isinstance(given, AsyncPersiDict):
        return given.sync
    may_change: bool = isinstance(given, _COPIED)
    return list(given) if may_change else given


def _streamed(
    method: Callable[Concatenate[PersiDict[V], P], Iterable[R]],
) -> Callable[Concatenate[AsyncPersiDict[V], P], Stream[R]]:
    """The same listing, for `async for`."""
    name = method.__name__

    @wraps(method)
    def call(self: AsyncPersiDict[V], /, *args: Any, **kwargs: Any) -> Any:
        listing = partial(getattr(self.sync, name), *args, **kwargs)
        return Stream(self._threads, listing, f"{name} of {self.sync!r}")

    call.__module__, call.__qualname__ = __name__, f"AsyncPersiDict.{name}"
    return call


def _refused(spelled: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(self: AsyncPersiDict[Any], *_: object) -> NoReturn:
        raise PolicyError(f"`{spelled}` cannot be awaited", place=self.place, hint=f"Write `{instead}`.")

    return refuse


class AsyncPersiDict(NotAValue, Generic[V]):
    """A `PersiDict` for asyncio: its methods, under the same names and with the same arguments, answers and errors, awaited.

    What Python cannot await has a name: `await d.set(key, value)`, `delete(key)`, `contains(key)`, `count()`, `is_empty()`,
    `equals(other)`; reading is `await d[key]`. The operators raise a `PolicyError` (a `TypeError`) with that name. Listings
    are read by `async for`. What needs no input or output is not awaited: `get_subdict`, `clone`, `place` and the like.

    Calls run in threads that belong to this dict and its views, so as many wait for the place at once as there are threads;
    further ones wait for their turn. That adds about 50 µs to a call. Functions that are passed in (`progress`,
    a `transformer` that is not a coroutine function) run in those threads, too. A value must not be changed while it is
    being written; dicts and lists of items are copied first.

    Cancelling a call, by a timeout for instance, abandons it and takes nothing back: when it has begun, a thread finishes
    it, a write included, and nobody learns how it ended. A call that still waits for a thread never begins.

    May be used from any number of event loops, in any threads, at once or after each other, and in forked children. Copies
    share the threads; pickles are handles, as those of a `PersiDict`, and start their own.

    Args:
        sync: The dict that does the work. It may go on to be used from ordinary threads.
        concurrency: The number of threads, 1 or more.

    Attributes:
        sync: The same.

    Raises:
        UsageError: `concurrency` is not such a number.

    Raises (all methods):
        BackendError: Closed, or as the method of `PersiDict`.
        UnavailableError: No thread can be started.
    """

    sync: PersiDict[V]

    def __init__(self, sync: PersiDict[V], *, concurrency: int = THREADS) -> None:
        self.sync = sync
        self._threads = Threads(concurrency, sync.backend.place)

    def _over(self, sync: PersiDict[V]) -> Self:
        twin = object.__new__(type(self))
        twin.sync = sync
        twin._threads = self._threads
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.sync, self._threads)

    # ---------------------------------------------------------------- what does not wait

    @property
    def backend(self) -> Backend:
        """Where the items are: what works is synchronous."""
        return self.sync.backend

    @property
    def chain(self) -> Chain:
        """How values become bytes."""
        return self.sync.chain

    @property
    def append_only(self) -> bool:
        """Whether keys may be added only."""
        return self.sync.append_only

    @property
    def base_class_for_values(self) -> type[Any] | None:
        """The class of all values, if there is one."""
        return self.sync.base_class_for_values

    @property
    def serialization_format(self) -> str:
        """The name of the codec."""
        return self.sync.serialization_format

    @property
    def place(self) -> str:
        """Where this is, as a URL without secrets, for messages."""
        return self.sync.place

    def get_params(self) -> dict[str, Any]:
        """What the constructor of the synchronous dict takes."""
        return self.sync.get_params()

    @classmethod
    def get_default_params(cls) -> dict[str, Any]:
        """What the constructor of `PersiDict` takes when it is not given."""
        return PersiDict.get_default_params()

    def clone(self, **changes: Any) -> Self:
        """Another handle, with changes to `get_params()`; it shares the threads."""
        return self._over(self.sync.clone(**changes))

    def get_subdict(self, prefix: Key) -> Self:
        """A live view of the keys under a prefix, as `PersiDict.get_subdict`; it shares the threads."""
        return self._over(self.sync.get_subdict(prefix))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.sync!r}>"

    # ---------------------------------------------------------------- one item

    async def __getitem__(self, key: Key) -> V:
        """The value of a key; `NotFoundError`, which is a `KeyError`, where it is absent. Cost: one read."""
        return await self._threads.run(self.sync.__getitem__, key)

    async def set(self, key: Key, value: V | KeepCurrentFlag | DeleteCurrentFlag) -> None:
        """Write a value, whole or not at all: `d[key] = value`. Cost: one put."""
        await self._threads.run(self.sync.__setitem__, key, value)

    async def delete(self, key: Key) -> None:
        """Delete a key; `NotFoundError` where it is absent: `del d[key]`. Cost: a look and a delete."""
        await self._threads.run(self.sync.__delitem__, key)

    async def contains(self, key: Key) -> bool:
        """Tell whether a key is present: `key in d`. Cost: one look, without reading the value."""
        return await self._threads.run(self.sync.__contains__, key)

    if TYPE_CHECKING:

        @overload
        async def get(self, key: Key) -> V | None: ...
        @overload
        async def get(self, key: Key, default: V | D) -> V | D: ...
        async def get(self, key: Key, default: Any = None) -> Any: ...

        @overload
        async def pop(self, key: Key) -> V: ...
        @overload
        async def pop(self, key: Key, default: V | D) -> V | D: ...
        async def pop(self, key: Key, default: Any = None) -> Any: ...

    else:
        get = _awaited(PersiDict.get)
        pop = _awaited(PersiDict.pop)

    setdefault = _awaited(PersiDict[V].setdefault)
    popitem = _awaited(PersiDict[V].popitem)
    discard = _awaited(PersiDict[V].discard)
    delete_if_exists = _awaited(PersiDict[V].delete_if_exists)
    etag = _awaited(PersiDict[V].etag)
    timestamp = _awaited(PersiDict[V].timestamp)

    get_item_if = _awaited(PersiDict[V].get_item_if)
    get_with_etag = _awaited(PersiDict[V].get_with_etag)
    set_item_if = _awaited(PersiDict[V].set_item_if)
    setdefault_if = _awaited(PersiDict[V].setdefault_if)
    discard_if = _awaited(PersiDict[V].discard_if)

    async def transform_item(
        self,
        key: Key,
        *,
        transformer: Callable[[V | ItemNotAvailableFlag], V | KeepCurrentFlag | DeleteCurrentFlag]
        | Callable[[V | ItemNotAvailableFlag], Awaitable[V | KeepCurrentFlag | DeleteCurrentFlag]],
        n_retries: int | None = None,
    ) -> OperationResult[V]:
        """Read a value, compute the next one and swap it in, again and again until nobody was in between.

        No update is lost and none is applied twice, across tasks, threads, processes and machines.

        Args:
            key: Such as `"a"` or `("a", "b")`.
            transformer: As in `PersiDict.transform_item`. A function runs in the thread that reads and writes; a coroutine
                function is awaited in the event loop, holds no thread meanwhile, and may use this dict. It is called once
                for each attempt. The longer it takes, the more often somebody else is first; where many tasks change one
                key at once, the attempts grow with the square of their number, and a plain function is far quicker.
            n_retries: How many lost attempts to follow by another; `None` goes on until it wins.

        Raises:
            ConflictError: `n_retries` + 1 attempts were lost; `attempts` tells the number.
            PolicyError: Append-only, and the transformer wants to change a value that is there.
            UsageError: A function that is not a coroutine function returned a coroutine.

        Cost: one read and one write for each attempt.
        """
        if inspect.iscoroutinefunction(transformer) or inspect.iscoroutinefunction(type(transformer).__call__):
            awaited = cast(
                "Callable[[V | ItemNotAvailableFlag], Awaitable[V | KeepCurrentFlag | DeleteCurrentFlag]]", transformer
            )
            return await self._transform(key, awaited, n_retries)

        def plain(value: V | ItemNotAvailableFlag) -> Any:
            new = transformer(value)
            if inspect.iscoroutine(new):
                new.close()
                hint = "Pass the `async def` function itself, so that it is awaited."
                raise UsageError("the transformer returned a coroutine", key=key, place=self.place, hint=hint)
            return new

        return await self._threads.run(self.sync.transform_item, key, transformer=plain, n_retries=n_retries)

    async def _transform(
        self,
        key: Key,
        transformer: Callable[[V | ItemNotAvailableFlag], Awaitable[V | KeepCurrentFlag | DeleteCurrentFlag]],
        n_retries: int | None,
    ) -> OperationResult[V]:
        steps = self.sync._transforming(key, n_retries)  # noqa: SLF001
        value = await self._threads.run(next, steps)
        while True:
            new = await transformer(value)
            value, done = await self._threads.run(_send, steps, new)
            if done is not None:
                return done

    # ---------------------------------------------------------------- several items

    update = _awaited(PersiDict[V].update, "")
    get_many = _awaited(PersiDict[V].get_many, "keys")
    set_many = _awaited(PersiDict[V].set_many, "items")
    delete_many = _awaited(PersiDict[V].delete_many, "keys")
    clear = _awaited(PersiDict[V].clear)
    oldest_keys = _awaited(PersiDict[V].oldest_keys)
    newest_keys = _awaited(PersiDict[V].newest_keys)
    oldest_values = _awaited(PersiDict[V].oldest_values)
    newest_values = _awaited(PersiDict[V].newest_values)
    random_key = _awaited(PersiDict[V].random_key)

    # ---------------------------------------------------------------- all items

    keys = _streamed(PersiDict[V].keys)
    values = _streamed(PersiDict[V].values)
    items = _streamed(PersiDict[V].items)
    keys_and_timestamps = _streamed(PersiDict[V].keys_and_timestamps)
    values_and_timestamps = _streamed(PersiDict[V].values_and_timestamps)
    items_and_timestamps = _streamed(PersiDict[V].items_and_timestamps)

    def __aiter__(self) -> AsyncIterator[SafeStrTuple]:
        """The keys, page by page."""
        return self.keys().__aiter__()

    async def count(self) -> int:
        """The number of keys: `len(d)`. Cost: a listing of names."""
        return await self._threads.run(self.sync.__len__)

    async def is_empty(self) -> bool:
        """Whether there is no key: `not d`. Cost: the beginning of a listing."""
        return not await self._threads.run(self.sync.__bool__)

    async def equals(self, other: object) -> bool:
        """Whether both hold equal values under the same keys, whatever kind of mapping the other is: `d == other`."""
        return await self._threads.run(operator.eq, self.sync, _copy(other))

    async def subdicts(self) -> dict[str, Self]:
        """A view for each first segment of the keys. Cost: a listing of names."""
        found = await self._threads.run(self.sync.subdicts)
        return {name: self._over(view) for name, view in found.items()}

    # ---------------------------------------------------------------- the end

    async def close(self) -> None:
        """Let the calls finish that were made before, abandoned ones included, and close as `PersiDict.close`.

        Calls made from now on raise `BackendError`. May be called twice. When this is cancelled, it goes on all the same.
        """
        await self._threads.close(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # ---------------------------------------------------------------- what Python cannot await

    __hash__ = object.__hash__

    if not TYPE_CHECKING:  # a type checker says so itself
        __setitem__ = _refused("d[key] = value", "await d.set(key, value)")
        __delitem__ = _refused("del d[key]", "await d.delete(key)")
        __contains__ = _refused("key in d", "await d.contains(key)")
        __len__ = _refused("len(d)", "await d.count()")
        __bool__ = _refused("bool(d)", "not await d.is_empty()")
        __iter__ = _refused("for key in d", "async for key in d")
        __or__ = __ror__ = _refused("d | other", "{key: value async for key, value in d.items()} | other")
        __ior__ = _refused("d |= other", "await d.update(other)")
        _equal = _refused("d == other", "await d.equals(other)")

        def __eq__(self, other):
            if self is other:
                return True
            return self._equal() if isinstance(other, (Mapping, AsyncPersiDict)) else NotImplemented


def _send(steps: Generator[Any, Any, R], new: Any) -> tuple[Any, R | None]:
    """Send a generator what it waits for; return what it yields, or in the end what it returns."""
    try:
        return steps.send(new), None
    except StopIteration as end:
        return None, end.value


def _again(cls: type[AsyncPersiDict[V]], sync: PersiDict[V], threads: Threads) -> AsyncPersiDict[V]:
    twin = object.__new__(cls)
    twin.sync = sync
    twin._threads = threads
    return twin
