"""The codecs that other programs read and write: pkl, json, txt, raw; and how codecs and filters are looked up."""

from __future__ import annotations

import io
import json
import math
import pickle
import subprocess
import sys
from collections import OrderedDict, namedtuple

import joblib
import jsonpickle
import numpy as np
import pytest
from codec_values import ROUNDS, same, text, values
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.codecs import codec_by_name, filter_by_name
from perdure.codecs.chain import Chain
from perdure.errors import CodecError, IntegrityError, UntrustedError, UsageError

Point = namedtuple("Point", "x y")


class Thing:
    def __init__(self, inside=None):
        self.inside = inside

    def __eq__(self, other):
        return type(other) is Thing and self.inside == other.inside

    __hash__ = None


# pkl


@given(values)
@settings(max_examples=50 * ROUNDS, deadline=None)
def test_pkl_comes_back(value):
    chain = Chain("pkl")
    assert same(chain.decode(chain.encode(value, "k"), "k"), value)


def test_pkl_and_joblib_read_each_other():
    value = {"a": [1, Thing((2,))], "b": np.arange(10)}
    chain = Chain("pkl")
    found = joblib.load(io.BytesIO(chain.encode(value, "k")))
    assert found["a"] == value["a"]
    assert same(found["b"], value["b"])
    for how in ({"compress": ("lz4", 3)}, {}):  # as persidict writes files and S3 objects
        for written in (value, value["a"]):
            file = io.BytesIO()
            joblib.dump(written, file, **how)
            found = chain.decode(file.getvalue(), "k")
            assert same(found["b"], value["b"]) if written is value else found == written


def test_pkl_without_joblib_says_what_to_type(monkeypatch):
    file = io.BytesIO()
    joblib.dump(np.arange(5), file, compress=("lz4", 3))
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(CodecError, match="pip install joblib"):
        Chain("pkl").decode(file.getvalue(), "k")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_are_read(protocol):
    assert Chain("pkl").decode(pickle.dumps({"a": 1}, protocol), "k") == {"a": 1}


def test_a_damaged_plain_pickle_never_looks_absent():
    data = pickle.dumps({"a": [1, "x", 2.5], "b": Thing()}, 5)
    chain = Chain("pkl")
    for bad in [data[:n] for n in range(len(data))] + [data[:i] + b"\xff" + data[i + 1 :] for i in range(2, len(data))]:
        try:
            chain.decode(bad, "k")
        except CodecError as error:
            assert error.key == "k"  # and never a KeyError of the unpickler, which would look like an absent key
            assert not isinstance(error, KeyError)


def test_what_cannot_be_pickled_is_refused_with_its_path():
    with pytest.raises(CodecError, match=r"key 'k': value\['a'\]\[1\], a function, cannot be pickled"):
        Chain("pkl").encode({"a": [1, lambda: 1]}, "k")
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CodecError, match="nested too deeply"):
        Chain("pkl").encode(deep, "k")
    while deep:
        deep = deep.pop()


def test_a_class_that_is_gone_is_said(monkeypatch):
    data = Chain("pkl").encode(Thing(1), "k")
    monkeypatch.delattr(sys.modules[__name__], "Thing")
    with pytest.raises(CodecError, match=r"needs what cannot be found here.*Thing") as caught:
        Chain("pkl").decode(data, "k")
    assert not isinstance(caught.value, IntegrityError)


# json

_untagged = text.filter(lambda key: not key.startswith(("py/", "json://")))
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_untagged, inner, max_size=4),
    max_leaves=15,
)


@given(plain_json, st.booleans())
@settings(max_examples=80 * ROUNDS, deadline=None)
def test_json_comes_back(value, trusted):
    chain = Chain("json", trusted=trusted)
    data = chain.encode(value, "k")
    assert same(chain.decode(data, "k"), value)
    assert same(json.loads(data), value)


