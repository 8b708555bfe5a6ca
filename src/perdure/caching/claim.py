"""A claim: the right to compute a key, renewed while the work goes on, and needed to store the result."""

from __future__ import annotations

import logging
import threading
import weakref

from .. import pulse
from ..codecs.entry import Entry, write_entry
from ..errors import BackendError, NotFoundError, PerdureError, PreconditionError, UnavailableError, UnknownOutcomeError
from ..protocol import Backend, ETag

__all__ = ["Claim"]

_log = logging.getLogger("perdure.caching")


class Claim:
    """A record under the key that says that somebody computes it. Its ETag is the fence: only who knows it can store.

    It is renewed by a thread of this process, three times in its lease. Where that fails because somebody else has written
    there, it is lost, and every later write through it raises `PreconditionError`.

    Args:
        backend: Where the key is.
        path: The key.
        entry: What was written to claim it.
        etag: The version of that.
    """

    def __init__(self, backend: Backend, path: str, entry: Entry, etag: ETag) -> None:
        self._backend = backend
        self._path = path
        self._entry = entry
        self._etag = etag
        self._lock = threading.Lock()  # a renewal and the last write exclude each other
        self._over = False
        self._beat: pulse.Beat | None = None
        # Held weakly: where whoever computes is gone without a word, nobody renews it.
        renew = weakref.WeakMethod(self._renew)

        def beat() -> bool:
            method = renew()
            return method is not None and method()

        try:
            self._beat = pulse.every(entry.lease / 3, beat, name=f"claim of {path}")
        except UnavailableError as error:
            _log.debug("%s in %s is claimed and cannot be renewed: %s", path, backend.place, error)

    @property
    def kept(self) -> Entry | None:
        """The value that was there before and is to be there again where nothing better comes; None where there was none."""
        return None if self._entry.value is None else self._entry._replace(lease=0.0, token=b"", renewals=0)

    def abandon(self) -> None:
        """Renew it no more."""
        self._over = True
        if self._beat is not None:
            self._beat.stop()

    def _renew(self) -> bool:
        with self._lock:
            if self._over:
                return False
            try:
                renewed = self._entry._replace(renewals=self._entry.renewals + 1)
                self._etag = self._put(write_entry(renewed))
                self._entry = renewed
            except PreconditionError:
                _log.info("%s in %s: the claim was taken over, or the key invalidated", self._path, self._backend.place)
                return False
            except BackendError as error:
                _log.info("%s in %s: the claim could not be renewed and will be once more: %s", self._path, error.place, error)
        return True

    def _put(self, data: bytes) -> ETag:
        try:
            return self._backend.put(self._path, data, if_match=self._etag)
        except UnknownOutcomeError:
            # It may be there. Nobody else writes these very bytes under this key: they hold a token.
            try:
                blob = self._backend.get(self._path)
            except NotFoundError:
                raise PreconditionError("the key is absent by now", key=self._path, place=self._backend.place) from None
            if blob.data != data:
                if blob.etag == self._etag:
                    raise  # not there yet, and it may still come
                raise PreconditionError("somebody else has written", key=self._path, place=self._backend.place) from None
            return blob.etag

    def end(self, through: Backend, data: bytes | None) -> None:
        """Write what is to stay under the key, or remove the claim; in any case renew it no more.

        Args:
            through: Writes it: the backend, or one over it that keeps copies.
            data: The bytes; None to leave the key absent.

        Raises:
            PreconditionError: The claim was lost; nothing was changed.
            PolicyError, BackendError: The backend refused, or failed. The claim remains for as long as its lease.
        """
        if self._beat is not None:
            self._beat.stop()
        with self._lock:  # a renewal that has begun goes first
            self._over = True
            if data is None:
                through.delete(self._path, if_match=self._etag)
            else:
                through.put(self._path, data, if_match=self._etag)

    def give_up(self, through: Backend, data: bytes | None) -> bool:
        """As `end`, for who has something worse to report: what goes wrong is logged. False where the claim was lost."""
        try:
            self.end(through, data)
        except PreconditionError:
            return False  # it is somebody else's by now, or nobody's
        except PerdureError as error:
            _log.warning("%s: the claim of it stays for the %g s of its lease: %s", self._path, self._entry.lease, error)
        return True

    def __repr__(self) -> str:
        return f"<Claim of {self._path} in {self._backend.place}>"
