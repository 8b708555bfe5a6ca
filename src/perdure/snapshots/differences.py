"""Where two values differ, and how, told shortly: `optimizer.param_groups[0].lr` was 0.01 and is 0.001."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, is_dataclass
from itertools import islice, zip_longest
from typing import Any, Final, Literal, NamedTuple, TypeAlias

__all__ = ["Brief", "Change", "Difference", "Listing", "differences", "is_array"]

MOST_CHANGES: Final = 200
"""No more are listed of one part."""

_MOST_TEXT: Final = 100
_MOST_PATH: Final = 300
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Brief:
    """A value that is too long, or of no type that JSON has, as a short text.

    Attributes:
        text: Such as `"float32 array (10, 3)"` or `"[1, 2, ...]"`.
    """

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two values.

    Attributes:
        path: Where, such as `"optimizer.param_groups[0].lr"`.
        kind: What happened there.
        old: What it was; `None` where it was added.
        new: What it is; `None` where it was removed.
        differing: Of arrays of the same shape and type, how many elements differ; `None` where nobody can tell.
        largest: The largest difference of two such elements; `None` where these are no numbers.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    old: bool | int | float | str | Brief | None = None
    new: bool | int | float | str | Brief | None = None
    differing: int | None = None
    largest: float | None = None


class _Path(NamedTuple):
    """Where a value is: a linked list, as few of them are ever spelled."""

    parent: _Path | None
    how: str
    step: Any

    def __str__(self) -> str:
        steps: list[str] = []
        here: _Path | None = self
        while here is not None:
            if here.how == "":
                steps.append(here.step)
            elif here.how == "{":
                steps.append(f"{{{_spell(here.step)}}}")
            elif isinstance(here.step, str) and here.step.isidentifier():
                steps.append(f".{here.step}")
            else:
                steps.append(f"[{_spell(here.step)}]")
            here = here.parent
        text = "".join(reversed(steps)).removeprefix(".")
        return text if len(text) <= _MOST_PATH else f"{text[: _MOST_PATH // 2]}...{text[-_MOST_PATH // 2 :]}"


class Difference(NamedTuple):
    """A change that is not spelled yet. What is missing on one side is an object that is nothing else."""

    path: _Path
    old: Any
    new: Any
    differing: int | None = None
    largest: float | None = None

    def change(self) -> Change:
        """The same, spelled."""
        if self.old is _MISSING:
            return Change(str(self.path), "added", None, _brief(self.new))
        if self.new is _MISSING:
            return Change(str(self.path), "removed", _brief(self.old))
        return Change(str(self.path), "changed", _brief(self.old), _brief(self.new), self.differing, self.largest)


class Listing:
    """The first differences that were found, spelled, and the number of the others.

    Attributes:
        changes: At most `MOST_CHANGES`.
        omitted: How many more there are.
    """

    def __init__(self, found: Iterable[Difference] = ()) -> None:
        self.changes: list[Change] = []
        self.omitted = 0
        for difference in found:
            self.add(difference)

    def add(self, difference: Difference) -> None:
        """Take one more."""
        if len(self.changes) < MOST_CHANGES:
            self.changes.append(difference.change())
        else:
            self.omitted += 1


def differences(
    old: Any, new: Any, root: str, alike: Callable[[Any, Any], bool] = lambda old, new: False
) -> Iterator[Difference]:
    """Find where two values differ, in the order in which they hold their members.

    Dicts are compared by their keys, lists, tuples and deques by their positions, sets by their members, objects without an
    equality of their own and dataclasses by their attributes, arrays by their elements, everything else by `==`. Values of
    different types differ, even `1` and `1.0`. NaN is equal to NaN.

    Args:
        old: A value, which may be nested deeply or contain itself.
        new: Another.
        root: What paths begin with.
        alike: Tells of two arrays or tensors of the same shape and type that they are equal, where that is known without
            looking at them.

    Returns:
        The differences, as they are found. Two containers that meet in several places are compared, and told, once.

    Cost: linear in the values, and some 200 bytes for each pair of containers.
    """
    met: dict[tuple[int, int], tuple[Any, Any]] = {}  # holds what it names, or an id could come to mean something else
    todo: list[tuple[_Path | None, Iterator[_Pair]]] = [(None, iter([("", root, old, new)]))]
    while todo:
        parent, pairs = todo[-1]
        pair = next(pairs, None)
        if pair is None:
            todo.pop()
            continue
        how, step, a, b = pair
        path = _Path(parent, how, step)
        if a is b or (id(a), id(b)) in met:
            continue
        if type(a) is not type(b):  # or one is missing
            yield Difference(path, a, b)
        elif is_array(a) and not _holds_objects(a):
            if _kind_of_array(a) != _kind_of_array(b):
                yield Difference(path, a, b)
            elif not alike(a, b):
                differing, largest = _measure(a, b)
                if differing != 0:
                    yield Difference(path, a, b, differing, largest)
        else:
            members = _members(a, b)
            if members is not None:
                met[id(a), id(b)] = a, b
                todo.append((path, members))
            elif not _equal(a, b):
                yield Difference(path, a, b)


_Pair: TypeAlias = tuple[str, Any, Any, Any]  # how it is reached, by what, and what is there in both


def _members(a: Any, b: Any) -> Iterator[_Pair] | None:
    """The members of two values of one type, without those that are the same at a glance; `None` of what has none."""
    if isinstance(a, dict):
        return _by_key(a, b)
    if isinstance(a, (list, tuple, deque)):
        return _by_position(a, b)
    if isinstance(a, (set, frozenset)):
        return _by_membership(a, b)
    if is_array(a):
        return _by_position(a.ravel().tolist(), b.ravel().tolist()) if a.shape == b.shape else None
    if _equal_by_identity(a) or is_dataclass(a):
        old, new = _attributes(a), _attributes(b)
        return _by_key(old, new) if old or new else None
    return None


def _by_key(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> Iterator[_Pair]:
    for key, value in a.items():
        other = b.get(key, _MISSING)
        if not _same_at_a_glance(value, other):
            yield "[", key, value, other
    for key, value in b.items():
        if key not in a:
            yield "[", key, _MISSING, value


def _by_position(a: Iterable[Any], b: Iterable[Any]) -> Iterator[_Pair]:
    for position, (x, y) in enumerate(zip_longest(a, b, fillvalue=_MISSING)):
        if not _same_at_a_glance(x, y):
            yield "[", position, x, y


def _by_membership(a: Set[Any], b: Set[Any]) -> Iterator[_Pair]:
    for member in sorted(a - b, key=_spell):
        if member == member:  # as NaN is not, which is never found in any set
            yield "{", member, member, _MISSING
    for member in sorted(b - a, key=_spell):
        if member == member:
            yield "{", member, _MISSING, member


def _same_at_a_glance(x: Any, y: Any) -> bool:
    return x is y or (type(x) is type(y) and type(x) in (int, float, str, bool, bytes) and (x == y or (x != x and y != y)))


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds, by name: as pickle sees it, in `__dict__`, in slots, or in what `__getstate__` makes of these."""
    if isinstance(value, type):
        return {}
    try:
        state = value.__getstate__()
    except Exception as error:  # somebody's __getstate__
        return {"__getstate__": f"{type(error).__name__}: {error}"}
    states: tuple[Any, ...] = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if all(each is None or isinstance(each, dict) for each in states):
        return {name: held for each in states if each for name, held in each.items()}
    return {"__getstate__": state}


