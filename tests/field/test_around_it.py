"""Around it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from field.torchless import events
from integrations.wandb_server import wandb_server
from launch import eventually, history
from outlast.drill.metadata import (
    AWS_ACTION,
    AZURE_EVENTS,
    announce,
    arm,
    environment,
    metadata_service,
)

TRACKED = Path(__file__).parents[1] / "integrations" / "tracked.py"


def test_an_experiment_tracker_forked_or_dropped_replayed_steps(lab):
    """experiment tracker forked into a new run at every preemption, or dropped replayed steps (wandb 4482)

    wandb's own client, and a server that keeps what it sends: killed with steps logged that no save holds, then preempted.
    """
    with wandb_server() as server:

        def start(**env):
            return lab.script(
                path=TRACKED, T_TRACKERS="wandb", OUTLAST_SAVE_EVERY="4 steps", **server.env, **env
            )

        script = start(T_GATES="step:5")
        lab.at("step:5")
        eventually(
            "what is durable is shown", lambda: [len(r) for r in server.history.values()] == [4], lab.said
        )
        script.kill()
        script.wait()
        lab.open("step:5")
        script = start(T_GATES="step:10")
        lab.at("step:10")
        script.kill(signal.SIGTERM)
        lab.open("step:10")
        assert script.wait() == os.EX_TEMPFAIL, lab.said()
        assert start().wait() == 0, lab.said()
        ((_, rows),) = server.history.items()
        ((_, states),) = server.states.items()
    whole: dict[int, dict[str, float]] = {}
    for record in lab.of("logged"):
        whole.setdefault(record["step"], {}).update(record["values"])
    assert [row["_step"] for row in rows] == list(range(19)), "each step once, in order"
    shown = [{name: value for name, value in row.items() if name[0] != "_"} for row in rows]
    assert shown == [whole[step] for step in range(19)]
    assert states == [(os.EX_TEMPFAIL, True), (0, False)]


def test_a_cancelled_notice_stopped_the_job_all_the_same(lab):
    """a cancelled notice stopped the job all the same (runs-on 277)"""
    notice = lab.folder / "notice"
    script = lab.script(T_GATES="step:5,tail:1", OUTLAST_NOTICE_FILE=notice)
    for place, times in (("step:5", 1), ("tail:1", 2)):
        lab.at(place)
        notice.touch()
        eventually("it is heard", lambda n=times: script.text.count("this machine goes away") == n, lab.said)
        notice.unlink()
        eventually(
            "so is its end", lambda n=times: script.text.count("cancelled; training goes on") == n, lab.said
        )
        lab.open(place)
    assert script.wait() == 0, lab.said()
    assert len(history(lab.records)) == 18
    assert len(lab.of("run")) == 1


def test_a_scale_sets_notice_for_a_sibling_machine_was_taken_for_ones_own(lab):
    """a scale-set's notice for a sibling machine was taken for one's own (Azure: filter by resource name)"""
    with metadata_service("azure") as service:
        arm(service, "azure", "sibling")
        script = lab.script(T_GATES="step:5", **environment(service, "azure"))
        lab.at("step:5")
        eventually("it was answered", lambda: service.times_asked(AZURE_EVENTS) >= 2, lab.said)
        lab.open("step:5")
        assert script.wait() == 0, lab.said()
        assert service.acknowledged == [], "who does not go does not hurry another machine's end"
    assert [commit["reason"] for commit in lab.commits()] == ["final"]
    assert [record for record in events(lab.folder / "store" / "run") if record["kind"] == "notice"] == []


def test_azures_first_answer_takes_up_to_two_minutes(lab):
    """Azure's first answer takes up to two minutes [...]: training goes on meanwhile, and what it then says is heard"""
    with metadata_service("azure") as service:
        answers = service.slow[AZURE_EVENTS] = threading.Event()
        script = lab.script(T_GATES="step:5", **environment(service, "azure"))
        eventually("it is asked", lambda: service.times_asked(AZURE_EVENTS), lab.said)
        lab.at("step:5")
        announce(service, "azure", datetime.now(UTC) + timedelta(seconds=100))
        assert "warning" not in script.text
        answers.set()
        script.says("Azure Preempt: this machine goes away")
        script.says("then the trainer leaves")
        lab.open("step:5")
        assert script.wait() == os.EX_TEMPFAIL, lab.said()
        assert service.times_asked(AZURE_EVENTS) >= 2
    assert [(commit["reason"], commit["step"]) for commit in lab.commits()] == [("emergency", 5)]


def test_aws_answers_404_until_there_is_a_notice(lab):
    """[...] AWS answers 404 until there is a notice [...]: that is no fault, and said to nobody"""
    with metadata_service("aws") as service:
        script = lab.script(T_GATES="step:5", **environment(service, "aws"))
        lab.at("step:5")
        eventually("it was answered", lambda: service.times_asked(AWS_ACTION) >= 2, lab.said)
        lab.open("step:5")
        assert script.wait() == 0, lab.said()
    assert "warning" not in script.text
    assert [commit["reason"] for commit in lab.commits()] == ["final"]


def test_gcps_default_warning_is_0_s(lab):
    """[...] GCP's default warning is 0 s: the metadata turns with the SIGTERM of the shutdown, and that is what is left for"""
    with metadata_service("gcp") as service:
        script = lab.script(T_GATES="step:5", T_SAVE="step:2", **environment(service, "gcp"))
        lab.at("step:5")
        lab.committed(2)
        announce(service, "gcp", datetime.now(UTC))
        script.kill(signal.SIGTERM)
        script.says("then the trainer leaves")
        script.says("Google Cloud preemption")
        lab.open("step:5")
        assert script.wait() == os.EX_TEMPFAIL, lab.said()
    assert {c["step"] for c in lab.commits() if c["reason"] == "emergency"} == {5}


def test_a_cancelled_notice_after_the_script_has_left(lab):
    """a cancelled notice stopped the job all the same: where the script has left already, it is started again."""
    notice = lab.folder / "notice"
    script = Path(__file__).with_name("leaver.py")
    url = (lab.folder / "store" / "run").as_uri()
    launcher = lab.supervised(command=[sys.executable, str(script), url, "now"], OUTLAST_NOTICE_FILE=notice)
    launcher.says("training")
    notice.touch()
    launcher.says("waiting whether this machine goes away")
    notice.unlink()
    assert launcher.wait() == 0, lab.said()
    assert "resumed" in launcher.text
    assert [c["step"] for c in lab.commits()] == [7]


def test_slurm_counts_a_job_that_ends_cleanly_as_complete(lab):
    """Slurm: a job that ends cleanly inside the grace time counts as complete and is not queued again

    Its end is told from a complete one; that the job queues itself again is shown on a real Slurm, in `tests/real/`.
    """
    script = lab.script(T_GATES="step:5", SLURM_JOB_ID=17)
    lab.at("step:5")
    script.kill_group(signal.SIGTERM)
    lab.open("step:5")
    assert script.wait() == os.EX_TEMPFAIL, "saved in time, and yet not complete"
    assert lab.committed(5)["reason"] == "emergency"
