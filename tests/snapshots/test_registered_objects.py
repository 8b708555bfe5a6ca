"""What is registered comes back whole or is refused at once; what one holds of another is that other one again."""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import fractions
import functools
import io
import itertools
import pickle
import random
import re
import threading
import types
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import perdure
from perdure.errors import CodecError, ComponentError, IntegrityError, UntrustedError, UsageError, UsageTypeError
from perdure.snapshots import StateStore
from perdure.snapshots import plain as plain_module
from perdure.snapshots.components import Value
from perdure.snapshots.differences import differences
from perdure.snapshots.packing import check_readable, pack, unpack


class Thing:
    """A class like any other."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def method(self) -> int:
        return int(self.number)


class Model:
    """Has a state dict."""

    def __init__(self, weight: int = 0) -> None:
        self.weight = weight

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


class Files:
    """Saves itself to a file."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def save_state(self, path: Path) -> None:
        path.with_suffix(".txt").write_text(self.text)

    def load_state(self, path: Path) -> None:
        self.text = path.with_suffix(".txt").read_text()


@pytest.fixture(params=[True, False])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StateStore:
    """One that trusts what it reads, and one that does not."""
    return StateStore(tmp_path / "states", trusted=request.param)


@pytest.fixture
def trusting(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states")


# Random generators.


class Seeded(NamedTuple):
    make: Callable[[int], Any]
    draw: Callable[[Any], Any]


GENERATORS = {
    "numpy": Seeded(np.random.default_rng, lambda rng: rng.integers(0, 100, 5, dtype=np.int32).tolist()),
    "MT19937": Seeded(lambda seed: np.random.Generator(np.random.MT19937(seed)), lambda rng: rng.random(5).tolist()),
    "RandomState": Seeded(np.random.RandomState, lambda rng: rng.standard_normal(5).tolist()),
    "PCG64": Seeded(np.random.PCG64, lambda bits: [bits.random_raw() for _ in range(5)]),
    "random.Random": Seeded(random.Random, lambda rng: [rng.gauss(0, 1), rng.random(), rng.gauss(0, 1)]),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_goes_on_where_it_was(store: StateStore, kind: str, tmp_path: Path) -> None:
    make, draw = GENERATORS[kind]
    rng = make(1)
    draw(rng)
    store.register("rng", rng)
    path = store.save_state()
    expected = draw(rng)
    store.load_state(path)
    assert draw(rng) == expected

    again, other = StateStore(tmp_path / "states", trusted=store.trusted), make(2)
    again.register("rng", other)
    again.load_latest()
    assert draw(other) == expected
    assert store.components["rng"] is rng


def test_a_generator_of_another_kind_is_an_error_and_nothing_is_touched(store: StateStore, tmp_path: Path) -> None:
    store.register("model", Model(1))
    store.register("rng", np.random.default_rng(1))
    path = store.save_state()
    other, model, rng = StateStore(tmp_path / "states", trusted=store.trusted), Model(5), random.Random(1)
    other.register("model", model)
    other.register("rng", rng)
    with pytest.raises(UsageError, match=r"numpy.random.Generator\(PCG64\).*random.Random"):
        other.load_state(path)
    assert model.weight == 5
    assert rng.random() == random.Random(1).random()


def test_a_state_that_no_generator_can_have_is_an_error_and_nothing_is_touched(tmp_path: Path) -> None:
    class Claims(Model):
        def state_dict(self) -> Any:
            return {"kind": "numpy.random.RandomState(MT19937)", "state": {"state": {"pos": 10**6}}}

    writer = StateStore(tmp_path)
    writer.register("model", Model(1))
    writer.register("rng", Claims())
    path = writer.save_state()
    reader, model = StateStore(tmp_path), Model(5)
    reader.register("model", model)
    reader.register("rng", np.random.RandomState(1))
    with pytest.raises(CodecError, match="no state of a random generator"):
        reader.load_state(path)
    assert model.weight == 5


# What is refused, as its state would be lost.


class Tuple(NamedTuple):
    a: int


class Color(enum.Enum):
    RED = 1


class Integer(int):
    note = ""


class Failure(Exception):
    pass


class Array(np.ndarray[Any, Any]):
    pass


class Recording(random.Random):
    def __init__(self) -> None:
        super().__init__(1)
        self.seen: list[Any] = []


class Reduces:
    """Would be made again from arguments."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return Reduces, (self.number,)


class ReducesAndTakes(Reduces):
    def __reduce__(self) -> Any:
        return Reduces, (0,), {"n": self.number}

    def __setstate__(self, state: Any) -> None:
        self.number = state["n"]


class NewArguments:
    def __new__(cls, number: int) -> Any:
        return object.__new__(cls)

    def __getnewargs__(self) -> Any:
        return (7,)


class Odd(list[Any]):
    def __reduce__(self) -> Any:
        return Odd, ()


REFUSED = {
    "OrderedDict": OrderedDict(a=1), "Counter": Counter("abc"), "defaultdict": defaultdict(list, a=[1]), "deque": deque([1]),
    "set": {1}, "bytearray": bytearray(b"1"), "array": np.ones(3), "array subclass": np.ones(3).view(Array),
    "masked array": np.ma.array([1, 2]), "scalar": np.float32(1), "partial": functools.partial(print, 1),
    "iterator": itertools.cycle([1]), "exception": Failure("x"), "named tuple": Tuple(1), "enum": Color.RED,
    "integer": Integer(5), "lock": threading.Lock(), "class": Thing, "function": pack, "method": Thing().method,
    "module": pickle, "pattern": re.compile("x"), "fraction": fractions.Fraction(1, 2), "path": Path("x"), "nothing": object(),
    "system": random.SystemRandom(), "random with attributes": Recording(), "reduces": Reduces(1),
    "reduces and takes": ReducesAndTakes(1), "new arguments": NewArguments(1), "odd list": Odd([1]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_not_come_back_is_refused_when_it_is_registered(trusting: StateStore, kind: str) -> None:
    with pytest.raises(UsageTypeError, match=r"'it' is an? .*register_value"):
        trusting.register("it", REFUSED[kind])
    assert trusting.components == {}


def test_what_pickle_was_told_of_is_judged_by_that(trusting: StateStore) -> None:
    class Told(Thing):
        pass

    copyreg.pickle(Told, lambda told: (Thing, (), vars(told)))  # type: ignore[arg-type, return-value]
    try:
        with pytest.raises(UsageTypeError):
            trusting.register("it", Told(a=1))
    finally:
        del copyreg.dispatch_table[Told]


# What comes back.


class Listed(list[Any]):
    pass


class Mapped(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        raise RuntimeError("is not called")

    def __iter__(self) -> Any:
        raise RuntimeError("is not called")


class Ordered(OrderedDict[Any, Any]):
    pass


class Counting(Counter[Any]):
    pass


class Defaulting(defaultdict[Any, Any]):
    pass


class Many(set[Any]):
    pass


class Ring(deque[Any]):
    pass


class Grown(bytearray):
    pass


class Stated(dict[Any, Any]):
    """Has a state of its own, and contents."""

    note = 0

    def __getstate__(self) -> Any:
        return [self.note]

    def __setstate__(self, state: Any) -> None:
        (self.note,) = state


def ordered() -> Ordered:
    made = Ordered(a=1, b=2)
    made.move_to_end("a")
    return made


CONTAINERS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "list": (lambda: Listed([1, [2]]), list.clear),
    "dict": (lambda: Mapped({"a": [1]}), dict.clear),
    "ordered": (ordered, lambda it: it.move_to_end("b")),
    "counter": (lambda: Counting("abca"), lambda it: it.update("aaz")),
    "default": (lambda: Defaulting(list, a=[1]), lambda it: setattr(it, "default_factory", set)),
    "set": (lambda: Many([1, 2]), lambda it: it.add(3)),
    "deque": (lambda: Ring([1, 2], 3), lambda it: it.extend([5, 6])),
    "bytes": (lambda: Grown(b"abc"), lambda it: it.extend(b"def")),
    "state of its own": (lambda: Stated(a=1), lambda it: it.update(b=2)),
}


def content(container: Any) -> Any:
    base = next(base for base in (OrderedDict, dict, list, set, deque, bytearray) if isinstance(container, base))
    items = list(base.items(container)) if issubclass(base, dict) else list(base.__iter__(container))  # type: ignore[call-overload]
    return items, getattr(container, "default_factory", None), getattr(container, "maxlen", None), dict(vars(container))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_subclass_of_a_container_comes_back_with_contents_and_attributes(store: StateStore, kind: str) -> None:
    make, change = CONTAINERS[kind]
    it = make()
    it.note = {"x": 1}
    store.register("it", it)
    before = content(it)
    path = store.save_state()
    change(it)
    it.note = 2
    if kind != "state of its own":
        it.more = 3
    assert content(it) != before
    store.load_state(path)
    assert store.components["it"] is it
    assert content(it) == before


def test_a_ring_of_another_length_is_an_error(store: StateStore, tmp_path: Path) -> None:
    store.register("ring", Ring([1, 2, 3]))
    path = store.save_state()
    other, ring = StateStore(tmp_path / "states", trusted=store.trusted), Ring([], 2)
    other.register("ring", ring)
    with pytest.raises(UsageError, match="maxlen"):
        other.load_state(path)
    assert list(ring) == []


@dataclasses.dataclass
class Data:
    number: int
    array: Any = None


@dataclasses.dataclass(slots=True)
class SlottedData:
    number: int
    array: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenData:
    number: int
    array: Any = None


@dataclasses.dataclass(frozen=True)
class FrozenPlain:
    number: int
    array: Any = None


class Guarded:
    """Lets nobody assign."""

    __slots__ = ("array", "number")

    def __init__(self, number: int, array: Any) -> None:
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "array", array)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("read-only")


class Whole:
    """Says by itself what is to be saved."""

    def __init__(self, number: int, array: Any) -> None:
        self.number, self.array = number, array

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copyreg.__newobj__, (type(self),), {"number": self.number, "array": self.array}  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", [Data, SlottedData, FrozenData, FrozenPlain, Guarded, Whole])
def test_objects_of_all_kinds_come_back_in_place(store: StateStore, cls: Any) -> None:
    array = np.arange(3)
    it = cls(1, array)
    store.register("it", it)
    path = store.save_state()
    object.__setattr__(it, "number", 2)
    object.__setattr__(it, "array", None)
    store.load_state(path)
    assert it.number == 1
    assert it.array.tolist() == [0, 1, 2]


def test_objects_of_libraries_come_back_in_place(trusting: StateStore) -> None:
    attrs, pd = pytest.importorskip("attrs"), pytest.importorskip("pandas")
    cls = attrs.make_class("Made", ["number"], slots=True)
    frozen = attrs.make_class("Frozen", ["number"], slots=True, frozen=True)
    made, fixed, frame = cls(1), frozen(1), pd.DataFrame({"a": [1, 2]})
    named, user, memory = types.SimpleNamespace(a=1), UserDict(a=1), io.BytesIO(b"abc")
    for name, each in {"made": made, "fixed": fixed, "frame": frame, "named": named, "user": user, "memory": memory}.items():
        trusting.register(name, each)
    path = trusting.save_state()
    made.number, frame["b"], named.b, user["b"] = 2, 5, 2, 3
    frame.loc[0, "a"] = 9
    object.__setattr__(fixed, "number", 2)
    memory.truncate(1)
    trusting.load_state(path)
    assert (made.number, fixed.number, vars(named), dict(user), memory.getvalue()) == (1, 1, {"a": 1}, {"a": 1}, b"abc")
    pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [1, 2]}))


def test_an_estimator_that_was_not_fitted_then_is_not_fitted_now(trusting: StateStore) -> None:
    pytest.importorskip("sklearn", exc_type=ImportError)
    from sklearn.linear_model import SGDClassifier

    model = SGDClassifier(random_state=1)
    trusting.register("model", model)
    unfitted = trusting.save_state()
    model.fit([[0.0], [1.0]], [0, 1])
    fitted, coefficients = trusting.save_state(), model.coef_.copy()
    model.partial_fit([[5.0]], [0])
    trusting.load_state(fitted)
    assert np.array_equal(model.coef_, coefficients)
    trusting.load_state(unfitted)
    assert not hasattr(model, "coef_")
    model.fit([[0.0], [1.0]], [0, 1])


class OneSlot:
    __slots__ = "value"


class Private:
    __slots__ = ("__hidden", "shown")

    def set(self, value: object) -> None:
        self.__hidden = value

    def drop(self) -> None:
        del self.__hidden

    def get(self) -> object:
        return getattr(self, "_Private__hidden", "nothing")


class Both(Private):
    """Slots and attributes."""


def test_slots_of_every_name_are_filled_and_emptied(store: StateStore) -> None:
    one, empty_one, private, empty = OneSlot(), OneSlot(), Private(), Both()
    one.value = 1
    private.set(1)
    private.shown = 1
    for name, each in {"one": one, "empty_one": empty_one, "private": private, "empty": empty}.items():
        store.register(name, each)
    path = store.save_state()
    one.value = empty_one.value = empty.extra = 2  # type: ignore[attr-defined]
    private.drop()
    del private.shown
    empty.set(3)
    store.load_state(path)
    assert (one.value, private.get(), private.shown) == (1, 1, 1)
    assert not hasattr(empty_one, "value")
    assert (empty.get(), vars(empty)) == ("nothing", {})


class LeavesOut:
    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()

    def __getstate__(self) -> Any:
        return {name: value for name, value in vars(self).items() if name != "lock"}


def test_what_an_object_leaves_out_stays_as_it_is(store: StateStore) -> None:
    it = LeavesOut(1)
    lock = it.lock
    store.register("it", it)
    path = store.save_state()
    it.number, it.extra = 2, 3  # type: ignore[attr-defined]
    store.load_state(path)
    assert vars(it) == {"number": 1, "lock": lock}


def test_an_object_that_was_empty_is_empty_again(store: StateStore) -> None:
    it = Thing()
    store.register("it", it)
    path = store.save_state()
    it.number = 1
    store.load_state(path)
    assert vars(it) == {}


def test_a_state_that_the_object_cannot_have_is_an_error_and_nothing_is_touched(tmp_path: Path) -> None:
    class Claims(Thing):
        def __getstate__(self) -> Any:
            return [1, 2, 3]

        def __setstate__(self, state: Any) -> None:
            pass

    writer = StateStore(tmp_path)
    writer.register("model", Model(1))
    writer.register("it", Claims())
    path = writer.save_state()
    for wrong in (Thing(number=5), Listed([5])):
        reader, model = StateStore(tmp_path), Model(5)
        reader.register("model", model)
        reader.register("it", wrong)
        with pytest.raises(CodecError, match="cannot have what was saved"):
            reader.load_state(path, strict=False)
        assert model.weight == 5


class Unprepared:
    """Cannot say what it would save, once it is broken."""

    broken = False

    def __getstate__(self) -> Any:
        if self.broken:
            raise RuntimeError("it is broken")
        return {}


def test_an_object_that_fails_before_any_is_touched_is_named(trusting: StateStore) -> None:
    model, it = Model(1), Unprepared()
    trusting.register("model", model)
    trusting.register("it", it)
    path = trusting.save_state()
    model.weight, it.broken = 2, True
    with pytest.raises(ComponentError, match=r"'it' .*it is broken.*no object was touched") as caught:
        trusting.load_state(path)
    assert (caught.value.component, caught.value.loaded, caught.value.untouched) == ("it", (), ("model", "it"))
    assert model.weight == 2


def test_an_object_that_holds_its_store_is_told_to_leave_it_out(trusting: StateStore) -> None:
    trusting.register("it", Thing(store=trusting))
    with pytest.raises(CodecError, match=r"the value\['store'\], a StateStore, cannot be pickled.*__getstate__") as caught:
        trusting.save_state()
    assert "__reduce__" not in str(caught.value)


# Values.


class Labelled(list[Any]):
    label = ""


def test_values_of_subclasses_come_back_as_they_were(trusting: StateStore) -> None:
    mapped, listed, factory = Stated(a=1), Labelled([1]), defaultdict(list, a=[1])
    mapped.note, listed.label = 5, "x"
    values: list[Value[Any]] = [
        trusting.register_value(name, each) for name, each in {"mapped": mapped, "listed": listed, "factory": factory}.items()
    ]
    path = trusting.save_state()
    mapped.note, listed.label, factory.default_factory = 6, "y", None
    trusting.load_state(path)
    assert (values[0].value, values[0].value.note) == ({"a": 1}, 5)
    assert (values[1].value, values[1].value.label) == ([1], "x")
    assert (values[2].value, values[2].value.default_factory) == ({"a": [1]}, list)


def test_containers_that_hold_themselves_hold_themselves_again(trusting: StateStore) -> None:
    listed: list[Any] = [1]
    listed += [listed, {"deep": (listed, [listed])}, Thing(home=listed)]
    mapped: dict[str, Any] = {}
    mapped["self"] = mapped
    ring: deque[Any] = deque()
    ring.append({"ring": [ring]})
    for name, each in {"listed": listed, "mapped": mapped, "ring": ring}.items():
        trusting.register_value(name, each)
    path = trusting.save_state()
    for each in (listed, mapped, ring):
        each.clear()  # type: ignore[attr-defined]
    trusting.load_state(path)
    assert listed[0] == 1
    assert listed[1] is listed
    assert listed[2]["deep"][1][0] is listed
    assert listed[3].home is listed
    assert mapped["self"] is mapped
    assert ring[0]["ring"][0] is ring


# References between registered objects.


def test_a_child_has_its_own_parent_again(store: StateStore) -> None:
    node = Thing(number=1, children=[{"parent": None}])
    node.children[0]["parent"] = node
    node.me = node
    store.register("node", node)
    path = store.save_state()
    node.number, node.children, node.me = 2, [], None
    store.load_state(path)
    assert node.number == 1
    assert node.me is node.children[0]["parent"] is node
    assert list(node.children[0]) == ["parent"]


def test_a_bound_method_is_bound_to_the_object_itself(trusting: StateStore) -> None:
    node = Thing(number=1)
    node.call = node.method
    node.child = Thing(parent=node)
    trusting.register("node", node)
    path = trusting.save_state()
    node.call = node.child = None
    trusting.load_state(path)
    node.number = 7
    assert node.call() == 7
    assert node.child.parent is node


def all_kinds(store: StateStore) -> dict[str, Any]:
    """An object of each kind, and one that holds all of them."""
    held: dict[str, Any] = {
        "model": Model(1),
        "files": Files("text"),
        "step": store.register_value("step", 5),
        "rng": np.random.default_rng(1),
        "listed": Listed([1]),
        "thing": Thing(number=1),
    }
    for name, each in held.items():
        if name != "step":
            store.register(name, each)
    return held


@pytest.mark.parametrize("first", [True, False])
def test_what_is_held_of_another_component_is_that_component(store: StateStore, first: bool) -> None:
    trainer, others = Thing(), Thing()
    if first:
        store.register("trainer", trainer)
    held = all_kinds(store)
    if not first:
        store.register("trainer", trainer)
    listed = store.register_value("list", [])
    trainer.__dict__.update(held, deep=[{"again": (held["model"], held["step"])}], others=others.__dict__)
    listed.value += [*held.values(), trainer, listed]
    path = store.save_state()
    trainer.__dict__.clear()
    listed.value.clear()
    held["model"].weight, held["step"].value, held["thing"].number = 2, 6, 2
    held["listed"].clear()
    store.load_state(path)
    assert all(getattr(trainer, name) is each for name, each in held.items())
    again = trainer.deep[0]["again"]
    assert again[0] is held["model"]
    assert again[1] is held["step"]
    assert len(listed.value) == len(held) + 2
    assert all(one is other for one, other in zip(listed.value, [*held.values(), trainer, listed], strict=True))
    assert (held["model"].weight, held["step"].value, held["thing"].number, held["listed"]) == (1, 5, 1, [1])


def test_a_value_that_is_another_component_is_that_component(store: StateStore) -> None:
    best, model = store.register_value("best", None), Model(1)
    store.register("model", model)
    best.value = model  # type: ignore[assignment]
    path = store.save_state()
    best.value = None
    store.load_state(path)
    assert best.value is model


def test_state_dicts_refer_to_other_components_too(store: StateStore) -> None:
    class Holder(Model):
        def state_dict(self) -> Any:
            return {"weight": self.weight}

    model = Model(1)
    holder = Holder(model)  # type: ignore[arg-type]
    store.register("holder", holder)
    store.register("model", model)
    path = store.save_state()
    holder.weight = None  # type: ignore[assignment]
    store.load_state(path)
    assert holder.weight is model  # type: ignore[comparison-overlap]


def test_a_state_dict_that_is_the_object_itself_is_saved_as_what_it_holds(trusting: StateStore) -> None:
    it = Itself(a=1)
    trusting.register("it", it)
    path = trusting.save_state()
    it.clear()
    trusting.load_state(path)
    assert it == {"a": 1}


class Itself(dict[str, Any]):
    def state_dict(self) -> Any:
        return self

    def load_state_dict(self, state: Any) -> None:
        self.update(state)


def test_other_objects_of_the_same_types_are_saved_as_ever(trusting: StateStore) -> None:
    model, held = Model(1), Thing(model=Model(2), more=Thing(a=1))
    trusting.register("model", model)
    trusting.register("held", held)
    path = trusting.save_state()
    old = held.model
    held.__dict__.clear()
    trusting.load_state(path)
    assert held.model is not old
    assert (held.model.weight, held.more.a, model.weight) == (2, 1, 1)


def test_what_is_not_registered_becomes_two_copies(trusting: StateStore) -> None:
    shared = Thing(number=1)
    one, two = Thing(shared=shared), Thing(shared=shared)
    trusting.register("one", one)
    trusting.register("two", two)
    trusting.load_state(trusting.save_state())
    assert one.shared.number == two.shared.number == 1
    assert one.shared is not two.shared


def test_a_reference_to_what_is_not_registered_is_an_error_and_nothing_is_touched(store: StateStore, tmp_path: Path) -> None:
    model, other = Model(1), Model(1)
    store.register("other", other)
    store.register("model", model)
    store.register("trainer", Thing(model=model))
    path = store.save_state()
    reader, trainer, fresh = StateStore(tmp_path / "states", trusted=store.trusted), Thing(model=None), Model(5)
    reader.register("other", fresh)
    reader.register("trainer", trainer)
    with pytest.raises(CodecError, match=r"refers to component 'model', which is not registered.*[Rr]egister it") as caught:
        reader.load_state(path, strict=False)
    assert not isinstance(caught.value, IntegrityError)
    assert (fresh.weight, trainer.model) == (5, None)


def test_a_reference_to_what_was_not_saved_is_fine(store: StateStore, tmp_path: Path) -> None:
    model, trainer = Model(1), Thing()
    store.register("model", model)
    trainer.model = model
    store.register("trainer", trainer)
    path = store.save_state()
    store.unregister("model")
    store.register("model", files := Files("not of this snapshot"))
    with pytest.raises(UsageError):
        store.load_state(path)
    store.unregister("model")
    reader, trained = StateStore(tmp_path / "states", trusted=store.trusted), Thing()
    reader.register("trainer", trained)
    reader.register("model", model)
    reader.register("new", files)
    reader.load_state(path, strict=False)
    assert trained.model is model
    assert files.text == "not of this snapshot"


class Keyed:
    """Is found by what it holds."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.known: dict[Any, Any] = {}

    def __hash__(self) -> int:
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and other.number == self.number


class Derived:
    """Computes something from what it holds when it is unpickled."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.double = of.number * 2

    def __getstate__(self) -> dict[str, Any]:
        return {"of": self.of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.of = state["of"]
        self.double = self.of.number * 2


def test_what_is_computed_from_another_component_is_so_from_what_was_saved(trusting: StateStore) -> None:
    number, holder = Thing(number=4), Thing()
    holder.derived = Derived(number)
    trusting.register("holder", holder)
    trusting.register("direct", direct := Derived(number))
    trusting.register("number", number)
    saved = trusting.save_state()
    number.number = 9
    trusting.load_state(saved)
    assert (number.number, holder.derived.double, direct.double) == (4, 8, 8)
    assert holder.derived.of is direct.of is number


def test_components_are_found_as_keys_and_in_sets_by_what_was_saved(store: StateStore, tmp_path: Path) -> None:
    saved_as = Keyed(7)
    store.register_value("scores", {saved_as: 5})
    store.register_value("chosen", {saved_as})
    store.register("key", saved_as)
    store.save_state()
    new, key = StateStore(tmp_path / "states", trusted=store.trusted), Keyed(0)
    scores, chosen = new.register_value("scores", dict[Any, int]()), new.register_value("chosen", set[Any]())
    new.register("key", key)
    new.load_latest()
    assert key.number == 7
    assert scores.value[key] == 5
    assert key in chosen.value
    assert next(iter(scores.value)) is next(iter(chosen.value)) is key


def test_a_chain_of_components_is_restored_from_its_end(trusting: StateStore) -> None:
    links = [Keyed(number) for number in range(1500)]
    for one, next_ in itertools.pairwise(links):
        one.known[next_] = one.number
    for link in links:
        trusting.register(f"link-{link.number}", link)
    saved = trusting.save_state()
    for link in links:
        link.number += 10_003  # another place in the tables, too
    trusting.load_state(saved)
    assert all(one.known[next_] == one.number for one, next_ in itertools.pairwise(links))


def test_those_that_hold_each_other_come_back_and_others_in_the_order_of_registration(trusting: StateStore) -> None:
    restored: list[str] = []

    class Ordering(Thing):
        def __setstate__(self, state: dict[str, Any]) -> None:
            restored.append(state["name"])
            self.__dict__.update(state)

    a, b, c, d = (Ordering(name=name) for name in "abcd")
    b.held, c.held = c, b
    a.held = c
    for each in (a, b, c, d):
        trusting.register(each.name, each)
    saved = trusting.save_state()
    a.held = b.held = c.held = None
    trusting.load_state(saved)
    assert restored == ["b", "c", "a", "d"]
    assert (a.held, b.held, c.held) == (c, c, b)


class Halving:
    """Changes the memory of its array when it is unpickled."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.array = state["array"]
        self.array /= 2


@pytest.mark.parametrize("size", [4, 100_000])
def test_unpickling_twice_starts_from_the_same_memory(trusting: StateStore, size: int) -> None:
    other, holder = Thing(), Thing()
    holder.other, holder.halving = other, Halving(np.full(size, 8.0))
    trusting.register("holder", holder)
    trusting.register("other", other)
    trusting.load_state(trusting.save_state())
    assert holder.other is other
    assert set(holder.halving.array.tolist()) == {4.0}


def test_what_refers_to_others_is_looked_at_before_any_is_touched(store: StateStore, tmp_path: Path) -> None:
    number = Thing(number=1)
    store.register("number", number)
    store.register("holder", Thing(number=number))
    store.save_state()
    new, untouched = StateStore(tmp_path / "states", trusted=store.trusted), Thing(number=2)
    new.register("number", untouched)
    new.register("holder", Listed())
    with pytest.raises(CodecError, match="Listed"):
        new.load_latest(strict=False)
    assert untouched.number == 2


class Claims:
    """Says it is of another class, as a proxy does."""

    def __init__(self, held: Any) -> None:
        self.held = held

    @property
    def __class__(self) -> Any:
        return dict


def test_a_proxy_is_saved_as_what_it_is(trusting: StateStore) -> None:
    proxy = Claims({"a": 1})
    trusting.register("proxy", proxy)
    held = trusting.register_value("held", [proxy, np.zeros(100_000)])
    saved = trusting.save_state()
    proxy.held = None
    trusting.load_state(saved)
    assert proxy.held == {"a": 1}
    assert held.value[0] is proxy


def test_each_rank_refers_to_its_own(tmp_path: Path) -> None:
    held: dict[int, Any] = {}

    def work(rank: int) -> None:
        store = StateStore(tmp_path, rank=rank, world_size=2, rank_timeout=60)
        model, trainer = Model(rank), Thing()
        trainer.model = model
        store.register("trainer", trainer)
        store.register("model", model)
        store.save_state({"step": 1})
        trainer.model, model.weight = None, 9
        store.load_latest()
        held[rank] = (trainer.model is model, model.weight)

    ranks = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert held == {0: (True, 0), 1: (True, 1)}


def test_references_can_be_read_by_pickle_alone_and_by_a_comparison(trusting: StateStore) -> None:
    model, trainer = Model(1), Thing(lr=1)
    trainer.model = trainer.again = model
    trusting.register("trainer", trainer)
    trusting.register("model", model)
    first = trusting.save_state()
    read = pickle.loads((first / "trainer.pkl").read_bytes())
    assert repr(read["model"]) == "<component 'model'>"
    trainer.lr = 2
    second = trusting.save_state()
    one, two = (
        unpack("it", lambda _, path=path: memoryview((path / "trainer.pkl").read_bytes()), trusted=False)  # type: ignore[misc]
        for path in (first, second)
    )
    assert [str(difference.path) for difference in differences(one, two, "it")] == ["it.lr"]


# Snapshots that somebody else wrote.


class Proud:
    """Notes whatever is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, *arguments: object) -> None:
        self.done.append("called")

    def append(self, item: object) -> None:
        self.done.append("appended")

    add = extend = append

    def __setitem__(self, key: object, value: object) -> None:
        self.done.append("assigned")

    def __setstate__(self, state: object) -> None:
        self.done.append("built")

    def __index__(self) -> int:
        self.done.append("counted")
        return 1

    __int__ = __len__ = __index__

    def __complex__(self) -> complex:
        self.done.append("computed")
        return 1j

    def __str__(self) -> str:
        self.done.append("spelled")
        return "x"

    def __getitem__(self, at: object) -> int:
        self.done.append("looked into")
        raise IndexError


@perdure.register_type
@dataclasses.dataclass
class Decoded:
    held: Any

    def __post_init__(self) -> None:
        if hasattr(self.held, "append"):
            self.held.append(1)


def text(what: str) -> bytes:
    return b"X" + len(what.encode()).to_bytes(4, "little") + what.encode()


def called(name: str, *arguments: bytes, module: str = "perdure.snapshots.plain") -> bytes:
    return text(module) + text(name) + b"\x93(" + b"".join(arguments) + b"tR"


LIVE = called("component", text("live"))
ARRAYS = "perdure.snapshots.arrays"
DECODED = text(f"{__name__}.Decoded")
HOSTILE = {
    "append": LIVE + b"K\x01a",
    "append many": LIVE + b"(K\x01K\x02e",
    "add": LIVE + b"(K\x01\x90",
    "assign": LIVE + b"K\x01K\x02s",
    "assign many": LIVE + b"(K\x01K\x02u",
    "build": LIVE + b"}" + text("done") + b"Nsb",
    "build by the memo": LIVE + b"\x940h\x00}b",
    "call": LIVE + b")R",
    "call with": LIVE + b"(K\x01tR",
    "number": text("builtins") + text("complex") + b"\x93(" + LIVE + b"tR",
    "range": text("builtins") + text("range") + b"\x93(" + LIVE + b"tR",
    "attributes": called("attributes", LIVE, b"}" + text("done") + b"Ns"),
    "tensor attributes": called("tensor_attributes", LIVE, b"}", module="perdure.snapshots.tensors"),
    "fill": called("fill", LIVE, b"]", module=ARRAYS),
    "factory": called("default_dict", LIVE),
    "factory that is used": called("default_dict", LIVE) + b"K\x01K\x02s",
    "length": called("ring", LIVE),
    "path": called("path", text("Path"), LIVE),
    "id": called("unique_id", LIVE, b"N"),
    "zone": called("zone", LIVE, b"\x88"),
    "type of an array": called("build_dtype", b"](" + LIVE + b"K\x01t" + b"a", module=ARRAYS),
    "shape": called("objects", b"(" + LIVE + b"t", text("C"), module=ARRAYS),
    "decoder": called("registered", DECODED, b"}" + text("held") + LIVE + b"s"),
    "decoder, deep": called("registered", DECODED, b"}" + text("held") + b"](" + b"K\x01" + LIVE + b"t" + b"as"),
    "decoder, in an ordered dict": called(
        "registered", DECODED, b"}" + text("held") + called("ordered_dict") + b"K\x01" + LIVE + b"ss"
    ),
    "decoder, in an array": called(
        "registered", DECODED, b"}" + text("held") + called("objects", b"K\x01\x85", text("C"), module=ARRAYS) + b"\x94"
        + called("fill", b"h\x00", b"]" + LIVE + b"a", module=ARRAYS) + b"0s",
    ),
    "no name": called("component", b"K\x01"),
    "a name that is no text": called("component", called("build_scalar", text("U"), text("live"), module=ARRAYS)),
    "no names": called("component"),
    "two names": called("component", text("live"), text("live")),
    "another name": called("component", text("secret")),
    "an attribute of it": called("component", text("live.done")) + b"K\x01a",
    "the function itself": text("perdure.snapshots.plain") + text("component") + b"\x93}b",
    "its dots": called("component.__globals__", text("live")),
    "first found, then broken": b"(" + LIVE + b"0" + LIVE + b"K\x01at",
    "decoder, of a list that gets it later": b"]\x940"
        + called("registered", DECODED, b"}" + text("held") + b"h\x00s") + b"0h\x00" + LIVE + b"a",
    "after many names": b"]" + b"(" + b"".join(LIVE for _ in range(5)) + b"e0" + LIVE + b"(K\x01e",
}  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_what_is_registered_cannot_be_changed_while_an_untrusted_pickle_is_read(attack: str) -> None:
    live = Proud()
    data = memoryview(b"\x80\x05" + HOSTILE[attack] + b".")
    with pytest.raises(CodecError):
        unpack("it", {"it.pkl": data}.__getitem__, trusted=False, live={"live": live})
    assert vars(live) == {"done": []}
    assert vars(plain_module.component) == {}


def test_the_honest_form_of_these_attacks_is_read() -> None:
    live = Proud()
    honest = b"(" + LIVE + b"](" + LIVE + b"e}" + text("x") + LIVE + b"s" + LIVE + b"t"
    back = unpack("it", {"it.pkl": memoryview(b"\x80\x05" + honest + b".")}.__getitem__, trusted=False, live={"live": live})
    assert back[0] is back[1][0] is back[2]["x"] is back[3] is live
    assert live.done == []


def test_without_a_store_a_reference_is_a_name_and_no_more() -> None:
    data = memoryview(b"\x80\x05" + LIVE + b".")
    one, two = (unpack("it", {"it.pkl": data}.__getitem__, trusted=False) for _ in range(2))
    assert repr(one) == "<component 'live'>"
    assert one == two
    assert hash(one) == hash(two)
    for change in (b"K\x01a", b")R", b"K\x01K\x02s"):
        with pytest.raises(CodecError):
            unpack("it", {"it.pkl": memoryview(b"\x80\x05" + LIVE + change + b".")}.__getitem__, trusted=False)


def written_as(parts: Any) -> Any:
    return {part.name: memoryview(bytearray(b"".join(part.pieces))) for part in parts}.__getitem__


def test_references_in_all_that_an_untrusted_reader_takes() -> None:
    live: dict[str, Any] = {"model": Model(1), "holder": Value(5), "listed": Listed([1]), "proud": Proud()}
    model, proud = live["model"], live["proud"]
    objects = np.empty(3, object)
    objects[0], objects[1], objects[2] = model, [live["listed"]], proud
    proud.done.clear()
    with_attributes: Any = OrderedDict(a=model)
    with_attributes.more = model
    value = [objects, deque([model]), defaultdict(list, a=model), {model: 1}, {model}, with_attributes, live["holder"]]
    parts = pack(value, "it", live=live)
    check_readable(parts)
    back: Any = unpack("it", written_as(parts), trusted=False, live=live)
    assert back[0][0] is back[1][0] is back[2]["a"] is model
    assert back[0][1][0] is live["listed"]
    assert next(iter(back[3])) is next(iter(back[4])) is back[5]["a"] is back[5].more is model
    assert back[6] is live["holder"]
    assert back[0][2] is proud
    assert proud.done == []


def test_what_a_registered_class_is_made_from_holds_no_component_without_trust() -> None:
    model = Model(1)
    parts = pack([Decoded([model])], "it", live={"model": model})
    with pytest.raises(UntrustedError, match="component 'model'"):
        check_readable(parts)
    back: Any = unpack("it", written_as(parts), trusted=True, live={"model": model})
    assert back[0].held[0] is model


# Taking and loading.


class Meddling(Files):
    """Changes another object while it saves itself, which nobody should, and some do."""

    other: Any = None

    def save_state(self, path: Path) -> None:
        self.other.weight = np.full(100_000, 7.0)
        super().save_state(path)


def test_components_that_write_files_are_saved_first_and_listed_as_registered(trusting: StateStore) -> None:
    model, meddling = Model(0), Meddling("x")
    meddling.other = model
    trusting.register("model", model)
    trusting.register("files", meddling)
    trusting.register("last", Model(3))
    path = trusting.save_state()
    (snapshot,) = trusting.snapshots()
    assert list(snapshot.components) == ["model", "files", "last"]
    model.weight = 0
    trusting.load_state(path)
    assert np.array_equal(model.weight, np.full(100_000, 7.0))


def test_the_metadata_that_load_latest_returns_may_be_changed(trusting: StateStore) -> None:
    trusting.register("model", Model(1))
    trusting.save_state({"step": 1, "config": {"layers": [1]}})
    for _ in range(2):
        loaded = trusting.load_latest()
        assert loaded is not None
        assert loaded.metadata == {"step": 1, "config": {"layers": [1]}}
        loaded.metadata["config"]["layers"].append(2)
        loaded.metadata["step"] = 5  # type: ignore[index]


def test_messages_say_only_what_is_the_case(tmp_path: Path) -> None:
    def registered(*names: str) -> StateStore:
        store = StateStore(tmp_path)
        for name in names:
            store.register(name, Model())
        return store

    path = registered("a", "b").save_state()
    for names, says in {
        ("b",): "holds 'a', 'b', and registered is 'b'; 'a' of it is not registered. ",
        ("c",): "holds 'a', 'b', and registered is 'c'; it lacks 'c', and 'a', 'b' of it are not registered. ",
        ("a", "b", "c"): "holds 'a', 'b', and registered are 'a', 'b', 'c'; it lacks 'c'. ",
        (): "holds 'a', 'b', and nothing is registered. ",
    }.items():
        with pytest.raises(UsageError) as caught:
            registered(*names).load_state(path)
        assert f"the snapshot {says}" in str(caught.value)


def test_how_many_are_damaged_is_said_in_words(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.register("a", Model())
    for says in ("the only snapshot is not whole: ", "none of 2 snapshots is whole; one of them: "):
        part = store.save_state() / "a.pkl"
        content = part.read_bytes()
        part.unlink()
        part.write_bytes(content[:-2] + b"x.")
        fresh = StateStore(tmp_path)
        fresh.register("a", Model())
        with pytest.raises(IntegrityError, match=says):
            fresh.load_latest()


def test_an_object_of_another_class_is_refused_unless_asked_for(tmp_path: Path) -> None:
    class Old:
        def __init__(self) -> None:
            self.x = 1

    class New:
        def __init__(self) -> None:
            self.y = 2

    store = StateStore(tmp_path)
    store.register("m", Old())
    path = store.save_state()
    assert store.snapshots()[0].components["m"].of.endswith("Old")
    other, new = StateStore(tmp_path), New()
    other.register("m", new)
    with pytest.raises(UsageError, match=r"'m' was saved as a .*Old, and registered is a .*New"):
        other.load_state(path)
    assert vars(new) == {"y": 2}
    other.load_state(path, strict=False)
    assert vars(new) == {"x": 1}


def test_a_value_that_does_not_hold_itself_is_not_searched_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take several times as long as reading it."""
    store = StateStore(tmp_path)
    plain_list = store.register_value("plain", [Thing(number=1), [1, 2]])
    itself = store.register_value("itself", list[Any]())
    itself.value.append([itself.value])
    path = store.save_state()
    searched: list[object] = []
    redirect = plain_module.redirect

    def spy(value: Any, before: Any, live: Any) -> None:
        searched.append(value)
        redirect(value, before, live)

    monkeypatch.setattr(plain_module, "redirect", spy)
    plain_list.value, itself.value = [], []
    store.load_state(path)
    assert len(searched) == 1
    assert searched[0] is itself.value
    assert itself.value[0][0] is itself.value
    assert plain_list.value[0].number == 1
