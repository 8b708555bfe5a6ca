"""From registered objects into a snapshot: all that can see them change happens before `begin` returns."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from .. import __version__
from ..errors import CodecError, ComponentError, PerdureError, UsageError
from ..mapping.progress import Progress, reporting
from .components import Registered
from .disk import hint_of
from .loading import one_by_one
from .manifest import Component, Snapshot
from .metadata import check_metadata
from .place import Draft, Place
from .tensors import live_objects, tensors_of

if TYPE_CHECKING:
    from .ranks import Ranks

_NONE: Final = Component("", ())


class Taking:
    """Saves objects.

    Args:
        place: Where the snapshots are.
        components: The objects, by name.
        ranks: This process among several, or `None`.
        trusted: Whether pickles may name code.
    """

    def __init__(self, place: Place, components: Mapping[str, Registered], ranks: Ranks | None, *, trusted: bool) -> None:
        self._place = place
        self._components = dict(components)
        self._ranks = ranks
        self._trusted = trusted
        self._live = live_objects({name: registered.target for name, registered in components.items()})

    def begin(self, name: str, saved: datetime, metadata: Mapping[str, Any] | None, *, isolate: bool) -> tuple[Draft, Snapshot]:
        """Begin a snapshot with the state of all objects. Raises as `StateStore.save_state`, and leaves no trace then."""
        told = check_metadata(metadata)
        draft = self._place.begin(isolate=isolate)
        try:
            components = dict.fromkeys(map(self._saved_name, self._components), _NONE)
            # First those whose own code writes files: it may change what others are, and is over before anybody reads that.
            for component in sorted(self._components, key=lambda component: self._components[component].kind != "files"):
                there, registered = self._saved_name(component), self._components[component]
                parts = tuple(self._save(there, registered, draft))
                components[there] = Component(registered.kind, parts, of=registered.of)
            draft.settle()
        except BaseException as error:
            _abandon(draft, error)
            raise
        library, python = f"perdure {__version__}", platform.python_version()
        return draft, Snapshot(draft.id, 0, name, saved, told, components, {}, library, python)

    def _saved_name(self, name: str) -> str:
        return name if self._ranks is None else self._ranks.name(name)

    def _save(self, name: str, registered: Registered, draft: Draft) -> list[str]:
        live, own = self._live, {id(tensor) for tensor in tensors_of(registered.target).values()}
        if own:  # they are to be saved here, also if the state dict holds the very parameters
            live = {other: target for other, target in live.items() if id(target) not in own}
        try:
            return registered.save(name, draft, trusted=self._trusted, live=live)
        except PerdureError as error:
            if isinstance(error, (CodecError, UsageError)):
                error.at(name, self._place.place)
            raise
        except Exception as error:
            problem = f"component {name!r} could not be saved: {type(error).__name__}: {error}"
            hint = hint_of(error) or "Nothing was saved; older snapshots are as they were."
            raise ComponentError(problem, place=self._place.place, hint=hint, component=name) from error

    def same(self, draft: Draft, snapshot: Snapshot) -> Snapshot | None:
        """The newest snapshot, if it is whole and has the same state and metadata; then what was begun is cleared away."""
        try:
            newest = next((entry for entry in reversed(self._place.entries()) if isinstance(entry, Snapshot)), None)
            if newest is None or newest.components != snapshot.components:
                return None
            if json.dumps(newest.metadata) != json.dumps(snapshot.metadata):  # to `==`, 1 and True are the same
                return None
            parts = {part.name: (part.size, part.chunks) for part in draft.publish(lambda _: None)}
            there = {part.name: (part.size, part.chunks) for part in newest.parts.values()}
            if parts != there or not self._place.is_whole(newest):
                return None
        except BaseException as error:
            _abandon(draft, error)
            raise
        draft.abandon()
        return newest

    def complete(self, draft: Draft, snapshot: Snapshot, progress: Progress) -> Snapshot:
        """Make it durable and visible. Raises as `StateStore.save_state`, and leaves no trace then."""
        try:
            with reporting(progress, None, "saving", in_bytes=True) as report:
                if self._ranks is None:
                    return draft.commit(snapshot, one_by_one(report))
                return self._ranks.commit(draft, snapshot, one_by_one(report))
        except BaseException as error:
            _abandon(draft, error)
            raise


def _abandon(draft: Draft, error: BaseException) -> None:
    """Clear away what was begun; that this fails as well is not what is to be known first."""
    try:
        draft.abandon()
    except PerdureError as left:
        error.add_note(f"What was begun could not be cleared away, the next save tries again: {left}")
