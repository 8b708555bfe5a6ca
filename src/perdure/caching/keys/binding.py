"""Which argument goes to which parameter, however a call was written: `f(1, b=2)`, `f(b=2, a=1)` and `f(1)` may be one call.

What Python does for each call, done again so that a cache can name the call. All that depends on the function alone is worked
out once; a call that gives nothing by keyword is then a concatenation of two tuples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from inspect import Parameter
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any, Final

from ...errors import UsageError, UsageTypeError
from .captures import told_as_captured
from .hashing import digest
from .layers import layers_of
from .objects import attributes_of, is_made_by_a_program, spell
from .targets import target_of, telling

__all__ = ["OBJECT", "Binding", "checked_names", "collecting_names", "positional_names", "signature_of", "stands_for", "untold"]

_MISSING: Final = object()
_ANYTHING: Final = inspect.signature(lambda *args, **kwargs: None)
OBJECT: Final = ("self", "cls")  # what a first parameter is called that gets the object whose method is called


class Binding:
    """The parameters of a function, and which of the arguments of a call they get.

    A default of which no key can be made counts as "the default", whether it is given or not.

    Safe in all threads: nothing changes after it is made.

    Args:
        function: What is called: a function, or what `target_of` sees through. If it wraps others: its own parameters.
        ignore: The names of parameters that do not count. `*args` goes by the name `"args"`. Where there is a `**kwargs`, any
            other name stands for an argument that is collected there. None is the same as nothing.
        known: Names that may stand in `ignore` as well, and are nothing to this.

    Attributes:
        keyless: Defaults of which nothing counts, by the names of their parameters.
        names: The names of what `bind` returns, in the same order.
        instance: The name of the first parameter if it is `self` or `cls`, or gets the object of a bound method or callable
            object; it is None when ignored.

    Raises:
        UsageError: `ignore` has a name that is no parameter, or it cannot be known what parameters the function has.
        UsageTypeError: It is no function, or `ignore` is not a collection of names.

    Cost: about 30 µs. To bind a call takes 0.1 µs without keywords, and about 1 µs with them; defaults are taken as they are at
    that time.
    """

    __slots__ = (
        "_args", "_collected", "_extra", "_keyword_only", "_keywords", "_kwargs", "_left_out", "_pick", "_positional",
        "_signature", "_tails", "instance", "keyless", "names",
    )  # fmt: skip

    def __init__(self, function: Callable[..., Any], ignore: Collection[str] | None = (), known: Collection[str] = ()) -> None:
        target = target_of(function)
        outermost, *wrapped = telling(target.function)
        self._args = target.args
        self._kwargs = target.kwargs
        self._signature = signature_of(outermost)
        parameters = sorted(self._signature.parameters.values(), key=lambda parameter: parameter.kind)  # which is their order
        names = [parameter.name for parameter in parameters]
        kinds = {parameter.kind for parameter in parameters}
        self._extra = Parameter.VAR_POSITIONAL in kinds
        self._collected = Parameter.VAR_KEYWORD in kinds
        self._positional = [_spelled(p) for p in parameters if p.kind <= Parameter.POSITIONAL_OR_KEYWORD]
        self._keyword_only = [_spelled(p) for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
        self._keywords = frozenset(name for name, by_keyword, _ in (*self._positional, *self._keyword_only) if by_keyword)
        self._tails = self._all_tails()
        ignored = checked_names(ignore, names, known, self._collected)
        self._left_out = ignored - {*names}
        kept = [at for at, name in enumerate(names) if name not in ignored]
        self.names = tuple(names[at] for at in kept)
        self._pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
        if len(kept) < len(names):
            self._pick = itemgetter(*kept) if len(kept) > 1 else lambda bound: tuple(bound[at] for at in kept)
        stands = stands_for(outermost, (parameters[at] for at in kept), not wrapped)
        self.keyless = untold(stands)
        if stands:
            self._pick = _replacing([(self.names.index(name), *stands[name]) for name in stands], self._pick)
        first = names[0] if self._positional else None
        self.instance = first if first not in ignored and (target.bound or first in OBJECT) else None

    def _all_tails(self) -> list[tuple[Any, ...] | None]:
        """For each number of positional arguments, what comes after them in a call without keywords; None if some lack."""
        end: list[Any] = [None] if self._extra else []
        end += [default for _, _, default in self._keyword_only]
        end += [None] if self._collected else []
        tails = ((*(default for _, _, default in self._positional[at:]), *end) for at in range(len(self._positional) + 1))
        return [None if any(default is _MISSING for default in tail) else tail for tail in tails]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return one value for each of `names`: of `*args` a tuple, of `**kwargs` a dict, and None where these are empty.

        Args:
            args: The positional arguments of the call.
            kwargs: The others.

        Raises:
            TypeError: The function cannot be called like this.
        """
        if self._args:
            args = self._args + args
        tails = self._tails
        if not kwargs and not self._kwargs and len(args) < len(tails):
            tail = tails[len(args)]
            if tail is not None:
                bound = args + tail
                return bound if self._pick is None else self._pick(bound)
        return self._bind(args, kwargs)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        left = {**self._kwargs, **kwargs}
        fixed = len(self._positional)
        bound = list(args[:fixed])
        fits = True
        for name, by_keyword, default in self._positional[len(bound) :]:
            value = left.pop(name, default) if by_keyword else default
            fits = fits and value is not _MISSING
            bound.append(value)
        if self._extra:
            bound.append(args[fixed:] or None)
        elif len(args) > fixed:
            fits = False
        for name, _, default in self._keyword_only:
            value = left.pop(name, default)
            fits = fits and value is not _MISSING
            bound.append(value)
        # What is left must not be a parameter that a positional argument was given to already.
        if not fits or (left and not (self._collected and self._keywords.isdisjoint(left))):
            self._signature.bind(*args, **{**self._kwargs, **kwargs})
            raise TypeError(f"the arguments do not fit the parameters {self._signature}")  # should inspect be of another mind
        if self._collected:
            for name in self._left_out:
                left.pop(name, None)
            bound.append(left or None)
        return tuple(bound) if self._pick is None else self._pick(tuple(bound))


class Default:
    """Stands for the default of a parameter of which no key can be made.

    Args:
        told: What of it can be told all the same, or None.
    """

    __slots__ = ("told",)

    def __init__(self, told: Any) -> None:
        self.told = told

    def __perdure_key__(self) -> Any:
        return self.told


def stands_for(function: Any, parameters: Iterable[Parameter], innermost: bool) -> dict[str, tuple[Any, Default]]:
    """By name, the defaults of which no key can be made, and what stands for them.

    Of what one `def` makes several times, others may have other defaults. There nothing stands for an object that could matter,
    and a call that needs it is refused. But the defaults of a wrapper count by themselves.
    """
    several = innermost and "<locals>" in getattr(getattr(function, "__code__", None), "co_qualname", "")
    found: dict[str, tuple[Any, Default]] = {}
    for name, default in ((each.name, each.default) for each in parameters if each.default is not Parameter.empty):
        try:
            digest((default,))
        except UsageTypeError:
            if not several or _holds_nothing(default) or _is_known_by_name(default):
                found[name] = (default, Default(told_as_captured(default) or (_mark(default) if several else None)))
        except Exception:  # of its own code: it is raised again by each call that needs it
            pass
    return found


def _mark(value: Any) -> str | None:
    kind = type(value)
    return spell(kind) if kind is not object and _holds_nothing(value) else None


def _holds_nothing(value: Any) -> bool:
    """Tell whether it is a mark, such as `object()`, that is like any other of its class."""
    kind = type(value)
    return kind in (object, type(NotImplemented)) or (is_made_by_a_program(kind) and not attributes_of(value, kind))


def _is_known_by_name(value: Any) -> bool:
    """Tell whether it is a function that does the same wherever it is met under its name."""
    if isinstance(value, FunctionType):
        return not value.__closure__
    return isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, NoneType))


def untold(stands: dict[str, tuple[Any, Default]]) -> dict[str, Any]:
    return {name: default for name, (default, stand) in stands.items() if stand.told is None}


def _replacing(
    stands: list[tuple[int, Any, Default]], pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None
) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Put what stands for defaults into their places, after `pick`."""

    def replace(bound: tuple[Any, ...]) -> tuple[Any, ...]:
        found = [*(bound if pick is None else pick(bound))]
        for at, default, stand in stands:
            if found[at] is default:
                found[at] = stand
        return tuple(found)

    return replace


# --------------------------------------------------------------------------------------------------------- parameters


def signature_of(function: Any) -> inspect.Signature:
    """The parameters of the function itself, whatever it wraps.

    Raises:
        UsageError: It does not tell.
    """
    if isinstance(function, FunctionType) and type(function) is not FunctionType:  # it stands for one, and may do anything
        return _ANYTHING
    try:
        return inspect.signature(_without_copied_signature(function), follow_wrapped=False)
    except (ValueError, TypeError) as error:
        hint = "Write a function with parameters that calls it, and cache that."
        raise UsageError(f"{function!r:.80} does not tell what parameters it has", hint=hint) from error


def _without_copied_signature(function: Any) -> Any:
    """It, or something with its own parameters if its `__signature__` was copied by `functools.wraps` from what it wraps."""
    declared = getattr(function, "__signature__", None)
    if declared is None or not any(declared is getattr(each, "__signature__", None) for each in layers_of(function)[1:2]):
        return function
    if isinstance(function, FunctionType):
        own = FunctionType(function.__code__, function.__globals__, "", function.__defaults__, function.__closure__)
        own.__kwdefaults__ = function.__kwdefaults__
        return own
    run = getattr(type(function), "__call__", None)  # noqa: B004
    return MethodType(run, function) if isinstance(run, FunctionType) else function


def positional_names(signature: inspect.Signature) -> list[str]:
    return [name for name, each in signature.parameters.items() if each.kind <= Parameter.POSITIONAL_OR_KEYWORD]


def collecting_names(signature: inspect.Signature) -> tuple[str | None, str | None]:
    """The names of its `*args` and `**kwargs`."""
    kinds = {each.kind: name for name, each in signature.parameters.items()}
    return kinds.get(Parameter.VAR_POSITIONAL), kinds.get(Parameter.VAR_KEYWORD)


def _spelled(parameter: Parameter) -> tuple[str, bool, Any]:
    """Its name, whether it may be given by that, and its default."""
    default = _MISSING if parameter.default is Parameter.empty else parameter.default
    return parameter.name, parameter.kind is not Parameter.POSITIONAL_ONLY, default


def checked_names(
    ignore: Collection[str] | None, names: Collection[str], known: Collection[str], collected: bool, hidden: bool = False
) -> frozenset[str]:
    """The names in `ignore`.

    Args:
        names: The parameters.
        known: What else may be named.
        collected: Any other name may be that of an argument.
        hidden: So it may, but one that resembles a parameter's is a mistake.

    Raises:
        UsageError, UsageTypeError: As of `Binding`.
    """
    if ignore is None:
        return frozenset()
    if isinstance(ignore, str) or not isinstance(ignore, Collection) or not all(isinstance(name, str) for name in ignore):
        raise UsageTypeError(f"ignore takes a collection of names, not {ignore!r}", hint='Such as ignore=("verbose",).')
    ignored = frozenset(name.lstrip("*") for name in ignore)
    for name in () if collected else sorted(ignored - {*names, *known}):
        near = get_close_matches(name, [*names, *known], 1, 0.5)
        if hidden and not near:
            continue
        hint = f"Its parameters are {', '.join(map(repr, names))}." if names else "It has no parameters."
        hint = f"Did you mean {near[0]!r}?" if near else hint
        raise UsageError(f"ignore has {name!r}, and the function has no parameter of that name", hint=hint)
    return ignored
