"""A part that is larger than what many places take at once: 2 GiB in the torture, 80 MB otherwise."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from ledger import ROUNDS

from perdure.errors import IntegrityError
from perdure.snapshots import StateStore
from perdure.snapshots.bucket import BackendPlace
from perdure.snapshots.bucket_keys import piece_key

SIZE = 2 << 30 if ROUNDS > 1 else 80_000_000


@pytest.mark.parametrize("kind", ["folder", "sqlite", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_large_part_comes_back_and_every_piece_of_it_is_compared(kind: str, tmp_path: Path) -> None:
    if kind == "s3":
        pytest.importorskip("boto3")
        from perdure.testing import servers

        with servers.seaweedfs() as server, server.environment():
            _try_out(f"s3://large/{tmp_path.name}?create=yes&endpoint_url={quote(server.endpoint_url)}")
    else:
        _try_out({"folder": f"file:{tmp_path}/states", "sqlite": f"sqlite:{tmp_path}/states.db?sync=normal"}[kind])


def _try_out(url: str) -> None:
    numbers = np.arange(SIZE // 8)
    store = StateStore(url)
    value = store.register_value("numbers", numbers)
    path = store.save_async().wait()
    numbers[:] = 0
    store.load_state(path)
    assert value.value is numbers
    assert (np.diff(numbers) == 1).all()
    (snapshot,) = store.snapshots()
    (part,) = (part for part in snapshot.parts.values() if part.name.endswith(".npy"))
    place = store._place
    last = len(part.chunks) - 1
    if isinstance(place, BackendPlace):
        data = bytearray(place.backend.get(piece_key(snapshot, part, last)).data)
        data[-1] ^= 1
        place.backend.put(piece_key(snapshot, part, last), data)
    else:
        with open(path / part.name, "r+b") as file:
            file.seek(-1, 2)
            byte = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([byte ^ 1]))
    numbers[:] = 0
    with pytest.raises(IntegrityError, match=r"numbers/value\.npy"):
        store.load_state(path)
    assert not numbers.any()
