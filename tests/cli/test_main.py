"""The command line as a person meets it: help with examples, errors without tracebacks, a quick start."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from outlast.cli import COMMANDS


def outlast(*arguments: str):
    return subprocess.run(
        [sys.executable, "-m", "outlast", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_the_overview_names_every_command():
    """With a line on what each is for."""
    done = outlast("--help")
    assert done.returncode == 0, done.stderr
    lines = {line.strip("│ ").split("  ")[0]: line for line in done.stdout.splitlines()}
    for name in COMMANDS:
        assert len(lines[name].split()) > 4, lines[name]


@pytest.mark.parametrize(
    "name", ["run", "drill", "checkpoints list", "checkpoints verify", "checkpoints export", "status"]
)
def test_the_help_of_a_command_has_an_example(name):
    """Something to copy, that starts with the command."""
    done = outlast(*name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert f"outlast {name} " in done.stdout.replace(f"Usage: outlast {name} ", "")


def test_the_version_is_the_packages():
    """`--version` prints the number and nothing else."""
    assert outlast("--version").stdout.strip() == version("outlast")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run",), "expected it after --"),
        (("run", "--store-wait", "long", "--", "true"), "--store-wait is 'long'"),
        (("run", "--max-restarts", "-1", "--", "true"), "--max-restarts is -1"),
        (("run", "--", "/no/such/program"), "/no/such/program"),
    ],
)
def test_an_error_is_a_message_and_its_exit_code(arguments, said):
    """78 for a wrong configuration, so that a scheduler does not try again; no traceback."""
    done = outlast(*arguments)
    assert done.returncode == 78
    assert said in done.stderr
    assert done.stderr.startswith("outlast: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("checkpoints", "prune", "run", "--keep-last", "2.9"),
        ("logs", "run", "--tail", "1e3"),
        (
            "simulate",
            "--traces",
            "x",
            "--work",
            "1h",
            "--deadline",
            "2h",
            "--overhead",
            "0s",
            "--nodes",
            "1.5",
        ),
    ],
)
def test_a_number_that_is_not_whole_is_not_rounded(arguments):
    """It would say that fewer are kept, shown or counted than were asked for."""
    done = outlast(*arguments)
    assert done.returncode != 0
    assert done.stderr == f"outlast: {arguments[-2]} is {arguments[-1]!r}; expected a whole number\n"


def test_what_follows_the_dashes_is_the_scripts():
    """Its options are not taken for ours, and its exit code is passed on."""
    script = "import sys; print(sys.argv[1:]); sys.exit(0 if sys.argv[1:] == ['--help', '--store', 'x', '--'] else 9)"
    done = outlast(
        "run", "--max-restarts", "0", "--", sys.executable, "-c", script, "--help", "--store", "x", "--"
    )
    assert done.returncode == 0, done.stderr + done.stdout