@given(values)
@settings(max_examples=80 * ROUNDS, deadline=None)
def test_json_is_exact_or_refuses(value):
    chain = Chain("json")
    try:
        data = chain.encode(value, "k")
    except CodecError:
        return
    assert same(chain.decode(data, "k"), value)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"a": [1, (2,)]}, r"value\['a'\]\[1\] is a tuple"),
        ({"a": {1: 2}}, r"value\['a'\] has the key 1, a int"),
        ([b"x"], r"value\[0\] is a bytes"),
        ({"a": OrderedDict(b=1)}, r"value\['a'\] is a OrderedDict"),
        ([Point(1, 2)], r"value\[0\] is a Point"),
        ({"x": {"py/object": "os.system"}}, r"value\['x'\] has the key 'py/object', which would be taken for a tag"),
        ({"json://1": 1}, "tag of jsonpickle"),
        ([Thing()], r"value\[0\] is a Thing"),
        ([10**5000], r"value\[0\] is an integer of too many digits"),
        ([math.pi, {"a": np.float64(1)}], r"value\[1\]\['a'\] is a float64"),
    ],
)
def test_json_says_what_it_cannot_hold(value, part):
    with pytest.raises(CodecError, match=part) as caught:
        Chain("json").encode(value, "k")
    assert 'codec="msgpack"' in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["\ud83d\ude00", {"\ud83d\ude00": 1, "\U0001f600": 2}, ["a\ud83d\ude00\ud83d"]],
    ids=["text", "keys", "inside"],
)
def test_json_refuses_both_halves_of_a_surrogate_pair(value):
    """Escaped they read as one character, and of two keys one would be lost."""
    with pytest.raises(CodecError, match="surrogate pair"):
        Chain("json").encode(value, "k")
    for kept in (["\ude00\ud83d"], ["\ud83d", "\ude00"]):
        assert Chain("json").decode(Chain("json").encode(kept, "k"), "k") == kept


@pytest.mark.parametrize("trusted", [True, False])
def test_json_refuses_what_never_ends(trusted):
    chain = Chain("json", trusted=trusted)
    value: list = []
    value.append(value)
    if not trusted:  # jsonpickle can refer back
        with pytest.raises(CodecError, match="contains itself"):
            chain.encode(value, "k")
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CodecError, match="nested too deeply"):
        chain.encode(deep, "k")
    while deep:
        deep = deep.pop()
    with pytest.raises(CodecError):
        chain.decode(b"[" * 1_000_000, "k")
    with pytest.raises(CodecError):
        chain.decode(b"9" * 10_000, "k")


REDUCE = '{"py/reduce": [{"py/function": "builtins.exec"}, {"py/tuple": ["open(%r, \'w\').close()"]}]}'


@pytest.mark.parametrize(
    "spelling", [lambda t: t, lambda t: t.replace("py/reduce", "\\u0070y/reduce"), lambda t: f'{{"a": [{t}]}}']
)
def test_tags_never_run_unless_trusted(spelling, tmp_path):
    mark = str(tmp_path / "ran")
    data = spelling(REDUCE % mark).encode()
    with pytest.raises(UntrustedError, match=r"jsonpickle tag 'py/reduce'.*trusted=True"):
        Chain("json").decode(data, "k")
    assert not (tmp_path / "ran").exists()
    for codec in ("msgpack", "txt", "raw"):
        try:
            Chain(codec).decode(data, "k")
        except CodecError:
            pass
    assert not (tmp_path / "ran").exists()
    Chain("json", trusted=True).decode(data, "k")
    assert (tmp_path / "ran").exists()  # so the trap does work


def test_tags_in_values_are_only_text():
    value = {"a": "py/object", "b": ["json://1", '"py/reduce": 1', "\\"]}
    for trusted in (True, False):
        chain = Chain("json", trusted=trusted)
        assert same(chain.decode(chain.encode(value, "k"), "k"), value)


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: "a", "b": (2,)},
        {1, 2},
        [b"x", 1j],
        Thing({"a": (1,)}),
        {"json://1": 1, 1: 2},
        np.arange(3),
        [np.float64(1.5)],
        Point(1, 2),
    ],
    ids=lambda v: type(v).__name__,
)
def test_trusted_json_holds_more(value):
    chain = Chain("json", trusted=True)
    data = chain.encode(value, "k")
    assert same(chain.decode(data, "k"), value) or chain.decode(data, "k") == value
    with pytest.raises(CodecError):
        Chain("json").encode(value, "k")
    with pytest.raises(UntrustedError):
        Chain("json").decode(data, "k")


@pytest.mark.parametrize("value", [bytearray(b"x"), [{"py/object": "x"}, (1,)], {"py/tuple": [1]}, [lambda: 1]], ids=repr)
def test_trusted_json_refuses_what_jsonpickle_would_change(value):
    with pytest.raises(CodecError, match="jsonpickle"):
        Chain("json", trusted=True).encode(value, "k")


