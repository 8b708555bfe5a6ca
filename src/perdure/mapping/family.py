"""The dicts that programs written for persidict know by name: thin constructors over `PersiDict`, one for each kind of place.

They have that library's arguments, file names and formats, so its folders and buckets open as they are, and it reads what is
written here. Their keys hash like tuples (`("a",) in set(d)`), as there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..codecs.chain import Chain
from ..errors import UsageError
from ..keys import contains_unsafe_chars, split_to_tuple_key
from ..registry import open_backend
from .core import Key
from .dict import PersiDict
from .opening import warn_if_shared

if TYPE_CHECKING:
    from ..codecs import Codec, Filter
    from ..protocol import Backend

V = TypeVar("V")
_Filters = Iterable["str | Filter"]


class FamilyDict(PersiDict[V]):
    """What the members of the family have in common: parameters that say what they are, and keys that hash like tuples."""

    _split = staticmethod(split_to_tuple_key)
    _params: dict[str, Any]

    def _take(self, backend: Backend, codec: str | Codec, params: dict[str, Any], filters: _Filters = ()) -> None:
        """Begin, with what the constructor was given; `params` are kept for `get_params`."""
        prefix = params.pop("prefix")
        chain = Chain(codec, filters, trusted=True)
        PersiDict.__init__(
            self,
            backend,
            chain,
            append_only=bool(params["append_only"]),
            base_class_for_values=params["base_class_for_values"],
            prefix=prefix,
        )
        if filters:
            params["filters"] = chain.filters
        self._params = params

    def get_params(self) -> dict[str, Any]:
        """What the constructor takes to make another handle of the same dict, names sorted; of a view, with its `prefix`."""
        params = dict(self._params)
        if self._prefix:
            params["prefix"] = tuple(self._prefix.split("/")[:-1])
        return dict(sorted(params.items()))

    def __repr__(self) -> str:
        words = [f"{name}={getattr(value, '__qualname__', None) or repr(value)}" for name, value in self.get_params().items()]
        return f"{type(self).__name__}({', '.join(words)})"

    def __str__(self) -> str:
        """The items, as a built-in dict shows them. Reads every value."""
        return str(dict(self.items()))


class FileDirDict(FamilyDict[V]):
    """A dict in a folder: one file for each value, in folders for the levels of keys.

    The file of `("a", "b")` is `a_<digest>/b_<digest>.pkl`. Dicts of several formats may share a folder. A write is durable,
    and atomic for readers; conditional operations are atomic across threads and processes of a machine.

    Args:
        base_dir: The folder; made at once. Open a tree by its root: what two handles share are the locks in `base_dir`.
        serialization_format: `"pkl"` (any object), `"json"` (any object, by jsonpickle where plain JSON does not do), another
            codec's name, or the suffix of text files, which need `base_class_for_values=str`.
        append_only: Keys may be added, and neither overwritten nor deleted.
        digest_len: Characters of a digest in each name, 0 to 32; fixed for a folder. With 0, keys that differ by case only
            need a file system that tells case apart.
        base_class_for_values: A class that every value written or read must be an instance of.
        filters: What is done to the bytes, such as `"lz4"` or `Signed(key)`; persidict then cannot read them.
        sync: `"full"`: an acknowledged write survives a power cut; `"normal"`: a killed process.
        prefix: Only the keys under it.

    Raises:
        UsageError: The folder is a file, or has digests of another length; or an argument is wrong.
        BackendError: The folder cannot be made or looked at.

    Reading `pkl` and `json` can run code that whoever can write to the folder has put there.
    """

    def __init__(
        self,
        *,
        base_dir: Any = "__file_dir_dict__",
        serialization_format: str = "pkl",
        append_only: bool = False,
        digest_len: int = 4,
        base_class_for_values: type[Any] | None = None,
        filters: _Filters = (),
        sync: str = "full",
        prefix: Key = (),
    ) -> None:
        codec = codec_of(serialization_format, base_class_for_values)
        folder = _folder(base_dir)
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UsageError("base_dir is a file, not a folder", place=f"file:{folder}", hint="Name another folder.")
        if not isinstance(digest_len, int) or digest_len < 0:
            raise UsageError(f"digest_len is a number from 0 to 32, not {digest_len!r}", place=f"file:{folder}")
        suffix = f".{serialization_format}"
        backend = open_backend(Path(folder), layout="plain", suffix=suffix, digest_len=digest_len, sync=sync)
        backend.record({"codec": serialization_format})
        backend.make_folder()  # type: ignore[attr-defined]  # which a folder has
        self.digest_len = digest_len
        params = _common(serialization_format, append_only, base_class_for_values, prefix)
        self._take(backend, codec, params | {"base_dir": folder, "digest_len": digest_len}, filters)
        if sync != "full":
            self._params["sync"] = sync

    @property
    def base_dir(self) -> str:
        """The folder, as an absolute path; of a view, the folder of its prefix."""
        return str(self.backend.folder_of(self._prefix))  # type: ignore[attr-defined]


class LocalDict(FamilyDict[V]):
    """A dict in the memory of this process. Reads give copies: changing one changes nothing stored.

    Values are pickled, which is quicker than to copy them; what cannot be pickled, such as a function defined in a function, is
    copied by `copy.deepcopy`. Thread-safe; refuses to be pickled.

    Args:
        backend: What another `LocalDict` gives as `get_params()["backend"]`, to share its data. Default: new, empty.
        serialization_format: Dicts of different formats over one backend do not see each other. It changes nothing else.
        append_only: Keys may be added, and neither overwritten nor deleted.
        base_class_for_values: A class that every value written or read must be an instance of.
        prune_interval: Has no effect: nothing needs pruning.
        prefix: Only the keys under it.
    """

    def __init__(
        self,
        *,
        backend: Any = None,
        serialization_format: str = "pkl",
        append_only: bool = False,
        base_class_for_values: type[Any] | None = None,
        prune_interval: int | None = 64,
        prefix: Key = (),
    ) -> None:
        codec_of(serialization_format, base_class_for_values)
        if backend is not None and not isinstance(backend, Spaces):
            hint = 'Give what another LocalDict has: d.get_params()["backend"].'
            raise UsageError(f"backend is that of another LocalDict, not a {type(backend).__name__}", hint=hint)
        spaces = Spaces() if backend is None else backend
        params = _common(serialization_format, append_only, base_class_for_values, prefix)
        if not isinstance(prune_interval, int):
            prune_interval = None if prune_interval is None else 64
        params |= {"backend": spaces, "prune_interval": prune_interval if prune_interval and prune_interval > 0 else None}
        from ..codecs.held import Held

        self._take(spaces.of(serialization_format), Held(serialization_format), params)


class Spaces:
    """The data of a `LocalDict` and of those that share it: one space of memory for each format."""

    def __init__(self) -> None:
        self._spaces: dict[str, Backend] = {}

    def of(self, serialization_format: str) -> Backend:
        """The space of a format."""
        return self._spaces.setdefault(serialization_format, open_backend("memory:"))

    def __repr__(self) -> str:
        return f"<memory for {', '.join(self._spaces) or 'nothing yet'}>"


class EmptyDict(FamilyDict[V]):
    """A dict that takes every write and keeps nothing: persistence switched off. Keys and values are checked all the same.

    Args:
        append_only: As for the others.
        base_class_for_values: As for the others.
        serialization_format: As for the others.
        prefix: As for the others.
    """

    def __init__(
        self,
        *,
        append_only: bool = False,
        base_class_for_values: type[Any] | None = None,
        serialization_format: str = "pkl",
        prefix: Key = (),
    ) -> None:
        codec = codec_of(serialization_format, base_class_for_values)
        params = _common(serialization_format, append_only, base_class_for_values, prefix)
        self._take(open_backend("null:"), codec, params)


class BasicS3Dict(FamilyDict[V]):
    """A dict in a bucket: one object for each value, without copies of them here. One request for most operations.

    The object of `("a", "b")` is `root_prefix/a/b.pkl`. Safe for threads, processes and machines at once.

    Args:
        bucket_name: Made when it is missing, unless `create` is off.
        region: Of the bucket; default: as AWS is configured.
        root_prefix: What all objects' names begin with; a slash is added.
        serialization_format: As for `FileDirDict`.
        append_only: Keys may be added, and neither overwritten nor deleted.
        base_class_for_values: A class that every value written or read must be an instance of.
        endpoint_url: Of a server other than Amazon's.
        create: Whether to make the bucket when it is missing. It is made by the first request, and logged.
        filters: What is done to the bytes, such as `"lz4"` or `Signed(key)`; persidict then cannot read them.
        prefix: Only the keys under it.

    Warns:
        UntrustedWarning: Once for each place: `pkl` and `json` can run code that whoever can write to the bucket has put
            there, unless a filter signs.
    """

    def __init__(
        self,
        *,
        bucket_name: str = "my_bucket",
        region: str | None = None,
        root_prefix: str = "",
        serialization_format: str = "pkl",
        append_only: bool = False,
        base_class_for_values: type[Any] | None = None,
        endpoint_url: str | None = None,
        create: bool = True,
        filters: _Filters = (),
        prefix: Key = (),
    ) -> None:
        params = _common(serialization_format, append_only, base_class_for_values, prefix)
        self._open_bucket(params, bucket_name, region, root_prefix, endpoint_url, create, filters)

    def _open_bucket(
        self,
        params: dict[str, Any],
        bucket_name: str,
        region: str | None,
        root_prefix: str,
        endpoint_url: str | None,
        create: bool,
        filters: _Filters,
    ) -> None:
        codec = codec_of(params["serialization_format"], params["base_class_for_values"])
        root = root_prefix if not root_prefix or root_prefix.endswith("/") else f"{root_prefix}/"
        options: dict[str, Any] = {"suffix": f".{params['serialization_format']}", "region": region, "create": create}
        if endpoint_url is not None:
            options["endpoint_url"] = endpoint_url
        backend = self._with_copies(open_backend(f"s3://{bucket_name}/{root}", **options), params)
        params |= {"bucket_name": bucket_name, "region": region, "root_prefix": root}
        if endpoint_url is not None:
            params["endpoint_url"] = endpoint_url
        if not create:
            params["create"] = create
        self.bucket_name, self.region = bucket_name, region
        self._take(backend, codec, params, filters)
        warn_if_shared(self.chain, backend, stacklevel=3)

    def _with_copies(self, remote: Backend, params: dict[str, Any]) -> Backend:
        return remote

    @property
    def _bucket(self) -> Any:
        return self.backend

    @property
    def root_prefix(self) -> str:
        """What the objects' names begin with, ending in a slash unless empty; of a view, with its prefix."""
        return f"{self._params['root_prefix']}{self._prefix}"

    @property
    def base_url(self) -> str:
        """Where this is as a URL, ending in a slash."""
        return f"s3://{self.bucket_name}/{self.root_prefix}"

    @property
    def s3_client(self) -> Any:
        """A client of boto3 for the same account, for what this dict does not do itself; made at the first use."""
        return self._bucket.client


