# ruff: noqa: DTZ001
from __future__ import annotations

import collections
import datetime as dt
import enum
import os
import re
import signal
import threading
import uuid
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from codec_values import ROUNDS, framed, in_a_small_process, same, values
from hypothesis import given, settings

import perdure
from perdure.codecs.chain import Chain
from perdure.codecs.nesting import nests_deeper
from perdure.errors import CodecError

chain = Chain()


def again(value):
    return chain.decode(chain.encode(value, "k"), "k")


@given(values)
@settings(max_examples=150 * ROUNDS, deadline=None)
def test_everything_comes_back_with_exact_types(value):
    assert same(value, again(value))


@pytest.mark.smoke
@pytest.mark.parametrize(
    "value",
    [
        {1: "a", "1": "b", 1.5: "c", None: "d", b"x": "e", (1, ("2", b"3")): "f"},
        {True: 1, "b": {2**80: [1]}},
        {dt.datetime(2020, 1, 1): 1, "x": dt.date(2020, 1, 1)},
        {Decimal("1.10"): 1, uuid.UUID(int=5): 2, frozenset([(1, 2)]): 3},
        {"a": [bytearray(b"\xc4"), b"\xc4"], "b": (bytearray(b"x"),)},
        [float("nan"), float("-inf"), -0.0, 0.0, 5e-324],
        {"\ud800": "\udfff", "": "\0"},
        (1, [2, (3, {4, (5,)})], frozenset()),
        {"b": 1, "a": 2},
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")),
        dt.datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, seconds=1, microseconds=7), "X")),
        dt.time(23, 59, 59, 999999, fold=1, tzinfo=dt.UTC),
        dt.timedelta.min,
        dt.timedelta.max,
        list(range(1000)) + [[x] for x in range(300)],
        {str(i): b"\xc4" * i for i in range(300)},
        {i: i for i in range(70000)},
        slice(None, 3, [1]),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_examples(value):
    assert same(value, again(value))


def test_utc_stays_the_one_utc():
    assert again(dt.datetime(2020, 1, 1, tzinfo=dt.UTC)).tzinfo is dt.UTC


class Text(str):
    pass


class Number(int):
    pass


class Color(enum.IntEnum):
    RED = 1


class Shade(enum.StrEnum):
    DARK = "dark"


Point = collections.namedtuple("Point", "x y")


class Zone(dt.tzinfo):
    def utcoffset(self, when):
        return dt.timedelta(0)


@pytest.mark.parametrize(
    ("value", "part", "advice"),
    [
        ({"a": [1, 2, 3, Point(1, 2)]}, "value['a'][3] is of type test_codec_msgpack.Point", "register_type(Point)"),
        ({"a": {"b": Text("x")}}, "value['a']['b'] is of type test_codec_msgpack.Text", "str(...)"),
        ({Text("x"): 1}, "value key 'x' is of type test_codec_msgpack.Text", "str(...)"),
        ({Number(1): 1}, "value key 1 is of type test_codec_msgpack.Number", "int(...)"),
        ({Color.RED: 1}, "test_codec_msgpack.Color", "register_type(Color)"),
        ({(1, Color.RED): 1}, "test_codec_msgpack.Color", "register_type(Color)"),
        ({Shade.DARK: 1}, "test_codec_msgpack.Shade", "register_type(Shade)"),
        ([Number(5)], "value[0] is of type test_codec_msgpack.Number", "int(...)"),
        ([{1: 2}, Color.RED], "value[1] is of type test_codec_msgpack.Color", "register_type(Color)"),
        ((1, {2, Shade.DARK}), "value[1] member", "register_type(Shade)"),
        (collections.OrderedDict(a=1), "value is of type collections.OrderedDict", "dict(...)"),
        (collections.defaultdict(list), "collections.defaultdict", "register_type"),
        (collections.Counter("a"), "collections.Counter", "register_type"),
        ([memoryview(b"x")], "value[0] is of type memoryview", "bytes(view)"),
        ([bytearray(b"x"), memoryview(b"x")], "value[1] is of type memoryview", "bytes(view)"),
        ([1, object()], "value[1] is of type object", 'codec="pkl"'),
        ([re.compile("x")], "value[0] is of type re.Pattern", 'codec="pkl"'),
        ([perdure.SafeStrTuple("a", "b")], "value[0] is of type perdure.keys.SafeStrTuple", "tuple(...)"),
        ({"f": len}, "value['f'] is of type builtin_function_or_method", 'codec="pkl"'),
        ({1: {2: object()}}, "value[1][2] is of type object", 'codec="pkl"'),
        ([dt.datetime(2020, 1, 1, tzinfo=Zone())], "value[0] is of type datetime.datetime", "ZoneInfo"),
        ({"a": np.array([None])}, "value['a'] is of type numpy.ndarray", "Python objects"),
        ({"a": np.ma.array([1])}, "value['a'] is of type numpy.ma", 'codec="pkl"'),
    ],
    ids=lambda v: str(v)[:25],
)
def test_what_cannot_be_held_is_refused_with_its_path(value, part, advice):
    with pytest.raises(CodecError) as caught:
        chain.encode(value, "a/b")
    assert part in str(caught.value)
    assert advice in str(caught.value)
    assert caught.value.key == "a/b"


