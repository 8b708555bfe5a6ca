"""What the library says to those who write Python, in the words of those who type commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys


def _filters(found: re.Match[str]) -> str:
    return " ".join("--filter " + spelled.strip("'") for spelled in found[1].split(", "))


# One after the other. What no option of a command says is left as it is, with a word about where it can be said.
_words = (
    (r"open\(\.\.\., filters=\[(.*?)\]\)", _filters),
    (r"(?:the filter )?(?:perdure\.)?(Signed|Encrypted)\(key\)", lambda found: f"--filter {found[1].lower()}=VARIABLE"),
    (r"--filter --filter", "--filter"),
    (r'open\(\.\.\., codec="(\w+)"\)', r"--codec \1"),
    (r"(?<!\.\.\., )codec=[\"'](\w+)[\"']", r"--codec \1"),
    (r"(?:perdure\.)?((?:open\(\.\.\.,|(?:Signed|Encrypted)\(key,)[^)]*\))", r"perdure.\1 in Python"),
    (r"; trusted=True says [^.]*", ""),
    (r"\b(create|unsafe_single_writer)=True", r"?\1=true"),
    (r"it with (layout|suffix|digest_len)='([^']*)'", r"it as file:FOLDER?\1=\2"),
    (r"such as codec, are arguments of perdure\.open", "such as --codec, are options of the command"),
    (r"Import the module", "Use --raw, or read it in Python: import the module"),
    (
        r"\bperdure (?=(?:ls|get|set|rm|cp|info|doctor|demo|import|snapshots|restore|prune|diff|cache)\b)",
        lambda found: f"{program()} ",
    ),
)


def in_our_words(hint: str) -> str:
    """A hint of the library, with options of a command where it names arguments."""
    for pattern, words in _words:
        hint = re.sub(pattern, words, hint)
    return hint


def program() -> str:
    """How to call this again: `perdure` where the shell finds that, else by the interpreter that runs it."""
    if shutil.which("perdure"):
        return "perdure"
    name = os.path.basename(sys.executable)
    return f"{name if shutil.which(name) == sys.executable else shlex.quote(sys.executable)} -m perdure"
