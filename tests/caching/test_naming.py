"""A function has one name everywhere, and no other function or version of it has that name."""

from __future__ import annotations

import enum
import functools
import gc
import itertools
import json
import linecache
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import types
import uuid
import warnings
from collections import Counter, defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from operator import attrgetter, itemgetter, methodcaller
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perdure
from perdure.caching.keys.captures import captured
from perdure.caching.keys.hashing import digest
from perdure.caching.keys.keying import keys_of
from perdure.caching.keys.naming import CODE, code_digest, name_of
from perdure.errors import UsageError, UsageTypeError
from perdure.keys import is_key

PYTHONS = [python for python in ("/tmp/v3.12.1/bin/python", "/tmp/v3.13.0/bin/python") if Path(python).exists()]


def function_named(module: str, qualname: str):
    made = types.FunctionType(math_like.__code__, {})
    made.__module__, made.__qualname__ = module, qualname
    return made


def math_like(x):
    return x


class Model:
    def run(self):
        return 1

    __call__ = run


class Special(Model):
    def run(self):
        return super().run()


# ------------------------------------------------------------------------------------------------- names and versions


@pytest.mark.parametrize(
    ("module", "qualname", "version", "name"),
    [
        ("train", "f", None, "train.f()"),
        ("train", "f", 2, "train.f()=2"),
        ("train", "f", 1.5, "train.f()=1.5"),
        ("train", "f", "2026-01", "train.f()=2026-01"),
        ("train", "f", "v2", "train.f()=v2"),
        ("pkg.train", "_f", None, "pkg.train._f()"),
        ("pkg.train", "Model.run", None, "pkg.train.Model.run()"),
        ("pkg.train", "_Model.Inner.run", 1, "pkg.train._Model.Inner.run()=1"),
        # What could be something else, or cannot be spelled, has a part of a digest.
        ("train", "f", "2", "train.f()=2~c17639f5456fb2c7"),
        ("train", "f", "", "train.f()=~d8c700ee120e68d0"),
        ("train", "f", True, "train.f()=True~1d21fa41e46da3d7"),
        ("train", "f", (1, "a"), "train.f()=1-a~816cb1ac874171d0"),
        ("train", "f", "a/b ~", "train.f()=a_b__~d94012abb0bd146e"),
        ("train", "größe", None, "train.gr__e()~eed9a56b67a267bf"),
        ("pkg.Train", "f", None, "pkg.Train.f()~59ffff4283562bc9"),
        ("train", "model.run", None, "train.model.run()~464715aa2b0589a7"),
        ("train", "f" * 300, None, f"train.{'f' * 97}~8881977e1fb0556b"),
    ],
)
def test_names_are_readable_and_the_same_in_every_version(module, qualname, version, name) -> None:
    found = name_of(function_named(module, qualname), version)
    assert found == name
    assert is_key(found)


def test_methods_partials_and_callable_objects_are_named_after_the_function() -> None:
    for function in (Model.run, Model().run, Model(), functools.partial(Model.run, 1), staticmethod(Model.run)):
        assert name_of(function) == "test_naming.Model.run()"
    assert name_of(math.sqrt, 1) == "math.sqrt()=1"
    assert name_of(functools.lru_cache(math_like)) == "test_naming.math_like()"


_part = st.sampled_from(["a", "b", "A", "_A", "__main__", "f()=1", "é", "_", "x" * 130, "a-b"])
_dotted = st.lists(_part, min_size=1, max_size=3).map(".".join)
_version = st.one_of(
    st.none(), st.booleans(), st.integers(0, 2), st.floats(0, 2), st.text(max_size=2),
    st.sampled_from(["1", "1.0", "None", "nan", "inf", "1e5", 1e5, 10**5, 1e30, float("nan"), "a/b", "a_b", "a~b", ""]),
    st.sampled_from([(), (1,), [1], ((1,),)]),
    st.tuples(st.integers(0, 1), st.text(max_size=1)), st.frozensets(st.text(max_size=1)),
)  # fmt: skip


