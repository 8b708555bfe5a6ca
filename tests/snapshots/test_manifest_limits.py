"""What a snapshot can hold and be called: what could not be read again is refused before it is saved, and by name."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import os
import pickle
import re
import socket
import stat
import sys
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from perdure import load_pickle, save_pickle
from perdure.errors import CodecError, ComponentError, IntegrityError, UsageError
from perdure.snapshots import PersistentStateMixin, StateStore, manifest, metadata, names
from perdure.snapshots.manifest import (
    Component,
    Part,
    Snapshot,
    digest_of,
    read_manifest,
    write_manifest,
)
from perdure.snapshots.metadata import MAX_MANIFEST, check_metadata
from perdure.snapshots.names import check_component_name, is_bad_name
from perdure.snapshots.written import written_by

NOTHING = digest_of(b"")
posix = pytest.mark.skipif(os.name == "nt", reason="names that only POSIX has")


def snapshot(*parts: Part, metadata: dict[str, Any] | None = None, name: str = "a.state") -> Snapshot:
    components = {"c": Component("files", tuple(part.name for part in parts))}
    by_name = {part.name: part for part in parts}
    return Snapshot("0" * 32, 1, name, datetime(2026, 1, 1, tzinfo=UTC), metadata or {}, components, by_name, "perdure", "3")


def seal(body: bytes) -> bytes:
    return body + b',\n "seal": "%s"\n}\n' % blake3(body).hexdigest().encode()


def read(data: bytes) -> Snapshot:
    return read_manifest(data, "a.state", "file:/x")


DATA = write_manifest(snapshot(Part("c.txt", 3, (digest_of(b"abc"),)), metadata={"step": 1}))


# ------------------------------------------------------------------------------------------------- newer formats and damage


@pytest.mark.parametrize("number", ["2", "3", "10", "11", "12", "101", "999999999"])
def test_a_newer_format_says_so_whatever_its_seal_is(number: str) -> None:
    said = f'"perdure snapshot {number}"'.encode()
    newer = DATA.replace(b'"perdure snapshot 1"', said)
    for data in (
        seal(newer.rpartition(b',\n "seal"')[0]),
        newer.replace(b'"step": 1', b'"step": 2'),
        newer.replace(b'"seal"', b'"mark"'),
        b'{"format": ' + said + b', "and": "nothing else that we know"}',
    ):
        with pytest.raises(CodecError, match=f"format {number}, and this version knows 1.*Upgrade perdure") as caught:
            read(data)
        assert not isinstance(caught.value, IntegrityError)


@pytest.mark.parametrize(
    "number", ["2", "9", "0", "11", "21", "12", "01", "111111111", "1" * 10, "9" * 5000, "", "x", "-1", "1.0", "²"]
)
def test_only_the_number_changed_is_damage(number: str) -> None:
    with pytest.raises(IntegrityError):
        read(DATA.replace(b'"perdure snapshot 1"', f'"perdure snapshot {number}"'.encode()))


@pytest.mark.parametrize("number", ["0", "01", "02", "9" * 10, "9" * 5000, "", "x", "-2", "2.0", "²"])
def test_a_number_that_no_format_has_is_damage_with_any_seal(number: str) -> None:
    body = DATA.replace(b'"perdure snapshot 1"', f'"perdure snapshot {number}"'.encode()).rpartition(b',\n "seal"')[0]
    with pytest.raises(IntegrityError):
        read(seal(body))


def test_every_change_of_a_byte_is_damage_and_no_newer_format() -> None:
    assert read(DATA).metadata == {"step": 1}
    changed = bytearray(DATA)
    unnoticed = []
    for at, old in enumerate(DATA):
        for new in range(256):
            if new != old:
                changed[at] = new
                try:
                    read(bytes(changed))
                except IntegrityError:
                    continue
                except CodecError:
                    pass
                unnoticed.append((at, new))
        changed[at] = old
    assert unnoticed == []


def test_every_byte_more_or_less_is_damage_and_no_newer_format() -> None:
    head = 40
    for at in range(head):
        for data in (DATA[:at] + DATA[at + 1 :], *(DATA[:at] + bytes([new]) + DATA[at:] for new in range(256))):
            if data != DATA:
                with pytest.raises(IntegrityError):
                    read(data)


def test_load_latest_stops_at_a_newer_format_with_another_seal(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.register_value("x", 1)
    store.save_state()
    path = store.save_state() / "manifest.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b'snapshot 1"', b'snapshot 2"').replace(b'"seal": "', b'"seal": "v2:'))
    with pytest.raises(CodecError, match="format 2"):
        store.load_latest()
    path.write_bytes(data.replace(b'snapshot 1"', b'snapshot 2"'))
    found = store.load_latest()
    assert found is not None
    assert found.sequence == 1


# -------------------------------------------------------------------------------------------------- what could not be read


def test_metadata_that_no_manifest_could_hold_are_refused_before_anything_is_saved(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.register_value("x", 1)
    with pytest.raises(UsageError, match=r"67,108,864 are the most.*[Rr]egister"):
        store.save_state({"text": "x" * (MAX_MANIFEST + 1)})
    assert store.snapshots() == []


def test_a_manifest_that_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.register_value("x", 1)
    store.save_state({"numbers": list(range(100))})
    for module in (manifest, metadata):
        monkeypatch.setattr(module, "MAX_MANIFEST", 1000)
    with pytest.raises(UsageError, match=r"the manifest would have 1,\d\d\d bytes, and 1,000 are the most"):
        store.save_state({"numbers": list(range(100))})  # too large by its line breaks only
    assert len(store.snapshots()) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_name_that_nobody_could_read_is_not_written() -> None:
    for name in ("x" * 254 + "~2", "a\\b", "a/b", ""):
        with pytest.raises(UsageError, match="a snapshot cannot be called"):
            write_manifest(snapshot(name=name))


def nested(levels: int, inner: Any = 1, kind: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    for _ in range(levels):
        inner = kind(inner)
    return inner


@pytest.mark.parametrize("kind", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}])
def test_metadata_are_nested_a_hundred_levels_at_most(kind: Callable[[Any], Any]) -> None:
    assert json.dumps(check_metadata({"x": nested(100, kind=kind)})["x"]) == json.dumps(nested(100, kind=kind))
    assert json.dumps(check_metadata({"x": nested(100, np.float32(1), kind)})["x"]) == json.dumps(nested(100, 1.0, kind=kind))
    for levels in (101, 900, 100_000):
        with pytest.raises(UsageError, match=r"metadata\['x'\] is nested more than 100 levels deep"):
            check_metadata({"x": nested(levels, kind=kind)})


def test_metadata_that_hold_themselves_are_refused() -> None:
    for loop in ([], [1, 2]):
        loop.append(loop)  # type: ignore[arg-type]
        loop.append(loop)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="nested more than 100"):
            check_metadata({"x": loop})


# ----------------------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"lr": {0: 1}}, r"metadata\['lr'\] has the key 0, which JSON would make text"),
        ({"a": [{"b": {1: "a", "1": "b"}}]}, r"metadata\['a'\]\[0\]\['b'\] has the key 1, which JSON would make text"),
        ({"a": {None: 1}}, r"metadata\['a'\] has the key None, which JSON would make text"),
        ({"a": {True: 1}}, r"metadata\['a'\] has the key True, which JSON would make text"),
        ({"a": {1.5: 1}}, r"metadata\['a'\] has the key 1.5, which JSON would make text"),
        ({"a": {(1, 2): 1}}, r"metadata\['a'\] has the key \(1, 2\), which JSON cannot hold"),
        ({3: 1}, r"metadata has the key 3, which JSON would make text"),
    ],
)
def test_keys_that_are_no_text_are_refused_at_every_level(metadata: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        check_metadata(metadata)
    assert "str" in (caught.value.hint or "")


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Config:
    rate: float = 0.1


@pytest.mark.parametrize(
    ("value", "what", "hint"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), "is a datetime", "isoformat()"),
        (date(2026, 1, 1), "is a date", "isoformat()"),
        (Path("x"), "is a [A-Za-z]*Path", "str()"),
        ({1, 2}, "is a set", "sorted()"),
        (frozenset(), "is a frozenset", "sorted()"),
        (b"x", "is a bytes", "hex()"),
        (argparse.Namespace(a=1), "is a Namespace", "vars()"),
        (Config(), "is a Config", "asdict()"),
        (Colour.RED, "is a Colour", "value"),
        (Decimal(1), "is a Decimal", "str()"),
        (1j, "is a complex", "numbers, text, lists and dicts"),
        (object(), "is an object", "numbers, text, lists and dicts"),
        (np.zeros(3), "is an? ndarray", "tolist()"),
        (np.zeros(1), "is an? ndarray", "tolist()"),
        (np.complex128(1), "is a complex", "numbers, text, lists and dicts"),
        (np.datetime64("2026-01-01"), "is a datetime64", "str()"),
        (np.float64, "is a type", "numbers, text, lists and dicts"),
        (len, "is a builtin_function_or_method", "numbers, text, lists and dicts"),
        (iter([]), "is a list_iterator", "numbers, text, lists and dicts"),
    ],
)
def test_what_json_cannot_hold_is_named_with_what_to_write_instead(value: Any, what: str, hint: str) -> None:
    for told, path in (({"when": value}, "metadata['when']"), ({"a": [1, {"b": value}]}, "metadata['a'][1]['b']")):
        with pytest.raises(UsageError, match=re.escape(path) + f" {what}.*, which JSON cannot hold") as caught:
            check_metadata(told)
        assert hint in (caught.value.hint or "")
        assert "has no attribute" not in str(caught.value)


def test_a_number_that_no_python_reads_by_default_is_refused() -> None:
    assert check_metadata({"n": 10**4299}) == {"n": 10**4299}
    with pytest.raises(UsageError, match=r"metadata\['n'\] has more than 4,300 digits"):
        check_metadata({"n": -(10**4300)})


def test_numbers_of_numpy_are_numbers_at_every_level() -> None:
    ours = {"a": np.float32(0.5), "b": [np.int64(3), {"c": np.bool_(True), "d": np.array(2.5)}], "e": np.str_("x")}
    got = check_metadata(ours)
    assert got == {"a": 0.5, "b": [3, {"c": True, "d": 2.5}], "e": "x"}
    assert [type(v) for v in (got["a"], got["b"][0], got["b"][1]["c"], got["b"][1]["d"], got["e"])] == [
        float,
        int,
        bool,
        float,
        str,
    ]


def test_numbers_of_torch_are_numbers_at_every_level() -> None:
    torch = pytest.importorskip("torch")
    assert check_metadata({"a": torch.tensor(0.5), "b": {"c": [torch.tensor(3)]}}) == {"a": 0.5, "b": {"c": [3]}}
    for value in (torch.zeros(2), torch.zeros(1), torch.zeros((), device="meta")):
        with pytest.raises(UsageError, match=r"metadata\['a'\]\['b'\] is a Tensor, which JSON cannot hold"):
            check_metadata({"a": {"b": value}})


def test_metadata_come_back_as_json_gives_them_and_are_a_copy(tmp_path: Path) -> None:
    inner = {"b": [1, 2]}
    ours = {
        "tuple": (1, (2,)),
        "inner": inner,
        "text": "\ud83d\ude00 \ud800 é",
        "number": Number.ONE,
        "word": Word.YES,
        Word.YES: True,
        "none": None,
        "view": MappingProxyType({"x": 1.5}),
        "inf": float("inf"),
    }
    want = {
        "tuple": [1, [2]],
        "inner": {"b": [1, 2]},
        "text": "\ud83d\ude00 \ud800 é",
        "number": 1,
        "word": "yes",
        "yes": True,
        "none": None,
        "view": {"x": 1.5},
        "inf": float("inf"),
    }
    got = check_metadata(ours)
    inner["b"].append(3)
    assert got == want
    assert all(type(key) is str for key in got)
    assert type(got["number"]) is int
    assert type(got["word"]) is str
    store = StateStore(tmp_path)
    store.save_state(got)
    assert StateStore(tmp_path).snapshots()[0].metadata == want


def test_what_is_no_dict_is_no_metadata() -> None:
    with pytest.raises(UsageError, match=r"metadata is a dict with names, not \[1\]"):
        check_metadata([1])  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- names of components


@pytest.mark.parametrize(
    "name",
    [
        *["con", "CON", "nul", "aux.x", "com1", "COM9.tar.gz", "lpt0", "prn", "con .x", "com¹", "conin$", "CONOUT$"],
        *["a\u202eb", "a\u200bb", "\ufeffa", "a\x85", "a\x9b", "a\u2028b", "a\u2029", "a\ue000", "a\ud800", "a\x7f", "a\n"],
        *[" a", "a ", "\u00a0a", "a\u3000", "a.", ".a", "a:b", "a*", "a?", 'a"', "a<", "a>", "a|", "a/b", "a\\b", "..", "."],
    ],
)
def test_what_no_component_can_be_called(name: str) -> None:
    with pytest.raises(UsageError, match=r"a component cannot be called .*: .") as caught:
        check_component_name(name)
    assert caught.value.hint
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["a", "console", "com", "com10", "a.con", "nulls.x", "é", "e\u0301", "模型", "a b", "x" * 200, "naïve-ß_1", "🐍"]
)
def test_what_a_component_can_be_called(name: str) -> None:
    assert check_component_name(name) == name


def test_a_name_that_is_too_long_says_how_long() -> None:
    for name, size in (("x" * 201, "201"), ("é" * 150, "300"), ("x" * 100_000, "100,000")):
        with pytest.raises(UsageError, match=f"{size} bytes, and 200 are the most") as caught:
            check_component_name(name)
        assert len(str(caught.value)) < 300
        assert "letters" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "such_as"),
    [
        ("é", "e\u0301", ".pkl"),
        ("É", "e\u0301", ".pkl"),
        ("straße", "STRASSE", ".pkl"),
        ("x.y", "x.y.z", "x.y.pkl"),
        ("x", "x.y", "x.pkl"),
        ("m.a", "m.b", "m.pkl"),
        ("X.Y", "x.y.z", "x.y.pkl"),
        ("x", "x.pkl.z", "x.pkl"),
        ("ΐ", "ϊ\u0301", ".pkl"),
    ],
)
def test_names_that_would_meet_are_refused_in_both_orders(one: str, other: str, such_as: str) -> None:
    for first, second in ((one, other), (other, one)):
        with pytest.raises(UsageError, match="would write the same files") as caught:
            check_component_name(second, ["unrelated", first])
        assert repr(first) in str(caught.value)
        assert repr(second) in str(caught.value)
        assert such_as in str(caught.value).casefold()


@pytest.mark.parametrize(("one", "other"), [("x.y", "z.y"), ("x", "y.x"), ("x.y.z", "x"), ("x", "xy"), ("a.b.c", "a.c.b")])
def test_names_that_do_not_meet_stand_side_by_side(one: str, other: str) -> None:
    assert check_component_name(other, [one]) == other
    assert check_component_name(one, [other]) == one


class Text(PersistentStateMixin):
    def save_state(self, path: Path) -> None:
        path.with_suffix(".pkl").write_text("mine")

    def load_state(self, path: Path) -> None:
        assert path.with_suffix(".pkl").read_text() == "mine"


def test_components_that_are_taken_keep_their_own_files(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    value = store.register_value("x.y", 1)
    with pytest.raises(UsageError, match=r"'x\.y' and 'x\.y\.z'"):
        store.register("x.y.z", Text())
    store.register("x-y.z", Text())
    store.save_state()
    value.value = 2
    store.load_latest()
    assert value.value == 1


# ------------------------------------------------------------------------------------------------ files that components write


class Writes(PersistentStateMixin):
    """Calls something with the path at which it shall save itself."""

    def __init__(self, what: Callable[[Path], object]) -> None:
        self.what = what

    def save_state(self, path: Path) -> None:
        self.what(path)


def save(root: Path, what: Callable[[Path], object]) -> Path:
    store = StateStore(root)
    store.register("data", Writes(what))
    return store.save_state()


def write(name: str) -> Callable[[Path], object]:
    def what(path: Path) -> None:
        path.mkdir()
        (path / name).write_text("content")

    return what


ONLY_POSIX = ["obs:0.pkl", "T00:00:00", "a*", "what?", 'a"b', "a<b", "a>b", "a|b", "con", "a.", "a "]


@posix
@pytest.mark.parametrize("name", ONLY_POSIX)
def test_names_that_only_windows_forbids_are_held_elsewhere(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, write(name))
    (found,) = StateStore(tmp_path).snapshots()
    assert list(found.parts) == [f"data/{name}"]
    assert (path / "data" / name).read_text() == "content"
    assert StateStore(tmp_path).verify(path) == []


@posix
def test_a_snapshot_may_be_named_by_the_time_with_colons(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "%H:%M:%S,%f.state")
    store.register_value("x", 1)
    path = store.save_state()
    assert path.name.count(":") == 2
    store.load_state(path)
    assert StateStore(tmp_path).snapshots()[0].name == path.name


@pytest.mark.parametrize("name", ONLY_POSIX)
def test_windows_neither_writes_nor_reads_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    data = write_manifest(snapshot(Part(f"c/{name}", 1, ("0" * 64,))))
    monkeypatch.setattr(names, "_WINDOWS", True)
    with pytest.raises(IntegrityError, match="Windows"):
        read(data)
    with pytest.raises(UsageError, match="state_name_format makes"):
        StateStore(tmp_path / "named", name)
    if os.name != "nt":
        with pytest.raises(UsageError, match=r"component 'data' wrote 'data/.*', which no snapshot can hold: .*Windows"):
            save(tmp_path, write(name))
        assert StateStore(tmp_path).snapshots() == []


@posix
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\\b", "separator"),
        ("a\nb", "control character"),
        ("a\x7f", "control character"),
        (os.fsdecode(b"a\xff"), "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_held_is_refused_with_the_reason(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"component 'data' wrote .*, which no snapshot can hold: .*{why}") as caught:
        save(tmp_path, write(name))
    assert "another name" in (caught.value.hint or "")
    assert StateStore(tmp_path).snapshots() == []
    assert is_bad_name(name)


def test_a_file_with_the_name_of_the_manifest_is_refused_with_the_reason(tmp_path: Path) -> None:
    for what in (
        lambda path: (path.parent / "manifest.json").write_text(""),
        lambda path: (path.parent / "Manifest.JSON").mkdir(),
    ):
        with pytest.raises(UsageError, match=r"no snapshot can hold: .*own manifest") as caught:
            save(tmp_path, what)
        assert "another name" in (caught.value.hint or "")


@pytest.mark.parametrize("levels", [5, 20])
def test_a_path_that_is_too_long_is_refused_with_its_length(tmp_path: Path, levels: int) -> None:
    def what(path: Path) -> None:
        os.makedirs(path / "/".join(["x" * 200] * levels))
        (path / "/".join(["x" * 200] * levels) / "file").write_text("")

    if levels == 20 and sys.platform != "linux":
        pytest.skip("such a path cannot be made by its name")
    if levels == 20:

        def what(path: Path) -> None:
            path.mkdir()
            fd = os.open(path, os.O_RDONLY)
            for _ in range(levels):
                os.mkdir("x" * 200, dir_fd=fd)
                inner = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
                os.close(fd)
                fd = inner
            os.close(fd)

    with pytest.raises(
        UsageError, match=r"component 'data' wrote 'data/xxx.*1,0\d\d characters, and 1,000 are the most"
    ) as caught:
        save(tmp_path, what)
    assert caught.value.hint
    assert len(str(caught.value)) < 400
    assert StateStore(tmp_path).snapshots() == []


def test_the_longest_path_that_is_held_can_be_read(tmp_path: Path) -> None:
    folder, rest = "/".join(["x" * 200] * 4), "y" * (1000 - len("data/") - 4 * 201)

    def what(path: Path) -> None:
        os.makedirs(path / folder)
        (path / folder / rest).write_text("")

    save(tmp_path, what)
    ((name,),) = [list(found.parts) for found in StateStore(tmp_path).snapshots()]
    assert len(name) == 1000


@posix
def test_what_is_neither_a_file_nor_a_folder_is_named_for_what_it_is(tmp_path: Path) -> None:
    made: list[socket.socket] = []

    def bind(path: Path) -> None:
        made.append(socket.socket(socket.AF_UNIX))
        here = os.open(path.parent, os.O_RDONLY)
        made[-1].bind(f"/proc/self/fd/{here}/data.sock")
        os.close(here)

    for what, kind in (
        (lambda path: os.mkfifo(path.with_suffix(".pipe")), "a pipe"),
        *([(bind, "a socket")] if sys.platform == "linux" else []),
    ):
        with pytest.raises(
            UsageError, match=f"component 'data' wrote .*, which is {kind}, and neither a file nor a folder"
        ) as caught:
            save(tmp_path, what)
        assert "link" not in (caught.value.hint or "").lower()
        assert caught.value.hint
    with pytest.raises(UsageError, match="which is a link, and neither a file nor a folder") as caught:
        save(tmp_path, lambda path: path.symlink_to("/etc"))
    assert "link leads out" in str(caught.value)
    for sock in made:
        sock.close()


# ------------------------------------------------------------------------------------------------------------- empty folders


def test_folders_with_nothing_in_them_are_listed(tmp_path: Path) -> None:
    for folder in ("a", "b/c/d", "b/e", "f"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "b" / "x").write_text("")
    seen = {"f/later.npy"}  # whose folder is there, and the file is being written
    assert written_by("a", str(tmp_path), seen, "file:x") == ["a/", "b/c/d/", "b/e/", "b/x"]
    assert written_by("a", str(tmp_path), seen, "file:x") == []
    (tmp_path / "g").mkdir()
    assert written_by("g", str(tmp_path), seen, "file:x") == ["g/"]
    assert {"a/", "g/"} <= seen


def test_the_folder_of_a_rank_is_not_its_components(tmp_path: Path) -> None:
    (tmp_path / "rank-3").mkdir()
    assert written_by("rank-3/a", str(tmp_path), set(), "file:x") == []
    (tmp_path / "rank-3" / "a").mkdir()
    assert written_by("rank-3/a", str(tmp_path), set(), "file:x") == ["rank-3/a/"]


def test_an_empty_folder_is_a_part_without_bytes() -> None:
    part = Part("c/inner/", 0, (NOTHING,))
    assert part.is_folder
    assert not Part("c/inner", 0, (NOTHING,)).is_folder
    again = read(write_manifest(snapshot(part, Part("c/file", 0, (NOTHING,)))))
    assert again.parts["c/inner/"] == part
    assert again.components["c"].parts == ("c/inner/", "c/file")


@pytest.mark.parametrize(
    "parts",
    [
        [Part("a/", 3, (digest_of(b"abc"),))],
        [Part("a/", 0, ("0" * 64,))],
        [Part("/", 0, (NOTHING,))],
        [Part("a//", 0, (NOTHING,))],
        [Part("../", 0, (NOTHING,))],
        [Part("manifest.json/", 0, (NOTHING,))],
        [Part("manifest.json/x", 0, (NOTHING,))],
        [Part("a/", 0, (NOTHING,)), Part("a", 0, (NOTHING,))],
        [Part("a/", 0, (NOTHING,)), Part("a/b", 0, (NOTHING,))],
        [Part("a/", 0, (NOTHING,)), Part("a/b/c/", 0, (NOTHING,))],
        [Part("a", 0, (NOTHING,)), Part("a/b", 0, (NOTHING,))],
        [Part("a", 0, (NOTHING,)), Part("a-b", 0, (NOTHING,)), Part("a/b/c/d", 0, (NOTHING,)), Part("a.b", 0, (NOTHING,))],
        [Part("x/a/b/c", 0, (NOTHING,)), Part("x/a!", 0, (NOTHING,)), Part("x/a", 0, (NOTHING,))],
    ],
)
def test_parts_that_cannot_be_together_are_damage(monkeypatch: pytest.MonkeyPatch, parts: list[Part]) -> None:
    for one in (parts, parts[::-1]):
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "check_places", lambda _: None)
            data = write_manifest(snapshot(*one))
        with pytest.raises(IntegrityError, match="what no manifest says"):
            read(data)


def test_packed_components_have_no_folders_as_parts() -> None:
    parts = {name: Part(name, 0, (NOTHING,)) for name in ("c.pkl", "c/x/")}
    packed = dataclasses.replace(snapshot(), components={"c": Component("value", tuple(parts))}, parts=parts)
    with pytest.raises(IntegrityError, match="parts of others"):
        read(write_manifest(packed))


def test_a_file_in_what_another_component_left_empty_is_refused_and_not_saved_unreadably() -> None:
    parts = Part("shared/", 0, (NOTHING,)), Part("shared/x", 0, (NOTHING,))
    with pytest.raises(UsageError, match=r"'shared/' and 'shared/x'"):
        write_manifest(snapshot(*parts))


# -------------------------------------------------------------------------------------------------------------- save_pickle


@posix
def test_a_pickle_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.pkl").symlink_to("real/x.pkl")
    for value in (1, 2):  # the link dangles at first
        save_pickle(value, tmp_path / "link.pkl")
        assert (tmp_path / "link.pkl").is_symlink()
        assert load_pickle(tmp_path / "real" / "x.pkl") == value
    assert sorted(os.listdir(tmp_path)) == ["link.pkl", "real"]
    assert os.listdir(tmp_path / "real") == ["x.pkl"]


@posix
def test_a_link_to_itself_is_no_place_for_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "a"))):
        save_pickle(1, tmp_path / "a")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").is_symlink()


@posix
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o664, 0o400, 0o200])
def test_the_mode_of_a_file_that_is_there_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_text("")
    path.chmod(mode)
    save_pickle([1], path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.chmod(0o600)
    assert load_pickle(path) == [1]


@posix
def test_a_new_pickle_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_pickle([1], tmp_path / "x.pkl")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.pkl").stat().st_mode) == 0o640


@posix
@pytest.mark.parametrize("name", ["x" * 251 + ".pkl", "é" * 125 + ".pkl", "x"])
def test_a_pickle_may_have_the_longest_name_there_is(tmp_path: Path, name: str) -> None:
    save_pickle([1], tmp_path / name)
    save_pickle([2], tmp_path / name)
    assert load_pickle(tmp_path / name) == [2]
    assert os.listdir(tmp_path) == [name]


@posix
def test_errors_name_the_path_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("gone/x")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "gone" / "x.pkl", tmp_path / "folder", tmp_path / "pipe", Path("y" * 300), tmp_path / "link"):
        for given in (path, str(path)):
            with pytest.raises(OSError, match=r"\[Errno \d+\] .*") as caught:
                save_pickle(1, given)
            assert caught.value.filename == str(path)
            assert caught.value.filename2 is None
            assert "tmp'" not in str(caught.value)
            assert "->" not in str(caught.value)
    assert sorted(os.listdir()) == ["folder", "link", "pipe"]


class Odd:
    """Reads a file when it is pickled."""

    def __reduce__(self) -> Any:
        return open, ("/there/is/none",), open("/there/is/none")


def test_an_error_of_the_object_stays_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        save_pickle(Odd(), tmp_path / "x.pkl")
    assert caught.value.filename == "/there/is/none"
    assert os.listdir(tmp_path) == []


@posix
def test_a_full_disk_names_the_path_and_leaves_the_good_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "x.pkl"
    save_pickle([1], path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(OSError, match=r"x\.pkl'$"):
            save_pickle(bytes(100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_pickle(path) == [1]
    assert os.listdir(tmp_path) == ["x.pkl"]


@posix
def test_what_cannot_be_pickled_leaves_file_link_and_mode_as_they_were(tmp_path: Path) -> None:
    path, link = tmp_path / "x.pkl", tmp_path / "link"
    save_pickle([1], path)
    path.chmod(0o640)
    link.symlink_to(path)
    with pytest.raises(pickle.PicklingError, match=re.escape(str(link))):
        save_pickle([1, threading.Lock()], link)
    assert load_pickle(link) == [1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "x.pkl"]


def test_a_component_that_saves_a_pickle_of_a_long_name_is_saved(tmp_path: Path) -> None:
    path = save(tmp_path, lambda path: save_pickle([1], path.with_suffix("." + "x" * 245)))
    assert sorted(map(len, os.listdir(path))) == [len("manifest.json"), 250]


def test_a_failing_component_is_named(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="component 'data' could not be saved: FileNotFoundError"):
        save(tmp_path, lambda path: save_pickle([1], path / "x.pkl"))
