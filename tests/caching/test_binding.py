"""Each call is bound as Python binds it, and told from every other."""

from __future__ import annotations

import functools
import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.caching.keys.binding import Binding
from perdure.caching.keys.hashing import digest
from perdure.errors import UsageError, UsageTypeError


def nothing():
    return ()


def plain(a, b=2):
    return a, b


def strict(a, /, b, *, c, d=4):
    return a, b, c, d


def all_kinds(a, /, b=2, *args, c=3, **kwargs):
    return a, b, args, c, kwargs


def only_keywords(*, c, d=4, **kwargs):
    return c, d, kwargs


def collecting(*args, **kwargs):
    return args, kwargs


FUNCTIONS = [nothing, plain, strict, all_kinds, only_keywords, collecting]
_values = st.integers(0, 3)
_calls = st.tuples(
    st.lists(_values, max_size=4).map(tuple), st.dictionaries(st.sampled_from(["a", "b", "c", "d", "args", "e"]), _values)
)


def by_calling(function, args, kwargs):
    """What the function itself finds in its parameters, or None where the call does not fit."""
    try:
        found = function(*args, **kwargs)
    except TypeError:
        return None
    return tuple(value if value not in ((), {}) else None for value in found)


@pytest.mark.parametrize("function", FUNCTIONS)
@given(call=_calls)
@settings(max_examples=400, deadline=None)
def test_calls_are_bound_as_python_binds_them(function, call) -> None:
    args, kwargs = call
    expected = by_calling(function, args, kwargs)
    before = dict(kwargs)
    if expected is None:
        with pytest.raises(TypeError):
            Binding(function).bind(args, kwargs)
    else:
        assert Binding(function).bind(args, kwargs) == expected
    assert kwargs == before


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_call_fits_exactly_when_the_function_takes_it(function) -> None:
    for count, names in product(range(4), [(), ("a",), ("b",), ("c",), ("b", "c"), ("c", "e"), ("args",), ("kwargs",)]):
        args, kwargs = (0,) * count, dict.fromkeys(names, 1)
        try:
            function(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError):
                Binding(function).bind(args, kwargs)
        else:
            Binding(function).bind(args, kwargs)


def test_positional_keyword_and_default_are_one_call() -> None:
    bind = Binding(plain).bind
    assert bind((1,), {}) == bind((1, 2), {}) == bind((), {"b": 2, "a": 1}) == bind((), {"a": 1}) == (1, 2)


def test_a_keyword_that_only_exists_in_kwargs_is_not_a_positional_argument() -> None:
    binding = Binding(all_kinds)
    assert binding.names == ("a", "b", "args", "c", "kwargs")
    # `a` is positional-only, so a keyword of that name is another argument.
    assert binding.bind((1,), {"a": 5}) == (1, 2, None, 3, {"a": 5})
    assert binding.bind((1, 2, 5), {}) == (1, 2, (5,), 3, None)
    assert binding.bind((1,), {"args": (5,)}) == (1, 2, None, 3, {"args": (5,)})
    with pytest.raises(TypeError, match="multiple values for argument 'b'"):
        binding.bind((1, 2), {"b": 3})


def test_errors_are_those_of_the_signature() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        Binding(plain).bind((), {})
    with pytest.raises(TypeError, match="too many positional arguments"):
        Binding(plain).bind((1, 2, 3), {})
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        Binding(plain).bind((1,), {"x": 1})


def test_a_mutable_default_is_taken_as_it_is_at_the_call() -> None:
    def function(a, seen=[]):  # noqa: B006
        return a, seen

    binding = Binding(function)
    function.__defaults__[0].append(1)
    assert binding.bind((0,), {}) == (0, [1])


def test_ignored_parameters_are_left_out() -> None:
    binding = Binding(all_kinds, ignore=("b", "args", "*kwargs"))
    assert binding.names == ("a", "c")
    assert binding.bind((1, 8, 9), {"c": 7, "x": 1}) == (1, 7) == binding.bind((1,), {"c": 7})
    assert Binding(plain, ignore=None).names == ("a", "b")
    assert Binding(plain, ignore=["a"]).bind((1,), {}) == (2,)
    assert Binding(plain, ignore={"a", "b"}).bind((1,), {}) == ()


def test_what_is_collected_can_be_ignored_by_name() -> None:
    binding = Binding(all_kinds, ignore=("verbose",))
    assert binding.bind((1,), {"verbose": True, "x": 2}) == binding.bind((1,), {"x": 2}) == (1, 2, None, 3, {"x": 2})
    assert binding.bind((1,), {"verbose": True}) == binding.bind((1,), {})


@pytest.mark.parametrize(
    ("function", "ignore", "text"),
    [
        (plain, ("bb",), "ignore has 'bb', and the function has no parameter of that name. Did you mean 'b'?"),
        (plain, ("zzzz",), "ignore has 'zzzz', and the function has no parameter of that name. Its parameters are 'a', 'b'."),
        (nothing, ("x",), "ignore has 'x', and the function has no parameter of that name. It has no parameters."),
        (plain, "ab", "ignore takes a collection of names, not 'ab'. Such as ignore=(\"verbose\",)."),
        (plain, 5, 'ignore takes a collection of names, not 5. Such as ignore=("verbose",).'),
        (plain, (1,), 'ignore takes a collection of names, not (1,). Such as ignore=("verbose",).'),
    ],
)
def test_a_wrong_name_in_ignore_is_refused(function, ignore, text) -> None:
    with pytest.raises(UsageError) as caught:
        Binding(function, ignore)
    assert str(caught.value) == text


