"""`BackendContract`: all promises of `perdure.protocol` as one class of tests to subclass."""

from __future__ import annotations

from .interrupts import Interrupts
from .kills import Kills
from .lifetime import Forks, Lifetime
from .listing import Listing
from .names import Names
from .races import Races
from .stateful import Model
from .values import Bulk, Values


class BackendContract(Values, Bulk, Names, Listing, Lifetime, Forks, Interrupts, Kills, Races, Model):
    """Every promise a backend makes, each one a test.

    Subclass it in a test file, say how to open the backend, and set the flags that differ from `perdure.testing.kit.Kit`::

        class TestFile(BackendContract):
            def open(self, where: Path) -> Backend:
                return FileBackend(where)

    The subclass must be importable by name, because other processes open the same place through it. Rounds multiply with
    the environment variable `PERDURE_ROUNDS`.
    """