def test_codec_pkl_is_not_proposed_for_what_it_does_not_hold_either():
    with open(os.devnull) as file:
        for value in (lambda: 0, (n for n in ()), os, file, threading.Lock(), {}.keys()):
            with pytest.raises(CodecError, match=r"value\[0\] is of type .* cannot be stored, not even with codec 'pkl'"):
                chain.encode([value], "k")
            with pytest.raises(CodecError):
                Chain("pkl").encode([value], "k")


def test_a_value_that_contains_itself_is_refused():
    a: list = [1]
    b = {"x": (a,)}
    a.append(b)
    with pytest.raises(CodecError, match=r"value\[1\]\['x'\]\[0\] is a list that contains itself"):
        chain.encode(a, "k")
    c: dict = {}
    c[1] = c
    with pytest.raises(CodecError, match="contains itself"):
        chain.encode(c, "k")


def test_the_same_part_twice_is_no_cycle():
    part = [1, 2**70]
    assert same(again([part, part, {"x": part, 1: (part, part)}]), [part, part, {"x": part, 1: (part, part)}])


@pytest.mark.parametrize(
    "wrap", [lambda x: [x], lambda x: (x,), lambda x: {"a": x}, lambda x: {1: x}, lambda x: {(1,): [(x,)]}]
)
@pytest.mark.parametrize("seed", [1, 2**70], ids=["native", "careful"])
def test_deep_values_are_held_or_refused_and_never_crash(wrap, seed):
    refused = 0
    for depth in (1, 10, 40, 49, 50, 51, 60, 200, 254, 255, 256, 300, 900, 5000, 50000):
        value = seed
        for _ in range(depth):
            value = wrap(value)
        try:
            data = chain.encode(value, "k")
        except CodecError as error:
            assert "nested too deeply" in str(error)
            refused += 1
        else:
            assert depth < 500
            found = chain.decode(data, "k")
            for _ in range(depth):  # comparing recursively would be the first to fail
                value, found = next(iter(_inside(value))), next(iter(_inside(found)))
            assert value == found
        while isinstance(value, (list, tuple, dict)):  # take apart, or freeing it recurses
            value = next(iter(_inside(value)))
    assert refused


def _inside(value):
    return value.values() if isinstance(value, dict) else value


def test_encoding_changes_nothing_and_keeps_nothing():
    value = {"a": [bytearray(b"x"), {1: 2}], "b": np.arange(100000)}
    before = repr(value)
    data = chain.encode(value, "k")
    assert repr(value) == before
    found = chain.decode(data, "k")
    found["b"][0] = 7
    found["a"][0][:] = b"yy"
    assert same(chain.decode(data, "k"), value)


def test_an_interrupt_inside_a_hook_is_not_swallowed():
    from perdure.codecs.types import register_type

    class Slow:
        pass

    interrupts = []

    def interrupted(value):
        if not interrupts:  # once, so that a second attempt would succeed and lose it
            interrupts.append(1)
            signal.raise_signal(signal.SIGUSR1)
        return 1

    # Not SIGINT itself, which is ignored in what a shell runs in the background.
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        register_type(Slow, encode=interrupted, decode=lambda state: Slow())
        with pytest.raises(KeyboardInterrupt):
            chain.encode([(Slow(),)], "k")
        assert interrupts
        interrupts.clear()
        register_type(Slow, encode=lambda v: 1, decode=interrupted)
        data = chain.encode([(Slow(),)], "k")
        with pytest.raises(KeyboardInterrupt):
            chain.decode(data, "k")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert again((1, 2)) == (1, 2)


