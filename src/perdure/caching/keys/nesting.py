"""Which argument is which where functions wrap each other, as decorators make them.

A wrapper has parameters of its own. What it only collects (`*args, **kwargs`) is named by the function inside, if it fits
there. That is no more than a name: what the one inside really gets, nobody but the wrapper knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from typing import Any

from ...errors import UsageError
from .binding import (
    OBJECT,
    Binding,
    checked_names,
    collecting_names,
    positional_names,
    signature_of,
    stands_for,
    untold,
)
from .targets import target_of, telling

__all__ = ["NestedBinding", "binding_of"]


def binding_of(
    function: Callable[..., Any], ignore: Collection[str] | None = (), captured: Collection[str] = ()
) -> Binding | NestedBinding:
    """Find out how the arguments of a function are to be named.

    Args:
        function: What is called: a function, or what `target_of` sees through.
        ignore: The names that do not count: of parameters of the function, or of those that it wraps, or of what is captured.
        captured: The names of the variables that they capture.

    Raises:
        UsageError, UsageTypeError: As of `Binding`.
    """
    outermost, *inner = telling(target_of(function).function)
    signatures = [signature_of(outermost)]
    for each in inner:
        try:
            signatures.append(signature_of(each))
        except UsageError:  # what it gets has no names
            break
    names = [*dict.fromkeys(name for signature in signatures for name in signature.parameters)]
    deep = next((at for at, each in enumerate(signatures) if not any(collecting_names(each))), len(signatures) - 1)
    if not deep:
        return Binding(function, ignore, [*names, *captured])
    collecting = [bool(collecting_names(each)[1]) for each in signatures]
    ignored = checked_names(ignore, names, captured, collecting[deep], hidden=any(collecting[:deep]))
    return NestedBinding(function, [*zip(inner, signatures[1:], strict=False)][:deep], ignored)


class NestedBinding:
    """The same for a function that wraps others and collects arguments for them, as decorators make it.

    Its own parameters are bound first. What it collects is named by the function that it wraps, if it fits there, so that
    `f(1)` and `f(x=1)` stay one call. If not, it counts as it is: a wrapper may pass on more than it gets, or less. For the
    same reason no defaults are filled in but its own.

    Args:
        function: What is called.
        wrapped: What it wraps, from the outside in: functions and their signatures. All but the last one collect as well.
        ignored: The names that do not count, of parameters or of arguments that are collected.

    Attributes:
        instance: As of `Binding`.
        keyless: That of the last one.

    Cost: as of `Binding`, for each function. To bind a call takes about 3 µs.
    """

    __slots__ = (
        "_first_at", "_ignored", "_kept", "_outer", "_places", "_takes_anything", "_unnamed", "_wrapped", "instance", "keyless",
    )  # fmt: skip

    def __init__(
        self, function: Callable[..., Any], wrapped: list[tuple[Any, inspect.Signature]], ignored: frozenset[str]
    ) -> None:
        target = target_of(function)
        signature = signature_of(telling(target.function)[0])
        self._ignored = ignored
        self._outer = Binding(function)
        names = self._outer.names
        args, kwargs = collecting_names(signature)
        self._places = [names.index(name) if name else None for name in (args, kwargs)]
        self._takes_anything = len(names) == 2 and None not in self._places and not (target.args or target.kwargs)
        # What arguments are called that nobody has a name for. No parameter can be called like that.
        self._unnamed = [None if args in ignored else f"*{args}", None if kwargs in ignored else f"**{kwargs}"]
        self._kept = [(at, name) for at, name in enumerate(names) if name not in ignored and at not in self._places]
        lead = own = positional_names(signature)
        used: set[str | None] = {*names, None} - {args, kwargs}
        self._wrapped: list[_Wrapped] = []
        for level, (each, inner) in enumerate(wrapped, 1):
            last = level == len(wrapped)
            self._wrapped.append(_Wrapped(each, inner, lead, used, ignored, level, self._unnamed[1], last=last))
            lead = positional_names(inner) + lead[len(positional_names(inner)) :]
            used |= {*inner.parameters} - {*collecting_names(inner)}
        self.keyless = self._wrapped[-1].keyless
        # The object of a method is the first argument: of this function, or of the first one inside that has a name for it.
        is_method = target.bound or any(names[0] in OBJECT for names in (own, lead) if names)
        naming = next((at for at, each in enumerate(self._wrapped) if each.positional), -1)
        self._first_at = naming if is_method and not own else -1
        first = own[0] if own else self._wrapped[naming].positional[0] if naming >= 0 else None
        self.instance = first if is_method and first not in ignored else None

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Return names, and for each of them a value.

        Args:
            args: The positional arguments of the call.
            kwargs: The others.

        Raises:
            TypeError: The function that is called, the outermost one, cannot be called like this.
        """
        found: dict[str, Any] = {}
        left = kwargs
        if not self._takes_anything:
            bound = self._outer.bind(args, kwargs)
            found = {name: bound[at] for at, name in self._kept}
            more, named = [None if at is None else bound[at] for at in self._places]
            args, left = more or (), named or {}
        names = self._unnamed
        for at, each in enumerate(self._wrapped):
            taken = each.take(args, left)
            if taken is None:
                if args and at <= self._first_at:
                    if self.instance is not None:
                        found[self.instance] = args[0]
                    args = args[1:]
                break
            for name, label in each.labels:
                if name in taken:
                    found[label] = taken[name]
            args = args[len(each.positional) :]
            if left:
                left = {name: value for name, value in left.items() if name not in each.keywords}
        else:
            names = self._wrapped[-1].collecting
        if args and names[0]:
            found[names[0]] = args
        if left and names[1]:
            left = {name: value for name, value in left.items() if name not in self._ignored}
            if left:
                found[names[1]] = left
        return tuple(found), tuple(found.values())


