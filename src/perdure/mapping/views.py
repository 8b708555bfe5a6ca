"""`keys()`, `values()` and `items()` of a dict: live views, as a built-in dict has them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, TypeVar

from ..errors import InvalidKeyError
from ..keys import SafeStrTuple

if TYPE_CHECKING:
    from .dict import PersiDict

V = TypeVar("V")


class Keys(KeysView[SafeStrTuple]):
    """The keys. Iterating asks for names only; set operations work and give sets of keys."""

    __slots__ = ()
    _mapping: PersiDict[object]

    def __iter__(self) -> Iterator[SafeStrTuple]:
        return iter(self._mapping)

    def __contains__(self, key: object) -> bool:
        try:
            return key in self._mapping
        except InvalidKeyError:
            return False  # as a set: what can never be a key is not in it


class Values(ValuesView[V]):
    """The values, fetched in batches. A key that is deleted meanwhile is left out."""

    __slots__ = ()
    _mapping: PersiDict[V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping.items())

    def __contains__(self, value: object) -> bool:
        return any(mine is value or mine == value for mine in self)


class Items(ItemsView[SafeStrTuple, V]):
    """The pairs of key and value, fetched in batches. A key that is deleted meanwhile is left out."""

    __slots__ = ()
    _mapping: PersiDict[V]

    def __iter__(self) -> Iterator[tuple[SafeStrTuple, V]]:
        return self._mapping._items()  # noqa: SLF001

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, value = item
        try:
            mine = self._mapping[key]
        except (KeyError, InvalidKeyError):
            return False
        return mine is value or bool(mine == value)
