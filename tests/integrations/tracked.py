"""A small training script with trackers; it writes down what it logs, and waits at gates.

T_TRACKERS: notebook (a tracker of its own, a file in the lab), tensorboard, mlflow, wandb. T_BOARD: TensorBoard's folder. T_HANG: the
call (open, write, close) in which the notebook hangs for good; it has then left an exit hook behind that hangs as well,
and a thread, unless T_THREAD=0. `exit`: only the hook hangs. T_FAIL: place to raise at.
T_LAB, T_NAME, T_GATES, T_RESUME: as in `trainer/train.py`.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time

import torch

import outlast
from outlast.integrations.mlflow import MLflow
from outlast.integrations.tensorboard import TensorBoard
from outlast.integrations.wandb import WandB

LAB = os.environ["T_LAB"]
GATES = os.environ.get("T_GATES", "").split(",")
HANG = os.environ.get("T_HANG")
GATE_S = 120.0


def write(kind, **fields):
    line = json.dumps({"kind": kind, "pid": os.getpid(), **fields}) + "\n"
    os.write(record, line.encode())
    os.fsync(record)


def come_to(place):
    if place == os.environ.get("T_FAIL"):
        raise ValueError(f"planned at {place}")
    if place not in GATES:
        return
    write("at", place=place)
    until = time.monotonic() + GATE_S
    while not os.path.exists(f"{LAB}/open-{place}") and time.monotonic() < until:
        time.sleep(0.01)


def log(**values):
    run.log(**values)
    write("logged", step=run.step, values=values)


def hang_for_good():
    threading.Event().wait()


class Notebook:
    """A tracker that is a file: a line for each row."""

    def open(self, tracked):
        self.path = f"{LAB}/notebook-{tracked.id}"
        if HANG == "exit":
            atexit.register(hang_for_good)
        self._come_to("open")
        if not os.path.exists(self.path):
            return None
        with open(self.path) as file:
            return max((json.loads(line)["step"] for line in file), default=None)

    def write(self, rows):
        self._come_to("write")
        with open(self.path, "a") as file:
            file.writelines(json.dumps({"step": row.step, "values": row.values}) + "\n" for row in rows)

    def close(self, outcome):
        self._come_to("close")
        write("closed", outcome=outcome)

    def _come_to(self, call):
        if HANG == call:
            atexit.register(hang_for_good)
            threading.Thread(target=hang_for_good, daemon=os.environ.get("T_THREAD") == "0").start()
            write("hangs", call=call)
            hang_for_good()


class Slate(logging.Handler):
    """Keeps lines until it is flushed."""

    lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def flush(self):
        lines, self.lines = self.lines, []
        for line in lines:
            write("line", text=line)


record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
logging.getLogger("train").addHandler(Slate())
torch.manual_seed(3)
torch.set_num_threads(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.randn(24, 4), batch_size=4, shuffle=True)
run = outlast.Run(
    os.environ["T_NAME"], resume=os.environ.get("T_RESUME", "auto"), model=model, optimizer=optimizer
)
write("run", attempt=run.attempt, step=run.step)
trackers = {
    "notebook": Notebook,
    "tensorboard": lambda: TensorBoard(os.environ.get("T_BOARD", f"{LAB}/board")),
    "mlflow": lambda: MLflow("digits"),
    "wandb": lambda: WandB(project="digits", dir=LAB),
}
run.track(*(trackers[name]() for name in os.environ["T_TRACKERS"].split(",")))
for epoch in run.epochs(3):
    for x in run.batches(loader):
        loss = (model(x) - 1).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log(loss=loss.item())
        logging.getLogger("train").warning("step %d", run.step)
        come_to(f"step:{run.step}")
    come_to(f"tail:{epoch}")
    log(val=model(torch.ones(4)).item(), epoch=epoch)
log(test=model(torch.zeros(4)).item())
come_to("end")
