"""`perdure ls`, `get`, `set` and `rm`."""

from __future__ import annotations

import json
import os
import pprint
import shlex
import shutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from itertools import islice
from typing import Any, TypeVar

import click

from ..codecs import Filter
from ..errors import BackendError, CodecError, NotFoundError, PreconditionError, UntrustedError, UsageError
from ..mapping import PersiDict
from ..mapping.opening import open as open_dict
from ..protocol import ABSENT, NOT_KEPT, Backend
from .app import DONE, PROBLEM, Command
from .output import iso_time, line, local_time, plural, print_json, print_json_list, progress, safe, size, spell_json
from .places import BATCH_KEYS, as_key, open_place, prefix_option

F = TypeVar("F", bound=Callable[..., Any])


def _json_option(what: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=what)


def _codec_options(command: F) -> F:
    command = click.option(
        "--codec", help="How values are written; by default what the place was recorded with, else msgpack."
    )(command)
    return click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="NAME",
        help="lz4, zstd, signed=VARIABLE or encrypted=VARIABLE, where the environment variable holds the key; repeatable.",
    )(command)


@click.command(cls=Command, name="ls", short_help="List the keys of a place.")
@click.argument("url", default=".")
@prefix_option("List only keys under P.")
@click.option("-l", "--long", is_flag=True, help="Size and time as well.")
@_json_option("A JSON array: of names, or with --long of objects.")
def ls_command(url: str, prefix: str | None, long: bool, as_json: bool) -> int:
    """List the keys of a place, by default of the current folder, sorted."""
    metas, keys = [], []
    with open_place(url) as backend:
        if long:
            metas = sorted(backend.scan(prefix or ""))
        else:
            keys = sorted(backend.keys(prefix or ""))
    if as_json:
        print_json_list(keys or ({"key": meta.key, "size": meta.size, "modified": iso_time(meta.modified)} for meta in metas))
        return DONE
    for key in keys:
        line(key)
    for meta in metas:
        line(f"{size(meta.size):>8}  {local_time(meta.modified)}  {meta.key}")
    if not metas and not keys and sys.stderr.isatty():
        click.echo("no keys here" + (f" under {prefix}" if prefix else ""), err=True)
    return DONE


@click.command(cls=Command, name="get", short_help="Print a value.")
@click.argument("url")
@click.argument("key")
@click.option("--raw", is_flag=True, help="The stored bytes exactly as they are, not decoded.")
@_codec_options
@_json_option('{"key": ..., "value": ..., "type": ...}; what JSON lacks is put into its nearest.')
def get_command(url: str, key: str, raw: bool, codec: str | None, filters: tuple[str, ...], as_json: bool) -> int:
    """Print a value: text as it is, bytes as they are unless on a terminal, data as JSON if that says it all, else as Python.

    A place written with a codec that can run code (pkl) is read only with --codec pkl.
    """
    segments = as_key(key)
    if raw and as_json:
        raise UsageError("--raw prints the stored bytes, and --json a value: give one of them")
    with open_place(url) as backend:
        try:
            if raw:
                _write_bytes(backend.get(key).data)
                return DONE
            value = _open_dict(backend, codec, filters)[segments]
        except NotFoundError as error:
            error.hint = _what_there_is(backend, key)
            raise
    if as_json:
        try:
            print_json({"key": key, "value": value, "type": type(value).__name__})
        except RecursionError:
            hint = "Leave out --json, or use --raw."
            raise UsageError("the value is nested too deeply for JSON", key=key, place=backend.place, hint=hint) from None
        except ValueError as error:
            raise _unprintable(error, key, backend) from error
    elif isinstance(value, (bytes, bytearray)):
        _write_bytes(bytes(value))
    else:
        try:
            text = _spell(value)
        except ValueError as error:
            raise _unprintable(error, key, backend) from error
        line(safe(text) if sys.stdout.isatty() else text)
    return DONE


@click.command(cls=Command, name="set", short_help="Write a value.", context_settings={"ignore_unknown_options": True})
@click.argument("url")
@click.argument("key")
@click.argument("value")
@_codec_options
@click.option("--if-absent", is_flag=True, help="Only create: exit code 1 where the key is there already.")
@_json_option('{"key": ..., "etag": ...}')
def set_command(
    url: str, key: str, value: str, codec: str | None, filters: tuple[str, ...], if_absent: bool, as_json: bool
) -> int:
    """Write a value: JSON where VALUE is JSON, else the text itself; - reads it from stdin.

    With --codec txt VALUE is text in any case, and with --codec raw it is bytes. A place that is not there is created.
    """
    as_key(key)  # before stdin is read
    with open_place(url, must_exist=False) as backend:
        items = _open_dict(backend, codec, filters)
        data = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
        try:
            encoded = items.chain.encode(_parse(data, items.chain.codec.name), key)
            etag = backend.put(key, encoded, if_match=ABSENT if if_absent else None)
        except CodecError as error:
            error.at(place=backend.place)
            raise
        except PreconditionError as error:
            error.problem, error.hint = "there is a value already", "Nothing was changed."
            raise
    if as_json:
        print_json({"key": key, "etag": None if etag == NOT_KEPT else etag})
    return DONE


