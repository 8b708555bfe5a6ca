"""What checks the parts of a typed value, makes them plain, and builds them again; those with fields are in `records`.

Made plain are a dataclass (a dict of its fields), an enum (its value), and a set of anything but scalars (a list). All else is
handed on as it is, so that the codec inside decides whether and how it holds it. Nothing is converted: what does not have the
annotated type is refused, in both directions; only an int may stand where a float is asked for, and stays one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from reprlib import Repr
from typing import Any, Final, TypeAlias

from ..errors import UsageError

__all__ = [
    "Form",
    "Misfit",
    "Turn",
    "any_form",
    "array_form",
    "choice_form",
    "dict_form",
    "exact_form",
    "expected",
    "flag_form",
    "instance_form",
    "several_form",
    "show",
    "tuple_form",
    "union_form",
]

Turn: TypeAlias = Callable[[Any], Any]

_WIDER: Final = {float: {float, int}, complex: {complex, float, int}}
_NO_TYPES: Final[frozenset[type]] = frozenset()

_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
show = _repr.repr


class Misfit(Exception):
    """A part that does not have the annotated type. Collects the path to it on the way out."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.path = ""

    def under(self, step: str) -> Misfit:
        self.path = step + self.path
        return self


def expected(name: str, got: Any, hint: str | None = None) -> Misfit:
    article = "" if not name.isidentifier() or name == "None" else "an " if name[0] in "aeiouAEIO" else "a "
    if got is None and hint is None:
        hint = f"Where None is meant, annotate {name} | None."
    return Misfit(f"expected {article}{name}, got {show(got)}", hint)


class Form:
    """How values of one annotation are made plain and built again. Does not change once made; safe to share between threads.

    Attributes:
        name: For messages.
        to_plain: From a value to plain data; raises `Misfit`.
        from_plain: From plain data, which it may take over, to a value; raises `Misfit`.
        exact: Where a value is its own plain data, and its type alone says whether it fits: the types that do. Else empty.
        fields: Of what is made a dict of fields, their names.
    """

    __slots__ = ("exact", "fields", "from_plain", "name", "to_plain")

    def __init__(
        self,
        name: str,
        to_plain: Turn,
        from_plain: Turn,
        exact: frozenset[type] = _NO_TYPES,
        fields: AbstractSet[str] | None = None,
    ) -> None:
        self.name = name
        self.to_plain = to_plain
        self.from_plain = from_plain
        self.exact = exact
        self.fields = fields


# ---------------------------------------------------------------- parts without parts


def _same(value: Any) -> Any:
    return value


any_form: Final = Form("Any", _same, _same)


def exact_form(cls: type[Any]) -> Form:
    """Of exactly this type: a subclass would not come back as one."""
    kinds = frozenset(_WIDER.get(cls, {cls}))
    name = "None" if cls is type(None) else cls.__name__

    def check(value: Any) -> Any:
        if type(value) in kinds:
            return value
        raise expected(name, value, f"Convert it: {name}(...)." if isinstance(value, cls) else None)

    return Form(name, check, check, kinds)


