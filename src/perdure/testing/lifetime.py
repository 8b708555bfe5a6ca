"""Promises about handles: several on one place, closed, pickled, forked; and settings that stay with the place."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import wait  # unlike select, with descriptors above 1024 too
from pathlib import Path
from typing import Any

import pytest

from ..errors import BackendError, PolicyError, PreconditionError, UsageError
from ..protocol import ABSENT, Backend
from .crew import PATIENCE
from .kit import Kit, contents, refused
from .races import count_up


class Lifetime(Kit):
    """From opening to closing."""

    def test_what_was_put_is_there_after_reopening(self, where: Path, backend: Backend) -> None:
        etag = backend.put("a/b", b"1")
        backend.put("c", b"2")
        backend.close()
        with self.open(where) as again:
            assert contents(again) == {"a/b": b"1", "c": b"2"}
            assert again.head("a/b").etag == etag
            again.put("a/b", b"3", if_match=etag)

    def test_two_handles_see_each_other(self, backend: Backend, another: Callable[[], Backend]) -> None:
        other = another()
        first = backend.put("a", b"1")
        assert backend.get("a")[:2] == other.get("a")[:2] == (b"1", first)
        second = other.put("a", b"2", if_match=first)
        assert backend.get("a")[:2] == (b"2", second), "what one handle read before, it must read again"
        assert backend.head("a")[1] == second
        assert [meta.etag for meta in backend.scan()] == [second]
        refused(PreconditionError, "a stale swap", backend.put, "a", b"3", if_match=first)
        assert backend.get("a", if_none_match=first)[:2] == (b"2", second)
        assert backend.contains("a")
        other.delete("a")
        assert not backend.contains("a")
        assert list(backend.keys()) == []
        other.close()
        backend.put("a", b"4", if_match=ABSENT)

    def test_two_places_do_not_see_each_other(self, where: Path, backend: Backend) -> None:
        backend.put("a", b"here")
        with self.open(where.with_name("elsewhere")) as elsewhere:
            assert list(elsewhere.keys()) == []
            elsewhere.put("a", b"there", if_match=ABSENT)
            elsewhere.put("b", b"there")
            assert contents(backend) == {"a": b"here"}

    def test_opening_reading_and_closing_leaves_nothing_behind(self, where: Path, backend: Backend) -> None:
        for _ in range(3):
            with self.open(where) as again:
                assert not again.contains("a/b")
                assert again.get_many(["a", "b"]) == {}
                again.delete("a/b")
                assert list(again.scan()) == list(again.scan("a/")) == []

    def test_close_twice_and_nothing_works_any_more(self, where: Path, handle: Backend) -> None:
        if self.keeps:
            handle.put("a", b"1")
        handle.close()
        handle.close()
        calls: list[tuple[str, Callable[..., Any], Any]] = [
            ("get", handle.get, "a"),
            ("get of an absent key", handle.get, "b"),
            ("head", handle.head, "a"),
            ("contains", handle.contains, "a"),
            ("put", handle.put, ("a", b"2")),
            ("delete", handle.delete, "a"),
            ("scan", lambda: list(handle.scan()), ()),
            ("keys", lambda: list(handle.keys("a/")), ()),
            ("get_many", handle.get_many, (["a"],)),
            ("put_many", handle.put_many, ({"a": b"2"},)),
            ("delete_many", handle.delete_many, (["a"],)),
        ]
        for name, call, args in calls:
            error = refused(BackendError, f"{name} after close", call, *(args if isinstance(args, tuple) else (args,)))
            assert handle.place in str(error), name
        if self.keeps:
            with self.open(where) as again:
                assert contents(again) == {"a": b"1"}

    def test_with_closes(self, handle: Backend) -> None:
        with handle as inside:
            assert inside is handle
            handle.put("a", b"1")
        refused(BackendError, "get after with", handle.get, "a")

    def test_closing_in_the_middle_of_calls(self, backend: Backend, another: Callable[[], Backend]) -> None:
        for turn in range(self.rounds(10)):
            handle = another()
            begun = threading.Event()
            acknowledged: list[int] = []
            problems: list[str] = []

            thread = threading.Thread(target=_write_until_closed, args=(handle, begun, acknowledged, problems), daemon=True)
            thread.start()
            assert begun.wait(PATIENCE)
            handle.close()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "stuck"
            assert not problems, f"round {turn}:\n{problems[0]}"
            assert int(backend.get("k").data) in (acknowledged[-1], acknowledged[-1] + 1)

    def test_pickling_gives_a_handle_on_the_same_place_or_is_refused(self, handle: Backend) -> None:
        try:
            text = pickle.dumps(handle)
        except PolicyError as error:
            assert handle.place in str(error)
            return
        again = pickle.loads(text)
        try:
            assert type(again) is type(handle)
            assert again.place == handle.place
            if self.keeps:
                again.put("a", b"1")
                assert handle.get("a").data == b"1"
                handle.put("b", b"2")
                assert contents(again) == contents(handle)
        finally:
            again.close()
        if self.keeps:
            assert handle.get("a").data == b"1"  # closing the copy did not close this one

    def test_settings_stay_with_the_place_or_are_ignored(self, where: Path, backend: Backend) -> None:
        assert backend.recorded() == {}
        backend.record({"codec": "msgpack", "filters": ""})
        backend.put("a", b"1")
        with self.open(where) as again:
            recorded = again.recorded()
            assert recorded in ({}, {"codec": "msgpack", "filters": ""})
            assert contents(again) == {"a": b"1"}, "the record itself must not be listed"
            again.record({"codec": "msgpack", "filters": ""})
        if not recorded:
            return
        with self.open(where) as again:

            def contradict() -> None:
                again.record({"codec": "json", "filters": ""})
                again.put("a", b"2")

            error = refused(UsageError, "a record that contradicts what is there", contradict)
            assert again.place in str(error)
        with self.open(where) as again:
            assert again.recorded() == recorded
            assert contents(again) == {"a": b"1"}


class Forks(Kit):
    """A forked child goes on with what it inherited, and whatever it does there, the parent does not notice."""

    @pytest.fixture
    def may_fork(self) -> None:
        """Skips where a handle does not survive a fork."""
        if not (self.forks and hasattr(os, "fork")):
            pytest.skip("a handle of this place is not for forked children")

    @pytest.mark.usefixtures("may_fork")
    def test_a_forked_child_works_while_the_parent_is_in_the_middle_of_calls(self, backend: Backend) -> None:
        ended = threading.Event()
        problems: list[str] = []
        done = [0] * 4

        def hammer(number: int) -> None:
            # Only bare calls: the lock of `logging` or of a queue, held by a thread while we fork, would not be ours to judge.
            try:
                while not ended.is_set():
                    backend.put(f"parent/{number}", b"%d" % done[number])
                    assert int(backend.get(f"parent/{number}").data) == done[number]
                    done[number] += 1
            except BaseException:
                problems.append(traceback.format_exc())

        threads = [threading.Thread(target=hammer, args=(number,), daemon=True) for number in range(len(done))]
        for thread in threads:
            thread.start()
        try:
            for turn in range(self.rounds(8)):
                in_child(partial(_work_in_child, backend, turn))
        finally:
            ended.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads), "the parent is stuck"
        assert not problems, problems[0]
        if self.processes:
            assert set(backend.keys("child/")) == {f"child/{turn}" for turn in range(self.rounds(8))}

    @pytest.mark.usefixtures("may_fork")
    def test_a_forked_childs_end_does_not_disturb_the_parent(self, backend: Backend) -> None:
        """A child closes its copies of whatever the parent has open, just when the parent holds a lock with it."""
        times = self.rounds(20)
        problems: list[str] = []

        def count() -> None:
            try:
                count_up(backend, times)
            except BaseException:
                problems.append(traceback.format_exc())

        threads = [threading.Thread(target=count, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        children = 0
        while any(thread.is_alive() for thread in threads) and children < self.rounds(20):
            in_child(backend.close)
            children += 1
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the parent is stuck"
        assert not problems, problems[0]
        assert int(backend.get("counter").data) == 4 * times

    @pytest.mark.usefixtures("may_fork")
    def test_a_listing_begun_before_a_fork_goes_on_on_both_sides(self, backend: Backend) -> None:
        keys = {f"{number}" for number in range(50)}
        backend.put_many(dict.fromkeys(keys, b"1"))
        listing = backend.scan()
        first = next(listing).key

        def rest() -> None:
            assert {first, *(meta.key for meta in listing)} == keys

        in_child(rest)
        rest()


def _write_until_closed(handle: Backend, begun: threading.Event, acknowledged: list[int], problems: list[str]) -> None:
    try:
        for number in range(1_000_000):
            handle.put("k", b"%d" % number)
            acknowledged.append(number)
            handle.get("k")
            begun.set()
    except BackendError:
        pass  # what a closed backend says
    except BaseException:
        problems.append(traceback.format_exc())
    finally:
        begun.set()


def _work_in_child(backend: Backend, turn: int) -> None:
    key = f"child/{turn}"
    etag = backend.put(key, b"1", if_match=ABSENT)
    assert backend.get(key)[:2] == (b"1", etag)
    backend.put(key, b"2", if_match=etag)
    refused(PreconditionError, "a stale swap in a child", backend.put, key, b"3", if_match=etag)
    refused(PreconditionError, "a stale delete in a child", backend.delete, key, if_match=etag)
    assert key in set(backend.keys("child/"))
    backend.put_many({f"parent/{number}/child": b"" for number in range(4)})
    backend.delete_many([f"parent/{number}/child" for number in range(4)])
    backend.close()
    refused(BackendError, "get after close in a child", backend.get, key)


def in_child(work: Callable[[], object]) -> None:
    """Run `work` in a forked child; fail with its traceback when it fails, and when it is stuck."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        text = ""
        try:
            os.close(ours)
            work()
        except BaseException:
            text = traceback.format_exc()
        finally:
            with open(theirs, "wb") as pipe:
                pipe.write(text.encode())
                pipe.flush()
                os._exit(0 if not text else 1)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        ended = wait([pipe.fileno()], PATIENCE)
        if not ended:
            os.kill(child, signal.SIGKILL)
        text = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    assert ended, f"the forked child is stuck after {PATIENCE} s"
    assert status == 0, f"the forked child failed (status {status}):\n{text}"
