"""What there is to count, and how counting is kept in a dict so that it survives anything.

The dict holds::

    job                      the folder and the files, fixed by whoever starts first
    run                      a number that grows each time the program is started on this dict
    claims/json/decoder.py   who counts this file
    counts/json/decoder.py   how often each word occurs in it; created once, never changed
    totals                   sums over all files so far, and which files are in them
    elected/kill, /stop      which worker was chosen to meet its end at the worst moment

*Exactly once* does not rest on the claims: a claim only saves two workers from doing the same file. It rests on two writes
that are safe to repeat, whoever was killed between them:

1. ``counts/...`` is written create-only. The second who tries is told that it is there, and goes on with what is there.
2. ``totals`` carries one bit for each file that it includes. Adding sets the bit and the sums in one atomic
   `transform_item`, and does nothing where the bit is set.

So a worker killed after (1) and before (2) leaves a file that is stored and not added; whoever takes the file over finds the
counts, and adds them. One killed during (2) has either added or not, and the bit tells.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import BackendError, UsageError
from ...keys import SafeStrTuple, is_key
from ...mapping import PersiDict
from ...mapping.flags import ITEM_NOT_AVAILABLE, KEEP_CURRENT

Shared = PersiDict[Any]

_word = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").findall
_tests = {"test", "tests", "idle_test"}
_skipped = {"site-packages", "dist-packages", "__pycache__"}
SUMS = ("files", "words", "lines", "bytes")
EMPTY = {**dict.fromkeys(SUMS, 0), "included": b""}


def choose_files(most: int) -> tuple[str, list[str]]:
    """The folder of the standard library, and up to `most` of its source files, its own tests last.

    Raises:
        BackendError: This Python has no source files, as in an embedded one.
    """
    root = sysconfig.get_path("stdlib")
    library: list[str] = []
    tests: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _skipped)
        for name in sorted(names):
            path = Path(folder, name).relative_to(root)
            if name.endswith(".py") and is_key(path.as_posix()) and Path(folder, name).is_file():
                (library if _tests.isdisjoint(path.parts) else tests).append(path.as_posix())
    chosen = sorted((library + tests)[:most])
    if not chosen:
        raise BackendError("this Python comes without the source files of its library", place=root)
    return root, chosen


def count_words(root: str, name: str) -> dict[str, Any]:
    """Everything that is to know about one file."""
    data = Path(root, name).read_bytes()
    words = Counter(_word(data.decode("utf-8", "replace")))
    return {"bytes": len(data), "lines": data.count(b"\n"), "words": dict(words)}


class Job:
    """The files of one dict, in the order that all its workers share.

    Args:
        shared: The dict.

    Raises:
        UsageError: There are other things in it.
    """

    def __init__(self, shared: Shared) -> None:
        description = shared.get("job")
        if not isinstance(description, dict) or description.get("kind") != _KIND:
            raise UsageError(
                "there is no demo in this place", place=shared.place, hint="Choose one that keeps what is written."
            )
        self.shared = shared
        self.root: str = description["root"]
        self.files: list[str] = description["files"]
        self.number = {name: number for number, name in enumerate(self.files)}

    @classmethod
    def begin(cls, shared: Shared, most: int) -> Job:
        """Fix the files, unless they are fixed already. Of several who try at once, one does."""
        if "job" not in shared:
            if next(iter(shared), None) is not None:
                raise UsageError("there are other things in this place", place=shared.place, hint="Choose an empty one.")
            root, files = choose_files(most)
            shared.setdefault("job", {"kind": _KIND, "root": root, "files": files})
        return cls(shared)

    def start_run(self) -> int:
        """A number that no earlier start on this dict had: who holds a claim of an earlier one is gone."""
        done: Any = self.shared.transform_item("run", transformer=lambda n: 1 if n is ITEM_NOT_AVAILABLE else n + 1)
        run: int = done.new_value
        return run

    def totals(self) -> dict[str, Any]:
        """The sums so far."""
        found: dict[str, Any] = self.shared.get("totals", EMPTY)
        return found

    def add(self, name: str, counts: dict[str, Any]) -> dict[str, Any]:
        """Add a file to the totals, unless it is in them; may be repeated at will. Returns the totals."""
        number = self.number[name]

        def include(totals: Any) -> Any:
            totals = dict(EMPTY) if totals is ITEM_NOT_AVAILABLE else totals
            if is_included(totals, number):
                return KEEP_CURRENT
            totals["included"] = _with_bit(totals["included"], number)
            totals["files"] += 1
            totals["words"] += sum(counts["words"].values())
            totals["lines"] += counts["lines"]
            totals["bytes"] += counts["bytes"]
            return totals

        totals: Any = self.shared.transform_item("totals", transformer=include).new_value
        return dict(totals)

    def elect(self, name: str, what: str, file: str) -> bool:
        """Let exactly one worker win: of all who call this for the same `what`, the first."""
        mine = {"worker": name, "file": file}
        return bool(self.shared.setdefault(("elected", what), mine) == mine)


_KIND = "perdure demo 1"


def claim_key(name: str) -> SafeStrTuple:
    """Where it says who counts a file."""
    return SafeStrTuple("claims", name.split("/"))


def counts_key(name: str) -> SafeStrTuple:
    """Where the counts of a file are."""
    return SafeStrTuple("counts", name.split("/"))


def is_included(totals: dict[str, Any], number: int) -> bool:
    """Whether a file is in the totals."""
    bits: bytes = totals["included"]
    return number >> 3 < len(bits) and bool(bits[number >> 3] >> (number & 7) & 1)


def _with_bit(bits: bytes, number: int) -> bytes:
    longer = bytearray(bits.ljust((number >> 3) + 1, b"\0"))
    longer[number >> 3] |= 1 << (number & 7)
    return bytes(longer)


def sum_up(counts: Iterable[dict[str, Any]]) -> tuple[dict[str, int], Counter[str]]:
    """The same totals the plain way, in one process and in memory: the sums, and each word."""
    sums: dict[str, int] = dict.fromkeys(SUMS, 0)
    words: Counter[str] = Counter()
    for one in counts:
        words.update(one["words"])
        sums["files"] += 1
        sums["lines"] += one["lines"]
        sums["bytes"] += one["bytes"]
    sums["words"] = words.total()
    return sums, words
