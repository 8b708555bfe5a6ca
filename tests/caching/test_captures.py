"""What a function captures counts, with all that wraps it; and what cannot count is said."""

from __future__ import annotations

import argparse
import array
import asyncio
import collections
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import logging
import pathlib
import queue
import random
import sqlite3
import subprocess
import sys
import threading
import types
import typing
import warnings

import numpy as np
import pytest

import perdure
from perdure.caching.keys.captures import captured, captured_names
from perdure.caching.keys.hashing import digest
from perdure.errors import UsageTypeError

SOURCE = pathlib.Path(perdure.__file__).parents[1]


def read(function, ignored=()):
    """What counts of a function, as one digest."""
    found = captured(function, ignored)
    return digest(found() if found else ())


def around(value):
    def f(x):
        return value, x

    return f


def quietly(make, *values):
    """What `make` made counts, digested, and that nobody was warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [read(make(value)) for value in values]


def warned(function, ignored=()):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        captured(function, ignored)
    return [str(each.message) for each in found]


# ------------------------------------------------------------------------------------------------------------- layers


def base(x):
    return x


def double(fn):
    @functools.wraps(fn)
    def wrapper(x):
        return fn(x) * 2

    return wrapper


def triple(fn):
    @functools.wraps(fn)
    def wrapper(x):
        return fn(x) * 3

    return wrapper


def times(n):
    def deco(fn):
        @functools.wraps(fn)
        def wrapper(x):
            return fn(x) * n

        return wrapper

    return deco


def plus(n):
    def deco(fn):
        @functools.wraps(fn)
        def wrapper(x, more=n, *, most=None):
            return fn(x) + more, most

        return wrapper

    return deco


def keyword(n):
    def deco(fn):
        @functools.wraps(fn)
        def wrapper(x, *, most=n):
            return fn(x), most

        return wrapper

    return deco


class Times:
    def __init__(self, fn, n, other=None) -> None:
        functools.update_wrapper(self, fn)
        self.fn, self.n, self.other = fn, n, other

    def __call__(self, *args):
        return self.fn(*args) * self.n


class More(Times):
    pass


class Slotted:
    __slots__ = ("__wrapped__", "n")

    def __init__(self, fn, n) -> None:
        self.__wrapped__, self.n = fn, n

    def __call__(self, *args):
        return self.__wrapped__(*args) * self.n


LAMBDAS = [
    functools.wraps(base)(lambda x: base(x) * 2),
    functools.wraps(base)(lambda x: base(x) * 3),
]


def wrapped():
    return [
        base, double(base), triple(base), double(triple(base)), triple(double(base)), double(double(base)), times(2)(base),
        times(3)(base), times([2])(base), times([3])(base), plus(1)(base), plus(2)(base), plus([1])(base), plus([2])(base),
        keyword(1)(base), keyword(2)(base), plus(double(base))(base), plus(triple(base))(base), Times(base, 1), Times(base, 2),
        Times(base, [1]), Times(base, 1, double), More(base, 1), Times(double(base), 1), double(Times(base, 1)),
        double(Times(base, 2)),  *LAMBDAS, double(times(4)(base)), double(times(5)(base)),
        double(functools.partial(base, 1)), double(functools.partial(base, 2)), double(len),
    ]  # fmt: skip


def test_each_wrapper_counts_by_name_and_by_what_it_holds() -> None:
    found = quietly(lambda each: each, *wrapped())
    assert found == quietly(lambda each: each, *wrapped())
    assert len({*found}) == len(found)


def test_a_captured_function_counts_with_all_that_wraps_it() -> None:
    values = [*wrapped(), Slotted(base, 1), Slotted(base, 2), Slotted(double(base), 2)]
    found = quietly(around, *values)
    assert found == quietly(around, *wrapped(), *values[-3:])
    assert len({*found}) == len(found)


def test_what_python_and_we_keep_is_no_wrapper() -> None:
    def cached(function):
        return perdure.cached("memory:captures")(function)

    for kept in (functools.lru_cache(base), functools.cache(base), cached(base), cached(cached(base))):
        assert captured(kept) is None
        assert read(around(kept)) == read(around(base))
        assert read(double(kept)) == read(double(base)) != read(triple(kept))
        assert read(around(double(kept))) == read(around(double(base)))
    assert read(functools.lru_cache(double(base))) != read(functools.lru_cache(triple(base)))
    assert read(around(cached(times(2)(base)))) != read(around(cached(times(3)(base))))


def test_the_wrapper_of_a_method_counts_with_its_object() -> None:
    @dataclasses.dataclass
    class Api:
        host: str

        def get(self, x):
            return self.host + x

    assert read(double(Api("a").get)) != read(double(Api("b").get))
    assert read(around(double(Api("a").get))) != read(around(double(Api("b").get)))
    for around_it in (lambda fn: perdure.cached("memory:captures")(fn), lambda fn: Times(fn, 1), lambda fn: Slotted(fn, 1)):
        found = [read(double(around_it(Api(host).get))) for host in "ab"]
        found += [read(around(around_it(Api(host).get))) for host in "ab"]
        assert len({*found}) == 4
    assert read(perdure.cached("memory:captures")(Api("a").get)) != read(perdure.cached("memory:captures")(Api("b").get))
    (text,) = warned(double(Plain("a").get))
    assert text.startswith("Plain.get captures 'fn', which holds a test_captures.Plain of which no key can be made")
    assert read(double(Api("a").get), ("fn",)) == read(double(Api("b").get), ("fn",))


PROGRAM = """
import functools, perdure
from perdure.caching.keys.captures import captured
def deco(fn):
    @functools.wraps(fn)
    def wrapper(x): return fn(x) * 2
    return wrapper
