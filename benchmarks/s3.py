"""S3: beside bare sockets, boto3 and persidict, on a server in memory whose answers take 10 ms, then 50 ms."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

import perdure
from perdure.testing import servers
from perdure.testing.s3_stub import S3Stub

from . import contestants
from .floors import Http
from .harness import FLOOR, Effort, Goal, Row, Verdict, judge, race

_BACKEND = "perdure, backend"
_IN_FLIGHT = 32
_KILOBYTE = b"x" * 1024


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure everything; `where` is not used."""
    rows = [_requests()]
    for latency in (10,) if effort.quick else (10, 50):
        slow = replace(effort, rounds=5 if effort.quick else 41 if latency == 10 else 15, limit=5.0)
        with servers.stub(latency / 1000) as server, server.environment(), ExitStack() as stack:
            rows += _measure(server.endpoint_url, latency, stack, slow)
    return rows


def _measure(endpoint: str, latency: int, stack: ExitStack, effort: Effort) -> list[Row]:
    notes: list[str] = []
    port = urlsplit(endpoint).port or 0
    http = Http(port, _IN_FLIGHT)
    stack.callback(http.close)
    backend = perdure.open_backend("s3://ours", endpoint_url=endpoint, create=True)
    stack.callback(backend.close)
    http.ask("PUT", "/floor")
    boto = _boto3(endpoint, notes)
    keys = [f"key{i:04}" for i in range(500)]
    few = keys[:4]
    puts: dict[str, Callable[[str], object]] = {
        FLOOR: lambda key: http.ask("PUT", f"/floor/{key}", _KILOBYTE),
        _BACKEND: lambda key: backend.put(key, _KILOBYTE),
    }
    gets: dict[str, Callable[[str], object]] = {FLOOR: lambda key: http.ask("GET", f"/floor/{key}"), _BACKEND: backend.get}
    looks: dict[str, Callable[[str], object]] = {
        FLOOR: lambda key: http.ask("GET", f"/floor/absent-{key}"),  # no body either, and it is simpler to read than HEAD
        _BACKEND: backend.contains,
    }
    bulk_set: dict[str, Callable[[Any], object]] = {
        FLOOR: lambda _: http.ask_all("PUT", [f"/floor/{key}" for key in keys], _KILOBYTE),
        _BACKEND: lambda _: backend.put_many(dict.fromkeys(keys, _KILOBYTE)),
    }
    bulk_get: dict[str, Callable[[Any], object]] = {
        FLOOR: lambda _: http.ask_all("GET", [f"/floor/{key}" for key in keys]),
        _BACKEND: lambda _: backend.get_many(keys),
    }
    if boto is not None:
        boto.create_bucket(Bucket="boto3")
        pool = stack.enter_context(ThreadPoolExecutor(_IN_FLIGHT))
        put = puts["boto3"] = lambda key: boto.put_object(Bucket="boto3", Key=key, Body=_KILOBYTE)
        get = gets["boto3"] = lambda key: boto.get_object(Bucket="boto3", Key=key)["Body"].read()
        looks["boto3"] = lambda key: boto.head_object(Bucket="boto3", Key=key)
        bulk_set["boto3, 32 threads"] = lambda _: list(pool.map(put, keys))
        bulk_get["boto3, 32 threads"] = lambda _: list(pool.map(get, keys))
    theirs = _persidict(endpoint, stack, notes)
    if theirs is not None:
        puts["persidict"] = contestants.setter(theirs, _KILOBYTE)
        gets["persidict"] = theirs.__getitem__
        looks["persidict"] = theirs.__contains__
    for put_all in bulk_set.values():
        put_all(None)
    for one in puts.values():
        for key in few:
            one(key)
    one_goal = [Goal(_BACKEND, of=None, plus=latency + 3)]
    at = f"at {latency} ms"
    bulk = replace(effort, rounds=3 if effort.quick else 9)

    def row(name: str, racing: Any, arguments: list[Any], goals: list[Goal], **more: Any) -> Row:
        return race(
            "s3", f"{name} {at}", racing, arguments, effort if len(arguments) > 1 else bulk, goals=goals, unit="ms", **more
        )

    # The goals are for 10 ms, where 32 in flight need 0.31 ms a key; what comes on top does not grow with the latency.
    top = (latency - 10) / _IN_FLIGHT
    return [
        row("put 1 KB", puts, few, one_goal, notes=notes),
        row("get 1 KB", gets, few, one_goal, notes=notes),
        row("contains", looks, few, one_goal, notes=notes),
        row(
            "put 500 × 1 KB, per key,", bulk_set, [None], [Goal(_BACKEND, of=None, plus=0.7 + top)], per=len(keys), notes=notes
        ),
        row(
            "get 500 × 1 KB, per key,", bulk_get, [None], [Goal(_BACKEND, of=None, plus=0.7 + top)], per=len(keys), notes=notes
        ),
        _listing(endpoint, http, boto, backend, row, notes),
    ]


