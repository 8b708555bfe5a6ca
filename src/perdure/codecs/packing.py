"""The work of the codec `msgpack`: an exact round trip of data, and no code run by what is read.

`ormsgpack` writes what msgpack holds natively and hands everything else to a hook, which writes extension types
(`perdure.codecs.types`). Three ways to write, tried in this order:

1. Strictly: only text keys. Right for nearly everything, and at the speed of C.
2. With keys of any scalar type, which ormsgpack writes natively, but then also flattens dates and subclasses in keys; so the
   result counts only if the value holds none of these.
3. Carefully, in Python, part by part: large integers, lone surrogates, bytearrays, odd keys, large arrays (set aside so that
   they are copied once), and values that cannot be held, which are found here with their path.
"""

from __future__ import annotations

from functools import cached_property
from gc import get_referents
from threading import get_ident
from typing import Any, Final, NamedTuple, NoReturn

import ormsgpack
from ormsgpack import Ext, MsgpackEncodeError, packb, unpackb

from ..errors import CodecError, PerdureError
from . import types
from .nesting import nests_deeper
from .protocol import Buffer, Pieces

__all__ = ["decode", "encode"]

_STRICT: Final = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_ANY_KEY: Final = ormsgpack.OPT_NON_STR_KEYS
_TAIL: Final = b"\xc1"  # a byte that msgpack never uses: large arrays follow after the body

# Each level of extensions starts a decoder of its own, and each of these takes up to 1000 levels of lists, at half a
# kilobyte of the thread's stack a level. So from the third on, lists may nest less deeply: three megabytes at the very most.
_MAX_EXTENSIONS: Final = 50
_CHECKED_FROM: Final = 3
_MAX_LISTS: Final = 50

# ormsgpack replaces what a hook raises by an error of its own, Ctrl-C included; the first one of each thread is kept here.
_raised: dict[int, BaseException] = {}


def encode(value: Any) -> Pieces:
    """Pack a value, or raise `CodecError` and say which part of it cannot be held."""
    try:
        data = packb(value, _hook, _STRICT)
    except MsgpackEncodeError:
        _pass_on_interrupt()
        return _encode_carefully(value)
    # Exact, unless a bytearray or a memoryview went through as bytes, which leaves one of the three marks of bytes.
    if (0xC4 in data or (len(data) > 255 and (0xC5 in data or 0xC6 in data))) and not _holds_only(value, _NOT_MUTABLE):
        return _encode_carefully(value)
    return data


def decode(data: bytes | memoryview, limit: int) -> Any:
    """Unpack a value; `CodecError` where that cannot be done."""
    try:
        return unpackb(data, ext_hook=_ext_hook, option=_ANY_KEY)
    except ValueError as error:
        if data[:1] == _TAIL:
            return _decode_with_tail(memoryview(data))
        _complain(error)


# Types whose values the strict way writes exactly, and those that may also stand inside a key in the second way.
_EXACT_KEYS: Final = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict})
_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})


def _not_mutable(kinds: set[type]) -> bool:
    return bytearray not in kinds and memoryview not in kinds


_NOT_MUTABLE: Final = _not_mutable


def _holds_only(value: Any, allowed: Any) -> bool:
    """Tell whether the types of all parts are allowed; level by level, at nearly the speed of C.

    Only for values that have been packed, and so neither contain themselves nor unfold without end.
    """
    level = [value]
    while level:
        kinds = set(map(type, level))
        if not allowed(kinds):
            return False
        if not kinds & _CONTAINERS:
            return True
        if not kinds <= _EXACT_KEYS:
            level = [part for part in level if type(part) in _CONTAINERS]
        level = get_referents(*level)
    return True


