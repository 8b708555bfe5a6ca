"""`perdure doctor`."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from ..errors import PerdureError
from ..protocol import Backend, Meta
from .app import DONE, PROBLEM, Command
from .damage import IntegrityCheck, Unreadable, set_aside
from .output import console, plural, print_json, progress, styled
from .places import batches, open_place
from .selftest import PREFIX, Check, self_test

_SHOWN = 50
_FOREIGN = "not tried, because the folder has things in it and none of ours; perhaps it needs ?layout=plain&suffix=.pkl"
_HOUR = 3600.0  # no doctor takes longer: keys of one that are older were left behind


@dataclass
class Findings:
    """All that was found out about a place."""

    place: str
    guarantees: dict[str, str]
    settings: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    values: int = 0
    unchecked: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    swept: bool = False

    @property
    def healthy(self) -> bool:
        """Every promise is kept, and what could not be read was set aside. Leftovers are a matter of course, no defect."""
        return all(check.ok is not False for check in self.checks) and all(one.aside for one in self.unreadable)


@click.command(cls=Command, name="doctor", short_help="Examine a place, find what is damaged, repair it.")
@click.argument("url")
@click.option("--repair", is_flag=True, help="Set unreadable values aside and remove leftovers.")
@click.option("--aside", default="perdure-set-aside", metavar="URL", show_default=True, help="Where to put them; see above.")
@click.option("--codec", help="What the values were written with, where the place does not say so itself (s3:).")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor_command(url: str, repair: bool, aside: str, codec: str | None, as_json: bool) -> int:
    """Examine a place: what it guarantees, whether that holds, and what is damaged.

    Promises are tried out on keys below perdure-doctor-<random>/, which are removed again; your own keys are only read. The
    integrity of every value is checked without decoding it, so no code in it can run.

    --repair deletes no value. A place that has room of its own for unreadable values (a folder: .perdure/set-aside/) moves
    them there. From another one the bytes are copied, as they are and under the same key, to the place --aside, and then
    removed; `perdure cp` brings them back.

    Exit code 0 if all is well (or was repaired), 1 if not.
    """
    with open_place(url) as backend:
        codec = codec or backend.recorded().get("codec")
        found = _examine(backend, codec, as_json)
        if repair:
            _repair(backend, found, codec, aside)
    if as_json:
        print_json({"healthy": found.healthy, **asdict(found)})
    else:
        _tell(found, repair)
    return DONE if found.healthy else PROBLEM


def _examine(backend: Backend, codec: str | None, quiet: bool) -> Findings:
    found = Findings(backend.place, backend.guarantees()._asdict(), backend.recorded())
    found.leftovers = _call(backend, "leftovers")  # first: the next write may sweep them
    if _is_foreign(backend):
        found.checks.append(Check("keeps its promises", None, _FOREIGN))
    else:
        with closing(self_test(backend)) as checks, progress("trying", None, quiet=quiet) as advance:
            for check in checks:
                found.checks.append(check)
                advance(1)
    examine = IntegrityCheck(backend, codec)
    metas = list(backend.scan())
    with progress("reading", sum(meta.size for meta in metas), in_bytes=True, quiet=quiet) as advance:
        for batch in batches(metas):
            ours = [meta for meta in batch if not meta.key.startswith(PREFIX)]
            found.leftovers += [meta.key for meta in batch if meta.key.startswith(PREFIX) and _is_old(meta)]
            found.values += len(ours)
            found.unreadable += examine([meta.key for meta in ours])
            advance(sum(meta.size for meta in batch))
    found.unchecked = examine.unchecked
    return found


def _is_foreign(backend: Backend) -> bool:
    """A folder with other things and nothing of ours. The first write would settle its layout, which is not ours to do."""
    path = getattr(backend, "path", None)
    if not isinstance(path, str) or not os.path.isdir(path):
        return False
    names = os.listdir(path)
    return bool(names) and ".perdure" not in names and next(backend.keys(), None) is None


def _is_old(meta: Meta) -> bool:
    return time.time() - meta.modified > _HOUR


def _call(backend: Backend, method: str) -> list[str]:
    optional: Any = getattr(backend, method, None)
    return list(optional()) if optional else []


def _repair(backend: Backend, found: Findings, codec: str | None, aside: str) -> None:
    examine = IntegrityCheck(backend, codec)
    for one in found.unreadable:
        if one.closed:
            continue
        try:
            one.aside = set_aside(backend, one.key, aside, examine) or "readable again"
        except PerdureError as error:
            one.problem = f"{one.problem} (could not be set aside: {error})"
    _call(backend, "sweep")
    backend.delete_many(key for key in found.leftovers if key.startswith(PREFIX))
    found.swept = True


def _tell(found: Findings, repair: bool) -> None:
    out = console()
    styled(out, ("place    ", "bold"), found.place)
    for name, text in ((found.settings or {"codec": "not recorded"}) | found.guarantees).items():
        styled(out, (f"{name:<8} ", "bold"), text)
    marks = {True: ("  ok   ", "green"), False: ("  BAD  ", "bold red"), None: ("  --   ", "yellow")}
    for check in found.checks:
        styled(out, marks[check.ok], check.name, (f": {check.detail}" if check.detail else "", "bold"))
    readable = not found.unreadable
    text = f"{plural(found.values, 'value')} read" + (", all whole" if readable and found.values > found.unchecked else "")
    unsolved = any(not one.aside for one in found.unreadable)
    styled(
        out,
        marks[False if unsolved else readable or None],
        text + ("" if readable else f", {len(found.unreadable):,} unreadable:"),
    )
    for one in found.unreadable[:_SHOWN]:
        styled(out, "       ", (one.key, "bold"), f": {one.problem}", (f" -> {one.aside}" if one.aside else "", "green"))
    if len(found.unreadable) > _SHOWN:
        styled(out, f"       ... and {len(found.unreadable) - _SHOWN:,} more (--json lists them all)")
    if found.unchecked:
        hint = "" if found.settings else "; --codec says what they should be"
        styled(out, marks[None], f"{found.unchecked:,} of them carry no checksum{hint}")
    for path in found.leftovers:
        state = "removed" if found.swept else "harmless; the next writer or --repair removes it"
        styled(out, marks[None], f"leftover of a killed writer: {path} ({state})")
    if found.healthy:
        styled(out, ("healthy", "bold green"))
    else:
        mendable = not repair and any(not one.closed for one in found.unreadable)
        hint = "; --repair sets unreadable values aside, without deleting them" if mendable else ""
        styled(out, ("problems found", "bold red"), hint)
