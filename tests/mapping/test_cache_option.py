"""`perdure.open(..., cache=...)`: copies on this machine."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.mapping import PersiDict

Dict = PersiDict[Any]


@pytest.fixture
def url(s3_endpoint: str, tmp_path: Path) -> str:
    return f"s3://cached/{tmp_path.name}?create=yes&endpoint_url={s3_endpoint}"


def test_values_are_answered_from_copies_that_are_current(url: str, tmp_path: Path) -> None:
    d, other = perdure.open(url, cache=tmp_path / "copies"), perdure.open(url)
    other["level", "a"] = {"n": 1}
    cached: Any = d.backend
    assert [d["level", "a"] for _ in range(3)] == [{"n": 1}] * 3
    assert (cached.hits, cached.misses) == (2, 1)
    other["level", "a"] = {"n": 2}
    assert d["level", "a"] == {"n": 2}
    d["level", "a"] = {"n": 3}
    assert d["level", "a"] == {"n": 3} and cached.misses == 2
    again = perdure.open(url, cache=tmp_path / "copies")
    assert again["level", "a"] == {"n": 3} and again.backend.misses == 0  # type: ignore[attr-defined]


def test_what_never_changes_is_answered_without_asking(url: str, tmp_path: Path) -> None:
    d = perdure.open(url, cache=tmp_path / "copies", append_only=True)
    d["a"] = 1
    d.backend.remote.close()  # type: ignore[attr-defined]
    assert d["a"] == 1 and "a" in d
    with pytest.raises(perdure.BackendError):
        d["b"]


def test_a_copy_does_not_stand_in_for_a_place_that_is_gone(url: str, tmp_path: Path) -> None:
    d = perdure.open(url, cache=tmp_path / "copies")
    d["a"] = 1
    d.backend.remote.close()  # type: ignore[attr-defined]
    with pytest.raises(perdure.BackendError):
        d["a"]


def test_signatures_are_checked_on_copies_too(url: str, tmp_path: Path) -> None:
    def opened() -> Dict:
        return perdure.open(url, cache=tmp_path / "copies", filters=[perdure.Signed(b"k" * 32)], append_only=True)

    d = opened()
    d["a"] = "mine"
    local: Any = d.backend.local  # type: ignore[attr-defined]
    forged = perdure.Cached(perdure.open_backend("memory:forged"), local)
    forged._records = d.backend._records  # type: ignore[attr-defined]
    blob = d.backend.get("a")
    forged._keep("a", blob._replace(data=blob.data.replace(b"mine", b"evil")))
    with pytest.raises(perdure.CodecError):
        opened()["a"]


def test_times_are_those_of_the_place(url: str, tmp_path: Path) -> None:
    d = perdure.open(url, cache=tmp_path / "copies")
    d.update({str(i): i for i in range(5)})
    times = dict(d.keys_and_timestamps())
    for _ in range(2):
        assert {key: time for key, _, time in d.items_and_timestamps()} == times


def test_it_may_be_a_backend_and_the_dict_a_handle(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    d = perdure.open(url, cache="~/copies")
    d["a"] = 1
    assert list((tmp_path / "home" / "copies").iterdir())
    assert pickle.loads(pickle.dumps(d)) == {"a": 1}
    with perdure.open_backend(f"sqlite:{tmp_path}/copies.db", sync="normal") as local:
        assert perdure.open(url, cache=local)["a"] == 1


def test_a_folder_with_values_is_refused_as_a_cache(url: str, tmp_path: Path) -> None:
    perdure.open(tmp_path / "values")["a"] = 1
    with pytest.raises(perdure.UsageError, match="place of their own"):
        perdure.open(url, cache=tmp_path / "values")
    assert perdure.open(tmp_path / "values") == {"a": 1}


def test_a_cache_that_fails_only_slows_things_down(url: str, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    with pytest.raises(perdure.BackendError):
        perdure.open(url, cache=tmp_path / "home")
    d = perdure.open(url, cache=tmp_path / "copies")
    d.backend.local.close()  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="fails to keep copies"):
        d["a"] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert d["a"] == 1
