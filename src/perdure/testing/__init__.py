"""The test kit for backends: everything that `perdure.protocol` promises, as tests. Needs `pip install 'perdure[testing]'`.

A backend's whole test is a subclass that says how to open it::

    from perdure.testing import BackendContract

    class TestMine(BackendContract):
        def open(self, where):
            return MyBackend(where)

`Faulty` wraps a backend and makes it fail on purpose; `check_history` judges recorded operations; neither needs pytest.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .contract import BackendContract
    from .faults import Faulty
    from .linearizability import Operation, Recorder, check_history
    from .stateful import BackendMachine

_home = {
    "BackendContract": "contract",
    "BackendMachine": "stateful",
    "Faulty": "faults",
    "Operation": "linearizability",
    "Recorder": "linearizability",
    "check_history": "linearizability",
}

__all__ = ["BackendContract", "BackendMachine", "Faulty", "Operation", "Recorder", "check_history"]

if sys.modules.get("pytest") is not None:
    # A bare `assert` of the kit then shows what it compared, as one in a test file does.
    parts = ("kit", "values", "names", "listing", "lifetime", "interrupts", "kills", "races", "stateful", "contract")
    sys.modules["pytest"].register_assert_rewrite(*(f"{__name__}.{part}" for part in parts))


def __getattr__(name: str) -> Any:
    # Faulty and the history checker must work where neither pytest nor hypothesis is installed.
    if name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(f".{_home[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name not in ("pytest", "hypothesis"):
            raise
        raise MissingExtraError(error.name, "testing") from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
