"""Folders and buckets of persidict are read in place, and persidict reads what is written there by us."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import pickle
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import perdure

pytestmark = pytest.mark.filterwarnings("ignore:keys will default:DeprecationWarning")  # persidict's way with jsonpickle

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")


class Colour(enum.Enum):
    RED = 1


class Point:
    def __init__(self, x: object) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and _equal(self.x, other.x)

    __hash__ = None  # type: ignore[assignment]


def values() -> dict[str, Any]:
    return {
        "none": None,
        "bool": True,
        "int": -1,
        "big": 10**40,
        "float": 2.5,
        "infinity": float("inf"),
        "complex": 1 + 2j,
        "text": "ü\n\r\n\0 \U0001f600",
        "empty": "",
        "bytes": b"\0\xff",
        "list": [1, [2.5, None]],
        "dict": {"a": {"b": [1]}, "": 0},
        "tuple": (1, (2,)),
        "set": {1, 2},
        "frozenset": frozenset({1}),
        "ordered": collections.OrderedDict(a=1),
        "datetime": datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
        "timedelta": datetime.timedelta(seconds=3),
        "decimal": decimal.Decimal("1.10"),
        "fraction": fractions.Fraction(1, 3),
        "uuid": uuid.UUID(int=5),
        "path": pathlib.PurePosixPath("a/b"),
        "enum": Colour.RED,
        "object": Point([1, Point("y")]),
        "array": np.arange(12.0).reshape(3, 4),
        "large-array": np.random.default_rng(0).random(50_000),
        "array-of-objects": np.array([1, "a", None], dtype=object),
        "array-of-text": np.array(["a", "bc"]),
        "fortran-array": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "array-of-times": np.array(["2024-01-01"], dtype="M8[D]"),
        "array-of-records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "scalar-of-numpy": np.float32(1.5),
        "arrays-inside": {"weights": [np.ones(3), {"deep": np.zeros((2, 2))}]},
        "frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        "series": pd.Series([1.5, 2.5], name="s"),
        "plain-keys": {1: 2, (1, 2): 3, None: 4},
    }


# Where json itself changes a value, by persidict's use of it or by its nature: what is compared is left out here.
NOT_IN_JSON = {"plain-keys", "frame", "series"}


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, (pd.DataFrame, pd.Series)):
        return bool(a.equals(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


@pytest.fixture(params=["persidict writes, perdure reads", "perdure writes, persidict reads"])
def writer_and_reader(request: pytest.FixtureRequest, theirs: ModuleType, ours: ModuleType) -> tuple[ModuleType, ModuleType]:
    return (theirs, ours) if request.param.startswith("persidict") else (ours, theirs)


Open = Callable[[ModuleType], Any]


def _check(open_by: Open, pair: tuple[ModuleType, ModuleType], stored: dict[Any, Any]) -> None:
    writer, reader = pair
    d = open_by(writer)
    for key, value in stored.items():
        d[key] = value
    again = open_by(reader)
    assert {tuple(key) for key in again.keys()} == {key if isinstance(key, tuple) else (key,) for key in stored}  # noqa: SIM118
    for key, value in stored.items():
        assert _equal(again[key], value), key
        assert again.timestamp(key) == pytest.approx(d.timestamp(key), abs=0.01)
    some = next(iter(stored))
    del again[some]
    assert some not in again and some not in open_by(writer)


@pytest.mark.parametrize("digest_len", [0, 4, 8])
@pytest.mark.parametrize("serialization_format", ["pkl", "json"])
def test_a_folder(
    serialization_format: str, digest_len: int, writer_and_reader: tuple[ModuleType, ModuleType], tmp_path: pathlib.Path
) -> None:
    def open_by(library: ModuleType) -> Any:
        return library.FileDirDict(base_dir=tmp_path, serialization_format=serialization_format, digest_len=digest_len)

    stored: dict[Any, Any] = {
        name: value for name, value in values().items() if serialization_format == "pkl" or name not in NOT_IN_JSON
    }
    stored |= {("level", "other-level", "Name.with(odd)~chars="): 1, ("level", "beside"): 2, ("Level", "beside"): 3}
    _check(open_by, writer_and_reader, stored)


@pytest.mark.parametrize("name", ["frame", "series", "frame-with-gaps", "range", "categories", "several-levels"])
def test_pandas_in_json_comes_back_as_it_does_there(
    name: str, writer_and_reader: tuple[ModuleType, ModuleType], theirs: ModuleType, tmp_path: pathlib.Path
) -> None:
    more = {
        "frame-with-gaps": pd.DataFrame({"a": [1.5, None], "t": pd.to_datetime(["2024-01-01", None])}, index=["u", "v"]),
        "range": pd.RangeIndex(0, 15),  # comes back as an Index that is equal to it
        "categories": pd.Series(["a", "b"], dtype="category"),
        "several-levels": pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
    }
    writer, reader = writer_and_reader
    writer.FileDirDict(base_dir=tmp_path, serialization_format="json")["k"] = (values() | more)[name]
    theirs.FileDirDict(base_dir=tmp_path / "there", serialization_format="json")["k"] = (values() | more)[name]
    got = reader.FileDirDict(base_dir=tmp_path, serialization_format="json")["k"]
    expected = theirs.FileDirDict(base_dir=tmp_path / "there", serialization_format="json")["k"]
    assert type(got) is type(expected) and got.equals(expected)


@pytest.mark.parametrize("digest_len", [0, 4])
def test_a_folder_of_text(digest_len: int, writer_and_reader: tuple[ModuleType, ModuleType], tmp_path: pathlib.Path) -> None:
    def open_by(library: ModuleType) -> Any:
        return library.FileDirDict(
            base_dir=tmp_path, serialization_format="md", base_class_for_values=str, digest_len=digest_len
        )

    # persidict reads text files so that every line end becomes \n, hence none of the others.
    _check(open_by, writer_and_reader, {"a": "text\nof lines ü \U0001f600", ("b", "c"): ""})


@pytest.mark.parametrize("serialization_format", ["pkl", "json"])
@pytest.mark.parametrize("name", ["BasicS3Dict", "S3Dict"])
def test_a_bucket(
    name: str,
    serialization_format: str,
    writer_and_reader: tuple[ModuleType, ModuleType],
    tmp_path: pathlib.Path,
    mocked_s3: Any,
) -> None:
    def open_by(library: ModuleType) -> Any:
        more = {"base_dir": tmp_path / library.__name__} if name == "S3Dict" else {}
        return getattr(library, name)(
            bucket_name="the-bucket", root_prefix="some/prefix", serialization_format=serialization_format, **more
        )

    chosen = ("text", "dict", "object", "array", "arrays-inside", "datetime")
    stored: dict[Any, Any] = {key: value for key, value in values().items() if key in chosen}
    _check(open_by, writer_and_reader, stored | {("level", "other-level", "a"): 1})


def test_several_formats_in_one_folder(writer_and_reader: tuple[ModuleType, ModuleType], tmp_path: pathlib.Path) -> None:
    def open_by(library: ModuleType) -> Any:
        return library.OverlappingMultiDict(
            dict_type=library.FileDirDict,
            shared_subdicts_params={"base_dir": tmp_path},
            pkl={},
            json={},
            txt={"base_class_for_values": str},
        )

    writer, reader = (open_by(library) for library in writer_and_reader)
    writer.pkl["a", "b"], writer.json["a", "b"], writer.txt["a", "b"] = (1,), [1], "1"
    assert (reader.pkl["a", "b"], reader.json["a", "b"], reader.txt["a", "b"]) == ((1,), [1], "1")
    reader.json.clear()
    assert (len(writer.pkl), len(writer.json), len(writer.txt)) == (1, 0, 1)


def test_both_work_on_one_folder_by_turns(theirs: ModuleType, ours: ModuleType, tmp_path: pathlib.Path) -> None:
    a, b = (library.FileDirDict(base_dir=tmp_path) for library in (theirs, ours))
    for i in range(20):
        (a if i % 2 else b)["n"] = i
        assert a["n"] == b["n"] == i
        (b if i % 2 else a)["other", str(i)] = i
        assert len(a) == len(b) == i + 2
    assert dict(a.items()) == dict(b.items())
    a.clear()
    assert list(b) == []


def test_a_folder_of_arrays_without_joblib_says_what_to_install(
    theirs: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs.FileDirDict(base_dir=tmp_path)["a"] = np.arange(3)
    theirs.FileDirDict(base_dir=tmp_path)["b"] = [1, 2]
    monkeypatch.setitem(__import__("sys").modules, "joblib", None)
    d = perdure.FileDirDict(base_dir=tmp_path)
    assert d["b"] == [1, 2]
    with pytest.raises(perdure.CodecError, match="pip install joblib"):
        d["a"]


def test_a_folder_of_persidict_is_not_taken_for_one_with_other_digests(theirs: ModuleType, tmp_path: pathlib.Path) -> None:
    theirs.FileDirDict(base_dir=tmp_path, digest_len=8)["level", "key"] = 1
    theirs.FileDirDict(base_dir=tmp_path, digest_len=8)["key"] = 1
    for digest_len in (0, 4):
        with pytest.raises(perdure.UsageError, match="digest_len=8"):
            perdure.FileDirDict(base_dir=tmp_path, digest_len=digest_len)
    assert len(perdure.FileDirDict(base_dir=tmp_path, digest_len=8)) == 2


def test_files_of_others_are_neither_shown_nor_removed(tmp_path: pathlib.Path) -> None:
    d = perdure.FileDirDict(base_dir=tmp_path)
    d["a"] = 1
    for name in ("my backup (1) copy.pkl", "a_btax (1).pkl", "a_btax.json", "note.txt", "ä_abcd.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(0))
    (tmp_path / "a folder").mkdir()
    assert list(d) == ["a"] and len(d) == 1 and d.random_key() == "a"
    d.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [".perdure", "my backup (1) copy.pkl", "a_btax (1).pkl", "a_btax.json", "note.txt", "ä_abcd.pkl", "a folder"]
    )
