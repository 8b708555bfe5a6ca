"""The real persidict, and ours by its names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def theirs() -> ModuleType:
    """persidict itself."""
    pytest.importorskip("persidict")
    import persidict

    return persidict


@pytest.fixture(scope="session")
def ours() -> ModuleType:
    import perdure.compat.persidict

    return perdure.compat.persidict


@pytest.fixture
def mocked_s3() -> Iterator[Any]:
    """A bucket service in this process, for both libraries."""
    moto = pytest.importorskip("moto")
    with moto.mock_aws(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # both read pickles from a bucket, which perdure warns about
        yield
