"""A training script that interrupts itself at a moment that was planned, and writes down every step it took.

T_SHAPE: JSON with samples, batch, workers, accumulate, epochs, carry (gradients of an epoch's last, incomplete group go
into the next epoch's first step). T_PLAN: JSON with kind and after: which interruption, and after how many moments of this
process. A moment is a place between two statements of the loop: before a batch is used, after its backward, after
the optimizer's step, in the epoch's tail.

Kinds: `trainer` (SIGKILL), `both` (its agent's, then its own), `agent` (the agent's alone, training goes on), `term` and
`group` (SIGTERM to this process, to the group), `error` (an exception), `alarm` (killed after so many milliseconds from
before the run is opened, in the middle of whatever it is doing then). T_SLEEP: seconds that each step takes longer.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import outlast

sys.path.insert(0, str(Path(__file__).parents[1]))

from launch import agent_of

LAB = os.environ["T_LAB"]
SHAPE = json.loads(os.environ["T_SHAPE"])
PLAN = json.loads(os.environ.get("T_PLAN", "null"))
record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
moments = 0


def write(kind, **fields):
    os.write(record, (json.dumps({"kind": kind, "pid": os.getpid(), **fields}) + "\n").encode())


def moment():
    global moments
    moments += 1
    if PLAN is None or PLAN["kind"] == "alarm" or moments != PLAN["after"]:
        return
    write("interrupted", how=PLAN["kind"])
    match PLAN["kind"]:
        case "trainer":
            os.kill(os.getpid(), signal.SIGKILL)
        case "both":
            os.kill(agent_of(os.getpid()), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        case "agent":
            os.kill(agent_of(os.getpid()), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "group":
            # From another process: workers obey a SIGTERM that their own trainer sends.
            subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"], check=False)
        case "error":
            raise RuntimeError(f"planned at moment {moments} of process {os.getpid()}")


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return SHAPE["samples"]

    def __getitem__(self, i):
        return torch.randn(4) + i / 10, i


if PLAN is not None and PLAN["kind"] == "alarm":
    signal.setitimer(
        signal.ITIMER_REAL, max(PLAN["after"], 1) / 1000
    )  # its default is to end the process, like a SIGKILL

torch.manual_seed(5)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
model.register_buffer("count", torch.zeros((), dtype=torch.int64))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)
run = outlast.Run("run", model=model, optimizer=optimizer, scheduler=scheduler)
run.vars.group = []
write("run", attempt=run.attempt, step=run.step)
loader = torch.utils.data.DataLoader(Data(), SHAPE["batch"], shuffle=True, num_workers=SHAPE["workers"])
for epoch in run.epochs(SHAPE["epochs"]):
    for i, (x, samples) in run.enumerate(loader):
        moment()
        loss = model(x).pow(2).mean()
        loss.backward()
        run.vars.group = [*run.vars.group, *samples.tolist()]
        moment()
        last = i == len(loader) - 1 and not SHAPE["carry"]
        if (i + 1) % SHAPE["accumulate"] and not last:
            continue
        optimizer.step()
        optimizer.zero_grad()
        model.count += 1
        write(
            "step", count=int(model.count), epoch=epoch, i=i, samples=run.vars.group, loss=repr(loss.item())
        )
        run.vars.group = []
        moment()
        time.sleep(float(os.environ.get("T_SLEEP", "0")))
    moment()
    scheduler.step()
    moment()
digest = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
for state in optimizer.state_dict()["state"].values():
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.numpy().tobytes())
write(
    "end",
    digest=digest.hexdigest(),
    rand=torch.rand(2).tolist(),
    lr=repr(scheduler.get_last_lr()),
    left=run.vars.group,
    moments=moments,
)
