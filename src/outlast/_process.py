"""Which process this is: its rank, its launch, its scheduler's job, and whether another one still lives. No torch."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outlast._errors import ConfigError
from outlast.checkpoint.manifest import ProcessId

_JOB_VARIABLES = {
    "SKYPILOT_TASK_ID": "skypilot",
    "AWS_BATCH_JOB_ID": "aws-batch",
    "PBS_JOBID": "pbs",
}
"""Variables that name a scheduler's job and stay the same when it is started again after a preemption."""


@dataclass(frozen=True)
class World:
    """This process among the ranks: `0 <= rank < size`; `local_rank` counts on this node."""

    rank: int
    size: int
    local_rank: int


def world(env: Mapping[str, str]) -> World:
    """Read the world from torchrun's variables, or from srun's; a process alone is rank 0 of 1.

    Slurm sets SLURM_PROCID for a batch script too, which is one process whatever --ntasks says: only inside a step
    of srun (which sets SLURM_STEP_NUM_TASKS) do its variables count ranks.

    Raises:
        ConfigError: the variables contradict each other.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        found = World(_number(env, "RANK"), _number(env, "WORLD_SIZE"), _number(env, "LOCAL_RANK"))
    elif "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:
        size = _number(env, "SLURM_STEP_NUM_TASKS")
        found = World(_number(env, "SLURM_PROCID"), size, _number(env, "SLURM_LOCALID"))
    else:
        return World(0, 1, 0)
    if not 0 <= found.rank < found.size or found.local_rank < 0:
        msg = f"rank {found.rank} of a world of {found.size}: the variables of the launcher contradict each other"
        raise ConfigError(msg)
    return found


def job_id(env: Mapping[str, str]) -> str | None:
    """The scheduler's job, e.g. `slurm-5`, and `slurm-5#1` once Slurm has started it again; None outside of one."""
    job = _job(env)
    restarts = _number(env, "SLURM_RESTART_COUNT")
    return f"{job}#{restarts}" if job is not None and job.startswith("slurm-") and restarts else job


def job_and_restarts(job_id: str | None) -> tuple[str | None, int]:
    """The job of a `job_id`, the same whenever it is started again, and how often it was, where that is known."""
    job, _, restarts = (job_id or "").partition("#")
    return job or None, int(restarts) if restarts.isdecimal() else 0


def _job(env: Mapping[str, str]) -> str | None:
    if env.get("SLURM_ARRAY_JOB_ID") and env.get("SLURM_ARRAY_TASK_ID"):
        return f"slurm-{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    if env.get("SLURM_JOB_ID"):
        return f"slurm-{env['SLURM_JOB_ID']}"
    for variable, scheduler in _JOB_VARIABLES.items():
        if env.get(variable):
            return f"{scheduler}-{env[variable]}"
    return None


def launch_id(env: Mapping[str, str]) -> str:
    """One launch, relaunches included: that of `outlast run`, else of torchelastic, else of the job, else a new one."""
    if env.get("OUTLAST_LAUNCH_ID"):
        return env["OUTLAST_LAUNCH_ID"]
    elastic = env.get("TORCHELASTIC_RUN_ID", "none")
    if elastic != "none":  # torchrun's default, the same for everybody
        return f"torchelastic-{elastic}"
    return _job(env) or secrets.token_hex(8)


def process_id(pid: int | None = None) -> ProcessId:
    """Name a living process of this machine (default: this one), so that a later one of its pid is told apart.

    Raises:
        ProcessLookupError: there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    ticks = _start_ticks(pid)
    if ticks is None:
        msg = f"no process {pid}"
        raise ProcessLookupError(msg)
    return ProcessId(host=socket.gethostname(), machine=_machine(), pid=pid, start_ticks=ticks)


def process_alive(process: ProcessId) -> bool | None:
    """Whether a process still lives; None where this machine, or container, cannot tell.

    A zombie is not alive: it does nothing any more.
    """
    if process.machine != _machine():
        return None
    return _start_ticks(process.pid) == process.start_ticks


def _machine() -> str:
    """Boot and pid namespace: what makes two pids comparable."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None if there is no such process, or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold spaces and parentheses
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _number(env: Mapping[str, str], variable: str) -> int:
    try:
        return int(env.get(variable, "0"))
    except ValueError:
        msg = f"{variable} is {env[variable]!r}; expected a number, as torchrun and srun set it"
        raise ConfigError(msg) from None
