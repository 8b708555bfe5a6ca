"""Calls that are sent again where that is right: a read freely, a write only when it is certain that it was not carried out."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, OutOfMemoryError

from perdure.errors import PerdureError, UnknownOutcomeError

from ._redis_answers import Judge
from ._redis_lines import Line, Lines, LostAnswerError, NotSentError
from ._redis_scripts import CLOSE, RECEIPT_LASTS, SCRIPTS, Script

_pause = time.sleep
_LOADS = 3  # how often a call finds that the server has forgotten our scripts, until that is an error
_number = re.compile(r"\(value ([1-9]\d{0,5})\)\Z").search
_OPEN_RECEIPT = [b"PX", b"%d" % (RECEIPT_LASTS * 1000)]


class Write(NamedTuple):
    """A write that has to be carried out once.

    Attributes:
        script: One that leaves the number of the write in its receipt.
        names: The keys it touches after the receipt.
        arguments: Those after the number.
        keys: Of the values, for messages.
        etags: Those of the last of `names`, once it has been carried out; none for a delete.
    """

    script: Script
    names: Sequence[bytes]
    arguments: Sequence[bytes]
    keys: Sequence[str]
    etags: Sequence[str] = ()

    @property
    def key(self) -> str | None:
        """The key, where there is one only."""
        return self.keys[0] if len(self.keys) == 1 else None

    def key_of(self, answer: Exception) -> str | None:
        """The key that an answer is about, where it says so."""
        number = _number(str(answer))
        return self.keys[int(number[1]) - 1] if number and int(number[1]) <= len(self.keys) else self.key


class _Doubt(NamedTuple):
    """A write that was sent and not answered: over the connection with this receipt, under this number."""

    receipt: bytes
    number: int
    cause: LostAnswerError


class Calls:
    """Thread-safe.

    Args:
        lines: The connections.
        judge: For errors.
        attempts: How often to send a call at most.
    """

    def __init__(self, lines: Lines, judge: Judge, attempts: int) -> None:
        self._lines = lines
        self._judge = judge
        self._attempts = attempts

    def ask(self, commands: Sequence[Sequence[bytes]], key: str | None = None) -> list[Any]:
        """Send commands that may be carried out twice, in one round trip, and return their answers.

        An answer may be an error, which is about that command only; see `value`.

        Raises:
            UnavailableError, BackendError: There are no answers.
        """
        tries = _Tries(self._judge, self._attempts, key)
        while True:
            try:
                line = self._lines.take()
                answers = line.exchange(commands)
            except (NotSentError, LostAnswerError) as error:
                self._lines.drop_idle()
                tries.pause(error)
                continue
            self._lines.give_back(line)
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            if not errors:
                return answers
            if tries.may_load(*errors):
                self._load()
            elif passing := next(filter(self._judge.passes, errors), None):
                self._lines.drop_idle()
                tries.pause(passing)
            else:
                return answers

    def value(self, answer: Any, key: str | None) -> Any:
        """An answer, unless it is an error, which is raised."""
        if isinstance(answer, Exception):
            raise self._judge.answer(answer, key)
        return answer

    def carry_out(self, write: Write) -> bytes:
        """Carry out a write once, in one round trip, and return the word that its script returned.

        Raises:
            UnknownOutcomeError: The answer got lost, and it cannot be found out what became of it.
            UnavailableError, BackendError: It was not carried out.
        """
        doubts: list[_Doubt] = []  # none or one
        try:
            return self._carry_out(write, doubts)
        except UnknownOutcomeError:
            raise
        except PerdureError as error:
            if not doubts:
                raise
            # Whatever stopped us, it may have been carried out.
            raise self._judge.unknown(error.problem, write.key, "".join(write.etags[:1]), error) from error

    def _carry_out(self, write: Write, doubts: list[_Doubt]) -> bytes:
        tries = _Tries(self._judge, self._attempts, write.key)
        while True:
            try:
                line = self._lines.take()
                if doubts:
                    if self._was_carried_out(line, write, doubts[0]):
                        self._lines.give_back(line)
                        return b"done"
                    doubts.clear()
                self._open_receipt(line)
            except (NotSentError, LostAnswerError) as error:
                self._lines.drop_idle()
                tries.pause(error)
                continue
            line.number += 1
            number = b"%d" % line.number
            command = write.script.command((line.receipt, *write.names), (number, *write.arguments))
            try:
                (word,) = line.exchange([command])
            except NotSentError as error:
                tries.pause(error)
                continue
            except LostAnswerError as error:
                self._lines.drop_idle()
                doubts.append(_Doubt(line.receipt, line.number, error))
                tries.pause(error)
                continue
            self._lines.give_back(line)
            if not isinstance(word, Exception):
                answer: bytes = word
                return answer
            if tries.may_load(word):
                self._load()
            elif self._judge.passes(word):
                self._lines.drop_idle()  # of a primary that became a replica, another server has the name by now
                tries.pause(word)
            else:
                raise self._judge.answer(word, write.key_of(word), writing=True)

    def _open_receipt(self, line: Line) -> None:
        """See to it that there is a receipt before the write: one that is missing later says nothing."""
        now = time.monotonic()
        if now < line.receipt_until:
            return
        (word,) = line.exchange([[b"SET", line.receipt, b"%d" % line.number, *_OPEN_RECEIPT]])
        if not isinstance(word, Exception):
            line.receipt_until = now + RECEIPT_LASTS / 2
        elif not isinstance(word, OutOfMemoryError):  # which would keep us from deleting; a put is refused by itself
            line.close()
            raise NotSentError(str(word)) from word

    def _was_carried_out(self, line: Line, write: Write, doubt: _Doubt) -> bool:
        """Find out about a write whose answer got lost. When it was not carried out, it will not be any more."""
        _, seen = line.exchange([_load(CLOSE), CLOSE.command([doubt.receipt], [b"%d" % doubt.number])])
        if isinstance(seen, Exception):
            raise self._judge.answer(seen, write.key)
        if seen is not None:
            return int(seen) >= doubt.number
        # The receipt was evicted, or the server forgot all and began anew.
        names = write.names[len(write.names) - len(write.etags) :]
        there = line.exchange([[b"HGET", name, b"m"] for name in names]) if names else []
        for about, etag in zip(there, write.etags, strict=True):
            if isinstance(about, bytes) and about.startswith(etag.encode()):
                return True
        raise self._judge.unknown(
            f"{doubt.cause}, and the server does not know any more", write.key, "".join(write.etags[:1]), doubt.cause
        )

    def _load(self) -> None:
        for answer in self.ask([_load(script) for script in SCRIPTS]):
            self.value(answer, None)


def _load(script: Script) -> list[bytes]:
    return [b"SCRIPT", b"LOAD", script.text]


class _Tries:
    """The attempts of one call."""

    def __init__(self, judge: Judge, attempts: int, key: str | None) -> None:
        self._judge = judge
        self._most = attempts
        self._key = key
        self._made = 0
        self._loads = 0

    def pause(self, error: Exception) -> None:
        """Wait before the next attempt, or raise what ended the last one."""
        self._made += 1
        if self._made >= self._most or not self._judge.passes(error.__cause__ or error):
            raise self._judge.failure(error, self._made, self._key)
        _pause(random.uniform(0.5, 1.0) * min(2.0, 0.02 * 5 ** (self._made - 1)))

    def may_load(self, *errors: Exception) -> bool:
        """Tell whether an attempt only lacked our scripts, which a server forgets when it starts."""
        lacked = any(isinstance(error, NoScriptError) for error in errors)
        self._loads += lacked
        return lacked and self._loads <= _LOADS
