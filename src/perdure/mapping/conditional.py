"""ETag operations: read, write, insert and delete on the condition that a value is, or is not, the one already seen.

Three rules make up all of them:

* The condition compares the expected ETag with the actual one; an absent key has the ETag `ITEM_NOT_AVAILABLE`. Where it
  does not hold nothing is changed, and nothing is raised, in an append-only dict either.
* A write replaces exactly the version reported as `actual_etag`, and `resulting_etag` is what that write returned: nobody
  slips in between, in any backend. Whoever loses a race looks again and decides again.
* The value that is there is fetched, and decoded, only where it is answered: not with `NEVER_RETRIEVE`, not with
  `IF_ETAG_CHANGED` when the caller expected its ETag, and not where it was just replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

from ..errors import NotFoundError, NotModified, PreconditionError, UsageError, UsageTypeError
from ..keys import join_key
from ..protocol import ABSENT, NOT_KEPT, Condition, ETag, Meta
from .core import Core, Key
from .flags import (
    ALWAYS_RETRIEVE,
    ANY_ETAG,
    DELETE_CURRENT,
    ETAG_HAS_CHANGED,
    ETAG_IS_THE_SAME,
    IF_ETAG_CHANGED,
    ITEM_NOT_AVAILABLE,
    KEEP_CURRENT,
    NEVER_RETRIEVE,
    VALUE_NOT_RETRIEVED,
    DeleteCurrentFlag,
    ETagConditionFlag,
    ItemNotAvailableFlag,
    KeepCurrentFlag,
    RetrieveValueFlag,
    ValueNotRetrievedFlag,
)
from .results import ConditionalOperationResult, ETagIfExists, OperationResult

V = TypeVar("V")
_Found: TypeAlias = bytes | ItemNotAvailableFlag | ValueNotRetrievedFlag  # the stored bytes, or why there are none


class ETagOperations(Core[V]):
    """The part of a dict that works with ETags. Every method is safe across threads and processes.

    The keyword arguments they have in common:

    * `condition`: `ANY_ETAG`, `ETAG_IS_THE_SAME` or `ETAG_HAS_CHANGED`.
    * `expected_etag`: the ETag the caller has seen, or `ITEM_NOT_AVAILABLE` for "the key was absent".
    * `retrieve_value`: `ALWAYS_RETRIEVE`, `IF_ETAG_CHANGED` or `NEVER_RETRIEVE`.

    All of them raise `InvalidKeyError` for an illegal key, `UsageError` for an unknown flag, `CodecError` where a value has
    to be read or written and cannot be, and what the backend raises, before anything is changed, except
    `UnknownOutcomeError`, which says so.
    """

    def get_item_if(
        self,
        key: Key,
        *,
        condition: ETagConditionFlag,
        expected_etag: ETagIfExists,
        retrieve_value: RetrieveValueFlag = IF_ETAG_CHANGED,
    ) -> ConditionalOperationResult[V]:
        """Tell a value's ETag, whether the condition holds, and, as asked for, the value. Changes nothing.

        The value is answered where the condition fails as well. Cost: one request, without a body when the value is the
        expected one and `IF_ETAG_CHANGED` is asked for, or with `NEVER_RETRIEVE`.
        """
        path = self._prefix + join_key(key)
        _check(condition, retrieve_value)
        actual, found = self._look(path, expected_etag, retrieve_value)
        return self._unchanged(path, _holds(condition, expected_etag, actual), actual, found)

    def get_with_etag(self, key: Key) -> ConditionalOperationResult[V]:
        """Read a value together with its ETag in one request; `ITEM_NOT_AVAILABLE` for both where the key is absent."""
        path = self._prefix + join_key(key)
        actual, found = self._look(path, ITEM_NOT_AVAILABLE, ALWAYS_RETRIEVE)
        return self._unchanged(path, True, actual, found)

    def set_item_if(
        self,
        key: Key,
        *,
        value: V | KeepCurrentFlag | DeleteCurrentFlag,
        condition: ETagConditionFlag,
        expected_etag: ETagIfExists,
        retrieve_value: RetrieveValueFlag = IF_ETAG_CHANGED,
    ) -> ConditionalOperationResult[V]:
        """Write a value if the condition holds.

        Args:
            key: Such as `"a"` or `("a", "b")`.
            value: What to write; `KEEP_CURRENT` to only look, `DELETE_CURRENT` to delete.
            condition: See the class.
            expected_etag: See the class.
            retrieve_value: Whether to fetch what is there, where it stays.

        Returns:
            After a write, `new_value` is the object passed in, whatever `retrieve_value` says.

        Raises:
            PolicyError: Append-only, the condition holds and there is a value; or the value is of the wrong class.

        Cost: one put with `ETAG_IS_THE_SAME`, and one read more where it fails; a look and a put with the other conditions.
        """
        path = self._prefix + join_key(key)
        _check(condition, retrieve_value)
        if value is KEEP_CURRENT:
            return self.get_item_if(key, condition=condition, expected_etag=expected_etag, retrieve_value=retrieve_value)
        if value is DELETE_CURRENT:
            return self._delete_if(path, condition, expected_etag, retrieve_value)
        data = self._spell(value, path)
        # Where the write itself checks the condition there is no need to look first.
        sure = condition is ETAG_IS_THE_SAME and (
            expected_etag is ITEM_NOT_AVAILABLE or (isinstance(expected_etag, str) and not self.append_only)
        )
        actual: ETagIfExists = expected_etag
        found: _Found = VALUE_NOT_RETRIEVED
        turns = self._attempts(path)
        while True:
            attempt = next(turns)
            if attempt > 1 or not sure:
                actual, found = self._look(path, expected_etag, _needed(condition, retrieve_value))
            if not _holds(condition, expected_etag, actual):
                return self._unchanged(path, False, actual, found)
            if self.append_only and actual is not ITEM_NOT_AVAILABLE:
                raise self._refuse_change("the key is there already", path)
            try:
                etag = self._put(path, data, if_match=_version(actual))
            except PreconditionError:
                continue
            return _written(actual, etag, value)

    def setdefault_if(
        self,
        key: Key,
        *,
        default_value: V,
        condition: ETagConditionFlag,
        expected_etag: ETagIfExists,
        retrieve_value: RetrieveValueFlag = IF_ETAG_CHANGED,
    ) -> ConditionalOperationResult[V]:
        """Insert a value if the key is absent and the condition holds; never changes a value that is there.

        Where there is one, the answer is that of `get_item_if`. Works in an append-only dict.

        Raises:
            PolicyError: `default_value` is a joker, or of the wrong class.

        Cost: one read where there is a value, a read and a put where not; with `ETAG_IS_THE_SAME` and
        `ITEM_NOT_AVAILABLE`, which expects to insert, the put comes first.
        """
        path = self._prefix + join_key(key)
        _check(condition, retrieve_value)
        data = self._spell(default_value, path)
        put_first = condition is ETAG_IS_THE_SAME and expected_etag is ITEM_NOT_AVAILABLE
        turns = self._attempts(path)
        while True:
            attempt = next(turns)
            if attempt > 1 or not put_first:
                actual, found = self._look(path, expected_etag, retrieve_value)
                holds = _holds(condition, expected_etag, actual)
                if actual is not ITEM_NOT_AVAILABLE or not holds:
                    return self._unchanged(path, holds, actual, found)
            try:
                etag = self._put(path, data, if_match=ABSENT)
            except PreconditionError:
                continue
            return _written(ITEM_NOT_AVAILABLE, etag, default_value)

    def discard_if(
        self, key: Key, *, condition: ETagConditionFlag, expected_etag: ETagIfExists
    ) -> ConditionalOperationResult[V]:
        """Delete a value if the condition holds; an absent key is fine. The value is never fetched.

        Raises:
            PolicyError: Append-only, the condition holds and there is a value.
        """
        path = self._prefix + join_key(key)
        _check(condition, NEVER_RETRIEVE)
        return self._delete_if(path, condition, expected_etag, NEVER_RETRIEVE)

    def transform_item(
        self,
        key: Key,
        *,
        transformer: Callable[[V | ItemNotAvailableFlag], V | KeepCurrentFlag | DeleteCurrentFlag],
        n_retries: int | None = None,
    ) -> OperationResult[V]:
        """Read a value, compute the next one and swap it in, again and again until nobody was in between.

        No update is lost and none is applied twice, across threads, processes and machines.

        Args:
            key: Such as `"a"` or `("a", "b")`.
            transformer: Gets the value, or `ITEM_NOT_AVAILABLE`, and returns the new one, `KEEP_CURRENT` or
                `DELETE_CURRENT`. It is called once for each attempt and should do nothing but compute. What it raises
                passes through and leaves the value as it was. A value it was given may be changed and returned.
            n_retries: How many lost attempts to follow by another; `None` goes on until it wins, which is safe, since an
                attempt is only ever lost to a writer that got on.

        Raises:
            ConflictError: `n_retries` + 1 attempts were lost; `attempts` tells the number.
            PolicyError: Append-only, and the transformer wants to change a value that is there.

        Cost: one read and one write for each attempt. Whoever loses twice pauses before the next ones, 16 ms and less.
        """
        steps = self._transforming(key, n_retries)
        value = next(steps)
        while True:
            new = transformer(value)
            try:
                value = steps.send(new)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    def _transforming(
        self, key: Key, n_retries: int | None
    ) -> Generator[V | ItemNotAvailableFlag, V | KeepCurrentFlag | DeleteCurrentFlag, OperationResult[V]]:
        """What `transform_item` does besides calling the transformer: yields a value and is sent the next one."""
        path = self._prefix + join_key(key)
        turns = self._attempts(path, _number_of_retries(n_retries))
        while True:
            next(turns)
            actual: ETagIfExists
            value: V | ItemNotAvailableFlag
            try:
                data, actual, _modified = self._get(path)
            except NotFoundError:
                value = actual = ITEM_NOT_AVAILABLE
            else:
                value = self._value_or_absence(data, path)
            new = yield value
            if new is KEEP_CURRENT or (new is DELETE_CURRENT and actual is ITEM_NOT_AVAILABLE):
                return OperationResult(actual, value)
            if self.append_only and actual is not ITEM_NOT_AVAILABLE:
                raise self._refuse_change("the key is there already", path)
            try:
                if new is DELETE_CURRENT:
                    self.backend.delete(path, if_match=actual)  # type: ignore[arg-type]  # absent was answered above
                    return OperationResult(ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
                etag = self._put(path, self._spell(new, path), if_match=_version(actual))
            except PreconditionError:
                continue
            if etag == NOT_KEPT:
                return OperationResult(ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
            return OperationResult(etag, new)

    def etag(self, key: Key) -> ETag:
        """The ETag of a value, which changes with it; `NotFoundError` where it is absent. Cost: one look."""
        return self._head(key).etag

    # ---------------------------------------------------------------- the parts

    def _head(self, key: Key) -> Meta:
        path = self._prefix + join_key(key)
        try:
            return self.backend.head(path)
        except NotFoundError:
            raise self._missing(path) from None

    def _look(self, path: str, expected: ETagIfExists, retrieve: RetrieveValueFlag) -> tuple[ETagIfExists, _Found]:
        """The actual ETag, and the bytes where they were asked for, in one request."""
        try:
            if retrieve is NEVER_RETRIEVE:
                return self.backend.head(path).etag, VALUE_NOT_RETRIEVED
            known = expected if retrieve is IF_ETAG_CHANGED and isinstance(expected, str) else None
            data, etag, _modified = self._get(path, if_none_match=known)
        except NotModified:
            return expected, VALUE_NOT_RETRIEVED
        except NotFoundError:
            return ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE
        return etag, data

    def _unchanged(self, path: str, holds: bool, actual: ETagIfExists, found: _Found) -> ConditionalOperationResult[V]:
        value = self._value_or_absence(found, path) if isinstance(found, bytes) else found
        return ConditionalOperationResult(holds, actual, actual, value)

    def _value_or_absence(self, data: bytes, path: str) -> V | ItemNotAvailableFlag:
        """What bytes stand for: a value, or a cache's claim to compute one, which has a version but no value."""
        try:
            return self._read(data, path)
        except NotFoundError:
            return ITEM_NOT_AVAILABLE

    def _delete_if(
        self, path: str, condition: ETagConditionFlag, expected: ETagIfExists, retrieve: RetrieveValueFlag
    ) -> ConditionalOperationResult[V]:
        sure = condition is ETAG_IS_THE_SAME and isinstance(expected, str) and not self.append_only
        actual: ETagIfExists = expected
        found: _Found = VALUE_NOT_RETRIEVED
        turns = self._attempts(path)
        while True:
            attempt = next(turns)
            if attempt > 1 or not sure:
                actual, found = self._look(path, expected, _needed(condition, retrieve))
            holds = _holds(condition, expected, actual)
            if actual is ITEM_NOT_AVAILABLE or not holds:
                return self._unchanged(path, holds, actual, found)
            if self.append_only:
                raise self._refuse_change("nothing is deleted", path)
            try:
                self.backend.delete(path, if_match=actual)
            except PreconditionError:
                continue
            return ConditionalOperationResult(True, actual, ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)


