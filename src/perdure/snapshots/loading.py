"""From a snapshot back into registered objects: everything is verified and decoded before the first is touched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ..errors import CodecError, ComponentError, IntegrityError, PerdureError, SnapshotNotFoundError, UntrustedError, UsageError
from ..mapping.progress import Progress, reporting
from .components import Registered, spell_names
from .manifest import Broken, Part, Snapshot
from .packing import may_refer
from .place import Place, Reading, Report, newer_format
from .tensors import live_objects

if TYPE_CHECKING:
    from .ranks import Ranks

_log = logging.getLogger("perdure.snapshots")


class Loading:
    """Restores objects.

    Args:
        place: Where the snapshots are.
        components: The objects, by name.
        ranks: This process among several, or `None`.
        trusted: Whether pickles may run code.
    """

    def __init__(self, place: Place, components: Mapping[str, Registered], ranks: Ranks | None, *, trusted: bool) -> None:
        self._place = place
        self._components = components
        self._ranks = ranks
        self._trusted = trusted

    def latest(self, strict: bool, progress: Progress) -> Snapshot | None:
        """Restore from the newest snapshot that is whole. Raises as `StateStore.load_latest`."""
        failures: dict[str, PerdureError] = {}
        gone = 0
        while True:
            entries = self._place.entries()
            newer = newer_format(entries)
            if newer is not None:
                raise newer
            snapshots = [entry for entry in entries if isinstance(entry, Snapshot) and entry.name not in failures]
            for entry in entries:
                if isinstance(entry, Broken) and entry.name not in failures:
                    failures[entry.name] = entry.error
                    _log.warning("passed over, as it is damaged: %s", entry.error)
            if not snapshots:
                break
            snapshot = snapshots[-1]
            try:
                self.load(snapshot, strict, progress)
                return replace(snapshot, metadata=deepcopy(snapshot.metadata))  # which callers may change
            except SnapshotNotFoundError:
                gone += 1  # removed by another process since it was listed
                if gone > 100:
                    raise
            except UntrustedError:
                raise
            except IntegrityError as error:
                failures[snapshot.name] = error
                _log.warning("passed over, as it is damaged: %s", error)
        if failures:
            first = next(iter(failures.values()))
            many = f"none of {len(failures)} snapshots is whole; one of them" if len(failures) > 1 else None
            raise IntegrityError(
                f"{many or 'the only snapshot is not whole'}: {first.problem}",
                key=first.key,
                place=self._place.place,
                hint="Look with `perdure snapshots --verify`; to begin anew, use another place or move these away.",
            ) from first
        return None

    def load(self, snapshot: Snapshot, strict: bool, progress: Progress) -> None:
        """Restore from one snapshot. Raises as `StateStore.load_state`."""
        names = self._matching(snapshot, strict)
        reading = self._place.read(snapshot)
        try:
            parts = self._parts_of(snapshot, names)
            with reporting(progress, sum(part.size for part in parts), "restoring", in_bytes=True) as report:
                steps = self._prepare(snapshot, names, reading, one_by_one(report))
            self._apply(snapshot, steps)
        finally:
            reading.close()

    def _matching(self, snapshot: Snapshot, strict: bool) -> list[str]:
        """The names of the objects to restore."""
        rank = self._ranks.rank if self._ranks is not None else None
        saved = {name: component for name, component in snapshot.components.items() if component.rank == rank}
        mine = {name: self._saved_name(name) for name in self._components}
        lacking = [name for name, there in mine.items() if there not in saved]
        extra = sorted(saved.keys() - set(mine.values()))
        if strict and (lacking or extra):
            raise UsageError(
                _compare(list(saved), list(mine), lacking, extra),
                key=snapshot.name,
                place=self._place.place,
                hint="Register the same objects as when it was saved, or load with strict=False.",
            )
        for name, there in mine.items():
            if there in saved and saved[there].kind != self._components[name].kind:
                raise UsageError(
                    f"component {name!r} was saved as {saved[there].kind}, and registered is {self._components[name].kind}",
                    key=snapshot.name,
                    place=self._place.place,
                    hint="Register the same kind of object as when it was saved.",
                )
        for name, there in mine.items():
            of = self._components[name].of
            if strict and there in saved and saved[there].of not in ("", of):
                raise UsageError(
                    f"component {name!r} was saved as a {saved[there].of}, and registered is a {of}",
                    key=snapshot.name,
                    place=self._place.place,
                    hint="Register the same kind of object as when it was saved; if its class was renamed, use strict=False.",
                )
        return [name for name in mine if name not in lacking]

    def _saved_name(self, name: str) -> str:
        return name if self._ranks is None else self._ranks.name(name)

    def _parts_of(self, snapshot: Snapshot, names: Iterable[str]) -> list[Part]:
        return [snapshot.parts[part] for name in names for part in snapshot.components[self._saved_name(name)].parts]

    def _prepare(
        self, snapshot: Snapshot, names: list[str], reading: Reading, report: Report
    ) -> list[tuple[str, Callable[[], object]]]:
        """Read, verify and decode everything, without touching any object."""
        files = [name for name in names if self._components[name].kind == "files"]
        if self._ranks is not None:
            # All take the same snapshot, or none does: so each looks at the parts of the others, too.
            mine = {part.name for part in self._parts_of(snapshot, names)}
            for error in reading.damage([part for part in snapshot.parts.values() if part.name not in mine], _ignore):
                raise error
        folder = reading.fetch_files(self._parts_of(snapshot, files), report) if files else None
        memory = reading.fetch(self._parts_of(snapshot, [name for name in names if name not in files]), report)
        present = self._present()
        steps: dict[str, Callable[[], object]] = {}
        holds: dict[str, list[str]] = {}
        for name in names:
            live, read = _Asked(present), memory.__getitem__
            pickled = memory.get(f"{self._saved_name(name)}.pkl")
            if pickled is not None and may_refer(pickled):
                # It is unpickled again in its turn, from memory that nobody has: of what is read-only, the first gets a copy.
                read = partial(_read_only, memory)
            try:
                steps[name] = self._prepare_one(name, folder, read, live)
            except (CodecError, UsageError) as error:
                part = error.key if isinstance(error.key, str) else name
                error.key, error.place = f"{snapshot.name}/{part}", self._place.place
                raise
            except Exception as error:  # of its own code
                raise ComponentError(
                    f"component {name!r} could not tell what it is now: {type(error).__name__}: {error}; no object was touched",
                    key=snapshot.name,
                    place=self._place.place,
                    component=name,
                    untouched=names,
                ) from error
            holds[name] = [other for other in names if other in live.asked and other != name]
            if holds[name]:
                steps[name] = partial(self._restore_one, name, folder, memory.__getitem__)
        return [(name, steps[name]) for name in _after_what_they_hold(holds)]

    def _present(self) -> dict[str, object]:
        return live_objects({name: registered.target for name, registered in self._components.items()})

    def _prepare_one(
        self, name: str, folder: Path | None, read: Callable[[str], memoryview], live: Mapping[str, object]
    ) -> Callable[[], object]:
        return self._components[name].prepare(self._saved_name(name), folder, read, trusted=self._trusted, live=live)

    def _restore_one(self, name: str, folder: Path | None, read: Callable[[str], memoryview]) -> None:
        """Restore what holds others when these are what they were: it may compute something from them, such as a key's hash."""
        self._prepare_one(name, folder, read, self._present())()

    def _apply(self, snapshot: Snapshot, steps: list[tuple[str, Callable[[], object]]]) -> None:
        names = [name for name, _ in steps]
        for number, (name, restore) in enumerate(steps):
            try:
                restore()
            except Exception as error:
                raise ComponentError(
                    f"component {name!r} did not take its state: {type(error).__name__}: {error}; "
                    f"restored before it: {spell_names(names[:number])}; not touched: {spell_names(names[number + 1 :])}",
                    key=snapshot.name,
                    place=self._place.place,
                    component=name,
                    loaded=names[:number],
                    untouched=names[number + 1 :],
                ) from error


