"""How many requests operations on S3 send, counted by the server that answers them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import perdure
from perdure.testing import servers
from perdure.testing.s3_stub import S3Stub

from . import contestants
from .floors import Http
from .harness import Row, Verdict, judge

CACHED = "perdure.open(cache=)"
_BUCKET = "ours"
_FORMAT: dict[str, Any] = {"serialization_format": "txt", "base_class_for_values": str}  # which runs no code, so nobody warns


class Counting(S3Stub):
    """Counts the requests it answers."""

    requests = 0

    def _answer(self, *request: Any) -> Any:
        self.requests += 1
        return super()._answer(*request)

    def during(self, step: Callable[[], object]) -> int:
        """How many requests a step sends."""
        before = self.requests
        step()
        return self.requests - before


@contextmanager
def counting() -> Iterator[Counting]:
    """A server of this process, without latency, and the credentials for it."""
    server = Counting()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    http = Http(urlsplit(server.endpoint_url).port or 0)
    http.ask("PUT", f"/{_BUCKET}")
    http.close()
    with servers.S3Server("stub", server.endpoint_url, "ak", "sk").environment():
        yield server


def _add(n: Any) -> Any:
    return n + 1


def of_backend() -> Row:
    """How many requests each operation sends, after the first of its kind."""
    with counting() as server:
        url = f"s3://{_BUCKET}/prefix"
        backend = perdure.open_backend(url, endpoint_url=server.endpoint_url, create=True)
        d = perdure.open(backend)
        d["n"] = 0
        d.transform_item("n", transformer=_add)  # here the self-test of the server
        etag = d.etag("n")
        steps: dict[str, tuple[int, Callable[[], object]]] = {
            "get": (1, lambda: d["n"]),
            "put": (1, lambda: d.__setitem__("n", 1)),
            "contains": (1, lambda: "n" in d),
            "get, absent": (1, lambda: d.get("absent")),
            "delete": (1, lambda: backend.delete("absent")),
            "compare-and-swap from what is read": (2, lambda: d.transform_item("n", transformer=_add)),
            "compare-and-swap from a known ETag": (1, lambda: backend.put("m", b"2", if_match=etag)),
            "1000 names": (1, lambda: list(backend.keys())),
        }
        sent: dict[str, float] = {}
        for name, (_limit, step) in steps.items():
            etag = backend.put("m", b"1")
            sent[name] = server.during(step)
        backend.close()
    verdicts = [_at_most(name, limit, sent[name]) for name, (limit, _step) in steps.items()]
    return _counted("requests for each operation", sent, verdicts)


def of_dicts(where: str | None = None) -> Row:
    """The same for dicts, beside those of persidict that have these names, and keep copies in a folder or do not."""
    notes = [
        "ours put a mark before they delete a version: one request more, without which a lost answer could not be told",
        "boto3, and so persidict, takes two round trips for each put: its Expect: 100-continue is not counted as a request",
    ]
    with ExitStack() as stack:
        server = stack.enter_context(counting())
        root = stack.enter_context(contestants.folder(where))
        counts: dict[str, dict[str, int]] = {}
        for name, library, open_both in _openers(server.endpoint_url, root, stack, notes):
            counts[name] = _count(server, library, *open_both())
    ours = counts["perdure.BasicS3Dict"]
    row = _counted("requests for each operation of dicts, first that of perdure.BasicS3Dict", ours, [], notes)
    for entry in row.entries:
        entry.more = {name: theirs[entry.name] for name, theirs in counts.items() if theirs is not ours}
    for name in ("perdure.BasicS3Dict", "perdure.S3Dict"):
        row.verdicts += [_at_most(f"{name}, {step}", limit, counts[name][step]) for step, limit in _LIMITS.items()]
    return row


def of_reading_again(where: str | None = None, *, append_only: bool) -> dict[str, float]:
    """How many requests it takes to read a value that is known and has not changed, for each of `copies`."""
    found: dict[str, float] = {}
    with ExitStack() as stack:
        server = stack.enter_context(counting())
        root = stack.enter_context(contestants.folder(where))
        for name, mapping in copies(server.endpoint_url, root, stack, [], append_only=append_only).items():
            mapping["a"] = 1
            mapping["a"]
            found[name] = server.during(partial(list, map(mapping.__getitem__, ["a"] * 10))) / 10
    return found


def copies(endpoint: str, root: str, stack: ExitStack, notes: list[str], *, append_only: bool) -> dict[str, Any]:
    """Dicts in a bucket that keep copies in a folder."""
    mode = "append-only" if append_only else "mutable"
    url = f"s3://{_BUCKET}/{mode}"
    ours = perdure.open(url, cache=f"{root}/{mode}", endpoint_url=endpoint, create=True, append_only=append_only)
    dicts = {CACHED: stack.enter_context(ours)}
    settings: dict[str, Any] = {"base_dir": f"{root}/{mode}-theirs", "append_only": append_only, "root_prefix": mode}
    if (theirs := contestants.persidict_on_s3("S3Dict", endpoint, stack, notes, **settings)) is not None:
        dicts["persidict.S3Dict"] = theirs
    return dicts


def _openers(
    endpoint: str, root: str, stack: ExitStack, notes: list[str]
) -> Iterator[tuple[str, Any, Callable[[], tuple[Any, Any]]]]:
    """Name, library, and what opens a dict and a second handle of what is in its bucket, which has no copies."""

    def ours(kind: str) -> Any:
        where: dict[str, Any] = {"bucket_name": _BUCKET, "endpoint_url": endpoint, "root_prefix": kind}
        more = {"base_dir": f"{root}/ours"} if kind == "S3Dict" else {}
        dicts: Any = getattr(perdure, kind)(**where, **_FORMAT, **more), perdure.BasicS3Dict(**where, **_FORMAT)
        for each in dicts:
            stack.callback(each.close)
        return dicts

    def theirs(kind: str) -> Any:
        more = {"base_dir": f"{root}/theirs"} if kind == "S3Dict" else {}
        first = contestants.persidict_on_s3(kind, endpoint, stack, notes, root_prefix=kind, **_FORMAT, **more)
        return first, contestants.persidict_on_s3("BasicS3Dict", endpoint, stack, notes, root_prefix=kind, **_FORMAT)

    for kind in ("BasicS3Dict", "S3Dict"):
        yield f"perdure.{kind}", perdure, partial(ours, kind)
    if (persidict := contestants.optional("persidict", notes)) is not None:
        for kind in ("BasicS3Dict", "S3Dict"):
            yield f"persidict.{kind}", persidict, partial(theirs, kind)


_LIMITS = {
    "get": 1,
    "get, changed by others": 1,
    "get, absent": 1,
    "set": 1,
    "contains": 1,
    "set_item_if from a known ETag": 1,
    "transform_item": 2,
}


def _more(text: str) -> str:
    return text + "."


def _count(server: Counting, library: Any, d: Any, others: Any) -> dict[str, int]:
    """Count for one dict; before each operation all values were just read, and then others wrote one of them."""
    known: Any = None
    same = {"condition": library.ETAG_IS_THE_SAME}
    steps: dict[str, Callable[[], object]] = {
        "get": lambda: d["a"],
        "get, changed by others": lambda: d["b"],
        "get, absent": lambda: d.get("absent"),
        "set": lambda: d.__setitem__("a", "new"),
        "set, new": lambda: d.__setitem__("absent", "new"),
        "contains": lambda: "a" in d,
        "contains, absent": lambda: "absent" in d,
        "del": lambda: d.__delitem__("a"),
        "discard, absent": lambda: d.discard("absent"),
        "setdefault": lambda: d.setdefault("a", "new"),
        "setdefault, absent": lambda: d.setdefault("absent", "new"),
        "etag": lambda: d.etag("a"),
        "timestamp": lambda: d.timestamp("a"),
        "get_item_if from a known ETag": lambda: d.get_item_if("a", expected_etag=known, **same),
        "set_item_if from a known ETag": lambda: d.set_item_if("a", value="new", expected_etag=known, **same),
        "set_item_if from an old ETag": lambda: d.set_item_if("b", value="new", expected_etag=known, **same),
        "discard_if from a known ETag": lambda: d.discard_if("a", expected_etag=known, **same),
        "transform_item": lambda: d.transform_item("a", transformer=_more),
        "keys": lambda: list(d.keys()),
    }
    d["a"] = d["b"] = "first"
    d.transform_item("a", transformer=_more)  # here the self-test of the server
    d.discard_if("a", expected_etag=d.etag("a"), **same)
    sent = {}
    for number, (name, step) in enumerate(steps.items(), 1):
        d["a"] = d["b"] = f"value {number}"
        others.discard("absent")
        d.get("absent")
        d["a"], d["b"]
        known = d.etag("a")
        others["b"] = f"other {number}"
        sent[name] = server.during(step)
    return sent


def _counted(workload: str, sent: dict[str, Any], verdicts: list[Verdict], notes: list[str] | None = None) -> Row:
    row = judge("s3", workload, "", {name: [number] for name, number in sent.items()}, notes=notes or ())
    for entry in row.entries:
        entry.ratio = 0.0  # nothing to compare
    row.verdicts = verdicts
    return row


def _at_most(who: str, limit: int, sent: float) -> Verdict:
    return Verdict(who, f"≤ {limit} requests", sent, limit, sent <= limit)
