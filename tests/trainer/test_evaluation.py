"""An evaluation that a loader with workers feeds: they are the run's, though no `run.batches` was given that loader."""

from __future__ import annotations

import signal

import pytest

from launch import Lab, eventually

PREEMPTED = 75

SCRIPT = """
import os, time, torch, outlast

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
evaluation = torch.utils.data.DataLoader(Held(), 2, num_workers=2)
for epoch in run.epochs(2):
    for i, x in run.enumerate(outlast.DataLoader(torch.ones(6, 4), 1)):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        if EVALUATES and epoch == 0:
            evaluated = sum(model(x).sum().item() for x in evaluation)
"""


@pytest.mark.parametrize("kind", ["source", "supervised_source"])
def test_a_sigterm_to_the_group_ends_no_evaluation_and_loses_no_step(lab: Lab, kind: str) -> None:
    """As Slurm sends it. A worker that died of it took the trainer along, with all since the last save."""
    started = getattr(lab, kind)(SCRIPT.replace("EVALUATES", "i == 2"))
    eventually("it evaluates", (lab.folder / "evaluates").exists, lab.said)
    started.kill_group(signal.SIGTERM)
    started.says("SIGTERM: this machine goes away")
    lab.open("evaluation")
    assert started.wait() == PREEMPTED, lab.said()
    newest = lab.commits()[-1]
    assert (newest["reason"], newest["step"]) == ("emergency", 3)
