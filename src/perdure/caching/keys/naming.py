"""What a function is called in keys: its module and qualified name, its version, and its code where these are not enough.

Names are for people (`train.features()=2`), so they are spelled out where that is exact. Where it is not (characters that keys
cannot have, a name that is too long or could be another function's), 16 digits of a hash of the exact name follow after a `~`.

The digest of code is made of the tokens of its source, the same in every version of Python. Where there is no source, or the
file is another one than was loaded, it is made of the bytecode, and then holds for one version of Python only.
"""

from __future__ import annotations
import __future__

import ast
import io
import linecache
import os
import re
import sys
import threading
import tokenize
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple

from ...errors import UsageError, UsageTypeError
from ...keys import contains_unsafe_chars, replace_unsafe_chars
from .hashing import digest
from .layers import is_plain
from .objects import main_stem
from .targets import inwards, target_of

__all__ = ["CODE", "code_digest", "innermost", "is_anybodys", "is_same_code", "name_of", "own_code_digest"]

CODE: Final = "code"
"""As a version: the digest of the function's code."""

_LONGEST: Final = 120  # of a name: more than anyone reads, and short enough for the names of files, with what they add
_FUTURES: Final = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})
_dotted = re.compile(r"[A-Za-z0-9_.]+\Z").match


def name_of(function: Callable[..., Any], version: object = None) -> str:
    """Name a function and its version by the first segment of the keys of its results, such as `"train.features()=2"`.

    A function of the program itself (`__main__`) is named after the file of the program. As there may be many of that name, its
    code is a part of the name always; so it is for lambdas, for functions defined inside of others, and for those called `_`.
    Where functions wrap each other, it is the innermost one that is named, unless the wrapper goes by another name.

    Args:
        function: A function, or what runs one: see `target_of`. Methods are named with the class that defines them.
        version: None, text, a number, or a tuple or the like of them; or `CODE`, for a name that changes with the code.

    Returns:
        A legal segment of at most 120 characters. Other functions and other versions have other names; 1 and "1" differ, too.

    Raises:
        UsageError: It cannot be told what the function's results depend on, or it has no code and needs to.
        UsageTypeError: It is no function, or the version is of another type.

    Cost: about 5 µs; where code is a part of it, the time to read and parse the file of the function once, about 20 ms for a
    thousand lines. Do it when the function is defined: later the file may have changed. Safe in all threads.
    """
    run: Any = target_of(function).function
    inner = innermost(run)
    if (getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)) != (run.__module__, run.__qualname__):
        inner = run  # it goes by a name of its own
    module, qualname = run.__module__, run.__qualname__
    main = module in ("__main__", "__mp_main__")  # the second in processes that multiprocessing spawned
    if main:
        module = main_stem(getattr(inner, "__globals__", None))
    by_code = type(version) is str and version == CODE
    code = _code_of(run, inner) if by_code or is_anybodys(run) else ""
    spelled, exact = _version(version)
    text = f"{module}.{qualname}()" + ("" if spelled is None else f"={spelled}")
    exact = exact and not code and "~" not in text and not contains_unsafe_chars(text) and _is_split(module, qualname)
    if exact and len(text) <= _LONGEST:
        return text
    whole = digest((module, qualname, main, code, None if by_code else (version,)))
    text = replace_unsafe_chars(text.replace("<", "(").replace(">", ")"), "_").replace("~", "_")
    return f"{text[: _LONGEST - 17]}~{whole[:16]}"


def _code_of(run: Any, named: Any) -> str:
    """The code that a name stands for: that of the innermost function, and of a wrapper that goes by a name of its own."""
    inner = innermost(run)
    if named is inner or type(run) is not FunctionType:
        return code_digest(inner)
    return own_code_digest(run) + (code_digest(inner) if hasattr(inner, "__code__") else "")


def is_anybodys(run: Any) -> bool:
    """Tell whether others may well have the same module and qualified name, so that the code has to tell them apart."""
    return "<" in run.__qualname__ or run.__module__ in ("__main__", "__mp_main__") or run.__qualname__.split(".")[-1] == "_"


