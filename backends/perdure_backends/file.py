"""A folder with one file for each value.

Writers take `flock` on one of 64 lock files chosen by the key's hash; readers take nothing, because a value only ever
appears by a rename. Beside the values stands one folder of our own::

    .perdure/marker      layout, codec, format version: reopening needs no arguments, and mixing is refused
    .perdure/locks/00    64 of them, never removed
    .perdure/tmp/00-1f   what the holder of lock 00 (inode 1f) is writing; a killed writer leaves it, the next holder removes it
    .perdure/tmp/batch-5e...   what one `put_many` is writing, with a lock of its own; the next `put_many` removes a dead one

So leftovers are bounded by 64 files and one such folder for each process that is killed in the middle of a `put_many`, until
somebody sweeps, and sweeping never touches a live writer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any, NoReturn, Self

from perdure.errors import (
    BackendError,
    IntegrityError,
    NotFoundError,
    NotModified,
    PerdureError,
    UnavailableError,
    UsageError,
)
from perdure.protocol import Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, Use, check_key, check_prefix

from ._file_errors import explain
from ._file_folder import OwnFolder, stands_in_the_way
from ._file_layout import Framed, Layout, look, modified
from ._file_listing import Listing
from ._file_names import Names, PortableNames
from ._file_spots import Spots
from ._file_uses import mark
from ._file_writer import Writer
from ._system import KEEPS_TIMES, OPEN_READ


class FileBackend(Backend):
    """One file per value under a folder. Safe for threads, processes, forked children and several instances at once.

    Args:
        path: The folder; made absolute now, created by the first write.
        layout: `"framed"` (a header with a version token before each value; names safe on every system) or `"plain"` (the
            value's bytes alone under names that other programs expect). Default: what the folder has, else framed.
        sync: `"full"`: an acknowledged write survives a power cut. `"normal"`: it survives the end of the process, however
            sudden; a power cut may take back the writes of the last seconds, or leave a value that is damaged, which the layout
            `plain` does not notice.
        suffix: For `plain`: what file names end in, such as `".pkl"`. Values with other suffixes may stand beside and are
            neither seen nor touched. Default: the one the folder has.
        digest_len: For `plain`: characters of a digest in each name, 0 to 32.

    Raises:
        UsageError: The folder has another layout or digest length (also by the names in it, where nothing is recorded), or
            several suffixes, or the marker is from a newer version.
        BackendError: The path exists and is not a folder.

    Cost: a get is open, read, close (and one lstat for each level of a hierarchical key, so that planted links are not
    followed); a durable put is a lock, two fsyncs and a rename.
    """

    remembers_use = KEEPS_TIMES

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layout: str = "",
        sync: str = "full",
        suffix: str = "",
        digest_len: int = 0,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.place = f"file:{self.path}"
        if sync not in ("full", "normal"):
            raise UsageError(f"sync is 'full' or 'normal', not {sync!r}", place=self.place)
        self._options = {"layout": layout, "sync": sync, "suffix": suffix, "digest_len": digest_len}
        self._durable = sync == "full"
        self._closed = False
        self._own = OwnFolder(self.path, self.place, durable=self._durable)
        if stands_in_the_way(self.path):
            if os.path.islink(self.path) and not os.path.exists(self.path):
                raise BackendError("this is a link to nothing", place=self.place, hint="Make what it points to, or remove it.")
            hint = f"For a database write sqlite:///{os.fspath(path)}"
            raise BackendError("this is a file, not a folder", place=self.place, hint=hint)
        marker = self._own.marker
        if layout not in ("", "framed", "plain"):
            raise UsageError(f"layout is 'framed' or 'plain', not {layout!r}", place=self.place)
        self._layout: Layout = Framed()
        names: Names = PortableNames()
        self._about = ""  # what is added to the names of settings that are about some of the values only
        marker.require({"layout": layout or marker.settings.get("layout", "framed")})
        if marker.settings["layout"] == "plain":
            from ._file_plain import Plain, settle_names

            names, self._about = settle_names(marker, self.path, suffix, digest_len, given=layout == "plain")
            self._layout = Plain()
        self._listing = Listing(self.path, names, self.place)
        self._read = self._layout.read
        self._writer = Writer(self._own, self._layout, durable=self._durable)
        self._spots = Spots(self.path, names, self.place, self._check_open)

    @classmethod
    def from_url(cls, location: str, *, layout: str = "", sync: str = "full", suffix: str = "", digest_len: int = 0) -> Self:
        """Open a bare path, `file:relative`, `file:/absolute` or `file:///absolute` (percent-escapes are resolved)."""
        if location.startswith("//"):
            host, slash, rest = location[2:].partition("/")
            if host not in ("", "localhost"):
                raise UsageError(
                    f"file: names no host, and {host!r} stands where one would",
                    hint=f"Write file:{host}{slash}{rest} for a relative or file:///{rest or host} for an absolute path.",
                )
            location = slash + rest
        return cls(location, layout=layout, sync=sync, suffix=suffix, digest_len=digest_len)

    # ---------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        try:
            spot = self._spots[key]
            if spot.folders:
                spot.refuse_links()
            fd = os.open(spot.path, OPEN_READ)
            try:
                blob = self._read(fd)
            finally:
                os.close(fd)
        except (OSError, IntegrityError, TypeError) as error:
            self._fail(error, key, "read")
        if if_none_match is not None and blob.etag == if_none_match:
            raise NotModified(key=key, place=self.place, modified=blob.modified)
        return blob

    def head(self, key: str) -> Meta:
        try:
            return Meta(key, *look(self._spots[key], self._layout))
        except (OSError, IntegrityError, TypeError) as error:
            self._fail(error, key, "read")

    def contains(self, key: str) -> bool:
        try:
            spot = self._spots[key]
            if spot.folders:
                spot.refuse_links()
            # Half the cost of lstat, but it says no for every kind of trouble, and only one kind means absent.
            if os.access(spot.path, os.F_OK, follow_symlinks=False):
                return True
            os.lstat(spot.path)
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, TypeError) as error:
            self._fail(error, key, "look at")

    def keys(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        self._check_open()
        return chain.from_iterable(self._listing.keys(prefix))

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return self._metas(self.keys(prefix))

    def _metas(self, keys: Iterator[str]) -> Iterator[Meta]:
        for key in keys:
            try:
                yield self.head(key)
            except NotFoundError:
                continue  # deleted since its name was read
            except UnavailableError:
                raise
            except (IntegrityError, BackendError):
                # Listed all the same: whoever looks for what cannot be read must find it. No version equals this one.
                try:
                    info = os.lstat(self._spots[key].path)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    raise explain(error, key, self.place, "look at") from error
                yield Meta(key, ETag("damaged"), info.st_size, info.st_mtime)

    def times(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        """As `Backend.times`, by a listing and one look at each file, without opening any. Where the file system keeps whole
        seconds only, or a copy of the folder lost the times of its files, they differ from those of `head`."""
        check_prefix(prefix)
        self._check_open()
        if not isinstance(self._layout, Framed):
            return self._listing.states(prefix, attrgetter("st_mtime"))
        return self._listing.states(prefix, modified) if KEEPS_TIMES else super().times(prefix)

    def uses(self, prefix: str = "") -> Iterator[Use]:
        """As `Backend.uses`, by a listing and one look at each file. Where the file system notes reads by itself (most do so
        about once a day), those of other programs and those for a `scan` or `head` count, too."""
        check_prefix(prefix)
        self._check_open()
        return (Use(key, size, used) for key, (size, used) in self._listing.states(prefix, self._layout.use))

    def mark_used(self, times: Mapping[str, float]) -> None:
        """As `Backend.mark_used`: the files get this time of access. All that can be marked are, and then the first error is
        raised, as for files of other users."""
        self._check_open()
        for key in times:
            self._check(key)
        first: OSError | None = None
        where = ""
        for key, when in times.items() if KEEPS_TIMES else ():
            try:
                mark(self._spots[key], when)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if first is None:
                    first, where = error, key
        if first is not None:
            raise explain(first, where, self.place, "note when it was used") from first

    # ---------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        try:
            spot = self._spots[key]
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"a backend stores bytes, not {type(data).__name__}")
            return self._writer.put(spot, data, if_match)
        except (OSError, PerdureError, TypeError) as error:
            self._fail(error, key, "write")

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        try:
            self._writer.delete(self._spots[key], if_match)
        except (OSError, PerdureError, TypeError) as error:
            self._fail(error, key, "delete")

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        """As `Backend.put_many`. With `sync="full"` up to 256 values or 16 MB are made durable together.

        An error names the key that it struck at, or none if it concerns all; other keys may have been written by then.
        """
        for key, data in items.items():
            self._check(key, data)
        if not self._durable or len(items) < 8:  # so few take as long one by one as with a folder made and removed for them
            return {key: self.put(key, data) for key, data in items.items()}
        from ._file_batch import Batch, batches

        etags: dict[str, ETag] = {}
        for some in batches(items, self._spots):
            batch = Batch(self._own, self._layout)
            try:
                etags |= batch.put_all(some)
            except (OSError, PerdureError) as error:
                self._fail(error, batch.key, "write")
        return {key: etags[key] for key in items}

    def delete_many(self, keys: Iterable[str]) -> None:
        """As `Backend.delete_many`. With `sync="full"` each folder is synced once for up to 1024 keys. Errors as `put_many`."""
        wanted = []
        for key in keys:
            self._check(key)
            wanted.append(key)
        if not self._durable or len(wanted) == 1:
            for key in wanted:
                self.delete(key)
            return
        from ._file_batch import Batch, Item

        wanted = sorted(set(wanted))
        for start in range(0, len(wanted), 1024):
            batch = Batch(self._own, self._layout)
            try:
                batch.delete_all([Item(key, self._spots[key]) for key in wanted[start : start + 1024]])
            except (OSError, PerdureError) as error:
                self._fail(error, batch.key, "delete")

    # ----------------------------------------------------------------------------------------------------------- upkeep

    def make_folder(self) -> None:
        """Make the folder at once, where it is missing, and not by the first write."""
        try:
            self._own.make(self.path, parents=True)
        except OSError as error:
            raise explain(error, None, self.place, "make the folder") from error

    def folder_of(self, prefix: str) -> str:
        """The folder with the files of the keys under a prefix."""
        return self._listing.folder(check_prefix(prefix))

    def leftovers(self) -> list[str]:
        """What killed writers left behind: at most 64 files unless the folder is a copy, and a folder for each killed
        `put_many`. What is a live writer's is not among it."""
        return self._sweep(remove=False)

    def sweep(self) -> list[str]:
        """Remove what killed writers left behind and tell what it was. The first write of every instance does this too, and
        each durable `put_many` removes folders of killed ones."""
        return self._sweep(remove=True)

    def _sweep(self, *, remove: bool) -> list[str]:
        try:
            return self._own.sweep(remove=remove)
        except OSError as error:
            raise explain(error, None, self.place, "sweep") from error

    def set_aside(self, key: str, *, unless: Callable[[], bool] = lambda: False) -> str:
        """Move a value's file, whatever its state, out of the way without reading it.

        Args:
            key: Its key.
            unless: Asked while no writer can come in between; where it says so, the file stays.

        Returns:
            Where it is now; `""` where it stays.

        Raises:
            NotFoundError: There is no file for this key.
        """
        spot = self._spots[key]
        try:
            return self._writer.set_aside(spot, os.path.relpath(spot.path, self.path).replace(os.sep, ",")[-200:], unless)
        except (OSError, PerdureError) as error:
            self._fail(error, key, "set aside")

    def recorded(self) -> dict[str, str]:
        hidden = ("layout", "digest_len", "suffix")
        mine = {name: value for name, value in self._own.marker.settings.items() if name.endswith(self._about)}
        mine = {name.removesuffix(self._about): value for name, value in mine.items()}
        return {name: value for name, value in mine.items() if name not in hidden and "@" not in name}

    def record(self, settings: Mapping[str, str]) -> None:
        settings = {name + self._about: value for name, value in settings.items()}
        if not settings.items() <= self._own.marker.settings.items():
            self._own.marker.require(settings)
            self._own.ready = False  # the next write adds them to the marker

    def guarantees(self) -> Guarantees:
        survives = "a power cut" if self._durable else "a killed process; not a power cut (the last seconds may be lost)"
        return Guarantees(
            durable=f"an acknowledged write survives {survives}",
            shared="threads and processes of this machine; network file systems only where flock works",
            swap="flock on one of 64 lock files, then a rename",
            limits="a file name of 255 bytes for each segment; one file per value",
        )

    def close(self) -> None:
        self._closed = True
        self._spots.clear()  # so that the next call works its spot out again, and finds the backend closed

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.path, self._options, self.recorded())

    # ----------------------------------------------------------------------------------------------------------- details

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this backend was closed", place=self.place, hint="Open it again.")

    def _check(self, key: Any, data: Any = b"") -> None:
        try:
            self._spots[key]
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"a backend stores bytes, not {type(data).__name__}")
        except (PerdureError, TypeError) as error:
            self._fail(error, key, "write")

    def _fail(self, error: OSError | PerdureError | TypeError, key: Any, doing: str) -> NoReturn:
        if isinstance(error, TypeError):
            check_key(key)  # something no dict takes is no key either
            raise error
        explained = explain(error, key, self.place, doing)
        if explained is error:
            raise explained
        raise explained from error


def _reopen(cls: type[FileBackend], path: str, options: dict[str, Any], settings: dict[str, str]) -> FileBackend:
    backend = cls(path, **options)
    backend.record(settings)
    return backend
