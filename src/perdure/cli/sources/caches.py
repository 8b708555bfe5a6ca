"""Caches and indexes of diskcache: a folder with `cache.db`, or with a folder `000`, `001` ... for each shard."""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Iterator
from typing import Any

from ...errors import IntegrityError, UsageError
from .database import Database
from .source import Entry, Source, unpickle
from .tables import unpickle_key

NAME = "cache.db"
COLUMNS = {"rowid", "key", "raw", "expire_time", "tag", "mode", "filename", "value"}
_RAW, _BINARY, _TEXT, _PICKLE = 1, 2, 3, 4
_QUEUE = range(499_000_000_000_000, 501_000_000_000_000)  # a Deque numbers its items from the middle of this
_PARTS = ("cache", "deque", "index")  # what a FanoutCache keeps its named members in


def find_shards(folder: str) -> list[str]:
    """The folders that hold a `cache.db`: the folder itself, or its numbered shards. Empty where it is none of diskcache."""
    if os.path.isfile(os.path.join(folder, NAME)):
        return [folder]
    with os.scandir(folder) as found:
        numbered = sorted(entry.path for entry in found if len(entry.name) == 3 and entry.name.isdecimal())
    return [path for path in numbered if os.path.isfile(os.path.join(path, NAME))]


class DiskCache(Source):
    """A `Cache`, `FanoutCache` or `Index`.

    Args:
        folder: Where it is.
        shards: See `find_shards`.
        trusted: See `Source`.

    Raises:
        UsageError: It is something else.
        BackendError: It cannot be opened.
    """

    def __init__(self, folder: str, shards: list[str], trusted: bool) -> None:
        self.kind, self.place, self.trusted, self.expired, self.notes = "diskcache", folder, trusted, 0, []
        self._shards: list[tuple[str, Database]] = []
        try:
            for shard in shards:
                db = Database(os.path.join(shard, NAME))
                self._shards.append((shard, db))
                if not COLUMNS.issubset(name for name, _, _ in db.tables().get("Cache", ())):
                    raise UsageError(f"its {NAME} was not written by diskcache", place=shard)
                self._refuse_others(db)
        except BaseException:
            self.close()
            raise
        if len(shards) == 1 and shards[0] == folder:
            return
        self._note_gaps(shards)
        named = [part for part in _PARTS if os.path.isdir(os.path.join(folder, part))]
        if named:
            self.notes.append(f"Caches in its folders {', '.join(named)} are stores of their own; import each by its folder.")

    def _note_gaps(self, shards: list[str]) -> None:
        numbers = [int(os.path.basename(shard)) for shard in shards]
        if numbers != list(range(len(numbers))):
            self.notes.append("Shards are missing: there are " + ", ".join(map(os.path.basename, shards)) + ".")

    def _refuse_others(self, db: Database) -> None:
        """Refuse what has the same tables and holds something else than keys with values of diskcache's own."""
        settings = dict(row for row in db.rows("SELECT key, value FROM Settings") if len(row) == 2)
        low, high, count, numbers = next(
            db.rows("SELECT min(key), max(key), count(*), count(CASE WHEN typeof(key) = 'integer' THEN 1 END) FROM Cache")
        )
        if count and count == numbers and low in _QUEUE and high in _QUEUE and settings.get("eviction_policy") == "none":
            hint = "In Python: d['queue'] = list(deque) keeps it as one value."
            raise UsageError("this is a Deque of diskcache, which has no keys", place=self.place, hint=hint)
        sample = [key for (key,) in db.rows("SELECT key FROM Cache LIMIT 20")]
        if sample and all(map(_is_packed_json, sample)):
            hint = "Read it in Python with the same disk=, and give its items to the set_many method of a dict."
            raise UsageError("this was written with JSONDisk, or another Disk of its own", place=self.place, hint=hint)

    def _list(self) -> Iterator[Entry]:
        now = time.time()
        sql = "SELECT rowid, key, raw, expire_time, tag IS NOT NULL FROM Cache ORDER BY rowid"
        for number, (_, db) in enumerate(self._shards):
            for rowid, key, raw, expires, tagged in db.rows(sql):
                if expires is not None and expires < now:
                    self.expired += 1
                elif raw:
                    yield Entry(key, (number, rowid), b"", expires, bool(tagged))
                else:
                    yield Entry(unpickle_key(key), (number, rowid), bytes(key), expires, bool(tagged))

    def _read(self, entry: Entry) -> Any:
        number, rowid = entry.ref
        folder, db = self._shards[number]
        mode, filename, value = db.row("SELECT mode, filename, value FROM Cache WHERE rowid = ?", rowid)
        if mode == _RAW:
            return math.nan if value is None else value  # SQLite keeps nan as NULL; diskcache answers None
        if mode == _PICKLE and filename is None:
            return unpickle(value)
        if mode not in (_BINARY, _TEXT, _PICKLE) or filename is None:
            raise IntegrityError(f"its row says mode {mode!r}, which diskcache does not know")
        try:
            with open(os.path.join(folder, filename), "rb") as file:
                data = file.read()
        except OSError as error:
            raise IntegrityError(f"its file {filename} cannot be read: {error.strerror}") from error
        if mode == _PICKLE:
            return unpickle(data)
        return data if mode == _BINARY else _text(data, filename)

    def close(self) -> None:
        for _, db in self._shards:
            db.close()


def _text(data: bytes, filename: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise IntegrityError(f"its file {filename} is damaged: {error}") from error
    return text.replace("\r\n", "\n") if os.linesep == "\r\n" else text  # there diskcache wrote "\r\n" for "\n"


def _is_packed_json(key: object) -> bool:
    try:
        json.loads(zlib.decompressobj().decompress(key, 1 << 20))  # type: ignore[arg-type]  # what is no bytes is none
    except (TypeError, ValueError, zlib.error):
        return False
    return True