@click.command(cls=Command, name="rm", short_help="Remove keys.")
@click.argument("url")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@prefix_option("Remove all keys under P, after asking.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing a whole prefix.")
@_json_option('{"removed": number, "missing": [...]}')
def rm_command(url: str, keys: tuple[str, ...], prefix: str | None, yes: bool, as_json: bool) -> int:
    """Remove some keys, or with --prefix all under P (--prefix "" is everything)."""
    if bool(keys) == (prefix is not None):
        raise UsageError("give either keys or --prefix")
    for key in keys:
        as_key(key)  # all of them before the first is removed
    with open_place(url) as backend:
        if prefix is None:
            doomed = [key for key in dict.fromkeys(keys) if backend.contains(key)]
        else:
            doomed = list(backend.keys(prefix))
            where = f"{backend.place} under {prefix}" if prefix else backend.place
            if doomed and not yes and not _confirmed(f"Remove {plural(len(doomed), 'value')} from {where}?"):
                click.echo("nothing was removed", err=True)
                if as_json:
                    print_json({"removed": 0, "missing": []})
                return PROBLEM
        with progress("removing", len(doomed), quiet=as_json) as advance:
            for start in range(0, len(doomed), BATCH_KEYS):
                backend.delete_many(doomed[start : start + BATCH_KEYS])
                advance(BATCH_KEYS)
        missing = sorted(set(keys).difference(doomed))
        if as_json:
            print_json({"removed": len(doomed), "missing": missing})
        elif prefix is not None:
            line(f"removed {plural(len(doomed), 'value')}")
        if missing:
            if len(missing) == 1:
                raise NotFoundError(key=missing[0], place=backend.place)
            raise NotFoundError(f"{len(missing):,} keys not found: {', '.join(missing[:20])}", place=backend.place)
    return DONE


def _what_there_is(backend: Backend, key: str) -> str:
    """For somebody who asked for a key that is not there."""
    folder, slash, _ = key.rpartition("/")
    url = shlex.quote(backend.place)
    try:
        if next(backend.keys(f"{key}/"), None) is not None:
            return f"There are keys below it: perdure ls {url} --prefix {key}/"
        close = get_close_matches(key, islice(backend.keys(folder + slash), 1000), 1)
    except BackendError:
        close = []  # on a bucket one may be allowed to read and not to list
    return f"Did you mean {close[0]!r}?" if close else f"perdure ls {url} shows what is there."


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("removing a whole prefix needs --yes where nobody can be asked")
    return click.confirm(safe(question), err=True)


def _open_dict(backend: Backend, codec: str | None, filters: tuple[str, ...]) -> PersiDict[Any]:
    try:
        return open_dict(backend, codec=codec, filters=[_filter(text) for text in filters])
    except UntrustedError as error:
        error.hint = f"If you trust everybody who can write there, add --codec {backend.recorded()['codec']}."
        raise


def _filter(text: str) -> str | Filter:
    name, given, variable = text.partition("=")
    if not given and name in ("signed", "encrypted"):
        hint = f"Write --filter {name}=VARIABLE, the name of an environment variable that holds it."
        raise UsageError(f"the filter {name!r} needs a key", hint=hint)
    if not given:
        return name
    from ..codecs.security import Encrypted, Signed

    if name == "signed":
        return Signed.from_env(variable)
    if name == "encrypted":
        return Encrypted.from_env(variable)
    raise UsageError(f"--filter {text}: only signed and encrypted take a key", hint="Write signed=VARIABLE.")


def _parse(data: bytes, codec: str) -> Any:
    """What somebody means who types this."""
    if codec == "raw":
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    if codec not in ("msgpack", "pkl", "json"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except ValueError as error:  # JSON with an integer of very many digits; as text it would be another value than was meant
        raise UsageError(f"the value cannot be read: {error}", hint="For text use --codec txt, or put it in quotes.") from error
    except RecursionError:
        raise UsageError("the value is nested too deeply") from None


def _unprintable(error: ValueError, key: str, backend: Backend) -> UsageError:
    # Of an integer of very many digits, which Python refuses to write in decimal because that takes the square of the time.
    hint = "Use --raw, or print it in Python as hex(...)."
    return UsageError(f"the value cannot be printed: {error}", key=key, place=backend.place, hint=hint)


def _spell(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        text = spell_json(value, allow_nan=False, indent=2)
        if json.loads(text) == value and _is_plain(value):
            return text
    except (TypeError, ValueError, RecursionError):
        return _python(value)
    return _python(value)


def _is_plain(value: object) -> bool:
    """Whether JSON keeps the types: a tuple would look like a list, an enum like its value."""
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return type(value) is list and all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _python(value: object) -> str:
    return pprint.pformat(value, width=max(20, shutil.get_terminal_size().columns))


def _write_bytes(data: bytes) -> None:
    if sys.stdout.isatty():
        line(repr(data))  # as they are they could reprogram the terminal
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