class _Packer:
    """Writes what is inside one level of extensions.

    Attributes:
        set_aside: Large arrays that are to follow after the body; None where there can be none.
    """

    set_aside: list[Buffer] | None = None

    def __init__(self, depth: int, options: int) -> None:
        self.depth = depth
        self.options = options

    @cached_property
    def deeper(self) -> _Packer:
        return _Packer(self.depth + 1, self.options)

    def hook(self, value: Any) -> Ext:
        try:
            encoder = types.encoder_of(type(value))
            if encoder is None:
                raise TypeError
            return encoder(value, self.deeper)
        except BaseException as error:
            _raised.setdefault(get_ident(), error)
            raise

    def __call__(self, content: Any) -> bytes:
        if self.depth > _MAX_EXTENSIONS:
            raise CodecError("too deep")
        data = packb(content, self.hook, self.options)
        if self.depth >= _CHECKED_FROM and nests_deeper(data, _MAX_LISTS):
            raise CodecError("too deep")
        return data

    def exactly(self, content: Any) -> bytes:
        """Pack what came out of somebody else's function, which the survey of the whole value cannot see."""
        data = self(content)
        if (0xC4 in data or 0xC5 in data or 0xC6 in data) and not _holds_only(content, _NOT_MUTABLE):
            raise TypeError("holds a bytearray")
        if self.options & _ANY_KEY and not _holds_only(content, _EXACT_KEYS.issuperset):
            raise TypeError("holds what would be flattened in a key")
        return data


_hook = _Packer(0, _STRICT).hook
_hook_any_key = _Packer(0, _STRICT | _ANY_KEY).hook


def _encode_carefully(value: Any) -> Pieces:
    try:
        data = packb(value, _hook_any_key, _STRICT | _ANY_KEY)
        if _holds_only(value, _EXACT_KEYS.issuperset):
            return data
    except MsgpackEncodeError:
        _pass_on_interrupt()
    packer = _CarefulPacker(0, None, _Task([], set()))
    try:
        body = packer(value)
    except RecursionError as error:
        raise _too_deep(None) from error
    pieces = packer.set_aside
    if not pieces:
        return body
    size = sum(memoryview(piece).nbytes for piece in pieces)
    return [_TAIL + size.to_bytes(8, "little") + body, *pieces]


class _Path(NamedTuple):
    """Where a part is: spelled only when something is wrong with it."""

    parent: _Path | None
    step: Any
    how: str = "["

    def __str__(self) -> str:
        steps: list[str] = []
        here: _Path | None = self
        while here is not None:
            steps.append(f"[{_short(here.step)}]" if here.how == "[" else f" {here.how} {_short(here.step)}")
            here = here.parent
        text = "".join(reversed(steps))
        return text if len(text) <= 200 else f"{text[:100]}...{text[-80:]}"


class _Task(NamedTuple):
    set_aside: list[Buffer]
    open: set[int]  # the containers that the current part is inside of


