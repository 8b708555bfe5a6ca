"""A PersiDict is a dict: each method, views, copies, errors."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import (
    ALWAYS_RETRIEVE,
    DELETE_CURRENT,
    ITEM_NOT_AVAILABLE,
    KEEP_CURRENT,
    VALUE_NOT_RETRIEVED,
    IntegrityError,
    InvalidKeyError,
    NotFoundError,
    PersiDict,
    PolicyError,
    SafeStrTuple,
)

Dict = PersiDict[Any]
HOSTILE_KEYS = [
    "", (), [], ".", "..", ("a", ".."), "/etc/passwd", "a/b", "a\0b", "a\n", "é", "ａ", "x" * 254, "CON:", "a b", "a\\b", "*",
    None, 1, 1.5, b"a", {"a"}, {"a": 1}, ("a", 1), ("a", None), object(),
]  # fmt: skip


class TestItems:
    def test_set_get_delete(self, d: Dict) -> None:
        d["a"] = 1
        d["b", "c"] = {"x": [1, (2,)]}
        assert d["a"] == 1
        assert d[["b", ("c",)]] == d["b", "c"] == {"x": [1, (2,)]}
        assert "a" in d
        assert "b" not in d
        del d["a"]
        assert "a" not in d
        assert len(d) == 1

    def test_a_missing_key_is_a_key_error_that_names_it(self, d: Dict) -> None:
        view = d.get_subdict("top")
        for call in (
            lambda: view["x", "y"],
            lambda: view.pop(("x", "y")),
            lambda: view.etag(("x", "y")),
            lambda: view.timestamp(("x", "y")),
            lambda: view.__delitem__(("x", "y")),
        ):
            with pytest.raises(KeyError) as caught:
                call()
            error = caught.value
            assert isinstance(error, NotFoundError)
            assert error.args == (("x", "y"),)
            assert type(error.key) is SafeStrTuple
            assert "'x/y'" in str(error)
            assert d.backend.place in str(error)
            assert "top/" in str(error)
            again = pickle.loads(pickle.dumps(error))
            assert (again.args, str(again)) == (error.args, str(error))

    def test_hostile_keys(self, d: Dict) -> None:
        d["a"] = 1
        for key in HOSTILE_KEYS:
            self.check_hostile_key(d, key)
            assert d == {"a": 1}

    def check_hostile_key(self, d: Dict, key: Any) -> None:
        for call in (
            lambda: d[key],
            lambda: d.__setitem__(key, 1),
            lambda: d.__delitem__(key),
            lambda: key in d,
            lambda: d.get(key, 0),
            lambda: d.pop(key, 0),
            lambda: d.discard(key),
            lambda: d.setdefault(key, 0),
            lambda: d.transform_item(key, transformer=lambda _: 1),
            lambda: d.get_with_etag(key),
            lambda: d.get_many(["a", key]),
            lambda: d.set_many([("b", 1), (key, 1)]),
            lambda: d.delete_many(["a", key]),
            lambda: d.update([("b", 1), (key, 1)]),
        ):
            with pytest.raises(InvalidKeyError):
                call()
        assert key not in d.keys()  # noqa: SIM118
        assert (key, 1) not in d.items()

    def test_get(self, d: Dict) -> None:
        d["none"] = None
        assert d.get("none", 5) is None
        assert d.get("x") is None
        assert d.get("x", 5) == 5

    def test_reads_are_independent_objects(self, d: Dict) -> None:
        d["a"] = [1]
        d["a"].append(2)
        assert d["a"] == [1]

    def test_setdefault(self, d: Dict) -> None:
        assert d.setdefault("a", [1]) == [1]
        assert d.setdefault("a", [2]) == [1]
        assert d.setdefault("n") is None
        assert d["n"] is None
        for joker in (KEEP_CURRENT, DELETE_CURRENT):
            with pytest.raises(PolicyError):
                d.setdefault("a", joker)
            with pytest.raises(PolicyError):
                d.setdefault_if("a", default_value=joker, condition=perdure.ANY_ETAG, expected_etag=ITEM_NOT_AVAILABLE)

    def test_pop_and_popitem(self, d: Dict) -> None:
        d.update(a=1, b=2, c=3)
        assert d.pop("a") == 1
        assert d.pop("a", None) is None
        with pytest.raises(KeyError):
            d.pop("a")
        taken = dict([d.popitem(), d.popitem()])
        assert taken == {"b": 2, "c": 3}
        with pytest.raises(KeyError, match="empty"):
            d.popitem()

    def test_discard(self, d: Dict) -> None:
        d["a"] = 1
        assert d.discard("a") is True
        assert d.discard("a") is False

    def test_etag_and_timestamp(self, d: Dict) -> None:
        d["a"] = 1
        first = d.etag("a")
        assert first == d.etag("a") == d.get_with_etag("a").actual_etag
        d["a"] = 2
        assert d.etag("a") != first
        assert isinstance(d.timestamp("a"), float)


class TestJokers:
    def test_keep_and_delete(self, d: Dict) -> None:
        d["a"] = 1
        d["a"] = d["absent"] = KEEP_CURRENT
        assert d == {"a": 1}
        d["a"] = d["absent"] = DELETE_CURRENT
        assert d == {}
        with pytest.raises(InvalidKeyError):
            d["a/b"] = KEEP_CURRENT

    def test_in_update(self, d: Dict) -> None:
        d.update(a=1, b=2, c=3)
        d.update([("a", 5), ("a", KEEP_CURRENT), ("b", DELETE_CURRENT), ("c", DELETE_CURRENT), ("c", 7)], e=1)
        assert d == {"a": 5, "c": 7, "e": 1}
        d |= {"a": DELETE_CURRENT, "z": KEEP_CURRENT}
        assert d == {"c": 7, "e": 1}

    @pytest.mark.parametrize("answer", [ITEM_NOT_AVAILABLE, VALUE_NOT_RETRIEVED, ALWAYS_RETRIEVE], ids=repr)
    def test_answers_are_not_values(self, d: Dict, answer: Any) -> None:
        with pytest.raises(PolicyError):
            d["a"] = answer
        with pytest.raises(PolicyError):
            d.transform_item("a", transformer=lambda _: answer)
        assert not d

    def test_flags_are_singletons(self) -> None:
        from perdure.mapping import flags

        for name in ("KEEP_CURRENT", "DELETE_CURRENT", "ANY_ETAG", "ETAG_IS_THE_SAME", "ITEM_NOT_AVAILABLE", "NEVER_RETRIEVE"):
            flag = getattr(flags, name)
            assert type(flag)() is flag
            assert pickle.loads(pickle.dumps(flag)) is flag
            assert copy.copy(flag) is copy.deepcopy(flag) is flag
            assert flag
            assert repr(flag) == name
        assert isinstance(KEEP_CURRENT, flags.Joker)
        assert not isinstance(ITEM_NOT_AVAILABLE, flags.Joker)


class TestManyItems:
    def test_get_many(self, d: Dict) -> None:
        d.update({"a": 1, ("b", "c"): 2})
        found = d.get_many(["a", ["b", "c"], "x", ("a",)])
        assert found == {"a": 1, ("b", "c"): 2, ("a",): 1}  # under the keys as they were given
        assert [type(key) for key in found] == [str, SafeStrTuple, tuple]  # no dict takes a list
        assert d.get_subdict("b").get_many(["c", "a"]) == {"c": 2}

    def test_set_many_changes_nothing_when_something_is_wrong(self, d: Dict) -> None:
        d["a"] = 1
        for bad in ({"a": 2, "b": lambda: 0}, {"a": 2, "b c": 3}, {"a": 2, "b": ITEM_NOT_AVAILABLE}, {"a": 2, "b": d}):
            with pytest.raises(perdure.PerdureError):
                d.set_many(bad)
            with pytest.raises(perdure.PerdureError):
                d |= bad
        assert d == {"a": 1}

    def test_delete_many(self, d: Dict) -> None:
        d.update(a=1, b=2)
        d.delete_many(["a", "a", "zzz"])
        assert d == {"b": 2}

    def test_update_forms(self, d: Dict) -> None:
        class HasKeys:
            def keys(self) -> Any:
                return iter(["x"])

            def __getitem__(self, key: str) -> int:
                return 9

        d.update()
        d.update({"a": 1}, b=2)
        d.update([("c", 3)])
        d.update(HasKeys())
        assert d == {"a": 1, "b": 2, "c": 3, "x": 9}
        with pytest.raises(TypeError):
            d |= [("a", 1)]

    def test_many_and_large_values_come_in_batches(self, d: Dict) -> None:
        d.set_many({f"k{i}": i for i in range(1500)})
        d["large"] = b"x" * 3_000_000
        assert len(d) == 1501
        values = dict(d.items())
        assert values.pop(SafeStrTuple("large")) == b"x" * 3_000_000
        assert values == {f"k{i}": i for i in range(1500)}
        assert sum(v for v in d.values() if isinstance(v, int)) == sum(range(1500))
        d.clear()
        assert not d
        assert len(d) == 0


class TestViews:
    def test_they_are_live_and_behave_like_those_of_a_dict(self, d: Dict) -> None:
        keys, values, items = d.keys(), d.values(), d.items()
        d.update({"a": 1, "b": 2, ("c", "d"): 3})
        plain = {"a": 1, "b": 2, ("c", "d"): 3}
        assert len(keys) == len(values) == len(items) == 3
        assert keys == plain.keys()
        assert set(keys) == set(plain)
        assert keys & {"a", "zz", "no key", 5} == {"a"}
        assert {"a", "zz"} & keys == {"a"}
        assert keys - {"a"} == {"b", ("c", "d")}
        assert {"a", "x"} - keys == {"x"}
        assert keys | {"x"} == {"a", "b", ("c", "d"), "x"}
        assert keys ^ {"a", "x"} == {"b", ("c", "d"), "x"}
        assert keys >= {"a"}
        assert keys.isdisjoint({"x"})
        assert sorted(values) == [1, 2, 3]
        assert 2 in values
        assert 9 not in values
        assert items == plain.items()
        assert ("a", 1) in items
        assert ("a", 2) not in items
        assert ("a",) not in items
        assert sorted(items) == [(("a",), 1), (("b",), 2), (("c", "d"), 3)]
        assert d.backend.place in repr(keys)

    def test_deleting_while_iterating(self, d: Dict) -> None:
        d.set_many({f"k{i}": i for i in range(300)})
        seen = []
        for item in d.items():
            seen.append(item)
            d.delete_many(d.keys() - {item[0]})
        assert 1 <= len(seen) <= 300
        d.set_many({f"k{i}": i for i in range(50)})
        for key in d:
            del d[key]
        assert not d

    def test_values_skip_what_another_deletes(self, d: Dict) -> None:
        d.set_many({f"k{i:03}": i for i in range(100)})
        values = iter(d.values())
        next(values)
        d.get_subdict("").clear()
        assert len(list(values)) < 100


class TestOneListing:
    """`list(d)` asks for a length first; one listing serves both."""

    def test_counted(self, backend: Any, requests_of: Any) -> None:
        Dict(backend).update({"a": 1, ("b", "c"): 2})
        requests = requests_of(backend)
        d = Dict(backend)
        for make, result in (
            (lambda: list(d), ["a", ("b", "c")]),
            (lambda: list(d.keys()), ["a", ("b", "c")]),
            (lambda: list(d.get_subdict("b")), ["c"]),
            (lambda: tuple(d), ("a", ("b", "c"))),
        ):
            assert set(make()) == set(result)
            assert requests.take() == ["keys"]
        for make in (lambda: list(d.values()), lambda: sorted(d.items())):
            assert len(make()) == 2
            assert requests.take() == ["keys", "get_many"]
        assert (len(d), bool(d)) == (2, True)
        assert requests.take() == ["keys", "keys"]

    def test_a_length_is_always_the_present_one(self, d: Dict) -> None:
        d["a"] = 1
        waiting = iter(d)
        assert len(d) == 1
        d["b"] = 2
        assert len(d) == 2
        assert set(waiting) <= {"a", "b"}
        waiting = iter(d)
        d["c"] = 3
        assert set(waiting) == {"a", "b", "c"}
        assert len(d) == 3


class TestEquality:
    def test_by_content(self, d: Dict, tmp_path: Path) -> None:
        d.update({"a": [1], ("b", "c"): 2})
        other = Dict(perdure.open_backend(f"file:{tmp_path}/another"))
        assert d != other
        other.update(d)
        assert d == other == {"a": [1], ("b", "c"): 2}
        assert OrderedDict({("a",): [1], ("b", "c"): 2}) == d
        assert {("b", "c"): 2, "a": [1]} == d  # noqa: SIM300  the other side asks
        other["a"] = [2]
        assert d != other
        assert d != {"a": [1]}
        assert d != {"a": [1], ("b", "c"): 2, "z": 1}
        assert d != {"a": [1], "not a key": 2}
        assert d != [("a", [1])]
        assert d != None  # noqa: E711
        assert d.get_subdict("b") == {"c": 2}

    def test_equal_parameters_do_not_mean_equal_content(self) -> None:
        first, second = Dict(perdure.open_backend("memory:")), Dict(perdure.open_backend("memory:"))
        first["a"] = 1
        assert first != second

    def test_many(self, d: Dict) -> None:
        plain = {f"k{i}": i for i in range(700)}
        d.update(plain)
        assert d == plain
        assert d == copy.copy(d)
        assert d != plain | {"k699": 0}

    def test_unhashable(self, d: Dict) -> None:
        with pytest.raises(TypeError):
            hash(d)


class TestUnion:
    def test_or(self, d: Dict) -> None:
        d.update(a=1, b=2)
        union = d | {"b": 3, "c": 4}
        assert type(union) is dict
        assert union == {"a": 1, "b": 3, "c": 4}
        assert {"b": 3, "c": 4} | d == {"b": 2, "c": 4, "a": 1}
        assert d | d == d
        assert d == {"a": 1, "b": 2}
        with pytest.raises(TypeError):
            d | [("a", 1)]  # type: ignore[operator]

    def test_ior(self, d: Dict) -> None:
        before = d
        d |= {"a": 1}
        assert d is before
        assert d == {"a": 1}


class TestSubdicts:
    def test_a_view(self, d: Dict) -> None:
        d.update({"a": 0, ("a", "b"): 1, ("a", "b", "c"): 2, "ab": 3, ("a.b", "c"): 4})
        view = d.get_subdict("a")
        assert view == {"b": 1, ("b", "c"): 2}
        assert len(view) == 2
        view["x"] = 5
        assert d["a", "x"] == 5
        assert view.get_subdict("b") == d.get_subdict(("a", "b")) == {"c": 2}
        assert view.pop("x") == 5
        view.clear()
        assert d == {"a": 0, "ab": 3, ("a.b", "c"): 4}
        assert not view
        assert view == {}

    @pytest.mark.parametrize("empty", ["", (), [], SafeStrTuple()], ids=repr)
    def test_an_empty_prefix_is_the_whole(self, d: Dict, empty: Any) -> None:
        d["a"] = 1
        assert d.get_subdict(empty) == {"a": 1}

    @pytest.mark.parametrize("bad", ["..", "a/", None, 0, ("a", ""), False], ids=repr)
    def test_a_bad_prefix(self, d: Dict, bad: Any) -> None:
        with pytest.raises(InvalidKeyError):
            d.get_subdict(bad)

    def test_every_operation_stays_within(self, d: Dict) -> None:
        view = d.get_subdict(("a", "b"))
        view.update(x=1, y=2)
        assert view.setdefault("z", 3) == 3
        assert view.transform_item("x", transformer=lambda n: n + 1).new_value == 2
        assert view.discard("y") is True
        assert view.popitem()[0] in {"x", "z"}
        view.delete_many(["x", "z"])
        view.set_many({("p", "q"): 1})
        assert view.get_with_etag(("p", "q")).new_value == 1
        assert list(d) == [("a", "b", "p", "q")]

    def test_subdicts(self, d: Dict) -> None:
        d.update({"k": 0, ("a", "x"): 1, ("a", "y", "z"): 2, ("b", "x"): 3})
        found = d.subdicts()
        assert {name: dict(view) for name, view in found.items()} == {
            "a": {"x": 1, ("y", "z"): 2},
            "b": {"x": 3},
            "k": {},
        }

    def test_listing_asks_for_the_prefix_only(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        view = Dict(backend).get_subdict("a")
        view["x"] = 1
        asked = []
        keys = backend.keys
        monkeypatch.setattr(backend, "keys", lambda prefix="": asked.append(prefix) or keys(prefix))
        assert (list(view), len(view), bool(view), view == {"x": 1}) == ([("x",)], 1, True, True)
        assert set(asked) == {"a/"}


class TestAppendOnly:
    @pytest.fixture
    def ao(self, backend: Any) -> Dict:
        Dict(backend)["old"] = 1
        return Dict(backend, append_only=True)

    def test_what_is_allowed(self, ao: Dict) -> None:
        ao["new"] = 2
        ao["old"] = ao["other"] = KEEP_CURRENT
        ao.update(more=3)
        assert ao.setdefault("old", 9) == 1
        assert ao.setdefault("even-more", 4) == 4
        assert ao.transform_item("last", transformer=lambda _: 5).new_value == 5
        assert ao.transform_item("old", transformer=lambda _: KEEP_CURRENT).new_value == 1
        assert ao.transform_item("absent", transformer=lambda _: DELETE_CURRENT).new_value is ITEM_NOT_AVAILABLE
        assert ao == {"old": 1, "new": 2, "more": 3, "even-more": 4, "last": 5}

    def test_what_is_refused(self, ao: Dict) -> None:
        for call in (
            lambda: ao.__setitem__("old", 1),
            lambda: ao.__setitem__("old", DELETE_CURRENT),
            lambda: ao.__setitem__("absent", DELETE_CURRENT),
            lambda: ao.__delitem__("old"),
            lambda: ao.__delitem__("absent"),
            lambda: ao.pop("old"),
            lambda: ao.pop("absent", None),
            lambda: ao.popitem(),
            lambda: ao.clear(),
            lambda: ao.discard("old"),
            lambda: ao.discard("absent"),
            lambda: ao.delete_many(["absent"]),
            lambda: ao.update(old=2),
            lambda: ao.update(old=DELETE_CURRENT),
            lambda: ao.transform_item("old", transformer=lambda n: n + 1),
            lambda: ao.transform_item("old", transformer=lambda n: DELETE_CURRENT),
            lambda: ao.get_subdict("").clear(),
        ):
            with pytest.raises(PolicyError, match="append-only") as caught:
                call()
            assert isinstance(caught.value, TypeError)
            assert caught.value.policy == "append-only"
            assert pickle.loads(pickle.dumps(caught.value)).policy == "append-only"
        assert ao == {"old": 1}

    def test_the_message_says_which_key_and_what_to_do(self, ao: Dict) -> None:
        with pytest.raises(PolicyError, match=r"key 'old' in .*nothing is deleted\. Open it without append_only"):
            del ao["old"]
        with pytest.raises(PolicyError, match=r"key 'old' in .*is there already\. Use a new key"):
            ao["old"] = 2


class TestValues:
    def test_damage_says_what_to_do(self, backend: Any) -> None:
        d = Dict(backend)
        d["a", "b"] = "text"
        data = bytearray(backend.get("a/b").data)
        data[-1] ^= 1
        backend.put("a/b", data)
        for read in (
            lambda: d["a", "b"],
            lambda: d.get(("a", "b")),
            lambda: d.get_with_etag(("a", "b")),
            lambda: list(d.values()),
        ):
            with pytest.raises(IntegrityError, match=r"key 'a/b' in .* Restore it from a copy.* doctor --repair"):
                read()

    def test_base_class(self, backend: Any) -> None:
        plain, numbers = Dict(backend), PersiDict[int](backend, base_class_for_values=int)
        numbers["a"] = 1
        plain["b"] = "text"
        for call in (
            lambda: numbers.__setitem__("a", "x"),
            lambda: numbers.setdefault("c", "x"),
            lambda: numbers.set_many({"a": 2, "c": "x"}),
            lambda: numbers.transform_item("a", transformer=lambda _: "x"),  # type: ignore[arg-type, return-value]
            lambda: numbers["b"],
            lambda: numbers.get("b"),
            lambda: numbers.get_with_etag("b"),
            lambda: list(numbers.values()),
            lambda: numbers.pop("b"),
        ):
            with pytest.raises(TypeError, match="int") as caught:
                call()
            assert isinstance(caught.value, PolicyError)
        assert set(numbers) == {"a", "b"}
        assert plain == {"a": 1, "b": "text"}
        numbers["a"] = DELETE_CURRENT
        assert plain == {"b": "text"}
        with pytest.raises(perdure.UsageError):
            Dict(backend, base_class_for_values=(int, str))  # type: ignore[arg-type]

    def test_a_dict_is_not_a_value(self, d: Dict) -> None:
        for call in (
            lambda: d.__setitem__("a", d),
            lambda: d.setdefault("a", d.get_subdict("x")),
            lambda: d.update(a=d),
            lambda: d.transform_item("a", transformer=lambda _: d),
        ):
            with pytest.raises(PolicyError, match="cannot be a value"):
                call()
        assert not d

    def test_a_value_that_cannot_be_written_changes_nothing(self, d: Dict) -> None:
        d["a"] = 1
        for call in (
            lambda: d.__setitem__("a", lambda: 0),
            lambda: d.setdefault("b", lambda: 0),
            lambda: d.transform_item("a", transformer=lambda _: lambda: 0),
        ):
            with pytest.raises(perdure.CodecError) as caught:
                call()
            assert caught.value.place == d.backend.place
        assert d == {"a": 1}

    def test_damage_is_one_clear_error_and_hurts_no_other_key(self, d: Dict) -> None:
        d.update({"a": 1, ("b", "c"): 2})
        d.backend.put("b/c", d.backend.get("b/c").data[:-1])
        view = d.get_subdict("b")
        for call in (
            lambda: view["c"],
            lambda: view.get("c", 0),
            lambda: view.pop("c", 0),
            lambda: view.setdefault("c", 0),
            lambda: view.get_with_etag("c"),
            lambda: view.transform_item("c", transformer=lambda _: 1),
            lambda: list(d.values()),
            lambda: d == {"a": 1, ("b", "c"): 2},
        ):
            with pytest.raises(perdure.CodecError) as caught:
                call()
            assert caught.value.key == "b/c"
            assert caught.value.place == d.backend.place
        assert d["a"] == 1
        assert set(d) == {"a", ("b", "c")}
        view["c"] = 3
        assert d == {"a": 1, ("b", "c"): 3}

    def test_a_failing_transformer_leaves_the_value(self, d: Dict) -> None:
        d["a"] = 1
        with pytest.raises(ZeroDivisionError):
            d.transform_item("a", transformer=lambda n: n // 0)
        with pytest.raises(KeyError, match="mine"):
            d.transform_item("a", transformer=lambda n: {}["mine"])
        assert d["a"] == 1


class TestHandles:
    def test_copy_is_a_handle(self, d: Dict) -> None:
        view = d.get_subdict("a")
        twin = copy.copy(view)
        twin["x"] = 1
        assert view == twin == {"x": 1}
        assert twin is not view
        with pytest.raises(PolicyError):
            copy.deepcopy(d)

    def test_pickle_is_a_handle(self, url: str) -> None:
        backend = perdure.open_backend(url)
        d = Dict(backend, append_only=True, base_class_for_values=int)
        d["a", "b"] = 1
        view = d.get_subdict("a")
        if backend.place.startswith("memory"):
            with pytest.raises(PolicyError):
                pickle.dumps(view)
            return
        list(view)
        data = pickle.dumps(view)
        assert len(data) < 2000
        again = pickle.loads(data)
        assert again == {"b": 1}
        assert again.append_only
        assert again.base_class_for_values is int
        assert repr(again) == repr(view)
        again.close()

    def test_closing(self, url: str) -> None:
        with perdure.open(url) as d:
            d["a"] = 1
            view = d.get_subdict("x")
        d.close()
        for call in (lambda: d["a"], lambda: view.__setitem__("a", 1), lambda: len(d), lambda: list(view), lambda: bool(d)):
            with pytest.raises(perdure.BackendError):
                call()

    def test_repr_says_where_and_how_without_looking(self, backend: Any, requests_of: Any) -> None:
        requests = requests_of(backend)
        assert repr(Dict(backend)) == f"<PersiDict in {backend.place} (msgpack)>"
        view = PersiDict[int](backend, append_only=True, base_class_for_values=int).get_subdict(("a", "b"))
        assert repr(view) == f"<PersiDict in {backend.place} under a/b/ (msgpack, append-only, int)>"
        assert requests.take() == []

    def test_a_subclass_keeps_its_class_and_attributes(self, backend: Any) -> None:
        class Mine(PersiDict[int]):
            colour = "none"

        mine = Mine(backend)
        mine.colour = "red"
        view = mine.get_subdict("a")
        assert type(view) is Mine
        assert view.colour == "red"

    def test_it_is_a_mapping(self, d: Dict) -> None:
        assert isinstance(d, Mapping)
        d.update(a=1)
        match d:
            case {"a": value}:
                assert value == 1
            case _:
                pytest.fail("no match")
