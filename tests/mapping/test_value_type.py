"""`perdure.open(..., value_type=T)`: every way in and out of the dict goes through the type."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from test_opening import RecordingMemory

import perdure
from perdure import ITEM_NOT_AVAILABLE, CodecError, PerdureError, PersiDict, UsageError
from perdure.mapping.flags import ALWAYS_RETRIEVE, ANY_ETAG, ETAG_IS_THE_SAME


@dataclass
class Settings:
    lr: float
    tags: list[str] = field(default_factory=list)


class Struct(msgspec.Struct):
    lr: float
    tags: list[str] = []


class Model(pydantic.BaseModel):
    lr: float
    tags: list[str] = []


@dataclass
class Older:
    lr: float
    gone: int = 0


@dataclass
class Newer:
    lr: float
    tags: list[str] = field(default_factory=list)
    decay: float = 0.5


@dataclass
class Demanding:
    lr: float
    decay: float


TYPES = [Settings, Struct, Model]


@pytest.fixture(params=TYPES, ids=lambda cls: cls.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def broken(kind: Any) -> Any:
    value = kind(lr=1.0)
    value.lr = "fast"
    return value


WRITES: dict[str, Callable[[PersiDict[Any], Any], object]] = {
    "d[k] = v": lambda d, v: d.__setitem__("k", v),
    "update": lambda d, v: d.update({"other": d["k"], "k": v}),
    "set_many": lambda d, v: d.set_many([("other", d["k"]), ("k", v)]),
    "setdefault": lambda d, v: d.setdefault("absent", v),
    "setdefault_if": lambda d, v: d.setdefault_if(
        "absent", default_value=v, condition=ANY_ETAG, expected_etag=ITEM_NOT_AVAILABLE
    ),
    "set_item_if": lambda d, v: d.set_item_if("k", value=v, condition=ETAG_IS_THE_SAME, expected_etag=d.etag("k")),
    "transform_item": lambda d, v: d.transform_item("k", transformer=lambda _: v),
}
READS: dict[str, Callable[[PersiDict[Any], str], Any]] = {
    "d[k]": lambda d, k: d[k],
    "get": lambda d, k: d.get(k),
    "setdefault": lambda d, k: d.setdefault(k, d["good"]),
    "pop": lambda d, k: d.pop(k),
    "get_many": lambda d, k: next(iter(d.get_many([k]).values())),
    "items": lambda d, k: dict(d.items())[k],
    "values": lambda d, k: list(d.values())[list(d).index(k)],
    "get_with_etag": lambda d, k: d.get_with_etag(k).new_value,
    "get_item_if": lambda d, k: (
        d.get_item_if(k, condition=ANY_ETAG, expected_etag=ITEM_NOT_AVAILABLE, retrieve_value=ALWAYS_RETRIEVE).new_value
    ),
    "transform_item": lambda d, k: d.transform_item(k, transformer=lambda old: old).new_value,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_wrong_value_is_refused_on_every_way_in_and_the_old_one_stays(
    url: str, kind: Any, write: Callable[[PersiDict[Any], Any], object]
) -> None:
    d = perdure.open(url, value_type=kind)
    good = kind(lr=0.1, tags=["a"])
    d["k"] = good
    for bad in (broken(kind), {"lr": 1.0}, None, "text", dataclasses.make_dataclass(kind.__name__, ["lr"])(1.0)):
        etag = d.etag("k")
        with pytest.raises(CodecError) as caught:
            write(d, bad)
        assert caught.value.key in ("k", "absent")
        assert caught.value.place == d.backend.place
        assert kind.__name__ in str(caught.value)
        assert ("lr" in str(caught.value)) == (bad is not None and bad != "text")
        assert (d.etag("k"), list(d)) == (etag, ["k"])
        assert d["k"] == good


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_out_gives_new_objects_of_the_type(kind: Any, read: Callable[[PersiDict[Any], str], Any]) -> None:
    d = perdure.open("memory:", value_type=kind)
    good = kind(lr=0.1, tags=["a"])
    d.update({"good": good, "k": good})
    found = read(d, "k")
    assert type(found) is kind
    assert found == good
    assert found is not good


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_wrong_stored_value_is_one_clear_error_on_every_way_out(
    url: str, kind: Any, read: Callable[[PersiDict[Any], str], Any]
) -> None:
    untyped, typed = perdure.open(url), perdure.open(url, value_type=kind)
    typed["good"] = kind(lr=1.0)
    untyped["bad"] = {"lr": "fast", "tags": []}
    for _ in range(2):
        with pytest.raises(CodecError, match="lr, as stored") as caught:
            read(typed, "bad")
        assert caught.value.key == "bad"
        assert caught.value.place == typed.backend.place
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        assert typed["good"] == kind(lr=1.0)  # and nothing was changed
        assert untyped["bad"]["lr"] == "fast"
    assert "bad" in typed
    typed.discard("bad")
    assert dict(typed.items()) == {"good": kind(lr=1.0)}


def test_what_transform_item_returns_is_swapped_in_as_the_type(url: str, kind: Any) -> None:
    d = perdure.open(url, value_type=kind)

    def step(old: Any) -> Any:
        if old is ITEM_NOT_AVAILABLE:
            return kind(lr=1.0)
        old.lr += 1
        return old

    for _ in range(3):
        d.transform_item("k", transformer=step)
    assert d["k"] == kind(lr=3.0)


def test_what_is_stored_is_plain_and_nothing_of_the_type_is_recorded(tmp_path: Path, kind: Any) -> None:
    backend = RecordingMemory()
    perdure.open(backend, value_type=kind)["k"] = kind(lr=0.1, tags=["a"])
    assert backend.settings == {"codec": "msgpack"}
    assert perdure.open(backend)["k"] == {"lr": 0.1, "tags": ["a"]}
    with perdure.open(f"file:{tmp_path}/plain?layout=plain", codec="json", value_type=kind) as d:
        d["k"] = kind(lr=0.1, tags=["a"])
        assert d["k"] == kind(lr=0.1, tags=["a"])
    assert json.loads((tmp_path / "plain" / "k").read_bytes()) == {"lr": 0.1, "tags": ["a"]}
    with perdure.open(f"file:{tmp_path}/plain", value_type=kind) as d:  # the recorded codec, and a type again
        assert d["k"] == kind(lr=0.1, tags=["a"])


@pytest.mark.parametrize("filters", [(), "lz4", [perdure.Signed(b"k" * 32)]], ids=["none", "lz4", "signed"])
@pytest.mark.parametrize("codec", ["msgpack", "json", "pkl"])
def test_every_codec_and_filter_takes_it(kind: Any, codec: str, filters: Any) -> None:
    backend = RecordingMemory()
    d = perdure.open(backend, codec=codec, filters=filters, value_type=kind)
    d["k"] = kind(lr=0.1, tags=["a" * 1000])
    assert d["k"] == kind(lr=0.1, tags=["a" * 1000])
    assert perdure.open(backend, codec=codec, filters=filters)["k"] == {"lr": 0.1, "tags": ["a" * 1000]}


@pytest.mark.parametrize("codec", ["txt", "raw"])
def test_codecs_without_fields_refuse_it(kind: Any, codec: str) -> None:
    d = perdure.open("memory:", codec=codec, value_type=kind)
    with pytest.raises(CodecError, match=r"holds .* only"):
        d["k"] = kind(lr=0.1)


class TestSchemas:
    def test_a_field_that_is_new_gets_its_default(self, url: str) -> None:
        perdure.open(url, value_type=Settings)["k"] = Settings(0.1, ["a"])
        d = perdure.open(url, value_type=Newer)
        assert d["k"] == Newer(0.1, ["a"], 0.5)
        d["k"] = d["k"]
        with pytest.raises(CodecError, match=r"Settings.decay, as stored: Settings has no such field"):
            perdure.open(url, value_type=Settings)["k"]

    def test_a_field_that_is_new_and_has_no_default_is_named(self) -> None:
        backend = RecordingMemory()
        perdure.open(backend)["k"] = {"lr": 0.1}
        with pytest.raises(CodecError, match=r"key 'k' in memory:test: Demanding.decay, as stored: it is missing"):
            perdure.open(backend, value_type=Demanding)["k"]

    def test_a_field_that_is_gone_is_named_and_other_keys_stay_readable(self) -> None:
        backend = RecordingMemory()
        perdure.open(backend, value_type=Older)["old"] = Older(0.1, 5)
        d = perdure.open(backend, value_type=Settings)
        d["new"] = Settings(0.2)
        with pytest.raises(CodecError, match=r"key 'old' in memory:test: Settings.gone, as stored: Settings has no such field"):
            d["old"]
        assert d["new"] == Settings(0.2)

    def test_values_are_carried_over_through_a_dict_without_a_type(self) -> None:
        backend = RecordingMemory()
        perdure.open(backend, value_type=Older)["k"] = Older(0.1, 5)
        plain = perdure.open(backend)
        for key in plain:
            plain.transform_item(key, transformer=lambda old: {"lr": old["lr"]})
        assert perdure.open(backend, value_type=Settings)["k"] == Settings(0.1)

    def test_msgspec_and_pydantic_decide_about_unknown_fields(self) -> None:
        backend = RecordingMemory()
        perdure.open(backend)["k"] = {"lr": 0.1, "tags": [], "gone": 5}
        assert perdure.open(backend, value_type=Struct)["k"] == Struct(0.1)
        assert perdure.open(backend, value_type=Model)["k"] == Model(lr=0.1)


class TestOpening:
    def test_a_type_that_cannot_be_checked_is_refused_before_anything_is_recorded(self) -> None:
        backend = RecordingMemory()
        for bad in ("Settings", 5, dataclasses.make_dataclass("Bad", [("f", "Nowhere")])):
            with pytest.raises(UsageError, match="value_type"):
                perdure.open(backend, value_type=bad)
        assert backend.settings == {}

    def test_a_backend_that_was_opened_here_is_closed_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = RecordingMemory()
        monkeypatch.setattr("perdure.mapping.opening.open_backend", lambda where: backend)
        with pytest.raises(UsageError):
            perdure.open("memory:x", value_type="Settings")
        assert backend.closes == 1

    def test_a_base_class_may_be_given_as_well_if_it_fits(self) -> None:
        d = perdure.open("memory:", value_type=Settings, base_class_for_values=Settings)
        d["k"] = Settings(0.1)
        assert d["k"] == Settings(0.1)
        with pytest.raises(PerdureError):
            d["k"] = 5  # type: ignore[assignment]
        assert perdure.open("memory:", value_type=list[int], base_class_for_values=list) == {}
        for value_type in (Settings, int | str, list[int]):
            with pytest.raises(UsageError, match="base_class_for_values=dict"):
                perdure.open("memory:", value_type=value_type, base_class_for_values=dict)
        with pytest.raises(UsageError, match="is a class"):
            perdure.open("memory:", value_type=Settings, base_class_for_values="Settings")  # type: ignore[call-overload]

    def test_plain_annotations_will_do(self, url: str) -> None:
        d = perdure.open(url, value_type=dict[str, int])
        d["k"] = {"a": 1}
        with pytest.raises(CodecError, match=r"value\['a'\]: expected an int, got '1'"):
            d["k"] = {"a": "1"}  # type: ignore[dict-item]
        assert d["k"] == {"a": 1}

    def test_append_only_and_views_and_copies_keep_the_type(self) -> None:
        backend = RecordingMemory()
        d = perdure.open(backend, value_type=Settings, append_only=True)
        d["a", "b"] = Settings(0.1)
        for other in (copy.copy(d), perdure.PersiDict(backend, pickle.loads(pickle.dumps(d.chain)))):
            assert other["a", "b"] == Settings(0.1)
            with pytest.raises(CodecError):
                other["new"] = {"lr": 0.1}
        assert list(d.values()) == [Settings(0.1)]

    def test_jokers_are_taken_as_ever(self) -> None:
        d = perdure.open("memory:", value_type=Settings)
        d["k"] = Settings(0.1)
        d["k"] = perdure.KEEP_CURRENT
        assert d["k"] == Settings(0.1)
        d["k"] = perdure.DELETE_CURRENT
        assert d == {}
        with pytest.raises(CodecError):
            d.setdefault("k")
