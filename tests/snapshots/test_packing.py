"""A value becomes parts and the same value again; and a reader that does not trust them cannot be made to run anything."""

from __future__ import annotations

import copyreg
import datetime as dt
import decimal
import enum
import gc
import io
import os
import pathlib
import pickle
import pickletools
import random
import subprocess
import sys
import textwrap
import threading
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packed_values import is_same, round_trip, written

import perdure
from perdure.errors import CodecError, IntegrityError, PerdureError, UntrustedError
from perdure.snapshots import arrays, plain, tensors
from perdure.snapshots.opcodes import makes_objects
from perdure.snapshots.packing import check_readable, pack, unpack

RAN: list[str] = []


class Thing:
    """A class like any other."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Bomb:
    def __reduce__(self) -> Any:
        return explode, ("boom",)


def explode(*what: str) -> None:
    RAN.append(" ".join(what))


@pytest.fixture(autouse=True)
def _nothing_ran() -> Any:
    RAN.clear()
    yield
    assert not RAN


# Values of all kinds.

ZONES = st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=-3), "here"), zoneinfo.ZoneInfo("Europe/Berlin")])
KEYS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.decimals(allow_nan=False), st.fractions(), st.uuids(),
    st.dates(), st.tuples(st.integers(), st.text()), st.frozensets(st.integers()),
)  # fmt: skip
LEAVES = st.one_of(
    KEYS, st.floats(), st.complex_numbers(), st.binary(max_size=300).map(bytearray), st.datetimes(timezones=ZONES), st.times(),
    st.timedeltas(), st.sets(st.integers()), st.builds(range, st.integers(), st.integers(), st.integers(1, 9)),
    st.builds(slice, st.integers(), st.none()), st.just(...), st.text().map(np.str_), st.binary().map(np.bytes_),
    st.sampled_from([np.float32(1.5), np.int64(-3), np.bool_(True), np.datetime64("2026-11-22T05:00"), np.timedelta64(5, "D"),
                     np.longdouble("1.1"), np.complex64(1j), np.dtype("<f8"), np.dtype(">i2"), np.dtype(object),
                     np.float64("nan"), pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:/x"),
                     complex, range]),
    st.dictionaries(KEYS, st.integers()).map(OrderedDict), st.lists(KEYS).map(Counter),
    st.lists(st.integers()).map(lambda items: deque(items, 3)),
    st.dictionaries(KEYS, st.integers()).map(lambda items: defaultdict(list, items)),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(KEYS, inner), st.lists(inner).map(deque)),
    max_leaves=12,
)


@given(VALUES)
@example(10**4000)
@example("\ud800 is half a character")
@example(defaultdict(None, {1: 2}))
@example(defaultdict(set))
@example([float("nan"), -0.0, float("inf")])
@example(uuid.uuid1())
def test_plain_data_comes_back_without_trust(value: object) -> None:
    assert is_same(round_trip(value), value)


DTYPES = st.sampled_from([
    "?", "<i1", "<i4", ">i4", "<u8", "<f2", "<f4", ">f8", "<c8", "<c16", "<U3", ">U2", "|S5", "|V3", "<M8[ns]", ">M8[D]",
    "<m8[s]", "<M8", [("a", "<i4"), ("b", ">f8", (2, 3))],
    {"names": ["x", "y"], "formats": ["i1", "f8"], "offsets": [0, 16], "itemsize": 40},
    {"names": ["x", "y"], "formats": ["i4", "i4"], "offsets": [2, 0], "itemsize": 8},  # they overlap
    {"names": ["ü", "шесть"], "formats": ["i1", "f8"]}, np.dtype([("a", "i1"), ("b", "f8")], align=True),
])  # fmt: skip
SHAPES = st.one_of(st.just(()), st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple))


@given(DTYPES, SHAPES, st.sampled_from("CFKSRB"), st.sampled_from([1, 1 << 18]), st.randoms(use_true_random=False))
def test_arrays_of_every_type_and_layout_come_back_and_can_be_written(
    dtype: Any, shape: tuple[int, ...], layout: str, own: int, choose: random.Random
) -> None:
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=int))
    some = [choose.randrange(128) if kind.kind != "U" else choose.choice([0, 65]) for _ in range(size * kind.itemsize)]
    if kind.kind == "U":
        array = np.array([choose.choice(["", "ab", "ж"]) for _ in range(size)], kind).reshape(shape)
    else:
        array = np.frombuffer(bytes(some), np.uint8).view(kind).reshape(shape) if size else np.empty(shape, kind)
        array = array.copy()
    if layout == "F":
        array = np.asfortranarray(array) if array.ndim else array
    elif layout == "K":
        array = array.T
    elif layout == "S" and array.ndim:
        array = array[::2]
    elif layout == "R":
        array.flags.writeable = False
    elif layout == "B":
        array = np.broadcast_to(array, (2, *shape))
    back = round_trip({"it": array}, own=own)["it"]
    assert is_same(back, array)
    assert back.flags.writeable
    assert back.flags.aligned


def test_a_large_array_is_a_file_that_numpy_reads() -> None:
    for array in (
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(["a", "bc"]),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
        np.array(["2026-11-22"], "M8[D]"),
    ):
        parts = pack([array], "model", own=1)
        assert [part.name for part in parts] == ["model.pkl", "model/0.npy"]
        read = np.load(io.BytesIO(b"".join(parts[1].pieces)), allow_pickle=False)
        assert is_same(read, array)


def test_arrays_are_written_from_their_own_memory_and_read_into_what_was_given() -> None:
    large, small, order = np.arange(50_000.0), np.arange(20_000.0), np.asfortranarray(np.ones((300, 400)))
    parts = pack({"large": large, "small": small, "order": order}, "it")
    for array in (large, small, order):
        assert any(np.shares_memory(array, np.frombuffer(piece, np.uint8)) for part in parts for piece in part.pieces)
    for part in parts:
        for piece in part.pieces:
            view = memoryview(piece)
            assert view.contiguous
            assert view.format == "B"
            assert view.ndim == 1
    assert [len(part.pieces) for part in parts[1:]] == [2, 2]
    memory = written(parts)
    value = unpack("it", memory.__getitem__, trusted=False)
    assert np.shares_memory(value["large"], np.frombuffer(memory["it/large.npy"], np.uint8))
    assert np.shares_memory(value["order"], np.frombuffer(memory["it/order.npy"], np.uint8))


def test_what_is_read_into_memory_that_cannot_be_written_is_copied() -> None:
    parts = {name: memoryview(bytes(data)) for name, data in written(pack([np.arange(9)], "it", own=1)).items()}
    array = unpack("it", parts.__getitem__, trusted=False)[0]
    array += 1
    assert array.tolist() == list(range(1, 10))


def test_memory_that_lies_askew_is_copied() -> None:
    parts = written(pack([np.arange(9)], "it", own=1))
    askew = {name: memoryview(bytearray(b"x" + bytes(data)))[1:] for name, data in parts.items()}
    array = unpack("it", askew.__getitem__, trusted=False)[0]
    assert array.flags.aligned
    assert array.tolist() == list(range(9))


def test_large_bytes_are_written_as_they_are_and_bytearrays_stay_free_to_grow() -> None:
    data, growing = bytes(200_000), bytearray(200_000)
    parts = pack([data, growing], "it")
    assert any(piece is data for piece in parts[0].pieces)
    growing.append(1)
    assert round_trip([data, growing]) == [data, growing]


def test_one_array_or_object_in_several_places_is_one_again() -> None:
    array, small, shared = np.zeros(50_000), np.zeros(3), OrderedDict(a=1)
    value = {"a": array, "b": [array, small], "c": (small, shared), "d": shared}
    back = round_trip(value)
    assert back["a"] is back["b"][0]
    assert back["b"][1] is back["c"][0]
    assert back["c"][1] is back["d"]
    assert len(pack(value, "it")) == 2


def test_arrays_of_objects_may_hold_anything_even_themselves() -> None:
    array = np.empty((2, 3), object, order="F")
    array[0] = [1, "x", [1, 2]]
    array[1] = [None, np.arange(3), {"k": 2}]
    back = round_trip(array)
    assert is_same(back, array)
    loop = np.empty(2, object)
    loop[:] = [loop, {"loop": loop}]
    back = round_trip([loop])[0]
    assert back[0] is back
    assert back[1]["loop"] is back
    assert round_trip(np.array(None, object))[()] is None
    assert round_trip(np.empty((0, 3), object)).shape == (0, 3)


def test_collections_may_hold_themselves_and_keep_their_attributes() -> None:
    ordered: Any = OrderedDict(a=1)
    ordered.more, ordered["self"] = ordered, ordered
    back = round_trip(ordered)
    assert back["self"] is back.more is back
    ring: deque[Any] = deque(maxlen=2)
    ring.append(ring)
    back = round_trip(ring)
    assert back[0] is back
    assert back.maxlen == 2


def test_arrays_that_only_numpy_can_pickle_come_back_with_trust(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "file.npy", np.arange(5))
    mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
    for array in (
        np.ma.array([1, 2], mask=[0, 1]),
        mapped,
        np.zeros(2, [("a", object)]),
        np.zeros(2, np.dtype("f8", metadata={"m": 1})),
    ):
        back = round_trip(array, trusted=True)
        assert type(back) is type(array)
        assert back.tolist() == array.tolist()
        assert back.dtype.metadata == array.dtype.metadata
        with pytest.raises(UntrustedError, match="numpy"):
            round_trip(array)


def test_pandas_comes_back_with_trust() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(60_000.0), "b": ["x"] * 60_000})
    pd.testing.assert_frame_equal(round_trip({"it": frame}, trusted=True)["it"], frame)


def test_the_pickle_can_be_read_by_pickle_alone() -> None:
    value = {"a": np.arange(3), "b": OrderedDict(x=Fraction(1, 2)), "c": np.float32(2)}
    assert is_same(pickle.loads(b"".join(pack(value, "it")[0].pieces)), value)
    with pytest.raises(CodecError, match=r"file of its own, a\.npy"):
        pickle.loads(b"".join(pack(value, "it", own=1)[0].pieces))


def test_without_numpy_and_torch_plain_data_is_packed_all_the_same() -> None:
    code = """
        import sys
        from perdure.snapshots.packing import check_readable, pack, unpack
        assert not {"numpy", "torch"} & sys.modules.keys()
        sys.modules["numpy"] = None
        parts = pack({"a": [1, 2.5]}, "it")
        check_readable(parts)
        print(unpack("it", lambda name: memoryview(parts[0].pieces[0]), trusted=False))
        try:
            unpack("it", lambda name: memoryview(bytes.fromhex(sys.stdin.read())), trusted=False)
        except ValueError as error:
            print(error)
    """
    printed = in_a_process_of_its_own(code, b"".join(pack(np.ones(1), "it")[0].pieces).hex())
    assert printed.splitlines()[0] == "{'a': [1, 2.5]}"
    assert "needs what cannot be found here" in printed.splitlines()[1]


# Names of parts.


def names(value: object) -> list[str]:
    return [part.name for part in pack(value, "m", own=1)[1:]]


def test_arrays_are_called_after_where_they_are() -> None:
    class Mine(dict[Any, Any]):
        def items(self) -> Any:
            raise RuntimeError("is not asked")

    pickled: Any = {
        "model": {"layer1.weight": np.ones(1), "layer1.bias": np.ones(1)},
        "list": [0, (np.ones(1),)],
        7: np.ones(1),
    }
    assert names(pickled) == ["m/model.layer1.weight.npy", "m/model.layer1.bias.npy", "m/list.1.0.npy", "m/7.npy"]
    assert names(np.ones(1)) == ["m/value.npy"]
    assert names({(1, 2): np.ones(1), None: np.ones(1)}) == ["m/(0).npy", "m/(1).npy"]
    copyreg.pickle(Mine, lambda value: (dict, (dict(dict.items(value)),)))  # type: ignore[arg-type]
    try:
        assert names(Mine(a=[np.ones(1)])) == ["m/a.0.npy"]
    finally:
        del copyreg.dispatch_table[Mine]


def test_names_work_on_every_system_and_differ_everywhere() -> None:
    odd = [
        "",
        ".",
        "..",
        ".x",
        "a/b",
        "a\\b",
        "a:b",
        "ä",
        "aux",
        "CON",
        "nul.x",
        "x" * 300,
        "x" * 301,
        "Up",
        "uP",
        "UP",
        "a\nb",
        "~",
    ]
    got = [name.removeprefix("m/").removesuffix(".npy") for name in names({key: np.ones(1) for key in odd})]
    assert len({name.casefold() for name in got}) == len(odd)
    for name in got:
        assert len(name) <= 160
        assert not name.startswith(".")
        assert name.split(".")[0].casefold() not in ("con", "aux", "nul", "")
        assert all(letter.isascii() and (letter.isalnum() or letter in "_.-=()~") for letter in name)
    assert got[4] == "a_b"
    assert [name for name in got if name.casefold().startswith("up")] == ["Up", "uP~2", "UP~3"]
    value = {key: np.full(1, number) for number, key in enumerate(odd)}
    assert is_same(round_trip(value, own=1), value)


def test_arrays_in_objects_are_numbered_and_always_the_same() -> None:
    def value() -> Any:
        return {"thing": Thing(a=np.ones(1), b=[np.ones(1)]), "x": np.ones(1)}

    assert names(value()) == ["m/array-0001.npy", "m/array-0002.npy", "m/x.npy"]
    assert names(value()) == names(value())


def test_long_lists_do_not_keep_arrays_from_their_names() -> None:
    value: Any = {"long": list(range(100_000)), "rows": [[0] * 50] * 50, "model": {"weight": np.ones(1)}}
    value["long"].append(np.ones(1))
    value["deep"] = [[[[[[[[np.ones(1)]]]]]]]]
    assert names(value) == ["m/array-0001.npy", "m/model.weight.npy", "m/array-0002.npy"]


# What is not trusted.


def of(*code: bytes) -> dict[str, memoryview]:
    return {"it.pkl": memoryview(bytearray(b"\x80\x05" + b"".join(code) + b"."))}


def text(what: str) -> bytes:
    return b"X" + len(what.encode()).to_bytes(4, "little") + what.encode()


def found(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return found(module, name) + b"(" + b"".join(arguments) + b"tR"


def ours(name: str, *arguments: object) -> bytes:
    module = next(module for module in (plain, arrays, tensors) if name in vars(module))
    return called(module.__name__, name, *map(plainly, arguments))


def plainly(value: object) -> bytes:
    """The instructions that make a value; if these are it, as they are."""
    if isinstance(value, bytes) and value[-1:] == b"R":
        return value
    data = pickle.dumps(value, 5)
    return (data[11:-1] if data[2:3] == b"\x95" else data[2:-1]).replace(b"\x94", b"")


def test_code_is_refused_by_name_before_it_runs_and_when_it_is_saved() -> None:
    class Local(list[int]):
        pass

    for value, name in (
        (Bomb(), "test_packing.explode"),
        ({"a": [1, Thing()]}, "test_packing.Thing"),
        ([Thing], "test_packing.Thing"),
        (print, "builtins.print"),
        (defaultdict(explode), "test_packing.explode"),
        (threading.Thread.run, "threading.Thread.run"),
        (dict, "builtins.dict"),
        (uuid.UUID, "uuid.UUID"),
        (np.float32, "numpy.float32"),
        (np.sin, "numpy.sin"),
        (random.Random(1), "random.Random"),
        (Color.RED, "test_packing.Color"),
        (decimal.Context(), "decimal.Context"),
    ):
        parts = pack(value, "it")
        hint = "Pass trusted=True to StateStore if nobody else can write there, or register the class"
        for read in (
            lambda parts=parts: check_readable(parts),
            lambda parts=parts: unpack("it", written(parts).__getitem__, trusted=False),
        ):
            with pytest.raises(UntrustedError, match=f"this holds {name},") as caught:
                read()
            assert caught.value.key == "it.pkl"
            assert str(caught.value.hint).startswith(hint)
    unpack("it", written(pack(Bomb(), "it")).__getitem__, trusted=True)
    assert RAN == ["boom"]
    RAN.clear()


class Color(enum.Enum):
    RED = 1


ATTACKS = {
    "os": called("os", "system", plainly("true")),
    "posix": called("posix", "system", plainly("true")),
    "eval": called("builtins", "eval", plainly("1")),
    "getattr": called("builtins", "getattr", found("builtins", "complex"), plainly("__class__")),
    "dots": called("collections", "OrderedDict.__class__.mro"),
    "dots of ours": found("perdure.snapshots.plain", "uuid.os.system"),
    "global of ours": found("perdure.snapshots.plain", "sys"),
    "our modules": found("perdure.snapshots", "plain"),
    "of the same file": called("perdure.snapshots.plain", "update_attributes"),
    "copyreg": called("copyreg", "_reconstructor", found("builtins", "complex"), found("builtins", "complex"), b"N"),
    "newobj": found("builtins", "complex") + b")\x81",
    "newobj_ex": found("builtins", "complex") + b")}\x92",
    "build a function": found("perdure.snapshots.plain", "zone") + b"}" + text("__doc__") + b"Nsb",
    "build a class": found("perdure.snapshots.plain", "ring") + b"N}\x86b",
    "build an array": ours("build_array", "<f8", (1,), "C", bytearray(8)) + b"(K\x01K\x09\x85Nt" + b"b",
    "build a dtype": ours("build_dtype", "|V8") + b"(K\x03" + text("|") + b"NNNK\x08K\x01K\x3ftb",
    "global": b"cos\nsystem\n(" + text("true") + b"tR",
    "inst": b"(" + text("true") + b"ios\nsystem\n",
    "obj": b"(" + found("builtins", "complex") + b"o",
    "extension": b"\x82\x01",
    "persistent": text("x") + b"Q",
    "persistent text": b"Px\n",
    "buffer": b"\x97",
    "next protocol": b"\x80\x06N",
    "a memo of gigabytes": b"Nr\xff\xff\xff\x7f",
    "a memo by text": b"Np999999999\n",
    "factory": called("collections", "defaultdict", found("os", "getcwd")),
    "factory of ours": ours("default_dict", "os"),
    "bytes": called("builtins", "bytearray", plainly(10**12)),
    "attributes of others": ours("attributes", ours("counter"), {"x": 1}),
    "attributes of a function": called(
        "perdure.snapshots.plain", "attributes", found("perdure.snapshots.plain", "zone"), plainly({"x": 1})
    ),
    "attributes without names": ours("attributes", ours("ordered_dict"), {1: 1}),
    "attributes of no tensor": ours("tensor_attributes", ours("ordered_dict"), {"x": 1}),
    "registered": ours("registered", "os.system", "true"),
    "registered by no name": ours("registered", ["x"], "true"),
    "fraction": ours("fraction", "1e999999999", 1),
    "zero": ours("fraction", 1, 0),
    "zone": ours("zone", "../../../etc/passwd", True),
    "no zone": ours("zone", 7, True),
    "path": ours("path", "os", "x"),
    "id": ours("unique_id", 2**200, None),
    "memory that moves under an array": (
        b"(" + plainly(bytearray(999)) + b"\x94" + called(
            "perdure.snapshots.arrays", "build_array", text("|u1"), plainly((999,)), text("C"), b"h\x00"
        ) + b"h\x00(" + b"K\x41" * 9 + b"et"
    ),
    # A reader that reads frame by frame loses the four bytes before the end, and goes on behind the next four.
    "a frame that ends within a length": b"\x95" + (5).to_bytes(8, "little") + b"X" + (8).to_bytes(4, "little") + b"        N",
    "a frame that ends within text": b"\x95" + (7).to_bytes(8, "little") + text("text"),
    "a frame that ends within a number": b"\x95" + (4).to_bytes(8, "little") + b"G        ",
    "a frame within a frame": b"\x95" + (11).to_bytes(8, "little") + b"\x95" + (1).to_bytes(8, "little") + b"N.",
    "a frame that never ends": b"\x95" + b"\xff" * 8 + b"N",
    "a frame without an end": b"\x95" + b"\x09",
    "bytes that never end": b"\x96" + (2**40).to_bytes(8, "little") + b"x",
    "nothing called": b"N)R",
    "a value called": b"K\x01)R",
    "too few": b"R",
    "not hashable": b"(](K\x01]u0",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(attack: str) -> None:
    with pytest.raises(CodecError) as caught:
        unpack("it", of(ATTACKS[attack]).__getitem__, trusted=False)
    assert caught.value.key == "it.pkl"


def test_what_was_to_be_attacked_is_as_it_was() -> None:
    for attack in ATTACKS.values():
        with pytest.raises(CodecError):
            unpack("it", of(attack).__getitem__, trusted=False)
    assert not vars(plain.zone)
    assert gc.isenabled()


def array(*arguments: object) -> bytes:
    return ours("build_array", *arguments)


LAYOUT: dict[str, Any] = {
    "names": ["a"], "formats": ["<f8"], "offsets": [0], "itemsize": 8, "titles": [None], "aligned": False,
}  # fmt: skip
IMPOSSIBLE = {
    "huge": array("<f8", (2**40, 2**40), "C", bytearray(8)),
    "wraps around": array("<f8", (2**61,), "C", bytearray(0)),
    "huge and empty": array("<f8", (0, 2**62), "C", bytearray(0)),
    "one more": array("<f8", (2,), "C", bytearray(8)),
    "one less": array("<f8", (), "C", bytearray(16)),
    "negative": array("<f8", (-1, -1), "C", bytearray(8)),
    "a list": array("<f8", [1], "C", bytearray(8)),
    "true": array("<f8", (True,), "C", bytearray(8)),
    "many": array("|u1", (1,) * 65, "C", bytearray(1)),
    "no order": array("<f8", (1,), "A", bytearray(8)),
    "objects": array("|O", (1,), "C", bytearray(8)),
    "objects inside": array(LAYOUT | {"formats": ["|O8"]}, (1,), "C", bytearray(8)),
    "outside": array(LAYOUT | {"offsets": [100]}, (1,), "C", bytearray(8)),
    "before": array(LAYOUT | {"offsets": [-8]}, (1,), "C", bytearray(8)),
    "not laid out": array({"names": ["a"]}, (1,), "C", bytearray(8)),
    "by name": array("float64", (1,), "C", bytearray(8)),
    "with code": array("O,f8", (1,), "C", bytearray(16)),
    "no size": array("|V0", (5,), "C", bytearray(0)),
    "a long one": array("|S99999999999999999999", (0,), "C", bytearray(0)),
    "no type": array(None, (1,), "C", bytearray(8)),
    "no bytes": array("<f8", (1,), "C", "missing"),
    "bytes": array("<f8", (1,), "C", b"12345678 not R"),
    "elsewhere": array("<f8", (1,), "C", "../secret"),
    "absolutely elsewhere": array("<f8", (1,), "C", "/secret"),
    "nowhere": array("<f8", (1,), "C", ""),
    "the same twice": b"(" + array("<f8", (1,), "C", "there") + array("<f8", (1,), "C", "there") + b"t",
    "no file of numpy": array("<f8", (1,), "C", "text"),
    "a header that ends elsewhere": array("<f8", (1,), "C", "cut"),
    "too many objects": ours("objects", (10**9,), "C"),
    "not so many": ours("fill", ours("objects", (3,), "C"), [1, 2]),
    "filled with lazy things": ours("fill", ours("objects", (3,), "C"), range(3)),
    "filled with numbers": ours("fill", array("<f8", (1,), "C", bytearray(8)), [1]),
    "a number": ours("build_scalar", "<f8", b"1234"),
    "a number of text": ours("build_scalar", "<f8", "1234"),
    "text of a number": ours("build_scalar", "U", 4),
    "an odd dtype": ours("build_dtype", "O,O"),
    "a dtype of lists": ours("build_dtype", [[[["<f8", [1]], [1]], [1]], 5]),
}  # fmt: skip


@pytest.mark.parametrize("claim", IMPOSSIBLE)
@pytest.mark.parametrize("trusted", [False, True])
def test_an_array_that_cannot_be_is_refused(claim: str, trusted: bool) -> None:
    there = bytes(written(pack([np.ones(1)], "it", own=1))["it/0.npy"])
    parts = of(IMPOSSIBLE[claim]) | {
        "it/there.npy": memoryview(bytearray(there)),
        "it/text.npy": memoryview(bytearray(b"some text that is no array at all")),
        "it/cut.npy": memoryview(bytearray(there[:40])),
    }
    with pytest.raises(CodecError) as caught:
        unpack("it", parts.__getitem__, trusted=trusted)
    assert str(caught.value.key).startswith("it")


def test_an_array_that_does_not_fit_its_file_names_the_file() -> None:
    parts = written(pack({"a": np.ones(5)}, "it", own=1))
    parts["it/a.npy"] = memoryview(bytearray(parts["it/a.npy"][:-8]))
    with pytest.raises(IntegrityError, match="do not fit") as caught:
        unpack("it", parts.__getitem__, trusted=False)
    assert caught.value.key == "it/a.npy"


# Registered classes.


@perdure.register_type
@dataclass(frozen=True)
class Config:
    rate: float
    tags: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("negative")


@perdure.register_type
class Mode(enum.Enum):
    FAST = 1


@perdure.register_type
class Point(NamedTuple):
    x: float
    y: Any


class Handle:
    def __init__(self, name: str) -> None:
        RAN.append("a constructor")
        self.name = name


def make_handle(state: Any) -> Handle:
    handle = object.__new__(Handle)
    handle.name = state["name"]
    return handle


perdure.register_type(Handle, "handle", lambda handle: {"name": handle.name}, make_handle)


def test_registered_classes_come_back_without_trust_the_way_they_were_registered() -> None:
    handle = make_handle({"name": "x"})
    config = Config(1.5, [np.ones(3), Point(1, Mode.FAST)])
    back = round_trip({"config": config, "again": config, "handle": handle})
    assert back["config"].rate == 1.5
    assert is_same(back["config"].tags[0], np.ones(3))
    assert back["config"].tags[1] == (1, Mode.FAST)
    assert back["config"].tags[1].y is Mode.FAST
    assert back["again"] is back["config"]
    assert back["handle"].name == "x"
    assert round_trip(Point(1, 2), trusted=True) == Point(1, 2)


def test_what_is_registered_is_made_from_plain_data_only() -> None:
    name = f"{Config.__module__}.Config"
    for attack in (
        called(Handle.__module__, "Handle", plainly("x")),
        found(Config.__module__, "Config"),
        ours("registered", name, {"unknown": 1}),
        ours("registered", name, 5),
        ours("registered", "handle", {}),
    ):
        with pytest.raises(CodecError):
            unpack("it", of(attack).__getitem__, trusted=False)


def test_a_registered_value_may_hold_itself_in_a_list_but_not_directly() -> None:
    config = Config(1.0)
    config.tags.append(config)
    back = round_trip(config)
    assert back.tags[0] is back
    with pytest.raises(CodecError, match="nested too deeply"):
        object.__setattr__(config, "rate", config)
        pack(config, "it")


# What goes wrong.


def test_what_cannot_be_pickled_is_named_by_its_place() -> None:
    with pytest.raises(CodecError, match=r"^key 'it\.pkl': the value\['a'\]\[1\], a lock, cannot be pickled: ") as caught:
        pack({"a": [np.ones(9), threading.Lock()], "b": 1}, "it", own=1)
    assert caught.value.hint
    with pytest.raises(CodecError, match=r"the value\['f'\], a function, cannot be pickled"):
        pack({"f": lambda: 1}, "it")


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CodecError, match="nested too deeply"):
        pack(deep, "it")
    # What pickle can read, it can read however deep it is.
    assert unpack("it", of(b"]" * 50_000 + b"a" * 49_999).__getitem__, trusted=False)


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return fail, (self.error,)


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ImportError("no such module"), CodecError, "cannot be found here: no such module"),
        (AttributeError("gone"), CodecError, "cannot be found here: gone"),
        (RecursionError("deep"), CodecError, "cannot be restored: RecursionError: deep"),
        (RuntimeError("odd"), CodecError, "cannot be restored: RuntimeError: odd"),
        (KeyError("k"), IntegrityError, "damaged"),
        (IntegrityError("mine"), IntegrityError, "mine"),
    ],
)
def test_what_fails_while_reading_is_an_error_that_names_the_part(error: Exception, kind: type[Exception], says: str) -> None:
    parts = written(pack([Failing(error)], "it"))
    with pytest.raises(kind, match=says) as caught:
        unpack("it", parts.__getitem__, trusted=True)
    assert type(caught.value) is kind
    assert isinstance(caught.value, PerdureError)
    assert caught.value.key == "it.pkl"
    assert gc.isenabled()


def test_the_garbage_collector_is_off_while_reading_and_as_it_was_afterwards() -> None:
    parts = written(pack(Asking(), "it"))
    assert unpack("it", parts.__getitem__, trusted=True) is False
    assert gc.isenabled()
    gc.disable()
    try:
        unpack("it", parts.__getitem__, trusted=True)
        assert not gc.isenabled()
    finally:
        gc.enable()


class Asking:
    def __reduce__(self) -> Any:
        return gc.isenabled, ()


def test_other_classes_are_pickled_as_ever() -> None:
    class Meta(type):
        pass

    globals()["Made"] = made = Meta("Made", (), {"__module__": __name__, "__qualname__": "Made"})
    thing = Thing(a=1, b=[Thing(c=2)], made=made)
    back = round_trip(thing, trusted=True)
    assert back.made is made
    assert back.b[0].c == 2
    assert b"".join(pack(thing, "it")[0].pieces) == pickle.dumps(thing, 5)


# Instructions.


@given(VALUES)
def test_the_instructions_are_told_apart_as_pickle_does(value: object) -> None:
    for data in (b"".join(pack(value, "it")[0].pieces), pickle.dumps(value, 5)):
        objects = {"NEWOBJ", "NEWOBJ_EX", "BUILD"}
        assert makes_objects(data) == any(opcode.name in objects for opcode, _, _ in pickletools.genops(data))
        for end in range(len(data)):
            with pytest.raises(IntegrityError):
                makes_objects(data[:end])
        with pytest.raises(IntegrityError):
            makes_objects(data + b".")


def test_text_and_bytes_of_every_length_are_passed_over() -> None:
    for size in (0, 1, 9, 10, 13, 34, 92, 127, 254, 255, 256, 257, 65_535, 65_536, 70_000):
        for value in ("." * size, "ж" * (size // 2), b"." * size, bytearray(b"b" * size), 2 ** (8 * size), -(2 ** (8 * size))):
            assert not makes_objects(pickle.dumps([value, 1], 5))


# Damage on purpose.

SEEDS = [
    {"a": (1, {2, 3}, [b"x", bytearray(b"y")])}, {"m": np.arange(6).reshape(2, 3), "l": [np.zeros(90)] * 2},
    {"t": dt.datetime(2026, 11, 22, tzinfo=dt.UTC), "z": zoneinfo.ZoneInfo("Europe/Berlin"), "f": Fraction(1, 3)},
    OrderedDict(a=Counter("abc"), b=deque([1, 2], 3), c=defaultdict(list, x=[1])), uuid.UUID(int=5), pathlib.Path("a/b"),
    [2**70, -1.5, 1j, range(5), slice(1), ..., "\ud800"], np.array([1, "x", None], object), Point(1, Mode.FAST),
    [np.float32(1), np.str_("x"), np.dtype("f8"), np.zeros(2, [("a", "i4"), ("b", "f8", (2,))])], {(1, (2, 3)): frozenset([4])},
    [Bomb(), Bomb()], [1, Thing(a=Bomb())], {"x": [Bomb]}, explode, decimal.Decimal("1.5"),
]  # fmt: skip
GRAFTS = [
    found("os", "system"), found("builtins", "eval"), found(__name__, "explode"), b"r\x00\x00\x01\x00",
    found("perdure.snapshots.arrays", "build_array"), b"\x94", b"(", b"t", b"R", b"b", b"\x81", b"h\x00", b"h\x01",
]  # fmt: skip

FUZZ = """
    from test_packing import *

    seeds = [written(pack(value, "it", own=own)) for value in SEEDS for own in (1, 1000)]
    attacks = [of(attack) for attack in ATTACKS.values()]
    opcodes = bytes(ord(opcode.code) for opcode in pickletools.opcodes)
    choose = random.Random(1)
    refused = kept = 0
    for _ in range(ROUNDS):
        parts = {name: bytearray(data) for name, data in choose.choice(choose.choice([seeds, seeds, attacks])).items()}
        for _ in range(choose.choice([1, 1, 1, 2, 5])):
            data = parts[choose.choice(list(parts)) if choose.random() < 0.2 else "it.pkl"]
            at, how = choose.randrange(len(data) or 1), choose.random()
            if how < 0.3:
                data[at : at + 1] = bytes([choose.choice(opcodes)])
            elif how < 0.5:
                data[at : at + 1] = bytes([choose.randrange(256)])
            elif how < 0.6:
                data[at:at] = choose.choice(GRAFTS)
            elif how < 0.7:
                del data[at : at + choose.randint(1, 9)]
            elif how < 0.8:
                data[at:at] = b"\\xff" * choose.randint(1, 8)
            elif how < 0.9:
                data[at : at + 1] = bytes([data[at] ^ 1 << choose.randrange(8)]) if data else b""
            else:
                del data[at:-1]
        try:
            unpack("it", {name: memoryview(data) for name, data in parts.items()}.__getitem__, trusted=False)
            kept += 1
        except CodecError:
            refused += 1
    assert not RAN and gc.isenabled()
    # Not getrusage: its figure begins with that of the process that forked this one.
    print(refused, kept, int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_damage_is_refused_or_read_as_other_data_but_runs_nothing() -> None:
    printed = in_a_process_of_its_own(FUZZ.replace("ROUNDS", str(20_000 * int(os.environ.get("PERDURE_ROUNDS", "1")))))
    refused, kept, megabytes = map(int, printed.split())
    assert refused > 5000
    assert kept > 500
    assert megabytes < 500


def in_a_process_of_its_own(code: str, given: str = "") -> str:
    """Run code where it may die, and not take the machine along; and return what it printed."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n" + textwrap.dedent(code)
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout
