"""What can be done here: `python3 noxfile.py -s demo`, or tests, torture, frameworks, lint, types, docs, bench, wheel.

With nox installed, `nox -s demo` does the same. Without it this file makes a virtual environment for nox first, so a machine
needs nothing but Python 3.11 or newer.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.2"]
# ///

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

try:
    import nox
except ModuleNotFoundError:
    home = HERE / ".nox" / "nox-itself"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"nox is not installed: putting it into {home}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(home)], check=False).returncode:
            sys.exit("This Python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv")
    # Again each time, so that an installation that was interrupted does not stay half done; it takes a second.
    subprocess.run([python, "-m", "pip", "install", "-q", "nox>=2025.2"], check=True)
    sys.exit(subprocess.run([python, "-m", "nox", "-f", __file__, *sys.argv[1:]], check=False).returncode)

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True


@nox.session
def demo(session: nox.Session) -> None:
    """Several processes count words together, are killed, and finish. `-- --on sqlite|memory|s3` for another place."""
    extras = "demo" if "s3" in session.posargs else "cli"
    session.install("-e", f".[{extras}]")
    session.run("perdure", "demo", *session.posargs)


# Those that share the one SeaweedFS of a machine, or wait for killed processes; about half of the time goes there.
APART = ["tests/backends", "tests/caching", "tests/locks", "tests/torture"]


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, with the long batteries cut short, in two processes. With arguments, pytest with these."""
    in_two_processes(session, [], {})


@nox.session
def torture(session: nox.Session) -> None:
    """All tests, with all rounds of the long batteries. With arguments, pytest with these."""
    in_two_processes(session, ["--timeout=3600"], {"PERDURE_ROUNDS": os.environ.get("PERDURE_ROUNDS", "10")})


def in_two_processes(session: nox.Session, options: list[str], settings: dict[str, str]) -> None:
    session.install("-e", ".[dev]")
    if session.posargs:
        session.run("pytest", *options, *session.posargs, env=settings)
        return
    environment = os.environ | settings | {"PATH": os.pathsep.join([session.bin, os.environ.get("PATH", os.defpath)])}
    python = shutil.which("python", path=session.bin) or sys.executable
    with tempfile.TemporaryFile("w+") as log:
        apart = subprocess.Popen(
            [python, "-m", "pytest", *options, *APART], cwd=HERE, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            session.run("pytest", *options, "tests", *[f"--ignore={folder}" for folder in APART], env=settings)
        finally:
            failed = apart.wait()
            log.seek(0)
            print(log.read(), flush=True)
    if failed:
        session.error("some of the tests that ran apart have failed; see above")


@nox.session
def frameworks(session: nox.Session) -> None:
    """The tests that need PyTorch, which with all it brings is several gigabytes."""
    session.install("-e", ".[dev]", "torch")
    session.run("pytest", "tests/snapshots", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel and run the smoke tests against it, with the source tree out of reach."""
    session.install("build", "pytest", "pytest-timeout")
    outside = Path(session.create_tmp()).resolve()
    shutil.rmtree(outside)
    shutil.copytree(HERE / "tests", outside / "tests")
    session.run("python", "-m", "build", "-q", "--outdir", str(outside), str(HERE))
    (built,) = outside.glob("*.whl")
    session.install("--force-reinstall", f"perdure[all] @ {built.as_uri()}")
    session.chdir(outside)
    session.run("pytest", "-c", os.devnull, "--rootdir", str(outside), "-m", "smoke", "tests/test_smoke.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes."""
    session.install("ruff>=0.11")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict and pyright."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """The manual, in docs/_build/html. A broken link or reference is an error."""
    session.install("-e", ".[all,docs]")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Our numbers beside the same system calls by hand, persidict and diskcache. `-- file sqlite --quick` for some."""
    session.install("-e", ".[all,bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)


if __name__ == "__main__":
    nox.main()
