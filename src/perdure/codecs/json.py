"""JSON for other programs and people to read: plain JSON exactly; on trust, jsonpickle for what plain JSON cannot hold."""

from __future__ import annotations

import json
import re
import sys
from gc import get_referents
from typing import Any, Final

from ..errors import CodecError, IntegrityError, UntrustedError

__all__ = ["Json"]

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_PLAIN: Final = _SCALARS | {list, dict}
_TEXT: Final = {str}
# Keys that mean something to jsonpickle, so that a plain dict must not have them.
_TAGS: Final = ("py/", "json://")
# Both halves of a surrogate pair, as two characters; escaped, they are read as the one character that they make up.
_pair: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]").search


class Json:
    """The codec `json`. Holds str, int, float (nan and infinities as Python's json writes them), bool, None, list, and dict
    with text keys; everything else is refused, because JSON would change its type.

    With `trusted=True` other values go through jsonpickle, and are read again and compared by type before they are stored.
    Files of persidict are read that way. jsonpickle runs code that the text names, so without `trusted` text with such tags is
    refused.

    Args:
        trusted: Whoever can write the text may run code here.
        indent: Spaces for each level, for people; plain JSON is written on one line by default, twenty times as fast.
    """

    name = "json"
    id = 3
    bare = True
    any_bytes = False

    def __init__(self, *, trusted: bool = False, indent: int | None = None) -> None:
        self.trusted = trusted
        self.safe = not trusted
        self.indent = indent

    def encode(self, value: Any) -> bytes:
        text = self._plain(value)
        if text is None:
            if not self.trusted:
                raise _refusal(value)
            text = _pickled(value)
        try:
            return text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can escape, unless its other half follows
            if _pair(text):
                raise CodecError(
                    "some text has both halves of a surrogate pair as two characters, and JSON would make one of them",
                    hint='codec="msgpack" keeps them.',
                ) from error
            return json.dumps(value, indent=self.indent).encode()

    def _plain(self, value: Any) -> str | None:
        try:
            text = json.dumps(value, ensure_ascii=False, indent=self.indent)
        except (TypeError, ValueError, RecursionError):
            return None
        return text if _is_plain(value) else None

    def decode(self, data: bytes | memoryview, limit: int) -> Any:
        try:
            text = str(data, "utf-8")
            value = json.loads(text)
        except RecursionError as error:
            raise CodecError("this JSON is nested too deeply") from error
        except ValueError as error:
            raise IntegrityError(f"what is stored is damaged, or is not JSON: {error}") from error
        # A tag in the value has one in its text, unless it is spelled with escapes.
        if ('"py/' in text or '"json:' in text or "\\" in text) and _tag_in(value):
            if not self.trusted:
                raise UntrustedError(
                    f"this JSON has the jsonpickle tag {_tag_in(value)!r:.80}, and restoring what that names can run code",
                    hint='If you trust everybody who can write there, use open(..., codec="json", trusted=True).',
                )
            return _unpickled(text)
        return value


def _is_plain(value: Any) -> bool:
    """Tell whether plain JSON holds this exactly; only for values that json has written, so without cycles."""
    level = [value]
    while level:
        kinds = set(map(type, level))
        if not kinds <= _PLAIN:
            return False
        if dict in kinds:
            for part in level:
                if type(part) is dict and part:
                    if set(map(type, part)) != _TEXT:
                        return False
                    for key in part:
                        if key.startswith(_TAGS):
                            return False
        level = get_referents(*level) if kinds & {list, dict} else []
    return True


def _tag_in(value: Any) -> str | None:
    """Return a key that means something to jsonpickle, if there is one."""
    level = [value]
    while level:
        for part in level:
            if type(part) is dict:
                for key in part:
                    if key.startswith(_TAGS):
                        return str(key)
        level = get_referents(*[part for part in level if type(part) in (list, dict)])
    return None


def _refusal(value: Any) -> CodecError:
    """Find the part that plain JSON cannot hold. Goes in depth, and gives up where Python does."""
    hint = 'codec="msgpack" holds data of all usual types; open(..., trusted=True) lets jsonpickle write it.'
    try:
        problem = _find(value, "value", set())
    except RecursionError:
        problem = None
    return CodecError(problem or "value is nested too deeply for JSON, or contains itself", hint=hint)


def _find(value: Any, path: str, open: set[int]) -> str | None:
    kind = type(value)
    if kind in _SCALARS:
        return f"{path} is an integer of too many digits for JSON" if kind is int and abs(value) >> 14_000 else None
    if kind not in (list, dict):
        return f"{path} is a {kind.__qualname__}, which plain JSON does not hold"
    if id(value) in open:
        return f"{path} is a {kind.__name__} that contains itself"
    open.add(id(value))
    for key, part in enumerate(value) if kind is list else value.items():
        if type(key) is not str and kind is dict:
            return f"{path} has the key {key!r:.60}, a {type(key).__qualname__}, and keys of JSON are text"
        if type(key) is str and key.startswith(_TAGS):
            return f"{path} has the key {key!r:.60}, which would be taken for a tag of jsonpickle when read"
        problem = _find(part, f"{path}[{key!r:.60}]", open)
        if problem:
            return problem
    open.discard(id(value))
    return None


# jsonpickle, imported at first need only: half of its import is slower than all of ours.


def _jsonpickle(mentions: str) -> Any:
    import jsonpickle

    # As persidict does, so that either reads what the other wrote. This is global to jsonpickle, and done only once needed.
    for name in ("numpy", "pandas"):
        if name in sys.modules or f'"{name}.' in mentions:
            try:
                from importlib import import_module

                import_module(f"jsonpickle.ext.{name}").register_handlers()
            except ImportError as error:
                raise CodecError(
                    f"this holds an object of {name}, which is not installed", hint=f"pip install {name}"
                ) from error
    return jsonpickle


def _pickled(value: Any) -> str:
    try:
        text: str = _jsonpickle("").encode(value, keys=True, indent=4)
        again = _unpickled(text)
    except RecursionError as error:
        raise CodecError("value is nested too deeply for jsonpickle", hint='Use codec="pkl".') from error
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"jsonpickle cannot write this value: {error}", hint='Use codec="pkl".') from error
    lost = _difference(value, again, "value")
    if lost:
        raise CodecError(f"jsonpickle would not restore {lost}", hint='Use codec="msgpack" or codec="pkl".')
    return text


def _unpickled(text: str) -> Any:
    return _jsonpickle(text).decode(text, keys=True, on_missing="error")


def _difference(a: Any, b: Any, path: str) -> str | None:
    """Find a part of plain containers that came back as something else; of other objects only the type is compared."""
    if type(a) is not type(b):
        if isinstance(a, type(b)) and hasattr(b, "equals") and b.equals(a) is True:
            return None  # a RangeIndex comes back as the Index that pandas calls equal to it
        return f"{path}, a {type(a).__qualname__}: it becomes a {type(b).__qualname__}"
    if isinstance(a, (list, tuple, dict)) and len(a) != len(b):
        return f"{path}: it becomes {b!r:.60}"
    if isinstance(a, (list, tuple)):
        pairs = [(f"{path}[{i}]", *both) for i, both in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, dict):
        keys = {key: key for key in b}
        pairs = [(f"{path}[{k!r:.60}]", (k, a[k]), (keys[k], b[k]) if k in keys else ()) for k in a]
    elif type(a) in _SCALARS or isinstance(a, (bytes, bytearray, set, frozenset)):
        return f"{path}: it becomes {b!r:.60}" if a != b and a == a else None
    else:
        return None
    return next((lost for p, x, y in pairs if (lost := _difference(x, y, p))), None)
