"""Times of a folder's values, listed by names and one look at each file: exactly those that the values themselves tell."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import perdure
from perdure.protocol import ABSENT
from perdure_backends.file import FileBackend


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def backend(folder: Path) -> FileBackend:
    return FileBackend(folder)


@pytest.mark.parametrize("layout", ["framed", "plain"])
@pytest.mark.parametrize("sync", ["full", "normal"])
def test_times_are_exactly_those_of_head(folder: Path, monkeypatch: pytest.MonkeyPatch, layout: str, sync: str) -> None:
    backend = FileBackend(folder, layout=layout, sync=sync)
    for n in range(200):
        backend.put(f"{n % 7}/k{n}", b"1", if_match=ABSENT)
    backend.put_many({f"{n % 5}/k{n}": b"2" for n in range(100)})
    backend.put("0/k0", b"3", if_match=backend.head("0/k0").etag)
    backend.put("0/k0", bytearray(100_000))
    heads = {key: backend.head(key).modified for key in backend.keys()}  # noqa: SIM118
    stray = ["notes.txt", "item (1).perdure", ".hidden.perdure", "Notes.perdure"]
    if layout == "framed":
        for name in stray:
            (folder / "0" / name).write_bytes(b"not ours")
    (folder / "0" / "link.perdure").symlink_to(folder / "0" / "k0.perdure")

    def fail(*_: object, **__: object) -> int:
        raise AssertionError("opened")

    monkeypatch.setattr(os, "open", fail)
    assert dict(backend.times()) == heads
    assert {key for key, _ in backend.times("3/")} == {key for key in heads if key.startswith("3/")}


def test_times_pass_over_what_is_deleted_meanwhile_and_say_what_cannot_be_looked_at(
    folder: Path, backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.put_many(dict.fromkeys("abcdef", b"1"))
    times = backend.times()
    first = next(times)[0]
    gone = {"a", "b", "c"} - {first}
    backend.delete_many(gone)
    assert {first} | {key for key, _ in times} == set("abcdef") - gone
    with pytest.raises(perdure.InvalidKeyError):
        backend.times("a")
    (folder / "d.perdure").write_bytes(b"damaged")
    assert "d" in dict(backend.times())
    backend.close()
    with pytest.raises(perdure.BackendError):
        backend.times()


def test_a_value_is_written_though_its_file_takes_no_times(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    backend.put("a", b"1")
    assert abs(dict(backend.times())["a"] - backend.head("a").modified) < 60
