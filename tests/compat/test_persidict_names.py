"""`import perdure.compat.persidict as persidict` has every name of persidict 0.309, where it has them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import perdure

# Of the third-party base class of persidict's dicts: parameters as JSON and the like.
NOT_OURS = {"get_jsparams", "get_default_jsparams", "get_essential_params", "get_essential_jsparams", "get_auxiliary_params",
            "get_auxiliary_jsparams", "essential_param_names", "auxiliary_param_names"}  # fmt: skip
# transform_item goes on until it wins, so n_retries is None. The others are of plain tuples.
OTHER_DEFAULTS = {("SafeStrTuple.index", "stop"), ("NonEmptySafeStrTuple.index", "stop")}
CLASSES = ["PersiDict", "FileDirDict", "LocalDict", "EmptyDict", "BasicS3Dict", "S3Dict", "WriteOnceDict",
           "AppendOnlyDictCached", "MutableDictCached", "OverlappingMultiDict",
           "SafeStrTuple", "NonEmptySafeStrTuple"]  # fmt: skip


def test_all_public_names_are_there(theirs: ModuleType, ours: ModuleType) -> None:
    assert sorted(ours.__all__) == sorted(theirs.__all__)
    for name in [*theirs.__all__, "SAFE_CHARS_SET", "SAFE_STRING_MAX_LENGTH", "contains_unsafe_chars"]:
        assert isinstance(getattr(ours, name), type) == isinstance(getattr(theirs, name), type), name


def test_all_sub_modules_are_there_with_their_names(theirs: ModuleType, ours: ModuleType) -> None:
    for info in pkgutil.iter_modules(theirs.__path__):
        if info.name.startswith("_"):
            continue
        their = importlib.import_module(f"persidict.{info.name}")
        our = importlib.import_module(f"perdure.compat.persidict.{info.name}")
        defined = [
            name
            for name, value in vars(their).items()
            if not name.startswith("_")
            and getattr(value, "__module__", their.__name__) == their.__name__
            and not inspect.ismodule(value)
        ]
        missing = [name for name in defined if name.isupper() or callable(getattr(their, name)) if not hasattr(our, name)]
        assert missing == [], info.name


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_the_methods_and_take_the_arguments(name: str, theirs: ModuleType, ours: ModuleType) -> None:
    their, our = getattr(theirs, name), getattr(ours, name)
    for member, value in inspect.getmembers(their):
        if member.startswith("_") or member in NOT_OURS:
            continue
        assert hasattr(our, member), member
        if inspect.isfunction(value):
            _compare(value, getattr(our, member), f"{name}.{member}")
    if name != "PersiDict" and "SafeStrTuple" not in name:
        _compare(their.__init__, our.__init__, name)


def _compare(their: Any, our: Any, what: str) -> None:
    mine = inspect.signature(our).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in mine.values())
    for name, parameter in inspect.signature(their).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) or name == "self":
            continue
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name not in mine:
            continue  # given by position
        if name not in mine and takes_any:
            continue
        assert name in mine, f"{what}: {name}"
        if parameter.default is not parameter.empty and name != "n_retries" and (what, name) not in OTHER_DEFAULTS:
            assert _say(mine[name].default) == _say(parameter.default), f"{what}: {name}"


def _say(default: Any) -> str:
    return type(default).__name__ if type(default).__name__.endswith("Flag") else repr(default)


PROGRAM = """
import {library} as persidict
from {library}.file_dir_dict import FileDirDict
from {library}.jokers_and_status_flags import KEEP_CURRENT, DELETE_CURRENT, ETAG_IS_THE_SAME, ITEM_NOT_AVAILABLE
from {library}.safe_str_tuple import SafeStrTuple, NonEmptySafeStrTuple
import sys

d = FileDirDict[int](base_dir=sys.argv[1])
d["a"] = 1
d["level", "b"] = 2
d.update({{"c": 3, ("level", "d"): 4}})
d["a"] = KEEP_CURRENT
d["c"] = DELETE_CURRENT
print(sorted(map(tuple, d)), ("a",) in set(d), dict(d.items())[("level", "b")])
print(hash(SafeStrTuple("a")) == hash(("a",)), SafeStrTuple("a") == "a", repr(SafeStrTuple("a", ["b"])))
try:
    d["absent"]
except KeyError as error:
    print(isinstance(error.args[0], NonEmptySafeStrTuple), tuple(error.args[0]))
for bad, kind in ((1, TypeError), ("", ValueError), ("a b", ValueError), ((), ValueError), (None, TypeError)):
    try:
        d[bad]
    except kind:
        print("refused", bad)
result = d.set_item_if("new", value=5, condition=ETAG_IS_THE_SAME, expected_etag=ITEM_NOT_AVAILABLE)
print(result.condition_was_satisfied, result.value_was_mutated, result.new_value)
print(d.transform_item("new", transformer=lambda n: n + 1).new_value, d.pop("new"), d.discard("new"), d.get("new", 7))
once = persidict.WriteOnceDict(wrapped_dict=persidict.LocalDict(append_only=True), p_consistency_checks=1)
once["k"] = {{"x": 1}}
try:
    once["k"] = {{"x": 2}}
except persidict.MutationPolicyError as error:
    print(error.policy)
only = persidict.LocalDict(append_only=True)
only["k"] = 1
try:
    del only["k"]
except TypeError as error:
    print(error.policy)
sub = d.get_subdict("level")
print(sorted(map(tuple, sub)), sorted(d.subdicts()), [tuple(k) for k in d.newest_keys(max_n=1)], d.random_key() is not None)
print({{**d.get_params(), "base_dir": "..."}}, type(d)(**d.get_params()) == d)
print(str(persidict.LocalDict()), persidict.EmptyDict().get("a"), len(persidict.get_safe_chars()))
print(sorted(persidict.replace_unsafe_chars("a b/c", "_")), persidict.LocalDict() == {{}}, bool(d), len(d))
"""


def test_an_unchanged_program_prints_the_same(tmp_path: Path) -> None:
    pytest.importorskip("persidict")
    printed = []
    for library in ("persidict", "perdure.compat.persidict"):
        command = [sys.executable, "-c", PROGRAM.format(library=library), str(tmp_path / library)]
        printed.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    assert printed[1] == printed[0]
    assert len(printed[0]) > 15


def test_it_loads_neither_boto3_nor_numpy(tmp_path: Path) -> None:
    program = (
        "import sys, perdure.compat.persidict; print([m for m in ('boto3', 'numpy', 'pandas', 'joblib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_native_names_are_the_same_classes(ours: ModuleType) -> None:
    for name in ("FileDirDict", "LocalDict", "EmptyDict", "S3Dict", "BasicS3Dict", "WriteOnceDict", "OverlappingMultiDict"):
        assert getattr(ours, name) is getattr(perdure, name)
