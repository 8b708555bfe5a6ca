"""A cache of what functions return: hits, misses, herds, limits; beside what others do, and beside its parts one by one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import count
from statistics import median
from typing import Any

import perdure
from perdure.codecs.entry import START, Entry, write_entry
from perdure.protocol import ABSENT

from . import contestants, s3_requests
from .awaited import Awaited, Loop
from .contestants import FLAT, JOBLIB, MEMOIZE, VALUE
from .harness import FLOOR, Effort, Goal, Row, Verdict, judge, race

_OURS, _NEAR, _MEMORY = "perdure.cached", 'perdure.cached, local="memory:"', 'perdure.cached("memory:x")'
_ASYNC, _WITHOUT_LOCK, _LIMITED = "perdure.cached, async def", "perdure.cached, lock=False", "perdure.cached, max_items=1000"
_CASHEWS, _LRU, _BARRIER = "cashews", "functools.lru_cache", "diskcache, memoize and barrier"
_BY_PARTS = "floor: digest of the argument, get of the very entry, decoding, one after the other"
_SAME_OBJECT = "lru_cache, and others in memory: all who call get one object; ours get an object each"
_THREADS = 32
_MOST = 1000
_MISSES = 50  # in a call, as a limit makes some of them dear

_ran: list[str] = []  # for what the functions ran


def small(name: str) -> dict[str, Any]:
    """Returns at once."""
    _ran.append(name)
    return VALUE


async def small_async(name: str) -> dict[str, Any]:
    """Returns at once."""
    _ran.append(name)
    return VALUE


def slow(name: str) -> dict[str, Any]:
    """Takes 50 ms."""
    _ran.append(name)
    time.sleep(0.05)
    return VALUE


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure everything in new folders below `where`."""
    rows: list[Row] = []
    for each in (_hits, _hits_in_memory, _hits_awaited, _digests, _misses, _evictions, _herd, _starts, _requests):
        with ExitStack() as stack:
            rows += each(stack.enter_context(contestants.folder(where)), stack, effort)
    return rows


def _open(stack: ExitStack, root: str, place: str, name: str = "ours") -> Any:
    """A dict where a cache is to be, with what `perdure.cached` sets when it is given the URL."""
    url = f"sqlite:///{root}/{name}.db" if place == "sqlite" else f"{root}/{name}"
    return stack.enter_context(perdure.open(url, sync="normal"))


def _cashews(stack: ExitStack, url: str, notes: list[str], **settings: Any) -> tuple[Loop, Any]:
    """A running loop, and the coroutine function as cashews keeps its results, if it is installed."""
    loop = Loop()
    stack.callback(loop.close)
    decorate = contestants.cashews(stack, loop, url, notes, **settings)
    return loop, None if decorate is None else decorate(small_async)


def _by_parts(function: Any, d: Any) -> Callable[[str], object]:
    """A hit by hand, which looks at nothing twice."""
    digest, get, decode = function.cache._digest, d.backend.get, d.chain.decode  # noqa: SLF001
    start = function.cache.key(FLAT[0]).rpartition("/")[0] + "/"

    def hit(name: str) -> object:
        path = start + digest((name,), {})
        return decode(get(path)[0][START:-4], path)

    return hit


def _race_of_hits(workload: str, racing: dict[str, Any], effort: Effort, goals: Sequence[Goal], notes: list[str]) -> Row:
    """Race with what is stored already, and see to it that the function does not run."""
    for name in FLAT:
        for call in reversed(racing.values()):  # by parts it is found only after the first call
            call(name)
    before = len(_ran)
    row = race("caching", workload, racing, FLAT, effort, goals=goals, notes=notes)
    if len(_ran) > before:
        raise AssertionError(f"{workload}: computed {len(_ran) - before} times more, and not answered")
    return row


