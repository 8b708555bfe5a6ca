"""A number of slots in one record: what this process last saw of it, and how it enters, renews and leaves.

What all depends on: an entry of another holder is dropped only by a swap of the very version in which it was seen unchanged for
the whole `ttl` that it states, by the clock of who looks. Its holder stops believing in it one `ttl` after it *began* its last
successful renewal, by its own clock. Nobody can see a renewal before it begins, so the holder stops first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import inf

from ..errors import NotModified, PerdureError, PreconditionError, UnknownOutcomeError
from ..protocol import Condition
from .clock import Watched, boot_time
from .records import NOBODY, Holder, Records, State, read_state, spell_state

LOST_ANSWERS = 3  # to one write, after which the error is passed on
_DRIFT = 1.002  # what may be between the speeds of two clocks; NTP makes a clock faster or slower by 0.0005 at most


class Grip:
    """A slot that was entered, and how long it may be believed in.

    Attributes:
        nonce: The entry's.
        token: The entry's.
        until: Nobody else takes it before that moment, by `boot_time`.
        lost: Why it is lost, for good; empty while it is not.
        anew: Whether it is lost together with the record, so that tokens begin anew.
    """

    __slots__ = ("anew", "lost", "nonce", "numbers", "token", "until")

    def __init__(self, holder: Holder, until: float) -> None:
        self.nonce = holder.nonce
        self.token = holder.token
        self.until = until
        self.lost = ""
        self.anew = False
        self.numbers = count(holder.renewal + 1)  # `next` is a single step, so no two renewals are equal


class Slots:
    """The record as it was last seen.

    Thread-safe: what was seen is replaced as a whole, and everything that is written is a swap of what was seen. What was seen
    may be older than what was written since, so nothing is lost before another look.

    Attributes:
        seen: The last look, or what was written since; `None` before the first.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._watched: dict[str, Watched] = {}
        self._given_up: set[str] = set()  # entries that are, or may be, ours, and that nobody believes in
        self.seen: tuple[State, Condition] | None = None

    def look(self) -> tuple[State, Condition]:
        """Read the record; nothing is sent back where it has not changed. Raises as `Records.get`."""
        known = self.seen
        try:
            fields, etag = self._records.get(None if known is None else known[1])
        except NotModified:
            if known is None:
                raise
            return known
        self.seen = found = (NOBODY if not fields else read_state(self._records, fields), etag)
        return found

    def living(self, state: State) -> tuple[tuple[Holder, ...], float]:
        """The holders that may be alive, and in how many seconds the next of them counts as dead unless it renews."""
        self._watched = {holder.nonce: self._watched.get(holder.nonce) or Watched() for holder in state.holders}
        alive: list[Holder] = []
        soonest = inf
        for holder in state.holders:
            left = holder.ttl * _DRIFT - self._watched[holder.nonce].seen(holder.mark)
            if left > 0 and holder.nonce not in self._given_up:
                alive.append(holder)
                soonest = min(soonest, left)
        return tuple(alive), soonest

    def enter(self, state: State, if_match: Condition, grip: Grip) -> bool:
        """Swap in a state that has an entry of ours; tells whether that succeeded, or another was first.

        It may have taken so long that `grip.until` is over, which is for the caller to see.

        Raises:
            UnknownOutcomeError: It may be there; then it lapses.
            BackendError, CodecError, UsageError: Nothing was changed.
        """
        try:
            return self._swap(state, if_match, lambda found: found.holder(grip.nonce) is not None)
        except BaseException:
            self._given_up.add(grip.nonce)
            raise

    def extend(self, grip: Grip, ttl: float) -> None:
        """Renew an entry.

        Raises:
            PreconditionError: It is lost; `grip.lost` says why.
            UnknownOutcomeError, BackendError, CodecError: It was not renewed; it is good until `grip.until`.
        """
        (state, etag), fresh = self.seen or self.look(), False
        while True:
            began = boot_time()
            holder = state.holder(grip.nonce)
            if began >= grip.until:
                self.lose(grip, f"it was not renewed within {ttl:g} s")
            elif holder is None and fresh:
                self._lose_to(state, grip)
            if grip.lost:
                raise PreconditionError(grip.lost)
            if holder is not None:
                renewed = holder._replace(renewal=next(grip.numbers), ttl=ttl)
                new = state._replace(holders=(*state.without(grip.nonce), renewed))
                if self._swap(new, etag, lambda found, renewed=renewed: renewed in found.holders):  # type: ignore[misc]
                    grip.until = max(grip.until, began + ttl)
                    if boot_time() >= grip.until:
                        self.lose(grip, f"its renewal was answered too late, after {ttl:g} s")
                    if grip.lost:  # now, or meanwhile, and somebody may know of that
                        raise PreconditionError(grip.lost)
                    return
            (state, etag), fresh = self.look(), True

    def lose(self, grip: Grip, why: str) -> None:
        """Believe in an entry no more, for good."""
        self._given_up.add(grip.nonce)
        grip.lost = grip.lost or why

    def _lose_to(self, state: State, grip: Grip) -> None:
        """Note who has it now that the record does not list it any more."""
        # Tokens grow, so one that is not larger than ours is of a record that was begun after ours was deleted.
        anew = state.token < grip.token or any(holder.token == grip.token for holder in state.holders)
        grip.anew = grip.anew or anew
        who = f"{state.holders[-1]} took it over" if state.holders else "somebody took it over, and gave it back since"
        self.lose(grip, ("its record was deleted" + (f", and {who}" if state.token else "")) if anew else who)

    def leave(self, grip: Grip) -> bool:
        """Take an entry out; tells whether it was still there. If not, `grip.lost` says why.

        Raises:
            UnknownOutcomeError, BackendError, CodecError: It may be there; then it lapses.
        """
        self._given_up.add(grip.nonce)
        (state, etag), fresh = self.seen or self.look(), False
        while True:
            if state.holder(grip.nonce) is not None:
                new = state._replace(holders=state.without(grip.nonce))
                if self._swap(new, etag, lambda found: found.holder(grip.nonce) is None):
                    return True
            elif fresh:
                self._lose_to(state, grip)
                return False
            (state, etag), fresh = self.look(), True

    def _swap(self, state: State, if_match: Condition, is_in: Callable[[State], bool]) -> bool:
        """Replace one version of the record; tells whether that succeeded.

        Where an answer is lost, `is_in` tells from what is there whether the write took effect. If it did not, it may still be
        on its way, and can succeed only while that version is there: so it is that version that the next try replaces, too.
        """
        lost_answers = 0
        while True:
            try:
                self.seen = (state, self._records.put(spell_state(state), if_match))
                return True
            except PreconditionError:
                return lost_answers > 0 and is_in(self.look()[0])
            except UnknownOutcomeError as error:
                lost_answers += 1
                try:
                    found, etag = self.look()
                except PerdureError as more:
                    raise error from more
                if is_in(found):
                    return True
                if etag != if_match:
                    return False
                if lost_answers >= LOST_ANSWERS:
                    raise
