"""Savers, removers and sweepers of one backend, interleaved call by call: what was acknowledged keeps all its pieces.

Each actor runs in a thread of its own, and each of its calls of the backend waits until the stage lets it go on, so that one
order of all calls is played at a time: by chance, one after the other with a bound on interruptions, or written by hand.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import pytest

from perdure.errors import BackendError, PerdureError, UnavailableError, UnknownOutcomeError
from perdure.protocol import Backend, Blob, Buffer, Condition, ETag, Meta
from perdure.snapshots import KeepLatest, Snapshot, StateStore, bucket, work
from perdure.snapshots.bucket_keys import keys_of
from perdure_backends.memory import MemoryBackend

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))
STUCK = 30.0  # seconds


class Killed(BaseException):
    """What ends an actor that is killed; nothing it does afterwards has any effect."""


class Stage:
    """Lets one actor at a time make one call.

    Args:
        backend: Where they all act.
        choose: Picks who goes on, from who is ready and who went last.

    Attributes:
        at: Before which call each actor stands.
        played: Who made which call.
        errors: What an actor raised, by its name.
        victims: After how many of its calls an actor is killed.
    """

    def __init__(self, backend: Backend, choose: Choose) -> None:
        self.backend = backend
        self.at: dict[str, str] = {}
        self.played: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.victims: dict[str, int] = {}
        self._choose = choose
        self._turns: dict[str, threading.Semaphore] = {}
        self._back = threading.Semaphore(0)
        self._done: set[str] = set()

    def play(self, actors: dict[str, Callable[[], object]]) -> None:
        """Let the actors act until all have finished."""
        self._turns = {name: threading.Semaphore(0) for name in actors}
        threads = [threading.Thread(target=self._act, args=item, daemon=True) for item in actors.items()]
        for thread in threads:
            thread.start()
            assert self._back.acquire(timeout=STUCK)
        last = ""
        while ready := sorted(actors.keys() - self._done):
            last = self._choose(self, ready, last)
            self.played.append(f"{last}: {self.at[last]}")
            self._turns[last].release()
            assert self._back.acquire(timeout=STUCK), f"stuck after {self.played[-5:]}"
        self._turns = {}
        for thread in threads:
            thread.join(STUCK)

    def _act(self, name: str, act: Callable[[], object]) -> None:
        try:
            self.step(name, "begin")
            act()
        except BaseException as error:
            self.errors[name] = error
        finally:
            self._done.add(name)
            self._back.release()

    def step(self, name: str, what: str) -> None:
        """Wait until this actor may make its next call. Who is not on stage may at any time."""
        if name not in self._turns:
            return
        if name in self.victims:
            self.victims[name] -= 1
            if self.victims[name] < 0:
                raise Killed
        self.at[name] = what
        self._back.release()
        assert self._turns[name].acquire(timeout=STUCK)


Choose: TypeAlias = Callable[[Stage, list[str], str], str]


class Handle(Backend):
    """One actor's access to the backend. A listing comes in two pages, as a bucket's does."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.place = stage.backend.place
        self._stage = stage
        self._name = name

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        self._stage.step(self._name, f"get {key:.50}")
        return self._stage.backend.get(key, if_none_match=if_none_match)

    def head(self, key: str) -> Meta:
        self._stage.step(self._name, f"head {key:.50}")
        return self._stage.backend.head(key)

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._stage.step(self._name, f"put {key:.50}")
        return self._stage.backend.put(key, data, if_match=if_match)

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        self._stage.step(self._name, f"delete {key:.50}")
        self._stage.backend.delete(key, if_match=if_match)

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        self._stage.step(self._name, f"scan {prefix}")
        found = sorted(self._stage.backend.scan(prefix))
        page = found[: len(found) // 2]
        if page:
            self._stage.step(self._name, f"scan {prefix} after {page[-1].key:.50}")
            found = sorted(self._stage.backend.scan(prefix))
        return iter([*page, *(meta for meta in found if not page or meta.key > page[-1].key)])

    def close(self) -> None:
        pass


def by_chance(seed: str, stay: float) -> Choose:
    """By chance, and by another an actor goes on a while."""
    rng = random.Random(seed)
    return lambda stage, ready, last: last if last in ready and rng.random() < stay else rng.choice(ready)


def by_hand(*acts: str) -> Choose:
    """Each act is who goes on, and how the call begins before which it stops; without that, to its end."""
    todo = deque(act.partition(" until ")[::2] for act in acts)

    def choose(stage: Stage, ready: list[str], last: str) -> str:
        while todo:
            who, until = todo[0]
            if who in ready and not (until and stage.at[who].startswith(until)):
                return who
            todo.popleft()
        return ready[0]

    return choose


def all_orders(interruptions: int, rng: random.Random | None = None) -> Iterator[Choose]:
    """All orders in which actors are interrupted at most so often, one after the other; if `rng` is given, by chance."""
    todo: list[list[str]] = [[]]
    while todo:
        begun = todo.pop(rng.randrange(len(todo)) if rng else -1)
        seen: list[tuple[list[str], str, str]] = []
        yield _then_on(begun, seen)
        used = 0
        for step, (ready, last, chosen) in enumerate(seen):
            if step >= len(begun) and used + (last in ready) <= interruptions:
                todo += [[*(entry[2] for entry in seen[:step]), other] for other in ready if other != chosen]
            used += last in ready and chosen != last


def _then_on(begun: list[str], seen: list[tuple[list[str], str, str]]) -> Choose:
    def choose(stage: Stage, ready: list[str], last: str) -> str:
        chosen = begun[len(seen)] if len(seen) < len(begun) else last
        if chosen not in ready:  # or not any more: the names of drafts are random, and with them the order of a listing
            chosen = ready[0]
        seen.append((ready, last, chosen))
        return chosen

    return choose


@dataclass
class Text:
    """A small state."""

    text: str = ""


class Play:
    """A backend with its stores, what they promised, and what must be true in the end.

    Attributes:
        stage: Where it is played.
        lease: Seconds after which a sweeper takes a draft for dead.
        saved: Who saved what was acknowledged.
        gone: What somebody removes.
        doubtful: What somebody may remove.
    """

    def __init__(self, choose: Choose) -> None:
        self.stage = Stage(MemoryBackend(), choose)
        self.lease = bucket.LEASE
        self.saved: set[str] = set()
        self.gone: set[str] = set()
        self.doubtful: set[str] = set()
        self._actors: dict[str, Callable[[], object]] = {}

    def store(self, who: str, **options: Any) -> StateStore:
        """A store with something that is the same in all snapshots. It has nothing to sweep first."""
        store = StateStore(Handle(self.stage, who), **options)
        store.register_value("common", "the same in all")
        store.register("new", Text())
        store.register("old", Text())
        store._swept = True
        return store

    def save(self, store: StateStore, who: str) -> None:
        """Save something new, and what was new in the snapshot that was loaded or saved before."""
        new, old = (store.components[name] for name in ("new", "old"))
        assert isinstance(new, Text)
        assert isinstance(old, Text)
        new.text, old.text = who, new.text
        store.save_state({"who": who})
        self.saved.add(who)

    def before(self, *names: str) -> None:
        """Save some snapshots that share a piece, one on the base of the other, before the play."""
        for who in names:
            store = self.store(who)
            store.load_latest()
            self.save(store, who)

    def saver(self, who: str, base: str) -> None:
        """Saves one snapshot that shares a piece with the one called `base`."""
        store = self.store(who)
        store.load_state(self.find(store, base).name)
        self.actor(who, lambda: self.save(store, who))

    def remover(self, who: str, *names: str) -> None:
        """Removes snapshots, one after the other."""
        store = self.store(who)
        found = [self.find(store, name) for name in names]
        self.gone.update(names)
        self.actor(who, lambda: [store._place.remove(snapshot) for snapshot in found])

    def cleaner(self, who: str, whole: str) -> None:
        """Keeps the latest; knows that `whole` is whole."""
        store = self.store(who, keep=KeepLatest(1))
        store.verify(self.find(store, whole).name)
        self.actor(who, store.cleanup)

    def sweeper(self, who: str) -> None:
        self.actor(who, self.store(who)._place.sweep)

    def actor(self, who: str, act: Callable[[], object]) -> None:
        self._actors[who] = act

    @staticmethod
    def find(store: StateStore, who: str) -> Snapshot:
        return next(snapshot for snapshot in store.snapshots() if snapshot.metadata["who"] == who)

    def end(self) -> None:
        """Play it, and compare what is there with what was promised."""
        lease, bucket.LEASE = bucket.LEASE, self.lease
        try:
            self.stage.play(self._actors)
        finally:
            bucket.LEASE = lease
        try:
            self._check()
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.stage.played])) from error

    def _check(self) -> None:
        killed = {who for who, error in self.stage.errors.items() if isinstance(error, Killed)}
        for who in self.stage.errors.keys() - killed:
            error = self.stage.errors[who]
            # A wrong guess costs a save, and perhaps one that loses its base in the middle does.
            assert isinstance(error, UnavailableError), repr(error)
            assert self.lease < 0 or self.gone or self.doubtful, error
        store = StateStore(self.stage.backend)
        there = {snapshot.metadata["who"]: snapshot.name for snapshot in store.snapshots()}
        assert there.keys() <= self.saved | killed, f"a save raised, and its snapshot is there: {there.keys() - self.saved}"
        missing = self.saved - self.gone - self.doubtful - there.keys()
        assert not missing, f"acknowledged, and not there: {missing}"
        assert not self.gone & there.keys()
        for who in there.keys() & self.saved:
            wrong = store.verify(there[who])
            assert not wrong, f"{who!r} was acknowledged, and has lost {len(wrong)} parts"
        swept_clean(self.stage.backend)


