"""A logged metric that is the best so far is saved at the next safe point, marked, and known to the next attempt."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import eventually
from outlast._types import Best
from outlast.trainer.best import BestSoFar

SCRIPT = """
import json, math, os, sys, torch, outlast

LAB = os.environ["T_LAB"]
losses = json.loads(sys.argv[1])
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer, keep_best=("val_loss", sys.argv[2]), keep_last=100)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)), batch_size=2)
for epoch in run.epochs(len(losses)):
    for (x,) in run.batches(loader):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    run.log(val_loss=losses[epoch], other=-1e9)
    if epoch == int(sys.argv[3]):
        open(f"{LAB}/here", "w").close()
        while True: pass
"""


def best_values(lab) -> list[tuple[int, float]]:
    """(epoch, value) of every checkpoint that was the best when it was saved, in order."""
    found = []
    for path in sorted((lab.folder / "store/run/checkpoints").glob("*/rank-00000.json")):
        manifest = json.loads(path.read_bytes())
        if (path.parent / "commit.json").exists() and manifest["best"]:
            assert manifest["best"]["metric"] == "val_loss"
            found.append((manifest["position"]["epoch"], manifest["best"]["value"]))
    return found


@pytest.mark.parametrize("mode", ["min", "max"])
def test_each_tail_that_improves_is_saved_and_marked(lab, mode):
    """Nan and infinities never improve; an equal value does not either; the last epoch counts as the others."""
    sign = 1 if mode == "min" else -1
    losses = [3.0, math.nan, 2.0, 2.0, 5.0, -math.inf * sign, 1.0]
    script = lab.source(SCRIPT, json.dumps([sign * x for x in losses]), mode, "-1")
    assert script.wait() == 0, script.text
    # What an epoch's tail logged is saved at its close: as the beginning of the next.
    assert best_values(lab) == [(1, sign * 3.0), (3, sign * 2.0), (7, sign * 1.0)]


def test_an_attempt_that_resumes_knows_the_best_so_far(lab):
    """A worse value after a kill is not the best."""
    first = lab.source(SCRIPT, json.dumps([3.0, 1.5, 9.0, 9.0]), "min", "2")
    eventually("the third epoch has logged", lambda: (lab.folder / "here").exists())
    first.kill()
    first.wait()
    lab.committed(4)  # the beginning of the third epoch: the best so far
    second = lab.source(SCRIPT, json.dumps([3.0, 1.5, 2.0, 1.0]), "min", "-1")
    assert second.wait() == 0, second.text
    assert best_values(lab) == [(1, 3.0), (2, 1.5), (4, 1.0)]


def test_a_finished_run_that_is_given_more_epochs_is_finished_again(lab):
    """Though its last safe point was saved as the best already: exit 0 means that the end is durable."""
    assert lab.source(SCRIPT, "[3.0, 2.0]", "min", "-1").wait() == 0
    assert lab.source(SCRIPT, "[3.0, 2.0, 1.5, 1.0]", "min", "-1").wait() == 0
    assert [(c["attempt"], c["step"]) for c in lab.commits() if c["finished"]] == [(1, 4), (2, 8)]


@given(st.lists(st.floats() | st.integers(-5, 5)), st.sampled_from(["min", "max"]))
def test_the_best_is_what_a_plain_loop_finds(values, mode):
    """An oracle of its own: the values that beat all finite ones before."""
    seen: list[float] = []
    best = BestSoFar(Best("loss", mode))
    for value in values:
        better = math.isfinite(value) and all(value < v if mode == "min" else value > v for v in seen)
        assert best.see({"loss": value, "acc": 0.0}) is better
        if better:
            assert best.due == value and best.position["value"] == value
            seen.append(value)
    other = BestSoFar(Best("loss", mode))
    other.resume(json.loads(json.dumps(best.position)))
    assert other.position == best.position and other.due is None
    another = BestSoFar(Best("acc", mode))
    another.resume(best.position)
    assert another.position is None, "the best of another metric says nothing"
