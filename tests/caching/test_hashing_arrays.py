"""Arrays and tables of equal type and value share a digest, however they lie in memory, and others do not."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from datetime import UTC
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from perdure.caching.keys.hashing import digest
from perdure.errors import UsageTypeError


def d(value) -> str:
    return digest((value,), ("x",))


def all_differ(values) -> None:
    found: dict[str, object] = {}
    for value in values:
        name = d(value)
        assert name not in found, f"{value!r} is taken for {found[name]!r}"
        found[name] = value


# ------------------------------------------------------------------------------------------------- numpy

record = np.dtype([("a", "i1"), ("b", "<f8")])


def test_different_arrays_have_different_digests() -> None:
    all_differ(
        [
            np.zeros(3), np.zeros((3, 1)), np.zeros((1, 3)), np.zeros(4), np.zeros(()), np.zeros(0), np.zeros((0, 3)),
            np.zeros((3, 0)), np.zeros(3, ">f8"), np.zeros(3, "f4"), np.zeros(6, "f4"), np.zeros(3, "i8"), np.zeros(3, "u8"),
            np.zeros(3, "M8[ns]"), np.zeros(3, "M8[us]"), np.zeros(3, "M8[25us]"), np.zeros(3, "m8[ns]"), np.zeros(3, "c8"),
            np.zeros(3, bool), np.zeros(3, "i1"), np.zeros(3, "V1"), np.zeros(3, "S1"), np.zeros(3, "U1"), np.zeros(3, "U2"),
            np.array([0.0, -0.0, 0.0]), np.array([np.nan, 0, 0]), np.array([0, np.nan, 0]), np.array([1, 2]), np.array([2, 1]),
            np.array([complex(np.nan, 1)]), np.array([complex(np.nan, 2)]), np.array([complex(1, np.nan)]), np.zeros(3, record),
            np.zeros(3, np.dtype([("b", "i1"), ("a", "<f8")])), np.zeros(3, np.dtype([("a", "i1"), ("b", "<f8")], align=True)),
            np.zeros(3, np.dtype([("a", "i1"), ("b", "<i8")])), np.zeros(3, np.dtype([("a", "i1", (2, 2)), ("b", "<f8")])),
            np.zeros(3, np.dtype([(("t", "a"), "i1"), ("b", "<f8")])), np.array(["a", "b"]), np.array(["ab"]),
            np.array(["a", "b"], object), np.array([1, 2], object), np.array([1.0, 2], object), np.array([[1, 2]], object),
            np.array([None, "a"], object), np.longdouble([1, 2]), [1.0, 2.0], (1.0, 2.0), np.ma.array([1, 2]),
            np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0]), np.ma.array([1, 2], fill_value=7), np.ma.masked,
            np.float64(1), 1.0, np.float32(1), np.int64(1), np.bool_(1), np.array(1.0), np.str_("a"), "a", np.str_(""),
            np.str_("\0"), np.bytes_(b"a"), np.bytes_(b""), np.bytes_(b"\0"), np.datetime64(1, "s"), np.datetime64(1, "ms"),
            np.datetime64("NaT"), np.timedelta64(1, "s"), np.zeros(1, record)[0], np.ones(1, record)[0], np.longdouble(1),
            np.complex64(1), np.dtype("f8"), np.dtype(">f8"), np.dtype("M8[s]"), record, np.float64,
            *([np.array(["a", "b"], np.dtypes.StringDType())] if hasattr(np.dtypes, "StringDType") else []),
        ]
    )  # fmt: skip


@given(
    npst.arrays(
        st.one_of(npst.scalar_dtypes(), npst.nested_dtypes(max_itemsize=100)), npst.array_shapes(min_side=0, max_side=3)
    )
)
@settings(max_examples=200, deadline=None)
def test_strides_copies_and_pickles_do_not_count(array) -> None:
    expected = d(array)
    assert d(np.asfortranarray(array)) == expected
    assert d(array.T.copy().T) == expected
    assert d(array[..., ::-1].copy()[..., ::-1]) == expected
    assert d(np.repeat(array, 2, axis=0)[::2]) == expected
    again = pickle.loads(pickle.dumps(array))
    assert (d(again) == expected) == (again.dtype == array.dtype)  # the byte order of an empty one gets lost in numpy
    assert d(copy.deepcopy(array)) == expected
    array = array.copy()
    array.flags.writeable = False
    assert d(array) == expected


def test_what_lies_between_does_not_count() -> None:
    aligned = np.dtype([("a", "i1"), ("b", "<f8")], align=True)
    assert d(np.zeros(16, np.uint8).view(aligned)) == d(np.array([0] + [255] * 7 + [0] * 8, np.uint8).view(aligned))
    if np.finfo(np.longdouble).nmant == 63:
        for kind, size in ((np.longdouble, 16), (np.clongdouble, 32)):
            one = np.ones(2, kind)
            raw = one.view(np.uint8).copy()
            raw.reshape(-1, 16)[:, 10:] = 255
            assert d(raw.view(kind)) == d(one) != d(one * 2)
            assert one.itemsize == size
            swapped = one.astype(one.dtype.newbyteorder())
            raw = swapped.view(np.uint8).copy()
            raw.reshape(-1, 16)[:, :6] = 255
            assert d(raw.view(swapped.dtype)) == d(swapped) != d((one * 2).astype(swapped.dtype))


def test_all_nan_are_one_in_arrays_too() -> None:
    for kind in ("f2", "f4", "f8", ">f8", "g"):
        one = np.array([np.nan, 1], kind)
        other = np.where(np.isnan(one), -one, one).astype(kind)
        assert one.tobytes() != other.tobytes()
        assert d(one) == d(other)
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], "u8").view("f8")
    assert d(odd) == d(np.array([np.nan, np.nan]))
    assert odd.view("u8")[0] == 0x7FF8000000000001, "the argument itself stays as it was"
    assert d(odd.view("c16")) == d(np.array([complex(np.nan, np.nan)]))
    assert d(odd[0]) == d(np.float64("nan"))


def test_a_memory_map_is_the_array_it_maps(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5.0))
    assert d(np.load(tmp_path / "a.npy", mmap_mode="r")) == d(np.arange(5.0))


def test_arrays_inside_of_other_values_count_in_the_order_of_these() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    all_differ([[zeros, ones], [ones, zeros], [zeros], {"a": zeros}, {"a": ones}, {1: zeros}, {1: ones}, (zeros, ones)])
    assert d({1: zeros, "a": ones}) == d({"a": ones, 1: zeros})


def test_what_is_more_than_an_array_is_refused() -> None:
    class Mine(np.ndarray):
        pass

    with pytest.raises(UsageTypeError, match=r"argument 'x' is of type .*Mine, a subclass of numpy\.ndarray"):
        d(np.zeros(3).view(Mine))
    with pytest.raises(UsageTypeError, match=r"argument 'x', at \[1\], is of type function"):
        d(np.array([1, print, d], object)[[0, 2]])
    with pytest.raises(UsageTypeError, match=r"argument 'x' is of type numpy\.\S*Generator, and no key"):
        d(np.random.default_rng(1))
    itself = np.array([None], object)
    itself[0] = [itself]
    with pytest.raises(UsageTypeError, match=r"argument 'x' holds itself, at \[0\]\[0\]"):
        d(itself)


def test_arrays_have_the_same_digest_in_every_version() -> None:
    values = [
        np.arange(5, dtype="<i8"), np.array([[1.5, np.nan]], "<f8"), np.array(["a", "bc"], "<U2"), np.zeros(2, record),
        np.ma.array(np.array([1, 2], "<i4"), mask=[0, 1]), np.array([1, "a", None], object), np.float32(1.5),
        np.datetime64("2026-01-02", "s"), np.dtype("<f4"),
    ]  # fmt: skip
    assert d(values) == "d41f5334b2be5860cdebeedbced62b41"


# ------------------------------------------------------------------------------------------------- pandas


def frames(pd):
    a = pd.DataFrame({"a": [1, 2], "b": [1.0, 2.0]})
    named = a.copy()
    named.index.name = "i"
    noted = a.copy()
    noted.attrs["unit"] = "m"
    return [
        a, a[["b", "a"]], a.rename(columns={"a": "c"}), a.astype({"a": "int32"}), a.set_index("a"), a.iloc[::-1], a.iloc[:1],
        a.iloc[:0], a.T, named, noted, a.set_axis([5, 6]), a.set_axis(["x", "y"]), a.set_index(["a", "b"]), a.astype(object),
        a.astype("category"), a.astype("Int64"), pd.DataFrame(), pd.DataFrame({"a": [1, 2]}), pd.DataFrame([[1, 2]]),
        pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame([[2, 1]], columns=["a", "a"]),
        pd.DataFrame({("a", "b"): [1], ("a", "c"): [2]}),
    ]  # fmt: skip


def columns(pd):
    days = pd.to_datetime(["2026-01-01", "2026-01-02"])
    return [
        pd.Series([1, 2]), pd.Series([1, 2], name="a"), pd.Series([1.0, 2]), pd.Series([True, False]),
        pd.Series([1, 2], [1, 2]),
        pd.Series([1, 2], dtype="Int64"), pd.Series([1, None], dtype="Int64"), pd.Series([1, 0], dtype="Int64"),
        pd.Series([1, 2], dtype="UInt8"), pd.Series([1, None], dtype="Float64"), pd.Series([True, None], dtype="boolean"),
        pd.Series([False, None], dtype="boolean"), pd.Series(["a", "b"]), pd.Series(["a", "b"], dtype="string"),
        pd.Series(["a", None], dtype="string"), pd.Series(["a", None], dtype=object), pd.Series(["a", np.nan], dtype=object),
        pd.Series(["a", "b"], dtype="category"), pd.Series(["b", "a"], dtype="category"),
        pd.Series(pd.Categorical(["a", "b"], ["a", "b", "c"])), pd.Series(pd.Categorical(["a", "b"], ["b", "a"])),
        pd.Series(pd.Categorical(["a", "b"], ["a", "b"], ordered=True)), pd.Series(pd.Categorical(["a", None], ["a", "b"])),
        pd.Series(days), pd.Series(days.as_unit("s")), pd.Series(days.tz_localize("UTC")),
        pd.Series(days.tz_localize("Europe/Berlin")), pd.Series(days - days[0]), pd.Series(days.to_period("D")),
        pd.Series(days.to_period("M")), pd.Series(pd.IntervalIndex.from_breaks([0, 1, 2])),
        pd.Series(pd.IntervalIndex.from_breaks([0, 1, 2], closed="left")), pd.Series(pd.arrays.SparseArray([0, 1])),
        pd.Series(pd.arrays.SparseArray([0, 1], fill_value=1)), pd.Series([1, "a"]), pd.Series([[1], [2]]),
        pd.Series([pd.NaT, 1], dtype=object), pd.Series([pd.NA, 1], dtype=object), pd.Series([], dtype=object),
        pd.Series([Decimal(1), Decimal(2)]),
    ]  # fmt: skip


def others(pd):
    day = pd.Timestamp("2026-01-02 03:04:05.000000006")
    return [
        pd.Index([0, 1]), pd.RangeIndex(2), pd.RangeIndex(2, name="a"), pd.RangeIndex(0, 4, 2), pd.Index([0, 1], name="a"),
        pd.Index(["a"]), pd.Index([1.0]), pd.MultiIndex.from_tuples([(1, "a")]),
        pd.MultiIndex.from_tuples([(1, "a")], names=[1, 2]),
        pd.DatetimeIndex(["2026-01-01"]), pd.date_range("2026-01-01", periods=1, freq="h"), pd.CategoricalIndex(["a"]), day,
        day.tz_localize("UTC"), day.tz_localize("Europe/Berlin"), day + pd.Timedelta(1), day.to_pydatetime(warn=False), pd.NaT,
        pd.NA, None, np.nan, pd.Timedelta(1), pd.Timedelta(1, "s"), pd.Period("2026", "Y"), pd.Period("2026-01", "M"),
        pd.Interval(0, 1), pd.Interval(0, 1, "both"), pd.Categorical(["a"]), pd.array([1, 2]), pd.array(["a"], dtype="string"),
        pd.Int64Dtype(), pd.CategoricalDtype(["a"]), pd.CategoricalDtype(["a"], True), pd.StringDtype(), pd.DataFrame,
    ]  # fmt: skip


@pytest.mark.parametrize("make", [frames, columns, others])
def test_different_tables_have_different_digests(make) -> None:
    pd = pytest.importorskip("pandas")
    all_differ(make(pd))


@pytest.mark.parametrize("make", [frames, columns, others])
def test_copies_and_pickles_of_tables_are_the_same(make) -> None:
    pd = pytest.importorskip("pandas")
    for value in make(pd):
        expected = d(value)
        assert d(pickle.loads(pickle.dumps(value))) == expected
        assert d(copy.deepcopy(value)) == expected
        if make is frames and len(value.columns):
            # Columns that lie in memory one by one, and as one block.
            parts = pd.concat([value.iloc[:, [at]] for at in range(value.shape[1])], axis=1)
            parts.attrs, parts.columns = dict(value.attrs), value.columns
            assert d(parts) == d(parts.copy()) == expected


def test_how_pandas_keeps_a_column_does_not_count() -> None:
    pd = pytest.importorskip("pandas")
    assert d(pd.Series(["a", None], dtype="string[python]")) == d(pd.Series(["a", None], dtype="string"))
    hidden = pd.array([1, 2], dtype="Int64")
    hidden[0] = None
    other = pd.array([7, 2], dtype="Int64")
    other[0] = None
    assert d(hidden) == d(other)
    levels = pd.MultiIndex.from_tuples([(1, "a"), (2, "b")])
    assert d(levels[:1]) == d(pd.MultiIndex.from_tuples([(1, "a")]))
    assert d(pd.Timestamp("2026-01-02").as_unit("s")) == d(pd.Timestamp("2026-01-02").as_unit("ns"))
    assert d(pd.Timestamp("2026-01-02", tz="UTC")) == d(pd.Timestamp("2026-01-02", tz=UTC))


def test_what_a_table_holds_is_named_when_it_is_refused() -> None:
    pd = pytest.importorskip("pandas")
    with pytest.raises(UsageTypeError, match=r"argument 'x', at \['f'\]\[1\], is of type function"):
        d(pd.DataFrame({"n": [1, 2], "f": [1, d]}))

    class Mine(pd.DataFrame):
        pass

    with pytest.raises(UsageTypeError, match=r"argument 'x' is of type .*Mine, a subclass of pandas\."):
        d(Mine({"a": [1]}))


def test_text_as_objects_is_another_dtype_than_text() -> None:
    pd = pytest.importorskip("pandas")
    for make in (pd.Series, pd.Index, pd.array):
        kinds = {str(values.dtype): values for values in (make(["a"], dtype=kind) for kind in ("str", "string", object))}
        all_differ([*kinds.values()])
        assert "object" in kinds
    labels = [pd.DataFrame([[1]], columns=pd.Index(["a"], dtype=kind)) for kind in ("string", object)]
    all_differ(labels)


def test_tables_have_the_same_digest_in_every_version() -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(
        {
            "n": [1, 2],
            "t": pd.Series(["a", "b"], dtype=object),  # as it depends on the version what text is by default
            "c": pd.Categorical(["x", "y"], pd.Index(["x", "y"], dtype=object)),
            "i": pd.array([1, None], dtype="Int64"),
            "d": pd.to_datetime(["2026-01-01", "2026-01-02"]).as_unit("ns").tz_localize("Europe/Berlin"),
        }
    )
    table.columns = table.columns.astype(object)
    assert (
        d([table, table["n"], table.index, pd.Timestamp("2026-01-02"), pd.Timedelta(5, "s"), pd.NaT, pd.NA])
        == "a48f9255fd6f3506a57da1cf0a663de4"
    )


def test_numpy_is_not_imported_for_what_is_no_array() -> None:
    import subprocess

    program = (
        "import sys; from perdure.caching.keys.hashing import digest; digest(({'a': [1]}, 2)); digest((int, ...));"
        "assert not {'numpy', 'pandas', 'torch', 'pydantic', 'msgspec', 'zoneinfo', 'fractions'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert isinstance(sys.modules["numpy"], types.ModuleType)


# ------------------------------------------------------------------------------------------------- torch


def test_tensors_count_by_type_shape_and_values() -> None:
    torch = pytest.importorskip("torch")
    ones = torch.ones(2, 3)
    all_differ(
        [ones, ones.T, ones.double(), ones.bfloat16(), ones.half(), torch.zeros(2, 3), torch.ones(6), torch.ones(()),
         torch.ones(0), torch.tensor([1j]), torch.tensor([True]), torch.tensor([1]), ones.numpy()]
    )  # fmt: skip
    assert d(ones) == d(ones.T.contiguous().T) == d(torch.nn.Parameter(ones)) == d(torch.ones(2, 6)[:, ::2])
    assert d(torch.tensor([1j]).conj()) == d(torch.tensor([complex(0, -1)])) != d(torch.tensor([1j]))
    with pytest.raises(UsageTypeError, match="argument 'x' is a sparse, quantized or meta tensor"):
        d(ones.to_sparse())
