"""`perdure.open`: what it accepts, which codec it settles on, and whom it trusts."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import PersiDict, UntrustedError, UntrustedWarning, UsageError
from perdure_backends.memory import MemoryBackend


class RecordingMemory(MemoryBackend):
    """A memory that keeps settings, and can claim to be shared."""

    def __init__(self, settings: Mapping[str, str] = {}, *, shared: bool = False, place: str = "memory:test") -> None:
        super().__init__()
        self.settings = dict(settings)
        self.shared_by_machines = shared
        self.place = place
        self.closes = 0

    def recorded(self) -> dict[str, str]:
        return self.settings

    def record(self, settings: Mapping[str, str]) -> None:
        self.settings |= settings

    def close(self) -> None:
        self.closes += 1
        super().close()


class TestWhere:
    @pytest.mark.smoke
    def test_paths_urls_and_backends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for where in ("folder", tmp_path / "path", "file:also", "sqlite:///app.db", "memory:", MemoryBackend()):
            with perdure.open(where) as d:
                assert type(d) is PersiDict
                d["a", "b"] = {"x": (1, None)}
                assert d == {("a", "b"): {"x": (1, None)}}
        assert perdure.open("null:") == {}

    @pytest.mark.parametrize("where", [None, 5, b"state", ["state"], PersiDict(MemoryBackend())])
    def test_what_is_no_place_is_refused(self, where: Any) -> None:
        with pytest.raises(UsageError, match=r"a place is a path, a URL or a backend, not .*sqlite:///app.db"):
            perdure.open(where)

    @pytest.mark.parametrize(
        ("arguments", "what"), [({"codec": pickle}, "codec"), ({"filters": [5]}, "filter"), ({"filters": None}, "filter")]
    )
    def test_what_is_no_codec_or_filter_is_refused(self, arguments: dict[str, Any], what: str) -> None:
        with pytest.raises(UsageError, match=f"is not a {what}"):
            perdure.open("memory:", **arguments)

    def test_a_misspelt_argument_is_told_from_an_option(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no option 'code'.*Known: .*sync.*arguments of perdure.open\.$"):
            perdure.open(tmp_path, code="pkl")
        with pytest.raises(UsageError, match=r"no option 'code'. It has no options\.$"):
            perdure.open("memory:", code="pkl")

    def test_it_lasts(self, url: str) -> None:
        with perdure.open(url) as d:
            d["a"] = 1
            again = perdure.open(url)
            assert again == {"a": 1}

    def test_nothing_is_made_before_the_first_write(self, tmp_path: Path) -> None:
        for name in ("folder", "sqlite:app.db"):
            where = name.replace("app.db", f"{tmp_path}/app.db") if ":" in name else tmp_path / name
            d = perdure.open(where)
            assert (len(d), list(d), "a" in d, d.get("a"), repr(d)[:9]) == (0, [], False, None, "<PersiDic")
        assert os.listdir(tmp_path) == []

    def test_options(self, tmp_path: Path) -> None:
        perdure.open(tmp_path / "a", sync="normal")["k"] = 1
        perdure.open(f"file:{tmp_path}/b?sync=normal")["k"] = 1
        with pytest.raises(UsageError, match="sync"):
            perdure.open(tmp_path / "a", sink="normal")
        with pytest.raises(UsageError, match="sink"):
            perdure.open(MemoryBackend(), sink="normal")
        with pytest.raises(UsageError, match="sqlite"):
            perdure.open("sqlit:x.db")

    def test_policies(self, url: str) -> None:
        d = perdure.open(url, append_only=True, base_class_for_values=int)
        d["a"] = 1
        for value in (2, "text"):
            with pytest.raises(perdure.PolicyError):
                d["a"] = value
        with pytest.raises(UsageError):
            perdure.open(url, base_class_for_values="int")  # type: ignore[arg-type]


class TestCodec:
    def test_the_record_decides_the_next_time(self, tmp_path: Path) -> None:
        for where in (f"file:{tmp_path}/folder", f"sqlite:{tmp_path}/app.db"):
            with perdure.open(where, codec="json") as d:
                d["a"] = {"x": 1}
            with perdure.open(where) as d:
                assert d.chain.codec.name == "json"
                assert d == {"a": {"x": 1}}
            with perdure.open(where, codec="json") as d:
                assert d == {"a": {"x": 1}}
            with pytest.raises(UsageError) as caught:
                perdure.open(where, codec="msgpack")
            assert "'json'" in str(caught.value)
            assert "'msgpack'" in str(caught.value)

    def test_two_that_open_a_new_place_with_different_codecs(self, url: str) -> None:
        """The first write decides; the other one is told, and nothing is mixed."""
        first, second = perdure.open(url, codec="json"), perdure.open(url, codec="msgpack")
        first["a"] = 1
        if url.startswith("memory:"):
            second["b"] = 2  # keeps no settings; each value says how it was written
            with pytest.raises(perdure.CodecError):
                first["b"]
            return
        with pytest.raises(UsageError, match="json"):
            second["b"] = 2
        assert first == {"a": 1}

    def test_default_is_msgpack(self) -> None:
        backend = RecordingMemory()
        assert perdure.open(backend).chain.codec.name == "msgpack"
        assert backend.settings == {"codec": "msgpack"}

    def test_unknown(self) -> None:
        backend = RecordingMemory()
        for bad in ("pickle", "", "a/b"):
            with pytest.raises(UsageError):
                perdure.open(backend, codec=bad)
        assert backend.settings == {}

    def test_a_backend_that_was_opened_here_is_closed_when_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = RecordingMemory({"codec": "json"})
        monkeypatch.setattr("perdure.mapping.opening.open_backend", lambda where: backend)
        with pytest.raises(UsageError):
            perdure.open("memory:x", codec="msgpack")
        assert backend.closes == 1
        mine = RecordingMemory({"codec": "json"})
        with pytest.raises(UsageError):
            perdure.open(mine, codec="msgpack")
        assert mine.closes == 0


def explode() -> None:
    sys.modules["perdure_test_bomb"] = sys


class Bomb:
    """Unpickling it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


