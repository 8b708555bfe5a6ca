"""`AsyncPersiDict` has the methods of `PersiDict`, and they do the same."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import operator
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, MappingView
from pathlib import Path
from typing import Any, get_overloads

import pytest

import perdure
import perdure.aio
from perdure import (
    ALWAYS_RETRIEVE,
    ANY_ETAG,
    DELETE_CURRENT,
    ETAG_HAS_CHANGED,
    ETAG_IS_THE_SAME,
    ITEM_NOT_AVAILABLE,
    KEEP_CURRENT,
    NEVER_RETRIEVE,
    PersiDict,
    SafeStrTuple,
)
from perdure.aio import AsyncPersiDict, Stream
from perdure.codecs.chain import Chain
from perdure.errors import BackendError, PerdureError, PolicyError, UsageError
from perdure.mapping.flags import NotAValue
from perdure.protocol import Blob, ETag
from perdure_backends.memory import MemoryBackend

SYNCHRONOUS = {"clone", "get_default_params", "get_params", "get_subdict"}
NAMED = {  # what Python cannot await, and what stands in its place
    "__bool__": "is_empty",
    "__contains__": "contains",
    "__delitem__": "delete",
    "__eq__": "equals",
    "__ior__": "update",
    "__iter__": "async for",
    "__len__": "count",
    "__or__": "async for",
    "__ror__": "async for",
    "__setitem__": "set",
}
PLUMBING = {
    "__deepcopy__",
    "__enter__",
    "__exit__",
    "__getstate__",
    "__setstate__",
    "__ne__",
    "__reversed__",
    "__class_getitem__",
}


def public(cls: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")}


def shape(function: Any) -> list[Any]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


# Nothing is missing


@pytest.mark.parametrize("name", public(PersiDict))
def test_the_twin_has_every_public_name_with_the_same_parameters(name: str) -> None:
    mine, theirs = inspect.getattr_static(AsyncPersiDict, name), inspect.getattr_static(PersiDict, name)
    if isinstance(theirs, property):
        assert isinstance(mine, property)
        return
    assert shape(getattr(AsyncPersiDict, name)) == shape(getattr(PersiDict, name))
    assert mine.__doc__, f"{name} is not documented"
    assert mine.__qualname__ == f"AsyncPersiDict.{name}"


def test_what_does_input_or_output_is_a_coroutine_or_a_stream() -> None:
    sync = PersiDict[Any](MemoryBackend())
    for name, member in public(AsyncPersiDict).items():
        if isinstance(member, property) or not hasattr(PersiDict, name) or name == "close":
            continue
        parameters = inspect.signature(getattr(sync, name)).parameters.values()
        required = [p for p in parameters if p.default is p.empty and p.kind < 2]
        listed = (
            not required
            and name not in {"popitem", *SYNCHRONOUS}
            and isinstance(getattr(sync, name)(), (Iterator, MappingView))
        )
        if listed:
            assert isinstance(getattr(AsyncPersiDict(sync), name)(), Stream), f"{name} is a listing"
        else:
            assert inspect.iscoroutinefunction(member) is (name not in SYNCHRONOUS), name


def test_the_attributes_of_a_dict_are_there() -> None:
    sync = PersiDict[int](MemoryBackend(), append_only=True, base_class_for_values=int)
    twin = AsyncPersiDict(sync)
    for name in [*(name for name in vars(sync) if not name.startswith("_")), "place", "serialization_format"]:
        assert getattr(twin, name) is getattr(sync, name) or getattr(twin, name) == getattr(sync, name)
    assert (repr(twin), hash(twin)) == (f"<AsyncPersiDict over {sync!r}>", hash(twin))
    assert twin.get_params() == sync.get_params()


def test_what_cannot_be_awaited_says_what_can() -> None:
    own = {name for cls in PersiDict.__mro__[:-1] for name in vars(cls) if name.startswith("__") and callable(vars(cls)[name])}
    operators = {name for name in own if not hasattr(AsyncPersiDict, name) or name in NAMED} - PLUMBING
    assert operators == set(NAMED)
    d = AsyncPersiDict(PersiDict[Any](MemoryBackend()))
    attempts: dict[str, Callable[[], Any]] = {
        "__bool__": lambda: bool(d),
        "__contains__": lambda: "a" in d,
        "__delitem__": lambda: operator.delitem(d, "a"),  # type: ignore[arg-type]
        "__eq__": lambda: d == {},
        "__ior__": lambda: operator.ior(d, {}),
        "__iter__": lambda: list(d),  # type: ignore[call-overload]
        "__len__": lambda: len(d),  # type: ignore[arg-type]
        "__or__": lambda: d | {},  # type: ignore[operator]
        "__ror__": lambda: {} | d,  # type: ignore[operator]
        "__setitem__": lambda: operator.setitem(d, "a", 1),  # type: ignore[call-overload]
    }
    for name, attempt in attempts.items():
        with pytest.raises(PolicyError, match=NAMED[name]) as caught:
            attempt()
        assert isinstance(caught.value, TypeError)
        assert caught.value.place == d.place
    for attempt in (
        lambda: d != {},
        lambda: d == d.get_subdict("a"),
        lambda: list(d.keys()),
        lambda: dict(d),
        lambda: reversed(d),
    ):  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            attempt()
    assert d == d
    assert d != 5


# The same is done


def ease(answer: Any) -> Any:
    """What two places have in common: not their ETags, times and names."""
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return type(answer)(*(part if not isinstance(part, str) or not part else "an ETag" for part in answer))
    if isinstance(answer, float):
        return "a time"
    if isinstance(answer, (PersiDict, NotAValue)) or hasattr(answer, "_twin"):
        return answer if not hasattr(answer, "place") else sorted(map(str, answer))
    if isinstance(answer, (Iterator, MappingView)):
        return sorted((ease(entry) for entry in answer), key=str)
    if isinstance(answer, tuple) and type(answer) is tuple:
        return tuple(ease(part) for part in answer)
    if isinstance(answer, dict):
        return {key: ease(value) for key, value in answer.items()}
    return answer


def no(value: Any) -> Any:
    raise ZeroDivisionError


def swap(d: Any, **how: Any) -> Any:
    return d.set_item_if("a", value=4, **how)


STORY: list[Callable[[Any], Any]] = [
    lambda d: (bool(d), len(d), list(d)),
    lambda d: d["a"],
    lambda d: d.popitem(),
    lambda d: operator.setitem(d, "a", 1),
    lambda d: operator.setitem(d, ("b", "c"), [1, {"x": 2.5}]),
    lambda d: operator.setitem(d, "a", KEEP_CURRENT),
    lambda d: operator.setitem(d, "a", object()),
    lambda d: operator.setitem(d, "a/b", 1),
    lambda d: d["/"],
    lambda d: ("a" in d, "zz" in d, d["b", "c"], d.get("zz"), d.get("zz", 7), d.get(key="a", default=0)),
    lambda d: d.get("\0"),
    lambda d: d.setdefault("a", 5),
    lambda d: d.setdefault("new"),
    lambda d: d.setdefault("a", DELETE_CURRENT),
    lambda d: d.update({"u": 1, "v": KEEP_CURRENT}, w=3),
    lambda d: d.update([("u", 2)]),
    lambda d: d.update(7),
    lambda d: d.set_many((key, len(key)) for key in ("x", "yy")),
    lambda d: d.set_many({"x": 9, "bad": object()}),
    lambda d: d.get_many(["x", "yy", "nobody", ("b", "c")]),
    lambda d: d.get_many(iter("xuw"), progress=lambda done, total: None),
    lambda d: (d.discard("x"), d.discard("x"), d.delete_if_exists("x")),
    lambda d: (d.pop("yy"), d.pop("yy", None)),
    lambda d: d.pop("yy"),
    lambda d: operator.delitem(d, "yy"),
    lambda d: operator.delitem(d, "w"),
    lambda d: (d.etag("a") == d.etag("a"), d.timestamp("a"), d.get_with_etag("a")),
    lambda d: d.etag("zz"),
    lambda d: d.timestamp("zz"),
    lambda d: (d.keys(), d.values(), d.items(), list(d) == list(d.keys())),
    lambda d: (d.keys_and_timestamps(), d.values_and_timestamps(), d.items_and_timestamps()),
    lambda d: (sorted(d.oldest_keys()), len(d.newest_keys(max_n=1)), len(d.oldest_values(max_n=2)), d.newest_values(max_n=0)),
    lambda d: d.random_key() in list(d),
    lambda d: (d.subdicts(), d.get_subdict("b"), d.get_subdict("b")["c"], len(d.get_subdict("none"))),
    lambda d: d.get_subdict("b").place.endswith("under b/"),
    lambda d: d.clone(append_only=True).discard("a"),
    lambda d: (d == dict(d.items()), d == {}, d == 5),
    lambda d: swap(d, condition=ETAG_IS_THE_SAME, expected_etag=ITEM_NOT_AVAILABLE),
    lambda d: swap(d, condition=ETAG_IS_THE_SAME, expected_etag=d.etag("a"), retrieve_value=NEVER_RETRIEVE),
    lambda d: swap(d, condition=ETAG_HAS_CHANGED, expected_etag=d.etag("a"), retrieve_value=ALWAYS_RETRIEVE),
    lambda d: swap(d, condition="same", expected_etag=ITEM_NOT_AVAILABLE),
    lambda d: d.get_item_if("a", condition=ANY_ETAG, expected_etag=d.etag("a")),
    lambda d: d.setdefault_if("s", default_value=1, condition=ANY_ETAG, expected_etag=ITEM_NOT_AVAILABLE),
    lambda d: d.discard_if("s", condition=ETAG_IS_THE_SAME, expected_etag=d.etag("s")),
    lambda d: d.transform_item("n", transformer=lambda n: 1 if n is ITEM_NOT_AVAILABLE else n + 1),
    lambda d: d.transform_item("n", transformer=lambda n: KEEP_CURRENT),
    lambda d: d.transform_item("n", transformer=no),
    lambda d: d.transform_item("n", transformer=lambda n: ITEM_NOT_AVAILABLE),
    lambda d: d.transform_item("n", transformer=lambda n: n, n_retries=-1),
    lambda d: d.transform_item("n", transformer=lambda n: DELETE_CURRENT),
    lambda d: d.get(),
    lambda d: d.delete_many(["a", "nobody"]),
    lambda d: len(d.popitem()),
    lambda d: d.clear(),
    lambda d: (bool(d), len(d), d.random_key() is None),
    lambda d: d.close(),
    lambda d: d.close(),
]


def told(d: Any) -> Iterator[Any]:
    for chapter in STORY:
        try:
            yield ease(chapter(d))
        except PerdureError as error:
            yield type(error), error.problem, error.key, error.hint, error.place is not None
        except (TypeError, ZeroDivisionError) as error:
            yield type(error), str(error)


def test_every_method_does_what_that_of_the_synchronous_dict_does(new_url: Callable[[str], str], synchronous: Any) -> None:
    with asyncio.Runner() as runner:

        async def opened() -> AsyncPersiDict[Any]:
            return await perdure.aio.open(new_url("two"))

        twin = synchronous(runner.run(opened()), lambda awaited: runner.run(wrapped(awaited)))
        with perdure.open(new_url("one")) as sync:
            for number, (mine, theirs) in enumerate(zip(told(twin), told(sync), strict=True)):
                assert mine == theirs, f"chapter {number}"
        with pytest.raises(BackendError) as caught:
            twin["a"]
        assert caught.value.place


async def wrapped(awaited: Any) -> Any:
    return await awaited


def test_an_append_only_dict_refuses_the_same(new_url: Callable[[str], str], synchronous: Any) -> None:
    async def plus(n: Any) -> int:
        return 1 if n is ITEM_NOT_AVAILABLE else n + 1

    async def away(n: Any) -> Any:
        return DELETE_CURRENT

    with asyncio.Runner() as runner:

        async def opened() -> AsyncPersiDict[Any]:
            return await perdure.aio.open(new_url("two"), append_only=True, base_class_for_values=int)

        twin = synchronous(runner.run(opened()), lambda awaited: runner.run(wrapped(awaited)))
        with perdure.open(new_url("one"), append_only=True, base_class_for_values=int) as sync:
            for mine, theirs in zip(told(twin), told(sync), strict=True):
                assert mine == theirs
        twin = synchronous(runner.run(opened()), lambda awaited: runner.run(wrapped(awaited)))
        assert twin.transform_item("own", transformer=plus).new_value == 1
        for transformer, plain in ((plus, lambda n: n + 1), (away, lambda n: DELETE_CURRENT)):
            errors = []
            for how in (transformer, plain):
                with pytest.raises(PolicyError) as caught:
                    twin.transform_item("own", transformer=how)
                errors.append((str(caught.value), caught.value.key, caught.value.policy))
            assert errors[0] == errors[1]
        twin.close()


# Opening, copies, values


def test_open_takes_the_arguments_of_the_synchronous_one() -> None:
    from perdure.mapping import opening

    assert inspect.signature(perdure.aio.open).parameters["concurrency"].default == 32
    mine = [shape(overload) for overload in get_overloads(perdure.aio.open)]
    assert [[p for p in parameters if p[0] != "concurrency"] for parameters in mine] == [
        shape(overload) for overload in get_overloads(opening.open) or [opening.open]
    ]


def test_opening_fails_as_that_of_the_synchronous_dict() -> None:
    async def main() -> None:
        for arguments, options in [
            (("nosuch:x",), {}),
            ((5,), {}),
            (("memory:",), {"filters": "nosuch"}),
            (("memory:",), {"colour": 1}),
            ((MemoryBackend(),), {"colour": 1}),
        ]:
            with pytest.raises(UsageError) as theirs:
                perdure.open(*arguments, **options)
            with pytest.raises(UsageError) as mine:
                await perdure.aio.open(*arguments, **options)
            assert str(mine.value) == str(theirs.value)
        for number in (0, -1, 1.5, None, "x"):
            with pytest.raises(UsageError, match="concurrency"):
                await perdure.aio.open("memory:", concurrency=number)
            with pytest.raises(UsageError, match="concurrency"):
                AsyncPersiDict(perdure.open("memory:"), concurrency=number)  # type: ignore[arg-type]

    asyncio.run(main())


def test_async_with_closes_what_it_opened(tmp_path: Path) -> None:
    async def main() -> None:
        opening = perdure.aio.open(tmp_path / "folder", codec="json")
        assert not (tmp_path / "folder").exists()
        async with opening as d:
            await d.set("a", 1)
            assert d.serialization_format == "json"
        with pytest.raises(BackendError, match="closed"):
            await d["a"]
        async with await perdure.aio.open(tmp_path / "folder") as d, AsyncPersiDict(perdure.open(tmp_path / "folder")) as e:
            assert await d["a"] == await e["a"] == 1

    asyncio.run(main())


def test_copies_and_pickles_are_handles(tmp_path: Path) -> None:
    async def main() -> None:
        async with perdure.aio.open(tmp_path, concurrency=3) as d:
            await d.get_subdict("p").set("a", 1)
            again = pickle.loads(pickle.dumps(d.get_subdict("p")))
            assert await again["a"] == await copy.copy(d)["p", "a"] == 1
            assert again._threads is not d._threads
            assert again._threads.most == 3
            with pytest.raises(PolicyError):
                copy.deepcopy(d)
            await again.close()
            assert await d["p", "a"] == 1

    asyncio.run(main())


def test_a_twin_is_not_a_value() -> None:
    async def main() -> None:
        async with perdure.aio.open("memory:", codec="pkl") as d:
            with pytest.raises(PolicyError):
                await d.set("a", d)
            with pytest.raises(PolicyError):
                await d.set_many({"a": d})

    asyncio.run(main())


def test_a_twin_is_a_source_of_items() -> None:
    async def main() -> None:
        async with perdure.aio.open("memory:") as d, perdure.aio.open("memory:") as e:
            await d.update({"a": 1, ("b", "c"): 2})
            await e.update(d)
            await e.set_many(d.get_subdict("b"))  # type: ignore[arg-type]
            assert await e.equals({"a": 1, ("b", "c"): 2, "c": 2})
            assert await e.get_many(d.get_subdict("b")) == {SafeStrTuple("c"): 2}  # type: ignore[arg-type]
            assert not await e.equals(d)
            assert await e.discard("c")
            assert await e.equals(d)

    asyncio.run(main())


# Listings


class Endless(MemoryBackend):
    """Lists more keys than there is time for, and counts them."""

    listed = 0

    def keys(self, prefix: str = "") -> Iterator[str]:
        for number in itertools.count():
            self.listed = number
            yield f"{prefix}k{number}"

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        return {key: Blob(Chain("msgpack").encode(key, key), ETag("1"), 0.0) for key in keys}


def test_a_listing_is_read_as_far_as_it_is_used() -> None:
    async def main() -> None:
        backend = Endless()
        d = AsyncPersiDict(PersiDict[str](backend))
        for number, key in enumerate([key async for key, _ in azip(d, range(1000))]):
            assert key == (f"k{number}",)
        assert 1000 <= backend.listed <= 1000 + 256
        pairs = [pair async for pair, _ in azip(d.items(), range(10))]
        assert pairs == [((f"k{number}",), f"k{number}") for number in range(10)]
        assert backend.listed <= 3 * 256

    async def azip(stream: Any, numbers: Any) -> Any:
        numbers = iter(numbers)
        async for entry in stream:
            number = next(numbers, None)
            if number is None:
                return
            yield entry, number

    asyncio.run(main())


def test_what_comes_before_a_damaged_value_is_given() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        sync = PersiDict[int](backend)
        sync.update({f"k{number}": number for number in range(20)})
        blob = backend.get("k11")
        backend.put("k11", blob.data[:-1] + bytes([blob.data[-1] ^ 1]))
        seen: list[int] = []
        with pytest.raises(perdure.IntegrityError) as caught:
            async for value in AsyncPersiDict(sync).values():
                seen.append(value)  # noqa: PERF401
        assert seen == list(range(11))
        assert caught.value.key in ("k11", ("k11",))

    asyncio.run(main())


def test_a_stream_can_be_gone_through_again() -> None:
    async def main() -> None:
        async with perdure.aio.open("memory:") as d:
            keys = d.get_subdict("p").keys()
            assert [key async for key in keys] == []
            await d.set(("p", "a"), 1)
            assert [key async for key in keys] == [key async for key in keys] == [("a",)]

    asyncio.run(main())


# What is loaded


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = """if True:
        import sys
        import perdure.aio
        assert not [m for m in sys.modules if m.startswith("perdure.") and m != "perdure.aio"], sys.modules
        assert "asyncio" not in sys.modules
        assert set(perdure.aio.__all__) | {"open"} <= set(dir(perdure.aio))
        from perdure.aio import *
        assert InThread and AsyncPersiDict and open.__module__ in ("io", "_io")
        assert not {"boto3", "sqlite3", "numpy", "jsonpickle"} & sys.modules.keys()
        try:
            perdure.aio.colour
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("module 'perdure.aio' has no attribute 'colour'", "")
