"""Times, random keys, progress and tables, the same on every place."""

from __future__ import annotations

import builtins
import random
import sys
from collections import Counter
from typing import Any

import pytest

import perdure
from perdure.keys import SafeStrTuple
from perdure.mapping import PersiDict

Dict = PersiDict[Any]


@pytest.fixture
def timed(d: Dict, monkeypatch: pytest.MonkeyPatch) -> Dict:
    """Five items whose times are 1 to 5, whatever the clock of the place says."""
    for i, key in enumerate([("b", "x"), "e", "a", ("b", "y"), "c"]):
        d[key] = i + 1
    paths = ["b/x", "e", "a", "b/y", "c"]
    moments = {path: float(i + 1) for i, path in enumerate(paths)}
    real = d.backend.times
    monkeypatch.setattr(d.backend, "times", lambda prefix="": ((path, moments[path]) for path, _ in real(prefix)))
    return d


def test_the_oldest_and_the_newest(timed: Dict) -> None:
    order: list[Any] = [("b", "x"), "e", "a", ("b", "y"), "c"]
    assert timed.oldest_keys() == order
    assert timed.newest_keys() == order[::-1]
    assert timed.oldest_keys(max_n=2) == order[:2]
    assert timed.newest_keys(max_n=2) == order[:2:-1]
    assert timed.oldest_values(max_n=3) == [1, 2, 3]
    assert timed.newest_values() == [5, 4, 3, 2, 1]
    assert timed.oldest_keys(max_n=99) == order
    for none in (0, -1):
        assert timed.oldest_keys(max_n=none) == timed.newest_values(max_n=none) == []
    assert timed.get_subdict("b").newest_keys() == ["y", "x"]
    assert timed.get_subdict("b").oldest_values() == [1, 4]
    assert all(type(key) is SafeStrTuple for key in timed.oldest_keys())


def test_the_oldest_keys_are_found_without_reading_a_value(d: Dict, requests_of: Any) -> None:
    d.update({str(i): i for i in range(5)})
    requests = requests_of(d.backend)
    d.backend.times = type(d.backend).times.__get__(d.backend)  # type: ignore[method-assign]
    d.oldest_keys(max_n=2)
    assert set(requests.take()) <= {"scan", "keys"}
    d.newest_values(max_n=2)
    assert [call for call in requests.take() if call.startswith("get")] == ["get_many"]


def test_times_agree_with_each_other(d: Dict) -> None:
    d.update({"a": 1, ("b", "c"): 2})
    times = dict(d.keys_and_timestamps())
    assert times == {"a": d.timestamp("a"), ("b", "c"): d.timestamp(("b", "c"))}
    assert sorted(d.items_and_timestamps()) == [(key, d[key], times[key]) for key in sorted(times)]
    assert sorted(d.values_and_timestamps()) == sorted((d[key], time) for key, time in times.items())
    assert dict(d.get_subdict("b").keys_and_timestamps()) == {"c": times["b", "c"]}
    with pytest.raises(KeyError):
        d.timestamp("absent")


def test_a_later_write_has_no_earlier_time(d: Dict) -> None:
    for i in range(5):
        d[str(i)] = i
    times = [d.timestamp(str(i)) for i in range(5)]
    assert times == sorted(times)


def test_values_that_vanish_are_left_out(d: Dict) -> None:
    d.update({str(i): i for i in range(20)})
    items = d.items_and_timestamps()
    next(items)
    d.clear()
    assert len(list(items)) < 19
    assert d.oldest_values() == []


def test_a_random_key_is_any_of_them(d: Dict) -> None:
    assert d.random_key() is None
    d.update({("a", str(i)): i for i in range(4)})
    assert {d.random_key() for _ in range(100)} == {("a", str(i)) for i in range(4)}
    assert {d.get_subdict("a").random_key() for _ in range(100)} == set("0123")
    random.seed(5)
    first = [d.random_key() for _ in range(5)]
    random.seed(5)
    assert [d.random_key() for _ in range(5)] == first


def test_random_keys_are_equally_likely_beyond_a_batch() -> None:
    d: Dict = PersiDict(perdure.open_backend("memory:"))
    d.update({str(i): i for i in range(2500)})
    random.seed(1)
    drawn = Counter(int(str(d.random_key())) // 500 for _ in range(1000))
    assert set(drawn) == set(range(5)) and all(130 < number < 270 for number in drawn.values())


def test_progress_is_reported(d: Dict) -> None:
    seen: list[tuple[int, int | None]] = []

    def note(done: int, total: int | None) -> None:
        seen.append((done, total))

    d.set_many({str(i): i for i in range(1200)}, progress=note)
    assert seen[-1] == (1200, 1200) and len(seen) == 2
    seen.clear()
    assert len(d.get_many(map(str, range(1200)), progress=note)) == 1200
    assert seen[-1] == (1200, 1200) and len(seen) == 5
    seen.clear()
    d.delete_many(map(str, range(100)), progress=note)
    assert seen == [(100, 100)]
    seen.clear()
    d.clear(progress=note)
    assert seen[-1] == (1100, None) and len(d) == 0
    seen.clear()
    d.clone(append_only=True).set_many({"a": 1, "b": 2}, progress=note)
    assert seen == [(2, 2)]


def test_a_bar_is_shown_by_tqdm_which_may_be_missing(d: Dict, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    d.set_many({"a": 1, "b": 2}, progress=True)
    assert "2/2" in capsys.readouterr().err
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.startswith("tqdm")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(perdure.MissingExtraError, match=r"pip install 'perdure\[progress\]'"):
        d.set_many({"a": 3}, progress=True)
    assert d["a"] == 1


def test_a_notebook_shows_a_table_without_reading_values(d: Dict, requests_of: Any) -> None:
    assert "empty" in d._repr_html_()
    d.update({"a": 1, ("b", "c"): 2})
    requests = requests_of(d.backend)
    html = d._repr_html_()
    assert "&#x27;a&#x27;" in html and "(&#x27;b&#x27;, &#x27;c&#x27;)" in html and "and more" not in html
    assert set(requests.take()) <= {"scan", "head"}
    d.update({str(i): i for i in range(30)})
    assert "and more" in d._repr_html_()
    d.close()
    assert "BackendError" in d._repr_html_()


def test_parameters_make_another_handle_of_the_same_dict(d: Dict) -> None:
    d["a", "b"] = 1
    for one in (d, d.get_subdict("a")):
        again = type(one)(**one.get_params())
        assert again == one and list(again) == list(one) and again.place == one.place
    only = d.clone(append_only=True)
    with pytest.raises(perdure.PolicyError):
        only["a", "b"] = 2
    assert PersiDict(d.backend, "msgpack", prefix="a")["b"] == 1
