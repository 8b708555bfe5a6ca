"""Pickles in an lz4 frame: holds nearly everything, and reading one runs whatever code it names."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import lz4.frame

from ..errors import CodecError, IntegrityError, PerdureError
from .compression import LZ4_MAGIC, expand_lz4

__all__ = ["Pickle", "blame"]

_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, UnicodeDecodeError)


class Pickle:
    """The codec `pkl`: pickle protocol 5 in an lz4 frame with a checksum; reads plain pickles too, protocol 2 and later.

    Files of persidict are read, those with numpy arrays by `joblib` (which wrote them) if it is installed; and what is written
    here, persidict reads. Not safe: whoever can write the bytes can run code where they are read, unless `Signed` or
    `Encrypted` follows.
    """

    name = "pkl"
    id = 2
    safe = False
    bare = True
    any_bytes = False

    def encode(self, value: Any) -> bytes:
        try:
            data = pickle.dumps(value, 5)
        except RecursionError as error:
            raise CodecError("value is nested too deeply to be pickled", hint="Flatten it.") from error
        except Exception as error:
            path, part = blame(value)
            hint = "Leave that part out, or give its class a __reduce__ method."
            raise CodecError(f"value{path}, a {type(part).__name__}, cannot be pickled: {error}", hint=hint) from error
        # Both checksums: some bits of a compressed block mean nothing, and only the block's own notices when they change.
        packed: bytes = lz4.frame.compress(data, content_checksum=True, block_checksum=True, store_size=True)
        return packed

    def decode(self, data: bytes | memoryview, limit: int) -> Any:
        if data[:4] == LZ4_MAGIC:
            plain = expand_lz4(data, limit)
        elif len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5:
            plain = bytes(data)
        else:
            what = "it is empty" if not len(data) else "it is not a pickle"
            raise IntegrityError(f"what is stored is damaged: {what}")
        try:
            if b"joblib.numpy_pickle" in plain:
                return _load_by_joblib(plain)
            return pickle.loads(plain)
        except PerdureError:
            raise
        except (ImportError, AttributeError) as error:
            hint = "Install or import what it needs, in the version that wrote it."
            raise CodecError(f"this pickle needs what cannot be found here: {error}", hint=hint) from error
        except _DAMAGE as error:
            raise IntegrityError(f"what is stored is damaged: it cannot be unpickled ({_say(error)})") from error
        except Exception as error:
            raise CodecError(f"this pickle cannot be restored: {_say(error)}") from error


def _load_by_joblib(data: bytes) -> Any:
    try:
        import joblib
    except ModuleNotFoundError as error:
        raise CodecError("joblib wrote this, with numpy arrays in its own layout", hint="Type: pip install joblib") from error
    return joblib.load(io.BytesIO(data))


def blame(value: Any, dump: Callable[[Any], object] = lambda part: pickle.dumps(part, 5)) -> tuple[str, Any]:
    """Find the smallest part of lists, tuples and dicts that cannot be pickled, and how to come to it.

    Args:
        value: What cannot be pickled.
        dump: Pickles a part, to see whether it can be.
    """
    path = ""
    for _ in range(100):
        kind = type(value)
        parts: Any = value.items() if kind is dict else enumerate(value) if kind in (list, tuple) else ()
        for step, part in parts:
            try:
                dump(part)
            except Exception:  # which is what we are looking for
                path, value = f"{path}[{step!r:.60}]", part
                break
        else:
            break
    return path, value


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
