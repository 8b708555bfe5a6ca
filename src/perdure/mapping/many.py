"""Several items in one call, the quickest way the backend has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, TypeVar

from ..codecs.entry import holds_value
from ..keys import SafeStrTuple, join_key
from .core import NAMES_AT_ONCE, VALUES_AT_ONCE, Core, Key
from .flags import DELETE_CURRENT, KEEP_CURRENT
from .progress import Progress, reporting

V = TypeVar("V")
K = TypeVar("K", bound=Key)


class ManyItems(Core[V]):
    """The part of a dict that reads, writes and deletes many items at once.

    `progress=True` shows a bar (by tqdm: `pip install 'perdure[progress]'`), a function is called with the number of items
    done and of all items. The work is then done in batches of up to 1000, and so in several transactions where the
    backend has any.
    """

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Write many items: a mapping, pairs of key and value, or keywords. As `set_many`."""
        self.set_many(chain(pairs_of(other), more.items()))

    def get_many(self, keys: Iterable[K], *, progress: Progress = False) -> dict[K, V]:
        """Read several values at once, concurrently where that helps.

        Args:
            keys: Such as `["a", ("b", "c")]`.
            progress: See the class.

        Returns:
            The values under the keys as they were given (a list, which no dict takes, as a `SafeStrTuple`); absent keys are
            missing.

        Cost: on S3 one request for each key, 32 at a time; on SQLite one statement for 500 keys.
        """
        paths = {(key if type(key) is not list else SafeStrTuple(key)): self._prefix + join_key(key) for key in keys}
        wanted = list(dict.fromkeys(paths.values()))
        found: dict[str, Any] = {}
        with reporting(progress, len(wanted), "get") as report:
            for batch in _cut(wanted, VALUES_AT_ONCE, progress):
                found |= self._values(batch)
                report(len(batch))
        return {key: found[path] for key, path in paths.items() if path in found}  # type: ignore[misc]  # a list became a key

    def _values(self, paths: list[str]) -> dict[str, V]:
        blobs = self.backend.get_many(paths)
        found = ((path, blobs.pop(path).data) for path in paths if path in blobs)
        return {path: self._read(data, path) for path, data in found if holds_value(data)}

    def set_many(self, items: Mapping[Any, V] | Iterable[tuple[Any, V]], *, progress: Progress = False) -> None:
        """Write several items at once: concurrently on S3, in one transaction on SQLite, with few fsyncs in a folder.

        Each item is written whole or not at all; the whole need not be. Every key and value is checked and encoded before
        the first is written, so bad input changes nothing. Jokers are allowed. In an append-only dict the items are
        added one by one, up to the first that is there already.
        """
        puts: dict[str, bytes] = {}
        deletes: dict[str, None] = {}
        for key, value in pairs_of(items):
            path = self._prefix + join_key(key)
            if value is DELETE_CURRENT:
                self._require_mutable(path)
                puts.pop(path, None)
                deletes[path] = None
            elif value is not KEEP_CURRENT:
                puts[path] = self._spell(value, path)
                deletes.pop(path, None)
        with reporting(progress, len(puts), "set") as report:
            for batch in _cut(list(puts), NAMES_AT_ONCE, progress):
                if self.append_only:
                    for path in batch:
                        self._set(path, puts[path])
                else:
                    self.backend.put_many({path: puts[path] for path in batch})
                report(len(batch))
        if deletes:
            self.backend.delete_many(deletes)

    def delete_many(self, keys: Iterable[Key], *, progress: Progress = False) -> None:
        """Delete several keys at once; absent ones are fine.

        Cost: on S3 one request for each key, 32 at a time; in a folder one fsync for each folder; on SQLite one transaction.
        """
        self._require_mutable()
        paths = [self._prefix + join_key(key) for key in keys]
        with reporting(progress, len(paths), "delete") as report:
            for batch in _cut(paths, NAMES_AT_ONCE, progress):
                self.backend.delete_many(batch)
                report(len(batch))

    def clear(self, *, progress: Progress = False) -> None:
        """Delete every key of this dict; of a view, those under its prefix. Keys added meanwhile may stay.

        Cost: a listing, and the deletes in batches. Files and objects that are not ours are left alone.
        """
        self._require_mutable()
        paths = self.backend.keys(self._prefix)
        with reporting(progress, None, "clear") as report:
            while batch := list(islice(paths, NAMES_AT_ONCE)):
                self.backend.delete_many(batch)
                report(len(batch))


def _cut(paths: list[str], size: int, progress: Progress) -> Iterator[list[str]]:
    """In batches where somebody wants to see them go by, else all at once, which is what backends are quickest at."""
    size = len(paths) or 1 if progress is False else size
    return (paths[start : start + size] for start in range(0, len(paths), size))


def pairs_of(items: Any) -> Iterable[tuple[Any, Any]]:
    """The pairs of what `dict.update` takes: a mapping, anything with `keys`, or pairs."""
    if isinstance(items, Mapping):
        return items.items()
    if hasattr(items, "keys"):
        return ((key, items[key]) for key in items.keys())  # noqa: SIM118  (as dict.update: what has keys() need not iterate over them)
    return items  # type: ignore[no-any-return]
