"""From what the system says about a file to what a caller can do about it."""

from __future__ import annotations

import errno

from perdure.errors import BackendError, InvalidKeyError, NotFoundError, PerdureError, UnavailableError

_HINTS = {
    errno.ENOENT: "The folder was removed in the middle: try again.",
    errno.ENOSPC: "The disk is full: free some space. What was stored before is unchanged.",
    errno.EDQUOT: "The quota is used up: free some space. What was stored before is unchanged.",
    errno.EROFS: "The file system is read-only: remount it, or write elsewhere.",
    errno.EACCES: "Check the owner and mode of the folder and of what is in it.",
    errno.EPERM: "Check the owner and mode of the folder and of what is in it.",
    errno.ELOOP: "A symbolic link stands where a file or folder of ours belongs: remove it.",
    errno.EISDIR: "A folder stands where the value's file belongs: move it away.",
    errno.ENOTDIR: "A file stands where a folder belongs: move it away.",
    errno.EEXIST: "A file stands where a folder belongs: move it away.",
    errno.EAGAIN: "A pipe stands where the value's file belongs: remove it.",
    errno.ENXIO: "A socket or pipe stands where the value's file belongs: remove it.",
    errno.EMFILE: "Too many open files in this process: raise `ulimit -n`, or close some.",
    errno.ENFILE: "Too many open files on this machine: close some.",
    errno.EDEADLK: "Waiting would never end: let the handler set a flag, or start a thread that writes.",
    errno.EIO: "The disk reports an error: copy what can be read, and check it.",
}
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EINTR)


def explain(error: OSError | PerdureError, key: str | None, place: str, doing: str) -> PerdureError:
    """The error to raise for `error`, which struck while `doing` something (`"read"`, `"write"`...) to `key`."""
    if isinstance(error, PerdureError):
        return error.at(key, place)
    number = error.errno or 0
    if number in (errno.ENOENT, errno.ENOTDIR) and doing in ("read", "set aside"):
        return NotFoundError(key=key, place=place)
    if number == errno.ENAMETOOLONG:
        text = "the name is too long for this file system"
        return InvalidKeyError(text, key=key, place=place, hint="Shorten the key, or split it into more segments.")
    kind = UnavailableError if number in _PASSING else BackendError
    text = f"cannot {doing} ({error.strerror or error})"
    return kind(text, key=key, place=place, errno=number, hint=_HINTS.get(number))
