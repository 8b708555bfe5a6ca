"""numpy arrays as calls that build them again, over the very memory that their bytes were read into.

A large array is put into a part of its own, an .npy file that `numpy.load` reads as well; a small one stays in the pickle. The
bytes of large ones are not copied. What is read decides nothing but values: types are spelled as text, and a shape has to fit
its bytes.
"""

from __future__ import annotations

import heapq
import io
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pickle import PickleBuffer
from typing import Any, Final

from ..errors import CodecError, IntegrityError, PerdureError
from .plain import Reducer

__all__ = ["HARMLESS", "ArrayReader", "ArrayWriter", "Namer", "size_of"]

Name = Callable[[Any], str]
Read = Callable[[str], memoryview]

_MAGIC: Final = b"\x93NUMPY"
_DEEPEST: Final = 6
_LOOKED_AT: Final = 10_000


class ArrayWriter:
    """Reduces the arrays of one value, and collects those which get a part of their own.

    Args:
        name: Gives a name to an array or tensor that gets one; each name once.
        own: From how many bytes on.

    Attributes:
        parts: Names, and what is to be written under each.
        owners: By the ids of arrays: other objects after which to name them.
    """

    def __init__(self, name: Name, own: int) -> None:
        self.parts: list[tuple[str, list[bytes | memoryview]]] = []
        self._name = name
        self._own = own
        self.owners: dict[int, Any] = {}
        self._spelled: dict[str, str] = {}

    def reducers(self) -> dict[type, Reducer]:
        """How things of numpy are reduced, if it is loaded."""
        if not hasattr(sys.modules.get("numpy"), "ndarray"):  # or half way through its import
            return {}
        import numpy as np

        self._spelled = {code: np.dtype(code).str for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
        dtypes = [np.dtype(code) for code in np.typecodes["All"]]
        return {
            np.ndarray: self._reduce_array,
            **dict.fromkeys([dtype.type for dtype in dtypes if dtype.char != "O"], self._reduce_scalar),
            **dict.fromkeys(map(type, dtypes), _reduce_dtype),
        }

    def _reduce_array(self, array: Any) -> Any:
        import numpy as np

        dtype = array.dtype
        order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
        if dtype.char == "O" and dtype.metadata is None:
            return objects, (array.shape, order), array.ravel(order).tolist(), None, None, fill
        try:
            spec = self._spell(dtype)
        except TypeError:  # of other libraries, or with Python objects inside; numpy knows, and the reader must trust it
            return array.__reduce_ex__(5)
        content: Any = bytearray()
        if array.nbytes:
            flat = array.T if order == "F" else array if array.flags.c_contiguous else np.ascontiguousarray(array)
            memory: Any = flat.reshape(-1).view(np.uint8)
            content = self._set_aside(array, memory) if array.nbytes >= self._own else None
            if content is None:
                # What is read-only would come back as bytes, which cannot be the memory of an array that is written to.
                content = PickleBuffer(memory) if array.flags.writeable else bytearray(memory)
        return build_array, (spec, array.shape, order, content)

    def _reduce_scalar(self, value: Any) -> Any:
        # Text and bytes go as such, and by the methods of str and bytes, because those of numpy strip zeros from the end.
        if isinstance(value, str):
            return build_scalar, ("U", str.__getitem__(value, slice(None)))
        if isinstance(value, bytes):
            return build_scalar, ("S", bytes.__getitem__(value, slice(None)))
        try:
            return build_scalar, (self._spell(value.dtype), value.tobytes())
        except TypeError:
            return value.__reduce__()

    def _spell(self, dtype: Any) -> Any:
        usual = self._spelled.get(dtype.char) if dtype.isbuiltin == 1 else None
        return usual or _spell_exactly(dtype)

    def _set_aside(self, array: Any, memory: Any) -> str | None:
        """Put an array into a part of its own and return its name; or None if an .npy file cannot tell its type."""
        from numpy.lib import format as npy

        header = io.BytesIO()
        try:
            content = npy.header_data_from_array_1_0(array)
            if array.dtype.names is not None and npy.descr_to_dtype(content["descr"]) != array.dtype:
                return None
            npy.write_array_header_1_0(header, content)
        except ValueError:  # fields that overlap, have names which are not of Latin-1, or are too many for such a header
            return None
        name = self._name(self.owners.get(id(array), array))
        self.parts.append((name, [header.getvalue(), memory.data]))
        return name


def _spell_exactly(dtype: Any) -> Any:
    if dtype.metadata is not None:
        raise TypeError("metadata cannot be spelled")
    from ..codecs.arrays import spec_of

    return spec_of(dtype)


def _reduce_dtype(value: Any) -> Any:
    if value.char == "O" and value.metadata is None:
        return build_dtype, ("O",)
    try:
        return build_dtype, (_spell_exactly(value),)
    except TypeError:
        return value.__reduce__()


class Namer:
    """Gives each array a name, from its place in the value: the same in every snapshot of the same structure.

    Args:
        value: What the arrays are in.
        kinds: Tells which types of objects may get a name.
    """

    def __init__(self, value: Any, kinds: Callable[[], frozenset[type]]) -> None:
        self._value = value
        self._kinds = kinds
        self._places: dict[int, str] | None = None
        self._taken: set[str] = set()
        self._unnamed = 0

    def __call__(self, array: Any) -> str:
        if self._places is None:
            self._places = _places(self._value, self._kinds())
        place = self._places.get(id(array))
        if place is None:
            self._unnamed += 1
            place = f"array-{self._unnamed:04}"
        name, number = place, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{place}~{number}"
        self._taken.add(name.casefold())
        return name


def _places(value: Any, kinds: frozenset[type]) -> dict[int, str]:
    """Where arrays are in dicts, lists and tuples, by their id; the smallest containers first, and no more than a while."""
    if type(value) in kinds:
        return {id(value): "value"}
    found: dict[int, str] = {}
    seen = {id(value)}
    todo: list[tuple[int, int, int, str, Any]] = [(0, 0, 1, "", value)]
    left = _LOOKED_AT
    while todo and left > 0:
        _, _, depth, path, container = heapq.heappop(todo)
        for name, part in islice(_parts(container, _base(container)), left):
            left -= 1
            if type(part) in kinds:
                found.setdefault(id(part), _spell_place(f"{path}{name}"))
            elif (base := _base(part)) is not None and depth < _DEEPEST and id(part) not in seen:
                seen.add(id(part))
                heapq.heappush(todo, (base.__len__(part), len(seen), depth + 1, f"{path}{name}.", part))
    return found


def _base(part: Any) -> Any:
    """Which kind of container something is. Its methods are used: those of a subclass may do anything."""
    return next((base for base in (dict, list, tuple) if issubclass(type(part), base)), None)


def _parts(container: Any, base: Any) -> Iterator[tuple[str, Any]]:
    if base is dict:
        for number, (key, part) in enumerate(dict.items(container)):
            yield str(key) if type(key) in (str, int, float, bool) else f"({number})", part
    elif base is not None:
        for number, part in enumerate(base.__iter__(container)):
            yield str(number), part


def _spell_place(place: str) -> str:
    """As the name of a file on every system: some begin names with a dot, others cannot call a file "aux"."""
    name = re.sub(r"[^A-Za-z0-9_.\-=()]", "_", place)[:150]
    return f"_{name}" if re.match(r"(con|prn|aux|nul|com\d|lpt\d)?(\.|$)", name, re.IGNORECASE) else name


# What stands in pickles, by name.


def build_array(spec: Any, shape: Any, order: Any, content: Any) -> Any:
    """An array over memory. In pickles, `content` is a bytearray, or the name of a part if the array has its own."""
    import numpy as np

    if type(content) is str:
        hint = "Read the snapshot with perdure; or the array by numpy.load."
        raise CodecError(f"an array is in a file of its own, {content}.npy", hint=hint)
    if type(content) not in (bytearray, memoryview):
        raise IntegrityError("an array is not made of bytes")
    dtype = _dtype_of(spec)
    # Python's integers do not overflow, so a shape can neither wrap around to fit nor ask for more than is there.
    if size_of(shape) * dtype.itemsize != len(content) or order not in ("C", "F"):
        raise IntegrityError("the shape and type of an array do not fit its bytes")
    if not len(content):
        return np.empty(shape, dtype, order)
    if type(content) is memoryview and content.readonly:
        content = bytearray(content)
    # `frombuffer` locks the memory where it is, as `ndarray` does not: a pickle could make the bytearray longer afterwards.
    array: Any = np.frombuffer(content, dtype).reshape(shape, order=order)
    return array if array.flags.aligned else array.copy(order)


def objects(shape: Any, order: Any) -> Any:
    """An array for Python objects, before it is filled; so that they may refer to it."""
    import numpy as np

    size_of(shape)
    return np.empty(shape, object, order)


def fill(array: Any, items: Any) -> None:
    """Put the objects into an array which was made for them."""
    import numpy as np

    if type(array) is not np.ndarray or array.dtype.char != "O" or type(items) is not list or array.size != len(items):
        raise IntegrityError("an array does not have as many objects as it has room for")
    flat = array.T.reshape(-1) if array.flags.f_contiguous else array.reshape(-1)
    for at, item in enumerate(items):
        flat[at] = item


def build_scalar(spec: Any, content: Any) -> Any:
    """A scalar of numpy."""
    import numpy as np

    if spec == "U" and type(content) is str:
        return np.str_(content)
    if spec == "S" and type(content) is bytes:
        return np.bytes_(content)
    dtype = _dtype_of(spec)
    if type(content) is not bytes or len(content) != dtype.itemsize:
        raise IntegrityError("a number does not fit its bytes")
    return np.ndarray((), dtype, bytearray(content))[()]


def build_dtype(spec: Any) -> Any:
    """A dtype of numpy."""
    import numpy as np

    return np.dtype("O") if spec == "O" else _dtype_of(spec)


def size_of(shape: Any) -> int:
    """How many elements a shape has room for, if it is one."""
    if type(shape) is not tuple or len(shape) > 64:
        raise IntegrityError("a shape is not made of lengths")
    size = 1
    for length in shape:
        if type(length) is not int or not 0 <= length < 2**63:
            raise IntegrityError("a shape is not made of lengths")
        size *= length
    return size


def _dtype_of(spec: Any) -> Any:
    return _usual_dtype(spec) if type(spec) is str else _any_dtype(spec)


def _any_dtype(spec: Any) -> Any:
    # Imported here, as it imports numpy.
    from ..codecs.arrays import dtype_of

    return dtype_of(spec)


_usual_dtype = lru_cache(100)(_any_dtype)


HARMLESS: Final[dict[tuple[str, str], Any]] = {
    (made.__module__, made.__qualname__): made for made in (build_array, objects, fill, build_scalar, build_dtype)
}
"""What an untrusted reader may call to build arrays."""


class ArrayReader:
    """What is called instead of the functions above while a snapshot is read, as these need its other parts.

    Args:
        stem: The name of the component.
        read: Reads a part.
        room: How many objects there may be at most.
    """

    def __init__(self, stem: str, read: Read, room: int) -> None:
        self._stem = stem
        self._read = read
        self._room = room
        self._used: set[str] = set()

    def calls(self) -> dict[tuple[str, str], Any]:
        """By module and name, as in the pickle. Not an attribute: in a circle, it would keep all that was read for a while."""
        return {
            (build_array.__module__, build_array.__qualname__): self._array,
            (objects.__module__, objects.__qualname__): self._objects,
        }

    def _array(self, spec: Any, shape: Any, order: Any, content: Any) -> Any:
        if type(content) is not str:
            return build_array(spec, shape, order, content)
        # A name within the component and nowhere else; and each once, or little could ask for much.
        if not re.fullmatch(r"[\w.\-=()~]{1,200}", content, re.ASCII) or content in self._used:
            raise IntegrityError(f"an array is said to be in a file of its own that it cannot be in: {content!r:.80}")
        self._used.add(content)
        name = f"{self._stem}/{content}.npy"
        data: Any = self._read(name)
        # What the header says is for others: the pickle says it as well.
        width = 2 if data[6:7] == b"\x01" else 4
        start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
        try:
            if data[:6] != _MAGIC or start > len(data):
                raise IntegrityError("it is no .npy file")
            return build_array(spec, shape, order, data[start:])
        except PerdureError as error:
            error.at(key=name)
            raise

    def _objects(self, shape: Any, order: Any) -> Any:
        if size_of(shape) > self._room:  # each takes a byte of the pickle at least
            raise IntegrityError("an array is said to hold more objects than there are")
        return objects(shape, order)
