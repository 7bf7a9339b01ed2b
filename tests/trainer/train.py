"""A small training script, as people write them, that writes down what it does and waits at gates.

T_LAB: folder of the record and the gates. T_NAME: the run's name. T_GATES: places to wait at until `open-PLACE` exists
(so that a test interrupts exactly there). T_EPOCHS, T_WORKERS, T_SLEEP: what they say. T_FAIL: place to raise at.
T_LOOP: epochs, plain (the loader is iterated as it is), accumulate (3 batches a step, the last group is smaller), other
(an optimizer is handed in, and another one steps). T_MODEL: wide (does not fit). T_SAVE: place to call run.save(pin=True) at.
"""

import argparse
import hashlib
import json
import os
import sys
import time

import torch

import outlast

LAB = os.environ["T_LAB"]
LOOP = os.environ.get("T_LOOP", "epochs")
GATES = os.environ.get("T_GATES", "").split(",")
GATE_S = 120.0


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return int(os.environ.get("T_SAMPLES", "24"))

    def __getitem__(self, i):
        return torch.randn(8) + i / 24, i


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, width), torch.nn.Dropout(0.1), torch.nn.Linear(width, 1)
        )
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        if width == 17:
            self.extra = torch.nn.Linear(2, 2)
        else:
            self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.layers(x)


def write(kind, **fields):
    line = json.dumps({"kind": kind, "pid": os.getpid(), **fields}) + "\n"
    os.write(record, line.encode())
    os.fsync(record)


def come_to(place, stop=lambda: False):
    """Note that the script is here; fail or wait if it shall."""
    if place == os.environ.get("T_SAVE"):
        run.save(pin=True)
    if place == os.environ.get("T_FAIL"):
        raise ValueError(f"planned at {place}")
    if place not in GATES:
        return
    write("at", place=place)
    until = time.monotonic() + GATE_S
    stopped = False
    while not os.path.exists(f"{LAB}/open-{place}") and time.monotonic() < until:
        if not stopped and stop():
            stopped = True
            write("should_stop", place=place)
        time.sleep(0.01)


def digest_of(*states):
    digest = hashlib.sha256()
    for state in states:
        for name in sorted(state, key=str):
            value = state[name]
            if isinstance(value, dict):
                digest.update(digest_of(value).encode())
            elif isinstance(value, torch.Tensor):
                digest.update(name.encode() + value.numpy().tobytes())
            else:
                digest.update(f"{name}={value!r}".encode())
    return digest.hexdigest()


record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-2)
parser.add_argument("--batch", type=int, default=4)
options = parser.parse_args()
torch.manual_seed(3)
torch.set_num_threads(int(os.environ.get("T_THREADS", "1")))
model = Net(17 if os.environ.get("T_MODEL") == "wide" else 16)
optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
come_to("start")
state = {"model": model, "scheduler": scheduler}
if LOOP == "other":
    state["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
else:
    state["optimizer"] = optimizer
run = outlast.Run(
    os.environ.get("T_NAME") or None,
    resume=os.environ.get("T_RESUME", "auto"),
    host_memory=os.environ.get("T_MEMORY"),
    **state,
)
run.vars.best = 100.0
write("run", attempt=run.attempt, resumed=run.resumed, step=run.step, epoch=run.epoch, lr=options.lr)
come_to("run")
loader = torch.utils.data.DataLoader(
    Data(), batch_size=options.batch, shuffle=True, num_workers=int(os.environ.get("T_WORKERS", "0"))
)
for epoch in run.epochs(int(os.environ.get("T_EPOCHS", "3"))):
    write("epoch", epoch=epoch, best=run.vars.best)
    for i, (x, samples) in enumerate(loader) if LOOP == "plain" else run.enumerate(loader):
        loss = (model(x) * model.gain if hasattr(model, "gain") else model(x)).pow(2).mean()
        loss.backward()
        run.log(loss=loss.item())
        if LOOP == "accumulate" and i % 3 != 2 and i != len(loader) - 1:
            write("batch", epoch=epoch, i=i, samples=samples.tolist())
            continue
        model.count += 1
        optimizer.step()
        optimizer.zero_grad()
        count = int(model.count)
        write(
            "step",
            count=count,
            epoch=epoch,
            i=i,
            samples=samples.tolist(),
            loss=repr(loss.item()),
            step=run.step,
        )
        come_to(f"step:{count}")
        time.sleep(float(os.environ.get("T_SLEEP", "0")))
    write("tail-begin", epoch=epoch)
    run.vars.best = min(run.vars.best, loss.item() if "loss" in globals() else run.vars.best)
    come_to(f"tail:{epoch}", stop=run.should_stop if os.environ.get("T_ASKS") else lambda: False)
    scheduler.step()
    write("tail-end", epoch=epoch)
write(
    "end",
    digest=digest_of(model.state_dict(), optimizer.state_dict(), scheduler.state_dict()),
    rand=torch.rand(2).tolist(),
    steps=run.step,
    epochs_stepped=scheduler.last_epoch,
    best=run.vars.best,
)
come_to("end")
sys.exit(int(os.environ.get("T_EXIT", "0")))
