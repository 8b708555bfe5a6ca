"""The places that the tests of the mapping run over."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

import pytest

PLACES = ["memory", "file", "sqlite", "s3"]


def url_of(place: str, request: pytest.FixtureRequest, folder: Any) -> str:
    """A URL that names one and the same new place each time it is opened; `folder` is new."""
    name = hashlib.md5(str(folder).encode()).hexdigest()
    if place == "s3":
        return f"s3://mapping/{name}?create=yes&endpoint_url={quote(request.getfixturevalue('s3_endpoint'))}"
    return {
        "memory": f"memory:{name}",
        "file": f"file:{folder}/folder?sync=normal",
        "sqlite": f"sqlite:{folder}/file.db?sync=normal",
    }[place]