@pytest.mark.filterwarnings("ignore:keys will default")
def test_json_files_of_persidict_are_read_and_the_other_way_round():
    value = {"a": [1, (2,), Thing("x")], "b": {1, 2}}
    chain = Chain("json", trusted=True)
    assert chain.decode(jsonpickle.dumps(value, indent=4, keys=False).encode(), "k") == value
    assert jsonpickle.loads(chain.encode(value, "k"), keys=False) == value
    plain = {"a": [1, None, 2.5]}
    assert jsonpickle.loads(Chain("json").encode(plain, "k"), keys=False) == plain


def test_damaged_json():
    for bad in (b"", b"{", b'{"a": 1', b"\xff", b"\0\0", b"{} {}"):
        with pytest.raises(IntegrityError, match=r"key 'k'.*damaged"):
            Chain("json").decode(bad, "k")


def test_jsonpickle_is_imported_only_when_needed():
    code = """
import sys
from perdure.codecs.chain import Chain
chain = Chain("json", trusted=True)
chain.decode(chain.encode({"a": 1}, "k"), "k")
assert "jsonpickle" not in sys.modules
chain = Chain()
chain.decode(chain.encode({"a": 1}, "k"), "k")
assert not {"lz4", "zstandard", "cryptography", "numpy", "pickle"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# txt and raw


@given(st.text())
def test_text_comes_back_line_ends_and_all(value):
    chain = Chain("txt")
    assert chain.decode(chain.encode(value, "k"), "k") == value
    assert chain.encode(value, "k") == value.encode()


@given(st.binary())
def test_raw_comes_back(value):
    chain = Chain("raw")
    assert chain.decode(chain.encode(value, "k"), "k") == value


def test_text_and_raw_refuse_the_rest():
    with pytest.raises(CodecError, match=r"value is a int, and codec 'md' holds text only.*str\(\.\.\.\)"):
        Chain("md").encode(1, "k")
    with pytest.raises(CodecError, match=r"value\[1\] is half of a surrogate pair.*msgpack"):
        Chain("txt").encode("a\ud800", "k")
    with pytest.raises(CodecError, match="holds text only"):
        Chain("txt").encode(type("S", (str,), {})("x"), "k")
    with pytest.raises(IntegrityError, match=r"not UTF-8 at byte 1.*raw"):
        Chain("txt").decode(b"a\xff", "k")
    with pytest.raises(CodecError, match=r"Decode it with \.decode\(\)"):
        Chain("txt").encode(b"x", "k")  # str(b"x") is something else
    with pytest.raises(CodecError, match=r"value is a str, and codec 'raw' holds bytes only.*\.encode\(\)"):
        Chain("raw").encode("x", "k")
    with pytest.raises(CodecError, match=r"bytearray.*bytes\(\.\.\.\)"):
        Chain("raw").encode(bytearray(b"x"), "k")
    with pytest.raises(CodecError, match="value is a int") as caught:
        Chain("raw").encode(5, "k")
    assert "bytes(" not in caught.value.hint  # bytes(5) is five zeros


# names


@pytest.mark.parametrize("name", ["txt", "md", "csv", "jsonl", "html", "yaml", "log", "tar.gz", "py", "tex", "x"])
def test_any_suffix_is_text(name):
    assert codec_by_name(name).name == name
    assert codec_by_name(name).id == 4


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("msgpak", "msgpack"),
        ("MsgPack", "msgpack"),
        ("messagepack", "msgpack"),
        ("pickle", "pkl"),
        ("PKL", "pkl"),
        ("joblib", "pkl"),
        ("JSON", "json"),
        ("text", "txt"),
        ("bytes", "raw"),
    ],
)
def test_slips_are_noticed(name, meant):
    with pytest.raises(UsageError, match=f"no codec is known for {name!r}. Did you mean {meant!r}"):
        codec_by_name(name)


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".é", "x" * 100, None, 5])
def test_what_is_no_name(name):
    with pytest.raises(UsageError, match="not the name of a codec"):
        codec_by_name(name)


def test_filters_by_name():
    assert filter_by_name("lz4").id == 1
    assert filter_by_name("zstd").id == 2
    assert Chain("raw", "lz4").filters[0].name == "lz4"
    with pytest.raises(UsageError, match=r"'zst' is not a filter. Did you mean 'zstd'"):
        filter_by_name("zst")
    with pytest.raises(UsageError, match=r"needs a key. Give perdure.Signed\(key\)"):
        Chain("raw", ["signed"])
    with pytest.raises(UsageError, match="is not a filter"):
        filter_by_name("")
