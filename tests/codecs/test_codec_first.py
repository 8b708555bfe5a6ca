"""What is read before ormsgpack is imported is what ormsgpack would have made of it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap

from codec_values import ROUNDS, same, values
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perdure.codecs import packing
from perdure.codecs.msgpack import Msgpack
from perdure.codecs.protocol import Pieces
from perdure.errors import CodecError

LIMIT = 2**31


def read_first(data: bytes) -> tuple[object, bool]:
    """What a new codec makes of bytes, and whether it did so by itself."""
    codec = Msgpack()
    codec._allowance, codec.decode = 1 << 20, codec._decode_first  # as if nobody had imported ormsgpack yet
    value = codec.decode(data, LIMIT)
    return value, codec.decode == codec._decode_first


def whole(pieces: Pieces) -> bytes:
    return pieces if isinstance(pieces, bytes) else b"".join(pieces)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=30,
)


@given(plain)
@example([0] * 15 + [b"\xff" * 70000, "x" * 70000, [1] * 70000, dict.fromkeys(map(str, range(70000)))])
@settings(max_examples=300 * ROUNDS, deadline=None)
def test_plain_values_are_read_without_ormsgpack(value: object) -> None:
    found, alone = read_first(whole(packing.encode(value)))
    assert same(found, value)
    assert alone


@given(values)
@settings(max_examples=100 * ROUNDS, deadline=None)
def test_all_other_values_are_left_to_it(value: object) -> None:
    assert same(read_first(whole(packing.encode(value)))[0], value)


@given(plain, st.data())
@settings(max_examples=600 * ROUNDS, deadline=None)
def test_damaged_bytes_are_read_or_refused_alike(value: object, data: st.DataObject) -> None:
    raw = bytearray(whole(packing.encode(value)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    outcomes = []
    for decode in (lambda raw: read_first(raw)[0], lambda raw: packing.decode(raw, LIMIT)):
        try:
            outcomes.append(decode(bytes(raw)))
        except CodecError as error:
            outcomes.append(str(error))
    assert same(*outcomes)


def test_marks_that_are_never_plain_and_lengths_that_lie() -> None:
    for raw in [
        b"",
        b"\xc1",
        b"\xca\0\0\0\0",
        b"\xd4\x01\0",
        b"\xc7\0\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb",
    ]:
        first = _outcome(lambda raw=raw: read_first(raw)[0])
        assert first == _outcome(lambda raw=raw: packing.decode(raw, LIMIT)), raw
    nested = b"\x91" * 5000 + b"\xc0"
    assert _outcome(lambda: read_first(nested)[0]) == _outcome(lambda: packing.decode(nested, LIMIT))


def _outcome(act) -> str:
    try:
        return repr(act())
    except CodecError as error:
        return str(error)


def test_it_is_copied_and_pickled() -> None:
    for again in (copy.copy, copy.deepcopy, lambda codec: pickle.loads(pickle.dumps(codec))):
        assert again(Msgpack()).decode(packing.encode({"a": [1]}), LIMIT) == {"a": [1]}


def test_a_process_that_reads_little_imports_little(tmp_path) -> None:
    script = f"""
        import sys, perdure
        d = perdure.open({str(tmp_path / "d")!r}, sync="normal")
        if sys.argv[1] == "write":
            d["a"], d["large"], d["set"] = {{"b": [1, 2.5, None]}}, "x" * 10_000, {{1}}
            sys.exit()
        assert d[sys.argv[1]]
        heavy = "ormsgpack dataclasses inspect uuid decimal hashlib urllib.parse asyncio ctypes threading weakref copy"
        print(sorted(set(heavy.split()) & set(sys.modules)))
    """
    outputs = []
    for word in ("write", "a", "large", "set"):
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), word], capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    assert outputs[:2] == ["", "[]\n"]
    assert "ormsgpack" in outputs[2]
    assert "ormsgpack" in outputs[3]


def test_a_call_in_the_middle_of_the_import_says_so() -> None:
    script = """
        import sys
        from perdure.codecs.chain import Chain
        from perdure.errors import CodecError

        class Nested:  # as a signal handler or a finalizer would come in between
            def find_spec(self, name, path=None, target=None):
                if name in ("perdure.codecs.types", "ormsgpack"):
                    for chain in (Chain(), outer):
                        try:
                            chain.encode({1}, "k")
                        except CodecError as error:
                            print(error)

        outer = Chain()
        sys.meta_path.insert(0, Nested())
        assert outer.decode(outer.encode({1}, "k"), "k") == {1}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all("the codec is being imported, and this was called by a signal handler" in line for line in lines), lines