@given(st.tuples(_dotted, _dotted, _version), st.tuples(_dotted, _dotted, _version))
@settings(max_examples=3000, deadline=None)
def test_no_two_functions_or_versions_share_a_name(one, other) -> None:
    names = [name_of(function_named(module, qualname), version) for module, qualname, version in (one, other)]
    assert (names[0] == names[1]) == (digest(one) == digest(other))
    assert all(map(is_key, names))


def test_dots_cannot_move_between_module_and_name() -> None:
    parts = ["a", "B", "c", "D"]
    names = {name_of(function_named(".".join(parts[:at]), ".".join(parts[at:]))) for at in range(1, 4)}
    assert len(names) == 3
    assert {name for name in names if "~" not in name} == {"a.B.c.D()"}


@pytest.mark.parametrize("version", [print, {1: print}, object()])
def test_a_version_of_another_type_is_refused(version) -> None:
    with pytest.raises(UsageTypeError, match=r"a version is text, a number, or a tuple of them, not .*\. Such as version=2"):
        name_of(math_like, version)


# ------------------------------------------------------------------------------------------------- code


def load(tmp_path, text: str, name: str = "loaded") -> dict:
    """What a file of this text defines."""
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    space = {"__name__": name, "__file__": str(path)}
    exec(compile(path.read_bytes(), str(path), "exec"), space)
    return space


BEFORE = '''
def deco(*args, **kwargs):
    return lambda f: f

class A:
    @deco(1, [2, (3)])
    def f(self, a, b={"x": 1}, *args, c: int = 3):
        """Text."""
        if a:
            return (a, f"{b!r:>{c}} {'x' + f'{c}'}", rb"\\x",
                    """
            of two lines""")
        return lambda x: x @ a
'''
AFTER = '''
import math  # more

def deco(*args, **kwargs):
    return lambda f: f

if True:
    class A:


        @deco(
            "another"
        )   # comment
        def f(self, a, b = {"x" : 1}, *args, c:int=3):
                """Text."""
                # comment

                if a:
                  # comment
                  return (a, f"{b!r:>{c}} {'x' + f'{c}'}",
                          rb"\\x", """
            of two lines""")

                return \\
                    lambda x: (
                x @ a)
'''.replace("(\n                x @ a)", "x @ a")


def test_only_what_a_function_does_counts_of_its_source(tmp_path) -> None:
    one = load(tmp_path, BEFORE)["A"].f
    other = load(tmp_path, AFTER, "other")["A"].f
    assert code_digest(one) == code_digest(other) == "3e3ee67a7e14c1e4af90c3c87581ec38"


def test_odd_ends_of_lines_and_futures_do_not_hide_the_source(tmp_path) -> None:
    text = """
        from __future__ import annotations
        # \x0c \u2028 \x1c
        a = "\x0c\u2028"; b = "\x85"
        def made(k):
            def f(x: K):
                # a comment{}
                return x * k, "\u2028"

            return f
    """
    one = load(tmp_path, text.format(""))["made"](1)
    other = load(tmp_path, text.format("\n\n\n                # more"), "other")["made"](2)
    assert code_digest(one) == code_digest(other)


def test_a_warning_of_the_compiler_neither_shows_nor_counts(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = load(tmp_path, "def f(x):\n    return x == '\\d'\n")
        other = load(tmp_path, "def f(x):  # the same\n    return x == '\\d'\n", "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert code_digest(space["f"]) == code_digest(other["f"])


def test_threads_name_functions_at_the_same_time(tmp_path) -> None:
    functions = [load(tmp_path, f"def f(x):\n    return x + {n}\n", f"m{n}")["f"] for n in range(8)]
    expected = [code_digest(function) for function in functions]
    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(code_digest, functions * 10)) == expected * 10
    assert warnings.filters == filters


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    @deco(1, [2, (3)])\n", ""),
        ("@deco(1", "@ deco(2)\n    @deco(1"),
        ("c: int = 3", "c: int = 4"),
        ("Text.", "Other."),
        ('f"{b!r:>{c}}', 'f"{b!s:>{c}}'),
        ("return lambda x: x @ a", "return lambda x: x * a"),
        ("        return lambda", "            return lambda"),
        ("of two lines", " of two lines"),
    ],
)
def test_a_change_of_the_source_is_another_digest(tmp_path, old, new) -> None:
    assert old in BEFORE
    assert code_digest(load(tmp_path, BEFORE)["A"].f) != code_digest(load(tmp_path, BEFORE.replace(old, new), "b")["A"].f)


