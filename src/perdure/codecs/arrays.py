"""numpy arrays and scalars in msgpack. Imported only when numpy is loaded, or when what is read holds an array."""

from __future__ import annotations

import re
from math import prod
from typing import Any, Final

import numpy as np
from ormsgpack import Ext

from ..errors import CodecError
from .types import ARRAY, ARRAY_IN_TAIL, NUMPY_SCALAR, Encoder, Pack, Unpack

__all__ = ["decode_array", "decode_array_in_tail", "decode_scalar", "encoder_of"]

_LARGE: Final = 1 << 16  # from here on an array's bytes follow after the body, copied once
_simple = re.compile(r"[<>|=][?biufcmMSUV]\d+(\[\d*[A-Za-z]+\])?\Z").match


def encoder_of(kind: type) -> Encoder | None:
    """Return what writes values of exactly this type, for types of numpy; None for others and for subclasses of them."""
    if kind is np.ndarray:
        return _encode_array
    if issubclass(kind, np.generic) and kind.__module__ == "numpy":
        return _encode_scalar
    return None


def _encode_array(value: Any, pack: Pack) -> Ext:
    spec = spec_of(value.dtype)
    if value.flags.c_contiguous or not value.flags.f_contiguous:
        order, flat = "C", np.ascontiguousarray(value)
    else:
        order, flat = "F", value.T
    shape = list(value.shape)
    if value.nbytes < _LARGE:
        return Ext(ARRAY, pack([spec, shape, order, flat.tobytes()]))
    if pack.set_aside is None:
        raise TypeError("large: it is set aside by the careful way")
    pack.set_aside.append(flat.reshape(-1).view(np.uint8).data)
    return Ext(ARRAY_IN_TAIL, pack([spec, shape, order]))


def decode_array(data: bytes, unpack: Unpack) -> Any:
    spec, shape, order, flat = unpack(data)
    return _array(dtype_of(spec), shape, order, flat)


def decode_array_in_tail(data: bytes, unpack: Unpack) -> Any:
    spec, shape, order = unpack(data)
    dtype = dtype_of(spec)
    if unpack.tail is None:
        raise CodecError("an array is missing after the body")
    _check_shape(shape)
    return _array(dtype, shape, order, unpack.tail.take(prod(shape) * dtype.itemsize))


def _check_shape(shape: Any) -> None:
    if type(shape) is not list or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise CodecError("the shape of an array is not a list of lengths")


def _array(dtype: Any, shape: Any, order: Any, flat: bytes | memoryview) -> Any:
    _check_shape(shape)
    # Python's integers do not overflow, so a shape can neither wrap around to fit nor ask for more than is there.
    if prod(shape) * dtype.itemsize != len(flat) or order not in ("C", "F"):
        raise CodecError("the shape and type of an array do not fit its bytes")
    if not len(flat):
        return np.empty(shape, dtype, order)
    array = np.empty(shape, dtype, order)
    # Byte by byte, because a copy of a structure leaves the gaps in it as they were in memory.
    (array.T if order == "F" else array).reshape(-1).view(np.uint8)[:] = np.frombuffer(flat, np.uint8)
    return array


def _encode_scalar(value: Any, pack: Pack) -> Ext:
    # Text and bytes go as such, and by the methods of str and bytes, because those of numpy strip zeros from the end.
    if isinstance(value, np.str_):
        return Ext(NUMPY_SCALAR, pack(["U", str.__getitem__(value, slice(None))]))
    if isinstance(value, np.bytes_):
        return Ext(NUMPY_SCALAR, pack(["S", bytes.__getitem__(value, slice(None))]))
    return Ext(NUMPY_SCALAR, pack([spec_of(value.dtype), value.tobytes()]))


def decode_scalar(data: bytes, unpack: Unpack) -> Any:
    spec, content = unpack(data)
    if spec == "U" and type(content) is str:
        return np.str_(content)
    if spec == "S" and type(content) is bytes:
        return np.bytes_(content)
    return _array(dtype_of(spec), [], "C", content)[()]


# A type is spelled as text ("<f8"), as [type, shape] for an array inside of a structure, or as a dict for a structure.


def spec_of(dtype: Any) -> Any:
    spec = _any_spec(dtype)
    if dtype.itemsize == 0 or dtype_of(spec) != dtype:
        raise TypeError(f"its dtype {dtype} cannot be spelled exactly")
    return spec


def _any_spec(dtype: Any) -> Any:
    if dtype.subdtype:
        base, shape = dtype.subdtype
        return [_any_spec(base), list(shape)]
    if dtype.names is None:
        if not _simple(dtype.str) or dtype.hasobject:
            raise TypeError(f"its dtype {dtype} holds Python objects or has no fixed size")
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [_any_spec(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def dtype_of(spec: Any) -> Any:
    dtype = _any_dtype(spec)
    if dtype.hasobject or dtype.itemsize == 0:
        raise CodecError("an array is of a type that perdure never writes")
    return dtype


def _any_dtype(spec: Any) -> Any:
    if type(spec) is str and _simple(spec):
        return np.dtype(spec)
    if type(spec) is list:
        base, shape = spec
        _check_shape(shape)
        return np.dtype((_any_dtype(base), tuple(shape)))
    if type(spec) is dict:
        layout: Any = {key: spec[key] for key in ("names", "offsets", "itemsize")}
        layout["formats"] = [_any_dtype(inner) for inner in spec["formats"]]
        if any(title is not None for title in spec["titles"]):
            layout["titles"] = spec["titles"]
        return np.dtype(layout, align=bool(spec["aligned"]))
    raise CodecError("an array is of a type that perdure never writes")
