"""Backends that are wrong on purpose, one mistake each, and which tests of the kit must find it.

Not collected by itself: `test_kit.py` runs it in a process of its own and looks at what failed. Mistakes that need a race
pause at the worst moment, so that they fail every time and not only on a bad day.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from perdure.errors import NotFoundError, PreconditionError
from perdure.protocol import ABSENT, Backend, Blob, Buffer, Condition, ETag, Meta, check_key, check_prefix
from perdure.testing import BackendContract, Faulty
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend

MUST_FAIL: dict[type[Backend], list[str]] = {}


def found_by(*tests: str) -> Any:
    """Name the tests that must fail."""

    def note(cls: type[Backend]) -> type[Backend]:
        MUST_FAIL[cls] = list(tests)
        return cls

    return note


class Correct(MemoryBackend):
    """The same cut in pieces, so that the others can get one of them wrong."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._check_open()
        check_key(key)
        data = self.copy(data)
        with self._space.lock:
            self._check_condition(key, if_match)
            return self.write(key, data)

    def _check_condition(self, key: str, condition: Condition) -> None:
        blob = self._space.blobs.get(key)
        if condition is not None and condition != (ABSENT if blob is None else blob.etag):
            raise PreconditionError("the value is another one", key=key, place=self.place)

    def copy(self, data: Buffer) -> bytes:
        return bytes(memoryview(data))

    def new_etag(self, key: str, data: bytes) -> ETag:
        return ETag(str(next(self._space.versions)))

    def write(self, key: str, data: bytes) -> ETag:
        etag = self.new_etag(key, data)
        self._space.blobs[key] = Blob(data, etag, time.time())
        return etag


def pause() -> None:
    """Let every other thread run first."""
    time.sleep(0.002)


# Locks


@found_by(
    "test_one_of_many_swaps_from_one_etag_wins[threads]",
    "test_one_of_many_creators_wins[threads-one-handle]",
    "test_a_counter_adds_up[threads]",
    "test_histories_are_linearizable[threads]",
)
class NoLock(Correct):
    """Checks the condition and writes, and others do the same in between."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._check_open()
        check_key(key)
        data = self.copy(data)
        self._check_condition(key, if_match)
        pause()
        return self.write(key, data)


@found_by("test_a_plain_put_is_never_undone[threads-swap]")
class PlainPutTakesNoLock(Correct):
    """ "There is nothing to check, so why lock": the write slips between another's check and its replace."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._check_open()
        check_key(key)
        data = self.copy(data)
        if if_match is None:
            return self.write(key, data)
        with self._space.lock:
            self._check_condition(key, if_match)
            pause()
            return self.write(key, data)


@found_by("test_a_plain_delete_is_never_undone[threads-swap]")
class DeleteTakesNoLock(Correct):
    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._check_open()
        check_key(key)
        data = self.copy(data)
        with self._space.lock:
            self._check_condition(key, if_match)
            pause()
            return self.write(key, data)

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        self._check_open()
        check_key(key)
        self._check_condition(key, if_match)
        self._space.blobs.pop(key, None)


@found_by("test_an_interrupt_at_any_moment_leaves_everything_usable[put]")
class LockStaysAfterCtrlC(Correct):
    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._check_open()
        check_key(key)
        data = self.copy(data)
        self._space.lock.acquire()
        try:
            self._check_condition(key, if_match)
        except PreconditionError:
            self._space.lock.release()
            raise
        etag = self.write(key, data)
        self._space.lock.release()
        return etag


_unforkable = threading.Lock()


@found_by("test_a_forked_child_works_while_the_parent_is_in_the_middle_of_calls")
class LockIsInheritedByForks(Correct):
    """A lock that is held by a thread of the parent when the fork comes, and by nobody in the child."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        with _unforkable:
            pause()
            return super().put(key, data, if_match=if_match)


@found_by("test_values_are_never_seen_torn[threads]")
class TornPut(Correct):
    """Writes in two steps."""

    def write(self, key: str, data: bytes) -> ETag:
        if (old := self._space.blobs.get(key)) is not None:
            middle = len(data) // 2
            self._space.blobs[key] = old._replace(data=data[:middle] + old.data[middle:])
            pause()
        return super().write(key, data)


@found_by("test_two_handles_see_each_other", "test_histories_are_linearizable[threads]")
class ReadsFromItsOwnCache(Correct):
    """Remembers what it read, and does not ask again."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._seen: dict[str, Blob] = {}

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        if key in self._seen and self._seen[key].etag != if_none_match:
            return self._seen[key]
        blob = self._seen[key] = super().get(key, if_none_match=if_none_match)
        return blob

    def write(self, key: str, data: bytes) -> ETag:
        self._seen.pop(key, None)
        return super().write(key, data)


