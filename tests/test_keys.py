"""The grammar of keys, asked for one key and for a whole listing."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import InvalidKeyError
from perdure.keys import (
    MAX_SEGMENT,
    SAFE_CHARS,
    NonEmptySafeStrTuple,
    SafeStrTuple,
    TupleKey,
    are_keys,
    contains_unsafe_chars,
    get_safe_chars,
    is_key,
    join_key,
)

segments = st.text(st.sampled_from(sorted(SAFE_CHARS)), min_size=1, max_size=6)
keys = st.lists(segments, min_size=1, max_size=3).map("/".join)
odd = st.text(st.sampled_from([*"ab./\n\0 é+"]), max_size=6) | st.just("a" * (MAX_SEGMENT + 1))


@given(st.lists(keys | odd, max_size=5))
def test_a_listing_is_legal_when_each_of_its_names_is(names: list[str]) -> None:
    assert are_keys(names) == all(map(is_key, names))


@given(st.lists(keys, max_size=5), odd, st.integers(0, 5))
def test_one_that_is_no_key_is_found_among_others(names: list[str], name: str, index: int) -> None:
    assert are_keys([*names[:index], name, *names[index:]]) == (all(map(is_key, names)) and is_key(name))


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "a//b", ".", "..", "a/./b", "a/..", "a b", "a\n", "\na", "a/\n/b", "é", "a" * 254]
)
def test_these_are_no_keys(name: str) -> None:
    assert not is_key(name)
    assert not are_keys(["a", name, "b"])


def test_these_are_keys() -> None:
    names = ["a", "...", "a.b/..c", "(x)_-~.=", "a" * MAX_SEGMENT, f"{'a' * MAX_SEGMENT}/{'b' * MAX_SEGMENT}"]
    assert all(map(is_key, names))
    assert are_keys(names)
    assert are_keys([])


def test_keys_equal_what_may_stand_between_square_brackets() -> None:
    key = SafeStrTuple("a", "b")
    for same in (("a", "b"), ["a", "b"], ("a", ("b",)), [["a"], "b"], TupleKey("a", "b"), NonEmptySafeStrTuple("a", "b")):
        assert key == same and same == key and (key != same) is False
    for other in ("a", "a/b", ("b", "a"), 5, None, {"a": "b"}, ["a b"], [""], object(), b"ab", ("a", 1)):
        assert key != other and (key == other) is False


def test_keys_of_the_family_hash_like_tuples_and_native_ones_like_what_was_written() -> None:
    assert hash(SafeStrTuple("a")) == hash("a") and hash(TupleKey("a")) == hash(("a",))
    assert hash(SafeStrTuple("a", "b")) == hash(TupleKey("a", "b")) == hash(("a", "b"))
    assert type(TupleKey("a") + "b") is TupleKey and type("b" + TupleKey("a")) is TupleKey
    assert type(SafeStrTuple("a") + "b") is SafeStrTuple
    assert repr(TupleKey("a", "b")) == repr(SafeStrTuple("a", "b")) == "SafeStrTuple(('a', 'b'))"


def test_a_class_that_compares_in_its_own_way_decides_from_either_side() -> None:
    class Never(SafeStrTuple):
        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = SafeStrTuple.__hash__

    class Usual(SafeStrTuple):
        pass

    for key in (SafeStrTuple("a"), Usual("a")):
        assert (key == Never("a")) is (Never("a") == key) is False and key != Never("a")
    assert Usual("a") == SafeStrTuple("a") == Usual("a")


def test_reversed_keys_are_keys_and_copies_the_same_object() -> None:
    key = TupleKey("a", "b")
    assert reversed(key) == ("b", "a") and type(reversed(key)) is TupleKey and list(reversed(key)) == ["b", "a"]
    assert copy.copy(key) is key and copy.deepcopy([key])[0] is key
    assert pickle.loads(pickle.dumps(key)) == key and type(pickle.loads(pickle.dumps(key))) is TupleKey


def test_a_key_that_needs_a_segment() -> None:
    assert NonEmptySafeStrTuple("a") == "a"
    for empty in ((), ([],), ((),)):
        with pytest.raises(InvalidKeyError, match="at least one"):
            NonEmptySafeStrTuple(*empty)


def test_what_is_no_text_is_of_the_wrong_type() -> None:
    for bad in (1, None, b"a", 1.5, ("a", 1), {"a": 1}, object()):
        for check in (SafeStrTuple, join_key):
            with pytest.raises(TypeError):
                check(bad)
        with pytest.raises(ValueError):
            join_key(bad)


def test_safe_characters() -> None:
    assert len(get_safe_chars()) == 69 and get_safe_chars() is not get_safe_chars()
    assert contains_unsafe_chars("a b") and not contains_unsafe_chars("a.b") and not contains_unsafe_chars("")
