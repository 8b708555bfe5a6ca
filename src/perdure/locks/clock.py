"""How long something has stayed as it is, by a clock that nobody sets and that goes on while the machine sleeps."""

from __future__ import annotations

import os
import time

_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def boot_time() -> float:
    """Seconds since this machine was started, its sleep included, where the system has such a clock (Linux has).

    Elsewhere `time.monotonic`, whose time may stand still while the machine sleeps. Nobody can set either.
    """
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


def fraction() -> float:
    """A random number from 0 to 1, so that those who wait do not all look at the same moments."""
    return os.urandom(1)[0] / 255  # the module `random` takes 3 ms to import


class Watched:
    """Remembers what was last seen, and since when: whoever looks again and again learns how long it has not changed.

    So a process tells that another one is gone without believing any clock but its own: who lives changes its mark before the
    time is over that it promised. Time passes from the first look, not from when the mark was made.

    Threads may share one; of two that see different marks at once, either is remembered.
    """

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: tuple[str, float] | None = None

    def seen(self, mark: str) -> float:
        """Note what is there now, an ETag for instance.

        Returns:
            Seconds since this object was first told of this very mark, without another one in between; 0.0 for a new one.
        """
        known = self._seen
        now = boot_time()
        if known is None or known[0] != mark:
            self._seen = (mark, now)
            return 0.0
        return now - known[1]