# Conditions


@found_by("test_swap_needs_the_current_etag", "test_create_succeeds_once", "test_one_of_many_swaps_from_one_etag_wins[threads]")
class IgnoresConditions(Correct):
    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        return super().put(key, data)


@found_by("test_create_succeeds_once", "test_one_of_many_creators_wins[threads]")
class CreateOverwrites(Correct):
    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        return super().put(key, data, if_match=None if if_match is ABSENT else if_match)


@found_by("test_create_of_an_empty_value_succeeds_once")
class EmptyIsAbsent(Correct):
    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        blob = self._space.blobs.get(key)
        return super().put(key, data, if_match=None if if_match is ABSENT and blob and not blob.data else if_match)


@found_by("test_foreign_etags_match_nothing")
class EmptyETagIsNoCondition(Correct):
    """`if etag:` where `if etag is not None:` was meant."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        return super().put(key, data, if_match=if_match or None)


@found_by("test_conditional_delete", "test_one_of_many_swaps_and_deletes_from_one_etag_wins[threads]")
class DeleteIgnoresConditions(Correct):
    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        super().delete(key)


@found_by("test_delete")
class DeleteOfAnAbsentKeyFails(Correct):
    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        if not self.contains(key) and if_match is None:
            raise NotFoundError(key=key, place=self.place)
        super().delete(key, if_match=if_match)


# ETags


@found_by("test_different_bytes_have_different_etags")
class SizeIsETag(Correct):
    def new_etag(self, key: str, data: bytes) -> ETag:
        return ETag(str(len(data)))


@found_by("test_different_bytes_have_different_etags")
class CoarseClockIsETag(Correct):
    def new_etag(self, key: str, data: bytes) -> ETag:
        return ETag(f"{len(data)}-{int(time.time() / 4) * 4}")


@found_by("test_an_etag_from_before_a_delete_does_not_match_after_it", "test_different_bytes_have_different_etags")
class VersionsBeginAgainAfterADelete(Correct):
    def new_etag(self, key: str, data: bytes) -> ETag:
        old = self._space.blobs.get(key)
        return ETag(str(int(old.etag) + 1) if old else "1")


@found_by("test_an_etag_stays_while_the_value_does", "test_swap_needs_the_current_etag")
class ETagChangesWithEveryLook(Correct):
    _looks = count()

    def head(self, key: str) -> Meta:
        return super().head(key)._replace(etag=ETag(f"look-{next(self._looks)}"))

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        return super().get(key, if_none_match=if_none_match)._replace(etag=ETag(f"look-{next(self._looks)}"))


# Keys and listings


@found_by("test_prefixes_show_what_is_below_and_nothing_else", "test_it_behaves_like_a_dict")
class RawPrefix(Correct):
    def scan(self, prefix: str = "") -> Iterator[Meta]:
        check_prefix(prefix)
        everything = super().scan()
        return (meta for meta in everything if meta.key.startswith(prefix.rstrip("/")))

    def keys(self, prefix: str = "") -> Iterator[str]:
        return (meta.key for meta in self.scan(prefix))


@found_by("test_hostile_prefixes_are_refused_by_the_call_itself")
class ChecksThePrefixAtTheFirstStep(Correct):
    def scan(self, prefix: str = "") -> Iterator[Meta]:
        yield from super().scan(prefix)


@found_by("test_keys_that_differ_in_case_are_different")
class FoldsCase(Correct):
    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        return super().get(_lower(key), if_none_match=if_none_match)

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        return super().put(_lower(key), data, if_match=if_match)

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        super().delete(_lower(key), if_match=if_match)


def _lower(key: Any) -> Any:
    return key.lower() if isinstance(key, str) else key


@found_by("test_hostile_keys_are_refused_by_every_call")
class ResolvesDots(Correct):
    """Makes something legal out of `a/../b` instead of refusing it."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        parts: list[str] = []
        for part in check_key(key).split("/") if "." not in str(key) else str(key).split("/"):
            if part == "..":
                parts = parts[:-1]
            elif part not in ("", "."):
                parts.append(part)
        return super().put("/".join(parts), data, if_match=if_match)


@found_by("test_get_head_contains_scan_and_keys_agree", "test_it_behaves_like_a_dict")
class ListsItsScratchFiles(Correct):
    def write(self, key: str, data: bytes) -> ETag:
        self._space.blobs[f"{key}.tmp"] = Blob(data, ETag("tmp"), time.time())
        return super().write(key, data)


