"""S3: beside bare sockets, boto3 and persidict, on a server in memory whose answers take 10 ms, then 50 ms."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

import perdure
from perdure.testing import servers

from . import contestants, s3_requests
from .contestants import VALUE
from .floors import Files, Http
from .harness import FLOOR, Effort, Goal, Row, Verdict, race

_BACKEND, _MANY, _CACHED = "perdure, backend", "perdure, set_many", s3_requests.CACHED
_IN_FLIGHT = 32
_KILOBYTE = b"x" * 1024


def run(effort: Effort, where: str | None = None) -> list[Row]:
    """Measure everything; copies are in new folders below `where`."""
    rows = [s3_requests.of_backend(), s3_requests.of_dicts(where), _read_append_only(effort, where)]
    for latency in (10,) if effort.quick else (10, 50):
        slow = replace(effort, rounds=5 if effort.quick else 41 if latency == 10 else 15, limit=5.0)
        with servers.stub(latency / 1000) as server, server.environment(), ExitStack() as stack:
            rows += _measure(server.endpoint_url, latency, stack, slow, where)
    return rows


def _measure(endpoint: str, latency: int, stack: ExitStack, effort: Effort, where: str | None) -> list[Row]:
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
    theirs = contestants.persidict_on_s3("BasicS3Dict", endpoint, stack, notes)
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
        _set_many(endpoint, http, stack, row, 0.7 + top, notes),
        _listing(endpoint, http, boto, backend, row, notes),
        _read_again(endpoint, latency, http, stack, row, few, where),
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


def _set_many(endpoint: str, http: Http, stack: ExitStack, row: Callable[..., Row], goal: float, notes: list[str]) -> Row:
    """Small items of a dict at once."""
    keys = [f"key{i:04}" for i in range(1000)]
    items = dict.fromkeys(keys, VALUE)
    ours = stack.enter_context(perdure.open("s3://ours/many", endpoint_url=endpoint))
    body = ours.chain.encode(VALUE, keys[0])
    racing: dict[str, Any] = {
        FLOOR: lambda _: http.ask_all("PUT", [f"/floor/{key}" for key in keys], body),
        _MANY: lambda _: ours.set_many(items),
    }
    goals = [Goal(_MANY, of=None, plus=goal)]
    notes = [*notes, "persidict's update puts one after another: see what one costs"]
    return row(f"set_many of {len(keys)} small dicts, per item,", racing, [None], goals, per=len(keys), notes=notes)


def _read_again(
    endpoint: str, latency: int, http: Http, stack: ExitStack, row: Callable[..., Row], keys: list[str], where: str | None
) -> Row:
    """A value that is known and has not changed: one request, whose answer has no body."""
    notes: list[str] = []
    root = stack.enter_context(contestants.folder(where))
    files = _files_with_copies(root, keys)
    dicts = s3_requests.copies(endpoint, root, stack, notes, append_only=False)

    def by_hand(key: str) -> object:
        http.ask("GET", f"/floor/absent-{key}")  # no body comes back, as with 304
        return files.get(key)

    racing: dict[str, Any] = {FLOOR: by_hand}
    for name, d in dicts.items():
        racing[name] = d.__getitem__
        for key in keys:
            d[key] = _KILOBYTE
    goals = [Goal(_CACHED, of=None, plus=latency + 3)]
    found = row("get 1 KB that has a copy and is unchanged", racing, keys, goals, notes=notes)
    return _with_requests(found, s3_requests.of_reading_again(where, append_only=False), 1)


def _read_append_only(effort: Effort, where: str | None) -> Row:
    """A value that is known and never changes: no request, so it is of no account how far the bucket is."""
    notes: list[str] = []
    keys = [f"key{i:04}" for i in range(100)]
    with s3_requests.counting() as server, ExitStack() as stack:
        root = stack.enter_context(contestants.folder(where))
        racing: dict[str, Any] = {FLOOR: _files_with_copies(root, keys).get}
        for name, d in s3_requests.copies(server.endpoint_url, root, stack, notes, append_only=True).items():
            racing[name] = d.__getitem__
            for key in keys:
                d[key] = _KILOBYTE
        goals = [Goal(_CACHED, of=None, plus=15)]
        found = race("s3", "get 1 KB that has a copy, append-only", racing, keys, effort, goals=goals, notes=notes)
    return _with_requests(found, s3_requests.of_reading_again(where, append_only=True), 0)


def _files_with_copies(root: str, keys: list[str]) -> Files:
    files = Files(f"{root}/floor")
    for key in keys:
        files.put_normal(key, pickle.dumps(_KILOBYTE, protocol=5))
    return files


def _with_requests(row: Row, sent: dict[str, float], limit: int) -> Row:
    """Add what the server counted."""
    for entry in row.entries:
        if entry.name in sent:
            entry.more["requests"] = sent[entry.name]
    row.verdicts.append(Verdict(_CACHED, f"≤ {limit} requests", sent[_CACHED], limit, sent[_CACHED] <= limit))
    return row


def _boto3(endpoint: str, notes: list[str]) -> Any | None:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        notes.append("boto3 is not installed: left out. pip install boto3")
        return None
    return boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=_IN_FLIGHT))
