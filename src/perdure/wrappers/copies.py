"""The local half of `Cached`: records of values in a place whose failures make reading slower, and nothing worse."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable
from itertools import count
from time import time

from ..errors import IntegrityError, InvalidKeyError, NotFoundError, PerdureError, PolicyError, UsageError
from ..protocol import NOT_KEPT, Backend, Blob, ETag
from .record import Records

_instances: weakref.WeakSet[Copies] = weakref.WeakSet()


def _after_fork() -> None:
    for copies in list(_instances):
        copies._after_fork()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Copies(Backend):
    """What `Cached` keeps of its remote in its local place. Safe for threads, processes and forked children.

    Args:
        remote: Whose values are copied.
        local: Where to.
        worth: Which values, by their bytes; `None` copies all.

    Attributes:
        troubles: Calls that the local place failed.

    Raises:
        UsageError: `local` is the remote itself, under whatever name, or holds values of a dict, which copies would overwrite.
    """

    def __init__(self, remote: Backend, local: Backend, worth: Callable[[bytes], bool] | None) -> None:
        self.place = remote.place
        self.troubles = 0
        self._remote = remote
        self._local = local
        self._worth = worth
        self._closed = False
        self._apart = False  # whether both are known to be two places
        self._numbers = count(1)  # of troubles; `next` is a single step, so exactly one is the first
        self._get_copy = local.get
        self._bind()
        self._refuse_values_of_others()
        _instances.add(self)

    @property
    def remote(self) -> Backend:
        """Where the values are."""
        return self._remote

    @property
    def local(self) -> Backend:
        """Where the copies are."""
        return self._local

    def _bind(self) -> None:
        place = self.place
        if place.startswith("memory:"):
            # Its versions are numbered from 1 in every process, and in every space without a name.
            place += f" {os.urandom(16).hex()}"
        self._records = Records(place)
        self._read = self._records.read

    def _refuse_values_of_others(self) -> None:
        near = self._local.place
        if self._local is self._remote or _are_one(near, self.place):
            raise self._overwriting()
        try:
            recorded = self._local.recorded()
        except Exception as error:
            self._trouble(error)
            return
        if recorded:
            hint = "Give the copies a place of their own: they would overwrite what is there."
            raise UsageError("this place holds the values of a dict", place=near, hint=hint)

    def _overwriting(self) -> UsageError:
        hint = "Give the copies a place of their own."
        return UsageError("the copies would overwrite the values", place=self._local.place, hint=hint)

    def _require_apart(self, key: str, blob: Blob) -> None:
        """Refuse a local place that has the very value which the remote has: it is the remote by another name, or as good as.

        To be asked before the first copy is made. (Two names of a server, or of a folder, cannot be told to be one before.)
        """
        try:
            there = self._local.get(key)
        except NotFoundError:
            self._apart = True
        except Exception:  # to make a copy fails as well, and that is told
            return
        else:
            if (there.etag, there.data) == (blob.etag, blob.data):
                raise self._overwriting()
            self._apart = self._read(key, there.data) is not None

    def _copy(self, key: str) -> Blob | None:
        """What the local place has of a key, if it is to be believed."""
        try:
            return self._read(key, self._get_copy(key).data)
        except (NotFoundError, IntegrityError):
            return None
        except InvalidKeyError:
            return None  # too long for the local place; if it is none at all, the remote says so
        except Exception as error:
            self._trouble(error)
            return None

    def _keep_written(self, key: str, data: bytes, etag: ETag) -> None:
        if etag != NOT_KEPT:
            self._keep(key, Blob(data, etag, time()))

    def _keep(self, key: str, blob: Blob) -> None:
        try:
            self._local.put(key, self._records.write(key, blob))
        except InvalidKeyError:
            pass  # too long for the local place: such values are read from the remote
        except PolicyError as error:
            if error.policy:
                self._trouble(error)
            else:
                self._drop(key)  # larger than a bounded local place takes: as above, and a copy of an older value goes
        except Exception as error:
            self._trouble(error)

    def _drop(self, *keys: str) -> None:
        for key in keys:
            try:
                self._local.delete(key)
            except InvalidKeyError:
                pass
            except Exception as error:
                self._trouble(error)

    def _trouble(self, error: Exception) -> None:
        """Note that the local place failed, whatever with: a value that the remote has must not become unreadable by it."""
        if self._closed:
            return  # by us, in the middle of this call
        self.troubles = number = next(self._numbers)
        if number == 1:
            said = str(error) if isinstance(error, PerdureError) else f"{type(error).__name__}: {error}"
            warnings.warn(
                f"{self._local.place} fails to keep copies of {self.place}: {said.removesuffix('.')}. Reading is only slower "
                "without them. Repair that place, or give another; further trouble is counted in `troubles` and not reported.",
                stacklevel=5,
            )

    def _is_worth(self, key: str, data: bytes) -> bool:
        """Tell whether a copy is wanted; where not, one of an older value goes."""
        if self._worth is None:
            return True
        try:
            if self._worth(data):
                return True
        except Exception as error:
            self._trouble(error)
        try:
            if self._local.contains(key):
                self._local.delete(key)
        except InvalidKeyError:
            pass
        except Exception as error:
            self._trouble(error)
        return False

    def _after_fork(self) -> None:
        self._bind()  # what lives in a process is another place from here on


def _are_one(one: str, other: str) -> bool:
    """Tell whether two places are the same, through links as well where they are folders or files."""
    paths = []
    for place in (one, other):
        scheme, _, path = place.partition(":")
        if scheme not in ("file", "sqlite"):
            return one == other and one != "memory:"
        paths.append(os.path.realpath(path.removeprefix("///") if scheme == "sqlite" else path))
    try:
        return paths[0] == paths[1] or os.path.samefile(*paths)
    except OSError:  # not there yet
        return False
