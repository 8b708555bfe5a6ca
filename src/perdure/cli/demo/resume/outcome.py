"""What a training has left: after a kill, and at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from ....errors import SnapshotNotFoundError, UsageError
from ....registry import open_backend
from ....snapshots import Snapshot, StateStore
from ....snapshots.bucket_keys import DRAFTS, MANIFESTS, PARTS, SWEEPS
from ....snapshots.folder import OWN
from ....snapshots.place import open_place

COMPONENTS = ("network", "momentum", "random", "order", "history")


class Found(NamedTuple):
    """What is in the place of a training that does not run.

    Attributes:
        place: As a URL without secrets.
        snapshots: All that are complete, the oldest first.
        damaged: What is wrong in them; nothing, if they keep what they promise.
        drafts: The names of snapshots that were begun and never completed.
    """

    place: str
    snapshots: list[Snapshot]
    damaged: list[str]
    drafts: frozenset[str]

    @property
    def step(self) -> int:
        """The step that a next start begins with."""
        return int(self.snapshots[-1].metadata["step"]) + 1 if self.snapshots else 0


def look(url: str) -> Found:
    """Look, and read and compare every byte.

    Raises:
        UsageError: There are other things.
    """
    with closing(open_place(url, sync=None, share=True)) as place, StateStore(url) as store:
        drafts = _drafts_in_folder(place.path) if place.path else _drafts_in_backend(url)
        snapshots = store.snapshots()
        for snapshot in snapshots:
            if set(snapshot.components) != set(COMPONENTS):
                problem = f"the snapshot {snapshot.name} is of another program"
                raise UsageError(problem, place=place.place, hint="Choose an empty place, as the demo removes old snapshots.")
        damaged = [str(error) for snapshot in snapshots for error in store.verify(snapshot.name)]
        return Found(place.place, snapshots, damaged, frozenset(drafts))


def _drafts_in_folder(folder: Path) -> list[str]:
    own = folder / OWN
    return [path.name for path in own.glob("draft-*")] if own.is_dir() else []


def _drafts_in_backend(url: str) -> list[str]:
    with closing(open_backend(url)) as backend:
        keys = list(backend.keys())
        if not all(key.startswith((MANIFESTS, PARTS, DRAFTS, SWEEPS)) for key in keys):
            raise UsageError("there are other things in this place", place=backend.place, hint="Choose an empty one.")
        return [key for key in keys if key.startswith(DRAFTS)]


class Component(NamedTuple):
    """The final state of one registered object.

    Attributes:
        digest: Of all its values: types, shapes and bits.
        size: Bytes of the files that it was stored in.
    """

    digest: str
    size: int


class Outcome(NamedTuple):
    """How a training ended.

    Attributes:
        snapshot: The last one.
        components: What is in it, by name.
        history: How many it got right, from the beginning.
    """

    snapshot: Snapshot
    components: dict[str, Component]
    history: list[float]


def read_outcome(url: str) -> Outcome:
    """Load the final state of a training.

    Raises:
        SnapshotNotFoundError: It has not saved anything.
    """
    with StateStore(url) as store:
        snapshots = store.snapshots()
        if not snapshots:
            raise SnapshotNotFoundError("nothing was saved", place=url)
        held: dict[str, Any] = {}
        for name, component in snapshots[-1].components.items():
            if component.kind == "value":
                held[name] = store.register_value(name, None)
            else:
                held[name] = _StateDict() if component.kind == "state_dict" else _Object()
                store.register(name, held[name])
        snapshot = store.load_latest(strict=False)  # into objects of other classes
    assert snapshot is not None
    # Python's own generator and the old one of numpy began by chance, and the training uses neither.
    held["random"].value = held["random"].value["others"]
    components = {}
    for name, taken in held.items():
        digest = blake3()
        _feed(digest, taken.value)
        size = sum(snapshot.parts[part].size for part in snapshot.components[name].parts)
        components[name] = Component(digest.hexdigest(), size)
    return Outcome(snapshot, components, list(held["history"].value))


class _StateDict:
    """Takes the state of anything that has a state dict."""

    value: Any = None

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, state: Any) -> None:
        self.value = state


class _Object:
    """Takes the attributes of anything else."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        self.value = state


def _feed(digest: Any, value: Any) -> None:
    """Digest a value; two have the same digest only if they are the same, bit for bit."""
    numpy = sys.modules.get("numpy")
    if isinstance(value, Mapping):
        items = sorted((repr(key), part) for key, part in value.items())
        digest.update(f"dict {len(items)}\n".encode())
        for key, part in items:
            digest.update(f"{key}: ".encode())
            _feed(digest, part)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)}\n".encode())
        for part in value:
            _feed(digest, part)
    elif numpy is not None and isinstance(value, numpy.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    else:
        digest.update(f"{type(value).__name__} {value!r}\n".encode())  # of a float, Python shows all there is
