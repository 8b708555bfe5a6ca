"""A dict as the model: hypothesis invents sequences of calls, and the backend must always answer as the dict does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from ..errors import NotFoundError, NotModified, PreconditionError
from ..protocol import ABSENT, Backend, Condition, ETag
from .kit import Kit, refused

# Few, and related to each other: neighbours in a listing, folders of each other, equal but for their case.
KEYS = ["a", "a/b", "a/b/c", "a.b/c", "a-", "ab", "A", "A/b", "b", "b/a", "a/B", ".a", "a/..b", "con", "a=", "b/a/b/a"]
PREFIXES = ["", "a/", "a/b/", "a.b/", "A/", "b/", "ab/", "b/a/", "zz/"]

a_key = st.runner().flatmap(lambda machine: st.sampled_from(machine.keys))
datas = st.binary(max_size=40) | st.sampled_from([b"", b"0", b"x" * 5000])


class BackendMachine(RuleBasedStateMachine):
    """Calls a backend and a dict side by side. `opener` must be set in a subclass, and `keys` may be narrowed there."""

    opener: Callable[[], Backend]
    keys: Sequence[str] = KEYS

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, tuple[bytes, ETag]] = {}
        self.past: dict[str, list[tuple[bytes, ETag]]] = {}

    @initialize()
    def begin(self) -> None:
        self.backend = self.opener()
        assert list(self.backend.keys()) == [], "a new place is not empty"

    def _written(self, key: str, data: bytes, etag: ETag) -> None:
        for old, old_etag in self.past.setdefault(key, []):
            assert old == data or old_etag != etag, f"{old!r} and {data!r} under {key!r} share the ETag {etag}"
        self.past[key].append((data, etag))
        self.model[key] = (data, etag)

    @rule(key=a_key, data=datas)
    def put(self, key: str, data: bytes) -> None:
        self._written(key, data, self.backend.put(key, data))

    @rule(key=a_key, data=datas)
    def create(self, key: str, data: bytes) -> None:
        if key in self.model:
            refused(PreconditionError, f"create of {key!r}", self.backend.put, key, data, if_match=ABSENT)
        else:
            self._written(key, data, self.backend.put(key, data, if_match=ABSENT))

    @precondition(lambda self: self.past)
    @rule(choice=st.data(), data=datas)
    def swap(self, choice: st.DataObject, data: bytes) -> None:
        key = choice.draw(st.sampled_from(sorted(self.past)))
        condition: Condition = choice.draw(st.sampled_from([etag for _, etag in self.past[key]][-3:]))
        if key in self.model and self.model[key][1] == condition:
            self._written(key, data, self.backend.put(key, data, if_match=condition))
        else:
            refused(PreconditionError, f"stale swap of {key!r}", self.backend.put, key, data, if_match=condition)

    @rule(key=a_key)
    def delete(self, key: str) -> None:
        self.backend.delete(key)
        self.model.pop(key, None)

    @precondition(lambda self: self.past)
    @rule(choice=st.data())
    def delete_if(self, choice: st.DataObject) -> None:
        key = choice.draw(st.sampled_from(sorted(self.past)))
        etag = choice.draw(st.sampled_from([etag for _, etag in self.past[key]][-3:]))
        if key in self.model and self.model[key][1] == etag:
            self.backend.delete(key, if_match=etag)
            del self.model[key]
        else:
            refused(PreconditionError, f"stale delete of {key!r}", self.backend.delete, key, if_match=etag)

    @rule(key=a_key)
    def look(self, key: str) -> None:
        assert self.backend.contains(key) is (key in self.model)
        if key in self.model:
            data, etag = self.model[key]
            assert self.backend.get(key)[:2] == (data, etag)
            assert self.backend.head(key)[:3] == (key, etag, len(data))
            refused(NotModified, f"get of {key!r} with its own ETag", self.backend.get, key, if_none_match=etag)
        else:
            refused(NotFoundError, f"get of {key!r}", self.backend.get, key)
            refused(NotFoundError, f"head of {key!r}", self.backend.head, key)

    @rule(several=st.dictionaries(a_key, datas, max_size=5))
    def put_many(self, several: dict[str, bytes]) -> None:
        etags = self.backend.put_many(several)
        assert set(etags) == set(several)
        for key, etag in etags.items():
            self._written(key, several[key], etag)

    @rule(several=st.lists(a_key, max_size=5))
    def get_many(self, several: list[str]) -> None:
        found = {key: blob[:2] for key, blob in self.backend.get_many(several).items()}
        assert found == {key: self.model[key] for key in several if key in self.model}

    @rule(several=st.lists(a_key, max_size=5))
    def delete_many(self, several: list[str]) -> None:
        self.backend.delete_many(several)
        for key in several:
            self.model.pop(key, None)

    @rule()
    def list_prefixes(self) -> None:
        for prefix in PREFIXES:
            below = {key: value for key, value in self.model.items() if key.startswith(prefix)}
            listed = [meta[:3] for meta in self.backend.scan(prefix)]
            assert sorted(listed) == sorted((key, etag, len(data)) for key, (data, etag) in below.items()), prefix
            assert sorted(self.backend.keys(prefix)) == sorted(below), prefix

    @rule()
    def reopen(self) -> None:
        self.backend.close()
        self.backend = self.opener()

    @rule()
    def use_a_second_handle(self) -> None:
        self.backend, closing = self.opener(), self.backend
        closing.close()

    @invariant()
    def names_agree(self) -> None:
        if hasattr(self, "backend"):
            assert sorted(self.backend.keys()) == sorted(self.model)

    def teardown(self) -> None:
        if hasattr(self, "backend"):
            self.backend.close()


class Model(Kit):
    """Random sequences of calls."""

    examples: int = 25
    machine = BackendMachine  # or a subclass with other keys, for a server that lacks what is not the backend's to mend

    def test_it_behaves_like_a_dict(self, where: Path, backend: Backend) -> None:
        backend.close()  # it was only asked for because it skips where nothing is kept
        numbers = itertools.count()

        class Machine(self.machine):  # type: ignore[name-defined,misc]  # whatever a subclass of the test wants to invent
            def __init__(self) -> None:
                super().__init__()
                # Each attempt gets a place of its own.
                self.opener = partial(opener, where.with_name(f"model-{next(numbers)}"))

        opener = self.open
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=self.rounds(self.examples),
                stateful_step_count=30,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            ),
        )
