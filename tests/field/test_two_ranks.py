"""The save that does not happen, where two processes train together, each with a run of its own."""

from __future__ import annotations

import os
import signal

from launch import history

PAIR = """
import json, os, signal, time
from datetime import timedelta
import torch
import torch.distributed as dist
import outlast

LAB, RANK = os.environ["T_LAB"], int(os.environ["T_RANK"])
record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def write(kind, **fields):
    os.write(record, (json.dumps({"kind": kind, "pid": os.getpid(), "rank": RANK, **fields}) + "\\n").encode())

store = dist.FileStore(f"{LAB}/meet-{os.environ['T_LAUNCH']}", 2)
dist.init_process_group("gloo", store=store, rank=RANK, world_size=2, timeout=timedelta(seconds=50))
torch.manual_seed(RANK)
model = torch.nn.Linear(2, 1)
model.register_buffer("count", torch.zeros((), dtype=torch.int64))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run(f"rank-{RANK}", model=model, optimizer=optimizer)
loader = outlast.DataLoader(torch.arange(24.0).reshape(12, 2), 2)
for i, x in run.enumerate(loader, epochs=1):
    loss = model(x).pow(2).mean()
    loss.backward()
    if run.step == 2 and not run.resumed:
        write("at", place=f"collective-{RANK}")
        while RANK == 1 and not os.path.exists(f"{LAB}/open-collective-1"):
            time.sleep(0.01)
    dist.all_reduce(model.weight.grad)
    optimizer.step()
    optimizer.zero_grad()
    model.count += 1
    write("step", count=int(model.count), epoch=0, i=i, samples=x[:, 0].tolist(), loss=repr(model.weight.tolist()))
write("end")
dist.destroy_process_group()
"""
"""Rank 0 waits inside a collective until rank 1, at a gate, comes to it."""


def test_a_collective_inside_a_signal_handler(lab):
    """a collective inside a signal handler: ranks diverge and hang (pytorch-lightning 20806, 21406)

    A handler here only sets a flag: the collective that it interrupts is completed, and each leaves at the step after it.
    """
    pair = lab.folder / "pair.py"
    pair.write_text(PAIR)
    first = [lab.script(path=pair, T_RANK=rank, T_LAUNCH=1) for rank in (0, 1)]
    for rank in (0, 1):
        lab.at(f"collective-{rank}")
    for each in first:
        each.kill(signal.SIGTERM)
    first[1].says("this machine goes away")
    lab.open("collective-1")
    assert [each.wait() for each in first] == [os.EX_TEMPFAIL] * 2, lab.said()
    assert [lab.commits(f"rank-{rank}")[-1]["step"] for rank in (0, 1)] == [3, 3]

    second = [lab.script(path=pair, T_RANK=rank, T_LAUNCH=2) for rank in (0, 1)]
    assert [each.wait() for each in second] == [0, 0], lab.said()
    for rank in (0, 1):
        steps = [r for r in lab.of("step") if r["rank"] == rank]
        assert [r["count"] for r in steps] == list(range(1, 7))
        assert len(history(steps)) == 6
