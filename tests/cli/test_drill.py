"""`outlast drill`: options that make no sense are refused before anything is trained."""

import os
import signal
import subprocess
import sys

import pytest

from launch import eventually


def drill(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "outlast", "drill", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "5"), "--steps is for your own script"),
        (("--interruptions", "0"), "--interruptions is 0; expected 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, says):
    """Exit 78 and a line that says what was given and what is expected."""
    done = drill(*arguments)
    assert done.returncode == 78
    assert says in done.stderr


def test_a_command_that_is_no_training_fails_and_says_so():
    """A program without torch leaves no record: exit 1, with the reason in the report."""
    done = drill("--json", "--", "true")
    assert done.returncode == 1
    assert "nothing was recorded" in done.stdout


def test_a_drill_that_is_ended_leaves_nothing_behind(tmp_path):
    """SIGTERM, as a CI job that is cancelled gets it: what the drill had started ends with it."""
    pid = tmp_path / "pid"
    script = f"import os, time; open({str(tmp_path / 'new')!r}, 'w').write(str(os.getpid())); os.rename({str(tmp_path / 'new')!r}, {str(pid)!r}); time.sleep(600)"
    drilling = subprocess.Popen(
        [sys.executable, "-m", "outlast", "drill", "--", sys.executable, "-c", script]
    )
    started = int(eventually("the script runs", lambda: pid.exists() and pid.read_text()))
    drilling.send_signal(signal.SIGTERM)
    assert drilling.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)
