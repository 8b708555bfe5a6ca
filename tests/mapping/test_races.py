"""What several threads and processes do to one key at once adds up: nothing is lost, nothing happens twice."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest

import perdure
from perdure import ANY_ETAG, DELETE_CURRENT, ETAG_HAS_CHANGED, ETAG_IS_THE_SAME, ITEM_NOT_AVAILABLE, NEVER_RETRIEVE, PersiDict
from perdure.protocol import Backend, ETag

ROUNDS = 30 * int(os.environ.get("PERDURE_ROUNDS", "1"))
THREADS = 8


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Call `work(0)` to `work(count - 1)` at the same moment; return what they return, errors included."""
    barrier = threading.Barrier(count)
    answers: list[Any] = [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            answers[number] = work(number)
        except BaseException as error:
            answers[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def increment(value: Any) -> int:
    return 1 if value is ITEM_NOT_AVAILABLE else value + 1


class TestThreads:
    def test_setdefault_has_one_writer(self, d: PersiDict[Any]) -> None:
        for number in range(ROUNDS):
            answers = together(lambda n, key=f"k{number}": d.setdefault(key, n))  # type: ignore[misc]
            assert set(answers) == {d[f"k{number}"]}

    def test_setdefault_if_has_one_writer(self, d: PersiDict[Any]) -> None:
        for condition, expected in ((ANY_ETAG, ETag("x")), (ETAG_IS_THE_SAME, ITEM_NOT_AVAILABLE)):
            for number in range(ROUNDS):
                key = f"{condition.name}{number}"
                results = together(
                    lambda n: d.setdefault_if(key, default_value=n, condition=condition, expected_etag=expected)  # noqa: B023
                )
                assert sum(r.value_was_mutated for r in results) == 1
                assert {r.resulting_etag for r in results} == {d.etag(key)}

    def test_append_only_has_one_writer(self, backend: Backend) -> None:
        d = PersiDict[int](backend, append_only=True)
        for number in range(ROUNDS):
            answers = together(lambda n, key=f"k{number}": d.__setitem__(key, n))  # type: ignore[misc]
            assert answers.count(None) == 1
            assert answers[d[f"k{number}"]] is None
            assert all(a is None or isinstance(a, perdure.PolicyError) for a in answers)

    def test_pop_gives_each_value_once(self, d: PersiDict[Any]) -> None:
        for _ in range(ROUNDS):
            d["k"] = 1
            assert sorted(together(lambda n: d.pop("k", 0))) == [0] * (THREADS - 1) + [1]
            assert "k" not in d

    def test_popitem_empties_once(self, d: PersiDict[Any]) -> None:
        def take(_: int) -> list[int]:
            taken = []
            while True:
                try:
                    taken.append(d.popitem()[1])
                except KeyError:
                    return taken

        d.set_many({f"k{i}": i for i in range(40)})
        assert sorted(chain.from_iterable(together(take))) == list(range(40))

    @pytest.mark.parametrize("how", ["discard", "del", "discard_if", "DELETE_CURRENT", "transform"])
    def test_delete_is_told_once(self, d: PersiDict[Any], how: str) -> None:
        def delete(_: int) -> bool:
            if how == "discard":
                return d.discard("k")
            if how == "discard_if":
                return d.discard_if("k", condition=ANY_ETAG, expected_etag=ITEM_NOT_AVAILABLE).value_was_mutated
            if how == "DELETE_CURRENT":
                return d.set_item_if(
                    "k", value=DELETE_CURRENT, condition=ETAG_HAS_CHANGED, expected_etag=ETag("other")
                ).value_was_mutated
            if how == "transform":
                seen: list[Any] = []
                d.transform_item("k", transformer=lambda v: seen.append(v) or DELETE_CURRENT)  # type: ignore[func-returns-value]
                return seen[-1] is not ITEM_NOT_AVAILABLE
            try:
                del d["k"]
            except KeyError:
                return False
            return True

        for _ in range(ROUNDS):
            d["k"] = 1
            answers = together(delete)
            assert all(isinstance(a, bool) for a in answers), answers
            assert answers.count(True) == 1

    def test_every_write_names_the_version_it_replaced(self, d: PersiDict[Any]) -> None:
        """Each version is replaced by exactly one writer, so the results form one chain from the first to the last."""
        for condition in (ANY_ETAG, ETAG_HAS_CHANGED):
            d["k"] = "start"
            first = d.etag("k")

            def write(n: int, condition: Any = condition) -> list[tuple[Any, Any]]:
                pairs = []
                for i in range(10):
                    result = d.set_item_if(
                        "k",
                        value=f"{n}-{i}",
                        condition=condition,
                        expected_etag=ETag("other"),
                        retrieve_value=NEVER_RETRIEVE,
                    )
                    assert result.condition_was_satisfied
                    pairs.append((result.actual_etag, result.resulting_etag))
                return pairs

            links = dict(chain.from_iterable(together(write)))
            assert len(links) == 10 * THREADS
            etag, length = first, 0
            while etag in links:
                etag = links.pop(etag)
                length += 1
            assert (length, etag) == (10 * THREADS, d.etag("k"))

    def test_swap_has_one_winner(self, d: PersiDict[Any]) -> None:
        d["k"] = "start"
        for _ in range(ROUNDS):
            etag = d.etag("k")
            results = together(
                lambda n: d.set_item_if("k", value=f"{n} after {etag}", condition=ETAG_IS_THE_SAME, expected_etag=etag)  # noqa: B023
            )
            assert Counter(r.condition_was_satisfied for r in results) == {True: 1, False: THREADS - 1}
            (winner,) = (r for r in results if r.condition_was_satisfied)
            assert winner.resulting_etag == d.etag("k")
            assert winner.new_value == d["k"]
            assert all(r.new_value == winner.new_value for r in results)

    def test_counter_adds_up(self, d: PersiDict[Any]) -> None:
        def work(_: int) -> None:
            for _ in range(ROUNDS):
                d.transform_item("k", transformer=increment)

        assert together(work) == [None] * THREADS
        assert d["k"] == ROUNDS * THREADS

    def test_iterating_while_others_write_and_delete(self, d: PersiDict[Any]) -> None:
        d.set_many({f"stay{i}": i for i in range(40)})
        done = threading.Event()

        def disturb(n: int) -> None:
            i = 0
            while not done.is_set():
                d[f"come{n}"] = i
                d.pop(f"come{n}", None)
                i += 1

        def read(_: int) -> None:
            try:
                for _ in range(5):
                    for listing in (list(d), [k for k, _ in d.items()]):
                        assert len(listing) == len(set(listing))
                        assert {f"stay{i}" for i in range(40)} <= set(listing)
                    assert len(d) >= 40
            finally:
                done.set()

        assert together(lambda n: read(n) if n == 0 else disturb(n), 4) == [None] * 4


def _count(url: str, rounds: int, go: Any) -> None:
    with perdure.open(url) as d:
        go.wait()
        for _ in range(rounds):
            d.transform_item(("count", "k"), transformer=increment)


@pytest.mark.parametrize("place", ["file", "sqlite"])
def test_processes_add_up(tmp_path: Any, place: str) -> None:
    url = {"file": f"file:{tmp_path}/folder?sync=normal", "sqlite": f"sqlite:{tmp_path}/file.db?sync=normal"}[place]
    spawn = multiprocessing.get_context("spawn")
    go = spawn.Barrier(4)
    workers = [spawn.Process(target=_count, args=(url, ROUNDS, go)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert perdure.open(url)["count", "k"] == 4 * ROUNDS
