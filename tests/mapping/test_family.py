"""The dicts with names of their own: what their constructors take and refuse, and what is particular to each."""

from __future__ import annotations

import copy
import pickle
import random
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rules import all_cases
from test_conditional import check_result

import perdure
from perdure import BasicS3Dict, EmptyDict, FileDirDict, LocalDict, OverlappingMultiDict, PersiDict, S3Dict, WriteOnceDict
from perdure.keys import NonEmptySafeStrTuple, TupleKey
from perdure.mapping.copies import AppendOnlyDictCached, MutableDictCached
from perdure.mapping.flags import ANY_ETAG, ETAG_IS_THE_SAME, ITEM_NOT_AVAILABLE, KEEP_CURRENT

Make = Callable[..., Any]
NOT_BASIC = ("base_dir", "digest_len")


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path) -> Iterator[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", perdure.UntrustedWarning)
        yield {"bucket_name": "family", "root_prefix": tmp_path.name, "endpoint_url": s3_endpoint}


@pytest.fixture(params=["FileDirDict", "LocalDict", "BasicS3Dict", "S3Dict", "MutableDictCached"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A function that makes a dict of a kind, of the same place each time."""
    kind = request.param
    spaces = LocalDict().get_params()["backend"]

    def make(**options: Any) -> Any:
        if kind == "FileDirDict":
            return FileDirDict(base_dir=tmp_path / "d", **options)
        if kind == "LocalDict":
            return LocalDict(backend=spaces, **options)
        if kind == "MutableDictCached":
            main, data, etags = FileDirDict(base_dir=tmp_path / "d", **options), LocalDict(), LocalDict()
            return MutableDictCached(main_dict=main, data_cache=data, etag_cache=etags)
        bucket = request.getfixturevalue("bucket")
        if kind == "S3Dict":
            return S3Dict(base_dir=tmp_path / "copies", **bucket, **options)
        return BasicS3Dict(**bucket, **options)

    return make


class TestEveryKind:
    def test_works_as_a_dict(self, make: Make) -> None:
        d = make()
        d["a"], d["level", "b"] = {"x": (1, [2])}, "text"
        assert make() == {"a": {"x": (1, [2])}, ("level", "b"): "text"} == d
        assert make()["a"] == {"x": (1, [2])}
        d["a"]["x"] = 0
        assert d["a"] == {"x": (1, [2])}, "what is read is a copy"
        assert d.get_subdict("level") == {"b": "text"} and type(d.get_subdict("level")) is type(d)
        assert d.pop("a") and d.discard(("level", "b")) and not make()

    def test_keys_hash_like_tuples(self, make: Make) -> None:
        d = make()
        d["a"], d["b", "c"] = 1, 2
        assert ("a",) in set(d) and dict(d.items())["b", "c"] == 2
        assert all(isinstance(key, TupleKey) for key in d)
        assert d.get_many(["a", ("b", "c"), "x"]) == {"a": 1, ("b", "c"): 2}
        with pytest.raises(KeyError) as caught:
            d["absent"]
        assert isinstance(caught.value.args[0], NonEmptySafeStrTuple) and caught.value.args[0] == "absent"

    def test_parameters_make_it_again(self, make: Make) -> None:
        d = make()
        d["level", "a"] = 1
        for one in (d, d.get_subdict("level")):
            again = type(one)(**one.get_params())
            assert list(again) == list(one) and again.get_params() == one.get_params()
            assert list(copy.copy(one)) == list(one)

    def test_sees_nothing_of_other_formats(self, make: Make) -> None:
        a, b = make(serialization_format="pkl"), make(serialization_format="json")
        a["k"], b["k"] = "pkl", "json"
        a["only"] = 1
        assert (a["k"], b["k"], len(a), len(b)) == ("pkl", "json", 2, 1)
        b.clear()
        assert dict(a) == {("k",): "pkl", ("only",): 1}

    def test_adds_only_if_asked_to(self, make: Make) -> None:
        if isinstance(make(), MutableDictCached):
            pytest.skip("has a class of its own for that")
        d = make(append_only=True)
        d["a"] = 1
        for change in (
            lambda: d.__setitem__("a", 2), lambda: d.__delitem__("a"), lambda: d.pop("a", None), lambda: d.clear(),
            lambda: d.discard("x"), lambda: d.transform_item("a", transformer=lambda n: n + 1), lambda: d.update(a=2),
        ):  # fmt: skip
            with pytest.raises(perdure.PolicyError) as caught:
                change()
            assert caught.value.policy == "append-only"
        d["a"] = KEEP_CURRENT
        assert d.setdefault("a", 5) == 1 and d.setdefault("b", 5) == 5 and len(make(append_only=True)) == 2

    @pytest.mark.parametrize("append_only", [False, True])
    def test_answers_conditional_operations_like_all_others(self, make: Make, append_only: bool) -> None:
        plain = make()
        if append_only and isinstance(plain, MutableDictCached):
            plain = plain.get_params()["main_dict"]
            main = FileDirDict(base_dir=plain.base_dir, append_only=True)
            d: Any = AppendOnlyDictCached(main_dict=main, data_cache=LocalDict(append_only=True))
        else:
            d = make(append_only=append_only)
        if isinstance(plain, S3Dict):  # with copies of its own, so that `d` has to find out
            plain = BasicS3Dict(**{name: value for name, value in plain.get_params().items() if name not in NOT_BASIC})
        for number, case in enumerate(all_cases()):
            check_result(plain.get_subdict(f"case{number}"), d.get_subdict(f"case{number}"), case)

    def test_text_files_need_text(self, make: Make) -> None:
        for base in (None, int):
            with pytest.raises(perdure.UsageError, match="base_class_for_values=str"):
                make(serialization_format="md", base_class_for_values=base)
        d = make(serialization_format="md", base_class_for_values=str)
        d["a"] = "ü\r\n"
        assert d["a"] == "ü\r\n"
        with pytest.raises(TypeError):
            d["a"] = 1

    @pytest.mark.parametrize("bad", ["", "a/b", "../x", "\0", 5, None])
    def test_refuses_what_is_no_format(self, make: Make, bad: Any) -> None:
        with pytest.raises(ValueError, match="serialization_format"):
            make(serialization_format=bad)

    def test_shows_what_it_is(self, make: Make) -> None:
        d = make(serialization_format="json", base_class_for_values=dict)
        d["a"] = {"x": 1}
        assert repr(d).startswith(f"{type(d).__name__}(") or isinstance(d, MutableDictCached)
        if not isinstance(d, MutableDictCached):
            assert "base_class_for_values=dict" in repr(d) and "serialization_format='json'" in repr(d)
            assert str(d) == "{SafeStrTuple(('a',)): {'x': 1}}"


class TestFileDirDict:
    def test_makes_its_folder_at_once(self, tmp_path: Path) -> None:
        d = FileDirDict(base_dir=tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir() and d.base_dir == str(tmp_path / "a" / "b")
        assert d.get_subdict(("x", "y")).base_dir == str(tmp_path / "a" / "b" / "x_th2o" / "y_iepz")[: len(d.base_dir)] + str(
            Path(d.get_subdict(("x", "y")).base_dir)
        ).removeprefix(d.base_dir)
        d["x", "y", "z"] = 1
        assert list(Path(d.get_subdict(("x", "y")).base_dir).glob("z_*.pkl"))

    def test_refuses_a_file_in_place_of_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="is a file"):
            FileDirDict(base_dir=tmp_path / "file")

    def test_refuses_digest_lengths_that_are_none(self, tmp_path: Path) -> None:
        for bad in (-1, 33, "4", None):
            with pytest.raises(ValueError, match="digest_len"):
                FileDirDict(base_dir=tmp_path, digest_len=bad)  # type: ignore[arg-type]

    def test_refuses_another_digest_length_than_the_folder_has(self, tmp_path: Path) -> None:
        FileDirDict(base_dir=tmp_path, digest_len=4)["a"] = 1
        for digest_len in (0, 8):
            with pytest.raises(perdure.UsageError, match="digest_len '4'"):
                FileDirDict(base_dir=tmp_path, digest_len=digest_len)
        with pytest.raises(perdure.UsageError, match="layout"):
            perdure.open_backend(tmp_path, layout="framed")

    @pytest.mark.parametrize("marked", [True, False])
    def test_says_that_a_folder_holds_another_format(self, tmp_path: Path, marked: bool) -> None:
        FileDirDict(base_dir=tmp_path)["a"] = 1
        if not marked:
            shutil.rmtree(tmp_path / ".perdure")  # as persidict leaves a folder
        with pytest.warns(UserWarning, match=r"holds values with the suffix \.pkl") as caught:
            d = FileDirDict(base_dir=tmp_path, serialization_format="json")
        assert len(caught) == 1 and len(d) == 0 and caught[0].filename == __file__
        d["a"] = 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert FileDirDict(base_dir=tmp_path)["a"] == 1
            assert FileDirDict(base_dir=tmp_path, serialization_format="json")["a"] == 2
            more: Any = {"txt": {"base_class_for_values": str}, "md": {"base_class_for_values": str}}
            OverlappingMultiDict(dict_type=FileDirDict, shared_subdicts_params={"base_dir": tmp_path}, **more)

    def test_opens_without_arguments_by_perdure_open(self, tmp_path: Path) -> None:
        FileDirDict(base_dir=tmp_path, serialization_format="json", digest_len=6)["a", "b"] = [1]
        assert perdure.open(tmp_path)["a", "b"] == [1]
        FileDirDict(base_dir=tmp_path / "p")["a"] = 1
        with pytest.raises(perdure.UntrustedError):  # a folder does not switch on what runs code
            perdure.open(tmp_path / "p")
        assert perdure.open(tmp_path / "p", codec="pkl")["a"] == 1

    def test_is_pickled_as_a_handle(self, tmp_path: Path) -> None:
        d = FileDirDict(base_dir=tmp_path, digest_len=2, serialization_format="json", sync="normal")
        d["level", "a"] = 1
        for one in (d, d.get_subdict("level")):
            again = pickle.loads(pickle.dumps(one))
            assert again == one and again.get_params() == one.get_params() and again.base_dir == one.base_dir


class TestLocalDict:
    def test_holds_what_cannot_be_pickled(self) -> None:
        class Local:
            def __init__(self) -> None:
                self.parts = [1]

        d: Any = LocalDict()
        d["function"] = lambda: 5
        d["object"] = mine = Local()
        mine.parts.append(2)
        assert d["function"]() == 5 and d["object"].parts == [1]
        d["object"].parts.append(3)
        assert d["object"].parts == [1]
        with pytest.raises(perdure.CodecError, match="neither pickled nor copied"):
            d["lock"] = threading.Lock()
        assert "lock" not in d

    def test_refuses_to_be_pickled(self) -> None:
        with pytest.raises(perdure.PolicyError, match="cannot be pickled"):
            pickle.dumps(LocalDict())

    def test_shares_what_is_given(self) -> None:
        d: Any = LocalDict()
        d["a"] = 1
        assert LocalDict(**d.get_params()) == d
        assert LocalDict(backend=d.get_params()["backend"])["a"] == 1
        with pytest.raises(perdure.UsageError, match="another LocalDict"):
            LocalDict(backend={})


def test_an_empty_dict_takes_everything_and_keeps_nothing() -> None:
    d: Any = EmptyDict(base_class_for_values=int)
    d["a"] = 1
    assert not d and len(d) == 0 and d.get("a") is None and d.setdefault("a", 5) == 5 and d.random_key() is None
    assert d.transform_item("a", transformer=lambda _: 1).new_value is ITEM_NOT_AVAILABLE
    for change in (lambda: d.__setitem__("a b", 1), lambda: d.__setitem__("a", "text")):
        with pytest.raises((ValueError, TypeError)):
            change()


class TestBuckets:
    def test_names_in_the_bucket(self, bucket: dict[str, Any]) -> None:
        d = BasicS3Dict(**bucket, serialization_format="json")
        d["level", "a"] = [1]
        root = bucket["root_prefix"]
        assert (
            perdure.open_backend(f"s3://family/{root}", endpoint_url=bucket["endpoint_url"]).get("level/a.json").data == b"[1]"
        )
        sub = d.get_subdict("level")
        assert d.base_url == f"s3://family/{root}/" and sub.root_prefix == f"{root}/level/" and sub["a"] == [1]
        assert d.bucket_name == "family" and d.region is None

    def test_warns_once_of_pickles_in_a_bucket(self, s3_endpoint: str, tmp_path: Path) -> None:
        where = {"bucket_name": "family", "root_prefix": f"{tmp_path.name}-warned", "endpoint_url": s3_endpoint}
        with pytest.warns(perdure.UntrustedWarning, match="run code") as caught:
            BasicS3Dict(**where)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            BasicS3Dict(**where)
            BasicS3Dict(**where | {"root_prefix": "other"}, filters=[perdure.Signed(b"k" * 32)])

    def test_a_bucket_that_had_to_be_made_is_logged(self, bucket: dict[str, Any], tmp_path: Path, caplog: Any) -> None:
        where = bucket | {"bucket_name": f"new-{tmp_path.name[-40:]}".lower().replace("_", "-")}
        BasicS3Dict(**where)["a"] = 1
        assert f"the bucket '{where['bucket_name']}' was missing and has been made" in caplog.text
        caplog.clear()
        BasicS3Dict(**where)["a"] = 1
        assert caplog.text == ""

    def test_a_missing_bucket_is_an_error_where_it_is_not_to_be_made(self, bucket: dict[str, Any]) -> None:
        d = BasicS3Dict(**bucket | {"bucket_name": "mistyped"}, create=False)
        with pytest.raises(perdure.BackendError, match="mistyped"):
            d["a"] = 1

    def test_copies_serve_reads_and_are_asked_about(self, bucket: dict[str, Any], tmp_path: Path) -> None:
        d, other = (S3Dict(**bucket, base_dir=tmp_path / name) for name in ("copies", "others"))
        d["a"] = 1
        cached: Any = d.backend
        assert d["a"] == d["a"] == 1 and cached.hits == 2 and cached.misses == 0
        other["a"] = 2
        assert d["a"] == 2 and cached.misses == 1
        del other["a"]
        assert "a" not in d and d.get("a") is None
        assert list((tmp_path / "copies").glob("a_*.pkl-copy")) == []


class TestWriteOnce:
    @pytest.fixture
    def first(self) -> Any:
        return LocalDict(append_only=True)

    def test_the_first_value_stays(self, first: Any) -> None:
        d = WriteOnceDict(wrapped_dict=first)
        d["a"] = 1
        d["a"] = 2
        d.update({"a": 3, "b": 4})
        d["a"] = KEEP_CURRENT
        assert d == {"a": 1, "b": 4} == first and d.consistency_checks_attempted == 0

    @pytest.mark.parametrize(
        ("old", "new", "same"),
        [(1, 1, True), (1, True, False), (1, 1.0, False), ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
         ({1: 2}, {True: 2}, False), ([1], (1,), False), ({1, 2, 3}, {3, 2, 1}, True), ("a", b"a", False),
         ([1, {2: [3]}], [1, {2: [4]}], False), (float("nan"), float("nan"), True)],
    )  # fmt: skip
    def test_later_values_are_compared(self, first: Any, old: Any, new: Any, same: bool) -> None:
        d = WriteOnceDict(wrapped_dict=first, p_consistency_checks=1)
        d["a"] = old
        if same:
            d["a"] = new
        else:
            with pytest.raises(perdure.PolicyError) as caught:
                d["a"] = new
            assert caught.value.policy == "write-once" and caught.value.key == ("a",)
        checks = (d.consistency_checks_attempted, d.consistency_checks_passed, d.consistency_checks_failed)
        assert checks == (1, int(same), int(not same))

    def test_objects_that_cannot_be_pickled_are_compared_too(self, first: Any) -> None:
        class Local:
            def __init__(self, x: int) -> None:
                self.x = x

        d: Any = WriteOnceDict(wrapped_dict=first, p_consistency_checks=1)
        d["a"] = Local(1)
        d["a"] = Local(1)
        with pytest.raises(perdure.PolicyError):
            d["a"] = Local(2)
        assert (d.consistency_checks_passed, d.consistency_checks_failed, d["a"].x) == (1, 1, 1)

    def test_some_are_compared(self, first: Any) -> None:
        d = WriteOnceDict(wrapped_dict=first, p_consistency_checks=0.5)
        d["a"] = 1
        random.seed(3)
        for _ in range(100):
            d["a"] = 1
        assert 30 < d.consistency_checks_attempted == d.consistency_checks_passed < 70
        d.p_consistency_checks = KEEP_CURRENT
        assert d.p_consistency_checks == 0.5
        d.p_consistency_checks = None
        assert d.p_consistency_checks == 0

    def test_nothing_is_changed_or_deleted(self, first: Any) -> None:
        d = WriteOnceDict(wrapped_dict=first)
        d["a"] = 1
        condition: dict[str, Any] = {"condition": ANY_ETAG, "expected_etag": ITEM_NOT_AVAILABLE}
        for change, policy in (
            (lambda: d.__delitem__("a"), "write-once"),
            (lambda: d.set_item_if("new", value=1, **condition), "write-once"),
            (lambda: d.transform_item("new", transformer=lambda _: 1), "write-once"),
            (lambda: d.pop("a"), "append-only"),
            (lambda: d.clear(), "append-only"),
            (lambda: d.discard("a"), "append-only"),
        ):
            with pytest.raises(perdure.PolicyError) as caught:
                change()
            assert caught.value.policy == policy
        assert d.setdefault_if("new", default_value=1, **condition).new_value == 1

    def test_views_and_what_the_wrapped_dict_has(self, tmp_path: Path) -> None:
        d = WriteOnceDict(wrapped_dict=FileDirDict(base_dir=tmp_path, append_only=True), p_consistency_checks=0.25)
        d["level", "a"] = 1
        view = d.get_subdict("level")
        assert isinstance(view, WriteOnceDict) and view.p_consistency_checks == 0.25 and view["a"] == 1
        assert d.base_dir == str(tmp_path) and view.base_dir.startswith(d.base_dir + "/level_")
        assert d.etag(("level", "a")) == d.wrapped_dict.etag(("level", "a"))
        again = pickle.loads(pickle.dumps(view))
        again["a"] = 5
        assert again == {"a": 1} and again.p_consistency_checks == 0.25
        with pytest.raises(AttributeError, match="nothing"):
            d.nothing_of_that_name

    def test_wrong_arguments(self, first: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for bad in ({"wrapped_dict": {}}, {"wrapped_dict": LocalDict()}):
            with pytest.raises((TypeError, ValueError)):
                WriteOnceDict(**bad)  # type: ignore[arg-type]
        for p in (1.2, -0.1, "1", True, KEEP_CURRENT):
            with pytest.raises(ValueError, match="0 to 1"):
                WriteOnceDict(wrapped_dict=first, p_consistency_checks=p)  # type: ignore[arg-type]
        monkeypatch.chdir(tmp_path)
        assert WriteOnceDict().base_dir == str(tmp_path / "__file_dir_dict__")


def test_several_formats_over_one_place(tmp_path: Path) -> None:
    d: Any = OverlappingMultiDict(
        dict_type=FileDirDict,
        shared_subdicts_params={"base_dir": tmp_path},
        pkl={},
        json={},
        txt={"base_class_for_values": str},
    )
    d.pkl["k"], d.json["k"], d.txt["k"] = (1,), [1], "1"
    assert d.subdicts_names == ["pkl", "json", "txt"] and (d.pkl["k"], d.json["k"], d.txt["k"]) == ((1,), [1], "1")
    for call in (lambda: d["k"], lambda: d.__setitem__("k", 1), lambda: d.__delitem__("k")):
        with pytest.raises(TypeError, match="several dicts"):
            call()
    with pytest.raises(AttributeError, match=r"md.*pkl, json, txt"):
        d.md
    for bad in ({"dict_type": dict}, {"shared_subdicts_params": 1}, {"pkl": 1}):
        with pytest.raises(TypeError):
            OverlappingMultiDict(**{"dict_type": FileDirDict, "shared_subdicts_params": {}, **bad})  # type: ignore[arg-type]


class TestCopiesInDicts:
    @pytest.fixture
    def parts(self, tmp_path: Path) -> tuple[Any, Any, Any, Any]:
        main, data, etags = FileDirDict(base_dir=tmp_path), LocalDict(), LocalDict(serialization_format="json")
        return main, data, etags, MutableDictCached(main_dict=main, data_cache=data, etag_cache=etags)

    def test_copies_are_kept_and_asked_about(self, parts: tuple[Any, Any, Any, Any]) -> None:
        main, data, etags, d = parts
        d["a", "b"] = 1
        assert data["a", "b"] == 1 and etags["a", "b"] == main.etag(("a", "b")) == d.etag(("a", "b"))
        main["a", "b"] = 2
        assert d["a", "b"] == 2 == data["a", "b"]
        del main["a", "b"]
        assert ("a", "b") not in d and d.get(("a", "b")) is None and len(data) == len(etags) == 0

    def test_a_value_and_an_etag_that_do_not_belong_together_are_not_believed(self, parts: tuple[Any, Any, Any, Any]) -> None:
        main, data, etags, d = parts
        d["a"] = "new"
        data["a"] = "old"  # as a slow reader does that was killed before it wrote the ETag
        assert etags["a"] == main.etag("a")
        assert d["a"] == "new"
        fresh: Any = MutableDictCached(main_dict=main, data_cache=data, etag_cache=etags)
        data["a"] = "old"
        assert fresh["a"] == "new"

    def test_a_lost_condition_does_not_reach_the_copies(self, parts: tuple[Any, Any, Any, Any]) -> None:
        main, data, etags, d = parts
        d["a"] = 1
        seen = d.etag("a")
        main["a"] = 2
        result = d.set_item_if("a", value=3, condition=ETAG_IS_THE_SAME, expected_etag=seen)
        assert not result.condition_was_satisfied and result.new_value == 2 == d["a"] == data["a"]
        assert etags["a"] == main.etag("a")

    def test_copies_of_what_never_changes_are_believed(self, tmp_path: Path) -> None:
        main: Any = FileDirDict(base_dir=tmp_path, append_only=True)
        data: Any = LocalDict(append_only=True)
        d: Any = AppendOnlyDictCached(main_dict=main, data_cache=data)
        d["a"] = 1
        main["b"] = 2
        assert d["b"] == 2 == data["b"] and d["a"] == data["a"]
        data["only"] = 3
        assert d["only"] == 3 and "only" in d and len(d) == 2
        assert d.etag("a") == main.etag("a") == d.get_with_etag("a").actual_etag and d.timestamp("a") == main.timestamp("a")
        with pytest.raises(perdure.PolicyError):
            d["a"] = 2
        main["other"] = "of the main dict"
        data["other"] = "of the cache"
        for _ in range(2):  # the ETag of one is not given to the value of the other
            seen = d.get_with_etag("other")
            assert (seen.actual_etag, seen.new_value) == (main.etag("other"), "of the main dict")
        view = d.get_subdict("level")
        view["a"] = 5
        assert d["level", "a"] == view["a"] == data["level", "a"] == 5 and "a" in view and "only" not in view

    def test_wrong_parts(self) -> None:
        good: Any = LocalDict()
        only: Any = LocalDict(append_only=True)
        for main, data, etags, kind in (
            ({}, good, good, TypeError), (good, {}, good, TypeError), (good, good, None, TypeError),
            (only, good, good, ValueError), (good, only, good, ValueError), (good, good, only, ValueError),
        ):  # fmt: skip
            with pytest.raises(kind):
                MutableDictCached(main_dict=main, data_cache=data, etag_cache=etags)
        for main, data, kind in ((good, only, ValueError), (only, good, ValueError), (1, only, TypeError)):
            with pytest.raises(kind):
                AppendOnlyDictCached(main_dict=main, data_cache=data)
        with pytest.raises(ValueError, match="base_class"):
            AppendOnlyDictCached(main_dict=only, data_cache=LocalDict(append_only=True, base_class_for_values=int))


def test_every_member_is_a_persidict() -> None:
    with_defaults = (FileDirDict, LocalDict, EmptyDict, BasicS3Dict, S3Dict, WriteOnceDict)
    for kind in (*with_defaults, MutableDictCached, AppendOnlyDictCached):
        assert issubclass(kind, PersiDict) and bool(kind.get_default_params()) == (kind in with_defaults)