def swept_clean(backend: Backend) -> None:
    """When nobody is at work any more, a sweep leaves what is needed and nothing else."""
    lease, bucket.LEASE = bucket.LEASE, -1.0
    try:
        StateStore(backend)._place.sweep()
    finally:
        bucket.LEASE = lease
    used = {key for snapshot in StateStore(backend).snapshots() for key in keys_of(snapshot)}
    left = [key for key in backend.keys() if not key.startswith("snapshots/") and key not in used]  # noqa: SIM118
    assert not left, f"a sweep left {left}"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the calls of each actor have one order."""
    monkeypatch.setattr(work, "AT_ONCE", 1)
    monkeypatch.setattr(work, "TRANSFERS", 1)


def two_savers_and_a_remover_of_their_base(play: Play) -> None:
    play.before("base")
    play.saver("a", "base")
    play.saver("b", "base")
    play.remover("remover", "base")


def a_saver_and_a_remover_of_a_chain(play: Play) -> None:
    """The piece was uploaded by `first`, and the saver knows it from `second`."""
    play.before("first", "second")
    play.saver("a", "second")
    play.remover("remover", "second", "first")


def a_saver_and_two_removers(play: Play) -> None:
    play.before("first", "second")
    play.saver("a", "second")
    play.remover("one", "first")
    play.remover("two", "second")


def two_cleaners_and_a_saver(play: Play) -> None:
    play.before("first", "second", "third")
    play.saver("a", "second")
    play.cleaner("one", "third")
    play.cleaner("two", "third")
    play.doubtful = {"first", "second", "third"}


def a_sweeper_a_saver_and_a_remover(play: Play) -> None:
    play.before("base")
    play.saver("a", "base")
    play.remover("remover", "base")
    play.sweeper("sweeper")


def a_sweeper_that_takes_all_for_dead(play: Play) -> None:
    """It takes the drafts of live savers away, in the middle; that may cost their saves, and nothing else."""
    play.lease = -1.0
    play.before("base")
    play.saver("a", "base")
    play.saver("b", "base")
    play.sweeper("sweeper")


def a_save_taken_back_and_another_that_shares_the_same(play: Play) -> None:
    """Who is taken for dead removes its own snapshot, whose pieces another one may count on, though their base is gone."""
    play.lease = -1.0
    play.before("base")
    play.saver("a", "base")
    play.saver("b", "base")
    play.remover("remover", "base")
    mistaken = Handle(play.stage, "mistaken")
    play.actor("mistaken", lambda: [mistaken.delete(key) for key in list(mistaken.keys("drafts/"))[:1]])


def a_saver_that_goes_on_from_one_that_is_taken_back(play: Play) -> None:
    play.lease = -1.0
    play.before("base")
    play.saver("a", "base")
    store = play.store("b")
    play.actor("b", lambda: (store.load_latest(), play.save(store, "b")))
    mistaken = Handle(play.stage, "mistaken")
    play.actor("mistaken", lambda: [mistaken.delete(key) for key in list(mistaken.keys("drafts/"))[:1]])


def a_saver_that_goes_on_and_a_remover_behind_it(play: Play) -> None:
    play.before("base")
    saver, remover = play.store("saver"), play.store("remover")
    saver.load_latest()
    names = [f"saver {number}" for number in range(3)]
    play.doubtful = {"base", *names}
    play.actor("saver", lambda: [play.save(saver, name) for name in names])
    play.actor("remover", lambda: [remover._place.remove(snapshot) for _ in names for snapshot in remover.snapshots()])
    play.sweeper("sweeper")


SCENES = [
    two_savers_and_a_remover_of_their_base,
    a_saver_and_a_remover_of_a_chain,
    a_saver_and_two_removers,
    two_cleaners_and_a_saver,
    a_sweeper_a_saver_and_a_remover,
    a_sweeper_that_takes_all_for_dead,
    a_save_taken_back_and_another_that_shares_the_same,
    a_saver_that_goes_on_from_one_that_is_taken_back,
    a_saver_that_goes_on_and_a_remover_behind_it,
]
scenes = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)


def play_out(scene: Callable[[Play], None], orders: Iterable[Choose]) -> int:
    count = 0
    for choose in orders:
        play = Play(choose)
        scene(play)
        play.end()
        count += 1
    return count


@scenes
def test_orders_by_chance(scene: Callable[[Play], None]) -> None:
    play_out(scene, (by_chance(f"{scene.__name__} {seed}", [0.5, 0.8, 0.95][seed % 3]) for seed in range(150 * ROUNDS)))


@scenes
def test_all_orders_with_one_interruption_and_some_with_more(scene: Callable[[Play], None]) -> None:
    assert play_out(scene, islice(all_orders(1), 150 * ROUNDS)) > 20
    play_out(scene, islice(all_orders(4, random.Random(scene.__name__)), 150 * ROUNDS))


@pytest.mark.parametrize("lease", [bucket.LEASE, -1.0])
def test_a_saver_that_is_killed_before_any_call_costs_nobody_anything(lease: float) -> None:
    for after in range(12):
        for seed in range(4 * ROUNDS):
            play = Play(by_chance(f"{after} {seed}", 0.7))
            play.lease = lease
            play.before("first", "second")
            play.saver("a", "second")
            play.saver("b", "second")
            play.sweeper("sweeper")
            play.remover("remover", "second")
            play.stage.victims["a"] = after
            play.end()


def test_a_sweeper_that_looks_past_a_save_between_two_others() -> None:
    """The piece is passed on behind its back: when it looks at manifests a draft has it, and at drafts, a manifest.

    `c` and then `e` go on from one another, and the base of each is removed when it has begun.
    """
    play = Play(
        by_hand(
            "c until put parts/",
            "one",
            "sweeper until scan drafts/",
            "sweeper until scan snapshots/",
            "sweeper until scan drafts/",
            "c",
            "sweeper until scan snapshots/",
            "e until put parts/",
            "two",
            "sweeper",
            "e",
        )
    )
    play.before("base")
    play.saver("c", "base")
    play.remover("one", "base")
    other = play.store("e")
    remover = play.store("two")

    def go_on() -> None:
        for snapshot in other.snapshots():  # `c`, unless that was refused
            other.load_state(snapshot.name)
            play.save(other, "e")

    play.actor("e", go_on)
    play.actor("two", lambda: [remover._place.remove(snapshot) for snapshot in remover.snapshots()])
    play.sweeper("sweeper")
    play.doubtful = {"c"}
    play.gone = {"base"}
    play.end()


def test_who_is_taken_back_leaves_what_another_has_taken_over_meanwhile() -> None:
    play = Play(by_hand("a until head drafts/", "mistaken", "b", "a"))
    a_saver_that_goes_on_from_one_that_is_taken_back(play)
    play.end()
    assert "b" in play.saved


@pytest.mark.parametrize("removed", [["first"], ["second"], ["second", "first"], ["first", "second"]])
def test_to_lose_the_base_in_the_middle_does_not_cost_the_save(removed: list[str]) -> None:
    for call in ("put parts/", "scan snapshots/", "put snapshots/", "delete drafts/"):
        play = Play(by_hand(f"a until {call}", "remover", "a"))
        play.before("first", "second")
        play.saver("a", "second")
        play.remover("remover", *removed)
        play.end()
        assert not play.stage.errors
        assert "a" in play.saved


class Faulty(MemoryBackend):
    """Of all changes and looks, one fails: before it has happened, or after, when only its answer is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.fails_at: int | None = None
        self.too_late = False
        self.count = 0

    def _fail(self, key: str, too_late: bool) -> None:
        if self.fails_at is None or too_late != self.too_late:
            return
        self.count += 1
        if self.count == self.fails_at:
            raise (UnknownOutcomeError if too_late else UnavailableError)("the line is dead", key=key, place=self.place)

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        self._fail(key, False)
        return super().get(key, if_none_match=if_none_match)

    def contains(self, key: str) -> bool:
        self._fail(key, False)
        return super().contains(key)

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._fail(key, False)
        etag = super().put(key, data, if_match=if_match)
        self._fail(key, True)
        return etag

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        self._fail(key, False)
        super().delete(key, if_match=if_match)
        self._fail(key, True)

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        self._fail(prefix, False)
        return super().scan(prefix)


