"""Whether two values are equal and of one type in every part, also objects that do not know when they are equal."""

from __future__ import annotations

import copyreg
from typing import Any

_PLAIN = (int, str, bytes, bytearray, bool)


def same(a: Any, b: Any, *, ordered: bool = True) -> bool:
    """Compare by type and value: 1 is not True, 0.0 is not -0.0, nan is nan, a tuple is no list.

    Objects are the same when what pickle would store of them is; where that differs, their own `==` decides.

    Args:
        a: A value.
        b: Another one.
        ordered: Whether the order of the keys of dicts counts.

    Raises:
        RecursionError: They are nested too deeply.
    """
    return _same(a, b, _Seen(ordered))


class _Seen(dict[tuple[int, int], Any]):
    """Pairs of objects that are compared or being compared, by their ids."""

    def __init__(self, ordered: bool) -> None:
        self.ordered = ordered


def _same(a: Any, b: Any, seen: _Seen) -> bool:
    kind = type(a)
    if kind is not type(b):
        return False
    if a is b:
        return True
    if kind in _PLAIN:
        return bool(a == b)
    if kind in (float, complex):
        return repr(a) == repr(b)
    pair = id(a), id(b)
    if pair in seen:  # in a circle, or compared already
        return True
    seen[pair] = a, b  # kept, or another object might get the same id
    equal = _same_parts(a, b, seen)
    if not equal:
        del seen[pair]
    return equal


def _same_parts(a: Any, b: Any, seen: _Seen) -> bool:
    kind = type(a)
    if kind in (list, tuple):
        return len(a) == len(b) and all(_same(x, y, seen) for x, y in zip(a, b, strict=True))
    if kind is dict:
        if not seen.ordered:
            keys = {key: key for key in b}
            found = (key in keys and _same(key, keys[key], seen) and _same(x, b[key], seen) for key, x in a.items())
            return len(a) == len(b) and all(found)
        pairs = zip(a.items(), b.items(), strict=True)
        return len(a) == len(b) and all(_same(k, j, seen) and _same(x, y, seen) for (k, x), (j, y) in pairs)
    if kind in (set, frozenset):
        return _same_members(a, b, seen)
    if hasattr(a, "dtype") and hasattr(a, "tobytes") and hasattr(a, "tolist"):  # numpy; pickles tell row and column order apart
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return _same(a.tolist(), b.tolist(), seen) if a.dtype.hasobject else bool(a.tobytes() == b.tobytes())
    return _same_objects(a, b, seen)


def _same_members(a: Any, b: Any, seen: _Seen) -> bool:
    left = {y: y for y in b}
    odd = []  # nan, and objects that equal themselves only
    for x in a:
        if x in left and _same(x, left[x], seen):
            del left[x]
        else:
            odd.append(x)
    for x in odd:
        match = [y for y in left if _same(x, y, seen)][:1]
        if not match:
            return False
        del left[match[0]]
    return not left


def _same_objects(a: Any, b: Any, seen: _Seen) -> bool:
    try:
        if _same(_stored(a), _stored(b), seen):
            return True
        return bool(a == b)  # of a class without an == of its own this is false
    except RecursionError:
        raise
    except Exception:  # code of anybody's class; what cannot be compared is not known to be the same
        return False


def _stored(value: Any) -> Any:
    """What pickle stores of an object: how to make it, and its state."""
    reduce = copyreg.dispatch_table.get(type(value))
    stored = reduce(value) if reduce is not None else value.__reduce_ex__(4)
    if isinstance(stored, str):
        return stored
    make, arguments, *rest = stored
    rest += [None] * (4 - len(rest))
    state, items, pairs, setter = rest
    return make, arguments, state, list(items or ()), list(pairs or ()), setter
