"""An eye on every call: `Observed(backend, observer)` tells a function of yours what was asked, how long it took, what came."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple, ParamSpec, TypeVar

from ..errors import NotFoundError, NotModified, PreconditionError
from ..protocol import Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, Use

__all__ = ["Call", "Observed"]

_log = logging.getLogger("perdure.wrappers")

P = ParamSpec("P")
T = TypeVar("T")


class Call(NamedTuple):
    """One call, after it ended.

    Attributes:
        operation: The method of `perdure.protocol.Backend`: `"get"`, `"put_many"`, `"scan"`...
        key: Its key, or the prefix of a listing; `None` where there are several or none.
        seconds: How long the place took. Of a listing: without what was done between its steps.
        size: Bytes of the values that were read or written; 0 where none were.
        outcome: `"ok"`, `"absent"`, `"not modified"`, `"conflict"`, or the name of the class of any other error.
        values: How many values it found, wrote, removed or listed; 0 where it failed, but for a listing, which got so far.
    """

    operation: str
    key: str | None
    seconds: float
    size: int
    outcome: str
    values: int


class Observed(Backend):
    """A backend that reports each call that may reach its place, once it ended. It answers what the backend answers.

    Safe for threads, processes and forked children, as the backend is; pickles where the backend and the observer do.

    Args:
        backend: What does the work. Closed together with this.
        observer: Called with a `Call`, by the thread that made the call, before it gets its answer; so it has to be quick, and
            safe for threads. What it raises is logged once, with its traceback, by the logger `perdure.wrappers`, and
            fails nothing. It must not call this backend: that would be one more call to report, and so on.

    `contains` that finds nothing is "absent". A listing is reported when it ends; one that is given up half-way, along with the
    next call or when this is closed, as the garbage collector may be who ends it; one that was never begun, not at all.

    Cost: two looks at a clock and what the observer takes; for each step of a listing two looks at a clock.
    """

    def __init__(self, backend: Backend, observer: Callable[[Call], object]) -> None:
        self.place = backend.place
        self.shared_by_machines = backend.shared_by_machines
        self.remembers_use = backend.remembers_use
        self._backend = backend
        self._observer = observer
        self._late: deque[Call] = deque()
        self._failures = count(1)  # `next` is a single step, so exactly one is the first

    @property
    def backend(self) -> Backend:
        """What does the work."""
        return self._backend

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        blob, took = self._timed("get", key, self._backend.get, key, if_none_match=if_none_match)
        self._report(Call("get", key, took, len(blob.data), "ok", 1))
        return blob

    def head(self, key: str) -> Meta:
        meta, took = self._timed("head", key, self._backend.head, key)
        self._report(Call("head", key, took, 0, "ok", 1))
        return meta

    def contains(self, key: str) -> bool:
        there, took = self._timed("contains", key, self._backend.contains, key)
        self._report(Call("contains", key, took, 0, "ok" if there else "absent", 1 if there else 0))
        return there

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        etag, took = self._timed("put", key, self._backend.put, key, data, if_match=if_match)
        self._report(Call("put", key, took, _size(data), "ok", 1))
        return etag

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        _, took = self._timed("delete", key, self._backend.delete, key, if_match=if_match)
        self._report(Call("delete", key, took, 0, "ok", 1))

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        found, took = self._timed("get_many", None, self._backend.get_many, keys)
        self._report(Call("get_many", None, took, sum(len(blob.data) for blob in found.values()), "ok", len(found)))
        return found

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        etags, took = self._timed("put_many", None, self._backend.put_many, items)
        self._report(Call("put_many", None, took, sum(_size(items[key]) for key in etags), "ok", len(etags)))
        return etags

    def delete_many(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        _, took = self._timed("delete_many", None, self._backend.delete_many, keys)
        self._report(Call("delete_many", None, took, 0, "ok", len(keys)))

    def forgets(self, key: str) -> str:
        return self._backend.forgets(key)

    def mark_used(self, times: Mapping[str, float]) -> None:
        _, took = self._timed("mark_used", None, self._backend.mark_used, times)
        self._report(Call("mark_used", None, took, 0, "ok", len(times)))

    def recorded(self) -> dict[str, str]:
        settings, took = self._timed("recorded", None, self._backend.recorded)
        self._report(Call("recorded", None, took, 0, "ok", 0))
        return settings

    def record(self, settings: Mapping[str, str]) -> None:
        _, took = self._timed("record", None, self._backend.record, settings)
        self._report(Call("record", None, took, 0, "ok", 0))

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return self._listing("scan", prefix, self._backend.scan)

    def keys(self, prefix: str = "") -> Iterator[str]:
        return self._listing("keys", prefix, self._backend.keys)

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        return self._listing("times", prefix, self._backend.times)

    def uses(self, prefix: str = "") -> Iterator[Use]:
        return self._listing("uses", prefix, self._backend.uses)

    def guarantees(self) -> Guarantees:
        return self._backend.guarantees()

    def close(self) -> None:
        try:
            self._backend.close()
        finally:
            self._report_late()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._backend, self._observer)

    # ---------------------------------------------------------------------------------------------------------- telling

    def _timed(
        self, operation: str, key: str | None, call: Callable[P, T], *args: P.args, **options: P.kwargs
    ) -> tuple[T, float]:
        begun = perf_counter()
        try:
            answer = call(*args, **options)
        except BaseException as error:
            self._report(Call(operation, key, perf_counter() - begun, 0, _outcome(error), 0))
            raise
        return answer, perf_counter() - begun

    def _listing(self, operation: str, prefix: str, listing: Callable[[str], Iterator[T]]) -> Iterator[T]:
        entries, took = self._timed(operation, prefix, listing, prefix)  # which says at once what is wrong with the prefix
        self._report_late()
        return self._steps(operation, prefix, entries, took)

    def _steps(self, operation: str, prefix: str, entries: Iterator[T], took: float) -> Iterator[T]:
        number = 0
        while True:
            begun = perf_counter()
            try:
                entry = next(entries)
            except StopIteration:
                break
            except BaseException as error:
                self._report(Call(operation, prefix, took + perf_counter() - begun, 0, _outcome(error), number))
                raise
            took += perf_counter() - begun
            number += 1
            try:
                yield entry
            except GeneratorExit:
                # Not now: it may be the garbage collector that ends it, while this thread holds a lock that the observer needs.
                self._late.append(Call(operation, prefix, took, 0, "ok", number))
                raise
        self._report(Call(operation, prefix, took + perf_counter() - begun, 0, "ok", number))

    def _report(self, call: Call) -> None:
        if self._late:
            self._report_late()
        self._tell(call)

    def _tell(self, call: Call) -> None:
        try:
            self._observer(call)
        except Exception:
            if next(self._failures) == 1:
                text = "the observer of %s failed after %s; if it fails again, that is not logged"
                _log.exception(text, self.place, call.operation)

    def _report_late(self) -> None:
        while True:
            try:
                call = self._late.popleft()
            except IndexError:
                return
            self._tell(call)


def _size(data: Buffer) -> int:
    return len(data) if isinstance(data, (bytes, bytearray)) else memoryview(data).nbytes


def _outcome(error: BaseException) -> str:
    if isinstance(error, NotFoundError):
        return "absent"
    if isinstance(error, NotModified):
        return "not modified"
    return "conflict" if isinstance(error, PreconditionError) else type(error).__name__
