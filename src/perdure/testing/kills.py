"""Promises about sudden death: a writer killed at any moment loses nothing it was told was done, and blocks nobody."""

from __future__ import annotations

import os
import random
import signal
import traceback
import warnings
from multiprocessing.connection import wait  # unlike select, with descriptors above 1024 too
from pathlib import Path

import pytest

from ..errors import PreconditionError
from ..protocol import ABSENT, Backend
from .crew import PATIENCE, within
from .kit import Kit

_KEYS = ["a", "a/b", "deep/er/c"]
_SIZES = [10, 5000, 100_000]


class Kills(Kit):
    """SIGKILL, which nobody can prepare for."""

    def test_a_killed_writer_loses_no_acknowledged_write_and_blocks_nobody(self, where: Path, backend: Backend) -> None:
        if not (self.processes and hasattr(os, "fork")):
            pytest.skip("nobody else can be killed here")
        dice = random.Random(7)
        number = 0
        for turn in range(self.rounds(10)):
            number = self._kill_a_writer(where, number, acks=dice.randrange(1, 12), spin=dice.randrange(30_000))
            about = f"after kill {turn}, {number} acknowledged"
            for slot, key in enumerate(_KEYS):
                # The last acknowledged one, or the one under way; in S3 it may even arrive later.
                newest = number - (number - slot) % len(_KEYS)
                if newest <= 0:
                    continue
                data = within(PATIENCE, f"a get {about}", backend.get, key).data
                allowed = (_value(newest), _value(number + 1)) if (number + 1 - slot) % len(_KEYS) == 0 else (_value(newest),)
                assert data in allowed, f"{about}: {key} holds {data[:20]!r}, {len(data)} bytes"
            # A listing shows neither scratch files nor locks, and every key can be written at once.
            assert set(backend.keys()) <= {*_KEYS, "come-and-go", "alive"}, about
            within(PATIENCE, f"a put {about}", backend.put, "alive", b"%d" % turn)
            for key in _KEYS:
                meta = within(PATIENCE, f"a head {about}", backend.head, key) if backend.contains(key) else None
                if meta is not None:
                    etag = within(PATIENCE, f"a swap {about}", backend.put, key, backend.get(key).data, if_match=meta.etag)
                    assert backend.head(key).etag == etag, about
        assert number > self.rounds(10)

    def _kill_a_writer(self, where: Path, number: int, acks: int, spin: int) -> int:
        """Let a child write on from `number`, kill it some time after `acks` more, and return the last acknowledged number."""
        ours, theirs = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                os.close(ours)
                _write_on(self.open(where), number, theirs)
            except BaseException:
                os.write(theirs, b"!" + traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.close(theirs)
        heard = b""
        try:
            while heard.count(b"\n") < acks and b"!" not in heard:
                assert wait([ours], PATIENCE), f"the writer is stuck after {number}"
                heard += os.read(ours, 1 << 16)
            for _ in range(spin):
                pass  # so that it dies anywhere in its next calls
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            while more := os.read(ours, 1 << 16):
                heard += more
            os.close(ours)
        assert b"!" not in heard, heard.partition(b"!")[2].decode()
        return int(heard.split(b"\n")[-2])


def _value(number: int) -> bytes:
    size = _SIZES[number % len(_SIZES)]
    return b"%d " % number + bytes([number % 256]) * size


def _write_on(backend: Backend, number: int, acknowledge: int) -> None:
    """Put, swap and create in turn, for ever; each acknowledged number is told, in one write of a few bytes."""
    while True:
        number += 1
        key = _KEYS[number % len(_KEYS)]
        if number % 2 and backend.contains(key):
            backend.put(key, _value(number), if_match=backend.head(key).etag)
        else:
            backend.put(key, _value(number))
        os.write(acknowledge, b"%d\n" % number)
        try:
            backend.put("come-and-go", b"", if_match=ABSENT)
        except PreconditionError:
            backend.delete("come-and-go")