@deco
def f(x): return x
def around(value):
    def g(x): return value(x)
    return g
print(captured(f)(), captured(around(f))())
"""


def test_in_a_program_the_code_of_wrappers_counts(tmp_path) -> None:
    found = []
    for text in (PROGRAM, PROGRAM, PROGRAM.replace("* 2", "* 3"), PROGRAM.replace("return x", "return -x")):
        (tmp_path / "program.py").write_text(text)
        done = subprocess.run(
            [sys.executable, tmp_path / "program.py"],
            env={"PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(done.stdout)
    assert found[0] == found[1] != found[2]
    assert found[0].partition(") (")[0] == found[3].partition(") (")[0]  # the code of the function is a part of its name
    assert found[0] != found[3]


def test_a_wrapper_that_holds_itself_has_an_end() -> None:
    def make(n):
        outer = times(n)(base)
        outer.__kwdefaults__ = {"again": outer}
        return outer

    assert read(make(1)) == read(make(1)) != read(make(2))
    assert read(around(make(1))) == read(around(make(1))) != read(around(make(2)))
    loop = double(base)
    loop.__wrapped__ = loop
    assert read(loop) == read(loop)


# ------------------------------------------------------------------------------------------------- defaults and classes


def test_defaults_of_what_counts_by_code_count() -> None:
    def makers():
        def positional(n):
            return lambda x, n=n: x * n

        def by_name(n):
            def scale(x, *, factor=n):
                return x * factor

            return scale

        def of_two(n):
            return lambda x, unit="m", n=n: (x * n, unit)

        return positional, by_name, of_two

    values = [1, 2, 1.0, [1], [2], base, double(base), triple(base)]
    for make in makers():
        found = quietly(lambda value, make=make: around(make(value)), *values)
        assert len({*found}) == len(found)
        assert captured(make(1)) is None  # those of the function itself are arguments


def test_classes_made_inside_of_functions_count_with_bases_defaults_and_content() -> None:
    class English:
        pass

    def derived(parent):
        class Made(parent):
            pass

        return Made

    def method(n):
        class Made:
            def scaled(self, x, k=n, *, most=n):
                return x * k * most

            @staticmethod
            def fixed(k=n):
                return k

        return Made

    def holds(value):
        class Made:
            options = value

        return Made

    def decorated(deco):
        class Made:
            @deco
            def run(self):
                return self

        return Made

    kinds = [derived(Times), derived(More), derived(dict), derived(English)]
    kinds += [type("Made", (parent,), {}) for parent in (Times, More)]
    kinds += [method(value) for value in (1, 2, [1], [2])]
    values = [{"a": 1}, {"a": 2}, [1], [2], {1}, {2}, {"a": base}, {"a": double}, {"a": lambda: 1}, {"a": lambda: 2}]
    kinds += [holds(value) for value in [*values, functools.partial(base, 1), functools.partial(base, 2), (1, [2]), (1, [3])]]
    kinds += [decorated(deco) for deco in (double, triple, times(2), times(3), times([4]), lambda run: run)]
    found = [digest((kind,), ("x",)) for kind in kinds]
    assert len({*found}) == len(found)
    assert digest((kinds[0],)) == digest((derived(Times),))
    assert digest((holds({"a": 1})(),), ("self",), "self") != digest((holds({"a": 2})(),), ("self",), "self")
    assert len({*quietly(around, *kinds)}) == len(kinds)


# --------------------------------------------------------------------------------------------------- methods and changes


@dataclasses.dataclass
class Shop:
    city: str

    @perdure.cached("memory:captures")
    def cached_one(self, day):
        return self.city + day

    def plain_one(self, day):
        return self.city + day

    def add(self, x):
        return self.city + x


def test_a_cached_method_counts_with_its_object() -> None:
    found = quietly(around, Shop("a").cached_one, Shop("b").cached_one, Shop("a").plain_one, Shop("b").plain_one)
    assert len({*found}) == 4
    assert read(around(Shop("a").cached_one)) == found[0]
    assert read(around(Shop.cached_one)) != found[0]
    assert read(double(Shop("a").cached_one)) != read(double(Shop("b").cached_one))


def test_a_method_of_a_container_that_only_reads_counts_with_its_content() -> None:
    found = quietly(around, {1: 2}.get, {1: 3}.get, [1].index, [2].index, {1}.__contains__, {2}.__contains__)
    assert len({*found}) == 6
    assert read(around([1].append)) == read(around([2].append))


def test_a_method_called_add_changes_nothing_but_containers() -> None:
    pandas = pytest.importorskip("pandas")

    def added(it):
        return lambda x: it.add(x)

    tables = [pandas.DataFrame({"a": [value]}) for value in (1, 2)]
    assert len({*quietly(added, *tables, Shop("a"), Shop("b"))}) == 4

    def stored(it):
        def f(x):
            it.city = x

        return f

    assert len({*quietly(stored, Shop("a"), Shop("b"))}) == 1


class Items(list):
    pass


def test_containers_that_are_only_changed_do_not_count_and_nobody_is_warned() -> None:
    def append(it):
        return lambda x: it.append(x)

    def add(it):
        def f(x):
            it.add(x)
            return [it.discard(y) for y in x]

        return f

    def item(it):
        def f(x):
            it[x] += 1
            it[x] = 2
            del it[x]

        return f

    def through(it):
        def f(x):
            it.setdefault(x, []).append(1)
            it[x].append(1)
            (it
             .pop(x))  # fmt: skip
            (it
             .clear())  # fmt: skip

        return f

    def fill(it):
        return lambda x: it.fill(x)

    cases = [
        (append, [], [1]), (append, Items(), Items([1])), (append, collections.deque(), collections.deque([1])),
        (append, bytearray(), bytearray(b"a")), (append, array.array("i"), array.array("i", [1])), (add, set(), {1}),
        (item, collections.Counter(), collections.Counter("a")), (item, {}, {1: 2}), (through, {}, {1: [2]}),
        (through, collections.OrderedDict(), collections.OrderedDict(a=[])), (item, [], [1]), (fill, np.zeros(1), np.ones(1)),
        (through, collections.defaultdict(list), collections.defaultdict(list, a=[])),
    ]  # fmt: skip
    for make, one, other in cases:
        assert len({*quietly(make, one, other)}) == 1, (make, one)


def test_a_container_that_is_changed_and_read_is_warned_of_unless_it_was_empty() -> None:
    def sort(it):
        def sorting(k):
            it.sort()
            return it[:k]

        return sorting

    def pop(it):
        def popping(k):
            it.pop("debug", None)
            return it["a"]

        return popping

    def take(it):
        def taking(k):
            return it.pop()

        return taking

    def memo(it):
        def memoizing(k):
            it[k] = it.get(k, 0) + 1

        return memoizing

    def inner(it):
        def outer(k):
            def nested():
                return len(it)

            it.append(k)
            return nested

        return outer

    def attribute(it):
        def counting(k):
            it.city += k
            return it.city

        return counting

    cases = [(sort, [1], []), (pop, {"a": 1}, {}), (take, [1], []), (memo, {1: 2}, {}), (inner, [1], [])]
    for make, full, empty in cases:
        assert warned(make(empty)) == []
        (text,) = warned(make(full))
        assert f"captures 'it', a {type(full).__name__} that it changes, which therefore does not count" in text
        assert warned(make(full)) == []
        assert read(make(full)) == read(make(empty))
    (text,) = warned(attribute(Shop("a")))
    assert text.startswith("counting captures 'it', a test_captures.Shop that it changes")
    assert warned(sort([1]), ("it",)) == []


# --------------------------------------------------------------------------------------------------- what does not count


class Plain:
    def __init__(self, host="a") -> None:
        self.host = host

    def get(self, x):
        return self.host + x


def test_what_no_key_can_be_made_of_is_said_once_for_each_function_and_variable() -> None:
    def loader(args, more=None):
        def load(day):
            return args, more, day

        return load

    text = (
        "load captures 'args', a test_captures.Plain of which no key can be made: all functions that this definition makes "
        "share values, whatever it holds. Pass what matters as an argument, or say ignore='args' if nothing of it does. This "
        "is said once."
    )
    with pytest.warns(UserWarning) as found:
        captured(loader(Plain()))
    assert [str(each.message) for each in found] == [text]
    assert found[0].filename == __file__
    assert warned(loader(Plain())) == []
    (again,) = warned(loader(1, [Plain()]))
    assert again.startswith("load captures 'more', which holds a test_captures.Plain of which no key can be made: ")
    assert warned(loader(1, [Plain()])) == []


def test_what_is_ignored_neither_counts_nor_is_said() -> None:
    def make(args, rate):
        def ignoring(day):
            return args, rate, day

        return ignoring

    assert warned(make(Plain(), 1), ("args",)) == []
    assert read(make(1, 1), ("args",)) == read(make(2, 1), ("args",)) != read(make(1, 2), ("args",))
    assert captured(make(1, 1), ("args", "rate")) is None
    assert captured_names(make(1, 1)) == {"args", "rate"}
    assert captured_names(base) == frozenset()
    assert captured_names(times(1)(make(1, 1))) == {"args", "rate", "fn", "n"}
    assert captured_names(functools.partial(times(1)(make(1, 1)), 1)) == {"args", "rate", "fn", "n"}
    assert read(times(1)(base), ("n",)) == read(times(2)(base), ("n",)) != read(times(1)(base))


def test_what_is_held_deeper_is_said_as_well() -> None:
    def make(value):
        def holding(day):
            return value, day

        return holding

    def told(value):
        from perdure.caching.keys import captures

        captures._said.clear()
        return warned(make(value))

    held = [Plain().get, functools.partial(base, Plain()), {"a": Plain()}, around(Plain()), double(around(Plain()))]
    held += [Times(base, Plain()), lambda x, it=Plain(): (x, it)]  # noqa: B008
    for value in held:
        (text,) = told(value)
        assert text.startswith("holding captures 'value', which holds a test_captures.Plain of which no key can be made"), value
    (text,) = told(random.Random(1))
    assert "captures 'value', a random.Random of which" in text
    (text,) = told(itertools.count())
    assert "captures 'value', an itertools.count of which" in text


def test_tools_and_what_counts_by_name_are_not_said(tmp_path) -> None:
    async def coroutine():
        pass

    waiting = coroutine()
    loop = asyncio.new_event_loop()
    tools = [
        threading.Lock(), threading.RLock(), threading.Event(), threading.local(), queue.Queue(), loop, asyncio.Lock(),
        logging.getLogger("a"), logging.StreamHandler(), (x for x in ()), waiting, object(), perdure.open("memory:x"), base,
        len, str.upper, np.sin, [threading.Lock(), base], {"lock": threading.Lock()}, functools.partial(base, threading.Lock()),
        Shop.cached_one.cache, random.choice, random.random, np.random.rand, typing.TypeVar("T"),
    ]  # fmt: skip
    with open(tmp_path / "x", "w") as file:
        quietly(around, *tools, file)
    waiting.close()
    loop.close()


LIBRARY = """
import contextlib
import functools
def retry(times, state):
    def deco(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return state, times, fn(*args)
        return wrapper
    return deco
"""


def test_variables_of_a_library_are_not_said_and_cannot_be_ignored() -> None:
    library = types.ModuleType("library")
    exec(LIBRARY, vars(library))

    def make(rate):
        def paid(x):
            return x * rate

        return paid

    assert warned(library.retry(1, Plain())(make(1))) == []
    assert warned(around(library.retry(1, Plain())(make(1)))) == []
    assert captured_names(library.retry(1, Plain())(make(1))) == {"rate"}
    assert read(library.retry(1, Plain())(make(1)), ("times",)) != read(library.retry(2, Plain())(make(1)), ("times",))
    assert warned(library.retry(1, Plain())(make(Plain()))) != []


def test_what_no_key_can_be_made_of_in_a_default_of_a_generated_wrapper_is_not_said() -> None:
    def checked(fn):
        @functools.wraps(fn)
        def wrapper(x, __conf=Plain(), *, __more=fn):  # noqa: B008
            return fn(x), __conf, __more

        return wrapper

    assert warned(checked(base)) == []


@pytest.mark.filterwarnings("ignore:.* captures")
def test_what_stands_for_another_object_and_fails_does_not_count() -> None:
    class Unbound:
        @property
        def __class__(self):
            raise RuntimeError("outside of a context")

    class Deaf:
        def __getattr__(self, name):
            raise RuntimeError("outside of a context")

        def __call__(self):
            raise RuntimeError("outside of a context")

        def __len__(self):
            raise RuntimeError("outside of a context")

        __eq__ = __hash__ = __bool__ = __iter__ = __len__

    class Anything:
        def __getattr__(self, name):
            return Anything()

        def __call__(self):
            pass

    proxies = [Unbound(), Deaf(), Anything()]
    proxies += [[each] for each in proxies]
    for proxy in [*proxies, {"a": Unbound()}, (Unbound(),), functools.partial(base, Unbound())]:
        assert captured(around(proxy)) is not None
        assert captured(double(around(proxy))) is not None
        around(proxy).__kwdefaults__ = {"a": proxy}

    def changed(it):
        def f(x):
            it.add(x)
            it.x = 1
            return it

        return f

    for proxy in (Unbound(), Deaf(), Anything()):
        assert captured(changed(proxy))() == ()

    class Holds:
        proxy = Unbound()

    digest((Holds,))
    werkzeug = pytest.importorskip("werkzeug.local")
    assert captured(around(werkzeug.LocalProxy(lambda: 1 / 0)))
    import contextvars

    assert captured(around(werkzeug.LocalProxy(contextvars.ContextVar("app"))))() == ()


# --------------------------------------------------------------------------------------------------- namespaces, loggers


def test_namespaces_are_their_attributes() -> None:
    kinds = [types.SimpleNamespace, argparse.Namespace]
    values = [kind(**held) for kind in kinds for held in ({}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": [1]})]
    values += [types.SimpleNamespace(a=argparse.Namespace(b=1)), types.SimpleNamespace(a=argparse.Namespace(b=2))]
    assert len({*(digest((value,), ("x",)) for value in values)}) == len(values)
    assert len({*quietly(around, *values)}) == len(values)
    for kind in kinds:
        assert digest((kind(a=1, b=2),)) == digest((kind(b=2, a=1),))
        loop = kind()
        loop.next = [loop]
        with pytest.raises(UsageTypeError, match=r"argument 'x' holds itself, at \.next\[0\]\."):
            digest((loop,), ("x",))
        with pytest.raises(UsageTypeError, match=r"argument 'x', at \.a, is of type"):
            digest((kind(a=base),), ("x",))

        class Sub(kind):
            pass

        with pytest.raises(UsageTypeError, match=r"a subclass of \w+\.\w+ that may hold more"):
            digest((Sub(a=1),), ("x",))


def test_loggers_are_their_name() -> None:
    class Special(logging.Logger):
        pass

    values = [logging.getLogger(), logging.getLogger("a"), logging.getLogger("a.b"), Special("c")]
    assert len({*(digest((value,), ("x",)) for value in values)}) == len(values)
    assert digest((Special("a"),)) == digest((logging.getLogger("a"),)) != digest(("a",))
    holder = Plain()
    before = digest((holder,), ("self",), "self")
    holder.log = logging.getLogger("a")
    assert digest((holder,), ("self",), "self") != before
    assert len({*quietly(around, *values)}) == len(values)


class Rounding:
    """A decorator as an object, as they are in modules of their own."""

    def __init__(self, digits: int) -> None:
        self.digits = digits

    def __call__(self, function):
        @functools.wraps(function)
        def wrapper(*args):
            return round(function(*args), self.digits)

        return wrapper


def test_what_a_decorator_of_another_module_holds_counts() -> None:
    space = {"__name__": "elsewhere", "functools": functools}
    exec(inspect.getsource(Rounding), space)
    rounding = space["Rounding"]
    assert read(rounding(1)(base)) == read(rounding(1)(base)) != read(rounding(2)(base))
    assert read(scaled(2)(base)) == read(scaled(2)(base)) != read(scaled(3)(base))
    assert not warned(rounding(1)(base))


@contextlib.contextmanager
def scaled(by: int):
    yield by


def test_places_count_by_where_they_are(tmp_path) -> None:
    places = [perdure.open(tmp_path / "rome"), perdure.open(tmp_path / "turin")]
    assert read(around(places[0])) == read(around(perdure.open(tmp_path / "rome"))) != read(around(places[1]))
    assert not warned(around(places[0]))


def test_connections_and_texts_in_memory_are_warned_of() -> None:
    def holding(connection, text):
        def f(x):
            return connection, text, x

        return f

    first, second = warned(holding(sqlite3.connect(":memory:"), io.StringIO("text")))
    assert "captures 'connection'" in first
    assert "captures 'text'" in second


def test_what_a_variable_is_set_to_later_is_warned_of() -> None:
    client = None

    def fetch(path):
        return client, path

    reading = captured(fetch)
    reading()
    client = Plain("a")
    with pytest.warns(UserWarning, match="fetch captures 'client'"):
        reading()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reading()


def test_what_a_captured_function_ignores_is_ignored() -> None:
    def make(run, client):
        @perdure.cached("memory:captures", ignore=("run", "client"))
        def fetch(x):
            return run, client, x

        def report(x):
            return fetch(x)

        return report

    assert read(make("1", Plain("a"))) == read(make("2", Plain("b")))
    assert not warned(make("1", Plain("a")))


def test_dicts_with_functions_in_them_count_in_any_order() -> None:
    assert read(around({"a": len, "b": max})) == read(around({"b": max, "a": len})) != read(around({"a": max, "b": len}))
