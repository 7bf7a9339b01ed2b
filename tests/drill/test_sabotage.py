"""Whatever Outlast would do wrong, the drill notices: each sabotage makes it fail, and says what went wrong."""

import os
import re
import time
from pathlib import Path

import pytest

from outlast.drill import bundled
from outlast.drill.bundled import Options, drill_bundled, train_undisturbed
from outlast.drill.machine import Machine
from outlast.drill.schedule import Kind, Planned

INSIDE = Path(__file__).parent / "inside"
TINY = (
    *("--epochs", "3", "--samples", "320", "--batch-size", "8", "--context", "64"),
    *("--width", "32", "--layers", "1", "--validation", "10", "--workers", "1"),
)
HELD, SLOW = 40, 30
"""Steps at which `inside/hold.py` holds the first trainer, or makes it slow."""
SAVED_AND_KILLED = (Kind.KILL_BOTH, HELD - 1, "until saved and killed")


def drill(kind, at_step, undisturbed, monkeypatch, *, grace_s=20.0, **env):
    """Drill it with one interruption at a moment that the test chooses."""
    monkeypatch.setattr(bundled, "schedule", lambda *_: [Planned(kind, at_step, 0.01)])
    return drill_bundled(options(undisturbed=undisturbed, env=env, grace_s=grace_s))


def options(*, env, **more):
    paths = [str(INSIDE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths), **env}
    return Options(interval_steps=4, arguments=TINY, env=env, stall_s=60.0, **more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drill") / "undisturbed"
    course, final = train_undisturbed(folder, options(env={}))
    assert not course.failures and course.exit_code == 0 and final
    return folder


@pytest.mark.parametrize(
    ("kind", "at_step", "hold"),
    [
        (Kind.KILL_BOTH, HELD - 1, "until saved and killed"),
        (Kind.SIGTERM, SLOW, "slow steps"),
        (Kind.KILL_IN_TAIL, 20, "slow tails"),
    ],
)
def test_an_honest_outlast_passes(kind, at_step, hold, undisturbed, monkeypatch):
    """With nothing sabotaged, the same drills pass: what fails below fails because of the sabotage."""
    report = drill(kind, at_step, undisturbed, monkeypatch, HOLD=hold)
    assert report.passed, report.failures
    assert report.bit_identical and report.first_difference is None
    assert (report.samples_repeated, report.samples_skipped, report.steps) == (0, 0, 60)
    assert [(item.kind, item.guarantee) for item in report.interruptions] == [(kind, "bit-exact")]


@pytest.mark.parametrize(
    ("sabotage", "kind", "at_step", "hold", "says"),
    [
        ("generators not restored", *SAVED_AND_KILLED, "final state differs"),
        ("position shifted by one", *SAVED_AND_KILLED, "step [0-9]+: used samples"),
        ("optimizer buffer missing", *SAVED_AND_KILLED, "final state differs.*first at model"),
        ("restoring switched off", *SAVED_AND_KILLED, "resumed behind step 0, though a checkpoint of step"),
        ("saves never committed", Kind.KILL_BOTH, 30, "", "newest checkpoint on the store is of step 0"),
        ("notices ignored", Kind.SIGTERM, SLOW, "slow steps", "SIGTERM: it had not ended 3 s later"),
        ("tail run twice", Kind.SIGTERM_IN_VALIDATION, 20, "slow tails", "tails counted; undisturbed"),
        ("tail not run", Kind.KILL_IN_TAIL, 20, "slow tails", "was not run to its end"),
    ],
)
def test_sabotage_is_noticed(sabotage, kind, at_step, hold, says, undisturbed, monkeypatch):
    """A drill of a sabotaged Outlast fails, and one of its reasons is the one that was planted."""
    grace_s = 3.0 if sabotage == "notices ignored" else 20.0
    report = drill(kind, at_step, undisturbed, monkeypatch, SABOTAGE=sabotage, HOLD=hold, grace_s=grace_s)
    assert not report.passed
    assert any(re.search(says, failure) for failure in report.failures), report.failures


def test_a_drill_that_is_late_passes_and_says_so(undisturbed, monkeypatch):
    """Each second kill comes when the resumed run trains already: plain kills are reported, and that the moment was missed."""

    def stop_too_late(machine, _pid):
        record = machine.log.with_name("record.jsonl")
        before = record.stat().st_size
        while record.stat().st_size == before and machine.supervisor is not None:
            time.sleep(0.01)

    monkeypatch.setattr(Machine, "stop", stop_too_late)
    report = drill(Kind.KILL_WHILE_RESUMING, 9, undisturbed, monkeypatch)
    assert report.passed, report.failures
    assert {item.kind for item in report.interruptions} == {"kill-both"}
    assert [note.split()[0].rstrip(":") for note in report.notes] == ["kill-while-resuming"]
