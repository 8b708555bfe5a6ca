"""When a stored value is good, and what is done when there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ..durations import Duration, seconds
from ..errors import UsageError, UsageTypeError

__all__ = ["Policy", "policy_of"]

LEASE: Final = 30.0
WAIT: Final = 3600.0
_DAY: Final = 86400.0
_SHORTEST_LEASE: Final = 0.1
_MOST_LEASES: Final = 10  # of our own, a claim of others is believed to last


class Policy(NamedTuple):
    """How a cache treats its values. All times are in seconds; infinity is for ever.

    Attributes:
        ttl: How long a value is good after it was stored.
        stale: How long after that it may be answered while somebody else is computing a new one.
        early: How much sooner than its end a value is computed anew, by chance and in units of the time that it takes.
        errors: Exceptions that are stored like values.
        errors_ttl: How long those are good.
        keep_if: Which values are stored; None for all.
        lock: Only one at a time computes a key, among all processes.
        lease: How long a claim is good that is not renewed.
        wait: How long to wait for somebody who keeps renewing.
        strict: Trouble with the place is raised.
        plain: Values are stored as a dict stores them, so that other readers need to know nothing of caches.
    """

    ttl: float = math.inf
    stale: float = 0.0
    early: float = 0.0
    errors: tuple[type[Exception], ...] = ()
    errors_ttl: float = 60.0
    keep_if: Callable[[Any], object] | None = None
    lock: bool = True
    lease: float = LEASE
    wait: float = WAIT
    strict: bool = False
    plain: bool = False

    def is_good(self, age: float, is_error: bool) -> bool:
        """Tell whether a value of this age, in seconds, may be answered."""
        # One that seems to come from tomorrow was stored by a clock that was wrong, and would be good for who knows how long.
        return -_DAY < age < (self.errors_ttl if is_error else self.ttl)

    def believable(self, lease: float) -> float:
        """How many seconds a claim is waited for that is not renewed: as it says itself, but anybody may have written it."""
        most = _MOST_LEASES * self.lease
        return lease if 0 <= lease <= most else most

    def is_servable(self, age: float, is_error: bool) -> bool:
        """Tell whether it may be answered while somebody else computes a new one."""
        return -_DAY < age < (self.errors_ttl if is_error else self.ttl + self.stale)


def policy_of(
    *,
    ttl: Duration | None,
    stale_ok: Duration | bool | None,
    early: float,
    errors: type[Exception] | tuple[type[Exception], ...],
    errors_ttl: Duration | None,
    keep_if: Callable[[Any], object] | None,
    lock: bool,
    lease: Duration,
    wait: Duration,
    on_error: str,
    plain: bool = False,
) -> Policy:
    """Check what a user wrote.

    Raises:
        UsageError: A duration, or another option, is malformed or cannot be.
        UsageTypeError: It is of the wrong type.
    """
    lasting = math.inf if ttl is None else seconds(ttl, "ttl")
    if on_error not in ("compute", "raise"):
        raise UsageError(f"on_error is 'compute' or 'raise', not {on_error!r:.60}")
    if not isinstance(lock, bool):
        raise UsageTypeError(f"lock is True or False, not {lock!r:.60}", hint="How long a claim is good is lease=...")
    if isinstance(early, bool) or not isinstance(early, (int, float)):
        raise UsageTypeError(f"early is a number, not {early!r:.60}", hint="1.0 is usual, 0 switches it off.")
    if not 0 <= early < math.inf:
        raise UsageError(f"early is not negative, but {early!r} is", hint="1.0 is usual, 0 switches it off.")
    if keep_if is not None and not callable(keep_if):
        raise UsageTypeError(f"keep_if is a function of the value, not {keep_if!r:.60}")
    good_for = seconds(lease, "lease")
    if not _SHORTEST_LEASE <= good_for < math.inf:
        raise UsageError(f"a lease lasts {_SHORTEST_LEASE} seconds or more, and not for ever: {lease!r:.60} cannot be one")
    patience = seconds(wait, "wait")
    return Policy(
        ttl=lasting,
        stale=_staleness(stale_ok),
        early=float(early),
        errors=_classes(errors),
        errors_ttl=min(lasting, 60.0) if errors_ttl is None else seconds(errors_ttl, "errors_ttl"),
        keep_if=keep_if,
        lock=lock,
        lease=good_for,
        wait=patience,
        strict=on_error == "raise",
        plain=plain and not early,
    )


def _staleness(stale_ok: Duration | bool | None) -> float:
    if stale_ok is None or stale_ok is False:
        return 0.0
    return math.inf if stale_ok is True else seconds(stale_ok, "stale_ok")


def _classes(errors: Any) -> tuple[type[Exception], ...]:
    given = errors if isinstance(errors, tuple) else tuple(errors) if isinstance(errors, (list, set, frozenset)) else (errors,)
    for cls in given:
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise UsageTypeError(f"errors are classes of exceptions, not {cls!r:.60}", hint="Such as errors=(LookupError,).")
    return given
