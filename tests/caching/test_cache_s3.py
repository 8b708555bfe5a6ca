"""A cache in a bucket: machines of their own folders, requests that are counted, trouble on the way, a poisoned bucket."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cached_functions import runs
from test_single_flight import together, wait_until

import perdure
from perdure.testing import servers
from perdure.testing.proxy import Fault, FaultProxy
from perdure.testing.servers import S3Server

pytest.importorskip("botocore")


@pytest.fixture(scope="module")
def stub() -> Iterator[S3Server]:
    with servers.stub() as server, server.environment():
        yield server


@pytest.fixture(scope="module")
def seaweedfs() -> Iterator[S3Server]:
    with servers.seaweedfs() as server, server.environment():
        yield server


@pytest.fixture
def proxy(stub: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(stub.endpoint_url) as proxy:
        yield proxy


def doubling(where: Any, **options: Any) -> tuple[Any, list[int]]:
    done: list[int] = []

    @perdure.cached(where, record_stats=False, **options)
    def double(x: int) -> list[int]:
        done.append(x)
        return [x, x]

    return double, done


def methods(proxy: FaultProxy) -> list[str]:
    """The methods of the requests since the last time."""
    found = [request.method for request in proxy.requests]
    proxy.reset()
    return found


@pytest.fixture
def where(proxy: FaultProxy, tmp_path: Path) -> dict[str, Any]:
    where = {"where": f"s3://bucket/{tmp_path.name}", "endpoint_url": proxy.endpoint_url, "create": True}
    double, _ = doubling(**where)
    double(0)  # the bucket is there, and was found to be honest
    proxy.reset()
    return where


def test_a_hit_is_one_request_a_miss_three(where: dict[str, Any], proxy: FaultProxy) -> None:
    double, done = doubling(**where)
    double.cache.peek(0)
    methods(proxy)
    double(1)
    assert methods(proxy) == ["GET", "PUT", "PUT"]
    double(1)
    assert methods(proxy) == ["GET"]
    double.cache.invalidate(1)
    assert methods(proxy) == ["DELETE"]
    assert done == [1]


def test_copies_of_this_machine_are_not_asked_for_within_recheck(
    where: dict[str, Any], proxy: FaultProxy, tmp_path: Path
) -> None:
    double, done = doubling(**where, local=[str(tmp_path / "near")])
    double(1)
    methods(proxy)
    assert double(1) == double(1) == [1, 1]
    assert methods(proxy) == []
    again, more = doubling(**where, local=[str(tmp_path / "near")], recheck=0)
    proxy.reset()
    assert again(1) == [1, 1]
    (request,) = [request for request in proxy.requests if request.method == "GET" and "if-none-match" in request.headers]
    assert request
    assert (done, more) == ([1], [])


@pytest.mark.parametrize("number", range(1, 4))
@pytest.mark.parametrize("fault", [Fault(lose_answer=True), Fault(answer_before=503), Fault(hang_up=True), Fault(twice=True)])
def test_one_request_that_fails_does_no_harm(where: dict[str, Any], proxy: FaultProxy, fault: Fault, number: int) -> None:
    double, done = doubling(**where)
    double.cache.peek(0)
    proxy.reset()
    seen: list[int] = []

    def plan(request: Any) -> Fault | None:
        seen.append(1)
        return fault if len(seen) == number else None

    proxy.plan = plan
    assert double(5) == [5, 5]
    proxy.plan = lambda request: None
    assert double(5) == [5, 5]
    assert done == [5]


def test_a_bucket_that_goes_away_is_said_once(where: dict[str, Any], proxy: FaultProxy) -> None:
    double, done = doubling(**where, timeout=1.0)
    double(1)
    proxy.plan = lambda request: Fault(answer_before=503)
    with pytest.warns(RuntimeWarning, match="goes on without its cache"):
        assert double(1) == [1, 1]
    assert double(1) == [1, 1]
    assert done == [1, 1, 1]


@pytest.mark.s3
def test_two_machines_with_folders_of_their_own_run_it_once(
    seaweedfs: S3Server, tmp_path: Path, start: Any, finish: Any
) -> None:
    lines = """
        import sys, threading
        from cached_functions import slow
        where, endpoint, log, near = sys.argv[1:]
        work = slow(where, log, endpoint_url=endpoint, create=True, local=["memory:", near], ttl="1 h")
        print("ready", flush=True)
        sys.stdin.readline()
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(work(7))) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert answers == [{"n": 7, "square": 49}] * 8, answers
        assert work(7) == {"n": 7, "square": 49}
        stats = work.cache.stats()
        assert stats.tiers[0].hits >= 1, stats
    """
    log = str(tmp_path / "log")
    place = f"s3://cache-{tmp_path.name.replace('_', '-')[-20:].lower()}/team"
    machines = [start(lines, place, seaweedfs.endpoint_url, log, str(tmp_path / f"near{i}")) for i in range(4)]
    together(machines, finish)
    assert len(runs(log)) == 1


@pytest.mark.s3
def test_when_a_machine_is_killed_another_runs_it_once_more(
    seaweedfs: S3Server, tmp_path: Path, start: Any, finish: Any
) -> None:
    lines = """
        import sys
        from cached_functions import slow
        where, endpoint, log, seconds = sys.argv[1:]
        work = slow(where, log, float(seconds), endpoint_url=endpoint, create=True, lease=1.5)
        print("ready", flush=True)
        sys.stdin.readline()
        assert work(7) == {"n": 7, "square": 49}
    """
    log = str(tmp_path / "log")
    place = f"s3://cache-{tmp_path.name.replace('_', '-')[-20:].lower()}/team"
    first = start(lines, place, seaweedfs.endpoint_url, log, "3600")
    first.stdin.write("\n")
    first.stdin.flush()
    wait_until(lambda: runs(log))
    first.kill()
    together([start(lines, place, seaweedfs.endpoint_url, log, "0.1") for _ in range(3)], finish)
    assert len(runs(log)) == 2


class Bomb:
    """What somebody puts into the bucket who wants his code run."""

    fell: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        return fall, ()


def fall() -> None:
    Bomb.fell.append(1)


def test_a_poisoned_bucket_runs_nothing(where: dict[str, Any]) -> None:
    where = where | {"where": where["where"] + "-signed"}
    double, done = doubling(**where, codec="pkl", filters=perdure.Signed(b"our key, and nobody else's"))
    double(1)
    key = double.cache.key(1)
    backend = perdure.open_backend(where.pop("where"), **where)
    from perdure.codecs.chain import Chain
    from perdure.codecs.entry import Entry, write_entry

    theirs = Chain("pkl", perdure.Signed(b"another key than the team's"))
    poison = [pickle.dumps(Bomb()), Chain("pkl").encode(Bomb(), key), theirs.encode(Bomb(), key)]
    with pytest.warns(UserWarning, match="counts as absent"):
        for data in [*poison, *(write_entry(Entry(data)) for data in poison)]:
            backend.put(key, data)
            assert double(1) == [1, 1]
    assert not Bomb.fell
    assert len(done) == 7
