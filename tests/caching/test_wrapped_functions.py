"""Functions that wrap others: what they and their arguments are called, and that no two calls are taken for one."""

from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest

import perdure
from perdure.caching.keys.binding import Binding
from perdure.caching.keys.hashing import digest
from perdure.caching.keys.keying import keys_of
from perdure.caching.keys.naming import code_digest, name_of, own_code_digest
from perdure.caching.keys.nesting import NestedBinding, binding_of
from perdure.errors import UsageError, UsageTypeError

ENV = {**os.environ, "PYTHONPATH": str(Path(perdure.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
MISSING = object()


def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def retried(function):
    @functools.wraps(function)
    def wrapper(*args, retries=3, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def with_session(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function("session", *args, **kwargs)

    return wrapper


def forceable(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        kwargs.pop("force", None)
        return function(*args, **kwargs)

    return wrapper


def of_a_method(function):
    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return wrapper


def of_an_instance(function):
    @functools.wraps(function)
    def wrapper(instance, *args, **kwargs):
        return function(instance, *args, **kwargs)

    return wrapper


class Timed:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def plain(x, n=1):
    return x, n


def bound(function, *args, **kwargs):
    binding = binding_of(function)
    assert isinstance(binding, NestedBinding)
    names, values = binding.bind(args, kwargs)
    assert len(set(names)) == len(names) == len(values)
    return dict(zip(names, values, strict=True))


def key(function, *args, **kwargs):
    return keys_of(function, None, (), None).digest(args, kwargs)


# ------------------------------------------------------------------------------------------------------------- names

LIBRARY = """
import functools
def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
"""
SCRIPT = """
import json, perdure
from deco_of_a_library import timed
BASE = {!r}
@perdure.cached("values")
@timed
def load(day):
    return BASE + day
print(json.dumps([load.cache.name, load("monday")]))
"""


def test_scripts_that_wrap_their_functions_by_the_same_decorator_have_names_of_their_own(tmp_path) -> None:
    (tmp_path / "deco_of_a_library.py").write_text(LIBRARY)
    found = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(SCRIPT.format(name))
        command = [sys.executable, f"{name}.py"]
        done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert [name.partition("~")[0] for name, _ in found] == ["a.load()", "b.load()"]
    assert [value for _, value in found] == ["amonday", "bmonday"]


def test_a_wrapper_that_goes_by_a_name_of_its_own_keeps_it() -> None:
    def make(function, copy):
        def wrapper(*args):
            return function(*args)

        wrapper.__wrapped__ = function
        if copy:
            wrapper.__qualname__, wrapper.__module__ = function.__qualname__, function.__module__
        return wrapper

    assert name_of(make(plain, copy=True)) == name_of(plain) == "test_wrapped_functions.plain()"
    assert name_of(make(plain, copy=False)).startswith("test_wrapped_functions.test_a_wrapper_that_goes_by_a_name_of")
    assert name_of(make(plain, copy=False)) != name_of(make(timed, copy=False))
    renamed = timed(plain)
    renamed.__qualname__ = "renamed"
    assert name_of(renamed) == "test_wrapped_functions.renamed()"


def test_wrappers_that_lead_nowhere_are_named_as_they_are() -> None:
    circle, other = timed(plain), timed(plain)
    circle.__wrapped__ = circle
    assert name_of(circle) == "test_wrapped_functions.plain()"
    circle.__wrapped__, other.__wrapped__ = other, circle
    assert name_of(circle) == "test_wrapped_functions.plain()"
    circle.__wrapped__ = 5
    assert name_of(circle, "code").startswith("test_wrapped_functions.plain()=code~")
    assert isinstance(binding_of(circle), Binding)


def test_the_code_of_a_wrapper_is_its_own_only_if_that_is_asked_for() -> None:
    assert code_digest(timed(plain)) == code_digest(plain) == own_code_digest(plain)
    assert own_code_digest(timed(plain)) == own_code_digest(timed(bound)) != own_code_digest(plain)


def test_a_wrapper_around_something_without_a_name_counts_with_its_own_code() -> None:
    f = timed(functools.partial(plain, n=2))
    assert name_of(f).startswith(f"{functools.partial.__module__}.timed.(locals).wrapper()~")
    assert name_of(f) != name_of(retried(functools.partial(plain, n=2)))
    assert key(f, 1) != key(timed(functools.partial(plain, n=3)), 1)


def two_of_one_name():
    def make(number):
        def load(x):
            return x, number

        load.__qualname__ = "load"
        return load

    def other(x):
        return -x

    other.__qualname__ = "load"
    return make, other


def test_functions_of_one_name_are_warned_of_where_their_layers_do_not_tell_them_apart() -> None:
    _, one = two_of_one_name()

    def other(x):
        return x

    other.__qualname__ = "load"
    first = timed(one)
    keys_of(first, None, (), "warned")
    with pytest.warns(UserWarning, match=r"two functions called test_wrapped_functions.load\(\)=warned"):
        keys_of(timed(other), None, (), "warned")


def test_functions_of_one_name_are_not_warned_of_where_their_keys_differ() -> None:
    make, other = two_of_one_name()
    functions = [timed(make(1)), retried(other), timed(make(2))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in functions:
            keys_of(function, None, (), "silent")


def test_a_loop_that_makes_functions_with_defaults_that_do_not_count_is_warned_of() -> None:
    space: dict = {"__name__": "test_wrapped_functions", "Client": type("Client", (), {})}
    exec("made = []\nfor _ in 1, 2:\n    def f(x, client=Client()):\n        return client\n    made.append(f)", space)
    keys_of(space["made"][0], None, (), "loop")
    keys_of(space["made"][0], None, (), "loop")
    with pytest.warns(UserWarning, match=r"two functions called test_wrapped_functions.f\(\)=loop"):
        keys_of(space["made"][1], None, (), "loop")


# ------------------------------------------------------------------------------------------------------------- arguments


def test_what_a_wrapper_collects_is_named_by_the_function_inside() -> None:
    f = timed(plain)
    assert bound(f, 1) == bound(f, x=1) == {"x": 1}
    assert bound(f, 1, 1) == bound(f, n=1, x=1) == bound(f, 1, n=1) == {"x": 1, "n": 1}
    assert key(f, 1) == key(f, x=1) != key(f, 1, 1)  # the wrapper may do something else where nothing is given
    assert key(timed(f), 1) == key(timed(f), x=1)


def test_parameters_of_the_wrapper_itself_count() -> None:
    f = retried(plain)
    assert bound(f, 1) == bound(f, x=1, retries=3) == {"retries": 3, "x": 1}
    assert bound(f, 1, retries=5) == {"retries": 5, "x": 1}
    assert bound(timed(f), 1) == {"x": 1}
    assert bound(timed(f), x=1, retries=5) == {"retries": 5, "x": 1}


def test_a_wrapper_that_passes_on_something_else_takes_arguments_as_they_are() -> None:
    @with_session
    def load(session, x):
        return session, x

    @with_session
    def page(session, *, x, n=1):
        return session, x

    assert bound(load, 5) == {"*args": (5,)}
    assert bound(load, x=5) == {"**kwargs": {"x": 5}}
    assert bound(page, x=5) == {"**kwargs": {"x": 5}}
    cached = perdure.cached("memory:")(load)
    assert cached(5) == cached(5) == ("session", 5)
    assert cached(6) == ("session", 6)
    assert cached.cache.stats().misses == 2


def test_what_only_the_wrapper_knows_stands_beside_the_rest() -> None:
    f = forceable(plain)
    assert bound(f, 1, force=True) == bound(f, x=1, force=True) == {"x": 1, "**kwargs": {"force": True}}
    binding = binding_of(f, ("force",))
    assert binding.bind((1,), {"force": True}) == binding.bind((1,), {})


def test_a_wrapper_with_parameters_of_its_own_is_bound_by_them() -> None:
    @functools.wraps(plain)
    def wrapper(x, n=2):
        return plain(x, n)

    assert Binding(wrapper).bind((10,), {}) == Binding(wrapper).bind((10, 2), {}) != Binding(wrapper).bind((10, 1), {})
    assert isinstance(binding_of(wrapper), Binding)
    cached = perdure.cached("memory:")(wrapper)
    assert [cached(1), cached(1, 1)] == [(1, 2), (1, 1)]


def test_errors_are_those_of_the_function_that_is_called() -> None:
    def only_positional(*args):
        return plain(*args)

    f = functools.wraps(plain)(only_positional)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        bound(f, x=1)
    assert bound(f, 1) == {"x": 1}
    cached = perdure.cached("memory:")(timed(plain))
    with pytest.raises(TypeError, match=r"plain\(\) missing 1 required positional argument: 'x'"):
        cached()
    with pytest.raises(TypeError, match=r"plain\(\) got multiple values for argument 'x'"):
        cached(1, x=1)


def passing_the_first(function):
    @functools.wraps(function)
    def wrapper(x, *args, **kwargs):
        return x, function(x, *args, **kwargs)

    return wrapper


def keeping_the_first(function):
    @functools.wraps(function)
    def wrapper(y, *args, z=9, **kwargs):
        return y, z, function(*args, **kwargs)

    return wrapper


def with_a_default(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        kwargs.setdefault("n", 77)
        return function(*args, **kwargs)

    return wrapper


def optional(session, x=0, n=1):
    return session, x, n


def all_kinds(x, /, *rest, n=1, **more):
    return x, rest, n, sorted(more.items())


def of_many_names(z=0, y=0, x=0, n=0):
    return z, y, x, n


def collecting(*args, **kwargs):
    return args, sorted(kwargs.items())


DECORATORS = [timed, retried, with_session, forceable, passing_the_first, keeping_the_first, with_a_default]
KEYWORDS = [
    (), ("x",), ("n",), ("z",), ("y",), ("x", "n"), ("n", "x"), ("session",), ("force", "x"), ("y", "z", "x"), ("args",),
    ("retries", "kwargs"),
]  # fmt: skip


@pytest.mark.parametrize("inner", [plain, optional, all_kinds, of_many_names, collecting])
@pytest.mark.parametrize("depth", [1, 2])
def test_calls_that_count_as_one_return_the_same(inner, depth) -> None:
    for decorators in product(DECORATORS, repeat=depth):
        function = inner
        for decorator in decorators:
            function = decorator(function)
        binding = binding_of(function)
        found: dict = {}
        for count, names in product(range(4), KEYWORDS):
            args, kwargs = tuple(range(1, count + 1)), {name: at for at, name in enumerate(names, 5)}
            try:
                returned = function(*args, **kwargs)
            except TypeError:
                continue
            bound = binding.bind(args, kwargs)
            found_key = digest(bound[1], bound[0]) if isinstance(binding, NestedBinding) else digest(bound, binding.names)
            assert found.setdefault(found_key, returned) == returned, (decorators, args, kwargs)


def test_parameters_of_one_name_in_several_layers_are_kept_apart() -> None:
    def f(retries=None, x=None):
        return retries, x

    wrapped = timed(retried(f))
    assert bound(wrapped, retries=5, x=1) == {"retries": 5, "x": 1}
    assert bound(wrapped, 5, 1) == {"retries@2": 5, "x": 1}


def test_defaults_without_a_key_count_as_defaults_below_a_wrapper_too() -> None:
    @timed
    def get(name, default=MISSING):
        return name, default is MISSING

    assert key(get, "a", MISSING) == key(get, name="a", default=MISSING) != key(get, "a")
    with pytest.raises(UsageTypeError, match="argument 'default' is of type object"):
        key(get, "a", object())
    cached = perdure.cached("memory:")(get)
    assert cached("a") == cached("a", MISSING) == ["a", True] or cached("a") == ("a", True)


# ------------------------------------------------------------------------------------------------------------- methods


class Shop:
    def __init__(self, city):
        self.city = city

    @timed
    def passing(self, day, n=1):
        return self.city, day, n

    @of_a_method
    def own(self, day, n=1):
        return self.city, day, n

    @of_an_instance
    def instance(self, day, n=1):
        return self.city, day, n

    @with_session
    def swapped(self, session, day):
        return self, session, day

    @timed
    @of_a_method
    @retried
    def thrice(self, day, n=1):
        return self.city, day, n


@pytest.mark.parametrize("method", [Shop.passing, Shop.own, Shop.instance, Shop.thrice])
def test_the_object_of_a_method_counts_as_such_below_wrappers(method) -> None:
    rome = key(method, Shop("Rome"), "monday")
    assert rome == key(method, Shop("Rome"), day="monday") != key(method, Shop("Turin"), "monday")
    assert rome == key(MethodType(method, Shop("Rome")), "monday")
    assert rome != key(method, Shop("Rome"), "monday", 1)
    ignored = keys_of(method, None, ("self", "instance") if method is Shop.instance else ("self",), None).digest
    assert ignored((Shop("Rome"), "monday"), {}) == ignored((Shop("Turin"),), {"day": "monday"})
    with pytest.raises(UsageTypeError, match="argument 'day' is of type"):
        key(method, Shop("Rome"), Shop("Turin"))


def test_the_object_counts_as_such_where_the_rest_does_not_fit() -> None:
    assert key(Shop.swapped, Shop("Rome"), 1) == key(Shop.swapped, Shop("Rome"), 1) != key(Shop.swapped, Shop("Turin"), 1)
    with pytest.raises(UsageTypeError, match=r"argument '\*args', at \[0\],"):
        key(Shop.swapped, Shop("Rome"), Shop("Turin"))
    ignored = keys_of(Shop.swapped, None, ("self",), None).digest
    assert ignored((Shop("Rome"), 1), {}) == ignored((Shop("Turin"), 1), {}) != ignored((Shop("Rome"), 2), {})


class Node:
    def __init__(this, v):  # noqa: N805
        this.v = v

    def f(this):  # noqa: N805
        return this.v


def test_a_first_parameter_of_another_name_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageTypeError, match=r"argument 'this' is of type .*only a first parameter called self or cls"):
        key(Node.f, Node(1))


# ------------------------------------------------------------------------------------------------------ other wrappers


def test_an_object_that_wraps_a_function_is_bound_by_its_call() -> None:
    f = Timed(plain)
    assert bound(f, 1) == bound(f, x=1) == {"x": 1}
    assert name_of(f) == "test_wrapped_functions.plain()"

    class Named(Timed):
        def __call__(self, x, n=2):
            return self.function(x, n)

    assert Binding(Named(plain)).bind((1,), {}) == (1, 2)


def test_what_python_or_perdure_cached_is_looked_through() -> None:
    for function in (functools.lru_cache(plain), perdure.cached("memory:")(plain)):
        binding = binding_of(function)
        assert isinstance(binding, Binding)
        assert binding.bind((1,), {}) == (1, 1)
    assert bound(timed(functools.cache(plain)), 1) == {"x": 1}


def test_a_declared_signature_counts_but_not_one_that_was_copied() -> None:
    def inner(session, x):
        return session, x

    inner.__signature__ = inspect.signature(inner)
    assert bound(with_session(inner), 5) == {"*args": (5,)}
    declared = with_session(inner)
    declared.__signature__ = inspect.signature(lambda x, n=1: None)
    assert Binding(declared).bind((5,), {}) == (5, 1)

    copied = Timed(inner)
    assert bound(copied, 5) == {"*args": (5,)}


def test_a_static_method_and_something_in_c_may_be_inside() -> None:
    assert bound(timed(staticmethod(plain)), 1) == {"x": 1}
    assert name_of(timed(staticmethod(plain)), "code") == name_of(plain, "code")
    assert bound(timed(divmod), 7, 2) == {"x": 7, "y": 2}
    assert Binding(timed(max)).bind((7, 2), {}) == ((7, 2), None)
    assert isinstance(binding_of(timed(max)), Binding)


def test_a_partial_of_a_wrapper_is_the_wrapper_with_all_the_arguments() -> None:
    assert key(functools.partial(timed(plain), 1), n=2) == key(timed(plain), 1, 2)
    assert key(functools.partial(retried(plain), retries=1), 1) == key(retried(plain), 1, retries=1)


# ------------------------------------------------------------------------------------------------------------- ignore


def test_parameters_of_all_layers_may_be_ignored() -> None:
    @retried
    def f(x, log=None, **more):
        return x

    binding = binding_of(f, ("log", "retries", "verbose"))
    first = binding.bind((1,), {})
    for args, kwargs in [((1, "log"), {}), ((1,), {"retries": 5, "log": object()}), ((), {"x": 1, "verbose": True})]:
        assert binding.bind(args, kwargs) == first
    assert binding.bind((2,), {}) != first

    @functools.wraps(plain)
    def own(x, n=2):
        return x

    assert binding_of(own, ("n",)).bind((1,), {}) == (1,)


def test_a_name_in_ignore_that_looks_like_a_mistake_is_refused_below_wrappers_too() -> None:
    with pytest.raises(UsageError, match=r"no parameter of that name\. Did you mean 'retries'"):
        binding_of(retried(plain), ("retry",))
    with pytest.raises(UsageError, match=r"no parameter of that name\. Its parameters are 'args', 'x', 'n'"):
        binding_of(functools.wraps(plain)(lambda *args: plain(*args)), ("verbose",))


def test_captured_variables_may_be_ignored() -> None:
    def make(log, rate):
        def f(x):
            return log, x * rate

        return f

    one = keys_of(make(SimpleNamespace(a=1), 2), None, ("log",), None)
    other = keys_of(make(SimpleNamespace(a=2), 2), None, ("log",), None)
    third = keys_of(make(SimpleNamespace(a=2), 3), None, ("log",), None)
    assert one.digest((1,), {}) == other.digest((1,), {}) != third.digest((1,), {})
    with pytest.raises(UsageError, match="ignore has 'lgo', and the function has no parameter of that name"):
        keys_of(make(None, 2), None, ("lgo",), None)


def test_with_a_key_only_captured_variables_may_be_ignored() -> None:
    def make(log):
        def f(x):
            return log, x

        return f

    found = [keys_of(make(log), lambda x: x, ("log",), None).digest((1,), {}) for log in ("a", "b")]
    assert found[0] == found[1]
    for ignore in (("x",), ("log", "x"), ("nothing",), 5):
        with pytest.raises(UsageTypeError, match=r"with key=, the other arguments do not count anyway\. Leave ignore out."):
            keys_of(make("a"), lambda x: x, ignore, None)
