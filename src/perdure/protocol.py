"""The contract every place keeps: bytes under keys, each with an ETag, with conditional reads and writes.

This module and `perdure.errors` are all a backend needs to import. What follows are promises; `perdure.testing` holds a
test for each of them, and a backend is right when it passes:

* A put is atomic for readers: the old bytes or the new bytes, whole.
* Put and delete are linearizable for each key, across threads and processes, conditional or not.
* Different bytes under one key never share an ETag. Equal bytes may (S3 does): who must notice every write puts
  something unique into the value. An ETag is opaque: compare it for equality, nothing else.
* Of N writers that swap from the same ETag, or create the same key, exactly one succeeds.
* Keys `a`, `a/b` and `a.b/c` coexist. Listing one prefix never shows the neighbours of that prefix.
* No exception of a driver or the operating system crosses the seam; it is the `__cause__` of one from `perdure.errors`.
* `close` may be called twice; any other call afterwards raises `BackendError`.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple, NewType, Protocol, Self, TypeAlias

from .errors import NotFoundError, UsageError
from .keys import are_keys, check_key, check_prefix, is_key

__all__ = [
    "ABSENT",
    "NOT_KEPT",
    "AsyncBackend",
    "Backend",
    "Blob",
    "Buffer",
    "Condition",
    "ETag",
    "Guarantees",
    "Meta",
    "Use",
    "are_keys",
    "check_key",
    "check_prefix",
    "is_key",
    "require_settings",
]

ETag = NewType("ETag", str)
Buffer: TypeAlias = bytes | bytearray | memoryview
"""What `put` takes. `get` always returns `bytes`."""


NOT_KEPT: Final = ETag("")
"""What `put` returns where nothing is kept: the write was taken, and the key is absent."""


class _Absent(enum.Enum):
    ABSENT = "ABSENT"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent.ABSENT
"""The condition "there is nothing under this key yet"."""

Condition: TypeAlias = ETag | Literal[_Absent.ABSENT] | None
"""`if_match=` of a put: `None` overwrites whatever is there, `ABSENT` creates, an ETag swaps exactly that version."""


class Blob(NamedTuple):
    """A value's bytes together with the ETag they were stored under.

    Attributes:
        data: The bytes.
        etag: Their version.
        modified: When they were written, in seconds since the epoch, by the clock of whoever keeps it.
    """

    data: bytes
    etag: ETag
    modified: float


class Meta(NamedTuple):
    """All about a value but its bytes.

    Attributes:
        key: The whole key, prefix included.
        etag: The version.
        size: Length of the value in bytes.
        modified: When it was written, in seconds since the epoch.
    """

    key: str
    etag: ETag
    size: int
    modified: float


class Use(NamedTuple):
    """When a value was last used.

    Attributes:
        key: The whole key, prefix included.
        size: Length of the value in bytes.
        used: When it was last read or written, in seconds since the epoch; when it was written, where a place cannot
            remember more.
    """

    key: str
    size: int
    used: float


class Guarantees(NamedTuple):
    """What a place promises, in words for people; `perdure doctor` prints it.

    Attributes:
        durable: What an acknowledged write survives.
        shared: Who may use the place at once.
        swap: How compare-and-swap is done.
        limits: Longest key, largest value and the like.
    """

    durable: str
    shared: str
    swap: str
    limits: str


class Backend(Protocol):
    """Bytes under keys. Subclass it: everything that is not abstract then works, and may be overridden to be faster.

    Methods may be called from any thread. Keys are checked against `perdure.keys` before any input or output.

    Attributes:
        place: Where this is, as a URL without secrets; it stands in every message.
        shared_by_machines: Whether other machines commonly write here. A codec that can run code is warned about then;
            a wrapper passes on what its backend says.
        remembers_use: Whether `mark_used` is remembered, so that `uses` tells more than when values were written.
    """

    place: str
    shared_by_machines: bool = False
    remembers_use: bool = False

    @abstractmethod
    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        """Read a value.

        Args:
            key: Such as `"a/b"`.
            if_none_match: An ETag the caller already holds the bytes of.

        Raises:
            NotFoundError: The key is absent.
            NotModified: The value still has the ETag `if_none_match`.
            IntegrityError: The stored record is damaged.
            InvalidKeyError, BackendError: See `perdure.errors`.
        """
        raise NotImplementedError

    @abstractmethod
    def head(self, key: str) -> Meta:
        """Tell a value's ETag, size and time without fetching its bytes. Raises as `get`."""
        raise NotImplementedError

    @abstractmethod
    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        """Store `data` and return its ETag; when this returns, the write is as durable as the backend gets.

        Args:
            key: Such as `"a/b"`.
            data: The bytes; not kept after the call returns.
            if_match: `None` overwrites, `ABSENT` creates, an ETag swaps exactly that version.

        Returns:
            The new ETag; `NOT_KEPT` where nothing is kept.

        Raises:
            PreconditionError: `if_match` did not hold; nothing was changed. An absent key matches no ETag.
            UnknownOutcomeError: It cannot be told whether the write took effect.
            InvalidKeyError, BackendError: Nothing was changed.
        """
        raise NotImplementedError

    @abstractmethod
    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        """Remove a value. Without a condition an absent key is fine.

        Raises:
            PreconditionError: With `if_match`: the value is another one, or absent.
            UnknownOutcomeError, InvalidKeyError, BackendError: As `put`.
        """
        raise NotImplementedError

    @abstractmethod
    def scan(self, prefix: str = "") -> Iterator[Meta]:
        """List what is stored under `prefix` (`""` or ends in `"/"`), in no particular order.

        A key that is there from the first step to the last is listed exactly once; one that comes or goes meanwhile may
        or may not be. A value that cannot be read is listed all the same, and where not even its version can be told,
        with an ETag that no version has. Files and objects that are not ours are not listed. Argument errors are raised by
        the call itself.
        """
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Release what is held open. May be called twice."""
        raise NotImplementedError

    # What follows is right as it stands.

    def contains(self, key: str) -> bool:
        """Tell whether the key is present."""
        try:
            self.head(key)
        except NotFoundError:
            return False
        return True

    def keys(self, prefix: str = "") -> Iterator[str]:
        """As `scan`, but names only, which is cheaper where the rest needs a look at every value."""
        return (meta.key for meta in self.scan(prefix))

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        """As `scan`, but only keys and when they were written, as `head` says it: cheaper where the rest is not needed."""
        return ((meta.key, meta.modified) for meta in self.scan(prefix))

    def uses(self, prefix: str = "") -> Iterator[Use]:
        """As `scan`, but keys, sizes and when each was last used."""
        return (Use(meta.key, meta.size, meta.modified) for meta in self.scan(prefix))

    def mark_used(self, times: Mapping[str, float]) -> None:
        """Remember when values were last read, for `uses`; absent keys are fine. Changes neither ETags nor times of writing.

        Where `remembers_use` is false this does nothing.
        """
        return

    def forgets(self, key: str) -> str:
        """Why a key may become absent without being deleted, as far as this knows (`"it evicts values ..."`); `""` if it stays.

        What must not be forgotten, such as a lock, is refused in such a place. A wrapper passes on what its backend says.
        """
        return ""

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        """Read several values; absent keys are missing from the answer. The first other error is raised."""
        found: dict[str, Blob] = {}
        for key in keys:
            try:
                found[key] = self.get(key)
            except NotFoundError:
                continue
        return found

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        """Overwrite several values; each put is atomic, the whole need not be. The first error is raised.

        All keys are checked before the first put, so that an illegal one changes nothing.
        """
        for key in items:
            check_key(key)
        return {key: self.put(key, data) for key, data in items.items()}

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove several values, absent ones included. All keys are checked first. The first error is raised."""
        for key in [check_key(key) for key in keys]:
            self.delete(key)

    def recorded(self) -> dict[str, str]:
        """The settings kept with the place, such as the codec its values are written with; empty where none are."""
        return {}

    def record(self, settings: Mapping[str, str]) -> None:
        """Keep settings with the place, no later than its first write. A place that cannot keep any ignores this.

        Raises:
            UsageError: The place was recorded with other settings; raised here or, when another process was quicker,
                by the first write.
        """
        return  # without a line of code, mypy would take this for abstract

    def guarantees(self) -> Guarantees:
        """Say what this place promises."""
        return Guarantees("unknown", "unknown", "unknown", "unknown")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place}>"


