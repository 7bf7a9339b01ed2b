"""What a store that fails means for training: `on_store_loss`."""

from __future__ import annotations

import signal

import pytest

from launch import eventually

SCRIPT = """
import json, os, sys, time, torch, outlast

LAB = os.environ["T_LAB"]
record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer, on_store_loss=sys.argv[1])
for step in run.steps(10**9):
    os.write(record, (json.dumps({"kind": "step", "pid": os.getpid(), "step": step}) + "\\n").encode())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.01)
"""


@pytest.fixture
def broken(lab):
    """Start the script with an option, and break its store once two steps are durable; what repairs it."""

    def start(option: str, more: str = ""):
        script = lab.source(
            SCRIPT + more,
            option,
            OUTLAST_STORE_PATIENCE_S="1",
            OUTLAST_SAVE_EVERY="1 steps",
            OUTLAST_GRACE_S="2",
        )
        lab.committed(2)
        segments = lab.folder / "store/run/segments"
        segments.rename(away := segments.with_name("away"))
        segments.write_text("a file where a folder should be")

        def repair() -> None:
            segments.unlink()
            away.rename(segments)

        return script, repair

    return start


def last_step(lab) -> int:
    """The last step that the script wrote down."""
    return lab.of("step")[-1]["step"]


def test_pause_holds_at_a_safe_point_until_the_store_is_back(lab, broken):
    """It says so, nothing is trained meanwhile, and then it goes on."""
    script, repair = broken("pause")
    script.says("training is held")
    held = last_step(lab)
    script.says("is not durable")
    assert last_step(lab) <= held + 1
    repair()
    script.says("the store is back")
    eventually("it trains on", lambda: last_step(lab) > held + 1)
    script.kill(signal.SIGTERM)
    assert script.wait() == 75, script.text


def test_a_notice_ends_a_pause(lab, broken):
    """The machine goes away while the store is out of reach: the loop is left at the deadline."""
    script, repair = broken("pause")
    script.says("training is held")
    script.kill(signal.SIGTERM)
    script.says("did not become durable in time")
    repair()  # what is complete is waited for as long as the machine lives
    assert script.wait() == 75, script.text


def test_exit_ends_with_74_and_names_the_last_durable_step(lab, broken):
    """At a safe point, without waiting for the store."""
    script, repair = broken("exit")
    assert script.wait() == 74, script.text
    durable = lab.commits()[-1]["step"]
    assert f"step {durable} is durable" in script.text
    repair()


def test_continue_trains_on_and_catches_up(lab, broken):
    """As if nothing had happened."""
    script, repair = broken("continue")
    script.says("is not durable")
    before = last_step(lab)
    eventually("it trains on", lambda: last_step(lab) > before + 5)
    repair()
    lab.committed(last_step(lab))


def test_saves_that_are_asked_for_do_not_hold_training_either(lab, broken):
    """Both arenas are taken by such saves: the third waits for a later safe point, not for the store."""
    script, repair = broken("continue", "    if step % 5 == 4: run.save()\n")
    script.says("is not durable")
    before = last_step(lab)
    eventually("it trains on", lambda: last_step(lab) > before + 30, lab.said)
    repair()
    lab.committed(last_step(lab))
    script.kill(signal.SIGTERM)
    assert script.wait() == 75, script.text
