"""On a real Slurm: a job that is preempted comes back by itself, and ends as if nothing had happened.

What is judged is what slurmctld says of the job, and what the script wrote itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import TRAIN, Lab, eventually, history

SLURM = Path(__file__).parents[3] / "shared" / "lab" / "slurm.sh"

BATCH = f"""#!/bin/bash
#SBATCH --job-name=train --partition=spot --nodes=1 --ntasks=1 --requeue --open-mode=append --signal=B:USR2@10
exec {Path(sys.executable).with_name("outlast")} run -- {sys.executable} {TRAIN}
"""

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The variables of a cluster of two nodes, on which a job in `ondemand` preempts those in `spot`."""
    missing = [tool for tool in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(tool) is None]
    if not SLURM.exists() or missing or os.getuid() != 0:
        pytest.skip(f"lab: needs root, {SLURM}, and Debian's packages slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    with (folder / "said").open("wb") as said:  # no pipe: the daemons would keep it open
        subprocess.run(["bash", SLURM, "start", folder], stdout=said, stderr=said, check=True, timeout=60)
    yield {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run(["bash", SLURM, "stop", folder], check=True, timeout=60)


class Queue:
    """The jobs of a test."""

    def __init__(self, lab: Lab, cluster: dict[str, str]) -> None:
        self.lab = lab
        self._env = {**lab.env, **cluster}
        self.jobs: list[str] = []

    def ask(self, *command: str, **env: str) -> str:
        """Run one of Slurm's commands."""
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.lab.folder, env=self._env | env, timeout=30
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def submit(self, *arguments: str, **env: str) -> str:
        """Submit a job; its number."""
        self.jobs.append(self.ask("sbatch", "--parsable", *arguments, **env).strip())
        return self.jobs[-1]

    def train(self, **env: str) -> str:
        """Submit the training job."""
        script = self.lab.folder / "job.sh"
        script.write_text(BATCH)
        return self.submit("--output=train.log", str(script), **env)

    def said(self) -> str:
        """What the training job said."""
        log = self.lab.folder / "train.log"
        return log.read_text() if log.exists() else ""

    def state(self, job: str) -> tuple[str, int]:
        """What slurmctld says: state, and how often it was started again."""
        shown = self.ask("scontrol", "show", "job", "--oneliner", job)
        found = re.search(r"JobState=(\S+).* Restarts=(\d+)", shown)
        assert found, shown
        return found[1], int(found[2])

    def becomes(self, job: str, state: str, restarts: int = 0) -> None:
        """Wait until a job has a state."""
        eventually(
            f"job {job} is {state}, started again {restarts} times",
            lambda: self.state(job) == (state, restarts),
            lambda: f"{self.state(job)}\n{self.said()}",
        )


@pytest.fixture
def queue(lab, cluster):
    """Where jobs are submitted; what is left of them is cancelled."""
    queue = Queue(lab, cluster)
    yield queue
    subprocess.run(["scancel", *queue.jobs], env={**lab.env, **cluster}, check=True, timeout=30)


def test_a_preempted_job_queues_itself_again_and_ends_bit_exact(queue, tmp_path_factory, zygote):
    """Slurm: a job that ends cleanly inside the grace time counts as complete and is not queued again"""
    undisturbed = Lab(tmp_path_factory.mktemp("undisturbed"), zygote)
    alone = undisturbed.script()
    lab = queue.lab
    job = queue.train(T_GATES="step:5")
    first = lab.at("step:5")
    other = queue.submit(
        "--partition=ondemand", "--nodes=2", "--ntasks=4", "--output=other.log", "--wrap=true"
    )
    eventually("the notice is heard", lambda: "this machine goes away" in queue.said(), queue.said)
    lab.open("step:5")
    queue.becomes(other, "COMPLETED")
    queue.becomes(job, "PENDING", restarts=1)
    lost = len(lab.of("step")) - lab.commits()[-1]["step"]
    assert lost <= 1, queue.said()
    assert lab.commits()[-1]["reason"] == "emergency"

    queue.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm itself waits two minutes
    queue.becomes(job, "COMPLETED", restarts=1)
    assert alone.wait() == 0, undisturbed.said()
    assert len(lab.of("run")) == 2
    assert lab.of("run")[1]["resumed"] and lab.of("run")[1]["pid"] != first
    assert len(lab.of("step")) == 18 + lost, "no step is done twice but one that was lost"
    assert history(lab.records) == history(undisturbed.records)
    assert len(lab.of("end")) == 1
    assert lab.of("end")[0]["digest"] == undisturbed.of("end")[0]["digest"]


def test_a_cancelled_job_stays_cancelled(queue):
    """Who cancels a job does not want it back, and yet nothing of it is lost."""
    job = queue.train(T_GATES="step:5")
    queue.lab.at("step:5")
    queue.ask("scancel", "--full", job)
    eventually("the signal is heard", lambda: "this machine goes away" in queue.said(), queue.said)
    queue.lab.open("step:5")
    queue.becomes(job, "CANCELLED")
    eventually("it is saved", lambda: queue.lab.commits()[-1:], queue.said)
    assert queue.lab.commits()[-1]["step"] >= 5
