"""How a dict looks in a notebook."""

from __future__ import annotations

from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import PerdureError

if TYPE_CHECKING:
    from .dict import PersiDict

_ROWS = 20


def table(d: PersiDict[Any]) -> str:
    """A table with the first keys, how large their values are as stored, and when they were written. Reads no value.

    Cost: the beginning of a listing. A place that cannot be listed is shown with the error, as a cell of a notebook should not
    fail because of what it shows.
    """
    from datetime import datetime

    title = f"<p><strong>{type(d).__name__}</strong> in <code>{escape(d.place)}</code>, {escape(d.serialization_format)}</p>"
    try:
        metas = list(islice(d.backend.scan(d._prefix), _ROWS + 1))  # noqa: SLF001
    except PerdureError as error:
        return f"{title}<p>{escape(type(error).__name__)}: {escape(str(error))}</p>"
    if not metas:
        return f"{title}<p>empty</p>"
    rows = [
        f"<tr><td style='text-align:left'><code>{escape(repr(_short(d._key(meta.key))))}</code></td>"  # noqa: SLF001
        f"<td>{meta.size:,}</td><td>{datetime.fromtimestamp(meta.modified).astimezone():%Y-%m-%d %H:%M:%S}</td></tr>"
        for meta in metas[:_ROWS]
    ]
    more = "<p>and more</p>" if len(metas) > _ROWS else ""
    head = "<tr><th style='text-align:left'>key</th><th>bytes</th><th>written</th></tr>"
    return f"{title}<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>{more}"


def _short(key: tuple[str, ...]) -> str | tuple[str, ...]:
    return key[0] if len(key) == 1 else tuple(key)