class S3Dict(BasicS3Dict[V]):
    """A dict in a bucket that keeps copies of what it has read and written in a folder.

    A read asks the bucket whether the copy is current, and gets the value only where it is not; with `append_only` a copy is
    answered without a request. The folder may be shared by processes, used for several buckets, and removed at any time.

    Args:
        bucket_name: As for `BasicS3Dict`.
        region: As for `BasicS3Dict`.
        root_prefix: As for `BasicS3Dict`.
        base_dir: The folder with the copies.
        serialization_format: As for `FileDirDict`.
        digest_len: As for `FileDirDict`, for the names of the copies; names in the bucket have no digests.
        append_only: Keys may be added, and neither overwritten nor deleted.
        base_class_for_values: A class that every value written or read must be an instance of.
        endpoint_url: As for `BasicS3Dict`.
        create: As for `BasicS3Dict`.
        filters: As for `BasicS3Dict`.
        prefix: Only the keys under it.
    """

    def __init__(
        self,
        *,
        bucket_name: str = "my_bucket",
        region: str | None = None,
        root_prefix: str = "",
        base_dir: Any = "__s3_dict__",
        serialization_format: str = "pkl",
        digest_len: int = 8,
        append_only: bool = False,
        base_class_for_values: type[Any] | None = None,
        endpoint_url: str | None = None,
        create: bool = True,
        filters: _Filters = (),
        prefix: Key = (),
    ) -> None:
        folder = _folder(base_dir)
        params = _common(serialization_format, append_only, base_class_for_values, prefix)
        params |= {"base_dir": folder, "digest_len": digest_len}
        self._open_bucket(params, bucket_name, region, root_prefix, endpoint_url, create, filters)

    def _with_copies(self, remote: Backend, params: dict[str, Any]) -> Backend:
        from ..wrappers.cached import Cached

        suffix = f".{params['serialization_format']}-copy"
        options: dict[str, Any] = {"layout": "plain", "suffix": suffix, "digest_len": params["digest_len"], "sync": "normal"}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* holds values with the suffix")  # copies of any format may lie there
            local = open_backend(Path(params["base_dir"]), **options)
        return Cached(remote, local, append_only=bool(params["append_only"]))

    @property
    def base_dir(self) -> str:
        """The folder with the copies, as an absolute path."""
        return str(self._params["base_dir"])

    @property
    def digest_len(self) -> int:
        """Characters of a digest in the names of the copies."""
        return int(self._params["digest_len"])

    @property
    def _bucket(self) -> Any:
        return self.backend.remote  # type: ignore[attr-defined]