class TestTrust:
    @pytest.fixture(autouse=True)
    def nothing_ran(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr("perdure.mapping.opening._warned", set())
        yield
        assert "perdure_test_bomb" not in sys.modules

    def test_a_record_never_switches_on_code(self, tmp_path: Path) -> None:
        """As when somebody plants a marker and a pickle in a folder that others can write to."""
        for where in (f"file:{tmp_path}/folder", f"sqlite:{tmp_path}/app.db"):
            with perdure.open(where, codec="pkl") as d:
                d["a"] = 1
                d.backend.put("bomb", pickle.dumps(Bomb()))
            with pytest.raises(UntrustedError, match='codec="pkl"') as caught:
                perdure.open(where)
            assert caught.value.place == d.backend.place
            with pytest.raises(UsageError, match="pkl"):
                perdure.open(where, codec="msgpack")
            assert perdure.open(where, codec="pkl")["a"] == 1

    def test_trusted_json_has_to_be_named_too(self) -> None:
        backend = RecordingMemory({"codec": "json"})
        assert perdure.open(backend) == {}
        with pytest.raises(UntrustedError, match='codec="json"'):
            perdure.open(backend, trusted=True)
        perdure.open(backend, codec="json", trusted=True)

    def test_signed_values_may_be_pickles(self) -> None:
        signed = perdure.Signed(b"k" * 32)
        backend = RecordingMemory()
        perdure.open(backend, codec="pkl", filters=[signed])["a"] = {1, 2}
        d = perdure.open(backend, filters=[signed])
        assert d["a"] == {1, 2}
        for forged in (pickle.dumps(Bomb()), backend.get("a").data):
            backend.put("bomb", forged)
            with pytest.raises(UntrustedError):
                d["bomb"]

    @pytest.mark.parametrize("codec", ["msgpack", "json"])
    def test_hostile_bytes_never_run_code(self, codec: str) -> None:
        import lz4.frame

        d = perdure.open(RecordingMemory(), codec=codec)
        hostile = [pickle.dumps(Bomb(), protocol) for protocol in range(6)]
        hostile += [lz4.frame.compress(hostile[-1])]
        hostile += [b'{"py/reduce": [{"py/function": "test_opening.explode"}, {"py/tuple": []}]}']
        hostile += [b'{"py/object": "test_opening.Bomb"}', b'{"py/function": "os.system"}', b"", b"\0" * 100]
        for data in hostile:
            d.backend.put("k", data)
            for read in (lambda: d["k"], lambda: d.get("k", 0), lambda: list(d.values()), lambda: d.pop("k", 0)):
                with pytest.raises(perdure.CodecError):
                    read()

    def test_a_shared_place_warns_once(self) -> None:
        with pytest.warns(UntrustedWarning, match="Signed") as caught:
            perdure.open(RecordingMemory(shared=True, place="s3://b/x"), codec="pkl")
        assert caught[0].filename == __file__
        with pytest.warns(UntrustedWarning):
            perdure.open(RecordingMemory(shared=True, place="s3://b/y"), codec="pkl")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            perdure.open(RecordingMemory(shared=True, place="s3://b/x"), codec="pkl")
            perdure.open(RecordingMemory(shared=True, place="s3://b/1"), codec="pkl", trusted=True)
            perdure.open(RecordingMemory(shared=True, place="s3://b/2"), codec="pkl", filters=[perdure.Signed(b"k" * 32)])
            perdure.open(RecordingMemory(shared=True, place="s3://b/3"))
            perdure.open(RecordingMemory(shared=False, place="s3://b/4"), codec="pkl")

    def test_s3_is_shared(self) -> None:
        from perdure_backends.s3 import S3Backend

        assert S3Backend.shared_by_machines
