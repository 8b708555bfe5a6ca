"""Conditional operations: every combination, the number of requests, and races."""

from __future__ import annotations

from typing import Any

import pytest
from rules import ABSENT, CUR, INA, NEW, NEW_VALUE, OLD_VALUE, OTHER, REFUSED, VNR, Case, all_cases, expectation

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

CONDITION = {"ANY": ANY_ETAG, "SAME": ETAG_IS_THE_SAME, "CHANGED": ETAG_HAS_CHANGED}
RETRIEVE = {"ALWAYS": ALWAYS_RETRIEVE, "IF_CHANGED": IF_ETAG_CHANGED, "NEVER": NEVER_RETRIEVE}
VALUE = {"set NEW": "new", "set KEEP": KEEP_CURRENT, "set DELETE": DELETE_CURRENT}


def call(d: PersiDict[Any], case: Case, expected: Any) -> Any:
    common = {"condition": CONDITION[case.condition], "expected_etag": expected}
    if case.operation == "discard":
        return d.discard_if("k", **common)
    common["retrieve_value"] = RETRIEVE[case.retrieve]
    if case.operation == "get":
        return d.get_item_if("k", **common)
    if case.operation == "setdefault":
        return d.setdefault_if("k", default_value="new", **common)
    return d.set_item_if("k", value=VALUE[case.operation], **common)


def test_there_are_240_cases() -> None:
    assert len(set(all_cases())) == len(all_cases()) == 240


@pytest.mark.parametrize("append_only", [False, True])
def test_every_result(backend: Any, append_only: bool) -> None:
    for number, case in enumerate(all_cases()):
        plain, d = PersiDict[Any](backend), PersiDict[Any](backend, append_only=append_only)
        check_result(plain.get_subdict(f"case{number}"), d.get_subdict(f"case{number}"), case)


def check_result(plain: PersiDict[Any], d: PersiDict[Any], case: Case) -> None:
    """Do to `d` what the case says, and look at the answer and, through `plain`, which is mutable, at what is stored."""
    print(case)  # shown when the check of it fails
    append_only = d.append_only
    if case.present:
        plain["k"] = "old"
    current = plain.etag("k") if case.present else ITEM_NOT_AVAILABLE
    etags = {CUR: current, OTHER: ETag("other"), INA: ITEM_NOT_AVAILABLE}

    expected = expectation(case, append_only=append_only)
    if expected == REFUSED:
        with pytest.raises(perdure.PolicyError) as caught:
            call(d, case, etags[case.expected])
        assert caught.value.policy == "append-only"
        assert plain["k"] == "old"
        assert plain.etag("k") == current
        return
    satisfied, actual, resulting, value, stored = expected
    result = call(d, case, etags[case.expected])
    assert result.condition_was_satisfied is satisfied
    assert result.actual_etag == etags[actual]
    if resulting == NEW:
        assert result.resulting_etag == plain.etag("k")
        assert result.resulting_etag != current
    else:
        assert result.resulting_etag == etags[resulting]
    assert result.value_was_mutated is (result.resulting_etag != result.actual_etag)
    values = {OLD_VALUE: "old", NEW_VALUE: "new", INA: ITEM_NOT_AVAILABLE, VNR: VALUE_NOT_RETRIEVED}
    assert result.new_value == values[value]
    assert plain.get("k", ABSENT) == {OLD_VALUE: "old", NEW_VALUE: "new", ABSENT: ABSENT}[stored]


@pytest.mark.parametrize("case", [c for c in all_cases() if not c.present], ids=lambda c: "-".join(map(str, c)))
def test_result_on_null(case: Case) -> None:
    """As for an absent key, and a satisfied write leaves it absent."""
    d = PersiDict[Any](perdure.open_backend("null:"))
    result = call(d, case, {OTHER: ETag("other"), INA: ITEM_NOT_AVAILABLE}[case.expected])
    satisfied = expectation(case, append_only=False)[0]
    assert result == (satisfied, ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)


def test_transform_on_null_calls_the_transformer() -> None:
    seen: list[Any] = []
    d = PersiDict[Any](perdure.open_backend("null:"))
    result = d.transform_item("k", transformer=lambda value: seen.append(value) or 1)
    assert seen == [ITEM_NOT_AVAILABLE]
    assert result == (ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)


