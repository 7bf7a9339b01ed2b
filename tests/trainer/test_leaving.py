"""Leaving by a notice or Ctrl-C: saved first, and with the exit code that says what to do next."""

from __future__ import annotations

import json
import os
import signal

import pytest

from launch import Lab, Started, alive, eventually, history

PREEMPTED, INTERRUPTED = 75, 130


def resumes_where_it_left(lab: Lab, step: int) -> None:
    """Assert that the emergency checkpoint is of `step`, and that the next start goes on from there to the end."""
    newest = lab.commits()[-1]
    assert (newest["reason"], newest["step"]) == ("emergency", step)
    assert lab.script().wait() == 0, lab.said()
    assert lab.of("run")[-1]["step"] == step
    assert len(history(lab.records)) == 18
    assert len(lab.of("step")) == 18


def test_sigterm_to_the_supervisor_alone_saves_the_step_that_is_done(lab: Lab) -> None:
    """What a container runtime does: only process 1 hears it. No step is lost."""
    started = lab.supervised(T_GATES="step:5")
    lab.at("step:5")
    started.kill(signal.SIGTERM)
    started.says("SIGTERM: this machine goes away")
    lab.open("step:5")
    assert started.wait() == PREEMPTED, lab.said()
    resumes_where_it_left(lab, 5)


def test_sigterm_to_a_plain_script_saves_the_step_that_is_done(lab: Lab) -> None:
    """A script without a supervisor hears it itself."""
    started = lab.script(T_GATES="step:5")
    lab.at("step:5")
    started.kill(signal.SIGTERM)
    lab.open("step:5")
    assert started.wait() == PREEMPTED, lab.said()
    assert "leaving at epoch 0: step 5 is durable" in started.text
    resumes_where_it_left(lab, 5)


@pytest.mark.parametrize("kind", ["script", "supervised"])
def test_sigterm_to_the_whole_group_with_loader_workers_saves_all_the_same(lab: Lab, kind: str) -> None:
    """What a scheduler does. The workers must not die before the script has saved (KempnerForge 177)."""
    started: Started = getattr(lab, kind)(T_GATES="step:5", T_WORKERS=2)
    lab.at("step:5")
    started.kill_group(signal.SIGTERM)
    lab.open("step:5")
    assert started.wait() == PREEMPTED, lab.said()
    resumes_where_it_left(lab, 5)
    lab.nothing_left()


def test_a_pin_that_is_asked_for_in_the_last_step_is_set_by_the_emergency_save(lab: Lab) -> None:
    """The next attempt does not ask again: that step is done."""
    started = lab.script(T_GATES="step:5", T_SAVE="step:5")
    lab.at("step:5")
    started.kill(signal.SIGTERM)
    lab.open("step:5")
    assert started.wait() == PREEMPTED, lab.said()
    newest = lab.commits()[-1]
    assert (newest["reason"], newest["step"], newest["pinned"]) == ("emergency", 5, True)


def test_a_tail_that_is_cut_and_was_not_held_is_not_said_to_be_durable(lab: Lab) -> None:
    """With room for one snapshot, which the store has not taken yet: what is durable is an older step."""
    started = lab.script(T_GATES="step:3,tail:0", T_ASKS="1", T_MEMORY="25kB", T_SAVE="step:3")
    trainer = lab.at("step:3")
    (agent,) = (pid for pid in lab.processes() if pid != trainer)
    os.kill(agent, signal.SIGSTOP)
    lab.open("step:3")
    lab.at("tail:0")
    started.kill(signal.SIGTERM)
    eventually("the script is told", lambda: lab.of("should_stop"), lab.said)
    lab.open("tail:0")
    started.says("leaving at epoch 0: step 6 did not become durable")
    os.kill(agent, signal.SIGCONT)
    assert started.wait() == PREEMPTED, lab.said()
    assert lab.commits()[-1]["step"] == 3


