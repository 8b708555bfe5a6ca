"""Copies of a remote place in a local one: `Cached(S3Backend("bucket"), FileBackend("copies", sync="normal"))`.

Where values change, a copy's ETag goes along with the question, and the remote either says that nothing changed or sends the
new value: one request each time, whose answer is short while nothing changes. No copy is answered unless the remote says that
its ETag is the current one, so whatever happens to copies (an old one stored after a newer one, one left behind by a killed
process, one of a value that was deleted and is back) costs at most one body more and never makes an answer wrong: an ETag
stands for the same bytes for ever. On S3, equal bytes have equal ETags; a value that went from A to B and back to A finds its
copy of A current, and it is.

With `recheck=`, what the remote said is good for a while (`perdure.wrappers.confirmed`), and meanwhile a change made elsewhere
is not seen. Where values never change once written (`append_only=True`), a copy is answered at once and for ever.

The local place holds one record for each value (`perdure.wrappers.record`) and nothing that is not in the remote as well. It
may be shared by threads, by processes and by any number of `Cached`, of other buckets too, and be thrown away at any time.

A record that was cut, damaged, edited, or moved there from another key or place is noticed by its checksum of 32 bits, counts
as absent and is replaced. A checksum is no signature: whoever writes there on purpose can make a record that fits. Against
that, protect the folder, or open the dict above with `Signed` or `Encrypted`, whose check comes after this one. A copy is as
secret as its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from ..durations import Duration, seconds
from ..errors import BackendError, NotFoundError, NotModified, PerdureError, PolicyError, UnknownOutcomeError
from ..protocol import ABSENT, NOT_KEPT, Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, Use, check_key
from .confirmed import Begun, Confirmed
from .copies import Copies
from .crew import Crew

__all__ = ["Cached"]

_IN_FLIGHT = 32


class Cached(Copies):
    """A backend that keeps copies of another one's values in a local place. It is the remote in all but the cost of reading.

    Safe for threads, processes and forked children; pickles where both parts do. Writes go to the remote first and are copied
    when it has taken them. Where a copy is answered unasked, the time of a value written here is by the clock of this machine.
    Trouble with the local place (a full disk, missing permissions) fails no call: it is counted, warned about once, and the
    call goes on as if there were no copies. (A value that is too large for a bounded local place is no trouble: it has no
    copy.) Trouble with the remote is raised: a copy never stands in for a remote that does not answer, unless nothing is asked
    about it (`append_only`, or for the time of `recheck`).

    Copies are told apart by the `place` of their remote; those of a `memory:` space are good for one handle in one process.
    Two remotes of one place that find other values there (S3 with another `suffix`) need a local place each if append-only.

    Args:
        remote: Where the values are. Closed together with this.
        local: Where the copies are: a quick place of its own, mostly `FileBackend(folder, sync="normal")`. It grows with what
            is read and written, unless it is `Bounded`; copies of deleted values are removed. Closed together with this.
        append_only: No value of the remote ever changes or goes once it is written, whoever writes there. Then a copy is
            answered without a request, and this refuses to overwrite and to delete.
        recheck: How long a copy is answered without a request after the remote last said to this object that it is current. A
            reader then sees what others write and delete that much later, at most; what is written through this object, at
            once. It is kept in the memory of this process, for the last 100,000 keys; a forked child begins anew. In a chain,
            `Cached(Cached(s3, folder), memory, recheck=60)`, the times of all its parts add up.
        absent_for: How long a key without a copy is answered as absent after the remote last said so to this object; what
            others create is seen that much later, at most. As `recheck` in everything else. Writes always ask the remote.
        worth: Called with a value's bytes, from any thread; only values for which it is true are copied. Where it raises, that
            is trouble with the local place. Pickled along with this.

    Attributes:
        hits: Values answered from a copy. Approximate where threads count at once, as are the others.
        misses: Values that the remote had to send.
        unasked: Answers from copies for which the remote was not asked, those of `head` and `contains` included.
        absences: Keys answered as absent without asking.
        troubles: Calls that the local place failed.

    Raises:
        UsageError: `local` is the remote itself, or holds values of a dict, which copies would overwrite; or `recheck` or
            `absent_for` is no duration. That `local` is the remote by another name (of a server, say) is only seen, and raised,
            when the first copy is about to be made; then a write has been carried out, and nothing is lost.

    Cost: a get is one read of the local place and one request, without a body where nothing changed; where it did, one write to
    the local place more. No request for what has a copy, if append-only or confirmed within `recheck`. A put or delete is one
    more write to the local place. The first copy that this object makes costs one more read there.
    """

    def __init__(
        self,
        remote: Backend,
        local: Backend,
        *,
        append_only: bool = False,
        recheck: Duration = 0,
        absent_for: Duration = 0,
        worth: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.shared_by_machines = remote.shared_by_machines
        self.remembers_use = remote.remembers_use
        self.hits = self.misses = self.unasked = self.absences = 0
        self._append_only = append_only
        self._recheck = seconds(recheck, "recheck")
        self._absent_for = seconds(absent_for, "absent_for")
        self._confirmed = Confirmed(0 if append_only else self._recheck, self._absent_for)
        self._crew = Crew(_IN_FLIGHT)
        super().__init__(remote, local, worth)

    # ---------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        copy = self._copy(key)
        if copy is None:
            if self._is_absent(key):
                raise NotFoundError(key=key, place=self.place)
            return self._ask(key, None, if_none_match)
        if not (self._append_only or self._confirmed.has(key, copy.etag)):
            return self._ask(key, copy, if_none_match)
        self.unasked += 1
        if copy.etag == if_none_match:
            raise NotModified(key=key, place=self.place)
        self.hits += 1
        return copy

    def at_hand(self, key: str) -> Blob | None:
        """The copy of a value that `get` would answer without asking; None where there is none. Sends no request."""
        copy = self._copy(key)
        if copy is None or not (self._append_only or self._confirmed.has(key, copy.etag)):
            return None
        self.unasked += 1
        self.hits += 1
        return copy

    def _is_absent(self, key: str) -> bool:
        """Tell whether the remote said so a moment ago."""
        if self._confirmed.on and self._confirmed.has(check_key(key), None):
            self.absences += 1
            return True
        return False

    def _ask(self, key: str, copy: Blob | None, theirs: ETag | None) -> Blob:
        """Get a value by one request; `theirs` is the ETag that the caller holds the bytes of."""
        known = theirs if copy is None else copy.etag
        begun = self._confirmed.begin()
        try:
            blob = self._remote.get(key, if_none_match=known)
        except NotModified as error:
            self._confirmed.settle(begun, key, known or NOT_KEPT)
            if copy is None or copy.etag == theirs:
                raise
            self.hits += 1
            # Of what was written here only the remote knows the time.
            return copy if error.modified is None else copy._replace(modified=error.modified)
        except NotFoundError:
            self._confirmed.settle(begun, key, None)
            if copy is not None:
                self._drop(key)
            raise
        self.misses += 1
        self._learn(begun, key, blob)
        if blob.etag == theirs:
            raise NotModified(key=key, place=self.place)
        return blob

    def head(self, key: str) -> Meta:
        copy = self._copy(key) if self._append_only or self._confirmed.on else None
        if copy is None:
            if self._is_absent(key):
                raise NotFoundError(key=key, place=self.place)
        elif self._append_only or self._confirmed.has(key, copy.etag):
            self.unasked += 1
            return Meta(key, copy.etag, len(copy.data), copy.modified)
        begun = self._confirmed.begin()
        try:
            meta = self._remote.head(key)
        except NotFoundError:
            self._confirmed.settle(begun, key, None)
            if copy is not None:
                self._drop(key)
            raise
        self._confirmed.settle(begun, key, meta.etag)
        return meta

    def contains(self, key: str) -> bool:
        if self._confirmed.on:
            return super().contains(key)  # by `head`, which tells what to confirm
        if self._append_only and self._copy(key) is not None:
            self.unasked += 1
            return True
        return self._remote.contains(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        wanted = dict.fromkeys(map(check_key, keys))
        copies = {key: copy for key in wanted if (copy := self._copy(key)) is not None}
        absent = {key for key in wanted if key not in copies and self._is_absent(key)}
        missing = [key for key in wanted if key not in copies and key not in absent]
        has = self._confirmed.has
        found = {key: copy for key, copy in copies.items() if self._append_only or has(key, copy.etag)}
        self.hits += len(found)
        self.unasked += len(found)
        calls = [partial(self._fetch, missing)] if missing or not (copies or absent) else []
        calls += [partial(self._ask_again, key, copy) for key, copy in copies.items() if key not in found]
        for answer in self._crew.run(calls):
            found.update(answer)
        return found

    def _fetch(self, keys: list[str]) -> dict[str, Blob]:
        begun = self._confirmed.begin()
        found = self._remote.get_many(keys)
        self.misses += len(found)
        for key in keys:
            if key in found:
                self._learn(begun, key, found[key])
            else:
                self._confirmed.settle(begun, key, None)
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

    def uses(self, prefix: str = "") -> Iterator[Use]:
        return self._remote.uses(prefix)

    def forgets(self, key: str) -> str:
        return self._remote.forgets(key)

    def mark_used(self, times: Mapping[str, float]) -> None:
        self._remote.mark_used(times)

    def forget(self, key: str) -> None:
        """Let the next `get` of a key ask the remote, whatever was confirmed; a remote that is a `Cached` asks its own, too.

        Args:
            key: Such as `"a/b"`; may be absent.

        Raises:
            InvalidKeyError: It is no key.

        Cost: nothing, but one write to the local place where it is append-only, whose copies are answered unasked.
        """
        self._confirmed.forget(check_key(key))
        if self._append_only:
            self._drop(key)
        if isinstance(self._remote, Cached):
            self._remote.forget(key)

    # ---------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        if self._append_only and if_match is not ABSENT:
            raise self._refusal("a value is created and never overwritten", key, "Put it with if_match=ABSENT.")
        data = _bytes(data)
        begun = self._confirmed.begin(key)
        try:
            etag = self._remote.put(key, data, if_match=if_match)
        except BaseException as error:
            self._confirmed.forget(key)  # also what was heard meanwhile: whoever lost has to see what he lost to
            if _is_open(error):
                self._drop(key)
            raise
        self._learn_written(begun, key, data, etag)
        return etag

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        if self._append_only:
            raise self._refusal("values are created and never overwritten", None, "Put each with if_match=ABSENT.")
        values = {check_key(key): _bytes(data) for key, data in items.items()}
        begun = self._confirmed.begin(*values)
        try:
            etags = self._remote.put_many(values)
        except BaseException:
            self._confirmed.forget(*values)
            self._drop(*values)  # some may have been written
            raise
        for key, etag in etags.items():
            self._learn_written(begun, key, values[key], etag)
        return etags

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        if self._append_only:
            raise self._refusal("nothing is deleted", key, "Open the remote by itself where that is meant.")
        begun = self._confirmed.begin(key)
        try:
            self._remote.delete(key, if_match=if_match)
        except BaseException as error:
            self._confirmed.forget(key)
            if _is_open(error):
                self._drop(key)
            raise
        self._drop(key)
        self._confirmed.settle(begun, key, None)

    def delete_many(self, keys: Iterable[str]) -> None:
        if self._append_only:
            raise self._refusal("nothing is deleted", None, "Open the remote by itself where that is meant.")
        gone = list(dict.fromkeys(map(check_key, keys)))
        begun = self._confirmed.begin(*gone)
        try:
            self._remote.delete_many(gone)
        except BaseException:
            self._confirmed.forget(*gone)
            raise
        finally:
            self._drop(*gone)
        for key in gone:
            self._confirmed.settle(begun, key, None)

    def _refusal(self, text: str, key: str | None, hint: str) -> PerdureError:
        if self._closed:
            return BackendError("this backend was closed", key=key, place=self.place, hint="Open it again.")
        error = PolicyError(f"this place is append-only here: {text}", key=key, place=self.place, hint=hint)
        error.policy = "append-only"
        return error

    # -------------------------------------------------------------------------------------------------------- the copies

    def _learn(self, begun: Begun, key: str, blob: Blob) -> None:
        """Keep what the remote sent, and that it is current."""
        if not self._apart:
            self._require_apart(key, blob)
        if self._is_worth(key, blob.data):
            self._keep(key, blob)
            self._confirmed.settle(begun, key, blob.etag)
        else:
            self._confirmed.forget(key)

    def _learn_written(self, begun: Begun, key: str, data: bytes, etag: ETag) -> None:
        if not self._apart:
            self._require_apart(key, Blob(data, etag, 0.0))
        if self._is_worth(key, data):
            self._keep_written(key, data, etag)
            self._confirmed.settle(begun, key, etag)
        else:
            self._confirmed.forget(key)

    # --------------------------------------------------------------------------------------------------------- the place

    def recorded(self) -> dict[str, str]:
        return self._remote.recorded()

    def record(self, settings: Mapping[str, str]) -> None:
        self._remote.record(settings)

    def guarantees(self) -> Guarantees:
        promises = self._remote.guarantees()
        how = "answered unasked: no value ever changes" if self._append_only else "each asked about before it is answered"
        if self._recheck and not self._append_only:
            how = f"each answered unasked for {self._recheck:g} s after it was found current"
        return promises._replace(shared=f"{promises.shared}; copies in {self._local.place}, {how}")

    def close(self) -> None:
        self._closed = True
        self._confirmed.close()  # so that every call asks the remote, which says that it was closed
        self._crew.close()
        try:
            self._local.close()
        finally:
            self._remote.close()

    def __reduce__(self) -> tuple[Any, ...]:
        options = {"recheck": self._recheck, "absent_for": self._absent_for, "worth": self._worth}
        return _reopen, (type(self), self._remote, self._local, self._append_only, options)

    def _after_fork(self) -> None:
        super()._after_fork()
        self._crew.after_fork()
        self._confirmed.after_fork()


def _bytes(data: Buffer) -> bytes:
    """The same bytes for both places, whatever becomes of a buffer meanwhile."""
    return data if type(data) is bytes else bytes(memoryview(data))  # bytes() alone would take a number for a length


def _is_open(error: BaseException) -> bool:
    """Tell whether a write that failed like this may have taken effect."""
    return isinstance(error, UnknownOutcomeError) or not isinstance(error, PerdureError)


def _reopen(
    cls: type[Cached], remote: Backend, local: Backend, append_only: bool, options: Mapping[str, Any] = MappingProxyType({})
) -> Cached:
    return cls(remote, local, append_only=append_only, **options)
