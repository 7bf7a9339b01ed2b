"""Around it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from integrations.wandb_server import wandb_server
from launch import eventually, history

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