@found_by("test_a_listing_survives_the_end_of_everything_it_lists")
class ListingDiesWhenOthersWrite(Correct):
    def scan(self, prefix: str = "") -> Iterator[Meta]:
        check_prefix(prefix)
        self._check_open()
        blobs = self._space.blobs
        return (Meta(key, blob.etag, len(blob.data), 0.0) for key, blob in blobs.items() if key.startswith(prefix))


@found_by("test_a_key_and_keys_below_it_coexist")
class AValueIsNoFolder(Correct):
    """What a file system does: `a` cannot be a value while `a/b` is one."""

    def write(self, key: str, data: bytes) -> ETag:
        for below in [other for other in self._space.blobs if other.startswith(f"{key}/")]:
            del self._space.blobs[below]
        return super().write(key, data)


# Values and errors


@found_by("test_changing_the_buffer_later_changes_nothing")
class KeepsTheCallersBuffer(Correct):
    def copy(self, data: Buffer) -> Any:
        memoryview(data)
        return data

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        blob = super().get(key, if_none_match=if_none_match)
        return blob._replace(data=bytes(blob.data))


@found_by("test_what_was_put_is_got[4097]", "test_every_byte_comes_back")
class CutsAtTheFirstNull(Correct):
    def copy(self, data: Buffer) -> bytes:
        return super().copy(data).partition(b"\0")[0]


@found_by("test_what_is_not_bytes_is_refused")
class EncodesText(Correct):
    def copy(self, data: Any) -> bytes:
        return data.encode() if isinstance(data, str) else super().copy(data)


@found_by("test_foreign_etags_match_nothing", "test_swap_needs_the_current_etag")
class DriversExceptionGetsThrough(Correct):
    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        try:
            return super().put(key, data, if_match=if_match)
        except PreconditionError:
            raise ValueError("constraint failed") from None


@found_by("test_errors_name_the_key_and_the_place_and_survive_pickling")
class ErrorsSayNothing(Correct):
    def head(self, key: str) -> Meta:
        try:
            return super().head(key)
        except NotFoundError:
            raise NotFoundError from None


@found_by("test_a_bad_key_among_many_changes_nothing[../x]")
class StopsHalfWay(Correct):
    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        return {key: self.put(key, data) for key, data in items.items()}


@found_by("test_close_twice_and_nothing_works_any_more", "test_with_closes")
class WorksAfterClose(Correct):
    def close(self) -> None:
        pass


# Between processes


class CorrectFolder(Faulty):
    """A folder."""


@found_by(
    "test_one_of_many_swaps_from_one_etag_wins[spawned]",
    "test_one_of_many_swaps_from_one_etag_wins[forked]",
    "test_one_of_many_creators_wins[spawned]",
    "test_a_counter_adds_up[forked]",
    "test_histories_are_linearizable[spawned]",
)
class ChecksFirstAndPutsLater(CorrectFolder):
    """Compare-and-swap out of a look and a put."""

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        if if_match is ABSENT and self.backend.contains(key):
            raise PreconditionError("the key exists already", key=key, place=self.place)
        if if_match is not None and if_match is not ABSENT and self.backend.head(key).etag != if_match:
            raise PreconditionError("another version", key=key, place=self.place)
        pause()
        return self.backend.put(key, data)


@found_by("test_a_killed_writer_loses_no_acknowledged_write_and_blocks_nobody")
class AcknowledgesTooEarly(CorrectFolder):
    """Every third write waits for the next one."""

    _waiting: tuple[str, Buffer] | None = None

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        if self._waiting is not None:
            time.sleep(0.02)
            self.backend.put(*self._waiting)
        self._waiting = (key, data) if key == "a/b" else None
        return ETag("soon") if self._waiting else self.backend.put(key, data, if_match=if_match)


class InMemory(BackendContract):
    """How those over the memory backend are opened."""

    processes = False
    backend_class: type[MemoryBackend] = Correct

    def open(self, where: Path) -> MemoryBackend:
        return self.backend_class(f"{type(self).__name__}:{where}")


class InAFolder(BackendContract):
    """How those over the file backend are opened."""

    backend_class: type[CorrectFolder] = CorrectFolder

    def open(self, where: Path) -> CorrectFolder:
        return self.backend_class(FileBackend(where, sync="normal"))


for _cls in (Correct, CorrectFolder, *MUST_FAIL):
    _name, _base = f"Test{_cls.__name__}", InAFolder if issubclass(_cls, CorrectFolder) else InMemory
    globals()[_name] = type(_name, (_base,), {"backend_class": _cls, "__module__": __name__})
