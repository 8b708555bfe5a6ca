"""Locks, semaphores and counters that all machines share, in any place that perdure can keep bytes in.

::

    with lock("s3://bucket/locks", "nightly", ttl="30 s") as lease:
        run(lease.token)

Each is one small record, changed by compare-and-swap only, so there is no server to run and nothing to clean up. A lock is a
*lease*: it lapses when its holder does not renew it for `ttl`, which happens by itself in the background as long as the
process runs. No clock of another machine is ever believed, and no wall clock at all: see `Lease`.

What no lease can do, in any system: keep a process that was paused (a suspended machine, a debugger, a garbage collection, a
thread that keeps the interpreter to itself) from going on, when it wakes up, for the moment until it looks at its clock. For
that each acquisition has a `token` that is larger than all before, and the resource refuses smaller ones.
"""

from __future__ import annotations

from .clock import Watched, boot_time
from .counter import Counter
from .lease import Lease, Semaphore, lock
from .records import Holder

__all__ = ["Counter", "Holder", "Lease", "Semaphore", "Watched", "boot_time", "lock"]
