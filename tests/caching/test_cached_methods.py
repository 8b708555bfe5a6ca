"""Cached methods pass for methods: pickled by reference, copied, compared, inspected, and stacked with other decorators."""

from __future__ import annotations

import abc
import asyncio
import copy
import functools
import inspect
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import perdure

runs: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    perdure.open("memory:methods").clear()
    runs.clear()
    yield


class Shop:
    """A shop."""

    def __init__(self, city: str) -> None:
        self.city = city

    @perdure.cached("memory:methods")
    def price(self, item: str, count: int = 1) -> str:
        """What it costs."""
        runs.append((self.city, item, count))
        return f"{self.city} {item} {count}"

    @perdure.cached("memory:methods")
    async def ask(self, item: str) -> str:
        runs.append(item)
        return f"{self.city} {item}"

    @classmethod
    @perdure.cached("memory:methods")
    def kind(cls, country: str) -> str:
        runs.append(country)
        return f"{cls.__name__} {country}"

    @perdure.cached("memory:methods")
    @classmethod
    def sort(cls, country: str) -> str:
        return f"{cls.__name__} {country}"

    @staticmethod
    @perdure.cached("memory:methods")
    def vat(country: str) -> int:
        return len(country)


class Bakery(Shop):
    pass


class Holder:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_methods_of_all_kinds_go_to_other_processes(method: str) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        shop = Bakery("Rome")
        assert pool.submit(shop.price, "bread", count=2).result(60) == "Rome bread 2"
        assert pool.submit(Shop.price, shop, "bread").result(60) == "Rome bread 1"
        assert pool.submit(Bakery.kind, "Italy").result(60) == "Bakery Italy"
        assert pool.submit(Bakery.sort, "Italy").result(60) == "Bakery Italy"
        assert pool.submit(shop.vat, "Italy").result(60) == 5


def test_a_pickled_function_of_a_class_is_the_very_same() -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(Shop.price, protocol)) is Shop.price
        assert pickle.loads(pickle.dumps(Shop.ask, protocol)) is Shop.ask
        bound = pickle.loads(pickle.dumps(Shop("Rome").price, protocol))
        assert bound.__func__ is Shop.price and bound.__self__.city == "Rome"


