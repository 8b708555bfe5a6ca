"""Typed values: what is written comes back exactly, everything else is refused and says which field is wrong.

Classes of msgspec and pydantic: `test_codec_typed_models`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NewType,
    NotRequired,
    Optional,
    Protocol,
    Required,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pytest
from codec_values import ROUNDS, same, text, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from perdure.codecs.chain import Chain
from perdure.codecs.typed import Typed
from perdure.errors import CodecError, UsageError

T = TypeVar("T")
Number = TypeVar("Number", int, float)
Count = NewType("Count", int)


def chain_of(value_type, codec="msgpack"):
    return Chain(Typed(Chain(codec).codec, value_type))


def stored(value, value_type, codec="msgpack"):
    """The plain data that a value is stored as."""
    return Chain(codec).decode(chain_of(value_type, codec).encode(value, "k"), "k")


def comes_back(value, value_type, codec="msgpack"):
    chain = chain_of(value_type, codec)
    found = chain.decode(chain.encode(value, "k"), "k")
    assert found is not value or not isinstance(value, (list, dict, Settings, Node))
    return same(found, value)


def refusal(value, value_type, codec="msgpack"):
    with pytest.raises(CodecError) as caught:
        chain_of(value_type, codec).encode(value, "k")
    assert caught.value.key == "k"
    return str(caught.value)


def complaint(plain, value_type, codec="msgpack"):
    """What reading plain data as that type says."""
    with pytest.raises(CodecError) as caught:
        chain_of(value_type, codec).decode(Chain(codec).encode(plain, "k"), "k")
    assert caught.value.key == "k"
    return str(caught.value)


def read(plain, value_type, codec="msgpack"):
    return chain_of(value_type, codec).decode(Chain(codec).encode(plain, "k"), "k")


# ---------------------------------------------------------------- the types


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Settings:
    lr: float
    name: str = "run"
    steps: int = 10
    tags: list[str] = field(default_factory=list)
    color: Color = Color.RED


@dataclass(frozen=True, slots=True, kw_only=True)
class Hard:
    a: int
    seed: InitVar[int] = 0
    twice: int = field(init=False)
    kind: ClassVar[str] = "hard"

    def __post_init__(self, seed):
        object.__setattr__(self, "twice", 2 * self.a + seed)


@dataclass
class Node:
    value: int
    next: Optional[Node] = None  # noqa: UP045  # as older code spells it
    children: list[Node] = field(default_factory=list)
    same: Self | None = None


@dataclass
class Box(Generic[T]):
    inside: T


@dataclass
class Labelled(Box[list[int]], Generic[T]):
    """Its own T is not that of its base."""

    label: T


@dataclass
class Base:
    a: int


@dataclass
class Derived(Base):
    b: str
    _: KW_ONLY
    c: float = 1.5


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Half(TypedDict, total=False):
    a: Required[int]
    b: str


@dataclass
class Circle:
    r: float
    kind: Literal["circle"] = "circle"


@dataclass
class Square:
    r: float
    kind: Literal["square"] = "square"


@dataclass
class Long:
    r: float
    extra: int = 0


@dataclass
class Short:
    r: float


@dataclass
class Twin:
    r: float


Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


@dataclass
class Document:
    body: Json


@dataclass
class Everything:
    count: Count
    noted: Annotated[int, "a note"]
    final: Final[int]
    choice: Literal["a", 1, Color.RED, None]
    several: tuple[int, ...]
    pair: tuple[int, str]
    empty: tuple[()]
    colors: set[Color]
    frozen: frozenset[int]
    by_color: dict[Color, list[float]]
    sequence: Sequence[int]
    mapping: Mapping[str, Color]
    array: npt.NDArray[np.float64]
    any_array: np.ndarray
    when: datetime
    day: date
    clock: time
    span: timedelta
    amount: Decimal
    id: UUID
    data: bytes
    z: complex
    right: Right
    level: Level
    anything: Any
    thing: object
    movie: Movie
    half: Half
    either: int | str | None
    record: Hard | Document | None
    hards: set[Hard]
    bare: list
    bare_tuple: tuple
    steps: range


everything = Everything(
    Count(1), 2, 3, Color.RED, (1, 2), (1, "a"), (), {Color.RED, Color.GREEN}, frozenset({1}), {Color.RED: [1.0, 2]},
    (1, 2), {"a": Color.GREEN}, np.arange(3.0), np.zeros((2, 20000)), datetime(2024, 1, 1,
    tzinfo=ZoneInfo("Europe/Berlin")), date(2024, 1, 1), time(1, 2), timedelta(1), Decimal("1.10"), UUID(int=5),
    b"\xff\0", 1j, Right.READ | Right.WRITE, Level.HIGH, {1, (2, None)}, [b"x"], {"title": "x"}, {"a": 1, "b": "y"},
    None, Hard(a=1), {Hard(a=1), Hard(a=2)}, [1, "a"], (1, "a"), range(3),
)  # fmt: skip


# ---------------------------------------------------------------- dataclasses


@pytest.mark.parametrize(
    ("value", "value_type"),
    [
        (Settings(0.1, tags=["a"]), Settings),
        (Settings(1), Settings),
        (Hard(a=3, seed=5), Hard),
        (Node(1, Node(2), [Node(3), Node(4, Node(5))], same=Node(6)), Node),
        (Labelled([1], "x"), Labelled[str]),
        (Labelled([1], 2), Labelled),
        (Box(Box(1)), Box[Box[int]]),
        (Box({"a": [Settings(1.0)]}), Box[dict[str, list[Settings]]]),
        (Derived(1, "b", c=2.5), Derived),
        (Document({"a": [1, 2.5, None, True, {"b": []}]}), Document),
        (everything, Everything),
        ([Settings(1.0)], list[Settings]),
        ({"a": 1}, dict[str, int]),
        ({1, (2, None)}, set[Any]),
        ({1: {2}}, dict[Any, Any]),
        ({"title": "x", "year": 1}, Movie),
        (None, Settings | None),
        (5, int),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
@pytest.mark.parametrize("codec", ["msgpack", "pkl"])
def test_a_value_comes_back(value, value_type, codec):
    assert comes_back(value, value_type, codec)


def test_what_is_stored_is_plain_data_that_needs_no_class():
    assert stored(Settings(0.1), Settings) == {"lr": 0.1, "name": "run", "steps": 10, "tags": [], "color": "red"}
    assert stored(Node(1, Node(2)), Node)["next"] == {"value": 2, "next": None, "children": [], "same": None}
    assert stored(Hard(a=1, seed=1), Hard) == {"a": 1, "twice": 3}
    assert b"Settings" not in chain_of(Settings, "pkl").encode(Settings(0.1), "k")
    text = chain_of(Settings, "json").encode(Settings(0.1), "k")
    assert json.loads(text) == {"lr": 0.1, "name": "run", "steps": 10, "tags": [], "color": "red"}
    assert comes_back(Settings(0.1), Settings, "json")


@pytest.mark.parametrize(
    ("value", "value_type", "says"),
    [
        ({"lr": 0.1}, Settings, "value: expected a Settings, got {'lr': 0.1}"),
        (Settings("fast"), Settings, "Settings.lr: expected a float, got 'fast'"),
        (Settings(None), Settings, "Settings.lr: expected a float, got None. Where None is meant, annotate float | None."),
        (Settings(True), Settings, "Settings.lr: expected a float, got True"),
        (Settings(np.float64(1)), Settings, "Settings.lr: expected a float, got np.float64(1.0). Convert it: float(...)."),
        (Settings(1.0, steps=True), Settings, "Settings.steps: expected an int, got True"),
        (Settings(1.0, steps=2.0), Settings, "Settings.steps: expected an int, got 2.0"),
        (Settings(1.0, name=Level.LOW), Settings, "Settings.name: expected a str, got <Level.LOW: 1>"),
        (Settings(1.0, steps=Level.LOW), Settings, "Settings.steps: expected an int, got <Level.LOW: 1>"),
        (Settings(1.0, tags=("a",)), Settings, "Settings.tags: expected list[str], got ('a',)"),
        (Settings(1.0, tags=["a", 5]), Settings, "Settings.tags[1]: expected a str, got 5"),
        (Settings(1.0, color="red"), Settings, "Settings.color: expected a Color, got 'red'"),
        (Node(1, Node(2, Node("x"))), Node, "Node.next.next.value: expected an int, got 'x'"),
        (Node(1, children=[Node(1), Node(2, 5)]), Node, "Node.children[1].next: expected a Node, got 5"),
        (Derived(1, "b"), Base, "expected a Base, got Derived(a=1, b='b', c=1.5). What Derived adds would be lost"),
        (Labelled(["x"], 1), Labelled[int], "value.inside[0]: expected an int, got 'x'"),
        ({"a": {1: "x"}}, dict[str, dict[int, int]], "value['a'][1]: expected an int, got 'x'"),
        ({"a": 1, 2: 1}, dict[str, int], "value key 2: expected a str, got 2"),
        ((1, 2), tuple[int, str], "value[1]: expected a str, got 2"),
        ((1,), tuple[int, str], "value: expected tuple[int, str], got (1,)"),
        ({"title": 1}, Movie, "Movie['title']: expected a str, got 1"),
        ({"year": 1}, Movie, "Movie['title']: it is missing"),
        ({"title": "x", "z": 1}, Movie, "Movie['z']: Movie has no such key"),
        (Circle("x"), Circle | Square, "value.r: expected a float, got 'x'"),
        (5, Circle | Square, "value: expected Circle | Square, got 5"),
        ("x", Literal["a", "b"], "value: expected Literal['a', 'b'], got 'x'"),
        (1, Literal[True], "value: expected Literal[True], got 1"),
        ([], Literal["a"], "value: expected Literal['a'], got []"),
        (np.zeros(2, "f4"), npt.NDArray[np.float64], "value: expected an array of float64, got one of float32"),
        ({Hard(a=1): 1}, dict[Hard, int], "value key Hard(a=1, twice=2): it is stored as a dict"),
        (datetime(2024, 1, 1, tzinfo=UTC), date, "value: expected a date, got datetime"),
        ("abc", Sequence[str], "value: expected Sequence[str], got 'abc'"),
        ({1.5}, set[int], "value member: expected an int, got 1.5"),
        (Right.READ, Level, "value: expected a Level, got <Right.READ: 1>"),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(value, value_type, says):
    message = refusal(value, value_type)
    assert says in message
    assert message.endswith(".")  # a hint


def test_a_field_that_was_never_set_is_named():
    value = Settings(1.0)
    del value.lr
    assert "Settings.lr: it was never set" in refusal(value, Settings)


@pytest.mark.parametrize(
    ("plain", "value_type", "says"),
    [
        (5, Settings, "what is stored: expected the fields of Settings, got 5"),
        ({}, Settings, "Settings.lr, as stored: it is missing, and the field has no default. Give the field a default"),
        ({"lr": "fast"}, Settings, "Settings.lr, as stored: expected a float, got 'fast'"),
        ({"lr": 1.0, "old": 5}, Settings, "Settings.old, as stored: Settings has no such field"),
        ({"lr": 1.0, 5: 5}, Settings, "Settings[5], as stored: Settings has no such field"),
        ({"lr": 1.0, "color": "blue"}, Settings, "Settings.color, as stored: expected a Color, got 'blue'"),
        ({"lr": 1.0, "tags": [1]}, Settings, "Settings.tags[0], as stored: expected a str, got 1"),
        ({"value": 1, "next": {"value": "x"}}, Node, "Node.next.value, as stored: expected an int, got 'x'"),
        ({"r": 1.0, "kind": "oval"}, Circle | Square, "value.kind, as stored: expected Literal["),
        (8, Right, "what is stored: expected a Right, got 8"),
        (["red", "red"], set[Color], "what is stored: a member is stored twice"),
    ],
)
def test_wrong_stored_data_is_refused_and_its_field_named(plain, value_type, says):
    message = complaint(plain, value_type)
    assert f"key 'k': {says}" in message
    assert message.endswith(".")


def test_fields_that_came_later_get_their_defaults_and_a_new_object_each():
    first, second = (read({"lr": 1.0}, Settings) for _ in range(2))
    assert first == Settings(1.0)
    first.tags.append("x")
    assert second.tags == []


def test_a_union_takes_the_class_whose_fields_are_stored():
    assert comes_back(Square(1.0), Circle | Square)
    assert comes_back(Circle(1.0), Circle | Square)
    assert comes_back(Short(1.0), Long | Short)  # although Long would fill its other field from the default
    assert comes_back(Long(1.0), Short | Long)
    assert read({"r": 1.0, "extra": 5}, Short | Long) == Long(1.0, 5)


def test_a_value_that_would_be_taken_for_another_is_refused():
    assert comes_back(Short(1.0), Short | Twin)
    assert "the Twin would be taken for a Short when read. Tell them" not in refusal(Twin(1.0), Short | Twin)
    assert "the Twin would be taken for a Short when read" in refusal(Twin(1.0), Short | Twin)
    assert "the str would be taken for a Color" in refusal("red", Color | str)
    assert comes_back("blue", Color | str)
    maybe = enum.Enum("Maybe", {"NO": None, "YES": 1})
    assert comes_back(maybe.NO, maybe)
    assert "<Maybe.NO: None> would be taken for None" in refusal(maybe.NO, Optional[maybe])  # noqa: UP045
    assert comes_back([], list[int] | list[str])


def test_the_value_that_is_written_is_left_alone():
    value = Node(1, Node(2), [Node(3)])
    before = pickle.dumps(value)
    chain_of(Node).encode(value, "k")
    assert pickle.dumps(value) == before
    lists = {"a": [1, 2]}
    found = read(lists, dict[str, list[int]])
    assert found == lists
    assert found["a"] is not lists["a"]


def test_values_that_contain_themselves_or_are_too_deep_are_refused():
    value = Node(1)
    value.next = value
    assert "contains itself, or is nested too deeply" in refusal(value, Node)


def test_what_is_deep_enough_to_be_written_is_read():
    chain = chain_of(Node)
    value, written = Node(0), 0
    for depth in range(1, 1000):
        value = Node(depth, value)
        if depth % 20:
            continue
        try:
            data = chain.encode(value, "k")
        except CodecError:
            break
        assert chain.decode(data, "k").value == depth
        written = depth
    assert written > 100


@pytest.mark.parametrize(
    ("hint", "says"),
    [
        ("Settings", "'Settings'"),
        (5, "5"),
        (Settings(1.0), "Settings"),
        (list["Node"], "Node"),
        (dataclasses.make_dataclass("Odd", [("bad", "Nowhere")]), "Odd.*Nowhere"),
        (dataclasses.make_dataclass("Odd", [("ok", int), ("bad", list[tuple[int, *tuple[str, ...]]])]), "Odd.bad"),
        (dataclasses.make_dataclass("Odd", [("bad", type("P", (Protocol,), {}))]), "Odd.bad"),
        (dataclasses.make_dataclass("Odd", [("bad", 5)]), "Odd"),
        (dataclasses.make_dataclass("Odd", [("bad", int)], bases=(dict,)), "Odd"),
        (dataclasses.make_dataclass("Odd", [("bad", enum.Enum("E", {"A": float("nan")}))]), "Odd.bad"),
        (dataclasses.make_dataclass("Odd", [("bad", enum.Enum("E", {"A": []}))]), "Odd.bad"),
        (Literal["red", Color.RED], "told from each other"),
    ],
)
def test_what_cannot_be_checked_is_refused_when_opening(hint, says):
    with pytest.raises(UsageError, match=says) as caught:
        chain_of(hint)
    assert "value_type" in str(caught.value)
    assert caught.value.hint


def test_classes_that_are_defined_in_a_function_may_name_themselves():
    @dataclass
    class Local:
        value: int
        next: Local | None = None

    assert comes_back(Local(1, Local(2)), Local)


def test_aliases_may_name_themselves():
    tree = TypeAliasType("tree", "dict[str, tree] | int")
    pairs = TypeAliasType("pairs", list[tuple[T, T]], type_params=(T,))
    globals()["tree"] = tree
    assert comes_back({"a": {"b": 1}}, tree)
    assert "value['a']['b']: expected dict[str, tree] | int, got 'x'" in refusal({"a": {"b": "x"}}, tree)
    assert comes_back([(1, 2)], pairs[int])
    assert "value[0][1]: expected an int, got 'x'" in refusal([(1, "x")], pairs[int])


def test_a_typed_codec_survives_pickling_and_says_what_it_is():
    chain = pickle.loads(pickle.dumps(chain_of(Settings)))
    assert chain.decode(chain.encode(Settings(1.0), "k"), "k") == Settings(1.0)
    assert repr(chain_of(dict[str, Settings | None]).codec).endswith(", dict[str, Settings | None])")
    for attribute in ("name", "id", "safe", "bare", "any_bytes"):
        inside = Chain("pkl").codec
        assert getattr(Typed(inside, Settings), attribute) == getattr(inside, attribute)


@pytest.mark.parametrize(
    "value", [Box((1, 2)), Box(datetime(2024, 1, 1, tzinfo=UTC)), Box(b"x"), Box({1}), Box({1: 2}), Box(np.zeros(2))]
)
def test_json_refuses_in_a_dataclass_what_it_does_not_hold(value):
    assert "value['inside']" in refusal(value, Box[Any], "json")


def test_neither_library_is_imported_or_needed():
    code = """
