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

    @perdure.cached("memory:")
    async def ask(self, x: int) -> str:
        return str(x)

    @classmethod
    @perdure.cached("memory:")
    def make(cls, x: int) -> list[int]:
        return [x]

    @classmethod
    @perdure.cached("memory:")
    async def fetch(cls, x: int) -> list[int]:
        return [x]

    @staticmethod
    @perdure.cached("memory:")
    def add(x: int, y: int = 0) -> int:
        return x + y

    @staticmethod
    @perdure.cached("memory:")
    async def later(x: type[int]) -> int:
        return x()

    @property
    @perdure.cached("memory:")
    def size(self) -> int:
        return 1


class Larger(Model):
    @perdure.cached("memory:")  # pyright holds a method for an attribute, which must be of exactly the same type
    def predict(self, x: float) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 * x

    def ask(self, x: int) -> Any:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """It has no `cache` any more, which is why type checkers complain."""


async def methods(model: Model) -> None:
    assert_type(model.predict(1.0), float)
    model.predict("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    model.predict()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    model.predict.cache.invalidate(1.0)
    assert_type(Model.predict(model, 1.0), float)
    Model.predict.cache.clear()
    assert_type(Larger().predict(x=1.0), float)
    assert_type(await model.ask(1), str)
    await model.ask("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await model.ask.cache.contains(1), bool)
    assert_type(Model.make(1), list[int])
    assert_type(model.make(1), list[int])
    assert_type(Larger.make(x=1), list[int])
    Model.make("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await Model.fetch(1), list[int])
    assert_type(await model.fetch(1), list[int])
    assert_type(Model.add(1, y=2), int)
    assert_type(model.add(1), int)
    Model.add("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await Model.later(int), int)
    assert_type(model.size, int)
    assert_type(model.predict.__wrapped__(1.0), float)


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
