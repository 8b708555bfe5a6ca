"""`perdure.open`: from a URL, a path or a backend to a dict."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, overload

from ..codecs.chain import MAX_BYTES, Chain
from ..errors import UntrustedError, UntrustedWarning, UsageError
from ..registry import open_backend
from .dict import PersiDict

if TYPE_CHECKING:
    from ..codecs import Codec, Filter
    from ..protocol import Backend

V = TypeVar("V")

_DEFAULT = "msgpack"
_warned: set[str] = set()


@overload
def open(
    where: str | os.PathLike[str] | Backend,
    *,
    value_type: type[V],
    codec: str | Codec | None = None,
    filters: str | Filter | Iterable[str | Filter] = (),
    trusted: bool = False,
    append_only: bool = False,
    base_class_for_values: type[Any] | None = None,
    max_bytes: int = MAX_BYTES,
    cache: str | os.PathLike[str] | Backend | None = None,
    **options: Any,
) -> PersiDict[V]: ...
@overload
def open(
    where: str | os.PathLike[str] | Backend,
    *,
    value_type: Any = None,  # a union and the like, of which type checkers cannot tell yet what it stands for
    codec: str | Codec | None = None,
    filters: str | Filter | Iterable[str | Filter] = (),
    trusted: bool = False,
    append_only: bool = False,
    base_class_for_values: type[Any] | None = None,
    max_bytes: int = MAX_BYTES,
    cache: str | os.PathLike[str] | Backend | None = None,
    **options: Any,
) -> PersiDict[Any]: ...
def open(
    where: str | os.PathLike[str] | Backend,
    *,
    value_type: Any = None,
    codec: str | Codec | None = None,
    filters: str | Filter | Iterable[str | Filter] = (),
    trusted: bool = False,
    append_only: bool = False,
    base_class_for_values: type[Any] | None = None,
    max_bytes: int = MAX_BYTES,
    cache: str | os.PathLike[str] | Backend | None = None,
    **options: Any,
) -> PersiDict[Any]:
    """Open the dict that a URL, a path or a backend names.

    The codec is recorded with the place where the place can keep it (a folder, a SQLite file), so that opening it again
    needs no arguments and cannot mix two codecs.

    Args:
        where: A folder, `sqlite:///app.db`, `s3://bucket/prefix`, `memory:NAME`, `null:`, another scheme that is
            installed, or a backend.
        value_type: What every value is: a dataclass, a `msgspec.Struct`, a pydantic model, or another annotation such as
            `dict[str, int]`. Values are checked, field by field, when they are written and when they are read, and stored as
            plain data, which is read without the type as well; nothing about the type is recorded. What else types may be,
            and what happens when fields come and go: `perdure.codecs.typed.Typed`.
        codec: How values become bytes: `"msgpack"`, `"pkl"`, `"json"`, `"txt"`, `"raw"` or a codec object. `None` takes
            what the place was recorded with, else `"msgpack"`. A recorded codec that can run code has to be asked for by
            name all the same, unless there is a filter that signs: whoever planted the record must not decide that.
        filters: What is done to the bytes, in this order when writing: `"lz4"`, `"zstd"`, `Signed(key)`, `Encrypted(key)`.
        trusted: Whoever can write to this place may run code here. Lets `"json"` restore arbitrary objects, and silences the
            warning about `"pkl"` in a place that machines share.
        append_only: Keys may be added, and neither overwritten nor deleted.
        base_class_for_values: A class that every value written or read must be an instance of; a base of `value_type`, where
            both are given.
        max_bytes: The most bytes a value may have, as stored and decompressed; larger ones are neither written nor read.
        cache: A folder, or another backend, that keeps copies of what is read and written, for a place that is slow or far. A
            copy is answered only after the place has said that it is current; with `append_only`, at once
            (`perdure.Cached`). Processes may share it, and it may be removed at any time.
        **options: Options of the backend, such as `sync="normal"` for a folder.

    Returns:
        A dict. Nothing is created on disk before its first write.

    Raises:
        UsageError: Not a place; an unknown scheme, codec, filter or option; a codec other than the recorded one, with both
            names; or a `value_type` that values cannot be checked against, with the field.
        UntrustedError: The place says that it holds a codec that can run code, and it was not asked for.
        MissingExtraError: Something is not installed; the message says what to type.
        BackendError: The place is something else, or cannot be looked at.

    Warns:
        UntrustedWarning: Once for each place: a codec that can run code, a place that other machines write to, and neither
            `Signed` nor `Encrypted`.
    """
    if not isinstance(where, (str, os.PathLike)):
        if not hasattr(where, "recorded"):
            text = f"a place is a path, a URL or a backend, not {type(where).__name__}"
            raise UsageError(text, hint='Such as "state", "sqlite:///app.db", or what perdure.open_backend(...) returns.')
        if options:
            text = f"{', '.join(options)}: a backend that is open takes no options"
            raise UsageError(text, place=where.place, hint="Give them to the backend, or give a URL.")
        backend = where
    else:
        backend = open_backend(where, **options)
    try:
        chain = _settle_codec(backend, codec, filters, trusted, max_bytes, value_type, base_class_for_values)
        if cache is not None:
            backend = _with_copies(backend, cache, append_only)
        return PersiDict(backend, chain, append_only=append_only, base_class_for_values=base_class_for_values)
    except BaseException:
        if backend is not where:
            backend.close()
        raise


def _with_copies(backend: Backend, cache: str | os.PathLike[str] | Backend, append_only: bool) -> Backend:
    from pathlib import Path  # 5 ms that opening without a cache need not wait for

    from ..wrappers.cached import Cached

    if isinstance(cache, (str, os.PathLike)):
        cache = open_backend(Path(os.path.expanduser(cache)), sync="normal")
    return Cached(backend, cache, append_only=append_only)


def _settle_codec(
    backend: Backend,
    codec: str | Codec | None,
    filters: str | Filter | Iterable[str | Filter],
    trusted: bool,
    max_bytes: int,
    value_type: Any = None,
    base_class: Any = None,
) -> Chain:
    """Agree with what the place was recorded with, or record it."""
    recorded = backend.recorded().get("codec")
    chain = Chain((recorded or _DEFAULT) if codec is None else codec, filters, trusted=trusted, max_bytes=max_bytes)
    if value_type is not None:
        chain = _typed(chain, value_type, base_class)
    if recorded is None:
        backend.record({"codec": chain.codec.name})
    elif codec is None:
        _refuse_planted(chain, backend)
    elif chain.codec.name != recorded:
        raise UsageError(
            f"this place was written with codec {recorded!r}, not {chain.codec.name!r}",
            place=backend.place,
            hint=f"Open it with codec={recorded!r}, or use another place.",
        )
    if not trusted:
        warn_if_shared(chain, backend, stacklevel=3)
    return chain


def _typed(chain: Chain, value_type: Any, base_class: Any) -> Chain:
    from ..codecs.typed import Typed

    typed = Typed(chain.codec, value_type)
    cls = get_origin(value_type) or value_type
    if isinstance(base_class, type) and not (isinstance(cls, type) and issubclass(cls, base_class)):
        problem = f"value_type={typed.spelled} is not a kind of base_class_for_values={base_class.__qualname__}"
        raise UsageError(problem, hint="Leave base_class_for_values out: value_type says more.")
    return Chain(typed, chain.filters, trusted=chain.trusted, max_bytes=chain.max_bytes)


def _refuse_planted(chain: Chain, backend: Backend) -> None:
    """A record in the place never switches on what can run code, unless the values themselves have to be signed."""
    if not (chain.codec.safe or chain.authentic):
        name = chain.codec.name
        raise UntrustedError(
            f"this place says that it was written with codec {name!r}, and reading that can run code",
            place=backend.place,
            hint=f'If you trust everybody who can write there, open it with codec="{name}".',
        )


def warn_if_shared(chain: Chain, backend: Backend, *, stacklevel: int) -> None:
    """Say once for each place that reading from it can run code of whoever writes there."""
    if chain.codec.safe or chain.authentic or not backend.shared_by_machines or backend.place in _warned:
        return
    _warned.add(backend.place)
    warnings.warn(
        f"{backend.place}: whoever can write there can run code here, because codec {chain.codec.name!r} can. Add the filter "
        "Signed(key), or use msgpack; trusted=True says that you know, and silences this.",
        UntrustedWarning,
        stacklevel=stacklevel + 1,
    )
