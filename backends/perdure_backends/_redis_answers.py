"""What the errors of redis-py and of the server mean, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeVar

from redis.exceptions import InvalidResponse, ResponseError

from perdure.errors import BackendError, PerdureError, UnavailableError, UnknownOutcomeError

_E = TypeVar("_E", bound=PerdureError)
_AGAIN: Final = "Try again later."
_LOOK: Final = "Read the key to see what is there."


class _Meaning(NamedTuple):
    """What an error means.

    Attributes:
        passes: The same call may work soon.
        harmless: Nothing was changed, for certain.
        hint: What to do.
    """

    passes: bool
    harmless: bool
    hint: str


# Looked for in the name of the class and the text: redis-py makes classes of some codes, and scripts hide others in their text.
_MEANINGS: Final = [
    (re.compile(pattern), _Meaning(passes, True, hint))
    for pattern, passes, hint in (
        (r"unknown command|unknown subcommand", False, "It needs a Redis server, 5.0 or later, that lets it run scripts."),
        (r"NoScript", False, "It has no script that was just loaded: perhaps several servers answer at this address."),
        (r"WRONGTYPE", False, "Another program keeps something under this name: use another prefix."),
        (r"OutOfMemory|\bOOM\b", False, "Raise maxmemory, let the server evict (maxmemory-policy), or give values a ttl=."),
        (r"ReadOnlyError|\bREADONLY\b", True, "This is a replica, which takes no writes: name the primary in the URL."),
        (r"\bMISCONF\b", True, "The server cannot save to its disk, and its log tells why."),
        (r"\bNOREPLICAS\b", True, "The server misses replicas that it must have for writing (min-replicas-to-write)."),
        (r"BusyLoading|\bLOADING\b", True, "The server reads its data from disk: try again when it is ready."),
        (r"\bBUSY\b", True, "A script of another program keeps the server busy."),
        (r"MasterDown|\bMASTERDOWN\b|ClusterDown|\bCLUSTERDOWN\b|TryAgain|\bTRYAGAIN\b", True, _AGAIN),
        (r"MovedError|\bMOVED\b|AskError|\bASK\b|CrossSlot|\bCROSSSLOT\b", False,
         "Name a server that is not part of a Redis Cluster: keys are not looked for on other nodes."),
        (r"NoPermission(?!.*script).* access .*\bkeys?\b", False,
         "Let this user reach all keys of this place: add ~perdure:PREFIX/* to its rules (ACL SETUSER), with this prefix."),
        (r"NoPermission(?!.*script)|Authorization", False, "Let this user run EVALSHA, SCRIPT LOAD and what scripts call."),
        (r"Authentication|\bNOAUTH\b|\bAUTH\b|WRONGPASS", False,
         "Check user and password; in a URL they are written redis://user:password@host, with %40 for '@' and %3F for '?'."),
        (r"DB index|Invalid Database|SELECT is not allowed", False, "The number after the host's name is that of a database."),
        (r"max number of clients", True, "The server has as many connections as it may (maxclients)."),
        (r"CERTIFICATE_VERIFY_FAILED|certificate verify", False, "Name the authority that signed its certificate: ca_bundle=."),
        (r"WRONG_VERSION_NUMBER|wrong version number|RECORD_LAYER", False, "It speaks no TLS there: write redis://."),
        (r"closed by server|reset by peer", True, "Try again later; a server that wants TLS hangs up like this: write rediss://."),
        (r"No such file", False, "Check ca_bundle=, certificate= and private_key=."),
    )
]  # fmt: skip
_NOT_REDIS: Final = _Meaning(False, False, "What answers there does not seem to be a Redis server: check host and port.")
_NO_NAME: Final = _Meaning(False, True, "Check the host's name.")
_CONNECTION: Final = _Meaning(True, False, _AGAIN)
_UNKNOWN: Final = _Meaning(False, False, "The log of the server may tell more.")


class Judge:
    """Turns errors into ours.

    Args:
        place: For messages.
        secret: The password, which must not stand in a message even where a server repeats it.
    """

    def __init__(self, place: str, secret: str | None) -> None:
        self._place = place
        self._secret = secret

    def passes(self, error: BaseException) -> bool:
        """Tell whether the same call may work soon."""
        return _meaning(error).passes

    def answer(self, error: Exception, key: str | None, *, writing: bool = False) -> PerdureError:
        """The error for what the server answered in place of a result.

        Args:
            error: As redis-py made it of the answer.
            key: For the message.
            writing: It was a write that was answered like this.
        """
        meaning = _meaning(error)
        kind: type[BackendError] = UnavailableError if meaning.passes else BackendError
        text = f"the server refuses: {self._said(error)}"
        if writing and not meaning.harmless:
            return self.unknown(f"the server says {error}", key, "", error)
        return self._because(kind(text, key=key, place=self._place, hint=meaning.hint), error)

    def failure(self, error: Exception, tries: int, key: str | None) -> PerdureError:
        """The error for what was tried in vain and not carried out, or was a read."""
        cause = error.__cause__ or error
        if isinstance(cause, ResponseError):
            return self.answer(cause, key)
        meaning = _meaning(cause)
        kind: type[BackendError] = UnavailableError if meaning.passes else BackendError
        text = f"the server cannot be reached: {self._said(error)}" + (f" ({tries} attempts)" if tries > 1 else "")
        return self._because(kind(text, key=key, place=self._place, hint=meaning.hint), cause)

    def unknown(self, problem: str, key: str | None, token: str, cause: BaseException) -> UnknownOutcomeError:
        """The error for a write of which nobody can tell."""
        text = f"the write may or may not have happened: {self._said(problem)}"
        error = UnknownOutcomeError(text, key=key, place=self._place, hint=_LOOK)
        error.token = token or None
        return self._because(error, cause)

    def _said(self, words: object) -> str:
        """What the other side says, to be followed by a full stop of ours."""
        text = str(words) or type(words).__name__
        if self._secret:
            text = text.replace(self._secret, "***")
        return text[:300].rstrip(". ")

    def _because(self, error: _E, cause: BaseException) -> _E:
        if self._secret and any(self._secret in str(link) for link in _chain(cause)):
            error.__suppress_context__ = True  # a traceback would show it
        else:
            error.__cause__ = cause
        return error


def _meaning(error: BaseException) -> _Meaning:
    text = f"{type(error).__name__} {error}"
    for pattern, meaning in _MEANINGS:
        if pattern.search(text):
            return meaning
    if isinstance(error, InvalidResponse):
        return _NOT_REDIS
    if isinstance(error, ResponseError):
        return _UNKNOWN
    return _NO_NAME if isinstance(error, ValueError) else _CONNECTION


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
