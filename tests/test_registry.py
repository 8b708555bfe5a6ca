"""From URLs to backends: schemes, options, helpful refusals, and plug-ins of other distributions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import registry
from perdure.errors import MissingExtraError, NotFoundError, UsageError
from perdure.protocol import Backend
from perdure.registry import open_backend, register, schemes
from perdure_backends.file import FileBackend
from perdure_backends.memory import MemoryBackend
from perdure_backends.null import NullBackend

PLUGIN = """
from perdure_backends.memory import MemoryBackend

class GopherBackend(MemoryBackend):
    @classmethod
    def from_url(cls, location, *, port=70, fast=False, ratio=0.5, user=None, mode="text"):
        self = cls()
        self.place = f"gopher:{location}"
        self.got = {"location": location, "port": port, "fast": fast, "ratio": ratio, "user": user, "mode": mode}
        return self
"""


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_known", dict(registry._known))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def install(site: Path, name: str, entry: str, **modules: str) -> None:
    """What `pip install` leaves behind of a distribution with one entry point."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[perdure.backends]\n{entry}\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


@pytest.fixture
def gopher(site: Path) -> Path:
    install(site, "perdure-gopher", "gopher = gopher_backend:GopherBackend", gopher_backend=PLUGIN)
    return site


def got(backend: Backend) -> dict[str, Any]:
    answer: dict[str, Any] = vars(backend)["got"]
    return answer


# Built-in schemes


def test_a_path_is_a_folder(in_tmp: Path) -> None:
    for where in ("data", "./data", str(in_tmp / "data"), in_tmp / "data", "file:data", f"file://{in_tmp}/data", "FILE:data"):
        with open_backend(where) as backend:
            assert isinstance(backend, FileBackend)
            backend.put("a", b"1")
    assert (in_tmp / "data").is_dir()
    assert [entry.name for entry in in_tmp.iterdir()] == ["data"]


def test_nothing_is_created_by_opening(in_tmp: Path) -> None:
    for where in ("data", "sqlite:///app.db"):
        with open_backend(where):
            pass
    assert list(in_tmp.iterdir()) == []


def test_memory_and_null() -> None:
    one, two, other, private = (
        open_backend(url) for url in ("memory:registry", "memory:registry", "memory:registry2", "memory:")
    )
    assert isinstance(one, MemoryBackend)
    one.put("a", b"1")
    assert two.get("a").data == b"1"
    for elsewhere in (other, private):
        with pytest.raises(NotFoundError):
            elsewhere.get("a")
    assert isinstance(open_backend("null:"), NullBackend)


@pytest.mark.parametrize("name", ["strange?name", "a/b:c", "x:", "C", "2024-01-01T10:00", "ünder:score", "_:x"])
def test_what_is_no_url_is_the_name_of_a_folder(in_tmp: Path, name: str) -> None:
    with open_backend(name) as backend:
        backend.put("a", b"1")
    assert (in_tmp / name).is_dir()


def test_an_os_path_is_taken_literally(in_tmp: Path) -> None:
    with open_backend(Path("memory:x?sync=normal")) as backend:
        backend.put("a", b"1")
    assert (in_tmp / "memory:x?sync=normal").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="another variable there")
def test_a_tilde_is_the_home_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = in_tmp / "ho%20me"
    monkeypatch.setenv("HOME", str(home))
    for where in ("~/data", "file:~/data", "file:~/data?sync=normal"):
        with open_backend(where) as backend:
            assert backend.place == f"file:{home}/data"
            backend.put("a", b"1")
    for where in ("~", "file:~"):
        with open_backend(where) as backend:
            assert backend.place == f"file:{home}"
    for where in ("./~", "~data", Path("~"), Path("~/data"), "file:%7E", "file:./~"):
        with open_backend(where) as backend:
            assert not backend.place.startswith(f"file:{home}")
    for where in ("sqlite:~/x.db", "sqlite:///~/x.db"):
        with open_backend(where) as backend:
            assert backend.place == f"sqlite:///{home}/x.db"
    assert [entry.name for entry in in_tmp.iterdir()] == [home.name]


@pytest.mark.parametrize("where", ["", "a\0b", b"data", None, 5])
def test_what_is_no_place_is_refused(where: Any) -> None:
    with pytest.raises((UsageError, TypeError)):
        open_backend(where)


def test_schemes_lists_what_is_known(gopher: Path) -> None:
    assert {"file", "sqlite", "s3", "memory", "null", "gopher"} <= set(schemes())
    assert schemes() == sorted(schemes())


# Options


def test_options_in_the_query_are_converted_to_the_type_of_their_default(gopher: Path) -> None:
    backend = open_backend("gopher://hole/x%20y?port=7000&fast=yes&ratio=0.25&user=me%26you&mode=")
    assert got(backend) == {"location": "//hole/x y", "port": 7000, "fast": True, "ratio": 0.25, "user": "me&you", "mode": ""}


