"""The objects of a store, by their names."""

from __future__ import annotations

from typing import Any, TypeVar

from ..errors import DuplicateNameError, UsageError
from .components import Registered, Value, adapt, spell_names
from .names import check_component_name

T = TypeVar("T")


class Registering:
    """Knows what is to be saved; a part of `StateStore`."""

    def __init__(self) -> None:
        self._components: dict[str, Registered] = {}
        self._registered_states: dict[str, object] = {}

    def register(self, name: str, state: Any) -> None:
        """Make an object a part of all snapshots from now on.

        Args:
            name: Its name in the snapshot, and of its files.
            state: An object with `save_state(path)` and `load_state(path)`; with `state_dict()` and `load_state_dict()`, as
                those of PyTorch have; a random generator of Python, numpy or torch; a subclass of list, dict, set or deque; or
                any other that pickle takes by its attributes, which is restored in place by these or by `__setstate__`. What it
                holds of other registered objects is not saved again, and is these very objects after loading. For a plain
                value see `register_value`.

        Raises:
            DuplicateNameError: The name is taken. (A `KeyError`.)
            UsageError: It is no name for files.
            UsageTypeError: The object cannot be restored in place.
        """
        if name in self._components:
            raise DuplicateNameError(f"a component called {name!r} is registered already", hint="Choose another name.")
        check_component_name(name, list(self._components))
        self._components[name] = adapt(name, state)
        self._registered_states[name] = state

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
        del self._components[name], self._registered_states[name]

    @property
    def components(self) -> dict[str, object]:
        """What is registered, by name."""
        return dict(self._registered_states)
