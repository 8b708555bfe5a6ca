"""What caches counted, kept in their place hour by hour, so that `perdure cache URL` can show what all processes did.

One record for each function and day, under `stats()/FUNCTION/DAY`, is a note (`perdure.codecs.entry`) of JSON, such as
`{"version": 1, "hours": {"13": {"hits": 5, "misses": 2}}}`. Days and hours are in UTC. Every process adds what it counted once
a minute and when it ends, by compare-and-swap.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple

from .. import pulse
from ..codecs.entry import read_note, write_note
from ..errors import NotFoundError, PerdureError, PreconditionError, UnavailableError
from ..protocol import ABSENT, Backend, Condition
from .stats import Counts, Stats

__all__ = ["KEPT", "Hour", "Recorder", "read_hours"]

_log = logging.getLogger("perdure.caching")

KEPT: Final = ("hits", "misses", "stale", "waits", "errors", "bytes_read", "bytes_written", "saved")
_PREFIX: Final = "stats()/"
_EVERY: Final = 60.0
_DAYS: Final = 30  # what is older goes
_ATTEMPTS: Final = 5
_LARGEST: Final = 1 << 20
_AT_ONCE: Final = 100

_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_recorders):
        recorder.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _last_words() -> None:
    for recorder in list(_recorders):
        recorder.write()


class Hour(NamedTuple):
    """What was counted of a function in an hour.

    Attributes:
        function: The first segment of its keys.
        start: When the hour began, in UTC.
        counts: The numbers, by their names in `Stats`; absent ones are 0.
    """

    function: str
    start: datetime
    counts: Mapping[str, float]


class Recorder:
    """Adds what one function of this process counted to the records in its place.

    Trouble with the place is logged and nothing else: the numbers go along with the next ones.

    Args:
        backend: The place.
        prefix: What all keys begin with.
        function: The first segment of its keys.
        counts: What is counted.
    """

    def __init__(self, backend: Backend, prefix: str, function: str, counts: Counts) -> None:
        self._backend = backend
        self._prefix = f"{prefix}{_PREFIX}{function}/"
        self._counts = counts
        self.begin_anew()
        _recorders.add(self)

    def begin_anew(self) -> None:
        """Begin at nothing, as a forked child does."""
        self._lock = threading.Lock()
        self._written: dict[str, float] = dict.fromkeys(KEPT, 0)
        self._beat: pulse.Beat | None = None

    def start(self) -> None:
        """See to it that numbers are written now and then. Cheap when that was done."""
        if self._beat is None:
            reference = weakref.ref(self)

            def write() -> bool:
                recorder = reference()
                if recorder is None:
                    return False
                recorder.write()
                return True

            try:
                self._beat = pulse.every(_EVERY, write, name="statistics of a cache")
            except UnavailableError as error:
                _log.debug("statistics are written at the end only: %s", error)

    def write(self) -> None:
        """Add what was counted since the last time to the record of this hour."""
        if not self._lock.acquire(blocking=False):
            return  # somebody is at it
        try:
            now: Stats = self._counts.read()
            news = {name: getattr(now, name) - self._written[name] for name in KEPT}
            if any(amount < 0 for amount in news.values()):
                news = {name: getattr(now, name) for name in KEPT}  # they were reset
            if not any(news.values()):
                return
            if self._add(datetime.now(UTC), news):
                self._written = {name: getattr(now, name) for name in KEPT}
        except PerdureError as error:
            _log.debug("statistics of a cache could not be written: %s", error)
        finally:
            self._lock.release()

    def _add(self, now: datetime, news: Mapping[str, float]) -> bool:
        key = self._prefix + now.date().isoformat()
        for _ in range(_ATTEMPTS):
            seen: Condition
            try:
                blob = self._backend.get(key)
            except NotFoundError:
                hours, seen = {}, ABSENT
            else:
                hours, seen = _read(blob.data), blob.etag
            hour = hours.setdefault(str(now.hour), {})
            for name, amount in news.items():
                if amount:
                    hour[name] = round(hour.get(name, 0) + amount, 3)
            try:
                self._backend.put(key, write_note(json.dumps({"version": 1, "hours": hours}).encode()), if_match=seen)
            except PreconditionError:
                continue
            if seen is ABSENT:
                self._remove_old(now.date())
            return True
        return False

    def _remove_old(self, today: date) -> None:
        first = self._prefix + (today - timedelta(days=_DAYS)).isoformat()
        self._backend.delete_many([key for key in self._backend.keys(self._prefix) if key < first])


def read_hours(backend: Backend, prefix: str = "", since: date | None = None) -> Iterator[Hour]:
    """What was counted in a place, in no particular order. Records that cannot be read are left out, and logged.

    Args:
        backend: The place.
        prefix: What all keys of its caches begin with.
        since: The first day that is wanted, in UTC; None for all.

    Raises:
        BackendError: The place failed.
    """
    start = f"{prefix}{_PREFIX}"
    first = "" if since is None else since.isoformat()
    for page in _pages(key for key in backend.keys(start) if key.rpartition("/")[2] >= first):
        for key, blob in backend.get_many(page).items():
            function, _, day = key[len(start) :].rpartition("/")
            try:
                began = datetime.fromisoformat(day).replace(tzinfo=UTC)
            except ValueError as error:
                _log.info("%s in %s is no record of statistics: %s", key, backend.place, error)
                continue
            for hour, counts in _read(blob.data).items():
                yield Hour(function, began + timedelta(hours=int(hour)), counts)


def _pages(keys: Iterator[str]) -> Iterator[list[str]]:
    while page := list(islice(keys, _AT_ONCE)):
        yield page


def _read(data: bytes) -> dict[str, dict[str, float]]:
    """The hours in a record; none where it is not one of ours, which is then replaced."""
    try:
        note = read_note(data)
        if note is None or len(note) > _LARGEST:
            return {}
        record = json.loads(note)
        if record["version"] != 1:
            return {}
        return {
            str(int(hour)): {name: counts[name] for name in KEPT if _is_amount(counts.get(name))}
            for hour, counts in record["hours"].items()
            if 0 <= int(hour) < 24
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_amount(number: object) -> bool:
    return isinstance(number, (int, float)) and 0 <= number < 1e18  # what adds up to more was not counted by anybody
