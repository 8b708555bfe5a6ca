"""Copies of a remote place in a local one: `Cached(S3Backend("bucket"), FileBackend("copies", sync="normal"))`.

Two modes. Where values change, a copy's ETag goes along with the question, and the remote either says that nothing changed or
sends the new value: one request each time, whose answer is short while nothing changes. No copy is ever answered unasked, so
whatever happens to copies (an old one stored after a newer one, one left behind by a killed process, one of a value that was
deleted and is back) costs at most one body more and never makes an answer wrong: an ETag stands for the same bytes for ever.
On S3, equal bytes have equal ETags; a value that went from A to B and back to A finds its copy of A current, and it is.

Where values never change once written (`append_only=True`), a copy is answered at once.

The local place holds one record for each value (`perdure.wrappers.record`) and nothing that is not in the remote as well. It
may be shared by threads, by processes and by any number of `Cached`, of other buckets too, and be thrown away at any time.

A record that was cut, damaged, edited, or moved there from another key or place is noticed by its checksum of 32 bits, counts
as absent and is replaced. A checksum is no signature: whoever writes there on purpose can make a record that fits. Against
that, protect the folder, or open the dict above with `Signed` or `Encrypted`, whose check comes after this one. A copy is as
secret as its value.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from time import time
from typing import Any

from ..errors import (
    BackendError,
    IntegrityError,
    InvalidKeyError,
    NotFoundError,
    NotModified,
    PerdureError,
    PolicyError,
    UnknownOutcomeError,
    UsageError,
)
from ..protocol import ABSENT, NOT_KEPT, Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, check_key
from .crew import Crew
from .record import Records

__all__ = ["Cached"]

_IN_FLIGHT = 32

_instances: weakref.WeakSet[Cached] = weakref.WeakSet()


def _after_fork() -> None:
    for cached in list(_instances):
        cached._after_fork()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Cached(Backend):
    """A backend that keeps copies of another one's values in a local place. It is the remote in all but the cost of reading.

    Safe for threads, processes and forked children; pickles where both parts do. Writes go to the remote first and are copied
    when it has taken them. With `append_only`, the time of a value written here is by the clock of this machine.
    Trouble with the local place (a full disk, missing permissions) fails no call: it is counted, warned about once, and the
    call goes on as if there were no copies. Trouble with the remote is raised: a copy never stands in for a remote that
    does not answer, unless nothing is ever asked about it (`append_only`).

    Copies are told apart by the `place` of their remote; those of a `memory:` space are good for one handle in one process.
    Two remotes of one place that find other values there (S3 with another `suffix`) need a local place each if append-only.

    Args:
        remote: Where the values are. Closed together with this.
        local: Where the copies are: a quick place of its own, mostly `FileBackend(folder, sync="normal")`. It grows with what
            is read and written; nothing is removed but copies of deleted values. Closed together with this.
        append_only: No value of the remote ever changes or goes once it is written, whoever writes there. Then a copy is
            answered without a request, and this refuses to overwrite and to delete.

    Attributes:
        hits: Values answered from a copy. Approximate where threads count at once, as are the other two.
        misses: Values that the remote had to send.
        troubles: Calls that the local place failed.

    Raises:
        UsageError: `local` is the remote itself, or holds values of a dict, which copies would overwrite.

    Cost: a get is one read of the local place and one request, without a body where nothing changed; where it did, one write to
    the local place more. Append-only: no request for what has a copy. A put or delete is one more write to the local place.
    """

    def __init__(self, remote: Backend, local: Backend, *, append_only: bool = False) -> None:
        self.place = remote.place
        self.shared_by_machines = remote.shared_by_machines
        self.hits = 0
        self.misses = 0
        self.troubles = 0
        self._remote = remote
        self._local = local
        self._append_only = append_only
        self._closed = False
        self._crew = Crew(_IN_FLIGHT)
        self._numbers = count(1)  # of troubles; `next` is a single step, so exactly one is the first
        self._get_copy = local.get
        self._bind()
        self._refuse_values_of_others()
        _instances.add(self)

    @property
    def remote(self) -> Backend:
        """Where the values are."""
        return self._remote

    @property
    def local(self) -> Backend:
        """Where the copies are."""
        return self._local

    def _bind(self) -> None:
        place = self.place
        if place.startswith("memory:"):
            # Its versions are numbered from 1 in every process, and in every space without a name.
            place += f" {os.urandom(16).hex()}"
        self._records = Records(place)
        self._read = self._records.read

    def _refuse_values_of_others(self) -> None:
        near = self._local.place
        if self._local is self._remote or (near == self.place and near != "memory:"):
            raise UsageError("the copies would overwrite the values", place=near, hint="Give the copies a place of their own.")
        try:
            recorded = self._local.recorded()
        except Exception as error:
            self._trouble(error)
            return
        if recorded:
            hint = "Give the copies a place of their own: they would overwrite what is there."
            raise UsageError("this place holds the values of a dict", place=near, hint=hint)

    # ---------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        copy = self._copy(key)
        if copy is None or not self._append_only:
            return self._ask(key, copy, if_none_match)
        if copy.etag == if_none_match:
            raise NotModified(key=key, place=self.place)
        self.hits += 1
        return copy

    def _copy(self, key: str) -> Blob | None:
        """What the local place has of a key, if it is to be believed."""
        try:
            return self._read(key, self._get_copy(key).data)
        except (NotFoundError, IntegrityError):
            return None
        except InvalidKeyError:
            return None  # too long for the local place; if it is none at all, the remote says so
        except Exception as error:
            self._trouble(error)
            return None

    def _ask(self, key: str, copy: Blob | None, theirs: ETag | None) -> Blob:
        """Get a value by one request; `theirs` is the ETag that the caller holds the bytes of."""
        try:
            blob = self._remote.get(key, if_none_match=theirs if copy is None else copy.etag)
        except NotModified as error:
            if copy is None or copy.etag == theirs:
                raise
            self.hits += 1
            # Of what was written here only the remote knows the time.
            return copy if error.modified is None else copy._replace(modified=error.modified)
        except NotFoundError:
            if copy is not None:
                self._drop(key)
            raise
        self.misses += 1
        self._keep(key, blob)
        if blob.etag == theirs:
            raise NotModified(key=key, place=self.place)
        return blob

    def head(self, key: str) -> Meta:
        copy = self._copy(key) if self._append_only else None
        return self._remote.head(key) if copy is None else Meta(key, copy.etag, len(copy.data), copy.modified)

    def contains(self, key: str) -> bool:
        return (self._append_only and self._copy(key) is not None) or self._remote.contains(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        wanted = dict.fromkeys(map(check_key, keys))
        copies = {key: copy for key in wanted if (copy := self._copy(key)) is not None}
        missing = [key for key in wanted if key not in copies]
        calls = [partial(self._fetch, missing)] if missing or not copies else []
        if self._append_only:
            self.hits += len(copies)
            found = copies
        else:
            found = {}
            calls += [partial(self._ask_again, key, copy) for key, copy in copies.items()]
        for answer in self._crew.run(calls):
            found.update(answer)
        return found

    def _fetch(self, keys: list[str]) -> dict[str, Blob]:
        found = self._remote.get_many(keys)
        self.misses += len(found)
        for key, blob in found.items():
            self._keep(key, blob)
        return found

    def _ask_again(self, key: str, copy: Blob) -> dict[str, Blob]:
        try:
            return {key: self._ask(key, copy, None)}
        except NotFoundError:
            return {}

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return self._remote.scan(prefix)

    def keys(self, prefix: str = "") -> Iterator[str]:
        return self._remote.keys(prefix)

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        return self._remote.times(prefix)

    # ---------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        if self._append_only and if_match is not ABSENT:
            raise self._refusal("a value is created and never overwritten", key, "Put it with if_match=ABSENT.")
        data = _bytes(data)
        try:
            etag = self._remote.put(key, data, if_match=if_match)
        except BaseException as error:
            if _is_open(error):
                self._drop(key)
            raise
        self._keep_written(key, data, etag)
        return etag

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        if self._append_only:
            raise self._refusal("values are created and never overwritten", None, "Put each with if_match=ABSENT.")
        values = {check_key(key): _bytes(data) for key, data in items.items()}
        try:
            etags = self._remote.put_many(values)
        except BaseException:
            self._drop(*values)  # some may have been written
            raise
        for key, etag in etags.items():
            self._keep_written(key, values[key], etag)
        return etags

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        if self._append_only:
            raise self._refusal("nothing is deleted", key, "Open the remote by itself where that is meant.")
        try:
            self._remote.delete(key, if_match=if_match)
        except BaseException as error:
            if _is_open(error):
                self._drop(key)
            raise
        self._drop(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        if self._append_only:
            raise self._refusal("nothing is deleted", None, "Open the remote by itself where that is meant.")
        gone = list(dict.fromkeys(map(check_key, keys)))
        try:
            self._remote.delete_many(gone)
        finally:
            self._drop(*gone)

    def _refusal(self, text: str, key: str | None, hint: str) -> PerdureError:
        if self._closed:
            return BackendError("this backend was closed", key=key, place=self.place, hint="Open it again.")
        error = PolicyError(f"this place is append-only here: {text}", key=key, place=self.place, hint=hint)
        error.policy = "append-only"
        return error

    # -------------------------------------------------------------------------------------------------------- the copies

    def _keep_written(self, key: str, data: bytes, etag: ETag) -> None:
        if etag != NOT_KEPT:
            self._keep(key, Blob(data, etag, time()))

    def _keep(self, key: str, blob: Blob) -> None:
        try:
            self._local.put(key, self._records.write(key, blob))
        except InvalidKeyError:
            pass  # too long for the local place: such values are read from the remote
        except Exception as error:
            self._trouble(error)

    def _drop(self, *keys: str) -> None:
        for key in keys:
            try:
                self._local.delete(key)
            except InvalidKeyError:
                pass
            except Exception as error:
                self._trouble(error)

    def _trouble(self, error: Exception) -> None:
        """Note that the local place failed, whatever with: a value that the remote has must not become unreadable by it."""
        if self._closed:
            return  # by us, in the middle of this call
        self.troubles = number = next(self._numbers)
        if number == 1:
            said = str(error) if isinstance(error, PerdureError) else f"{type(error).__name__}: {error}"
            warnings.warn(
                f"{self._local.place} fails to keep copies of {self.place}: {said.removesuffix('.')}. Reading is only slower "
                "without them. Repair that place, or give another; further trouble is counted in `troubles` and not reported.",
                stacklevel=5,
            )

    # --------------------------------------------------------------------------------------------------------- the place

    def recorded(self) -> dict[str, str]:
        return self._remote.recorded()

    def record(self, settings: Mapping[str, str]) -> None:
        self._remote.record(settings)

    def guarantees(self) -> Guarantees:
        promises = self._remote.guarantees()
        how = "answered unasked: no value ever changes" if self._append_only else "each asked about before it is answered"
        return promises._replace(shared=f"{promises.shared}; copies in {self._local.place}, {how}")

    def close(self) -> None:
        self._closed = True
        self._crew.close()
        try:
            self._local.close()
        finally:
            self._remote.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._remote, self._local, self._append_only)

    def _after_fork(self) -> None:
        self._crew.after_fork()
        self._bind()  # what lives in a process is another place from here on


def _bytes(data: Buffer) -> bytes:
    """The same bytes for both places, whatever becomes of a buffer meanwhile."""
    return data if type(data) is bytes else bytes(memoryview(data))  # bytes() alone would take a number for a length


def _is_open(error: BaseException) -> bool:
    """Tell whether a write that failed like this may have taken effect."""
    return isinstance(error, UnknownOutcomeError) or not isinstance(error, PerdureError)


def _reopen(cls: type[Cached], remote: Backend, local: Backend, append_only: bool) -> Cached:
    return cls(remote, local, append_only=append_only)