def test_arguments_of_a_decorator_do_not_count_and_its_brackets_neither(tmp_path) -> None:
    text = "def deco(f=None, **kw):\n    return f or deco\n{}\ndef f(x):\n    return x\n"
    found = [
        code_digest(load(tmp_path, text.format(line), f"m{at}")["f"])
        for at, line in enumerate(["@deco", "@deco()", "@deco(a=1)", "@deco(a=f'{1}', b=(2, [3]), c={4: (5)})"])
    ]
    assert len(set(found)) == 1


def test_lambdas_are_told_apart_on_one_line(tmp_path) -> None:
    space = load(tmp_path, "fs = (lambda x: x, lambda x: (lambda y: y), lambda x: (lambda y: x), lambda x=(lambda: 1): x)\n")
    fs = space["fs"]
    lambdas = [*fs, fs[1](1), fs[2](1), fs[3].__defaults__[0]]
    assert len({code_digest(each) for each in lambdas}) == len(lambdas)
    moved = load(tmp_path, "x = 1\nf = [\n    lambda x: # comment\n        (lambda y:\n   y)]\n", "moved")["f"][0]
    assert code_digest(moved) == code_digest(fs[1]) == "3a69349a6435f1d6c66e34b8cb7354f3"
    assert len({name_of(each) for each in lambdas}) == len(lambdas)


def test_an_edited_file_is_not_taken_for_what_was_loaded(tmp_path) -> None:
    old = load(tmp_path, "def f(x):\n    return x + 1\n")["f"]
    before = code_digest(old)
    path = tmp_path / "loaded.py"
    path.write_text("def f(x):\n    return x + 2\n")
    os.utime(path, (1, 1))
    new = load(tmp_path, "def f(x):\n    return x + 2\n")["f"]
    os.utime(path, (2, 2))
    assert code_digest(old) not in (before, code_digest(new))  # the bytecode of what was loaded
    path.write_text("def f(x:\n")
    os.utime(path, (3, 3))
    assert code_digest(old) != code_digest(new)
    path.unlink()
    assert code_digest(old) != code_digest(new)


def test_without_source_the_bytecode_counts() -> None:
    def made(text: str):
        space: dict = {}
        exec(text, space)
        return space["f"]

    texts = [
        "def f(x): return x",
        "def f(y): return y",
        "def f(x): return x + 1",
        "def f(x): return x + 2",
        "def f(x): return x + 1.0",
        "def f(x): return x in {1, 'a', 'b', 'c'}",
        "def f(x): return lambda: x",
        "def f(x): return lambda: 1",
        "def f(x):\n try: return x\n except ValueError: return 1",
    ]
    assert len({code_digest(made(text)) for text in texts}) == len(texts)
    assert [code_digest(made("\n\n" + text)) for text in texts] == [code_digest(made(text)) for text in texts]


def test_a_wrapper_has_the_code_of_what_it_wraps(tmp_path) -> None:
    space = load(tmp_path, "def f(x):\n    return x\n")

    @functools.wraps(space["f"])
    def wrapper(x):
        return space["f"](x)

    assert code_digest(wrapper) == code_digest(space["f"]) != code_digest(math_like)


def test_the_code_can_be_the_version() -> None:
    assert name_of(math_like, CODE).startswith("test_naming.math_like()=code~")
    assert name_of(math_like, CODE) == name_of(math_like, "code") != name_of(math_like)


