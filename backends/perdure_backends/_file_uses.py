"""When the values of a folder were last read: the access times of their files, set by us, as most systems hardly keep them."""

from __future__ import annotations

import os
import stat

from ._file_spots import Spot
from ._system import OPEN_READ


def mark(spot: Spot, when: float) -> None:
    """Note that a value was read, unless a later read is noted already. What it raises, the operating system raised.

    Through a descriptor, or a value that was put there meanwhile would get the time of writing of the old one: a file is
    replaced, and never written into, so the two times that are set belong to one and the same value.
    """
    if spot.folders:
        spot.refuse_links()
    fd = os.open(spot.path, OPEN_READ)
    try:
        info = os.fstat(fd)
        accessed = int(when * 1e9)
        if stat.S_ISREG(info.st_mode) and accessed > info.st_atime_ns:
            os.utime(fd, ns=(accessed, info.st_mtime_ns))
    finally:
        os.close(fd)
