"""Random generators as one component: what they give after a restart is what they would have given without it."""

from __future__ import annotations

import copy
import copyreg
import importlib
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from ..errors import CodecError, UsageError, UsageTypeError

__all__ = ["OneGenerator", "RandomGenerators"]


class _Source(NamedTuple):
    """A generator, whatever its library calls its methods. `rehearse` sets a state to another generator of the same kind."""

    kind: str
    get: Callable[[], Any]
    set: Callable[[Any], object]
    rehearse: Callable[[Any], object]


class RandomGenerators:
    """Python's `random`, the global generators of numpy and torch, and others that are given, as one component.

    Of numpy and torch, those that are imported when the state is saved; of CUDA, those of all devices if CUDA is in use.

    Args:
        *generators: `numpy.random.Generator`, `numpy.random.RandomState`, `numpy.random.BitGenerator`, `random.Random` and
            `torch.Generator`, to be given in the same order when the state is loaded. What a generator of numpy was seeded with
            is not part of its state, so what is spawned from it after a restart may be what was spawned before.

    Raises:
        UsageTypeError: Something else, or `random.SystemRandom`, which has no state.

    Thread safety: as far as that of the generators goes; let no other thread use them while a state is taken or set.
    """

    def __init__(self, *generators: object) -> None:
        self._others: list[_Source] = []
        for generator in generators:
            source = _source(generator)
            if source is None:
                hint = "Give generators of numpy.random, random.Random or torch.Generator."
                raise UsageTypeError(f"{generator!r:.80} is no random generator whose state can be saved", hint=hint)
            self._others.append(source)

    def state_dict(self) -> dict[str, Any]:
        """The states of all: plain data, arrays and tensors. Cost: microseconds, and for the devices of CUDA milliseconds."""
        state = {source.kind: source.get() for source in _global_sources(lambda library: library in sys.modules)}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state_all()
        state["others"] = [{"kind": source.kind, "state": source.get()} for source in self._others]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all generators, or none if something is wrong with any state. numpy and torch are imported if needed.

        Generators that the state does not have are left as they are. So are, with a warning, those of CUDA devices that are not
        there.

        Args:
            state: What `state_dict` returned, there or in another process.

        Raises:
            UsageError: It is the state of other generators than were given here.
            CodecError: It is no such state, or of a library that is not installed.
        """
        try:
            kinds = [str(stored["kind"]) for stored in state["others"]]
            if kinds != [source.kind for source in self._others]:
                problem = f"the state is of {_list(kinds)}, and this has {_list(source.kind for source in self._others)}"
                hint = "Give RandomGenerators the same generators, in the same order, as when the state was saved."
                raise UsageError(problem, hint=hint)
            states = [(source, state[source.kind]) for source in _global_sources(state.__contains__)]
            states += [(source, stored["state"]) for source, stored in zip(self._others, state["others"], strict=True)]
            for source, stored in states:
                source.rehearse(stored)  # which raises what is to be raised while nothing has been changed yet
            cuda = _cuda_states(state["cuda"]) if "cuda" in state else []
        except UsageError:
            raise
        except ImportError as error:
            problem = f"the state of random generators needs what cannot be found here: {error}"
            raise CodecError(problem, hint="Install what the state was saved with.") from error
        except Exception as error:
            problem = f"this is no state of random generators: {type(error).__name__}: {str(error)[:200]}"
            raise CodecError(problem, hint="Pass what state_dict() returned.") from error
        for source, stored in states:
            source.set(stored)
        for device, stored in enumerate(cuda):
            importlib.import_module("torch").cuda.set_rng_state(stored, device)


class OneGenerator:
    """A generator that is a component by itself.

    Args:
        generator: One of those that `RandomGenerators` takes. Not of a subclass that adds attributes to it, as these would be
            lost.

    Raises:
        UsageTypeError: Something else.
    """

    def __init__(self, generator: object) -> None:
        more = hasattr(generator, "__dict__") or copyreg._slotnames(type(generator))  # type: ignore[attr-defined]  # noqa: SLF001
        source = None if more and type(generator) is not random.Random else _source(generator)
        if source is None:
            raise UsageTypeError(f"{generator!r:.80} is no random generator whose whole state can be saved")
        self._source = source

    def state_dict(self) -> dict[str, Any]:
        """Its kind and state."""
        return {"kind": self._source.kind, "state": self._source.get()}

    def rehearse(self, state: Any) -> Callable[[], object]:
        """Look whether it can have a state, and return what sets it.

        Raises:
            UsageError: It is the state of another kind of generator.
            CodecError: It is no such state.
        """
        try:
            kind, stored = str(state["kind"]), state["state"]
            if kind == self._source.kind:
                self._source.rehearse(stored)
        except Exception as error:
            problem = f"this is no state of a random generator: {type(error).__name__}: {str(error)[:200]}"
            raise CodecError(problem, hint="Register the same kind of object as when it was saved.") from error
        if kind != self._source.kind:
            problem = f"the state is that of {kind:.100}, and registered is {self._source.kind}"
            raise UsageError(problem, hint="Register the same kind of generator as when it was saved.")
        return partial(self._source.set, stored)


def _global_sources(wanted: Callable[[str], bool]) -> Iterable[_Source]:
    """Python's own generator, and those of the libraries that are wanted."""
    yield _Source("python", random.getstate, random.setstate, random.Random().setstate)
    if wanted("numpy"):
        numpy = importlib.import_module("numpy.random")
        spare = numpy.RandomState(type(numpy.get_bit_generator())())
        yield _Source("numpy", partial(numpy.get_state, legacy=False), numpy.set_state, _checking(spare.set_state))
    if wanted("torch"):
        torch = importlib.import_module("torch")
        yield _Source("torch", torch.get_rng_state, torch.set_rng_state, torch.Generator().set_state)


