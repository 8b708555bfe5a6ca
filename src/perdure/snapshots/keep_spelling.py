"""How the command line spells what to keep: `latest=3,best=1:loss`, which is also what `str` of a keeper gives."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import reduce
from typing import Final
from urllib.parse import unquote

from ..errors import UsageError, UsageTypeError
from .keep import KeepBest, Keeper, KeepEvery, KeepLatest, KeepThinned, KeepYoungerThan

_EXAMPLES: Final = "latest=3, every=10, younger=7d, best=1:loss, best=1:accuracy:max, thinned"


def parse_keeper(text: str) -> Keeper:
    """Read a policy as the command line spells it, and as `str(keeper)` does.

    Args:
        text: `latest=3`, `every=10`, `younger=7d`, `best=2` (by the loss), `best=2:loss`, `best=2:accuracy:max`, `thinned`, or
            `thinned=1h:all/1d:1h/ever:1d`, which is how `thinned` alone is understood: ages, each with its spacing. Several
            with `,` or `|` between them keep what any of them keeps; with `&`, which binds tighter, what all of them keep.
            In the name of a metric these signs are written as in a URL, such as `%2C` for a comma.

    Raises:
        UsageError: It cannot be read.
    """
    if not isinstance(text, str):
        raise UsageTypeError(f"a policy is spelled as text, not {text!r:.60}", hint=f"Such as {_EXAMPLES}.")
    alternatives = re.split("[,|]", text)
    return reduce(operator.or_, (reduce(operator.and_, map(_read_one, words.split("&"))) for words in alternatives))


def _read_one(word: str) -> Keeper:
    name, equals, told = (side.strip() for side in word.partition("="))
    reader = _READERS.get(name)
    if reader is None:
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), _READERS, 1, 0.5)
        hint = (f"Did you mean {close[0]!r}? " if close else "") + f"Policies are such as {_EXAMPLES}."
        raise UsageError(f"no policy is called {name!r:.60}" if name else "a policy is missing", hint=hint)
    try:
        return reader(told if equals else None)
    except UsageError as error:
        raise UsageError(f"{word!r:.200}: {error.problem}", hint=error.hint) from error


def _read_best(told: str | None) -> Keeper:
    n, *words = (told or "").split(":")
    if len(words) > 2 or words in (["min"], ["max"]):
        hint = "Write best=NUMBER:METRIC or best=NUMBER:METRIC:max; a colon in the name of a metric is %3A."
        raise UsageError("this is not a number, a metric and a mode", hint=hint)
    return KeepBest(_number(n, "best=1:loss"), *map(unquote, words))


def _read_thinned(told: str | None) -> Keeper:
    if told is None:
        return KeepThinned()
    rules: list[tuple[str | None, str | None]] = []
    for rule in told.split("/"):
        age, colon, spacing = rule.partition(":")
        if not colon:
            raise UsageError(f"{rule!r:.60} is no AGE:SPACING", hint="Such as thinned=1h:all/1d:1h/ever:1d.")
        rules.append((None if age == "ever" else age, None if spacing == "all" else spacing))
    return KeepThinned(rules)


def _number(told: str | None, example: str) -> int:
    if not told or not re.fullmatch("-?[0-9]{1,1000}", told):
        raise UsageError(f"{told!r:.60} is no whole number" if told else "a number is missing", hint=f"Such as {example}.")
    return int(told)


_READERS: Final[dict[str, Callable[[str | None], Keeper]]] = {
    "latest": lambda told: KeepLatest(_number(told, "latest=3")),
    "every": lambda told: KeepEvery(_number(told, "every=10")),
    "younger": lambda told: KeepYoungerThan(told or ""),
    "best": _read_best,
    "thinned": _read_thinned,
}
