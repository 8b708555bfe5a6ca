"""The history checker against histories whose answer is known, and against a slow one that tries every order."""

from __future__ import annotations

import itertools
import os
import pickle
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import UnavailableError
from perdure.testing.crew import Threads
from perdure.testing.faults import Faulty, at_random, fail_before, lose_answer
from perdure.testing.linearizability import (
    _IMPOSSIBLE,
    Action,
    NotLinearizable,
    Operation,
    Outcome,
    Recorder,
    _effect,
    check_history,
    work,
)
from perdure_backends.memory import MemoryBackend


def op(
    start: int, end: int, action: Action, value: bytes | None = None, given: bytes | None = None, outcome: Outcome = "done"
) -> Operation:
    return Operation(f"client {start}", "k", action, given, value, outcome, start, end)


GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "one after the other": [op(0, 1, "get"), op(2, 3, "put", b"a"), op(4, 5, "get", b"a"), op(6, 7, "delete"), op(8, 9, "get")],
    "a read during a write sees either": [op(0, 9, "put", b"a"), op(1, 2, "get"), op(3, 4, "get", b"a")],
    "overlapping writes in either order": [op(0, 9, "put", b"a"), op(1, 8, "put", b"b"), op(10, 11, "get", b"a")],
    "a swap": [op(0, 1, "put", b"a"), op(2, 3, "swap", b"b", b"a"), op(4, 5, "get", b"b")],
    "one of two swaps": [op(0, 1, "put", b"a"), op(2, 9, "swap", b"b", b"a"), op(3, 8, "swap", b"c", b"a", "refused")],
    "a swap back in time": [op(0, 20, "swap", b"b", b"a"), op(5, 6, "put", b"a"), op(7, 8, "get", b"b")],
    "create after delete": [op(0, 1, "create", b"a"), op(2, 9, "create", b"b"), op(3, 8, "delete")],
    "create refused": [op(0, 1, "create", b"a"), op(2, 3, "create", b"b", outcome="refused")],
    "an unknown write that happened": [op(0, 1, "put", b"a", outcome="unknown"), op(10, 11, "get", b"a")],
    "an unknown write that never happened": [op(0, 1, "put", b"a", outcome="unknown"), op(10, 11, "get")],
    "an unknown write that happened late": [
        op(0, 1, "put", b"a", outcome="unknown"), op(2, 3, "put", b"b"), op(4, 5, "get", b"b"), op(6, 7, "get", b"a"),
    ],
    "an unknown delete explains absence": [op(0, 1, "put", b"a"), op(2, 3, "delete", outcome="unknown"), op(4, 5, "get")],
    "an unknown swap explains a refusal": [
        op(0, 1, "put", b"a"), op(2, 3, "swap", b"b", b"a", "unknown"), op(4, 5, "swap", b"c", b"a", "refused"),
    ],
    "only unknown ones": [op(0, 1, "put", b"a", outcome="unknown"), op(0, 1, "swap", b"b", b"z", "unknown")],
}  # fmt: skip

