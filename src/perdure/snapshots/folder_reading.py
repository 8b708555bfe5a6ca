"""Reading a snapshot in a folder, which nobody removes meanwhile."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import IntegrityError, SnapshotNotFoundError, UnavailableError
from .disk import explain, lock_folder, memory_for, open_read, read_into, unlock
from .manifest import CHUNK, Part, Snapshot, digest_of
from .place import Report, damaged
from .work import Call, Work

if TYPE_CHECKING:
    from .folder import FolderPlace

_PATIENCE = 30.0  # seconds


class FolderReading:
    """One snapshot, locked against removal by its folder."""

    def __init__(self, place: FolderPlace, snapshot: Snapshot) -> None:
        self._place = place
        self._snapshot = snapshot
        self._folder = str(snapshot.path)
        self._folders: set[str] = set()
        self._lock: int | None = None
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self._lock = lock_folder(self._folder, shared=True)
                return
            except FileNotFoundError as error:
                raise SnapshotNotFoundError(
                    "the snapshot has been removed meanwhile", key=snapshot.name, place=place.place, hint="Take another one."
                ) from error
            except BlockingIOError as error:
                # By who has just completed it, or is about to remove it: both take a moment.
                if time.monotonic() > end:
                    problem = f"another process has locked the snapshot for {_PATIENCE:g} s"
                    raise UnavailableError(problem, key=snapshot.name, place=place.place, hint="Try again.") from error
                time.sleep(0.005)
            except OSError as error:
                raise explain(error, place.place, "read", snapshot.name) from error

    def fetch(self, parts: Iterable[Part], report: Report) -> dict[str, memoryview]:
        wanted = list(parts)
        fetched: dict[str, memoryview] = {}
        errors = self._compare(wanted, report, fetched)
        if errors:
            raise errors[0]
        return fetched

    def fetch_files(self, parts: Iterable[Part], report: Report) -> Path:
        errors = self._compare(list(parts), report, None)
        if errors:
            raise errors[0]
        return Path(self._folder)

    def damage(self, parts: Iterable[Part], report: Report) -> list[IntegrityError]:
        return self._compare(list(parts), report, None)

    def _compare(self, parts: list[Part], report: Report, keep: dict[str, memoryview] | None) -> list[IntegrityError]:
        """Read all chunks of all parts, several at once, and compare each with its digest."""
        errors: dict[str, IntegrityError] = {}
        work = Work()
        opened: list[int] = []
        try:
            for part in parts:
                try:
                    self._refuse_links(part.name)
                    if part.is_folder:
                        continue  # it is there, as that has just found out
                    fd = open_read(os.path.join(self._folder, part.name))
                    opened.append(fd)
                    size = os.fstat(fd).st_size
                except (FileNotFoundError, NotADirectoryError):
                    errors[part.name] = damaged(self._snapshot, part, "the part is missing")
                    continue
                except OSError as error:
                    self._fail(error, part, errors)
                    continue
                if size != part.size:
                    errors[part.name] = damaged(self._snapshot, part, f"the part has {size} bytes and not {part.size}")
                    continue
                memory = memory_for(part.size) if keep is not None else None
                if keep is not None and memory is not None:
                    keep[part.name] = memory
                for number in range(len(part.chunks)):
                    work.submit(Call(self._compare_chunk, fd, part, number, memory, errors, report))
                if len(opened) >= 256:
                    work.finish()
                    _close_all(opened)
            work.finish()
        finally:
            work.stop()
            _close_all(opened)
        whole = [part for part in parts if part.name not in errors]
        try:
            self._place.know(self._snapshot, whole)
        except FileNotFoundError:
            pass  # somebody removes parts of a snapshot by hand: then there is nothing to link to
        return [errors[part.name] for part in parts if part.name in errors]

    def _refuse_links(self, name: str) -> None:
        """A folder of a part that is a link leads to files which are not the snapshot's."""
        folder = name.rpartition("/")[0]
        while folder and folder not in self._folders:
            if not stat.S_ISDIR(os.lstat(os.path.join(self._folder, folder)).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "this is a link", folder)
            self._folders.add(folder)
            folder = folder.rpartition("/")[0]

    def _fail(self, error: OSError, part: Part, errors: dict[str, IntegrityError]) -> None:
        told = explain(error, self._place.place, "read", f"{self._snapshot.name}/{part.name}")
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            told = damaged(self._snapshot, part, "no file stands in the part's place")
        if not isinstance(told, IntegrityError):
            raise told from error
        told.__cause__ = error
        errors[part.name] = told

    def _compare_chunk(
        self,
        fd: int,
        part: Part,
        number: int,
        memory: memoryview | None,
        errors: dict[str, IntegrityError],
        report: Report,
    ) -> None:
        start = number * CHUNK
        size = min(CHUNK, part.size - start)
        view = memory[start : start + size] if memory is not None else memoryview(bytearray(size))
        try:
            read = read_into(fd, view, start)
        except OSError as error:
            self._fail(error, part, errors)
            return
        if read != size or digest_of(view) != part.chunks[number]:
            errors[part.name] = damaged(self._snapshot, part, "the part is damaged: its bytes are not those that were saved")
        report(size)

    def close(self) -> None:
        unlock(self._lock)
        self._lock = None


def _close_all(opened: list[int]) -> None:
    while opened:
        os.close(opened.pop())
