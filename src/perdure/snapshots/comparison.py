"""What is different between two snapshots: by digests first; only what differs by them is read, and looked into."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from ..errors import CodecError, IntegrityError
from .differences import Brief, Change, Listing, differences, is_array
from .manifest import Component, Part, Snapshot

__all__ = ["Brief", "Change", "Comparison", "ComponentComparison", "PartComparison", "compare"]

Read: TypeAlias = Callable[[str], bytes | memoryview]
"""Gives the bytes of a part, by its name."""

Kind: TypeAlias = Literal["same", "added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class PartComparison:
    """A file of both snapshots, or of one.

    Attributes:
        name: Its name, such as `"model/weight.npy"`.
        kind: What happened to it.
        old_size: Its length in bytes in the old snapshot; `None` where it was not there.
        new_size: The same in the new one.
        changes: What is different inside it, at most 200. None, without a reason, where the bytes of a changed part differ and
            the values do not: JSON with other spaces, say, or an array that has moved to another place in its component.
        omitted: How many more changes there are.
        reason: Why a changed part could not be looked into, as the error says it; `None` where it was.
    """

    name: str
    kind: Kind
    old_size: int | None
    new_size: int | None
    changes: tuple[Change, ...] = ()
    omitted: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ComponentComparison:
    """What belongs to one registered object.

    Attributes:
        name: As it was registered; empty for files that belong to none.
        kind: What happened to it.
        old_kind: How it was saved in the old snapshot, such as `"state_dict"`; `None` where it was not.
        new_kind: The same in the new one.
        parts: Its files, by name, also those that are the same.
    """

    name: str
    kind: Kind
    old_kind: str | None
    new_kind: str | None
    parts: tuple[PartComparison, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is different between two snapshots.

    Attributes:
        old: The name of the one.
        new: The name of the other.
        metadata: What is different in their metadata, at most 200 changes.
        metadata_omitted: How many more such changes there are.
        components: All components of both, by name, also those that are the same.
    """

    old: str
    new: str
    metadata: tuple[Change, ...]
    metadata_omitted: int
    components: tuple[ComponentComparison, ...]

    @property
    def same(self) -> bool:
        """Whether both hold the same state; their metadata may differ."""
        return all(component.kind == "same" for component in self.components)

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts and tuples. A `Brief` becomes `{"text": ...}`; floats may be NaN, which JSON does not have."""
        return {"same": self.same, **asdict(self)}


def compare(old: Snapshot, new: Snapshot, read_old: Read, read_new: Read) -> Comparison:
    """Find out what is different between two snapshots.

    Parts with the same digests are the same, and none of them is read, but for the pickle of a component whose arrays changed.
    Changed ones are compared value by value if they are JSON, arrays (`.npy`), or pickles of plain data (`.pkl`); no code in
    them is run.

    Args:
        old: A snapshot, mostly the older one.
        new: Another.
        read_old: Gives a part of `old`.
        read_new: Gives a part of `new`.

    Returns:
        Everything that is different. A part that could not be looked into says why.

    Raises:
        PerdureError: What `read_old` and `read_new` raise. Only a `CodecError` becomes the reason of the part.

    Cost: reads both versions of the changed parts that can be looked into; holds those of one component at a time.
    """
    metadata = Listing(differences(dict(old.metadata), dict(new.metadata), ""))
    before, after = _components(old), _components(new)
    components = []
    for name in sorted(before.keys() | after.keys()):
        olds = {part: old.parts[part] for part in before[name].parts} if name in before else {}
        news = {part: new.parts[part] for part in after[name].parts} if name in after else {}
        parts = _Parts(olds, news, read_old, read_new).compared()
        old_kind = before[name].kind if name in before else None
        new_kind = after[name].kind if name in after else None
        alike = old_kind == new_kind and all(part.kind == "same" for part in parts)
        kind: Kind = "added" if old_kind is None else "removed" if new_kind is None else "same" if alike else "changed"
        components.append(ComponentComparison(name, kind, old_kind, new_kind, parts))
    return Comparison(old.name, new.name, tuple(metadata.changes), metadata.omitted, tuple(components))


def _components(snapshot: Snapshot) -> dict[str, Component]:
    """The components with those of their parts that are there; what belongs to none is one without a name."""
    found = {
        name: Component(component.kind, tuple(part for part in component.parts if part in snapshot.parts))
        for name, component in snapshot.components.items()
    }
    owned = {part for component in found.values() for part in component.parts}
    others = tuple(part for part in snapshot.parts if part not in owned)
    return found | ({"": Component("files", others)} if others else {})


class _Parts:
    """The parts of one component in both snapshots."""

    def __init__(self, olds: Mapping[str, Part], news: Mapping[str, Part], read_old: Read, read_new: Read) -> None:
        self._olds = olds
        self._news = news
        self._read_old = read_old
        self._read_new = read_new
        both = olds.keys() & news.keys()
        self._same = {name for name in both if olds[name].chunks == news[name].chunks}
        self._changed = sorted(both - self._same)

    def compared(self) -> tuple[PartComparison, ...]:
        """All of them, by name."""
        looked: dict[str, PartComparison] = {}
        for name in sorted(self._olds.keys() & self._news.keys()):
            if name.endswith(".pkl") and (name in self._changed or self._arrays_of(name)):
                looked |= self._look_into_pickle(name)
        for name in self._changed:
            if name not in looked:
                looked[name] = self._look_into(name)
        return tuple(looked.get(name) or self._told(name) for name in sorted(self._olds.keys() | self._news.keys()))

    def _arrays_of(self, pickle: str) -> list[str]:
        """The arrays that belong to a pickle and have changed."""
        return [name for name in self._changed if name.startswith(f"{pickle[:-4]}/") and name.endswith(".npy")]

    def _told(self, name: str, found: Listing | None = None, error: CodecError | None = None) -> PartComparison:
        old, new = self._olds.get(name), self._news.get(name)
        kind: Kind = "added" if old is None else "removed" if new is None else "same" if name in self._same else "changed"
        changes, omitted = (tuple(found.changes), found.omitted) if found else ((), 0)
        reason = None if error is None else f"{str(error).removesuffix('.')}."
        sizes = (None if old is None else old.size, None if new is None else new.size)
        return PartComparison(name, kind, *sizes, changes, omitted, reason)

    def _look_into(self, name: str) -> PartComparison:
        stem, _, suffix = name.rpartition(".")
        try:
            decode = _DECODERS.get(suffix)
            if decode is None:
                raise CodecError("only parts that end in .json, .npy or .pkl are looked into")
            old, new = decode(self._read_old(name)), decode(self._read_new(name))
        except CodecError as error:
            return self._told(name, error=error)
        return self._told(name, Listing(differences(old, new, stem)))

    def _look_into_pickle(self, name: str) -> dict[str, PartComparison]:
        """Compare the values that a pickle and its arrays make. What lies in a part of its own is told there."""
        try:
            try:
                found = self._between_pickles(name, self._same)
            except (_Doubt, IntegrityError):  # an array must be looked at after all, or its header is longer than most
                found = self._between_pickles(name, set())
        except CodecError as error:
            return {name: self._told(name, error=error)} if name in self._changed else {}
        return {part: self._told(part, listing) for part, listing in found.items()}

    def _between_pickles(self, name: str, same: Set[str]) -> dict[str, Listing]:
        """What differs, by the part it is in. Arrays in parts that are the same are not read."""
        from .packing import unpack

        olds = _Reader(self._read_old, self._olds, same)
        news = _Reader(self._read_new, self._news, same)
        old, new = (unpack(name.removesuffix(".pkl"), reader, trusted=False) for reader in (olds, news))

        def alike(a: Any, b: Any) -> bool:
            home, new_home = olds.home_of(a), news.home_of(b)
            unread = home in olds.unread or new_home in news.unread
            if unread and home != new_home:
                raise _Doubt
            return unread

        # An array that was looked at has its listing, even if that stays empty; others are still to be compared.
        found = {part: Listing() for part in (name, *self._arrays_of(name)) if part in olds.given and part in news.given}
        for difference in differences(old, new, name.removesuffix(".pkl"), alike):
            home = olds.home_of(difference.old)
            found[home if home in found and home == news.home_of(difference.new) else name].add(difference)
        return found


class _Doubt(Exception):
    """An array that was not read would have to be."""


class _Reader:
    """Gives `unpack` the parts of a value, and remembers which array was built over which part.

    Args:
        read: Reads a part.
        parts: Those that there are.
        same: Those that need not be read if they are arrays. Memory without content stands for them, of which pages that
            nobody looks at are never made.

    Attributes:
        given: What was asked for.
        unread: What was given without having been read.
    """

    def __init__(self, read: Read, parts: Mapping[str, Part], same: Set[str]) -> None:
        self.given: set[str] = set()
        self.unread: set[str] = set()
        self._read = read
        self._parts = parts
        self._same = same
        self._homes: dict[int, str] = {}  # by the address where the memory ends
        self._memory: list[Any] = []  # held, so that nothing else gets its address

    def __call__(self, name: str) -> memoryview:
        if name not in self._parts:
            raise IntegrityError(f"the snapshot has no part {name!r:.80}")
        self.given.add(name)
        if not name.endswith(".npy"):
            data = memoryview(self._read(name))
            if re.search(rb"registered", data):  # a class of the user's may make anything of an array
                self._same = set()
            return data
        import numpy as np

        if name in self._same and self._parts[name].size > len(_HEADER):
            memory = np.zeros(self._parts[name].size, np.uint8)
            memory[: len(_HEADER)] = np.frombuffer(_HEADER, np.uint8)
            self.unread.add(name)
        else:
            memory = np.array(memoryview(self._read(name)), np.uint8)
        self._memory.append(memory)
        self._homes[memory.ctypes.data + memory.size] = name
        return memory.data

    def home_of(self, value: Any) -> str | None:
        """The part over whose memory this array or tensor was built."""
        if not is_array(value) or not value.nbytes:
            return None
        start = value.data_ptr() if hasattr(value, "data_ptr") else value.__array_interface__["data"][0]
        return self._homes.get(start + value.nbytes)


_HEADER: Final = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + bytes(118)
"""The length is what matters: that of the headers of nearly all .npy files."""


def _json(data: bytes | memoryview) -> Any:
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"it is no JSON: {error}") from error


def _npy(data: bytes | memoryview) -> Any:
    try:
        import numpy as np

        return np.load(io.BytesIO(data), allow_pickle=False)
    except ImportError as error:
        raise CodecError("it is an array, and numpy is not installed", hint="Type: pip install numpy") from error
    except (ValueError, EOFError, OSError) as error:
        raise CodecError(f"it is no array: {error}") from error


_DECODERS: Final[dict[str, Callable[[bytes | memoryview], Any]]] = {"json": _json, "npy": _npy}
