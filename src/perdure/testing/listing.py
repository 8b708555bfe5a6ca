"""Promises about listings: lazy, alive while others write, and what stays is listed exactly once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from ..errors import BackendError, InvalidKeyError, NotFoundError
from ..protocol import ABSENT, Backend, Meta
from .kit import Kit, refused


def _names(metas: Iterator[Meta]) -> Iterator[str]:
    return (meta.key for meta in metas)


class Listing(Kit):
    """One listing, and what happens to the place meanwhile."""

    def _fill(self, backend: Backend, count: int) -> set[str]:
        keys = {f"{number % 7}/{number}" if number % 3 else f"{number}" for number in range(count)}
        backend.put_many({key: key.encode() for key in keys})
        return keys

    def test_every_key_is_listed_once(self, backend: Backend) -> None:
        keys = self._fill(backend, self.rounds(400))
        assert Counter(meta.key for meta in backend.scan()) == Counter(keys)
        assert Counter(backend.keys()) == Counter(keys)
        assert {meta.key: meta.size for meta in backend.scan()} == {key: len(key) for key in keys}

    def test_times_are_those_of_head_and_scan(self, backend: Backend) -> None:
        keys = self._fill(backend, 40)
        backend.put("4/4", b"again")
        backend.put("new", b"created", if_match=ABSENT)
        backend.put("new", b"swapped", if_match=backend.head("new").etag)
        times = list(backend.times())
        assert Counter(key for key, _ in times) == Counter(keys | {"new"})
        for key, modified in times:
            assert abs(modified - backend.head(key).modified) < 1.5, key  # a service may tell whole seconds in one of them
        assert dict(times) == {meta.key: meta.modified for meta in backend.scan()}

    def test_times_of_a_prefix_are_not_those_of_its_neighbours(self, backend: Backend) -> None:
        for key in ("a", "a/b", "a/b/c", "a.b/c", "a-/b", "ab/c", "b/a/b", "A/b"):
            backend.put(key, b"1")
        assert sorted(key for key, _ in backend.times("a/")) == ["a/b", "a/b/c"]
        assert [key for key, _ in backend.times("a/b/")] == ["a/b/c"]
        assert list(backend.times("c/")) == []
        refused(InvalidKeyError, "times of a prefix without a final slash", backend.times, "a")

    def test_uses_are_sizes_and_times_of_writing(self, backend: Backend) -> None:
        keys = self._fill(backend, 40)
        backend.put("4/4", b"again")
        uses = list(backend.uses())
        assert Counter(use.key for use in uses) == Counter(keys)
        for key, size, used in uses:
            meta = backend.head(key)
            assert size == meta.size, key
            assert abs(used - meta.modified) < 5, key
        assert {use.key for use in backend.uses("1/")} == {key for key in keys if key.startswith("1/")}
        assert list(backend.uses("a/")) == []
        refused(InvalidKeyError, "uses of a prefix without a final slash", backend.uses, "1")

    def test_marked_values_were_used_then_and_are_otherwise_the_same(
        self, backend: Backend, another: Callable[[], Backend]
    ) -> None:
        keys = sorted(self._fill(backend, 30))
        before = sorted(backend.scan())
        unmarked = dict.fromkeys(keys, time.time())
        marks = {key: time.time() + 100 + number for number, key in enumerate(keys[::2])}
        backend.mark_used({**marks, "absent": time.time() + 100})
        backend.mark_used({keys[0]: 1e9, keys[1]: 1e9})  # to have used it earlier as well changes nothing
        backend.mark_used({})
        for handle in (backend, another()):
            for key, _, used in handle.uses():
                due = marks.get(key, unmarked[key]) if backend.remembers_use else unmarked[key]
                assert abs(used - due) < 50, key
                assert used >= due - 1.5 or not backend.remembers_use, key  # a place may keep whole seconds
        assert sorted(backend.scan()) == before
        assert not backend.contains("absent")

    def test_a_value_that_is_written_anew_was_used_then(self, backend: Backend) -> None:
        self._fill(backend, 10)
        for key in ("1", "2", "4"):
            backend.mark_used({key: time.time()})
        backend.put("1", b"again")
        backend.delete("2")
        backend.delete("4")
        backend.put("4", b"again")
        uses = {use.key: use.used for use in backend.uses()}
        assert "2" not in uses
        backend.mark_used({"2": time.time()})
        assert not backend.contains("2")
        for key in ("1", "4"):
            assert abs(uses[key] - backend.head(key).modified) < 5, key

    def test_marks_of_bad_keys_are_refused(self, backend: Backend) -> None:
        backend.put("a", b"1")
        if backend.remembers_use:
            refused(InvalidKeyError, "a mark of no key", backend.mark_used, {"a": time.time() + 100, "../x": 1.0})
        assert abs(next(backend.uses()).used - time.time()) < 50, "nothing was marked"

    def test_uses_of_a_place_that_keeps_nothing_or_was_closed(self, handle: Backend) -> None:
        assert list(handle.uses()) == []
        handle.mark_used({"a": 1.0})
        assert list(handle.uses()) == []
        handle.close()
        refused(BackendError, "uses after close", lambda: list(handle.uses()))
        if handle.remembers_use:
            refused(BackendError, "mark_used after close", handle.mark_used, {"a": 1.0})

    def test_a_listing_survives_the_end_of_everything_it_lists(self, backend: Backend) -> None:
        keys = self._fill(backend, 50)
        listings = [_names(backend.scan()), backend.keys(), _names(backend.scan("1/")), backend.keys("1/")]
        listings += [(key for key, _ in backend.times(prefix)) for prefix in ("", "1/")]
        for listing in listings:
            next(listing)
        backend.delete_many(keys)
        for listing in listings:
            assert set(listing) <= keys
        assert list(backend.scan()) == []

    def test_what_stays_is_listed_exactly_once_while_the_rest_comes_and_goes(
        self, backend: Backend, another: Callable[[], Backend]
    ) -> None:
        other = another()
        stays = {f"stays/{number}" for number in range(20)} | {f"stay-{number}" for number in range(20)}
        goes = [f"goes/{number}" for number in range(20)] + [f"{number}-goes" for number in range(20)]
        backend.put_many(dict.fromkeys([*stays, *goes], b"1"))
        comes: list[str] = []
        for listing in (_names(backend.scan()), backend.keys(), (key for key, _ in backend.times())):
            seen: Counter[str] = Counter()
            step = 0
            for step, key in enumerate(listing):
                seen[key] += 1
                if goes:
                    other.delete(goes.pop())
                comes.append(f"comes/{len(comes)}" if step % 2 else f"{len(comes)}-comes")
                other.put(comes[-1], b"2")
                other.put(f"stays/{step % 20}", b"again %d" % step)  # a rewritten value has not gone meanwhile
                if step > 500:
                    break  # a place may go on listing what is put before its eyes
            if step <= 500:
                assert {key: seen[key] for key in stays} == dict.fromkeys(stays, 1)
            assert max(seen.values()) == 1

    def test_a_listing_may_be_dropped_half_way(self, backend: Backend) -> None:
        keys = self._fill(backend, 50)
        for _ in range(20):
            next(backend.scan())
            next(backend.keys("1/"))
        kept = [backend.scan() for _ in range(10)]  # begun, or not even begun, and never finished
        for listing in kept[:5]:
            next(listing)
        backend.put("new", b"1")
        backend.delete("new")
        assert set(backend.keys()) == keys

    def test_two_listings_do_not_disturb_each_other(self, backend: Backend) -> None:
        keys = self._fill(backend, 60)
        pairs = list(zip(backend.scan(), backend.scan(), strict=True))
        assert {one.key for one, _ in pairs} == {other.key for _, other in pairs} == keys

    def test_reading_and_deleting_while_listing(self, backend: Backend) -> None:
        keys = self._fill(backend, 60)
        for meta in backend.scan():
            assert backend.get(meta.key, if_none_match=None).data == meta.key.encode()
            backend.delete(meta.key, if_match=meta.etag)
            keys.remove(meta.key)
        assert keys == set()
        assert list(backend.keys()) == []

    def test_closing_during_a_listing_ends_it(self, backend: Backend) -> None:
        keys = self._fill(backend, 60)
        listing = backend.scan()
        next(listing)
        backend.close()
        try:
            for meta in listing:
                assert meta.key in keys
        except (BackendError, NotFoundError):
            pass  # both an early end and an error of ours are fine, anything else is not
