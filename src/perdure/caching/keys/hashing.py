"""What the arguments of a call are, in 16 bytes: the same wherever equal ones are given, and others for every other call.

A value is written as MessagePack writes it where it is a *scalar*: None, a bool, an int of 64 bits, a float (all NaN are one),
text or bytes. These begin with their type and length. Everything else begins with the byte 0xC1, which MessagePack never uses,
and a letter for its type; then come its parts, of which each type has a fixed number or says how many. A *run* of values is a
MessagePack array if all are scalars, and else 0xC1, `[`, their number and the values. So no encoding is the beginning of
another, and what is made of such parts one after the other can be told apart again: another value is another encoding.

Arguments that are all scalars, the usual case, are one MessagePack array (of the names and the values), made in a single step.
It begins with 0x92, everything else with 0xC1, and which of the two is chosen depends on nothing but the values.

A letter once given out is never used for something else. To change what is written is to forget every stored result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Final

from ormsgpack import packb

from ...errors import UsageTypeError
from .objects import Refused
from .types import SCALARS, sized, writer_for, writers

__all__ = ["RESULT_OF_KEY", "Walk", "digest"]

RESULT_OF_KEY: Final = "the result of key="  # as the name of an argument: it counts, so it is never spelled otherwise

MAX_DEPTH: Final = 150  # each level takes three frames of the thousand that Python allows
_FLATTER: Final = "Pass something flatter, {leave}."
_NAN: Final = float("nan")
_fresh = blake2b(digest_size=16).copy  # takes half the time of making one anew


def digest(values: tuple[Any, ...], names: tuple[str, ...] = (), instance: str | None = None) -> str:
    """Name the arguments of a call by 32 hexadecimal digits that are the same in every process, on every machine.

    Types count as well as values: `1`, `1.0`, `True` and `"1"` are four arguments, and so are `0.0` and `-0.0`, a list and a
    tuple. The order of a dict or set does not count, but that of an `OrderedDict` does. Aware datetimes count as they are
    written: one instant in two time zones is two arguments. Objects (dataclasses, named tuples, `msgspec.Struct`, pydantic
    models) are their class, by module and qualified name, and all that they hold but cached properties; an Enum member is its
    class and name. A type that was registered (`perdure.register_type`) is its registered form, and an object with a method
    `__perdure_key__()` is its class and what that returns.

    Args:
        values: The arguments, as `Binding.bind` gives them. There may be more of them than names.
        names: The names of the first of them, which count too, so that exchanged parameters are another call.
        instance: The name of the argument whose own method is called, mostly `"self"`. It, and what it holds, may be plain
            objects, which are otherwise refused: they count as their class and all their attributes.

    Returns:
        The digest, BLAKE2b of 128 bits.

    Raises:
        UsageTypeError: An argument holds something of which it is unknown what counts (functions, open files, locks, plain
            objects), or itself, or nests more than 150 levels deep. The message has the path to it.

    Cost: a microsecond if all are scalars; otherwise about one for each container or object, 30 ns for each scalar in lists of
    scalars, and 10 µs for each array with a nanosecond for each of its bytes. Keeps nothing, and is safe in all threads.
    """
    kinds = {*map(type, values)}
    if kinds <= SCALARS:
        try:
            body = packb((names, _with_one_nan(values) if float in kinds else values))
        except TypeError:  # an integer beyond 64 bits, or half of a surrogate pair: the long way takes them
            pass
        else:
            hashed = _fresh()
            hashed.update(body)
            return hashed.hexdigest()
    walk = Walk()
    walk.parts.append(b"\xc1(")
    walk.run(names)
    walk.parts.append(packb(len(values)))
    for at, value in enumerate(values):
        name = names[at] if at < len(names) else ""
        walk.plain = bool(name) and name == instance
        try:
            walk.put(value)
        except Refused as refused:
            raise _error(refused, name) from None
        except RecursionError as error:
            raise _error(Refused("nests too deep to be followed from where it is called", _FLATTER), name) from error
    return walk.finish()


def _with_one_nan(values: Sequence[Any]) -> Sequence[Any]:
    for value in values:
        if value != value:
            return [_NAN if value != value else value for value in values]
    return values


def _packed(values: Sequence[Any]) -> bytes | None:
    """All of them as one array, if they are scalars."""
    kinds = {*map(type, values)}
    if not kinds <= SCALARS:
        return None
    try:
        return packb(_with_one_nan(values) if float in kinds else values)
    except TypeError:
        return None


def _odd_scalar(value: Any) -> bytes:
    """An integer beyond 64 bits, text that is not Unicode, and what has four billion bytes or more."""
    if type(value) is int:
        return sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if type(value) is str:
        return sized(b"s", value.encode("utf-8", "surrogatepass"))
    return sized(b"#", value)


class Walk:
    """The encoding of one call, as it grows.

    Attributes:
        parts: What is not hashed yet.
        plain: Plain objects are taken as well.
    """

    __slots__ = ("_depth", "_hashed", "parts", "plain")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.plain = False
        self._hashed: Any = _fresh()
        self._depth = 0

    def put(self, value: Any) -> None:
        """Write one value."""
        kind = type(value)
        if kind in SCALARS:
            try:
                self.parts.append(packb(value if value == value else _NAN))
            except TypeError:
                self.parts.append(_odd_scalar(value))
            return
        write = writers.get(kind) or writer_for(value, kind, self.plain)
        if self._depth == MAX_DEPTH:
            raise Refused("", _FLATTER)
        self._depth += 1
        write(self, value)
        self._depth -= 1

    def part(self, value: Any, step: str, holder: Any) -> None:
        """Write one value that another one, the holder, has; for errors, how it is reached from there."""
        try:
            self.put(value)
        except Refused as refused:
            refused.under(step, holder)
            raise

    def run(self, values: Sequence[Any], holder: Any = None, names: Sequence[Any] = (), form: str = "[{!r:.80}]") -> None:
        """Write several values, and how many they are; for errors, what has them, and how each is called in it."""
        packed = _packed(values)
        if packed is not None:
            self.parts.append(packed)
            return
        self.parts.append(b"\xc1[" + packb(len(values)))
        at = -1
        try:
            for value in values:
                at += 1
                self.put(value)
        except Refused as refused:
            refused.under(form.format(names[at] if names else at), holder)
            raise

    def entries(self, holder: Any, items: Mapping[Any, Any], form: str = "[{!r:.80}]") -> None:
        """Write what a mapping has, in whatever order it has it."""
        if {*map(type, items)} == {str}:
            names = sorted(items)
            self.run(names, holder)
            self.run([items[name] for name in names], holder, names, form)
            return
        self.parts.append(b"\xc1{" + packb(len(items)))
        keyed = [(self.apart(key, " (a key)", holder), key, value) for key, value in items.items()]
        for encoded, key, value in sorted(keyed, key=itemgetter(0)):
            self.parts.append(encoded)
            self.part(value, form.format(key), holder)

    def apart(self, value: Any, step: str, holder: Any) -> bytes:
        """What `part` would write, to be put in order before it is."""
        outer = self.parts, self._hashed
        self.parts, self._hashed = [], None
        self.part(value, step, holder)
        inner = b"".join(self.parts)
        self.parts, self._hashed = outer
        return inner

    def large(self, data: Any) -> None:
        """Write a buffer without a copy of it. Its length follows from what was written before."""
        if self._hashed is None:
            self.parts.append(bytes(data))
            return
        self._hashed.update(b"".join(self.parts))
        self.parts.clear()
        self._hashed.update(data)

    def finish(self) -> str:
        """The digest of all that was written."""
        self._hashed.update(b"".join(self.parts))
        digits: str = self._hashed.hexdigest()
        return digits


def _error(refused: Refused, name: str) -> UsageTypeError:
    """What the user sees of it; `name` is that of the argument."""
    steps = refused.steps[::-1]
    problem = refused.problem
    if not problem:
        problem = f"nests more than {MAX_DEPTH} levels deep"
        seen = set()
        for depth, holder in enumerate(map(id, reversed(refused.holders))):
            if holder in seen:
                problem = f"holds itself, at {''.join(steps[:depth])}"
                break
            seen.add(holder)
        steps = []
    advice = refused.advice
    leave = "leave it out"
    if name == RESULT_OF_KEY:
        where = "what key= returned"
        leave = "return something else from key=, such as text, numbers or tuples of them"
        advice = advice.replace(", {leave}", ", or {leave}")
    elif name:
        where = f"argument {name!r}"
        leave += f' with ignore=("{name}",), or say with key=lambda ... what counts instead'
    else:
        where = "the value"
    if steps:
        where += f", at {''.join(steps).strip()},"
    advice = advice.format(leave=leave)
    return UsageTypeError(f"{where} {problem}", hint=advice[0].upper() + advice[1:])
