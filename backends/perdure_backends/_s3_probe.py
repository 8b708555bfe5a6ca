"""The self-test of servers that are not Amazon's: do they really compare before they write?

Some S3-compatible servers ignore `If-Match` and `If-None-Match` and answer 200 to everything, so that compare-and-swap
silently becomes overwriting. Before the first conditional write we try, on an object whose name is no legal key.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from perdure.errors import BackendError, PreconditionError, UnavailableError, UnknownOutcomeError
from perdure.protocol import ABSENT, Condition, ETag

from ._s3_client import Client, Turn
from ._s3_swap import Swapper

_FOLDER = "!perdure-selftest/"


class Findings(NamedTuple):
    """What the self-test of conditional writes found.

    Attributes:
        fault: What the server does wrong; empty when it can be relied on.
        unquoted: It compares ETags without their quotes only.
    """

    fault: str = ""
    unquoted: bool = False


T = TypeVar("T")

_swaps: dict[object, Findings] = {}
_deletes: dict[object, bool] = {}
_turns: dict[object, Turn] = {}  # one for each bucket, as a server that hangs must not hold up the others

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.clear)


def examine_swaps(client: Client, prefix: str) -> Findings:
    """Find out whether conditional writes work. About ten requests, once for each bucket and process.

    Raises:
        UnavailableError: The test could not be finished.
        BackendError: The server refuses to take part at all, for example for lack of permission.
    """
    if client.account.is_aws:
        return Findings()
    return _once(_swaps, client, prefix, _try_swaps)


def can_delete_conditionally(client: Client, prefix: str) -> bool:
    """Find out whether DELETE heeds `If-Match`. Four requests, once for each bucket and process."""
    return _once(_deletes, client, prefix, _try_deletes)


def _once(known: dict[object, T], client: Client, prefix: str, test: Callable[[Client, str], T]) -> T:
    account = client.account
    place = (account.host, account.path, account.hooks is None)  # a mock of a bucket says nothing about the bucket
    if place not in known:
        with client.in_turn(_turns.setdefault(place, Turn())):
            if place not in known:
                try:
                    try:
                        known[place] = test(client, f"{prefix}{_FOLDER}{os.urandom(8).hex()}")
                    except UnknownOutcomeError:  # an answer was lost in between: once more, with another name
                        known[place] = test(client, f"{prefix}{_FOLDER}{os.urandom(8).hex()}")
                except UnknownOutcomeError as error:  # of a write of ours; the caller's has not begun
                    problem = f"the self-test could not be finished: {error.problem}"
                    hint = (
                        "Try again later. If it goes on, use another server: conditional writes depend on this test, and so "
                        "does the first write to a place. Where no other process ever writes, try unsafe_single_writer=True."
                    )
                    raise UnavailableError(problem, place=client.place, hint=hint) from error
    return known[place]


def _try_swaps(client: Client, name: str) -> Findings:
    swapper = Swapper(client, looks=2)

    def swaps(body: bytes, expected: Condition) -> ETag | None:
        try:
            return swapper.swap(name, name, body, expected)
        except PreconditionError:
            return None

    try:
        first = swaps(b"1", ABSENT)
        if first is None:
            return Findings("it refuses to create an object that is not there")
        if swaps(b"2", ABSENT) is not None:
            return Findings("it ignores If-None-Match: an object that was there got overwritten")
        second = _swap_either_way(swapper, name, first)
        if second is None:
            return Findings("it refuses the right ETag in If-Match")
        if swaps(b"4", first) is not None:
            return Findings("it ignores If-Match: a newer version got overwritten")
        seen = swapper.look(name, name)
        if seen is None or seen.etag != second or seen.writers.count(".") != 1:
            return Findings("it does not keep an object's metadata, without which lost answers cannot be made up for")
        client.send("DELETE", name)
        if swaps(b"5", second) is not None:
            return Findings("it ignores If-Match where there is no object")
        return Findings(unquoted=swapper.unquoted)
    except BackendError as error:
        if "refuses: 501" not in error.problem:
            raise
        return Findings(f"it does not know conditional writes ({error.problem})")
    finally:
        client.send("DELETE", name)


def _swap_either_way(swapper: Swapper, name: str, expected: ETag) -> ETag | None:
    for swapper.unquoted in (False, True):
        try:
            return swapper.swap(name, name, b"3", expected)
        except (PreconditionError, UnavailableError):
            continue
    return None


def _try_deletes(client: Client, name: str) -> bool:
    etag = Swapper(client).overwrite(name, name, b"1")
    try:
        wrong = client.send("DELETE", name, headers={"if-match": f'"{"0" * 32}"'})
        if wrong.status != 412 or client.send("HEAD", name).status != 200:
            return False
        return client.send("DELETE", name, headers={"if-match": etag}).status == 204
    except UnavailableError:
        raise
    except BackendError:
        return False  # a server that does not know the condition may as well say so
    finally:
        client.send("DELETE", name)
