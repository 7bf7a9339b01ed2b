"""An evaluation that a loader with workers feeds: they are the run's, though no `run.batches` was given that loader."""

from __future__ import annotations

import signal

import pytest

from launch import Lab, eventually

PREEMPTED = 75

SCRIPT = """
import os, time, torch, outlast
from MODULE import LOADER

LAB = os.environ["T_LAB"]

class Held(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        open(f"{LAB}/evaluates", "w").close()
        while i >= 4 and not os.path.exists(f"{LAB}/open-evaluation"):
            time.sleep(0.01)
        return torch.ones(4)

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer)
evaluation = LOADER(Held(), 2, num_workers=2)
for epoch in run.epochs(2):
    for i, x in run.enumerate(outlast.DataLoader(torch.ones(6, 4), 1)):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        if EVALUATES and epoch == 0:
            evaluated = sum(model(x).sum().item() for x in evaluation)
"""


@pytest.mark.parametrize(
    ("kind", "module", "loader"),
    [
        ("source", "torch.utils.data", "DataLoader"),
        ("supervised_source", "torch.utils.data", "DataLoader"),
        ("source", "torchdata.stateful_dataloader", "StatefulDataLoader"),
    ],
)
def test_a_sigterm_to_the_group_ends_no_evaluation_and_loses_no_step(
    lab: Lab, kind: str, module: str, loader: str
) -> None:
    """As Slurm sends it. A worker that died of it took the trainer along, with all since the last save."""
    script = SCRIPT.replace("MODULE", module).replace("LOADER", loader).replace("EVALUATES", "i == 2")
    started = getattr(lab, kind)(script)
    eventually("it evaluates", (lab.folder / "evaluates").exists, lab.said)
    started.kill_group(signal.SIGTERM)
    started.says("SIGTERM: this machine goes away")
    lab.open("evaluation")
    assert started.wait() == PREEMPTED, lab.said()
    newest = lab.commits()[-1]
    assert (newest["reason"], newest["step"]) == ("emergency", 3)