def test_options_as_keywords_are_passed_on(gopher: Path) -> None:
    assert got(open_backend("gopher:x?port=1", fast=True, user="u")) == {
        "location": "x", "port": 1, "fast": True, "ratio": 0.5, "user": "u", "mode": "text",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("port=many", "the option 'port' needs a number, not 'many'"),
        ("port=1.5", "the option 'port' needs a number"),
        ("ratio=", "the option 'ratio' needs a number"),
        ("fast=perhaps", "the option 'fast' needs yes or no, not 'perhaps'"),
        ("port=1&port=2", "the option 'port' is given twice"),
        ("prot=1", "gopher: has no option 'prot'. Did you mean 'port'?"),
        ("zzz=1", "gopher: has no option 'zzz'. Known: fast, mode, port, ratio, user."),
    ],
)
def test_a_wrong_option_is_refused(gopher: Path, query: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_backend(f"gopher:x?{query}")
    assert complaint in str(caught.value)


def test_a_wrong_keyword_is_refused(gopher: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'port'"):
        open_backend("gopher:x", porf=1)
    with pytest.raises(UsageError, match="given twice"):
        open_backend("gopher:x?port=1", port=2)
    with pytest.raises(UsageError, match="memory: has no option 'x'"):
        open_backend("memory:", x=1)
    with pytest.raises(UsageError, match="Did you mean 'sync'"):
        open_backend("file:data?snyc=normal")


def test_no_secret_stands_in_a_message(gopher: Path) -> None:
    for where in ("gopher://me:hush@hole/x?user=hush&port=x", "ghoper://me:hush@hole/x?user=hush"):
        with pytest.raises(UsageError) as caught:
            open_backend(where)
        assert "hush" not in str(caught.value)


# What is not there


@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ("sqllite:///app.db", "Did you mean 'sqlite'?"),
        ("S4://bucket", "Did you mean 's3'?"),
        ("memroy:", "Did you mean 'memory'?"),
        ("quux:x?y=1", "For a folder of that name write ./quux:x."),
        ("azure-blob:box", "Known: "),
        ("my.data:1", "For a folder of that name write ./my.data:1."),
    ],
)
def test_an_unknown_scheme_is_refused_with_a_suggestion(in_tmp: Path, where: str, hint: str) -> None:
    with pytest.raises(UsageError, match="no backend is known") as caught:
        open_backend(where)
    assert hint in str(caught.value)
    assert list(in_tmp.iterdir()) == []


def test_a_missing_extra_says_what_to_type(site: Path) -> None:
    (site / "needs_more.py").write_text("import no_such_module_anywhere\n")
    register("needy", "needs_more:Backend", extra="s3")
    with pytest.raises(MissingExtraError) as caught:
        open_backend("needy:x")
    assert str(caught.value) == "no_such_module_anywhere is not installed. Type: pip install 'perdure[s3]'"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("target", "extra"), [("no_such_module_anywhere:X", ""), ("no_such_module_anywhere:X", "s3"), ("json:X", "")]
)
def test_a_registered_class_that_is_not_there(target: str, extra: str) -> None:
    register("ghost", target, extra=extra)
    with pytest.raises(UsageError, match=f"the backend for ghost:, {target}, cannot be imported"):
        open_backend("ghost:x")


def test_register_adds_and_replaces() -> None:
    register("Mem", "perdure_backends.memory:MemoryBackend")
    assert isinstance(open_backend("mem:x"), MemoryBackend)
    register("mem", "perdure_backends.null:NullBackend")
    assert isinstance(open_backend("MEM:x"), NullBackend)


# Plug-ins


def test_another_distribution_adds_a_scheme_by_one_entry_point(gopher: Path) -> None:
    assert "gopher_backend" not in sys.modules
    with open_backend("gopher:hole") as backend:
        backend.put("a", b"1")
        assert backend.get("a").data == b"1"
    d = perdure.open("gopher:hole?port=7000")
    d["a"] = 1
    assert d["a"] == 1
    assert "gopher" in schemes()


def test_a_known_scheme_does_not_look_at_entry_points(gopher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entry_points", lambda: pytest.fail("looked"))
    open_backend("memory:")


def test_a_plug_in_cannot_take_a_scheme_of_ours(site: Path) -> None:
    install(site, "thief", "memory = thief:Thief", thief="raise SystemExit")
    assert isinstance(open_backend("memory:"), MemoryBackend)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("", "has no attribute 'Odd'"),
        ("class Odd: pass", "is no backend: it has no from_url"),
    ],
)
def test_a_plug_in_that_does_not_work_is_named(site: Path, text: str, complaint: str) -> None:
    install(site, "perdure-odd", "odd = odd_plug_in:Odd", odd_plug_in=text)
    with pytest.raises(UsageError) as caught:
        open_backend("odd:x")
    assert complaint in str(caught.value)
    assert "odd_plug_in:Odd" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:my?secret@localhost:7391/0",
        "redis://:my?ttl=secret@localhost/0",
        "redis://:my?timeout=secret@localhost/0",
        "nowhere://user:my?secret@localhost",
    ],
)
def test_a_password_with_a_question_mark_is_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="%3F") as caught:
        perdure.open_backend(url)
    assert "secret" not in str(caught.value)
    assert "my" not in str(caught.value)
