"""The save that is whole and wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal

import pytest
from torchless import commits, events, files, read_tensors

from launch import agent_of, history
from outlast.checkpoint.manifest import CHUNK_BYTES

STEPS = 6
ALIGNED = 6 * 4096
"""What direct writes may add at the end of each segment."""


def state_at(step):
    return random.Random(step).randbytes(50_000)


FIXED = random.Random(0).randbytes(2 * CHUNK_BYTES)
"""Two chunks that no step changes: after the first save they are referred to, not written."""


@pytest.mark.parametrize("fixed", [b"", FIXED], ids=["all changes", "most stays"])
def test_asynchronous_saves_after_the_first_rewrote_its_bytes(trainer, tmp_path, fixed):
    """asynchronous saves after the first rewrote the first one's bytes; metrics looked healthy (NeMo RL 3312)"""
    root = tmp_path / "run"
    saving = trainer()
    before: dict[str, bytes] = {}
    for step in range(1, STEPS + 1):
        saving.save_and_wait(step, fixed + state_at(step))
        now = files(root)
        assert {path: data for path, data in before.items() if path in now and now[path] != data} == {}
        for _, at, folder in commits(root):
            with deleted_meanwhile(folder):
                assert read_tensors(folder) == {"x": fixed + state_at(at)}
        before = now
    written = sum(len(data) for path, data in before.items() if path.startswith("segments/"))
    assert written <= len(fixed) + STEPS * len(state_at(1)) + ALIGNED
    saving.close()
    assert STEPS in {step for _, step, _ in commits(root)}


def test_pinned_buffers_reused_while_the_writer_still_read_them(trainer, tmp_path):
    """pinned buffers reused while the writer still read them (Megatron-LM 2288)"""
    saving = trainer()
    link = saving.link
    saving.stop_agent()
    held = saving.save(1, state_at(1), index=0, hold=True)
    assert link.wait_free((0, 1), lambda: 0.0) == 1
    last = saving.save(2, state_at(2), index=1)
    assert link.wait_free((0, 1), lambda: 0.0) is None, "both are still to be read"
    saving.continue_agent()
    assert link.wait_saved(held, lambda: None, "the held one is passed over").checkpoint is None
    assert link.wait_free((0,), lambda: None) == 0
    saving.arenas[0].view[:] = bytes(
        len(saving.arenas[0].view)
    )  # free: whatever is written here reaches nothing
    assert link.wait_saved(last, lambda: None, "the last one is saved").checkpoint is not None
    saving.close()
    ((_, step, folder),) = commits(tmp_path / "run")
    assert (step, read_tensors(folder)) == (2, {"x": state_at(2)})


@contextlib.contextmanager
def deleted_meanwhile(folder):
    """A checkpoint that is no longer kept may go while it is looked at; its commit goes first."""
    try:
        yield
    except FileNotFoundError:
        assert not (folder / "commit.json").exists()


LEAKING = """
import hashlib, json, os, time
import torch
import outlast

LAB = os.environ["T_LAB"]
record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def write(kind, **fields):
    os.write(record, (json.dumps({"kind": kind, "pid": os.getpid(), **fields}) + "\\n").encode())

def digests():
    moments = optimizer.state[model.weight]
    named = {
        "model/weight": model.weight, "model/seen": model.seen, "model/base.weight": model.base.weight,
        "moment": moments["exp_avg"],
    }
    return {n: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for n, t in named.items()}

torch.manual_seed(1)
model = torch.nn.Linear(100, 100, bias=False)
model.register_buffer("seen", torch.zeros(100))
model.base = torch.nn.Linear(100, 100, bias=False).requires_grad_(False)  # as below a LoRA: not copied while it stays
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer)
for step in run.steps(8):
    model(torch.randn(4, 100)).pow(2).mean().backward()
    optimizer.step()
    model.seen.add_(1)
    if step in (3, 5):
        model.base.weight.data.add_(model.weight.data)
    write("state", step=step + 1, digests=digests())
    if step in (2, 4):
        write("at", place=step)
        while not os.path.exists(f"{LAB}/open-{step}"):
            time.sleep(0.01)
"""


def test_cpu_tensors_were_not_copied(lab):
    """CPU tensors were not copied, so the next step leaked into the file (pytorch 144657)"""
    script = lab.source(LEAKING, OUTLAST_SAVE_EVERY="1 steps")
    lab.at(2)
    lab.committed(2)
    agent = agent_of(script.pid)
    os.kill(agent, signal.SIGSTOP)  # snapshots are handed over, and are read only after the steps that follow
    lab.open(2)
    lab.at(4)
    assert lab.commits()[-1]["step"] == 2
    os.kill(agent, signal.SIGCONT)
    lab.committed(4)
    found = saved_digests(lab)
    lab.open(4)
    assert script.wait() == 0, lab.said()
    found |= saved_digests(lab)
    expected = {r["step"]: r["digests"] for r in lab.of("state")}
    assert found == {step: expected[step] for step in found}
    assert {4, 8} <= set(found), "4: a snapshot that was taken while the agent was frozen"


def saved_digests(lab):
    """Digests of what the run's checkpoints hold, by step."""
    found = {}
    for commit in lab.commits():
        tensors = read_tensors(commit["folder"])
        (moment,) = (name for name in tensors if name.endswith("exp_avg"))
        named = {name: name for name in ("model/weight", "model/seen", "model/base.weight")} | {
            "moment": moment
        }
        found[commit["step"]] = {n: hashlib.sha256(tensors[name]).hexdigest() for n, name in named.items()}
    return found


def test_tracker_recorded_another_step_than_the_one_saved(lab):
    """tracker recorded another step than the one saved (Megatron-Bridge 3267)"""
    script = lab.script(T_GATES="step:5,step:17", OUTLAST_SAVE_EVERY="4 steps", T_SLEEP=0.02)
    lab.at("step:5")
    lab.committed(4)
    lab.open("step:5")
    lab.at("step:17")
    script.kill()
    script.wait()
    lab.nothing_left()
    lab.open("step:17")
    assert lab.script(OUTLAST_SAVE_EVERY="4 steps").wait() == 0, lab.said()

    root = lab.folder / "store" / "run"
    newest: dict[int, tuple[int, float]] = {}
    for record in events(root):
        if record["kind"] == "metrics":
            newest[record["step"]] = max(
                newest.get(record["step"], (0, 0.0)), (record["attempt"], record["values"]["loss"])
            )
    assert [repr(newest[step][1]) for step in sorted(newest)] == [loss for *_, loss in history(lab.records)]
    assert sorted(newest) == list(range(18))
    for commit in lab.commits():
        count = int.from_bytes(read_tensors(commit["folder"])["model/count"], "little")
        manifest = json.loads((commit["folder"] / "rank-00000.json").read_bytes())
        assert count == commit["step"] == commit["position"]["step"]
        parts = [p for p in root.glob(f"events/{commit['folder'].name[:10]}*/*.jsonl")]
        until = [p for p in parts if str(p.relative_to(root)) <= manifest["events"]]
        logged = {
            r["step"]
            for p in until
            for r in map(json.loads, p.read_text().splitlines())
            if r.get("kind") == "metrics"
        }
        first = [r["step"] for r in lab.of("run") if r["attempt"] == commit["attempt"]][0]
        assert logged == set(range(first, commit["step"])), (
            "durable before the commit: each step's metrics up to it"
        )
