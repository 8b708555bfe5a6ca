"""botocore's event `before-send`: who registered for it sees every request, and may answer in place of the server.

In-process mocks such as moto's `mock_aws` live on it, and so do recorders of requests and test doubles of one's own. As with
botocore itself, what counts is who was registered with the session when the account was found.
"""

from __future__ import annotations

import os
import threading
from copy import copy
from typing import Any

from ._s3_answers import Method
from ._s3_forks import unforked
from ._s3_http import LostAnswerError, Reply

# By method, and whether the request is about an object or the bucket itself: all the requests there are here.
_OPERATIONS: dict[tuple[Method, bool], str] = {
    ("GET", True): "GetObject",
    ("HEAD", True): "HeadObject",
    ("PUT", True): "PutObject",
    ("DELETE", True): "DeleteObject",
    ("GET", False): "ListObjectsV2",
    ("HEAD", False): "HeadBucket",
    ("PUT", False): "CreateBucket",
}

# Held while handlers work: moto compares and writes without a lock, and reads a value that another thread has just replaced
# from a closed file. It may be taken again, as a handler may send requests of its own.
_turn = threading.RLock()


def _after_fork_in_child() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class HandlerError(Exception):
    """A handler failed, which is the cause. What it did before that, nobody knows."""


class Hooks:
    """The handlers of a session at one moment.

    Args:
        emitter: botocore's, which calls them.
    """

    def __init__(self, emitter: Any) -> None:
        self._emitter = emitter

    def ask(
        self, method: Method, name: str, url: str, headers: list[tuple[str, str]], body: bytes | memoryview
    ) -> Reply | None:
        """Show a request to all handlers and return the first answer; `None` where they leave it to the server.

        One request of this process after the other, whatever the session; a fork waits for it, 3 seconds at most.

        Args:
            method: In capitals.
            name: The object; `""` is the bucket itself.
            url: With the query, percent-encoded.
            headers: All but `content-length`.
            body: What to store; copied, unless it is `bytes`.

        Raises:
            HandlerError: A handler raised, or what it returned is no answer.
            LostAnswerError: A handler raised what botocore raises about a bad network, and would send again after.
        """
        from botocore.awsrequest import AWSPreparedRequest, HeadersDict
        from botocore.exceptions import ConnectionError as NoConnectionError
        from botocore.exceptions import HTTPClientError

        sent = HeadersDict(headers)
        if method == "PUT":
            sent["content-length"] = str(len(body))
        content = bytes(body) if method == "PUT" else None
        request = AWSPreparedRequest(method, url, sent, content, stream_output=method == "GET" and name != "")
        event = f"before-send.s3.{_OPERATIONS[method, name != '']}"
        try:
            with _turn, unforked:
                answers = [answer for _, answer in self._emitter.emit(event, request=request) if answer is not None]
                return _reply(method, answers[0]) if answers else None
        except (NoConnectionError, HTTPClientError) as error:
            raise LostAnswerError(str(error)) from error
        except Exception as error:
            raise HandlerError(f"a handler of botocore's before-send failed: {error!r:.300}") from error


def find_hooks(session: Any) -> Hooks | None:
    """The handlers that were registered with a session of botocore's; `None` where there are none.

    Those that are registered later are not among them, as they are not with a client of botocore's.
    """
    emitter = copy(session.get_component("event_emitter"))
    return Hooks(emitter) if any(_listens(emitter, operation) for operation in _OPERATIONS.values()) else None


def _listens(emitter: Any, operation: str) -> bool:
    try:
        return bool(emitter._emitter._handlers.prefix_search(f"before-send.s3.{operation}"))  # noqa: SLF001
    except AttributeError:  # botocore has no public way to tell: with another one inside, ask it every time
        return True


def _reply(method: Method, answer: Any) -> Reply:
    status = int(answer.status_code)
    headers = {str(name).lower(): str(value) for name, value in answer.headers.items()}
    content = bytes(answer.content)
    return Reply(status, headers, b"" if method == "HEAD" or status in (204, 304) else content)  # as none goes over a wire
