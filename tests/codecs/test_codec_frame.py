from __future__ import annotations

import pickle
import threading

import pytest
from codec_values import HEAD, framed, reseal, same, seal

from perdure.codecs.chain import MAX_BYTES, Chain
from perdure.codecs.security import Encrypted, Signed
from perdure.errors import CodecError, IntegrityError, UntrustedError, UsageError

KEY = b"0123456789abcdef0123456789abcdef"
VALUES = {
    "msgpack": {"a": 1, "b": [1, (2, b"\xc4")]},
    "pkl": {"a": 1, "b": {1, 2}},
    "json": {"a": [1, None, "x"]},
    "txt": "hällo\r\n",
    "raw": b"\x00\x01\xc1",
}
FILTERS = {
    "none": [],
    "lz4": ["lz4"],
    "zstd": ["zstd"],
    "signed": [Signed(KEY)],
    "encrypted": [Encrypted(KEY)],
    "lz4+signed": ["lz4", Signed(KEY)],
    "signed+zstd": [Signed(KEY), "zstd"],
    "all": ["lz4", "zstd", Signed(KEY), Encrypted(KEY)],
}
BINARY = [(c, f) for c in VALUES for f in FILTERS if f != "none" or c in ("msgpack", "pkl")]


@pytest.mark.smoke
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("codec", VALUES)
def test_round_trip(codec, filters):
    chain = Chain(codec, FILTERS[filters])
    value = VALUES[codec]
    for size in (1, 20000):  # below and above where slices become views
        large = value * size if codec in ("txt", "raw") else [value] * size
        data = chain.encode(large, "a/b")
        assert type(data) is bytes
        assert chain.decode(data, "a/b") == large
        assert pickle.loads(pickle.dumps(chain)).decode(data, "a/b") == large


@pytest.mark.parametrize(("codec", "filters"), BINARY)
def test_every_flip_cut_and_zeroing_is_noticed(codec, filters):
    chain = Chain(codec, FILTERS[filters])
    data = chain.encode(VALUES[codec], "a/b")
    damaged = [data[:n] for n in range(len(data))]
    damaged += [bytes(n) + data[n:] for n in range(1, len(data) + 1)]
    damaged += [data[:n] + bytes(len(data) - n) for n in range(len(data))]
    damaged += [
        data[:i] + bytes([data[i] ^ x]) + data[i + 1 :] for i in range(len(data)) for x in (1, 2, 4, 8, 16, 32, 64, 128, 255)
    ]
    damaged += [data + b"\0", data + data, b"\0" + data, bytes(5)]
    for bad in damaged:
        if bad == data:
            continue
        with pytest.raises(IntegrityError) as caught:
            chain.decode(bad, "a/b")
        assert caught.value.key == "a/b"
    assert same(chain.decode(data, "a/b"), VALUES[codec])


def test_every_other_byte_at_every_place_is_noticed():
    for codec in ("msgpack", "pkl"):
        chain = Chain(codec)
        data = chain.encode(VALUES[codec], "k")
        for i in range(len(data)):
            for byte in set(range(256)) - {data[i]}:
                with pytest.raises(IntegrityError):
                    chain.decode(data[:i] + bytes([byte]) + data[i + 1 :], "k")


def test_the_layout_is_what_the_documentation_says():
    data = Chain().encode({"a": 1}, "k")
    assert data == seal(b"\xc1\x01\x01\x00" + b"\x81\xa1a\x01")
    data = Chain("raw", ["zstd", "lz4"]).encode(b"x", "k")
    assert data[:6] == b"\xc1\x01\x05\x02\x02\x01"


@pytest.mark.parametrize(("codec", "own"), [("json", b'{"a": 1}'), ("txt", b"x"), ("md", b"# x"), ("raw", b"\xffx")])
def test_bare_codecs_store_exactly_their_own_bytes(codec, own):
    chain = Chain(codec)
    assert chain.encode(chain.decode(own, "k"), "k") == own


def test_a_newer_format_says_so():
    data = reseal(Chain().encode(1, "k"), 1, 3)
    with pytest.raises(CodecError, match=r"key 'a/b': .*newer perdure \(format 2\).*pip install") as caught:
        Chain().decode(data, "a/b")
    assert not isinstance(caught.value, IntegrityError)


