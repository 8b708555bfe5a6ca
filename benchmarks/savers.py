"""Libraries that save values to files: how they take part beside snapshots."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from . import contestants


class Saver(NamedTuple):
    """Saves one value into an empty folder, and loads it from there.

    Attributes:
        wait: Until what it does in the background is done.
    """

    save: Callable[[str], object]
    load: Callable[[str], Any]
    wait: Callable[[], object] = lambda: None


def general(value: Any, notes: list[str]) -> dict[str, Saver]:
    """Libraries that save any value."""

    def dump(folder: str) -> None:
        with open(f"{folder}/state.pkl", "wb") as file:
            pickle.dump(value, file, protocol=5)

    def load(folder: str) -> Any:
        with open(f"{folder}/state.pkl", "rb") as file:
            return pickle.load(file)

    peers = {"pickle, to and from the file": Saver(dump, load)}
    if (joblib := contestants.optional("joblib", notes)) is not None:
        peers["joblib"] = Saver(
            lambda folder: joblib.dump(value, f"{folder}/state.joblib"),
            lambda folder: joblib.load(f"{folder}/state.joblib"),
        )
    if (pamiq := contestants.optional("pamiq_core.state_persistence", notes, "pamiq-core")) is not None:
        peers["pamiq-core"] = _pamiq(pamiq, value)
    return peers


def _pamiq(module: Any, value: Any) -> Saver:
    """Its store, with a component that pickles itself as the components that it comes with do."""

    class Component:
        value: Any = None

        def save_state(self, path: Any) -> None:
            module.save_pickle(self.value, path.with_suffix(".pkl"))

        def load_state(self, path: Any) -> None:
            self.value = module.load_pickle(path.with_suffix(".pkl"))

    def save(folder: str) -> None:
        component = Component()
        component.value = value
        store = module.StateStore(folder)
        store.register("model", component)
        store.save_state()

    def load(folder: str) -> Any:
        component = Component()
        store = module.StateStore(folder)
        store.register("model", component)
        store.load_state(f"{folder}/{os.listdir(folder)[0]}")
        return component.value

    return Saver(save, load)


def for_arrays(arrays: Mapping[str, Any], stack: ExitStack, notes: list[str]) -> dict[str, Saver]:
    """Libraries that save arrays by their names."""
    peers: dict[str, Saver] = {}
    if (torch := contestants.optional("torch", notes)) is not None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        peers["torch.save, torch.load"] = Saver(
            lambda folder: torch.save(tensors, f"{folder}/state.pt"), lambda folder: torch.load(f"{folder}/state.pt")
        )
        if (dcp := contestants.optional("torch.distributed.checkpoint", notes)) is not None:
            peers["torch.distributed.checkpoint"] = _distributed(torch, dcp, tensors, notes)
    if (safetensors := contestants.optional("safetensors.numpy", notes, "safetensors")) is not None:
        peers["safetensors"] = Saver(
            lambda folder: safetensors.save_file(arrays, f"{folder}/state.safetensors"),
            lambda folder: safetensors.load_file(f"{folder}/state.safetensors"),
        )
    if (orbax := contestants.optional("orbax.checkpoint", notes, "orbax-checkpoint")) is not None:
        saver = stack.enter_context(orbax.StandardCheckpointer())
        notes.append("orbax: StandardCheckpointer, which compresses, and stores in the background after the caller goes on")
        peers["orbax"] = Saver(
            lambda folder: saver.save(f"{folder}/state", arrays),
            lambda folder: saver.restore(f"{folder}/state"),
            saver.wait_until_finished,
        )
    return peers


def _distributed(torch: Any, dcp: Any, tensors: Mapping[str, Any], notes: list[str]) -> Saver:
    notes.append("torch.distributed.checkpoint: in one process, without a process group")

    def load(folder: str) -> Mapping[str, Any]:
        state = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        dcp.load(state, checkpoint_id=folder, no_dist=True)
        return state

    return Saver(lambda folder: dcp.save(tensors, checkpoint_id=folder, no_dist=True), load)
