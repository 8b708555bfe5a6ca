"""What torch and scikit-learn hold comes back bit for bit and goes on where it was. Skipped where they are absent."""

from __future__ import annotations

import copy
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_values import is_same, round_trip, written

from perdure.errors import CodecError, ComponentError, IntegrityError, UntrustedError
from perdure.snapshots import StateStore
from perdure.snapshots.generators import RandomGenerators
from perdure.snapshots.packing import check_readable, pack, unpack


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", exc_type=ImportError)


def training(torch: Any) -> tuple[Any, Any, Any]:
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)


def step(torch: Any, model: Any, optimizer: Any, schedule: Any) -> float:
    optimizer.zero_grad()
    loss = model(torch.randn(16, 20)).square().mean()
    loss.backward()
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def all_of(model: Any, optimizer: Any, schedule: Any) -> list[Any]:
    return [model.state_dict(), optimizer.state_dict(), schedule.state_dict()]


def is_same_state(torch: Any, one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same_state(torch, one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(is_same_state(torch, mine, yours) for mine, yours in zip(one, other, strict=True))
    return is_same(one, other)


@pytest.mark.parametrize("own", [1, 1 << 18])
def test_training_goes_on_bit_for_bit_in_new_objects_without_trust(torch: Any, own: int) -> None:
    torch.manual_seed(1)
    old = training(torch)
    for _ in range(5):
        step(torch, *old)
    generators = RandomGenerators()
    state = round_trip([all_of(*old), generators.state_dict()], own=own)
    without = [step(torch, *old) for _ in range(3)]
    new = training(torch)
    for each, part in zip(new, state[0], strict=True):
        each.load_state_dict(part)
    generators.load_state_dict(state[1])
    assert [step(torch, *new) for _ in range(3)] == without
    assert is_same_state(torch, all_of(*new), all_of(*old))


def test_a_whole_model_comes_back_with_trust(torch: Any) -> None:
    model, optimizer, schedule = training(torch)
    step(torch, model, optimizer, schedule)
    back = round_trip(model, trusted=True)
    assert is_same_state(torch, back.state_dict(), model.state_dict())
    assert all(type(weight) is torch.nn.Parameter and weight.requires_grad for weight in back.parameters())
    with pytest.raises(UntrustedError, match=r"torch\.nn\.modules\.container\.Sequential"):
        round_trip(model)


def test_parts_are_called_after_the_weights_and_numpy_reads_them(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 3))
    parts = pack({"model": model.state_dict(), "lr": 0.1}, "run")
    assert [part.name for part in parts] == ["run.pkl", "run/model.0.weight.npy"]
    read = np.load(io.BytesIO(b"".join(parts[1].pieces)))
    assert is_same(read, model[0].weight.detach().numpy())


def test_tensors_are_written_from_their_own_memory_and_read_into_what_was_given(torch: Any) -> None:
    tensor = torch.zeros(100_000)
    parts = pack([tensor], "it")
    assert np.shares_memory(tensor.numpy(), np.frombuffer(parts[1].pieces[1], np.uint8))
    memory = written(parts)
    back = unpack("it", memory.__getitem__, trusted=False)[0]
    assert np.shares_memory(back.numpy(), np.frombuffer(memory["it/0.npy"], np.uint8))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("own", [1, 1 << 18])
def test_tensors_of_every_type_come_back(torch: Any, own: int) -> None:
    names = "uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 float32 float64 bfloat16 complex64 complex128 bool "
    names += "complex32 float8_e4m3fn float8_e5m2"
    for dtype in [getattr(torch, name) for name in names.split() if hasattr(torch, name)]:
        for shape in ((), (0, 3), (3, 5)):
            size = int(np.prod(shape)) * dtype.itemsize
            content = torch.tensor([random.randrange(2) for _ in range(size)], dtype=torch.uint8)
            tensor = content.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
            back = round_trip(tensor, own=own)
            assert type(back) is torch.Tensor
            assert (back.dtype, back.shape, back.device.type) == (dtype, shape, "cpu")
            assert bytes(back.contiguous().reshape(-1).view(torch.uint8).tolist()) == bytes(content.tolist())


def test_values_that_are_no_numbers_stay_as_they_are(torch: Any) -> None:
    bits = torch.tensor([0x7FC1, -0x7F81, -0x8000, 1], dtype=torch.int16)  # two that are no numbers, minus zero, the smallest
    assert torch.equal(round_trip(bits.view(torch.bfloat16)).view(torch.int16), bits)


def test_views_come_back_with_their_values(torch: Any) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    complex_one = torch.randn(4, dtype=torch.complex64)
    for tensor in (
        base[0].T, base[:, 1], base[1:], base.permute(2, 0, 1), base[..., ::2], base[0, 0].expand(3, 4), complex_one.conj(),
        complex_one.conj().imag, torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), base.to(torch.bfloat16).mT,
    ):  # fmt: skip
        back = round_trip([tensor], own=1)[0]
        assert torch.equal(back, tensor)
        assert back.dtype == tensor.dtype


