"""How long a signal leaves until the end: as given, or as what runs this job does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outlast._errors import ConfigError
from outlast.notice.base import DEFAULT_GRACE_S

System = Literal["SageMaker", "Slurm", "Kubernetes"]
"""What starts and ends a job, and tells it by a signal when it does."""
CONTAINER_GRACE_S = 10.0
"""`docker stop` and `podman stop` wait so long where nothing else is said."""
_OF_SYSTEM: dict[System, tuple[float, str]] = {
    "Kubernetes": (30.0, "its terminationGracePeriodSeconds where nothing else is set"),
    "SageMaker": (120.0, "its time to stop a job"),
    "Slurm": (30.0, "its KillWait where nothing else is set"),
}
"""What each leaves between SIGTERM and SIGKILL, as documented: Kubernetes' "Pod Lifecycle", SageMaker's "StoppingCondition",
slurm.conf's KillWait."""
_MARKS = ("/.dockerenv", "/run/.containerenv")
_CGROUPS = ("docker", "libpod")
"""Parts of the names of Docker's and Podman's cgroups, where those are shown (cgroup v1)."""


@dataclass(frozen=True)
class Grace:
    """Seconds from a signal to the end, and a text that says where they come from."""

    seconds: float
    why: str


def grace(env: Mapping[str, str], root: Path = Path("/")) -> Grace:
    """`$OUTLAST_GRACE_S`, else what the system that runs this job leaves, 10 s in a plain container, 30 s elsewhere.

    Raises:
        ConfigError: the variable is no number of seconds.
    """
    text = env.get("OUTLAST_GRACE_S", "")
    if text:
        return Grace(_seconds(text), "as OUTLAST_GRACE_S (--grace) says")
    of = system(env)
    if of is not None:
        seconds, why = _OF_SYSTEM[of]
        return Grace(seconds, f"{why}; --grace changes it")
    if _is_in_container(root):
        return Grace(CONTAINER_GRACE_S, "a plain container's (docker stop); --grace changes it")
    return Grace(DEFAULT_GRACE_S, "nothing else is known; --grace changes it")


def system(env: Mapping[str, str]) -> System | None:
    """What runs this job, by the variables that it sets; None where it is none of those known."""
    if "SM_HOSTS" in env or ":sagemaker:" in env.get("TRAINING_JOB_ARN", ""):
        return "SageMaker"
    if "SLURM_JOB_ID" in env:  # also where its nodes are Kubernetes' pods: it is Slurm that ends the job
        return "Slurm"
    return "Kubernetes" if "KUBERNETES_SERVICE_HOST" in env else None


def grace_s(env: Mapping[str, str]) -> float:
    """The seconds of `grace`."""
    return grace(env).seconds


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        msg = (
            f"OUTLAST_GRACE_S is {text!r}; expected seconds between SIGTERM and SIGKILL, such as 30 or 110.5"
        )
        raise ConfigError(msg)
    return seconds


def _is_in_container(root: Path) -> bool:
    if any((root / mark.lstrip("/")).exists() for mark in _MARKS):
        return True
    try:
        cgroups = (root / "proc/1/cgroup").read_text(errors="replace")
    except OSError:
        return False
    return any(name in cgroups for name in _CGROUPS)