def _equal_by_identity(value: object) -> bool:
    equal: Any = type(value).__eq__
    return equal is object.__eq__


def _equal(a: Any, b: Any) -> bool:
    try:
        if _equal_by_identity(a):  # and holds nothing that can be seen; so it is what it shows
            return not _shows_itself(a) or repr(a) == repr(b)
        return bool(a == b) or bool(a != a and b != b)
    except Exception:  # somebody's __eq__ that cannot tell: better to show both than to say that they are equal
        return False


def _shows_itself(value: object) -> bool:
    """Whether there is more to its `repr` than type and address."""
    show: Any = type(value).__repr__
    return show is not object.__repr__


# Arrays of numpy and tensors of torch; neither is imported here.


def is_array(value: Any) -> bool:
    """Tell whether this is an array or a tensor."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    return (numpy is not None and isinstance(value, numpy.ndarray)) or (torch is not None and isinstance(value, torch.Tensor))


def _holds_objects(array: Any) -> bool:
    return getattr(array.dtype, "hasobject", False) and array.dtype.names is None


def _kind_of_array(array: Any) -> str:
    """Such as `float32 array (10, 3)`."""
    name = type(array).__name__
    return f"{array.dtype} {'array' if name == 'ndarray' else name.lower()} {tuple(array.shape)}".removeprefix("torch.")


def _plain_array(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    plain = value.detach().resolve_conj().resolve_neg().cpu()
    try:
        return plain.numpy()
    except TypeError:  # a type of numbers that numpy does not have, such as bfloat16, and that fits into this one
        return plain.float().numpy()


def _measure(a: Any, b: Any) -> tuple[int | None, float | None]:
    """How many elements of two arrays of one shape and type differ, and the largest difference; `None` if nobody can tell."""
    import numpy as np

    differing, largest = 0, None
    try:
        old, new = _plain_array(a), _plain_array(b)
        kind = old.dtype.kind
        with np.errstate(all="ignore"):
            # In pieces, so that arrays that fill most of the memory can be compared; and whatever their order in memory.
            pieces = np.nditer([old, new], ["external_loop", "buffered", "zerosize_ok"], buffersize=1 << 16)
            for x, y in pieces if old.size else ():
                unequal = x != y
                if kind in "fcmM":  # which have NaN, or NaT
                    unequal &= ~((x != x) & (y != y))
                count = int(np.count_nonzero(unequal))
                differing += count
                if count and kind in "iufc":
                    distance = _distance(x[unequal], y[unequal], kind)
                    largest = distance if largest is None or (distance is not None and distance > largest) else largest
    except (TypeError, ValueError, RuntimeError):  # types of numbers that numpy cannot reckon with
        return None, None
    return differing, largest


def _distance(x: Any, y: Any, kind: str) -> float | None:
    import numpy as np

    if kind in "iu":
        # Modulo 2**64 the difference is exact, however far apart they are.
        return int((np.maximum(x, y).astype(np.uint64) - np.minimum(x, y).astype(np.uint64)).max())
    wide = np.result_type(x.dtype, np.float64)
    apart = np.abs(x.astype(wide) - y.astype(wide))
    apart = apart[~np.isnan(apart)]
    return float(apart.max()) if apart.size else None


# Values, spelled shortly.


def _brief(value: Any) -> bool | int | float | str | Brief | None:
    if hasattr(value, "dtype") and hasattr(value, "item") and not is_array(value):
        value = value.item()  # a number of numpy
    if value is None or isinstance(value, (bool, float)):
        return value
    if type(value) is int and value.bit_length() <= 64:
        return value
    if type(value) is str and len(value) <= _MOST_TEXT:
        return value
    return Brief(_spell(value))


def _spell(value: Any, depth: int = 3) -> str:
    """A text of a line for any value, whatever it holds."""
    name = type(value).__qualname__
    if is_array(value):
        text = _kind_of_array(value)
    elif isinstance(value, (str, bytes, bytearray)) and len(value) > _MOST_TEXT:
        return f"{value[:60]!r}... of length {len(value):,}"
    elif isinstance(value, int) and value.bit_length() > 300:
        return f"an integer of {value.bit_length():,} bits"
    elif isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        text = _spell_members(value, depth) if depth else "..."
        text = text if name in ("dict", "list", "tuple") or (name == "set" and value) else f"{name}({text})"
    elif not _shows_itself(value):
        text = f"<{name}>"  # without its address, which says nothing
    else:
        try:
            text = repr(value)
        except Exception as error:  # somebody's __repr__
            text = f"<{name}: {type(error).__name__} in repr>"
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 13]}...{text[-10:]}"


def _spell_members(value: Any, depth: int) -> str:
    first = list(islice(value.items() if isinstance(value, dict) else value, 6))
    more = ["..."] if len(value) > len(first) else []
    if isinstance(value, dict):
        return "{" + ", ".join([f"{_spell(key, depth - 1)}: {_spell(held, depth - 1)}" for key, held in first] + more) + "}"
    opening, closing = (
        "()" if isinstance(value, tuple) else ("{}" if value else ("", "")) if isinstance(value, (set, frozenset)) else "[]"
    )
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return opening + ", ".join([_spell(held, depth - 1) for held in first] + more) + comma + closing
