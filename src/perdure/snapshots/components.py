"""What can be registered, and how each kind is saved and restored."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

from ..errors import UsageTypeError
from .packing import check_readable, pack, unpack
from .place import Draft

T = TypeVar("T")
Read = Callable[[str], memoryview]


class PersistentStateMixin:
    """An object that saves itself to files and restores itself from them.

    Override both methods. `path` has no suffix: write one file `path.with_suffix(...)`, or make a folder `path`. What is
    written is digested and becomes part of the snapshot as it is.
    """

    def save_state(self, path: Path) -> None:
        """Save the state to files at `path`."""

    def load_state(self, path: Path) -> None:
        """Restore the state from the files that `save_state` wrote; they must not be changed."""


@runtime_checkable
class Stateful(Protocol):
    """An object with a state dict, as the modules, optimizers, schedulers and data loaders of PyTorch have it."""

    def state_dict(self) -> Any:
        """The state: a dict of numbers, text, arrays, tensors, and dicts and lists of these."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Take a state over."""
        ...


class Value(Generic[T]):
    """A plain value in a snapshot, which `StateStore.register_value` returns.

    Attributes:
        value: The value. Assign to it, or change it in place. Loading a snapshot changes a list, dict, set, deque, bytearray or
            numpy array (of the same shape and type) in place, so that other names for it see the change too, and replaces
            others.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Value({self.value!r:.60})"


class Registered(Protocol):
    """A registered object.

    Attributes:
        kind: As in the manifest.
    """

    kind: str

    def save(self, name: str, draft: Draft, *, trusted: bool) -> list[str]:
        """Begin to save it, and tell the names of its parts."""
        ...

    def prepare(self, name: str, files: Path | None, read: Read, *, trusted: bool) -> Callable[[], object]:
        """Do all that can fail without touching the object, and return what restores it."""
        ...


def adapt(name: str, state: object) -> Registered:
    """Find out how an object is saved.

    Raises:
        UsageTypeError: It has nothing to save.
    """
    if isinstance(state, Value):
        return _OfValue(state)
    if _has(state, "save_state", "load_state"):
        return _OfFiles(state)
    if _has(state, "state_dict", "load_state_dict"):
        return _OfStateDict(cast("Stateful", state))
    plain = type(state).__module__ == "builtins" or isinstance(state, type)
    if not plain and (_has(state, "__setstate__") or getattr(state, "__dict__", None) is not None or _slots(state)):
        return _OfObject(state)
    problem = f"component {name!r} is {_a(type(state).__name__)}, which cannot be restored in place"
    raise UsageTypeError(problem, hint=f"Use register_value({name!r}, ...), or an object with state_dict and load_state_dict.")


def _has(state: object, *methods: str) -> bool:
    # Asked of the object and not of its class: the names may be assigned, and a proxy has them by __getattr__.
    return all(callable(getattr(state, method, None)) for method in methods)


def _slots(state: object) -> bool:
    return any(getattr(cls, "__slots__", ()) for cls in type(state).__mro__)


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiouAEIOU" else f"a {word}"


class _OfFiles:
    kind = "files"

    def __init__(self, state: Any) -> None:
        self._state = state

    def save(self, name: str, draft: Draft, *, trusted: bool) -> list[str]:
        path = draft.folder() / name
        path.parent.mkdir(exist_ok=True)
        self._state.save_state(path)
        return draft.adopt(name)

    def prepare(self, name: str, files: Path | None, read: Read, *, trusted: bool) -> Callable[[], object]:
        return lambda: self._state.load_state((files or Path()) / name)


class _Packed:
    """What is saved as one value."""

    def get(self) -> Any:
        raise NotImplementedError

    def put(self, value: Any) -> object:
        raise NotImplementedError

    def save(self, name: str, draft: Draft, *, trusted: bool) -> list[str]:
        parts = pack(self.get(), name)
        if not trusted:
            check_readable(parts)
        for part in parts:
            draft.add(part.name, part.pieces)
        return [part.name for part in parts]

    def prepare(self, name: str, files: Path | None, read: Read, *, trusted: bool) -> Callable[[], object]:
        value = unpack(name, read, trusted=trusted)
        return lambda: self.put(value)


class _OfStateDict(_Packed):
    kind = "state_dict"

    def __init__(self, state: Stateful) -> None:
        self._state = state

    def get(self) -> Any:
        return self._state.state_dict()

    def put(self, value: Any) -> object:
        return self._state.load_state_dict(value)


class _OfObject(_Packed):
    """Any object, by what pickle would take of it; restored in place, so that everybody who has it sees the change."""

    kind = "object"

    def __init__(self, state: Any) -> None:
        self._state = state

    def get(self) -> Any:
        return self._state.__getstate__()

    def put(self, value: Any) -> object:
        if hasattr(self._state, "__setstate__"):
            return self._state.__setstate__(value)
        attributes, slots = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        if hasattr(self._state, "__dict__"):
            self._state.__dict__.clear()
            self._state.__dict__.update(attributes or {})
        for slot in {slot for cls in type(self._state).__mro__ for slot in getattr(cls, "__slots__", ())} - (
            slots or {}
        ).keys():
            if slot not in ("__dict__", "__weakref__"):
                with contextlib.suppress(AttributeError):  # it was empty then, and is now
                    delattr(self._state, slot)
        for slot, inner in (slots or {}).items():
            setattr(self._state, slot, inner)
        return None


class _OfValue(_Packed):
    kind = "value"

    def __init__(self, state: Value[Any]) -> None:
        self._state = state

    def get(self) -> Any:
        return self._state.value

    def put(self, value: Any) -> object:
        if not _changed_in_place(self._state.value, value):
            self._state.value = value
        return None


def _changed_in_place(old: Any, new: Any) -> bool:
    """Let a container hold what another one does, if it is of the same type and can."""
    if type(old) is not type(new):
        return False
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)
    elif isinstance(old, deque) and old.maxlen == new.maxlen:
        old.clear()
        old.extend(new)
    elif type(old).__module__ == "numpy" and type(old).__name__ == "ndarray":
        old, new = cast("Any", old), cast("Any", new)
        if old.shape != new.shape or old.dtype != new.dtype or not old.flags.writeable:
            return False
        old[...] = new
    else:
        return False
    return True


def spell_names(names: Mapping[str, object] | list[str]) -> str:
    """Names for a message."""
    return ", ".join(map(repr, sorted(names))) or "none"
