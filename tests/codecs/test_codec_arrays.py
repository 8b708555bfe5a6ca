from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from codec_values import ROUNDS, same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from perdure.codecs.chain import Chain
from perdure.errors import CodecError

chain = Chain()


def again(value):
    return chain.decode(chain.encode(value, "k"), "k")


_dtypes = st.one_of(
    npst.scalar_dtypes(),
    npst.byte_string_dtypes(min_len=1),
    npst.unicode_string_dtypes(min_len=1),
    npst.nested_dtypes(max_itemsize=200).filter(lambda d: d.itemsize > 0),
)
_arrays = npst.arrays(_dtypes, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@given(_arrays, st.booleans())
@settings(max_examples=120 * ROUNDS, deadline=None)
def test_every_array_comes_back(array, transposed):
    if transposed:
        array = array.T
    if array.size == 0 or array.dtype.itemsize == 0:
        array = np.array(array, order="C")
    found = again({"a": [array]})["a"][0]
    assert same(array, found)


@given(npst.scalar_dtypes().flatmap(lambda d: npst.arrays(d, ())))
@settings(max_examples=60 * ROUNDS, deadline=None)
def test_every_scalar_comes_back(array):
    assert same(array[()], again(array[()]))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(20000).reshape(100, 200),  # large enough to be set aside
        np.asfortranarray(np.arange(20000.0).reshape(100, 200)),
        np.arange(40000)[::2],
        np.arange(20000, dtype=">i8"),
        np.zeros((300, 300), dtype=[("a", "<i4"), ("b", ">f8", (2, 2)), ("c", "S3")]),
        np.zeros(3, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.zeros(3, dtype={"names": ["x", "y"], "formats": ["i4", "i4"], "offsets": [8, 0], "itemsize": 16}),
        np.zeros(3, dtype=[(("a title", "a"), "i4"), ("b", "U4")]),
        np.array(["NaT", "2020-01-01"], dtype="M8[25s]"),
        np.array([1], dtype="m8[s]"),
        np.longdouble("1.1"),
        np.array([1.1], dtype=np.clongdouble),
        np.str_("a\0b\0"),
        np.bytes_(b"a\0b\0"),
        np.str_(""),
        np.str_("\ud800"),
        np.void(b"abc"),
        np.zeros((), dtype=[("a", "i4"), ("b", "U4")])[()],
        np.bool_(True),
        np.datetime64("NaT", "s"),
        np.array(5),
        np.zeros((0, 2**40)),
        np.zeros((3, 0, 2), order="F"),
        {
            "x": np.arange(30000),
            1: (np.arange(30000.0), {"y": [np.arange(3), np.arange(30001)]}),
            (1,): {np.int8(1), np.float16(2)},
        },
        {np.int64(1): 2, np.str_("a"): 3},
    ],
    ids=lambda v: str(getattr(v, "dtype", "many"))[:25],
)
def test_examples(value):
    assert same(value, again(value))


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.zeros(2, dtype=[("a", "O")]),
        np.array([1]).view(np.matrix),
        np.rec.array([(1, 2)]),
        np.array(["a", "bcd"], dtype=np.dtypes.StringDType()),
        np.ndarray((3,), "S0"),
        np.zeros(3, dtype=[]),
        type("Mine", (np.float64,), {})(1.5),
    ],
    ids=lambda v: str(v.dtype),
)
def test_what_cannot_be_exact_is_refused(value):
    with pytest.raises(CodecError, match=r"value\[0\]"):
        chain.encode([value], "k")


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"w": [a, 1], "n": (1, 2)}], ids=["alone", "inside"])
def test_a_large_array_is_copied_once_each_way(wrap):
    array = np.arange(4_000_000, dtype="f8")
    value = wrap(array)
    tracemalloc.start()
    try:
        data = chain.encode(value, "k")
        assert tracemalloc.get_traced_memory()[1] < 1.05 * array.nbytes
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = chain.decode(data, "k")
        assert tracemalloc.get_traced_memory()[1] - before < 1.05 * array.nbytes
    finally:
        tracemalloc.stop()
    assert same(value, found)
    del data
    assert same(value, found)  # nothing points into what was read


def test_a_damaged_large_array_is_noticed():
    data = bytearray(chain.encode([np.arange(20000)], "k"))
    data[len(data) // 2] ^= 1
    with pytest.raises(CodecError, match="checksum"):
        chain.decode(bytes(data), "k")


def test_numpy_is_imported_only_for_arrays():
    code = """
import sys
from perdure.codecs.chain import Chain
chain = Chain()
assert chain.decode(chain.encode({"a": (1, {2})}, "k"), "k") == {"a": (1, {2})}
assert "numpy" not in sys.modules
print(repr(chain.decode(bytes.fromhex(sys.argv[1]), "k")))
"""
    data = chain.encode([np.arange(3)], "k").hex()
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[array([0, 1, 2])]", done.stderr
    code = "import sys; sys.modules['numpy'] = None\n" + code.replace('assert "numpy"', '"numpy"')
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=False)
    assert "pip install numpy" in done.stderr