def test_tied_weights_are_tied_again_and_stored_once(torch: Any) -> None:
    model = torch.nn.ModuleDict({"in": torch.nn.Embedding(100, 50), "out": torch.nn.Linear(50, 100, bias=False)})
    model["out"].weight = model["in"].weight
    parts = pack(model.state_dict(), "it", own=1)
    assert [part.name for part in parts] == ["it.pkl", "it/in.weight.npy"]
    back = unpack("it", written(parts).__getitem__, trusted=False)
    assert back["in.weight"].data_ptr() == back["out.weight"].data_ptr()
    back["in.weight"][0, 0] = 7
    assert back["out.weight"][0, 0] == 7

    weight = torch.nn.Parameter(torch.randn(4, 5, dtype=torch.bfloat16))
    value = [weight, weight, weight.detach(), weight.data.view(20), weight.detach()[1:], weight.detach().clone()]
    back = round_trip(value)
    assert back[0] is back[1]
    assert back[0].data_ptr() == back[2].data_ptr() == back[3].data_ptr()
    assert back[3].shape == (20,)
    assert len({back[at].data_ptr() for at in (0, 4, 5)}) == 3
    assert all(torch.equal(mine, yours) for mine, yours in zip(back, value, strict=True))


def test_parameters_buffers_and_attributes_come_back(torch: Any) -> None:
    frozen, trained = torch.nn.Parameter(torch.ones(3), False), torch.nn.Parameter(torch.ones(3))
    leaf = torch.ones(2, requires_grad=True)
    leaf.note = {"of": leaf}
    back = round_trip([frozen, trained, leaf, leaf * 2])
    assert [type(tensor) for tensor in back] == [torch.nn.Parameter, torch.nn.Parameter, torch.Tensor, torch.Tensor]
    assert [tensor.requires_grad for tensor in back] == [False, True, True, True]
    assert back[2].note["of"] is back[2]
    (back[2] * 2).sum().backward()
    assert back[2].grad.tolist() == [2, 2]
    if hasattr(torch.nn, "Buffer"):
        assert isinstance(round_trip(torch.nn.Buffer(torch.ones(2))), torch.nn.Buffer)


def test_the_metadata_of_a_state_dict_comes_back(torch: Any) -> None:
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).state_dict()
    assert round_trip(state)._metadata == state._metadata