def _holds(condition: ETagConditionFlag, expected: ETagIfExists, actual: ETagIfExists) -> bool:
    if condition is ANY_ETAG:
        return True
    return (expected == actual) is (condition is ETAG_IS_THE_SAME)


def _needed(condition: ETagConditionFlag, retrieve: RetrieveValueFlag) -> RetrieveValueFlag:
    """What to fetch when looking before a write: only what is answered should the condition fail."""
    if condition is ANY_ETAG or (condition is ETAG_HAS_CHANGED and retrieve is not ALWAYS_RETRIEVE):
        return NEVER_RETRIEVE
    return retrieve


def _version(etag: ETagIfExists) -> Condition:
    return ABSENT if etag is ITEM_NOT_AVAILABLE else etag


def _written(actual: ETagIfExists, etag: ETag, value: V) -> ConditionalOperationResult[V]:
    if etag == NOT_KEPT:  # a place that keeps nothing: the write was taken, and the key is as absent as before
        return ConditionalOperationResult(True, ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
    return ConditionalOperationResult(True, actual, etag, value)


def _check(condition: object, retrieve: object) -> None:
    if not isinstance(condition, ETagConditionFlag):
        known = "ANY_ETAG, ETAG_IS_THE_SAME or ETAG_HAS_CHANGED"
        raise UsageError(f"condition must be {known}, not {condition!r:.80}")
    if not isinstance(retrieve, RetrieveValueFlag):
        known = "ALWAYS_RETRIEVE, IF_ETAG_CHANGED or NEVER_RETRIEVE"
        raise UsageTypeError(f"retrieve_value must be {known}, not {retrieve!r:.80}")


def _number_of_retries(n_retries: Any) -> int | None:
    if n_retries is None:
        return None
    try:
        number = int(n_retries)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageTypeError(f"n_retries is a number or None, not {n_retries!r}") from error
    if number < 0:
        raise UsageError(f"n_retries is {number}", hint="0 tries once, None goes on until it wins.")
    return number
