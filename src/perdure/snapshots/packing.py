"""A Python value as the parts of a snapshot: one pickle, and the large arrays beside it, to be read back without a copy.

A pickle runs what it names. A reader that does not trust it allows plain data only: what pickle has instructions for, what is
in `plain`, `arrays` and `tensors`, and the classes registered by `perdure.register_type`. The bytes are the same either way.
Nothing in them can run code then, except that of registered classes: their `decode`, and what their instances do on being
called, appended to or assigned to by key. Who writes them on purpose can still let reading take long, or end the process.

Objects that are registered are not copied: they stand in the pickles of others by their names, and become the very same again;
as do the tensors of modules of torch that are registered.
"""

from __future__ import annotations

import copyreg
import gc
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from typing import Any, Final, NamedTuple, NoReturn, cast

from ..codecs.pickle import blame
from ..errors import CodecError, IntegrityError, PerdureError, UntrustedError
from . import arrays, plain, tensors
from .opcodes import makes_objects

__all__ = ["Packed", "check_readable", "may_refer", "pack", "unpack"]

_HINT: Final = (
    "Pass trusted=True to StateStore if nobody else can write there, or register the class with perdure.register_type."
)
_DAMAGE: Final = (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError)
_ALLOWED: Final = plain.HARMLESS | arrays.HARMLESS | tensors.HARMLESS
_STORING: Final = frozenset(
    (made.__module__, made.__name__) for made in (plain.attributes, arrays.fill, tensors.tensor_attributes)
)
_DECODING: Final = (plain.registered.__module__, plain.registered.__name__)
_NONE: Final[Mapping[str, object]] = {}
# As pickle spells it: its length before it, so longer words are not it.
_NAMED: Final = re.compile(re.escape(pickle.SHORT_BINUNICODE + bytes([len(plain.COMPONENT[1])]) + plain.COMPONENT[1].encode()))

_SMALL: Final = 1 << 17  # bytes, from which on it pays not to copy a piece; the frames of pickle have half of that


class Packed(NamedTuple):
    """A part that is to be written.

    Attributes:
        name: Its path inside the snapshot, such as `"model.pkl"` or `"model/layer1.weight.npy"`.
        pieces: What to write, one after another: bytes, and views of the memory of the arrays themselves, so an array that is
            changed before it is written is written as changed.
    """

    name: str
    pieces: list[bytes | memoryview]


def pack(value: object, stem: str, *, own: int = 1 << 18, live: Mapping[str, object] = _NONE) -> list[Packed]:
    """Turn a value into parts: first the pickle `<stem>.pkl`, then each large array as `<stem>/<its place in the value>.npy`.

    Arrays keep type, shape and order (C or Fortran), tensors also the attributes that Python code gave them; both come back
    writable, tensors on the CPU. An object that occurs twice, or two tensors that both are all of one memory, as tied weights
    are, will be one again; other views become arrays of their own. Subclasses of arrays, and tensors that are sparse, quantized
    or on no device, are pickled in their own way, which only a trusting reader takes back. Hooks of tensors are left out.

    Args:
        value: Anything that pickle takes.
        stem: The name of the component.
        own: The bytes from which on an array or tensor gets a part of its own.
        live: Objects that are saved as their names wherever they occur, by these. (Not those that are exactly lists, dicts and
            the like, which pickle asks nobody about.)

    Raises:
        CodecError: Pickle does not take it.

    Cost: that of `pickle.dumps`, without copies of the arrays. Arrays that are not contiguous are copied. Objects of the types
    of those in `live` take a microsecond more each.
    """
    key = f"{stem}.pkl"
    try:
        return _dump(value, stem, own, live)
    except RecursionError as error:
        raise CodecError("it is nested too deeply to be pickled", key=key, hint="Flatten it.") from error
    except PerdureError as error:
        error.at(key=key)
        raise
    except MemoryError:
        raise
    except Exception as error:
        path, part = blame(value, lambda part: _dump(part, stem, own, live))
        hint = "Leave it out, by a __getstate__ in the class of the object that holds it"
        hint += "." if type(part).__module__.startswith("perdure.") else "; or give its own class a __reduce__ method."
        problem = f"the value{path}, a {type(part).__name__}, cannot be pickled: {error}"
        raise CodecError(problem, key=key, hint=hint) from error


