"""Reading a snapshot in a backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CodecError, IntegrityError, NotFoundError
from .bucket_keys import piece_key
from .disk import explain, memory_for, open_again, open_new, write_at
from .manifest import CHUNK, Part, Snapshot, digest_of
from .place import Report, damaged
from .scratch import Scratch
from .work import Call, Work

if TYPE_CHECKING:
    from .bucket import BackendPlace


class BackendReading:
    """One snapshot. Nobody can be kept from removing it; what is missing then is an error like damage."""

    def __init__(self, place: BackendPlace, snapshot: Snapshot) -> None:
        self._place = place
        self._snapshot = snapshot
        self._scratch = Scratch()
        self._compared: set[str] = set()

    def fetch(self, parts: Iterable[Part], report: Report) -> dict[str, memoryview]:
        wanted = list(parts)
        try:
            memory = {part.name: memory_for(part.size) for part in wanted}
        except MemoryError as error:
            size = sum(part.size for part in wanted)
            problem = f"the parts to restore have {size:,} bytes, which this machine's memory cannot hold"
            raise CodecError(problem, key=self._snapshot.name, place=self._place.place, hint="Use a larger one.") from error

        def take(part: Part, start: int, data: bytes) -> None:
            memory[part.name][start : start + len(data)] = data

        for damage in self._compare(wanted, report, take):
            raise damage
        return memory

    def fetch_files(self, parts: Iterable[Part], report: Report) -> Path:
        wanted = list(parts)
        folder = self._scratch.path
        try:
            for part in wanted:
                path = self._file(part)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if not part.is_folder:
                    os.close(open_new(path))
        except OSError as error:
            raise explain(error, f"file:{folder}", "write", self._snapshot.name) from error
        for damage in self._compare(wanted, report, self._write):
            raise damage
        return folder

    def _file(self, part: Part) -> str:
        return os.path.join(self._scratch.path, *part.name.split("/"))

    def _write(self, part: Part, start: int, data: bytes) -> None:
        try:
            fd = open_again(self._file(part))
            try:
                write_at(fd, [data], start)
            finally:
                os.close(fd)
        except OSError as error:
            raise explain(error, f"file:{self._scratch.path}", "write", part.name) from error

    def damage(self, parts: Iterable[Part], report: Report) -> list[IntegrityError]:
        return self._compare(list(parts), report, lambda *_: None)

    def _compare(self, parts: list[Part], report: Report, take: Callable[[Part, int, bytes], None]) -> list[IntegrityError]:
        """Fetch all pieces of all parts, several at once, compare each with its digest, and hand it on."""
        errors: dict[str, IntegrityError] = {}
        work = Work(transfers=True)
        try:
            for part in parts:
                for number in range(len(part.chunks)):
                    work.submit(Call(self._fetch_chunk, part, number, take, errors, report))
            work.finish()
        finally:
            work.stop()
        if not errors:
            self._know(parts)
        return [errors[part.name] for part in parts if part.name in errors]

    def _fetch_chunk(
        self,
        part: Part,
        number: int,
        take: Callable[[Part, int, bytes], None],
        errors: dict[str, IntegrityError],
        report: Report,
    ) -> None:
        start = number * CHUNK
        size = min(CHUNK, part.size - start)
        if not size:
            return
        try:
            data = self._place.backend.get(piece_key(self._snapshot, part, number)).data
        except NotFoundError:
            errors[part.name] = damaged(self._snapshot, part, "the part is missing")
            return
        except CodecError as error:
            errors[part.name] = damaged(self._snapshot, part, f"the part is damaged: {error.problem}")
            return
        if len(data) != size or digest_of(data) != part.chunks[number]:
            errors[part.name] = damaged(self._snapshot, part, "the part is damaged: its bytes are not those that were saved")
            return
        take(part, start, data)
        report(size)

    def _know(self, parts: list[Part]) -> None:
        self._compared.update(part.name for part in parts)
        if self._compared >= self._snapshot.parts.keys():
            self._place.base = self._snapshot
            self._place.whole.add(self._snapshot.id)

    def close(self) -> None:
        self._scratch.close()
