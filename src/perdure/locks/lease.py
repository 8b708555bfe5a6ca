"""`Lease` and `Semaphore`: ways to get, to hold and to give back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from ..durations import Duration
from ..errors import PerdureError, UsageError
from .holding import Holding
from .records import Name, Where
from .waiting import Waiting


class Lease(Holding):
    """A lock that lapses when its holder is gone. `lock` makes one; it is acquired by `with`, or by `acquire`.

    While it is held it is renewed every third of its `ttl`, in the background, for as long as the process lives: also when
    this object is dropped without `release`, unless it was entered by `with`. What is true of it:

    * Two objects never hold it at once, in whatever threads, processes and machines, as long as no process goes on working on
      a lease that has ended without looking at `held`; the two ways to see to that are below.
    * Clocks of other machines, and wall clocks, are not believed. Somebody who waits takes a lease over only when it has
      itself seen the same version of it for the whole `ttl`, by a clock of its own that nobody can set and that goes on
      while the machine sleeps. The holder stops believing in it one `ttl` after it *began* its last successful renewal, by the
      same kind of clock, so it stops first. (Two clocks may differ in speed by 0.2 %, twice as much as NTP can make them.)
    * The time of a lease counts from before the request that acquires it is sent. When `with` is entered, or `acquire` returns
      `True`, at least half of the `ttl` is left. Where the answer takes longer than that, from a server that hangs perhaps,
      the lease is not used: it is acquired anew, with another token, until the `timeout` is over, and then withdrawn.
    * So a killed holder delays somebody who waits already by one `ttl` at most, and who comes an hour later as well: it
      cannot know that the record is an hour old. One who asks without waiting, or waits for less than the `ttl`, does not get
      the lease of a dead holder.
    * `token` is larger with each acquisition, by whoever, and never used twice, not after a release and not after a restart
      of everything: the record is never deleted. If somebody deletes it, whoever holds the lock has lost it, and tokens begin
      at 1 again; the resource then refuses all until it forgets, too, what was the largest. Where a place is known to forget
      by itself (`Expiring`, `Bounded`, a Redis place with a `ttl`), a lock is refused.
    * All of it is as good as what the place promises. One that forgets an acknowledged write (a folder with `sync="normal"`
      in a power cut, a Redis whose replica takes over) can give away a lease, and a token, twice.

    **What it cannot do**, and no lease can: stop a process that was paused for longer than its lease (a suspended machine, a
    debugger, a swap storm, C code that keeps the interpreter to itself) from going on afterwards with what it was about to do.
    `check()` right before a step makes the window small; in a virtual machine whose clock was stopped together with it, not
    even that notices anything before the next renewal. Only the resource can close the window: let it remember the largest
    token that it has seen, and refuse smaller ones. For a record under perdure: write the token into it, by `transform_item`,
    and refuse when there is a larger one.

    A Ctrl-C takes back what was being acquired. What is left is the moment between the last line of the body of a `with` and
    the first of `__exit__`, or before the first of `release`: then it is still held, and renewed for as long as there is this
    object (after `acquire`: this process). One in the middle of a release may leave the record as it is; then it lapses.

    Not re-entrant and not fair: who waits looks again and again, at first after a millisecond, then at longer intervals up to a
    quarter of the `ttl` or a second. A forked child does not hold what its parent holds. Pickles, to one that is not held.

    Safe for threads, but one object is one holder: threads that exclude each other need one each.

    Args:
        where: A URL, a path, a backend or a dict of perdure. Backend and dict are not closed with this. The record is the key
            `locks()/name` there. In a dict it would be listed with its keys though it is no value, and `perdure doctor
            --repair` would set it aside: so give locks a place of their own.
        name: Of the lock: a key, text or a tuple of texts.
        ttl: How long it is held without a renewal: seconds or text such as `"30 s"`. Many times what a request takes.
        timeout: How long `with` and `acquire` wait for it. `None` for as long as it takes.
        renew: Whether to renew it in the background. Else it ends after `ttl`, unless you call `renew`.
        owner: What to call the holder in the record, for people; else the name of the program.
        on_lost: Called once, without arguments, in a background thread, a quarter of the `ttl` at most after it was lost.

    Attributes:
        name: As given.
        ttl: In seconds.

    Raises:
        InvalidKeyError: The name cannot be a key.
        UsageError: The `ttl` is 0 or infinite, `where` is wrong, or it is a place that forgets by itself.
        UsageTypeError: An argument is of the wrong type.

    Cost: a read and a write to acquire it, a write to renew it and one to release it. While waiting, a read at each look, which
    brings no bytes where nothing changed.
    """

    # --------------------------------------------------------------------------------------------------------- acquiring

    def acquire(self, timeout: Duration | None = None, *, blocking: bool = True) -> bool:
        """Wait until it is held.

        Args:
            timeout: How long; `None` for what the constructor was given.
            blocking: `False` to look once and not wait. Who never waits does not get the lease of a dead holder, unless it
                asks again and again with the same object, for longer than the `ttl`.

        Returns:
            Whether it is held now, with at least half of its `ttl` left. `False` also where the place answered too late for
            that, each time until the `timeout` was over; then nothing is held.

        Raises:
            UsageError: This object holds it already, or is about to.
            UnavailableError, BackendError: As the place says, at once, while waiting as well.
            UnknownOutcomeError: The answer to a write was lost, and looking did not help: if it took effect, the lease is
                nobody's for one `ttl`.
            IntegrityError, CodecError: What is in the record is not for this version to read. Nothing was changed.
        """
        return self._wait(self._attempt(timeout, blocking)).grip is not None

    def _wait(self, waiting: Waiting, weakly: bool = False) -> Waiting:
        # A Ctrl-C is noticed where a function begins or a call into C ends: so from the last call in here to the body of a
        # `with` there is no moment for it, and what comes before is taken back.
        try:
            self._begin(waiting)
            while (pause := waiting.turn()) or waiting.missed():
                time.sleep(pause)
            self._take(waiting, weakly)
        except BaseException as error:
            if waiting.grip is not None or not isinstance(error, PerdureError):
                self._back_out(waiting)
            raise
        finally:
            if self._acquiring is waiting:
                self._acquiring = None
        return waiting

    def __enter__(self) -> Self:
        waiting = self._wait(self._attempt(None, True), weakly=True)
        if waiting.grip is None:
            raise waiting.in_vain()
        return self

    def release(self) -> bool:
        """Give it back, and renew it no more.

        Returns:
            Whether it was held until now. `False`: it had been lost before. Also `False`, with a `RuntimeWarning`, in a forked
            child: the parent goes on holding it.

        Raises:
            UsageError: It was not acquired, or was released already.
            UnknownOutcomeError, BackendError, CodecError: It is not held any more, but others may have to wait for one `ttl`.
        """
        held = self._grip
        try:
            grip = self._let_go()
        except BaseException:
            if self._grip is held:
                self._grip = None  # a Ctrl-C on the way there: so it is renewed no more
            raise
        return grip is not None and self._give_back(grip)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        held = self._grip
        try:
            grip = self._let_go(kind)
        except BaseException:
            if self._grip is held:
                self._grip = None  # as in `release`
            raise
        if grip is not None:
            self._leave(grip, kind)

    # ----------------------------------------------------------------------------------------------------------- asyncio

    async def acquire_async(self, timeout: Duration | None = None, *, blocking: bool = True) -> bool:
        """As `acquire`, for asyncio. Requests run in the threads of `asyncio.to_thread`; waiting takes none.

        When this is cancelled, a request that is under way is finished by its thread, and what it brings is given back.
        """
        return (await self._wait_async(self._attempt(timeout, blocking))).grip is not None

    async def _wait_async(self, waiting: Waiting, weakly: bool = False) -> Waiting:
        from asyncio import sleep, to_thread

        try:
            self._begin(waiting)
            while (pause := await to_thread(self._turn_or_back_out, waiting)) or waiting.missed():
                await sleep(pause)
            self._take(waiting, weakly)
        except BaseException as error:
            won = not waiting.decide() and waiting.grip is not None  # and nobody waits for it any more
            if won or (waiting.tried and not isinstance(error, PerdureError)):
                threading.Thread(target=self._back_out, args=(waiting,), name="perdure-locks", daemon=True).start()
            raise
        finally:
            if self._acquiring is waiting:
                self._acquiring = None
        return waiting

    def _turn_or_back_out(self, waiting: Waiting) -> float:
        pause = waiting.turn()
        if waiting.grip is not None and not waiting.decide():
            self._back_out(waiting)
        return pause

    async def renew_async(self) -> None:
        """As `renew`, for asyncio."""
        from asyncio import to_thread

        await to_thread(self.renew)

    async def release_async(self) -> bool:
        """As `release`, for asyncio. When this is cancelled, a thread finishes it."""
        from asyncio import shield, to_thread

        grip = self._let_go()
        return grip is not None and await shield(to_thread(self._give_back, grip))

    async def __aenter__(self) -> Self:
        waiting = await self._wait_async(self._attempt(None, True), weakly=True)
        if waiting.grip is None:
            raise waiting.in_vain()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        from asyncio import shield, to_thread

        grip = self._let_go(kind)
        if grip is not None:
            await shield(to_thread(self._leave, grip, kind))


class Semaphore(Lease):
    """A lease of which there are several: at most `limit` holders at once, each of an object of its own.

    All that is said of `Lease` holds for each slot: it lapses when it is not renewed, a killed holder's slot is free for
    somebody who waits after one `ttl`, and each acquisition of any slot has a larger token than all before. Which of the slots
    one has does not matter, so they have no numbers.

    Everybody uses the same `limit`. It is recorded, and another one is refused as long as anybody has a slot; who comes with
    another limit when nobody has sets it.

    Args:
        where: As for `Lease`. The record is the key `semaphores()/name`.
        name: Of the semaphore.
        limit: The largest number of holders, 1 or more. One record lists all, and each renewal swaps it: up to some hundreds on
            a local place, some dozens in a bucket.
        ttl: How long a slot is held without a renewal.
        **options: As for `Lease`: `timeout`, `renew`, `owner`, `on_lost`.

    Raises:
        UsageError: The limit is no positive number; on acquiring, others use another limit, or as for `Lease`.
        InvalidKeyError: The name cannot be a key.

    Cost: as `Lease`, and each time that another holder was first, a read and a write more.
    """

    _kind = "semaphore"

    def __init__(
        self,
        where: Where,
        name: Name,
        limit: int,
        ttl: Duration = "30 s",
        *,
        timeout: Duration | None = None,
        renew: bool = True,
        owner: str = "",
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        if type(limit) is not int or limit < 1:
            raise UsageError(f"a semaphore cannot have the limit {limit!r:.40}", hint="It is the number of holders, 1 or more.")
        super().__init__(where, name, ttl, timeout=timeout, renew=renew, owner=owner, on_lost=on_lost)
        self._limit = limit

    @property
    def limit(self) -> int:
        """The largest number of holders."""
        return self._limit


def lock(
    where: Where,
    name: Name,
    ttl: Duration = "30 s",
    *,
    timeout: Duration | None = None,
    renew: bool = True,
    owner: str = "",
    on_lost: Callable[[], object] | None = None,
) -> Lease:
    """A lock that all processes and machines share which can reach a place: `with lock("s3://b/locks", "nightly") as lease:`.

    Nothing is acquired and nothing requested before `with` or `acquire`. `with` raises `NotAcquiredError` where it is not
    acquired within `timeout`, and says who holds it; at the end it raises `LeaseLostError` where the lease was lost
    meanwhile, unless something else is being raised.

    Takes, raises and costs what `Lease` does; read there what a lease can do, and what it cannot.
    """
    return Lease(where, name, ttl, timeout=timeout, renew=renew, owner=owner, on_lost=on_lost)
