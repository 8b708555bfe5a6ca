"""Who we are and where the bucket is, as botocore knows it: credentials, region, endpoint, proxy, certificates."""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from perdure.errors import BackendError, MissingExtraError, UsageError

from ._s3_forks import unforked
from ._s3_hooks import Hooks, find_hooks
from ._s3_route import Route
from ._s3_sign import Credentials

_is_header = re.compile(r"[!-~]*\Z").match
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws", ".c2s.ic.gov", ".sc2s.sgov.gov")
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")

# What a session reads from the environment is part of its name here, so that a changed variable means a new one.
_sessions: dict[object, Any] = {}
_lock = threading.RLock()


def forget_sessions() -> None:
    """Read configuration and credentials anew."""
    with _lock:
        _sessions.clear()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _sessions.clear()  # botocore has locks of its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Settings(NamedTuple):
    """What the user said about the account; `None` leaves it to the usual places."""

    bucket: str
    endpoint_url: str | None
    region: str | None
    profile: str | None
    ca_bundle: str | None
    session: Any


class Account(NamedTuple):
    """A bucket's address and the way in.

    Attributes:
        route: The server.
        host: The `Host` header.
        path: What every object's path begins with: `""`, or `"/bucket"` where the bucket is not part of the host's name.
        region: For signatures.
        is_aws: Whether this is Amazon's own S3, which needs no self-test.
        source: botocore's credentials, which renew themselves.
        session: botocore's, where all this comes from.
        hooks: Who wants to see each request; `None` where nobody does.
    """

    route: Route
    host: str
    path: str
    region: str
    is_aws: bool
    source: Any
    session: Any
    hooks: Hooks | None

    @property
    def origin(self) -> str:
        """What a URL begins with, up to the path."""
        return f"http{'s' if self.route.tls else ''}://{self.host}"

    @property
    def way(self) -> str:
        """The server and what stands before it, for messages."""
        if not self.route.proxy:
            return self.host
        proxy = urlsplit(self.route.proxy)  # which may hold a password
        return f"{self.host} through the proxy {proxy.hostname}:{proxy.port or 80}"

    def credentials(self, place: str) -> Credentials:
        """The credentials to sign with now. Thread-safe; may send requests of its own when temporary ones run out."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            with unforked:
                frozen = self.source.get_frozen_credentials()
        except (BotoCoreError, ClientError, RuntimeError) as error:  # the last: what came anew had run out as well
            problem = f"the temporary credentials ran out and could not be renewed: {_said(error)}"
            raise BackendError(problem, place=place, hint="Log in again, or check AWS_PROFILE.") from error
        for name, text in (("access key id", frozen.access_key), ("session token", frozen.token)):
            if text and not _is_header(text):
                problem = f"the {name} holds a line end, a space, or a character beyond ASCII"
                raise BackendError(problem, place=place, hint="Set it without them, as AWS gave it to you.")
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


def find_account(settings: Settings, place: str, region: str | None = None) -> Account:
    """Ask botocore where the bucket is and who we are. Sends no request to S3. Takes 0.1 to 0.5 s the first time.

    Args:
        settings: What the user said.
        place: For messages.
        region: What a server told us, in place of the configured one.

    Raises:
        MissingExtraError: botocore is not installed.
        UsageError: The profile, the endpoint or the region is wrong.
        BackendError: There are no credentials.
    """
    with unforked, _lock:  # neither imports nor a session are for several threads at once
        return _find(settings, place, region)


def _find(settings: Settings, place: str, region: str | None) -> Account:
    try:
        import encodings.idna  # noqa: F401  # which the first connection by name would import, without our lock

        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
        from botocore.httpsession import get_cert_path
        from botocore.utils import get_environ_proxies
    except ImportError as error:
        raise MissingExtraError(error.name or "botocore", "s3").at(place=place) from error
    wrong = UsageError("the S3 settings do not work out", place=place, hint="Check profile, region and endpoint_url.")
    try:
        session = settings.session or _session(settings.profile)
        session = getattr(session, "_session", session)  # boto3's wraps botocore's
        source = session.get_credentials()
        url, authorization = _first_request(session, Config, settings, region)
        ca_bundle = settings.ca_bundle or session.get_config_variable("ca_bundle")
    except (NoCredentialsError, PartialCredentialsError) as error:
        hint = "Run `aws configure`, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile."
        raise BackendError(f"no credentials for S3 were found: {_said(error)}", place=place, hint=hint) from error
    except (ClientError, RuntimeError) as error:
        hint = "Log in again, or check AWS_PROFILE and its role."
        raise BackendError(f"no credentials for S3 could be got: {_said(error)}", place=place, hint=hint) from error
    except (BotoCoreError, ValueError) as error:
        wrong.problem = f"{wrong.problem}: {_said(error)}"
        raise wrong from error
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    proxy = get_environ_proxies(url).get(parts.scheme)
    if proxy:
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        if not _is_http_proxy(proxy):
            hint = "Use http://host:port (it carries https as well), or name this host in NO_PROXY."
            raise UsageError("only HTTP proxies can be used for S3, and *_PROXY names another", place=place, hint=hint)
    authorities = _certificates(ca_bundle, get_cert_path) if secure else None
    try:
        tls = ssl.create_default_context(cafile=authorities) if secure else None
    except OSError as error:
        problem, hint = (
            f"the certificates in {authorities} cannot be read: {error}",
            "Check ca_bundle=, AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE.",
        )
        raise UsageError(problem, place=place, hint=hint) from error
    return Account(
        route=Route(host, parts.port or (443 if secure else 80), tls, proxy),
        host=parts.netloc.rpartition("@")[2],
        path=parts.path.rstrip("/"),
        region=authorization.split("/")[2],
        is_aws=f".{host}".endswith(_AWS_HOSTS),
        source=source,
        session=session,
        hooks=find_hooks(session),
    )


def boto3_client(settings: Settings, account: Account, place: str) -> Any:
    """A client of boto3's that goes where the account goes. Sends nothing. Takes some 0.1 s.

    Raises:
        MissingExtraError: boto3 is not installed.
    """
    with unforked, _lock:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise MissingExtraError("boto3", "s3").at(place=place) from error
        # Many servers other than Amazon's do not know the checksums that boto3 adds by itself.
        sums: dict[str, Any] = {} if account.is_aws else dict.fromkeys(_CHECKSUMS, "when_required")
        options: dict[str, Any] = {
            "region_name": account.region, "endpoint_url": settings.endpoint_url, "verify": settings.ca_bundle,
            "config": Config(signature_version="s3v4", **sums),
        }  # fmt: skip
        if isinstance(settings.session, boto3.Session):
            return settings.session.client("s3", **options)
        client = account.session.create_client("s3", **options)
        if hasattr(client, "upload_file"):
            return client  # somebody has made it a session of boto3's, which can be done only once
        return boto3.Session(botocore_session=account.session).client("s3", **options)


def _is_http_proxy(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _said(error: Exception) -> str:
    """What botocore says, to be followed by a full stop of ours."""
    return str(error).rstrip(". ")


def _session(profile: str | None) -> Any:
    """botocore's session, shared in this process: its files are read once, not in 0.2 s for every bucket."""
    import botocore.session
    from botocore.handlers import BUILTIN_HANDLERS

    read = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_") or name == "HOME"))
    # moto adds itself to this list when it is imported. The session keeps its handlers, so no other object gets their ids.
    handlers = tuple([id(handler) for _, handler, *_ in BUILTIN_HANDLERS])
    if (profile, read, handlers) not in _sessions:
        _sessions.clear()  # one is enough, and old credentials need not be kept
        _sessions[profile, read, handlers] = botocore.session.Session(profile=profile)
    return _sessions[profile, read, handlers]


