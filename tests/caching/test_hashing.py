"""Two arguments share a digest exactly if they are equal in type and value, wherever and whenever they are hashed."""

from __future__ import annotations

import argparse
import collections
import collections.abc
import copy
import dataclasses
import enum
import fractions
import functools
import json
import logging
import math
import os
import pathlib
import pickle
import random
import re
import subprocess
import sys
import threading
import types
import typing
import uuid
import zoneinfo
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perdure
from perdure.caching.keys.hashing import RESULT_OF_KEY, digest
from perdure.codecs import types as registered
from perdure.errors import UsageTypeError


def d(value, instance=False) -> str:
    return digest((value,), ("x",), "x" if instance else None)


# ------------------------------------------------------------------------------------------------- values of all kinds


class Color(enum.Enum):
    RED = "r"
    ROT = "r"  # noqa: PIE796
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Point:
    x: object
    y: object = 0

    @functools.cached_property
    def far(self):
        return lambda: 1


@dataclasses.dataclass
class Sub(Point):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: object
    y: object = 0


@dataclasses.dataclass
class Lazy:
    x: int
    late: int = dataclasses.field(init=False)
    shared: typing.ClassVar[object] = print


class Pair(typing.NamedTuple):
    x: object
    y: object


class Other(typing.NamedTuple):
    x: object
    y: object


class Keyed:
    def __init__(self, name) -> None:
        self.name = name
        self.lock = threading.Lock()

    def __perdure_key__(self):
        return self.name


class Plain:
    def __init__(self, **held) -> None:
        self.__dict__ |= held

    @functools.cached_property
    def far(self):
        return lambda: 1


class Narrow:
    __slots__ = ("__hidden", "b")

    def __init__(self, a, b=None) -> None:
        self.__hidden = a
        if b is not None:
            self.b = b


T = typing.TypeVar("T")


class Box(typing.Generic[T]):
    pass


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 1, 2, 12)  # noqa: DTZ001

# Each is another argument than all the others.
DIFFERENT = [
    None, False, True, 0, 1, -1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**200, 0.0, -0.0, 1.0, math.inf, math.nan,
    "", "1", "\0", "é", "e\u0301", "\ud800", "\\ud800", "None", b"", b"1", b"\xc0", bytearray(b"1"), memoryview(b"1"),
    memoryview(b"12").cast("H"), 1j, 0j, complex(0, -0.0), complex(math.nan, 1), complex(1, math.nan),
    [], (), [[]], [()], ([],), [1], (1,), [1, 2], [[1], 2], [1, [2]], [[1, 2]], [1, 2, [], []], [1, [2, [], []]],
    ["a", "b"], ["ab"], ["a", None], ["\ud800"], [2**64], [b"\xc1"], {}, {"a": 1}, {"a": {}}, {"a": "b"}, {"b": "a"}, {1: 2},
    {"1": 2}, {1.0: 2}, {True: 2}, {(1,): 2}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1, 1: 2}, {"a": [1], "b": []},
    types.MappingProxyType({"a": 1}), collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1),
    collections.Counter("ab"), collections.Counter(), collections.defaultdict(None, a=1), collections.defaultdict(int, a=1),
    collections.defaultdict(list, a=1), set(), {1}, {1, 2}, {"1"}, {(1,)}, {1, "1"}, {2**64}, {None}, {1.0}, frozenset(),
    frozenset({1}), {frozenset({1})}, collections.deque(), collections.deque([1]), collections.deque([1], 3), range(3),
    range(0, 3, 2), slice(3), slice(1, 3), slice("a", []), ..., Decimal(1), Decimal("1.0"), Decimal("NaN"), Decimal("-0"),
    Decimal("1e50"), fractions.Fraction(1), fractions.Fraction(1, 3), fractions.Fraction(2**70, 3), uuid.UUID(int=1),
    date(2026, 1, 2), time(12), time(12, fold=1), time(12, tzinfo=UTC), NOON, NOON.replace(fold=1), NOON.replace(tzinfo=UTC),
    NOON.replace(tzinfo=zoneinfo.ZoneInfo("UTC")), NOON.replace(tzinfo=BERLIN),
    NOON.replace(tzinfo=timezone(timedelta(hours=1))),
    NOON.replace(tzinfo=timezone(timedelta(hours=1), "CET")), timedelta(1), timedelta(microseconds=1), UTC, BERLIN,
    timezone(timedelta(0), "x"), Color.RED, Color.BLUE, Level.LOW, Bits.A, Bits.A | Bits.B, Bits(0), pathlib.PurePosixPath("a"),
    pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a"), re.compile("a"), re.compile("a", re.IGNORECASE),
    re.compile(b"a"),
    Pair(1, 2), Pair(2, 1), Other(1, 2), Point(1, 2), Point(2, 1), Point("1", 2), Sub(1, 2), Slotted(1, 2), Lazy(1), Keyed("a"),
    Keyed("b"), int, float, Point, Sub, list[int], list[str], typing.Literal["a"], typing.Literal["b"], int | None, int | str,
    typing.Annotated[int, 5], typing.Annotated[int, 6], [Point(1, 2)], {"x": 1, "y": 2}, ["x", "y"], types.SimpleNamespace(),
    types.SimpleNamespace(x=1, y=2), types.SimpleNamespace(x=1, y=[2]), argparse.Namespace(), argparse.Namespace(x=1, y=2),
    types.SimpleNamespace(x=argparse.Namespace(y=1)), types.SimpleNamespace(x=argparse.Namespace(y=2)), logging.getLogger(),
    logging.getLogger("a"), logging.getLogger("a.b"),
]  # fmt: skip


