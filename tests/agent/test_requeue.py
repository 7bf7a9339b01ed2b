"""Which process may queue its Slurm job again, and what it does about each state of the job."""

from __future__ import annotations

import pytest

from outlast.agent.requeue import batch_job, requeue

BATCH = {"SLURM_JOB_ID": "17", "SLURM_TASK_PID": "4711"}

SCONTROL = """#!/bin/sh
echo "$@" >> "{folder}/asked"
case $1 in
show) echo "JobId=17 JobName=JobStates JobState={state} Reason=None" ;;
requeue) {answer} ;;
esac
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A `scontrol` that knows one job: its state, and the answer to a wish to queue it again. Returns what it was asked."""

    def make(state, answer="true"):
        tool = tmp_path / "scontrol"
        tool.write_text(SCONTROL.format(folder=tmp_path, state=state, answer=answer))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return lambda: (tmp_path / "asked").read_text().splitlines()

    return make


@pytest.mark.parametrize(
    ("env", "job"),
    [
        (BATCH, "17"),
        (BATCH | {"SLURM_JOB_ID": "17_3"}, "17_3"),
        (BATCH | {"SLURM_TASK_PID": "4710"}, None),
        (BATCH | {"SLURM_STEP_ID": "0"}, None),
        ({"SLURM_JOB_ID": "17"}, None),
        (BATCH | {"SLURM_JOB_ID": "17; reboot"}, None),
        (BATCH | {"SLURM_JOB_ID": "--all"}, None),
        (BATCH | {"SLURM_JOB_ID": "17\n"}, None),
        ({}, None),
    ],
    ids=[
        "a batch script",
        "an array's",
        "its child",
        "a step",
        "salloc",
        "shell",
        "option",
        "line",
        "no Slurm",
    ],
)
def test_only_the_batch_script_itself_is_the_job(env, job):
    """The variables are inherited by all that a job starts, and are not trusted to be a job's number."""
    assert batch_job(env, 4711) == job


def test_a_running_job_is_queued_again_once(slurm, capfd):
    """First its state is asked."""
    asked = slurm("RUNNING")
    assert requeue("17")
    assert asked() == ["show job --oneliner 17", "requeue 17"]
    assert "Slurm job 17 is queued again" in capfd.readouterr().err


@pytest.mark.parametrize("state", ["PENDING", "COMPLETING", "CANCELLED"])
def test_a_job_that_slurm_is_ending_is_left_alone(slurm, capfd, state):
    """It is in the queue already, or somebody has cancelled it."""
    asked = slurm(state)
    assert not requeue("17")
    assert asked() == ["show job --oneliner 17"]
    assert f"is {state}" in capfd.readouterr().err


def test_a_refusal_is_said_with_what_to_do(slurm, capfd):
    """Slurm's own words, and the command."""
    slurm("RUNNING", "echo Job is not allowed >&2; exit 1")
    assert not requeue("17")
    said = capfd.readouterr().err
    assert "Job is not allowed" in said
    assert "scontrol requeue 17" in said
    assert "--requeue" in said


def test_a_missing_scontrol_is_said(tmp_path, monkeypatch, capfd):
    """It does not change the exit code."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue("17")
    assert "scontrol requeue 17" in capfd.readouterr().err
