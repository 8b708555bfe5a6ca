"""Values that are gone some time after they were written: `Expiring(backend, "7 d")`.

When a value was written is what its place says, so an end of life needs no byte more, holds for everybody who opens the place
with the same `ttl`, and may be another one tomorrow. Reading removes nothing: whoever misses a value mostly writes it anew, and
the write replaces the old one; what nobody asks for again goes by `prune`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from math import inf
from typing import Any, Final

from ..durations import Duration, seconds
from ..errors import IntegrityError, NotFoundError, NotModified, PreconditionError, UsageError
from ..protocol import ABSENT, Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, Use
from .crew import Crew

__all__ = ["Expiring"]

_DAY: Final = 86400.0
_IN_FLIGHT: Final = 32
_BATCH: Final = 512


class Expiring(Backend):
    """A backend that treats values as absent from `ttl` after they were written. Writing a value anew begins its time anew.

    Safe for threads, processes and forked children, as the backend is; pickles where the backend and the clock do.

    A condition sees what a reader sees: a create succeeds over an expired value, by a swap from exactly that version, so that
    of several creators one wins; an ETag of an expired value matches nothing. On S3, where equal bytes have equal ETags, a
    swap cannot tell an expired value from one with the same bytes that somebody wrote a moment ago; who must notice that
    puts something unique into the value.

    Time is what the clock of this machine and that of the place say: a value lives longer by as much as the place's is
    ahead of ours, and shorter by as much as it is behind; on S3 times are whole seconds. One that seems to be written more
    than a day from now is not shown either, as it would stay for as long as that clock was wrong, but `prune` leaves it, since
    it may be ours that is.

    Put it outside of other wrappers: `Expiring(Cached(...), ttl)`. Inside, copies that are answered unasked live longer.

    Args:
        backend: Where the values are. Closed together with this.
        ttl: How long they live, more than 0.
        clock: Tells seconds since the epoch. Default: `time.time`.

    Raises:
        UsageError: `ttl` is no duration, or 0.

    Cost: reading costs what it does without, but `contains` is a `head`, `keys` needs what `times` does, and a `get` with
    `if_none_match` a `head` more where the place does not tell the time of what was not modified. A put or delete from an ETag
    is one `head` more; a create over an expired value a `head` and a swap.
    """

    def __init__(self, backend: Backend, ttl: Duration, *, clock: Callable[[], float] = time.time) -> None:
        self._ttl = seconds(ttl, "ttl")
        if not self._ttl:
            raise UsageError("ttl is more than 0", place=backend.place, hint="Values that are not to live at all go to null:.")
        self.place = backend.place
        self.shared_by_machines = backend.shared_by_machines
        self.remembers_use = backend.remembers_use
        self._backend = backend
        self._clock = clock

    @property
    def backend(self) -> Backend:
        """Where the values are, expired ones included."""
        return self._backend

    @property
    def ttl(self) -> float:
        """How long values live, in seconds."""
        return self._ttl

    def _lives(self, modified: float) -> bool:
        return -_DAY <= self._clock() - modified < self._ttl

    def _absent(self, key: str) -> NotFoundError:
        return NotFoundError(key=key, place=self.place)

    # ---------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        try:
            blob = self._backend.get(key, if_none_match=if_none_match)
        except NotModified as error:
            modified = error.modified
            if modified is None:
                meta = self._backend.head(key)
                if meta.etag != if_none_match:  # by now
                    return self.get(key, if_none_match=if_none_match)
                modified = meta.modified
            if self._lives(modified):
                raise
            raise self._absent(key) from None
        if self._lives(blob.modified):
            return blob
        raise self._absent(key)

    def head(self, key: str) -> Meta:
        meta = self._backend.head(key)
        if self._lives(meta.modified):
            return meta
        raise self._absent(key)

    def contains(self, key: str) -> bool:
        return super().contains(key)  # by `head`, which tells the time

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        return {key: blob for key, blob in self._backend.get_many(keys).items() if self._lives(blob.modified)}

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return (meta for meta in self._backend.scan(prefix) if self._lives(meta.modified))

    def keys(self, prefix: str = "") -> Iterator[str]:
        return (key for key, modified in self._backend.times(prefix) if self._lives(modified))

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        return ((key, modified) for key, modified in self._backend.times(prefix) if self._lives(modified))

    # ---------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        if if_match is ABSENT:
            return self._create(key, data)
        if if_match is not None:
            self._require(key, if_match)
        return self._backend.put(key, data, if_match=if_match)

    def _create(self, key: str, data: Buffer) -> ETag:
        while True:  # again only where somebody else came in between
            try:
                return self._backend.put(key, data, if_match=ABSENT)
            except PreconditionError:
                try:
                    meta = self._backend.head(key)
                except NotFoundError:
                    continue
                if self._lives(meta.modified):
                    raise
            try:
                return self._backend.put(key, data, if_match=meta.etag)
            except PreconditionError:
                continue

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        if if_match is not None:
            self._require(key, if_match)
        self._backend.delete(key, if_match=if_match)

    def _require(self, key: str, etag: ETag) -> None:
        """What only a `head` can tell: that this version lives. Which is the current one, the write itself decides."""
        try:
            meta = self._backend.head(key)
        except NotFoundError:
            meta = None
        if meta is None or meta.etag != etag or not self._lives(meta.modified):
            text = "the value is absent, expired, or another version by now"
            raise PreconditionError(text, key=key, place=self.place, hint="Read it again.")

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        return self._backend.put_many(items)

    def delete_many(self, keys: Iterable[str]) -> None:
        self._backend.delete_many(keys)

    def prune(self) -> int:
        """Remove the values that are expired, each by a delete of exactly that version, so that none written anew goes.

        Several may do so at once, and it may be stopped at any time.

        Returns:
            How many were removed by this call.

        Raises:
            IntegrityError: A value is damaged, so that its version cannot be told. All others are removed before.
            UnknownOutcomeError, BackendError: As `delete`. The first of them ends it.

        Cost: one listing with times, and for each expired value one `head` and one conditional delete, 32 at a time.
        """
        old = (key for key, modified in self._backend.times() if self._clock() - modified >= self._ttl)
        crew = Crew(_IN_FLIGHT)
        removed = 0
        damaged: list[IntegrityError] = []
        try:
            while batch := list(islice(old, _BATCH)):
                removed += sum(crew.run([partial(self._remove, key, damaged) for key in batch]))
        finally:
            crew.close()
        if damaged:
            raise damaged[0]
        return removed

    def _remove(self, key: str, damaged: list[IntegrityError]) -> bool:
        try:
            # The listing may be minutes old, and on S3 the ETag in it that of equal bytes which were written since.
            meta = self._backend.head(key)
            if self._clock() - meta.modified >= self._ttl:
                self._backend.delete(key, if_match=meta.etag)
                return True
        except (NotFoundError, PreconditionError):
            pass  # somebody else was first
        except IntegrityError as error:
            damaged.append(error)
        return False

    # --------------------------------------------------------------------------------------------------------- the place

    def uses(self, prefix: str = "") -> Iterator[Use]:
        return self._backend.uses(prefix)  # expired values included, as they take room

    def forgets(self, key: str) -> str:
        if self._ttl == inf:
            return self._backend.forgets(key)
        return f"it forgets what nobody has written for {self._ttl:g} s"

    def mark_used(self, times: Mapping[str, float]) -> None:
        self._backend.mark_used(times)

    def recorded(self) -> dict[str, str]:
        return self._backend.recorded()

    def record(self, settings: Mapping[str, str]) -> None:
        self._backend.record(settings)

    def guarantees(self) -> Guarantees:
        promises = self._backend.guarantees()
        return promises._replace(durable=f"{promises.durable}; each value for {self._ttl:g} s after it was written")

    def close(self) -> None:
        self._backend.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._backend, self._ttl, self._clock)


def _reopen(cls: type[Expiring], backend: Backend, ttl: float, clock: Callable[[], float]) -> Expiring:
    return cls(backend, ttl, clock=clock)
