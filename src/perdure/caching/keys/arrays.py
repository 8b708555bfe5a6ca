"""How arrays and tables are written to be hashed: numpy, pandas and torch. Imported when the first of them is an argument.

Strides, the order in memory, the gaps in structures and the different bits of NaN do not count; shape and dtype with its byte
order do. Tables are written by their values, never by a hash of pandas, which has changed between its versions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from ormsgpack import packb

from .objects import Refused

if TYPE_CHECKING:
    from .hashing import Walk

__all__ = ["writer_of"]

# The long double of x86 has ten bytes, in a place for 16 whose rest is whatever was there.
_LONG_PADDED = np.finfo(np.longdouble).nmant == 63 and np.dtype(np.longdouble).itemsize == 16


def writer_of(kind: type, root: str) -> Callable[[Walk, Any], object] | None:
    """What writes values of exactly this type of numpy, pandas or torch; None for all others and for subclasses."""
    if root == "pandas":
        return _of_pandas(kind)
    if root == "torch":
        torch = sys.modules["torch"]
        return _write_tensor if kind in (torch.Tensor, torch.nn.Parameter) else None
    if kind in (np.ndarray, np.memmap):
        return _write_array
    if kind in (np.ma.MaskedArray, type(np.ma.masked)):
        return _write_masked
    if issubclass(kind, np.dtype):
        return _write_dtype
    if issubclass(kind, np.generic):
        return _write_scalar
    return None


# ------------------------------------------------------------------------------------------------------------- numpy


def _write_dtype(walk: Walk, dtype: Any) -> None:
    """A dtype by itself and in front of what is of it."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        walk.parts.append(b"\xc1Ns" + packb(shape))
        _write_dtype(walk, base)
    elif dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        titles = [field[2] if len(field) > 2 else None for field in fields]
        walk.parts.append(b"\xc1Nf" + packb((dtype.names, [field[1] for field in fields], dtype.itemsize)))
        walk.run(titles, dtype)
        for field in fields:
            _write_dtype(walk, field[0])
    else:
        # Types that other packages add, such as bfloat16, all have the str of raw bytes.
        walk.parts.append(b"\xc1Nd" + packb((dtype.str, "" if dtype.kind in "biufcmMOSUT" else dtype.name)))
        if dtype.kind == "T":
            walk.part(getattr(dtype, "na_object", None), ".na_object", dtype)


def _write_array(walk: Walk, array: Any) -> None:
    walk.parts.append(b"\xc1A")
    _write_dtype(walk, array.dtype)
    walk.parts.append(packb(array.shape))
    _write_content(walk, array, array)


def _write_content(walk: Walk, array: Any, holder: Any) -> None:
    """The elements, in the order of C; their type and number are written already."""
    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:
            _write_content(walk, array[name], holder)
    elif dtype.kind in "OT":
        walk.run(array.reshape(-1).tolist(), holder)
    elif array.size and dtype.itemsize:
        flat = np.ascontiguousarray(array).reshape(-1)
        if dtype.kind == "f":
            flat = _with_one_nan(flat)
        elif dtype.kind == "c":
            flat = _with_one_nan(flat.view(np.dtype(f"{dtype.byteorder}f{dtype.itemsize // 2}")))
        raw = flat.view(np.uint8)
        if dtype.char in "gG" and _LONG_PADDED:
            raw = raw.reshape(-1, 16)[:, slice(10) if dtype.isnative else slice(6, 16)].reshape(-1)
        walk.large(raw.data)


def _with_one_nan(flat: Any) -> Any:
    """Processors differ in the sign of the NaN that they compute."""
    with np.errstate(invalid="ignore"):
        if not np.isnan(flat.min()):
            return flat
        flat = flat.copy()
        flat[np.isnan(flat)] = np.nan
        return flat


def _write_masked(walk: Walk, array: Any) -> None:
    walk.parts.append(b"\xc1K" + packb(array is np.ma.masked))
    if array is np.ma.masked:
        return
    _write_array(walk, np.asarray(array.data))
    _write_array(walk, np.ma.getmaskarray(array))
    _write_array(walk, np.asarray(array.fill_value))