class Model:
    rate = 2

    def run(self, x, y=1):
        return x, y

    def __call__(self, x):
        return x

    @classmethod
    def make(cls, x):
        return x

    @staticmethod
    def add(x):
        return x

    half = functools.partialmethod(run, y=5)


def test_methods_and_callable_objects_count_what_they_belong_to() -> None:
    model = Model()
    for function, found, instance in [
        (Model.run, None, "self"),
        (model.run, (model, 1, 1), "self"),
        (model, (model, 1), "self"),
        (Model.make, (Model, 1), "cls"),
        (Model.add, (1,), None),
        (Model.__dict__["add"], (1,), None),
        (model.half, (model, 1, 5), "self"),
    ]:
        binding = Binding(function)
        assert binding.instance == instance
        if found is not None:
            assert binding.bind((1,), {}) == found
    assert Binding(Model.run, ignore=("self",)).instance is None


def test_a_partial_is_its_function_with_all_the_arguments() -> None:
    assert Binding(functools.partial(plain, 1)).bind((), {"b": 3}) == Binding(plain).bind((1, 3), {})
    assert Binding(functools.partial(plain, b=5)).bind((1,), {}) == (1, 5)
    assert Binding(functools.partial(plain, b=5)).bind((1,), {"b": 6}) == (1, 6)
    assert Binding(functools.partial(functools.partial(plain, 1), b=5)).bind((), {}) == (1, 5)
    assert Binding(functools.partial(Model().run, y=2)).bind((1,), {})[1:] == (1, 2)


def test_what_python_caches_has_the_parameters_of_the_function() -> None:
    assert Binding(functools.lru_cache(plain)).bind((), {"a": 1}) == (1, 2)


MISSING = object()


def with_sentinel(a, b=MISSING, *, c=len):
    return a, b, c


def test_a_default_that_has_no_key_counts_as_the_default() -> None:
    binding = Binding(with_sentinel)
    keys = [digest(binding.bind(*call)) for call in (((1,), {}), ((1, MISSING), {}), ((), {"a": 1, "c": len, "b": MISSING}))]
    assert len(set(keys)) == 1
    assert digest(binding.bind((1, "the default"), {})) != keys[0]
    assert binding.keyless == {"b": MISSING}  # of the other one there is a name
    with pytest.raises(UsageTypeError, match="argument 'b' is of type object"):
        digest(binding.bind((1, object()), {}), binding.names)
    with pytest.raises(UsageTypeError, match="argument 'c'"):
        digest(binding.bind((1,), {"c": max}), binding.names)


def test_a_default_without_a_key_may_be_left_out() -> None:
    assert Binding(with_sentinel, ignore=("b", "c")).bind((1,), {"b": object()}) == (1,)
    assert Binding(with_sentinel, ignore=("b", "c")).keyless == {}
    assert digest(Binding(with_sentinel, ignore=("a", "b")).bind((1,), {})) == digest(
        Binding(with_sentinel, ignore=("a", "b")).bind((), {"a": 2, "c": len})
    )


def test_functions_that_one_def_makes_with_other_defaults_are_told_apart() -> None:
    class Connection:
        def __init__(self):
            self.to = "somewhere"

    class Unset:
        pass

    class Missing:
        pass

    def make(what):
        def f(x, key=what):
            return key(x)

        return Binding(f)

    def key_of(what):
        binding = make(what)
        return digest(binding.bind((1,), {}), binding.names)

    assert key_of(len) == key_of(len) != key_of(max)
    assert key_of(lambda x: x) != key_of(lambda x: -x)
    assert key_of(MISSING) != key_of(None)
    assert key_of(Unset()) == key_of(Unset()) != key_of(Missing())
    for unknown in (Connection(), [len], functools.partial(len, Connection()), lambda x: key_of):
        with pytest.raises(UsageTypeError, match="argument 'key'"):
            key_of(unknown)


def test_a_default_whose_own_code_fails_fails_where_it_is_needed() -> None:
    class Broken:
        def __perdure_key__(self):
            raise RuntimeError("no key")

    def f(x, y=Broken()):  # noqa: B008
        return x, y

    assert digest(Binding(f).bind((1, 2), {}))
    with pytest.raises(RuntimeError, match="no key"):
        digest(Binding(f).bind((1,), {}))


def test_builtins_that_tell_their_parameters_can_be_bound() -> None:
    assert Binding(math.sqrt).bind((2,), {}) == (2,)
    assert Binding(divmod).bind((7, 2), {}) == (7, 2)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (5, "only calls can be cached, and 5 cannot be called"),
        (int, "int is a class. Write a function that makes and returns such an object."),
        (
            Model.__dict__["make"],
            "a classmethod is no function. Put @classmethod above, so that what is cached is the function below it.",
        ),
        (property(plain), "a property is no function. Put @property above, so that what is cached is the function below it."),
        (Model.__dict__["half"], "a partialmethod is no function. Cache the method that it calls."),
        (
            "abc".join,
            "a method of a built-in object, on which its results depend. Write a function that calls it, and cache that.",
        ),
        (str.upper, "which has no name that lasts. Write a function that calls it, and cache that."),
        (max, "does not tell what parameters it has. Write a function with parameters that calls it, and cache that."),
    ],
)
def test_what_is_no_function_is_refused_with_the_reason(function, text) -> None:
    with pytest.raises(UsageError) as caught:
        Binding(function)
    assert text in str(caught.value)
    assert isinstance(caught.value, UsageTypeError) == (function == 5)


@pytest.mark.skipif(not hasattr(functools, "Placeholder"), reason="came with Python 3.14")
def test_a_partial_with_open_places_is_refused() -> None:
    with pytest.raises(UsageError, match="a partial with places left open"):
        Binding(functools.partial(plain, functools.Placeholder, 2))
