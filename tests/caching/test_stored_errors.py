"""Exceptions that are stored come back as they were, or are not stored."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.caching.failures import failure_in, spell_failure
from perdure.codecs.chain import Chain
from perdure.errors import CodecError

CHAIN = Chain("msgpack")


class Coded(Exception):
    """Its constructor takes something else than what it hands on, and it counts how often it is called."""

    made = 0

    def __init__(self, code: int, *, about: str) -> None:
        type(self).made += 1
        super().__init__(f"{about}: {code}")
        self.code = code
        self.about = about


class Slotted(LookupError):
    __slots__ = ("where",)


class Holding(Exception):
    def __init__(self, what: object) -> None:
        super().__init__("holds something")
        self.what = what


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def there_and_back(error: Exception) -> Exception | None:
    data = spell_failure(CHAIN, error, "f()/1")
    return None if data is None else failure_in(CHAIN, data, "f()/1", (Exception,))


def raised_by(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def slotted() -> Slotted:
    error = Slotted("gone")
    error.where = "there"
    return error


def noted() -> ValueError:
    error = ValueError("bad", 1, (2, "x"))
    error.add_note("while testing")
    return error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("caviar"),
        noted(),
        FileNotFoundError(2, "No such file", "/x"),
        OSError(18, "Cross-device link", "/a", None, "/b"),
        OSError("just text"),
        BlockingIOError(11, "busy", 7),
        raised_by(lambda: Path("/no/such/file").read_text()),
        raised_by(lambda: Path("/no/such").rename("/no/other")),
        raised_by(lambda: json.loads("[1,")),
        raised_by(lambda: b"\xff".decode()),
        raised_by(lambda: compile("a b", "<x>", "exec")),
        raised_by(lambda: __import__("no_such_module")),
        ModuleNotFoundError("no x", name="x", path="/x"),
        StopIteration(5),
        Coded(5, about="thing"),
        slotted(),
        urllib.error.URLError("no route"),
        perdure.NotFoundError(key="a", place="memory:", hint="Look elsewhere."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_as_it_was(error: Exception) -> None:
    again = there_and_back(error)
    assert again is not None and again is not error
    assert type(again) is type(error)
    assert (again.args, str(again), repr(again)) == (error.args, str(error), repr(error))
    assert vars(again) == vars(error)
    names = "errno strerror filename filename2 name path where object start end reason lineno text msg value"
    for name in names.split():
        assert getattr(again, name, None) == getattr(error, name, None), name


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.HTTPError("http://a", 404, "Not Found", Message(), io.BytesIO(b"body")),
        ExceptionGroup("several", [ValueError(1), KeyError(2)]),
        Holding(object()),
        ValueError(object()),
        ValueError(lambda: 1),
        Unspeakable(),
        raised_by(lambda: getattr(object(), "absent")),  # noqa: B009
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_that_would_come_back_otherwise_is_not_stored(error: Exception) -> None:
    assert spell_failure(CHAIN, error, "f()/1") is None


def test_no_constructor_is_called() -> None:
    error = Coded(5, about="thing")
    made = Coded.made
    assert isinstance(there_and_back(error), Coded)
    assert Coded.made == made


def test_attributes_that_nobody_may_set_are_refused() -> None:
    for stored in (
        ["builtins.ValueError", ["x"]],
        ["builtins.ValueError", ["x"], {}, []],
        "builtins.ValueError",
        ["builtins.UnicodeDecodeError", [1], {}, {"start": "x"}],
    ):
        data = CHAIN.encode(stored, "f()/1!")
        with pytest.raises(CodecError):
            failure_in(CHAIN, data, "f()/1", (ValueError,))


def test_only_places_of_the_class_are_filled() -> None:
    data = CHAIN.encode(["builtins.ValueError", ["x"], {}, {"__class__": 1, "__traceback__": 2, "other": 3}], "f()/1!")
    error = failure_in(CHAIN, data, "f()/1", (ValueError,))
    assert type(error) is ValueError and error.__traceback__ is None and not hasattr(error, "other")


def test_classes_are_not_found_by_what_is_stored() -> None:
    data = spell_failure(CHAIN, KeyError("a"), "f()/1")
    assert data is not None
    assert failure_in(CHAIN, data, "f()/1", (ValueError,)) is None
    assert isinstance(failure_in(CHAIN, data, "f()/1", (LookupError,)), KeyError)


def test_a_cached_function_raises_the_same_again(url: str) -> None:
    runs: list[Any] = []

    @perdure.cached(url, errors=(OSError, Coded))
    def load(name: str) -> None:
        runs.append(name)
        if name == "coded":
            raise Coded(7, about=name)
        raise FileNotFoundError(2, "No such file", name)

    for _ in range(2):
        with pytest.raises(FileNotFoundError) as caught:
            load("x")
        assert (caught.value.filename, caught.value.errno) == ("x", 2)
        with pytest.raises(Coded) as coded:
            load("coded")
        assert (coded.value.code, coded.value.about) == (7, "coded")
    assert runs == ["x", "coded"]


def test_each_thread_that_waits_gets_an_exception_of_its_own(url: str) -> None:
    running, waiting = threading.Event(), threading.Event()

    @perdure.cached(url, errors=LookupError)
    def find(n: int) -> int:
        running.set()
        assert waiting.wait(60)
        raise LookupError(n)

    found: list[Exception] = []
    threads = [threading.Thread(target=lambda: found.append(raised_by(lambda: find(1)))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert running.wait(60)
    while find.cache.stats().waits < 4:
        time.sleep(0.001)
    waiting.set()
    for thread in threads:
        thread.join()
    assert [error.args for error in found] == [(1,)] * 5
    assert len({id(error) for error in found}) == 5


GONE: list[type[Exception]] = []


def test_of_classes_of_one_name_the_last_is_raised(url: str) -> None:
    """As a cell of a notebook makes them that is run twice."""

    @perdure.cached(url, errors=LookupError)
    def find() -> int:
        raise GONE[-1]("away")

    for _ in range(2):
        GONE.append(type("Gone", (LookupError,), {"__module__": "notebook", "__qualname__": "Gone"}))
        assert type(raised_by(find)) is GONE[-1]
    assert find.cache.stats().misses == 1


def test_a_class_of_the_script_is_found_by_processes_that_were_spawned() -> None:
    made = type("Gone", (LookupError,), {"__module__": "__main__", "__qualname__": "Gone"})
    data = spell_failure(CHAIN, made("away"), "f()/1")
    assert data is not None
    made.__module__ = "__mp_main__"
    again = failure_in(CHAIN, data, "f()/1", (made,))
    assert type(again) is made
    assert again.args == ("away",)
