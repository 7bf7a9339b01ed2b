"""What a store that fails means for training: `on_store_loss`."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from launch import agent_of, eventually
from outlast._config import Every, Saving
from outlast.agent.control import Word
from outlast.trainer.keeper import Keeper

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


FROZEN = """
import os, sys, time, torch, outlast

base = torch.nn.Linear(8, 8).requires_grad_(False)
head = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
run = outlast.Run("run", base=base, head=head, optimizer=optimizer, on_store_loss="pause")
print("begins", flush=True)
while sys.argv[2:] and not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
for step in run.steps(int(sys.argv[1])):
    head(base(torch.ones(1, 8))).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.01)
"""
QUICK = {"OUTLAST_STORE_PATIENCE_S": "1", "OUTLAST_SAVE_EVERY": "1 steps", "OUTLAST_GRACE_S": "2"}


def break_store(lab, *names):
    """Take folders of the run away; what puts them back."""
    folders = [lab.folder / "store/run" / name for name in names]
    for folder in folders:
        folder.rename(folder.with_suffix(".away"))
        folder.write_text("a file where a folder should be")

    def repair() -> None:
        for folder in folders:
            folder.unlink()
            folder.with_suffix(".away").rename(folder)

    return repair


@pytest.fixture
def broken(lab):
    """Start the script with an option, and break its store once two steps are durable; what repairs it."""

    def start(option: str, more: str = ""):
        script = lab.source(SCRIPT + more, option, **QUICK)
        lab.committed(2)
        return script, break_store(lab, "segments")

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


def test_a_pause_ends_though_a_new_agent_has_to_ask_for_the_snapshot_anew(lab):
    """It cannot tell what the killed one restored, so that what frozen parameters were left out against is not known to it."""
    first = lab.source(FROZEN, "3", **QUICK)
    assert first.wait() == 0, first.text
    script = lab.source(FROZEN, str(10**9), str(lab.folder / "go"), **QUICK)
    script.says("begins")
    repair = break_store(lab, "segments", "checkpoints")
    (lab.folder / "go").touch()
    script.says("training is held")
    os.kill(agent_of(script.pid), signal.SIGKILL)
    script.says("starting a new one")
    said = script.text.count("is not durable")
    eventually("the new one fails as well", lambda: script.text.count("is not durable") > said, lab.said)
    repair()
    lab.committed(6)
    script.kill(signal.SIGTERM)
    assert script.wait() == 75, script.text


def test_what_the_agent_asks_for_anew_is_taken_while_training_is_held(inside):
    """Nothing else would be tried, and training would wait for it for ever."""
    run = inside({"model": torch.nn.Linear(2, 1)})
    signals = SimpleNamespace(stop=False, interrupted=False, any=False, deadline_s=None)
    saving = Saving(Every(300.0, None), verify=True, on_loss="pause")
    keeper = Keeper(run.link, saving, signals, run._gather, saved_as=None, stored=None, overlapping=None)
    submit = run.link.submit

    def spoil(snapshot):
        run.link._told.arenas[snapshot.index].view[snapshot.tensors[0].at] ^= 1
        run.link.submit = submit
        submit(snapshot)

    run.link.submit = spoil
    keeper.ask(pin=False)
    keeper.page[Word.STORE_LOST_NS] = 1
    saved = threading.Event()

    def come_back():
        try:
            eventually("it is saved", lambda: list(run.root.glob("checkpoints/*/commit.json")))
            saved.set()
        finally:
            keeper.page[Word.STORE_LOST_NS] = 0

    store = threading.Thread(target=come_back)
    store.start()
    assert keeper.safe_point(0, 1)
    store.join()
    assert saved.is_set()


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
