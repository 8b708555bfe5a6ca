"""What users of `perdure.aio` write, for type checkers: `test_async_types.py` runs mypy over it, nothing runs it."""

from __future__ import annotations

from typing import assert_type

import perdure
import perdure.aio
from perdure.aio import AsyncPersiDict
from perdure.keys import SafeStrTuple
from perdure.mapping.flags import ItemNotAvailableFlag
from perdure.mapping.results import ConditionalOperationResult, OperationResult
from perdure.protocol import ETag


async def opened() -> None:
    async with perdure.aio.open("memory:", value_type=int, concurrency=4) as d:
        assert_type(d, AsyncPersiDict[int])
    assert_type(await perdure.aio.open("memory:", value_type=str), AsyncPersiDict[str])


async def values(d: AsyncPersiDict[int]) -> None:
    assert_type(await d["a"], int)
    assert_type(await d.get("a"), int | None)
    assert_type(await d.get("a", "b"), int | str)
    assert_type(await d.pop("a"), int)
    assert_type(await d.pop("a", None), int | None)
    assert_type(await d.setdefault("a", 1), int)
    assert_type(await d.popitem(), tuple[SafeStrTuple, int])
    assert_type(await d.get_many(["a"]), dict[str, int])
    assert_type(await d.get_with_etag("a"), ConditionalOperationResult[int])
    assert_type(await d.etag("a"), ETag)
    assert_type(await d.newest_keys(max_n=3), list[SafeStrTuple])
    assert_type(await d.oldest_values(), list[int])
    assert_type(await d.subdicts(), dict[str, AsyncPersiDict[int]])
    assert_type(await d.count(), int)
    assert_type(d.get_subdict("a"), AsyncPersiDict[int])
    async for key in d:
        assert_type(key, SafeStrTuple)
    async for pair in d.items():
        assert_type(pair, tuple[SafeStrTuple, int])
    async for triple in d.items_and_timestamps():
        assert_type(triple, tuple[SafeStrTuple, int, float])


async def plus_one(value: int | ItemNotAvailableFlag) -> int:
    return 1 if value is perdure.ITEM_NOT_AVAILABLE else value + 1


async def transformed(d: AsyncPersiDict[int]) -> None:
    assert_type(await d.transform_item("a", transformer=plus_one), OperationResult[int])
    await d.transform_item("a", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1)
    await d.set("a", perdure.KEEP_CURRENT)


async def refused(d: AsyncPersiDict[int]) -> None:
    # Each of these must be an error; mypy complains where an `ignore` is not needed.
    await d.set("a", "b")  # type: ignore[arg-type]
    await d.set_many({"a": "b"})  # type: ignore[arg-type]
    await d.newest_keys(3)  # type: ignore[call-arg]
    await d.get_many(3)  # type: ignore[arg-type]
    d["a"] = 1  # type: ignore[index]
    del d["a"]  # type: ignore[attr-defined]
    len(d)  # type: ignore[arg-type]
    for _ in d.keys():  # type: ignore[attr-defined]  # noqa: SIM118
        pass
