"""Imports point one way. Read from the source, so that a lazy import inside a function counts as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
import perdure_backends

SOURCE = Path(perdure.__file__).parent
BACKENDS = Path(perdure_backends.__file__).parent

# A module may import from its own rank only within its own package, and from any lower rank.
RANKS = {
    "errors": 0,
    "keys": 1, "durations": 1, "sizes": 1, "pulse": 1, "protocol": 2, "codecs": 2.5,
    "registry": 3, "wrappers": 3,
    "mapping": 4,
    "locks": 4.5, "caching": 5, "store": 5, "history": 5, "snapshots": 5, "shared": 5, "aio": 4.5,
    "compat": 6, "cli": 7, "testing": 6, "__main__": 8, "__init__": 8,
}  # fmt: skip


def imports(path: Path, package: str) -> Iterator[str]:
    """The absolute names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            stem = ".".join(filter(None, [base if node.level else "", node.module or ""]))
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def modules(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(root.rglob("*.py")):
        yield path, ".".join([name, *path.relative_to(root).parts[:-1]])


@pytest.mark.parametrize(
    ("path", "package"), list(modules(SOURCE, "perdure")), ids=lambda x: Path(x).name if isinstance(x, Path) else ""
)
def test_the_library_imports_downwards(path: Path, package: str) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for name in imports(path, package):
        assert not name.startswith("perdure_backends") or part == "testing", (
            f"{path}: backends are named as strings, in the registry only"
        )
        if name.startswith("perdure.") and (target := name.split(".")[1]) in RANKS and target != part:
            assert RANKS[target] < RANKS[part], f"{path} imports {name}, which is above it"


@pytest.mark.parametrize("path", [path for path, _ in modules(BACKENDS, "perdure_backends")], ids=lambda path: path.name)
def test_a_backend_imports_the_contract_only(path: Path) -> None:
    for name in imports(path, "perdure_backends"):
        if name.split(".")[0] == "perdure":
            assert name.split(".")[:2] in (["perdure"], *(["perdure", part] for part in ("protocol", "errors", "durations"))), (
                f"{path} imports {name}"
            )


def test_every_part_has_a_rank() -> None:
    parts = {
        path.name.removesuffix(".py")
        for path in SOURCE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and list(path.glob("*.py")))
    }
    assert parts <= set(RANKS)
