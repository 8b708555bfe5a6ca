"""The command `perdure`: what all its commands have in common, errors above all."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

import perdure

from ..errors import InvalidKeyError, MissingExtraError, NotFoundError, PerdureError, UntrustedError, UsageError
from .output import one_line
from .wording import in_our_words, program

DONE, PROBLEM, USAGE, FAILED, INTERRUPTED = 0, 1, 2, 3, 130

# Where each command lives; imported when it is called, so that `perdure ls` does not wait for the demo.
_commands = {
    "ls": "items",
    "get": "items",
    "set": "items",
    "rm": "items",
    "cp": "copying",
    "import": "importing",
    "info": "about",
    "doctor": "doctor",
    "cache": "cache",
    "snapshots": "snapshots",
    "restore": "restoring",
    "prune": "pruning",
    "diff": "comparing",
    "demo": "demo.command",
}


class Command(click.Command):
    """A command that knows `--debug` behind its name as well as in front of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_debug_option())


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _commands:
            return None
        module = import_module(f".{_commands[cmd_name]}", __package__)
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _commands and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], _commands, 1, 0.5)
            hint = f"Did you mean {close[0]!r}?" if close else f"See {ctx.command_path} --help."
            ctx.fail(f"there is no command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        # Here, because click has ideas of its own about these two.
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `perdure ls | head`
            _drop_output()
            return DONE
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)  # behind the ^C
            _say("interrupted")
            return INTERRUPTED

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        _replace_closed_streams()
        # In a locale without unicode a strange character must not end the listing it stands in.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        warnings.showwarning = _warn
        words = list(sys.argv[1:] if args is None else args)
        ends = words.index("--") if "--" in words else len(words)
        debug = "--debug" in words[:ends] or os.environ.get("PERDURE_DEBUG", "") not in ("", "0")
        code = self._run(words, prog_name or program(), debug, extra)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
        except OSError as error:
            _say(_spell(error))
            _drop_output()
            code = FAILED
        sys.exit(code)

    def _run(self, words: list[str], name: str, debug: bool, extra: dict[str, Any]) -> int:
        try:
            return super().main(words, name, standalone_mode=False, **extra) or DONE
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else name
            text = error.format_message()
            _say(f"{text}{'' if text[-1:] in '.?!' else '.'} Try: {path} --help")
            return USAGE
        except click.Abort:  # at a question
            return INTERRUPTED
        except (PerdureError, OSError) as error:
            if debug:
                traceback.print_exception(error)
            elif isinstance(error, PerdureError):
                error.hint = in_our_words(error.hint or "")
                _say(str(error))
            else:
                _say(_spell(error))
                _drop_output()
            return code_of(error)
        except click.ClickException as error:
            _say(error.format_message())
            return FAILED


def code_of(error: PerdureError | OSError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, (UsageError, InvalidKeyError, MissingExtraError, UntrustedError)):
        return USAGE
    return FAILED if isinstance(error, OSError) and not isinstance(error, NotFoundError) else PROBLEM


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    _say(f"warning: {in_our_words(str(message))}")


def _say(text: str) -> None:
    click.echo(f"perdure: {one_line(text)}", err=True)


def _spell(error: OSError) -> str:
    # What goes wrong in a place is a PerdureError by now. What remains is what the shell connected us to.
    what = error.filename or "the input cannot be read, or the output not written"
    return f"{what}: {error.strerror or error}"


def _replace_closed_streams() -> None:
    # Started with `>&-`: Python has None there. In this order each takes its own number, which no file of a place may get.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open as long as the process is


def _drop_output() -> None:
    # Whoever read our output is gone; Python would complain once more when it flushes at exit.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return  # not a real file descriptor, as under a test runner


def _debug_option() -> click.Option:
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 absent, in conflict, damaged or unequal, 2 wrong usage, 3 the place failed, 130 Ctrl-C. "
    'Completion: eval "$(_PERDURE_COMPLETE=bash_source perdure)", or zsh_source, fish_source.',
)
@click.version_option(perdure.__version__, message="perdure %(version)s")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Look at and work on places where perdure keeps values.

    A URL is a folder, sqlite:///relative.db, sqlite:////absolute.db, s3://bucket/prefix, memory:NAME or null:, with options
    in its query.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


app.params.append(_debug_option())
