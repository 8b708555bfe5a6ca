"""The null backend keeps those promises that remain when nothing is kept."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from perdure.errors import NotFoundError, PreconditionError
from perdure.protocol import ABSENT, NOT_KEPT, ETag
from perdure.testing import BackendContract
from perdure_backends.null import NullBackend


class TestNull(BackendContract):
    keeps = False

    def open(self, where: Path) -> NullBackend:
        return NullBackend()


def test_it_takes_every_write_and_is_always_empty() -> None:
    backend = NullBackend()
    assert backend.put("a", b"1") == NOT_KEPT
    assert backend.put("a", b"2", if_match=ABSENT) == NOT_KEPT
    assert backend.put("a", bytearray(b"3"), if_match=ABSENT) == NOT_KEPT
    assert backend.put_many({"a": b"1", "b/c": b"2"}) == {"a": NOT_KEPT, "b/c": NOT_KEPT}
    assert backend.get_many(["a", "b/c"]) == {}
    assert not backend.contains("a")
    assert [*backend.scan(), *backend.keys("b/")] == []
    with pytest.raises(NotFoundError):
        backend.get("a")


@pytest.mark.parametrize("etag", ["1", NOT_KEPT])
def test_no_etag_ever_matches(etag: str) -> None:
    backend = NullBackend()
    backend.put("a", b"1")
    with pytest.raises(PreconditionError, match="'a' in null:"):
        backend.put("a", b"2", if_match=ETag(etag))
    with pytest.raises(PreconditionError):
        backend.delete("a", if_match=ETag(etag))
    backend.delete("a")


def test_it_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(NullBackend())).put("a", b"1") == NOT_KEPT
