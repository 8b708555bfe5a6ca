"""Listings: one page of up to 1000 objects for each request, taken apart in a few milliseconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from html import escape, unescape
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_plus

from perdure.errors import BackendError
from perdure.protocol import ETag

from ._s3_client import Client
from ._s3_swap import normal_etag

# An XML parser takes three times as long for a page. Most servers write its entries alike, right after each other, without
# attributes; where these two patterns account for each of them they are cut out. The parser gets whatever remains.
_quick = re.compile(
    r"<Contents>\s*<Key>([^<]*)</Key>\s*<LastModified>([^<]*)</LastModified>\s*<ETag>([^<]*)</ETag>\s*"
    r"(?:<Checksum\w+>[^<]*</Checksum\w+>\s*)*<Size>([0-9]+)</Size>"
).findall
_seams = re.compile(r"</Contents>\s*<Contents>").findall


class Entry(NamedTuple):
    """One object of a listing, as text: what a caller does not need is not converted."""

    name: str
    etag: str
    size: int
    modified: str


def pages(client: Client, prefix: str) -> Iterator[list[Entry]]:
    """List all objects whose names begin with `prefix`, page by page; each page is one request, sent when it is asked for.

    Raises:
        BackendError: As `Client.send`, or what came back is not a listing, not a whole one, or not the one asked for.
    """
    start = ""
    passed: set[tuple[str, str]] = set()
    while True:
        query = f"{start}encoding-type=url&list-type=2&max-keys=1000&prefix={quote(prefix, safe='-_.~')}"
        answer = client.send("GET", "", query=query)
        entries, fields = _parse(answer.body.decode("utf-8", "replace"), prefix, client.place)
        token = fields.get("NextContinuationToken", "")
        # A token, or a page's end, that comes again begins a circle.
        steps = {("token", token), ("end", entries[-1].name if entries else token)}
        if passed & steps:
            raise BackendError("the server's listing goes round in circles", place=client.place, hint="Use another server.")
        yield entries
        if fields.get("IsTruncated", "true" if token else "false").strip().lower() != "true":
            return
        if not token:
            raise BackendError("the server cut its listing short and does not say how to go on", place=client.place)
        passed |= steps
        start = f"continuation-token={quote(token, safe='-_.~')}&"


def _parse(text: str, prefix: str, place: str) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries of a page, and what else it says."""
    from xml.etree.ElementTree import ParseError, fromstring  # botocore has imported it

    found = _quick(text)
    if found and text.count("Contents") == 2 * len(found) and len(_seams(text)) == len(found) - 1:
        text = text[: text.find("<Contents>")] + text[text.rfind("</Contents>") + len("</Contents>") :]
    else:
        found = []
    try:
        if "<!DOCTYPE" in text:
            raise ValueError("it defines a document type")  # whose entities can be made to fill the memory
        root = fromstring(text)
        if _local(root.tag) != "ListBucketResult":
            hint = "This does not seem to be S3: check endpoint_url."
            raise BackendError("what came back is not a listing of a bucket", place=place, hint=hint)
        fields = {_local(element.tag): element.text or "" for element in root}
        each = [{_local(part.tag): part.text or "" for part in item} for item in root if _local(item.tag) == "Contents"]
        found += [(escape(entry["Key"]), entry["LastModified"], entry["ETag"], entry["Size"]) for entry in each]
        encoded = fields.get("EncodingType", "").strip() == "url"
        entries = [
            Entry(_plain(name, encoded, prefix) if "%" in name or "&" in name or "+" in name else name, etag, int(size), when)
            for name, when, etag, size in found
        ]
        announced = int(fields.get("KeyCount") or 0)
    except (ParseError, KeyError, ValueError) as error:
        hint = "Check endpoint_url."
        raise BackendError(f"the server's listing cannot be understood: {error!r:.200}", place=place, hint=hint) from error
    if announced > len(entries):
        problem = f"the server's listing cannot be understood: it announces {announced} objects and names {len(entries)}"
        raise BackendError(problem, place=place, hint="Use another server.")
    for entry in entries:
        if not entry.name.startswith(prefix):
            problem = f"asked for what begins with {prefix!r:.200}, the server lists {entry.name!r:.200}: it ignores `prefix`"
            raise BackendError(problem, place=place, hint="Use another server.")
    return entries, fields


def _local(tag: str) -> str:
    """The name of an element, without its namespace."""
    return tag.rpartition("}")[2]


def _plain(name: str, encoded: bool, prefix: str) -> str:
    """A name as it is. Servers differ in how they percent-encode a space, which a prefix may hold, but no key."""
    name = unescape(name)
    if not encoded:
        return name
    plain = unquote(name)
    return plain if plain.startswith(prefix) else unquote_plus(name)


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