def test_different_arguments_have_different_digests() -> None:
    found: dict[str, object] = {}
    for value in DIFFERENT:
        for instance in (False, True):
            name = d(value, instance)
            assert found.setdefault(name, value) is value, f"{value!r} is taken for {found[name]!r}"
    assert len(found) == len(DIFFERENT)


def test_equal_arguments_have_equal_digests_after_a_copy_and_a_pickle() -> None:
    for value in DIFFERENT:
        if not isinstance(value, (memoryview, Keyed, types.MappingProxyType)):
            assert d(pickle.loads(pickle.dumps(value))) == d(value)
            assert d(copy.deepcopy(value)) == d(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (math.nan, -math.nan),
        ([math.nan, 1.0], [-float("nan"), 1.0]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1, 2: 3}, {2: 3, "a": 1}),
        ({(1, 2): 1, (2,): 0}, {(2,): 0, (1, 2): 1}),
        (collections.Counter("ab"), collections.Counter("ba")),
        ({1, "a", (2,)}, {(2,), "a", 1}),
        (Color.RED, Color.ROT),
        (pathlib.Path("a/b"), pathlib.PurePath("a//b")),
        (typing.Optional[int], int | None),  # noqa: UP045
        (memoryview(b"1234")[::2], memoryview(b"13")),
        ("a" * 1000, "".join(["a"] * 1000)),
        (Decimal("1e500"), Decimal("1E+500")),
    ],
)
def test_what_does_not_count_does_not_count(one, other) -> None:
    assert d(one) == d(other)


def test_the_settings_of_the_thread_do_not_change_a_decimal() -> None:
    expected = d(Decimal("1e500"))
    with localcontext() as context:
        context.capitals = 0
        assert d(Decimal("1e500")) == expected


def test_names_count_and_places_cannot_be_mistaken() -> None:
    calls = [
        ((1, 2), ("a", "b")),
        ((1, 2), ("b", "a")),
        ((1, 2), ("a",)),
        ((1, 2), ()),
        ((1,), ("a",)),
        (((1, 2),), ("a",)),
        (((1, 2),), ()),
        (([1, 2],), ()),
        ((), ()),
        ((1, None), ("a",)),
        ((1, []), ("a",)),
        (([], 1), ("a",)),
        (("a", "b", 1, 2), ()),
    ]
    assert len({digest(values, names) for values, names in calls}) == len(calls)