def _source(generator: Any) -> _Source | None:
    if isinstance(generator, random.SystemRandom):
        return None
    if isinstance(generator, random.Random):
        return _Source("random.Random", generator.getstate, generator.setstate, random.Random().setstate)
    numpy, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy is not None and isinstance(generator, numpy.Generator):
        return _source_of_bits(generator.bit_generator, "numpy.random.Generator({})")
    if numpy is not None and isinstance(generator, numpy.BitGenerator):
        return _source_of_bits(generator, "numpy.random.{}")
    if numpy is not None and isinstance(generator, numpy.RandomState):
        get = partial(generator.get_state, legacy=False)
        kind = f"numpy.random.RandomState({get()['bit_generator']})"
        return _Source(kind, get, generator.set_state, _checking(copy.deepcopy(generator).set_state))
    if torch is not None and isinstance(generator, torch.Generator):
        device = generator.device
        return _Source(
            f"torch.Generator({device.type})", generator.get_state, generator.set_state, torch.Generator(device).set_state
        )
    return None


def _source_of_bits(bits: Any, kind: str) -> _Source:
    get, set_to = partial(getattr, bits, "state"), partial(setattr, bits, "state")
    rehearse = _checking(partial(setattr, copy.deepcopy(bits), "state"))
    return _Source(kind.format(type(bits).__name__), get, set_to, rehearse)


def _checking(rehearse: Callable[[Any], object]) -> Callable[[Any], object]:
    """Look at what numpy takes unseen: where in its buffers a generator is. It would go on to read behind them."""

    def check_first(state: Any) -> None:
        if not 0 <= state["state"].get("pos", 0) <= 624 or not 0 <= state.get("buffer_pos", 0) <= 4:
            raise ValueError("the position is outside of what it is a position in")
        rehearse(state)

    return check_first


def _cuda_states(states: Any) -> Any:
    """The states of those devices that are there. A generator to try them with would take a device into use."""
    torch = importlib.import_module("torch")
    if not all(isinstance(each, torch.Tensor) and each.dtype == torch.uint8 and each.dim() == 1 for each in states):
        raise ValueError("the state of a CUDA device is not made of bytes")
    count = torch.cuda.device_count()
    if len(states) > count:
        problem = f"the state has the random generators of {len(states)} CUDA devices, and there are {count} here"
        warnings.warn(f"{problem}; the others are left out", stacklevel=3)
    return states[:count]


def _list(kinds: Iterable[str]) -> str:
    listed = list(kinds)
    return f"{len(listed)} other generators ({', '.join(listed)})" if listed else "no other generators"
