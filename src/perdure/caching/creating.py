"""`get_or_create`: an item of a dict, computed by one at a time where it is absent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar

from ..codecs.chain import Chain
from ..durations import Duration
from ..errors import UsageTypeError
from ..keys import join_key
from ..mapping.core import Core, Key
from .entries import Entries, Miss
from .flights import Flights
from .policy import LEASE, WAIT, policy_of
from .running import run
from .stats import Counts

if TYPE_CHECKING:
    from ..aio import AsyncPersiDict

__all__ = ["get_or_create", "get_or_create_async"]

V = TypeVar("V")

_MOST = 64  # ways in which one dict is asked, whose preparations are kept


def get_or_create(
    d: Core[V],
    key: Key,
    factory: Callable[[], V],
    *,
    ttl: Duration | None = None,
    stale_ok: Duration | bool | None = None,
    early: float = 0.0,
    errors: type[Exception] | tuple[type[Exception], ...] = (),
    errors_ttl: Duration | None = None,
    keep_if: Callable[[V], object] | None = None,
    lock: bool = True,
    lease: Duration = LEASE,
    wait: Duration = WAIT,
    on_error: str = "raise",
) -> V:
    """The value of a key; where it is absent or has expired, what `factory` returns, which is stored.

    Of all threads, processes and machines that ask for the same key at once one computes. It claims the key by
    compare-and-swap, with a record that others can see and that is good for `lease` unless it is renewed, which a thread does
    while the factory runs. The others wait, or take an expired value (`stale_ok`). When the process that computes is killed,
    who waits goes on after `lease` at most. What the factory raises is raised here and not stored, the claim is withdrawn,
    and the next who waits tries. A result whose claim was lost, as the key was deleted, written or taken over meanwhile, is
    returned and not stored.

    While a key is claimed `key in d` is true, and reading it is a `NotFoundError` unless a value is kept with the claim.

    Args:
        d: What `perdure.open` returns, or a view of it.
        key: As in `d[key]`.
        factory: Computes the value. It may use the cache, for other keys.
        ttl: How long a value is good after it was written; `None` is for ever. By the clock of the place against ours, so
            clocks that differ by a minute are a minute wrong.
        stale_ok: How long after that it may be answered while somebody else computes; `True` is for ever.
        early: Above 0 a value is computed anew before it expires, by one who is chosen by chance, the likelier the longer it
            takes to compute; 1.0 is usual.
        errors: Classes of exceptions that are stored and raised again, for `errors_ttl`.
        errors_ttl: How long a stored exception is good; by default `ttl`, and a minute at most.
        keep_if: Tells of a value whether it is stored; all are by default, `None` too.
        lock: Whether to claim. Without, processes compute beside each other and the first one's result is stored; threads
            of this process still wait for one. An append-only dict is never claimed.
        lease: How long a claim is good that is not renewed: 0.1 seconds or more.
        wait: How long somebody is waited for who still renews.
        on_error: `"raise"`: trouble with the place is raised. `"compute"`: it is counted and warned about once, and the value
            is computed and not stored.

    Returns:
        The value: who computed it gets what the factory returned, others an object of their own.

    Raises:
        UsageError: An option is malformed.
        InvalidKeyError, CodecError: The key cannot be one; the value cannot be stored, and was not.
        BackendError: The place failed, and `on_error` is `"raise"`.

    Cost: one read where there is a value; else one read, two writes and what the factory costs. Who waits reads again and
    again, at first after a millisecond, at last every second. Safe in threads, processes and forked children.
    """
    entries = _entries(d, ttl, stale_ok, early, errors, errors_ttl, keep_if, lock, lease, wait, on_error)
    path = d._prefix + join_key(key)  # noqa: SLF001
    value: Any = entries.hit(path)
    if isinstance(value, Miss):
        value = run(entries, path, factory, value)
    return value  # type: ignore[no-any-return]


async def get_or_create_async(
    d: Core[V] | AsyncPersiDict[V],
    key: Key,
    factory: Callable[[], V | Awaitable[V]],
    *,
    ttl: Duration | None = None,
    stale_ok: Duration | bool | None = None,
    early: float = 0.0,
    errors: type[Exception] | tuple[type[Exception], ...] = (),
    errors_ttl: Duration | None = None,
    keep_if: Callable[[V], object] | None = None,
    lock: bool = True,
    lease: Duration = LEASE,
    wait: Duration = WAIT,
    on_error: str = "raise",
) -> V:
    """As `get_or_create`, awaited; `factory` may be a coroutine function. Tasks of all event loops wait for one another.

    A task that is cancelled while it computes withdraws its claim first, and the next who waits computes.
    """
    from .awaiting import call_of, run_async

    whole: Any = getattr(d, "sync", d)
    entries = _entries(whole, ttl, stale_ok, early, errors, errors_ttl, keep_if, lock, lease, wait, on_error)
    path = whole._prefix + join_key(key)  # noqa: SLF001
    call = call_of(entries.near)
    value: Any = await call(partial(entries.hit, path))
    if isinstance(value, Miss):
        value = await run_async(entries, path, partial(_awaited, factory), call, value)
    return value  # type: ignore[no-any-return]


async def _awaited(factory: Callable[[], Any]) -> Any:
    result = factory()
    return await result if isawaitable(result) else result


def _entries(d: Any, *options: Any) -> Entries:
    """How a dict is asked in this way, as prepared before."""
    if not isinstance(d, Core):
        raise UsageTypeError(f"get_or_create works on what perdure.open returns, not on {d!r:.60}", hint="Open a place first.")
    prepared: dict[Any, Entries] = d.__dict__.setdefault("_creating", {})
    try:
        entries = prepared.get(options)
    except TypeError:  # a list of classes, say
        return _prepare(d, *options)
    if entries is None:
        entries = _prepare(d, *options)
        if len(prepared) >= _MOST:
            prepared.clear()
        prepared[options] = entries
    return entries


def _prepare(
    d: Core[Any],
    ttl: Any,
    stale_ok: Any,
    early: Any,
    errors: Any,
    errors_ttl: Any,
    keep_if: Any,
    lock: Any,
    lease: Any,
    wait: Any,
    on_error: Any,
) -> Entries:
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
        plain=True,
    )
    if d.append_only:
        policy = policy._replace(lock=False)
    chain = Chain("msgpack", d.chain.filters)
    flights = d.__dict__.setdefault("_flights", Flights())
    name = f"get_or_create in {d.place}"
    return Entries(d.backend, d.backend, d._spell, d._reader, policy, Counts(), name, chain, flights)  # noqa: SLF001
