from __future__ import annotations

import os
import pickle

import lz4.frame
import pytest
import zstandard
from codec_values import in_a_small_process, reseal, seal
from hypothesis import given, settings
from hypothesis import strategies as st

import perdure
from perdure.codecs.chain import Chain
from perdure.codecs.compression import Lz4, Zstd, expand_lz4
from perdure.codecs.security import Encrypted, Signed
from perdure.errors import CodecError, IntegrityError, MissingExtraError, UntrustedError, UsageError

KEY = b"0123456789abcdef0123456789abcdef"
OLD = b"an older key of thirty-two bytes"
KEYED = [Signed, Encrypted]


@given(st.binary(max_size=3000) | st.binary(max_size=10).map(lambda b: b * 5000))
@settings(max_examples=100, deadline=None)
def test_compression_comes_back(data):
    for f in (Lz4(), Lz4(9), Zstd(), Zstd(10), Zstd(-5)):
        assert f.decode(f.encode(data, b"", "k"), b"", "k", len(data) + 1) == data
        assert f.decode(memoryview(f.encode(data, b"", "k")), b"", "k", max(1, len(data))) == data


def test_a_frame_just_as_large_as_the_limit_is_read():
    for f in (Lz4(), Zstd()):
        packed = f.encode(bytes(100_000), b"", "k")
        assert f.decode(packed, b"", "k", 100_000) == bytes(100_000)
        with pytest.raises(CodecError, match="larger than max_bytes=99,999"):
            f.decode(packed, b"", "k", 99_999)


def test_frames_of_others_without_a_size_are_read_and_bounded():
    data = os.urandom(1000) * 300
    packed = lz4.frame.compress(data, store_size=False)
    assert expand_lz4(packed, len(data)) == data
    with pytest.raises(CodecError, match="larger"):
        expand_lz4(packed, len(data) - 1)
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    assert Zstd().decode(packed, b"", "k", len(data)) == data
    with pytest.raises(CodecError, match="larger"):
        Zstd().decode(packed, b"", "k", len(data) - 1)
    with pytest.raises(IntegrityError):
        Zstd().decode(packed[:-10], b"", "k", len(data))


@pytest.mark.parametrize("size", [True, False])
def test_more_or_less_than_one_frame_is_damage(size):
    for f, packed in (
        (Lz4(), lz4.frame.compress(b"abc" * 99, store_size=size)),
        (Zstd(), zstandard.ZstdCompressor(write_content_size=size).compress(b"abc" * 99)),
    ):
        for bad in (packed[:-1], packed + b"x", packed + packed, b"", b"x" * 20):
            with pytest.raises(IntegrityError):
                f.decode(bad, b"", "k", 10**6)


def lying(packed: bytes, claim: int) -> bytes:
    """An lz4 frame with another size in its head, and the right checksum of the head."""
    head = bytearray(packed[:15])
    head[6:14] = claim.to_bytes(8, "little")
    for check in range(256):
        head[14] = check
        try:
            lz4.frame.get_frame_info(bytes(head) + packed[15:])
            lz4.frame.LZ4FrameDecompressor().decompress(bytes(head))
        except RuntimeError:
            continue
        return bytes(head) + packed[15:]
    raise AssertionError("no checksum fits")


def test_an_lz4_head_that_lies_is_damage():
    packed = lz4.frame.compress(bytes(100_000), store_size=True)
    assert expand_lz4(lying(packed, 100_000), 10**6) == bytes(100_000)
    for claim in (1, 99_999, 100_001, 10**5 + 400):
        with pytest.raises(IntegrityError):
            expand_lz4(lying(packed, claim), 10**6)
    with pytest.raises(CodecError):
        expand_lz4(lying(packed, 2**40), 10**6)


