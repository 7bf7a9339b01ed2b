"""The loops that people write, interrupted: each is as if it had not been, or says what it cannot hold."""

from __future__ import annotations

import json
import os
import signal

import pytest

from launch import Lab, eventually, history

END = ("digest", "rand", "steps", "epochs_stepped", "best")


@pytest.mark.parametrize("interrupted_at", [1, 3, 4])
def test_accumulation_with_a_smaller_last_group_goes_on_in_its_middle(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, interrupted_at: int
) -> None:
    """24 samples in batches of 3 are 8 batches: updates of 3, 3 and 2. No batch is repeated within an update, or lost."""
    whole = Lab(tmp_path_factory.mktemp("whole"), lab.zygote)
    whole.env["T_LOOP"] = lab.env["T_LOOP"] = "accumulate"
    assert whole.script("--batch", "3", T_EPOCHS=2).wait() == 0, whole.said()
    place = f"step:{interrupted_at}"
    first = lab.script("--batch", "3", T_EPOCHS=2, T_GATES=place)
    lab.at(place)
    first.kill(signal.SIGTERM)
    lab.open(place)
    assert first.wait() == 75, lab.said()
    assert lab.script("--batch", "3", T_EPOCHS=2).wait() == 0, lab.said()

    def batches(of: Lab) -> list[tuple[int, int, list[int]]]:
        return [(r["epoch"], r["i"], r["samples"]) for r in of.records if r["kind"] in ("step", "batch")]

    assert batches(lab) == batches(whole)
    assert len(batches(whole)) == 16
    assert history(lab.records) == history(whole.records)
    assert {n: lab.of("end")[-1][n] for n in END} == {n: whole.of("end")[0][n] for n in END}