def require_settings(wanted: Mapping[str, str], recorded: Mapping[str, str], place: str) -> None:
    """What `Backend.record` asks of settings: that none of them differs from what the place was recorded with.

    Raises:
        UsageError: One does. It names both values and the place.
    """
    for name, value in wanted.items():
        if recorded.get(name, value) != value:
            raise UsageError(
                f"this place was written with {name} {recorded[name]!r}, not {value!r}",
                place=place,
                hint=f"Open it with {name}={recorded[name]!r}, or use another place.",
            )


class AsyncBackend(Protocol):
    """The same contract for asyncio, method by method. A sync backend becomes one with `perdure.aio.InThread`."""

    place: str

    @abstractmethod
    async def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        """As `Backend.get`."""
        raise NotImplementedError

    @abstractmethod
    async def head(self, key: str) -> Meta:
        """As `Backend.head`."""
        raise NotImplementedError

    @abstractmethod
    async def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        """As `Backend.put`. Cancelling the caller does not take the write back."""
        raise NotImplementedError

    @abstractmethod
    async def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        """As `Backend.delete`. Cancelling the caller does not take it back."""
        raise NotImplementedError

    @abstractmethod
    def scan(self, prefix: str = "") -> AsyncIterator[Meta]:
        """As `Backend.scan`."""
        raise NotImplementedError

    @abstractmethod
    async def close(self) -> None:
        """As `Backend.close`."""
        raise NotImplementedError

    async def contains(self, key: str) -> bool:
        """As `Backend.contains`."""
        try:
            await self.head(key)
        except NotFoundError:
            return False
        return True

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """As `Backend.keys`."""
        async for meta in self.scan(prefix):
            yield meta.key

    async def times(self, prefix: str = "") -> AsyncIterator[tuple[str, float]]:
        """As `Backend.times`."""
        async for meta in self.scan(prefix):
            yield meta.key, meta.modified

    async def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        """As `Backend.get_many`."""
        found: dict[str, Blob] = {}
        for key in keys:
            try:
                found[key] = await self.get(key)
            except NotFoundError:
                continue
        return found

    async def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        """As `Backend.put_many`."""
        return {key: await self.put(key, data) for key, data in items.items()}

    async def delete_many(self, keys: Iterable[str]) -> None:
        """As `Backend.delete_many`."""
        for key in keys:
            await self.delete(key)

    def guarantees(self) -> Guarantees:
        """As `Backend.guarantees`."""
        return Guarantees("unknown", "unknown", "unknown", "unknown")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
