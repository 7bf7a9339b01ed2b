"""Trackers of real runs: each step once, in order, under one id, whatever kills the script; and what hangs costs no save.

What is believed of a tracker is what its own package reads back; what it must hold are the lines that the script wrote as it logged.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from launch import eventually

TRACKED = Path(__file__).with_name("tracked.py")
SAVES = "4 steps"
STEPS = 18


def start(lab, trackers, **env):
    """Start the script."""
    mlflow = {
        "MLFLOW_TRACKING_URI": (lab.folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return lab.script(path=TRACKED, T_TRACKERS=trackers, OUTLAST_SAVE_EVERY=SAVES, **{**mlflow, **env})


def logged(lab, below=10**9):
    """What the script logged last, by step, in order."""
    rows: dict[int, dict[str, float]] = {}
    for record in lab.of("logged"):
        if record["step"] < below:
            rows.setdefault(record["step"], {}).update(record["values"])
    return sorted(rows.items())


def durable_step(lab):
    return max((c["step"] for c in lab.commits()), default=0)


def notebooks(lab):
    return sorted(lab.folder.glob("notebook-*"))


def read_notebook(path):
    return [(row["step"], row["values"]) for row in map(json.loads, path.read_text().splitlines())]


def read_board(folder):
    """By step, as TensorBoard reads it; each run is a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()
    board = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    points = [(p.step, tag, p.value) for tag in board.Tags()["scalars"] for p in board.Scalars(tag)]
    assert len({(step, tag) for step, tag, _ in points}) == len(points), "no step twice"
    return by_step(points)


def read_mlflow(lab):
    """By step, as MLflow's client reads it, and the status of the one run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(lab.folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    points = [
        (p.step, name, p.value)
        for name in run.data.metrics
        for p in client.get_metric_history(run.info.run_id, name)
    ]
    assert len({(step, name) for step, name, _ in points}) == len(points), "no step twice"
    return by_step(points), run.info.status


def by_step(points):
    rows: dict[int, dict[str, float]] = {}
    for step, name, value in points:
        rows.setdefault(step, {})[name] = value
    return sorted(rows.items())


def near(rows):
    """TensorBoard keeps 32 bits of a value."""
    return [(step, pytest.approx(values, rel=1e-6)) for step, values in rows]


def test_trackers_hold_the_undisturbed_run_whatever_kills_the_script(lab, monkeypatch):
    """Killed with steps logged that no save holds, told to leave, its disk lost: each step once, in order, in one run."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trackers = "notebook,tensorboard,mlflow"
    script = start(lab, trackers, T_GATES="step:5")
    lab.at("step:5")
    lab.committed(4)
    shown = logged(lab, below=4)
    eventually(
        "all that is durable is shown",
        lambda: notebooks(lab) and read_notebook(notebooks(lab)[0]) == shown,
        lab.said,
    )
    assert logged(lab)[-1][0] == 5
    script.kill()
    script.wait()
    lab.nothing_left()
    lab.open("step:5")

    script = start(lab, trackers, T_GATES="step:10")
    lab.at("step:10")
    script.kill(signal.SIGTERM)
    lab.open("step:10")
    assert script.wait() == os.EX_TEMPFAIL, lab.said()
    shown = logged(lab, below=durable_step(lab))
    assert shown[-1][0] == 10, "the step that was saved last is the one that the next attempt goes on with"
    (notebook,) = notebooks(lab)
    assert read_notebook(notebook) == shown
    assert read_board(lab.folder / "board") == near(shown)
    assert read_mlflow(lab) == (shown, "SCHEDULED")

    other_disk = lab.folder / "other-board"
    assert start(lab, trackers, T_BOARD=other_disk).wait() == 0, lab.said()
    whole = logged(lab)
    assert [step for step, _ in whole] == list(range(STEPS + 1))
    assert whole[-1][1].keys() == {"val", "epoch", "test"}, "the last step is shown whole"
    assert read_notebook(notebook) == whole
    assert read_board(other_disk) == near(whole), "what the lost disk held is written anew"
    assert read_mlflow(lab) == (whole, "FINISHED")
    assert [r["outcome"] for r in lab.of("closed")] == ["preempted", "finished"]
    assert notebooks(lab) == [notebook], "one id"


def test_a_run_of_resume_never_is_another_run_for_its_tracker(lab):
    """Its own id, from its own first step."""
    assert start(lab, "notebook").wait() == 0, lab.said()
    whole = logged(lab)
    (first,) = notebooks(lab)
    assert start(lab, "notebook", T_RESUME="never").wait() == 0, lab.said()
    both = notebooks(lab)
    assert len(both) == 2
    assert [read_notebook(path) for path in both] == [whole, whole]
    assert first in both


@pytest.mark.parametrize("call", ["open", "write", "close"])
def test_a_tracker_that_hangs_costs_no_save_and_no_exit(lab, call):
    """With a thread and an exit hook that hang as well, the script has saved, flushed its logs and ends with 75."""
    script = start(lab, "notebook", T_HANG=call, T_GATES="step:5,step:10", OUTLAST_GRACE_S=3)
    lab.at("step:5")
    lab.committed(4)
    if call != "close":
        eventually("the tracker hangs", lambda: lab.of("hangs"), lab.said)
    lab.open("step:5")
    lab.at("step:10")
    script.kill(signal.SIGTERM)
    lab.open("step:10")
    assert script.wait() == os.EX_TEMPFAIL, lab.said()
    assert lab.of("hangs"), "it did hang"
    assert lab.commits()[-1]["step"] == 11
    assert lab.commits()[-1]["reason"] == "emergency"
    assert [r["text"] for r in lab.of("line")] == [f"step {step}" for step in range(11)]
    assert "this process does not wait any longer" in script.text
    lab.nothing_left()
    assert start(lab, "notebook").wait() == 0, lab.said()
    assert read_notebook(notebooks(lab)[0]) == logged(lab), "the next attempt catches up"


def test_a_tracker_that_hangs_holds_no_script_that_is_told_to_go_after_its_loop(lab):
    """All is saved; what hangs is left to the next start, which trains nothing."""
    script = start(lab, "notebook", T_HANG="write", T_THREAD=0, T_GATES="end", OUTLAST_GRACE_S=2)
    lab.at("end")
    script.kill(signal.SIGTERM)
    assert script.wait() == os.EX_TEMPFAIL, lab.said()
    assert lab.commits()[-1]["position"]["step"] == STEPS
    assert notebooks(lab) == []
    assert start(lab, "notebook").wait() == 0, lab.said()
    assert read_notebook(notebooks(lab)[0]) == logged(lab)


def test_an_exit_hook_that_hangs_does_not_hold_up_what_is_saved_last(lab):
    """A script that fails says so to its agent before a tracker's package has its turn: what is held becomes durable."""
    script = start(lab, "notebook", T_HANG="exit", T_FAIL="tail:1")
    lab.committed(12)
    script.says("ValueError: planned at tail:1")
    eventually(
        "the tracker is closed", lambda: [r["outcome"] for r in lab.of("closed")] == ["error"], lab.said
    )
    assert read_notebook(notebooks(lab)[0]) == logged(lab, below=12)
    script.kill()
    script.wait()
