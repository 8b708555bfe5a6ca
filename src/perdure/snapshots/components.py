"""What can be registered, and how each kind is saved and restored."""

from __future__ import annotations

import copyreg
import random
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

from ..errors import CodecError, UsageError, UsageTypeError
from . import plain
from .generators import OneGenerator
from .packing import check_readable, pack, unpack
from .place import Draft
from .tensors import array_types

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
            others, also those of subclasses. A list, dict or deque that holds itself does so again.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Value({self.value!r:.60})"


class Registered(Protocol):
    """A registered object.

    Attributes:
        kind: As in the manifest.
        target: The object itself; of a value its `Value`.
        of: The name of its class, if it has to be of the same class to be restored.
    """

    kind: str
    target: object
    of: str

    def save(self, name: str, draft: Draft, *, trusted: bool, live: Mapping[str, object]) -> list[str]:
        """Begin to save it, and tell the names of its parts. Of objects in `live` it saves no more than the names."""
        ...

    def prepare(
        self, name: str, files: Path | None, read: Read, *, trusted: bool, live: Mapping[str, object]
    ) -> Callable[[], object]:
        """Do all that can fail without touching any object, and return what restores it."""
        ...


def adapt(name: str, state: object) -> Registered:
    """Find out how an object is saved.

    Raises:
        UsageTypeError: It has nothing to save, or what it has could not be restored in place.
    """
    if isinstance(state, Value):
        return _OfValue(state)
    if _has(state, "save_state", "load_state"):
        return _OfFiles(state)
    if _has(state, "state_dict", "load_state_dict"):
        return _OfStateDict(state)
    try:
        return _OfGenerator(state)
    except UsageTypeError:
        pass  # as most objects are none
    if _is_restorable(state):
        return _OfObject(state)
    problem = f"component {name!r} is {_a(type(state).__name__)}, which cannot be restored in place"
    raise UsageTypeError(problem, hint=f"Use register_value({name!r}, ...), or an object with state_dict and load_state_dict.")


def _has(state: object, *methods: str) -> bool:
    # Asked of the object and not of its class: the names may be assigned, and a proxy has them by __getattr__.
    return all(callable(getattr(state, method, None)) for method in methods)


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiouAEIOU" else f"a {word}"


def _is_restorable(state: Any) -> bool:
    """Whether all that an object is can be given to another of its class, or to itself.

    Pickle makes a new object by a call and then gives it its state. Here the call does not happen; so an object whose class
    puts something of it into the arguments would not be what it was. Two methods of Python say that the state is all there is.
    """
    cls = type(state)
    base = plain.container_of(state)
    no = (type, random.Random, *array_types())  # generators that `OneGenerator` does not take, and what is memory of others
    if cls.__module__ == "builtins" or cls is base or isinstance(state, no):
        return False
    itself, get, put = _reduces_itself(state, base), cls.__getstate__, getattr(cls, "__setstate__", None)
    if isinstance(get, FunctionType) and isinstance(put, FunctionType):
        return True
    if base is not None:
        return not itself
    if not itself and not _leaves_state_to_pickle(state):
        # It cannot change the arguments, and is not to be asked before there is a save.
        return not hasattr(cls, "__getnewargs__") and not hasattr(cls, "__getnewargs_ex__")
    try:
        reduced = _reduced(state)  # this also raises if it has something that only its C code knows of
    except Exception:  # whatever the class says to being pickled
        return False
    if type(reduced) is not tuple or any(reduced[3:]):
        return False
    call, arguments = reduced[:2]
    made_of_nothing = (call is copyreg.__newobj__ and arguments == (cls,)) or (call is cls and arguments == ())  # type: ignore[attr-defined]
    if itself:
        return made_of_nothing and len(reduced) > 2 and reduced[2] is not None
    return made_of_nothing and (hasattr(state, "__dict__") or bool(_slots_of(state)))