def _version(version: object) -> tuple[str | None, bool]:
    """How a version is spelled, and whether no other one is spelled like that."""
    kind = type(version)
    if isinstance(version, (int, float)) and kind in (int, float):
        return repr(version), True
    if isinstance(version, str) and kind is str:
        return version, bool(version) and not _is_number(version)
    if version is None:
        return None, True
    if is_plain(version):
        return "-".join(map(str, version)) if isinstance(version, tuple) else str(version), False
    try:
        digest((version,))
    except UsageTypeError as error:
        hint = 'Such as version=2 or version="2026-01".'
        raise UsageTypeError(f"a version is text, a number, or a tuple of them, not {version!r:.80}", hint=hint) from error
    return kind.__name__, False  # its repr may be another one in each process


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_split(module: str, qualname: str) -> bool:
    """Tell whether module and name can be told apart when joined by a dot.

    They can by convention: a name begins with the first part, after the first of all, whose first letter is a capital, or else
    is the last part. Where they break that rule (`a.b.c` as the method `b.c` of module `a`), they need more to be told apart.
    """
    if not _dotted(f"{module}.{qualname}"):
        return False
    first, *parts = f"{module}.{qualname}".split(".")
    capital = next((at for at, part in enumerate(parts) if part.lstrip("_")[:1].isupper()), len(parts) - 1)
    return module == ".".join([first, *parts[:capital]])


# --------------------------------------------------------------------------------------------------------------- code


def innermost(function: Any) -> Any:
    """What a function wraps in the end; itself if nothing."""
    return inwards(function)[-1]


def code_digest(function: Callable[..., Any]) -> str:
    """Digest the code of a function: that of the innermost one where others wrap it.

    Comments, blank lines, the width of indentation, line breaks inside of brackets and the arguments of decorators do not
    count. Docstrings do, and so do annotations, defaults and the names of decorators; what the function calls does not.

    Args:
        function: A function, or something with a `__wrapped__`.

    Returns:
        32 hexadecimal digits.

    Raises:
        UsageError: It is not written in Python.
    """
    inner: Any = innermost(function)
    if not isinstance(getattr(inner, "__code__", None), CodeType):
        hint = "Give a version= of your own, or write a function that calls it."
        raise UsageError(f"{inner!r:.80} has no code that could be told from another version of it", hint=hint)
    return own_code_digest(inner)


def own_code_digest(function: FunctionType) -> str:
    """Digest the code of a function itself, whatever it wraps. What counts is told at `code_digest`.

    Args:
        function: A function that is written in Python.

    Returns:
        32 hexadecimal digits.

    Cost: the time to read and parse the file of the function once, about 20 ms for a thousand lines. Safe in all threads.
    """
    code = function.__code__
    source = _source_of(code, function.__globals__)
    try:
        if source is not None:
            return digest(("source", *_tokens(source)))
    except (SyntaxError, tokenize.TokenError):
        pass  # which the compiler took: it is not for this to know better
    return digest(("bytecode", sys.implementation.cache_tag, _bytecode(code)))


