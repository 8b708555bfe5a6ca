"""Typed values of msgspec and pydantic: what is written comes back, by the rules of the library, or is refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from codec_values import same
from hypothesis import given
from hypothesis import strategies as st
from test_codec_typed import Color, Settings, chain_of, comes_back, complaint, read, refusal, stored, thorough

from perdure.errors import UsageError

T = TypeVar("T")

# ---------------------------------------------------------------- msgspec


class Point(msgspec.Struct, rename="camel"):
    x_axis: float
    when: datetime | None = None
    color: Color = Color.RED
    tags: set[str] = set()
    pair: tuple[int, str] = (1, "a")
    data: bytes = b""
    by_id: dict[int, list[int]] = {}
    next: Point | None = None
    amount: Annotated[int, msgspec.Meta(ge=0)] = 0


class Arrays(msgspec.Struct):
    a: np.ndarray
    b: npt.NDArray[np.float64] | None = None
    z: complex = 0j
    anything: Any = None
    sub: Settings | None = None


class Cat(msgspec.Struct, tag=True):
    n: int


class Dog(msgspec.Struct, tag=True):
    n: int


class Crate(msgspec.Struct, Generic[T]):
    inside: T


class Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    a: int


@dataclass
class Mixed:
    point: Point
    pets: list[Cat | Dog]


plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
# JSON has no word for the second of two hours that are called the same.
moments = st.none() | (st.datetimes() | st.datetimes(timezones=st.just(UTC))).map(lambda d: d.replace(fold=0))
points = st.recursive(
    st.builds(
        Point,
        st.floats(),
        moments,
        st.sampled_from(Color),
        st.sets(plain_text, max_size=3),
        st.tuples(st.integers(-(2**63), 2**63), plain_text),
        st.binary(max_size=5),
        st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(-(2**63), 2**63), max_size=2), max_size=2),
    ),
    lambda inner: st.builds(Point, st.floats(), next=inner),
    max_leaves=3,
)


def same_fields(a, b):
    """As `same`, for structs and models; of a time zone only the offset counts."""
    if isinstance(a, datetime):
        return a == b and a.utcoffset() == b.utcoffset()
    fields = getattr(type(a), "__struct_fields__", None) or getattr(type(a), "model_fields", None)
    if fields is None:
        return same(a, b)
    return type(a) is type(b) and all(same_fields(getattr(a, name), getattr(b, name)) for name in fields)


@given(points, st.sampled_from(["msgpack", "json", "pkl"]))
@thorough
def test_a_struct_comes_back(value, codec):
    chain = chain_of(Point, codec)
    assert same_fields(chain.decode(chain.encode(value, "k"), "k"), value)


def test_a_struct_is_stored_as_msgspec_would():
    assert stored(Point(1.5), Point)["xAxis"] == 1.5
    assert stored(Dog(1), Cat | Dog) == {"type": "Dog", "n": 1}
    data = chain_of(Point, "json").encode(Point(1.5, datetime(2024, 1, 1, tzinfo=UTC), data=b"\xff"), "k")
    assert msgspec.json.decode(data, type=Point) == Point(1.5, datetime(2024, 1, 1, tzinfo=UTC), data=b"\xff")


def test_structs_hold_arrays_and_others_hold_structs():
    chain = chain_of(Arrays)
    value = Arrays(np.arange(5), np.ones(20000), 1j, {"a": [1, (2,)]}, Settings(1.0))
    found = chain.decode(chain.encode(value, "k"), "k")
    assert all(same(getattr(found, f), getattr(value, f)) for f in value.__struct_fields__)
    for value, value_type in (
        (Dog(1), Cat | Dog),
        ([Cat(1), Dog(2)], list[Cat | Dog]),
        (Mixed(Point(1.0), [Dog(1)]), Mixed),
        (Crate([1]), Crate[list[int]]),
        (Strict(1), Strict),
    ):
        assert comes_back(value, value_type)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_axis": "fast"}, "Point.xAxis: Expected `float`, got `str`"),
        ({"x_axis": True}, "Point.xAxis: Expected `float`, got `bool`"),
        ({"amount": -1}, "Point.amount: Expected `int` >= 0"),
        ({"next": Point("x")}, "Point.next.xAxis: Expected `float`, got `str`"),
        ({"by_id": {1: [1, "x"]}}, "Point.byId[...][1]: Expected `int`, got `str`"),
        ({"by_id": {"x": []}}, "Point.byId: a key: Expected `int`, got `str`"),
        ({"color": "red"}, "Point.color: 'red' would be read back as <Color.RED: 'red'>"),
        ({"pair": [1, "a"]}, "Point.pair: [1, 'a'] would be read back as (1, 'a')"),
        ({"by_id": {1: (2,)}}, "Point.by_id[1]: (2,) would be read back as [2]"),
        ({"when": datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))}, None),
    ],
)
def test_a_wrong_field_of_a_struct_is_named(changes, says):
    value = Point(1.0)
    for name, part in changes.items():
        setattr(value, name, part)
    if says:
        assert says in refusal(value, Point)
    else:  # JSON would keep the offset and lose the zone
        assert comes_back(value.when, datetime)
        assert "Point.when" in refusal(value, Point, "json")


def test_what_a_struct_may_not_be():
    assert "expected a Point, got {'x_axis': 1.0}" in refusal({"x_axis": 1.0}, Point)
    assert "value.inside: Expected `int`, got `str`" in refusal(Crate("x"), Crate[int])
    assert "Mixed.pets[0].n: Expected `int`, got `str`" in refusal(Mixed(Point(1.0), [Dog("x")]), Mixed)
    assert "Arrays.anything[1]: {2} would be read back as [2]" in refusal(Arrays(np.zeros(1), anything=[1, {2}]), Arrays)
    assert "Point.by_id: Only dicts" in refusal(Point(1.0, by_id={(1, 2): []}), Point, "json")
    with pytest.raises(UsageError, match="Odd"):
        chain_of(msgspec.defstruct("Odd", [("a", Union[Point, Strict])]))  # noqa: UP007  # which msgspec refuses


def test_what_is_stored_as_a_struct_is_checked_by_the_rules_of_msgspec():
    assert read({"xAxis": 1, "unknown": 5}, Point).x_axis == 1.0
    assert "Point.xAxis, as stored: Expected `float`, got `str`" in complaint({"xAxis": "x"}, Point)
    assert "missing required field `xAxis`" in complaint({}, Point)
    assert "Expected `object`, got `int`" in complaint(5, Point)
    assert "unknown field `b`" in complaint({"a": 1, "b": 2}, Strict)
    assert "Arrays.a, as stored: Expected `ndarray`, got `int`" in complaint({"a": 1}, Arrays)


# ---------------------------------------------------------------- pydantic


class Sub(pydantic.BaseModel):
    q: int = 1


class SubSub(Sub):
    z: int = 2


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    x: float = 1.0
    when: datetime | None = None
    color: Color = Color.RED
    tags: set[str] = set()
    pair: tuple[int, str] = (1, "a")
    path: Path | None = None
    url: pydantic.HttpUrl | None = None
    by_id: dict[int, list[int]] = {}
    next: Model | None = None
    sub: Sub = Sub()
    amount: Decimal | None = None
    aliased: int = pydantic.Field(1, alias="ALIAS")
    read_as: int = pydantic.Field(1, validation_alias="READ")
    written_as: int = pydantic.Field(1, serialization_alias="WRITTEN")
    hidden: int = pydantic.Field(1, exclude=True)
    array: np.ndarray | None = None
    anything: Any = None
    _private: int = pydantic.PrivateAttr(3)

    @pydantic.computed_field
    def double(self) -> float:
        return 2 * self.x


class StrictModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    color: Color = Color.RED
    path: Path = Path("x")
    several: tuple[int, ...] = ()
    when: datetime = datetime(2024, 1, 1, tzinfo=UTC)


class Open(pydantic.BaseModel, extra="allow"):
    a: int


class Root(pydantic.RootModel[list[int]]):
    pass


class Case(pydantic.BaseModel, Generic[T]):
    inside: T


class Grabby(pydantic.BaseModel):
    """Its validator changes what it is given."""

    a: int
    b: int = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def _take(cls, data):
        data.pop("b", None)
        return data


@pydantic.dataclasses.dataclass
class Checked:
    a: int
    b: list[int]


@dataclass
class MixedModel:
    model: Model
    subs: list[Sub]


models = st.recursive(
    st.builds(
        Model,
        x=st.floats(),
        when=moments,
        color=st.sampled_from(Color),
        tags=st.sets(plain_text, max_size=3),
        pair=st.tuples(st.integers(-(2**63), 2**63), plain_text),
        path=st.none() | st.just(Path("/a/b")),
        by_id=st.dictionaries(st.integers(-(2**63), 2**63), st.lists(st.integers(-(2**63), 2**63), max_size=2), max_size=2),
        amount=st.none() | st.decimals(allow_nan=False, allow_infinity=False),
        ALIAS=st.integers(0, 5),
        READ=st.integers(0, 5),
        written_as=st.integers(0, 5),
    ),
    lambda inner: st.builds(Model, next=inner),
    max_leaves=3,
)


@given(models, st.sampled_from(["msgpack", "json", "pkl"]))
@thorough
def test_a_model_comes_back(value, codec):
    chain = chain_of(Model, codec)
    assert same_fields(chain.decode(chain.encode(value, "k"), "k"), value)


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    "value", [StrictModel(several=(1,)), Open(a=1, b=[1, 2]), Root([1]), Case[int](inside=1), Checked(1, [2]), Grabby(a=1)]
)
def test_models_of_every_kind_come_back(value, codec):
    chain = chain_of(type(value), codec)
    assert chain.decode(chain.encode(value, "k"), "k") == value


def test_a_model_is_stored_as_plain_data_under_the_names_of_its_fields():
    value = Model(when="2024-01-01T00:00:00+02:00", url="http://a.b", ALIAS=2, READ=3, array=np.arange(3))
    plain = stored(value, Model)
    assert plain["when"] == datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    assert type(plain["when"].tzinfo) is timezone
    assert (plain["color"], plain["url"], plain["aliased"], plain["read_as"]) == ("red", "http://a.b/", 2, 3)
    assert not {"hidden", "double", "_private"} & plain.keys()
    again = stored(read(plain, Model), Model)
    assert same(again, plain)
    assert read({"ALIAS": 7, "READ": 8}, Model).read_as == 8  # as other programs would write it


def test_dataclasses_hold_models():
    chain = chain_of(MixedModel)
    value = MixedModel(Model(x=2.0), [Sub(q=5)])
    assert chain.decode(chain.encode(value, "k"), "k") == value
    assert "MixedModel.model.x: Input should be a valid number" in refusal(
        MixedModel(Model.model_construct(x="a"), []), MixedModel
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": "fast"}, "Model.x: Input should be a valid number"),
        ({"x": "3"}, "Model.x: '3' would be read back as 3.0"),
        ({"next": Model.model_construct(x="fast")}, "Model.next.x: Input should be a valid number"),
        ({"by_id": {1: ["x"]}}, "Model.by_id[1][0]: Input should be a valid integer"),
        ({"sub": SubSub()}, "Model.sub: SubSub(q=1, z=2) would be read back as Sub(q=1)"),
        ({"pair": [1, "a"]}, "Model.pair: [1, 'a'] would be read back as (1, 'a')"),
        ({"anything": Settings(1.0)}, "Model.anything: Settings("),
        ({"anything": object()}, "value['anything'] is of type object"),
    ],
)
def test_a_wrong_field_of_a_model_is_named(changes, says):
    value = Model()
    for name, part in changes.items():
        setattr(value, name, part)
    assert says in refusal(value, Model)


def test_what_a_model_may_not_be():
    assert "expected a Sub, got SubSub(q=1, z=2)" in refusal(SubSub(), Sub)
    assert "expected Case[int], got Case[str](inside='1')" in refusal(Case[str](inside="1"), Case[int])
    assert "Grabby.b: 5 would be read back as 0" in refusal(Grabby.model_construct(a=1, b=5), Grabby)
    assert "Model.array: Unable to serialize" in refusal(Model(array=np.arange(2)), Model, "json")


def test_what_is_stored_as_a_model_is_checked_by_its_own_rules():
    assert read({"x": "3", "unknown": 5}, Model).x == 3.0
    assert "Model.x, as stored: Input should be a valid number" in complaint({"x": "a"}, Model)
    assert "(and 1 more)" in complaint({"x": "a", "sub": {"q": "b"}}, Model)
    assert "Open.a, as stored: Field required" in complaint({}, Open)
    assert "StrictModel.b, as stored: Extra inputs are not permitted" in complaint({"b": 1}, StrictModel)


def test_a_pydantic_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(pydantic, "VERSION", "2.10.6")
    with pytest.raises(UsageError, match=r"pip install -U pydantic"):
        chain_of(Sub)