@pytest.mark.parametrize("too_late", [False, True], ids=["not sent", "answer lost"])
def test_whatever_call_fails_a_save_is_whole_or_not_there(too_late: bool) -> None:
    """A save that raises leaves no snapshot, one that does not has left a whole one, and a sweep finds the rest."""
    failed = 0
    for number in range(1, 40):
        backend = Faulty()
        store = StateStore(backend)
        store.register_value("common", "the same in all")
        own = store.register_value("own", 1)
        store.save_state({"step": 1})
        own.value = 2
        backend.fails_at, backend.too_late, backend.count = number, too_late, 0
        try:
            store.save_state({"step": 2})
            raised: PerdureError | None = None
        except PerdureError as error:
            raised = error
            failed += 1
            assert isinstance(error, BackendError)
        backend.fails_at = None
        reached = backend.count >= number
        fresh = StateStore(backend)
        assert [snapshot.metadata["step"] for snapshot in fresh.snapshots()] == ([1] if raised else [1, 2]), (
            f"call {number} failed, and the save raised {raised!r}"
        )
        for snapshot in fresh.snapshots():
            assert not fresh.verify(snapshot.name), f"call {number}"
        store.save_state({"step": 3})
        swept_clean(backend)
        assert not fresh.verify(fresh.snapshots()[-1].name)
        if not reached:
            break
    assert failed >= 2


def test_a_snapshot_of_a_newer_format_keeps_what_it_may_share() -> None:
    """An older version cannot tell which pieces it needs, and so removes none."""
    play = Play(by_hand())
    play.before("first", "second")
    backend = play.stage.backend
    pieces = set(backend.keys("parts/"))
    (key,) = [key for key in backend.keys("snapshots/") if key.endswith("2")]
    data = backend.get(key).data
    backend.put(key, data.replace(b"perdure snapshot 1", b"perdure snapshot 2"))
    store = StateStore(backend)
    store.remove(play.find(store, "first").name)
    store._place.sweep()
    assert set(backend.keys("parts/")) == pieces