def test_threads_do_not_see_each_others_errors():
    bad = framed(b"\xd4\x7fx")
    wrong: list = []

    def work(good: bool) -> None:
        for _ in range(300):
            if good:
                if not same(again((1, {2: bytearray(b"x")}, 2**70)), (1, {2: bytearray(b"x")}, 2**70)):
                    wrong.append("value")
            else:
                try:
                    chain.decode(bad, "k")
                except CodecError as error:
                    if "extension type 127" not in str(error):
                        wrong.append(error)
                else:
                    wrong.append("no error")

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def ext(code: int, data: bytes) -> bytes:
    return b"\xc9" + len(data).to_bytes(4, "big") + bytes((code,)) + data


HOSTILE = {
    "array32 of 4 G": b"\xdd\xff\xff\xff\xff",
    "array32 of 4 G, one there": b"\xdd\xff\xff\xff\xff\x01",
    "map32 of 4 G": b"\xdf\xff\xff\xff\xff",
    "bin32 of 4 G": b"\xc6\xff\xff\xff\xff",
    "str32 of 4 G": b"\xdb\xff\xff\xff\xff",
    "ext32 of 4 G": b"\xc9\xff\xff\xff\xff\x01",
    "nothing": b"",
    "reserved byte alone": b"\xc1",
    "tail longer than all": b"\xc1" + b"\xff" * 8 + b"\x01",
    "tail that nobody takes": b"\xc1" + (4).to_bytes(8, "little") + b"\x01" + b"abcd",
    "array in a tail that is not there": ext(18, b"\x93\xa3<f8\x91\x05\xa1C"),
    "array larger than its tail": b"\xc1" + (4).to_bytes(8, "little") + ext(18, b"\x93\xa3<f8\x91\x05\xa1C") + b"abcd",
    "deep lists": b"\x91" * 2_000_000,
    "deep maps": b"\x81\x01" * 1_000_000,
    "deep lists in keys": b"\x81" + b"\x91" * 1_000_000,
    "unknown extension": ext(99, b"x"),
    "timestamp extension": ext(255, b"\0\0\0\0"),
    "map as a key": b"\x81\x81\x01\x02\x03",
    "set of lists": ext(2, b"\x91\x91\x01"),
    "set with a member twice": ext(2, b"\x92\x01\x01"),
    "map with a list as a key": ext(7, b"\x92\x91\x01\x01"),
    "map with a key twice": ext(7, b"\x94\x01\x01\x01\x01"),
    "map of odd length": ext(7, b"\x91\x01"),
    "map that is a number": ext(7, b"\x01"),
    "decimal of words": ext(13, b"hello"),
    "decimal beyond all bounds": ext(13, b"1E999999999999999999999"),
    "uuid too short": ext(14, b"x"),
    "date of month 13": ext(10, b"\x07\xe4\x0d\x01"),
    "date cut": ext(10, b"\x07"),
    "timedelta too large": ext(12, b"\x7f\xff\xff\xff" * 3),
    "zone outside of its folder": ext(9, b"\x07\xe4\x01\x01\0\0\0\0\0\0\0" + b"\xb0../../etc/passwd"),
    "zone that is not known": ext(9, b"\x07\xe4\x01\x01\0\0\0\0\0\0\0" + b"\xa3foo"),
    "offset of a year": ext(9, b"\x07\xe4\x01\x01\0\0\0\0\0\0\0" + b"\x92\xce\xff\xff\xff\xff\x00"),
    "range of step 0": ext(15, b"\x93\x00\x05\x00"),
    "range of text": ext(15, b"\x93\xa1a\x05\x01"),
    "surrogates that are none": ext(5, b"\xff\xff"),
    "array whose shape wraps around": ext(17, b"\x94\xa3<f8\x92\xcf\x80\0\0\0\0\0\0\0\x02\xa1C\xc4\0"),
    "array of 2**60 and no bytes": ext(17, b"\x94\xa3<f8\x91\xcf\x10\0\0\0\0\0\0\0\xa1C\xc4\0"),
    "array of negative length": ext(17, b"\x94\xa3<f8\x91\xff\xa1C\xc4\0"),
    "array of objects": ext(17, b"\x94\xa2|O\x91\x01\xa1C\xc4\x08" + b"\0" * 8),
    "array of objects 2": ext(17, b"\x94\xa3|O8\x91\x01\xa1C\xc4\x08" + b"\x41" * 8),
    "array of a type of names": ext(17, b"\x94\xaci4,(1000,)f8\x91\x01\xa1C\xc4\x04abcd"),
    "array without type": ext(17, b"\x94\xc0\x91\x01\xa1C\xc4\0"),
    "array of zero-length items": ext(17, b"\x94\xa3|S0\x91\xcf\x10\0\0\0\0\0\0\0\xa1C\xc4\0"),
    "array of strange order": ext(17, b"\x94\xa3|u1\x91\x01\xa1X\xc4\x01a"),
    "array with a huge item": ext(17, b"\x94\xab|S999999999\x91\x00\xa1X\xc4\x01a"),
    "structure of objects": ext(
        17,
        b"\x94\x86\xa5names\x91\xa1a\xa7formats\x91\xa3|O8\xa7offsets\x91\x00\xa6titles\x91\xc0"
        b"\xa8itemsize\x08\xa7aligned\xc2\x91\x01\xa1C\xc4\x08AAAAAAAA",
    ),
    "scalar too short": ext(19, b"\x92\xa3<f8\xc4\x01a"),
    "type that nobody registered": ext(20, b"\x92\xa9os.system\xa4exit"),
    "type with a list as a name": ext(20, b"\x92\x91\x01\xa4exit"),
    "registered type cut": ext(20, b"\x91\xa1a"),
}
DEEP = {
    "tuples in tuples": (1, b"\x91", 500),
    "sets in sets": (3, b"\x91", 500),
    "tuples full of lists": (1, b"\x91" * 1000, 300),
    "tuples behind scalars": (1, b"\x92\x05" * 1000, 300),
    "maps with keys that are lists": (7, b"\x92" + b"\x91" * 500, 300),
}