import sys, dataclasses
sys.modules["msgspec"] = sys.modules["pydantic"] = None
import perdure

@dataclasses.dataclass
class Point:
    x: int

d = perdure.open("memory:", value_type=Point)
d["a"] = Point(1)
assert d["a"] == Point(1)
assert not {"numpy", "jsonpickle"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---------------------------------------------------------------- any type, any value


@dataclass
class Typical:
    """An annotation that hypothesis made up, and values of it."""

    hint: Any
    values: Any = field(repr=False)
    hashable: bool = True
    key: bool = True  # what it is stored as can be hashed
    union: bool = False


leaf_types = st.sampled_from(
    [
        Typical(int, st.integers()),
        Typical(float, st.floats() | st.integers()),
        Typical(str, text),
        Typical(bool, st.booleans()),
        Typical(bytes, st.binary(max_size=5)),
        Typical(None, st.none()),
        Typical(datetime, st.datetimes()),
        Typical(Decimal, st.decimals().filter(lambda d: not d.is_snan())),
        Typical(UUID, st.uuids()),
        Typical(Color, st.sampled_from(Color)),
        Typical(Level, st.sampled_from(Level)),
        Typical(Right, st.sampled_from([Right.READ, Right.WRITE, Right.READ | Right.WRITE, Right(0)])),
        Typical(Literal["a", 1, None], st.sampled_from(["a", 1, None])),
        Typical(Hard, st.builds(Hard, a=st.integers()), key=False),
        Typical(Settings, st.builds(Settings, st.floats(), text, st.integers(), st.lists(text, max_size=2)), False, False),
        Typical(Any, values, False, False),
    ]
)


@st.composite
def made_of(draw, inner):
    part, other = draw(inner), draw(inner)
    both = part.hashable and other.hashable, part.key and other.key, part.union or other.union
    kinds = ["list", "tuple", "pair", "optional", "union", "dataclass"]
    kinds += ["set", "frozenset"] if part.hashable else []
    kinds += ["dict"] if part.key else []
    match draw(st.sampled_from(kinds)):
        case "list":
            return Typical(list[part.hint], st.lists(part.values, max_size=3), False, False, part.union)
        case "tuple":
            several = st.lists(part.values, max_size=3).map(tuple)
            return Typical(tuple[part.hint, ...], several, part.hashable, part.key, part.union)
        case "pair":
            return Typical(tuple[part.hint, other.hint], st.tuples(part.values, other.values), *both)
        case "dict":
            entries = st.dictionaries(part.values, other.values, max_size=3)
            return Typical(dict[part.hint, other.hint], entries, False, False, both[2])
        case "set":
            return Typical(set[part.hint], st.sets(part.values, max_size=3), False, False, part.union)
        case "frozenset":
            return Typical(frozenset[part.hint], st.frozensets(part.values, max_size=3), True, part.hint is int, part.union)
        case "optional":
            values = st.none() | part.values
            return Typical(Optional[part.hint], values, part.hashable, part.key, part.union)  # noqa: UP045
        case "union":
            return Typical(Union[part.hint, other.hint], part.values | other.values, *both[:2], True)  # noqa: UP007
        case _:
            made = dataclasses.make_dataclass("Made", [("first", part.hint), ("second", other.hint)])
            return Typical(made, st.builds(made, part.values, other.values), False, False, both[2])


types = st.recursive(leaf_types, made_of, max_leaves=6)
thorough = settings(max_examples=150 * ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))


@given(st.data(), types, st.sampled_from(["msgpack", "pkl"]))
@thorough
def test_whatever_the_type_its_values_come_back_exactly(data, typical, codec):
    value = data.draw(typical.values)
    try:
        assert comes_back(value, typical.hint, codec)
    except CodecError as error:
        assert typical.union, error
        # or an enum in a union with Any, which takes it first and leaves it to the codec
        assert "would be taken for" in str(error) or "register_type" in str(error)


@given(values, types, st.sampled_from(["msgpack", "json", "pkl"]))
@thorough
def test_whatever_is_written_comes_back_or_is_refused(value, typical, codec):
    try:
        assert comes_back(value, typical.hint, codec)
    except CodecError:
        pass


@given(values, types)
@thorough
def test_whatever_is_stored_is_read_as_what_can_be_written_or_is_refused(plain, typical):
    try:
        value = read(plain, typical.hint)
    except CodecError:
        return
    if not typical.union:
        assert comes_back(value, typical.hint)
