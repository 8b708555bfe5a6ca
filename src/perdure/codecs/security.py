"""Filters that need a key: `Signed` (nobody else can write) and `Encrypted` (nor read)."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from typing import Any, Self

from ..errors import CodecError, MissingExtraError, UntrustedError, UsageError

__all__ = ["Encrypted", "Signed"]

_MIN_KEY = 16
_HINT = 'Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'


class _Keyed:
    """What both have in common: secrets, from which the working keys are derived, each with a short public id.

    Secret, purpose and format go into the derivation, so one secret can serve both filters and other programs too.
    """

    name: str
    id: int
    authentic = True

    def __init__(self, key: bytes, *, also: Iterable[bytes] = ()) -> None:
        if isinstance(also, (bytes, bytearray, str)):
            raise UsageError("also= takes a list of keys", hint="Write also=[old_key].")
        self._secrets = (_checked(key), *map(_checked, also))
        self._keys: dict[bytes, bytes] = {}
        for secret in self._secrets:
            derived = hmac.new(secret, b"perdure " + self.name.encode() + b" 1", "sha256").digest()
            self._keys.setdefault(hashlib.sha256(derived).digest()[:4], derived)
        self._key_id, self._key = next(iter(self._keys.items()))

    @classmethod
    def from_env(cls, name: str, *, also: Iterable[str] = ()) -> Self:
        """Take the key, at least 16 characters of text, from an environment variable.

        Args:
            name: The variable; white space around its value does not count.
            also: Variables with older keys, which still read and no longer write.

        Raises:
            UsageError: A variable is not set, or too short to be a key.
        """
        return cls(_from_env(name), also=[_from_env(old) for old in also])

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, also: Iterable[str | os.PathLike[str]] = ()) -> Self:
        """Take the key, at least 16 bytes, from a file; a line end after it does not count.

        Args:
            path: The file.
            also: Files with older keys, which still read and no longer write.

        Raises:
            UsageError: A file cannot be read, or is too short to be a key.
        """
        return cls(_from_file(path), also=[_from_file(old) for old in also])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key {self._key_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self._secrets)

    def _find(self, key_id: bytes) -> bytes:
        if key_id not in self._keys:
            mine = ", ".join(id.hex() for id in self._keys)
            raise UntrustedError(
                f"this was {self.name} with another key ({key_id.hex()}; given: {mine})",
                hint=f"If that key is an older one of yours, give {type(self).__name__}(key, also=[old_key]).",
            )
        return self._keys[key_id]


class Signed(_Keyed):
    """Signs each value (HMAC-SHA256), so that only who has the key can write what is read here: makes pickles acceptable
    from places that others can write to.

    The signature covers the key of the item as seen from the root of the store, the codec and the other filters: a value
    cannot be moved under another key. It does not stop an attacker from putting back an *older* value of the same key.

    Args:
        key: At least 16 secret random bytes.
        also: Older keys, which still read and no longer write. To change the key: first give the new one as `also` to every
            reader, then make it the first everywhere, and drop the old one when all values are written again.

    Raises:
        UsageError: Not bytes, or too short.

    Cost: 4 µs a value and 1 s for each gigabyte or less; 36 bytes. Safe in threads and processes.
    """

    name = "signed"
    id = 0x81

    def __init__(self, key: bytes, *, also: Iterable[bytes] = ()) -> None:
        super().__init__(key, also=also)
        # To be copied, which is quicker than to begin. Not by `hmac.digest`: OpenSSL takes a lock there when a thread first
        # calls it and when that thread ends, and a child forked in that moment hangs at its own first call.
        self._begun = {derived: hmac.new(derived, digestmod="sha256") for derived in self._keys.values()}

    def encode(self, data: bytes, header: bytes, key: str) -> bytes:
        return b"".join((self._key_id, self._mac(self._key, data, header, key), data))

    def decode(self, data: bytes | memoryview, header: bytes, key: str, limit: int) -> bytes | memoryview:
        signer = self._find(bytes(data[:4]))
        signature, content = data[4:36], data[36:]
        if not hmac.compare_digest(signature, self._mac(signer, content, header, key)):
            raise UntrustedError(
                "the signature does not fit: this was changed, or moved here from another key, without the signing key",
                hint="Do not use it. Find out who can write to this place.",
            )
        return content

    def _mac(self, signer: bytes, data: bytes | memoryview, header: bytes, key: str) -> bytes:
        mac = self._begun[signer].copy()
        mac.update(_context(header, key))
        mac.update(data)
        return mac.digest()


class Encrypted(_Keyed):
    """Encrypts each value (AES-256-GCM), so that only who has the key can read or write it. Needs the extra `crypto`.

    Covers key, codec and filters as `Signed` does. Keys, sizes and times of items stay visible.

    Args:
        key: At least 16 secret random bytes; better 32.
        also: Older keys, as for `Signed`. Change the key before four billion values were written with it.

    Raises:
        UsageError: Not bytes, or too short.
        MissingExtraError: cryptography is not installed.

    Cost: 4 µs a value and 1 s for each gigabyte or less; 32 bytes. Safe in threads and processes.
    """

    name = "encrypted"
    id = 0x82

    def __init__(self, key: bytes, *, also: Iterable[bytes] = ()) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as error:
            raise MissingExtraError("cryptography", "crypto") from error
        super().__init__(key, also=also)
        self._invalid = InvalidTag
        self._ciphers = {derived: AESGCM(derived) for derived in self._keys.values()}

    def encode(self, data: bytes, header: bytes, key: str) -> bytes:
        nonce = os.urandom(12)
        try:
            secret = self._ciphers[self._key].encrypt(nonce, data, _context(header, key))
        except OverflowError as error:
            raise CodecError(f"{len(data):,} bytes are too many to encrypt in one piece", hint="Split the value.") from error
        return b"".join((self._key_id, nonce, secret))

    def decode(self, data: bytes | memoryview, header: bytes, key: str, limit: int) -> bytes:
        cipher = self._ciphers[self._find(bytes(data[:4]))]
        try:
            return cipher.decrypt(bytes(data[4:16]), data[16:], _context(header, key))
        except (self._invalid, ValueError) as error:
            raise UntrustedError(
                "this cannot be decrypted: it was changed, or moved here from another key",
                hint="Do not use it. Find out who can write to this place.",
            ) from error


def _context(header: bytes, key: str) -> bytes:
    """What is authenticated beside the data. Each part says its own length, so that no two contexts read the same."""
    name = key.encode()
    return b"".join((header, len(name).to_bytes(4, "big"), name))


def _checked(key: Any) -> bytes:
    if isinstance(key, (bytes, bytearray)) and len(key) >= _MIN_KEY:
        return bytes(key)
    if isinstance(key, (bytes, bytearray)):
        raise UsageError(f"a key of {len(key)} bytes is too short; {_MIN_KEY} are the least", hint=_HINT)
    hint = 'From text: Signed.from_env("NAME") or Signed.from_file(path), or text.encode().'
    raise UsageError(f"a key is bytes, not {type(key).__name__}", hint=hint)


def _from_env(name: str) -> bytes:
    text = os.environ.get(name, "").strip()
    if len(text) < _MIN_KEY:
        state = f"has only {len(text)} characters" if text else "is not set"
        raise UsageError(f"the environment variable {name} should hold a key, and {state}", hint=_HINT)
    return os.fsencode(text)


def _from_file(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            key = file.read(1 << 16).rstrip(b"\r\n")
    except OSError as error:
        hint = "Check the path and who may read it. " + _HINT
        raise UsageError(f"the key file {os.fspath(path)} cannot be read: {error.strerror}", hint=hint) from error
    if len(key) < _MIN_KEY:
        raise UsageError(f"the key file {os.fspath(path)} holds {len(key)} bytes; {_MIN_KEY} are the least", hint=_HINT)
    return key


def _revive(cls: type[_Keyed], secrets: tuple[bytes, ...]) -> _Keyed:
    return cls(secrets[0], also=secrets[1:])