def _listing(endpoint: str, http: Http, boto: Any, backend: Any, row: Callable[..., Row], notes: list[str]) -> Row:
    """5000 keys are 5 pages, and each says where the next one begins: they cannot be fetched at once."""
    names = [f"list/key{i:05}" for i in range(5000)]
    http.ask_all("PUT", [f"/ours/{name}" for name in names], b"x")

    def by_hand(_: object) -> None:
        after = ""
        while True:
            page = http.ask("GET", f"/ours?list-type=2&prefix=list/&max-keys=1000{after}")
            _before, found, rest = page.partition(b"<NextContinuationToken>")
            if not found:
                return
            after = "&continuation-token=" + quote(rest[: rest.index(b"<")].decode())

    racing: dict[str, Any] = {FLOOR: by_hand, _BACKEND: lambda _: deque(backend.keys("list/"), 0)}
    if boto is not None:
        pages = boto.get_paginator("list_objects_v2")
        racing["boto3"] = lambda _: [page["Contents"] for page in pages.paginate(Bucket="ours", Prefix="list/")]
    found = sum(1 for _ in backend.keys("list/"))
    if found != len(names):
        raise AssertionError(f"{found} keys were listed of {len(names)}")
    return row("list 5000 keys", racing, [None], [Goal(_BACKEND, 4.0)], notes=notes)


def _boto3(endpoint: str, notes: list[str]) -> Any | None:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        notes.append("boto3 is not installed: left out. pip install boto3")
        return None
    return boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=_IN_FLIGHT))


def _persidict(endpoint: str, stack: ExitStack, notes: list[str]) -> Any | None:
    try:
        import persidict
    except ImportError:
        notes.append("persidict is not installed: left out. pip install persidict")
        return None
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    stack.callback(os.environ.pop, "AWS_ENDPOINT_URL")
    return persidict.BasicS3Dict(bucket_name="persidict", region="us-east-1")


# -------------------------------------------------------------------------------------------------------------- requests


class _Counting(S3Stub):
    """Counts the requests it answers."""

    requests = 0

    def _answer(self, *request: Any) -> Any:
        self.requests += 1
        return super()._answer(*request)


@contextmanager
def _counting() -> Iterator[_Counting]:
    server = _Counting()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with servers.S3Server("stub", server.endpoint_url, "ak", "sk").environment():
        yield server


def _requests() -> Row:
    """How many requests each operation sends, after the first of its kind."""
    with _counting() as server:
        url = "s3://bucket/prefix"
        backend = perdure.open_backend(url, endpoint_url=server.endpoint_url, create=True)
        d = perdure.open(backend)

        def add(n: Any) -> Any:
            return n + 1

        d["n"] = 0
        d.transform_item("n", transformer=add)  # here the self-test of the server
        etag = d.etag("n")
        steps: dict[str, tuple[int, Callable[[], object]]] = {
            "get": (1, lambda: d["n"]),
            "put": (1, lambda: d.__setitem__("n", 1)),
            "contains": (1, lambda: "n" in d),
            "get, absent": (1, lambda: d.get("absent")),
            "delete": (1, lambda: backend.delete("absent")),
            "compare-and-swap from what is read": (2, lambda: d.transform_item("n", transformer=add)),
            "compare-and-swap from a known ETag": (1, lambda: backend.put("m", b"2", if_match=etag)),
            "1000 names": (1, lambda: list(backend.keys())),
        }
        samples: dict[str, list[float]] = {}
        verdicts = []
        for name, (limit, step) in steps.items():
            etag = backend.put("m", b"1")
            before = server.requests
            step()
            sent = server.requests - before
            samples[name] = [sent]
            verdicts.append(Verdict(name, f"≤ {limit} requests", sent, limit, sent <= limit))
        backend.close()
    row = judge("s3", "requests for each operation", "", samples)
    for entry in row.entries:
        entry.ratio = 0.0  # nothing to compare
    row.verdicts = verdicts
    return row
