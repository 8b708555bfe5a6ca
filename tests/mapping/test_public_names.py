"""The names that `perdure` offers, and what it costs to have them."""

from __future__ import annotations

import builtins
import subprocess
import sys

import pytest

import perdure


@pytest.mark.smoke
def test_every_public_name_is_there() -> None:
    assert set(perdure.__all__) == {"__version__", *perdure._home} - {"open"}
    for name in (*perdure.__all__, "open"):
        assert getattr(perdure, name) is not None
    assert set(perdure.__all__) <= set(dir(perdure))
    assert "Any" not in dir(perdure)  # completion offers what is ours
    with pytest.raises(AttributeError, match="colour"):
        perdure.colour


def test_a_star_import_leaves_the_builtins_alone() -> None:
    names: dict[str, object] = {}
    exec("from perdure import *", names)
    assert "PersiDict" in names
    assert not names.keys() & vars(builtins).keys()


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = """if True:
        import sys
        import perdure
        assert not [m for m in sys.modules if m.startswith(("perdure.", "perdure_backends"))]
        d = perdure.open("memory:")
        d["a"] = 1
        heavy = {"boto3", "lmdb", "jsonpickle", "pickle", "numpy", "cryptography", "zstandard", "sqlite3", "asyncio", "random"}
        print(sorted(heavy & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
