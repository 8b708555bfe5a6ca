"""What every part of a dict stands on: a backend, a codec chain, and the prefix under which this dict lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import count, islice
from time import perf_counter, sleep
from typing import Any, Generic, NoReturn, Self, TypeAlias, TypeVar

from ..codecs.chain import Chain
from ..codecs.entry import Unfinished, holds_value
from ..errors import CodecError, ConflictError, IntegrityError, NotFoundError, PolicyError, PreconditionError, UsageError
from ..keys import SafeStrTuple, join_key, split_key
from ..protocol import ABSENT, Backend, Blob
from .flags import Joker, NotAValue

V = TypeVar("V")
Key: TypeAlias = str | Sequence[Any]
"""What may stand between square brackets: a name, or a tuple of names (nested ones are flattened)."""

NAMES_AT_ONCE = 1000  # as many as a request to S3 lists
VALUES_AT_ONCE = 256
_BYTES_AT_ONCE = 8 << 20  # aimed at, where values are large
_BOUND = {"_get", "_put", "_contains", "_encode", "_decode", "_any_value", "_listing", "_creating", "_flights"}


class Core(NotAValue, Generic[V]):
    """Where a dict is and how its values are written. Views share the backend and differ in their prefix.

    Paths are what the backend and the chain see: whole keys from the root, such as `"a/b"`. A *key* is what the user writes.
    """

    _split = staticmethod(split_key)  # what makes the keys that are handed out
    _prefix = ""  # of the paths of this dict: the root's, or a view's

    def __init__(
        self,
        backend: Backend,
        chain: Chain | str | None = None,
        *,
        append_only: bool = False,
        base_class_for_values: type[Any] | None = None,
        prefix: Key = (),
    ) -> None:
        if base_class_for_values is not None and not isinstance(base_class_for_values, type):
            raise UsageError(f"base_class_for_values is a class, not {base_class_for_values!r}", place=backend.place)
        self.backend = backend
        self.chain = chain if isinstance(chain, Chain) else Chain(chain or "msgpack")
        self._append_only = append_only
        self.base_class_for_values = base_class_for_values
        self._prefix = self._prefix_of(prefix)
        self._bind()

    def _bind(self) -> None:
        # Looked up once: each attribute on the way would be paid for by every operation.
        self._get = self.backend.get
        self._put = self.backend.put
        self._contains = self.backend.contains
        self._encode = self.chain.encode
        self._decode = self.chain.decode
        self._any_value = not self.append_only and self.base_class_for_values is None

    # Copies and pickles are handles, where and how, never the data. A backend that lives in this process refuses pickling.

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _BOUND}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise PolicyError(
            "a deep copy would show the same data",
            place=self.place,
            hint="Use copy.copy(d) for another handle, dict(d) for the data in memory, `perdure cp` for another place.",
        )

    def _stand_for(self, other: Core[V], backend: Backend) -> None:
        """Begin as another dict over a backend that stands in for its own."""
        self.__setstate__(other.__getstate__() | self.__dict__ | {"backend": backend, "_split": other._split})

    def _view(self, prefix: str) -> Self:
        view = object.__new__(type(self))
        view.__setstate__(self.__getstate__() | {"_prefix": prefix})
        return view

    # ---------------------------------------------------------------- place

    @property
    def place(self) -> str:
        """Where this is, as a URL without secrets, for messages; of a view, with its prefix."""
        return f"{self.backend.place} under {self._prefix}" if self._prefix else self.backend.place

    @property
    def append_only(self) -> bool:
        """Whether keys may only be added."""
        return self._append_only

    @property
    def serialization_format(self) -> str:
        """The name of the codec."""
        return self.chain.codec.name

    def get_params(self) -> dict[str, Any]:
        """What the constructor takes to make another handle of the same dict, view or not: `type(d)(**d.get_params())`."""
        return {
            "append_only": self.append_only,
            "backend": self.backend,
            "base_class_for_values": self.base_class_for_values,
            "chain": self.chain,
            "prefix": tuple(self._prefix.split("/")[:-1]),
        }

    @classmethod
    def get_default_params(cls) -> dict[str, Any]:
        """The parameters that the constructor takes when they are not given. Makes nothing."""
        return dict(sorted((cls.__init__.__kwdefaults__ or {}).items()))

    def clone(self, **changes: Any) -> Self:
        """Another handle made by the constructor from `get_params()` and changes to it."""
        return type(self)(**self.get_params() | changes)

    def close(self) -> None:
        """Close the backend, and with it every view and every other dict over the same backend. May be called twice."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        words = [self.chain.codec.name]
        if self.append_only:
            words.append("append-only")
        if self.base_class_for_values is not None:
            words.append(self.base_class_for_values.__name__)
        return f"<{type(self).__name__} in {self.place} ({', '.join(words)})>"

    # ---------------------------------------------------------------- keys and values

    def _key(self, path: str) -> SafeStrTuple:
        return self._split(path[len(self._prefix) :])

    def _missing(self, path: str) -> NotFoundError:
        return NotFoundError(key=self._key(path), place=self.place)

    def _spell(self, value: V, path: str) -> bytes:
        """A value's bytes, after every check that can refuse it."""
        if isinstance(value, NotAValue):
            raise self._unfit(value, path)
        base = self.base_class_for_values
        if base is not None and not isinstance(value, base):
            raise self._wrong_class(value, path, "written")
        try:
            return self._encode(value, path)
        except CodecError as error:
            error.at(place=self.backend.place)
            raise

    def _read(self, data: bytes, path: str) -> V:
        """The value that bytes stand for; `NotFoundError` where they stand for a cache's claim to compute it."""
        try:
            value: Any = self._decode(data, path)
        except CodecError as error:
            self._complete(error, path)
            raise
        base = self.base_class_for_values
        if base is not None and not isinstance(value, base):
            raise self._wrong_class(value, path, "stored")
        return value  # type: ignore[no-any-return]

    @property
    def _reader(self) -> Callable[[bytes, str], V]:
        """What reads values as `_read` does, in the shortest way there is. Its errors may lack the place."""
        return self._decode if self.base_class_for_values is None else self._read

    def _set(self, path: str, data: bytes) -> None:
        """Write a value's bytes; in an append-only dict, only where the key is absent."""
        if not self.append_only:
            self._put(path, data)
            return
        try:
            self._put(path, data, if_match=ABSENT)
        except PreconditionError as error:
            raise self._refuse_change("the key is there already", path) from error

    def _blobs(self, paths: Iterator[str]) -> Iterator[tuple[str, Blob]]:
        """Paths with what is there, read in batches that grow while values are small, so that a first one is there soon."""
        size = 4
        while batch := list(islice(paths, size)):
            blobs = self.backend.get_many(batch)
            weight = sum(len(blob.data) for blob in blobs.values())
            for path in batch:
                if path in blobs and holds_value((blob := blobs.pop(path)).data):
                    yield path, blob
            room = _BYTES_AT_ONCE * len(batch) // (weight or 1)
            size = max(1, min(2 * size, room, VALUES_AT_ONCE))

    def _complete(self, error: CodecError, path: str) -> None:
        """Add what a chain does not know: where the value is, and what can be done about damage."""
        if isinstance(error, Unfinished):
            raise self._missing(path) from error
        if isinstance(error, IntegrityError) and error.hint is None:
            error.hint = "Restore it from a copy, delete it, or let `perdure doctor --repair` set it aside."
        error.at(place=self.backend.place)

    def _unfit(self, value: NotAValue, path: str) -> PolicyError:
        if not isinstance(value, Enum):  # so it is no flag
            text, hint = "a dict like this one cannot be a value", "Store dict(d) for its data, or its URL to find it again."
        elif isinstance(value, Joker):
            text, hint = f"{value!r} is a command, not a value", "Where it is allowed, write d[key] = joker."
        else:
            text = f"{value!r} is an answer, not a value"
            hint = "To leave a key as it is write KEEP_CURRENT, to delete it DELETE_CURRENT."
        return PolicyError(text, key=self._key(path), place=self.place, hint=hint)

    def _wrong_class(self, value: object, path: str, what: str) -> PolicyError:
        expected = getattr(self.base_class_for_values, "__qualname__", self.base_class_for_values)
        return PolicyError(
            f"the value {what} is of class {type(value).__qualname__}, and this dict holds {expected} only",
            key=self._key(path),
            place=self.place,
            hint=None if what == "written" else "Read it through a dict opened without base_class_for_values.",
        )

    def _refuse_change(self, doing: str, path: str | None = None) -> PolicyError:
        key = None if path is None else self._key(path)
        hint = "Open it without append_only where that is meant." if "delete" in doing else "Use a new key."
        error = PolicyError(f"this dict is append-only: {doing}", key=key, place=self.place, hint=hint)
        error.policy = "append-only"
        return error

    def _require_mutable(self, path: str | None = None) -> None:
        if self.append_only:
            raise self._refuse_change("nothing is deleted", path)

    def _prefix_of(self, key: Key) -> str:
        return self._prefix if key in ("", (), []) else f"{self._prefix}{join_key(key)}/"

    # ---------------------------------------------------------------- conflicts

    def _attempts(self, path: str, retries: int | None = None) -> Iterator[int]:
        """Number the attempts of a read-then-swap loop, which leaves when it has won.

        A lost attempt means that another writer won, so somebody always gets on. After the first loss the next attempt follows
        at once, since most meetings are chance. Who loses twice is in a crowd, where most attempts are in vain, and stands
        aside for a while; for half as long each time, so that who has waited longest is the keenest and nobody starves. All
        these pauses together last 47 ms at most. Where even the 33rd attempt is lost, further ones spare the place requests.
        """
        for attempt in count(1):
            began = perf_counter()
            yield attempt
            if retries is not None and attempt > retries:
                times = "once" if attempt == 1 else f"{attempt} times"
                hint = "Try again later, or allow more retries."
                error = ConflictError(f"another writer was first, {times}", key=self._key(path), place=self.place, hint=hint)
                error.attempts = attempt
                raise error
            took = perf_counter() - began
            if 1 < attempt < 7:
                sleep(min(took, 0.000125) * 2 ** (9 - attempt) * _about_one())
            elif attempt > 32:
                sleep(min(took, 0.1) * _about_one())


def _about_one() -> float:
    from random import random  # 3 ms that most programs never need

    return 0.5 + random()
