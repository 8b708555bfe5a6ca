"""Was there *one* order in which everything could have happened? Records operations, then searches for that order.

A history is linearizable when each operation can be given an instant between its start and its end so that, taken in that
order, every answer is right. The search is that of J. M. Wing and C. Gong, "Testing and Verifying Concurrent Objects" (1993),
with the memory of visited configurations added by G. Lowe, "Testing for linearizability" (2017); keys are judged one by
one, because a history is linearizable exactly when the history of each key is (Herlihy and Wing, 1990).

Values stand for versions: every write of a history must write bytes that no other write of it writes. `Recorder` notes what
one client does, `work` does something random with one, `check_history` judges what all clients noted together::

    recorder = Recorder(backend, "client 1")
    etag = recorder.put("a", b"1-1")
    recorder.put("a", b"1-2", if_match=etag)
    check_history(recorder.history)

Times are `time.monotonic_ns()`, which all processes of one machine share.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from ..errors import NotFoundError, PreconditionError, UnavailableError, UnknownOutcomeError
from ..protocol import ABSENT, Backend, Condition, ETag

T = TypeVar("T")
Action: TypeAlias = Literal["get", "put", "create", "swap", "delete", "delete if"]
Outcome: TypeAlias = Literal["done", "refused", "unknown"]


class Operation(NamedTuple):
    """One call as its client saw it.

    Attributes:
        client: Who called.
        key: On which key.
        action: `"get"`, `"put"`, `"create"`, `"swap"`, `"delete"` or `"delete if"`.
        given: For `swap` and `delete if`: the value of the version that the condition named.
        value: What was written, or what a `get` answered; `None` for absent.
        outcome: `"refused"` where the condition did not hold. `"unknown"` took effect at some instant after its start,
            or never.
        start: When the call began, in nanoseconds of the monotonic clock.
        end: When it returned; without meaning for an unknown outcome.
    """

    client: str
    key: str
    action: Action
    given: bytes | None
    value: bytes | None
    outcome: Outcome
    start: int
    end: int

    def __str__(self) -> str:
        words: str = self.action
        if self.action == "get":
            return f"get -> {_spell(self.value)}"
        if self.action in ("swap", "delete if"):
            words += f" {_spell(self.given)}"
        if self.value is not None:
            words += f" {'to ' if self.action == 'swap' else ''}{_spell(self.value)}"
        return f"{words} -> {self.outcome}"


class NotLinearizable(AssertionError):
    """No order explains the history; the text shows how far the best attempt got and what could not come next."""


def check_history(history: Iterable[Operation]) -> None:
    """Find an order that explains every answer in `history`.

    Time and memory grow with the number of operations, and exponentially only with how many overlap on one key.

    Args:
        history: What all clients recorded, in any order. All keys are absent at the beginning.

    Raises:
        NotLinearizable: There is none.
        ValueError: Two writes of one key wrote the same bytes, so that their versions cannot be told apart.
    """
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    for key, operations in by_key.items():
        operations.sort(key=lambda operation: operation.start)
        written = [op.value for op in operations if op.action in ("put", "create", "swap")]
        if len(set(written)) < len(written):
            raise ValueError(f"two writes of the key {key!r} wrote the same bytes; every write must write others")
        _search(key, operations)


_IMPOSSIBLE = object()


def _effect(operation: Operation, value: object) -> object:
    """The value after `operation` on a register that holds `value`; `_IMPOSSIBLE` when its answer contradicts that."""
    _, _, action, given, written, outcome, _, _ = operation
    if action == "get":
        return value if value == written else _IMPOSSIBLE
    if action in ("put", "delete"):
        return written
    holds = value is None if action == "create" else value is not None and value == given
    if outcome == "refused":
        return _IMPOSSIBLE if holds else value
    return written if holds else _IMPOSSIBLE  # an unknown one that would have been refused need not be placed at all


def _search(key: str, operations: list[Operation]) -> None:
    known = [op for op in operations if op.outcome != "unknown"]
    unknown = [op for op in operations if op.outcome == "unknown"]
    # A configuration: all known operations before `first` are placed, those of `mask` beyond it, the unknown ones of
    # `used`; and the register holds `value`. How it was reached does not matter, so none is visited twice.
    visited: set[tuple[int, int, int, object]] = set()
    path: list[Operation] = []
    best: tuple[list[Operation], object, list[Operation]] | None = None
    placed = most = 0
    steps = [_next(known, unknown, 0, 0, 0, None)]
    trail: list[bool] = []
    while steps:
        step = next(steps[-1], None)
        if step is None:
            steps.pop()
            if trail:
                placed -= trail.pop()
                path.pop()
            continue
        operation, first, mask, used, value = step
        if (first, mask, used, value) in visited:
            continue
        visited.add((first, mask, used, value))
        path.append(operation)
        trail.append(operation.outcome != "unknown")
        placed += trail[-1]
        if placed == len(known):
            return
        if placed > most or best is None:
            most = placed
            best = (list(path), value, [op for i, op in enumerate(known[first:]) if not mask >> i & 1])
        steps.append(_next(known, unknown, first, mask, used, value))
    if known:
        order, value, rest = best or ([], None, known)
        raise NotLinearizable(_explain(key, operations, order, value, rest))


_Step: TypeAlias = tuple[Operation, int, int, int, object]


def _next(known: list[Operation], unknown: list[Operation], first: int, mask: int, used: int, value: object) -> Iterator[_Step]:
    """Yield each operation that may come next, with the configuration it leads to."""
    deadline: float = float("inf")  # whatever starts later than this comes after something that is not placed yet
    candidates: list[tuple[int, int]] = []
    for index in range(first, len(known)):
        if known[index].start > deadline:
            break
        if not mask >> (index - first) & 1:
            deadline = min(deadline, known[index].end)
            candidates.append((known[index].end, index))
    candidates.sort()  # the natural guess first
    fitting = [(index, after) for _, index in candidates if (after := _effect(known[index], value)) is not _IMPOSSIBLE]
    # What fits and can never change anything may as well come at once: from wherever it stands later, it can be moved here.
    harmless = [
        (index, after) for index, after in fitting if known[index].action == "get" or known[index].outcome == "refused"
    ][:1]
    for index, after in harmless or fitting:
        moved, rest = first, mask | 1 << (index - first)
        while rest & 1:
            rest >>= 1
            moved += 1
        yield known[index], moved, rest, used, after
    if harmless:
        return
    for index, operation in enumerate(unknown):
        if operation.start > deadline:
            break
        if not used >> index & 1:
            after = _effect(operation, value)
            if after is not _IMPOSSIBLE and after != value:
                yield operation, first, mask, used | 1 << index, after


def _explain(key: str, operations: list[Operation], order: list[Operation], value: object, rest: list[Operation]) -> str:
    origin = operations[0].start
    width = max(len(op.client) for op in operations)

    def line(op: Operation) -> str:
        end = "       ?" if op.outcome == "unknown" else f"{(op.end - origin) / 1e6:8.3f}"
        return f"  {(op.start - origin) / 1e6:8.3f} to {end} ms  {op.client:{width}}  {op}"

    deadline = min(op.end for op in rest)
    stuck = [op for op in rest if op.start <= deadline]
    lost = [op for op in operations if op.outcome == "unknown" and op not in order]
    clients = len({op.client for op in operations})
    return "\n".join(
        [
            f"no order explains the {len(operations)} operations of {clients} clients on the key {key!r}.",
            f"At best {len(order)} of them can be put in order; the last are",
            *map(line, order[-8:]),
            f"and then the value is {_spell(value)}, so that none of these, one of which comes next, can be right:",
            *map(line, stuck),
            *(["Of unknown outcome, and no help either:", *map(line, lost[:8])] if lost else []),
        ]
    )


def _spell(value: object) -> str:
    return "absent" if value is None else repr(value)[1:60]


class Recorder:
    """One client of a backend, which notes each call with its times. One thread at a time.

    Args:
        backend: Whom to call.
        client: The name that stands in a counterexample; unique among all clients.

    Attributes:
        history: What was done so far.
    """

    def __init__(self, backend: Backend, client: str) -> None:
        self.backend = backend
        self.client = client
        self.history: list[Operation] = []
        self._versions: dict[tuple[str, ETag], bytes] = {}

    def get(self, key: str) -> tuple[bytes, ETag] | None:
        """Read; `None` for absent."""
        start = time.monotonic_ns()
        try:
            data, etag, _ = self.backend.get(key)
        except NotFoundError:
            self._note(key, "get", None, None, "done", start)
            return None
        self._note(key, "get", None, data, "done", start)
        self._versions[key, etag] = data
        return data, etag

    def put(self, key: str, data: bytes, if_match: Condition = None) -> ETag | None:
        """Write; `None` when it was refused, or when it cannot be known. `data` must be unique in the whole history."""
        given = None
        action: Action = "put" if if_match is None else "create"
        if if_match is not None and if_match is not ABSENT:
            action, given = "swap", self._versions[key, if_match]
        etag = self._write(key, action, given, data, lambda: self.backend.put(key, data, if_match=if_match))
        if etag is not None:
            self._versions[key, etag] = data
        return etag

    def delete(self, key: str, if_match: ETag | None = None) -> None:
        """Delete, on a condition or without one."""
        if if_match is None:
            self._write(key, "delete", None, None, lambda: self.backend.delete(key))
        else:
            given = self._versions[key, if_match]
            self._write(key, "delete if", given, None, lambda: self.backend.delete(key, if_match=if_match))

    def _write(self, key: str, action: Action, given: bytes | None, data: bytes | None, call: Callable[[], T]) -> T | None:
        start = time.monotonic_ns()
        try:
            answer = call()
        except PreconditionError:
            self._note(key, action, given, data, "refused", start)
        except UnknownOutcomeError:
            self._note(key, action, given, data, "unknown", start)
        except UnavailableError:
            pass  # promises that nothing was changed: it never happened, and the checker holds it to that
        else:
            self._note(key, action, given, data, "done", start)
            return answer
        return None

    def _note(self, key: str, action: Action, given: bytes | None, value: bytes | None, outcome: Outcome, start: int) -> None:
        self.history.append(Operation(self.client, key, action, given, value, outcome, start, time.monotonic_ns()))


def work(backend: Backend, client: str, seed: int, count: int, keys: Sequence[str] = ("x", "y")) -> list[Operation]:
    """Do `count` random operations on `keys` and return what was recorded. May be sent to another process."""
    dice = random.Random(f"{seed} {client}")
    recorder = Recorder(backend, client)
    seen: dict[str, ETag | None] = dict.fromkeys(keys)
    for number in range(count):
        key = dice.choice(keys)
        action = dice.choices(("get", "put", "create", "swap", "delete", "delete if"), (8, 2, 3, 8, 3, 2))[0]
        data = f"{client}.{number}".encode()
        etag = seen[key]
        if action == "get" or (etag is None and action in ("swap", "delete if")):
            try:
                found = recorder.get(key)
            except UnavailableError:
                continue
            seen[key] = found and found[1]
        elif action.startswith("delete"):
            recorder.delete(key, etag if action == "delete if" else None)
            seen[key] = None
        else:
            seen[key] = recorder.put(key, data, {"put": None, "create": ABSENT}.get(action, etag))
    return recorder.history
