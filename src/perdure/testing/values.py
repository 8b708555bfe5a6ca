"""Promises about values: bytes come back whole, conditions hold or nothing changes, ETags tell versions apart."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from ..errors import InvalidKeyError, NotFoundError, NotModified, PerdureError, PreconditionError
from ..protocol import ABSENT, NOT_KEPT, Backend, ETag, Guarantees
from .kit import Kit, contents, refused

# What is no ETag of anything; each of them is special to something underneath: HTTP, SQL, a file name, `if not etag`.
FOREIGN_ETAGS = ["", "*", "0", "1", '"*"', "W/", "None", "ABSENT", "a\r\nx: y", "%", "' OR 1=1 --", "\0", "é", "x" * 5000]


class Values(Kit):
    """One key at a time."""

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65537])
    def test_what_was_put_is_got(self, backend: Backend, size: int) -> None:
        data = random.Random(size).randbytes(size)
        etag = backend.put("a/b", data)
        blob = backend.get("a/b")
        assert blob.data == data
        assert type(blob.data) is bytes
        assert blob.etag == etag

    def test_a_big_value(self, backend: Backend) -> None:
        data = random.Random(1).randbytes(self.big)
        backend.put("big", data)
        assert backend.get("big").data == data
        assert backend.head("big").size == self.big

    def test_every_byte_comes_back(self, backend: Backend) -> None:
        data = bytes(range(256)) + b"\r\n\n\r\0\x1a\xff\xfe" * 3
        backend.put("a", data)
        assert backend.get("a").data == data

    def test_bytes_bytearray_and_memoryview_are_taken(self, backend: Backend) -> None:
        whole = bytes(range(64))
        for data in (
            whole,
            bytearray(whole),
            memoryview(whole),
            memoryview(bytearray(whole)),
            memoryview(whole).cast("I"),
            memoryview(b"__" + whole + b"__")[2:-2],
            memoryview(bytes(b for b in whole for _ in range(2)))[::2],
        ):
            backend.put("a", data)
            assert backend.get("a").data == whole, f"put of {data!r}"
            backend.put_many({"b": data})
            assert backend.get("b").data == whole, f"put_many of {data!r}"
            assert backend.head("a").size == len(whole)

    def test_what_is_not_bytes_is_refused(self, handle: Backend) -> None:
        for data in ("text", 5, None, [1, 2], 1.5, object()):
            wrong: Any = data
            refused(TypeError, f"put of {data!r}", handle.put, "a", wrong)
            refused(TypeError, f"put_many of {data!r}", handle.put_many, {"a": wrong})
        assert not handle.contains("a")

    def test_changing_the_buffer_later_changes_nothing(self, backend: Backend) -> None:
        data, many = bytearray(b"before" * 100), bytearray(b"before" * 100)
        backend.put("a", data)
        backend.put_many({"b": many})
        data[:] = b"after!" * 100
        many[:] = b"after!" * 100
        assert backend.get("a").data == backend.get("b").data == b"before" * 100

    def test_get_head_contains_scan_and_keys_agree(self, backend: Backend) -> None:
        before = time.time()
        etag = backend.put("a/b", b"12345")
        blob, head, listed = backend.get("a/b"), backend.head("a/b"), list(backend.scan())
        assert blob.etag == head.etag == etag
        assert [(meta.key, meta.etag, meta.size) for meta in [head, *listed]] == [("a/b", etag, 5)] * 2
        assert [type(part) for part in head] == [str, str, int, float]
        assert list(backend.keys()) == ["a/b"]
        assert backend.contains("a/b") is True
        assert backend.contains("a") is False
        for modified in (blob.modified, head.modified, listed[0].modified):
            # By the clock of whoever keeps the value, to the second on some: only plausibility can be asked for.
            assert abs(modified - before) < 3600
            assert abs(modified - head.modified) < 1.5

    def test_an_absent_key(self, handle: Backend) -> None:
        refused(NotFoundError, "get", handle.get, "a")
        refused(NotFoundError, "get with if_none_match", handle.get, "a", if_none_match=ETag("x"))
        refused(NotFoundError, "head", handle.head, "a")
        assert handle.contains("a") is False
        assert handle.get_many(["a", "b"]) == {}
        assert [*handle.scan(), *handle.keys()] == []
        handle.delete("a")
        handle.delete_many(["a", "b"])

    def test_a_new_value_replaces_the_old_one(self, backend: Backend) -> None:
        for data in (b"one", b"two and more", b"", b"3"):
            etag = backend.put("a", data)
            assert backend.get("a")[:2] == (data, etag)
            assert backend.head("a").size == len(data)
        assert list(backend.keys()) == ["a"]

    def test_create_succeeds_once(self, backend: Backend) -> None:
        etag = backend.put("a", b"first", if_match=ABSENT)
        refused(PreconditionError, "create of a present key", backend.put, "a", b"second", if_match=ABSENT)
        assert backend.get("a")[:2] == (b"first", etag)
        backend.delete("a")
        backend.put("a", b"third", if_match=ABSENT)
        assert backend.get("a").data == b"third"

    def test_create_of_an_empty_value_succeeds_once(self, backend: Backend) -> None:
        backend.put("a", b"", if_match=ABSENT)
        refused(PreconditionError, "create over an empty value", backend.put, "a", b"second", if_match=ABSENT)
        assert backend.get("a").data == b""

    def test_swap_needs_the_current_etag(self, backend: Backend) -> None:
        old = backend.put("a", b"old")
        new = backend.put("a", b"new", if_match=old)
        assert backend.get("a")[:2] == (b"new", new)
        refused(PreconditionError, "swap from a stale ETag", backend.put, "a", b"late", if_match=old)
        assert backend.get("a")[:2] == (b"new", new)
        backend.delete("a")
        refused(PreconditionError, "swap of an absent key", backend.put, "a", b"late", if_match=new)
        assert not backend.contains("a")

    def test_an_etag_of_another_key_matches_nothing(self, backend: Backend) -> None:
        backend.put("a", b"A")
        other = backend.put("b", b"B")
        refused(PreconditionError, "swap", backend.put, "a", b"C", if_match=other)
        refused(PreconditionError, "delete", backend.delete, "a", if_match=other)
        assert backend.get("a", if_none_match=other).data == b"A"

    def test_foreign_etags_match_nothing(self, backend: Backend) -> None:
        etag = backend.put("a", b"kept")
        for text in FOREIGN_ETAGS:
            foreign = ETag(text)
            if foreign == etag:
                continue
            for key in ("a", "absent"):
                about = f"{key!r} if_match={text!r:.30}"
                refused(PreconditionError, f"put {about}", backend.put, key, b"", if_match=foreign)
                refused(PreconditionError, f"delete {about}", backend.delete, key, if_match=foreign)
            assert backend.get("a", if_none_match=foreign)[:2] == (b"kept", etag), f"get if_none_match={text!r:.30}"
        assert contents(backend) == {"a": b"kept"}

    def test_get_answers_not_modified_only_for_the_current_etag(self, backend: Backend) -> None:
        old = backend.put("a", b"old")
        refused(NotModified, "get of what is known", backend.get, "a", if_none_match=old)
        new = backend.put("a", b"new")
        assert backend.get("a", if_none_match=old)[:2] == (b"new", new)
        backend.delete("a")
        refused(NotFoundError, "get of what is gone", backend.get, "a", if_none_match=new)

    def test_delete(self, backend: Backend) -> None:
        backend.put("a", b"1")
        backend.put("b", b"2")
        backend.delete("a")
        backend.delete("a")
        assert contents(backend) == {"b": b"2"}
        assert not backend.contains("a")

    def test_conditional_delete(self, backend: Backend) -> None:
        old = backend.put("a", b"old")
        new = backend.put("a", b"new")
        refused(PreconditionError, "delete from a stale ETag", backend.delete, "a", if_match=old)
        assert backend.get("a")[:2] == (b"new", new)
        backend.delete("a", if_match=new)
        assert not backend.contains("a")
        refused(PreconditionError, "conditional delete of an absent key", backend.delete, "a", if_match=new)

    def test_different_bytes_have_different_etags(self, backend: Backend) -> None:
        seen: dict[str, bytes] = {}
        for number in range(self.rounds(100)):
            data = f"{number:08}".encode()  # one size, and as many within one tick of a clock as the place can take
            if number % 5 == 4:
                backend.delete("a")  # a file system hands the freed inode out again at once
            etag = backend.put("a", data)
            assert isinstance(etag, str)
            assert etag != NOT_KEPT
            assert etag not in seen, f"{data!r} got the ETag of {seen[etag]!r}"
            seen[etag] = data
            assert backend.head("a").etag == etag

    def test_an_etag_from_before_a_delete_does_not_match_after_it(self, backend: Backend) -> None:
        for number in range(self.rounds(20)):
            old = backend.put("a", b"old %d" % number)
            backend.delete("a")
            backend.put("a", b"new %d" % number)
            refused(PreconditionError, "swap across a delete", backend.put, "a", b"bad", if_match=old)
            refused(PreconditionError, "delete across a delete", backend.delete, "a", if_match=old)

    def test_an_etag_stays_while_the_value_does(self, backend: Backend, another: Callable[[], Backend]) -> None:
        etag = backend.put("a", b"1")
        backend.put("b", b"2")
        backend.get("a")
        backend.delete("b")
        assert backend.head("a").etag == another().get("a").etag == etag

    def test_errors_name_the_key_and_the_place_and_survive_pickling(self, backend: Backend) -> None:
        etag = backend.put("a/b", b"1")
        for kind, call in (
            (NotFoundError, lambda: backend.get("no/such")),
            (NotFoundError, lambda: backend.head("no/such")),
            (NotModified, lambda: backend.get("a/b", if_none_match=etag)),
            (PreconditionError, lambda: backend.put("a/b", b"", if_match=ABSENT)),
            (PreconditionError, lambda: backend.put("no/such", b"", if_match=etag)),
            (PreconditionError, lambda: backend.delete("no/such", if_match=etag)),
        ):
            error = refused(PerdureError, kind.__name__, call)
            assert type(error) is kind
            assert error.key in ("a/b", "no/such")
            assert error.place == backend.place
            assert str(error.key) in str(error)
            assert backend.place in str(error)
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is kind
            assert (str(again), again.key, again.place, again.hint) == (str(error), error.key, error.place, error.hint)

    def test_it_says_what_it_guarantees(self, handle: Backend) -> None:
        promises = handle.guarantees()
        assert isinstance(promises, Guarantees)
        for name, words in promises._asdict().items():
            assert isinstance(words, str), name
            assert words.strip(), name
            assert words != "unknown", name
        assert isinstance(handle.place, str)
        assert handle.place
        assert handle.place in repr(handle)


class Bulk(Kit):
    """Several keys at a time."""

    def test_get_many_leaves_out_what_is_absent(self, backend: Backend) -> None:
        etags = backend.put_many({"a": b"1", "b/c": b"2", "d": b""})
        assert set(etags) == {"a", "b/c", "d"}
        found = backend.get_many(iter(["a", "b", "d", "d", "b/c", "e"]))
        assert {key: blob[:2] for key, blob in found.items()} == {
            "a": (b"1", etags["a"]),
            "b/c": (b"2", etags["b/c"]),
            "d": (b"", etags["d"]),
        }
        assert backend.get_many([]) == {}

    def test_put_many_overwrites(self, backend: Backend) -> None:
        old = backend.put("a", b"old")
        etags = backend.put_many({"a": b"new", "b": b"2"})
        assert contents(backend) == {"a": b"new", "b": b"2"}
        assert etags["a"] == backend.head("a").etag != old
        assert backend.put_many({}) == {}

    def test_delete_many_takes_absent_keys(self, backend: Backend) -> None:
        backend.put_many({"a": b"1", "b": b"2", "c": b"3"})
        backend.delete_many(iter(["a", "x", "c", "c"]))
        assert contents(backend) == {"b": b"2"}
        backend.delete_many([])

    def test_several_hundred_at_once(self, backend: Backend) -> None:
        items = {f"n/{number}": b"%d" % number for number in range(self.rounds(300))}
        backend.put_many(items)
        assert {key: blob.data for key, blob in backend.get_many(items).items()} == items
        assert set(backend.keys("n/")) == set(items)
        backend.delete_many(items)
        assert contents(backend) == {}

    @pytest.mark.parametrize("bad", ["../x", "", "a b"])
    def test_a_bad_key_among_many_changes_nothing(self, backend: Backend, bad: str) -> None:
        backend.put("a", b"old")
        refused(InvalidKeyError, "put_many", backend.put_many, {"a": b"new", bad: b"", "b": b""})
        refused(InvalidKeyError, "delete_many", backend.delete_many, ["a", bad])
        refused(InvalidKeyError, "get_many", backend.get_many, ["a", bad])
        assert contents(backend) == {"a": b"old"}
