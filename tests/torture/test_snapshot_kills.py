"""Savers killed with SIGKILL at random moments, while they save, clean up and restore: what was acknowledged can be resumed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from ledger import ROUNDS
from saver import Job

from perdure.snapshots.bucket import BackendPlace

KILLS = 7 * ROUNDS  # on each of three places and in two ways: with ten rounds 420
_SAVER = str(Path(__file__).with_name("saver.py"))


@pytest.fixture(scope="module")
def seaweed() -> Iterator[str]:
    pytest.importorskip("boto3")
    from perdure.testing import servers

    with servers.seaweedfs() as server, server.environment():
        yield server.endpoint_url


@pytest.mark.parametrize("background", ["", "yes"])
@pytest.mark.parametrize("kind", ["folder", "sqlite", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_killed_saver_resumes_from_what_was_acknowledged(
    kind: str, background: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = {"folder": f"file:{tmp_path}/states", "sqlite": f"sqlite:{tmp_path}/states.db"}.get(kind, "")
    if kind == "s3":
        endpoint = quote(request.getfixturevalue("seaweed"))
        url = f"s3://snapshots/{tmp_path.name}{background}?create=yes&endpoint_url={endpoint}"
    rng = random.Random(f"{kind} {background}")
    acknowledged = saves = 0
    for life in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, _SAVER, "save", url, "2", background], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stderr is not None
        lines = []
        # Now and then before it has even loaded what it goes on from.
        for _ in range(rng.choice([0, 1, 2, 3, 5])):
            line = child.stdout.readline()
            if not line:
                break
            lines.append(line)
        time.sleep(rng.random() * 0.1)
        child.kill()
        rest, errors = child.communicate()
        assert "Error" not in errors, f"life {life}: {errors}"
        for line in "".join([*lines, rest]).splitlines():
            word, number = line.split()
            if word == "from":
                assert acknowledged <= int(number) <= acknowledged + 1, f"life {life}: {acknowledged} was acknowledged"
            saves += word == "saved"
            acknowledged = int(number)
    job = Job(url)
    found = job.store.load_latest()
    assert found is not None
    assert acknowledged <= found.metadata["step"] <= acknowledged + 1
    job.check(found.metadata["step"])
    for snapshot in job.store.snapshots():
        assert job.store.verify(snapshot.name) == []
    assert len(job.store.snapshots()) <= 3  # the last clean-up may have been the one that was killed
    _leaves_little(job)
    assert saves > KILLS // 2
    print(f"{kind}: {KILLS} kills, {saves} saves acknowledged")


def _leaves_little(job: Job) -> None:
    """The next save clears away what the killed ones have left; in a backend, an hour later."""
    job.store.save_state({"step": -1})
    place = job.store._place
    if isinstance(place, BackendPlace):
        from perdure.snapshots import bucket

        bucket.LEASE, lease = -1.0, bucket.LEASE
        try:
            place.sweep()
        finally:
            bucket.LEASE = lease
        used = {key for snapshot in job.store.snapshots() for key in bucket.keys_of(snapshot)}
        assert set(place.backend.keys("parts/")) == used
        assert not list(place.backend.keys("drafts/"))
    else:
        assert sorted(os.listdir(place.own)) == ["lock"]


@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_savers_and_cleaners_at_once_lose_nothing(kind: str, tmp_path: Path) -> None:
    """Three savers with keepers of their own, killed and started again, while this process reads and verifies."""
    url = {"folder": f"file:{tmp_path}/states", "sqlite": f"sqlite:{tmp_path}/states.db?sync=normal"}[kind]
    rng = random.Random(kind)
    children: list[subprocess.Popen[str]] = []
    checked = 0
    try:
        for _ in range(6 * ROUNDS):
            while len(children) < 3:
                children.append(
                    subprocess.Popen(
                        [sys.executable, _SAVER, "save", url, str(rng.choice([1, 2, 3]))],
                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                    )
                )  # fmt: skip
            time.sleep(rng.random())
            victim = children.pop(rng.randrange(3))
            victim.kill()
            errors = victim.communicate()[1]
            assert "Error" not in errors, errors
            reader = Job(url)
            found = reader.store.load_latest()
            if found is not None:
                reader.check(found.metadata["step"])
                checked += 1
    finally:
        for child in children:
            child.kill()
            errors = child.communicate()[1]
            assert "Error" not in errors, errors
    assert checked > ROUNDS
    reader = Job(url)
    for snapshot in reader.store.snapshots():
        assert reader.store.verify(snapshot.name) == []