def unpack(stem: str, read: Callable[[str], memoryview], *, trusted: bool, live: Mapping[str, object] | None = None) -> Any:
    """Make the value again.

    Args:
        stem: The name of the component.
        read: Gives the bytes of a part, by its name. Arrays are built over this memory, so nothing else may use it; what is
            read-only is copied.
        trusted: Allow the pickle all that pickles can do, such as running code.
        live: The objects that it may refer to, by name; nothing changes them before this returns, if the pickle is not trusted.
            By default each reference becomes a `plain.Reference`.

    Raises:
        UntrustedError: The pickle needs more than plain data, and is not trusted; or would change an object of `live`.
        IntegrityError: It is damaged, or what it says of its arrays cannot be.
        CodecError: It needs what cannot be found here, refers to what is not in `live`, or what it runs fails.

    Cost: that of `pickle.loads`, or two thirds of it: see below. Checking an untrusted pickle takes about as long again,
    and twice as long if it refers to other components.

    Thread safety: the garbage collector does not run meanwhile, in any thread.
    """
    key = f"{stem}.pkl"
    data = memoryview(read(key))
    with _naming(key):
        if not trusted and makes_objects(data):
            _refuse(data)
        with _no_garbage_collection():
            calls = arrays.ArrayReader(stem, read, len(data)).calls()
            if live is not None:
                calls[plain.COMPONENT] = partial(plain.find_component, live)
            return _Unpickler(data, calls, trusted).load()


def may_refer(data: memoryview) -> bool:
    """Tell whether a pickle that `pack` wrote may refer to other components; it does if it names what stands for them.

    Cost: that of searching the bytes.
    """
    return _NAMED.search(data) is not None


def check_readable(parts: list[Packed]) -> None:
    """Make sure that somebody who does not trust these parts could read them.

    Args:
        parts: What `pack` returned.

    Raises:
        UntrustedError: They could not.

    Cost: about that of `unpack`. Arrays are not looked at.
    """
    data = b"".join(parts[0].pieces)
    with _naming(parts[0].name), _no_garbage_collection():
        _DryRun(data).load()
        if makes_objects(data):
            _refuse(data)


# Writing.


class _Sink:
    """Takes what pickle writes: small pieces one after another in one, a large buffer as the buffer itself."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self._run = bytearray()

    def write(self, piece: Any) -> None:
        size = piece.raw().nbytes if type(piece) is pickle.PickleBuffer else len(piece)
        if size < _SMALL:
            if not self._run:
                self.pieces.append(self._run)
            self._run += piece
        else:
            self._run = bytearray()
            # Of a bytearray a copy, or its owner could not resize it; bytes are taken as they are.
            self.pieces.append(bytes(piece) if type(piece) is bytearray else piece)


class _Reducers(dict[type, plain.Reducer]):
    """How each type is reduced: as the table says, else in its own way, which is remembered.

    Otherwise pickle would look here for each object in vain, and in Python 3.12 and older that costs a KeyError each time.
    """

    def __missing__(self, cls: type) -> plain.Reducer:
        if issubclass(cls, type):
            raise KeyError(cls)  # a class, of a class that is not `type`: it is pickled by its name
        reduce = self[cls] = methodcaller("__reduce_ex__", 5)
        return reduce


def _dump(value: Any, stem: str, own: int, live: Mapping[str, object]) -> list[Packed]:
    writer = arrays.ArrayWriter(arrays.Namer(value, tensors.array_types), own)
    sink = _Sink()
    pickler = pickle.Pickler(sink, 5)
    # Not reducer_override nor persistent_id, which are asked about each object: a million calls for a million objects.
    torch = tensors.TensorWriter(writer.owners)
    table = _Reducers(copyreg.dispatch_table | plain.reducers() | writer.reducers() | torch.reducers())
    plain.refer(table, live)
    pickler.dispatch_table = table
    pickler.dump(value)
    rest = [Packed(f"{stem}/{name}.npy", content) for name, content in writer.parts]
    return [Packed(f"{stem}.pkl", list(map(_piece, sink.pieces))), *rest]


def _piece(piece: Any) -> bytes | memoryview:
    if type(piece) is pickle.PickleBuffer:
        return piece.raw()
    return piece if type(piece) is bytes else memoryview(piece)


# Reading.


class _File:
    """Memory that pickle reads as a file, all at one look; so nothing is copied but what it keeps."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._rest = memoryview(data)

    def peek(self, size: int) -> Any:
        return self._rest

    def read(self, size: int) -> Any:
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def readline(self) -> NoReturn:
        raise pickle.UnpicklingError("nothing in protocol 5 is a line")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: memoryview, calls: dict[tuple[str, str], Any], trusted: bool) -> None:
        super().__init__(_File(data))
        self._calls = _ALLOWED | calls
        self._trusted = trusted
        # To be looked through before the first live object gets into anybody's hands.
        self._unseen = data if not trusted and plain.COMPONENT in calls else None

    def find_class(self, module: str, name: str) -> Any:
        found = self._calls.get((module, name))
        if found is not None:
            if self._unseen is not None and (module, name) == plain.COMPONENT:
                data, self._unseen = self._unseen, None
                _DryRun(data).load()
            return found
        if self._trusted:
            return super().find_class(module, name)
        raise _untrusted(f"{module}.{name}")


