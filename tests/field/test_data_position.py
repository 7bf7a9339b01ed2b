"""The data position."""

from __future__ import annotations

import json
import os
import signal

import pytest

from launch import Lab, history

SIZE = {"T_SAMPLES": 48, "T_EPOCHS": 2}
"""12 batches an epoch."""


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    """The script's run from its first step to its last: its history and its end."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed"), zygote)
    assert lab.script(**SIZE).wait() == 0, lab.said()
    return history(lab.records), end(lab)


def end(lab):
    """How the script ended: weights and optimizer, the next random number, its counts."""
    (record,) = lab.of("end")
    return {name: record[name] for name in ("digest", "rand", "steps", "epochs_stepped")}


def interrupted(lab, *places, number=signal.SIGTERM):
    """Interrupt the script at each place in turn, then let it end."""
    for place in places:
        script = lab.script(T_GATES=place, **SIZE)
        lab.at(place)
        script.kill(number)
        lab.open(place)
        assert script.wait() in (os.EX_TEMPFAIL, -signal.SIGKILL), lab.said()
        lab.nothing_left()
    assert lab.script(**SIZE).wait() == 0, lab.said()


FAR = """
import json, os, signal, time
import torch
import outlast

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 10_000_000
    def __getitem__(self, i):
        raise AssertionError
    def __getitems__(self, indices):
        touched.extend(indices)
        return [torch.tensor(indices)]

touched = []
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run("run", model=model, optimizer=optimizer)
loader = torch.utils.data.DataLoader(Numbers(), batch_size=50_000, shuffle=True)
began = time.monotonic()
for i, batch in run.enumerate(loader):
    if run.resumed:
        took = time.monotonic() - began
        with open(os.environ["T_LAB"] + "/found", "w") as file:
            json.dump({"i": i, "took_s": took, "touched": len(touched), "sum": sum(touched)}, file)
        os.kill(os.getpid(), signal.SIGKILL)
    model(torch.ones(1)).sum().backward()
    optimizer.step()
    if i == 19:
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_hours_of_replay_to_find_the_position_again(lab):
    """hours of replay to find the position again (transformers 11284: 28 h)"""
    assert lab.source(FAR).wait() == os.EX_TEMPFAIL, lab.said()
    assert lab.commits()[-1]["position"]["samples"] == 1_000_000
    assert lab.source(FAR).wait() == -signal.SIGKILL, lab.said()
    found = json.loads((lab.folder / "found").read_text())
    assert (found["i"], found["touched"]) == (20, 50_000), "no sample before the position was looked at"
    assert found["took_s"] <= 1.0


def test_wrong_from_the_second_resume_of_an_epoch_on(lab, undisturbed):
    """wrong from the second resume of an epoch on (KempnerForge 57)"""
    interrupted(lab, "step:14", "step:17", "step:18", "step:22")
    assert history(lab.records) == undisturbed[0]
    assert end(lab) == undisturbed[1]


def test_epoch_0s_shuffle_replayed_after_every_preemption(lab, undisturbed):
    """epoch 0's shuffle replayed after every preemption (pytorch-lightning 21938)"""
    interrupted(lab, "step:13", "step:20")
    steps = history(lab.records)
    assert steps == undisturbed[0]
    first, second = ([samples for epoch, _, samples, _ in steps if epoch == number] for number in (0, 1))
    assert first != second
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(48))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("place", ["step:12", "tail:0", "step:24", "tail:1"])
def test_position_at_the_epochs_very_end(lab, undisturbed, place, number):
    """position at the epoch's very end resumed into an empty or shortened epoch (torchdata 1437, datasets 7447)"""
    if number == signal.SIGKILL and place.startswith("step"):
        lab.env["OUTLAST_SAVE_EVERY"] = "11 steps"  # the resume begins in the last batches of the epoch
    interrupted(lab, place, number=number)
    steps = history(lab.records)
    for epoch in range(2):
        assert [i for at, i, *_ in steps if at == epoch] == list(range(12))
    assert steps == undisturbed[0]
    assert end(lab) == undisturbed[1]