def _first_request(session: Any, config: Any, settings: Settings, region: str | None) -> tuple[str, str]:
    """Let botocore build and sign a request to the bucket, take its URL and its signature, and do not send it.

    So the endpoint rules stay botocore's: addressing style, dual stack, endpoints in the configuration file or the environment.
    """
    from botocore.awsrequest import AWSResponse, create_request_object

    taken: list[tuple[str, str]] = []
    client = session.create_client(
        "s3",
        region_name=region or settings.region,
        endpoint_url=settings.endpoint_url,
        config=config(signature_version="s3v4", retries={"mode": "standard", "total_max_attempts": 1}),
    )

    def take(params: Any, **_: object) -> tuple[Any, dict[str, object]]:
        # Here, and not before it is sent, as a handler of the user's should not be asked about what is never sent.
        request = create_request_object(params)
        client.meta.events.emit("request-created.s3.HeadBucket", request=request, operation_name="HeadBucket")
        authorization = request.headers["Authorization"]
        url = request.prepare().url
        taken.append((url, authorization.decode() if isinstance(authorization, bytes) else authorization))
        return AWSResponse(url, 200, {}, _NoBody()), {}

    client.meta.events.register_first("before-call.s3.HeadBucket", take)
    try:
        client.head_bucket(Bucket=settings.bucket)
    finally:
        client.close()
    return taken[0]


class _NoBody:
    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        return iter(())


def _certificates(ca_bundle: str | None, get_cert_path: Any) -> str | None:
    if ca_bundle:
        return ca_bundle
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return None  # the default context reads them
    if os.environ.get("REQUESTS_CA_BUNDLE"):
        return os.environ["REQUESTS_CA_BUNDLE"]  # which botocore takes as well
    path: str = get_cert_path(True)
    return path
