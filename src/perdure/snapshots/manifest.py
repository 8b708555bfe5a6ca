"""What a snapshot says of itself. The manifest is written last, and without it there is no snapshot.

It is JSON, for people and tools, and its last member is a digest of every byte before it, so that nothing in it can change
unnoticed::

    {
     "format": "perdure snapshot 1",
     "id": "0b9f...", "sequence": 42, "name": "2026-11-22_05-00-00,000000.state", "saved": "2026-11-22T04:00:00.000000+00:00",
     "library": "perdure 0.1.0", "python": "3.13.1",
     "metadata": {"step": 1000, "loss": 0.25},
     "components": {"model": {"kind": "state_dict", "parts": ["model.pkl", "model/weight.npy"]}},
     "parts": {"model.pkl": {"size": 312, "digest": "9c1e..."}, "model/weight.npy": {"size": ..., "chunks": [...]}},
     "seal": "77ab..."
    }
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from blake3 import blake3

from ..errors import CodecError, IntegrityError, PerdureError, UsageError
from .metadata import MAX_MANIFEST, too_large
from .names import MANIFEST, check_places, why_bad_name, why_bad_path

MAX_SEQUENCE: Final = 10**15
CHUNK: Final = 16 << 20
"""Parts are digested, and in a bucket stored, in pieces of this many bytes."""

T = TypeVar("T")
_FORMAT = "perdure snapshot "
_VERSION = 1
_digest = re.compile(r"[0-9a-f]{64}").fullmatch
_told_format = re.compile(rb'\{\s*"format": "%s([1-9][0-9]{0,8})"' % _FORMAT.encode()).match
_SEAL = b',\n "seal": "%s"\n}\n'
_SEAL_BYTES = len(_SEAL) - 2 + 64
_HINT = "Use another snapshot; `perdure snapshots --verify` tells which are whole."


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """The BLAKE3 digest of at most `CHUNK` bytes, as 64 hexadecimal digits. (O'Connor et al., 2020; blake3.io)"""
    return blake3(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a snapshot.

    Attributes:
        name: Its path inside the snapshot, such as `"model/weight.npy"`; that of a folder with nothing in it ends in `/`.
        size: Its length in bytes.
        chunks: The digests of its pieces of `CHUNK` bytes each, the last one shorter; of an empty part, of nothing.
        homes: In a bucket: by which save each piece was uploaded. Empty where all came with this snapshot.
    """

    name: str
    size: int
    chunks: tuple[str, ...]
    homes: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether it is an empty folder, as components may make one: then its name ends in `/`, and its size is 0."""
        return self.name.endswith("/")

    @property
    def digest(self) -> str:
        """One digest for the whole: of the only piece, else of the digests of all pieces, one after another."""
        return self.chunks[0] if len(self.chunks) == 1 else blake3(bytes.fromhex("".join(self.chunks))).hexdigest()


@dataclass(frozen=True, slots=True)
class Component:
    """What belongs to one registered object.

    Attributes:
        kind: How it was saved: `"files"`, `"state_dict"`, `"object"` or `"value"`.
        parts: The names of its parts.
        rank: The number of the process it belongs to, in a job of several; `None` else.
        of: The name of the class, of an `"object"`.
    """

    kind: str
    parts: tuple[str, ...]
    rank: int | None = None
    of: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A snapshot that was completed, as its manifest describes it. Its parts were not looked at.

    Attributes:
        id: Unique.
        sequence: Its number in its place; a later snapshot has a higher one, whatever the clocks said.
        name: Such as `"2026-11-22_05-00-00,000000.state"`; unique in its place.
        saved: When it was begun, by the clock of whoever saved it; with time zone UTC.
        metadata: What was given to `save_state`: step, loss, configuration.
        components: What was registered, by name.
        parts: All files, by name.
        library: What wrote it.
        python: The Python it was written with.
        place: Where it is, as a URL without secrets.
        path: Its folder; `None` in a bucket or another backend.
    """

    id: str
    sequence: int
    name: str
    saved: datetime
    metadata: Mapping[str, Any]
    components: Mapping[str, Component]
    parts: Mapping[str, Part]
    library: str = ""
    python: str = ""
    place: str = ""
    path: Path | None = field(default=None)

    @property
    def size(self) -> int:
        """Bytes of all parts; less is stored where parts are shared with other snapshots."""
        return sum(part.size for part in self.parts.values())

    def __fspath__(self) -> str:
        """Its folder, or its name where it has none; so it can be given where a path is asked for."""
        return str(self.path or self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and (other.id, other.name) == (self.id, self.name)  # a copy is another one

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        metadata = "".join(f" {name}={value!r:.30}" for name, value in list(self.metadata.items())[:4])
        return f"<Snapshot {self.sequence} {self.name!r}{metadata} of {self.saved:%Y-%m-%d %H:%M:%S} UTC, {self.size:,} bytes>"


@dataclass(frozen=True, slots=True)
class Broken:
    """Something in the place of a snapshot that is none: damaged, or of a newer format. Never counted; removed when asked.

    Attributes:
        name: The name it has.
        error: What is wrong.
    """

    name: str
    error: PerdureError


def write_manifest(snapshot: Snapshot) -> bytes:
    """The bytes of a manifest.

    Raises:
        UsageError: Nobody could read it: it is too large, or has a name or parts that no snapshot has.
    """
    problem = why_bad_name(snapshot.name)
    if problem:
        hint = "Change state_name_format, or the name of the folder."
        raise UsageError(f"a snapshot cannot be called {snapshot.name!r:.80}: {problem}", place=snapshot.place, hint=hint)
    try:
        check_places(snapshot.parts)
    except ValueError as error:
        hint = "Let each component write under its own path only."
        raise UsageError(str(error), key=snapshot.name, place=snapshot.place, hint=hint) from error
    content = {
        "format": f"{_FORMAT}{_VERSION}",
        "id": snapshot.id,
        "sequence": snapshot.sequence,
        "name": snapshot.name,
        "saved": snapshot.saved.astimezone(UTC).isoformat(timespec="microseconds"),
        "library": snapshot.library,
        "python": snapshot.python,
        "metadata": dict(snapshot.metadata),
        "components": {name: _spell_component(component) for name, component in snapshot.components.items()},
        "parts": {part.name: _spell_part(part) for part in snapshot.parts.values()},
    }
    body = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass").removesuffix(b"\n}")
    if len(body) + _SEAL_BYTES > MAX_MANIFEST:
        raise too_large(len(body) + _SEAL_BYTES).at(snapshot.name, snapshot.place)
    return body + _SEAL % blake3(body).hexdigest().encode()


def read_manifest(data: bytes, name: str, place: str, path: Path | None = None) -> Snapshot:
    """The snapshot that a manifest describes.

    Args:
        data: The bytes of the manifest.
        name: What the snapshot is called in messages, and where its manifest does not say it.
        place: Where it is.
        path: Its folder.

    Raises:
        IntegrityError: The bytes are not those of a manifest that was written.
        CodecError: It is of a newer format.
    """
    key = f"{name}/{MANIFEST}"
    told = _told_format(data)
    if told and int(told[1]) > _VERSION and not _is_only_renumbered(data, told):
        problem = f"the snapshot is of format {int(told[1])}, and this version knows {_VERSION}"
        raise CodecError(problem, key=key, place=place, hint="Upgrade perdure.")
    if not told or int(told[1]) > _VERSION or not _is_sealed(data):
        raise IntegrityError("the manifest is damaged or foreign", key=key, place=place, hint=_HINT)
    try:
        content = json.loads(data[:-_SEAL_BYTES].decode("utf-8", "surrogatepass") + "}")
        parts = {name: read_part(name, told) for name, told in _of(dict, content["parts"]).items()}
        check_places(parts)
        told_components = _of(dict, content["components"]).items()
        return Snapshot(
            id=check_id(content["id"]),
            sequence=_number(content["sequence"], MAX_SEQUENCE),
            name=_checked_name(content["name"]),
            saved=datetime.fromisoformat(content["saved"]).astimezone(UTC),
            metadata=_of(dict, content["metadata"]),
            components={name: _read_component(name, told, parts) for name, told in told_components},
            parts=parts,
            library=_of(str, content["library"]),
            python=_of(str, content["python"]),
            place=place,
            path=path,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise IntegrityError(f"the manifest says what no manifest says: {error!r}", key=key, place=place, hint=_HINT) from error


def _is_sealed(data: bytes) -> bool:
    return data[-_SEAL_BYTES:] == _SEAL % blake3(memoryview(data)[:-_SEAL_BYTES]).hexdigest().encode()


def _is_only_renumbered(data: bytes, told: re.Match[bytes]) -> bool:
    """Tell whether a manifest of a format we know says another one by damage: the seal of a newer one may be anything."""
    head, rest = data[: told.start(1)], data[told.end(1) :]
    return any(_is_sealed(b"%s%d%s" % (head, known, rest)) for known in range(1, _VERSION + 1))


def _spell_component(component: Component) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": component.kind, "parts": list(component.parts)}
    if component.of:
        told["of"] = component.of
    if component.rank is not None:
        told["rank"] = component.rank
    return told


def _read_component(name: str, told: Mapping[str, Any], parts: Mapping[str, Part]) -> Component:
    its = tuple(_of(list, told["parts"]))
    if not all(part in parts for part in its):
        raise ValueError(f"component {name!r} has parts that are nowhere")
    inner = f"{name}/"
    packed = its[:1] == (f"{name}.pkl",) and all(part.startswith(inner) and part[-1] != "/" for part in its[1:])
    if told["kind"] != "files" and not packed:
        raise ValueError(f"component {name!r} has parts of others")
    rank = told.get("rank")
    whose = None if rank is None else _number(rank, 1 << 30)
    return Component(_of(str, told["kind"]), its, whose, _of(str, told.get("of", "")))


def _spell_part(part: Part) -> dict[str, Any]:
    chunks = {"digest": part.chunks[0]} if len(part.chunks) == 1 else {"chunks": list(part.chunks)}
    return {"size": part.size, **chunks} | ({"homes": list(part.homes)} if part.homes else {})


def read_part(name: str, told: Mapping[str, Any]) -> Part:
    """A part as a manifest tells of it.

    Raises:
        ValueError, TypeError, KeyError: It tells what cannot be, such as a name that leads outside; anybody may have written
        it.
    """
    size = _number(told["size"], 1 << 60)
    chunks = _of(list, told["chunks"]) if "chunks" in told else [told["digest"]]
    homes = _of(list, told.get("homes", []))
    pieces = max(1, -(-size // CHUNK))
    if len(chunks) != pieces or (homes and len(homes) != pieces) or not all(map(_is_digest, chunks)):
        raise ValueError(f"{name!r} does not have {pieces} pieces")
    problem = why_bad_path(name)
    if problem:
        raise ValueError(f"{name!r:.80} is no name of a part: {problem}")
    if name.endswith("/") and (size or chunks != [digest_of(b"")]):
        raise ValueError(f"{name!r:.80} is a folder, and has bytes")
    return Part(name, size, tuple(chunks), tuple(map(check_id, homes)))


def check_id(text: Any) -> str:
    """The id of a save, which names folders and keys. Raises `ValueError`."""
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{32}", text):
        raise ValueError(f"{text!r:.80} is no id of a save")
    return text


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and _digest(text) is not None


def _number(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value!r:.80} is no number of something")
    return value


def _of(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.80} stands where a {kind.__name__} belongs")
    return value


def _checked_name(name: Any) -> str:
    problem = why_bad_name(_of(str, name))
    if problem:
        raise ValueError(f"{name!r:.80} is no name of a snapshot: {problem}")
    return str(name)
