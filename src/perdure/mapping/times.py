"""When values were written: the oldest, the newest, and everything together with its time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

from ..keys import SafeStrTuple
from .conditional import ETagOperations
from .core import NAMES_AT_ONCE, Key

V = TypeVar("V")

_time_of = itemgetter(1)


class Times(ETagOperations[V]):
    """The part of a dict that knows times. They are seconds since the epoch by the clock of the place: whole ones on S3.

    The order of values written by machines whose clocks differ is as wrong as those clocks.
    """

    def timestamp(self, key: Key) -> float:
        """When a value was written; `NotFoundError` where it is absent. Cost: one look."""
        return self._head(key).modified

    def keys_and_timestamps(self) -> Iterator[tuple[SafeStrTuple, float]]:
        """Every key with its time. Cost: a listing; no value is read."""
        return ((self._key(path), modified) for path, modified in self.backend.times(self._prefix))

    def values_and_timestamps(self) -> Iterator[tuple[V, float]]:
        """Every value with its time, as `items_and_timestamps`."""
        return ((value, modified) for _, value, modified in self.items_and_timestamps())

    def items_and_timestamps(self) -> Iterator[tuple[SafeStrTuple, V, float]]:
        """Every key with its value and the time of that very value. What is deleted meanwhile is left out.

        Cost: a listing, and the values in batches.
        """
        for path, blob in self._blobs(self.backend.keys(self._prefix)):
            yield self._key(path), self._read(blob.data, path), blob.modified

    def oldest_keys(self, *, max_n: int | None = None) -> list[SafeStrTuple]:
        """The keys in the order of their times, the oldest first.

        Args:
            max_n: How many at most; `None` is all, 0 and less none.

        Cost: a listing; no value is read, and only `max_n` keys are kept while listing.
        """
        return [self._key(path) for path in self._by_time(max_n, newest=False)]

    def newest_keys(self, *, max_n: int | None = None) -> list[SafeStrTuple]:
        """The keys, the newest first; as `oldest_keys`."""
        return [self._key(path) for path in self._by_time(max_n, newest=True)]

    def oldest_values(self, *, max_n: int | None = None) -> list[V]:
        """The values, the oldest first; as `oldest_keys`, and then `max_n` values are read. What is gone then is left out."""
        return self._values_of(self._by_time(max_n, newest=False))

    def newest_values(self, *, max_n: int | None = None) -> list[V]:
        """The values, the newest first; as `oldest_values`."""
        return self._values_of(self._by_time(max_n, newest=True))

    def random_key(self) -> SafeStrTuple | None:
        """Some key, each as likely as any other; `None` where there is none.

        Drawn by the module `random`, so `random.seed` makes it repeatable. Cost: a listing of names.
        """
        from random import choice, random  # 3 ms that most programs never need

        names = iter(self.backend.keys(self._prefix))
        chosen = None
        seen = 0
        while batch := list(islice(names, NAMES_AT_ONCE)):
            seen += len(batch)
            if random() * seen < len(batch):  # as likely as that it comes from this batch, of all that were seen so far
                chosen = choice(batch)
        return None if chosen is None else self._key(chosen)

    def _by_time(self, max_n: int | None, *, newest: bool) -> list[str]:
        from heapq import nlargest, nsmallest

        if max_n is not None and max_n <= 0:
            return []
        times: Any = self.backend.times(self._prefix)
        if max_n is None:
            found = sorted(times, key=_time_of, reverse=newest)
        else:
            found = (nlargest if newest else nsmallest)(max_n, times, key=_time_of)
        return [path for path, _ in found]

    def _values_of(self, paths: list[str]) -> list[V]:
        return [self._read(blob.data, path) for path, blob in self._blobs(iter(paths))]