def test_types_devices_and_sizes_of_torch_come_back(torch: Any) -> None:
    value = [torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda:3"), torch.Size([2, 3]), torch.Size([])]
    back = round_trip(value)
    assert back == value
    assert [type(each) for each in back] == [type(each) for each in value]
    assert back[0] is torch.float32


def test_other_tensors_come_back_with_trust(torch: Any) -> None:
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(round_trip(sparse, trusted=True).to_dense(), torch.eye(3))
    assert round_trip(torch.ones(3, device="meta"), trusted=True).device.type == "meta"

    for tensor in (sparse, torch.ones(3, device="meta")):
        with pytest.raises(UntrustedError, match="torch"):
            check_readable(pack(tensor, "it"))


def test_hooks_of_tensors_are_left_out_with_the_warning_of_torch(torch: Any) -> None:
    hooked = torch.ones(2, requires_grad=True)
    hooked.register_hook(double)
    with pytest.warns(UserWarning, match="hook"):
        back = round_trip(hooked)
    back.sum().backward()
    assert back.grad.tolist() == [1, 1]


def double(gradient: Any) -> Any:
    return 2 * gradient


def test_tensors_that_cannot_be_are_refused(torch: Any) -> None:
    tensor = torch.arange(6, dtype=torch.int32).view(2, 3)
    whole = b"".join(pack([tensor, tensor.view(6), tensor.to(torch.bfloat16)], "it")[0].pieces)
    for old, new, error in (
        (b"bfloat16", b"bfloatXX", IntegrityError),
        (b"bfloat16", b"__name__", IntegrityError),
        (b"\x8c\x08bfloat16", b"\x8c\x07float64", IntegrityError),
        (b"\x8c\x08bfloat16", b"\x8c\x06qint32", IntegrityError),
        (b"NK\x00t", b"NK\x01t", IntegrityError),  # integers have no gradient
        (b"K\x06\x85", b"K\x07\x85", IntegrityError),
        (b"build_tensor", b"_reduce_them", UntrustedError),
    ):
        assert old in whole, old
        data = whole.replace(old, new)
        data = data[:3] + (len(data) - 11).to_bytes(8, "little") + data[11:]
        with pytest.raises(error):
            unpack("it", {"it.pkl": memoryview(bytearray(data))}.__getitem__, trusted=False)


def test_generators_of_torch_go_on_bit_for_bit(torch: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    generators = RandomGenerators(generator, random.Random(1))
    torch.randn(1), torch.randn(1, generator=generator)
    state = round_trip(generators.state_dict())

    def draw() -> list[Any]:
        return [
            torch.randn(17).tolist(),
            torch.rand(3, generator=generator).tolist(),
            torch.randperm(9, generator=generator).tolist(),
        ]

    without = draw()
    draw()
    generators.load_state_dict(state)
    assert draw() == without
    for wrong in (
        state | {"torch": state["torch"][:-1]},
        state | {"others": [{"kind": "torch.Generator(cpu)", "state": 1}, state["others"][1]]},
    ):
        before = draw_nothing(torch, generator)
        with pytest.raises(CodecError):
            generators.load_state_dict(wrong)
        assert draw_nothing(torch, generator) == before


def draw_nothing(torch: Any, generator: Any) -> list[Any]:
    return [torch.get_rng_state().tolist(), generator.get_state().tolist(), random.getstate()]


@pytest.mark.filterwarnings("default")
def test_states_of_devices_that_are_not_there_are_left_out_with_a_warning(torch: Any) -> None:
    count = torch.cuda.device_count()
    state = RandomGenerators().state_dict() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * (count + 2)}
    if count:
        pytest.skip("there are devices, whose states this would replace")
    with pytest.warns(UserWarning, match="2 CUDA devices, and there are 0 here"):
        RandomGenerators().load_state_dict(state)


class Trainer:
    """Holds a model, and an optimizer that nobody registers."""

    def __init__(self, torch: Any, model: Any, optimizer: str) -> None:
        self.model = model
        self.optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=0.02)
        self.losses: list[float] = []

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = (self.model(self.model.weight.new_ones(1, 4)) ** 2).sum()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        return self.losses[-1]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("first", ["model", "trainer"])
def test_an_optimizer_inside_another_object_goes_on_training_the_registered_model(
    torch: Any, tmp_path: Path, optimizer: str, first: str
) -> None:
    def begin() -> tuple[Any, Trainer]:
        model = torch.nn.Linear(4, 1)
        trainer, store = Trainer(torch, model, optimizer), StateStore(tmp_path / "states", trusted=True)
        for name in sorted(["model", "trainer"], key=lambda name: name != first):
            store.register(name, {"model": model, "trainer": trainer}[name])
        return store, trainer

    store, trainer = begin()
    for _ in range(3):
        trainer.step()
    store.save_state()
    without = [trainer.step() for _ in range(4)]
    assert len(set(without)) == 4
    for again, resumed in ((store, trainer), begin()):
        model = resumed.model
        again.load_latest()
        assert resumed.model is model
        assert resumed.optimizer.param_groups[0]["params"][0] is model.weight
        assert all(any(key is parameter for parameter in model.parameters()) for key in resumed.optimizer.state)
        assert [resumed.step() for _ in range(4)] == without


class Held:
    """Holds something."""

    def __init__(self, *held: Any) -> None:
        self.held = list(held)