def test_bombs_do_not_take_memory():
    """Some hundred bytes that claim, or really unfold into, many gigabytes; default limits and small ones."""
    output = in_a_small_process("""
        import sys, lz4.frame, zstandard
        from test_codec_filters import *
        from perdure.codecs import compression

        def zstd_bomb(megabytes, sized):
            c = zstandard.ZstdCompressor(level=1)
            o = c.compressobj(size=megabytes << 20) if sized else c.compressobj()
            return b"".join([o.compress(bytes(1 << 20)) for _ in range(megabytes)] + [o.flush()])

        def lz4_bomb(megabytes, sized):
            c = lz4.frame.LZ4FrameCompressor()
            parts = [c.begin(source_size=megabytes << 20 if sized else 0)]
            return b"".join(parts + [c.compress(bytes(1 << 20)) for _ in range(megabytes)] + [c.flush()])

        empty = b"\\x28\\xb5\\x2f\\xfd\\xa0" + (2**31 - 1).to_bytes(4, "little") + b"\\x01\\x00\\x00"
        small = lz4.frame.compress(b"x", store_size=True)
        frames = {
            "zstd claims 4 GiB": (2, b"\\x28\\xb5\\x2f\\xfd\\xe0" + (2**32).to_bytes(8, "little") + b"\\x01\\x00\\x00"),
            "zstd 300 MB, says so": (2, zstd_bomb(300, True)),
            "zstd 300 MB, says nothing": (2, zstd_bomb(300, False)),
            "lz4 300 MB, says so": (1, lz4_bomb(300, True)),
            "lz4 300 MB, says nothing": (1, lz4_bomb(300, False)),
            "lz4 claims 2**63": (1, lying(small, 2**63)),
            "lz4 claims 2 GiB": (1, lying(small, 2**31 - 1)),
            "lz4 claims 1 byte, holds 300 MB": (1, lying(lz4_bomb(300, True), 1)),
            "zstd claims 2 GiB, holds nothing": (2, empty),
        }
        for name, (id, packed) in frames.items():
            for chain in (Chain("msgpack", ["lz4", "zstd"], max_bytes=16 << 20), Chain("msgpack", ["lz4", "zstd"])):
                if chain.max_bytes > 300 << 20 and "300 MB" in name:
                    continue    # within the limit, so it may take what it takes
                data = seal(bytes((0xC1, 1, 1, 1, id)) + packed)
                try:
                    chain.decode(data, "k")
                    print("ACCEPTED", name)
                except CodecError as error:
                    print("ok", name, error.problem)
            try:
                Chain("pkl", max_bytes=16 << 20).decode(packed, "k")
                print("ACCEPTED as a pickle", name)
            except CodecError:
                pass
    """)
    assert "ACCEPTED" not in output
    assert output.count("ok ") >= 10


@pytest.mark.parametrize("cls", KEYED)
def test_every_change_without_the_key_is_found(cls):
    chain = Chain("msgpack", ["lz4", cls(KEY)])
    value = {"a": [1, 2, 3], "b": "x" * 30}
    data = chain.encode(value, "a/b")
    assert chain.decode(data, "a/b") == value
    for at in range(1, len(data) - 4):
        for change in (1, 0x80, 0xFF):
            # Whatever is changed and given the right checksum is refused; as forged, as soon as the head still makes sense.
            with pytest.raises(UntrustedError if at > 5 else CodecError) as caught:
                chain.decode(reseal(data, at, change), "a/b")
            assert caught.value.key == "a/b"
    for n in range(6, len(data) - 4):
        with pytest.raises(UntrustedError):
            chain.decode(seal(data[:n]), "a/b")


@pytest.mark.parametrize("cls", KEYED)
def test_a_value_cannot_be_moved_to_another_key(cls):
    chain = Chain("msgpack", [cls(KEY)])
    data = chain.encode(1, "users/alice")
    for elsewhere in ("users/bob", "users/alic", "users/alicee", "alice", ""):
        with pytest.raises(UntrustedError, match="moved here from another key") as caught:
            chain.decode(data, elsewhere)
        assert caught.value.key == elsewhere


@pytest.mark.parametrize("cls", KEYED)
def test_codec_and_filters_are_covered(cls):
    written = Chain("txt", [cls(KEY), "lz4"]).encode("[1]", "k")
    frame = bytearray(written[:-4])
    frame[2] = 3  # as if it were JSON
    with pytest.raises(UntrustedError):
        Chain("json", [cls(KEY), "lz4"]).decode(seal(bytes(frame)), "k")
    plain = Chain("raw", [cls(KEY)]).encode(b"x", "k")
    inside = Chain("raw", ["lz4", cls(KEY)])
    with pytest.raises(UntrustedError):  # the filter lz4 added to the head, around what was signed without it
        inside.decode(seal(plain[:3] + b"\x02\x01" + plain[4:-4]), "k")