S3Dict_FileDirCached = S3Dict


def _folder(base_dir: Any) -> str:
    """Whatever names a folder, as an absolute path."""
    return os.path.abspath(os.fspath(base_dir) if isinstance(base_dir, os.PathLike) else str(base_dir))


def _common(format: str, append_only: bool, base: type[Any] | None, prefix: Key) -> dict[str, Any]:
    return {"append_only": append_only, "base_class_for_values": base, "serialization_format": format, "prefix": prefix}


def codec_of(serialization_format: str, base: type[Any] | None) -> str | Codec:
    """The codec that a format stands for.

    Raises:
        UsageError: Not a format; or text files, for values that need not be text.
    """
    if base is not None and not isinstance(base, type):
        raise UsageError(f"base_class_for_values is a class, not {base!r}")
    if not isinstance(serialization_format, str) or not serialization_format or contains_unsafe_chars(serialization_format):
        raise UsageError(f"serialization_format is a suffix such as 'pkl', 'json' or 'txt', not {serialization_format!r:.80}")
    if serialization_format in ("pkl", "json", "msgpack", "raw"):
        return serialization_format
    if base is None or not issubclass(base, str):
        text = f"files with the suffix {serialization_format!r} hold text, and nothing says that the values are"
        raise UsageError(text, hint="Give base_class_for_values=str, or serialization_format='pkl' or 'json'.")
    from ..codecs.text import Text

    return Text(serialization_format)
