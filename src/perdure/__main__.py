"""`perdure ...` and `python -m perdure ...`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code; without `perdure[cli]` say what to type and exit with 2."""
    try:
        import rich  # noqa: F401 - used later and only by some commands, but whether it is there is to be known now

        from .cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        print(f"perdure: the command line needs {error.name}. Type: pip install 'perdure[cli]'", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
