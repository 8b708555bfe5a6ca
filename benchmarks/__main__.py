"""`python -m benchmarks [file sqlite memory mapping caching counters startup s3 snapshots] [--quick] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from .harness import QUICK, Effort, as_json, machine
from .report import write_page

PLACES = ("file", "sqlite", "memory", "mapping", "caching", "counters", "startup", "s3", "snapshots")
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "benchmarks.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the scripts that are asked for, print their rows, and tell with 0 that it went well, whatever was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("places", nargs="*", metavar="PLACE", help=f"some of: {' '.join(PLACES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a first impression within seconds")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything there as JSON as well")
    parser.add_argument("--dir", help="where to work: an existing folder on the disk that is to be measured")
    parser.add_argument("--write-docs", action="store_true", help=f"write the results to {PAGE.name} in the manual")
    asked = parser.parse_args(arguments)
    unknown = set(asked.places) - set(PLACES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not one of {' '.join(PLACES)}")
    effort = QUICK if asked.quick else Effort()
    facts = machine(asked.dir or tempfile.gettempdir())
    rows = []
    for place in asked.places or PLACES:
        for row in import_module(f"benchmarks.{place}").run(effort, asked.dir):
            print(row.text(), end="\n\n", flush=True)
            rows.append(row)
    verdicts = [verdict for row in rows for verdict in row.verdicts]
    print(f"{sum(verdict.reached for verdict in verdicts)} of {len(verdicts)} goals reached.")
    if asked.json:
        asked.json.write_text(json.dumps(as_json(facts, rows, quick=asked.quick), indent=1, ensure_ascii=False) + "\n")
    if asked.write_docs:
        write_page(PAGE, facts, rows)
        print(f"Written to {PAGE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
