"""What the tests of codecs share: values of every kind, an exact comparison, and frames made by hand."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import subprocess
import sys
import textwrap
from datetime import timedelta, timezone
from decimal import Decimal
from struct import pack
from zlib import crc32

import numpy as np
from hypothesis import strategies as st

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "1"))


def same(a, b) -> bool:
    """Equal in value and in type, in every part; nan is nan, 0.0 is not -0.0, and dicts keep their order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(k, j) and same(a[k], b[j]) for k, j in zip(a, b, strict=True))
    if isinstance(a, (set, frozenset)):
        left = list(b)
        for x in a:
            match = next((y for y in left if same(x, y)), left)
            if match is left:
                return False
            left = [y for y in left if y is not match]
        return not left
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, np.ndarray):
        order = a.flags.f_contiguous and not a.flags.c_contiguous
        kept = b.flags.writeable and (b.flags.f_contiguous and not b.flags.c_contiguous) == order
        return kept and same_dtype(a.dtype, b.dtype) and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (np.str_, np.bytes_)):
        plain = str if isinstance(a, str) else bytes  # their own methods do not strip zeros from the end
        return plain.__getitem__(a, slice(None)) == plain.__getitem__(b, slice(None))
    if isinstance(a, np.generic):
        return same_dtype(a.dtype, b.dtype) and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if hasattr(a, "tzinfo"):
        return repr(a) == repr(b) and a.fold == b.fold and type(a.tzinfo) is type(b.tzinfo)
    if isinstance(a, slice):
        return same([a.start, a.stop, a.step], [b.start, b.stop, b.step])
    return a == b and repr(a) == repr(b)


def same_dtype(a, b) -> bool:
    return a == b and a.str == b.str and a.fields == b.fields and a.isalignedstruct == b.isalignedstruct


_offsets = st.builds(
    timezone,
    st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)),
)
_named = st.builds(timezone, st.just(timedelta(hours=2)), st.text(max_size=5))
zones = st.none() | _offsets | _named | st.timezones()
text = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates too
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400)]),
    st.floats(),
    text,
    st.binary(max_size=8),
    st.complex_numbers(),
    st.decimals().filter(lambda d: not d.is_snan()),
    st.sampled_from([Decimal("-0"), Decimal("1E+999999"), Decimal("NaN123"), Decimal("1.10")]),
    st.uuids(),
    st.dates(),
    st.times(timezones=zones),
    st.datetimes(timezones=zones),
    st.datetimes().map(lambda d: d.replace(fold=1)),
    st.timedeltas(),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 5)),
)
hashables = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
leaves = scalars | st.binary(max_size=8).map(bytearray) | st.builds(slice, scalars, scalars) | st.just(Decimal("sNaN"))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(text, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
    ),
    max_leaves=15,
)

HEAD = b"\xc1\x01\x01\x00"  # magic, format 1, msgpack, no filters


def seal(body: bytes) -> bytes:
    """Add the checksum that belongs to it."""
    return body + pack("<I", crc32(body))


def reseal(data: bytes, at: int, change: int = 1) -> bytes:
    """Change one byte of a frame and give it the right checksum again: what an attacker does, and damage never."""
    body = bytearray(data[:-4])
    body[at] ^= change
    return seal(bytes(body))


def framed(payload: bytes, codec: int = 1) -> bytes:
    return seal(bytes((0xC1, 1, codec, 0)) + payload)


def in_a_small_process(code: str, megabytes: int = 200) -> str:
    """Run code in a process of its own, check that it neither died nor ever held more memory, and return what it printed."""
    wrapped = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n{textwrap.dedent(code)}\n"
    # Not getrusage: its figure begins with that of the process that forked this one.
    wrapped += (
        "import re as _r; print('PEAK', int(_r.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # so that a failing test does not take the machine along

    done = subprocess.run(
        [sys.executable, "-c", wrapped], capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    output, _, peak = done.stdout.rpartition("PEAK ")
    assert int(peak) < megabytes, f"{peak.strip()} MB\n{output}"
    return output
