"""Values and bytes: codecs, filters, and the frame around them (`perdure.codecs.chain`).

Codecs and filters have names, which are looked up here and imported at first use:

=============  ====================================================================  =========================
codec          what it holds                                                         safe on anybody's bytes?
=============  ====================================================================  =========================
`msgpack`      data of all usual types, numpy arrays, types that you register        yes
`pkl`          nearly any Python object                                              no: reading can run code
`json`         what plain JSON holds exactly; with `trusted=True` most objects       plain yes, trusted no
`raw`          bytes                                                                 yes
`txt`          text; so does any other suffix, such as `md` or `csv`                 yes
=============  ====================================================================  =========================

Filters: `lz4`, `zstd`, `Signed(key)`, `Encrypted(key)`.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from ..errors import UsageError
from .protocol import Codec, Filter

__all__ = ["Codec", "Filter", "codec_by_name", "codec_name_of_id", "filter_by_name", "filter_name_of_id", "spell_filter"]

# name -> (id, where it is). The id is here as well so that a message can name a codec without importing it.
_codecs = {
    "msgpack": (1, "msgpack:Msgpack"),
    "pkl": (2, "pickle:Pickle"),
    "json": (3, "json:Json"),
    "txt": (4, "text:Text"),
    "raw": (5, "text:Raw"),
}
_filters = {
    "lz4": (1, "compression:Lz4"),
    "zstd": (2, "compression:Zstd"),
    "signed": (0x81, "security:Signed"),
    "encrypted": (0x82, "security:Encrypted"),
}
_suffix = re.compile(r"[A-Za-z0-9()_\-~.=]{1,64}\Z").match
# Nobody means a text file by these.
_meant = {"pickle": "pkl", "joblib": "pkl", "messagepack": "msgpack", "bytes": "raw", "binary": "raw", "text": "txt"}


def codec_by_name(name: str, *, trusted: bool = False) -> Codec:
    """Return the codec of that name: a known one, else text for anything that can be the suffix of a file.

    Args:
        name: Such as `"msgpack"`, `"pkl"` or `"md"`.
        trusted: Lets `"json"` restore arbitrary objects, which can run code.

    Raises:
        UsageError: Not a name; or so near to a known one that it must be a slip.
    """
    if isinstance(name, str) and name in _codecs:
        cls = _load(_codecs[name][1])
        codec: Codec = cls(trusted=trusted) if name == "json" else cls()
        return codec
    if not isinstance(name, str) or not _suffix(name):
        raise UsageError(
            f"{name!r} is not the name of a codec", hint=f"Known: {', '.join(_codecs)}, or a suffix of text files."
        )
    meant = _slip(name)
    if meant:
        hint = f"Did you mean {meant!r}? Known: {', '.join(_codecs)}; any other suffix, such as 'md', holds text."
        raise UsageError(f"no codec is known for {name!r}", hint=hint)
    text: Codec = _load(_codecs["txt"][1])(name)
    return text


def _slip(name: str) -> str | None:
    from difflib import get_close_matches

    lower = name.lower()
    if lower in _codecs or lower in _meant:
        return _meant.get(lower, lower)
    # Suffixes are short and near to each other (json, jsonl), so only the long names are guarded against slips.
    close = get_close_matches(lower, ["msgpack", "messagepack", "pickle", "joblib"], 1, 0.75)
    return _meant.get(close[0], close[0]) if close else None


def filter_by_name(name: str) -> Filter:
    """Return the filter of that name.

    Raises:
        UsageError: Unknown (the message suggests the nearest one), or one that needs a key.
        MissingExtraError: What it needs is not installed.
    """
    if name in ("signed", "encrypted"):
        cls = name.capitalize()
        raise UsageError(
            f"the filter {name!r} needs a key", hint=f'Give perdure.{cls}(key), or perdure.{cls}.from_env("NAME").'
        )
    if not isinstance(name, str) or name not in _filters:
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), _filters, 1, 0.5) if isinstance(name, str) else ()
        known = "Known: 'lz4', 'zstd', perdure.Signed(key), perdure.Encrypted(key)."
        raise UsageError(f"{name!r} is not a filter", hint=f"Did you mean {close[0]!r}? {known}" if close else known)
    found: Filter = _load(_filters[name][1])()
    return found


def codec_name_of_id(id: int) -> str | None:
    """Return the name of the codec of ours that has this id."""
    return next((name for name, (known, _) in _codecs.items() if known == id), None)


def filter_name_of_id(id: int) -> str | None:
    """Return the name of the filter of ours that has this id."""
    return next((name for name, (known, _) in _filters.items() if known == id), None)


def spell_filter(name: str) -> str:
    """Return how a filter is written in a call of `perdure.open`."""
    return f"perdure.{name.capitalize()}(key)" if name in ("signed", "encrypted") else repr(name)


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(f".{module}", __name__), name)