@pytest.mark.parametrize("given", ["msgpack", "json", "txt", "raw", "pkl"])
@pytest.mark.parametrize("written", ["msgpack", "json", "txt", "raw", "pkl"])
def test_another_codec_is_named_and_never_run(given, written):
    if given == written:
        return
    for filters in ([], ["lz4"]):
        data = Chain(written, filters).encode(VALUES[written], "k")
        if data[:1] != b"\xc1":
            continue
        with pytest.raises(CodecError, match=rf'with codec {written!r}.*open\(\.\.\., codec="{written}"\)') as caught:
            Chain(given, filters).decode(data, "k")
        assert isinstance(caught.value, UntrustedError) == (written == "pkl")


class Trap:
    """A pickle that runs code leaves a file behind."""

    def __init__(self, mark) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return exec, (f"open({self.mark!r}, 'w').close()",)


@pytest.mark.parametrize("codec", ["msgpack", "json", "txt", "raw"])
@pytest.mark.parametrize("filters", [[], ["lz4"], [Signed(KEY)]], ids=["none", "lz4", "signed"])
def test_a_planted_pickle_never_runs(codec, filters, tmp_path):
    mark = tmp_path / "ran"
    bare = pickle.dumps(Trap(mark), 5)
    packed = Chain("pkl").encode(Trap(mark), "k")
    for planted in (bare, packed, framed(bare), framed(packed, 2), Chain("pkl", ["lz4"]).encode(Trap(mark), "k")):
        try:
            found = Chain(codec, filters).decode(planted, "k")
        except CodecError as error:
            if codec == "msgpack" and planted in (bare, packed):
                assert isinstance(error, UntrustedError)
                assert "pickle" in str(error) or "not signed" in str(error)
        else:
            assert (codec == "raw" and found == planted) or found == {}  # \x80 is an empty dict of msgpack
        assert not mark.exists()
    Chain("pkl").decode(packed, "k")
    assert mark.exists()  # so the trap does work


def test_a_pickle_runs_only_when_signed(tmp_path):
    mark = tmp_path / "ran"
    signed = Chain("pkl", [Signed(KEY)])
    forged = Chain("pkl", [Signed(b"x" * 32)]).encode(Trap(mark), "k")
    unsigned = Chain("pkl", ["lz4"]).encode(Trap(mark), "k")
    for planted in (Chain("pkl").encode(Trap(mark), "k"), pickle.dumps(Trap(mark)), forged, framed(b"", 2)):
        with pytest.raises(UntrustedError):
            signed.decode(planted, "k")
    with pytest.raises(CodecError, match="filter 'lz4', which was not given"):
        signed.decode(unsigned, "k")
    moved = signed.encode(Trap(mark), "elsewhere")
    with pytest.raises(UntrustedError, match="moved here from another key"):
        signed.decode(moved, "k")
    assert not mark.exists()
    signed.decode(signed.encode(Trap(mark), "k"), "k")
    assert mark.exists()


def test_text_where_msgpack_should_be():
    with pytest.raises(IntegrityError, match='codec="json"'):
        Chain().decode(b'{"a": 1}', "k")
    with pytest.raises(IntegrityError, match="does not begin as it must"):
        Chain().decode(b"\xff\xfe", "k")


def test_filters_that_were_not_given_are_named():
    data = Chain("msgpack", ["zstd", Signed(KEY)]).encode(1, "k")
    with pytest.raises(CodecError, match=r"filter 'zstd', which was not given.*filters=\['zstd', perdure.Signed\(key\)\]"):
        Chain().decode(data, "k")
    with pytest.raises(CodecError, match="filter 'signed'"):
        Chain("msgpack", ["zstd"]).decode(data, "k")
    with pytest.raises(CodecError, match="filter number 77"):
        Chain().decode(seal(b"\xc1\x01\x01\x01\x4d\x01"), "k")
    with pytest.raises(CodecError, match="twice"):
        Chain("msgpack", ["lz4"]).decode(seal(b"\xc1\x01\x01\x02\x01\x01\x01"), "k")
    with pytest.raises(IntegrityError):
        Chain().decode(seal(b"\xc1\x01\x01\xff\x01"), "k")


@pytest.mark.parametrize("codec", VALUES)
def test_compression_may_be_switched_on_later(codec):
    before, after = Chain(codec), Chain(codec, ["lz4", "zstd"])
    value = b"\x01\x02" if codec == "raw" else VALUES[codec]
    assert same(after.decode(before.encode(value, "k"), "k"), value)
    assert same(after.decode(Chain(codec, ["zstd"]).encode(value, "k"), "k"), value)
    assert same(after.decode(Chain(codec, ["zstd", "lz4"]).encode(value, "k"), "k"), value)


