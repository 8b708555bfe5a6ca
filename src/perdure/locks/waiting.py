"""The way to a slot, as a series of turns: each looks, takes what is free, and else says how long to sleep before the next.

So the same steps serve a thread, which sleeps itself, and an event loop, which must not.
"""

from __future__ import annotations

import logging

from ..errors import NotAcquiredError, PerdureError, UsageError
from .clock import boot_time, fraction
from .records import Holder, Records, State, nonce, this_process
from .slots import Grip, Slots

# How much of a lease has to be left when its holder hears of it. It is renewed for the first time a third of its `ttl` later;
# if that, too, took more than a half, the lease would end before the answer came.
_LEFT = 0.5
_SHORTEST, _LONGEST = 0.001, 1.0  # seconds between two looks
_TRIES = 3  # swaps in a row, where others were first

_log = logging.getLogger("perdure.locks")


class Waiting:
    """One attempt to get a slot.

    Args:
        records: Where.
        slots: What this process knows of it; what it has watched in earlier attempts counts.
        limit: How many there are.
        ttl: Seconds.
        name: What the holder calls itself.
        timeout: Seconds to wait; negative or 0 for a single turn, infinite for no end.

    Attributes:
        grip: The slot, when there is one.
        holders: Those that were in the way at the last look.
        tried: Entries of this attempt that are, or may be, in the record.
    """

    def __init__(self, records: Records, slots: Slots, limit: int, ttl: float, name: str, timeout: float) -> None:
        self.grip: Grip | None = None
        self.holders: tuple[Holder, ...] = ()
        self._records = records
        self._slots = slots
        self._limit = limit
        self._ttl = ttl
        self._name = name
        self._timeout = timeout
        self._deadline = boot_time() + timeout
        self._first: frozenset[str] | None = None  # marks
        self._token = -1
        self._nap = _SHORTEST
        self._undecided = [None]
        self.tried: list[Grip] = []
        self._was_late = False

    def turn(self) -> float:
        """Try it.

        Returns:
            How many seconds to sleep before the next turn; 0 when it is over, with or without a `grip`. Ask `missed` then.

        Raises:
            UsageError: There are holders with another limit.
            UnknownOutcomeError, BackendError, CodecError: As the record says.
        """
        began = boot_time()
        tries = 0
        while True:
            state, etag = self._slots.look()
            self.holders, soonest = self._slots.living(state)
            out_of_time = self._was_late and boot_time() >= self._deadline
            if out_of_time or tries == _TRIES or self._is_full(state):
                break
            tries += 1
            mine = this_process(nonce(), state.token + 1, self._ttl, self._name)
            grip = Grip(mine, boot_time() + self._ttl)
            self.tried.append(grip)
            if self._slots.enter(State(mine.token, self._limit, (*self.holders, mine)), etag, grip):
                self.tried = [grip]  # what came too late before is not among the living
                self.grip = grip
                return 0.0
            self.tried.remove(grip)
        now = boot_time()
        if now >= self._deadline:
            self.withdraw()
            if state.limit != self._limit and self.holders:
                raise self._other_limit(state)
            return 0.0
        if state.token != self._token:  # it changes hands, so it may soon again
            self._token, self._nap = state.token, max(_SHORTEST, now - began)
        nap = min(self._nap, *(holder.ttl / 4 for holder in self.holders), _LONGEST) * (0.5 + fraction() / 2)
        self._nap *= 2
        return min(nap, soonest, self._deadline - now)

    def missed(self) -> bool:
        """Whether the slot came too late to be used, as its lease has lapsed or is about to.

        Then it is given up, and another turn is due: it takes the slot anew, with another token, or withdraws when time is up.
        """
        grip = self.grip
        if grip is None or grip.until - boot_time() >= _LEFT * self._ttl:
            return False
        self._slots.lose(grip, "its answer came too late")
        if not self._was_late:
            text = (
                "key %r in %s: it took %.3g s to hear of a lease of %.3g s, which is not used therefore; give it a longer ttl"
            )
            took = boot_time() - grip.until + self._ttl
            _log.warning(text, self._records.key, self._records.place, took, self._ttl)
        self._was_late = True
        self._undecided = [None]
        self.grip = None
        return True

    def withdraw(self) -> None:
        """Take out of the record what this attempt has put there. Where that fails it is logged, and lapses."""
        for grip in self.tried.copy():
            try:
                self._slots.leave(grip)
            except PerdureError as error:
                text = "key %r in %s was acquired in vain, and lapses in %.3g s: %s"
                _log.warning(text, self._records.key, self._records.place, self._ttl, error)

    def _is_full(self, state: State) -> bool:
        if self._first is None:
            self._first = frozenset(holder.mark for holder in self.holders)
        if state.limit == self._limit or not self.holders:
            return len(self.holders) >= self._limit
        if any(holder.mark not in self._first for holder in self.holders):
            raise self._other_limit(state)
        return True  # they may all be dead: the time to find out is that of waiting for a dead holder

    def _other_limit(self, state: State) -> UsageError:
        text = f"this semaphore has the limit {state.limit}, not {self._limit}, and is held by {_listing(self.holders)}"
        hint = "Use the same limit everywhere, or another name; a new limit holds as soon as nobody has a slot."
        return UsageError(text, key=self._records.key, place=self._records.place, hint=hint)

    def decide(self) -> bool:
        """Who decides what becomes of a slot: true for the first who asks, the thread that won it or who gave up waiting."""
        try:
            self._undecided.pop()  # a single step
        except IndexError:
            return False
        return True

    def in_vain(self) -> NotAcquiredError:
        """The error for a wait that ended without a slot."""
        waited = f"within {self._timeout:g} s" if self._timeout > 0 else "at once"
        who = f"; held by {_listing(self.holders)}" if self.holders else ""
        if self._was_late and not self.holders:
            late = f"the place answered so late that less than half of the lease, of {self._ttl:g} s, was left"
            text = f"not acquired {waited}; {late}"
            hint = "Use a longer ttl, many times what a request takes, or wait longer."
            return NotAcquiredError(text, key=self._records.key, place=self._records.place, hint=hint)
        ttl = max((holder.ttl for holder in self.holders), default=0.0)
        hint = "Try again later, or wait longer."
        if self._timeout <= ttl:
            hint = f"Wait longer than {ttl:g} s: so long it takes to find out that a holder is dead."
        return NotAcquiredError(f"not acquired {waited}{who}", key=self._records.key, place=self._records.place, hint=hint)


def _listing(holders: tuple[Holder, ...]) -> str:
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    return ", ".join(map(str, holders[:3])) + more
