"""A PersiDict against a built-in dict: any sequence of operations, through two handles and views, gives the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from places import url_of

import perdure
from perdure import (
    ALWAYS_RETRIEVE,
    ANY_ETAG,
    DELETE_CURRENT,
    ETAG_HAS_CHANGED,
    ETAG_IS_THE_SAME,
    IF_ETAG_CHANGED,
    ITEM_NOT_AVAILABLE,
    KEEP_CURRENT,
    NEVER_RETRIEVE,
    VALUE_NOT_RETRIEVED,
    PersiDict,
)
from perdure.protocol import ETag

# Names that are prefixes of each other, differ in case, or look like what file systems make of names.
names = st.sampled_from(["a", "A", "ab", "a.b", "a_b", "~", "=", "a..", "(a)", "..a", "-", "con", "a.tmp", "z" * 200])
keys = st.lists(names, min_size=1, max_size=3).map(tuple)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.binary(max_size=8)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3), max_leaves=6
)
writes = values | st.sampled_from([KEEP_CURRENT, DELETE_CURRENT])
conditions = st.sampled_from([ANY_ETAG, ETAG_IS_THE_SAME, ETAG_HAS_CHANGED])
retrievals = st.sampled_from([ALWAYS_RETRIEVE, IF_ETAG_CHANGED, NEVER_RETRIEVE])
handles = st.sampled_from([0, 1])

Model = dict[tuple[str, ...], Any]


def put(model: Model, key: tuple[str, ...], value: Any) -> None:
    if value is DELETE_CURRENT:
        model.pop(key, None)
    elif value is not KEEP_CURRENT:
        model[key] = value


class Machine(RuleBasedStateMachine):
    """What is done to `self.d` (two handles) is done to `self.model`."""

    url: Callable[[str], str]
    etags = Bundle("etags")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="perdure-test-")
        url = type(self).url(self.folder)
        self.d: list[PersiDict[Any]] = [perdure.open(url), perdure.open(url)]
        self.model: Model = {}

    def teardown(self) -> None:
        for d in self.d:
            d.clear()
            d.close()
        shutil.rmtree(self.folder)

    @initialize(target=etags)
    def first(self) -> Any:
        return multiple(ITEM_NOT_AVAILABLE, ETag("other"))

    @rule(h=handles, key=keys, value=writes)
    def set(self, h: int, key: Any, value: Any) -> None:
        self.d[h][key] = value
        put(self.model, key, value)

    @rule(h=handles, key=keys)
    def delete(self, h: int, key: Any) -> None:
        if key in self.model:
            del self.d[h][key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.d[h][key]

    @rule(h=handles, key=keys)
    def read(self, h: int, key: Any) -> None:
        d, missing = self.d[h], object()
        assert (key in d) is (key in self.model)
        assert d.get(key, missing) == self.model.get(key, missing)
        if key not in self.model:
            with pytest.raises(KeyError):
                d[key]

    @rule(h=handles, key=keys, value=values)
    def setdefault(self, h: int, key: Any, value: Any) -> None:
        assert self.d[h].setdefault(key, value) == self.model.setdefault(key, value)

    @rule(h=handles, key=keys)
    def pop(self, h: int, key: Any) -> None:
        assert self.d[h].pop(key, "default") == self.model.pop(key, "default")

    @rule(h=handles)
    def popitem(self, h: int) -> None:
        if self.model:
            key, value = self.d[h].popitem()
            assert self.model.pop(tuple(key)) == value
        else:
            with pytest.raises(KeyError):
                self.d[h].popitem()

    @rule(h=handles, key=keys)
    def discard(self, h: int, key: Any) -> None:
        assert self.d[h].discard(key) is (key in self.model)
        self.model.pop(key, None)

    @rule(h=handles, items=st.lists(st.tuples(keys, writes), max_size=5))
    def update(self, h: int, items: Any) -> None:
        self.d[h].update(items)
        for key, value in items:
            put(self.model, key, value)

    @rule(h=handles, wanted=st.lists(keys, max_size=5))
    def get_many(self, h: int, wanted: Any) -> None:
        expected = {key: self.model[key] for key in wanted if key in self.model}
        assert {tuple(key): value for key, value in self.d[h].get_many(wanted).items()} == expected

    @rule(h=handles, unwanted=st.lists(keys, max_size=5))
    def delete_many(self, h: int, unwanted: Any) -> None:
        self.d[h].delete_many(unwanted)
        for key in unwanted:
            self.model.pop(key, None)

    @rule(h=handles, key=keys, new=writes)
    def transform(self, h: int, key: Any, new: Any) -> None:
        seen = []
        result = self.d[h].transform_item(key, transformer=lambda old: seen.append(old) or new)  # type: ignore[func-returns-value]
        assert seen == [self.model.get(key, ITEM_NOT_AVAILABLE)]
        put(self.model, key, new)
        assert result.new_value == self.model.get(key, ITEM_NOT_AVAILABLE)

    @rule(target=etags, h=handles, key=keys)
    def etag(self, h: int, key: Any) -> Any:
        result = self.d[h].get_with_etag(key)
        assert result.condition_was_satisfied
        assert result.new_value == self.model.get(key, ITEM_NOT_AVAILABLE)
        assert (result.actual_etag is ITEM_NOT_AVAILABLE) is (key not in self.model)
        return result.actual_etag

    @rule(h=handles, key=keys, new=writes, condition=conditions, expected=consumes(etags) | etags, retrieve=retrievals)
    def set_if(self, h: int, key: Any, new: Any, condition: Any, expected: Any, retrieve: Any) -> None:
        before, old = self.d[h].get_with_etag(key).actual_etag, self.model.get(key, ITEM_NOT_AVAILABLE)
        result = self.d[h].set_item_if(key, value=new, condition=condition, expected_etag=expected, retrieve_value=retrieve)
        holds = condition is ANY_ETAG or (expected == before) is (condition is ETAG_IS_THE_SAME)
        assert (result.condition_was_satisfied, result.actual_etag) == (holds, before)
        if holds:
            put(self.model, key, new)
        if not holds or new is KEEP_CURRENT:
            skipped = retrieve is NEVER_RETRIEVE or (retrieve is IF_ETAG_CHANGED and expected == before)
            assert result.new_value == (VALUE_NOT_RETRIEVED if skipped and key in self.model else old)
            assert result.resulting_etag == before
        else:
            assert result.new_value == self.model.get(key, ITEM_NOT_AVAILABLE)

    @rule(h=handles, key=keys, value=values, condition=conditions, expected=etags)
    def setdefault_if(self, h: int, key: Any, value: Any, condition: Any, expected: Any) -> None:
        before = self.d[h].get_with_etag(key).actual_etag
        result = self.d[h].setdefault_if(key, default_value=value, condition=condition, expected_etag=expected)
        holds = condition is ANY_ETAG or (expected == before) is (condition is ETAG_IS_THE_SAME)
        assert (result.condition_was_satisfied, result.actual_etag) == (holds, before)
        if holds:
            self.model.setdefault(key, value)

    @rule(h=handles, key=keys, condition=conditions, expected=etags)
    def discard_if(self, h: int, key: Any, condition: Any, expected: Any) -> None:
        before = self.d[h].get_with_etag(key).actual_etag
        result = self.d[h].discard_if(key, condition=condition, expected_etag=expected)
        holds = condition is ANY_ETAG or (expected == before) is (condition is ETAG_IS_THE_SAME)
        assert (result.condition_was_satisfied, result.actual_etag) == (holds, before)
        if holds:
            self.model.pop(key, None)

    @rule(h=handles, prefix=st.lists(names, max_size=2).map(tuple), key=keys, value=values, clear=st.booleans())
    def view(self, h: int, prefix: Any, key: Any, value: Any, clear: bool) -> None:
        view = self.d[h].get_subdict(prefix)
        n = len(prefix)
        assert view == {k[n:]: v for k, v in self.model.items() if k[:n] == prefix and len(k) > n}
        if clear:
            view.clear()
            self.model = {k: v for k, v in self.model.items() if k[:n] != prefix or len(k) == n}
        view[key] = value
        self.model[prefix + key] = value

    @rule(h=handles)
    def subdicts(self, h: int) -> None:
        assert self.d[h].subdicts().keys() == {key[0] for key in self.model}

    @invariant()
    def same(self) -> None:
        for d in self.d:
            assert {tuple(key): value for key, value in d.items()} == self.model
            assert d == self.model
            assert sorted(map(tuple, d)) == sorted(self.model)
            assert (len(d), bool(d)) == (len(self.model), bool(self.model))


@pytest.mark.parametrize(("place", "share"), [("memory", 1.0), ("file", 0.3), ("sqlite", 0.5), ("s3", 0.08)])
def test_like_a_dict(request: pytest.FixtureRequest, place: str, share: float) -> None:
    rounds = int(os.environ.get("PERDURE_ROUNDS", "1"))
    run_state_machine_as_test(
        type("Here", (Machine,), {"url": lambda folder: url_of(place, request, folder)}),
        settings=settings(
            max_examples=int(40 * share * rounds),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