@pytest.mark.parametrize("codec", VALUES)
@pytest.mark.parametrize("f", [Signed(KEY), Encrypted(KEY)], ids=["signed", "encrypted"])
def test_protection_may_not_be_missing(codec, f):
    value = b"\x01\x02" if codec == "raw" else VALUES[codec]
    for filters in ([], ["lz4"]):
        with pytest.raises(UntrustedError, match=f"not {f.name}") as caught:
            Chain(codec, ["lz4", f]).decode(Chain(codec, filters).encode(value, "k"), "k")
        assert caught.value.key == "k"
    other = Encrypted(KEY) if f.name == "signed" else Signed(KEY)
    with pytest.raises(UntrustedError, match=f"not {other.name}"):
        Chain(codec, [f, other]).decode(Chain(codec, [f]).encode(value, "k"), "k")


def test_raw_values_that_are_frames_come_back_as_they_are():
    raw = Chain("raw")
    for data in (
        Chain().encode(1, "k"),
        Chain("raw", ["lz4"]).encode(b"x", "k"),
        framed(b"x", 5),
        b"\xc1",
        b"\xc1\x01\x05\x00abcd",
    ):
        twice = raw.encode(data, "k")
        assert raw.decode(twice, "k") == data
        assert raw.decode(raw.encode(twice, "k"), "k") == twice
    assert raw.encode(b"\xc1\x01", "k") == b"\xc1\x01"


def test_limits():
    small = Chain("raw", max_bytes=100)
    assert small.decode(small.encode(bytes(100), "k"), "k") == bytes(100)
    with pytest.raises(CodecError, match="101 bytes, and max_bytes=100"):
        small.encode(bytes(101), "k")
    with pytest.raises(CodecError, match="101 bytes, and max_bytes=100"):
        small.decode(bytes(101), "k")
    with pytest.raises(CodecError, match="max_bytes=100"):
        Chain("msgpack", max_bytes=100).encode("x" * 100, "k")
    for f in ("lz4", "zstd"):
        packed = Chain("raw", [f]).encode(bytes(101), "k")
        assert len(packed) < 100
        with pytest.raises(CodecError, match="decompressed, this is larger than max_bytes=100"):
            Chain("raw", [f], max_bytes=100).decode(packed, "k")
        with pytest.raises(CodecError, match="101 bytes, and max_bytes=100"):
            Chain("raw", [f], max_bytes=100).encode(bytes(101), "k")
    packed = Chain("pkl").encode(bytes(101), "k")
    with pytest.raises(CodecError, match="larger than max_bytes"):
        Chain("pkl", max_bytes=100).decode(packed, "k")
    assert Chain().max_bytes == MAX_BYTES
    with pytest.raises(UsageError):
        Chain(max_bytes=0)


def test_a_codec_and_a_filter_of_ones_own():
    class Upper:
        name, id, safe, bare, any_bytes = "upper", 200, True, False, False

        def encode(self, value):
            if value == "bad":
                raise RuntimeError("boo")
            return [value.upper().encode(), b"!"]

        def decode(self, data, limit):
            return bytes(data).decode()

    class Flip:
        name, id, authentic = "flip", 100, False

        def encode(self, data, header, key):
            return data[::-1]

        def decode(self, data, header, key, limit):
            return bytes(data)[::-1]

    plain = Chain(Upper())
    assert plain.decode(plain.encode("abc", "k"), "k") == "ABC!"
    flipped = Chain(Upper(), [Flip()])
    assert b"!CBA" in flipped.encode("abc", "k")
    assert flipped.decode(flipped.encode("abc", "k"), "k") == "ABC!"
    with pytest.raises(CodecError, match="codec 'upper' cannot hold this value: RuntimeError: boo") as caught:
        plain.encode("bad", "k")
    assert caught.value.key == "k"
    with pytest.raises(CodecError, match="cannot decode this: UnicodeDecodeError"):
        plain.decode(framed(b"\xff", 200), "k")
    with pytest.raises(CodecError, match="codec number 200"):
        Chain().decode(plain.encode("a", "k"), "k")


def test_one_chain_serves_many_threads():
    chain = Chain("msgpack", ["lz4", "zstd", Signed(KEY), Encrypted(KEY)])
    wrong = []

    def work(n):
        for i in range(100):
            value = {"n": n, "i": (i, bytes(i * 10))}
            if chain.decode(chain.encode(value, f"k{n}"), f"k{n}") != value:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_filter_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        Chain("raw", ["lz4", "lz4"])


def test_repr_tells_the_parts():
    assert repr(Chain("json", ["lz4"], trusted=True)) == "Chain('json', ['lz4'], trusted=True)"
    assert repr(Chain("md")) == "Chain('md')"
    assert Chain("md").codec.name == "md"
    assert Chain()._header == HEAD
