"""Requests to one bucket: signed, sent again where that is right, and every refusal turned into a clear error."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

from perdure.errors import BackendError, PerdureError, UnavailableError, UnknownOutcomeError
from perdure.protocol import Buffer

from ._s3_account import Account, Settings, boto3_client, find_account, forget_sessions
from ._s3_answers import AGAIN, FORBIDDEN, HINTS, STALE, Method, code_of, is_answer, is_strange, moment
from ._s3_hooks import HandlerError
from ._s3_http import LostAnswerError, NotSentError, Pool, Reply
from ._s3_sign import sign

_pause = time.sleep
_LONGEST_WAIT = 1e6  # seconds; a socket cannot wait for ever by another way than having no limit
_is_plain = re.compile(r"[A-Za-z0-9_.~/-]*\Z").match
_find_message = re.compile(r"<Message>([^<]*)</Message>").search
_find_region = re.compile(r"<Region>([a-z0-9-]+)</Region>").search


class Answer(NamedTuple):
    """The answer to a request that was sent once or more.

    Attributes:
        status: 200, 204, 304, 404 (the bucket is there, the object is not) or 412; about the bucket itself also 403.
        headers: Names in lower case.
        body: As received.
        doubt: An earlier attempt of this request may have been carried out without our seeing its answer.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    doubt: bool


