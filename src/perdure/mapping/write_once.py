"""`WriteOnceDict`: the first value of a key stays; later writes are ignored, and may be compared with it."""

from __future__ import annotations

from typing import Any, NoReturn, Self, TypeVar

from ..errors import NotFoundError, PolicyError, PreconditionError, UsageError
from ..protocol import ABSENT
from .core import Key
from .dict import PersiDict
from .flags import KEEP_CURRENT, KeepCurrentFlag

V = TypeVar("V")


class WriteOnceDict(PersiDict[V]):
    """An append-only dict where writing a key again is no error and changes nothing.

    For results that are computed in several places and must come out the same: with `p_consistency_checks` above 0 a later
    write is compared with the first, and a difference (of types, too: `1` is not `True`; the order of dicts and sets does
    not matter) raises `PolicyError`.

    Args:
        wrapped_dict: An append-only dict, whose place and codec this one uses; `None` is `FileDirDict(append_only=True)`.
        p_consistency_checks: How likely a later write is compared, from 0 (`None`) to 1.

    Attributes:
        consistency_checks_attempted: Comparisons by this object so far.
        consistency_checks_passed: ... that found the values equal.
        consistency_checks_failed: ... that did not.

    Raises:
        PolicyError: `wrapped_dict` is no dict of ours.
        UsageError: It is not append-only, or the probability is none.

    What the wrapped dict has besides (such as `base_dir`) is found here as well.
    """

    consistency_checks_attempted = 0
    consistency_checks_passed = 0
    consistency_checks_failed = 0

    def __init__(self, *, wrapped_dict: PersiDict[V] | None = None, p_consistency_checks: float | None = None) -> None:
        if wrapped_dict is None:
            from .family import FileDirDict

            wrapped_dict = FileDirDict(append_only=True)
        if not isinstance(wrapped_dict, PersiDict):
            raise PolicyError(f"wrapped_dict is an append-only dict of perdure, not a {type(wrapped_dict).__name__}")
        if not wrapped_dict.append_only:
            raise UsageError(
                "wrapped_dict is not append-only", place=wrapped_dict.place, hint="Give a dict that was opened as append-only."
            )
        if isinstance(p_consistency_checks, KeepCurrentFlag):
            raise UsageError("there is no probability yet that could be kept", hint="Give one from 0 to 1.")
        self._stand_for(wrapped_dict, wrapped_dict.backend)
        self.wrapped_dict = wrapped_dict
        self._p = _probability(p_consistency_checks)

    @property
    def p_consistency_checks(self) -> float:
        """How likely a later write is compared with the first. Setting `KEEP_CURRENT` leaves it."""
        return self._p

    @p_consistency_checks.setter
    def p_consistency_checks(self, value: float | KeepCurrentFlag | None) -> None:
        if value is not KEEP_CURRENT:
            self._p = _probability(value)

    def get_params(self) -> dict[str, Any]:
        return {"p_consistency_checks": self._p, "wrapped_dict": self.wrapped_dict}

    def __repr__(self) -> str:
        return f"WriteOnceDict(p_consistency_checks={self._p}, wrapped_dict={self.wrapped_dict!r})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "wrapped_dict" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wrapped_dict, name)

    def _view(self, prefix: str) -> Self:
        view = super()._view(prefix)
        view.wrapped_dict = self.wrapped_dict._view(prefix)  # noqa: SLF001
        view.consistency_checks_attempted = view.consistency_checks_passed = view.consistency_checks_failed = 0
        return view

    def _set(self, path: str, data: bytes) -> None:
        while True:
            try:
                self._put(path, data, if_match=ABSENT)
                return
            except PreconditionError:
                if not self._p or not self._is_drawn():
                    return
            try:
                first = self._get(path).data
            except NotFoundError:
                continue  # somebody deleted it through a dict that may
            self._compare(first, data, path)
            return

    def _is_drawn(self) -> bool:
        from random import random

        return self._p == 1 or random() < self._p

    def _compare(self, first: bytes, data: bytes, path: str) -> None:
        self.consistency_checks_attempted += 1
        if first == data or self._holds_same(first, data, path):
            self.consistency_checks_passed += 1
            return
        self.consistency_checks_failed += 1
        raise self._refuse("another value was written before", self._key(path), "Find out why the two differ.")

    def _holds_same(self, first: bytes, data: bytes, path: str) -> bool:
        from .sameness import same  # only those who compare need it

        return same(self._read(first, path), self._read(data, path), ordered=False)

    def _refuse(self, text: str, key: object, hint: str) -> PolicyError:
        error = PolicyError(f"this dict is write-once: {text}", key=key, place=self.place, hint=hint)
        error.policy = "write-once"
        return error

    def __delitem__(self, key: Key) -> None:
        raise self._refuse("nothing is deleted", key, "Use a new key.")

    def set_item_if(self, key: Key, **_: Any) -> Any:
        """Refused: a value that is written under a condition is not write-once. `setdefault_if` works."""
        raise self._refuse("conditional writes have no place in it", key, "Use setdefault_if, or write d[key] = value.")

    def _transforming(self, key: Key, n_retries: int | None) -> NoReturn:
        raise self._refuse("values do not change", key, "Write d[key] = value.")


def _probability(value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UsageError(f"p_consistency_checks is a number from 0 to 1, not {value!r}")
    return float(value)