def instance_form(cls: type[Any]) -> Form:
    def check(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        raise expected(cls.__name__, value)

    return Form(cls.__name__, check, check)


def array_form(name: str, cls: type[Any], scalar: type[Any]) -> Form:
    def check(value: Any) -> Any:
        if not isinstance(value, cls):
            raise expected(name, value)
        if not issubclass(value.dtype.type, scalar):
            raise Misfit(f"expected an array of {scalar.__name__}, got one of {value.dtype}", "Convert it with astype(...).")
        return value

    return Form(name, check, check)


def choice_form(name: str, choices: Iterable[Any], where: str) -> Form:
    """Members of an enum, or what a Literal lists; a member is stored as its value."""
    plain_of = {(type(c), c): c.value if isinstance(c, enum.Enum) else c for c in choices}
    choice_of = {(type(plain), plain): choice for (_, choice), plain in plain_of.items()}
    if len(choice_of) < len(plain_of) or any(plain != plain for _, plain in choice_of):
        problem = f"value_type: {where}: the members of {name} cannot be told from each other by their values"
        raise UsageError(problem, hint="Those are what is stored, so give each member a value of its own.")

    def turn(table: dict[Any, Any]) -> Turn:
        def look_up(value: Any) -> Any:
            try:
                return table[type(value), value]
            except (KeyError, TypeError):  # TypeError: it cannot be hashed
                raise expected(name, value) from None

        return look_up

    return Form(name, turn(plain_of), turn(choice_of))


def flag_form(cls: type[enum.Flag]) -> Form:
    def to_plain(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(cls.__name__, value)
        return value.value

    def from_plain(plain: Any) -> Any:
        try:
            value = cls(plain) if type(plain) is int else None
        except ValueError:
            value = None
        if not isinstance(value, cls) or value.value != plain:
            raise expected(cls.__name__, plain)
        return value

    return Form(cls.__name__, to_plain, from_plain)


# ---------------------------------------------------------------- containers


def _plain_already(part: Form) -> Callable[[Iterable[Any]], bool]:
    """What tells, at the speed of C, that nothing has to be done about any of several parts."""
    if part is any_form:
        return lambda parts: True
    exact = part.exact
    return (lambda parts: exact.issuperset(map(type, parts))) if exact else lambda parts: False


def several_form(name: str, kinds: list[type[Any]], part: Form) -> Form:
    """Lists, tuples of any length, sets. Of the kinds, all are lists and tuples, or all are sets."""
    plain_already = _plain_already(part)
    as_list = kinds[-1] in (set, frozenset) and not (part.exact or part is any_form)  # what is plain need not be hashable
    allowed = frozenset(kinds[:1] if as_list else kinds)
    plain_kinds = frozenset({list}) if as_list else allowed

    def turn(kinds: frozenset[type[Any]], turn_part: Turn, make: type[Any] | None) -> Turn:
        def check(value: Any) -> Any:
            if type(value) not in kinds:
                raise expected(name, value)
            if plain_already(value):
                return value
            parts: list[Any] = []
            try:
                for item in value:
                    parts.append(turn_part(item))  # noqa: PERF401  # their number is the index of what does not fit
            except Misfit as error:
                error.under(f"[{len(parts)}]" if type(value) in (list, tuple) else " member")
                raise
            made = (make or type(value))(parts)
            if len(made) != len(parts):
                raise Misfit(f"a member is stored twice, and a {name} has each once")
            return made

        return check

    return Form(
        name,
        turn(allowed, part.to_plain, list if as_list else None),
        turn(plain_kinds, part.from_plain, kinds[0] if as_list else None),
    )


def tuple_form(name: str, parts: list[Form]) -> Form:
    """Tuples of one length, each place with a type of its own."""

    def turn(turns: list[Turn]) -> Turn:
        def check(value: Any) -> Any:
            if type(value) is not tuple or len(value) != len(turns):
                raise expected(name, value)
            done: list[Any] = []
            try:
                for turn_part, item in zip(turns, value, strict=True):
                    done.append(turn_part(item))
            except Misfit as error:
                error.under(f"[{len(done)}]")
                raise
            return tuple(done)

        return check

    return Form(name, turn([part.to_plain for part in parts]), turn([part.from_plain for part in parts]))


def dict_form(name: str, key: Form, part: Form) -> Form:
    keys_plain, parts_plain = _plain_already(key), _plain_already(part)

    def turn(turn_key: Turn, turn_part: Turn) -> Turn:
        def check(value: Any) -> Any:
            if type(value) is not dict:
                raise expected(name, value)
            if keys_plain(value) and parts_plain(value.values()):
                return value
            done = {}
            for k, item in value.items():
                try:
                    k_done = turn_key(k)
                    hash(k_done)
                except Misfit as error:
                    error.under(f" key {show(k)}")
                    raise
                except TypeError as error:
                    raise Misfit("it is stored as a dict or list, which cannot be a key").under(f" key {show(k)}") from error
                try:
                    done[k_done] = turn_part(item)
                except Misfit as error:
                    error.under(f"[{show(k)}]")
                    raise
            if len(done) != len(value):
                raise Misfit("two of its keys are stored as the same one")
            return done

        return check

    return Form(name, turn(key.to_plain, part.to_plain), turn(key.from_plain, part.from_plain))


def union_form(name: str, parts: list[Form]) -> Form:
    """The first part that fits; when writing, only if it is also the first one that fits when reading."""
    if all(part.exact for part in parts):
        exact = frozenset().union(*(part.exact for part in parts))

        def check(value: Any) -> Any:
            if type(value) in exact:
                return value
            raise expected(name, value)

        return Form(name, check, check, exact)
    only_none = frozenset({type(None)})
    if len(parts) == 2 and any(part.exact == only_none for part in parts):
        (other,) = [part for part in parts if part.exact != only_none]

        def or_none(value: Any) -> Any:
            if value is None:
                return None
            plain = other.to_plain(value)
            if plain is None:
                raise Misfit(f"{show(value)} would be taken for None when read", "Give it another value than None.")
            return plain

        return Form(name, or_none, lambda plain: None if plain is None else other.from_plain(plain))

    def fitting(value: Any, parts: list[Form], how: str) -> tuple[Form, Any]:
        deepest = expected(name, value)
        for part in parts:
            try:
                return part, getattr(part, how)(value)
            except Misfit as error:
                if error.path and not deepest.path:
                    deepest = error
        raise deepest

    def of_plain(plain: Any) -> tuple[Form, Any]:
        # Those with exactly these fields before those that would fill some from their defaults.
        fields = plain.keys() if type(plain) is dict else None
        return fitting(plain, sorted(parts, key=lambda part: part.fields is None or part.fields != fields), "from_plain")

    def to(value: Any) -> Any:
        part, plain = fitting(value, parts, "to_plain")
        taken_for, _ = of_plain(part.to_plain(value))  # another one, because what is plain may be taken over
        if taken_for is not part:
            hint = "Annotate them so that they can be told apart"
            hint += "." if part.fields is None else f", such as by a field `kind: Literal[{part.name.lower()!r}]` in each."
            raise Misfit(f"the {part.name} would be taken for a {taken_for.name} when read", hint)
        return plain

    return Form(name, to, lambda plain: of_plain(plain)[1])