class _StandIn:
    """What a dry run makes instead of anything. It remembers what it was given."""

    def __init__(self, *parts: object) -> None:
        self.held: list[object] = list(parts)

    def __setitem__(self, *parts: object) -> None:
        self.held += parts

    extend = append = add = __setitem__


class _Decoded(_StandIn):
    """One of a registered class, which is made all at once."""

    def __setitem__(self, *parts: object) -> NoReturn:
        raise UntrustedError("this adds something to what a registered class has decoded, and that can run code", hint=_HINT)

    extend = append = add = __setitem__


class _Untouchable:
    """What a dry run makes instead of a live object. It can be held, and nothing else."""

    def __init__(self, name: object) -> None:
        self.name = str(plain.component(name))

    def refuse(self, *_: object) -> NoReturn:
        problem = f"this does something with {self.name} besides holding it, and that can run code"
        raise UntrustedError(problem, hint=_HINT)

    __call__ = __setitem__ = extend = append = add = refuse


class _DryRun(pickle.Unpickler):
    """Finds the first name that a reader would refuse, and what would change a live object; makes nothing but stand-ins."""

    def __init__(self, data: bytes | memoryview) -> None:
        super().__init__(_File(data))
        self._live: list[_Untouchable] = []
        self._given: list[object] = []

    def load(self) -> Any:
        made = super().load()
        # Once for all calls, as they may share what they are given; and at the end, as that may be added to after a call.
        for part in _all_in(self._given) if self._live else ():
            if type(part) is _Untouchable:
                part.refuse()
        return made

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == plain.COMPONENT:
            return partial(_untouchable, self._live)
        if (module, name) in _ALLOWED:
            kind = _Decoded if (module, name) == _DECODING else _StandIn
            return partial(_stand_in, self._given, kind, (module, name) in _STORING)
        raise _untrusted(f"{module}.{name}")


def _untouchable(live: list[_Untouchable], name: object) -> _Untouchable:
    made = _Untouchable(name)
    live.append(made)
    return made


def _stand_in(given: list[object], kind: type[_StandIn], stores: bool, *arguments: object) -> _StandIn:
    """What a call makes: nobody gets a live object but who puts it somewhere and does nothing with it."""
    if stores and len(arguments) == 2 and type(arguments[0]) is _StandIn:
        arguments[0].held.append(arguments[1])
    elif arguments:
        given.append(arguments)
    return kind(*arguments)


def _all_in(value: object) -> Iterator[object]:
    seen: set[int] = set()
    todo = [value]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, _StandIn):
            todo += part.held
        elif type(part) is dict:
            todo += [*part, *part.values()]
        elif type(part) in (list, tuple, set, frozenset):
            todo += cast("list[object]", part)


def _refuse(data: bytes | memoryview) -> NoReturn:
    """Refuse a pickle that makes objects, by the name of what it makes if it has one."""
    try:
        _DryRun(data).load()
    except UntrustedError:
        raise
    except Exception as error:
        raise _untrusted("objects in a way that perdure never writes") from error
    raise _untrusted("objects in a way that perdure never writes")


def _untrusted(what: str) -> UntrustedError:
    return UntrustedError(f"this holds {what}, and restoring that can run code", hint=_HINT)


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Let all that goes wrong while a pickle is read be an error that says which part it was."""
    try:
        yield
    except PerdureError as error:
        error.at(key=key)
        raise
    except (ImportError, AttributeError) as error:
        hint = "Install or import what it needs, in the version that wrote it."
        raise CodecError(f"this pickle needs what cannot be found here: {error}", key=key, hint=hint) from error
    except _DAMAGE as error:
        raise IntegrityError(f"what is stored is damaged: it cannot be unpickled ({_say(error)})", key=key) from error
    except Exception as error:
        raise CodecError(f"this pickle cannot be restored: {_say(error)}", key=key) from error


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off for a while.

    Everything that is made lives on, so it would find nothing, and look for it again and again: with many objects, most of the
    time goes there.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            # Moves all there is to the oldest generation, and does nothing else: what was just made would be walked at once.
            gc.freeze()
            gc.unfreeze()
        gc.enable()
