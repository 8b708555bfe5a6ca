"""What every store of another library is to a reader: entries, and the value of each."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from ...errors import CodecError, IntegrityError, UntrustedError


class Entry(NamedTuple):
    """One item of a store, its value not read yet.

    Attributes:
        key: The key, or an `UnreadableKey`.
        ref: Where its source finds the value.
        pickled: The bytes of a key that is kept as a pickle; else empty.
        expires: When it expires, in seconds since the epoch; `None` for never.
        tagged: Whether it carries a tag, which only diskcache knows.
    """

    key: Any
    ref: Any
    pickled: bytes = b""
    expires: float | None = None
    tagged: bool = False


class UnreadableKey(NamedTuple):
    """Stands for a key whose pickle cannot be restored.

    Attributes:
        problem: Why not.
    """

    problem: str


class Source(ABC):
    """A store of another library, opened to be read. Nothing in it is changed, and no file appears beside it.

    Sub-classes say how. Use one in one thread. It is a context manager that closes.

    Attributes:
        kind: `"shelve"`, `"sqlitedict"` or `"diskcache"`.
        place: Its path, for messages.
        trusted: Whether the pickles in it may be restored, which runs whatever code they name.
        expired: How many items were left out by `entries` so far because they have expired.
        notes: What somebody should know who takes it for complete, as sentences.
    """

    kind: str
    place: str
    trusted: bool
    expired: int
    notes: list[str]

    def entries(self) -> Iterator[Entry]:
        """List all items that have not expired.

        Raises:
            UntrustedError: `trusted` is false.
            BackendError: It cannot be listed, because it is damaged or in use.
            UsageError: What it holds are no items that this library pickled.
        """
        if not self.trusted:
            text = f"reading a store of {self.kind} restores pickles, and these can run any code"
            raise UntrustedError(text, place=self.place, hint="If you trust everybody who could write there, say so: trusted.")
        return self._list()

    def value(self, entry: Entry) -> Any:
        """Read the value of an entry.

        Raises:
            CodecError: It cannot be restored here; what it needs may not be installed.
            IntegrityError: It is damaged, is not there, or was not written by this library.
        """
        return self._read(entry)

    def items(self) -> Iterator[tuple[Any, Any, float | None]]:
        """Read everything, for programs that write it wherever they like.

        Returns:
            Triples of key, value and when that expires (seconds since the epoch, or `None`). Stops at the first value that
            cannot be read.

        Raises:
            Exception: As `entries` and `value`.
        """
        for entry in self.entries():
            if isinstance(entry.key, UnreadableKey):
                raise CodecError(f"a key cannot be read: {entry.key.problem}", place=self.place)
            try:
                yield entry.key, self.value(entry), entry.expires
            except CodecError as error:
                error.at(entry.key, self.place)
                raise

    @abstractmethod
    def _list(self) -> Iterator[Entry]: ...

    @abstractmethod
    def _read(self, entry: Entry) -> Any: ...

    @abstractmethod
    def close(self) -> None:
        """Close it. Twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def unpickle(data: object) -> Any:
    """Restore a pickle, whatever it runs.

    Raises:
        IntegrityError: It is cut, damaged, or no pickle.
        CodecError: It needs what cannot be found here, or what it runs failed.
    """
    if not isinstance(data, bytes):
        raise IntegrityError(f"it is no pickle but {type(data).__name__}")
    if not data.endswith(pickle.STOP):  # Python would take any bytes behind the end, and some beginnings for a whole
        raise IntegrityError("it is cut short, or no pickle")
    try:
        return pickle.loads(data)
    except (ImportError, AttributeError) as error:
        hint = "Install that, or run this where it can be imported: PYTHONPATH=FOLDER."
        raise CodecError(f"its pickle needs what cannot be found here: {error}", hint=hint) from error
    except (pickle.UnpicklingError, EOFError) as error:
        raise IntegrityError(f"it is damaged, or no pickle: {error}") from error
    except Exception as error:  # it ran code of anybody, which may raise anything
        raise CodecError(f"its pickle cannot be restored: {type(error).__name__}: {str(error)[:200]}") from error


def looks_pickled(data: object) -> bool:
    """Whether bytes begin and end as a pickle of protocol 2 or later does. Runs nothing."""
    return (
        isinstance(data, bytes) and data[:1] == pickle.PROTO and 2 <= (data[1:2] or b"\0")[0] <= 5 and data[-1:] == pickle.STOP
    )