class _CarefulPacker(_Packer):
    """Writes part by part in Python, so it can hold everything and knows where it is."""

    def __init__(self, depth: int, path: _Path | None, task: _Task, is_set: bool = False) -> None:
        self.depth = depth
        self.options = _STRICT
        self.path = path
        self.task = task
        self.set_aside: list[Buffer] | None = task.set_aside
        self.is_set = is_set

    def __call__(self, content: Any) -> bytes:
        if self.depth > _MAX_EXTENSIONS:
            raise _too_deep(self.path)
        if self.is_set:
            return self._pack([self._lower(member, _Path(self.path, member, "member")) for member in content])
        return self._pack(self._lower(content, self.path))

    exactly = __call__

    def _pack(self, lowered: Any) -> bytes:
        try:
            data = packb(lowered, None, _STRICT)
        except MsgpackEncodeError as error:
            raise _too_deep(self.path) from error  # every type was looked at, so what remains is nesting
        if self.depth >= _CHECKED_FROM and nests_deeper(data, _MAX_LISTS):
            raise _too_deep(self.path)
        return data

    def _lower(self, value: Any, path: _Path | None) -> Any:
        """Return the same with everything that is not native replaced by an extension."""
        kind = type(value)
        if kind is str:
            return value if value.isascii() or _encodable(value) else types.surrogates(value)
        if kind is int:
            return value if -(2**63) <= value < 2**64 else types.big_int(value)
        if kind is float or kind is bool or value is None or kind is bytes:
            return value
        if id(value) in self.task.open:
            raise CodecError(
                f"value{path or ''} is a {kind.__name__} that contains itself", hint='codec="pkl" holds such values.'
            )
        self.task.open.add(id(value))
        try:
            if kind is list:
                return [self._lower(part, _Path(path, i)) for i, part in enumerate(value)]
            if kind is dict:
                return self._lower_dict(value, path)
            if kind is bytearray:
                return types.bytearray_(value)
            encoder = types.encoder_of(kind)
            if encoder is None:
                raise _refusal(value, path)
            inside = _CarefulPacker(self.depth + 1, path, self.task, kind is set or kind is frozenset)
            try:
                return encoder(value, inside)
            except (PerdureError, RecursionError):
                raise
            except Exception as error:
                problem = f"value{path or ''} is of type {_name(kind)} and cannot be held by msgpack: {error}"
                raise CodecError(problem, hint='Change it, or use codec="pkl".') from error
        finally:
            self.task.open.discard(id(value))

    def _lower_dict(self, value: dict[Any, Any], path: _Path | None) -> Any:
        if all(type(key) is str and (key.isascii() or _encodable(key)) for key in value):
            return {key: self._lower(part, _Path(path, key)) for key, part in value.items()}
        if self.depth == _MAX_EXTENSIONS:
            raise _too_deep(path)
        inside = _CarefulPacker(self.depth + 1, path, self.task)
        flat: list[Any] = []
        for key, part in value.items():
            flat.append(inside._lower(key, _Path(path, key, "key")))
            flat.append(inside._lower(part, _Path(path, key)))
        return types.any_map(inside._pack(flat))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # somebody's __repr__, while we are reporting something else
        text = f"<{_name(type(value))}: {type(error).__name__} in repr>"
    return text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}"


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _refusal(value: Any, path: _Path | None) -> CodecError:
    return CodecError(
        f"value{path or ''} is of type {_name(type(value))}, which msgpack does not hold", hint=types.advice(value)
    )


def _too_deep(path: _Path | None) -> CodecError:
    return CodecError(f"value{path or ''} is nested too deeply for msgpack", hint='Flatten it, or use codec="pkl".')


def _pass_on_interrupt() -> None:
    error = _raised.pop(get_ident(), None)
    if error is not None and not isinstance(error, Exception):
        raise error


class _Unpacker:
    """Reads what is inside one level of extensions. `tail` yields the large arrays, in the order of the body."""

    def __init__(self, depth: int, tail: types.Tail | None = None) -> None:
        self.depth = depth
        self.tail = tail

    @cached_property
    def deeper(self) -> _Unpacker:
        return _Unpacker(self.depth + 1, self.tail)

    def hook(self, code: int, data: bytes) -> Any:
        try:
            decoder = types.decoders.get(code)
            if decoder is None:
                raise CodecError(f"this holds extension type {code}, which is not known here", hint="Update perdure.")
            return decoder(data, self.deeper)
        except BaseException as error:
            _raised.setdefault(get_ident(), error)
            raise

    def __call__(self, data: bytes) -> Any:
        if self.depth > _MAX_EXTENSIONS or (self.depth >= _CHECKED_FROM and nests_deeper(data, _MAX_LISTS)):
            raise CodecError("this is nested too deeply")
        return unpackb(data, ext_hook=self.hook, option=_ANY_KEY)


_ext_hook = _Unpacker(0).hook


def _decode_with_tail(data: memoryview) -> Any:
    _raised.pop(get_ident(), None)
    size = int.from_bytes(data[1:9], "little")
    if len(data) < 9 or size > len(data) - 9:
        raise CodecError("this is not msgpack of perdure: its arrays are cut")
    tail = types.Tail(data[len(data) - size :])
    try:
        value = unpackb(data[9 : len(data) - size], ext_hook=_Unpacker(0, tail).hook, option=_ANY_KEY)
    except ValueError as error:
        _complain(error)
    tail.check_used()
    return value


def _complain(error: ValueError) -> NoReturn:
    """Raise what a hook raised, as far as it says more than what ormsgpack made of it."""
    cause: BaseException = _raised.pop(get_ident(), error)
    if not isinstance(cause, Exception) or isinstance(cause, PerdureError):
        raise cause
    raise CodecError(f"this is not msgpack of perdure: {cause}") from cause


whole: Final = True  # the last line, so whoever finds this finds all the rest