def test_a_loader_that_is_iterated_as_it_is_resumes_at_its_epochs_start(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without run.batches there is no safe point within an epoch; the epoch begins again, with the same shuffle."""
    whole = Lab(tmp_path_factory.mktemp("whole"), lab.zygote)
    whole.env["T_LOOP"] = lab.env["T_LOOP"] = "plain"
    assert whole.script().wait() == 0, whole.said()
    first = lab.script(T_GATES="step:9")
    lab.at("step:9")
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert lab.committed(1)["position"]["epoch"] == 1
    lab.nothing_left()
    lab.open("step:9")
    assert lab.script().wait() == 0, lab.said()
    assert [r["samples"] for r in lab.of("step")][9:12] == [r["samples"] for r in lab.of("step")][6:9]
    assert history(lab.records) == history(whole.records)
    assert {n: lab.of("end")[-1][n] for n in END if n != "steps"} == {
        n: whole.of("end")[0][n] for n in END if n != "steps"
    }


@pytest.mark.parametrize("place", ["step:4", "tail:0"])
def test_a_save_at_the_users_wish_is_pinned_and_of_the_next_safe_point(lab: Lab, place: str) -> None:
    """In the loop it holds the step that is done; in the tail what the tail changes, too."""
    assert lab.script(T_SAVE=place).wait() == 0, lab.said()
    (wished,) = [commit for commit in lab.commits() if commit["pinned"]]
    expected = {"step:4": (4, 0), "tail:0": (6, 1)}[place]
    assert (wished["step"], wished["position"]["epoch"]) == expected
    assert wished["reason"] == "user"
    assert not wished["position"]["tail_open"]


def test_metrics_up_to_a_checkpoint_are_durable_before_it(lab: Lab) -> None:
    """Killed at once when the commit is there: the part that its manifest names, and those before, hold each step's loss."""
    first = lab.script(T_GATES="step:9", OUTLAST_SAVE_EVERY="4 steps", T_SLEEP="0.05")
    lab.at("step:9")
    commit = lab.committed(4)
    for pid in lab.processes():
        os.kill(pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    manifest = json.loads((commit["folder"] / "rank-00000.json").read_bytes())
    last = lab.folder / "store" / "run" / manifest["events"]
    parts = [part for part in sorted(last.parent.iterdir()) if part.name <= last.name]
    lines = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    logged = {line["step"]: line["values"]["loss"] for line in lines if line.get("kind") == "metrics"}
    losses = {r["count"] - 1: float(r["loss"]) for r in lab.of("step")}
    assert {step: logged.get(step) for step in range(commit["step"])} == {
        step: losses[step] for step in range(commit["step"])
    }


def test_what_was_saved_in_vars_wins_over_the_scripts_first_assignment(lab: Lab) -> None:
    """`run.vars.best = 100.0` stands in the script and runs at each start."""
    first = lab.script(T_GATES="tail:1")
    lab.at("tail:1")
    first.kill(signal.SIGTERM)
    lab.open("tail:1")
    assert first.wait() == 75
    second = lab.script()
    assert second.wait() == 0
    begun = [(r["epoch"], r["best"]) for r in lab.of("epoch")]
    lowest = min(float(r["loss"]) for r in lab.of("step") if r["i"] == 5 and r["epoch"] < 2)
    assert begun[0] == (0, 100.0)
    assert begun[-1] == (2, lowest)
    assert "as saved, not as set at the start: run.vars.best" in second.text


def test_a_loop_that_is_left_early_warns_that_its_end_is_not_saved(lab: Lab) -> None:
    """With what to do about it."""
    source = (
        "import torch, outlast\n"
        "run = outlast.Run('run', m=torch.nn.Linear(1, 1))\n"
        "for step in run.steps(10):\n"
        "    if step == 5:\n"
        "        break\n"
    )
    started = lab.source(source)
    assert started.wait() == 0
    assert "warning: the script ends at step 5 and its loop was left before its end" in started.text


@pytest.mark.parametrize("iterable", ["run.steps(10)", "Bar(run.steps(10))"])
def test_a_save_after_a_loop_that_was_left_is_durable(lab: Lab, iterable: str) -> None:
    """At once where the break is seen, else (a progress bar keeps the loop's iterator) before the script ends."""
    source = (
        "import torch, outlast\n"
        "class Bar:\n"
        "    def __init__(self, steps):\n"
        "        self.steps = steps\n"
        "    def __iter__(self):\n"
        "        return self.steps\n"
        "w = torch.nn.Linear(1, 1)\n"
        "optimizer = torch.optim.SGD(w.parameters())\n"
        "run = outlast.Run('run', w=w, optimizer=optimizer)\n"
        f"steps = {iterable}\n"
        "for step in steps:\n"
        "    w(torch.ones(1)).backward()\n"
        "    optimizer.step()\n"
        "    if step == 5:\n"
        "        break\n"
        "if not isinstance(steps, Bar):\n"
        "    del steps\n"
        "run.save()\n"
    )
    started = lab.source(source)
    assert started.wait() == 0, started.text
    assert [(commit["step"], commit["reason"]) for commit in lab.commits()] == [(6, "user")], started.text
    assert "warning" not in started.text
    assert lab.source(source.replace("run.steps(10)", "run.steps(8)"), T_NAME="x").wait() == 0
    assert "resumed at epoch 0, step 6" in lab.started[-1].text


def test_a_run_whose_optimizer_was_not_handed_in_is_warned_about(lab: Lab) -> None:
    """Nothing can be saved then. The warning names the cause, on stderr and in `outlast status`."""
    hurry = lab.folder / "hurry"
    hurry.mkdir()
    (hurry / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'outlast.agent' in sys.argv or 'outlast.agent' in sys.orig_argv:\n"
        "    import outlast.policy.alarm as alarm, outlast.agent.server as server\n"
        "    alarm.NO_SAFE_POINT_S, alarm.NO_SAFE_POINT_BATCHES, server.ALARM_EVERY_S = 0.1, 4, 0.05\n"
    )
    started = lab.script(T_LOOP="other", T_GATES="step:6", PYTHONPATH=hurry)
    lab.at("step:6")
    text = started.says("warning: no safe point for")
    assert "no optimizer that was handed to outlast.Run has stepped" in text
    events = lab.folder / "store" / "run" / "events"
    eventually(
        "it is written down", lambda: any('"warning"' in p.read_text() for p in events.rglob("*.jsonl"))
    )
    status = json.loads(lab.outlast("status", "run", "--json").stdout)
    assert [w["cause"] for w in status["warnings"]] == ["no-safe-point"]
    assert "Hand in the optimizer" in status["warnings"][0]["message"]
