"""A Slurm batch job that leaves before it is stopped puts itself back into the queue.

Slurm queues a preempted job again only if it has to kill it: one that ends by itself inside its grace time is complete.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from outlast._say import say

_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
_STATE = re.compile(r"\bJobState=([A-Z_]+)")
_ANSWER_S = 10.0
"""For one answer of slurmctld. Slurm's own tools wait as long (MessageTimeout's default), and a grace time is hardly longer."""


def batch_job(env: Mapping[str, str], pid: int) -> str | None:
    """Name the Slurm job whose batch script process `pid` is; None if it is none.

    A step of srun, a shell of salloc and what a batch script starts beside itself inherit the job's variables and are not
    the job: only the batch script's own process has the pid that Slurm recorded for it.
    """
    job = env.get("SLURM_JOB_ID", "")
    steps = "SLURM_STEP_ID" in env or "SLURM_STEPID" in env
    mine = env.get("SLURM_TASK_PID") == str(pid)
    return job if mine and not steps and _JOB.fullmatch(job) else None


def requeue(job: str) -> bool:
    """Queue `job`, which still runs, again; says what became of it. Whether Slurm took it.

    A job that slurmctld is ending already is left alone: a preempted one is in the queue by then, and one that somebody has
    cancelled must not come back.
    """
    try:
        state = _STATE.search(_scontrol("show", "job", "--oneliner", job))
        if state is None or state[1] != "RUNNING":
            found = state[1] if state else "unknown"
            say(f"Slurm job {job} is {found}, no longer RUNNING: what becomes of it is Slurm's to decide")
            return False
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        say(
            f"Slurm job {job} could not be queued again ({why}). Run `scontrol requeue {job}`, or submit it again: it continues; "
            "jobs must be allowed to be queued again (sbatch --requeue)"
        )
        return False
    say(f"Slurm job {job} is queued again")
    return True


def _scontrol(*arguments: str) -> str:
    """Ask slurmctld; the answer.

    Raises:
        OSError: there is no scontrol.
        subprocess.SubprocessError: it failed, or gave no answer in time.
    """
    done = subprocess.run(
        ["scontrol", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_ANSWER_S,
        check=True,
        start_new_session=True,  # a signal to this job's whole group must not cost the answer
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout
