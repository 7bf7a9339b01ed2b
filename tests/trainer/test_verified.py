"""A snapshot that is not what the live state was is never committed: it is taken again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from field.torchless import read_tensors
from outlast._types import Reason
from outlast.trainer import saver as module


def states():
    """Two tensors of one shape, whose values tell them apart, and one of another."""
    torch.manual_seed(1)
    return {
        "model": nn.ModuleList(
            [nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False), nn.Linear(3, 2)]
        )
    }


def stale(monkeypatch, _run):
    """The second snapshot is not copied: its arena holds what an earlier one left."""
    monkeypatch.setattr(module, "stage", lambda *_, **__: None)


def late(monkeypatch, run):
    """Something writes into the arena when the copy is complete."""
    submit = run.link.submit

    def write_and_submit(snapshot):
        box = snapshot.tensors[1]
        run.link._told.arenas[snapshot.index].view[box.at] ^= 1
        submit(snapshot)

    monkeypatch.setattr(run.link, "submit", write_and_submit)


def swapped(monkeypatch, _run):
    """Two tensors are copied to each other's place."""
    stage = module.stage

    def crosswise(entries, layout, targets, **how):
        one, other = "model/0.weight", "model/1.weight"
        stage({**entries, one: entries[other], other: entries[one]}, layout, targets, **how)

    monkeypatch.setattr(module, "stage", crosswise)


@pytest.mark.parametrize("plant", [stale, late, swapped])
def test_what_is_not_the_live_state_is_caught_and_taken_again(inside, monkeypatch, plant):
    """A stale arena, a late write, a swapped tensor: nothing is committed, and the next one is right."""
    run = inside(states(), verify=True)
    for _ in range(2):  # both arenas hold an earlier state
        run.save()
    with torch.no_grad():
        for parameter in run.states["model"].parameters():
            parameter.add_(1)
    commits = set(run.root.glob("checkpoints/*/commit.json"))
    with monkeypatch.context() as planted:
        plant(planted, run)
        saved = run.save()
    assert saved.retake and saved.checkpoint is None
    assert "model/" in (saved.error or "")
    assert set(run.root.glob("checkpoints/*/commit.json")) == commits
    assert run.link.retake, "the next safe point is told"
    run.saver.settle()
    redo = run.saver.redo
    assert redo is not None and redo.reason is Reason.USER
    number = run.saver.take(redo)
    assert number is not None
    assert run.on_store(run.answer(number)) == run.live()
    assert run.saver.redo is None


@pytest.mark.parametrize("plant", [stale, late, swapped])
def test_without_verification_the_planted_faults_would_be_saved(inside, monkeypatch, plant):
    """It is the comparison that catches them: without it wrong bytes are committed."""
    run = inside(states())
    for _ in range(2):
        run.save()
    with torch.no_grad():
        for parameter in run.states["model"].parameters():
            parameter.add_(1)
    with monkeypatch.context() as planted:
        plant(planted, run)
        saved = run.save()
    assert run.on_store(saved) != run.live()


def test_one_that_is_wrong_each_time_is_not_taken_again_for_ever(inside, monkeypatch):
    """After two more tries it waits for the next interval, and training goes on."""
    run = inside(states(), verify=True)
    stale(monkeypatch, run)
    saved = run.save(Reason.INTERVAL)
    for _ in range(module.RETAKES):
        run.saver.settle()
        assert run.saver.redo is not None
        number = run.saver.take(run.saver.redo)
        assert number is not None
        saved = run.answer(number)
    run.saver.settle()
    assert saved.retake and run.saver.redo is None


def test_every_dtype_and_layout_passes_its_own_verification(inside):
    """Strided, empty, scalar, boolean and half tensors, nans and negative zeros."""
    model = nn.Module()
    for name, tensor in {
        "strided": torch.randn(6, 10).t(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(-0.0),
        "flags": torch.tensor([True, False, True]),
        "brain": torch.full((5,), float("nan"), dtype=torch.bfloat16),
        "pairs": torch.randn(7, dtype=torch.complex128),
        "part": torch.arange(100.0)[::3],
    }.items():
        model.register_buffer(name, tensor)
    run = inside({"model": model}, verify=True)
    assert run.on_store(run.save()) == run.live()


SCRIPT = """
import sys, torch, outlast
from outlast.trainer import saver

wrong, stage = int(sys.argv[1]), saver.stage

def stale(*arguments, **options):
    global wrong
    wrong -= 1
    if wrong < 0:
        stage(*arguments, **options)

saver.stage = stale
model = torch.nn.Linear(8, 8)
run = outlast.Run("run", model=model)
for _ in run.steps(3):
    with torch.no_grad():
        model.weight += 1
open("weight", "wb").write(model.weight.detach().numpy().tobytes())
"""


@pytest.mark.parametrize(("wrong", "code"), [(2, 0), (99, 74)])
def test_the_last_save_is_taken_again_on_the_spot(lab, wrong, code):
    """Two more times; exit 0 only once the state that it ended with is durable, else 74 with the tensor's name."""
    script = lab.source(SCRIPT, str(wrong), OUTLAST_VERIFY_SNAPSHOTS=1)
    assert script.wait() == code, script.text
    commits = lab.commits()
    if code:
        assert not commits
        assert "step 3 was not saved" in script.text and "model/weight" in script.text
        return
    assert commits[-1]["finished"]
    stored = read_tensors(commits[-1]["folder"])
    assert stored["model/weight"] == (lab.folder / "weight").read_bytes()
