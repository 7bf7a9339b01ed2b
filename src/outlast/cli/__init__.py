"""The command `outlast`. Each command is a file with an `app`, imported when it is used, so that `run` starts at once."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version

from cyclopts import App

from outlast._errors import OutlastError

COMMANDS = ("run", "drill", "checkpoints", "status", "plan", "simulate", "logs", "fit")


def main() -> None:
    """Run the command line; an error of ours is a message and its exit code, not a traceback."""
    try:
        command_line(sys.argv[1:])()
    except OutlastError as error:
        print(f"outlast: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def command_line(arguments: list[str]) -> App:
    """Build the commands that `arguments` need: the one they name, or all for the overview."""
    app = App(
        name="outlast",
        help="GPU training that survives spot and preemptible machines.",
        version=lambda: version("outlast"),
        version_flags=["--version"],
    )
    first = arguments[0] if arguments else ""
    for name in COMMANDS:
        if first == name or first not in {*COMMANDS, "--version"}:
            app.command(import_module(f"outlast.cli.{name}").app, name=name)
    return app