# ------------------------------------------------------------------------------------------------- random nested values

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, 2**64, 2**63]),
    st.text(max_size=3),
    st.text(st.characters(codec=None, categories=["Cs", "L"]), max_size=2),
    st.binary(max_size=3),
)
_keys = st.recursive(_scalars, lambda inner: st.one_of(st.tuples(inner), st.frozensets(inner, max_size=3)), max_leaves=4)
_nested = st.recursive(
    st.one_of(_scalars, _keys),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(_keys, inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(collections.OrderedDict),
        st.lists(inner, max_size=2).map(collections.deque),
        st.sets(_keys, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Slotted, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=12,
)


def same(one, other) -> bool:
    """Whether two values are equal in type as well, written without a thought of how they are encoded."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one != one and other != other) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if isinstance(one, collections.OrderedDict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, dict):
        return same_members(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return same_members(list(one), list(other))
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (Point, Slotted)):
        return same(one.x, other.x) and same(one.y, other.y)
    return one == other


def same_members(one, other) -> bool:
    left = list(other)
    for member in one:
        at = next((at for at, there in enumerate(left) if same(member, there)), None)
        if at is None:
            return False
        del left[at]
    return not left


@given(_nested, _nested)
@settings(max_examples=1500, deadline=None)
def test_two_values_share_a_digest_exactly_if_they_are_the_same(one, other) -> None:
    assert (d(one) == d(other)) == same(one, other)
    assert (digest((one, other)) == digest((other, one))) == same(one, other)


def nudged(value, draw):
    """The value with one thing in it changed; what cannot be changed is given back as another type."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return type(value)([*value[:at], nudged(value[at], draw), *value[at + 1 :]])
    if type(value) is dict and value and draw(st.booleans()):
        key = draw(st.sampled_from(list(value)))
        return {**value, key: nudged(value[key], draw)}
    return draw(st.sampled_from([[value], (value,), str(value), None, {"a": value}, Point(value), {"": value, "\0": value}]))


@given(_nested, st.data())
@settings(max_examples=800, deadline=None)
def test_a_small_change_is_another_digest(value, data) -> None:
    changed = nudged(value, data.draw)
    assert (d(value) == d(changed)) == same(value, changed)


def shuffled(value):
    """The same value with every dict and set filled in another order."""
    if type(value) in (list, tuple):
        return type(value)(map(shuffled, value))
    if type(value) is dict:
        items = [(shuffled(key), shuffled(part)) for key, part in value.items()]
        random.Random(len(items)).shuffle(items)
        return dict(items)
    if type(value) in (set, frozenset):
        return type(value)(sorted(map(shuffled, value), key=repr))
    return value


@given(_nested)
@settings(max_examples=500, deadline=None)
def test_a_copy_a_pickle_and_another_order_are_the_same(value) -> None:
    expected = d(value)
    assert d(pickle.loads(pickle.dumps(value))) == expected
    assert d(copy.deepcopy(value)) == expected
    assert d(shuffled(value)) == expected


# ------------------------------------------------------------------------------------------------- objects and instances


def test_all_that_a_dataclass_holds_counts_but_cached_properties() -> None:
    one, other, more = Point(1), Point(1), Point(1)
    assert one.far is not None
    more.extra = 1
    assert d(one) == d(other) != d(more)
    late = Lazy(1)
    late.late = 2
    assert d(late) != d(Lazy(1))


def test_a_plain_object_counts_as_an_instance_only() -> None:
    with pytest.raises(UsageTypeError):
        d(Plain(a=1))
    one = Plain(a=1, b=[Plain()])
    assert d(one, True) == d(Plain(b=[Plain()], a=1), True) != d(Plain(a=1, b=[Plain(c=1)]), True)
    expected = d(one, True)
    assert one.far is not None
    assert d(one, True) == expected
    assert digest((one, 1), ("self", "x"), "self") != digest((Plain(a=1), 1), ("self", "x"), "self")
    with pytest.raises(UsageTypeError, match="argument 'x' is of type"):
        digest((one, one), ("self", "x"), "self")


def test_slots_count_as_well_hidden_or_unset() -> None:
    found = [d(Narrow(1), True), d(Narrow(2), True), d(Narrow(1, 2), True), d(Narrow(1, None), True)]
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_what_a_generic_object_was_made_by_counts() -> None:
    assert d(Box[int](), True) != d(Box[str](), True)
    assert d(Box[int](), True) == d(Box[int](), True)


def test_a_key_of_its_own_takes_the_place_of_the_content() -> None:
    assert d(Keyed("a")) == d(Keyed("a")) == d(Keyed("a"), True)

    class Local(Keyed):
        pass

    assert d(Local("a")) != d(Keyed("a"))


def test_a_registered_type_is_its_registered_form(monkeypatch) -> None:
    monkeypatch.setattr(registered, "_classes", dict(registered._classes))
    monkeypatch.setattr(registered, "_encoders", dict(registered._encoders))

    class Local:
        def __init__(self, content) -> None:
            self.content = content

    with pytest.raises(UsageTypeError):
        d(Local([1]))
    perdure.register_type(Local, "local", lambda value: value.content, Local)
    assert d(Local([1])) == d(Local([1])) != d(Local([2]))
    with pytest.raises(UsageTypeError, match=re.escape("argument 'x', at ['a'][0], is of type function")):
        d(Local({"a": [nudged]}))
    one = d(Local([1]))
    registered._classes.clear()
    perdure.register_type(Local, "moved", lambda value: value.content, Local)
    assert d(Local([1])) != one


def test_models_of_other_packages_are_class_and_fields() -> None:
    msgspec = pytest.importorskip("msgspec")
    pydantic = pytest.importorskip("pydantic")
    struct = msgspec.defstruct("S", [("x", int), ("y", object, None)], module="m")
    other = msgspec.defstruct("S2", [("x", int), ("y", object, None)], module="m")
    model = pydantic.create_model("M", x=(int, ...), y=(object, None), __module__="m")
    loose = pydantic.create_model("L", x=(int, ...), __config__=pydantic.ConfigDict(extra="allow"), __module__="m")
    private = pydantic.create_model("P", x=(int, ...), _p=(int, pydantic.PrivateAttr(1)), __module__="m")
    changed = private(x=1)
    changed._p = 2
    values = [struct(1), struct(2), other(1), model(x=1), model(x=2), loose(x=1), loose(x=1, z=1), private(x=1), changed]
    assert len({d(value) for value in values}) == len(values)
    assert d(struct(1, None)) == d(struct(1))
    assert d(model(x=1, y=None)) == d(model(x=1))
    with pytest.raises(UsageTypeError, match=re.escape("argument 'x', at .y[0], is of type")):
        d(struct(1, [print]))
    with pytest.raises(UsageTypeError, match=re.escape("argument 'x', at .y, is of type")):
        d(model(x=1, y=print))


# ------------------------------------------------------------------------------------------------- what is refused


class Names(list):
    pass


class Text(str):
    __slots__ = ()


class Loader:
    def __init__(self) -> None:
        self.source = open(os.devnull)  # noqa: SIM115


class Local:
    @staticmethod
    def made():
        class Inner(enum.Enum):
            A = 1

        return Inner


def generator():
    yield 1


def itself():
    value = {"a": [1]}
    value["a"].append(value)
    return value


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


LEAVE = 'leave it out with ignore=("config",), or say with key=lambda ... what counts instead.'
NOTHING = f"and no key can be made of it. L{LEAVE[1:]}"
UNKNOWN = f"and it is unknown what of it counts. Make the class a dataclass, give it a method __perdure_key__(), {LEAVE}"
MORE = f"that may hold more than that. Pass a plain {{}}, give the class a method __perdure_key__(), {LEAVE}"
BAD = [
    (lambda: generator, f"argument 'config' is of type function, {NOTHING}"),
    (lambda: {"a": [1, lambda: 1]}, f"argument 'config', at ['a'][1], is of type function, {NOTHING}"),
    (lambda: [print], f"argument 'config', at [0], is of type builtin_function_or_method, {NOTHING}"),
    (lambda: [].append, f"argument 'config' is of type builtin_function_or_method, {NOTHING}"),
    (generator, f"argument 'config' is of type generator, {NOTHING}"),
    (lambda: open(os.devnull), f"argument 'config' is of type _io.TextIOWrapper, {NOTHING}"),  # noqa: SIM115
    (lambda: Point(1, threading.Lock()), f"argument 'config', at .y, is of type {{lock}}, {NOTHING}"),
    (lambda: Pair(1, {1: object()}), f"argument 'config', at .y[1], is of type object, {NOTHING}"),
    (lambda: {(1, print): 2}, f"argument 'config', at (a key)[1], is of type builtin_function_or_method, {NOTHING}"),
    (lambda: {"a": {print}}, f"argument 'config', at ['a']{{{{...}}}}, is of type builtin_function_or_method, {NOTHING}"),
    (lambda: math, f"argument 'config' is of type module, {NOTHING}"),
    (lambda: random.Random(1), f"argument 'config' is of type random.Random, {NOTHING}"),
    (lambda: ValueError("x"), f"argument 'config' is of type ValueError, {NOTHING}"),
    (lambda: Loader(), f"argument 'config' is of type {__name__}.Loader, {UNKNOWN}"),
    (lambda: Names(), f"argument 'config' is of type {__name__}.Names, a subclass of list {MORE.format('list')}"),
    (lambda: [Text("a")], f"argument 'config', at [0], is of type {__name__}.Text, a subclass of str {MORE.format('str')}"),
    (itself, f"argument 'config' holds itself, at ['a'][1]. Pass something flatter, {LEAVE}"),
    (lambda: deep(150), f"argument 'config' nests more than 150 levels deep. Pass something flatter, {LEAVE}"),
    (
        lambda: collections.defaultdict(lambda: 1),
        f"argument 'config', at .default_factory, is of type function, {NOTHING}",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), BAD)
def test_an_argument_that_cannot_count_is_named_with_the_path_to_it(make, text) -> None:
    lock = type(threading.Lock())
    with pytest.raises(UsageTypeError) as caught:
        digest((1, make()), ("x", "config"))
    assert str(caught.value) == text.format(lock=f"{lock.__module__}.{lock.__qualname__}")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_an_attribute_of_self_is_named_too() -> None:
    with pytest.raises(UsageTypeError) as caught:
        digest((Plain(loader={"loader": Loader()}), 1), ("self", "x"), "self")
    assert str(caught.value).startswith(
        "argument 'self', at .loader['loader'].source, is of type _io.TextIOWrapper, and no key"
    )
    assert 'ignore=("self",)' in str(caught.value)
    for state in (random.Random(1), object(), threading.Condition()):
        with pytest.raises(UsageTypeError, match=r"argument 'self', at \.state"):
            digest((Plain(state=state),), ("self",), "self")


def test_an_instance_that_holds_itself_is_refused() -> None:
    node = Plain()
    node.next = [node]
    with pytest.raises(UsageTypeError, match=re.escape("argument 'self' holds itself, at .next[0].")):
        digest((node,), ("self",), "self")


def test_what_nests_up_to_the_limit_is_taken() -> None:
    assert d(deep(149)) != d(deep(148))


def test_a_call_from_far_down_the_stack_is_refused_and_not_broken() -> None:
    def down(levels):
        return d(deep(140)) if levels == 0 else down(levels - 1)

    with pytest.raises(UsageTypeError, match="nests too deep to be followed from where it is called"):
        down(sys.getrecursionlimit() - 250)


# ------------------------------------------------------------------------------------------------- other processes

GOLDEN = {
    "1": ((1,), ("x",)),
    "text 3 true": (("text", 3, True), ("name", "count", "flag")),
    "scalars": ((None, False, -1, 2**63, 1.5, math.nan, -0.0, "é", b"\0"), ()),
    "odd scalars": ((2**64, -(2**80), "\ud800"), ()),
    "containers": (([1, "a"], (1, [2]), {"b": 1, "a": [2]}, {1: 2, "a": (3,)}, {3, 1, 2}, frozenset({"b", "a"}), {1, "a"}), ()),
    "collections": (
        (
            collections.OrderedDict(b=1, a=2),
            collections.Counter("aab"),
            collections.defaultdict(list, a=[1]),
            collections.deque([1], 2),
            types.MappingProxyType({"a": 1}),
            range(1, 9, 2),
            slice(1, None),
            ...,
            bytearray(b"ab"),
            memoryview(b"ab"),
        ),
        (),
    ),
    "numbers": ((1j, Decimal("1.10"), Decimal("1e500"), fractions.Fraction(1, 3), uuid.UUID(int=5)), ()),
    "times": (
        (
            date(2026, 1, 2),
            time(1, 2, 3, 4),
            NOON,
            NOON.replace(tzinfo=BERLIN, fold=1),
            NOON.replace(tzinfo=timezone(timedelta(hours=1), "x")),
            timedelta(1, 2, 3),
            UTC,
        ),
        (),
    ),
    "names": (
        (pathlib.Path("a/b"), pathlib.PureWindowsPath("a/b"), re.compile("a", re.IGNORECASE), int, dict),
        (),
    ),
    "namespaces": (
        (types.SimpleNamespace(b=[1], a=argparse.Namespace(x=1)), argparse.Namespace(), logging.getLogger("a.b")),
        (),
    ),
    "types": (
        (list[int], int | None, typing.Literal["a"], typing.Annotated[int, 5], collections.abc.Callable[[int], str]),
        (),
    ),
}
EXPECTED = {
    "1": "d7f2e16a1628332537419e553c26ad44",
    "text 3 true": "a9c8905db05059de150f19430734908d",
    "scalars": "725ebf2ca06c463f2f343c392d3f366b",
    "odd scalars": "3fb5bf06699a581173c0269b230ef343",
    "containers": "eadd68a13458d38da14c66fa5e8ea698",
    "collections": "44594be315576ad40a50e5631a339b3a",
    "numbers": "6522f42792869788fe6a07c58f669c70",
    "times": "61df413fa6c9abd841ebb239783a401b",
    "names": "ce51099254c4fce27c469ae1ac3ba39f",
    "namespaces": "b3999892b0f02269fcd9a552c9164015",
    "types": "0672f097a91dc59b26244df3e0426d2b",
}


def test_digests_are_the_same_in_every_version_of_python() -> None:
    # If this fails, every stored result is forgotten: do not change these, but what made them change.
    assert {name: digest(*call) for name, call in GOLDEN.items()} == EXPECTED


def test_objects_have_the_same_digest_in_every_version_of_python(monkeypatch) -> None:
    for kind in (Point, Slotted, Pair, Color, Bits, Plain):
        monkeypatch.setattr(kind, "__module__", "golden")
    monkeypatch.setitem(sys.modules, "golden", sys.modules[__name__])
    value = [Point(1, [Slotted("a")]), Pair(1, Color.ROT), Bits.A | Bits.B, Point]
    assert digest((value, Plain(a=1)), ("x", "self"), "self") == "3c7554e2f0ea9e3bc9058cf2ed44be2b"


PROGRAM = """
import dataclasses, enum, json, sys
from perdure.caching.keys.hashing import digest

@dataclasses.dataclass
class Config:
    a: object

class Kind(enum.Enum):
    A = 1

strings = [chr(97 + n) * 3 for n in range(20)]
values = [
    set(strings), frozenset(strings), {text: 1 for text in strings}, {(text, 1): 2 for text in strings}, {*strings, 1, None},
    Config({*strings}), Kind.A, Config, {Kind.A: {"a", "b"}}, [{"x": {text} for text in strings}],
]
print(json.dumps([digest((value,), ("x",)) for value in values]))
"""


def test_other_processes_and_versions_agree_whatever_their_hash_seed(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    source = pathlib.Path(perdure.__file__).parents[1]
    found = []
    pythons = [sys.executable, sys.executable, "/tmp/v3.12.1/bin/python", "/tmp/v3.13.0/bin/python"]
    for seed, python in enumerate(pythons):
        if pathlib.Path(python).exists():
            env = {**os.environ, "PYTHONHASHSEED": str(seed + 1), "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run([python, program], env=env, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    assert found[1:] == found[:1] * (len(found) - 1)


def test_classes_that_their_name_does_not_lead_to_count_by_their_content() -> None:
    def made(**content):
        return type("Kind", (), content)

    def frozen(unit, parts=()):
        @dataclasses.dataclass(frozen=True)
        class Local:
            x: int
            UNIT = unit
            PARTS = parts

            def twice(self):
                return self.x * 2

        return Local

    kinds = [made(K=1), made(K=2), made(K=1.0), made(K=(1,)), made(K=Decimal(1)), made(), made(run=lambda self: 1)]
    kinds += [made(run=lambda self: 2), made(run=dataclasses.astuple), made(run=dataclasses.asdict)]
    kinds += [frozen("m"), frozen("km"), frozen("m", (1, (2,))), frozen("m", (enum.Enum("A", "B"),))]
    kinds += [enum.Enum("Kind", {"A": 1}), enum.Enum("Kind", {"A": 2}), enum.Enum("Kind", {"B": 1})]
    assert len({digest((kind,)) for kind in kinds}) == len(kinds)
    assert digest((made(K=1),)) == digest((made(K=1),))
    assert digest((frozen("m")(1),)) == digest((frozen("m")(1),)) != digest((frozen("km")(1),))
    assert digest((made(K=1)(),), ("self",), "self") != digest((made(K=2)(),), ("self",), "self")
    assert digest((collections.namedtuple("Kind", "a")(1),)) == digest((collections.namedtuple("Kind", "a")(1),))


def test_classes_that_hold_each_other_have_an_end_and_no_first_one() -> None:
    def pair():
        @dataclasses.dataclass(frozen=True)
        class One:
            x: int

            def default(self):
                return default_one, Other

        @dataclasses.dataclass(frozen=True)
        class Other:
            def one(self):
                return One, only_other

        default_one, only_other = One(1), Other()
        return One, Other

    one, other = pair()
    found = digest((one,)), digest((other,))
    one, other = pair()
    assert (digest((other,)), digest((one,))) == found[::-1]


def test_what_key_returned_is_called_that() -> None:
    for value in ([object()], {"a": len}):
        with pytest.raises(UsageTypeError) as caught:
            digest((value,), (RESULT_OF_KEY,))
        assert str(caught.value).startswith("what key= returned, at [")
        assert "eturn something else from key=, such as text" in str(caught.value)
        assert "ignore" not in str(caught.value)
