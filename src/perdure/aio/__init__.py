"""asyncio: `open` gives a dict whose methods are awaited; `InThread(backend)` makes any backend an `AsyncBackend`.

::

    async with perdure.aio.open("s3://bucket/prefix") as d:
        await d.set("a", 1)
        await d.transform_item("hits", transformer=lambda n: 1 if n is perdure.ITEM_NOT_AVAILABLE else n + 1)
        values = await asyncio.gather(*(d[key] for key in names))
        async for key, value in d.items():
            ...

The core is synchronous and works in threads; there is no bridge the other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import InThread
    from .dict import AsyncPersiDict
    from .opening import Opening
    from .opening import open as open
    from .stream import Stream

_home = {"AsyncPersiDict": "dict", "InThread": "backend", "Opening": "opening", "Stream": "stream", "open": "opening"}

# Without `open`, so that `from perdure.aio import *` does not replace Python's own.
__all__ = ["AsyncPersiDict", "InThread", "Opening", "Stream"]


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_home[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_home} - {"Any", "TYPE_CHECKING", "annotations"})