def nested(code: int, inside: bytes, levels: int) -> bytes:
    data = b"\x01"
    for _ in range(levels):
        data = ext(code, inside + data)
    return data


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name):
    with pytest.raises(CodecError) as caught:
        chain.decode(framed(HOSTILE[name]), "a/b")
    assert caught.value.key == "a/b"


@pytest.mark.parametrize("name", DEEP)
def test_deep_bytes_are_refused(name):
    with pytest.raises(CodecError, match="nested too deeply"):
        chain.decode(framed(nested(*DEEP[name])), "k")


def test_hostile_bytes_take_no_memory_and_do_not_crash():
    """All of them in one process that is small from beginning to end, also in a thread of two megabytes of stack."""
    output = in_a_small_process("""
        import sys, threading
        from test_codec_msgpack import *
        sys.setrecursionlimit(10**6)      # Python's own limit must not be what saves us
        def attack():
            for name, payload in [*HOSTILE.items(), *((n, nested(*how)) for n, how in DEEP.items())]:
                try:
                    chain.decode(framed(payload), "k")
                except CodecError:
                    pass
                else:
                    print("ACCEPTED", name)
        threading.stack_size(4 << 20)
        thread = threading.Thread(target=attack)
        thread.start(); thread.join()
        attack()
        print("DONE")
    """)
    assert output.split() == ["DONE"]


def test_extensions_may_be_unusual_but_harmless():
    assert chain.decode(framed(ext(4, b"\xff" * 100_000)), "k") == -1
    assert chain.decode(framed(ext(13, b"1E+999999")), "k") == Decimal("1E+999999")
    assert chain.decode(framed(b"\x82\x01\x02\x01\x03"), "k") == {1: 3}


@pytest.mark.parametrize(
    ("data", "depth"),
    [
        (b"\x01" * 100, 0),
        (b"\x91" * 60 + b"\x01", 60),
        (b"\x92\x01" * 60 + b"\x01", 60),
        (b"\x81\x01" * 60 + b"\x01", 60),
        (b"\xdc\x00\x02\xcb\x91\x91\x91\x91\x91\x91\x91\x91" * 60 + b"\x01", 60),
        (b"\xdd\x00\x00\x00\x40" + b"\x91\x01" * 64, 2),
        (b"\xde\x00\x40" + b"\x01\x90" * 64, 2),
        (b"\xdc\x00\x40" + b"\xc4\x03\x91\x91\x91" * 32 + b"\xa3\x91\x91\x91" * 32, 1),
        (b"\xdc\x00\x40" + b"\xc7\x03\x01\x91\x91\x91" * 32 + b"\xd6\x01\x91\x91\x91\x91" * 32, 1),
        (b"\xdc\x00\x40" + b"\xcd\x91\x91" * 32 + b"\xd3" + b"\x91" * 8 + b"\xc0" * 31, 1),
    ],
)
def test_nesting_is_counted_exactly(data, depth):
    padded = data + b"\x91" * 200  # never reached, so it does not count
    assert not nests_deeper(padded, depth)
    assert depth == 0 or nests_deeper(padded, depth - 1)
