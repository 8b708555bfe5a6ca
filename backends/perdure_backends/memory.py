"""Bytes in this process's memory: `memory:` is private, `memory:NAME` is one shared space for each name."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import NoReturn, Self

from perdure.errors import BackendError, NotFoundError, NotModified, PolicyError, PreconditionError
from perdure.protocol import ABSENT, Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, Use, check_key, check_prefix


class _Space:
    """What all backends of one name share."""

    __slots__ = ("__weakref__", "blobs", "lock", "used", "versions")

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}
        self.used: dict[str, float] = {}  # when values were read, as far as somebody said so; never of a key that is absent
        self.lock = threading.RLock()  # re-entrant for signal handlers and finalizers
        self.versions = count(1)  # never goes back, so an ETag is never used twice, deletes included


_named: dict[str, _Space] = {}
_spaces: weakref.WeakSet[_Space] = weakref.WeakSet()


def _renew_locks() -> None:
    # A fork copies a lock that another thread of the parent may hold just now, and nobody here would release it.
    for space in list(_spaces):
        space.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class MemoryBackend(Backend):
    """Values in a dict under one lock. Thread-safe; gone with the process; a forked child goes on with its own copy.

    Args:
        name: Backends of one name share one space; `""` is a space of its own.
    """

    remembers_use = True

    def __init__(self, name: str = "") -> None:
        self.place = f"memory:{name}"
        self._space = _named.setdefault(name, _Space()) if name else _Space()
        _spaces.add(self._space)
        self._blobs = self._space.blobs
        self._closed = False

    @classmethod
    def from_url(cls, location: str) -> Self:
        """Open `memory:NAME`."""
        return cls(location.strip("/"))

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        try:
            blob = self._blobs[key]
        except (KeyError, TypeError):
            self._absent(key)
        if blob.etag == if_none_match:
            raise NotModified(key=key, place=self.place, modified=blob.modified)
        return blob

    def _absent(self, key: str) -> NoReturn:
        self._check_open()
        raise NotFoundError(key=check_key(key), place=self.place) from None

    def head(self, key: str) -> Meta:
        data, etag, modified = self.get(key)
        return Meta(key, etag, len(data), modified)

    def contains(self, key: str) -> bool:
        try:
            if key in self._blobs:
                return True
        except TypeError:
            pass  # an unhashable key: refused below
        self._check_open()
        check_key(key)
        return False

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._check_open()
        check_key(key)
        if not isinstance(data, bytes):
            data = bytes(memoryview(data))  # bytes() alone would take a number for a length
        blobs, lock = self._space.blobs, self._space.lock
        blob = Blob(data, ETag(str(next(self._space.versions))), time.time())
        # No `with`: from Python 3.14 on Ctrl-C can strike on entering it. And no call between a look and the change that
        # depends on it: after calls come signal handlers, which may write; their own thread's lock does not keep them out.
        try:
            lock.acquire()
            if if_match is None:
                blobs[key] = blob
                return blob.etag
            if if_match is ABSENT:
                if key not in blobs:
                    blobs[key] = blob
                    return blob.etag
            elif key in blobs and blobs[key].etag == if_match:
                blobs[key] = blob
                return blob.etag
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # Ctrl-C struck before it was acquired
        raise self._lost(key, if_match)

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        self._check_open()
        check_key(key)
        blobs, used, lock = self._space.blobs, self._space.used, self._space.lock
        try:
            lock.acquire()
            if key in blobs and (if_match is None or blobs[key].etag == if_match):
                if key in used:
                    del used[key]
                del blobs[key]
                return
            if if_match is None:
                return
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass
        raise self._lost(key, if_match)

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        check_prefix(prefix)
        self._check_open()
        # copy() is atomic. A list of items is not: each is a new tuple, which may start the garbage collector, and that lets in
        # finalizers and, through them, other threads.
        found = [item for item in self._space.blobs.copy().items() if item[0].startswith(prefix)]
        return (Meta(key, blob.etag, len(blob.data), blob.modified) for key, blob in found)

    def keys(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        self._check_open()
        return iter([key for key in list(self._space.blobs) if key.startswith(prefix)])

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        check_prefix(prefix)
        self._check_open()
        return iter([(key, blob.modified) for key, blob in self._space.blobs.copy().items() if key.startswith(prefix)])

    def uses(self, prefix: str = "") -> Iterator[Use]:
        check_prefix(prefix)
        self._check_open()
        marked = self._space.used.get
        found = [item for item in self._space.blobs.copy().items() if item[0].startswith(prefix)]
        return iter([Use(key, len(blob.data), max(blob.modified, marked(key, 0.0))) for key, blob in found])

    def mark_used(self, times: Mapping[str, float]) -> None:
        self._check_open()
        for key in times:
            check_key(key)
        blobs, used, lock = self._space.blobs, self._space.used, self._space.lock
        try:
            lock.acquire()
            for key, when in times.items():
                last = used.get(key, 0.0)
                if when > last and key in blobs:  # as in put, no call may come between this and the next line
                    used[key] = when
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        self._check_open()
        blobs = self._space.blobs
        found = ((check_key(key), blobs.get(key)) for key in keys)
        return {key: blob for key, blob in found if blob is not None}

    def close(self) -> None:
        self._closed = True
        self._blobs = {}  # reads look here first and so need no check of their own; writes under way still reach the space

    def guarantees(self) -> Guarantees:
        return Guarantees(
            durable="nothing: gone when the process ends",
            shared="threads of this process" + (" that open the same name" if self.place != "memory:" else ""),
            swap="one lock",
            limits="keys of 253 characters a segment; values as memory allows",
        )

    def __reduce__(self) -> NoReturn:
        raise PolicyError(
            "a memory backend cannot be pickled: another process would see a copy, not the data",
            place=self.place,
            hint="Use a folder, sqlite: or s3: to share between processes.",
        )

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this backend was closed", place=self.place, hint="Open it again.")

    def _lost(self, key: str, condition: Condition) -> PreconditionError:
        if condition is ABSENT:
            return PreconditionError("the key exists already", key=key, place=self.place)
        text = "the value is absent, or another version by now"
        return PreconditionError(text, key=key, place=self.place, hint="Read it again.")
