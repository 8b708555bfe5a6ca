"""What an answer of a server means, whoever asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Literal

from ._s3_http import Reply

Method = Literal["GET", "HEAD", "PUT", "DELETE"]

_find_code = re.compile(r"<Code>([^<]*)</Code>").search

_ANSWERS = {"GET": (200, 304, 404), "HEAD": (200, 404), "PUT": (200, 404, 412), "DELETE": (200, 204, 404, 412)}
# Not carried out, and worth another try. (Of 5xx nobody knows whether it was: a middle box may say so after forwarding.)
AGAIN = frozenset(
    (
        "RequestTimeout",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "OperationAborted",
        "ConditionalRequestConflict",
    )
)
STALE = frozenset(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"))
HINTS = {
    "InvalidAccessKeyId": "The server does not know this access key: check the credentials, the profile and the endpoint.",
    "SignatureDoesNotMatch": "The secret key is wrong, or something on the way changes requests.",
    "RequestTimeTooSkewed": "The clock of this machine is wrong: set it.",
    "ExpiredToken": "The temporary credentials ran out: log in again.",
    "InvalidBucketName": "Bucket names have 3 to 63 lower-case letters, digits, dots and hyphens.",
    "EntityTooLarge": "A value may have 5 GiB at most.",
}
FORBIDDEN = (
    "The credentials are wrong, or do not allow this: they need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket "
    "(without the last, S3 answers 403 for keys that are merely absent)."
)


def code_of(reply: Reply) -> str:
    """The error code in an answer; `""` where it names none."""
    found = _find_code(reply.body.decode("utf-8", "replace")) if reply.body else None
    return found[1] if found else ""


def is_answer(method: Method, status: int, name: str, headers: Mapping[str, str] | None) -> bool:
    """Tell whether this status answers the question, instead of refusing it or putting it off."""
    if status in (304, 412) and not headers:
        return False  # nobody set a condition
    return status in _ANSWERS[method] or (status == 403 and method == "HEAD" and not name)


def is_strange(method: Method, reply: Reply, code: str) -> bool:
    """Tell whether this is no answer of S3's: it never says so much, nor "not found" without an error code.

    A box on the way made it up, or a server that had begun to answer 200 found out later that it failed.
    """
    return bool(reply.body.strip()) and (
        (reply.status == 404 and not code)
        or (method == "DELETE" and reply.status in (200, 204))
        or (method == "PUT" and reply.status == 200 and b"<Error" in reply.body)
    )


@lru_cache(512)
def moment(text: str) -> float:
    """A header's date in seconds since the epoch; 0 if it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
