"""Promises about many writers at once, each kept by threads, by spawned processes and by forked ones."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from ..errors import NotFoundError, PerdureError, PreconditionError
from ..protocol import ABSENT, Backend, Condition, ETag
from .crew import Crew, Move, Processes, Threads, spawned
from .kit import Kit
from .linearizability import check_history, work

THREADS = 8
PROCESSES = 4


class Races(Kit):
    """What holds when several write at once, whoever they are."""

    @pytest.fixture(params=["threads-one-handle", "threads", "spawned", "forked"])
    def crew(
        self, request: pytest.FixtureRequest, backend: Backend, another: Callable[[], Backend], where: Path
    ) -> Iterator[Crew]:
        """Several users of the place of this test: threads on one handle, threads or processes with a handle each."""
        kind: str = request.param
        if kind == "threads-one-handle":
            crew: Crew = Threads([backend] * THREADS)
        elif kind == "threads":
            crew = Threads([another() for _ in range(THREADS)])
        elif not self.processes:
            pytest.skip("this place belongs to one process")
        elif kind == "spawned":
            crew = spawned(PROCESSES)
            crew.open(partial(self.open, where))
            yield crew
            crew.open(None)
            return
        elif not self.forks or "fork" not in multiprocessing.get_all_start_methods():
            pytest.skip("a handle of this place is not for forked children")
        else:
            inherited = another()
            inherited.contains("a")  # so that whatever it opens at first use is open when the fork comes
            crew = Processes(PROCESSES, "fork", inherited)
        yield crew
        crew.close()

    def test_one_of_many_swaps_from_one_etag_wins(self, backend: Backend, crew: Crew) -> None:
        for turn in range(self.rounds(50)):
            etag = backend.put("k", b"start %d" % turn)
            self._one_wins(backend, crew, turn, etag)

    def test_one_of_many_creators_wins(self, backend: Backend, crew: Crew) -> None:
        for turn in range(self.rounds(50)):
            backend.delete("k")
            self._one_wins(backend, crew, turn, ABSENT)

    def _one_wins(self, backend: Backend, crew: Crew, turn: int, condition: Condition) -> None:
        values = [b"round %d member %d" % (turn, number) for number in range(crew.size)]
        answers = crew.at_once([_put(data, condition) for data in values])
        winners = [number for number, answer in enumerate(answers) if not isinstance(answer, PerdureError)]
        assert len(winners) == 1, f"round {turn}: the members {winners} all believe to have won: {answers}"
        assert all(isinstance(answer, PreconditionError) for answer in answers if isinstance(answer, PerdureError)), answers
        assert backend.get("k")[:2] == (values[winners[0]], answers[winners[0]])

    @pytest.mark.parametrize("rival", ["swap", "create", "delete_if"])
    def test_a_plain_put_is_never_undone(self, backend: Backend, crew: Crew, rival: str) -> None:
        # Whatever happens to the rivals: those that succeed were before the plain put, so what was put must stay.
        for turn in range(self.rounds(30)):
            etag = self._start(backend, turn, absent=rival == "create")
            moves = [_move(rival, b"rival %d.%d" % (turn, number), etag) for number in range(crew.size)]
            moves[turn % crew.size] = _put(b"plain %d" % turn, None)
            answers = crew.at_once(moves)
            assert isinstance(answers[turn % crew.size], str), answers
            self._only_refusals(answers)
            assert backend.get("k").data == b"plain %d" % turn, f"round {turn}: the plain put was undone: {answers}"

    @pytest.mark.parametrize("rival", ["swap", "delete_if"])
    def test_a_plain_delete_is_never_undone(self, backend: Backend, crew: Crew, rival: str) -> None:
        for turn in range(self.rounds(30)):
            etag = self._start(backend, turn)
            moves = [_move(rival, b"rival %d.%d" % (turn, number), etag) for number in range(crew.size)]
            moves[turn % crew.size] = methodcaller("delete", "k")
            answers = crew.at_once(moves)
            assert answers[turn % crew.size] is None, answers
            self._only_refusals(answers)
            assert not backend.contains("k"), f"round {turn}: the delete was undone: {answers}"

    def test_one_of_many_swaps_and_deletes_from_one_etag_wins(self, backend: Backend, crew: Crew) -> None:
        for turn in range(self.rounds(30)):
            etag = self._start(backend, turn)
            kinds = ["swap" if (number + turn) % 2 else "delete_if" for number in range(crew.size)]
            answers = crew.at_once([_move(kind, b"%d.%d" % (turn, number), etag) for number, kind in enumerate(kinds)])
            self._only_refusals(answers)
            winners = [number for number, answer in enumerate(answers) if not isinstance(answer, PerdureError)]
            assert len(winners) == 1, f"round {turn}: the members {winners} ({kinds}) all believe to have won"
            if kinds[winners[0]] == "swap":
                assert backend.get("k").data == b"%d.%d" % (turn, winners[0])
            else:
                assert not backend.contains("k")

    def _start(self, backend: Backend, turn: int, *, absent: bool = False) -> ETag | None:
        if absent:
            backend.delete("k")
            return None
        return backend.put("k", b"start %d" % turn)

    def _only_refusals(self, answers: list[Any]) -> None:
        for answer in answers:
            assert not isinstance(answer, PerdureError) or isinstance(answer, PreconditionError), repr(answer)

    def test_a_counter_adds_up(self, backend: Backend, crew: Crew) -> None:
        times = self.rounds(25)
        crew.at_once([partial(count_up, times=times)] * crew.size)
        assert int(backend.get("counter").data) == times * crew.size

    def test_values_are_never_seen_torn(self, backend: Backend, crew: Crew) -> None:
        size = min(max(self.big // 4, 2000), 1 << 18)
        writers = crew.size // 2
        backend.put("k", bytes(size))
        moves: list[Move] = [partial(_write_stripes, byte=1 + n, size=size, times=self.rounds(10)) for n in range(writers)]
        moves += [partial(_read_stripes, size=size, writers=writers)] * (crew.size - writers)
        versions: dict[ETag, int] = {}
        for answer in crew.at_once(moves)[writers:]:
            assert not isinstance(answer, PerdureError), repr(answer)
            for etag, byte in answer.items():
                assert versions.setdefault(etag, byte) == byte, f"the ETag {etag} was seen on two different values"

    def test_what_stays_is_listed_once_while_others_write(self, backend: Backend, crew: Crew) -> None:
        stays = [f"stays/{number}" for number in range(30)]
        backend.put_many(dict.fromkeys(stays, b"1"))
        churners = crew.size // 2
        moves: list[Move] = [partial(_churn, name=f"m{n}", times=self.rounds(8)) for n in range(churners)]
        moves += [partial(_list, stays=stays, writers=churners)] * (crew.size - churners)
        for answer in crew.at_once(moves):
            assert not isinstance(answer, PerdureError), repr(answer)

    def test_writers_of_different_keys_do_not_disturb_each_other(self, backend: Backend, crew: Crew) -> None:
        # Keys that share their folders, which one member makes while another one clears them away.
        crew.at_once([partial(_keep_house, name=f"{n}", times=self.rounds(20)) for n in range(crew.size)])
        left = {f"{top}/{n}" if top != "a/b/c" else f"a/b/c/{n}" for top in ("a/b", "a/b/c") for n in range(crew.size)}
        assert set(backend.keys()) == left

    def test_histories_are_linearizable(self, backend: Backend, crew: Crew) -> None:
        for seed in range(self.rounds(4)):
            keys = (f"{seed}/x",) if seed % 4 else (f"{seed}/x", f"{seed}/y")  # on one key most happens to each other
            clients = [f"client {number}" for number in range(crew.size)]
            moves = [partial(work, client=client, seed=seed, count=60, keys=keys) for client in clients]
            histories = crew.at_once(moves)
            for history in histories:
                assert not isinstance(history, PerdureError), repr(history)
            check_history(operation for history in histories for operation in history)


# What follows runs in the members, so it is found by name in other processes.


def _put(data: bytes, condition: Condition) -> Move:
    return methodcaller("put", "k", data, if_match=condition)


def _move(kind: str, data: bytes, etag: ETag | None) -> Move:
    if kind == "delete_if":
        return methodcaller("delete", "k", if_match=etag)
    return _put(data, ABSENT if kind == "create" else etag)


def count_up(backend: Backend, times: int) -> None:
    for _ in range(times):
        while True:
            try:
                data, etag, _ = backend.get("counter")
            except NotFoundError:
                data, etag = b"0", None
            try:
                backend.put("counter", b"%d" % (int(data) + 1), if_match=ABSENT if etag is None else etag)
                break
            except PreconditionError:
                continue


def _write_stripes(backend: Backend, byte: int, size: int, times: int) -> None:
    for turn in range(times):
        backend.put("k", bytes([byte]) * (size - turn % 1000))
    backend.put(f"done/{byte}", b"")


def _read_stripes(backend: Backend, size: int, writers: int) -> dict[ETag, int]:
    seen: dict[ETag, int] = {}
    sizes: dict[ETag, int] = {}
    done = [f"done/{byte}" for byte in range(1, writers + 1)]
    last = False
    while True:
        data, etag, _ = backend.get("k")
        assert data == data[:1] * len(data), f"a value of {len(data)} bytes is torn: it holds the bytes {sorted(set(data))}"
        assert len(data) > size - 1000, f"a value was cut to {len(data)} bytes"
        assert sizes.setdefault(etag, len(data)) == len(data), f"the ETag {etag} was seen on two sizes"
        meta = backend.head("k")
        assert sizes.setdefault(meta.etag, meta.size) == meta.size, f"the ETag {meta.etag} was seen on two sizes"
        seen[etag] = data[0]
        if last:
            return seen
        last = all(map(backend.contains, done))


def _churn(backend: Backend, name: str, times: int) -> None:
    for turn in range(times):
        for key in (f"stays/{name}", f"{name}/a/b", name):
            backend.put(key, b"%d" % turn)
        backend.put(f"stays/{turn % 30}", b"rewritten by %s" % name.encode())
        backend.delete(f"stays/{name}")
        backend.delete_many([f"{name}/a/b", name])
    backend.put(f"done/{name}", b"")


def _list(backend: Backend, stays: list[str], writers: int) -> None:
    done = [f"done/m{number}" for number in range(writers)]
    last = False
    while True:
        for prefix in ("", "stays/"):
            for listed in (list(backend.keys(prefix)), [meta.key for meta in backend.scan(prefix)]):
                assert len(listed) == len(set(listed)), f"listed twice: {sorted(k for k in listed if listed.count(k) > 1)}"
                missing = set(stays) - set(listed)
                assert not missing, f"not listed although there all the time: {sorted(missing)}"
        if last:
            return
        last = all(map(backend.contains, done))


def _keep_house(backend: Backend, name: str, times: int) -> None:
    for turn in range(times):
        data = b"%d" % turn
        for key in (f"a/b/{name}", f"a/b/c/{name}"):
            backend.put(key, data, if_match=ABSENT)
            assert backend.get(key).data == data
            if turn < times - 1:
                backend.delete(key)
                assert not backend.contains(key)
