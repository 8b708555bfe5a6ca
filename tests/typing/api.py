"""What users write, for the type checkers alone: `nox -s types` checks it, nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_type

import perdure
from perdure.protocol import Backend, Blob, Buffer, Condition, ETag, Meta
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend


class Own(Backend):
    """Just the six methods every backend has to have."""

    place = "own:"

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        raise perdure.NotFoundError(key=key, place=self.place)

    def head(self, key: str) -> Meta:
        raise perdure.NotFoundError(key=key, place=self.place)

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        return ETag("1")

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        pass

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return iter(())

    def close(self) -> None:
        pass


def backends() -> list[Backend]:
    return [Own(), MemoryBackend(), NullBackend()]


@dataclass
class Settings:
    lr: float = 0.1


def typed() -> None:
    d = perdure.open("state", value_type=Settings)
    assert_type(d, perdure.PersiDict[Settings])
    assert_type(d["a"], Settings)
    assert_type(d["a"].lr, float)
    d["a"] = Settings(0.2)
    d["a"] = 5  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
    assert_type(perdure.open("state", value_type=dict[str, int]), perdure.PersiDict[dict[str, int]])
    assert_type(perdure.open("state", value_type=Settings | None), perdure.PersiDict[Any])
    assert_type(perdure.open("state", codec="json", sync="normal"), perdure.PersiDict[Any])
    narrower: perdure.PersiDict[Settings | None] = perdure.open("state", value_type=Settings | None)
    narrower["a"] = None


def values(d: perdure.PersiDict[int]) -> None:
    assert_type(d["a"], int)
    assert_type(d.get("a"), int | None)
    d["a", "b"] = d["a"] + 1
    d.transform_item("hits", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1)
    new = d.transform_item("hits", transformer=lambda n: perdure.KEEP_CURRENT).new_value
    if new is not perdure.ITEM_NOT_AVAILABLE:
        assert_type(new, int)


@perdure.cached("memory:", ttl="1 h")
def double(x: int, *, times: int = 2) -> list[int]:
    return [x] * times


@perdure.cached("memory:")
async def fetch(x: int) -> str:
    return str(x)


class Model:
    @perdure.cached("memory:")
    def predict(self, x: float) -> float:
        return x


async def caches(d: perdure.PersiDict[int]) -> None:
    assert_type(double(1, times=3), list[int])
    double("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    double.cache.invalidate(1)
    assert_type(double.cache.stats().hits, int)
    assert_type(double.__wrapped__(1), list[int])
    assert_type(await fetch(1), str)
    assert_type(await fetch.cache.contains(1), bool)
    assert_type(Model().predict(1.0), float)
    assert_type(perdure.get_or_create(d, "a", lambda: 1), int)
    assert_type(await perdure.get_or_create_async(d, "a", lambda: 1), int)
