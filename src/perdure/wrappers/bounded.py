"""A limit for a place: `Bounded(FileBackend("cache"), max_bytes="10 GB")` makes room before it writes.

No count is kept that all would have to share and keep right, and a write costs no request more. The limit holds by this:

* *Shares.* Who has looked at the whole place (`uses`) and made room may write 1 % of the limit, all its threads together, and
  then looks again. A look sees all that was written before it began, and makes the total 97 % at most, that share included.
  So however n of them are interleaved, there is never more than 97 % and n - 1 shares of others.
* *Turns.* A look, the evictions and the write that needed them are done by one at a time on a machine. So what is larger than a
  share is made room for exactly, and so is every item where the limit is so few that 1 % of it is none.

What was used least recently goes first. When values are read is noted in this process and told to the place now and then
(`mark_used`), so that it counts for all; where a place cannot remember it (S3), what was written first goes first.
"""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from _thread import get_ident
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from time import time
from typing import Any, Final, TypeVar

from ..errors import NotModified, PerdureError, PolicyError, UnknownOutcomeError, UsageError, UsageTypeError
from ..protocol import Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, Use, check_key
from ..sizes import Size, size_in_bytes
from .room import Room, require
from .turns import turn_of

__all__ = ["Bounded"]

_GATHERED: Final = 1000  # uses, after which they are told to the place
_SECONDS: Final = 5.0  # or after so many

_log = logging.getLogger("perdure.wrappers")
_instances: weakref.WeakSet[Bounded] = weakref.WeakSet()
_at_exit_once: list[bool] = []
R = TypeVar("R")


def _after_fork() -> None:
    for bounded in list(_instances):
        bounded._after_fork()  # noqa: SLF001


