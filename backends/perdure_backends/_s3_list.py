"""Listings: one page of up to 1000 objects for each request, taken apart in a few milliseconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from html import unescape
from typing import NamedTuple
from urllib.parse import quote, unquote

from perdure.errors import BackendError
from perdure.protocol import ETag

from ._s3_client import Client
from ._s3_swap import normal_etag

# botocore's XML parser takes 50 ms for a page. The elements wanted have neither attributes nor children, and most servers
# write them in this order; where the quick pattern misses an entry, each one is taken apart by itself.
_quick = re.compile(
    r"<Contents>\s*<Key>([^<]*)</Key>\s*<LastModified>([^<]*)</LastModified>\s*<ETag>([^<]*)</ETag>\s*"
    r"(?:<Checksum\w+>[^<]*</Checksum\w+>\s*)*<Size>([0-9]+)</Size>"
).findall
_entries = re.compile(r"<Contents>(.*?)</Contents>", re.DOTALL).findall
_fields = re.compile(r"<(Key|Size|ETag|LastModified)>([^<]*)</").findall
_find_token = re.compile(r"<NextContinuationToken>([^<]*)</").search
_is_truncated = re.compile(r"<IsTruncated>\s*true\s*</", re.IGNORECASE).search
_is_encoded = re.compile(r"<EncodingType>\s*url\s*</").search


class Entry(NamedTuple):
    """One object of a listing, as text: what a caller does not need is not converted."""

    name: str
    etag: str
    size: int
    modified: str


def pages(client: Client, prefix: str) -> Iterator[list[Entry]]:
    """List all objects whose names begin with `prefix`, page by page; each page is one request, sent when it is asked for.

    Raises:
        BackendError: As `Client.send`, or what came back is not a listing.
    """
    start = ""
    while True:
        query = f"{start}encoding-type=url&list-type=2&max-keys=1000&prefix={quote(prefix, safe='-_.~')}"
        answer = client.send("GET", "", query=query)
        text = answer.body.decode("utf-8", "replace")
        whole = text.rstrip().endswith(("</ListBucketResult>", "/>"))
        if answer.status != 200 or "<ListBucketResult" not in text[:1000] or not whole:
            hint = "This does not seem to be S3: check endpoint_url."
            raise BackendError("what came back is not a listing of a bucket", place=client.place, hint=hint)
        yield _parse(text, client.place)
        if not _is_truncated(text):
            return
        token = _find_token(text)
        following = f"continuation-token={quote(unescape(token[1]), safe='-_.~')}&" if token else start
        if following == start:
            raise BackendError("the server cut its listing short and does not say how to go on", place=client.place)
        start = following


def _parse(text: str, place: str) -> list[Entry]:
    encoded = _is_encoded(text) is not None

    def plain(name: str) -> str:
        name = unescape(name)
        return unquote(name) if encoded else name

    entries = _quick(text)
    try:
        if len(entries) != text.count("<Contents"):
            each = [dict(_fields(entry)) for entry in _entries(text)]
            entries = [(entry["Key"], entry["LastModified"], entry["ETag"], entry["Size"]) for entry in each]
        return [
            Entry(plain(name) if "%" in name or "&" in name else name, etag, int(size), when)
            for name, when, etag, size in entries
        ]
    except (KeyError, ValueError) as error:
        hint = "Check endpoint_url."
        raise BackendError(f"the server's listing cannot be understood: {error!r:.200}", place=place, hint=hint) from error


def etag_in_list(text: str) -> ETag:
    """The ETag of an entry, spelled as an answer to GET spells it."""
    text = text.replace("&quot;", '"')
    return normal_etag(unescape(text) if "&" in text else text)


def moment_in_list(text: str) -> float:
    """The time of an entry, such as `2026-01-31T12:00:00.000Z`, in seconds since the epoch."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
