"""`InThread` makes any backend an `AsyncBackend`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from perdure.aio import InThread
from perdure.errors import BackendError, NotFoundError, NotModified, PreconditionError
from perdure.protocol import ABSENT, Meta
from perdure_backends.memory import MemoryBackend


def test_every_method_does_what_that_of_the_backend_does() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        async with InThread(backend) as a:
            assert (a.place, a.guarantees(), repr(a)) == (backend.place, backend.guarantees(), f"InThread({backend!r})")
            etag = await a.put("a", b"1", if_match=ABSENT)
            with pytest.raises(PreconditionError):
                await a.put("a", b"1", if_match=ABSENT)
            with pytest.raises(NotModified):
                await a.get("a", if_none_match=etag)
            assert await a.get("a") == backend.get("a")
            assert await a.head("a") == backend.head("a")
            await a.put_many({f"p/{number}": b"" for number in range(1000)})
            assert {key async for key in a.keys("p/")} == set(backend.keys("p/"))
            assert {meta async for meta in a.scan()} == set(backend.scan())
            assert await a.get_many(iter(["a", "none"])) == {"a": backend.get("a")}
            await a.delete_many(iter([f"p/{number}" for number in range(1000)]))
            await a.delete("a", if_match=etag)
            assert not await a.contains("a")
            with pytest.raises(NotFoundError) as caught:
                await a.get("a")
            assert (caught.value.key, caught.value.place) == ("a", backend.place)
        with pytest.raises(BackendError):
            backend.contains("a")

    asyncio.run(main())


def test_what_a_listing_gives_before_it_fails_is_given() -> None:
    class Failing(MemoryBackend):
        def scan(self, prefix: str = "") -> Iterator[Meta]:
            yield from super().scan(prefix)
            raise BackendError("the cable is out", place=self.place)

    async def main() -> None:
        backend = Failing()
        backend.put("a", b"")
        seen: list[str] = []
        with pytest.raises(BackendError, match="cable"):
            async for meta in InThread(backend).scan():
                seen.append(meta.key)  # noqa: PERF401
        assert seen == ["a"]

    asyncio.run(main())