def _reduces_itself(state: Any, base: type | None) -> bool:
    """Whether somebody told pickle how to reduce it, other than those who made its container, or Python."""
    cls, usual = type(state), base or object
    alike = cls.__reduce_ex__ is usual.__reduce_ex__ and cls.__reduce__ is usual.__reduce__
    return not alike or cls in copyreg.dispatch_table


def _leaves_state_to_pickle(state: Any) -> bool:
    get: Any = type(state).__getstate__
    return get is object.__getstate__


def _reduced(state: Any) -> Any:
    reduce: Callable[[Any], Any] | None = copyreg.dispatch_table.get(type(state))
    return state.__reduce_ex__(5) if reduce is None else reduce(state)


def _slots_of(state: object) -> list[str]:
    """The names of the slots as pickle knows them: private ones as they are mangled."""
    names: list[str] = copyreg._slotnames(type(state))  # type: ignore[attr-defined]  # noqa: SLF001
    return names


class _OfFiles:
    kind = "files"
    of = ""

    def __init__(self, target: Any) -> None:
        self.target = target

    def save(self, name: str, draft: Draft, *, trusted: bool, live: Mapping[str, object]) -> list[str]:
        path = draft.folder() / name
        path.parent.mkdir(exist_ok=True)
        self.target.save_state(path)
        return draft.adopt(name)

    def prepare(
        self, name: str, files: Path | None, read: Read, *, trusted: bool, live: Mapping[str, object]
    ) -> Callable[[], object]:
        return lambda: self.target.load_state((files or Path()) / name)


class _Packed:
    """What is saved as one value."""

    of = ""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get(self) -> Any:
        raise NotImplementedError

    def rehearse(self, value: Any) -> Callable[[], object]:
        """Look whether it can have what was saved, and return what gives it that."""
        raise NotImplementedError

    def save(self, name: str, draft: Draft, *, trusted: bool, live: Mapping[str, object]) -> list[str]:
        value = self.get()
        if value is self.target:  # which is to be saved here, and nowhere else
            live = {other: target for other, target in live.items() if target is not value}
        parts = pack(value, name, live=live)
        if not trusted:
            check_readable(parts)
        for part in parts:
            draft.add(part.name, part.pieces)
        return [part.name for part in parts]

    def prepare(
        self, name: str, files: Path | None, read: Read, *, trusted: bool, live: Mapping[str, object]
    ) -> Callable[[], object]:
        return self.rehearse(unpack(name, read, trusted=trusted, live=live))


class _OfStateDict(_Packed):
    kind = "state_dict"

    def get(self) -> Any:
        return self.target.state_dict()

    def rehearse(self, value: Any) -> Callable[[], object]:
        return lambda: self.target.load_state_dict(value)


class _OfGenerator(_Packed):
    kind = "state_dict"

    def __init__(self, target: object) -> None:
        super().__init__(target)
        self._generator = OneGenerator(target)

    def get(self) -> Any:
        return self._generator.state_dict()

    def rehearse(self, value: Any) -> Callable[[], object]:
        return self._generator.rehearse(value)


