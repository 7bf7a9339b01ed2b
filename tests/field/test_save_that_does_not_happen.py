"""The save that does not happen."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from torchless import commits, read_tensors

from launch import Lab, agent_of, eventually, history
from outlast._types import Reason
from outlast.agent.control import Phase, Word

BUSY = """
import hashlib, json, os, sys, time
import torch
import outlast

LAB, PLACE = os.environ["T_LAB"], os.environ["T_PLACE"]
record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def write(kind, **fields):
    os.write(record, (json.dumps({"kind": kind, "pid": os.getpid(), **fields}) + "\\n").encode())

def busy(place):
    if place != PLACE or run.resumed or os.path.exists(f"{LAB}/open-{place}"):
        return
    write("at", place=place)
    if place == "compilation":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)  # looks at no signal until it is done
    else:
        while not os.path.exists(f"{LAB}/open-{place}"):
            time.sleep(0.01)
    write("left", place=place)

torch.manual_seed(1)
model = torch.nn.Linear(2, 1)
model.register_buffer("count", torch.zeros((), dtype=torch.int64))
optimizer = torch.optim.AdamW(model.parameters())
run = outlast.Run("run", model=model, optimizer=optimizer)
loader = outlast.DataLoader(torch.arange(24.0).reshape(12, 2), 2, shuffle=True)
for i, x in run.enumerate(loader, epochs=2):
    loss = model(x).pow(2).mean()
    loss.backward()
    if run.epoch == 0 and i < 2:
        busy("warm-up")
        continue  # gradients are gathered, no optimizer steps yet
    if run.step == 3:
        busy("compilation")
    optimizer.step()
    optimizer.zero_grad()
    model.count += 1
    write("step", count=int(model.count), epoch=run.epoch, i=i, samples=x[:, 0].tolist(), loss=repr(loss.item()))
    if run.step == 5:
        with torch.no_grad():
            busy("evaluation")
"""


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    """What the busy script does when nobody disturbs it."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed"), zygote)
    assert lab.source(BUSY, T_PLACE="nowhere").wait() == 0, lab.said()
    return history(lab.records)


@pytest.mark.parametrize("place", ["warm-up", "compilation", "evaluation"])
def test_sigterm_during_warm_up_evaluation_or_compilation(lab, undisturbed, place):
    """SIGTERM arrived during warm-up, evaluation or compilation; the flag was only read in the main step: 0 of 6 saves
    (goodfire-ai/spd 677)"""
    first = lab.source(BUSY, T_PLACE=place)
    lab.at(place)
    first.kill(signal.SIGTERM)
    lab.open(place)
    assert first.wait() == os.EX_TEMPFAIL, lab.said()
    done = lab.of("step")[-1]["count"]
    assert [c["step"] for c in lab.commits()] == [done]
    assert done < len(undisturbed)
    second = lab.source(BUSY, T_PLACE=place)
    assert second.wait() == 0, lab.said()
    assert lab.of("step", second.pid)[0]["count"] == done + 1
    assert history(lab.records) == undisturbed


def test_sigterm_during_the_evaluation_after_an_epoch(lab):
    """SIGTERM arrived during [...] evaluation: after an epoch, the state is durable while the evaluation still runs."""
    script = lab.script(T_GATES="tail:1")
    lab.at("tail:1")
    script.kill(signal.SIGTERM)
    assert lab.committed(12)["position"]["tail_open"]
    assert lab.of("tail-end") == [r for r in lab.of("tail-end") if r["epoch"] == 0]
    lab.open("tail:1")
    assert script.wait() == os.EX_TEMPFAIL


def test_sigterm_before_the_loop_ends_a_script_that_has_nothing_to_save(lab):
    """SIGTERM arrived during warm-up: before the loop there is nothing to save, and nothing to wait for."""
    script = lab.script(T_GATES="run")
    lab.at("run")
    script.kill(signal.SIGTERM)
    assert script.wait() == os.EX_TEMPFAIL
    assert lab.commits() == []


def test_sigterm_goes_to_the_whole_process_group(lab):
    """SIGTERM goes to the whole process group: DataLoader workers die first, the trainer then fails on its loader, not on
    its save (KempnerForge 177)"""
    script = lab.script(T_WORKERS=2, T_GATES="step:9", T_SAMPLES=40, T_EPOCHS=2)
    lab.at("step:9")
    script.kill_group(signal.SIGTERM)
    lab.open("step:9")
    assert script.wait() == os.EX_TEMPFAIL, lab.said()
    assert [c["step"] for c in lab.commits()] == [9]
    assert "Traceback" not in script.text
    second = lab.script(T_WORKERS=2, T_SAMPLES=40, T_EPOCHS=2)
    assert second.wait() == 0, lab.said()
    assert lab.of("step", second.pid)[0]["count"] == 10
    for epoch in range(2):
        taken = [sample for at, _, samples, _ in history(lab.records) if at == epoch for sample in samples]
        assert sorted(taken) == list(range(40))


