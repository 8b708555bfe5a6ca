"""`Faulty`: a backend that fails on purpose, exactly when a test says so. Needs neither pytest nor hypothesis.

A *fault* is a function around one call: it gets the call and `go`, which does the real thing, and may wait, raise before or
after, or change the answer. A *plan* looks at each call and names the fault it meets, or `None`::

    faulty = Faulty(backend, on("put", lose_answer(), nth=2))         # the second put happens, and nobody hears of it
    faulty = Faulty(backend, in_order(None, fail_before(UnavailableError), None))
    faulty = Faulty(backend, at_random(seed=7, chance=0.1, faults=[lose_answer(), fail_before(UnavailableError)]))
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

from ..errors import PerdureError, UnavailableError, UnknownOutcomeError
from ..protocol import Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, Use

T = TypeVar("T")


class Call(NamedTuple):
    """One call, as plans and faults see it.

    Attributes:
        number: The how many-th call of this method it is, counted from 1.
        name: The method, such as `"put"`.
        key: Its key or prefix; `None` where there are several.
        place: The place of the backend.
    """

    number: int
    name: str
    key: str | None
    place: str


Fault: TypeAlias = Callable[[Call, Callable[[], Any]], Any]
Plan: TypeAlias = Callable[[Call], Fault | None]
READS = frozenset({"get", "head", "contains", "scan", "keys", "get_many", "uses", "recorded"})
METHODS = READS | {"put", "delete", "put_many", "delete_many", "mark_used", "record"}


# Faults


def delay(seconds: float) -> Fault:
    """Wait, then go on."""

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        time.sleep(seconds)
        return go()

    return fault


def fail_before(error: type[PerdureError] | Exception) -> Fault:
    """Raise instead of doing anything: nothing is changed."""

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        _raise(error, call)

    return fault


def fail_after(error: type[PerdureError] | Exception) -> Fault:
    """Do it, then raise. A listing gives all its entries first."""

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        if isinstance(answer, Iterator):
            return _then(answer, lambda: _raise(error, call))
        _raise(error, call)

    return fault


def lose_answer() -> Fault:
    """Do it, whatever comes of it, and lose the answer: a write raises `UnknownOutcomeError`, a read `UnavailableError`."""

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        try:
            go()
        except PerdureError:
            pass  # "the condition did not hold" is an answer, too
        _raise(UnavailableError if call.name in READS else UnknownOutcomeError, call)

    return fault


def corrupt(change: Callable[[bytes], bytes] | None = None) -> Fault:
    """Change the bytes that a `get` or `get_many` returns; by default one bit in the middle is flipped."""

    def fault(call: Call, go: Callable[[], Any]) -> Any:
        answer = go()
        if isinstance(answer, Blob):
            return answer._replace(data=(change or _flip)(answer.data))
        if call.name == "get_many":
            return {key: blob._replace(data=(change or _flip)(blob.data)) for key, blob in answer.items()}
        return answer

    return fault


class Hold:
    """A fault that stops the calling thread until the test lets it go on: an interleaving made to order, without a sleep.

    Args:
        after: Stop after the effect instead of before it.
        patience: Seconds after which it gives up, so that a wrong test fails instead of hanging.

    Attributes:
        reached: Set when a call is being held.
        release: Set it to let every held call go on.
    """

    def __init__(self, *, after: bool = False, patience: float = 60.0) -> None:
        self.reached = threading.Event()
        self.release = threading.Event()
        self._after = after
        self._patience = patience

    def __call__(self, call: Call, go: Callable[[], Any]) -> Any:
        if self._after:
            answer = go()
            self._wait(call)
            return answer
        self._wait(call)
        return go()

    def _wait(self, call: Call) -> None:
        self.reached.set()
        if not self.release.wait(self._patience):
            raise AssertionError(f"nobody released the held {call.name} of {call.key!r} within {self._patience} s")


# Plans


def in_order(*faults: Fault | None) -> Plan:
    """The first call meets the first fault, and so on, whatever the calls are; no faults after the last."""
    left = iter(faults)
    return lambda call: next(left, None)


def on(name: str, fault: Fault, *, nth: int | None = None, key: str | None = None) -> Plan:
    """Each call of the method `name` meets `fault`; with `nth` only that one, counted from 1; with `key` only on that key.

    With both, `nth` counts the calls on that key.
    """
    met = count(1)

    def plan(call: Call) -> Fault | None:
        if call.name != name or (key is not None and call.key != key):
            return None
        return fault if next(met) == nth or nth is None else None

    return plan


def at_random(seed: int, chance: float, faults: Sequence[Fault], names: Iterable[str] | None = None) -> Plan:
    """Each call (of the methods `names`) meets one of `faults` with the probability `chance`; the same for the same seed."""
    dice = random.Random(seed)
    wanted = None if names is None else frozenset(names)

    def plan(call: Call) -> Fault | None:
        if wanted is not None and call.name not in wanted:
            return None
        return dice.choice(faults) if dice.random() < chance else None

    return plan


class Faulty(Backend):
    """A backend whose calls go through to another one and meet faults on the way. Thread-safe.

    Args:
        backend: What does the real work; closed together with this.
        plan: Says which fault a call meets; without one it only counts. May be replaced at any time.

    Attributes:
        backend: As given.
        plan: As given.
        log: Every call that was made, those that failed included, in order.
    """

    def __init__(self, backend: Backend, plan: Plan | None = None) -> None:
        self.backend = backend
        self.place = backend.place
        self.remembers_use = backend.remembers_use
        self.plan = plan
        self.log: list[Call] = []
        # No lock anywhere, because a forked child would inherit it locked: `next` and `append` are single steps.
        self._numbers = {name: count(1) for name in METHODS}

    @property
    def calls(self) -> Counter[str]:
        """How many calls of each method were made."""
        return Counter(call.name for call in self.log)

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        return self._do("get", key, lambda: self.backend.get(key, if_none_match=if_none_match))

    def head(self, key: str) -> Meta:
        return self._do("head", key, lambda: self.backend.head(key))

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        return self._do("put", key, lambda: self.backend.put(key, data, if_match=if_match))

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        return self._do("delete", key, lambda: self.backend.delete(key, if_match=if_match))

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return self._do("scan", prefix, lambda: self.backend.scan(prefix))

    def close(self) -> None:
        self.backend.close()

    def contains(self, key: str) -> bool:
        return self._do("contains", key, lambda: self.backend.contains(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        return self._do("keys", prefix, lambda: self.backend.keys(prefix))

    def uses(self, prefix: str = "") -> Iterator[Use]:
        return self._do("uses", prefix, lambda: self.backend.uses(prefix))

    def forgets(self, key: str) -> str:
        return self.backend.forgets(key)

    def mark_used(self, times: Mapping[str, float]) -> None:
        return self._do("mark_used", None, lambda: self.backend.mark_used(times))

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        return self._do("get_many", None, lambda: self.backend.get_many(keys))

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        return self._do("put_many", None, lambda: self.backend.put_many(items))

    def delete_many(self, keys: Iterable[str]) -> None:
        return self._do("delete_many", None, lambda: self.backend.delete_many(keys))

    def recorded(self) -> dict[str, str]:
        return self._do("recorded", None, self.backend.recorded)

    def record(self, settings: Mapping[str, str]) -> None:
        return self._do("record", None, lambda: self.backend.record(settings))

    def guarantees(self) -> Guarantees:
        return self.backend.guarantees()

    def _do(self, name: str, key: str | None, go: Callable[[], T]) -> T:
        call = Call(next(self._numbers[name]), name, key, self.place)
        self.log.append(call)
        fault = self.plan(call) if self.plan is not None else None
        if fault is None:
            return go()
        answer: T = fault(call, go)
        return answer

    def __reduce__(self) -> tuple[Any, ...]:
        return Faulty, (self.backend,)  # plans are functions of this process and stay here


def _raise(error: type[PerdureError] | Exception, call: Call) -> NoReturn:
    if isinstance(error, Exception):
        raise error
    raise error(f"an injected fault in call {call.number} of {call.name}", key=call.key, place=call.place)


def _then(entries: Iterator[T], end: Callable[[], NoReturn]) -> Iterator[T]:
    yield from entries
    end()


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"\1"