class Turn:
    """A lock under which requests are sent; see `Client.in_turn`.

    Attributes:
        lock: Held by whoever sends.
        failures: How many who held it found the server unavailable.
        problem: What the last of them found.
        hint: What to do about it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.failures = 0
        self.problem = ""
        self.hint: str | None = None


class Client:
    """Thread-safe. Connects at the first request; call `after_fork` in a child.

    Args:
        settings: The bucket and the account.
        place: For messages.
        timeout: Seconds without progress until an attempt is given up.
        deadline: Seconds until a request is given up, all attempts included.
        attempts: How often to send a request at most.
        create: Create the bucket when it is missing.
        keep: How many idle connections to keep.
    """

    def __init__(
        self, settings: Settings, place: str, *, timeout: float, deadline: float, attempts: int, create: bool, keep: int
    ) -> None:
        self.place = place
        self._settings = settings
        self._timeout = min(timeout, _LONGEST_WAIT)
        self._deadline = min(deadline, _LONGEST_WAIT)
        self._attempts = attempts
        self._create = create
        self._keep = keep
        self._lock = threading.Lock()
        self._bucket_turn = Turn()
        self._door: tuple[Account, Pool] | None = None
        self._boto3: tuple[Account, Any] | None = None
        self._region: str | None = None
        self._bucket_is_there = False
        self._closed = False

    @property
    def account(self) -> Account:
        """Where requests go; found out at the first use."""
        return self._open_door()[0]

    def boto3(self) -> Any:
        """A client of boto3's for the same account, made anew when that has changed."""
        account = self.account
        with self._lock:
            if self._boto3 is None or self._boto3[0] is not account:  # another one after a fork, for example
                self._boto3 = account, boto3_client(self._settings, account, self.place)
            return self._boto3[1]

    def close(self) -> None:
        """Drop the connections. Every later request raises `BackendError`."""
        with self._lock:
            self._closed = True
            if self._door:
                self._door[1].close()
            if self._boto3:
                self._boto3[1].close()

    def after_fork(self) -> None:
        """In a child: forget locks that nobody here would release, and connections that belong to the parent."""
        self._lock = threading.Lock()
        self._bucket_turn = Turn()
        if self._door:
            self._door[1].forget()
        self._door = None

    def send(
        self,
        method: Method,
        name: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        key: str | None = None,
        token: str | None = None,
        arrived: Callable[[float], bool] | None = None,
        attempts: int | None = None,
        give_up: float | None = None,
    ) -> Answer:
        """Send a request until it is answered.

        Args:
            method: In capitals.
            name: The object; `""` is the bucket itself.
            query: Parameters sorted by name, percent-encoded.
            headers: Names in lower case; values are ASCII without line ends.
            body: What to store.
            key: For messages.
            token: For an `UnknownOutcomeError`.
            arrived: Asked, with the moment to give up, before a write that may have been carried out is sent again; `True`
                ends it as one of unknown outcome.
            attempts: How often to send it at most, in place of the usual.
            give_up: The moment by `time.monotonic()` to give up, in place of the usual.

        Raises:
            UnavailableError: It was not carried out: no connection, or, for reads, no whole answer.
            UnknownOutcomeError: A write was sent, and may or may not have been carried out.
            BackendError: The server refuses it, or the bucket is missing.
        """
        writes = method in ("PUT", "DELETE")
        if writes and name and not self._bucket_is_there and not self.account.is_aws:
            # Some servers create a missing bucket at the first write, and delete from one without a word.
            self.require_bucket(key)
        give_up = give_up or time.monotonic() + self._deadline
        attempts = attempts or self._attempts
        doubt, fresh = False, False
        attempt = 0
        try:
            while True:
                attempt += 1
                pause = random.uniform(0.5, 1.0) * min(2.0, 0.02 * 3 ** (attempt - 1))
                cause: Exception | None = None
                account, pool = self._open_door()
                try:
                    reply = self._attempt(account, pool, method, name, query, headers or {}, body, give_up)
                except NotSentError as error:
                    problem, cause = f"there is no connection to {account.way}: {error}", error
                    if isinstance(error.__cause__, socket.gaierror):
                        attempt = max(attempt, attempts - 2)  # a wrong name stays wrong
                    if "CERTIFICATE_VERIFY_FAILED" in str(error):
                        hint = "Name the right authority with ca_bundle= or AWS_CA_BUNDLE."
                        raise BackendError(problem, key=key, place=self.place, hint=hint) from error
                except HandlerError as error:
                    if writes:
                        raise unknown_outcome(str(error), key, self.place, token) from error.__cause__
                    hint = "Whoever registered it with the session, or with botocore, can tell more."
                    raise BackendError(str(error), key=key, place=self.place, hint=hint) from error.__cause__
                except LostAnswerError as error:
                    problem, cause, doubt = f"the answer of {account.way} did not arrive: {error}", error, True
                else:
                    status = reply.status
                    code = code_of(reply) if status >= 300 or method != "GET" else ""
                    strange = is_strange(method, reply, code)
                    if status == 404 and not self._is_only_the_object(reply, code, name, key):
                        code = "OperationAborted"  # the bucket has just been created: again
                    elif not strange and is_answer(method, status, name, headers):
                        self._bucket_is_there = self._bucket_is_there or status != 404
                        return Answer(status, reply.headers, reply.body, doubt)
                    if not fresh and self._is_elsewhere(reply, account, code):
                        fresh = True
                        continue
                    if not fresh and (code in STALE or (status == 400 and method == "HEAD")):  # HEAD cannot say why
                        fresh = True
                        forget_sessions()
                        self._forget_door(account)
                        continue
                    unsure = strange or (status >= 500 and status != 501)
                    if not (unsure or status in (408, 429) or (status == 409 and name) or code in AGAIN):
                        self._refused(reply, code, account, key)
                    problem = f"{account.way} answered {status} {code}".rstrip() + (", but not as S3 does" if strange else "")
                    doubt = doubt or unsure
                    if reply.headers.get("retry-after", "").isdecimal():
                        pause = max(pause, min(5.0, float(reply.headers["retry-after"])))
                if attempt >= attempts or time.monotonic() + pause >= give_up:
                    problem += f" ({attempt} attempts)" if attempt > 1 else ""
                    if writes and doubt:
                        raise unknown_outcome(problem, key, self.place, token) from cause
                    hint = "Try again later."
                    if account.route.proxy:
                        hint += " HTTP_PROXY, HTTPS_PROXY and NO_PROXY say which proxy to use."
                    raise UnavailableError(problem, key=key, place=self.place, hint=hint) from cause
                _pause(pause)
                if doubt and arrived is not None and arrived(give_up):
                    raise unknown_outcome(problem, key, self.place, token) from cause
        except PerdureError as error:
            if writes and doubt and not isinstance(error, UnknownOutcomeError):
                # Whatever stopped us, an earlier attempt may have been carried out.
                raise unknown_outcome(error.problem, key, self.place, token) from error
            raise

    def require_bucket(self, key: str | None = None) -> None:
        """Make sure the bucket is there; create it when that was asked for. One request, once.

        Raises:
            BackendError: It is missing.
        """
        with self.in_turn(self._bucket_turn, key):
            if self._bucket_is_there:
                return
            answer = self.send("HEAD", "", key=key)
            if answer.status == 404:
                self._missing(key)
            self._bucket_is_there = True  # or, with 403, nobody may know, and the request that follows will tell

    @contextmanager
    def in_turn(self, turn: Turn, key: str | None = None) -> Iterator[None]:
        """Hold a lock under which requests are sent, without waiting for one who waits for the server longer than for it.

        Raises:
            UnavailableError: Another thread held it all the time, or found the server unavailable while we waited for it.
        """
        failures = turn.failures
        if not turn.lock.acquire(timeout=self._deadline):
            problem = f"another thread has waited for the server for {self._deadline:g} seconds"
            raise UnavailableError(problem, key=key, place=self.place, hint="Try again later.")
        try:
            if turn.failures != failures:  # to find out again, one after the other, would take each its whole patience
                raise UnavailableError(turn.problem, key=key, place=self.place, hint=turn.hint)
            try:
                yield
            except UnavailableError as error:
                turn.problem, turn.hint = error.problem, error.hint
                turn.failures += 1
                raise
        finally:
            turn.lock.release()

    def _attempt(
        self,
        account: Account,
        pool: Pool,
        method: Method,
        name: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes | memoryview,
        give_up: float,
    ) -> Reply:
        path = account.path
        if name or not path:
            path += "/" + (name if _is_plain(name) else quote(name, safe="/~"))
        headers = {"host": account.host, **headers}
        if method == "PUT" and name:
            headers["content-type"] = "application/octet-stream"  # some servers refuse a value without
        signed = sign(method, path, query, headers, body, account.credentials(self.place), account.region)
        signed.append(("accept-encoding", "identity"))
        signed.append(("user-agent", "perdure"))
        target = f"{path}?{query}" if query else path
        if account.hooks is not None:
            reply = account.hooks.ask(method, name, account.origin + target, signed, body)
            if reply is not None:
                return reply
        return pool.request(method, target, signed, body, give_up)

    def _open_door(self) -> tuple[Account, Pool]:
        door = self._door
        if door is not None and not self._closed:
            return door
        with self._lock:
            if self._closed:
                raise BackendError("this backend was closed", place=self.place, hint="Open it again.")
            if self._door is None:
                account = find_account(self._settings, self.place, self._region)
                self._door = account, Pool(account.route, self._timeout, self._keep)
            return self._door

    def _forget_door(self, account: Account) -> None:
        with self._lock:
            if self._door is not None and self._door[0] is account:
                self._door[1].close()
                self._door = None

    def _is_elsewhere(self, reply: Reply, account: Account, code: str) -> bool:
        """Note the bucket's real region where an answer names another one than we used."""
        if reply.status not in (301, 307, 400, 403) or (
            reply.status == 400 and code not in ("AuthorizationHeaderMalformed", "")
        ):
            return False
        region = reply.headers.get("x-amz-bucket-region")
        if region is None and (found := _find_region(reply.body.decode("utf-8", "replace"))):
            region = found[1]
        if region is None or region == account.region or not re.fullmatch(r"[a-z0-9-]{2,40}", region):
            return False
        with self._lock:
            self._region = region
        self._forget_door(account)
        return True

    def _is_only_the_object(self, reply: Reply, code: str, name: str, key: str | None) -> bool:
        """Tell a missing object (`True`) from a missing bucket, which is an error, or is created now (`False`)."""
        if not name and reply.body == b"":
            return True  # a question about the bucket itself
        if code == "NoSuchBucket":
            self._bucket_is_there = False
            self._missing(key)
            return False
        if code != "NoSuchKey" and not self._bucket_is_there:  # HEAD has no body to tell the two apart
            self.require_bucket(key)
        return True

    def _missing(self, key: str | None) -> None:
        bucket = self._settings.bucket
        if not self._create:
            hint = "Check the name, or open it with create=True."
            raise BackendError(f"there is no bucket {bucket!r}", key=key, place=self.place, hint=hint)
        account = self.account
        body = b""
        if account.is_aws and account.region != "us-east-1":
            namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
            body = f'<CreateBucketConfiguration xmlns="{namespace}"><LocationConstraint>{account.region}'.encode()
            body += b"</LocationConstraint></CreateBucketConfiguration>"
        try:
            self.send("PUT", "", body=body, key=key)
        except UnknownOutcomeError as error:  # about the bucket, and the caller asks about a value
            raise UnavailableError(
                f"the bucket could not be created: {error.problem}", key=key, place=self.place, hint="Try again later."
            ) from error
        except BackendError as error:
            if "BucketAlreadyOwnedByYou" not in error.problem:
                raise
        else:
            from logging import getLogger

            getLogger("perdure").warning("the bucket %r was missing and has been made", bucket)  # it may be a mistyped one
        self._bucket_is_there = True

    def _refused(self, reply: Reply, code: str, account: Account, key: str | None) -> NoReturn:
        said = _find_message(reply.body.decode("utf-8", "replace"))
        message = f": {unescape(said[1])[:300].rstrip('. ')}" if said else ""
        problem = f"{account.way} refuses: {reply.status} {code}".rstrip() + message
        hint = HINTS.get(code)
        if hint is None and reply.status in (401, 403):
            now = moment(reply.headers.get("date", ""))  # an answer to HEAD has no code; S3 grants a quarter of an hour
            hint = HINTS["RequestTimeTooSkewed"] if now and abs(now - time.time()) > 900 else FORBIDDEN
        if reply.status in (301, 307):
            hint = "The bucket is in another region: give region=."
        location = reply.headers.get("location", "")
        if reply.status < 309 and account.route.tls is None and location.startswith(f"https://{account.route.host}"):
            hint = "The server wants https: begin endpoint_url with https://."
        if reply.status == 407:
            hint = "Write HTTP_PROXY and HTTPS_PROXY as http://user:password@host:port."
        if reply.status == 501:
            hint = "The server cannot do this; use another one."
        raise BackendError(problem, key=key, place=self.place, hint=hint)


def unknown_outcome(problem: str, key: str | None, place: str, token: str | None) -> UnknownOutcomeError:
    """The error for a write of which nobody can tell."""
    error = UnknownOutcomeError(
        f"the write may or may not have happened: {problem}", key=key, place=place, hint="Read the key to see what is there."
    )
    error.token = token
    return error


def flat(data: Buffer) -> bytes | memoryview:
    """`data` as plain bytes in a row, without a copy where possible."""
    if isinstance(data, bytes):
        return data
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous else bytes(view)
