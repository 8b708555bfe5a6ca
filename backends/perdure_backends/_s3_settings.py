"""The settings kept with a place, such as its codec: one small object beside the values, whose name is no legal key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from perdure.errors import BackendError, PreconditionError, UnavailableError, UnknownOutcomeError, UsageError
from perdure.protocol import ABSENT, ETag, require_settings

from ._s3_client import Client, Turn
from ._s3_swap import Swapper, sight

_NAME = "!perdure.json"
_FORMAT = 1


class Record:
    """Settings, fixed by whoever writes first. Thread-safe.

    Attributes:
        pending: Settings that the next write has to see to.
    """

    def __init__(self, client: Client, swapper: Swapper, prefix: str) -> None:
        self.pending: dict[str, str] = {}
        self._client = client
        self._swapper = swapper
        self._name = prefix + _NAME
        self._turn = Turn()

    def after_fork(self) -> None:
        """In a child: renew the lock, which another thread of the parent may have held."""
        self._turn = Turn()

    def read(self) -> dict[str, str]:
        """The settings there are now. One request."""
        return self._read()[0]

    def require(self, settings: Mapping[str, str]) -> None:
        """Insist on settings; those not kept yet are kept by the next write. One request.

        Raises:
            UsageError: The place was written with others.
        """
        there = self.read()
        require_settings(settings, there, self._client.place)
        if not settings.items() <= there.items():
            self.pending = self.pending | dict(settings)

    def write_pending(self, can_swap: Callable[[], bool]) -> None:
        """Keep what is pending, by compare-and-swap where the server has it. No request when nothing is pending."""
        unknown: UnknownOutcomeError | None = None
        while self.pending:
            with self._client.in_turn(self._turn):
                if not self.pending:
                    return  # another thread saw to it
                there, etag = self._read()
                require_settings(self.pending, there, self._client.place)
                if not self.pending.items() <= there.items():
                    if unknown is not None:  # about these settings; the caller's write has not begun
                        problem = f"the settings of this place could not be written: {unknown.problem}"
                        raise UnavailableError(problem, place=self._client.place, hint="Try again later.") from unknown
                    text = json.dumps({"perdure": _FORMAT, "settings": there | self.pending}, indent=1, sort_keys=True)
                    try:
                        swaps = can_swap()
                    except UnavailableError:
                        raise
                    except BackendError:
                        swaps = False  # such a server serves for plain writes only, and this is one
                    try:
                        if swaps:
                            self._swapper.swap(self._name, self._name, text.encode(), ABSENT if etag is None else etag)
                        else:
                            self._swapper.overwrite(self._name, self._name, text.encode())
                    except PreconditionError:
                        continue  # another process was quicker: see what it wrote
                    except UnknownOutcomeError as error:
                        unknown = error  # whoever wrote, we or another: what counts is what is there
                        continue
                self.pending = {}

    def _read(self) -> tuple[dict[str, str], ETag | None]:
        answer = self._client.send("GET", self._name)
        if answer.status == 404:
            return {}, None
        try:
            content = json.loads(answer.body)
            version, settings = content["perdure"], content["settings"]
            if version == _FORMAT and all(isinstance(value, str) for value in settings.values()):
                return settings, sight(answer.headers, len(answer.body), self._name, self._client.place).etag
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._strange("cannot be understood", "Move it away if it is not ours.") from error
        raise self._strange(f"has format {version!r:.20}", "Upgrade perdure.")

    def _strange(self, state: str, hint: str) -> UsageError:
        return UsageError(
            f"the object {self._name} with the settings of this place {state}", place=self._client.place, hint=hint
        )
