"""Comparison of snapshots: by digests what is the same, and inside of what changed, value by value."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure.errors import IntegrityError, UnavailableError
from perdure.snapshots.comparison import Brief, Change, Comparison, PartComparison, compare
from perdure.snapshots.differences import Listing, differences
from perdure.snapshots.manifest import CHUNK, Component, Part, Snapshot, digest_of
from perdure.snapshots.packing import pack


class Made:
    """A snapshot in memory, as a store would have written it, and which of its parts were read.

    Args:
        values: The values of components, or by `files` those of parts that are no component's value.
    """

    def __init__(
        self,
        values: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
        loose: dict[str, bytes] | None = None,
        kind: str = "state_dict",
        own: int = 1000,
        **metadata: Any,
    ) -> None:
        self.blobs = {**(files or {}), **(loose or {})}
        components = {"agent": Component("files", tuple(files))} if files else {}
        for name, value in (values or {}).items():
            packed = pack(value, name, own=own)
            self.blobs |= {part.name: b"".join(part.pieces) for part in packed}
            components[name] = Component(kind, tuple(part.name for part in packed))
        parts = {name: Part(name, len(blob), chunks(blob)) for name, blob in self.blobs.items()}
        self.snapshot = Snapshot(os.urandom(8).hex(), 1, "a.state", datetime.now(UTC), metadata, components, parts)
        self.reads: list[str] = []

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        return self.blobs[name]


def chunks(blob: bytes) -> tuple[str, ...]:
    return tuple(digest_of(blob[at : at + CHUNK]) for at in range(0, len(blob) or 1, CHUNK))


def compared(old: Made, new: Made) -> Comparison:
    return compare(old.snapshot, new.snapshot, old.read, new.read)


def part(told: Comparison, name: str) -> PartComparison:
    return next(part for component in told.components for part in component.parts if part.name == name)


def between(old: Any, new: Any, root: str = "x") -> list[Change]:
    return Listing(differences(old, new, root)).changes


def paths(old: Any, new: Any) -> list[tuple[str, str]]:
    return [(change.kind, change.path) for change in between(old, new)]


# Snapshots.


def test_what_is_the_same_is_not_read() -> None:
    values = {"model": {"w": np.arange(1000.0), "lr": 1}}
    old, new = Made(values, {"agent/a.json": b"1"}), Made(copy.deepcopy(values), {"agent/a.json": b"1"})
    told = compared(old, new)
    assert told.same
    assert [component.kind for component in told.components] == ["same", "same"]
    assert [part.kind for component in told.components for part in component.parts] == ["same"] * 3
    assert not old.reads
    assert not new.reads


def test_changed_values_are_told_by_their_paths() -> None:
    state = {"state": {}, "param_groups": [{"lr": 0.01, "betas": (0.9, 0.99), "my option": None}]}
    other = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999)}]}
    told = compared(Made({"optimizer": state}), Made({"optimizer": other}))
    assert not told.same
    assert part(told, "optimizer.pkl").changes == (
        Change("optimizer.state[0]", "added", None, Brief("{'step': 3}")),
        Change("optimizer.param_groups[0].lr", "changed", 0.01, 0.001),
        Change("optimizer.param_groups[0].betas[1]", "changed", 0.99, 0.999),
        Change("optimizer.param_groups[0]['my option']", "removed", None),
    )


def test_components_and_parts_come_and_go() -> None:
    big = np.arange(500.0)
    old = Made({"gone": 1, "both": {"a": big}}, loose={"notes.txt": b"old"})
    new = Made({"come": 1, "both": {"b": big, "c": big + 1}})
    told = compared(old, new)
    assert [(component.name, component.kind) for component in told.components] == [
        ("", "removed"), ("both", "changed"), ("come", "added"), ("gone", "removed"),
    ]  # fmt: skip
    assert [(component.old_kind, component.new_kind) for component in told.components[1:3]] == [
        ("state_dict", "state_dict"), (None, "state_dict"),
    ]  # fmt: skip
    assert [(part.name, part.kind) for part in told.components[1].parts] == [
        ("both.pkl", "changed"), ("both/a.npy", "removed"), ("both/b.npy", "added"), ("both/c.npy", "added"),
    ]  # fmt: skip
    assert part(told, "both/a.npy").old_size == 4128
    assert part(told, "both/a.npy").new_size is None
    assert part(told, "notes.txt") == PartComparison("notes.txt", "removed", 3, None)
    assert [(change.kind, change.path) for change in part(told, "both.pkl").changes] == [
        ("removed", "both.a"), ("added", "both.b"), ("added", "both.c"),
    ]  # fmt: skip


def test_another_way_of_saving_is_a_change() -> None:
    told = compared(Made({"x": 1}, kind="value"), Made({"x": 1}, kind="object"))
    assert [part.kind for part in told.components[0].parts] == ["same"]
    assert told.components[0].kind == "changed"
    assert (told.components[0].old_kind, told.components[0].new_kind) == ("value", "object")


def test_metadata_are_compared() -> None:
    told = compared(Made(step=1, loss=math.nan, config={"lr": 1}), Made(step=2, loss=math.nan, config={"lr": 1, "x": [1]}))
    assert told.metadata == (Change("step", "changed", 1, 2), Change("config.x", "added", None, Brief("[1]")))
    assert told.same  # as states
    many = compared(Made(), Made(**{f"m{i}": i for i in range(250)}))
    assert (len(many.metadata), many.metadata_omitted) == (200, 50)


def test_json_is_looked_into_and_spaces_in_it_are_no_change() -> None:
    old = Made(files={"agent/config.json": b'{"a": [1, 2], "b": NaN}', "agent/other.json": b"[1,2]"})
    new = Made(files={"agent/config.json": b'{"b": NaN, "a": [1, 2.0, 3]}', "agent/other.json": b"[1, 2]"})
    told = compared(old, new)
    assert part(told, "agent/config.json").changes == (
        Change("agent/config.a[1]", "changed", 2, 2.0),
        Change("agent/config.a[2]", "added", None, 3),
    )
    assert part(told, "agent/other.json") == PartComparison("agent/other.json", "changed", 5, 6)


def test_what_cannot_be_looked_into_says_why() -> None:
    names = ["agent/a.json", "agent/b.bin", "agent/c.npy", "agent/d.pkl", "agent/e.pkl", "agent/f.npy"]
    objects = pickle.dumps(np.array([{}], object))
    old = Made(files=dict(zip(names, [b"{", b"1", b"1", pickle.dumps(Odd(1), 5), b"x", objects], strict=True)))
    new = Made(files=dict(zip(names, [b"[", b"2", b"2", pickle.dumps([Odd(1)], 5), b"y", objects + b" "], strict=True)))
    told = compared(old, new)
    reasons = {part.name: part.reason or "" for part in told.components[0].parts}
    assert not any(part.changes for part in told.components[0].parts)
    assert "no JSON" in reasons["agent/a.json"]
    assert reasons["agent/b.bin"] == "only parts that end in .json, .npy or .pkl are looked into."
    assert "agent/b.bin" not in old.reads
    assert "no array" in reasons["agent/c.npy"]
    assert "Odd" in reasons["agent/d.pkl"]
    assert "restoring that can run code" in reasons["agent/d.pkl"]
    assert "agent/e.pkl" in reasons["agent/e.pkl"]
    assert "no array" in reasons["agent/f.npy"]


def test_damage_is_a_reason_and_a_place_that_fails_is_an_error() -> None:
    def damaged(name: str) -> bytes:
        raise IntegrityError("it is damaged", key=name)

    def gone(name: str) -> bytes:
        raise UnavailableError("no network")

    for values in ({"x": 1}, {"x": 2}), ({"x": np.arange(500)}, {"x": np.arange(500) + 1}):
        old, new = Made(values[0]), Made(values[1])
        told = compare(old.snapshot, new.snapshot, old.read, damaged)
        assert "it is damaged." in [part.reason.rpartition(": ")[2] for part in told.components[0].parts if part.reason]
        with pytest.raises(UnavailableError):
            compare(old.snapshot, new.snapshot, gone, new.read)


# Arrays of a component.


def test_an_array_in_a_part_of_its_own_is_told_there_and_others_are_not_read() -> None:
    weights = {f"layer{i}.weight": np.arange(600, dtype=np.float32).reshape(20, 30) for i in range(3)}
    other = copy.deepcopy(weights)
    other["layer1.weight"][3, 4] += 0.5
    other["layer1.weight"][0, 0] -= 0.25
    old, new = Made({"model": weights}), Made({"model": other})
    told = compared(old, new)
    kinds = {part.name: part.kind for part in told.components[0].parts}
    assert kinds == {
        "model.pkl": "same", "model/layer0.weight.npy": "same",
        "model/layer1.weight.npy": "changed", "model/layer2.weight.npy": "same",
    }  # fmt: skip
    what = Brief("float32 array (20, 30)")
    assert part(told, "model/layer1.weight.npy").changes == (Change("model['layer1.weight']", "changed", what, what, 2, 0.5),)
    assert sorted(old.reads) == sorted(new.reads) == ["model.pkl", "model/layer1.weight.npy"]


def test_arrays_that_are_the_same_are_not_read_when_the_rest_has_changed() -> None:
    value = {"w": np.arange(500.0), "f": np.asfortranarray(np.arange(600.0).reshape(20, 30)), "step": 1}
    old, new = Made({"model": value}), Made({"model": {**value, "step": 2}})
    told = compared(old, new)
    assert part(told, "model.pkl").changes == (Change("model.step", "changed", 1, 2),)
    assert old.reads == new.reads == ["model.pkl"]


def test_arrays_that_swap_places_are_read_after_all() -> None:
    # Arrays in sets of attributes have names by number only, so the parts stay the same when both change places.
    x, y = np.arange(500.0), np.arange(500.0) + 1
    nested: Callable[[Any, Any], Any] = lambda a, b: {"deep": deque([{"a": a}, {"b": b}]), "first": deque([a, b])}  # noqa: E731
    first, second = Made({"m": nested(x, y)}), Made({"m": {"first": deque([x, y]), "deep": deque([{"a": y}, {"b": x}])}})
    assert {name: blob for name, blob in first.blobs.items() if name.endswith("npy")}.keys() == {
        name for name in second.blobs if name.endswith("npy")
    }
    told = compared(first, second)
    changes = [change for part in told.components[0].parts for change in part.changes]
    assert [(change.path, change.differing, change.largest) for change in changes] == [
        ("m.deep[0].a", 500, 1.0), ("m.deep[1].b", 500, 1.0),
    ]  # fmt: skip


def test_an_array_that_is_in_a_header_of_another_length_is_read_after_all() -> None:
    fields = np.dtype([(f"a long name of field {i}", "f8") for i in range(9)])
    array = np.zeros(100, fields)
    old, new = Made({"m": {"t": array, "n": 1}}), Made({"m": {"t": array, "n": 2}})
    assert old.blobs["m/t.npy"].index(b"\n") > 128
    told = compared(old, new)
    assert part(told, "m.pkl").changes == (Change("m.n", "changed", 1, 2),)
    assert part(told, "m.pkl").reason is None


def test_a_changed_array_of_another_shape_is_described() -> None:
    old, new = Made({"m": {"w": np.zeros(500)}}), Made({"m": {"w": np.zeros((2, 300), np.float32)}})
    told = compared(old, new)
    changes = [change for part in told.components[0].parts for change in part.changes]
    assert changes == [Change("m.w", "changed", Brief("float64 array (500,)"), Brief("float32 array (2, 300)"))]
    assert part(told, "m/w.npy").changes == tuple(changes)


def test_an_array_that_no_pickle_holds_is_looked_into_by_itself() -> None:
    def npy(array: Any) -> bytes:
        import io

        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    files = {"agent/w.npy": npy(np.arange(5)), "agent.pkl": pickle.dumps({"x": 1}, 5)}
    told = compared(Made(files=files), Made(files={**files, "agent/w.npy": npy(np.arange(5) * 2)}))
    what = Brief("int64 array (5,)")
    assert part(told, "agent/w.npy").changes == (Change("agent/w", "changed", what, what, 4, 4),)
    assert part(told, "agent.pkl").kind == "same"


def test_arrays_of_a_pickle_that_needs_trust_are_looked_into_by_themselves() -> None:
    old = Made({"m": {"w": np.arange(500), "odd": Odd(1)}})
    new = Made({"m": {"w": np.arange(500) + 1, "odd": Odd(2)}})
    told = compared(old, new)
    assert "Odd" in (part(told, "m.pkl").reason or "")
    assert part(told, "m/w.npy").changes[0].differing == 500


class Odd:
    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Scaled:
    array: Any
    scale: float


def test_what_a_registered_class_makes_of_an_unchanged_array_is_seen() -> None:
    perdure.register_type(
        Scaled,
        encode=lambda value: [value.array / value.scale, value.scale],
        decode=lambda plain: Scaled(plain[0] * plain[1], plain[1]),
        name="test_compare.Scaled",
    )
    array = np.arange(1.0, 501.0)
    told = compared(Made({"m": [Scaled(array, 1.0)]}), Made({"m": [Scaled(array * 2, 2.0)]}))
    assert [part.name for part in told.components[0].parts if part.kind == "same"] == ["m/array-0001.npy"]
    assert [(change.path, change.differing, change.largest) for change in part(told, "m.pkl").changes] == [
        ("m[0].array", 500, 500.0), ("m[0].scale", None, None),
    ]  # fmt: skip


def test_a_part_lists_200_changes_and_counts_the_others() -> None:
    told = compared(Made({"m": list(range(1000))}), Made({"m": list(range(1, 1001))}))
    assert len(part(told, "m.pkl").changes) == 200
    assert part(told, "m.pkl").omitted == 800


def test_a_comparison_is_plain_data() -> None:
    old = Made({"m": {"w": np.zeros(500), "x": 1, "long": "a" * 500}}, step=1)
    new = Made({"m": {"w": np.ones(500), "x": 1 + 2j, "long": "b" * 500}}, step=2)
    told = compared(old, new).as_dict()
    assert json.loads(json.dumps(told))["components"][0]["parts"][0]["changes"][0] == {
        "path": "m.x", "kind": "changed", "old": 1, "new": {"text": "(1+2j)"}, "differing": None, "largest": None,
    }  # fmt: skip
    assert told["same"] is False


def test_snapshots_of_a_store_are_compared(tmp_path: Path) -> None:
    store = perdure.StateStore(tmp_path / "states")
    weights = np.zeros(100_000)
    state = store.register_value("state", {"w": weights, "same": np.zeros(100_000), "lr": 0.1})
    paths = [store.save_state({"step": 1})]
    weights[7] = 2.5
    state.value["lr"] = 0.2
    paths.append(store.save_state({"step": 2}))
    old, new = (next(snapshot for snapshot in store.snapshots() if snapshot.path == path) for path in paths)
    told = compare(old, new, lambda name: (paths[0] / name).read_bytes(), lambda name: (paths[1] / name).read_bytes())
    assert told.metadata == (Change("step", "changed", 1, 2),)
    changes = [change for part in told.components[0].parts for change in part.changes]
    what = Brief("float64 array (100000,)")
    assert changes == [
        Change("state.lr", "changed", 0.1, 0.2),
        Change("state.w", "changed", what, what, 1, 2.5),
    ]


# Values.

Point = namedtuple("Point", "x y")

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(-2, 2), inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(deque)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=3)
    ),
    max_leaves=12,
)


def again(value: Any) -> Any:
    """The same value, with no object in common."""
    return pickle.loads(pickle.dumps(value))


@given(plain)
def test_a_value_does_not_differ_from_its_copy(value: Any) -> None:
    assert between(value, again(value)) == []


@given(plain, plain)
def test_values_differ_if_they_are_not_equal_and_the_other_way_round(old: Any, new: Any) -> None:
    forth, back = between(old, new), between(new, old)
    assert (forth == []) == (back == [])
    if forth == []:
        assert type(old) is type(new)
    if old != old or new != new:
        return
    if "nan" not in repr(old) and forth == []:
        assert old == new
    opposite = {"added": "removed", "removed": "added", "changed": "changed"}
    assert sorted((opposite[change.kind], change.path) for change in back) == sorted(
        (change.kind, change.path) for change in forth
    )


@given(st.dictionaries(st.text(max_size=5) | st.integers(), st.integers(), min_size=1, max_size=5), st.data())
def test_one_change_is_told_as_one(value: dict[Any, int], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(list(value)))
    tree = {"a": [again(value), value]}
    other = again(tree)
    other["a"][1][key] += 1
    (change,) = between(tree, other)
    assert (change.kind, change.old, change.new) in [
        ("changed", value[key], value[key] + 1),
        ("changed", Brief(str(value[key])), Brief(str(value[key] + 1))),
        ("changed", value[key], Brief(str(value[key] + 1))),
        ("changed", Brief(str(value[key])), value[key] + 1),
    ]
    assert change.path.startswith("x.a[1]")


def test_paths_are_spelled_as_python_would() -> None:
    old = {"a": {1: [0]}, "b c": {"d.e": 0}, (1, 2): 0, "set": {1}, "t": Point(1, 2)}
    new = {"a": {1: [1]}, "b c": {"d.e": 1}, (1, 2): 1, "set": {2}, "t": Point(1, 3)}
    assert paths(old, new) == [
        ("changed", "x.a[1][0]"), ("changed", "x['b c']['d.e']"), ("changed", "x[(1, 2)]"),
        ("removed", "x.set{1}"), ("added", "x.set{2}"), ("changed", "x.t[1]"),
    ]  # fmt: skip


def test_types_matter_and_nan_is_itself() -> None:
    assert paths([1, True, "1", None], [1.0, 1, b"1", 0]) == [("changed", f"x[{i}]") for i in range(4)]
    assert paths({"a": 1}, OrderedDict(a=1)) == [("changed", "x")]
    assert (
        between([math.nan, complex(math.nan, 0), np.float64("nan")], again([math.nan, complex(math.nan, 0), np.float64("nan")]))
        == []
    )
    assert between({math.nan}, {float("nan")}) == []


def test_cycles_and_depth_do_no_harm() -> None:
    def cycle(end: int) -> Any:
        value: dict[str, Any] = {"list": []}
        value["list"] += [value, end]
        value["self"] = value
        return value

    assert between(cycle(1), cycle(1)) == []
    assert paths(cycle(1), cycle(2)) == [("changed", "x.list[1]")]
    deep: list[Any] = [1]
    other: list[Any] = [2]
    for _ in range(100_000):
        deep, other = [deep], [other]
    (change,) = between(deep, other)
    assert len(change.path) < 310
    assert (change.old, change.new) == (1, 2)
    shared: Any = [1]
    changed: Any = [2]
    for _ in range(100):  # 2**100 paths
        shared, changed = [shared, shared], [changed, changed]
    assert len(between(shared, changed)) == 1
    while deep and isinstance(deep[0], list):  # or the interpreter would take them apart by recursion
        deep, other = deep[0], other[0]


def test_long_values_are_shortened() -> None:
    def shown(value: Any) -> Any:
        (change,) = between({}, {"v": value})
        return change.new

    assert shown("a" * 100) == "a" * 100
    assert str(shown("a" * 101)) == f"'{'a' * 60}'... of length 101"
    assert str(shown(b"\0" * 10_000)).endswith("... of length 10,000")
    assert str(shown(list(range(1000)))) == "[0, 1, 2, 3, 4, 5, ...]"
    assert str(shown({"a": {"b": {"c": {"d": 1}}}})) == "{'a': {'b': {'c': ...}}}"
    assert str(shown((1,))) == "(1,)"
    assert str(shown(set())) == "set()"
    assert str(shown(frozenset({1}))) == "frozenset({1})"
    assert str(shown(OrderedDict(a=1))) == "OrderedDict({'a': 1})"
    assert shown(2**60) == 2**60
    assert str(shown(2**100)) == str(2**100)
    assert str(shown(1 << 100_000)) == "an integer of 100,001 bits"  # which Python refuses to spell
    assert shown(np.float32(0.5)) == 0.5
    assert type(shown(np.int64(3))) is int
    assert str(shown({"w": np.zeros((2, 3))})) == "{'w': float64 array (2, 3)}"
    assert len(str(shown([["x" * 90] * 9] * 9))) <= 100
    assert str(shown(Odd(1))) == "<Odd>"
    assert len(str(shown(np.zeros(3, [(f"field{i}", "i4") for i in range(99)])))) <= 100


def test_objects_are_compared_by_what_they_hold() -> None:
    class Slotted:
        __slots__ = ("a", "b")

    old, new = Slotted(), Slotted()
    old.a = new.a = old.b = 1
    new.b = 2
    assert paths(old, new) == [("changed", "x.b")]
    assert paths(Odd([1, Odd(2)]), Odd([1, Odd(3)])) == [("changed", "x.value[1].value")]
    assert between(Odd(1), Odd(1)) == []
    assert paths(Scaled(1, 2.0), Scaled(1, 3.0)) == [("changed", "x.scale")]
    assert paths(Odd, Scaled) == [("changed", "x")]
    assert paths([len, paths], [print, between]) == [("changed", "x[0]"), ("changed", "x[1]")]
    assert between(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)) == []


def test_objects_that_misbehave_are_different() -> None:
    class Bad:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no")

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            raise RuntimeError("no")

    class Secret:
        def __getstate__(self) -> Any:
            raise RuntimeError("no")

    (change,) = between(Bad(), Bad())
    assert str(change.old).endswith("Bad: RuntimeError in repr>")
    assert between(Secret(), Secret()) == []  # as far as anybody can see


# Arrays.


@pytest.mark.parametrize(
    ("old", "new", "differing", "largest"),
    [
        (np.array([1.0, math.nan, 3]), np.array([1.0, math.nan, 3]), None, None),
        (np.array([1.0, math.nan, 3]), np.array([1.5, math.nan, 5]), 2, 2.0),
        (np.array([math.nan, 1]), np.array([1, 1.25]), 2, 0.25),
        (np.array([math.nan]), np.array([1.0]), 1, None),
        (np.array([math.inf, 1]), np.array([-math.inf, 1]), 1, math.inf),
        (np.array([0.0]), np.array([-0.0]), None, None),
        (np.array([-(2**63), 0]), np.array([2**63 - 1, 1]), 2, 2**64 - 1),
        (np.array([2**53]), np.array([2**53 + 1]), 1, 1),
        (np.array([0, 255], np.uint8), np.array([255, 0], np.uint8), 2, 255),
        (np.array([-128], np.int8), np.array([127], np.int8), 1, 255),
        (np.array([65504], np.float16), np.array([-65504], np.float16), 1, 131008.0),
        (np.array([1 + 1j]), np.array([1 - 1j]), 1, 2.0),
        (np.array([True, False]), np.array([True, True]), 1, None),
        (np.array(["a", "b"]), np.array(["a", "c"]), 1, None),
        (np.array([b"a"]), np.array([b"b"]), 1, None),
        (np.array(["NaT", "2026-01-01"], "M8[D]"), np.array(["NaT", "2026-01-02"], "M8[D]"), 1, None),
        (np.array([(1, 2.0)], "i4,f8"), np.array([(1, 3.0)], "i4,f8"), 1, None),
        (np.array(1.0), np.array(3.0), 1, 2.0),
        (np.zeros((0, 3)), np.zeros((0, 3)), None, None),
        (np.array([1, 2], ">i4"), np.array([1, 4], ">i4"), 1, 2),
        (np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6).reshape(2, 3), None, None),
        (np.zeros(300_000), np.arange(300_000.0), 299_999, 299_999.0),
        (np.arange(20)[::2], np.arange(10), 9, 9),
    ],
)
def test_arrays_tell_how_many_elements_differ_and_by_how_much(
    old: Any, new: Any, differing: int | None, largest: float | None
) -> None:
    changes = between({"a": old}, {"a": new})
    if differing is None:
        assert changes == []
    else:
        (change,) = changes
        assert (change.path, change.differing, change.largest) == ("x.a", differing, largest)
        assert str(change.old) == str(change.new) == f"{old.dtype} array {old.shape}"


def test_arrays_of_other_shape_or_type_differ_whatever_they_hold() -> None:
    for other in np.zeros((1, 3)), np.zeros(3, np.float32), np.zeros(3, ">f8"), np.zeros(1):
        (change,) = between(np.zeros(3), other)
        assert (str(change.old), str(change.new)) == ("float64 array (3,)", f"{other.dtype} array {other.shape}")
        assert change.differing is None


def test_arrays_of_objects_are_compared_object_by_object() -> None:
    old, new = np.empty(2, object), np.empty(2, object)
    old[:], new[:] = [{"a": 1}, 2], [{"a": 2}, 2]
    assert paths(old, new) == [("changed", "x[0].a")]
    assert between(old, again(old)) == []
    assert paths(old, old.reshape(2, 1)) == [("changed", "x")]


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=9))
def test_integers_are_told_apart_exactly(pairs: list[tuple[int, int]]) -> None:
    old, new = (np.array(column) for column in zip(*pairs, strict=True))
    changes = between(old, new)
    apart = [abs(a - b) for a, b in pairs if a != b]
    assert [(change.differing, change.largest) for change in changes] == ([(len(apart), max(apart))] if apart else [])


def test_tensors_are_compared_as_what_they_are() -> None:
    torch = pytest.importorskip("torch")

    def state(step: float, dtype: Any) -> Any:
        weight = torch.arange(1000, dtype=torch.float32).reshape(20, 50).to(dtype)
        weight[1, 1] += step
        return {"weight": torch.nn.Parameter(weight), "same": torch.ones(1000, dtype=dtype), "small": torch.zeros(3), "n": step}

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        old, new = Made({"m": state(0, dtype)}), Made({"m": state(0.5, dtype)})
        told = compared(old, new)
        what = Brief(f"{str(dtype).removeprefix('torch.')} parameter (20, 50)")
        changed = part(told, "m/weight.npy")
        assert [change.path for change in part(told, "m.pkl").changes] == ["m.n"]
        assert len(changed.changes) == 1
        assert changed.changes[0].old == what
        assert changed.changes[0].path == "m.weight"
        assert changed.changes[0].differing == 1
        assert changed.changes[0].largest == 0.5
        assert part(told, "m/same.npy").kind == "same"
        assert sorted(old.reads) == ["m.pkl", "m/weight.npy"]
    (change,) = between(torch.zeros(3), torch.tensor([0, math.nan, 2]))
    assert (change.differing, change.largest) == (2, 2.0)
    assert paths(torch.zeros(3), torch.zeros(3, 1)) == [("changed", "x")]
