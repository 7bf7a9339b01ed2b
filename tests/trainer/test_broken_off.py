"""A loop that is left by a `break` after `should_stop()` said so: neither an epoch nor a run has ended with that."""

from __future__ import annotations

import signal

import pytest

from launch import Lab

PREEMPTED, INTERRUPTED = 75, 130

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
    if run.attempt == 1 and step == 6 and (by := int(os.environ.get("T_SIGNAL", "15"))):
        os.kill(os.getpid(), by)
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

BAR = FLAT.replace("for i, x in", "bar = iter(").replace("epochs=2):", "epochs=2))\nfor i, x in bar:")
"""Something, such as a progress bar, keeps the iterator: that the loop was left shows only as the script ends."""

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


SAVED = """
def leave():
    run.save()
    return True

CUT = False
LOOP
if CUT:
    model.weight.data.zero_()  # what is evaluated, or sent away, after the loop
os.write(record, (json.dumps({"kind": "end", "pid": os.getpid(), "weight": model.weight.tolist(), "rand": torch.rand(2).tolist()}) + "\\n").encode())
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


@pytest.mark.parametrize("loop", [EPOCHS, FLAT, BAR, STEPS], ids=["epochs", "flat", "bar", "steps"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_save_before_the_break_loses_no_step(lab: Lab, loop: str, number: int) -> None:
    """It is of the state at the call, whatever the script does to that after its loop, and the end is the undisturbed one's."""
    saved = loop.replace("            break", "            CUT = leave()\n            break")
    saved = saved.replace("        break", "        CUT = leave()\n        break") if saved == loop else saved
    saved = saved.replace('print("a tail")', "CUT and model.weight.data.zero_()")
    script = SCRIPT.replace("LOOP", SAVED.replace("LOOP", saved))
    assert lab.source(script, T_SIGNAL=0, OUTLAST_STORE=f"{lab.folder}/undisturbed").wait() == 0, lab.said()
    first = lab.source(script, T_SIGNAL=int(number))
    assert first.wait() == (PREEMPTED if number == signal.SIGTERM else INTERRUPTED), lab.said()
    newest = lab.commits()[-1]
    assert newest["step"] == 7
    assert (newest["reason"] == "emergency") == (number == signal.SIGTERM)
    assert "lost with it" not in first.text
    last = lab.source(script)
    assert last.wait() == 0, lab.said()
    assert [r["step"] for r in lab.of("step", last.pid)] == list(range(7, 20))
    assert [r["index"] for r in lab.of("step", last.pid)] == [step % 10 for step in range(7, 20)]
    undisturbed, *_, end = [{k: r[k] for k in ("weight", "rand")} for r in lab.of("end")]
    assert end == undisturbed


def test_one_that_saves_and_goes_on_leaves_at_the_next_safe_point(lab: Lab) -> None:
    """What the body does after it belongs to the step as well."""
    loop = EVALUATES + "    run.should_stop() and run.save()\n    model.weight.data.add_(1)\n"
    assert lab.source(SCRIPT.replace("LOOP", loop)).wait() == PREEMPTED, lab.said()
    assert [commit["step"] for commit in lab.commits()][-1] == 7
    ended = SAVED.replace("LOOP", loop)
    assert lab.source(SCRIPT.replace("LOOP", ended)).wait() == 0, lab.said()
    undisturbed = f"{lab.folder}/undisturbed"
    assert lab.source(SCRIPT.replace("LOOP", ended), T_SIGNAL=0, OUTLAST_STORE=undisturbed).wait() == 0
    resumed, whole = [r["weight"] for r in lab.of("end")]
    assert resumed == whole


def test_what_was_not_left_by_a_break_is_not_saved_in_the_middle_of_a_body(lab: Lab) -> None:
    """A machine that goes before the body is over leaves the last whole step."""
    loop = EVALUATES + "    run.should_stop() and (run.save(), os.kill(os.getpid(), 9))\n"
    assert lab.source(SCRIPT.replace("LOOP", loop), OUTLAST_SAVE_EVERY="4 steps").wait() == -signal.SIGKILL
    lab.nothing_left()
    assert [commit["step"] for commit in lab.commits()] == [4]


@pytest.mark.parametrize("loop", [FLAT, EPOCHS], ids=["flat", "epochs"])
def test_what_was_not_left_by_a_break_is_not_saved_by_an_exception_either(lab: Lab, loop: str) -> None:
    """It is no sign of a whole step: the rest of the body was not done."""
    at = (
        "        if told(run.step):\n            break"
        if loop == EPOCHS
        else "    if told(run.step):\n        break"
    )
    assert at in loop
    raises = at.replace("break", "run.save()\nINraise RuntimeError('in the body')")
    loop = loop.replace(at, raises.replace("IN", " " * (12 if loop == EPOCHS else 8)))
    assert lab.source(SCRIPT.replace("LOOP", loop), OUTLAST_SAVE_EVERY="4 steps").wait() == 1, lab.said()
    assert "in the body" in lab.said()
    assert [commit["step"] for commit in lab.commits()] == [4]


TAIL_SAVES = """
for epoch in run.epochs(2):
    bar = iter(run.enumerate(loader))
    for i, x in BATCHES:
        train(x, i)
        if told(run.step):
            break
    model.weight.data.add_(1)  # as a scheduler's step
    if run.should_stop():
        run.save()
"""


