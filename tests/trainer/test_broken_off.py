"""A loop that is left by a `break` after `should_stop()` said so: neither an epoch nor a run has ended with that."""

from __future__ import annotations

import pytest

from launch import Lab

PREEMPTED = 75

SCRIPT = """
import json, os, time, torch, outlast

record = os.open(os.environ["T_LAB"] + "/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer, seed=1)
loader = outlast.DataLoader(torch.arange(40.0).reshape(10, 4), 1)

def train(x, index):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    line = {"kind": "step", "pid": os.getpid(), "epoch": run.epoch, "index": index, "step": run.step}
    os.write(record, (json.dumps(line) + "\\n").encode())

def told(step):
    if run.attempt == 1 and step == 6:
        os.kill(os.getpid(), 15)
        while not run.should_stop():
            time.sleep(0.01)
    return run.should_stop()

LOOP
print("the script goes on")
"""

EPOCHS = """
for epoch in run.epochs(2):
    for i, x in run.enumerate(loader):
        train(x, i)
        if told(run.step):
            break
    print("a tail")
"""

FLAT = """
for i, x in run.enumerate(loader, epochs=2):
    train(x, i)
    if told(run.step):
        break
"""

STEPS = """
for step in run.steps(20):
    train(torch.ones(4), step % 10)
    if told(step):
        break
"""

TAIL = """
for epoch in run.epochs(2):
    for i, x in run.enumerate(loader):
        train(x, i)
    if told(run.step - 4):
        break
"""

OWN_LOADER = """
for epoch in run.epochs(2):
    for i in range(10):
        train(torch.ones(4), i)
        if told(i):
            break
"""

EVALUATES = """
for i, x in run.enumerate(loader, epochs=2):
    train(x, i)
    told(run.step)
"""


@pytest.mark.parametrize(
    ("kind", "loop"),
    [("plain", EPOCHS), ("plain", FLAT), ("plain", STEPS), ("supervised", FLAT)],
    ids=["epochs", "flat", "steps", "supervised"],
)
def test_the_script_ends_with_75_and_what_was_left_of_the_epoch_is_trained(
    lab: Lab, kind: str, loop: str
) -> None:
    """Not with 0, which would end the run there; nor counts the epoch as done, whose last batches no attempt would see."""
    start = lab.source if kind == "plain" else lab.supervised_source
    first = start(SCRIPT.replace("LOOP", loop), OUTLAST_SAVE_EVERY="4 steps")
    assert first.wait() == PREEMPTED, lab.said()
    assert "left by a break" in first.text
    assert lab.commits()[-1]["step"] == 4
    assert lab.source(SCRIPT.replace("LOOP", loop), OUTLAST_SAVE_EVERY="4 steps").wait() == 0, lab.said()
    last = [r for r in lab.of("step") if r["pid"] != lab.of("step")[0]["pid"]]
    assert [r["step"] for r in last] == list(range(4, 20))
    assert [r["index"] for r in last] == [step % 10 for step in range(4, 20)]


def test_one_that_is_told_and_goes_on_leaves_at_the_next_safe_point_and_saves(lab: Lab) -> None:
    """As long evaluation within a loop does that returns early: no step is lost."""
    assert lab.source(SCRIPT.replace("LOOP", EVALUATES)).wait() == PREEMPTED, lab.said()
    newest = lab.commits()[-1]
    assert (newest["reason"], newest["step"]) == ("emergency", 7)


def test_one_that_is_left_in_an_epochs_tail_is_no_end_either(lab: Lab) -> None:
    """The epoch's batches are saved, and its tail, which was cut, is run again."""
    assert lab.source(SCRIPT.replace("LOOP", TAIL)).wait() == PREEMPTED, lab.said()
    newest = lab.commits()[-1]
    assert (newest["step"], newest["position"]["tail_open"]) == (10, True)
    assert lab.source(SCRIPT.replace("LOOP", TAIL)).wait() == 0, lab.said()
    assert [r["step"] for r in lab.of("step")] == list(range(20))


def test_an_epoch_that_reads_a_loader_of_its_own_is_not_over_by_a_break(lab: Lab) -> None:
    """It is run again whole: where its data stood is not known."""
    assert lab.source(SCRIPT.replace("LOOP", OWN_LOADER)).wait() == PREEMPTED, lab.said()
    assert lab.source(SCRIPT.replace("LOOP", OWN_LOADER)).wait() == 0, lab.said()
    first = lab.of("step")[0]["pid"]
    assert [(r["epoch"], r["index"]) for r in lab.of("step") if r["pid"] != first] == [
        (epoch, i) for epoch in range(2) for i in range(10)
    ]
