"""`StateStore`: all-or-nothing snapshots of registered objects."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..durations import Duration, seconds
from ..errors import PerdureError, UsageError, UsageTypeError
from ..mapping.progress import Progress
from .components import spell_names
from .loading import Loading
from .looping import Looping
from .manifest import Snapshot
from .metadata import check_metadata
from .names import why_bad_name
from .place import Draft, open_place
from .registering import Registering
from .saving import Rest, Saving
from .taking import Taking
from .turn import Turn
from .upkeep import Upkeep

if TYPE_CHECKING:
    from ..protocol import Backend
    from .keep import Policy

_log = logging.getLogger("perdure.snapshots")


class StateStore(Registering, Looping, Upkeep):
    """Saves and restores registered objects together, in snapshots that are there as a whole or not at all.

    ::

        checkpoint = perdure.StateStore("run-42", keep=perdure.KeepLatest(3))
        checkpoint.register("model", model)
        checkpoint.load_latest()
        checkpoint.save_state({"step": 1000})

    A snapshot appears when all its parts are durable, with a manifest that has the digest of each. Whoever is killed before
    leaves nothing that anybody would take for a snapshot. Loading compares all parts with their digests before any object is
    touched. Parts that did not change are not stored again.

    Several stores, processes and machines may save into one place and clean it up. The methods may be called from any thread;
    objects must not change while `save_state` runs, or until `save_async` returns.

    Args:
        states_dir: Where: a path or a `file:` URL for snapshots that are directories, or another URL or a backend, in which
            they are objects. Nothing is made before the first save.
        state_name_format: What a snapshot is called, for `strftime`, by local time. A name that is taken gets a suffix. Names
            do not order snapshots; their numbers do.
        keep: Which snapshots stay; the others are removed after each save. By default all stay. A keeper, or any object with
            the method `select` of one, or text such as `"latest=3,best=1:loss"`.
        trusted: Whether pickles in this place may name any code, which reading them runs. `False` reads and writes plain data,
            arrays, tensors and what `perdure.register_type` was told of. By default `True` in folders and local files, and
            `False` where other machines write. What components read from their own files is up to them.
        sync: `"full"`: a snapshot survives a power cut. `"normal"`: the end of the process. By default what the URL says,
            or full.
        share: Whether unchanged parts are stored once: hard links in a folder, shared pieces elsewhere. Only parts that this
            process has written or verified are shared, so damage does not spread unseen.
        rank: The number of this process, from 0, in a job of several that save one snapshot together.
        world_size: How many they are.
        rank_timeout: How long to wait for the others: seconds, text such as `"10 min"`, or a timedelta.

    Raises:
        UsageError: An argument is wrong.
        BackendError: The place is something else.

    Cost: a save reads each byte once for its digest (BLAKE3, several threads) and writes each changed byte once; besides, in a
    folder, four fsyncs and a rename for all, and one fsync for each part; in a bucket eight requests. Memory: see
    `save_async`.
    """

    def __init__(
        self,
        states_dir: str | os.PathLike[str] | Backend,
        state_name_format: str = "%Y-%m-%d_%H-%M-%S,%f.state",
        *,
        keep: Policy | str | None = None,
        trusted: bool | None = None,
        sync: str | None = None,
        share: bool = True,
        rank: int = 0,
        world_size: int = 1,
        rank_timeout: Duration = 600.0,
    ) -> None:
        _check_ranks(rank, world_size)
        Registering.__init__(self)
        Looping.__init__(self)
        Upkeep.__init__(self, open_place(states_dir, sync=sync, share=share), keep)
        if not isinstance(state_name_format, str):
            raise UsageTypeError(f"state_name_format is text for strftime, not {state_name_format!r:.60}")
        self.states_dir: Any = self._place.path or states_dir
        self.state_name_format = state_name_format
        self.trusted = not self._place.shared_by_machines if trusted is None else trusted
        self._turn = Turn()
        self._saving: Saving | None = None
        self._swept = False
        self._ranks = None
        if world_size > 1:
            from .ranks import Ranks

            self._ranks = Ranks(self._place, rank, world_size, seconds(rank_timeout, "rank_timeout"))
        self._snapshot_name()  # a wrong format is noticed now and not after an hour

    # ------------------------------------------------------------------------------------------------------------ saving

    def save_state(self, metadata: Mapping[str, Any] | None = None, *, progress: Progress = False) -> Path:
        """Save all registered objects, and return when the snapshot is durable.

        Args:
            metadata: What to write into the manifest: step, loss, configuration; what JSON holds, and single numbers of numpy
                and torch.
            progress: `True` shows a bar (`pip install 'perdure[progress]'`); a function gets bytes done and in all
                (`None` while saving, as it is not known before).

        Returns:
            The snapshot's folder; in a backend its name. `load_state` takes it.

        Raises:
            ComponentError: An object could not be saved; it is named.
            CodecError: An object holds what cannot be pickled, or an untrusted reader would refuse.
            UsageError: The metadata cannot be written.
            BackendError: The place failed: disk full, read-only, unreachable. Also what an earlier background save raised, if
                nobody was told; then nothing is saved.
            MissingRankError: Another process of the job did not save its part in time.
            UsageError: Also if a component, a policy or a signal's handler asks while the same thread is saving or loading.

            UnknownOutcomeError: Rank 0 of the job, or a place far away, went silent: the snapshot is there as a whole or not.

            Whatever else is raised, no trace is left. Earlier snapshots are as they were.
        """
        return self._save(metadata, progress=progress)

    def save_if_changed(self, metadata: Mapping[str, Any] | None = None) -> Path:
        """As `save_state`, unless the newest snapshot is whole and has the same state and metadata: then there is no other one.

        In a job of several ranks it is `save_state`.

        Args:
            metadata: As for `save_state`.

        Returns:
            The snapshot that has this state, new or not.

        Raises:
            Exception: As `save_state`.
        """
        return self._save(metadata, unless_there=True)

    def save_async(self, metadata: Mapping[str, Any] | None = None) -> Saving:
        """Save all registered objects, and return as soon as they may change; the rest happens in a thread.

        In a folder everything is written by then, and the thread makes it durable; no memory is needed. In a backend changed
        arrays are copied, up to 1 GiB at a time, and the thread sends them; for more than that the call waits.

        Args:
            metadata: As for `save_state`.

        Returns:
            What is under way. Its `wait` raises the error of the thread; if nobody waits, the next save or `wait` does.

        Raises:
            Exception: As `save_state`. A save that is under way is waited for first: there are never two.
        """
        with self._turn.lock(self._place.place):
            self._turn.settle()
            rest = None
            try:
                self.wait()
                draft, complete = self._begin(metadata, isolate=True)
                rest = Rest(complete, draft.abandon)
                self._saving = saving = Saving(rest, self._turn)
                return saving
            except BaseException:
                if rest is not None:
                    rest.cancel()
                raise

    def wait(self) -> None:
        """Wait until no save is under way.

        Raises:
            PerdureError: What a background save raised, unless its `wait` did.
        """
        saving = self._saving
        if saving is not None:
            try:
                saving.surface()
            finally:
                if self._saving is saving:
                    self._saving = None

    def _save(self, metadata: Mapping[str, Any] | None, *, progress: Progress = False, unless_there: bool = False) -> Path:
        with self._turn.lock(self._place.place):
            self._turn.settle()
            self.wait()
            _, complete = self._begin(metadata, isolate=False, progress=progress, unless_there=unless_there)
            return complete()

    def _begin(
        self,
        metadata: Mapping[str, Any] | None,
        *,
        isolate: bool,
        progress: Progress = False,
        unless_there: bool = False,
    ) -> tuple[Draft, Callable[[], Path]]:
        """Take what has to be taken from the objects, and return what was begun and what does the rest."""
        taking = Taking(self._place, self._components, self._ranks, trusted=self.trusted)
        name, saved = self._snapshot_name(), datetime.now(UTC)
        if not self._swept:
            self._sweep()
        draft, snapshot = taking.begin(name, saved, metadata, isolate=isolate)

        def complete() -> Path:
            there = taking.same(draft, snapshot) if unless_there and self._ranks is None else None
            return self._path_of(there) if there is not None else self._complete(taking, draft, snapshot, progress)

        return draft, complete

    def _complete(self, taking: Taking, draft: Draft, snapshot: Snapshot, progress: Progress) -> Path:
        snapshot = taking.complete(draft, snapshot, progress)
        if self.keep is not None and (self._ranks is None or self._ranks.first):
            try:
                self.cleanup()
            except PerdureError as error:
                _log.warning("the snapshot is saved, and older ones could not be cleaned up: %s", error)
            except Exception:  # of a policy; the snapshot is there all the same
                _log.exception("the snapshot is saved, and older ones could not be cleaned up, as %r failed", self.keep)
        return self._path_of(snapshot)

    @staticmethod
    def _path_of(snapshot: Snapshot) -> Path:
        return snapshot.path or Path(snapshot.name)

    def _snapshot_name(self) -> str:
        name = datetime.now().strftime(self.state_name_format)  # noqa: DTZ005 - the local time, as people read it
        problem = why_bad_name(name) or ("it begins with a dot, as what is hidden does" if name[0] == "." else "")
        if problem:
            hint = "Give a format for strftime without separators, such as %Y-%m-%d_%H-%M-%S.state."
            raise UsageError(f"state_name_format makes {name!r}, which is no name for a snapshot: {problem}", hint=hint)
        return name

    def _sweep(self) -> None:
        """Remove what killed processes have left, once; not being able to is no reason not to save."""
        self._swept = True
        try:
            self._place.sweep()
        except PerdureError as error:
            _log.warning("what killed processes left could not be removed: %s", error)

    # ----------------------------------------------------------------------------------------------------------- loading

    def load_state(self, state_path: str | os.PathLike[str], *, strict: bool = True, progress: Progress = False) -> None:
        """Restore all registered objects from a snapshot, which is verified as a whole first.

        Args:
            state_path: What `save_state` returned, or the snapshot's name, or its path; in a folder any path to one.
            strict: `False` allows that the snapshot lacks registered objects, which stay as they are, or holds others.
            progress: As for `save_state`.

        Raises:
            SnapshotNotFoundError: There is none, or it was never completed. (A `FileNotFoundError`.)
            IntegrityError: A part is damaged or missing; it is named. No object was touched.
            CodecError: It is of a newer format, or cannot be read here. No object was touched.
            UntrustedError: It would run code. No object was touched.
            UsageError: Other objects are registered than were saved; both are listed. No object was touched.
            ComponentError: An object did not take its state; the error says which have theirs and which were not touched.
        """
        with self._turn.lock(self._place.place):
            self._turn.settle()
            self._loading().load(self._place.find(state_path), strict, progress)

    def load_latest(self, *, strict: bool = True, progress: Progress = False) -> Snapshot | None:
        """Restore all registered objects from the newest snapshot that is whole.

        One that is damaged is named in a warning of the logger `perdure.snapshots`, and passed over.

        Args:
            strict: As for `load_state`.
            progress: As for `save_state`.

        Returns:
            The snapshot that was loaded, whose `metadata` tells step and the like; `None` where there is none yet.

        Raises:
            IntegrityError: There are snapshots, and none is whole.
            CodecError: One is of a newer format, and may be the newest: to go on from an older one would lose work.
            UntrustedError, UsageError, ComponentError, BackendError: As `load_state`.
        """
        with self._turn.lock(self._place.place):
            self._turn.settle()
            return self._loading().latest(strict, progress)

    def _loading(self) -> Loading:
        return Loading(self._place, self._components, self._ranks, trusted=self.trusted)

    def adopt(self, state_path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> Path:
        """Make a snapshot of a folder that another program wrote, such as pamiq-core: from now on it has a manifest.

        It gets the next number, so adopt several in the order in which they were saved.

        Args:
            state_path: A folder in that of the store, which holds what the registered objects load from: each has
                `load_state`, and a file `<name>`, `<name>.<anything>` or a folder `<name>`.
            metadata: As for `save_state`.

        Raises:
            SnapshotNotFoundError: There is no such folder.
            UsageError: It is a snapshot already, holds nothing of a registered object, or the store is not in a folder.
        """
        from .adopting import adopt

        with self._turn.lock(self._place.place):
            self._turn.settle()
            adopted = adopt(self._place, self._components, state_path, check_metadata(metadata))
        return self._path_of(adopted)

    def close(self) -> None:
        """End `running` or `on_preemption`, wait for a save that is under way, and release what is held open.

        Raises:
            PerdureError: What a save raised, as `wait`.
        """
        try:
            if self.active_run is not None:
                self.active_run.close()
            self.wait()
        finally:
            self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.active_run is not None:
                self.active_run.__exit__(kind, error, trace)  # which saves nothing that is half changed
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<StateStore {self._place.place}: {spell_names(self._components)}>"


def _check_ranks(rank: int, world_size: int) -> None:
    for name, number, least in (("world_size", world_size, 1), ("rank", rank, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise UsageError(f"{name} is a whole number from {least} on, not {number!r:.60}")
    if rank >= world_size:
        hint = "world_size is how many processes there are."
        raise UsageError(f"rank is a number from 0 to {world_size - 1}, not {rank}", hint=hint)