def test_the_launcher_swallowed_sigterm_or_escalated(lab):
    """the launcher swallowed SIGTERM, or escalated to SIGKILL 30 s later while a save ran (pytorch 119856, ai2cm/ace 1398:
    18 of 18)"""
    script = Path(__file__).with_name("leaver.py")
    url = (lab.folder / "store" / "run").as_uri()
    launcher = lab.supervised(command=[sys.executable, str(script), url, "late"], OUTLAST_GRACE_S=0.2)
    launcher.says("training")
    launcher.kill(signal.SIGTERM)
    assert launcher.wait() == os.EX_TEMPFAIL, lab.said()
    (commit,) = lab.commits()
    assert (commit["step"], commit["reason"]) == (7, "emergency")
    assert read_tensors(commit["folder"]) == {"x": b"on leaving"}


@pytest.mark.parametrize("by", ["signal", "file"])
def test_notice_to_power_off_was_11_s(lab, by):
    """notice to power-off was 11 s, not 30 (mozilla/translations 964)"""
    notice = lab.folder / "notice"
    script = lab.script(T_GATES="step:5", OUTLAST_GRACE_S=11, OUTLAST_NOTICE_FILE=notice)
    lab.at("step:5")
    began = time.monotonic()
    if by == "signal":
        script.kill(signal.SIGTERM)
    else:
        beside = lab.folder / "notice-being-written"
        beside.write_text(json.dumps({"seconds": 11}))
        beside.rename(notice)
    script.says("this machine goes away in 11 s")
    script.says("then the trainer leaves")
    lab.open("step:5")
    assert lab.committed(5)["reason"] == "emergency"
    assert script.wait() == os.EX_TEMPFAIL
    assert time.monotonic() - began < 11
    assert "step 5 is durable" in script.text


def test_exit_on_preemption_skipped_the_finalisation_of_an_asynchronous_save(trainer, tmp_path):
    """exit on preemption skipped the finalisation of an asynchronous save (NeMo/Speech 9881)"""
    leaving = trainer()
    page = leaving.link.page
    leaving.stop_agent()
    leaving.save(3, b"asynchronous")

    def go_on_once_it_leaves() -> None:
        eventually("the script is leaving", lambda: page[Word.PHASE] == Phase.ENDED)
        found.append(commits(tmp_path / "run"))
        leaving.continue_agent()

    found: list[object] = []
    other = threading.Thread(target=go_on_once_it_leaves)
    other.start()
    leaving.close("preempted")
    other.join()
    assert found == [[]]
    ((_, step, folder),) = commits(tmp_path / "run")
    assert (step, read_tensors(folder)) == (3, {"x": b"asynchronous"})


def test_machines_live_shorter_than_the_save_interval(lab):
    """machines live shorter than the save interval: zero progress for ever (Megatron-Bridge 4765)"""
    interval_s = 8.0
    durable = 0
    for _ in range(3):
        script = lab.script(OUTLAST_SAVE_EVERY=f"{interval_s} s", T_SLEEP=0.01, T_SAMPLES=100_000)
        (begun,) = eventually("it runs", lambda pid=script.pid: lab.of("run", pid), lab.said)
        began = time.monotonic()
        assert begun["step"] >= durable
        lab.committed(begun["step"] + 1)
        agent = agent_of(script.pid)
        script.kill(signal.SIGSTOP)  # neither gets to do anything more once it is decided
        os.kill(agent, signal.SIGKILL)
        script.kill()
        assert time.monotonic() - began < interval_s
        script.wait()
        durable = lab.commits()[-1]["step"]
        assert durable > begun["step"]


def test_a_snapshot_that_waits_for_the_end_of_an_epoch_is_saved_when_the_trainer_is_killed(trainer, tmp_path):
    """the save that does not happen: what was complete in memory becomes durable though its trainer is killed."""
    killed = trainer()
    killed.save(4, b"held", hold=True)
    killed.kill()
    ((_, step, folder),) = commits(tmp_path / "run")
    assert (step, read_tensors(folder)) == (4, {"x": b"held"})
    assert json.loads((folder / "commit.json").read_bytes())["reason"] == Reason.INTERVAL.value
