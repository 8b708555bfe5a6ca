"""A place where everything is deleted at once: for switching persistence off without touching the program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from perdure.errors import BackendError, NotFoundError, PreconditionError
from perdure.protocol import ABSENT, NOT_KEPT, Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, check_key, check_prefix


class NullBackend(Backend):
    """Takes every write, keeps nothing. Always empty, so a swap from an ETag fails and a create succeeds."""

    def __init__(self) -> None:
        self.place = "null:"
        self._closed = False

    @classmethod
    def from_url(cls, location: str) -> Self:
        """Open `null:`."""
        return cls()

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        self._check(key)
        raise NotFoundError(key=key, place=self.place)

    def head(self, key: str) -> Meta:
        self._check(key)
        raise NotFoundError(key=key, place=self.place)

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        self._check(key)
        memoryview(data)  # the same TypeError as anywhere else for something that is not bytes
        if if_match is not None and if_match is not ABSENT:
            raise PreconditionError("the value is absent", key=key, place=self.place)
        return NOT_KEPT

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        self._check(key)
        if if_match is not None:
            raise PreconditionError("the value is absent", key=key, place=self.place)

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        self._check_open()
        check_prefix(prefix)
        return iter(())

    def close(self) -> None:
        self._closed = True

    def guarantees(self) -> Guarantees:
        return Guarantees("nothing: every value is gone at once", "everybody", "nothing to swap", "none")

    def _check(self, key: str) -> None:
        self._check_open()
        check_key(key)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this backend was closed", place=self.place, hint="Open it again.")
