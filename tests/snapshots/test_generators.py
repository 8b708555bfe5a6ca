"""Random generators go on after a restart with what they would have given without it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from packed_values import round_trip

from perdure.errors import CodecError, UsageError, UsageTypeError
from perdure.snapshots.generators import RandomGenerators

Draw = Callable[[], Any]


def after_a_restart(generators: RandomGenerators, draw: Draw) -> tuple[Any, Any]:
    """What is drawn without a restart, and with one: by way of the bytes of a snapshot, read without trust."""
    state = round_trip(generators.state_dict())
    without = draw()
    draw()
    generators.load_state_dict(state)
    return without, draw()


def bits(seeded: Any) -> tuple[Any, Draw]:
    return seeded, lambda: [seeded.random_raw() for _ in range(5)]


def modern(bit_generator: Any) -> tuple[Any, Draw]:
    generator = np.random.Generator(bit_generator)
    # Halves of 64 bits are kept for the next number of 32.
    generator.integers(0, 2**31, dtype=np.int32)
    return generator, lambda: (generator.integers(0, 2**31, 3, dtype=np.int32).tolist(), generator.standard_normal(3).tolist())


def legacy(state: np.random.RandomState) -> tuple[Any, Draw]:
    state.standard_normal()  # made in pairs, and the second one kept
    return state, lambda: (state.standard_normal(3).tolist(), state.randint(2**31, size=3).tolist())


def python(generator: random.Random) -> tuple[Any, Draw]:
    generator.gauss(0, 1)
    return generator, lambda: [generator.gauss(0, 1), generator.random(), generator.getrandbits(100)]


SOURCES: dict[str, Callable[[], tuple[Any, Draw]]] = {
    "random.Random": lambda: python(random.Random(5)),
    "Generator(PCG64)": lambda: modern(np.random.PCG64(5)),
    "Generator(PCG64DXSM)": lambda: modern(np.random.PCG64DXSM(5)),
    "Generator(Philox)": lambda: modern(np.random.Philox(5)),
    "Generator(SFC64)": lambda: modern(np.random.SFC64(5)),
    "Generator(MT19937)": lambda: modern(np.random.MT19937(5)),
    "RandomState": lambda: legacy(np.random.RandomState(5)),
    "RandomState(PCG64)": lambda: legacy(np.random.RandomState(np.random.PCG64(5))),
    "PCG64": lambda: bits(np.random.PCG64(5)),
    "MT19937": lambda: bits(np.random.MT19937(5)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_generator_goes_on_bit_for_bit(source: str) -> None:
    generator, draw = SOURCES[source]()
    without, restarted = after_a_restart(RandomGenerators(generator), draw)
    assert restarted == without


@pytest.mark.parametrize("source", SOURCES)
def test_a_new_generator_goes_on_where_the_old_one_was(source: str) -> None:
    (old, draw), (new, draw_new) = SOURCES[source](), SOURCES[source]()
    draw()
    state = round_trip(RandomGenerators(old).state_dict())
    RandomGenerators(new).load_state_dict(state)
    assert draw_new() == draw()


def test_the_global_generators_go_on_bit_for_bit() -> None:
    random.gauss(0, 1)
    np.random.standard_normal()
    without, restarted = after_a_restart(
        RandomGenerators(),
        lambda: (random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist(), np.random.rand()),
    )
    assert restarted == without


def test_another_process_goes_on_and_imports_what_it_needs() -> None:
    generators = RandomGenerators()
    state = generators.state_dict()
    code = (
        "import sys; from perdure.snapshots.generators import RandomGenerators\n"
        "loaded = 'numpy' in sys.modules\n"
        f"RandomGenerators().load_state_dict({_spelled(state)})\n"
        "import random; import numpy as np; print(loaded, random.random(), np.random.rand())"
    )
    code = code.replace("array(", "__import__('numpy').array(")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    generators.load_state_dict(state)
    assert done.stdout.split() == ["False", str(random.random()), str(np.random.rand())]


def _spelled(state: dict[str, Any]) -> str:
    with np.printoptions(threshold=10_000):
        return repr({name: part for name, part in state.items() if name != "torch"}).replace("dtype=uint32", "dtype='uint32'")


def test_what_is_not_imported_is_not_in_the_state() -> None:
    code = (
        "import sys; from perdure.snapshots.generators import RandomGenerators\n"
        "print(sorted(RandomGenerators().state_dict()), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['others', 'python'] False\n"


@pytest.mark.parametrize(
    "thing", [5, None, "generator", random, np.random, np.random.rand, random.SystemRandom(), random.Random]
)
def test_only_generators_with_a_state_are_taken(thing: object) -> None:
    with pytest.raises(UsageTypeError, match="no random generator whose state can be saved"):
        RandomGenerators(thing)


def test_the_state_of_other_generators_is_an_error_that_lists_both() -> None:
    state = RandomGenerators(random.Random(1), np.random.default_rng(1)).state_dict()
    for others in (
        (),
        (np.random.default_rng(1), random.Random(1)),
        (random.Random(1), np.random.Generator(np.random.SFC64())),
    ):
        with pytest.raises(UsageError, match=r"random\.Random, numpy\.random\.Generator\(PCG64\)") as caught:
            RandomGenerators(*others).load_state_dict(state)
        assert "no other generators" in str(caught.value) or "2 other generators" in str(caught.value).split("this has")[1]


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda state: {},
    "no others": lambda state: _without(state, "others"),
    "no python": lambda state: _without(state, "python"),
    "python of numbers": lambda state: state | {"python": (3, (1, 2), None)},
    "python of another version": lambda state: state | {"python": (7, *state["python"][1:])},
    "numpy of nothing": lambda state: state | {"numpy": {}},
    "numpy of another kind": lambda state: state | {"numpy": state["numpy"] | {"bit_generator": "PCG64"}},
    "numpy behind the end": lambda state: (
        state | {"numpy": state["numpy"] | {"state": state["numpy"]["state"] | {"pos": 10**6}}}
    ),
    "numpy too short": lambda state: (
        state | {"numpy": state["numpy"] | {"state": state["numpy"]["state"] | {"key": np.zeros(3, "u4")}}}
    ),
    "an other behind the end": lambda state: (
        state
        | {
            "others": [
                *state["others"][:-1],
                {"kind": "numpy.random.Philox", "state": np.random.Philox(1).state | {"buffer_pos": 9}},
            ]
        }
    ),
    "an other of nothing": lambda state: state | {"others": [*state["others"][:-1], {"kind": "numpy.random.Philox"}]},
    "others of nothing": lambda state: state | {"others": 5},
    "cuda of numbers": lambda state: state | {"cuda": [1]},
}


@pytest.mark.parametrize("how", WRONG)
def test_a_state_that_is_wrong_changes_no_generator(how: str) -> None:
    generator, philox = random.Random(1), np.random.Philox(1)
    generators = RandomGenerators(generator, philox)
    state = generators.state_dict()
    random.random(), np.random.rand(), generator.random(), philox.random_raw()
    before = generators.state_dict()
    with pytest.raises(CodecError):
        generators.load_state_dict(WRONG[how](state))
    # Of those from before: looking at the states of CUDA may have imported torch.
    assert repr({name: generators.state_dict()[name] for name in before}) == repr(before)
    generators.load_state_dict(state)
    assert repr({name: generators.state_dict()[name] for name in before}) != repr(before)