@pytest.mark.parametrize("kind", ["script", "supervised"])
def test_sigterm_during_a_long_validation_is_saved_while_it_runs(lab: Lab, kind: str) -> None:
    """The state with the tail open is durable before validation ends; a tail that should_stop() told is run again whole."""
    started: Started = getattr(lab, kind)(T_GATES="tail:1", T_ASKS="1")
    trainer = lab.at("tail:1")
    started.kill(signal.SIGTERM)
    commit = lab.committed(12)
    assert (commit["reason"], commit["position"]["tail_open"]) == ("emergency", True)
    eventually("the script is told", lambda: lab.of("should_stop"), lab.said)
    assert alive(trainer)
    lab.open("tail:1")
    assert started.wait() == PREEMPTED, lab.said()
    newest = lab.commits()[-1]
    assert (newest["reason"], newest["position"]["epoch"], newest["position"]["tail_open"]) == (
        "emergency",
        1,
        True,
    )
    assert lab.script().wait() == 0
    assert [r["epoch"] for r in lab.of("tail-end")] == [0, 1, 1, 2]
    assert lab.of("end")[0]["epochs_stepped"] == 3


def test_one_that_leaves_after_its_last_step_is_finished_by_the_next_start(lab: Lab) -> None:
    """Nothing is left to train, but to say that this was the end: for `status`, for trackers, and for whoever reads the commit."""
    started = lab.script(T_GATES="tail:2")
    lab.at("tail:2")
    started.kill(signal.SIGTERM)
    started.says("SIGTERM: this machine goes away")
    lab.open("tail:2")
    assert started.wait() == PREEMPTED, lab.said()
    assert (lab.commits()[-1]["step"], lab.commits()[-1]["finished"]) == (18, False)
    for _ in range(2):
        assert lab.script().wait() == 0, lab.said()
        assert (lab.commits()[-1]["step"], lab.commits()[-1]["finished"]) == (18, True)
    assert [c["attempt"] for c in lab.commits() if c["finished"]] == [2]
    assert len(lab.of("step")) == 18


FLAT = """
import os, torch, outlast

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer)
for x in run.batches(outlast.DataLoader(torch.ones(10, 4), 1), steps=STEPS):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    if run.step == 14 and run.attempt == 1:
        os.kill(os.getpid(), 15)
"""


def test_a_flat_loop_that_leaves_after_its_last_step_is_finished_where_it_stands(lab: Lab) -> None:
    """Within an epoch; with more steps to do the next start goes on there, and with fewer nothing is said to be finished."""
    assert lab.source(FLAT.replace("STEPS", "15")).wait() == PREEMPTED, lab.said()
    assert lab.source(FLAT.replace("STEPS", "12")).wait() == 0, lab.said()
    left = lab.commits()[-1]
    assert (left["step"], left["finished"], left["position"]["batches"]) == (15, False, 5)
    assert lab.source(FLAT.replace("STEPS", "15")).wait() == 0, lab.said()
    whole = lab.commits()[-1]
    assert whole["finished"]
    assert {**whole["position"]} == {**left["position"]}
    assert lab.source(FLAT.replace("STEPS", "20")).wait() == 0, lab.said()
    assert (lab.commits()[-1]["step"], lab.commits()[-1]["position"]["batches"]) == (20, 10)


FROZEN = """
import os, time, torch, outlast

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.Linear(200, 1))
model[0].requires_grad_(False)
optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
run = outlast.Run("run", model=model, optimizer=optimizer, scheduler=scheduler)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 200)), batch_size=2)
for epoch in run.epochs(2):
    for (x,) in run.batches(loader):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    if run.attempt == 2:
        print("in the tail", flush=True)
        while not run.should_stop():
            time.sleep(0.01)
    scheduler.step()
    if run.attempt == 1:
        os.kill(os.getpid(), 15)
print("the scheduler stepped", scheduler.last_epoch)
"""


def test_what_a_cut_tail_did_is_not_saved_where_what_was_held_cannot_be(lab: Lab) -> None:
    """A frozen weight that was left uncopied is damaged on the store, so the snapshot is worth nothing: and the state
    that is live by then is no longer the snapshot's."""
    assert lab.source(FROZEN).wait() == PREEMPTED
    tensors = json.loads((lab.commits()[-1]["folder"] / "rank-00000.json").read_bytes())["tensors"]
    ((segment, at, *_),) = next(t["slices"][0]["chunks"] for t in tensors if t["name"] == "model/0.weight")
    path = lab.folder / "store/run" / segment
    path.write_bytes(path.read_bytes()[:at] + b"rot" + path.read_bytes()[at + 3 :])
    second = lab.source(FROZEN)
    second.says("in the tail")
    second.kill(signal.SIGTERM)
    assert second.wait() == PREEMPTED
    assert "leaving at epoch 1: step 4 did not become durable" in second.text
    third = lab.source(FROZEN)
    assert third.wait() == 0, third.text
    assert "the scheduler stepped 2" in third.text


