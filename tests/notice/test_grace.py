"""How long a signal leaves: as given, else as what runs the job does it; said once, with where it comes from."""

from __future__ import annotations

import pytest

from outlast._errors import ConfigError
from outlast.notice.grace import grace, grace_s, system
from outlast.notice.watch import watch_machine

SAGEMAKER = {"TRAINING_JOB_ARN": "arn:aws:sagemaker:us-east-1:123456789012:training-job/mine"}


@pytest.fixture
def root(tmp_path):
    """The files of a machine that is no container."""
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n")
    (tmp_path / "run").mkdir()
    return tmp_path


def put_in_a_container(root, mark):
    path = root / mark
    path.write_text("11:pids:/docker/0f3e\n" if "cgroup" in mark else "")


def test_what_is_given_goes_before_all_that_is_found(root):
    """In a container, under Slurm: the user knows best."""
    put_in_a_container(root, ".dockerenv")
    found = grace({"OUTLAST_GRACE_S": "110.5", "SLURM_JOB_ID": "7"}, root)
    assert found.seconds == 110.5
    assert "OUTLAST_GRACE_S" in found.why


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "30s"])
def test_a_wrong_grace_time_is_refused(text):
    """A misread grace time would be a lost save."""
    with pytest.raises(ConfigError, match="OUTLAST_GRACE_S"):
        grace_s({"OUTLAST_GRACE_S": text})


def test_a_machine_that_says_nothing_leaves_30_s(root):
    """And so does one whose /proc is not shown."""
    assert grace({}, root).seconds == 30.0
    assert grace({}, root / "none").seconds == 30.0


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv", "proc/1/cgroup"])
def test_a_plain_container_leaves_10_s(root, mark):
    """`docker stop` and `podman stop`."""
    put_in_a_container(root, mark)
    assert grace({}, root).seconds == 10.0
    assert grace({}, root).why == "a plain container's (docker stop); --grace changes it"


@pytest.mark.parametrize(
    ("env", "runs", "seconds"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "Kubernetes", 30.0),
        ({"SLURM_JOB_ID": "7"}, "Slurm", 30.0),
        ({"SLURM_JOB_ID": "7", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "Slurm", 30.0),
        ({"SM_HOSTS": '["algo-1"]'}, "SageMaker", 120.0),
        (SAGEMAKER, "SageMaker", 120.0),
    ],
)
def test_a_container_of_a_system_leaves_what_the_system_does(root, env, runs, seconds):
    """Their jobs run in containers as well, and nobody says docker stop."""
    put_in_a_container(root, ".dockerenv")
    assert system(env) == runs
    assert grace(env, root).seconds == seconds


def test_what_is_listened_to_is_said_in_one_line_with_the_grace(tmp_path):
    """The places, the system, and what to do if the grace is another."""
    env = {"OUTLAST_NOTICE": "slurm", "OUTLAST_NOTICE_FILE": str(tmp_path / "n"), "SLURM_JOB_ID": "7"}
    watch = watch_machine(env)
    watch.close()
    assert watch.says == (
        "notices are heard from the notice file and signals, under Slurm; "
        "grace 30 s: its KillWait where nothing else is set; --grace changes it"
    )