@pytest.mark.parametrize("batches", ["bar", "run.enumerate(loader)"])
def test_a_save_in_a_tail_whose_loop_was_left_is_none_of_the_body(lab: Lab, batches: str) -> None:
    """It would hold what the tail did, and the tail would run again."""
    script = SCRIPT.replace("LOOP", SAVED.replace("LOOP", TAIL_SAVES.replace("BATCHES", batches)))
    assert lab.source(script, OUTLAST_SAVE_EVERY="4 steps").wait() == PREEMPTED, lab.said()
    assert [commit["step"] for commit in lab.commits()] == [4]
    assert lab.source(script).wait() == 0, lab.said()
    assert lab.source(script, T_SIGNAL=0, OUTLAST_STORE=f"{lab.folder}/undisturbed").wait() == 0
    resumed, whole = [r["weight"] for r in lab.of("end")]
    assert resumed == whole


def test_a_save_before_the_break_is_made_as_soon_as_it_is_known_that_it_was_one(lab: Lab) -> None:
    """Not only once a long tail is over: it is known when the tail asks whether it should stop."""
    tail = """    if epoch == 0:
        waits = 1000
        while waits and run.should_stop() and not os.path.exists(os.environ["T_LAB"] + "/seen"):
            time.sleep(0.02)
            waits -= 1
"""
    loop = EPOCHS.replace("            break", "            run.save()\n            break")
    loop = loop.replace('    print("a tail")\n', tail)
    first = lab.source(SCRIPT.replace("LOOP", loop))
    lab.committed(7)
    (lab.folder / "seen").touch()
    assert first.wait() == PREEMPTED, lab.said()


TAIL_LEFT = """
for epoch in run.epochs(2):
    for i, x in run.enumerate(loader):
        train(x, i)
    model.weight.data.add_(1)  # as a scheduler's step
    if told(run.step - 4):
        run.save()
        break
"""

TAIL_OF_A_BREAK = """
for epoch in run.epochs(2):
    for i, x in run.enumerate(loader):
        train(x, i)
        if told(run.step):
            run.save()
            break
    model.weight.data.add_(1)
    if run.should_stop():
        run.save()
        break
"""


@pytest.mark.parametrize("loop", [TAIL_LEFT, TAIL_OF_A_BREAK], ids=["tail", "tail of a break"])
def test_a_save_in_a_tail_that_is_left_is_not_made_of_what_the_tail_did(lab: Lab, loop: str) -> None:
    """The tail is run again, on the state that it began with: what was asked for as the script ends would hold it twice."""
    script = SCRIPT.replace("LOOP", SAVED.replace("LOOP", loop))
    assert lab.source(script).wait() == PREEMPTED, lab.said()
    assert lab.commits()[-1]["step"] == (7 if loop == TAIL_OF_A_BREAK else 10)
    last = lab.source(script)
    assert last.wait() == 0, lab.said()
    assert lab.source(script, T_SIGNAL=0, OUTLAST_STORE=f"{lab.folder}/undisturbed").wait() == 0
    *_, resumed, whole = [r["weight"] for r in lab.of("end")]
    assert resumed == whole


ACCUMULATES = """
stop = False
for i, x in run.enumerate(loader, epochs=2):
    model(x).sum().backward()
    stop = stop or told(run.step + 5 if i % 2 == 0 and run.step == 1 else 0)
    if i % 2 == 1:
        optimizer.step()
        optimizer.zero_grad()
        os.write(record, (json.dumps({"kind": "step", "pid": os.getpid(), "step": run.step}) + "\\n").encode())
        if stop:
            run.save()
            break
"""


def test_one_that_was_told_some_batches_before_its_step_saves_it_as_well(lab: Lab) -> None:
    """Batches whose gradients are accumulated are one step. It ended with 0, which would end the run there."""
    assert lab.source(SCRIPT.replace("LOOP", ACCUMULATES)).wait() == PREEMPTED, lab.said()
    assert lab.commits()[-1]["step"] == 2
    assert lab.source(SCRIPT.replace("LOOP", ACCUMULATES)).wait() == 0, lab.said()
    assert [r["step"] for r in lab.of("step")] == list(range(10))


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_loop_that_is_left_on_the_scripts_own_account_skips_no_batch(lab: Lab, where: str) -> None:
    """Whether a batch was used of which no step came cannot be known: where the break comes first, nothing is saved of it."""
    limit = "    if run.attempt == 1 and i == 6:\n        run.save()\n        break\n"
    train = "    train(x, i)\n"
    body = limit + train if where == "before" else train + limit
    loop = "for i, x in run.enumerate(loader, epochs=2):\n" + body
    first = lab.source(SCRIPT.replace("LOOP", loop), OUTLAST_SAVE_EVERY="4 steps")
    assert first.wait() == 0, lab.said()
    assert ("the state is not saved" in first.text) == (where == "before")
    begins = 4 if where == "before" else 7
    assert lab.commits()[-1]["step"] == begins
    last = lab.source(SCRIPT.replace("LOOP", loop))
    assert last.wait() == 0, lab.said()
    assert [r["index"] for r in lab.of("step", last.pid)] == [step % 10 for step in range(begins, 20)]


CARRIES = """
for i, x in run.enumerate(loader, epochs=2):
    model(x).sum().backward()
    told(6 if run.step == 3 and i == 9 else 0)
    if i % 3 == 2:
        optimizer.step()
        optimizer.zero_grad()
        os.write(record, (json.dumps({"kind": "step", "pid": os.getpid(), "step": run.step}) + "\\n").encode())
"""


def test_one_that_was_told_in_an_epochs_last_batches_and_goes_on_loses_no_step(lab: Lab) -> None:
    """They end on no step, and their gradients go into the next epoch: the loop was not left by a break for that."""
    first = lab.source(SCRIPT.replace("LOOP", CARRIES))
    assert first.wait() == PREEMPTED, lab.said()
    assert "left by a break" not in first.text
    assert lab.commits()[-1]["step"] >= 3
    assert lab.source(SCRIPT.replace("LOOP", CARRIES)).wait() == 0, lab.said()
    assert [r["step"] for r in lab.of("step")] == list(range(6))