def _write_scalar(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1G")
    if isinstance(value, (str, bytes)):  # of which an array would lose zeros at the end
        whole = slice(None)
        walk.put(str.__getitem__(value, whole) if isinstance(value, str) else bytes.__getitem__(value, whole))
    else:
        _write_array(walk, np.asarray(value))


def _write_tensor(walk: Walk, tensor: Any) -> None:
    torch: Any = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise Refused("is a sparse, quantized or meta tensor", "Pass what it was made of, {leave}.")
    near = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    walk.parts.append(b"\xc1H" + packb((str(near.dtype), tuple(near.shape))))
    if near.numel():
        walk.large(near.reshape(-1).view(torch.uint8).numpy().data)


# ------------------------------------------------------------------------------------------------------------- pandas


def _of_pandas(kind: type) -> Callable[[Walk, Any], object] | None:
    pd: Any = sys.modules["pandas"]
    if kind is pd.DataFrame:
        return _write_frame
    if kind is pd.Series:
        return _write_series
    if kind is pd.RangeIndex:
        return _write_range_index
    if kind is pd.MultiIndex:
        return _write_multi_index
    if issubclass(kind, pd.Index):
        return _write_index
    if issubclass(kind, pd.api.extensions.ExtensionArray):
        return _write_values
    if issubclass(kind, pd.api.extensions.ExtensionDtype):
        return _write_extension_dtype
    if kind in (pd.Timestamp, pd.Timedelta):
        return partial(_write_moment, pd)
    if kind in (type(pd.NaT), type(pd.NA)):
        return lambda walk, value: walk.parts.append(b"\xc1X" + packb(repr(value)))
    if kind is pd.Period:
        return lambda walk, value: walk.parts.append(b"\xc1X" + packb(("Period", value.freqstr, value.ordinal)))
    if kind is pd.Interval:
        return _write_interval
    return None


def _write_moment(pd: Any, walk: Walk, value: Any) -> None:
    """A Timestamp or a Timedelta, in nanoseconds: the unit that pandas keeps it in depends on the version."""
    zoned = isinstance(value, pd.Timestamp)
    bare = value.to_numpy()
    unit, count = np.datetime_data(bare.dtype)
    nanoseconds = int(bare.view(np.int64)) * count * {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    walk.parts.append(b"\xc1J")
    walk.run((zoned, nanoseconds, str(value.tz) if zoned and value.tz is not None else None))


def _write_interval(walk: Walk, value: Any) -> None:
    walk.parts.append(b"\xc1I" + packb(value.closed))
    walk.run((value.left, value.right), value, ("left", "right"), ".{}")


def _write_extension_dtype(walk: Walk, dtype: Any) -> None:
    walk.parts.append(b"\xc1E" + packb(type(dtype).__name__))
    if hasattr(dtype, "categories"):
        walk.part(dtype.categories, ".categories", dtype)
        walk.parts.append(packb(bool(dtype.ordered)))
    else:
        walk.parts.append(packb(str(dtype)))


def _write_frame(walk: Walk, frame: Any) -> None:
    walk.parts.append(b"\xc1B")
    walk.part(frame.columns, ".columns", frame)
    walk.part(frame.index, ".index", frame)
    for name, column in frame.items():
        walk.part(column.array, f"[{name!r:.80}]", frame)
    walk.part(frame.attrs, ".attrs", frame)


def _write_series(walk: Walk, series: Any) -> None:
    walk.parts.append(b"\xc1L")
    walk.part(series.name, ".name", series)
    walk.part(series.index, ".index", series)
    walk.part(series.array, ".array", series)
    walk.part(series.attrs, ".attrs", series)


def _write_range_index(walk: Walk, index: Any) -> None:
    walk.parts.append(b"\xc1U" + packb((index.start, index.stop, index.step)))
    walk.part(index.name, ".name", index)


def _write_multi_index(walk: Walk, index: Any) -> None:
    walk.parts.append(b"\xc1V" + packb(index.nlevels))
    for level in range(index.nlevels):
        walk.part(index.get_level_values(level), f".levels[{level}]", index)


def _write_index(walk: Walk, index: Any) -> None:
    walk.parts.append(b"\xc1W")
    walk.part(index.name, ".name", index)
    walk.put(getattr(index, "freqstr", None))
    walk.part(index.array, ".array", index)


def _write_values(walk: Walk, values: Any) -> None:
    """What stands in a column, in any of the ways that pandas keeps it."""
    dtype = values.dtype
    kind = type(dtype).__name__
    if isinstance(dtype, np.dtype) or kind in ("NumpyEADtype", "PandasDtype"):
        _write_array(walk, values.to_numpy())
    elif kind == "StringDtype":  # kept by Python or by arrow, which does not count
        walk.parts.append(b"\xc1Q")
        _write_extension_dtype(walk, dtype)
        walk.run(values.to_numpy(object).tolist(), values)
    elif kind == "CategoricalDtype":
        walk.parts.append(b"\xc1Q")
        _write_extension_dtype(walk, dtype)
        _write_array(walk, np.asarray(values.codes, np.int64))
    elif kind in ("DatetimeTZDtype", "PeriodDtype"):
        walk.parts.append(b"\xc1Q")
        _write_extension_dtype(walk, dtype)
        _write_array(walk, values.asi8)
    elif hasattr(dtype, "numpy_dtype") and hasattr(values, "_mask"):  # Int64, Float64, boolean and the like
        walk.parts.append(b"\xc1Q")
        _write_extension_dtype(walk, dtype)
        missing = values.isna()
        _write_array(walk, missing)
        _write_array(walk, values.to_numpy(dtype.numpy_dtype, na_value=0))
    else:  # one by one: intervals, sparse ones, those of arrow and of other packages
        walk.parts.append(b"\xc1Q")
        _write_extension_dtype(walk, dtype)
        walk.run(list(values), values)