class _Wrapped:
    """A function inside of another one that collects arguments for it.

    Args:
        lead: The parameters of those around it that get the first positional arguments, and probably pass them on.
        used: The names that are given to arguments already.
        level: How far inside it is.
        unnamed: What arguments are called that have no name here.

    Attributes:
        positional: The parameters that get the positional arguments.
        keywords: Those that can be given by name.
        collecting: What arguments are called that are left, if it is the last one: two names; None for what does not count.
        labels: Those that count, and what they are called: by their name, unless that is used already.
        keyless: As of `Binding`.
    """

    __slots__ = (
        "_args", "_kwargs", "_last", "_required", "_stands", "collecting", "keyless", "keywords", "labels", "positional",
    )  # fmt: skip

    def __init__(
        self,
        function: Any,
        signature: inspect.Signature,
        lead: list[str],
        used: set[str | None],
        ignored: frozenset[str],
        level: int,
        unnamed: str | None,
        *,
        last: bool,
    ) -> None:
        fixed = positional_names(signature)
        passed = 0
        while passed < min(len(lead), len(fixed)) and (lead[passed] == fixed[passed] or (not passed and fixed[0] in OBJECT)):
            passed += 1
        self.positional = fixed[passed:]
        parameters = [signature.parameters[name] for name in self.positional]
        parameters += [each for each in signature.parameters.values() if each.kind is Parameter.KEYWORD_ONLY]
        counting = [each for each in parameters if each.name not in ignored]
        self.keywords = frozenset(each.name for each in parameters if each.kind is not Parameter.POSITIONAL_ONLY)
        self.labels = [(each.name, f"{each.name}@{level}" if each.name in used else each.name) for each in counting]
        self._required = frozenset(each.name for each in parameters if each.default is Parameter.empty) - used
        self._args, self._kwargs = collecting_names(signature)
        self._last = last
        names = self._args, self._kwargs or unnamed
        self.collecting = [None if name in ignored else name for name in names]
        stands = stands_for(function, counting, last)
        self._stands = [(name, *stand) for name, stand in stands.items()]
        self.keyless = untold(stands)

    def take(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments that it has names for; None if what it gets does not fit."""
        if len(args) > len(self.positional) and not self._args:
            return None
        taken = dict(zip(self.positional, args))  # noqa: B905  # of the rest it is known that it fits
        for name, value in kwargs.items():
            if name in self.keywords:
                if name in taken:
                    return None
                taken[name] = value
            elif not (self._kwargs or self._last):  # the wrapper of the last one may take it for itself
                return None
        for name, default, stand in self._stands:
            if taken.get(name) is default:
                taken[name] = stand
        return taken if self._required <= taken.keys() else None
