"""Values whose bytes are not what was written: finding them, and getting them out of the way without losing a byte."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BackendError, PreconditionError
from ..protocol import ABSENT, Backend
from .places import open_place, read_all


@dataclass
class Unreadable:
    """A value that cannot be read.

    Attributes:
        key: Its key.
        problem: What is wrong with it.
        aside: Where its bytes are now; empty as long as they are in place.
    """

    key: str
    problem: str
    aside: str = ""


def set_aside(backend: Backend, key: str, elsewhere: str) -> str:
    """Get an unreadable value out of the way, all its bytes preserved.

    Args:
        backend: Where it is. One that can set values aside by itself does so, which also works where it can no longer read
            them.
        key: Its key.
        elsewhere: The URL of a place for those of any other backend.

    Returns:
        Where the bytes are now.

    Raises:
        PerdureError: It is still where it was.
    """
    own = getattr(backend, "set_aside", None)
    if own is not None:
        return str(own(key))
    blob = backend.get(key)
    with open_place(elsewhere, must_exist=False) as place:
        kept, number = key, 0
        while True:
            try:
                place.put(kept, blob.data, if_match=ABSENT)
            except PreconditionError:
                if place.get(kept).data != blob.data:  # another one, set aside earlier
                    number += 1
                    kept = f"{key}~{number}"
                    continue
            break
        if place.get(kept).data != blob.data:
            raise BackendError("what was set aside reads back as something else", key=kept, place=place.place)
        backend.delete(key, if_match=blob.etag)  # exactly the version that is safe now
        return f"{place.place}, key {kept}"


class IntegrityCheck:
    """Tells which values are damaged, by their checksums; nothing is decoded, so nothing in them can run.

    Args:
        backend: Where the values are. Its recorded codec says what they should look like.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __call__(self, keys: list[str]) -> list[Unreadable]:
        _, damaged = read_all(self._backend, keys)
        return [Unreadable(key, error.problem) for key, error in damaged.items()]