class _Asked(dict[str, object]):
    """Live objects by name, and which components were asked for, or for a tensor of them."""

    def __init__(self, live: Mapping[str, object]) -> None:
        super().__init__(live)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> object:
        self.asked.add(name.partition("/")[0])
        return super().__getitem__(name)


def _read_only(memory: Mapping[str, memoryview], part: str) -> memoryview:
    return memory[part].toreadonly()


def _after_what_they_hold(holds: Mapping[str, list[str]]) -> list[str]:
    """The order in which each comes after those that it holds; within a circle, and otherwise, as they are registered."""
    order: list[str] = []
    begun: set[str] = set()
    for first in holds:
        path = [] if first in begun else [first]  # each holds the next
        while path:
            begun.add(path[-1])
            following = next((other for other in holds[path[-1]] if other not in begun), None)
            if following is None:
                order.append(path.pop())
            else:
                path.append(following)
    return order


def _compare(saved: list[str], mine: list[str], lacking: list[str], extra: list[str]) -> str:
    """Say what a snapshot holds, what is registered, and how that differs."""
    is_registered = "nothing is registered"
    if mine:
        is_registered = f"registered {'is' if len(mine) == 1 else 'are'} {spell_names(mine)}"
    said = []
    if lacking:
        said.append(f"it lacks {spell_names(lacking)}")
    if extra and mine:
        said.append(f"{spell_names(extra)} of it {'is' if len(extra) == 1 else 'are'} not registered")
    return "; ".join([f"the snapshot holds {spell_names(saved)}, and {is_registered}", ", and ".join(said)]).removesuffix("; ")


def one_by_one(report: Callable[[int], object]) -> Report:
    """Report from several threads, one at a time."""
    lock = Lock()

    def locked(number: int) -> None:
        with lock:
            report(number)

    return locked


def _ignore(number: int) -> None:
    pass