@pytest.mark.parametrize("kind", ["script", "supervised"])
def test_sigterm_before_the_loop_ends_the_script_at_once(lab: Lab, kind: str) -> None:
    """Nothing has been trained, so there is nothing to wait for: not even that the script comes to its loop."""
    started: Started = getattr(lab, kind)(T_GATES="run")
    lab.at("run")
    started.kill(signal.SIGTERM)
    assert started.wait() == PREEMPTED, lab.said()
    assert lab.of("step") == []
    lab.nothing_left()


def test_a_notice_file_that_goes_away_again_has_the_script_started_again_here(lab: Lab) -> None:
    """It leaves by 75 at the next safe point, the agent waits, and the cancelled notice costs a restart at most."""
    notice = lab.folder / "notice"
    started = lab.supervised(T_GATES="step:5", OUTLAST_NOTICE_FILE=notice)
    lab.at("step:5")
    notice.touch(mode=0o600)
    started.says("this machine goes away")
    lab.open("step:5")
    started.says("waiting whether this machine goes away")
    assert lab.committed(5)["reason"] == "emergency"
    assert alive(started.pid)
    notice.unlink()
    assert started.wait() == 0, lab.said()
    assert "the notice was cancelled" in started.text
    assert len(lab.of("step")) == len(history(lab.records)) == 18


def test_sigusr2_is_waited_out_and_sigterm_ends_the_waiting(lab: Lab) -> None:
    """The warning before the end (sbatch --signal): saved, not started again, and the SIGTERM that follows gives 75."""
    started = lab.supervised(T_GATES="step:5")
    trainer = lab.at("step:5")
    os.kill(trainer, signal.SIGUSR2)  # to the script alone; the agent learns it from there
    started.says("SIGUSR2: this machine goes away")
    lab.open("step:5")
    started.says("waiting whether this machine goes away")
    assert lab.committed(5)["reason"] == "emergency"
    started.kill(signal.SIGTERM)
    assert started.wait() == PREEMPTED, lab.said()
    assert len(lab.of("run")) == 1


@pytest.mark.parametrize("kind", ["script", "supervised"])
def test_ctrl_c_saves_and_exits_130(lab: Lab, kind: str) -> None:
    """As a terminal sends it, to the whole group."""
    started: Started = getattr(lab, kind)(T_GATES="step:5", T_WORKERS=1)
    lab.at("step:5")
    started.kill_group(signal.SIGINT)
    started.says("Ctrl-C: saving at the next safe point")
    lab.open("step:5")
    assert started.wait() == INTERRUPTED, lab.said()
    assert lab.commits()[-1]["step"] == 5
    assert len(lab.of("run")) == 1
    lab.nothing_left()


@pytest.mark.parametrize("kind", ["script", "supervised"])
def test_a_second_ctrl_c_leaves_at_once(lab: Lab, kind: str) -> None:
    """No safe point is waited for, nothing is started again, the code is the same."""
    started: Started = getattr(lab, kind)(T_GATES="step:5")
    lab.at("step:5")
    started.kill_group(signal.SIGINT)
    started.says("Ctrl-C: saving at the next safe point")
    started.kill_group(signal.SIGINT)
    assert started.wait() == INTERRUPTED, lab.said()
    assert lab.commits() == []
    assert len(lab.of("run")) == 1
    lab.nothing_left()


def test_ctrl_c_while_the_script_starts_ends_supervision(lab: Lab) -> None:
    """Before outlast.Run exists SIGINT kills the script by itself; that is no failure to be answered by a restart."""
    started = lab.supervised(T_GATES="start")
    lab.at("start")
    started.kill_group(signal.SIGINT)
    assert started.wait() == INTERRUPTED, lab.said()
    assert len(lab.of("at")) == 1
