"""A number that processes and machines count with. No count is lost, and none is made twice."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Any, SupportsIndex

from ..errors import PerdureError, PreconditionError, UnknownOutcomeError, UsageTypeError
from ..protocol import Condition
from .clock import fraction
from .records import Name, Records, Where, nonce
from .slots import LOST_ANSWERS

_RECENT = 32  # changes whose nonces are remembered, so that who missed the answer to one finds out what became of it
_EXACT = 1 << 53  # in JSON a number up to here is one to everybody; larger ones are text, in hexadecimal


class Counter:
    """An integer of any size in any place, changed by compare-and-swap: `Counter("s3://bucket/state", "visits").add()`.

    Safe for threads, processes, forked children and machines; what is changed at the same time is changed one after the
    other. When the answer to a write is lost, the record tells whether it took effect: it holds the nonces of the last 32
    changes. Starts at 0. Pickles where its place does.

    Args:
        where: A URL, a path, a backend or a dict of perdure. Backend and dict are not closed with this. The record is the key
            `counters()/name` there. In a dict it would be listed with its keys though it is no value, and `perdure doctor
            --repair` would set it aside: so give counters a place of their own.
        name: A key, text or a tuple of texts.

    Attributes:
        name: As given.

    Raises:
        InvalidKeyError: The name cannot be a key.
        UsageError: `where` is wrong, or forgets by itself: numbers would be given twice.

    Cost: a read and a write for each change, and both again each time that another was first.
    """

    def __init__(self, where: Where, name: Name) -> None:
        self.name = name
        self._records = Records("counter", where, name)

    @property
    def value(self) -> int:
        """The number now; 0 where nobody has changed it yet.

        Raises:
            IntegrityError, CodecError: What is there is no counter, or of a later format.
            BackendError: As the place says.
        """
        return self._look()[0].value

    def add(self, n: SupportsIndex = 1) -> int:
        """Add `n`, which may be negative, and return the new number, which nobody else gets for `n=1`.

        Raises:
            UsageTypeError: It is no whole number.
            UnknownOutcomeError: It cannot be told whether it was added: the answer was lost, and then the place was out of
                reach or 32 others were faster. It was not added twice.
            IntegrityError, CodecError, BackendError: Nothing was changed.
        """
        step = _whole(n)
        return self._change(lambda value: value + step)[1]

    def swap(self, value: SupportsIndex) -> int:
        """Set the number, and return the one before. Raises as `add`."""
        new = _whole(value)
        return self._change(lambda _: new)[0]

    def set(self, value: SupportsIndex) -> None:
        """Set the number. Raises as `add`."""
        self.swap(value)

    def close(self) -> None:
        """Close the place, if it was opened here."""
        self._records.close()

    def __repr__(self) -> str:
        return f"<Counter {self.name!r} in {self._records.place}>"

    def _change(self, change: Callable[[int], int]) -> tuple[int, int]:
        """Swap the number for another; returns both."""
        mine = nonce()
        lost: UnknownOutcomeError | None = None
        lost_answers = losses = 0
        before = after = changes = 0
        tried: Condition = None
        while True:
            began = time.monotonic()
            try:
                count, etag = self._look()
            except PerdureError as error:
                if lost is not None:
                    raise lost from error
                raise
            if lost is not None and etag != tried:
                took_effect = count.made(changes, mine)
                if took_effect:
                    return before, after
                if took_effect is None:
                    raise lost
                lost = None  # the version that it was to replace is gone, so it never will
            elif lost is not None and lost_answers >= LOST_ANSWERS:
                raise lost
            before, after, changes, tried = count.value, change(count.value), count.changes + 1, etag
            new = Count(after, changes, (*count.recent, mine)[-_RECENT:])
            try:
                self._records.put(new.spelled(), tried)
                return before, after
            except PreconditionError:
                losses += 1
                if losses > 1:  # a crowd: step aside for some of its turns
                    time.sleep(fraction() * (time.monotonic() - began) * min(losses, 8))
            except UnknownOutcomeError as error:
                lost = error
                lost_answers += 1

    def _look(self) -> tuple[Count, Condition]:
        fields, etag = self._records.get()
        return (read_count(self._records, fields) if fields else Count(0, 0, ())), etag


def _whole(number: SupportsIndex) -> int:
    try:
        return operator.index(number)
    except TypeError as error:
        raise UsageTypeError(f"a counter counts in whole numbers, not in {number!r:.60}", hint="Give an int.") from error


class Count:
    """What the record of a counter says.

    Attributes:
        value: The number.
        changes: How many changes were made.
        recent: The nonces of the last ones, the newest last.
    """

    __slots__ = ("changes", "recent", "value")

    def __init__(self, value: int, changes: int, recent: tuple[str, ...]) -> None:
        self.value = value
        self.changes = changes
        self.recent = recent

    def made(self, number: int, by: str) -> bool | None:
        """Whether the change of that number was made by `by`; `None` where that was too long ago."""
        age = self.changes - number
        if age < 0:
            return False
        return self.recent[-1 - age] == by if age < len(self.recent) else None

    def spelled(self) -> dict[str, Any]:
        """As fields of a record."""
        value = self.value if -_EXACT <= self.value <= _EXACT else hex(self.value)
        return {"value": value, "changes": self.changes, "recent": self.recent}


def read_count(records: Records, fields: dict[str, Any]) -> Count:
    """What the fields of a record say. Raises `IntegrityError`."""
    value, changes, recent = fields.get("value"), fields.get("changes"), fields.get("recent")
    if isinstance(value, str):
        try:
            value = int(value, 16)  # which, unlike decimal text, may have any length
        except ValueError as error:
            raise records.unfit("its value is no number") from error
    if not (type(value) is int and type(changes) is int and isinstance(recent, list) and len(recent) <= changes):
        raise records.unfit("its fields are not those of one")
    return Count(value, changes, tuple(recent))