class TestRequests:
    """As few as possible: on S3 each is a round trip."""

    @pytest.fixture
    def counted(self, backend: Any, requests_of: Any) -> tuple[PersiDict[Any], Any]:
        PersiDict[Any](backend)["k"] = "old"
        requests = requests_of(backend)
        return PersiDict[Any](backend), requests

    def test_each(self, counted: Any) -> None:
        d, requests = counted
        etag, same, changed = d.etag("k"), ETAG_IS_THE_SAME, ETAG_HAS_CHANGED
        requests.take()
        other, ina, never, always = ETag("other"), ITEM_NOT_AVAILABLE, NEVER_RETRIEVE, ALWAYS_RETRIEVE

        def look(expected: Any, retrieve: Any) -> Any:
            return d.get_item_if("k", condition=same, expected_etag=expected, retrieve_value=retrieve)

        def swap(expected: Any, condition: Any = same, retrieve: Any = IF_ETAG_CHANGED, key: str = "k") -> Any:
            return d.set_item_if(key, value="old", condition=condition, expected_etag=expected, retrieve_value=retrieve)

        def default(expected: Any, condition: Any, key: str) -> Any:
            return d.setdefault_if(key, default_value=1, condition=condition, expected_etag=expected)

        for make, calls in (
            (lambda: look(etag, IF_ETAG_CHANGED), ["get"]),
            (lambda: look(etag, never), ["head"]),
            (lambda: look(other, always), ["get"]),
            (lambda: d.get_with_etag("k"), ["get"]),
            (lambda: swap(other), ["put", "get"]),
            (lambda: swap(other, retrieve=never), ["put", "head"]),
            (lambda: swap(ina), ["put", "get"]),
            (lambda: swap(ina, key="new1"), ["put"]),
            (lambda: swap(ina, key="new2", condition=ANY_ETAG), ["head", "put"]),
            (lambda: swap(etag, condition=changed), ["head"]),
            (lambda: swap(etag, condition=changed, retrieve=always), ["get"]),
            (lambda: swap(etag), ["put"]),
            (lambda: swap(etag, condition=ANY_ETAG), ["head", "put"]),
            (lambda: swap(other, condition=changed), ["head", "put"]),
            (lambda: default(ina, same, "k"), ["put", "get"]),
            (lambda: default(ina, same, "new3"), ["put"]),
            (lambda: default(ina, ANY_ETAG, "k"), ["get"]),
            (lambda: default(ina, ANY_ETAG, "new4"), ["get", "put"]),
            (lambda: d.setdefault("k", 1), ["get"]),
            (lambda: d.setdefault("new5", 1), ["get", "put"]),
            (lambda: d["k"], ["get"]),
            (lambda: d.get("k"), ["get"]),
            (lambda: d.get("absent"), ["get"]),
            (lambda: d.__setitem__("k", "old"), ["put"]),
            (lambda: "k" in d, ["contains"]),
            (lambda: d.etag("k"), ["head"]),
            (lambda: d.timestamp("k"), ["head"]),
            (lambda: d.update(a=1, b=2), ["put_many"]),
            (lambda: d.get_many("ab"), ["get_many"]),
            (lambda: d.delete_many("ab"), ["delete_many"]),
            (lambda: d.transform_item("k", transformer=lambda _: 1), ["get", "put"]),
            (lambda: d.transform_item("k", transformer=lambda _: KEEP_CURRENT), ["get"]),
            (lambda: d.pop("new1"), ["get", "delete"]),
            (lambda: d.__delitem__("new2"), ["head", "delete"]),
            (lambda: d.discard("new2"), ["head"]),
            (lambda: d.discard_if("new3", condition=ANY_ETAG, expected_etag=other), ["head", "delete"]),
            (lambda: d.discard_if("k", condition=same, expected_etag=other), ["delete", "head"]),
            (lambda: d.clear(), ["keys", "delete_many"]),
        ):
            make()
            assert requests.take() == calls
        assert not d

    def test_a_value_is_decoded_only_where_it_is_answered(self, backend: Any) -> None:
        backend.put("k", b"damaged")
        d = PersiDict[Any](backend)
        other = ETag("other")
        assert d.get_item_if("k", condition=ANY_ETAG, expected_etag=d.etag("k")).new_value is VALUE_NOT_RETRIEVED
        with pytest.raises(perdure.CodecError):
            d.get_item_if("k", condition=ANY_ETAG, expected_etag=other)
        with pytest.raises(perdure.CodecError):
            d.set_item_if("k", value=1, condition=ETAG_IS_THE_SAME, expected_etag=other)
        result = d.set_item_if("k", value=1, condition=ETAG_HAS_CHANGED, expected_etag=other, retrieve_value=ALWAYS_RETRIEVE)
        assert result.condition_was_satisfied
        assert d["k"] == 1


