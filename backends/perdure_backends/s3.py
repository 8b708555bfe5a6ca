"""Objects in a bucket: `s3://bucket/prefix`, on Amazon S3 or any server that speaks its language."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self
from zlib import crc32

from perdure.errors import BackendError, InvalidKeyError, NotFoundError, NotModified, PolicyError, UnavailableError, UsageError
from perdure.protocol import ABSENT, Backend, Blob, Buffer, Condition, ETag, Guarantees, Meta, check_key, check_prefix, is_key

from ._s3_account import Settings
from ._s3_answers import moment
from ._s3_bulk import Crew
from ._s3_client import Client, flat
from ._s3_list import Entry, etag_in_list, moment_in_list, pages
from ._s3_names import MAX_NAME, check_names, check_numbers
from ._s3_probe import Findings, can_delete_conditionally, examine_swaps
from ._s3_settings import Record
from ._s3_swap import TOMBSTONE, Swapper, is_etag, lost, sight

_MAX_VALUE = 5 << 30

_backends: weakref.WeakSet[S3Backend] = weakref.WeakSet()
_turns = [threading.RLock() for _ in range(64)]  # for where we compare ourselves: shared, as two backends may be one place


def _after_fork() -> None:
    _turns[:] = [threading.RLock() for _ in _turns]
    for backend in list(_backends):
        backend._after_fork()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class S3Backend(Backend):
    """Values as objects, one request for each get, head, put, delete, and for each 1000 keys of a listing.

    The key `a/b` is the object `prefix/a/b`, its bytes exactly the value's. Compare-and-swap uses S3's conditional writes;
    a failed condition costs one more request, to see who won. A conditional delete costs two: it swaps in a tombstone,
    which counts as absent and is then removed, where the server can do that safely. Servers other than Amazon's are put
    to a self-test of about ten requests before the first conditional write, and refused when they ignore conditions.

    Safe for threads and processes anywhere. Pickles as a handle without secrets. A forked child makes its own connections; a
    fork waits, 3 seconds at most, while another thread looks up a name or shakes hands.
    Requests that fail on the way are sent again (a plain put not before a look, so that it does not undo what others made of
    it by then). Ctrl-C during a call leaves other calls alone.

    Handlers of botocore's event `before-send` are asked about each request, and may answer it in place of the server: those
    that are there when the first request is sent, registered with the session given or, as moto's `mock_aws` does, with
    botocore for all sessions. They are called one at a time in this process. What they raise ends the call as `BackendError`
    (a write as `UnknownOutcomeError`); only botocore's errors about connections count as those, and are tried again after.

    Args:
        bucket: Its name.
        prefix: What all objects' names begin with, such as `"team/app"`; a slash at either end makes no difference.
        endpoint_url: For servers other than Amazon's, and then with path-style addresses. Default: as botocore is configured.
        region: Of the bucket. Default: as botocore is configured; Amazon corrects a wrong one by itself.
        profile: Of the AWS configuration files.
        create: Create the bucket if it is missing, and log that. Otherwise that is an error.
        concurrency: Requests in flight for `get_many`, `put_many` and `delete_many`.
        suffix: What all objects' names end with, such as `".pkl"`; others are foreign.
        timeout: Seconds without any progress until an attempt is given up (to connect: 5 at most).
        deadline: Seconds until a request is given up with all its attempts.
        attempts: How often to send a request at most, with growing pauses.
        ca_bundle: File with the certificate authorities to trust. Default: `AWS_CA_BUNDLE`, then the usual ones.
        unsafe_single_writer: With a server that ignores conditions: check them here instead of refusing. That holds only
            as long as this process is the only one that writes.
        session: A boto3 or botocore session to take credentials from. Such a backend cannot be pickled.

    Raises:
        UsageError: A name or an option is wrong. No request is sent before the first use.
    """

    shared_by_machines = True

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        create: bool = False,
        concurrency: int = 32,
        suffix: str = "",
        timeout: float = 30.0,
        deadline: float = 120.0,
        attempts: int = 8,
        ca_bundle: str | None = None,
        unsafe_single_writer: bool = False,
        session: Any = None,
    ) -> None:
        self.bucket = bucket
        self.prefix = check_names(bucket, prefix, suffix, endpoint_url)
        about = [f"{name}={value}" for name, value in (("endpoint_url", endpoint_url), ("suffix", suffix)) if value]
        self.place = f"s3://{bucket}/{self.prefix}".rstrip("/") + (f"?{'&'.join(about)}" if about else "")
        self._options: dict[str, Any] = {
            "endpoint_url": endpoint_url, "region": region, "profile": profile, "create": create, "concurrency": concurrency,
            "suffix": suffix, "timeout": timeout, "deadline": deadline, "attempts": attempts, "ca_bundle": ca_bundle,
            "unsafe_single_writer": unsafe_single_writer,
        }  # fmt: skip
        check_numbers(self._options, self.place)
        if isinstance(session, str):
            raise UsageError("session= takes a session of boto3 or botocore, not text", place=self.place, hint="Try profile=.")
        self._session = session
        self._suffix = suffix
        self._room = MAX_NAME - len(self.prefix.encode()) - len(suffix)
        settings = Settings(bucket, endpoint_url, region, profile, ca_bundle, session)
        self._client = Client(
            settings, self.place, timeout=timeout, deadline=deadline, attempts=attempts, create=create, keep=concurrency
        )
        self._swapper = Swapper(self._client)
        self._crew = Crew(concurrency)
        self._record = Record(self._client, self._swapper, self.prefix)
        self._single = unsafe_single_writer
        self._can_swap: bool | None = None  # not known yet
        self._closed = False
        _backends.add(self)

    @classmethod
    def from_url(
        cls,
        location: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        create: bool = False,
        concurrency: int = 32,
        suffix: str = "",
        timeout: float = 30.0,
        deadline: float = 120.0,
        attempts: int = 8,
        ca_bundle: str | None = None,
        unsafe_single_writer: bool = False,
        session: Any = None,
    ) -> Self:
        """Open `s3://bucket/prefix`; options as for the class."""
        if not location.startswith("//"):
            raise UsageError("an S3 URL begins with s3://", place=f"s3:{location}", hint="Write s3://bucket/prefix.")
        bucket, _, prefix = location[2:].partition("/")
        options = dict(locals())
        for name in ("cls", "location", "bucket", "_", "prefix"):
            del options[name]
        return cls(bucket, prefix, **options)

    @property
    def client(self) -> Any:
        """A client of boto3's for S3, with the account, endpoint and region of this backend, for what perdure does not do.

        Made at the first use, in some 0.1 s and without a request, and closed with the backend. Safe for threads; neither
        pickled nor handed on to a forked child, so that a copy of the backend makes its own. With `session=` it is a client
        of that session, and a session of botocore becomes one of boto3's thereby. What it writes under the prefix is seen
        as a value, but carries no write token: of a swap whose answer gets lost meanwhile nobody may be able to tell.

        Raises:
            MissingExtraError: boto3 is not installed.
            UsageError, BackendError: The account cannot be found, as for a request, or the backend was closed.
        """
        self._check_open()
        return self._client.boto3()

    # ----------------------------------------------------------------------------------------------------------- one key

    def get(self, key: str, *, if_none_match: ETag | None = None) -> Blob:
        name = self._name(key)
        headers = {"if-none-match": str(if_none_match)} if is_etag(if_none_match) else None
        answer = self._client.send("GET", name, headers=headers, key=key)
        if answer.status == 304:
            raise NotModified(key=key, place=self.place, modified=moment(answer.headers.get("last-modified", "")) or None)
        if answer.status != 200:
            raise NotFoundError(key=key, place=self.place)
        seen = sight(answer.headers, len(answer.body), key, self.place)
        if seen.is_tombstone:
            raise NotFoundError(key=key, place=self.place)
        if seen.etag == if_none_match:  # a server may ignore the condition
            raise NotModified(key=key, place=self.place, modified=seen.modified)
        self._swapper.remember(name, seen.etag, seen.writers)
        return Blob(answer.body, seen.etag, seen.modified)

    def head(self, key: str) -> Meta:
        name = self._name(key)
        seen = self._swapper.look(name, key)
        if seen is None or seen.is_tombstone:
            raise NotFoundError(key=key, place=self.place)
        self._swapper.remember(name, seen.etag, seen.writers)
        return Meta(key, seen.etag, seen.size, seen.modified)

    def contains(self, key: str) -> bool:
        seen = self._swapper.look(self._name(key), key)
        return seen is not None and not seen.is_tombstone

    def put(self, key: str, data: Buffer, *, if_match: Condition = None) -> ETag:
        name = self._name(key)
        body = self._body(key, data)
        self._record.write_pending(self._swaps)
        if if_match is None:
            with self._alone(name):
                return self._swapper.overwrite(name, key, body)
        if self._swaps(key):
            return self._swapper.swap(name, key, body, if_match)
        with self._alone(name):
            self._check_condition(name, key, if_match)
            return self._swapper.overwrite(name, key, body)

    def delete(self, key: str, *, if_match: ETag | None = None) -> None:
        name = self._name(key)
        if if_match is None:
            with self._alone(name):
                self._client.send("DELETE", name, key=key)
        elif self._swaps(key):
            self._delete_by_tombstone(name, key, if_match)
        else:
            with self._alone(name):
                self._check_condition(name, key, if_match)
                self._client.send("DELETE", name, key=key)

    # ---------------------------------------------------------------------------------------------------------- many keys

    def scan(self, prefix: str = "") -> Iterator[Meta]:
        entries = self._entries(check_prefix(prefix))
        return (Meta(key, etag_in_list(e.etag), e.size, moment_in_list(e.modified)) for key, e in entries)

    def keys(self, prefix: str = "") -> Iterator[str]:
        entries = self._entries(check_prefix(prefix))
        return (key for key, _ in entries)

    def get_many(self, keys: Iterable[str]) -> dict[str, Blob]:
        wanted = self._check_all(keys)

        def get(key: str) -> Blob | None:
            try:
                return self.get(key)
            except NotFoundError:
                return None

        blobs = self._crew.map(get, wanted)
        return {key: blob for key, blob in zip(wanted, blobs, strict=True) if blob is not None}

    def put_many(self, items: Mapping[str, Buffer]) -> dict[str, ETag]:
        keys = self._check_all(items)
        bodies = {key: self._body(key, items[key]) for key in keys}
        etags = self._crew.map(lambda key: self.put(key, bodies[key]), keys)
        return dict(zip(keys, etags, strict=True))

    def delete_many(self, keys: Iterable[str]) -> None:
        # One DELETE for each key, 32 at a time: unlike DeleteObjects, every server has it, each failure is about one key,
        # a lost answer is sent again for that key only, and Amazon charges nothing for it either.
        self._crew.map(self.delete, self._check_all(keys))

    # --------------------------------------------------------------------------------------------------------- the place

    def recorded(self) -> dict[str, str]:
        return self._record.read()

    def record(self, settings: Mapping[str, str]) -> None:
        self._record.require(settings)

    def guarantees(self) -> Guarantees:
        swap = "If-Match and If-None-Match on PUT"
        if self._can_swap is False:
            swap = "NONE: the server failed the self-test, so conditions are checked here, for a single writer"
        return Guarantees(
            durable="whatever the service promises once it has answered (Amazon: the loss of a data centre)",
            shared="any number of threads, processes and machines",
            swap=f"{swap}; write tokens in object metadata tell a lost answer from a lost race",
            limits=f"names of {self._room} characters after the prefix; values of 5 GiB",
        )

    def close(self) -> None:
        self._closed = True
        self._client.close()
        self._crew.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._session is not None:
            raise PolicyError(
                "a backend that got a session cannot be pickled: its credentials would travel along",
                place=self.place,
                hint="Name a profile, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and give no session.",
            )
        return _reopen, (type(self), self.bucket, self.prefix, self._options, self._record.pending)

    # ----------------------------------------------------------------------------------------------------------- details

    def _name(self, key: str) -> str:
        check_key(key)
        if len(key) > self._room:
            text = f"a key has {len(key)} characters, and {self._room} are the most here"
            raise InvalidKeyError(text, key=key, place=self.place, hint="Use a hash of it, or a shorter prefix.")
        return f"{self.prefix}{key}{self._suffix}"

    def _check_all(self, keys: Iterable[str]) -> list[str]:
        """All keys, once each, checked before the first request, so that a bad one changes nothing."""
        self._check_open()
        checked: dict[str, None] = {}
        for key in keys:
            self._name(key)
            checked[key] = None
        return list(checked)

    def _body(self, key: str, data: Buffer) -> bytes | memoryview:
        body = flat(data)
        if len(body) > _MAX_VALUE:
            raise BackendError(f"a value of {len(body)} bytes is too long: S3 takes 5 GiB at once", key=key, place=self.place)
        return body

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this backend was closed", place=self.place, hint="Open it again.")

    def _entries(self, prefix: str) -> Iterator[tuple[str, Entry]]:
        """What is ours under `prefix`: legal keys with our suffix, and no tombstones."""
        if len(prefix) >= self._room:
            return iter(())
        self._check_open()
        return self._walk(prefix)

    def _walk(self, prefix: str) -> Iterator[tuple[str, Entry]]:
        start, end = len(self.prefix), -len(self._suffix) or None
        for page in pages(self._client, self.prefix + prefix):
            ours = [(e.name[start:end], e) for e in page if e.name.endswith(self._suffix) and is_key(e.name[start:end])]
            if any(entry.size == len(TOMBSTONE) for _, entry in ours):
                doubtful = [key for key, entry in ours if entry.size == len(TOMBSTONE)]
                gone = {key for key, there in zip(doubtful, self._crew.map(self.contains, doubtful), strict=True) if not there}
                ours = [pair for pair in ours if pair[0] not in gone]
            yield from ours

    def _swaps(self, key: str | None = None) -> bool:
        """Tell whether the server decides conditions (`True`) or we must, being the single writer (`False`)."""
        self._check_open()
        if self._can_swap is None:
            try:
                findings = examine_swaps(self._client, self.prefix)
            except UnavailableError as error:  # which is also what a server that breaks on conditions looks like
                if not self._single:
                    raise
                findings = Findings(error.problem)
            if findings.fault and not self._single:
                hint = (
                    "Use a server that heeds If-Match and If-None-Match (Amazon S3, SeaweedFS, MinIO, ...), or, when no other "
                    "process ever writes there, unsafe_single_writer=True."
                )
                problem = f"conditional writes are refused, because this server fails the self-test: {findings.fault}"
                raise BackendError(problem, key=key, place=self.place, hint=hint)
            self._swapper.unquoted = findings.unquoted
            self._can_swap = not findings.fault
        return self._can_swap

    def _alone(self, name: str) -> AbstractContextManager[Any]:
        """Keep this process's other threads from a name, where it is us who compare and write."""
        return _turns[crc32(name.encode()) % 64] if self._single and not self._can_swap else nullcontext()

    def _check_condition(self, name: str, key: str, condition: Condition) -> None:
        seen = self._swapper.look(name, key)
        if condition is ABSENT:
            if seen is not None and not seen.is_tombstone:
                raise lost("there already", key, self.place)
        elif seen is None or seen.is_tombstone or seen.etag != condition:
            raise lost("absent" if seen is None else "another version by now", key, self.place)

    def _delete_by_tombstone(self, name: str, key: str, expected: ETag) -> None:
        tidy = can_delete_conditionally(self._client, self.prefix)
        etag = self._swapper.swap(name, key, TOMBSTONE, expected, delete=True)
        if tidy:
            try:
                self._client.send("DELETE", name, headers={"if-match": self._swapper.spelled(etag)}, key=key)
            except BackendError:
                pass  # the value is deleted already: a tombstone left standing counts as absent for every reader

    def _after_fork(self) -> None:
        self._client.after_fork()
        self._swapper.after_fork()
        self._crew.after_fork()
        self._record.after_fork()


def _reopen(cls: type[S3Backend], bucket: str, prefix: str, options: dict[str, Any], pending: dict[str, str]) -> S3Backend:
    backend = cls(bucket, prefix, **options)
    backend._record.pending = pending
    return backend
