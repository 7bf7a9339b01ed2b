"""Whatever Outlast would do wrong, the drill notices: each sabotage makes it fail, and says what went wrong."""

import os
import re
from pathlib import Path

import pytest

from outlast.drill.bundled import Options, drill_bundled, train_undisturbed
from outlast.drill.schedule import Kind

SABOTAGE = Path(__file__).parent / "sabotage"
TINY = (
    *("--epochs", "3", "--samples", "320", "--batch-size", "8", "--context", "64"),
    *("--width", "32", "--layers", "1", "--validation", "100", "--workers", "1"),
)


def options(kinds, undisturbed=None, sabotage=None, **more):
    paths = filter(None, [os.environ.get("PYTHONPATH")])
    env = (
        {}
        if sabotage is None
        else {"SABOTAGE": sabotage, "PYTHONPATH": os.pathsep.join([str(SABOTAGE), *paths])}
    )
    return Options(
        kinds=kinds,
        interval_steps=4,
        arguments=TINY,
        env=env,
        undisturbed=undisturbed,
        stall_s=40.0,
        seed=6,
        **more,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drill") / "undisturbed"
    course, final = train_undisturbed(folder, options(()))
    assert not course.failures and course.exit_code == 0 and final
    return folder


def test_an_honest_outlast_passes(undisturbed):
    """With nothing sabotaged, the same small drill passes: what fails below fails because of the sabotage."""
    report = drill_bundled(options((Kind.KILL_BOTH, Kind.KILL_IN_TAIL), undisturbed))
    assert report.passed, report.failures
    assert report.bit_identical and report.first_difference is None
    assert (report.samples_repeated, report.samples_skipped, report.steps) == (0, 0, 60)
    assert [item.guarantee for item in report.interruptions] == ["bit-exact", "bit-exact"]


@pytest.mark.parametrize(
    ("sabotage", "kinds", "says"),
    [
        ("generators not restored", (Kind.KILL_BOTH,), "final state differs"),
        ("position shifted by one", (Kind.KILL_BOTH,), "step [0-9]+: used samples"),
        ("optimizer buffer missing", (Kind.KILL_BOTH,), "final state differs.*first at model"),
        ("restoring switched off", (Kind.KILL_BOTH,), "[0-9]+ steps were lost; at most"),
        ("saves never committed", (Kind.KILL_BOTH,), "[0-9]+ steps were lost; at most"),
        ("notices ignored", (Kind.SIGTERM,), "SIGTERM: it (had not ended 3 s later|ended with 0)"),
        ("tail run twice", (Kind.SIGTERM_IN_VALIDATION,), "tails counted; undisturbed"),
        ("tail not run", (Kind.KILL_IN_TAIL,), "was not run to its end"),
    ],
)
def test_sabotage_is_noticed(sabotage, kinds, says, undisturbed):
    """A drill of a sabotaged Outlast fails, and one of its reasons is the one that was planted."""
    grace_s = 3.0 if sabotage == "notices ignored" else 20.0
    report = drill_bundled(options(kinds, undisturbed, sabotage, grace_s=grace_s))
    assert not report.passed
    assert any(re.search(says, failure) for failure in report.failures), report.failures
