"""Snapshots: 400 MB of arrays, the same with two of them changed, and many small objects; beside plain files and peers."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from statistics import median
from typing import Any, NamedTuple

import perdure
from perdure.snapshots import Saving
from perdure.snapshots.names import MANIFEST

from . import contestants, s3_requests, savers
from .floors import Digested, write_folder
from .harness import FLOOR, Effort, Goal, Row, Verdict, judge, race
from .savers import Saver

_SAVE, _ASYNC, _LOAD, _LIST = "perdure, save_state", "perdure, save_async", "perdure, load_state", "perdure, snapshots()"
_PICKLE = "pickle"
_ARRAYS = 40
_PARTS = 40
_ROUNDS_AT_LEAST = 5
_ROUNDS_OF_SLOW = 3
_WHAT_LASTS = [
    "save_state has sync=normal, and the floor and the peers sync nothing either; ours have digests of all bytes besides",
    "save_async has sync=full: what comes after it returns is done in a thread, and waited for between the rounds",
]


class Small:
    """One of many objects."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"item {number}"
        self.weight = number / 7


class Model:
    """Has a state dict."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = arrays

    def state_dict(self) -> Mapping[str, Any]:
        return self.arrays

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.arrays = state


class Turn(NamedTuple):
    """A contestant.

    Attributes:
        call: What is timed.
        after: What is not: is given what `call` returned, waits and cleans up, and tells how many bytes were written.
    """

    call: Callable[[], Any]
    after: Callable[[Any], int] = lambda _: 0


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure in new folders below `where`."""
    notes: list[str] = []
    numpy, boto3 = contestants.optional("numpy", notes), contestants.optional("boto3", notes)
    with contestants.folder(where) as root:
        rows = [] if numpy is None else _of_arrays(numpy, root, effort)
        rows += [*_of_objects(root, effort), _listing(root, effort, notes)]
    return rows if numpy is None or boto3 is None else [*rows, _requests(numpy)]


def _slow(effort: Effort, limit: float) -> Effort:
    return replace(effort, rounds=min(effort.rounds, 5 if effort.quick else 15), limit=limit)


def _turns(
    workload: str,
    racing: Mapping[str, Turn],
    effort: Effort,
    goals: Sequence[Goal] = (),
    *,
    before: Callable[[], object] = lambda: None,
    notes: Sequence[str] = (),
) -> tuple[Row, dict[str, int]]:
    """As `harness.race`, for what takes so long that a batch is one call, and leaves so much that it is removed each time.

    The collector is on, as in most programs.

    Returns:
        The row, and for each contestant how many bytes it wrote in its last turn.
    """
    samples: dict[str, list[float]] = {name: [] for name in racing}
    written: dict[str, int] = {}
    for turn in racing.values():
        turn.after(turn.call())
    names = list(racing)
    began = time.perf_counter()
    for number in range(effort.rounds):
        if number >= _ROUNDS_AT_LEAST and time.perf_counter() - began > effort.limit:
            break
        if number == _ROUNDS_OF_SLOW:  # nobody waits for a second digit of what is ten times slower
            names = [name for name in names if median(samples[name]) < 10 * median(samples[names[0]])]
        first = number % len(names)
        before()
        for name in names[first:] + names[:first]:
            turn = racing[name]
            gc.collect()
            start = time.perf_counter()
            result = turn.call()
            samples[name].append((time.perf_counter() - start) * 1e3)
            written[name] = turn.after(result)
            del result
    return judge("snapshots", workload, "ms", samples, goals, notes=notes), written


# Arrays.


