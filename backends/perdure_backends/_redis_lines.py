"""Connections to one server, each used by one call at a time, with an honest word on whether a request may have arrived.

The pool and the client of redis-py are not used: they send a request again by themselves, whether or not it was carried out,
hold locks that a signal's handler or a forked child would wait for in vain, and keep a connection whose answer is still to
come when Ctrl-C strikes. Connecting, logging in and reading answers is redis-py's work.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, RedisError, ResponseError

from perdure.errors import BackendError

from ._s3_forks import unforked

_PIECE = 256 * 1024  # what one send call gets: the socket's time-out covers a whole call, not the time without progress
_KEEP = 32  # idle connections
_REFUSALS = (BusyLoadingError, AuthenticationError, AuthorizationError)  # answers, though redis-py counts them as failures
_FAILURES = (RedisError, OSError, ValueError)  # the last: a host's name that is none


class NotSentError(Exception):
    """No connection came about, or the server is not ready: nothing was carried out. The cause tells why."""


class LostAnswerError(Exception):
    """The requests went out, wholly or in part, and not all answers came back: the rest may have been carried out.

    Attributes:
        answers: Those that came, in order.
    """

    def __init__(self, problem: str, answers: list[Any]) -> None:
        super().__init__(problem)
        self.answers = answers


class Line:
    """A connection.

    Args:
        connection: redis-py's, connected.
        base: What the names of all our keys begin with.

    Attributes:
        receipt: The name of its receipt, see `_redis_scripts`.
        number: Of the last write that was sent.
        receipt_until: The moment by `time.monotonic()` until when the receipt is there for certain.
    """

    __slots__ = ("_connection", "number", "receipt", "receipt_until")

    def __init__(self, connection: Any, base: bytes) -> None:
        self._connection = connection
        self.receipt = base + b"!" + os.urandom(8).hex().encode()
        self.number = 0
        self.receipt_until = 0.0

    def exchange(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Send commands in one go, once, and return their answers. What the server answers as an error is returned as one.

        Raises:
            NotSentError, LostAnswerError: See there. The connection is closed.
        """
        answers: list[Any] = []
        sent = False
        read = self._connection.read_response
        try:
            self._connection.send_packed_command(_packed(commands), check_health=False)
            sent = True
            for _ in commands:
                try:
                    answers.append(read(disconnect_on_error=False))
                except ResponseError as error:
                    answers.append(error)
        except _FAILURES as error:
            self.close()
            if isinstance(error, _REFUSALS) and len(commands) == 1:
                raise NotSentError(str(error)) from error
            raise LostAnswerError(str(error) or type(error).__name__, answers) from error
        except BaseException:  # Ctrl-C: answers are still to come on this connection, so nobody may use it any more
            try:
                if sent:
                    # Give a write a second to take effect now, and not while its caller does the next thing.
                    with contextlib.suppress(*_FAILURES):
                        self._connection.can_read(timeout=1.0)
            finally:
                self.close()
            raise
        return answers

    def is_quiet(self) -> bool:
        """Tell whether nothing came in while it was idle: whatever came, mostly the end, makes it useless."""
        try:
            return not self._connection.can_read(timeout=0)
        except _FAILURES:
            return False

    def close(self) -> None:
        """End the connection; in a forked child, only let go of the parent's."""
        self._connection.disconnect()


class Lines:
    """Connections, reused in turn. Thread-safe and without a lock: append and pop of a deque are single steps.

    Args:
        make: Makes one of redis-py's, not connected.
        base: What the names of all our keys begin with.
        place: For messages.
    """

    def __init__(self, make: Callable[[], Any], base: bytes, place: str) -> None:
        self._make = make
        self._base = base
        self._place = place
        self._idle: deque[Line] = deque()
        self._closed = False
        _all.add(self)

    def check_open(self) -> None:
        """Raise `BackendError` when closed."""
        if self._closed:
            raise BackendError("this backend was closed", place=self._place, hint="Open it again.")

    def take(self) -> Line:
        """A connection for the caller alone, to be given back or closed.

        Raises:
            NotSentError: None came about.
            BackendError: Closed.
        """
        self.check_open()
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                break
            if line.is_quiet():
                return line
            line.close()
        connection = self._make()
        try:
            with unforked:  # it looks up a name and may shake hands
                connection.connect()
        except _FAILURES as error:
            raise NotSentError(str(error) or type(error).__name__) from error
        return Line(connection, self._base)

    def give_back(self, line: Line) -> None:
        """Keep a connection whose answers have all come."""
        if len(self._idle) < _KEEP and not self._closed:
            self._idle.append(line)
            if self._closed:
                self.drop_idle()
        else:
            line.close()

    def drop_idle(self) -> None:
        """Close those that nobody uses: what befell one mostly befell the others as well."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def close(self) -> None:
        """Close those that nobody uses now, the others when they are given back. `take` raises from here on."""
        self._closed = True
        self.drop_idle()

    def after_fork(self) -> None:
        """In a child: let go of what belongs to the parent. redis-py ends no connection that another process made."""
        self._idle = deque()


_all: weakref.WeakSet[Lines] = weakref.WeakSet()


def _after_fork() -> None:
    for lines in list(_all):
        lines.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _packed(commands: Sequence[Sequence[bytes]]) -> list[bytes | memoryview]:
    """Commands as they go over the line, in pieces for one send call each; a long value is not copied."""
    pieces: list[bytes | memoryview] = []
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            parts.append(b"$%d\r\n" % len(argument))
            if len(argument) > _PIECE:
                pieces.append(b"".join(parts))
                view = memoryview(argument)
                pieces += [view[start : start + _PIECE] for start in range(0, len(view), _PIECE)]
                parts = [b"\r\n"]
            else:
                parts += (argument, b"\r\n")
    pieces.append(b"".join(parts))
    return pieces
