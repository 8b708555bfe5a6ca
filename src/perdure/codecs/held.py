"""Values that never leave this process: pickled where that goes, else a copy of the object itself."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

from ..errors import CodecError

__all__ = ["Held"]


class _Object(bytes):
    """No bytes, but an object; a backend in memory keeps it as it is."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return self is other  # as bytes all of them are empty

    __hash__ = object.__hash__


class Held:
    """A codec for dicts in memory only. Reads give copies. Takes whatever can be pickled or deep-copied.

    Args:
        name: What the format of the dict is called.
    """

    id = 127
    safe = True  # nobody else can put bytes there
    bare = True
    any_bytes = False

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, value: Any) -> bytes:
        try:
            return pickle.dumps(value, 5)
        except Exception:  # whatever it is that pickle cannot do: a copy may do
            held = _Object()
        try:
            held.value = deepcopy(value)
        except Exception as error:
            text = f"value is a {type(value).__qualname__} that can be neither pickled nor copied: {error}"
            raise CodecError(text, hint="Leave that part out.") from error
        return held

    def decode(self, data: bytes | memoryview, limit: int) -> Any:
        if isinstance(data, _Object):
            return deepcopy(data.value)
        return pickle.loads(data)