class _OfObject(_Packed):
    """Any object, by what pickle would take of it; restored in place, so that everybody who has it sees the change.

    Of a container, a subclass of list or dict or the like, that is its contents and then its state, as a pair.
    """

    kind = "object"

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self.of = type(target).__qualname__  # and not its module, which is another one for a program than for who imports it
        self._base = plain.container_of(target)

    def get(self) -> Any:
        state = self._state()
        return state if self._base is None else (plain.contents_of(self.target, self._base), state)

    def rehearse(self, value: Any) -> Callable[[], object]:
        contents, state = None, value
        if self._base is not None:
            if type(value) is not tuple or len(value) != 2 or type(value[0]) is not self._base:
                raise self._unfit()
            contents, state = value
            if self._base is deque and contents.maxlen != self.target.maxlen:
                problem = f"it was saved with maxlen={contents.maxlen}, and registered is one with {self.target.maxlen}"
                raise UsageError(problem, hint="Register it with the same maxlen as when it was saved.")
        attributes, slots = self._named(state)
        if attributes is None and not self._takes(state):
            raise self._unfit()
        if attributes and not hasattr(self.target, "__dict__") and not self._takes(state):
            raise self._unfit()
        return partial(self._put, contents, state, self._too_many({*(attributes or ()), *(slots or ())}))

    def _put(self, contents: Any, state: Any, too_many: set[str]) -> None:
        if self._base is not None:
            plain.refill(self.target, contents, self._base)
        slots, has = _slots_of(self.target), getattr(self.target, "__dict__", {})
        for name in too_many:
            has.pop(name, None)
            if name in slots:
                with suppress(AttributeError):  # it is empty already
                    object.__delattr__(self.target, name)
        if self._takes(state):
            self.target.__setstate__(state)
            return
        attributes, slotted = self._named(state)
        for name in attributes or ():
            has.pop(name, None)  # so that they are in the order in which they were saved
        has.update(attributes or {})
        for name, inner in (slotted or {}).items():
            object.__setattr__(self.target, name, inner)  # as a frozen class has another one

    def _state(self) -> Any:
        """What pickle would give to `__setstate__`, or else to `__dict__` and slots."""
        if _reduces_itself(self.target, self._base):
            return (*_reduced(self.target), None)[2]
        return self.target.__getstate__()

    def _takes(self, state: Any) -> bool:
        return state is not None and hasattr(type(self.target), "__setstate__")

    def _named(self, state: Any) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Attributes and slots, as pickle takes them out of a state; no attributes, not even `{}`, if it is something else."""
        pair: tuple[Any, ...] = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if not all(each is None or isinstance(each, dict) for each in pair):
            return None, None
        return pair[0] or {}, pair[1]

    def _too_many(self, names: set[str]) -> set[str]:
        """What it has and did not have when it was saved. What it leaves out of its state is none of that."""
        there = {
            *getattr(self.target, "__dict__", ()),
            *(name for name in _slots_of(self.target) if hasattr(self.target, name)),
        }
        there -= names
        if there and (_reduces_itself(self.target, self._base) or not _leaves_state_to_pickle(self.target)):
            attributes, slots = self._named(self._state())
            there &= {*(attributes or ()), *(slots or ())}
        return there

    def _unfit(self) -> CodecError:
        problem = f"a {type(self.target).__name__} cannot have what was saved for it"
        return CodecError(problem, hint="Register the same kind of object as when it was saved.")


class _OfValue(_Packed):
    kind = "value"

    def get(self) -> Any:
        return self.target.value

    def prepare(
        self, name: str, files: Path | None, read: Read, *, trusted: bool, live: Mapping[str, object]
    ) -> Callable[[], object]:
        value = unpack(name, read, trusted=trusted, live=live)
        nobodys: object = []
        holds_itself = sys.getrefcount(value) > sys.getrefcount(nobodys)  # held by more than this variable
        return partial(self._put, value, live if holds_itself else None)

    def _put(self, value: Any, live: Mapping[str, object] | None) -> None:
        old = self.target.value
        if not _changed_in_place(old, value):
            self.target.value = value
        elif live is not None and isinstance(old, (list, dict, set, deque)):
            plain.redirect(old, value, live)


def _changed_in_place(old: Any, new: Any) -> bool:
    """Let a container hold what another one does, if both are of exactly the same type and it can."""
    if old is new or type(old) is not type(new):
        return False
    if type(old) in (list, dict, set, bytearray) or (type(old) is deque and old.maxlen == new.maxlen):
        plain.refill(old, new, type(old))
        return True
    old, new = cast("Any", old), cast("Any", new)
    if type(old) is not getattr(sys.modules.get("numpy"), "ndarray", None):
        return False
    if old.shape != new.shape or old.dtype != new.dtype or not old.flags.writeable:
        return False
    old[...] = new
    return True


def spell_names(names: Mapping[str, object] | list[str]) -> str:
    """Names for a message."""
    return ", ".join(map(repr, sorted(names))) or "none"