def _of_arrays(np: Any, root: str, effort: Effort) -> list[Row]:
    slow = _slow(effort, limit=30.0)
    size = 1_000_000 if effort.quick else 10_000_000
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for number in range(_ARRAYS):
        whole = random.random(size // 4, np.float32) if number % 2 else random.integers(0, 256, size, np.uint8)
        arrays[f"layer{number:02}.weight"] = whole
    what = f"{_ARRAYS * size // 10**6} MB in {_ARRAYS} arrays"
    notes: list[str] = []
    with ExitStack() as stack:
        peers = savers.general(arrays, notes) | savers.for_arrays(arrays, stack, notes)
        return [
            _save_all(what, arrays, peers, f"{root}/all", slow, notes),
            _save_changed(what, arrays, peers, f"{root}/changed", slow, notes),
            _load(np, what, arrays, peers, f"{root}/load", slow, notes),
        ]


def _save_all(what: str, arrays: Any, peers: Mapping[str, Saver], root: str, effort: Effort, notes: Sequence[str]) -> Row:
    racing = {
        FLOOR: _into_folders(f"{root}/floor", lambda folder: write_folder(f"{folder}/state", arrays)),
        _SAVE: _of_store(_store(f"{root}/normal", arrays, sync="normal", share=False), "save_state"),
        _ASYNC: _of_store(_store(f"{root}/full", arrays, sync="full", share=False), "save_async"),
    }
    racing |= {
        name: _into_folders(f"{root}/peer{number}", peer.save, peer.wait) for number, (name, peer) in enumerate(peers.items())
    }
    goals = [Goal(_SAVE, 1.3), Goal(_ASYNC, 1.3)]
    return _turns(f"save {what}, caller blocked", racing, effort, goals, notes=[*_WHAT_LASTS, *notes])[0]


def _save_changed(what: str, arrays: Any, peers: Mapping[str, Saver], root: str, effort: Effort, notes: Sequence[str]) -> Row:
    """Two arrays change before each round, so for each contestant they have changed since it saved last."""
    size = sum(array.nbytes for array in arrays.values())
    os.mkdir(root)
    digested = Digested(f"{root}/floor")
    memory = [memoryview(array).cast("B") for array in arrays.values()]
    racing = {
        FLOOR: Turn(lambda: digested.put_all(memory), digested.keep),
        _SAVE: _of_store(_store(f"{root}/normal", arrays, sync="normal"), "save_state", keep_one=True),
        _ASYNC: _of_store(_store(f"{root}/full", arrays, sync="full"), "save_async", keep_one=True),
    }
    racing |= {
        name: _into_folders(f"{root}/peer{number}", peer.save, peer.wait) for number, (name, peer) in enumerate(peers.items())
    }
    names = list(arrays)
    rounds = count()

    def change() -> None:
        number = next(rounds)
        for name in (names[2 * number % _ARRAYS], names[(2 * number + 1) % _ARRAYS]):
            arrays[name][:1] += 1

    notes = ["the floor writes files called by their digests, computed in as many threads", *_WHAT_LASTS, *notes]
    goals = [Goal(_SAVE, 1.5), Goal(_ASYNC, 1.5)]
    row, written = _turns(f"save {what}, 2 of them changed, caller blocked", racing, effort, goals, before=change, notes=notes)
    digested.close()
    for entry in row.entries:
        entry.more["MB written"] = written[entry.name] / 1e6
    limit = (size * 0.05 + 1e6) / 1e6
    for name in (_SAVE, _ASYNC):
        amount = written[name] / 1e6
        row.verdicts.append(Verdict(name, "≤ 5 % + 1 MB written", amount, limit, amount <= limit))
    return row


def _load(np: Any, what: str, arrays: Any, peers: Mapping[str, Saver], root: str, effort: Effort, notes: Sequence[str]) -> Row:
    """For orientation."""
    path = _store(f"{root}/ours", arrays, sync="normal").save_state()
    model = Model({})
    store = perdure.StateStore(f"{root}/ours")
    store.register("model", model)

    def ours() -> Mapping[str, Any]:
        store.load_state(path)
        loaded, model.arrays = model.arrays, {}
        return loaded

    names = list(arrays)
    by_files = Saver(
        lambda folder: [np.save(f"{folder}/{name}.npy", arrays[name]) for name in names],
        lambda folder: {name: np.load(f"{folder}/{name}.npy") for name in names},
    )
    racing: dict[str, Turn] = {}
    for number, (name, peer) in enumerate({f"numpy.load, {len(names)} files": by_files, **peers}.items()):
        folder = f"{root}/peer{number}"
        os.mkdir(folder)
        peer.save(folder)
        peer.wait()
        racing[name] = Turn(lambda peer=peer, folder=folder: peer.load(folder))
        if not number:
            racing[_LOAD] = Turn(ours)
    for name, turn in racing.items():
        loaded = turn.call()
        if not all(np.array_equal(np.asarray(loaded[each]), array) for each, array in arrays.items()):
            raise AssertionError(f"{name} loads other arrays than were saved")
    notes = [
        "all files are in the system's cache; ours are compared with their digests first",
        "all load into memory that was used in the round before; a new process has to get it from the system first",
        *notes,
    ]
    return _turns(f"load {what}", racing, effort, notes=notes)[0]


# Objects.


def _of_objects(root: str, effort: Effort) -> list[Row]:
    slow = _slow(effort, limit=15.0)
    number = 20_000 if effort.quick else 200_000
    value = [Small(each) for each in range(number)]
    notes = ["the collector is on, as it is in most programs"]
    if sys.version_info >= (3, 12):
        notes.append("since Python 3.12 it waits until pickle is done, so there is little to gain: the goal was set with 3.11")
    peers = {_PICKLE: Saver(lambda folder: _dump(value, folder), _loads)} | savers.general(value, notes)
    store = perdure.StateStore(f"{root}/objects", sync="normal", share=False)
    store.register_value("objects", value)
    saves = {}
    for at, (name, peer) in enumerate(peers.items()):
        saves[name] = _into_folders(f"{root}/objects-peer{at}", peer.save)
        if not at:
            saves[_SAVE] = _of_store(store, "save_state")
    rows = [_turns(f"save {number} small objects", saves, slow, [Goal(_SAVE, 1.1, _PICKLE)], notes=notes)[0]]

    path = store.save_state()
    holder = perdure.StateStore(f"{root}/objects", sync="normal")
    loaded = holder.register_value("objects", value[:0])

    def ours() -> list[Small]:
        holder.load_state(path)
        found, loaded.value = loaded.value, []
        return found

    loads: dict[str, Turn] = {}
    for at, (name, peer) in enumerate(peers.items()):
        folder = f"{root}/objects-load{at}"
        os.mkdir(folder)
        peer.save(folder)
        loads[name] = Turn(lambda peer=peer, folder=folder: peer.load(folder))
        if not at:
            loads[_LOAD] = Turn(ours)
    for name, turn in loads.items():
        found = turn.call()
        if len(found) != number or vars(found[-1]) != vars(value[-1]):
            raise AssertionError(f"{name} restores other objects than were saved")
        del found
    rows.append(_turns(f"restore {number} small objects", loads, slow, [Goal(_LOAD, 0.5, _PICKLE)], notes=notes)[0])
    return rows


def _dump(value: object, folder: str) -> None:
    data = pickle.dumps(value, protocol=5)
    with open(f"{folder}/state.pkl", "wb") as file:
        file.write(data)


def _loads(folder: str) -> Any:
    with open(f"{folder}/state.pkl", "rb") as file:
        return pickle.loads(file.read())


# Lists and requests.


def _listing(root: str, effort: Effort, notes: Sequence[str]) -> Row:
    """For orientation: all manifests, by somebody who has seen none."""
    number = 50 if effort.quick else 1000
    folder = f"{root}/listing"
    store = perdure.StateStore(folder, sync="normal")
    for part in range(_PARTS):
        store.register_value(f"part{part:02}", part)
    for step in range(number):
        store.save_state({"step": step})

    def by_hand(_: object) -> list[Any]:
        found = []
        for name in os.listdir(folder):
            if name[0] != ".":
                with open(f"{folder}/{name}/{MANIFEST}", "rb") as file:
                    found.append(json.loads(file.read()))
        return sorted(found, key=lambda manifest: manifest["sequence"])

    racing = {FLOOR: by_hand, _LIST: lambda _: perdure.StateStore(folder).snapshots()}
    for name, listed in racing.items():
        if len(listed(None)) != number:
            raise AssertionError(f"{name}: not {number} snapshots")
    workload = f"list {number} snapshots of {_PARTS} parts, new StateStore"
    return race("snapshots", workload, racing, [None], _slow(effort, limit=10.0), unit="ms", notes=notes)


def _requests(np: Any) -> Row:
    """What a bucket is asked for. For orientation."""
    notes = [f"a state of {_ARRAYS} arrays of 300 KB, and one value"]
    arrays = {f"layer{number:02}.weight": np.full(300_000, number, np.uint8) for number in range(_ARRAYS)}
    with s3_requests.counting() as server:
        url, settings = "s3://ours/snapshots", {"endpoint_url": server.endpoint_url, "create": True}
        with perdure.open_backend(url, **settings) as backend, perdure.open_backend(url, **settings) as another:
            store, fresh = perdure.StateStore(backend), perdure.StateStore(another)
            for each in (store, fresh):
                each.register("model", Model(arrays))
                each.register_value("step", 0)
            sent = {"save, first": server.during(store.save_state)}
            sent["save, nothing changed"] = server.during(store.save_state)
            arrays["layer07.weight"][0] += 1
            sent["save, one array changed"] = server.during(store.save_state)
            sent["load_latest"] = server.during(fresh.load_latest)
            sent["snapshots(), 3 of them, in a store that has just loaded"] = server.during(fresh.snapshots)
    row = judge("snapshots", "requests to S3", "", {name: [number] for name, number in sent.items()}, notes=notes)
    for entry in row.entries:
        entry.ratio = 0.0  # nothing to compare
    return row


# Contestants.


def _store(folder: str, arrays: Mapping[str, Any], **settings: Any) -> perdure.StateStore:
    store = perdure.StateStore(folder, **settings)
    store.register("model", Model(arrays))
    return store


def _of_store(store: perdure.StateStore, method: str, *, keep_one: bool = False) -> Turn:
    """Ours, whose older snapshots are removed: all, or all but the one that the next may share parts with."""

    def after(saved: Any) -> int:
        path = saved.wait() if isinstance(saved, Saving) else saved
        written = _bytes_of(str(path))
        paths = [snapshot.path for snapshot in store.snapshots()]
        for old in paths[:-1] if keep_one else paths:
            store.remove(old or path)
        return written

    return Turn(getattr(store, method), after)


def _into_folders(root: str, save: Callable[[str], object], wait: Callable[[], object] = lambda: None) -> Turn:
    """Somebody who is given a new folder each time."""
    os.makedirs(root)
    numbers = count()

    def call() -> str:
        folder = f"{root}/{next(numbers)}"
        os.mkdir(folder)
        save(folder)
        return folder

    def after(folder: str) -> int:
        wait()
        written = _bytes_of(folder)
        shutil.rmtree(folder)
        return written

    return Turn(call, after)


def _bytes_of(folder: str) -> int:
    """How many bytes are in the files that are in no other folder, too."""
    files = (os.stat(os.path.join(path, name)) for path, _, names in os.walk(folder) for name in names)
    return sum(info.st_size for info in files if info.st_nlink == 1)