@pytest.mark.parametrize("trusted", [True, False])
def test_parameters_of_modules_are_held_again_also_tied_ones(torch: Any, tmp_path: Path, trusted: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight
    held = Held(model[2].weight, model[1].running_mean, model[0].weight.detach().clone())
    store = StateStore(tmp_path / "states", trusted=trusted)
    store.register("held", held)
    store.register("model", model)
    before = model[0].weight.detach().clone()
    saved = store.save_state()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 1
    store.load_state(saved)
    assert held.held[0] is model[2].weight is model[0].weight
    assert held.held[1] is not model[1].running_mean  # a buffer may be one that no state dict has
    assert not held.held[1].any()
    assert torch.equal(model[0].weight, before)
    assert torch.equal(held.held[2], before)
    assert not model[1].running_mean.any()


@pytest.mark.parametrize("trusted", [True, False])
def test_modules_save_their_own_tensors_also_if_their_states_hold_these_and_they_share_them(
    torch: Any, tmp_path: Path, trusted: bool
) -> None:
    class Keeping(torch.nn.Sequential):  # type: ignore[misc, name-defined]
        def state_dict(self, *arguments: Any, **more: Any) -> Any:
            return super().state_dict(*arguments, **more | {"keep_vars": True})

    part = Keeping(torch.nn.Linear(3, 3))
    model = Keeping(part, torch.nn.Linear(3, 3))
    store = StateStore(tmp_path / "states", trusted=trusted)
    store.register("model", model)
    store.register("part", part)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    saved = store.save_state()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    store.load_state(saved)
    assert all(map(torch.equal, model.parameters(), before))


def test_a_module_whose_weights_are_tied_now_is_found_by_the_names_of_both(torch: Any, tmp_path: Path) -> None:
    class Pair(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            if tied:
                self.two.weight = self.one.weight

    stores = []
    for model in (Pair(tied=False), Pair(tied=True)):
        store, held = StateStore(tmp_path / "states", trusted=True), Held(model.two.weight)
        store.register("model", model)
        store.register("held", held)
        stores.append((store, model, held))
    stores[0][0].save_state()
    store, model, held = stores[1]
    held.held = []
    store.load_latest()
    assert held.held[0] is model.two.weight is model.one.weight


def test_a_module_that_cannot_tell_its_tensors_is_an_error_with_its_name(torch: Any, tmp_path: Path) -> None:
    class Forgetful(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass

    store = StateStore(tmp_path / "states", trusted=True)
    store.register("forgetful", Forgetful())
    with pytest.raises(ComponentError, match="'forgetful'"):
        store.save_state()
    assert store.snapshots() == []


def test_a_tensor_that_the_module_has_no_more_is_an_error_and_nothing_is_touched(torch: Any, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 3)
    store = StateStore(tmp_path / "states", trusted=True)
    store.register("model", model)
    store.register("held", Held(model.bias))
    store.save_state()
    new, without, held = StateStore(tmp_path / "states", trusted=True), torch.nn.Linear(3, 3, bias=False), Held(1)
    before = without.weight.detach().clone()
    new.register("model", without)
    new.register("held", held)
    with pytest.raises(CodecError, match="tensor 'bias' of component 'model'"):
        new.load_latest()
    assert torch.equal(without.weight, before)
    assert held.held == [1]


def test_an_estimator_of_scikit_learn_comes_back_with_trust() -> None:
    pytest.importorskip("sklearn", exc_type=ImportError)
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 10)), rng.integers(0, 3, 200)
    forest = RandomForestClassifier(20, random_state=1).fit(x, y)
    new: Any = RandomForestClassifier()
    new.__setstate__(round_trip(forest.__getstate__(), trusted=True, own=1000))
    assert is_same(new.predict_proba(x), forest.predict_proba(x))

    # Learning goes on bit for bit as well.
    online = make_pipeline(StandardScaler(), SGDClassifier(random_state=np.random.RandomState(1)))
    online.fit(x, y)
    back = round_trip(online, trusted=True)
    for each in (online, back):
        each[-1].partial_fit(x, y)
    assert is_same(back[-1].coef_, online[-1].coef_)
    with pytest.raises(UntrustedError, match="sklearn"):
        round_trip(forest.__getstate__())
    assert is_same(copy.deepcopy(forest).predict(x), new.predict(x))
