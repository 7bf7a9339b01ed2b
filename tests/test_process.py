"""Ranks, launches and jobs from real launchers' variables; processes told apart by more than their pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from outlast import ConfigError
from outlast._process import World, job_and_restarts, job_id, launch_id, process_alive, process_id, world


def test_a_process_alone_is_rank_0_of_1():
    """Also inside a batch script of Slurm that asked for eight tasks."""
    assert world({}) == World(0, 1, 0)
    assert world({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == World(0, 1, 0)


def test_torchrun_and_srun_count_ranks():
    """torchrun's variables stand before srun's: it runs inside of a step."""
    srun = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    assert world(srun) == World(5, 8, 1)
    assert world({**srun, "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}) == World(2, 4, 0)


@pytest.mark.parametrize("env", [{"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "4"}])
def test_contradicting_variables_are_refused(env):
    """A rank outside the world would write under another's name."""
    with pytest.raises(ConfigError):
        world(env)


def test_a_job_keeps_its_id_when_it_is_started_again():
    """And how often that was stands beside it. The array task is part of it; outside of a scheduler there is none."""
    assert job_id({}) is None
    again = job_id({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert (job_id({"SLURM_JOB_ID": "7"}), again) == ("slurm-7", "slurm-7#1")
    assert job_and_restarts("slurm-7") == ("slurm-7", 0)
    assert job_and_restarts(again) == ("slurm-7", 1)
    assert job_and_restarts(None) == (None, 0)
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert job_id(array) == "slurm-7_2"
    assert job_id({"SKYPILOT_TASK_ID": "sky-1"}) == "skypilot-sky-1"


def test_a_launch_is_the_agents_then_torchelastics_then_the_jobs():
    """Two starts by hand are two launches; torchrun's default id is nobody's."""
    job = {"SLURM_JOB_ID": "7"}
    elastic = {**job, "TORCHELASTIC_RUN_ID": "abc"}
    assert launch_id({**elastic, "OUTLAST_LAUNCH_ID": "x"}) == "x"
    assert launch_id(elastic) == "torchelastic-abc"
    assert launch_id({**job, "SLURM_RESTART_COUNT": "2"}) == "slurm-7"
    assert launch_id(job) == launch_id({**job, "TORCHELASTIC_RUN_ID": "none"}) == "slurm-7"
    assert launch_id({}) != launch_id({})


def test_this_process_is_alive():
    """And its name survives the way through the store."""
    me = process_id()
    assert (me.pid, process_alive(me)) == (os.getpid(), True)
    assert process_alive(msgspec.json.decode(msgspec.json.encode(me), type=type(me))) is True


def test_a_process_that_was_killed_is_gone_even_before_it_is_reaped():
    """A zombie holds the pid and does nothing any more."""
    child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    with child:
        child.stdout.readline()
        named = process_id(child.pid)
        assert process_alive(named) is True
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_alive(named) is False
    assert process_alive(named) is False
    with pytest.raises(ProcessLookupError):
        process_id(child.pid)


def test_a_later_process_of_the_same_pid_is_another_one():
    """The start time tells them apart."""
    me = process_id()
    assert process_alive(msgspec.structs.replace(me, start_ticks=me.start_ticks - 1)) is False


def test_another_machine_cannot_tell():
    """Another boot or pid namespace: the pid says nothing here."""
    assert process_alive(msgspec.structs.replace(process_id(), machine="other")) is None


def test_a_name_with_parentheses_is_read_right(tmp_path):
    """The kernel writes the command's name, whatever it is, into the middle of the line."""
    program = tmp_path / "a) Z 1 ("
    program.symlink_to("/bin/cat")
    with subprocess.Popen([str(program)], stdin=-1) as child:
        assert process_alive(process_id(child.pid)) is True
        child.stdin.close()
