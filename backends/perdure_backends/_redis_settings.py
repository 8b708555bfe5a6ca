"""The settings kept with a place, such as its codec: one hash beside the values, whose name is no legal key."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.errors import UnavailableError, UsageError
from perdure.protocol import require_settings

from ._redis_calls import Calls
from ._redis_scripts import SETTLE

_FORMAT = "!format"  # no setting has such a name
_VERSION = "1"


class Record:
    """Settings, fixed by whoever writes first. Thread-safe.

    Args:
        calls: To the server.
        place: For messages.
        base: What the names of all our keys begin with.

    Attributes:
        name: Of the hash.
        settings: Those that have to be there when something is written.
        pending: Whether the next write has to see to them. It also has to when the server says that the hash is missing.
    """

    def __init__(self, calls: Calls, place: str, base: bytes) -> None:
        self.name = base + b"!perdure"
        self.settings: dict[str, str] = {}
        self.pending = False
        self._calls = calls
        self._place = place

    def read(self) -> dict[str, str]:
        """The settings there are now. One round trip."""
        (answer,) = self._calls.ask([[b"HGETALL", self.name]])
        return self._understood(answer)

    def require(self, settings: Mapping[str, str]) -> None:
        """Insist on settings; those not kept yet are kept by the next write. One round trip.

        Raises:
            UsageError: The place was written with others.
        """
        there = self.read()
        require_settings(settings, there, self._place)
        self.settings = self.settings | dict(settings)
        self.pending = self.pending or not settings.items() <= there.items()

    def write(self) -> None:
        """Keep them now. One round trip.

        Raises:
            UsageError: Another process was quicker and keeps others.
        """
        wanted = {_FORMAT: _VERSION, **self.settings}
        words = [word.encode() for pair in wanted.items() for word in pair]
        (answer,) = self._calls.ask([SETTLE.command([self.name], words)])
        require_settings(self.settings, self._understood(answer), self._place)
        self.pending = False

    def still_missing(self) -> UnavailableError:
        """The error for settings that are gone again as soon as they are written."""
        problem = "the settings of this place vanish as soon as they are written"
        return UnavailableError(problem, place=self._place, hint="See whether maxmemory makes the server evict everything.")

    def _understood(self, answer: object) -> dict[str, str]:
        words = self._calls.value(answer, None)
        texts = [word.decode("utf-8", "replace") for word in words]
        settings = dict(zip(texts[::2], texts[1::2], strict=True))
        version = settings.pop(_FORMAT, None)
        if version != _VERSION and (version or settings):
            name = self.name.decode("utf-8", "replace")
            raise UsageError(
                f"the settings of this place, in the hash {name!r}, have the format {version!r:.20}",
                place=self._place,
                hint="Upgrade perdure, or use another prefix.",
            )
        return settings
