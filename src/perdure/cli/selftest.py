"""Does a place keep its promises? Tried out on keys of our own, which are removed again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ..errors import NotFoundError, NotModified, PerdureError, PolicyError, PreconditionError
from ..protocol import ABSENT, NOT_KEPT, Backend, ETag

T = TypeVar("T")
THREADS = 8
ROUNDS = 5
_ATTEMPTS = 1000
PREFIX = "perdure-doctor-"


@dataclass(frozen=True)
class Check:
    """One promise and what became of it.

    Attributes:
        name: The promise.
        ok: Kept, broken, or `None` for not tried.
        detail: What was seen; empty where there is nothing to say.
    """

    name: str
    ok: bool | None
    detail: str = ""


class _Broken(Exception):
    """A promise was not kept; the text says how."""


def self_test(backend: Backend) -> Generator[Check, None, None]:
    """Try every promise of a place in turn, on keys below `perdure-doctor-<random>/`, and remove these keys at the end.

    Costs about 300 small writes. Other keys are neither read nor written.
    """
    scratch = f"{PREFIX}{os.urandom(6).hex()}/"
    try:
        if backend.put(f"{scratch}first", b"first") == NOT_KEPT:
            yield Check("keeps what it is given", None, "no, by design; nothing else to try")
            return
    except PerdureError as error:
        refused = isinstance(error, PolicyError) or getattr(error, "errno", None) in _READ_ONLY
        yield Check("can be written", None if refused else False, str(error))
        return
    try:
        for name, attempt in _promises.items():
            yield _try(name, attempt, backend, scratch)
    finally:
        for key in list(backend.keys(scratch)):
            backend.delete(key)
        _remove_empty_folders(backend, scratch.rstrip("/"))


def _remove_empty_folders(backend: Backend, name: str) -> None:
    """A folder keeps the folders of its keys. Nobody else writes below a random name, so here they may go."""
    root = getattr(backend, "path", None)
    if not isinstance(root, str):
        return
    for folder, _, _ in os.walk(os.path.join(root, name), topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return  # something is in it, or it is not ours to remove; empty folders do no harm


def _try(name: str, attempt: Callable[[Backend, str], None], backend: Backend, scratch: str) -> Check:
    try:
        attempt(backend, scratch)
    except _Broken as error:
        return Check(name, False, str(error))
    except PerdureError as error:
        return Check(name, False, f"{type(error).__name__}: {error}")
    return Check(name, True)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Broken(otherwise)


def _refuses(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def _round_trip(backend: Backend, scratch: str) -> None:
    key, data = f"{scratch}round/trip", bytes(range(256)) * 64
    _require(_refuses(NotFoundError, lambda: backend.get(key)), "a key that was never written is there")
    etag = backend.put(key, data)
    blob, meta = backend.get(key), backend.head(key)
    _require(blob.data == data, "other bytes were read than written")
    _require(blob.etag == etag == meta.etag, "put, get and head tell different ETags")
    _require(meta.size == len(data), f"the size is {meta.size}, not {len(data)}")
    _require(_refuses(NotModified, lambda: backend.get(key, if_none_match=etag)), "an unchanged value is sent again")
    _require(backend.put(key, data[:-1] + b"x") != etag, "other bytes under a key, and the ETag is the same")
    backend.delete(key)
    _require(_refuses(NotFoundError, lambda: backend.get(key)), "a deleted value is still there")
    backend.delete(key)


def _listing(backend: Backend, scratch: str) -> None:
    written = {f"{scratch}list/{name}" for name in ("a", "a/b", "a.b/c", "A", "ab")}
    backend.put_many(dict.fromkeys(written, b"x"))
    found = sorted(backend.keys(f"{scratch}list/"))
    _require(found == sorted(written), f"{len(written)} keys were written, and {len(found)} are listed or they are others")
    found = list(backend.keys(f"{scratch}list/a/"))
    _require(found == [f"{scratch}list/a/b"], "listing a prefix shows its neighbours, or not its keys")
    _require(len(backend.get_many(written)) == len(written), "keys hide each other")


def _create_only(backend: Backend, scratch: str) -> None:
    key = f"{scratch}create"
    backend.put(key, b"first", if_match=ABSENT)
    refused = _refuses(PreconditionError, lambda: backend.put(key, b"second", if_match=ABSENT))
    _require(refused, "a second create was accepted")
    _require(backend.get(key).data == b"first", "a refused create changed the value")


def _swap(backend: Backend, scratch: str) -> None:
    key = f"{scratch}swap"
    old = backend.put(key, b"1")
    new = backend.put(key, b"2", if_match=old)
    _require(_refuses(PreconditionError, lambda: backend.put(key, b"3", if_match=old)), "a stale swap was accepted")
    _require(backend.get(key).data == b"2", "a refused swap changed the value")
    backend.delete(key)
    absent = _refuses(PreconditionError, lambda: backend.put(key, b"3", if_match=new))
    _require(absent, "a swap was accepted although the key is absent")


def _conditional_delete(backend: Backend, scratch: str) -> None:
    key = f"{scratch}delete"
    old = backend.put(key, b"1")
    new = backend.put(key, b"2")
    _require(_refuses(PreconditionError, lambda: backend.delete(key, if_match=old)), "a stale delete was accepted")
    _require(backend.contains(key), "a refused delete removed the value")
    backend.delete(key, if_match=new)
    _require(not backend.contains(key), "a delete with the right ETag removed nothing")


def _race_to_create(backend: Backend, scratch: str) -> None:
    for n in range(ROUNDS):
        _one_winner(backend, f"{scratch}race/create/{n}", ABSENT, "create one key")


def _race_to_swap(backend: Backend, scratch: str) -> None:
    for n in range(ROUNDS):
        key = f"{scratch}race/swap/{n}"
        _one_winner(backend, key, backend.put(key, b"start"), "swap from one ETag")


def _race_to_delete(backend: Backend, scratch: str) -> None:
    for n in range(ROUNDS):
        key = f"{scratch}race/delete/{n}"
        etag = backend.put(key, b"start")

        def delete(_: int, key: str = key, etag: ETag = etag) -> None:
            backend.delete(key, if_match=etag)

        winners = _race(delete)
        _require(len(winners) == 1, f"{THREADS} threads deleted one version, and {len(winners)} succeeded")


def _one_winner(backend: Backend, key: str, condition: object, what: str) -> None:
    winners = _race(lambda n: backend.put(key, b"%d" % n, if_match=condition))  # type: ignore[arg-type]
    _require(len(winners) == 1, f"{THREADS} threads tried to {what}, and {len(winners)} succeeded")
    _require(backend.get(key).data == b"%d" % winners[0], "the value is not the winner's")


def _counter(backend: Backend, scratch: str) -> None:
    key, each = f"{scratch}race/counter", ROUNDS
    backend.put(key, b"0")

    def count(_: int) -> None:
        for _ in range(each):
            for _ in range(_ATTEMPTS):
                blob = backend.get(key)
                try:
                    backend.put(key, b"%d" % (int(blob.data) + 1), if_match=blob.etag)
                    break
                except PreconditionError:
                    continue
            else:
                raise _Broken(f"a swap from the current ETag was refused {_ATTEMPTS} times")

    _race(count)
    total = int(backend.get(key).data)
    _require(total == THREADS * each, f"{THREADS} threads counted to {THREADS * each} together, and it says {total}")


def _race(turn: Callable[[int], object]) -> list[int]:
    """Let all threads go at once; returns the numbers of those that were not refused."""
    barrier = threading.Barrier(THREADS)

    def start(n: int) -> int | None:
        barrier.wait()
        try:
            turn(n)
        except PreconditionError:
            return None
        return n

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads interrupt each other in the middle
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return [n for n in pool.map(start, range(THREADS)) if n is not None]
    finally:
        sys.setswitchinterval(interval)


_READ_ONLY = {1, 13, 30}  # EPERM, EACCES, EROFS: then it is not ours to write, which is no defect

_promises: dict[str, Callable[[Backend, str], None]] = {
    "reads back what was written": _round_trip,
    "lists a prefix exactly": _listing,
    "creates only once": _create_only,
    "refuses a stale swap": _swap,
    "refuses a stale delete": _conditional_delete,
    f"{THREADS} threads create, one wins": _race_to_create,
    f"{THREADS} threads swap, one wins": _race_to_swap,
    f"{THREADS} threads delete, one wins": _race_to_delete,
    f"{THREADS} threads count, none is lost": _counter,
}
