"""What a user may write into a manifest: step, loss, configuration; as JSON has it, and nothing changed in silence."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Mapping
from typing import Any, Final

from ..errors import UsageError

MAX_MANIFEST: Final = 64 << 20
"""Bytes; half a million parts."""

_DEEPEST = 100  # levels of metadata; json reads some hundreds, and fewer the deeper its caller is
_LARGEST = 10**4300  # the first whole number that Python does not read by default


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of what the user wants to have in the manifest, as JSON gives it back.

    Raises:
        UsageError: JSON cannot hold it, or not without a change of its keys; or it is too large, or nested too deeply.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise UsageError(f"metadata is a dict with names, not {metadata!r:.60}", hint='Such as {"step": 100, "loss": 0.25}.')
    plain: dict[str, Any] = _plain(metadata, ())
    size = len(json.dumps(plain, ensure_ascii=False))
    if size > MAX_MANIFEST:  # at least: said before anything is saved
        raise too_large(size)
    return plain


def _plain(value: Any, where: tuple[Any, ...]) -> Any:
    """A copy of what stands in metadata under some keys, one in the other."""
    if value is None or type(value) in (bool, float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        if not -_LARGEST < value < _LARGEST:
            raise UsageError(f"{_spell(where)} has more than 4,300 digits", hint="Write it as text.")
        return int(value)
    if isinstance(value, (Mapping, list, tuple)) and len(where) > _DEEPEST:
        hint = "Register what is so deep as a component."
        raise UsageError(f"{_spell(where[:1])} is nested more than {_DEEPEST} levels deep", hint=hint)
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(inner, (*where, key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, (*where, number)) for number, inner in enumerate(value)]
    cause = None
    try:
        # A number of numpy or torch is what `item` makes of it; a metric mostly is one.
        if not getattr(value, "ndim", 0):
            single = value.item()
            if type(single) in (bool, int, float):
                return single
    except Exception as error:  # of whatever it is: then it is no number
        cause = error
    name = type(value).__name__
    problem = f"{_spell(where)} is {'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}, which JSON cannot hold"
    raise UsageError(problem, hint=_instead_of(value)) from cause


def _key(key: Any, where: tuple[Any, ...]) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    does = "would make text" if key is None or isinstance(key, (int, float)) else "cannot hold"
    raise UsageError(
        f"{_spell(where)} has the key {key!r:.60}, which JSON {does}", hint="Write keys as text, such as str(key)."
    )


def _spell(where: tuple[Any, ...]) -> str:
    return "metadata" + "".join(f"[{key!r:.60}]" for key in where)


def _instead_of(value: Any) -> str:
    """A hint: how to write what is no JSON."""
    name = type(value).__name__
    ways = {
        "text, by isoformat()": hasattr(value, "isoformat"),
        "a list, by sorted()": isinstance(value, (set, frozenset)),
        "text, by hex()": isinstance(value, (bytes, bytearray)),
        "its name or value": isinstance(value, enum.Enum),
        "a dict, by dataclasses.asdict()": dataclasses.is_dataclass(value) and not isinstance(value, type),
        "a dict, by vars()": name.endswith("Namespace"),
        "a list, by tolist()": bool(getattr(value, "ndim", 0)),
        "text, by str()": isinstance(value, os.PathLike) or name in ("Decimal", "Fraction", "UUID", "datetime64"),
    }
    way = next((f"Write it as {way}. " for way, fits in ways.items() if fits), "")
    return f"{way}Metadata are numbers, text, lists and dicts; register what is more as a component."


def too_large(size: int) -> UsageError:
    """The error about a manifest of so many bytes."""
    problem = f"the manifest would have {size:,} bytes, and {MAX_MANIFEST:,} are the most"
    hint = "Register what is large as a component, so that metadata stay small, and let components write fewer files."
    return UsageError(problem, hint=hint)