@pytest.mark.parametrize("cls", KEYED)
def test_keys_rotate(cls):
    old, both, new = (Chain("msgpack", [f]) for f in (cls(OLD), cls(KEY, also=[OLD]), cls(KEY)))
    data = old.encode(1, "k")
    assert both.decode(data, "k") == 1
    with pytest.raises(UntrustedError, match=rf"another key .*{cls.__name__}\(key, also=\[old_key\]\)"):
        new.decode(data, "k")
    assert new.decode(both.encode(2, "k"), "k") == 2
    with pytest.raises(UntrustedError):
        old.decode(both.encode(2, "k"), "k")


def test_one_secret_for_both_filters_makes_two_keys():
    chain = Chain("msgpack", [Signed(KEY), Encrypted(KEY)])
    assert chain.decode(chain.encode({"a": 1}, "k"), "k") == {"a": 1}
    assert set(Signed(KEY)._keys.values()).isdisjoint(Encrypted(KEY)._keys.values())
    with pytest.raises(CodecError):
        Chain("msgpack", [Signed(KEY)]).decode(Chain("msgpack", [Encrypted(KEY)]).encode(1, "k"), "k")


def test_what_is_encrypted_cannot_be_seen_and_never_looks_the_same():
    chain = Chain("raw", [Encrypted(KEY)])
    one, two = (chain.encode(b"the secret words", "k") for _ in "ab")
    assert one != two
    assert b"secret" not in one
    assert len({chain.encode(b"", "k")[9:21] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("cls", KEYED)
def test_keys_do_not_show(cls):
    f = cls(KEY, also=[OLD])
    for text in (repr(f), str(f), repr(Chain("raw", [f])), f"{f.__dict__.keys()}"):
        assert "0123456789" not in text
        assert "older" not in text
    again = pickle.loads(pickle.dumps(f))
    assert repr(again) == repr(f)
    assert again.decode(f.encode(b"x", b"h", "k"), b"h", "k", 10) == b"x"


@pytest.mark.parametrize("cls", KEYED)
def test_bad_keys_are_refused(cls):
    with pytest.raises(UsageError, match="15 bytes is too short") as caught:
        cls(b"x" * 15)
    assert "token_urlsafe" in str(caught.value)
    with pytest.raises(UsageError, match="a key is bytes, not str"):
        cls("x" * 32)
    with pytest.raises(UsageError, match="list of keys"):
        cls(KEY, also=OLD)
    with pytest.raises(UsageError, match="a key is bytes, not int"):
        cls(KEY, also=[1])


@pytest.mark.parametrize("cls", KEYED)
def test_keys_from_the_environment_and_from_files(cls, monkeypatch, tmp_path):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UsageError, match="MY_KEY should hold a key, and is not set"):
        cls.from_env("MY_KEY")
    monkeypatch.setenv("MY_KEY", "short")
    with pytest.raises(UsageError, match="MY_KEY should hold a key, and has only 5 characters") as caught:
        cls.from_env("MY_KEY")
    assert "'short'" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", KEY.decode() + "\n")
    monkeypatch.setenv("MY_OLD", OLD.decode())
    file = tmp_path / "key"
    with pytest.raises(UsageError, match="cannot be read"):
        cls.from_file(file)
    file.write_bytes(b"x\n")
    with pytest.raises(UsageError, match="holds 1 bytes"):
        cls.from_file(file)
    file.write_bytes(KEY + b"\r\n")
    old = tmp_path / "old"
    old.write_bytes(OLD)
    expected = cls(KEY, also=[OLD])
    for f in (cls.from_env("MY_KEY", also=["MY_OLD"]), cls.from_file(file, also=[old])):
        assert f._secrets == expected._secrets


def test_the_public_names():
    assert perdure.Signed is Signed
    assert perdure.Encrypted is Encrypted


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [("zstandard", Zstd, "zstd"), ("cryptography.exceptions", lambda: Encrypted(KEY), "crypto")],
)
def test_a_missing_extra_says_what_to_type(module, make, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'perdure\[{extra}\]'"):
        make()