def is_same_code(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Tell whether two functions do the same, as when a module was loaded twice, also if its file was edited in between.

    Of functions that wrap others it is the innermost ones that are compared.

    Raises:
        UsageError: One is not written in Python.
    """
    codes = [getattr(innermost(function), "__code__", None) for function in (one, other)]
    if all(isinstance(code, CodeType) for code in codes) and len({digest((_bytecode(code),)) for code in codes}) == 1:  # type: ignore[arg-type]
        return True
    return code_digest(one) == code_digest(other)


class _Parsed(NamedTuple):
    """What a file defines.

    Attributes:
        codes: The code of all its functions, as it is compiled now.
        ends: The last line of each `def`, by its first one, decorators included.
        lambdas: From the outside in.
    """

    codes: frozenset[CodeType]
    ends: dict[int, int]
    lambdas: list[ast.Lambda]


_alone = threading.Lock()  # to silence warnings in one thread while another does so may silence them for ever


def _after_fork() -> None:
    global _alone
    _alone = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@lru_cache(2)  # functions are mostly named one after the other, as their module is imported
def _parse(text: str, file: str, futures: int) -> _Parsed:
    with _alone, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were given when the file was compiled
        nodes = list(ast.walk(ast.parse(text, file)))
        codes = frozenset(_codes(compile(text, file, "exec", futures, dont_inherit=True)))
    defs = (node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    ends = {min([node.lineno, *(each.lineno for each in node.decorator_list)]): node.end_lineno or 0 for node in defs}
    return _Parsed(codes, ends, [node for node in nodes if isinstance(node, ast.Lambda)])


def _codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


def _source_of(code: CodeType, namespace: dict[str, Any]) -> str | None:
    """The source that a function was made of; None where that is not to be had any more."""
    file = code.co_filename
    linecache.checkcache(file)
    lines = linecache.getlines(file, namespace)
    text = "".join(lines)
    try:
        parsed = _parse(text, file, code.co_flags & _FUTURES)
    except (SyntaxError, ValueError):
        return None
    if code not in parsed.codes:  # the file was edited after it was loaded, or what was loaded was not what it says
        return None
    if code.co_name == "<lambda>":
        return _lambda_source(code, parsed.lambdas, lines)
    first = code.co_firstlineno
    return "".join(lines[first - 1 : parsed.ends[first]]) if first in parsed.ends else None


def _lambda_source(code: CodeType, lambdas: list[ast.Lambda], lines: list[str]) -> str | None:
    """There may be several on one line: it is the smallest one in whose body all of the instructions are."""
    spans = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if line is not None and end_line is not None and column is not None and end_column is not None
    ]
    spans = [(start, end) for start, end in spans if start < end]
    if not spans:
        return None
    first, last = min(spans)[0], max(end for _, end in spans)
    found: ast.Lambda | None = None
    for node in lambdas:
        body: Any = node.body
        if (body.lineno, body.col_offset) <= first and last <= (body.end_lineno, body.end_col_offset):
            found = node
    if found is None or found.end_lineno is None:
        return None
    # Columns count bytes. (`ast.get_source_segment` would split the whole file for each lambda.)
    spanned = [line.encode() for line in lines[found.lineno - 1 : found.end_lineno]]
    spanned[-1] = spanned[-1][: found.end_col_offset]
    spanned[0] = spanned[0][found.col_offset :]
    return f"({b''.join(spanned).decode()})"  # in brackets, so that it may have several lines


def _tokens(source: str) -> list[str]:
    """What counts of a source: its tokens but comments, spacing and what stands in the brackets of decorators."""
    lines = io.StringIO(source).readlines()  # not `splitlines`, for which there are more ends of lines
    found: list[str] = []
    decorator = False
    brackets = 0
    inside: list[tuple[int, int]] = []  # where the f-strings begin that we are in: since Python 3.12 they come in pieces
    for token in tokenize.generate_tokens(iter(lines).__next__):
        name = tokenize.tok_name[token.type]
        if name in ("FSTRING_START", "TSTRING_START"):
            inside.append(token.start)
        if inside:
            if name not in ("FSTRING_END", "TSTRING_END"):
                continue
            start = inside.pop()
            if inside:
                continue
            text = _between(lines, start, token.end)
        elif name in ("COMMENT", "NL", "ENDMARKER"):
            continue
        else:
            text = {"NEWLINE": "\n", "INDENT": " >", "DEDENT": " <"}.get(name, token.string)
        if text == "@" and (not found or found[-1] in ("\n", " >", " <")):
            decorator = True
        elif name == "NEWLINE":
            decorator = False
        if decorator and text in ("(", "["):
            brackets += 1
        elif decorator and text in (")", "]"):
            brackets -= 1
        elif not brackets:
            found.append(text)
    while found and found[-1] in ("\n", " <"):
        found.pop()
    return found[1:] if found and found[0] == " >" else found


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    return "".join([lines[start[0] - 1][start[1] :], *lines[start[0] : end[0] - 1], lines[end[0] - 1][: end[1]]])


def _bytecode(code: CodeType) -> tuple[Any, ...]:
    """All of a code object but where it stood."""
    consts = tuple(_bytecode(const) if isinstance(const, CodeType) else const for const in code.co_consts)
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return (code.co_name, counts, code.co_code, code.co_exceptiontable, names, consts)
