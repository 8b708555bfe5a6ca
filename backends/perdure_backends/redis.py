"""Values in a Redis server: `redis://host:6379/0/prefix`, one cache for many machines, quick and as durable as it is set up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Self, TypeVar

from redis.connection import Connection, SSLConnection

from perdure.errors import BackendError, IntegrityError, NotFoundError, NotModified, PreconditionError, UsageError
from perdure.protocol import (
    ABSENT,
    Backend,
    Blob,
    Buffer,
    Condition,
    ETag,
    Guarantees,
    Meta,
    Use,
    check_key,
    check_prefix,
)

from ._redis_answers import Judge
from ._redis_calls import Calls, Write
from ._redis_lines import Lines
from ._redis_names import check_numbers, check_texts, checked_prefix, cut_in_two, milliseconds, parse
from ._redis_scripts import DELETE, GET_CHANGED, MARK_USED, PUT
from ._redis_settings import Record
from ._redis_values import about, about_listed, entries, is_etag, is_foreign, moment

_MAX_VALUE: Final = 512 << 20  # what a server takes in one piece
_PAGE: Final = 100  # keys in one round trip
_PAGE_BYTES: Final = 4 << 20  # of values in one round trip, unless one alone is longer
_RECORDS: Final = 3  # how often the settings are written again, until it is not the server's restart that made them go
T = TypeVar("T")


class RedisBackend(Backend):
    """Values in one database of a Redis server, 5.0 or later, or of one that speaks like it.

    One round trip for each get, head, put and delete, and for each hundred keys of `get_many`, `put_many` and `delete_many`;
    the last two change a hundred keys (or 4 MiB) in one step, all or none of them. A listing keeps all names in memory until
    it ends.

    A write is one script on the server, which compares and stores in one step. When its answer gets lost, what became of it is
    found out before it is sent again, so that it is carried out once: `perdure_backends._redis_scripts` tells how, and what
    lies in the database. All of it is under `perdure:prefix/`; other keys are neither listed nor read nor deleted.

    A place contains those whose prefix begins with its own and a slash, and one without a prefix contains all of the database:
    their values are listed with its own, and `clear()` removes them. So give each application a prefix not inside another's.

    When a value was last used is kept with the value, so it does not depend on how the server evicts. (`OBJECT IDLETIME` knows
    nothing under an LFU policy, and every listing resets it.) To mark it used does not lengthen its life.

    Safe for threads (each has a connection while it calls), processes, forked children and signal handlers. A fork waits, 3
    seconds at most, while another thread connects. Pickles *with the password*; neither `repr` nor `place` nor an error has it.

    Args:
        host: A name or an address.
        port: Of the server.
        db: The number of the database.
        prefix: What all our keys begin with, such as `"team/app"`; a slash at either end makes no difference.
        user: For servers with users (ACL).
        password: Of that user, or of the server.
        ttl: How long a value lives that nobody writes again, such as `"7 d"`, or in seconds; the server removes it then. Every
            write begins that time anew. Default: for ever, unless the server evicts.
        timeout: Seconds without any progress until an attempt is given up (to connect: 5 at most).
        attempts: How often to try at most, with growing pauses, 0.6 s in all for the 4 that are the default.
        ca_bundle: File with the certificate authorities to trust, for TLS. Default: those of the system.
        certificate: File with a certificate to show, where the server asks for one.
        private_key: File with the key of that certificate.

    Raises:
        UsageError: An option is wrong. Nothing is sent before the first use.
        UsageTypeError: An argument is of the wrong type.
    """

    shared_by_machines = True
    remembers_use = True
    scheme = "redis"

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        db: int = 0,
        prefix: str = "",
        *,
        user: str | None = None,
        password: str | None = None,
        ttl: str | float | timedelta | None = None,
        timeout: float = 10.0,
        attempts: int = 4,
        ca_bundle: str | None = None,
        certificate: str | None = None,
        private_key: str | None = None,
    ) -> None:
        check_texts(host, user=user, password=password, ca_bundle=ca_bundle, certificate=certificate, private_key=private_key)
        tls = self.scheme == "rediss"
        self.place = f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}/{db}"
        prefix = checked_prefix(prefix, self.place)
        self.place = f"{self.place}/{prefix}".rstrip("/")
        self._where = (host, port, db, prefix)
        self._options: dict[str, Any] = {
            "user": user, "password": password, "ttl": ttl, "timeout": timeout, "attempts": attempts,
            "ca_bundle": ca_bundle, "certificate": certificate, "private_key": private_key,
        }  # fmt: skip
        check_numbers(port, db, timeout, attempts, self.place)
        if not tls and (ca_bundle or certificate or private_key):
            raise UsageError("certificates are for TLS only", place=self.place, hint="Write rediss:// in place of redis://.")
        self._ttl = b"%d" % milliseconds(ttl, self.place)
        self._base = f"perdure:{prefix}".encode()
        options: dict[str, Any] = {
            "host": host, "port": port, "db": db, "username": user, "password": password, "protocol": 2,
            "socket_timeout": timeout, "socket_connect_timeout": min(timeout, 5.0), "socket_keepalive": True,
        }  # fmt: skip
        if tls:
            options |= {"ssl_ca_certs": ca_bundle, "ssl_certfile": certificate, "ssl_keyfile": private_key}
            options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        kind = SSLConnection if tls else Connection
        self._lines = Lines(lambda: kind(**options), self._base, self.place)
        self._calls = Calls(self._lines, Judge(self.place, password), attempts)
        self._record = Record(self._calls, self.place, self._base)

    @classmethod
    def from_url(
        cls,
        location: str,
        *,
        user: str | None = None,
        password: str | None = None,
        ttl: str | float | timedelta | None = None,
        timeout: float = 10.0,
        attempts: int = 4,
        ca_bundle: str | None = None,
        certificate: str | None = None,
        private_key: str | None = None,
    ) -> Self:
        """Open `redis://host:port/db/prefix` or `redis://user:password@host:port/db/prefix`; options as for the class.

        The port is 6379 unless given, the database 0, the host `localhost`. In a password some characters are written `%40`
        (`@`), `%2F` (`/`), `%3F` (`?`), `%25` (`%`). A prefix holds no `@`.

        Raises:
            UsageError: The URL cannot be understood; what may be a password is not repeated.
        """
        options = dict(locals())
        del options["cls"], options["location"]
        if isinstance(ttl, str) and "@" in ttl:
            raise cut_in_two(cls.scheme)
        host, port, db, prefix, *login = parse(location, cls.scheme)
        for name, given in zip(("user", "password"), login, strict=True):
            if given and options[name]:
                raise UsageError(f"the {name} is given twice", hint="Leave it out of the URL, or give it there only.")
            options[name] = options[name] or given
        return cls(host, port, db, prefix, **options)

    # ---------------------------------------------------------------------------------------------------------- one key

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        name = self._name(key)
        if isinstance(if_none_match, str) and is_etag(if_none_match):
            command = GET_CHANGED.command([name], [if_none_match.encode()])
        else:
            command = [b"HMGET", name, b"m", b"v"]
        fields = self._one(command, key)
        if fields[0] is None:
            raise NotFoundError(key=key, place=self.place)
        if len(fields) == 1:
            raise NotModified(key=key, place=self.place, modified=self._about(key, fields[0])[2])
        return self._blob(key, fields)

    def head(self, key: str) -> Meta:
        written = self._one([b"HGET", self._name(key), b"m"], key)
        if written is None:
            raise NotFoundError(key=key, place=self.place)
        return Meta(key, *self._about(key, written))

    def contains(self, key: str) -> bool:
        return bool(self._one([b"HEXISTS", self._name(key), b"m"], key))

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        name, data = self._name(key), self._flat(key, data)
        if if_match is None:
            condition = b""
        elif if_match is ABSENT:
            condition = b"absent"
        else:
            condition = self._condition(key, if_match)
        etag = os.urandom(8).hex()
        word = self._put([key], [name], [etag], [data], condition)
        if word != b"done":
            raise self._lost(key, word)
        return ETag(etag)

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        name = self._name(key)
        condition = b"" if if_match is None else self._condition(key, if_match)
        word = self._calls.carry_out(Write(DELETE, [name], [condition], [key]))
        if condition and word != b"done":
            raise self._lost(key, word)

    # --------------------------------------------------------------------------------------------------------- many keys

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        return (Meta(key, *about_listed(written)) for key, written, _ in self._entries(prefix))

    def uses(self, prefix: str = "") -> Iterator[Use]:
        found = ((key, about_listed(written), moment(used)) for key, written, used in self._entries(prefix))
        return (Use(key, size, max(modified, used)) for key, (_, size, modified), used in found)

    def mark_used(self, times: Mapping[str, float]) -> None:
        """Remember when values were last read. As `Backend.mark_used`; the time to live stays as it is.

        One round trip for each hundred keys.
        """
        marks = [(self._name(key), repr(float(used)).encode()) for key, used in times.items()]
        for page in _pages(marks):
            for answer in self._calls.ask([MARK_USED.command([name], [used]) for name, used in page]):
                if not is_foreign(answer):
                    self._calls.value(answer, None)

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        wanted = {key: self._name(key) for key in keys}
        found: dict[str, Blob] = {}
        for page in _pages(list(wanted.items())):
            answers = self._calls.ask([[b"HMGET", name, b"m", b"v"] for _, name in page])
            for (key, _), answer in zip(page, answers, strict=True):
                fields = self._calls.value(answer, key)
                if fields[0] is not None:
                    found[key] = self._blob(key, fields)
        return found

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        keys = list(items)
        names = [self._name(key) for key in keys]
        datas = [self._flat(key, data) for key, data in items.items()]
        etags = [os.urandom(8).hex() for _ in keys]
        begin = filled = 0
        for end in range(1, len(keys) + 1):
            filled += len(datas[end - 1])
            if end == len(keys) or end - begin == _PAGE or filled + len(datas[end]) > _PAGE_BYTES:
                self._put(keys[begin:end], names[begin:end], etags[begin:end], datas[begin:end], b"")
                begin, filled = end, 0
        return dict(zip(keys, map(ETag, etags), strict=True))

    def delete_many(self, keys: Iterable[str]) -> None:
        for page in _pages(list({key: self._name(key) for key in keys}.items())):
            self._calls.carry_out(Write(DELETE, [name for _, name in page], [b""], [key for key, _ in page]))

    # --------------------------------------------------------------------------------------------------------- the place

    def recorded(self) -> dict[str, str]:
        return self._record.read()

    def record(self, settings: Mapping[str, str]) -> None:
        """Keep settings with the place; the first write sees to it, and any that finds them gone. As `Backend.record`."""
        self._record.require(settings)

    def forgets(self, key: str) -> str:
        return "" if self._ttl == b"0" else f"it forgets what nobody has written for {int(self._ttl) / 1000:g} s"

    def guarantees(self) -> Guarantees:
        modes = "appendfsync always: all of it; everysec: all but the last second or two; RDB: the last snapshot; none: nothing"
        expiry = f"; values expire {self._options['ttl']} after they were written" if self._ttl != b"0" else ""
        return Guarantees(
            durable="the end of this process; when the server crashes or restarts, what its settings keep "
            f"({modes}); a replica that takes over may lack the latest writes{expiry}",
            shared="any number of threads, processes and machines",
            swap="one script on the server; receipts tell a lost answer from a lost race",
            limits="keys of 253 characters a segment; values of 512 MiB, all together as memory allows",
        )

    def close(self) -> None:
        """Close the connections that nobody uses now, the others when their calls end."""
        self._lines.close()

    def __reduce__(self) -> tuple[Any, ...]:
        record = dict(self._record.settings), self._record.pending
        return _reopen, (type(self), self._where, self._options, record)

    # ----------------------------------------------------------------------------------------------------------- details

    def _name(self, key: str) -> bytes:
        return self._base + check_key(key).encode()

    def _one(self, command: Sequence[bytes], key: str) -> Any:
        (answer,) = self._calls.ask([command], key)
        return self._calls.value(answer, key)

    def _flat(self, key: str, data: Buffer) -> bytes:
        data = data if type(data) is bytes else bytes(memoryview(data))  # through memoryview, or bytes(5) would pass
        if len(data) > _MAX_VALUE:  # the server would only hang up, which looks like a bad line
            problem = f"a value of {len(data)} bytes is too long: Redis takes 512 MiB"
            raise BackendError(problem, key=key, place=self.place, hint="Split it, or keep it in a folder or in s3:.")
        return data

    def _condition(self, key: str, etag: object) -> bytes:
        """An ETag as scripts compare it. What cannot be one of ours equals no version."""
        if isinstance(etag, str) and is_etag(etag):
            return etag.encode()
        self._lines.check_open()
        raise self._lost(key, b"changed")

    def _put(
        self, keys: Sequence[str], names: Sequence[bytes], etags: Sequence[str], datas: Sequence[bytes], condition: bytes
    ) -> bytes:
        record = self._record
        if record.pending:
            record.write()
        values = [word for etag, data in zip(etags, datas, strict=True) for word in (etag.encode(), data)]
        for _ in range(_RECORDS):
            arguments = [condition, self._ttl, b"1" if record.settings else b"0", *values]
            word = self._calls.carry_out(Write(PUT, [record.name, *names], arguments, keys, etags))
            if word != b"unsettled":
                return word
            record.write()
        raise record.still_missing()

    def _entries(self, prefix: str) -> Iterator[tuple[str, bytes, bytes | None]]:
        check_prefix(prefix)
        self._lines.check_open()
        return entries(self._calls, self._base, prefix)

    def _blob(self, key: str, fields: Sequence[bytes | None]) -> Blob:
        written, data = fields
        etag, size, modified = self._about(key, written)
        if data is None or len(data) != size:
            raise self._damaged(key)
        return Blob(data, etag, modified)

    def _about(self, key: str, written: bytes | None) -> tuple[ETag, int, float]:
        try:
            return about(written)
        except ValueError as error:
            raise self._damaged(key) from error

    def _damaged(self, key: str) -> IntegrityError:
        hint = "Another program wrote to it. Write the value again, or delete it."
        return IntegrityError("the stored record is damaged", key=key, place=self.place, hint=hint)

    def _lost(self, key: str, word: bytes) -> PreconditionError:
        if word == b"there":
            return PreconditionError("the key exists already", key=key, place=self.place)
        text = "the value is absent, or another version by now"
        return PreconditionError(text, key=key, place=self.place, hint="Read it again.")


class RedisTLSBackend(RedisBackend):
    """The same over TLS: what `rediss:` opens. The certificate of the server is checked, its name included."""

    scheme = "rediss"


def _reopen(cls: type[RedisBackend], where: Sequence[Any], options: dict[str, Any], record: Sequence[Any]) -> RedisBackend:
    backend = cls(*where, **options)
    backend._record.settings, backend._record.pending = record
    return backend


def _pages(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + _PAGE] for start in range(0, len(items), _PAGE))
