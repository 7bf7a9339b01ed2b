"""What stands in an epoch's body before its batches: it runs again after a resume, and must make no difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import Lab

SOURCE = """
import hashlib, os, random, signal, sys
import torch, outlast
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
random.seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
data = TensorDataset(torch.randn(40, 4), torch.arange(40))
train, other = DataLoader(data, 8, shuffle=True), DataLoader(data, 8, shuffle=True)
run = outlast.Run("run", model=model, optimizer=optimizer, scheduler=scheduler, save_every="1 steps")
run.vars.heads = 0
record = open("record", "a")
at, how = os.environ.get("AT"), os.environ.get("HOW")

def here(place):
    if run.attempt == 1 and place == at:
        os.kill(os.getpid(), getattr(signal, how))

for epoch in run.epochs(3):
    scheduler.step()
    run.vars.heads += 1
    order = [i.tolist() for _, i in other]
    scale = torch.rand(()).item() + random.random()
    here(f"head {epoch}")
    for i, (x, index) in run.enumerate(train):
        loss = scale * model(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr = optimizer.param_groups[0]["lr"]
        print(epoch, i, index.tolist(), loss.item().hex(), lr, run.vars.heads, order, file=record, flush=True)
        here(f"batch {epoch}.{i}")
    with torch.no_grad():
        loss = model(data.tensors[0]).pow(2).mean()
    here(f"tail {epoch}")
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
print("final", digest, torch.rand(()).item(), random.random(), file=record, flush=True)
"""


def last_of_each(record: Path) -> dict[str, str]:
    """The last record of each batch."""
    return {
        " ".join(line.split()[:2]) if line[0] != "f" else "final": line
        for line in record.read_text().splitlines()
    }


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_head_that_steps_and_draws_makes_no_difference(lab: Lab, how: str) -> None:
    """A scheduler's step, an evaluation over a shuffled loader and a number of the epoch, in the head, killed anywhere."""
    assert lab.source(SOURCE).wait() == 0, lab.said()
    whole = last_of_each(lab.folder / "record")
    assert len(whole) == 16
    for number, at in enumerate(["batch 0.1", "batch 1.3", "tail 1", "head 2"]):
        (lab.folder / "record").unlink()
        root = lab.folder / f"root-{number}"
        codes = [lab.source(SOURCE, AT=at, HOW=how, OUTLAST_STORE=root).wait()]
        while codes[-1] != 0 and len(codes) < 4:
            codes.append(lab.source(SOURCE, AT=at, HOW=how, OUTLAST_STORE=root).wait())
        assert codes == [-9 if how == "SIGKILL" else 75, 0], (at, lab.said())
        assert last_of_each(lab.folder / "record") == whole, (at, lab.said())
        again = lab.started[-1].text
        assert "bit-exact" in again or "starting at step 0" in again
