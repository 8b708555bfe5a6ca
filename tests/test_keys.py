"""The grammar of keys, asked for one key and for a whole listing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.keys import MAX_SEGMENT, SAFE_CHARS, are_keys, is_key

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