def _at_exit() -> None:
    for bounded in list(_instances):
        bounded._tell_uses()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Bounded(Backend):
    """A backend that keeps the total of another one below a limit, and evicts what was used least recently.

    Safe for threads, processes and forked children; pickles where its parts do. Any number of them, in any processes, may
    bound one place, each with the same limit and the same `only`, and under the same name: links to a folder are other places.

    *What is guaranteed.* With n of them writing, each of which may have many threads, the place holds at every moment at most
    97 % of the limit, or one value that is larger than that, and n - 1 hundredths more: up to 4 do not exceed the limit, and 11
    not by more than 10 %. For a value larger than 1 % of the limit, a `put_many` of more than that, and every write under a
    limit of less than 100 items this holds among the processes of one user on one machine (`perdure.wrappers.turns`). Each
    further machine, or user, may exceed it by such values of its own that are on their way, until the next write anywhere.

    A process that is stopped (Ctrl-Z, a debugger) in the middle of a look or an eviction holds up the others that need a look
    for 10 seconds. Then they go on without waiting, which is counted in `troubles`, and while that lasts they may exceed the
    limit by such large values as if they were on other machines.

    *What is not.* Who writes past this is not held back, only evicted when the next one looks. What a place needs beside its
    values, such as files that are being written, does not count. A value may go at any time, even one that another process
    wrote anew at the moment when its old version was chosen: this is for what can be had again, such as caches.

    Args:
        backend: Where the values are. Closed together with this.
        max_bytes: The most that all values may have together, as bytes or text such as `"10 GB"`.
        max_items: The most values there may be, 1 or more.
        only: Tells by a key whether its value counts and may be evicted; all others are left alone. Quick, and always the same.
        on_evict: Called with key and size of each value that was evicted. What it raises is logged. It must not wait for a
            thread that writes here.
        uncounted: Values of exactly so many bytes neither count nor are evicted: for records that stand for values to come.

    Attributes:
        troubles: How often uses could not be told to the place, or other processes not be kept out. The first one is logged.

    Raises:
        UsageError: Neither limit is given, or one is out of range.
        UsageTypeError: An argument is of the wrong type.

    Cost: a get takes a fraction of a microsecond more, and every 1000 values or 5 seconds a call of `mark_used`. A write takes
    a microsecond more; each time when 1 % of the limit was written, and for each value larger than that, a listing of the place
    (`uses`), which takes memory for some twentieth of its names.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_bytes: Size | None = None,
        max_items: int | None = None,
        only: Callable[[str], bool] | None = None,
        on_evict: Callable[[str, int], object] | None = None,
        uncounted: int | None = None,
    ) -> None:
        self.place = backend.place
        self.shared_by_machines = backend.shared_by_machines
        self.remembers_use = backend.remembers_use
        self.troubles = 0
        if max_bytes is None and max_items is None:
            raise UsageError("no limit is given", place=self.place, hint="Give max_bytes='10 GB', max_items, or both.")
        self._max_bytes = None if max_bytes is None else size_in_bytes(max_bytes, "max_bytes")
        self._max_items = None if max_items is None else _whole_number(max_items)
        for name, function in (("only", only), ("on_evict", on_evict)):
            if not (function is None or callable(function)):
                raise UsageTypeError(f"{name} is a function, not {function!r:.60}", place=self.place)
        self._backend = backend
        self._only = only
        self._on_evict = on_evict
        self._room = Room(backend, self._max_bytes, self._max_items, only, on_evict, uncounted)
        self._uncounted = uncounted
        self._get, self._give, self._flying = backend.get, self._room.give, self._room.flying
        self._turn = turn_of(self.place)
        self._used: dict[str, float] = {}
        self._told = now = time()
        self._tell_at = now + _SECONDS
        self._closed = False
        self._numbers = count(1)  # of troubles; `next` is a single step, so exactly one is the first
        if not _at_exit_once:  # not at import: what the backends do at exit has to come after
            _at_exit_once.append(True)
            atexit.register(_at_exit)
        _instances.add(self)

    @property
    def backend(self) -> Backend:
        """Where the values are."""
        return self._backend

    @property
    def max_bytes(self) -> int | None:
        """The limit in bytes, if there is one."""
        return self._max_bytes

    @property
    def max_items(self) -> int | None:
        """The limit in values, if there is one."""
        return self._max_items

    # ---------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        try:
            blob = self._get(key, if_none_match=if_none_match)
        except NotModified:
            self._note([key])
            raise
        if self.remembers_use:
            # As `_note`, without the call.
            now = time()
            used = self._used
            used[key] = now
            if not self._told <= now < self._tell_at or len(used) >= _GATHERED:
                self._tell_uses()
        return blob

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        found = self._backend.get_many(keys)
        self._note(found)
        return found

    def _note(self, keys: Iterable[str]) -> None:
        if self.remembers_use:
            now = time()
            self._used.update(dict.fromkeys(keys, now))
            if not self._told <= now < self._tell_at or len(self._used) >= _GATHERED:
                self._tell_uses()

    def _tell_uses(self) -> None:
        """Tell the place what was read in this process. Trouble with that is nobody's but that of the order of eviction."""
        used, self._used = self._used, {}
        self._told = now = time()
        self._tell_at = now + _SECONDS
        times = used.copy()  # a get that is on its way may add to the other one still
        if not times:
            return
        try:
            if self._only is not None:
                times = {key: when for key, when in times.items() if self._only(key)}
            self._backend.mark_used(times)
        except Exception as error:
            self._trouble(error)

    def head(self, key: str) -> Meta:
        return self._backend.head(key)

    def contains(self, key: str) -> bool:
        return self._backend.contains(key)

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return self._backend.scan(prefix)

    def keys(self, prefix: str = "") -> Iterator[str]:
        return self._backend.keys(prefix)

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        return self._backend.times(prefix)

    def uses(self, prefix: str = "") -> Iterator[Use]:
        self._tell_uses()
        return self._backend.uses(prefix)

    def forgets(self, key: str) -> str:
        return "it evicts values when it is full" if self._only is None or self._only(key) else self._backend.forgets(key)

    def mark_used(self, times: Mapping[str, float]) -> None:
        self._backend.mark_used(times)

    # ---------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        """As `Backend.put`, after evicting what is necessary, unless `head` says that `if_match` does not hold.

        Raises:
            PolicyError: The value alone is larger than `max_bytes`. Nothing was changed.
            BackendError: Also where the place could not be looked at, or values not be evicted. Nothing was written.
        """
        if self._only is not None and not self._only(check_key(key)):
            return self._backend.put(key, data, if_match=if_match)
        if _size(data) == self._uncounted:
            return self._backend.put(key, data, if_match=if_match)
        size = self._checked_size(key, data)
        if not self._give(size, 1):
            check_key(key)  # before others are evicted for it
            write = partial(self._backend.put, key, data, if_match=if_match)
            return self._write_in_turn({key: size}, write, partial(require, self._backend, key, if_match))
        try:
            return self._backend.put(key, data, if_match=if_match)
        except PerdureError as error:
            if not isinstance(error, UnknownOutcomeError):
                self._give(-size, -1)
            raise
        finally:
            self._flying.pop(get_ident(), None)

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        """As `Backend.put_many`, after evicting what is necessary, for all values at once unless they are half of the limit."""
        only = self._only or (lambda key: True)
        sizes = {key: self._checked_size(key, data) for key, data in items.items() if only(check_key(key))}
        etags: dict[str, ETag] = {}
        for piece in self._pieces(items, sizes):
            counted = {key: sizes[key] for key in piece if key in sizes}
            write = partial(self._backend.put_many, piece)
            given = not counted or self._give(sum(counted.values()), len(counted))
            etags |= self._write_given(write) if given else self._write_in_turn(counted, write)
        return etags

    def _pieces(self, items: Mapping[str, Buffer], sizes: Mapping[str, int]) -> Iterator[Mapping[str, Buffer]]:
        most_bytes, most_items = self._room.halves
        if sum(sizes.values()) <= most_bytes and len(sizes) <= most_items:
            yield items
            return
        piece: dict[str, Buffer] = {}
        size = 0
        for key, data in items.items():
            more = sizes.get(key, 0)
            if piece and (size + more > most_bytes or len(piece) + 1 > most_items):
                yield piece
                piece, size = {}, 0
            piece[key] = data
            size += more
        if piece:
            yield piece

    def _checked_size(self, key: str, data: Buffer) -> int:
        size = _size(data)
        if self._max_bytes is not None and size > self._max_bytes:
            text = f"a value of {size} bytes is larger than the limit for all, max_bytes={self._max_bytes}"
            raise PolicyError(text, key=key, place=self.place, hint="Raise the limit, or keep such values elsewhere.")
        return size

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        self._backend.delete(key, if_match=if_match)

    def delete_many(self, keys: Iterable[str]) -> None:
        self._backend.delete_many(keys)

    # ------------------------------------------------------------------------------------------------------------- room

    @property
    def evicted(self) -> int:
        """How many values this has evicted."""
        return self._room.evicted

    @property
    def evicted_bytes(self) -> int:
        """How many bytes the values had that this has evicted."""
        return self._room.evicted_bytes

    def prune(self) -> int:
        """Evict until the place is within its limits, and return how many values that took.

        For a place that was filled by others, or whose limit was lowered; any write does the same when it has to look.

        Raises:
            BackendError: The place could not be looked at, or values not be evicted.
        """
        return self._turn.alone(self._prune, self._trouble)

    def _prune(self) -> int:
        before = self._room.evicted
        self._tell_uses()
        self._room.prune(self._used)
        return self._room.evicted - before

    def _write_in_turn(self, sizes: Mapping[str, int], write: Callable[[], R], holds: Callable[[], object] | None = None) -> R:
        """Make room, and write, while nobody else does so. `holds` raises what the write would, before anything is evicted."""
        return self._turn.alone(partial(self._make_room_and_write, sizes, write, holds), self._trouble)

    def _make_room_and_write(self, sizes: Mapping[str, int], write: Callable[[], R], holds: Callable[[], object] | None) -> R:
        if self._give(sum(sizes.values()), len(sizes)):  # another thread has made room while this one waited
            return self._write_given(write)
        self._tell_uses()
        self._room.make(sizes, self._used, holds)
        return write()

    def _write_given(self, write: Callable[[], R]) -> R:
        try:
            return write()
        finally:
            self._flying.pop(get_ident(), None)

    def _trouble(self, error: Exception) -> None:
        if self._closed:
            return  # by us, in the middle of this call
        self.troubles = number = next(self._numbers)
        if number == 1:
            _log.warning(
                "%s: a bounded place is in trouble (%s). Values may be evicted in another order, or the limit be exceeded by "
                "large values of several processes; further trouble is counted in `troubles` and not reported.",
                self.place,
                error,
            )

    # -------------------------------------------------------------------------------------------------------- the place

    def recorded(self) -> dict[str, str]:
        return self._backend.recorded()

    def record(self, settings: Mapping[str, str]) -> None:
        self._backend.record(settings)

    def guarantees(self) -> Guarantees:
        promises = self._backend.guarantees()
        limits = (f"{most} {what}" for most, what in ((self._max_bytes, "bytes"), (self._max_items, "items")) if most)
        first = "used" if self.remembers_use else "written"
        return promises._replace(
            limits=f"{promises.limits}; {' and '.join(limits)} in all, the least recently {first} go first"
        )

    def close(self) -> None:
        """Tell the place what was read, and close it."""
        self._tell_uses()
        self._closed = True
        self._backend.close()

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self._backend, self._max_bytes, self._max_items, self._only, self._on_evict, self._uncounted)
        return _reopen, (type(self), *arguments)

    def _after_fork(self) -> None:
        self._room.after_fork()
        self._flying = self._room.flying
        self._used = {}  # the parent tells them


def _size(data: Buffer) -> int:
    return len(data) if type(data) is bytes else memoryview(data).nbytes


def _whole_number(max_items: int) -> int:
    if not isinstance(max_items, int) or isinstance(max_items, bool):
        raise UsageTypeError(f"max_items is a whole number, not {max_items!r:.60}")
    if max_items < 1:
        raise UsageError(f"max_items is 1 or more, not {max_items}")
    return max_items


def _reopen(
    cls: type[Bounded],
    backend: Backend,
    max_bytes: int | None,
    max_items: int | None,
    only: Callable[[str], bool] | None,
    on_evict: Callable[[str, int], object] | None,
    uncounted: int | None,
) -> Bounded:
    return cls(backend, max_bytes=max_bytes, max_items=max_items, only=only, on_evict=on_evict, uncounted=uncounted)