BAD: dict[str, list[Operation]] = {
    "a value from nowhere": [op(0, 1, "get", b"a")],
    "a stale read": [op(0, 1, "put", b"a"), op(2, 3, "put", b"b"), op(4, 5, "get", b"a")],
    "an acknowledged write is lost": [op(0, 1, "put", b"a"), op(2, 3, "get")],
    "two swaps from one version": [op(0, 1, "put", b"a"), op(2, 9, "swap", b"b", b"a"), op(3, 8, "swap", b"c", b"a")],
    "two creators": [op(0, 9, "create", b"a"), op(1, 8, "create", b"b")],
    "a read goes back": [op(0, 9, "put", b"a"), op(1, 2, "get", b"a"), op(3, 4, "get")],
    "a put slips between check and replace": [
        op(0, 1, "put", b"a"), op(2, 9, "swap", b"b", b"a"), op(3, 4, "put", b"c"), op(10, 11, "get", b"b"),
    ],
    "refused for no reason": [op(0, 1, "put", b"a"), op(2, 3, "swap", b"b", b"a", "refused")],
    "create refused for no reason": [op(0, 1, "create", b"a", outcome="refused")],
    "a delete is undone": [op(0, 1, "put", b"a"), op(2, 3, "delete"), op(4, 5, "get", b"a")],
    "an unknown write happens twice": [
        op(0, 1, "put", b"a", outcome="unknown"), op(2, 3, "get", b"a"), op(4, 5, "put", b"b"), op(6, 7, "get", b"b"),
        op(8, 9, "get", b"a"),
    ],
    "an unknown write happens before its start": [op(0, 1, "get", b"a"), op(2, 3, "put", b"a", outcome="unknown")],
    "an unknown swap takes effect without its condition": [
        op(0, 1, "put", b"a"), op(2, 3, "put", b"b"), op(4, 5, "swap", b"c", b"a", "unknown"), op(6, 7, "get", b"c"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    check_history(GOOD[name])
    check_history(reversed(GOOD[name]))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_found(name: str) -> None:
    with pytest.raises(NotLinearizable):
        check_history(BAD[name])


def test_keys_are_judged_one_by_one() -> None:
    other = [operation._replace(key="other") for operation in BAD["a stale read"]]
    with pytest.raises(NotLinearizable, match="the key 'other'"):
        check_history([*GOOD["a swap"], *other])


def test_the_counterexample_can_be_read() -> None:
    with pytest.raises(NotLinearizable) as caught:
        check_history(BAD["a put slips between check and replace"])
    text = str(caught.value)
    assert "no order explains the 4 operations of 4 clients on the key 'k'" in text
    assert "put 'a' -> done" in text
    assert "swap 'a' to 'b' -> done" in text
    assert "get -> 'b'" in text
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_the_same_bytes_written_twice_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="same bytes"):
        check_history([op(0, 1, "put", b"a"), op(2, 3, "put", b"a")])


def _tries_every_order(history: list[Operation]) -> bool:
    """The definition, word by word: some order of all known operations and some of the unknown ones fits."""
    unknown = [operation for operation in history if operation.outcome == "unknown"]
    known = [operation for operation in history if operation.outcome != "unknown"]
    for size in range(len(unknown) + 1):
        for taken in itertools.combinations(unknown, size):
            for order in itertools.permutations([*known, *taken]):
                value: object = None
                for position, operation in enumerate(order):
                    later = order[position + 1 :]
                    if any(other.end < operation.start and other.outcome != "unknown" for other in later):
                        break
                    value = _effect(operation, value)
                    if value is _IMPOSSIBLE:
                        break
                else:
                    return True
    return False


@st.composite
def _histories(draw: st.DrawFn) -> list[Operation]:
    history = []
    for number in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, 20))
        end = start + draw(st.integers(0, 10))
        action: Action = draw(st.sampled_from(["get", "put", "create", "swap", "delete", "delete if"]))
        some = st.sampled_from([b"0", b"1", b"2", b"3", b"4"])
        value = None if action.startswith("delete") else draw(st.none() | some) if action == "get" else b"%d" % number
        given = draw(some) if action in ("swap", "delete if") else None
        outcomes: list[Outcome] = ["done"] if action == "get" else ["done", "unknown"]
        if action in ("create", "swap", "delete if"):
            outcomes.append("refused")
        history.append(Operation(f"c{number}", "k", action, given, value, draw(st.sampled_from(outcomes)), start, end))
    return history


@settings(max_examples=300 * int(os.environ.get("PERDURE_ROUNDS", "1")), deadline=None)
@given(_histories())
def test_it_agrees_with_trying_every_order(history: list[Operation]) -> None:
    try:
        check_history(history)
        found = True
    except NotLinearizable:
        found = False
    assert found == _tries_every_order(history)


def test_many_operations_that_overlap_are_judged() -> None:
    backend = MemoryBackend()
    crew = Threads([backend] * 8)
    try:
        histories = crew.at_once([partial(work, client=f"c{n}", seed=1, count=250, keys=("k",)) for n in range(8)])
    finally:
        crew.close()
    history = [operation for part in histories for operation in part]
    assert len(history) > 1900
    check_history(history)
    # Take one acknowledged write that was read away, and the same history cannot be explained any more.
    read = {operation.value for operation in history if operation.action == "get" and operation.value is not None}
    lost = next(operation for operation in history if operation.value in read and operation.action != "get")
    with pytest.raises(NotLinearizable):
        check_history(operation for operation in history if operation is not lost)


@pytest.mark.parametrize("seed", range(4))
def test_lost_answers_and_failed_calls_are_explained(seed: int) -> None:
    plan = at_random(seed, 0.15, [lose_answer(), fail_before(UnavailableError)])
    faulty = Faulty(MemoryBackend(), plan)
    crew = Threads([faulty] * 4)
    try:
        histories = crew.at_once([partial(work, client=f"c{n}", seed=seed, count=60) for n in range(4)])
    finally:
        crew.close()
    history = [operation for part in histories for operation in part]
    assert any(operation.outcome == "unknown" for operation in history)
    check_history(history)


def test_a_recorder_notes_what_happened() -> None:
    recorder = Recorder(MemoryBackend(), "me")
    assert recorder.get("k") is None
    etag = recorder.put("k", b"1")
    assert etag is not None
    second = recorder.put("k", b"2", if_match=etag)
    assert recorder.put("k", b"3", if_match=etag) is None
    assert recorder.get("k") == (b"2", second)
    recorder.delete("k", if_match=second)
    recorder.delete("k")
    assert [str(operation) for operation in recorder.history] == [
        "get -> absent",
        "put '1' -> done",
        "swap '1' to '2' -> done",
        "swap '1' to '3' -> refused",
        "get -> '2'",
        "delete if '2' -> done",
        "delete -> done",
    ]
    assert all(operation.start <= operation.end for operation in recorder.history)
    check_history(recorder.history)


def test_work_is_the_same_for_the_same_seed() -> None:
    first, second = (work(MemoryBackend(), "c", seed=3, count=50) for _ in range(2))
    assert [operation[:6] for operation in first] == [operation[:6] for operation in second]