def test_classes_of_a_notebook_go_as_a_whole(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    source = """
        import perdure
        class Note:
            @perdure.cached(place, version=1)
            def twice(self, x):
                return 2 * x
            @perdure.cached(place, version=1)
            async def ask(self, x):
                return 3 * x
    """
    module: dict[str, Any] = {"place": str(tmp_path), "__name__": "__main__"}
    exec(textwrap.dedent(source), module)
    note = module["Note"]
    again = pickle.loads(cloudpickle.dumps(note()))
    assert type(again) is not note or again.twice.__func__ is note.twice
    assert again.twice(3) == 6 and again.twice.cache.contains(3) and note().twice.cache.contains(3)
    assert inspect.iscoroutinefunction(again.ask) and asyncio.run(again.ask(3)) == 9
    lines = (
        "import pickle, sys; note = pickle.load(sys.stdin.buffer); print(note.twice(3), type(note).twice.cache.stats().hits)"
    )
    told = subprocess.run([sys.executable, "-c", lines], input=cloudpickle.dumps(note()), capture_output=True, timeout=60)
    assert told.stdout.split() == [b"6", b"1"], told.stderr


def test_copies_of_what_holds_a_method() -> None:
    assert copy.deepcopy(Shop.price) is Shop.price
    assert copy.copy(Shop.price) is Shop.price
    assert copy.deepcopy(Holder(Shop.price)).function is Shop.price
    shop = Shop("Rome")
    again: Any = copy.deepcopy(Holder(shop.price)).function
    assert again.__self__ is not shop and again("bread") == "Rome bread 1"
    assert copy.copy(shop.price) == shop.price


def test_bound_methods_are_equal_where_those_of_python_are() -> None:
    one, two = Shop("Rome"), Shop("Rome")
    assert one.price == one.price and hash(one.price) == hash(one.price)
    assert one.price != two.price and one.price != one.ask and one.price != Shop.price
    assert {one.price: 1}[one.price] == 1


def test_what_is_said_about_a_method() -> None:
    shop = Shop("Rome")
    assert str(inspect.signature(shop.price)) == "(item: 'str', count: 'int' = 1) -> 'str'"
    assert list(inspect.signature(Shop.price).parameters) == ["self", "item", "count"]
    assert list(inspect.signature(Shop.kind).parameters) == ["country"]
    assert list(inspect.signature(Shop.vat).parameters) == ["country"]
    for method in (shop.price, Shop.price):
        named: Any = method
        assert (named.__name__, named.__qualname__, named.__module__) == ("price", "Shop.price", __name__)
        assert inspect.getdoc(named) == "What it costs."
        assert "Shop.price" in repr(named)
    bound: Any = shop.price
    assert bound.__self__ is shop and bound.__func__ is Shop.price
    assert inspect.getsource(Shop.price).lstrip().startswith("@perdure.cached")


def test_the_function_itself_is_bound_too() -> None:
    shop = Shop("Rome")
    assert shop.price.__wrapped__("bread") == shop.price.__wrapped__("bread") == "Rome bread 1"
    assert len(runs) == 2
    assert Shop.price.__wrapped__(shop, "bread") == "Rome bread 1"


def test_the_cache_of_a_method_is_about_its_instance() -> None:
    rome, turin = Shop("Rome"), Shop("Turin")
    rome.price("bread")
    assert rome.price.cache.contains("bread") and not turin.price.cache.contains("bread")
    assert rome.price.cache.key("bread") == Shop.price.cache.key(rome, "bread")
    Shop.price(rome, "bread")
    assert len(runs) == 1
    Shop.sort("Italy")
    assert Shop.sort.cache.contains("Italy") and not Bakery.sort.cache.contains("Italy")


def test_a_bound_method_can_be_cached_elsewhere() -> None:
    rome, turin = Shop("Rome"), Shop("Turin")
    near, other = (perdure.cached("memory:methods-near", version=1)(shop.price) for shop in (rome, turin))
    assert near("bread") == near("bread") == "Rome bread 1" and other("bread") == "Turin bread 1"
    assert near.cache.stats().misses == other.cache.stats().misses == 1
    ask = perdure.cached("memory:methods-near", version=1)(rome.ask)
    assert inspect.iscoroutinefunction(ask) and asyncio.run(ask("x")) == "Rome x"


def test_coroutine_functions_are_known_as_such() -> None:
    shop = Shop("Rome")
    for function in (shop.ask, Shop.ask, functools.partial(shop.ask, "x"), functools.partial(Shop.ask, shop)):
        assert inspect.iscoroutinefunction(function)
        assert asyncio.iscoroutinefunction(function)
    for function in (shop.ask, Shop.ask):
        assert inspect.iscoroutinefunction(function.__call__)  # where FastAPI looks
    for plain in (shop.price, Shop.price, Shop.vat, Shop.kind):
        assert not inspect.iscoroutinefunction(plain) and not inspect.iscoroutinefunction(plain.__call__)
    assert asyncio.run(shop.ask("x")) == asyncio.run(Shop.ask(shop, "x")) == "Rome x"
    assert runs == ["x"]


def test_an_object_whose_call_is_a_coroutine_is_awaited() -> None:
    class Asking:
        def __perdure_key__(self) -> int:
            return 1

        async def __call__(self, x: int) -> int:
            runs.append(x)
            return x + 1

    ask = perdure.cached("memory:methods", version=1, key=lambda x: x)(Asking())
    assert inspect.iscoroutinefunction(ask)

    async def twice() -> list[int]:
        return [await ask(1), await ask(1)]

    assert asyncio.run(twice()) == [2, 2]
    assert runs == [1]


def test_an_object_whose_call_is_a_generator_is_refused() -> None:
    class Giving:
        def __call__(self, x: int) -> Iterator[int]:
            yield x

    with pytest.raises(perdure.errors.UsageTypeError, match="generator"):
        perdure.cached("memory:methods", key=lambda x: x)(Giving())


class Base(abc.ABC):
    @abc.abstractmethod
    @perdure.cached("memory:methods")
    def below(self) -> int:
        return 1

    @perdure.cached("memory:methods")
    @abc.abstractmethod
    def above(self) -> int:
        return 1


class Whole(Base):
    def below(self) -> int:  # type: ignore[override]
        return super().below() + 1

    def above(self) -> int:  # type: ignore[override]
        return super().above() + 1


def test_abstract_methods_are_asked_for() -> None:
    with pytest.raises(TypeError, match=r"above.*below"):
        Base()  # type: ignore[abstract]
    assert Whole().below() == Whole().above() == 2


class Stacked:
    def __init__(self) -> None:
        self.name = "a"

    @property
    @perdure.cached("memory:methods")
    def size(self) -> int:
        runs.append("size")
        return 1

    @functools.cached_property
    @perdure.cached("memory:methods", ignore="self")
    def once(self) -> int:
        runs.append("once")
        return 1

    @functools.singledispatchmethod
    @perdure.cached("memory:methods")
    def show(self, x: object) -> str:
        return "object"

    @show.register
    @perdure.cached("memory:methods")
    def show_int(self, x: int) -> str:
        runs.append("int")
        return "int"


def test_other_decorators_above() -> None:
    for _ in range(2):
        one = Stacked()
        assert one.size == one.once == 1
        assert one.show("x") == "object"
    assert Stacked().show(1) == Stacked().show(1) == "int"
    assert runs == ["size", "once", "int"]


def test_a_method_of_a_pydantic_model_needs_no_setting() -> None:
    pydantic = pytest.importorskip("pydantic")
    namespace: dict[str, Any] = {
        "__module__": __name__,
        "__qualname__": "Priced",
        "__annotations__": {"city": str},
        "price": Shop.__dict__["price"],
        "_hidden": Shop.__dict__["ask"],
    }
    priced = types.new_class("Priced", (pydantic.BaseModel,), {}, lambda ns: ns.update(namespace))
    one: Any = priced(city="Rome")
    assert one.price("bread") == one.price("bread") == "Rome bread 1"
    assert len(runs) == 1
    assert set(priced.model_fields) == {"city"}  # type: ignore[attr-defined]
    assert asyncio.run(one._hidden("x")) == "Rome x"


def test_fastapi_awaits_methods_and_sees_their_parameters() -> None:
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    app = fastapi.FastAPI()
    shop = Shop("Rome")
    app.get("/ask")(shop.ask)
    app.get("/price")(shop.price)
    app.get("/kind")(Shop.kind)
    client = testclient.TestClient(app)
    assert client.get("/ask", params={"item": "bread"}).json() == "Rome bread"
    assert client.get("/price", params={"item": "bread", "count": "2"}).json() == "Rome bread 2"
    assert client.get("/price").status_code == 422
    assert client.get("/kind", params={"country": "Italy"}).json() == "Shop Italy"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"on_evict": 1}, "on_evict"),
        ({"record_stats": "x"}, "record_stats"),
        ({"trusted": "x"}, "trusted"),
        ({"local": 5}, "nearer place"),
        ({"local": [5]}, "nearer place"),
    ],
)
def test_options_of_the_wrong_type_are_refused_at_once(options: dict[str, Any], what: str) -> None:
    with pytest.raises(perdure.errors.UsageTypeError, match=what):
        perdure.cached("memory:methods", **options)


def test_no_nearer_place_may_be_written_as_none() -> None:
    @perdure.cached("memory:methods", local=None, version=1)
    def double(x: int) -> int:
        return 2 * x

    assert double(2) == double(2) == 4
    assert double.cache.stats().tiers == ()