class TestArguments:
    def test_unknown_flags_and_numbers(self, d: PersiDict[Any]) -> None:
        d["k"] = 1
        bad: Any = "ANY"
        for call in (
            lambda: d.get_item_if("k", condition=bad, expected_etag=ITEM_NOT_AVAILABLE),
            lambda: d.get_item_if("k", condition=ANY_ETAG, expected_etag=ITEM_NOT_AVAILABLE, retrieve_value=bad),
            lambda: d.set_item_if("k", value=2, condition=bad, expected_etag=ITEM_NOT_AVAILABLE),
            lambda: d.setdefault_if("k", default_value=2, condition=bad, expected_etag=ITEM_NOT_AVAILABLE),
            lambda: d.discard_if("k", condition=bad, expected_etag=ITEM_NOT_AVAILABLE),
            lambda: d.transform_item("k", transformer=lambda _: 2, n_retries=-1),
            lambda: d.transform_item("k", transformer=lambda _: 2, n_retries=bad),
        ):
            with pytest.raises(perdure.UsageError):
                call()
        assert d == {"k": 1}

    def test_an_expected_etag_of_any_kind_is_just_another(self, d: PersiDict[Any]) -> None:
        d["k"] = 1
        for odd in (None, 5, "", KEEP_CURRENT):
            odd = ETag(odd)  # type: ignore[arg-type]
            assert not d.set_item_if("k", value=2, condition=ETAG_IS_THE_SAME, expected_etag=odd).condition_was_satisfied
            assert not d.discard_if("k", condition=ETAG_IS_THE_SAME, expected_etag=odd).condition_was_satisfied
            assert d.get_item_if("k", condition=ETAG_HAS_CHANGED, expected_etag=odd).condition_was_satisfied
        assert d == {"k": 1}


class TestTransform:
    def test_results(self, d: PersiDict[Any]) -> None:
        result = d.transform_item("k", transformer=lambda v: 1 if v is ITEM_NOT_AVAILABLE else v + 1)
        assert result == (d.etag("k"), 1)
        assert d.transform_item("k", transformer=lambda v: KEEP_CURRENT) == (d.etag("k"), 1)
        assert d.transform_item("k", transformer=lambda v: v + 1) == (d.etag("k"), 2)
        assert d.transform_item("k", transformer=lambda v: DELETE_CURRENT) == (ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
        assert d.transform_item("k", transformer=lambda v: KEEP_CURRENT) == (ITEM_NOT_AVAILABLE, ITEM_NOT_AVAILABLE)
        assert d == {}

    def test_a_lost_attempt_sees_the_fresh_value(self, d: PersiDict[Any]) -> None:
        d["k"] = 0
        seen = []

        def slow(value: int) -> int:
            seen.append(value)
            if len(seen) <= 4:
                d["k"] = value + 10  # another writer is quicker
            return value + 1

        assert d.transform_item("k", transformer=slow).new_value == 41
        assert seen == [0, 10, 20, 30, 40]

    @pytest.mark.parametrize("retries", [0, 1, 3, 2.7, 40])
    def test_giving_up(self, d: PersiDict[Any], retries: Any) -> None:
        d["k"] = 0

        def beaten(value: int) -> int:
            d["k"] = value + 10
            return -1

        with pytest.raises(perdure.ConflictError) as caught:
            d.transform_item("k", transformer=beaten, n_retries=retries)
        assert caught.value.attempts == int(retries) + 1
        assert caught.value.key == ("k",)
        assert d["k"] == 10 * (int(retries) + 1)

    def test_a_deleted_key_is_not_revived(self, d: PersiDict[Any]) -> None:
        d["k"] = 5
        seen = []

        def transformer(value: Any) -> Any:
            seen.append(value)
            d.discard("k")
            return KEEP_CURRENT if value is ITEM_NOT_AVAILABLE else value + 1

        result = d.transform_item("k", transformer=transformer)
        assert seen == [5, ITEM_NOT_AVAILABLE]
        assert result.resulting_etag is ITEM_NOT_AVAILABLE
        assert "k" not in d


def test_an_unknown_outcome_passes_through(d: PersiDict[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported as what it is, never as a conflict and never tried again."""
    calls = []

    def lost(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        raise perdure.UnknownOutcomeError("the answer was lost")

    d["k"] = 1
    monkeypatch.setattr(d.backend, "put", lost)
    monkeypatch.setattr(d.backend, "delete", lost)
    d = PersiDict(d.backend)
    ina = ITEM_NOT_AVAILABLE
    for call_ in (
        lambda: d.__setitem__("k", 2),
        lambda: d.setdefault("new", 2),
        lambda: d.pop("k"),
        lambda: d.discard("k"),
        lambda: d.transform_item("k", transformer=lambda v: v + 1),
        lambda: d.set_item_if("k", value=2, condition=ANY_ETAG, expected_etag=ina),
        lambda: d.set_item_if("k", value=2, condition=ETAG_IS_THE_SAME, expected_etag=ina),
        lambda: d.setdefault_if("new", default_value=2, condition=ANY_ETAG, expected_etag=ina),
        lambda: d.discard_if("k", condition=ANY_ETAG, expected_etag=ina),
    ):
        with pytest.raises(perdure.UnknownOutcomeError):
            call_()
        assert len(calls) == 1
        calls.clear()
