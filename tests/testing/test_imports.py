"""What of the kit works without pytest and hypothesis, and what is said where they are missing."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys
sys.modules["pytest"] = sys.modules["hypothesis"] = None  # as if they were not installed
from perdure.testing import Faulty, Operation, Recorder, check_history
from perdure.testing import crew, faults
from perdure_backends.memory import MemoryBackend
recorder = Recorder(Faulty(MemoryBackend()), "me")
recorder.put("a", b"1")
check_history(recorder.history)
import perdure.testing
try:
    perdure.testing.BackendContract
except perdure.MissingExtraError as error:
    print(error)
try:
    perdure.testing.Nothing
except AttributeError as error:
    print(error)
"""


def test_faults_and_histories_need_neither_pytest_nor_hypothesis() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "pytest is not installed. Type: pip install 'perdure[testing]'",
        "module 'perdure.testing' has no attribute 'Nothing'",
    ]


def test_a_bare_assert_of_the_kit_explains_itself() -> None:
    from perdure.testing import values

    assert values.__loader__.__class__.__name__ == "AssertionRewritingHook"


def test_dir_lists_the_public_names() -> None:
    import perdure.testing

    assert set(perdure.testing.__all__) <= set(dir(perdure.testing))
    for name in perdure.testing.__all__:
        assert getattr(perdure.testing, name).__name__ == name
