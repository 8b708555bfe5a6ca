"""What may name a bucket, a prefix, a suffix and a server, and what options may be; the rest is refused before any request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from perdure.errors import UsageError

MAX_NAME = 1024  # bytes of an object's whole name
_is_bucket = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]\Z").match
_is_suffix = re.compile(r"[A-Za-z0-9()_\-~.=]{0,64}\Z").match


def check_names(bucket: str, prefix: str, suffix: str, endpoint_url: str | None) -> str:
    """Return the prefix as objects' names begin with it: `""`, or ending in a slash."""
    place = f"s3://{bucket}/{prefix}"
    if isinstance(bucket, str) and (":" in bucket or "@" in bucket):  # which may be a secret, and is not repeated
        hint = "Give credentials as AWS does, and a server as endpoint_url=, not in the URL."
        raise UsageError("a bucket's name holds neither ':' nor '@'", hint=hint)
    if not isinstance(bucket, str) or not _is_bucket(bucket):
        hint = "Names have 3 to 63 lower-case letters, digits, dots and hyphens."
        raise UsageError(f"{bucket!r:.80} is not the name of a bucket", hint=hint)
    if bucket.endswith("--x-s3"):
        raise UsageError("directory buckets are not supported", place=place, hint="Use a general purpose bucket.")
    if not isinstance(suffix, str) or not _is_suffix(suffix):
        raise UsageError(f"{suffix!r:.80} cannot end a key", place=place, hint="Use a suffix such as '.pkl'.")
    if not isinstance(prefix, str):
        raise UsageError(f"a prefix is text, not {type(prefix).__name__}", place=place)
    segments = prefix.strip("/").split("/") if prefix.strip("/") else []
    for segment in segments:
        if segment in ("", ".", "..") or not segment.isprintable() or "\\" in segment:
            hint = "Use names between single slashes, such as team/app."
            raise UsageError(f"{segment!r:.80} cannot stand in a prefix", place=place, hint=hint)
    normal = "".join(segment + "/" for segment in segments)
    if len(normal.encode()) + len(suffix) > MAX_NAME - 32:
        raise UsageError(f"a prefix of {len(normal.encode())} bytes leaves no room for keys", place=place[:100] + "...")
    if endpoint_url is not None:
        try:
            parts = urlsplit(endpoint_url)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment
            secret = bool(parts.username or parts.password)
        except ValueError:
            wrong, secret = True, False
        if secret:
            raise UsageError("endpoint_url holds a password", place=place, hint="Give credentials as AWS does, not in the URL.")
        if wrong:
            hint = "Write it like https://s3.example.com or http://127.0.0.1:9000."
            raise UsageError(f"endpoint_url is not a URL of a server: {endpoint_url!r:.200}", place=place, hint=hint)
    return normal


def check_numbers(options: Mapping[str, Any], place: str) -> None:
    """Refuse options that are no numbers above 0."""
    for option in ("concurrency", "attempts", "timeout", "deadline"):
        value, whole = options[option], option in ("concurrency", "attempts")
        if not isinstance(value, int if whole else (int, float)) or not value > 0:
            wanted = "a whole number" if whole else "a number of seconds"
            raise UsageError(f"{option} must be {wanted} above 0, not {value!r:.80}", place=place)
