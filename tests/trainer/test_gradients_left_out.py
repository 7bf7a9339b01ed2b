"""Gradients that the loop drops unread are part of no save, however the save came about."""

from __future__ import annotations

import json

import pytest

from outlast._errors import EXIT_PREEMPTED

SCRIPT = """
import os, signal, sys, torch, outlast

model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer, save_every="1h")
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(16, 2)), batch_size=2)
for i, (x,) in run.enumerate(loader):
    optimizer.zero_grad()
    model(x).sum().backward()
    if i == 4 and sys.argv[1] == "asked":
        run.save()
    if i == 4 and sys.argv[1] == "told":
        os.kill(os.getpid(), signal.SIGTERM)
    optimizer.step()
"""


@pytest.mark.parametrize(("how", "code"), [("asked", 0), ("told", EXIT_PREEMPTED)])
def test_a_save_that_nobody_saw_coming_holds_no_gradients_that_the_loop_drops(lab, how, code):
    """`run.save()` and SIGTERM, both before the step: the gradients of that step are dropped by the next `zero_grad`."""
    script = lab.source(SCRIPT, how)
    assert script.wait() == code, script.text
    folders = sorted((lab.folder / "store/run/checkpoints").glob("*-000000000005"))
    assert folders
    for folder in folders:
        assert json.loads((folder / "rank-00000.json").read_bytes())["tree"]["grads"] == {}