def test_what_is_not_written_in_python_has_no_code() -> None:
    with pytest.raises(UsageError) as caught:
        name_of(math.sqrt, CODE)
    assert str(caught.value) == (
        "<built-in function sqrt> has no code that could be told from another version of it. "
        "Give a version= of your own, or write a function that calls it."
    )


def test_local_functions_of_one_name_are_told_apart() -> None:
    def make(which):
        if which:

            def f(x):
                return x
        else:

            def f(x):
                return -x

        return f

    assert name_of(make(True)) == name_of(make(True)) != name_of(make(False))
    assert name_of(make(True)).startswith(
        "test_naming.test_local_functions_of_one_name_are_told_apart.(locals).make.(locals).f()~"
    )


# ------------------------------------------------------------------------------------------------- the program itself

SCRIPT = """
import json, multiprocessing, sys
from dataclasses import dataclass
from perdure.caching.keys.hashing import digest
from perdure.caching.keys.naming import name_of

@dataclass
class Config:
    a: int = 1

def f(x):
    return f"{x!r} {x}"

def work(_):
    return name_of(f), name_of(f, 2), name_of(lambda x: x), name_of(Config.__eq__), digest((Config(),))

if __name__ == "__main__":
    found = [work(0)]
    for method in sys.argv[1:]:
        with multiprocessing.get_context(method).Pool(1) as pool:
            found.append(pool.map(work, [0])[0])
    print(json.dumps(found))
"""
ENV = {**os.environ, "PYTHONPATH": str(Path(perdure.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}


def output(*command, **options) -> list:
    done = subprocess.run([*map(str, command)], env=ENV, capture_output=True, text=True, check=True, **options)
    return json.loads(done.stdout)


def test_a_script_names_its_functions_alike_in_all_its_processes(tmp_path) -> None:
    script = tmp_path / "my script.py"
    script.write_text(SCRIPT)
    found = output(sys.executable, script, "fork", "spawn", "forkserver")
    for python in PYTHONS:
        found += [row[:3] + found[0][3:] for row in output(python, script)]
    assert found == [found[0]] * len(found)
    assert found[0][0].startswith("my_script.f()~")
    assert found[0][1].startswith("my_script.f()=2~")
    assert len(set(found[0])) == 5


def test_other_scripts_have_other_names(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    changed = SCRIPT.replace("{x!r}", "{x!s}")
    found = []
    for path, text in [("a/s.py", SCRIPT), ("b/s.py", SCRIPT), ("b/t.py", SCRIPT), ("a/u.py", SCRIPT), ("a/u.py", changed)]:
        (tmp_path / path).write_text(text)
        found += output(sys.executable, tmp_path / path)
    assert found[0] == found[1]  # a copy
    assert len({row[0] for row in found}) == 4
    imported = output(
        sys.executable, "-c", "import json, s; print(json.dumps([s.name_of(s.f), s.digest((s.Config(),))]))", cwd=tmp_path / "a"
    )
    assert imported[0] == "s.f()"
    assert imported[1] not in found[0]


def test_programs_without_a_file_are_told_apart_by_their_code() -> None:
    text = "import json\nfrom perdure.caching.keys.naming import name_of\ndef f(x): return x{}\nprint(json.dumps([name_of(f)]))"
    found = [output(sys.executable, "-c", text.format(end))[0] for end in ("", "", " + 1")]
    found += [output(sys.executable, input=text.format(end))[0] for end in ("", "", " + 1")]
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4] != found[5]
    assert all(name.startswith("__main__.f()~") for name in found)


def test_a_cell_of_a_notebook_is_read_as_it_was_run() -> None:
    space: dict = {"__name__": "__main__"}
    names = []
    for number, text in enumerate(["def f(x):\n    return x\n", "def f(x):\n    return x + 1\n", "def f(x): # \n  return x\n"]):
        file = f"<ipython-input-{number}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), space)
        names.append(name_of(space["f"]))
        del linecache.cache[file]
    assert names[0] == names[2] != names[1]


# ------------------------------------------------------------------------------------------------- captured variables


def test_variables_that_are_only_read_count() -> None:
    def make(rate, name, parts):
        def f(x):
            return x * rate, name, parts

        return f

    def found(*values):
        read = captured(make(*values))
        assert read is not None
        return read()

    assert found(1, "a", (1, (b"", None))) == ("name@0", "a", "parts@0", (1, (b"", None)), "rate@0", 1)
    # Of what is unknown nothing counts: here the parts are left out.
    assert found(1, "a", threading.Lock()) == found(1, "a", object()) == found(1, "a", Mock()) == ("name@0", "a", "rate@0", 1)
    assert found(1, "a", True) != found(1, "a", 1) or digest(found(1, "a", True)) != digest(found(1, "a", 1))
    assert captured(math_like) is None
    assert captured(math.sqrt) is None
    assert captured(Special.run) is None


def test_variables_are_read_at_each_call_and_may_be_missing() -> None:
    def f():
        return rate

    read = captured(f)
    assert read is not None
    assert read() == ()
    rate = 1
    assert read() == ("rate@0", 1)
    rate = 2
    assert read() == ("rate@0", 2)


def test_variables_that_the_function_assigns_do_not_count() -> None:
    def make(count, other, rate):
        def f():
            nonlocal count

            def inner():
                nonlocal other
                rate_of = [0]
                other += rate_of[0]

                def own():
                    rate = 1

                    def more():
                        nonlocal rate
                        rate += 1

                    return more

                return own

            count += 1
            return inner, rate

        return f

    read = captured(make(1, 2, 3))
    assert read is not None
    assert read() == ("rate@0", 3)


def test_functions_count_by_name_so_that_compositions_differ() -> None:
    def compose(f, g):
        return lambda x: f(g(x))

    def deco(f):  # which does not use functools.wraps
        def wrapper(*args):
            return f(*args)

        return wrapper

    pairs = [(math.sin, math.cos), (math.cos, math.sin), (int, str), (math_like, int)]
    found = [captured(compose(f, g))() for f, g in pairs]
    found += [captured(deco(f))() for f in (math_like, output)]
    assert len(set(found)) == 6
    assert found[3] == ("f@0()", "test_naming:math_like", "g@0()", "builtins:int")


def test_what_a_wrapper_captures_counts_too() -> None:
    def scaled(rate):
        def deco(f):
            @functools.wraps(f)
            def wrapper(x):
                return rate * f(x)

            return wrapper

        return deco

    def make(offset):
        def f(x):
            return x + offset

        return f

    calls = [captured(functools.partial(scaled(a)(make(b)), 1))() for a, b in itertools.product((1, 2), repeat=2)]
    assert len(set(calls)) == 4
    assert name_of(scaled(1)(make(1))) == name_of(scaled(2)(make(2)))


@dataclass(frozen=True)
class Frozen:
    host: str

    def put(self, x):
        return x


@dataclass
class Config:
    path: str


class Size(enum.Enum):
    S = 1
    M = 2


Place = namedtuple("Place", "x y")


def around(value):
    def f(x):
        return value, x

    return f


def told(value):
    return digest(captured(around(value))())


def test_whatever_can_be_hashed_counts_by_its_content() -> None:
    def several():
        return [
            1, 1.0, "1", (1,), [1], [2], {"path": "a"}, {"path": "b"}, {1}, frozenset({1}), bytearray(b"a"), b"a", Size.S,
            Size.M, date(2026, 1, 2), date(2026, 1, 3), Decimal(1), Fraction(1), 1j, uuid.UUID(int=1), Path("a"), Path("b"),
            range(1), re.compile("a"), re.compile("b"), Frozen("a"), Frozen("b"), Config("a"), Config("b"), Place(1, 2),
            Place(2, 1), (Path("a"), 1), (Path("b"), 1), np.float64(1), np.zeros(2), np.ones(2), math, json, int, str,
            math.sin, ",".join, ";".join, functools.partial(math_like, 1), functools.partial(math_like, 2),
            functools.partial(math_like, x=1), Frozen("a").put, Frozen("b").put, [math_like, int], [int, math_like],
            {"a": math_like}, {"a": int}, (int, math_like), (math_like, threading.Lock(), 1),
            (math_like, threading.Lock(), 2), functools.partial(int, base=2), pickle_like, functools.partial(int, base=3),
            str.upper, str.lower, np.sin, np.cos, np.sum, np.mean, itemgetter(1), itemgetter(2), itemgetter(1, 2),
            attrgetter("a"), methodcaller("a", b=1), methodcaller("a", b=2), functools.lru_cache(math_like),
            [math_like, math_like], [math_like, 1], [math_like, ("again", 1)],
        ]  # fmt: skip

    found = [told(value) for value in several()]
    assert found == [told(value) for value in several()]
    assert len(set(found)) == len(found)


def pickle_like(x):
    return x


def test_what_can_be_changed_counts_as_it_was_when_the_function_was_decorated() -> None:
    config = {"path": "a"}
    read = captured(around(config))
    before = read()
    config["path"] = "b"
    assert read() == before
    assert captured(around(config))() != before
    config["path"] = "a"
    assert captured(around(config))() == before


def test_another_object_in_a_variable_counts_at_the_next_call() -> None:
    def f():
        return config

    read = captured(f)
    assert read() == ()
    config = ["a"]
    first = read()
    config = ["b"]
    assert read() != first
    config = ["a"]
    assert read() == first


def test_what_the_function_changes_itself_is_no_argument() -> None:
    def makers():
        def append(it):
            return lambda x: it.append(x)

        def inner(it):
            def f(x):
                return [it.add(y) for y in x], lambda: it.discard(x)

            return f

        def item(it):
            def f(x):
                it[x] += 1

            return f

        def deep(it):
            def f(x):
                it[x]["a"] = 1

            return f

        def through(it):
            def f(x):
                it.setdefault(x, []).append(1)

            return f

        def removed(it):
            def f(x):
                del it[x]

            return f

        def piece(it):
            def f(x):
                it[1:2] = x

            return f

        def attribute(it):
            def f(x):
                it.path += x

            return f

        def lines(it):
            def f(x):
                (it
                 .append(x))  # fmt: skip

            return f

        def bound(it):
            return around(it.append)

        return [
            (append, [], [1]), (inner, set(), {1}), (item, Counter(), Counter("a")), (deep, {}, {1: {}}),
            (through, {}, {1: [2]}), (removed, {}, {1: 2}), (piece, bytearray(), bytearray(b"a")),
            (attribute, Config("a"), Config("b")), (lines, [], [1]), (bound, [], [1]),
            (item, defaultdict(int), defaultdict(int, a=1)), (append, ([],), ([1],)),
        ]  # fmt: skip

    for make, one, other in makers():
        assert captured(make(one))() == captured(make(other))(), make


def test_what_the_function_only_reads_counts_though_it_changes_something_else() -> None:
    def stored(it):
        def f(x):
            out = {}
            out[it["path"]] = x
            out[x] = it
            return out

        return f

    def copied(it):
        return lambda x: it.copy().update(x)

    def named(it):
        return lambda x: it.put(x)

    def given(it):
        def f(x):
            x.append(it[0])
            return x

        return f

    cases = [(stored, {"path": "a"}, {"path": "b"}), (copied, {1: 1}, {1: 2}), (given, [1], [2])]
    for make, one, other in [*cases, (named, Frozen("a"), Frozen("b"))]:
        assert captured(make(one))() != captured(make(other))(), make


def test_functions_inside_of_functions_count_with_code_and_what_they_capture() -> None:
    def scaled(rate):
        def scale(x):
            return x * rate

        return scale

    def wrapped(f):
        @functools.wraps(f)
        def wrapper(x):
            return f(x)

        return wrapper

    values = [
        lambda x: x, lambda x: -x, scaled(1), scaled(2), scaled([1]), scaled([2]), scaled(scaled(1)), scaled(scaled(2)),
        wrapped(scaled(1)), wrapped(scaled(2)), functools.lru_cache(scaled(1)), functools.partial(scaled(3), 1),
        functools.partial(scaled(4), 1), (scaled(1), scaled(2)), (scaled(2), scaled(1)), {"a": scaled(1)}, {"a": scaled(2)},
    ]  # fmt: skip
    found = [told(value) for value in values]
    assert len({*found}) >= len(found) - 1  # a function and its `lru_cache` may be one
    assert told(scaled(1)) == told(scaled(1))


def test_functions_and_lists_that_hold_themselves_have_an_end() -> None:
    def make(rate, held=()):
        def even(x):
            return x == 0 or odd(x - rate), everything

        def odd(x):
            return x != 0 and even(x - rate)

        everything = [even, odd, *held]
        everything.append(everything)
        return even

    assert captured(make(1))() == captured(make(1))() != captured(make(2))()
    assert told(make(1)) == told(make(1)) != told(make(2))
    assert captured(make(1, [len]))() != captured(make(1))()


def test_many_functions_that_call_each_other_are_each_looked_at_once() -> None:
    space: dict = {"__name__": __name__}
    names = [f"f{at}" for at in range(12)]
    lines = [f"    def {name}(x): return rate, {', '.join(names)}" for name in names]
    exec("\n".join(["def make(rate):", *lines, "    return f0"]), space)
    make = space["make"]
    assert captured(make(1))() == captured(make(1))() != captured(make(2))()


def test_a_cached_function_may_call_itself() -> None:
    def make(rate):
        @perdure.cached("memory:itself")
        def f(x):
            return rate + f(x - 1) if x else 0

        return f

    one, two = make(1), make(2)
    assert (one(3), two(3), make(1)(3)) == (3, 6, 3)
    assert one.cache.key(1) == make(1).cache.key(1) != two.cache.key(1)


@pytest.mark.filterwarnings("ignore:f captures")
def test_an_object_whose_own_code_fails_is_left_out() -> None:
    class Broken:
        def __perdure_key__(self):
            raise RuntimeError

    assert captured(around(Broken()))() == ()


# ------------------------------------------------------------------------------------------------- functions of one name

TWO = """
def _(x: int):
    return x
def f(x):
    return x
one = _, f
def _(x: str):
    return x
def f(x):
    return -x
"""


def test_functions_of_no_name_are_told_apart_by_their_code(tmp_path) -> None:
    space = load(tmp_path, TWO)
    assert name_of(space["one"][0]) != name_of(space["_"])
    assert name_of(space["_"]).startswith("loaded._()~")


def test_two_functions_of_one_name_are_warned_of_once(tmp_path) -> None:
    space = load(tmp_path, TWO, "two")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys_of(space["one"][1], None, None, None)
        keys_of(space["one"][1], None, (), None)
        keys_of(space["f"], None, (), 2)
        for text in (TWO, TWO.replace("def f", "# edited\ndef f")):
            again = load(tmp_path, text, "two")
            keys_of(again["one"][1], None, (), None)
    with pytest.warns(UserWarning, match=r"there are two functions called two\.f\(\), .* share values\. .* version="):
        keys_of(space["f"], None, (), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys_of(space["one"][1], None, (), None)


def test_a_function_that_is_gone_is_no_second_one(tmp_path) -> None:
    space = load(tmp_path, TWO, "gone")
    keys_of(space["one"][1], None, (), None)
    del space["one"]
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys_of(space["f"], None, (), None)


@pytest.mark.parametrize(("name", "version"), [("f", "v" * 300), ("f" * 300, None), ("F" * 120, "V" * 300)])
def test_long_names_fit_into_a_folder(tmp_path, name, version) -> None:
    function = function_named("Mod.ule", name)
    cached = perdure.cached(str(tmp_path / "cache"), version=version, on_error="raise")(function)
    assert cached(1) == cached(1) == 1
    assert cached.cache.stats().hits == 1
