"""Hints that somebody at a shell can follow."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
import perdure_backends
from perdure.cli.wording import in_our_words


def test_codecs_and_filters_are_options(run, monkeypatch):
    monkeypatch.setenv("SECRET", "s" * 32)
    run("set", "d", "k", "1")
    run("set", "d", "signed", "1", "--filter", "lz4", "--filter", "signed=SECRET")
    assert "Open it with --codec msgpack, or" in run("get", "d", "k", "--codec", "json", code=2).err
    assert "Use --filter lz4 --filter signed=VARIABLE." in run("get", "d", "signed", code=1).err
    assert "Write --filter signed=VARIABLE" in run("get", "d", "k", "--filter", "signed", code=2).err
    assert "Known: 'lz4', 'zstd', --filter signed=VARIABLE" in run("get", "d", "k", "--filter", "lz5", code=2).err
    refused = run("set", "j", "k", "-", "--codec", "json", input=b"\xff", code=1).err
    assert "--codec msgpack holds data of all usual types; perdure.open(..., trusted=True) in Python lets" in refused
    assert "such as --codec, are options" in run("ls", "file:d?codec=json", code=2).err


def test_what_only_python_can_do_says_so(run):
    class Thing:
        pass

    perdure.register_type(Thing, name="wording-thing", encode=lambda thing: 1, decode=lambda state: Thing())
    with perdure.open("d") as d:
        d["k"] = Thing()
    perdure.codecs.types._classes.pop("wording-thing")
    assert "Use --raw, or read it in Python: import the module that calls" in run("get", "d", "k", code=1).err


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        ('If you trust it, use open(..., codec="pkl").', "If you trust it, use --codec pkl."),
        ('Use open(..., codec="json") or codec="txt".', "Use --codec json or --codec txt."),
        ('Use open(..., codec="json", trusted=True).', 'Use perdure.open(..., codec="json", trusted=True) in Python.'),
        ("Give open(..., max_bytes=...).", "Give perdure.open(..., max_bytes=...) in Python."),
        ("Add the filter Signed(key); trusted=True says that, and silences this.", "Add --filter signed=VARIABLE."),
        ("Give Signed(key, also=[old_key]).", "Give perdure.Signed(key, also=[old_key]) in Python."),
        ("Check the name, or open it with create=True.", "Check the name, or open it with ?create=true."),
        ("Open it with layout='plain', or not.", "Open it as file:FOLDER?layout=plain, or not."),
        ("Delete it.", "Delete it."),
    ],
)
def test_words(hint, words):
    assert in_our_words(hint) == words


def hints(node: ast.AST) -> Iterator[str]:
    """The texts in an expression, with a name for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        filled = {-1: "name", ord("r"): "'name'"}
        yield "".join(
            str(p.value) if isinstance(p, ast.Constant) else filled[getattr(p, "conversion", -1)] for p in node.values
        )
    elif isinstance(node, ast.Constant):
        yield str(node.value)
    else:
        for part in ast.iter_child_nodes(node):
            yield from hints(part)


def test_no_hint_of_the_library_is_python_at_the_shell():
    """Whoever words one anew finds out here whether the command line still understands it."""
    seen, python = 0, []
    for package in (perdure, perdure_backends):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Assign) and any(
                    isinstance(to, ast.Name) and to.id == "hint" for to in node.targets
                )
                if named or (isinstance(node, ast.keyword) and node.arg == "hint"):
                    for hint in hints(node.value):
                        seen += 1
                        words = re.sub(r"perdure\.\w+\(.*?\) in Python", "", in_our_words(hint))
                        if re.search(r"\bopen\(|\b(codec|filters|layout)=|=True", words.replace("?layout=", "")):
                            python.append(f"{path.name}: {hint} -> {words}")
    assert seen > 200
    assert python == []


def test_the_program_is_named_as_the_shell_finds_it(process, tmp_path):
    process("set", "d", "k", "1")
    nowhere = str(tmp_path)
    call = f"{sys.executable} -m perdure"
    assert f"{call} ls file:" in process("get", "d", "zzz", code=1, PATH=nowhere).err
    assert f"Try: {call} ls --help" in process("ls", "--nonsense", code=2, PATH=nowhere).err
    path = tmp_path / "d" / "k.perdure"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{call} doctor" in process("cp", "d", "e", code=1, PATH=nowhere).err
    (tmp_path / "perdure").symlink_to(shutil.which("true") or sys.executable)
    assert "let `perdure doctor" in process("get", "d", "k", code=1, PATH=nowhere).err
