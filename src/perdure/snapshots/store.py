"""`StateStore`: all-or-nothing snapshots of registered objects."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import DuplicateNameError, PerdureError, UsageError
from ..mapping.progress import Progress
from .components import Registered, Value, adapt, spell_names
from .loading import Loading
from .manifest import Snapshot, check_component_name, check_metadata, is_bad_name
from .place import Draft, open_place
from .saving import Rest, Saving
from .taking import Taking
from .upkeep import Upkeep

if TYPE_CHECKING:
    from ..protocol import Backend
    from .conditions import AnyCondition
    from .durations import Duration
    from .keep import Keeper
    from .running import Running

T = TypeVar("T")
_log = logging.getLogger("perdure.snapshots")


class StateStore(Upkeep):
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
        keep: Which snapshots stay; the others are removed after each save. By default all stay.
        trusted: Whether pickles in this place may name any code, which reading them runs. `False` reads and writes plain data,
            arrays, tensors and what `perdure.register_type` was told of. By default `True` in folders and local files, and
            `False` where other machines write. What components read from their own files is up to them.
        sync: `"full"`: a snapshot survives a power cut. `"normal"`: the end of the process. By default what the URL says,
            or full.
        share: Whether unchanged parts are stored once: hard links in a folder, shared pieces elsewhere. Only parts that this
            process has written or verified are shared, so damage does not spread unseen.
        rank: The number of this process, from 0, in a job of several that save one snapshot together.
        world_size: How many they are.
        rank_timeout: Seconds to wait for the others.

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
        keep: Keeper | None = None,
        trusted: bool | None = None,
        sync: str | None = None,
        share: bool = True,
        rank: int = 0,
        world_size: int = 1,
        rank_timeout: float = 600.0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UsageError(
                f"rank is a number from 0 to {world_size - 1}, not {rank}", hint="world_size is how many there are."
            )
        super().__init__(open_place(states_dir, sync=sync, share=share), keep)
        self.states_dir: Any = self._place.path or states_dir
        self.state_name_format = state_name_format
        self.trusted = not self._place.shared_by_machines if trusted is None else trusted
        self._components: dict[str, Registered] = {}
        self._states: dict[str, object] = {}
        self._turn = Lock()
        self._process = os.getpid()
        self._saving: Saving | None = None
        self._swept = False
        self.active_run: Running | None = None
        """What `running` has entered and not left."""
        self._ranks = None
        if world_size > 1:
            from .ranks import Ranks

            self._ranks = Ranks(self._place, rank, world_size, rank_timeout)
        self._snapshot_name()  # a wrong format is noticed now and not after an hour

    # ------------------------------------------------------------------------------------------------------- registering

    def register(self, name: str, state: Any) -> None:
        """Make an object a part of all snapshots from now on.

        Args:
            name: Its name in the snapshot, and of its files.
            state: An object with `save_state(path)` and `load_state(path)`; with `state_dict()` and `load_state_dict()`, as
                those of PyTorch have; or any other that pickle could take, which is restored in place by `__setstate__` or its
                attributes. For a plain value see `register_value`.

        Raises:
            DuplicateNameError: The name is taken. (A `KeyError`.)
            UsageError: It is no name for files.
            UsageTypeError: The object cannot be restored in place.
        """
        if name in self._components:
            raise DuplicateNameError(f"a component called {name!r} is registered already", hint="Choose another name.")
        check_component_name(name, list(self._components))
        self._components[name] = adapt(name, state)
        self._states[name] = state

    def register_value(self, name: str, value: T) -> Value[T]:
        """Make a plain value a part of all snapshots, and get a place to keep it: `step = store.register_value("step", 0)`.

        Args:
            name: As for `register`.
            value: What it is until a snapshot is loaded; anything that pickle takes.

        Returns:
            Its `.value` is saved, and set by loading.

        Raises:
            DuplicateNameError, UsageError: As `register`.
        """
        holder = Value(value)
        self.register(name, holder)
        return holder

    def unregister(self, name: str) -> None:
        """Leave an object out of snapshots from now on.

        Raises:
            UsageError: None is called so.
        """
        if name not in self._components:
            raise UsageError(f"no component is called {name!r}", hint=f"Registered: {spell_names(self._components)}.")
        del self._components[name], self._states[name]

    @property
    def components(self) -> dict[str, object]:
        """What is registered, by name."""
        return dict(self._states)

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

            Whatever is raised, no trace is left, and earlier snapshots are as they were.
        """
        with self._alone():
            self.wait()
            _, complete = self._begin(metadata, isolate=False, progress=progress)
            return complete()

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
        turn = self._take_turn()
        rest = None
        try:
            self.wait()
            draft, complete = self._begin(metadata, isolate=True)
            rest = Rest(complete, draft.abandon, turn.release)
            self._saving = Saving(rest)
            return self._saving
        except BaseException:
            if rest is None:
                turn.release()
            else:
                rest.cancel()
            raise

    def wait(self) -> None:
        """Wait until no save is under way.

        Raises:
            PerdureError: What a background save raised, unless its `wait` did.
        """
        saving = self._saving
        if saving is not None and os.getpid() == self._process:
            try:
                saving.surface()
            finally:
                if self._saving is saving:
                    self._saving = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from saving and loading meanwhile."""
        turn = self._take_turn()
        try:
            yield
        finally:
            turn.release()

    def _take_turn(self) -> Lock:
        if os.getpid() != self._process:  # a child: the thread that would release the lock is its parent's
            self._process, self._turn, self._saving = os.getpid(), Lock(), None
        turn = self._turn
        turn.acquire()
        return turn

    def _begin(
        self, metadata: Mapping[str, Any] | None, *, isolate: bool, progress: Progress = False
    ) -> tuple[Draft, Callable[[], Path]]:
        """Take what has to be taken from the objects, and return what was begun and what does the rest."""
        taking = Taking(self._place, self._components, self._ranks, trusted=self.trusted)
        name, saved = self._snapshot_name(), datetime.now(UTC)
        if not self._swept:
            self._sweep()
        draft, snapshot = taking.begin(name, saved, metadata, isolate=isolate)
        return draft, lambda: self._complete(taking, draft, snapshot, progress)

    def _complete(self, taking: Taking, draft: Draft, snapshot: Snapshot, progress: Progress) -> Path:
        snapshot = taking.complete(draft, snapshot, progress)
        if self.keep is not None and (self._ranks is None or self._ranks.first):
            try:
                self.cleanup()
            except PerdureError as error:
                _log.warning("the snapshot is saved, and older ones could not be cleaned up: %s", error)
        return snapshot.path or Path(snapshot.name)

    def _snapshot_name(self) -> str:
        name = datetime.now().strftime(self.state_name_format)  # noqa: DTZ005 - the local time, as people read it
        if is_bad_name(name) or name[0] == ".":
            hint = "Give a format for strftime without separators, such as %Y-%m-%d_%H-%M-%S.state."
            raise UsageError(f"state_name_format makes {name!r}, which is no name for a snapshot", hint=hint)
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
        with self._alone():
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
        with self._alone():
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

        with self._alone():
            adopted = adopt(self._place, self._components, state_path, check_metadata(metadata))
        return adopted.path or Path(adopted.name)

    # ------------------------------------------------------------------------------------------------------- while it runs

    def running(
        self,
        every: Duration | None = None,
        *,
        condition: AnyCondition | None = None,
        background: bool = True,
        deadline: Duration = 30.0,
        final: bool = True,
        signals: bool | Iterable[int] = True,
        load: bool = True,
    ) -> Running:
        """Do the usual thing around a loop: resume, save when it is time, and once more at the end or when a signal comes.

        ::

            with checkpoint.running(every="10 min") as run:
                for step in range(run.step, 1000):
                    train(step)
                    run.tick({"step": step, "loss": loss})

        Args:
            every: Seconds, text such as `"10 min"`, or a timedelta; by default ten minutes.
            condition: When to save besides, such as `EverySteps(1000) | OnImprovement("loss")`.
            background: Whether to go on while a snapshot is being stored.
            deadline: How long after a signal the program may go on, the final save included.
            final: Whether to save at the end, and before a signal acts.
            signals: Whether SIGTERM and Ctrl-C wait for the next `tick`; or which signals do. In a job of several ranks they
                act as ever, as the others may be at another step.
            load: Whether to load the newest snapshot on entering.

        Returns:
            A context manager; see `Running`.

        Raises:
            UsageError: An argument is wrong, or `every` is given in a job of several ranks.
        """
        from .running import Running

        if self._ranks is not None:
            if every is not None or condition is None:
                hint = "Use condition=EverySteps(n), with the step in the metadata."
                raise UsageError("several ranks save at the same steps, and each has a clock of its own", hint=hint)
            signals = False
        return Running(
            self,
            every=every,
            condition=condition,
            background=background,
            deadline=deadline,
            final=final,
            signals=signals,
            load=load,
        )

    def tick(self, metadata: Mapping[str, Any] | None = None) -> bool:
        """Say that the state is consistent now, inside of `running`; see `Running.tick`.

        Raises:
            UsageError: It is not running.
        """
        if self.active_run is None:
            raise UsageError("tick() outside of running()", hint="Call it inside of `with store.running(...):`.")
        return self.active_run.tick(metadata)

    def on_preemption(self, deadline: Duration = 30.0, *, signals: Iterable[int] | None = None) -> Running:
        """Save once more when SIGTERM or Ctrl-C comes, and never else: `with store.on_preemption():`, and `tick` in the loop.

        As `running`, but without resuming, regular saves and a save at the end.

        Args:
            deadline: How long after the signal the program may go on, the final save included.
            signals: Which signals; by default SIGTERM and SIGINT.

        Raises:
            UsageError: An argument is wrong.
        """
        return self.running(math.inf, deadline=deadline, signals=True if signals is None else signals, load=False)

    def close(self) -> None:
        """Wait for a save that is under way, and release what is held open. Raises its error, as `wait`."""
        try:
            self.wait()
        finally:
            self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<StateStore {self._place.place}: {spell_names(self._components)}>"
