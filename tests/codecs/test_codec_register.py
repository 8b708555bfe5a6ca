from __future__ import annotations

import collections
import enum
from dataclasses import dataclass, field

import numpy as np
import pytest
from codec_values import same

import perdure
from perdure.codecs import types
from perdure.codecs.chain import Chain
from perdure.errors import CodecError, UsageError

chain = Chain()


def again(value):
    return chain.decode(chain.encode(value, "k"), "k")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What one test registers is not known in the next."""
    monkeypatch.setattr(types, "_classes", dict(types._classes))
    monkeypatch.setattr(types, "_encoders", dict(types._encoders))


@dataclass
class Point:
    x: int
    y: object = None
    tags: list = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frozen:
    a: int


class Color(enum.Enum):
    RED = "r"
    ROT = "r"  # noqa: PIE796
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


Pair = collections.namedtuple("Pair", "left right")


def test_dataclasses_enums_and_named_tuples_need_no_more_than_the_class():
    for cls in (Point, Frozen, Color, Level, Access, Pair):
        assert perdure.register_type(cls) is cls
    values = [
        Point(1, [2**70], [bytearray(b"\xc4")]),
        Frozen(2),
        Color.ROT,
        Level.LOW,
        Access.READ | Access.WRITE,
        Pair(1, (2,)),
    ]
    assert same(again(values), values)
    assert again(Color.RED) is Color.RED
    keyed = {Level.LOW: 1, Color.BLUE: {Pair(1, 2): Frozen(3)}, Frozen(1) if Frozen.__hash__ else 0: 5}
    assert same(again(keyed), keyed)
    large = [Point(1, np.arange(20000)), Point(2, (np.arange(20000.0),))]
    assert same(again(large), large)


def test_as_a_decorator():
    @perdure.register_type
    @dataclass
    class A:
        a: int

    @perdure.register_type(name="app.B")
    @dataclass
    class B:
        a: A

    assert again(B(A(1))) == B(A(1))
    assert b"app.B" in chain.encode(B(A(1)), "k")


def test_a_frozen_dataclass_is_restored_without_its_init():
    calls = []

    @perdure.register_type
    @dataclass(frozen=True)
    class Counted:
        a: int
        b: int = field(init=False, default=0)

        def __post_init__(self):
            calls.append(self)
            object.__setattr__(self, "b", self.a * 2)

    value = Counted(4)
    assert again(value) == value
    assert len(calls) == 1


def test_own_functions():
    perdure.register_type(
        collections.OrderedDict, encode=lambda d: list(d.items()), decode=lambda items: collections.OrderedDict(items)
    )
    value = [collections.OrderedDict([("b", 1), (2, bytearray(b"x"))])]
    assert same(again(value), value)


def test_state_that_is_not_exact_is_found_inside():
    class Box:
        def __init__(self, inside):
            self.inside = inside

        def __eq__(self, other):
            return same(self.inside, other.inside)

        def __repr__(self):
            return "Box"

        __hash__ = None

    perdure.register_type(Box, encode=lambda b: b.inside, decode=Box)
    for inside in (bytearray(b"x"), {1: 2}, {Level: 1} and {(1, 2): bytearray(b"\xc6")}, "\ud800", 2**90, b"\xc4\xc5"):
        assert again([Box(inside)]) == [Box(inside)]
        assert again({1: Box(inside)}) == {1: Box(inside)}
        assert again((Box(Box(inside)),)) == (Box(Box(inside)),)
    with pytest.raises(CodecError, match="Level"):
        chain.encode(Box({Level.LOW: 1}), "k")
    with pytest.raises(CodecError, match="object"):
        chain.encode({1: [Box({2: object()})]}, "k")


def test_a_subclass_has_to_be_registered_itself():
    perdure.register_type(Point)

    class Point3(Point):
        pass

    with pytest.raises(CodecError, match=r"value\['p'\] is of type .*Point3"):
        chain.encode({"p": Point3(1)}, "k")


def test_fields_that_come_and_go():
    perdure.register_type(Point, name="p")
    data = chain.encode(Point(1, 2, [3]), "k")

    @dataclass
    class More:
        x: int
        y: int
        tags: list
        extra: list = field(default_factory=lambda: ["new"])
        other: int = 7

    types._classes.pop("p")
    perdure.register_type(More, name="p")
    assert chain.decode(data, "k") == More(1, 2, [3], ["new"], 7)

    @dataclass
    class Less:
        x: int

    types._classes.pop("p")
    perdure.register_type(Less, name="p")
    with pytest.raises(CodecError, match="has the fields 'tags', 'y', which the class has no more"):
        chain.decode(data, "k")

    @dataclass
    class Lacking:
        x: int
        y: int
        tags: list
        must: int

    types._classes.pop("p")
    perdure.register_type(Lacking, name="p")
    with pytest.raises(CodecError, match="lacks the field 'must'"):
        chain.decode(data, "k")


def test_a_stored_name_never_imports():
    perdure.register_type(Point, name="os.system")
    data = chain.encode(Point(1), "k")
    types._classes.clear()
    with pytest.raises(CodecError, match=r"'os.system', a type that is not registered here.*Import the module"):
        chain.decode(data, "k")


def test_what_the_functions_raise_says_which_type():
    def fail(state):
        raise RuntimeError("boo")

    perdure.register_type(Point, name="p", encode=lambda p: 1, decode=fail)
    with pytest.raises(CodecError, match="the decode= of 'p' raised RuntimeError: boo"):
        chain.decode(chain.encode([Point(1)], "k"), "k")
    perdure.register_type(Point, name="p", encode=lambda p: 1, decode=lambda s: 5)
    with pytest.raises(CodecError, match="made a int"):
        chain.decode(chain.encode([Point(1)], "k"), "k")
    perdure.register_type(Point, name="p", encode=fail, decode=lambda s: 5)
    with pytest.raises(CodecError, match=r"value\[0\] is of type .*Point and cannot be held by msgpack: boo"):
        chain.encode([Point(1)], "k")


def test_mistakes_in_registering():
    class Plain:
        pass

    class Other:
        pass

    with pytest.raises(UsageError, match="neither a dataclass, an enum nor a named tuple"):
        perdure.register_type(Plain)
    with pytest.raises(UsageError, match="both"):
        perdure.register_type(Plain, encode=list)
    with pytest.raises(UsageError, match="holds dict already"):
        perdure.register_type(dict)
    with pytest.raises(UsageError, match="takes a class"):
        perdure.register_type(Point(1))
    perdure.register_type(Plain, name="n", encode=vars, decode=vars)
    with pytest.raises(UsageError, match="'n' is registered for"):
        perdure.register_type(Other, name="n", encode=vars, decode=vars)
    perdure.register_type(Plain, name="n", encode=vars, decode=vars)  # again is fine
