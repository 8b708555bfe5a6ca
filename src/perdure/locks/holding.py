"""What it is to hold a slot: to know for how long, to renew it in the background, and to learn that it was lost."""

from __future__ import annotations

import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from ..durations import Duration, seconds
from ..errors import LeaseLostError, PerdureError, PreconditionError, UsageError, UsageTypeError
from ..pulse import Beat, every
from .clock import boot_time
from .records import Holder, Name, Records, Where
from .slots import Grip, Slots
from .waiting import Waiting

E = TypeVar("E", bound=PerdureError)

_log = logging.getLogger("perdure.locks")
_holdings: weakref.WeakSet[Holding] = weakref.WeakSet()


def _after_fork() -> None:
    for holding in list(_holdings):
        holding._after_fork()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Holding:
    """The part of `Lease` that does not wait."""

    _kind = "lock"
    _limit = 1

    def __init__(
        self,
        where: Where,
        name: Name,
        ttl: Duration = "30 s",
        *,
        timeout: Duration | None = None,
        renew: bool = True,
        owner: str = "",
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self.ttl = seconds(ttl, "the ttl of a lease")
        if not 0 < self.ttl < 1e9:
            raise UsageError(f"a lease cannot last {self.ttl:g} s", hint="Give a ttl such as '30 s'.")
        if not isinstance(owner, str):
            raise UsageTypeError(f"owner is text, not {owner!r:.60}")
        if not isinstance(renew, bool):
            raise UsageTypeError(f"renew is True or False, not {renew!r:.60}")
        if not (on_lost is None or callable(on_lost)):
            raise UsageTypeError(f"on_lost is a function without arguments, not {on_lost!r:.60}")
        self.name = name
        self._timeout = inf if timeout is None else seconds(timeout, "a timeout")
        self._renews = renew
        self._owner = owner
        self._on_lost = on_lost
        self._records = Records(self._kind, where, name)
        self._forget()

    def _forget(self) -> None:
        self._slots = Slots(self._records)
        self._guard = threading.RLock()  # for the four below; never held during a request
        self._grip: Grip | None = None
        self._beats: list[Beat] = []
        self._acquiring: Waiting | None = None
        self._left_to_parent = False
        self._token = 0
        _holdings.add(self)

    def _after_fork(self) -> None:
        left = self._grip is not None
        self._forget()
        self._left_to_parent = left

    def __getstate__(self) -> dict[str, Any]:
        run = {"_slots", "_guard", "_grip", "_beats", "_acquiring", "_left_to_parent", "_token"}
        return {name: value for name, value in self.__dict__.items() if name not in run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    # ----------------------------------------------------------------------------------------------------------- holding

    @property
    def held(self) -> bool:
        """Whether this object holds it. Once this is false it stays so until the next acquisition. Costs no request."""
        grip = self._grip
        return grip is not None and self._lives(grip)

    @property
    def token(self) -> int:
        """The fencing token of the last acquisition by this object, larger than those of all before.

        Raises:
            UsageError: There was none.
        """
        if not self._token:
            raise self._at(UsageError("there is no token before the lease was acquired"))
        return self._token

    @property
    def expires_in(self) -> float:
        """In how many seconds it ends unless it is renewed; 0.0 when it is not held."""
        grip = self._grip
        return max(0.0, grip.until - boot_time()) if grip is not None and self._lives(grip) else 0.0

    def check(self) -> None:
        """Raise unless it is held. Costs no request.

        Raises:
            LeaseLostError: It was lost, or belongs to the process that forked this one.
            UsageError: It was not acquired, or was released.
        """
        grip = self._require()
        if not self._lives(grip):
            raise self._lost(grip)

    def renew(self) -> None:
        """Renew it now.

        Raises:
            LeaseLostError, UsageError: As `check`; also where the answer came only when the lease had lapsed.
            UnknownOutcomeError, BackendError, CodecError: It was not renewed, and is held for `expires_in`.
        """
        grip = self._require()
        try:
            self._slots.extend(grip, self.ttl)
        except PreconditionError:
            raise self._lost(grip) from None

    def holders(self) -> list[Holder]:
        """Read who holds it, this object or others. A dead holder is listed until another takes its place.

        Raises:
            BackendError, IntegrityError, CodecError: As `acquire`.
        """
        return list(self._slots.look()[0].holders)

    def _require(self) -> Grip:
        grip = self._grip
        if grip is None:
            if self._left_to_parent:
                raise self._at(LeaseLostError("the process that forked this one holds the lease", hint="Acquire it here."))
            raise self._at(UsageError("the lease is not held", hint="Acquire it first."))
        return grip

    def _lives(self, grip: Grip) -> bool:
        if not grip.lost and boot_time() >= grip.until:
            self._slots.lose(grip, f"it was not renewed within {self.ttl:g} s")
        return not grip.lost

    def _lost(self, grip: Grip) -> LeaseLostError:
        told = f"The resource can tell them from you: your token is {grip.token}, theirs are larger."
        if grip.anew:
            told = (
                f"With the record gone, tokens begin anew: theirs may be smaller than yours, {grip.token}, and prove nothing."
            )
        hint = f"Stop: others may be at work. {told}"
        return self._at(LeaseLostError(f"the lease was lost: {grip.lost}", hint=hint))

    # -------------------------------------------------------------------------------------------------- in the background

    def _renew_now(self, grip: Grip) -> bool:
        """Returns whether to go on with it."""
        if self._grip is not grip:
            return False
        try:
            self._slots.extend(grip, self.ttl)
        except PreconditionError:
            pass  # told below
        except PerdureError as error:
            _log.warning("%r could not be renewed, and ends in %.3g s: %s", self, self.expires_in, error)
        if self._grip is not grip:
            return False
        if not self._lives(grip):
            _log.error("%s", self._lost(grip))
            return False
        return True

    def _tell_lost(self, grip: Grip) -> bool:
        if self._grip is not grip:
            return False
        if self._lives(grip):
            return True
        if self._on_lost is not None:
            try:
                self._on_lost()
            except Exception:
                _log.exception("on_lost of %r raised", self)
        return False

    # ------------------------------------------------------------------------------------------------- in and out of it

    def _attempt(self, timeout: Duration | None, blocking: bool) -> Waiting:
        limit = self._timeout if timeout is None else seconds(timeout, "a timeout")
        return Waiting(self._records, self._slots, self._limit, self.ttl, self._owner, limit if blocking else -inf)

    def _begin(self, waiting: Waiting) -> None:
        with self._guard:
            if self._acquiring is not None or (self._grip is not None and self._lives(self._grip)):
                hint = "It is not re-entrant. Release it first; for another thread make another object."
                raise self._at(UsageError("this object holds the lease already, or is about to", hint=hint))
            self._stop()
            self._acquiring = waiting

    def _take(self, waiting: Waiting, weakly: bool) -> None:
        """Hold what was won; with `weakly`, for as long as somebody has this object."""
        grip = waiting.grip
        if grip is None:
            return
        with self._guard:
            self._grip = grip
            self._token = grip.token
            self._left_to_parent = False
        me = weakref.ref(self) if weakly else lambda: self

        def renew() -> bool:
            holding = me()
            return holding is not None and holding._renew_now(grip)  # noqa: SLF001

        def tell_lost() -> bool:
            holding = me()
            return holding is not None and holding._tell_lost(grip)  # noqa: SLF001

        if self._renews:
            self._beats.append(every(self.ttl / 3, renew, name=repr(self)))
        if self._on_lost is not None:
            self._beats.append(every(self.ttl / 4, tell_lost, name=repr(self)))

    def _back_out(self, waiting: Waiting) -> None:
        """Give back what nobody has heard of."""
        with self._guard:
            if waiting.grip is not None and self._grip is waiting.grip:
                self._stop()
        waiting.withdraw()

    def _let_go(self, kind: type[BaseException] | None = None) -> Grip | None:
        """Stop holding it, as `kind` is raised or nothing is; `None` where it was not held here."""
        with self._guard:  # a Ctrl-C is not noticed before the lines that stop the renewal
            grip, inherited = self._grip, self._left_to_parent
            self._grip = None
            self._left_to_parent = False
            self._stop()
        if grip is None and not inherited:
            error = self._at(UsageError("the lease is not held", hint="Acquire it first, and release it once."))
            if kind is None:
                raise error
            _log.warning("after %s: %s", kind.__name__, error)  # what is being raised is the news
            return None
        if grip is None:
            text = f"{self!r} was acquired by the process that forked this one, which goes on holding it. Nothing was released."
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        return grip

    def _stop(self) -> None:
        self._grip = None
        while self._beats:
            self._beats.pop().stop()

    def _give_back(self, grip: Grip) -> bool:
        lived = self._lives(grip)
        try:
            return self._slots.leave(grip) and lived
        except PerdureError as error:
            if lived:
                raise
            _log.warning("%r was lost, and could not be taken out of the record: %s", self, error)
            return False

    def _leave(self, grip: Grip, kind: type[BaseException] | None) -> None:
        """End a `with`, which `kind` is raised out of."""
        try:
            if not self._give_back(grip):
                raise self._lost(grip)
        except PerdureError as error:
            if kind is None:
                raise
            _log.warning("after %s: %s", kind.__name__, error)  # what is being raised is the news

    def _at(self, error: E) -> E:
        return error.at(self._records.key, self._records.place)

    def __repr__(self) -> str:
        held = f", held with token {self._token}" if self.held else ""
        return f"<{type(self).__name__} {self.name!r} in {self._records.place}{held}>"

    def close(self) -> None:
        """Close the place, if it was opened here. Releases nothing."""
        self._records.close()