def _hits(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes = [_BY_PARTS]
    peers = contestants.memoized(stack, root, small, notes)
    loop, cashews = _cashews(stack, "disk://", notes, directory=f"{root}/cashews")
    if cashews is not None:
        peers[_CASHEWS] = Awaited(loop, cashews)
        notes.append("cashews: awaited, call after call, by one task of a running loop; diskcache inside, in other threads")
    rows = []
    for place in ("sqlite", "file"):
        d = _open(stack, root, place)
        ours = perdure.cached(d)(small)
        racing: dict[str, Any] = {FLOOR: _by_parts(ours, d), _OURS: ours, **peers}
        goals = [Goal(_OURS, plus=1)]
        if place == "sqlite":
            goals += [Goal(_OURS, 1 / 1.5, MEMOIZE), Goal(_OURS, 1 / 8, JOBLIB)]
            racing[_LRU] = lru_cache(maxsize=None)(small)
        rows.append(_race_of_hits(f"hit, {place}", racing, effort, goals, notes))
    return rows


def _hits_in_memory(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes = [_BY_PARTS, _SAME_OBJECT]
    memory = stack.enter_context(perdure.open("memory:x"))
    ours = perdure.cached(memory)(small)
    near = perdure.cached(_open(stack, root, "sqlite"), local="memory:")(small)
    racing: dict[str, Any] = {FLOOR: _by_parts(ours, memory), _NEAR: near, _MEMORY: ours}
    if (dogpile := contestants.optional("dogpile.cache", notes)) is not None:
        racing["dogpile.cache, memory"] = dogpile.make_region().configure("dogpile.cache.memory").cache_on_arguments()(small)
    loop, cashews = _cashews(stack, "mem://", notes)
    if cashews is not None:
        racing["cashews, mem"] = Awaited(loop, cashews)
    racing[_LRU] = lru_cache(maxsize=None)(small)
    goals = [Goal(name, of=None, plus=5) for name in (_NEAR, _MEMORY)]
    return [_race_of_hits("hit, in memory", racing, effort, goals, notes)]


def _hits_awaited(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    rows = []
    for place, url, settings in (("sqlite", "disk://", {"directory": f"{root}/cashews"}), ("memory", "mem://", {})):
        notes = ["all are awaited, call after call, by one task of a running loop; on sqlite the floor is in its executor"]
        d = stack.enter_context(perdure.open("memory:")) if place == "memory" else _open(stack, root, place)
        ours = perdure.cached(d)(small_async)
        parts = _by_parts(ours, d)

        async def by_hand(name: str, parts: Any = parts, in_thread: bool = place == "sqlite") -> object:
            return await asyncio.get_running_loop().run_in_executor(None, parts, name) if in_thread else parts(name)

        loop, cashews = _cashews(stack, url, notes, **settings)
        racing: dict[str, Any] = {FLOOR: Awaited(loop, by_hand), _ASYNC: Awaited(loop, ours)}
        if cashews is not None:
            racing[_CASHEWS] = Awaited(loop, cashews)
        rows.append(_race_of_hits(f"hit, awaited, {place}", racing, effort, [], notes))
    return rows


# ------------------------------------------------------------------------------------------------------------- arguments


def _one(value: Any) -> None: ...


def _three(text: str, number: int, *, flag: bool) -> None: ...


def _digests(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes = ["blake2b of pickle: what comes to mind first, and is another one for equal dicts, sets and texts of other making"]
    calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
        "f(1)": (_one, (1,), {}),
        'f("text", 3, flag=True)': (_three, ("text", 3), {"flag": True}),
        "a dict of 10 lists of 10 ints": (_one, ({f"list{n}": list(range(n, n + 10)) for n in range(10)},), {}),
    }
    if (numpy := contestants.optional("numpy", notes)) is not None:
        random = numpy.random.default_rng(0)
        calls["a numpy array of 1000 floats"] = _one, (random.random(1000),), {}
        calls["a numpy array of 1,000,000 floats"] = _one, (random.random(1_000_000),), {}
        if (pandas := contestants.optional("pandas", notes)) is not None:
            calls["a pandas frame of 10,000 × 5 floats"] = _one, (pandas.DataFrame(random.random((10_000, 5))),), {}
    peers: dict[str, Any] = {}
    if (joblib := contestants.optional("joblib", notes)) is not None:
        peers["joblib.hash"] = joblib.hash
    if (diskcache := contestants.optional("diskcache", notes)) is not None:
        spell, put = diskcache.core.args_to_key, diskcache.Disk(root, pickle_protocol=pickle.HIGHEST_PROTOCOL).put
        peers["diskcache, args_to_key and pickle"] = lambda call: put(spell(("f",), *call, False, ()))
    rows = []
    for what, (function, args, kwargs) in calls.items():
        digest = perdure.cached("memory:")(function).cache._digest  # noqa: SLF001
        racing: dict[str, Any] = {
            "blake2b of pickle": lambda call: hashlib.blake2b(pickle.dumps(call, protocol=5), digest_size=16).hexdigest(),
            _OURS: lambda call, digest=digest: digest(*call),
            **peers,
        }
        rows.append(race("caching", f"digest of the arguments: {what}", racing, [(args, kwargs)], effort, notes=notes))
    return rows


# ---------------------------------------------------------------------------------------------------------------- misses


def _new(function: Callable[[str], Any]) -> Callable[[object], Any]:
    """A contestant that calls with an argument it never had before."""
    names = count()
    return lambda _: function(f"name{next(names):09}")


def _many(call: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda _: deque(map(call, range(_MISSES)), 0)


def _read_and_put_twice(d: Any, value: bytes) -> Callable[[object], object]:
    """What a miss asks of a backend: a read, a claim, and the value in place of the claim."""
    get, put, numbers = d.backend.get, d.backend.put, count()
    claim = write_entry(Entry(None, lease=30.0, token=bytes(12)))

    def miss(_: object) -> None:
        key = f"benchmarks.caching.floor()/{next(numbers):032x}"
        try:
            get(key)
        except perdure.NotFoundError:
            pass
        put(key, value, if_match=put(key, claim, if_match=ABSENT))

    return miss


def _misses(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    rows = []
    notes = ["floor: a read, and two writes by compare-and-swap of as many bytes, on a backend of ours"]
    peers = {name: _new(function) for name, function in contestants.memoized(stack, root, small, notes).items()}
    loop, cashews = _cashews(stack, "disk://", notes, directory=f"{root}/cashews")
    if cashews is not None:
        peers[_CASHEWS] = Awaited(loop, _new(cashews))
    if peers:
        notes.append("the peers claim nothing: of all who call at once each runs the function, but with dogpile")
    for place in ("sqlite", "file"):
        d, floor, without = (_open(stack, root, place, name) for name in ("ours", "floor", "without"))
        ours, unlocked = perdure.cached(d)(small), perdure.cached(without, lock=False)(small)
        ours(FLAT[0])
        by_hand = _read_and_put_twice(floor, d.backend.get(ours.cache.key(FLAT[0])).data)
        racing: dict[str, Any] = {FLOOR: by_hand, _OURS: _new(ours), _WITHOUT_LOCK: _new(unlocked), **peers}
        rows.append(race("caching", f"miss, {place}", racing, [None], effort, notes=notes))
    return rows


def _evictions(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes = [f"{_MISSES} misses a batch, as it is only now and then that one looks at the whole place, and makes room"]
    peers: dict[str, Any] = {}
    theirs = contestants.diskcache(stack, f"{root}/limited", notes, eviction_policy="least-recently-used")
    if theirs is not None:
        peers["diskcache, size_limit"] = _many(_new(theirs.memoize()(small)))
        notes.append(
            f"diskcache: its limit is in bytes, those of {_MOST} values with the pages around them; with eviction_policy="
            "'least-recently-used', and at most 10 values removed by a write. Ours are never more than the limit."
        )
    rows = []
    for place in ("sqlite", "file"):
        d, free = _open(stack, root, place), _open(stack, root, place, "free")
        racing: dict[str, Any] = {
            f"{_OURS}, no limit": _many(_new(perdure.cached(free)(small))),
            _LIMITED: _many(_new(perdure.cached(d, max_items=_MOST)(small))),
            **peers,
        }
        for call in racing.values():
            for _ in range(_MOST // _MISSES):
                call(None)
        if theirs is not None and place == "sqlite":
            theirs.reset("size_limit", theirs.volume())
        workload = f"miss, {place}, where {_MOST} values are all that there may be"
        row = race("caching", workload, racing, [None], effort, per=_MISSES, notes=notes)
        numbers = [len(list(each.backend.keys("benchmarks.caching.small()/"))) for each in (free, d)]
        for entry, number in zip(row.entries, (*numbers, len(theirs or ())), strict=False):
            entry.more["values afterwards"] = number
        row.verdicts.append(Verdict(_LIMITED, f"≤ {_MOST} values", numbers[1], _MOST, numbers[1] <= _MOST))
        rows.append(row)
    return rows


def _herd(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes = ["from the first call to the last value; by threads that have called this cache before, for other values"]
    racing: dict[str, Any] = {_OURS: perdure.cached(_open(stack, root, "sqlite"))(slow)}
    racing |= contestants.memoized(stack, root, slow, notes)
    if (cache := contestants.diskcache(stack, f"{root}/herd", notes)) is not None:
        module: Any = contestants.optional("diskcache", notes)
        racing["diskcache, memoize_stampede"] = module.memoize_stampede(cache, expire=3600)(slow)
        with_barrier = module.barrier(cache, module.Lock)(cache.memoize(name="once")(slow))
        racing[_BARRIER] = cache.memoize(name="once", expire=0)(with_barrier)
        notes.append("diskcache, memoize and barrier: a lock for all keys of the function, tried anew every millisecond")
    samples: dict[str, list[float]] = {name: [] for name in racing}
    runs: dict[str, list[int]] = {name: [] for name in racing}
    pool = stack.enter_context(ThreadPoolExecutor(_THREADS))
    names = list(racing)
    for number in range(1 + min(effort.rounds, 3 if effort.quick else 15)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            before = len(_ran)
            taken = _at_once(pool, racing[name], f"name{number}") * 1e3
            if number:  # the first one opens connections
                samples[name].append(taken)
                runs[name].append(len(_ran) - before)
    more: dict[str, dict[str, float | str]] = {name: {"runs": median(each)} for name, each in runs.items()}
    workload = f"{_THREADS} threads call for a new value that takes 50 ms"
    row = judge("caching", workload, "ms", samples, more=more, notes=notes)
    most = max(runs[_OURS])
    row.verdicts.append(Verdict(_OURS, "≤ 1 run", most, 1, most <= 1))
    return [row]


def _at_once(pool: ThreadPoolExecutor, function: Callable[[str], object], name: str) -> float:
    """Seconds from when the first thread calls to when the last one has its value."""
    barrier = threading.Barrier(_THREADS)

    def call(_: int) -> tuple[float, float]:
        barrier.wait()
        began = time.perf_counter()
        function(name)
        return began, time.perf_counter()

    begun, ended = zip(*pool.map(call, range(_THREADS)), strict=True)
    return float(max(ended) - min(begun))


# ------------------------------------------------------------------------------------------------- processes and requests

_NOTHING = "python -c pass"
_MODULE = """\
{imports}

@{decorator}
def f(number):
    with open({ran!r}, "a") as file:
        file.write("x")
    return {value!r}
"""


def _starts(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes = ["a module with one cached function is imported, and the function is called: a hit"]
    modules = {
        _OURS: ("import perdure", f"perdure.cached('sqlite:///{root}/ours.db')"),
        f"{_OURS}, record_stats=False": ("import perdure", f"perdure.cached('sqlite:///{root}/b.db', record_stats=False)"),
        f"{_OURS}, file": ("import perdure", f"perdure.cached('{root}/ours')"),
    }
    if contestants.optional("diskcache", notes) is not None:
        modules[MEMOIZE] = "import diskcache", f"diskcache.Cache('{root}/diskcache').memoize()"
    if contestants.optional("joblib", notes) is not None:
        modules[JOBLIB] = "import joblib", f"joblib.Memory('{root}/joblib', verbose=0).cache"
    # As after an installation: compiled once, wherever this environment keeps or does not keep that.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    variables |= {"PYTHONPYCACHEPREFIX": f"{root}/compiled", "PYTHONPATH": path}
    scripts = {_NOTHING: "pass", "import perdure": "import perdure"}
    for number, (name, (imports, decorator)) in enumerate(modules.items()):
        text = _MODULE.format(imports=imports, decorator=decorator, ran=f"{root}/ran{number}", value=VALUE)
        with open(f"{root}/bench{number}.py", "w", encoding="utf-8") as file:
            file.write(text)
        scripts[name] = f"import bench{number}; bench{number}.f(1)"
    start = partial(subprocess.run, check=True, env=variables)
    command = [sys.executable, "-c"]
    racing: dict[str, Any] = {name: lambda _, text=text: start([*command, text]) for name, text in scripts.items()}
    row = race("caching", "new process: import, define, hit", racing, [None], effort, unit="ms", notes=notes)
    for number, name in enumerate(modules):
        if os.path.getsize(f"{root}/ran{number}") != 1:
            raise AssertionError(f"{name}: computed more than once")
    return [row]


def _requests(root: str, stack: ExitStack, effort: Effort) -> list[Row]:
    notes = ["after the first call in a bucket, which tests the server; counts are added to the bucket once a minute besides"]
    if contestants.optional("boto3", notes) is None:
        return []
    server = stack.enter_context(s3_requests.counting())
    settings: dict[str, Any] = {"endpoint_url": server.endpoint_url, "create": True, "record_stats": False}
    url = "s3://ours/caching"
    ours, unlocked = perdure.cached(url, **settings)(small), perdure.cached(url, lock=False, **settings)(small)
    near = perdure.cached(url, local=f"{root}/near", version=1, **settings)(small)
    asking = perdure.cached(url, local=f"{root}/asking", recheck=0, version=2, **settings)(small)
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "miss": (3, lambda: ours("new")),
        "hit": (1, lambda: ours("new")),
        "invalidate": (1, lambda: ours.cache.invalidate("new")),
        "miss, lock=False": (2, lambda: unlocked("other")),
        "hit, local folder": (0, lambda: near("first")),
        "hit, local folder, recheck=0": (1, lambda: asking("first")),
    }
    for function in (ours, unlocked, near, asking):
        function("first")
    sent = {name: server.during(step) for name, (_limit, step) in steps.items()}
    row = judge("caching", "requests to S3", "", {name: [number] for name, number in sent.items()}, notes=notes)
    for entry in row.entries:
        entry.ratio = 0.0  # nothing to compare
    row.verdicts = [Verdict(n, f"≤ {most} requests", sent[n], most, sent[n] <= most) for n, (most, _step) in steps.items()]
    return [row]
