"""`perdure.cached`: a function runs once for each call that differs, and never answers what it should not."""

from __future__ import annotations

import pickle
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import perdure
from perdure.caching import entries as entries_module
from perdure.codecs.entry import HEAD, Entry, write_entry
from perdure.errors import BackendError, CodecError, UnavailableError, UsageError, UsageTypeError


class Clock:
    """The wall clock of caches, as a test sets it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(entries_module, "time", clock)
    return clock


def counting(where: Any, **options: Any) -> tuple[Any, list[Any]]:
    """A cached function, and the arguments of its runs."""
    runs: list[Any] = []

    @perdure.cached(where, **options)
    def double(x: Any, y: int = 0) -> Any:
        runs.append((x, y))
        return [x, x, y]

    return double, runs


def test_a_second_call_is_answered_without_running(url: str) -> None:
    double, runs = counting(url)
    assert double(2) == [2, 2, 0]
    assert double(2) == [2, 2, 0]
    assert double(3) == [3, 3, 0]
    assert runs == [(2, 0), (3, 0)]


def test_each_caller_gets_an_object_of_its_own(url: str) -> None:
    double, _ = counting(url)
    first = double(2)
    first.append("changed")
    second = double(2)
    second.append("changed too")
    assert double(2) == [2, 2, 0]


def test_how_arguments_are_given_does_not_matter(url: str) -> None:
    double, runs = counting(url)
    assert double(1, 0) == double(1) == double(x=1) == double(y=0, x=1) == double(1, y=0)
    assert len(runs) == 1


def test_another_type_is_another_call(url: str) -> None:
    double, runs = counting(url)
    assert [double(1), double(1.0), double(True), double("1")] == [[1, 1, 0], [1.0, 1.0, 0], [True, True, 0], ["1", "1", 0]]
    assert type(double(1.0)[0]) is float
    assert len(runs) == 4


def test_a_call_that_does_not_fit_is_refused_as_the_function_would(url: str) -> None:
    double, runs = counting(url)
    with pytest.raises(TypeError, match="argument"):
        double()
    with pytest.raises(TypeError, match="unexpected"):
        double(1, z=2)
    assert not runs


def test_another_decorator_on_the_same_place_finds_the_values(shared_url: str) -> None:
    first, runs = counting(shared_url)
    first(2)
    again, more_runs = counting(shared_url)
    assert again(2) == [2, 2, 0]
    assert (len(runs), len(more_runs)) == (1, 0)


def test_none_is_a_value(url: str) -> None:
    runs = []

    @perdure.cached(url)
    def nothing() -> None:
        runs.append(1)

    assert nothing() is None
    assert nothing() is None
    assert len(runs) == 1


def test_keep_if_decides_what_is_stored(url: str) -> None:
    runs = []

    @perdure.cached(url, keep_if=lambda value: value is not None)
    def look_up(x: int) -> int | None:
        runs.append(x)
        return x if x > 0 else None

    assert [look_up(1), look_up(1), look_up(-1), look_up(-1)] == [1, 1, None, None]
    assert runs == [1, -1, -1]
    assert look_up.cache.stats().misses == 3


def test_what_a_function_raises_is_not_stored(url: str) -> None:
    runs = []

    @perdure.cached(url)
    def moody(x: int) -> int:
        runs.append(x)
        if len(runs) < 3:
            raise LookupError(f"not today, {x}")
        return x

    for _ in range(2):
        with pytest.raises(LookupError, match="not today, 5"):
            moody(5)
    assert moody(5) == 5
    assert moody(5) == 5
    assert len(runs) == 3
    assert list(perdure.open_backend(url).keys()) == [moody.cache.key(5)]


class Gone(LookupError):
    """One that is stored."""


def test_exceptions_are_stored_where_that_is_asked_for(url: str, clock: Clock) -> None:
    runs = []

    @perdure.cached(url, errors=LookupError, errors_ttl="10 s")
    def moody(x: int) -> int:
        runs.append(x)
        raise Gone("no such thing", x)

    for _ in range(3):
        with pytest.raises(Gone) as raised:
            moody(5)
        assert raised.value.args == ("no such thing", 5)
    assert len(runs) == 1
    clock.ahead = 11
    with pytest.raises(Gone):
        moody(5)
    assert len(runs) == 2


def test_an_iterator_that_ends_inside_is_seen_outside(url: str) -> None:
    @perdure.cached(url)
    def first(items: tuple[int, ...]) -> int:
        return next(iter(items))

    with pytest.raises(StopIteration):
        first(())
    assert first((1,)) == 1


def test_values_expire(url: str, clock: Clock) -> None:
    double, runs = counting(url, ttl="1 h")
    double(2)
    clock.ahead = 3590
    double(2)
    assert len(runs) == 1
    clock.ahead = 3610
    assert double(2) == [2, 2, 0]
    assert len(runs) == 2


def test_a_value_from_the_far_future_has_expired(url: str, clock: Clock) -> None:
    double, runs = counting(url, ttl="1 h")
    double(2)
    clock.ahead = -2 * 86400.0
    double(2)
    assert len(runs) == 2


def test_a_clock_that_is_a_minute_off_does_no_harm(url: str, clock: Clock) -> None:
    double, runs = counting(url, ttl="1 h")
    double(2)
    for clock.ahead in (-60.0, 60.0):
        double(2)
    assert len(runs) == 1


def test_an_expired_value_may_be_answered_while_another_thread_computes(url: str, clock: Clock) -> None:
    running, go_on = threading.Event(), threading.Event()
    runs = []

    @perdure.cached(url, ttl="1 h", stale_ok="1 h")
    def answer(x: int) -> int:
        runs.append(x)
        if len(runs) == 2:
            running.set()
            assert go_on.wait(60)
        return len(runs)

    assert answer(0) == 1
    clock.ahead = 3610
    worker = threading.Thread(target=answer, args=(0,))
    worker.start()
    assert running.wait(60)
    assert answer(0) == 1
    clock.ahead = 7300
    late: list[int] = []
    waiter = threading.Thread(target=lambda: late.append(answer(0)))
    waiter.start()
    while not answer.cache.stats().waits:
        time.sleep(0.001)
    go_on.set()
    worker.join(60)
    waiter.join(60)
    assert late == [2]
    assert answer.cache.stats().stale == 1


def test_a_value_is_computed_anew_before_it_expires(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    @perdure.cached(url, ttl="1 h", early=1.0)
    def answer() -> int:
        runs.append(1)
        time.sleep(0.05)
        return len(runs)

    answer()
    monkeypatch.setattr(entries_module.random, "random", lambda: 1.0 - 1e-9)  # -log: 20 times what it took, about a second
    clock.ahead = 3590
    assert answer() == 1
    clock.ahead = 3599.5
    assert answer() == 2
    assert len(runs) == 2


def test_peek_contains_invalidate_refresh_and_clear(url: str) -> None:
    double, runs = counting(url)
    assert double.cache.peek(2) is None
    assert not double.cache.contains(2)
    double(2)
    assert double.cache.peek(2) == double.cache.peek(x=2) == [2, 2, 0]
    assert double.cache.contains(2)
    double.cache.invalidate(2)
    assert double.cache.peek(2) is None
    assert len(runs) == 1
    double(2)
    assert double.cache.refresh(2) == [2, 2, 0]
    assert len(runs) == 3
    double(3)
    other, _ = counting(url, version="other")
    other(3)
    assert double.cache.clear() == 2
    assert not double.cache.contains(2)
    assert other.cache.contains(3)
    assert double.__wrapped__(7) == [7, 7, 0]
    assert not double.cache.contains(7)


def test_prune_removes_what_has_expired(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.caching import cache as cache_module

    double, _ = counting(url, ttl="1 min")
    double(1)
    double(2)
    assert double.cache.prune() == 0
    monkeypatch.setattr(cache_module, "time", lambda: time.time() + 61)
    assert double.cache.prune() == 2
    assert list(perdure.open_backend(url).keys()) == []


def test_counts(url: str) -> None:
    double, _ = counting(url)
    double(1)
    double(1)
    double(2)
    stats = double.cache.stats()
    assert (stats.hits, stats.misses, stats.errors) == (1, 2, 0)
    assert stats.bytes_written > stats.bytes_read > 0
    assert stats.hit_rate == pytest.approx(1 / 3)
    double.cache.reset_stats()
    assert double.cache.stats().hits == 0


def test_counts_are_exact_with_threads(url: str) -> None:
    double, _ = counting(url)
    double(1)

    def call() -> None:
        for _ in range(200):
            double(1)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert double.cache.stats().hits == 1600


@dataclass(frozen=True)
class Scaler:
    factor: int

    @perdure.cached("memory:scaler")
    def scale(self, x: int) -> int:
        return self.factor * x


class Service:
    runs: list[Any]

    def __init__(self, name: str) -> None:
        self.name = name

    @perdure.cached("memory:service")
    def greet(self, who: str) -> str:
        ran.append((self.name, who))
        return f"{self.name}: hello {who}"

    @classmethod
    @perdure.cached("memory:service")
    def kind(cls, x: int) -> str:
        ran.append((cls.__name__, x))
        return f"{cls.__name__} {x}"

    @perdure.cached("memory:service")
    @classmethod
    def sort(cls, x: int) -> str:
        ran.append((cls.__name__, x))
        return f"{cls.__name__} sort {x}"

    @staticmethod
    @perdure.cached("memory:service")
    def add(x: int, y: int) -> int:
        ran.append((x, y))
        return x + y

    @perdure.cached("memory:service")
    async def fetch(self, x: int) -> int:
        ran.append((self.name, x))
        return x + 1


class Derived(Service):
    pass


ran: list[Any] = []


@pytest.fixture
def no_runs() -> Iterator[list[Any]]:
    for method in (Service.greet, Service.kind, Service.sort, Service.add):
        method.cache.clear()  # type: ignore[attr-defined]
    ran.clear()
    yield ran


def test_methods_count_with_their_instances(no_runs: list[Any]) -> None:
    one, two = Service("one"), Service("two")
    assert [one.greet("ada"), one.greet("ada"), two.greet("ada")] == ["one: hello ada", "one: hello ada", "two: hello ada"]
    assert Service("one").greet(who="ada") == "one: hello ada"
    assert no_runs == [("one", "ada"), ("two", "ada")]
    assert one.greet.cache.peek("ada") == "one: hello ada"
    one.greet.cache.invalidate("ada")
    assert not one.greet.cache.contains("ada")
    assert two.greet.cache.contains("ada")
    assert Scaler(3).scale(5) == 15
    assert Scaler(4).scale(5) == 20
    assert Service.greet(two, "ada") == "two: hello ada"
    assert len(no_runs) == 2


def test_class_methods_and_static_methods(no_runs: list[Any]) -> None:
    assert [Service.kind(1), Service.kind(1), Derived.kind(1), Service("x").kind(1)] == [
        "Service 1",
        "Service 1",
        "Derived 1",
        "Service 1",
    ]
    assert [Service.sort(1), Derived.sort(1), Derived("x").sort(1)] == ["Service sort 1", "Derived sort 1", "Derived sort 1"]
    assert [Service.add(1, 2), Service("x").add(1, y=2)] == [3, 3]
    assert len(no_runs) == 5


def test_classes_inside_of_functions_are_told_apart_by_their_code() -> None:
    def make(factor: int) -> Any:
        class Inner:
            def __init__(self, offset: int) -> None:
                self.offset = offset

            def scaled(self, x: int) -> int:
                return factor * x

            @perdure.cached("memory:inner")
            def work(self, x: int) -> int:
                ran.append(x)
                return self.scaled(x) + self.offset

        return Inner

    ran.clear()
    assert [make(2)(1).work(5), make(3)(1).work(5), make(2)(1).work(5), make(2)(7).work(5)] == [11, 16, 11, 17]
    assert ran == [5, 5, 5]

    @dataclass
    class Point:
        x: int

    @perdure.cached("memory:")
    def read(point: Any) -> int:
        ran.append(point)
        return int(point.x)

    assert [read(Point(1)), read(Point(1)), read(Point(2))] == [1, 1, 2]
    assert ran[3:] == [Point(1), Point(2)]


def test_a_decorated_function_looks_like_itself() -> None:
    @perdure.cached("memory:")
    def documented(x: int) -> int:
        """What it does."""
        return x

    import inspect

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it does."
    assert inspect.isfunction(documented)
    assert str(inspect.signature(documented)) == "(x: 'int') -> 'int'"
    assert "documented" in repr(documented.cache)


def test_generators_and_classes_are_refused() -> None:
    def generate() -> Iterator[int]:
        yield 1

    async def generate_async() -> Any:
        yield 1

    for function in (generate, generate_async):
        with pytest.raises(UsageTypeError, match="generator"):
            perdure.cached("memory:")(function)
    with pytest.raises(UsageTypeError, match="only functions"):
        perdure.cached("memory:")(dict)  # type: ignore[arg-type]
    with pytest.raises(UsageTypeError, match="needs a place"):

        @perdure.cached  # type: ignore[arg-type]
        def forgotten() -> None: ...


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"ttl": -1}, UsageError, "ttl"),
        ({"ttl": "10 parsecs"}, UsageError, "parsecs"),
        ({"ttl": True}, UsageTypeError, "ttl"),
        ({"stale_ok": "-1 s"}, UsageError, "stale_ok"),
        ({"max_bytes": -5}, UsageError, "max_bytes"),
        ({"max_bytes": "10 QB"}, UsageError, "max_bytes"),
        ({"max_items": 0}, UsageError, "max_items"),
        ({"max_items": "many"}, UsageError, "max_items"),
        ({"lease": 0}, UsageError, "lease"),
        ({"lease": "inf"}, UsageError, "lease"),
        ({"early": -1}, UsageError, "early"),
        ({"on_error": "ignore"}, UsageError, "on_error"),
        ({"errors": "ValueError"}, UsageTypeError, "errors"),
        ({"errors": (KeyboardInterrupt,)}, UsageTypeError, "errors"),
        ({"keep_if": 5}, UsageTypeError, "keep_if"),
        ({"lock": "10 s"}, UsageTypeError, "lease"),
        ({"codec": "pickel"}, UsageError, "pkl"),
        ({"filters": "lz5"}, UsageError, "lz4"),
        ({"nonsense": 1}, UsageError, "nonsense"),
        ({"ignore": "z"}, UsageError, "z"),
        ({"key": "x"}, UsageTypeError, "key"),
        ({"recheck": "soon"}, UsageError, "recheck"),
    ],
)
def test_bad_options_are_refused_when_the_function_is_decorated(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    def function(x: int) -> int:
        return x

    with pytest.raises(kind, match=words):
        perdure.cached(str(tmp_path / "cache"), **options)(function)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("where", [None, 5, {}, "gopher://x", ""])
def test_bad_places_are_refused_when_the_function_is_decorated(where: Any) -> None:
    with pytest.raises(UsageError):
        perdure.cached(where)(len)


def test_an_argument_that_cannot_be_told_from_others_is_named(url: str) -> None:
    double, runs = counting(url)
    with pytest.raises(UsageTypeError, match=r"'x'.*ignore=\(\"x\",\).*key="):
        double(threading.Lock())
    assert not runs


def test_a_key_function_and_ignored_arguments(url: str) -> None:
    runs = []

    @perdure.cached(url, key=lambda text, log: text.lower())
    def shout(text: str, log: object) -> str:
        runs.append(text)
        return text.upper()

    @perdure.cached(url, ignore="log")
    def whisper(text: str, log: object = None) -> str:
        runs.append(text)
        return text.lower()

    assert shout("Hi", object()) == shout("hi", object()) == "HI"
    assert whisper("Hi", object()) == whisper("Hi") == "hi"
    assert runs == ["Hi", "Hi"]


def test_versions_do_not_see_each_other(url: str) -> None:
    one, runs = counting(url, version=1)
    one(2)
    two, more = counting(url, version=2)
    two(2)
    assert len(runs) == len(more) == 1


def test_a_function_may_call_itself(url: str) -> None:
    @perdure.cached(url)
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(30) == 832040
    assert fibonacci.cache.stats().misses == 31


def test_a_function_that_calls_itself_with_the_same_arguments_does_not_wait_for_itself(url: str) -> None:
    depth = []

    @perdure.cached(url)
    def restless(x: int) -> int:
        depth.append(x)
        return 1 if len(depth) > 3 else restless(x) + 1

    assert restless(0) == 4


def test_a_value_that_was_invalidated_meanwhile_is_not_stored(url: str) -> None:
    source = ["old"]

    @perdure.cached(url, ignore="source")
    def read() -> str:
        found = source[0]
        if found == "old":
            source[0] = "new"
            read.cache.invalidate()
        return found

    assert read() == "old"
    assert read.cache.stats().lost == 1
    assert read.cache.peek() is None
    assert read() == "new"
    assert read() == "new"


def test_a_damaged_value_is_computed_again_and_replaced(url: str) -> None:
    double, _ = counting(url)
    double(2)
    backend = perdure.open_backend(url)
    key = double.cache.key(2)
    whole = backend.get(key).data
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        backend.put(key, bytes(damaged))
        assert double(2) == [2, 2, 0], position
    for damaged_value in (b"", whole[:-1], whole[:20], HEAD, b"foreign", bytes(100)):
        backend.put(key, damaged_value)
        assert double(2) == [2, 2, 0]
    assert double.cache.stats().errors >= len(whole) - 50


class Bomb:
    fell: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        return Bomb.fell.append, (1,)


@pytest.mark.parametrize("filters", [(), (perdure.Signed(b"k" * 32),)])
def test_a_planted_pickle_is_never_run(url: str, filters: Any) -> None:
    double, runs = counting(url, filters=filters, codec="pkl" if filters else "msgpack")
    double(2)
    backend = perdure.open_backend(url)
    key = double.cache.key(2)
    bomb = pickle.dumps(Bomb())
    framed = perdure.codecs.chain.Chain("pkl").encode(Bomb(), key)
    foreign = perdure.codecs.chain.Chain("pkl", perdure.Signed(b"x" * 32)).encode(Bomb(), key)
    Bomb.fell.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for planted in (bomb, framed, foreign, *(write_entry(Entry(data)) for data in (bomb, framed, foreign))):
            backend.put(key, planted)
            assert double(2) == [2, 2, 0]
            assert double(2) == [2, 2, 0]
    assert not Bomb.fell
    assert len(runs) == 7
    assert double.cache.stats().errors >= 6
    assert len([w for w in caught if "counts as absent" in str(w.message)]) == 1


def test_a_signed_value_cannot_be_passed_off_as_an_error_or_for_another_call(url: str) -> None:
    signed = perdure.Signed(b"k" * 32)
    double, runs = counting(url, filters=signed, errors=(ValueError,))
    double(2)
    double(3)
    backend = perdure.open_backend(url)
    data = backend.get(double.cache.key(2)).data
    from perdure.codecs.entry import read_entry

    entry = read_entry(data)
    assert entry is not None
    backend.put(double.cache.key(2), write_entry(entry._replace(is_error=True)))
    backend.put(double.cache.key(3), data)
    with pytest.warns(UserWarning, match="signature"):
        assert double(3) == [3, 3, 0]
    assert double(2) == [2, 2, 0]
    assert len(runs) == 4


def test_any_object_with_pickle_and_a_signature(url: str) -> None:
    @perdure.cached(url, codec="pkl", filters=perdure.Signed(b"k" * 32))
    def make(x: int) -> Scaler:
        return Scaler(x)

    assert make(3) == make(3) == Scaler(3)
    assert make.cache.stats().hits == 1


def test_what_the_codec_cannot_hold_is_refused_with_what_to_do(url: str) -> None:
    @perdure.cached(url)
    def make(x: int) -> Any:
        return threading.Lock() if x == 1 else object()

    with pytest.raises(CodecError, match=r"make returned.*not even with codec 'pkl'"):
        make(1)
    with pytest.raises(CodecError, match=r"make returned.*With codec='pkl'.*Signed"):
        make(2)
    assert list(perdure.open_backend(url).keys()) == []


def test_a_place_of_another_codec_is_refused_by_name(shared_url: str) -> None:
    double, _ = counting(shared_url)
    double(1)
    other, runs = counting(shared_url, codec="json")
    with pytest.raises(UsageError, match=r"msgpack.*json"):
        other(1)
    assert not runs


def test_a_place_that_cannot_be_reached_is_said_once_and_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    double, runs = counting(f"sqlite:///{tmp_path}/missing/cache.db")
    with pytest.warns(RuntimeWarning, match=r"double goes on without its cache.*missing"):
        assert double(2) == [2, 2, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double(2) == [2, 2, 0]
    assert len(runs) == 2
    assert double.cache.stats().errors >= 1
    strict, runs = counting(f"sqlite:///{tmp_path}/missing/cache.db", on_error="raise")
    with pytest.raises(BackendError, match="missing"):
        strict(2)
    assert not runs
    (tmp_path / "missing").mkdir()
    assert double(2) == double(2)
    assert double.cache.stats().hits == 1


def test_a_place_that_cannot_be_opened_is_said_once_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    double, runs = counting(str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match=r"goes on without its cache"):
        assert double(2) == double(2) == [2, 2, 0]
    assert len(runs) == 2
    assert double.cache.stats().misses == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_null_keeps_nothing_and_runs_each_time() -> None:
    double, runs = counting("null:")
    assert double(2) == double(2) == [2, 2, 0]
    assert len(runs) == 2


def test_a_dict_can_be_the_place(url: str) -> None:
    d = perdure.open(url)
    double, runs = counting(d.get_subdict(("caches", "mine")))
    double(2)
    double(2)
    assert len(runs) == 1
    (key,) = d
    assert key[:2] == ("caches", "mine")
    assert d[key] == [2, 2, 0]
    with pytest.raises(UsageError, match="takes no codec"):
        perdure.cached(d, codec="pkl")


def test_a_limit_holds_and_evictions_are_told(url: str) -> None:
    gone: list[str] = []
    double, runs = counting(url, max_items=10, on_evict=lambda key, size: gone.append(key))
    foreign = perdure.open_backend(url)
    foreign.put("mine/and/nobody-elses", b"x" * 1000)
    for x in range(50):
        double(x)
        stored = [meta for meta in foreign.scan() if meta.key.startswith(double.cache.name)]
        assert len(stored) <= 11
    assert double.cache.stats().evicted == len(gone) >= 39
    assert foreign.get("mine/and/nobody-elses").data == b"x" * 1000
    assert double(49) == [49, 49, 0]
    assert len(runs) == 50


def test_a_value_beyond_the_limit_is_returned_and_not_stored(url: str) -> None:
    @perdure.cached(url, max_bytes=2000)
    def make(size: int) -> bytes:
        return b"x" * size

    make(100)
    assert len(make(5000)) == len(make(5000)) == 5000
    assert make.cache.stats().too_large == 2
    assert make.cache.contains(100)
    assert not make.cache.contains(5000)
    assert len(list(perdure.open_backend(url).keys())) == 1


def test_nearer_places_answer_without_a_request(tmp_path: Path) -> None:
    far = perdure.open_backend(str(tmp_path / "far"))
    asked: list[str] = []

    class Watching(type(far)):  # type: ignore[misc]
        def get(self, key: str, **more: Any) -> Any:
            asked.append(key)
            return super().get(key, **more)

    watching = Watching(str(tmp_path / "far"), sync="normal")
    double, runs = counting(watching, local=["memory:", str(tmp_path / "near")], recheck="1 min")
    double(2)
    asked.clear()
    assert double(2) == double(2) == [2, 2, 0]
    assert asked == []
    assert len(runs) == 1
    tiers = double.cache.stats().tiers
    assert [tier.hits for tier in tiers] == [2, 0]
    assert "near" in tiers[1].place


def test_copies_at_hand_are_answered_while_the_place_is_away() -> None:
    away: list[bool] = []

    class Remote(type(perdure.open_backend("memory:"))):  # type: ignore[misc]
        def get(self, key: str, **more: Any) -> Any:
            if away:
                raise UnavailableError("the cable is out")
            return super().get(key, **more)

    double, runs = counting(Remote(), local="memory:")
    double(1)
    away.append(True)
    with pytest.warns(RuntimeWarning, match="goes on without its cache"):
        for x in (2, 3):
            assert double(x) == [x, x, 0]
    assert double(1) == [1, 1, 0]
    assert runs == [(1, 0), (2, 0), (3, 0)]


def test_a_failure_of_the_place_counts_once(tmp_path: Path) -> None:
    backend = perdure.open_backend(tmp_path / "cache")
    double, _ = counting(backend)
    double(1)
    backend.close()
    with pytest.warns(RuntimeWarning, match="closed") as caught:
        double(1)
    assert caught[0].filename == __file__
    assert double.cache.stats().errors == 1


def test_relative_places_are_those_of_when_the_function_was_decorated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    double, _ = counting("far", local=["near"])
    monkeypatch.chdir(tmp_path / "two")
    double(1)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["far", "near"]


def test_a_planted_claim_holds_nobody_up_for_long(url: str) -> None:
    double, _ = counting(url, lease=0.1, filters=perdure.Signed(b"k" * 32))
    double(0)
    planted = write_entry(Entry(None, lease=1e9, token=b"x" * 12))
    perdure.open_backend(url).put(double.cache.key(1), planted)
    began = time.monotonic()
    assert double(1) == [1, 1, 0]
    assert time.monotonic() - began < 60


def test_a_cached_function_goes_to_other_processes_as_a_whole(shared_url: str) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    double, runs = counting(shared_url)
    double(1)
    copy = pickle.loads(cloudpickle.dumps(double))
    assert copy(1) == [1, 1, 0]
    assert copy.cache.stats().hits == 1
    assert copy.cache.key(1) == double.cache.key(1)
    assert len(runs) == 1


def test_the_time_that_was_saved_is_told(url: str) -> None:
    @perdure.cached(url)
    def slow() -> int:
        time.sleep(0.05)
        return 1

    for _ in range(3):
        slow()
    assert slow.cache.stats().saved >= 0.1


def test_statistics_of_all_processes_are_in_the_place(shared_url: str) -> None:
    from perdure.caching.recording import read_hours

    double, _ = counting(shared_url)
    for x in (1, 1, 2):
        double(x)
    double.cache.write_stats()
    double(2)
    double.cache.write_stats()
    (hour,) = read_hours(perdure.open_backend(shared_url))
    assert hour.function == double.cache.name
    assert (hour.counts["hits"], hour.counts["misses"]) == (2, 2)
