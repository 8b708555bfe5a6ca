"""What tells a value from others: said once for each value that is met, and what nothing tells is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from .layers import is_tool

__all__ = ["Always", "Met", "Tell", "in_order", "leave", "met_at", "quietly"]

# It is given what was met before, which is not told twice: functions may capture themselves.
Tell: TypeAlias = Callable[[list[Any]], Any]


class Met(list[Any]):
    """What was met, and what no key could be made of."""

    __slots__ = ("untold",)

    def __init__(self, met: Iterable[Any]) -> None:
        super().__init__(met)
        self.untold: list[Any] = []


class Always:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, met: list[Any]) -> str:
        return self.text


def quietly(tell: Tell) -> Tell:
    """Forgets what no key could be made of."""

    def quiet(met: list[Any]) -> Any:
        before = [*met.untold] if isinstance(met, Met) else []
        told = tell(met)
        if isinstance(met, Met):
            met.untold = before
        return told

    return quiet


def leave(value: Any, met: list[Any]) -> None:
    if isinstance(met, Met) and not is_tool(value):
        met.untold.append(value)


def met_at(value: Any, met: list[Any]) -> int | None:
    return next((at for at, each in enumerate(met) if each is value), None)


def in_order(key: Any) -> tuple[str, str]:
    return type(key).__name__, repr(key)
