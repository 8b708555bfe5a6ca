"""The values of a cache: where they are, which of them may be answered, and what is wrong with the others."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from enum import Enum
from struct import Struct
from time import monotonic, time
from typing import Any, Final, NamedTuple

from ..codecs.chain import Chain
from ..codecs.entry import COST, PLAIN, START, Entry, read_entry
from ..errors import (
    BackendError,
    CodecError,
    IntegrityError,
    NotFoundError,
    NotModified,
    PolicyError,
    UnavailableError,
    UntrustedError,
)
from ..locks.clock import Watched
from ..protocol import ABSENT, Backend, Blob, Condition
from .failures import failure_in
from .flights import Flights, Outcome
from .policy import Policy
from .stats import Counts
from .warning import warn

__all__ = ["EARLY", "MISS", "Entries", "Found", "PATIENCE", "Miss", "warn_without"]

_log = logging.getLogger("perdure.caching")
_DAY: Final = 86400.0
_WRONG: Final = 600.0  # seconds by which clocks are believed to differ at most, where more than a delay depends on it
_MOST_WATCHED: Final = 1000
_cost = Struct("<f").unpack_from
PATIENCE: Final = 5.0
"""Seconds for which a place that cannot be reached is not asked again."""


class Miss(Enum):
    """Why there is no answer."""

    ABSENT = "there is nothing"
    MISS = "there is no good value"
    EARLY = "there is one, and it is our turn to compute it anew"
    FAILED = "the place failed"


MISS: Final = Miss.MISS
_NOTHING: Final = Miss.ABSENT
_FAILED: Final = Miss.FAILED
EARLY: Final = Miss.EARLY


class Found(NamedTuple):
    """What is under a key.

    Attributes:
        etag: Its version, or `ABSENT`; None where it is so damaged that it has none.
        entry: What it says; None where it is absent or cannot be read.
        stored: When the value was stored, in seconds since the epoch.
        written: When the entry was.
    """

    etag: Condition
    entry: Entry | None = None
    stored: float = 0.0
    written: float = 0.0


class Entries:
    """The values of a cache under the keys of a backend. Safe for threads and forked children.

    Args:
        near: Where values are read and written: the backend, or one over it that keeps copies.
        far: The backend itself, where claims are.
        encode: Turns a value into bytes.
        decode: Turns bytes into a value.
        policy: When values are good.
        counts: Where to count.
        name: Whose values these are, in messages.
        errors_chain: How exceptions are stored.
        flights: What is on the way, where others use the same keys.
    """

    def __init__(
        self,
        near: Backend,
        far: Backend,
        encode: Callable[[Any, str], bytes],
        decode: Callable[[bytes, str], Any],
        policy: Policy,
        counts: Counts,
        name: str,
        errors_chain: Chain,
        flights: Flights | None = None,
    ) -> None:
        self.near, self.far = near, far
        self.encode, self.decode = encode, decode
        self.policy = policy
        self.counts = counts
        self.name = name
        self.errors_chain = errors_chain
        self.flights = flights or Flights()
        self._get = near.get
        self._forget: Callable[[str], object] = getattr(near, "forget", _nothing)
        self._at_hand: Callable[[str], Blob | None] = getattr(near, "at_hand", _nothing)
        self._ttl = policy.ttl
        self._early = policy.early
        self._watched: dict[str, Watched] = {}  # claims of others
        self._said: set[type] = set()
        self._asleep_until = -math.inf

    def hit(self, path: str) -> Any:
        """The value of a key if there is a good one, else a `Miss`. Raises an exception that is stored as a value."""
        if self._asleep_until > 0 and self.is_unreachable():
            value = self.hit_at_hand(path)
            return _FAILED if value is MISS else value
        try:
            blob = self._get(path)
        except NotFoundError:
            return _NOTHING
        except CodecError as error:
            self.distrust(error, path)
            return MISS
        except BackendError as error:
            self.complain(error)
            return _FAILED
        return self._judge(blob, path)

    def hit_at_hand(self, path: str) -> Any:
        """The same where a nearer place has a copy that may be answered without a request; else `MISS`."""
        blob = self._at_hand(path)
        return MISS if blob is None else self._judge(blob, path)

    def _judge(self, blob: Blob, path: str) -> Any:
        data = blob[0]
        if not data.startswith(PLAIN):
            return self._hit_other(blob, path)
        age = time() - blob[2]
        if not -_DAY < age < self._ttl:
            return MISS
        cost = _cost(data, COST)[0]
        if self._early and self._is_early(age, cost):
            return EARLY
        try:
            value = self.decode(data[START:-4], path)
        except CodecError as error:
            self.distrust(error, path)
            return MISS
        self.counts.hit(len(data), cost)
        return value

    def _hit_other(self, blob: Blob, path: str) -> Any:
        """The same for what is not simply a value: one that a dict wrote, one that is being computed anew, an error."""
        found = self._examine(blob, path)
        entry = found.entry
        if self._early and entry is not None and entry.value is not None and not entry.token:
            age = time() - found.stored
            if self.policy.is_good(age, entry.is_error) and self._is_early(age, entry.cost):
                return EARLY
        outcome = self.answer(found, path)
        return MISS if outcome is None else self.given(outcome)

    def given(self, outcome: Outcome) -> Any:
        """The value of an outcome; raises it where it is an exception."""
        if outcome.is_error:
            raise outcome.value
        return outcome.value

    def peek(self, path: str) -> Any:
        """The value if there is a good one, else `MISS`. Counts and computes nothing, and raises nothing that is stored."""
        try:
            found = self._examine(self._get(path), path)
            entry = found.entry
            if entry is None or entry.value is None or entry.is_error:
                return MISS
            if not self.policy.is_good(time() - found.stored, is_error=False):
                return MISS
            return self.decode(entry.value, path)
        except (NotFoundError, CodecError, PolicyError):
            return MISS

    def look(self, path: str, known: Found | None = None) -> Found:
        """What is under a key now, by asking the place itself; `known` is what was there when it was last asked."""
        self._forget(path)
        etag = known.etag if known is not None and isinstance(known.etag, str) else None
        try:
            return self._examine(self._get(path, if_none_match=etag), path)
        except NotModified:
            assert known is not None
            return known
        except NotFoundError:
            return Found(ABSENT)
        except CodecError as error:
            self.distrust(error, path)
            return Found(None)

    def _examine(self, blob: Blob, path: str) -> Found:
        try:
            entry = read_entry(blob.data)
        except IntegrityError as error:
            self.distrust(error, path)
            return Found(blob.etag)
        if entry is None:
            return Found(blob.etag, Entry(blob.data), blob.modified, blob.modified)  # as a dict writes it
        return Found(blob.etag, entry, entry.stored or blob.modified, blob.modified)

    def answer(self, found: Found, path: str, *, computing: bool = False) -> Outcome | None:
        """What may be answered of what was found, None for nothing.

        Args:
            found: What is there.
            path: Under which key.
            computing: Somebody in this process is computing it anew; an entry says itself whether others are.
        """
        entry = found.entry
        if entry is None or entry.value is None:
            return None
        age = time() - found.stored
        good = self.policy.is_good(age, entry.is_error)
        if not good and not (
            self.policy.is_servable(age, entry.is_error) and (computing or (entry.token and not self._is_dead(path, found)))
        ):
            return None
        try:
            if entry.is_error:
                value: Any = failure_in(self.errors_chain, entry.value, path, self.policy.errors)
                if value is None:
                    return None
            else:
                value = self.decode(entry.value, path)
        except (CodecError, PolicyError) as error:
            self.distrust(error, path)
            return None
        self.counts.hit(len(entry.value), entry.cost)
        if not good:
            self.counts.add("stale")
        return Outcome(value, entry.value, entry.is_error)

    def silence(self, path: str, found: Found) -> float:
        """For how many seconds a claim has not changed, before the eyes of this process.

        Nobody's clock is believed, unless a claim is so old that no clock is as wrong.
        """
        assert found.entry is not None
        if time() - found.written > self.policy.believable(found.entry.lease) + _WRONG:
            return math.inf
        watched = self._watched.get(path)
        if watched is None:
            if len(self._watched) >= _MOST_WATCHED:
                self._watched.clear()
            watched = self._watched.setdefault(path, Watched())
        return watched.seen(str(found.etag))

    def _is_dead(self, path: str, found: Found) -> bool:
        assert found.entry is not None
        return self.silence(path, found) >= self.policy.believable(found.entry.lease)

    def meanwhile(self, path: str) -> Outcome | None:
        """What may be answered while somebody in this process computes the key; None where that has to be waited for."""
        if not (self.policy.stale or self._early):
            return None
        try:
            return self.answer(self._examine(self._get(path), path), path, computing=True)
        except (NotFoundError, CodecError):
            return None
        except BackendError as error:
            self.complain(error)
            return None

    def _is_early(self, age: float, cost: float) -> bool:
        """Decide by chance, which is the greater the nearer the end is and the longer the value takes to compute.

        So of many readers one computes it before it has expired for all. From A. Vattani, F. Chierichetti and K. Lowenstein,
        Optimal Probabilistic Cache Stampede Prevention, VLDB 2015.
        """
        return age - cost * self._early * math.log(1.0 - random.random()) >= self._ttl

    # ---------------------------------------------------------------------------------------------------------- trouble

    def is_unreachable(self) -> bool:
        """Whether the place could not be reached a moment ago."""
        return monotonic() < self._asleep_until

    def complain(self, error: BackendError) -> None:
        """Count that the place failed, say so once, or raise it where that was asked for."""
        self.counts.add("errors")
        if self.policy.strict:
            raise error
        if isinstance(error, UnavailableError):
            self._asleep_until = monotonic() + PATIENCE  # not every call has to wait for a time-out
        if BackendError not in self._said:
            self._said.add(BackendError)
            warn_without(self.name, error)

    def distrust(self, error: Exception, path: str) -> None:
        """Count a value that cannot be read. It is computed anew; what may be somebody's work is also said, once."""
        self.counts.add("errors")
        where = f"key {path!r} in {self.far.place}"
        _log.info("%s cannot be read and counts as absent: %s", where, error)
        if isinstance(error, UntrustedError) and UntrustedError not in self._said:
            self._said.add(UntrustedError)
            text = f"{self.name}: {error.problem} ({where}). It counts as absent and is replaced. This is said once."
            warn(text)


def warn_without(name: str, error: BackendError) -> None:
    """Say that a cache cannot be used."""
    warn(
        f"{name} goes on without its cache: {str(error).removesuffix('.')}. It is computed each time until the place works "
        "again; on_error='raise' raises instead. This is said once.",
        RuntimeWarning,
    )


def _nothing(path: str) -> None:
    """For a place without copies."""
